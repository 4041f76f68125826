"""Deep supervision: while a network trains, coarser levels of its decoder answer as well.

Lee et al., "Deeply-Supervised Nets" (AISTATS 2015, arXiv:1409.5185). Their answers, of one 1x1
convolution each, count in the loss alone; nothing of them ships.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from KidneySegLib.network import UNet
from UNetTrainerLib.distributed import gathered
from UNetTrainerLib.losses import Loss

LEVELS = 2  # those after the finest; further down a kidney is a few pixels


def coarser_levels(depth: int) -> int:
    """How many levels of a network of this depth are supervised beside its finest."""
    return min(LEVELS, depth - 2)


class DeepSupervision(nn.Module):
    """The coarser levels' heads, and what their answers add to the loss.

    Args:
        network: its decoder is watched from now on, whenever it trains.
        share: of the loss at half the pixels, beside 1 at the finest level; at each level below it
            counts half as much as at the one above.
    """

    def __init__(self, network: UNet, share: float):
        super().__init__()
        parameters = network.parameters_
        self.share = share
        self.heads = nn.ModuleList()
        self._seen: dict[int, Tensor] = {}
        for level in range(1, coarser_levels(parameters.depth) + 1):
            features = parameters.features * 2**level
            self.heads.append(nn.Conv2d(features, parameters.classes, 1))
            network.decoder[-1 - level].register_forward_hook(self._watch(level))

    def _watch(self, level: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """A hook that remembers what a level of the decoder gave."""

        def keep(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if block.training:
                self._seen[level] = output

        return keep

    def forward(self, loss: Loss, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """What to add to the loss of the forward pass just done.

        Args:
            labels, weights: of the whole batch, over all processes, see `gathered`.
        """
        total = labels.new_zeros((), dtype=torch.float32)
        for level, head in enumerate(self.heads, 1):
            logits = head(self._seen.pop(level).float())
            larger = functional.interpolate(logits, scale_factor=2**level, mode="bilinear")
            part = gathered(_middle(larger, labels.shape[-2:]))
            total = total + self.share / 2 ** (level - 1) * loss(part, labels, weights)
        return total


def _middle(logits: Tensor, shape: torch.Size) -> Tensor:
    """What an unpadded network goes on to label: it leaves out as much on every side."""
    top, left = ((have - want) // 2 for have, want in zip(logits.shape[-2:], shape, strict=True))
    return logits[..., top : top + shape[0], left : left + shape[1]]
