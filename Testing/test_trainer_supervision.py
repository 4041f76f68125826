"""Deep supervision: what coarser levels of a network add to its loss, and to nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
    """Where the level sees something, a pixel of 2x2 of the slice, its logits are largest."""
    unet = network(depth=3, padding=padding).train()
    wide: list[tuple[int, ...]] = []

    def spotted(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        wide.append(tuple(output.shape[-2:]))
        spot = torch.zeros_like(output)
        spot[:, :, 20, 30] = 1
        return spot

    unet.decoder[-2].register_forward_hook(spotted)
    supervision = DeepSupervision(unet, 0.5)
    shape = unet(torch.randn(2, 1, 92, 108)).shape[-2:]
    with torch.no_grad():
        for parameter in supervision.heads.parameters():
            parameter.fill_(1.0)
    seen: list[Tensor] = []

    def keep(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        seen.append(logits)
        return logits.sum()

    supervision(keep, torch.zeros(2, *shape, dtype=torch.long))
    assert seen[0].shape == (2, 2, *shape)
    place = torch.nonzero(seen[0][0, 0] == seen[0].max()).float().mean(0)
    left_out = [(2 * level - own) // 2 for level, own in zip(wide[0], shape, strict=True)]
    assert left_out == ([0, 0] if padding else [2, 2])
    assert place.tolist() == [2 * 20 + 0.5 - left_out[0], 2 * 30 + 0.5 - left_out[1]]


def test_a_network_that_does_not_train_is_not_watched():
    unet = network()
    supervision = DeepSupervision(unet, 0.5)
    unet.eval()(torch.randn(1, 1, 32, 48))
    with pytest.raises(KeyError):
        supervision(one, LABELS)


def test_it_needs_a_network_with_coarser_levels():
    with pytest.raises(UsageError, match="--depth 3 or more"):
        Options(deep_supervision=0.5, depth=2)
