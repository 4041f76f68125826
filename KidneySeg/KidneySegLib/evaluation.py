"""Predictions against references: the figures of a case, and of a cohort with its intervals.

What is not defined is None and counts nowhere: overlap and surfaces where both masks are empty,
distances where one is. Only the per-slice score counts a slice that is empty in both, as 1.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError, KidneySegError
from KidneySegLib.labelmaps import labels_kind
from KidneySegLib.measure import (
    SLICE_SCORE_SMOOTHING,
    SURFACE_TOLERANCE_MM,
    dice,
    iou,
    pair_of,
    precision,
    recall,
    surface_agreement,
)
from KidneySegLib.pairing import CasePair, pair_up
from KidneySegLib.reading import read_labels
from KidneySegLib.writing import atomic, write_json

PARTS = ("kidney", "left", "right", "tumour")

# Of the intervals: cases are drawn anew so often; the seed makes them the same every time.
RESAMPLES = 10_000
SEED = 0
CONFIDENCE = 0.95

Progress = Callable[[float, str], None]


class Figure(NamedTuple):
    """What is measured.

    Attributes
    ----------
    title
        For a column or an axis.
    unit
        "", "ml", "%" or "mm".
    better
        Which values are better: "higher", "lower", or "zero" where the sign says the direction.
    definition
        One sentence with its source.
    """

    title: str
    unit: str
    better: str
    definition: str


FIGURES = {
    "dice": Figure(
        "Dice",
        "",
        "higher",
        "Twice the voxels that are in both, divided by the voxels of the prediction plus those of "
        "the reference; 0 none to 1 identical (Dice, Ecology 26 (1945) 297).",
    ),
    "iou": Figure(
        "IoU",
        "",
        "higher",
        "The voxels that are in both, divided by the voxels that are in either (Jaccard, New "
        "Phytologist 11 (1912) 37).",
    ),
    "precision": Figure(
        "precision",
        "",
        "higher",
        "Share of the predicted voxels that are in the reference (Taha and Hanbury, BMC Medical "
        "Imaging 15 (2015) 29).",
    ),
    "recall": Figure(
        "recall",
        "",
        "higher",
        "Share of the reference's voxels that were predicted, also called sensitivity (Taha and "
        "Hanbury, BMC Medical Imaging 15 (2015) 29).",
    ),
    "volume_difference_ml": Figure(
        "volume difference",
        "ml",
        "zero",
        "Volume of the prediction minus that of the reference, in ml (Heimann et al., IEEE TMI 28 "
        "(2009) 1251).",
    ),
    "volume_difference_percent": Figure(
        "volume difference",
        "%",
        "zero",
        "The volume difference in % of the reference's volume (Heimann et al., IEEE TMI 28 (2009) "
        "1251).",
    ),
    "mean_surface_distance_mm": Figure(
        "mean surface distance",
        "mm",
        "lower",
        "Mean distance in mm from the voxels of each surface to the closest voxel of the other, "
        "over both surfaces together (Heimann et al., IEEE TMI 28 (2009) 1251).",
    ),
    "hausdorff_95_mm": Figure(
        "95 % Hausdorff",
        "mm",
        "lower",
        "The distance in mm within which 95 % of the voxels of each surface lie from the other "
        "surface (Huttenlocher et al., IEEE TPAMI 15 (1993) 850).",
    ),
    "surface_dice_2mm": Figure(
        "surface Dice, 2 mm",
        "",
        "higher",
        f"Share of the voxels of both surfaces that lie within {SURFACE_TOLERANCE_MM:g} mm of the "
        "other surface (Nikolov et al., J Med Internet Res 23 (2021) e26151, counted in voxels).",
    ),
    "slice_score": Figure(
        "per-slice score",
        "",
        "higher",
        "Mean over all axial slices of each slice's Dice of both kidneys together, smoothed with "
        f"{SLICE_SCORE_SMOOTHING:g} so that a slice empty in both counts as 1 (as published for "
        "the KiTS19 U-Net).",
    ),
}
PARTS_MEAN = (
    "kidney is both kidneys of the patient together, tumours and cysts included; left and right "
    "are one of them; tumour is compared where both maps mark one."
)
# Said wherever figures are shown.
NOT_COUNTED = (
    "Where prediction and reference are both empty, only the per-slice score counts that, as 1; "
    "everywhere else the case is not counted. Where one is empty, Dice, IoU and surface Dice are 0 "
    "and distances are not counted."
)
INTERVAL = (
    f"{CONFIDENCE:.0%} interval of the mean over cases: percentiles of {RESAMPLES} bootstrap "
    f"resamples of the cases, seed {SEED}; too narrow for fewer than about ten cases (Efron and "
    "Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)."
)


def definitions() -> dict[str, str]:
    """A sentence for each figure, and for the parts, what is not counted and the interval."""
    sentences = {key: figure.definition for key, figure in FIGURES.items()}
    return sentences | {"parts": PARTS_MEAN, "not_counted": NOT_COUNTED, "interval": INTERVAL}


# --- One case -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartScores:
    """The figures of one structure; None where one is not defined. See `FIGURES`.

    Attributes
    ----------
    prediction_ml, reference_ml
        Volumes in ml.
    """

    prediction_ml: float
    reference_ml: float
    dice: float | None = None
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None
    volume_difference_ml: float | None = None
    volume_difference_percent: float | None = None
    mean_surface_distance_mm: float | None = None
    hausdorff_95_mm: float | None = None
    surface_dice_2mm: float | None = None


PART_FIGURES = tuple(one.name for one in fields(PartScores))[2:]
_VOLUMES = ("prediction_ml", "reference_ml")


@dataclass(frozen=True)
class CaseScores:
    """How well one prediction agrees with its reference.

    Attributes
    ----------
    name
        Of the case.
    parts
        "kidney" (both, tumours included), where sides are known "left" and "right" and, where both
        maps mark one, "tumour".
    slice_score
        The published per-slice score.
    slice_dice
        The smoothed Dice of every axial slice, head to foot, whose mean is the score.
    slice_z_mm
        Height of the middle of every slice in mm, growing to the head.
    notes
        Sentences on what the labels were taken for.
    prediction, reference
        The files.
    """

    name: str
    parts: Mapping[str, PartScores]
    slice_score: float
    slice_dice: tuple[float, ...] = ()
    slice_z_mm: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    prediction: str = ""
    reference: str = ""

    def value(self, figure: str, part: str = "kidney") -> float | None:
        """A figure of `FIGURES` or a volume, for a part; None where there is none."""
        if figure == "slice_score":
            return self.slice_score if part == "kidney" else None
        scores = self.parts.get(part)
        value: float | None = None if scores is None else getattr(scores, figure)
        return value

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: figures by name, then by part, as `measure.evaluate` gives them."""
        parts = {key: asdict(scores) for key, scores in self.parts.items()}
        return {
            "case": self.name,
            "prediction": self.prediction,
            "reference": self.reference,
            **{name: {key: part[name] for key, part in parts.items()} for name in PART_FIGURES},
            "volume_ml": {
                who: {key: part[f"{who}_ml"] for key, part in parts.items()}
                for who in ("prediction", "reference")
            },
            "slice_score": self.slice_score,
            "slice_dice": [round(value, 6) for value in self.slice_dice],
            "slice_z_mm": [round(value, 3) for value in self.slice_z_mm],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CaseScores:
        """`to_dict` undone."""
        volumes = data["volume_ml"]
        return cls(
            name=data["case"],
            parts={
                key: PartScores(
                    prediction_ml=volumes["prediction"][key],
                    reference_ml=volumes["reference"][key],
                    **{name: data[name][key] for name in PART_FIGURES},
                )
                for key in data["dice"]
            },
            slice_score=data["slice_score"],
            slice_dice=tuple(data["slice_dice"]),
            slice_z_mm=tuple(data["slice_z_mm"]),
            notes=tuple(data["notes"]),
            prediction=data["prediction"],
            reference=data["reference"],
        )


def evaluate_case(
    prediction: sitk.Image,
    reference: sitk.Image,
    name: str = "case",
    *,
    names: tuple[str, str] = ("prediction", "reference"),
    distances: bool = True,
) -> CaseScores:
    """Every figure of one prediction.

    Each map may hold sides (1 left, 2 right), merged kidneys (one label) or KiTS19's labels (1
    kidney, 2 tumour); see `labelmaps.labels_kind` for more. In a map that does not tell left from
    right the kidneys are told apart by their position, and a note says so; one kidney alone in a
    picture of a part of the body's width has no side then, and only "kidney" is measured.

    Parameters
    ----------
    names
        What to call the two maps in messages: their files.
    distances
        Also measure surfaces, which is most of the work.

    Raises
    ------
    InputError
        The grids differ, an image is not 3-D, or labels are not understood.
    """
    pair = pair_of(prediction, reference, names, by_place=True, tumour=True)
    spacing_mm, voxel_ml = pair.grid.spacing_mm, pair.grid.voxel_volume_ml
    slices, rows, columns = pair.grid.shape
    middles = np.full((slices, 3), (0.0, (rows - 1) / 2, (columns - 1) / 2))
    middles[:, 0] = np.arange(slices)
    return CaseScores(
        name=name,
        parts={
            key: _part_scores(*masks, spacing_mm, voxel_ml, distances)
            for key, masks in pair.masks.items()
        },
        slice_score=float(pair.slice_dice.mean()),
        slice_dice=tuple(pair.slice_dice.tolist()),
        slice_z_mm=tuple(pair.grid.to_physical(middles)[:, 2].tolist()),
        notes=pair.notes,
        prediction=names[0],
        reference=names[1],
    )


def _part_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    voxel_ml: float,
    distances: bool,
) -> PartScores:
    """The figures of two bool masks."""
    ours, theirs = (int(np.count_nonzero(mask)) * voxel_ml for mask in (prediction, reference))
    if not ours and not theirs:
        return PartScores(ours, theirs)
    apart, close = (
        surface_agreement(prediction, reference, spacing_mm) if distances else (None, None)
    )
    return PartScores(
        prediction_ml=ours,
        reference_ml=theirs,
        dice=dice(prediction, reference),
        iou=iou(prediction, reference),
        precision=precision(prediction, reference),
        recall=recall(prediction, reference),
        volume_difference_ml=ours - theirs,
        volume_difference_percent=100 * (ours - theirs) / theirs if theirs else None,
        mean_surface_distance_mm=None if apart is None else apart.mean_mm,
        hausdorff_95_mm=None if apart is None else apart.hausdorff_95_mm,
        surface_dice_2mm=close,
    )


# --- A cohort -----------------------------------------------------------------------------------


class Interval(NamedTuple):
    """An interval of a mean."""

    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """The percentile bootstrap interval of the mean (Efron and Tibshirani, 1993, chapter 13).

    As many values as there are, drawn with replacement, give a mean; its percentiles over all
    draws (2.5 and 97.5 for 95 %) are the interval. The same values in the same order give the
    same interval.

    Returns
    -------
    None for fewer than two values.
    """
    given = np.asarray(values, float)
    if given.size < 2:
        return None
    random = np.random.default_rng(seed)
    step = max(1, 4_000_000 // given.size)  # so many draws at once fit in 32 MB
    means = [
        given[random.integers(0, given.size, (min(step, resamples - done), given.size))].mean(
            axis=1
        )
        for done in range(0, resamples, step)
    ]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), (tail, 100 - tail))
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Summary:
    """A figure over the cases of a cohort.

    Attributes
    ----------
    counted, not_counted
        Cases for which it is defined, and cases that have the part but for which it is not.
    low, high
        The bootstrap interval of the mean; None for a single case.
    """

    counted: int
    not_counted: int
    mean: float
    low: float | None
    high: float | None
    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Problem:
    """A case that is not among the figures.

    Attributes
    ----------
    kind
        "missing" (no prediction), "extra" (no reference) or "unusable" (grids differ, damaged).
    """

    case: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Cohort:
    """The figures of several cases.

    Attributes
    ----------
    cases
        In the order of their names.
    problems
        Cases that are missing, extra or unusable.
    prediction, reference
        The folders.
    """

    cases: tuple[CaseScores, ...]
    problems: tuple[Problem, ...] = ()
    prediction: str = ""
    reference: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of `PARTS` that some case has."""
        return tuple(
            part
            for part in PARTS
            if part == PARTS[0] or any(part in case.parts for case in self.cases)
        )

    def values(self, figure: str, part: str = "kidney") -> list[float]:
        """A figure of every case for which it is defined."""
        found = (case.value(figure, part) for case in self.cases)
        return [value for value in found if value is not None]

    def summary(self) -> dict[str, dict[str, Summary]]:
        """By figure, then by part; what no case has is left out."""
        table: dict[str, dict[str, Summary]] = {}
        for figure in FIGURES:
            for part in self.parts if figure != "slice_score" else ("kidney",):
                values = self.values(figure, part)
                if not values:
                    continue
                having = sum(part in case.parts for case in self.cases)
                interval = bootstrap_interval(values)
                table.setdefault(figure, {})[part] = Summary(
                    counted=len(values),
                    not_counted=having - len(values),
                    mean=float(np.mean(values)),
                    low=None if interval is None else interval.low,
                    high=None if interval is None else interval.high,
                    median=float(np.median(values)),
                    minimum=min(values),
                    maximum=max(values),
                )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` undoes it."""
        return {
            "prediction": self.prediction,
            "reference": self.reference,
            "cases": [case.to_dict() for case in self.cases],
            "problems": [asdict(problem) for problem in self.problems],
            "summary": {
                figure: {part: asdict(summary) for part, summary in parts.items()}
                for figure, parts in self.summary().items()
            },
            "definitions": definitions(),
        }

    def to_json(self, path: Path | str) -> None:
        """Write `to_dict`; errors as of `writing.write_json`."""
        write_json(self.to_dict(), path)

    def to_csv(self, path: Path | str) -> None:
        """Write a table with a row for each case, what is unusable, missing or extra included.

        A column is called after its figure, and for one kidney or the tumour also after that:
        `dice`, `dice_left`. Errors as of `writing.atomic`.
        """
        keys = [(name, part) for part in self.parts for name in (*PART_FIGURES, *_VOLUMES)]
        heads = ["case", *(_column(*key) for key in keys), "slice_score", "notes", "error"]
        rows: list[dict[str, object]] = [
            {
                "case": case.name,
                **{_column(*key): _cell(case.value(*key)) for key in keys},
                "slice_score": _cell(case.slice_score),
                "notes": "; ".join(case.notes),
            }
            for case in self.cases
        ]
        rows += [{"case": one.case, "error": f"{one.kind}: {one.reason}"} for one in self.problems]
        write_table(heads, rows, path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cohort:
        """`to_dict` undone; also takes the figures of a single case.

        Raises
        ------
        KeyError, TypeError
            It is something else.
        """
        if "cases" not in data:
            case = CaseScores.from_dict(data)
            return cls((case,), prediction=case.prediction, reference=case.reference)
        return cls(
            cases=tuple(CaseScores.from_dict(case) for case in data["cases"]),
            problems=tuple(Problem(**problem) for problem in data["problems"]),
            prediction=data["prediction"],
            reference=data["reference"],
        )

    @classmethod
    def from_json(cls, path: Path | str) -> Cohort:
        """Read what `kidneyseg evaluate --report` wrote.

        Raises
        ------
        InputError
            There is no such file, or it is something else.
        """
        text = _text_of(Path(path))
        try:
            cohort = cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no result of `kidneyseg evaluate`; give one that --report wrote."
            ) from error
        _check_names(cohort.cases, path)
        return cohort

    @classmethod
    def from_csv(cls, path: Path | str) -> Cohort:
        """Read what `kidneyseg evaluate --csv` wrote; the figures of single slices are not in it.

        Raises
        ------
        InputError
            There is no such file, or it is something else.
        """
        table = csv.DictReader(io.StringIO(_text_of(Path(path))))
        refusal = InputError(
            f"{path} is no result of `kidneyseg evaluate`; give one that --csv wrote."
        )
        if not {"case", "slice_score", "notes", "error"} <= set(table.fieldnames or ()):
            raise refusal
        cases, problems = [], []
        for row in table:
            try:
                if row["error"]:
                    kind, reason = row["error"].split(": ", 1)
                    problems.append(Problem(row["case"], kind, reason))
                else:
                    cases.append(_case_of(row))
            except (KeyError, TypeError, ValueError) as error:
                raise refusal from error
        _check_names(cases, path)
        return cls(tuple(cases), tuple(problems))


def evaluate_folders(
    predictions: Path | str,
    references: Path | str,
    *,
    distances: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Every figure of every case that has a prediction and a reference.

    Parameters
    ----------
    predictions, references
        Folders with KiTS19's case folders or with files of the same names, such as `kidneyseg
        segment` and the batch write (see `pairing`), or one file each.
    distances
        Also measure surfaces, which is most of the work.
    progress
        Called with the share that is done and the name of the case.

    Returns
    -------
    What cannot be compared, such as maps on different grids, is among the `problems` and stops
    nothing.

    Raises
    ------
    InputError
        No case is in both.
    UsageError
        A file would be compared with itself.
    """
    pairing = pair_up(Path(predictions), Path(references))
    cases = []
    problems = [
        Problem(one.name, "missing", f"no prediction for {one.path}") for one in pairing.missing
    ]
    problems += [
        Problem(one.name, "extra", f"no reference for {one.path}") for one in pairing.extra
    ]
    for number, pair in enumerate(pairing.pairs):
        if progress is not None:
            progress(number / len(pairing.pairs), pair.name)
        try:
            cases.append(evaluate_pair(pair, distances=distances))
        except KidneySegError as error:
            problems.append(Problem(pair.name, "unusable", str(error)))
    return Cohort(tuple(cases), tuple(problems), str(predictions), str(references))


def evaluate_pair(pair: CasePair, *, distances: bool = True) -> CaseScores:
    """Every figure of one pair of files.

    A prediction that marks tumours is compared with the map of a case folder that does, any other
    with the one that tells sides.

    Raises
    ------
    InputError
        As of `reading.read_labels` and `evaluate_case`.
    """
    prediction = read_labels(pair.prediction.path)
    path = pair.reference.path
    with_tumour = pair.reference.with_tumour
    if with_tumour is not None and labels_kind(prediction, str(pair.prediction.path)) == "tumour":
        path = with_tumour
    return evaluate_case(
        prediction,
        read_labels(path),
        pair.name,
        names=(str(pair.prediction.path), str(path)),
        distances=distances,
    )


# --- Tables -------------------------------------------------------------------------------------


def write_table(
    heads: Sequence[str], rows: Iterable[Mapping[str, object]], path: Path | str
) -> None:
    """Write a CSV file in UTF-8; cells that a row lacks stay empty.

    Raises
    ------
    KidneySegError
        The folder cannot be written to or the disk is full; nothing has changed then.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic(path) as temporary:
        temporary.write_text(
            text.getvalue(), encoding="utf-8", errors="backslashreplace", newline=""
        )


def _column(name: str, part: str) -> str:
    return name if part == "kidney" else f"{name}_{part}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _check_names(cases: Sequence[CaseScores], path: Path | str) -> None:
    """Refuse a case that is there twice, as where tables were put together."""
    name, count = next(iter(Counter(case.name for case in cases).most_common(1)), ("", 0))
    if count > 1:
        raise InputError(f"{path} holds the case {name} {count} times; keep one of them.")


def _case_of(row: Mapping[str, str]) -> CaseScores:
    """A case from its row; a part without volumes is none of it, but for both kidneys."""

    def number(name: str, part: str) -> float | None:
        text = row[_column(name, part)]
        return _finite(text) if text else None

    parts = {}
    for part in PARTS:
        if part == PARTS[0] and not all(row[name] for name in _VOLUMES):
            raise ValueError("no volume")
        if row.get(_column(_VOLUMES[0], part)):
            values = {name: number(name, part) for name in (*_VOLUMES, *PART_FIGURES)}
            parts[part] = PartScores(**values)  # type: ignore[arg-type]
    notes = tuple(row["notes"].split("; ")) if row["notes"] else ()
    return CaseScores(row["case"], parts, _finite(row["slice_score"]), notes=notes)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8; give a result of `evaluate`.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}); check the path.") from error
