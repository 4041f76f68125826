"""Losses against their published formulas, written down a second time in numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from UNetTrainerLib import options
from UNetTrainerLib.losses import LOSSES

SHAPE = (3, 7, 5)


def draw(classes: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels that hold every class, and weights."""
    generator = torch.Generator().manual_seed(seed)
    slices, rows, columns = SHAPE
    logits = 2 * torch.randn(slices, classes, rows, columns, generator=generator)
    labels = (torch.rand(SHAPE, generator=generator) ** 3 * classes).long()
    assert len(labels.unique()) == classes
    return logits, labels, 0.5 + torch.rand(SHAPE, generator=generator)


def softmax(logits: Tensor) -> np.ndarray:
    p = np.exp(logits.double().numpy())
    return p / p.sum(1, keepdims=True)


def truth(labels: Tensor, classes: int) -> np.ndarray:
    return np.stack([labels.numpy() == one for one in range(classes)], 1).astype(float)


def generalized_dice(p: np.ndarray, r: np.ndarray, w: np.ndarray) -> float:
    volume = r.sum((0, 2, 3))
    share = np.zeros_like(volume)
    share[volume > 0] = 1 / volume[volume > 0] ** 2
    share[volume == 0] = share.max()
    return 1 - 2 * (share * (r * p).sum((0, 2, 3))).sum() / (share * (r + p).sum((0, 2, 3))).sum()


def dice(p: np.ndarray, r: np.ndarray, w: np.ndarray) -> float:
    losses = [
        1 - (2 * (p[:, i] * r[:, i]).sum() + 1) / (p[:, i].sum() + r[:, i].sum() + 1)
        for i in range(1, p.shape[1])
    ]
    return float(np.mean(losses))


def entropy(p: np.ndarray, r: np.ndarray, w: np.ndarray) -> np.ndarray:
    return -np.log((p * r).sum(1))


def bce(p: np.ndarray, r: np.ndarray, w: np.ndarray) -> float:
    p, r = p[:, 1:], r[:, 1:]
    return float(-(r * np.log(p) + (1 - r) * np.log(1 - p)).mean())


def slice_dice(p: np.ndarray, r: np.ndarray, w: np.ndarray) -> float:
    losses = [
        1 - (2 * (p[n, i] * r[n, i]).sum() + 50) / (p[n, i].sum() + r[n, i].sum() + 50)
        for n in range(len(p))
        for i in range(1, p.shape[1])
    ]
    return float(np.mean(losses))


FORMULAS = {
    "generalized-dice": generalized_dice,
    "generalized-dice-ce": lambda p, r, w: generalized_dice(p, r, w) + entropy(p, r, w).mean(),
    "slice-dice-ce": lambda p, r, w: slice_dice(p, r, w) + entropy(p, r, w).mean(),
    "dice": dice,
    "dice-bce": lambda p, r, w: dice(p, r, w) + bce(p, r, w),
    "focal": lambda p, r, w: ((1 - (p * r).sum(1)) ** 2 * entropy(p, r, w)).mean(),
    "weighted-ce": lambda p, r, w: (w * entropy(p, r, w)).mean(),
}


def test_every_choice_has_its_loss_and_its_formula():
    assert tuple(LOSSES) == options.LOSSES == tuple(FORMULAS)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_published_formula(name, classes):
    logits, labels, weights = draw(classes)
    expected = FORMULAS[name](softmax(logits), truth(labels, classes), weights.double().numpy())
    got = LOSSES[name](logits, labels, weights)
    assert got.shape == () and got.dtype == torch.float32
    assert got.item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("missing", [(1,), (2,), (1, 2)], ids=str)
def test_a_class_that_the_batch_lacks_weighs_as_much_as_the_rarest_that_it_holds(missing):
    logits, labels, weights = draw(3)
    for one in missing:
        labels[labels == one] = 0
    expected = generalized_dice(softmax(logits), truth(labels, 3), weights.numpy())
    assert LOSSES["generalized-dice"](logits, labels, None).item() == pytest.approx(
        expected, abs=2e-6
    )


def test_generalized_dice_stays_exact_in_a_batch_of_a_million_pixels():
    """Its weights are then near 1e-12, below the constants that losses are usually smoothed by."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.zeros(4, 512, 512, dtype=torch.long)
    logits = torch.randn(4, 2, 512, 512, generator=generator)
    p, r = softmax(logits), truth(labels, 2)
    expected = generalized_dice(p, r, p)
    assert LOSSES["generalized-dice"](logits, labels, None).item() == pytest.approx(
        expected, abs=1e-5
    )


def silent(classes: int = 2) -> tuple[Tensor, Tensor]:
    """A sure and right answer for slices without kidney."""
    logits = torch.full((2, classes, 8, 8), -5.0)
    logits[:, 0] = 5.0
    return logits, torch.zeros(2, 8, 8, dtype=torch.long)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_a_false_detection_costs_where_the_batch_has_no_kidney(name, classes):
    logits, labels = silent(classes)
    noisy = logits.clone()
    noisy[:, [0, 1], 2:6, 2:6] = logits[:, [1, 0], 2:6, 2:6]
    noisy.requires_grad_()
    loss = LOSSES[name](noisy, labels, torch.ones(2, 8, 8))
    assert LOSSES[name](logits, labels, torch.ones(2, 8, 8)) < 0.02 < 0.1 < loss
    loss.backward()
    assert noisy.grad is not None and noisy.grad.isfinite().all()
    # Downhill is where there is more background.
    assert (noisy.grad[:, 0, 2:6, 2:6] < 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_falls_all_the_way_from_a_wrong_to_a_right_answer(name):
    _, labels, weights = draw(3)
    right = torch.from_numpy(truth(labels, 3)).float()
    wrong = right.roll(1, dims=1)
    seen = [
        LOSSES[name](12 * (share * right + (1 - share) * wrong), labels, weights).item()
        for share in np.linspace(0, 1, 9)
    ]
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.02 < 0.5 < seen[0]


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_batch_does_not_matter(name):
    logits, labels, weights = draw(3)
    order = [2, 0, 1]
    one = LOSSES[name](logits, labels, weights)
    other = LOSSES[name](logits[order], labels[order], weights[order])
    assert one.item() == pytest.approx(other.item(), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_of_half_precision_and_of_any_size_give_finite_losses_and_gradients(name):
    logits, labels, weights = draw(2)
    half = logits.bfloat16().requires_grad_()
    LOSSES[name](half, labels, weights).backward()
    assert half.grad is not None and half.grad.isfinite().all()
    exact = LOSSES[name](half.detach().float(), labels, weights)
    assert LOSSES[name](half.detach(), labels, weights).item() == exact.item()
    for size in (100.0, 1e4):
        for sign in (1, -1):  # as sure as can be, and right or wrong
            extreme = (sign * size * (2 * torch.from_numpy(truth(labels, 2)).float() - 1)).detach()
            extreme.requires_grad_()
            loss = LOSSES[name](extreme, labels, weights)
            loss.backward()
            assert loss.isfinite() and extreme.grad is not None and extreme.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_twice_the_same_slices_are_no_other_loss_but_for_the_smoothing(name):
    logits, labels, weights = draw(2)
    one = LOSSES[name](logits, labels, weights).item()
    twice = LOSSES[name](*(torch.cat((x, x)) for x in (logits, labels, weights))).item()
    assert twice == pytest.approx(one, abs=0.03 if name.startswith("dice") else 1e-6)


def test_without_weights_every_pixel_counts_as_one():
    logits, labels, _ = draw(3)
    expected = LOSSES["weighted-ce"](logits, labels, torch.ones(SHAPE))
    assert LOSSES["weighted-ce"](logits, labels, None).item() == pytest.approx(expected.item())


def test_nothing_of_monai_is_imported_before_a_loss_is_computed():
    code = (
        "import sys, UNetTrainerLib.losses, UNetTrainerLib.optimizers, UNetTrainerLib.memory, "
        "UNetTrainerLib.distributed; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"monai", "lightning", "matplotlib"} & set(done.stdout.split())
