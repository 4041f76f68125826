"""Deep supervision: what coarser levels of a network add to its loss, and to nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from KidneySegLib.errors import UsageError
from KidneySegLib.network import NetworkParameters, UNet, build
from UNetTrainerLib.options import Options
from UNetTrainerLib.supervision import DeepSupervision, coarser_levels

LABELS = torch.zeros(2, 32, 48, dtype=torch.long)


def network(**choices) -> UNet:
    torch.manual_seed(0)
    return build(NetworkParameters(**{"features": 4, "depth": 5, "dropout": 0.0, **choices}))


def one(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    return logits.sum() * 0 + 1


@pytest.mark.parametrize(("depth", "expected"), [(5, 0.75), (4, 0.75), (3, 0.5)])
def test_each_coarser_level_counts_half_as_much_as_the_one_above(depth, expected):
    unet = network(depth=depth).train()
    supervision = DeepSupervision(unet, 0.5)
    unet(torch.randn(2, 1, 32, 48))
    assert supervision(one, LABELS).item() == expected
    assert len(supervision.heads) == coarser_levels(depth)


def test_the_coarser_levels_learn_from_it_and_the_finest_does_not():
    unet = network().train()
    supervision = DeepSupervision(unet, 0.5)
    unet(torch.randn(2, 1, 32, 48))
    supervision(lambda logits, labels, weights: (logits**2).mean(), LABELS).backward()
    learnt = {
        name: parameter.grad is not None and bool((parameter.grad != 0).any())
        for name, parameter in unet.named_parameters()
    }
    assert learnt["encoder.4.conv1.weight"] and learnt["decoder.2.conv2.weight"]
    assert not any(learnt[f"decoder.3.{name}.weight"] for name in ("conv1", "conv2", "norm2"))
    assert not learnt["head.weight"]
    assert all(head.weight.grad.abs().max() > 0 for head in supervision.heads)


@pytest.mark.parametrize("padding", [True, False], ids=["padded", "unpadded"])
def test_a_level_answers_for_the_very_pixels_that_are_labelled(padding):
    """The head of a level sees 1 in the middle of the slice: so do the logits, and in its place."""
    unet = network(depth=3, padding=padding).train()
    supervision = DeepSupervision(unet, 0.5)
    rows, columns = unet(torch.randn(2, 1, 92, 108)).shape[-2:]
    block = unet.decoder[-2]
    spot = torch.zeros(
        2, 8, *block(torch.randn(2, 16, rows // 2 + 12, columns // 2 + 12)).shape[-2:]
    )
    middle = [length // 2 for length in spot.shape[-2:]]
    spot[:, :, middle[0], middle[1]] = 1
    for hook in block._forward_hooks.values():
        hook(block, (), spot)
    with torch.no_grad():
        for parameter in supervision.heads.parameters():
            parameter.fill_(1.0)
    seen: list[Tensor] = []

    def keep(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        seen.append(logits)
        return logits.sum()

    supervision(keep, torch.zeros(2, rows, columns, dtype=torch.long))
    (logits,) = seen
    assert logits.shape == (2, 2, rows, columns)
    brightest = torch.nonzero(logits[0, 0] == logits[0, 0].max()).float().mean(0)
    expected = [
        2 * at + 0.5 - (2 * n - m) // 2
        for at, n, m in zip(middle, spot.shape[-2:], (rows, columns), strict=True)
    ]
    assert brightest.tolist() == expected


def test_a_network_that_does_not_train_is_not_watched():
    unet = network()
    supervision = DeepSupervision(unet, 0.5)
    unet.eval()(torch.randn(1, 1, 32, 48))
    with pytest.raises(KeyError):
        supervision(one, LABELS)


def test_it_needs_a_network_with_coarser_levels():
    with pytest.raises(UsageError, match="--depth 3 or more"):
        Options(deep_supervision=0.5, depth=2)
