"""Cross-validation of a recipe over patients: each is segmented by a model that never saw them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from KidneySegLib.backends.base import Backend
from KidneySegLib.backends.choosing import open_backend
from KidneySegLib.errors import UsageError
from KidneySegLib.evaluation import bootstrap_interval, evaluate_case
from KidneySegLib.geometry import to_axial
from KidneySegLib.reading import read_labels
from KidneySegLib.segment import Result, segment
from KidneySegLib.writing import atomic, write_json
from UNetTrainerLib.cases import Case, split_cases
from UNetTrainerLib.loading import load
from UNetTrainerLib.progress import Progress, Silent
from UNetTrainerLib.recipe import Recipe
from UNetTrainerLib.samerun import RESULTS, begin, check_splits, home_of, usable
from UNetTrainerLib.stages import train_stages

SIDES = "sides.nii.gz"  # beside a case's labels: 1 left, 2 right
TABLE = "results.md"


@dataclass(frozen=True)
class HeldOut:
    """One case, segmented by a model that never saw its patient.

    Attributes:
        name, source, patient, is_slice, fold: of the case.
        dice, dice_left, dice_right: 3-D, on the case's own grid, of what the whole walk found; None
            where neither side has any kidney, or where sides are not known.
        slice_score: the published per-slice score.
        reference_ml, volume_ml: of both kidneys.
        false_ml: what was found in slices that hold no kidney.
        confidence: the least of the kidneys that were found; None without any.
        seconds: of the walk.
        notes: of the report.
    """

    name: str
    source: str
    patient: str
    is_slice: bool
    fold: int
    dice: float | None
    dice_left: float | None
    dice_right: float | None
    slice_score: float
    reference_ml: float
    volume_ml: float
    false_ml: float
    confidence: float | None
    seconds: float
    notes: tuple[str, ...]


def cross_validate(
    recipe: Recipe,
    data: Sequence[str],
    output: Path,
    folds: int,
    *,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[HeldOut]:
    """Train the recipe once for each part of the patients, and segment that part with it.

    Leaves ``results.json`` and ``results.md`` in the output, complete after every fold. What was
    finished before is not done again.

    Raises:
        UsageError: a run before was another one, with what differs.
    """
    progress = progress or Silent()
    cases = usable(recipe, data, output, progress)
    parts = [split_cases(cases, "folds", folds, fold).validation for fold in range(folds)]
    for fold, part in enumerate(parts):  # all of them before any training
        home = home_of(output, folds, fold)
        begin(recipe, cases, home, folds, fold, progress)
        _scored(home, fold, part)
    held_out: list[HeldOut] = []
    for fold, part in enumerate(parts):
        home = home_of(output, folds, fold)
        of_fold = _scored(home, fold, part)
        if of_fold is None:
            model = train_stages(recipe, data, output, folds, fold, progress, cancelled)
            check_splits(recipe, cases, home, folds, fold)
            backend = open_backend(model)  # what users' CTs go through
            of_fold = []
            for case in part:
                row = score(case, backend, fold)
                progress.line(
                    f"{row.name}: Dice {_number(row.dice)}, confidence {_number(row.confidence)}"
                )
                of_fold.append(row)
            write_json([asdict(row) for row in of_fold], home / RESULTS)
        held_out += of_fold
        write_json(
            {"recipe": recipe.name, "cases": [asdict(r) for r in held_out]}, output / RESULTS
        )
        with atomic(output / TABLE) as temporary:
            temporary.write_text(markdown(held_out), encoding="utf-8")
    return held_out


def _scored(home: Path, fold: int, part: Sequence[Case]) -> list[HeldOut] | None:
    """What a run before found in a fold.

    Raises:
        UsageError: it is not of the cases that the fold holds out.
    """
    path = home / RESULTS
    if not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))
    if {(row["source"], row["name"]) for row in rows} != {(c.source, c.name) for c in part}:
        raise UsageError(
            f"{path} scores other cases than fold {fold + 1} holds out; remove it to score them "
            "again, or choose another --output."
        )
    return [HeldOut(**{**row, "notes": tuple(row["notes"])}) for row in rows]


def score(case: Case, backend: Backend, fold: int = 0) -> HeldOut:
    """Segment one labelled case from its file on, as a user would, and measure the result."""
    started = time.perf_counter()
    if case.is_slice:
        ct, labels = _as_volume(case)
        result = segment(ct, backend)
    else:
        result = segment(case.image, backend)
        sides = case.labels.with_name(SIDES)
        labels = read_labels(sides if sides.is_file() else case.labels)
    seconds = time.perf_counter() - started
    scores = evaluate_case(result.labels, labels, case.name, distances=False)
    known = case.labels.with_name(SIDES).is_file() and not case.is_slice
    return HeldOut(
        name=case.name,
        source=case.source,
        patient=case.patient,
        is_slice=case.is_slice,
        fold=fold,
        dice=scores.value("dice"),
        dice_left=scores.value("dice", "left") if known else None,
        dice_right=scores.value("dice", "right") if known else None,
        slice_score=scores.slice_score,
        reference_ml=scores.value("reference_ml") or 0.0,
        volume_ml=scores.value("prediction_ml") or 0.0,
        false_ml=_false_ml(result, labels),
        confidence=_confidence(result),
        seconds=round(seconds, 2),
        notes=tuple(result.report["notes"]),
    )


def _as_volume(case: Case) -> tuple[sitk.Image, sitk.Image]:
    """A single slice as a CT of one slice of 1 mm, and its labels."""
    loaded = load(case)
    images = []
    for array in (loaded.voxels[:, 0], loaded.labels):
        image = sitk.GetImageFromArray(np.ascontiguousarray(array))
        image.SetSpacing(loaded.spacing_mm[::-1])
        images.append(image)
    return sitk.Cast(images[0], sitk.sitkInt32), images[1]  # the values of 16 bits, signed or not


def _false_ml(result: Result, labels: sitk.Image) -> float:
    found, grid = to_axial(result.labels)
    truth, _ = to_axial(labels)
    without = ~truth.any(axis=(1, 2))
    return float(np.count_nonzero(found[without]) * grid.voxel_volume_ml)


def _confidence(result: Result) -> float | None:
    figures = [side.get("confidence") for side in result.report["kidneys"].values()]
    known = [figure for figure in figures if figure is not None]
    return min(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def markdown(rows: Sequence[HeldOut]) -> str:
    """Tables of what was held out, the number of patients beside every figure."""
    lines = []
    volumes = [row for row in rows if not row.is_slice]
    if volumes:
        lines += [
            "| case | source | fold | Dice | left | right | volume | reference | confidence |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in sorted(volumes, key=lambda row: (row.source, row.name)):
            lines.append(
                f"| {row.name} | {row.source} | {row.fold + 1} | {_number(row.dice)} | "
                f"{_number(row.dice_left)} | {_number(row.dice_right)} | {row.volume_ml:.0f} ml | "
                f"{row.reference_ml:.0f} ml | {_number(row.confidence)} |"
            )
        lines.append("")
    lines += [
        "| source | patients | what | mean Dice (SD) | 95 % interval | lowest | median | "
        "per-slice score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for source, single in sorted({(row.source, row.is_slice) for row in rows}):
        of = [row for row in rows if (row.source, row.is_slice) == (source, single)]
        by_patient = _by_patient(of)
        if not by_patient:
            continue
        spread = statistics.stdev(by_patient) if len(by_patient) > 1 else 0.0
        interval = bootstrap_interval(by_patient)
        between = "-" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
        lines.append(
            f"| {source} | {len(by_patient)} | {'single slices' if single else 'volumes'} | "
            f"{statistics.mean(by_patient):.3f} ({spread:.3f}) | {between} | "
            f"{min(by_patient):.3f} | {statistics.median(by_patient):.3f} | "
            f"{statistics.mean(row.slice_score for row in of):.3f} |"
        )
    return "\n".join(lines) + "\n"


def _by_patient(rows: Sequence[HeldOut]) -> list[float]:
    """The mean Dice of every patient who has one."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.dice is not None:
            found.setdefault(row.patient, []).append(row.dice)
    return [statistics.mean(values) for values in found.values()]
