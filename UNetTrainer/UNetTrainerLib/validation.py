"""How well a network in training does on cases it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.geometry import bounding_box
from KidneySegLib.measure import dice, slice_score
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import scale
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.losses import Loss

AROUND_MM = 30.0
SLICES_A_LOSS = 16  # a loss over a batch is asked of so many slices at a time, as in training


@dataclass(frozen=True)
class CaseScore:
    """One case on the working grid, before components are chosen.

    Attributes:
        dice: of kidney with tumour in 3-D; None where neither side has any.
        tumour_dice: of tumour alone; None as well for a network that does not know it.
        slice_score: the published per-slice score, a mean over the slices.
        loss: the training's own loss, a mean over the slices.
    """

    name: str
    source: str
    is_slice: bool
    slices: int
    dice: float | None
    tumour_dice: float | None
    slice_score: float
    loss: float


@dataclass(frozen=True)
class Scores:
    """Of one validation.

    Single slices count in the loss and in the per-slice score alone: a Dice per case of one slice
    would weigh as much as a whole volume.
    """

    cases: tuple[CaseScore, ...] = ()

    @property
    def volumes(self) -> list[CaseScore]:
        """Whole volumes with a Dice, from the best down."""
        found = [case for case in self.cases if case.dice is not None and not case.is_slice]
        return sorted(found, key=lambda case: -float(case.dice or 0))

    @property
    def dice_case(self) -> float:
        """Mean Dice over the volumes."""
        return _mean([case.dice for case in self.volumes])

    @property
    def tumour_dice_case(self) -> float:
        return _mean([case.tumour_dice for case in self.volumes])

    @property
    def dice_slice(self) -> float:
        """Mean over all slices of the published per-slice score."""
        return self._by_slice("slice_score")

    @property
    def loss(self) -> float:
        return self._by_slice("loss")

    @property
    def quality(self) -> float:
        """What the best epoch is chosen by; single slices count where there is no volume."""
        return self.dice_case if self.volumes else self.dice_slice

    def _by_slice(self, name: str) -> float:
        slices = sum(case.slices for case in self.cases)
        total = sum(getattr(case, name) * case.slices for case in self.cases)
        return total / slices if slices else math.nan

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with None for what does not exist."""
        names = ("dice_case", "tumour_dice_case", "dice_slice", "loss")
        summary = {name: getattr(self, name) for name in names}
        return {
            **{name: value if math.isfinite(value) else None for name, value in summary.items()},
            "cases": [asdict(case) for case in self.cases],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        return cls(tuple(CaseScore(**case) for case in values["cases"]))


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def score_case(
    case: CachedCase, backend: TorchBackend, loss: Loss, around: bool = False
) -> CaseScore:
    """Run a network over a whole case and hold the answer against its labels.

    Args:
        around: look only at the surroundings of the labels, as a network does that another one
            shows where to look.
    """
    stored = case.labels()
    where = _surroundings(stored, case.spacing_mm) if around else (slice(None),) * 3
    seen = (where[0], slice(None), where[1], where[2])
    preprocessing = backend.model.preprocessing
    if preprocessing.scaling == "minmax":  # of the whole case
        working = scale(np.array(case.voxels(), np.float32), preprocessing)[seen]
    else:
        working = scale(np.array(case.voxels()[seen], np.float32), preprocessing)
    if working.shape[1] == 1:
        working = working[:, 0]
    prior = None
    if backend.model.network.prior:
        prior = case.prior()[where] / np.float32(255)
    probability = predict(working, case.spacing_mm[0], backend, prior=prior, classes=True)
    labels = np.asarray(stored[where])
    knows_tumour = "tumour" in backend.model.labels
    if not knows_tumour:
        labels = np.minimum(labels, 1)
    kidney = 1 - probability[:, 0]
    prediction = kidney >= backend.model.threshold
    tumour_dice = None
    if knows_tumour:
        tumour = backend.model.labels.index("tumour")
        tumour_dice = dice(prediction & (probability.argmax(1) == tumour), labels == tumour)
    losses = []
    for start in range(0, len(labels), SLICES_A_LOSS):
        part = slice(start, start + SLICES_A_LOSS)
        # The softmax of these logits is the probability; float16 has none below 1e-7.
        logits = torch.from_numpy(probability[part].astype(np.float32)).clamp_(min=1e-7).log_()
        truth = torch.from_numpy(labels[part].astype(np.int64))
        losses.append(float(loss(logits, truth, None)) * len(truth))
    return CaseScore(
        name=case.case.name,
        source=case.case.source,
        is_slice=case.case.is_slice,
        slices=len(labels),
        dice=dice(prediction, labels > 0),
        tumour_dice=tumour_dice,
        slice_score=slice_score(prediction, labels > 0),
        loss=sum(losses) / len(labels),
    )


def _surroundings(
    labels: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    """The box of all labels and `AROUND_MM` on every side; of a case without any, all of it."""
    box = bounding_box(labels > 0)
    if box is None:
        return slice(None), slice(None), slice(None)
    first, second, third = (
        slice(max(0, part.start - round(AROUND_MM / mm)), part.stop + round(AROUND_MM / mm))
        for part, mm in zip(box, spacing_mm, strict=True)
    )
    return first, second, third
