"""Losses on logits ``(N, classes, rows, columns)`` against labels ``(N, rows, columns)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def generalized_dice(logits: Tensor, labels: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Generalised Dice loss over the whole batch.

    Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly unbalanced
    segmentations", arXiv:1707.03237, equation in section 2.1: ``1 - 2 * sum_l w_l sum_n r_ln p_ln /
    sum_l w_l sum_n (r_ln + p_ln)`` with ``w_l = 1 / (sum_n r_ln)^2``. A class that the batch does
    not hold has no weight of its own; it takes that of the rarest class that it does hold, so that
    false detections still cost.
    """
    probability = torch.softmax(logits.float(), dim=1)
    truth = functional.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1).float()
    axes = (0, 2, 3)
    volume = truth.sum(axes)
    weight = torch.where(volume > 0, 1 / volume.clamp(min=1) ** 2, torch.zeros_like(volume))
    weight = torch.where(volume > 0, weight, weight.max())
    overlap = (weight * (truth * probability).sum(axes)).sum()
    total = (weight * (truth + probability).sum(axes)).sum()
    return 1 - 2 * overlap / total.clamp(min=epsilon)


def generalized_dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Generalised Dice loss plus cross-entropy: the first finds, the second calibrates."""
    entropy = functional.cross_entropy(logits.float(), labels.long())
    return generalized_dice(logits, labels) + entropy


LOSSES: dict[str, Loss] = {
    "generalized-dice": generalized_dice,
    "generalized-dice-ce": generalized_dice_ce,
}
