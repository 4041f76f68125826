"""Losses on logits ``(N, classes, rows, columns)`` against labels ``(N, rows, columns)``.

`LOSSES` has one for every choice of ``--loss``. MONAI's are used where they are the published
definition, which the tests hold them to. Each sums over the whole batch, gives a mean that does not
depend on the size of the slices, and computes in float32 whatever the logits come in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor
from torch.nn import functional

SLICE_SMOOTHING = 50.0  # pixels: a slice without kidney is not ruined by one false pixel

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@cache
def _monai(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """MONAI's loss of that name, imported no sooner than a training run needs it."""
    from monai import losses

    match name:
        case "generalized-dice":
            # No smoothing: in a large batch the weights are smaller than any usual constant.
            return losses.GeneralizedDiceLoss(
                softmax=True,
                to_onehot_y=True,
                batch=True,
                w_type="square",
                smooth_nr=0.0,
                smooth_dr=0.0,
            )
        case "dice":
            return losses.DiceLoss(
                softmax=True,
                to_onehot_y=True,
                batch=True,
                include_background=False,
                smooth_nr=1.0,
                smooth_dr=1.0,
            )
        case _:
            return losses.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0, reduction="none")


def generalized_dice(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Generalised Dice loss of the batch as a whole, background included.

    Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly unbalanced
    segmentations", arXiv:1707.03237, section 2.1: ``1 - 2 * sum_l w_l sum_n r_ln p_ln /
    sum_l w_l sum_n (r_ln + p_ln)`` with ``w_l = 1 / (sum_n r_ln)^2``. A class that the batch does
    not hold has no weight of its own; it takes that of the rarest class that it does hold, so that
    false detections still cost.
    """
    return _monai("generalized-dice")(logits.float(), labels[:, None])


def generalized_dice_ce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Generalised Dice loss plus cross-entropy: the first finds, the second calibrates."""
    return generalized_dice(logits, labels) + functional.cross_entropy(logits.float(), labels)


def slice_dice_ce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """A Dice loss of each slice for itself, plus cross-entropy.

    ``1 - (2 sum_n r_n p_n + s) / (sum_n r_n + sum_n p_n + s)`` with sums over the pixels of one
    slice and s = `SLICE_SMOOTHING`, a mean over slices and the classes but background: the pole of
    a kidney weighs as much as its middle.
    """
    logits = logits.float()
    probability = logits.softmax(1)[:, 1:]
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    both = (probability * truth).sum((2, 3))
    either = (probability + truth).sum((2, 3))
    overlap = (2 * both + SLICE_SMOOTHING) / (either + SLICE_SMOOTHING)
    return (1 - overlap).mean() + functional.cross_entropy(logits, labels)


def dice(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Dice loss with smoothing 1, a mean over the classes but background.

    ``1 - (2 sum_n r_n p_n + 1) / (sum_n r_n + sum_n p_n + 1)`` over all pixels of the batch, as the
    Keras systems flatten it.
    """
    return _monai("dice")(logits.float(), labels[:, None])


def dice_bce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Dice loss plus binary cross-entropy, a mean over pixels and the classes but background."""
    logits = logits.float()
    classes = logits.shape[1]
    entropy = logits.new_zeros(())
    for one in range(1, classes):
        others = [other for other in range(classes) if other != one]
        # The logarithm of p / (1 - p) straight from the logits, where p itself would round to 1.
        odds = logits[:, one] - logits[:, others].logsumexp(1)
        truth = (labels == one).float()
        entropy = entropy + functional.binary_cross_entropy_with_logits(odds, truth)
    return dice(logits, labels) + entropy / (classes - 1)


def focal(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Focal loss, a mean over pixels of ``-(1 - p_t)^2 log p_t``.

    Lin et al., "Focal Loss for Dense Object Detection" (ICCV 2017, arXiv:1708.02002), equation 4
    with gamma 2, over a softmax.
    """
    # Of the classes of a pixel only the true one has a loss: their sum, not their mean.
    return _monai("focal")(logits.float(), labels[:, None]).sum(1).mean()


def weighted_ce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy with a weight per pixel: ``mean_n w_n (-log p_n,true)``.

    Ronneberger et al., "U-Net" (arXiv:1505.04597), equation 1, with a mean in place of the sum so
    that the learning rate does not depend on the size of the batch. It is not divided by the sum of
    the weights: a batch with many borders shall pull harder.

    Args:
        weights: ``(N, rows, columns)``; without them all pixels count as one.
    """
    entropy = functional.cross_entropy(logits.float(), labels, reduction="none")
    return entropy.mean() if weights is None else (weights.float() * entropy).mean()


LOSSES: dict[str, Loss] = {
    "generalized-dice": generalized_dice,
    "generalized-dice-ce": generalized_dice_ce,
    "slice-dice-ce": slice_dice_ce,
    "dice": dice,
    "dice-bce": dice_bce,
    "focal": focal,
    "weighted-ce": weighted_ce,
}
