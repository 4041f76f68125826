"""A model trained in stages, as a recipe says, and its cross-validation over patients.

A recipe is a JSON file::

    {
      "phantoms": {"cases": 24, "seed": 1000, "size": [256, 256, 60]},
      "stages": [
        {"name": "finder", "pixel_mm": 2.0, "epochs": 12},
        {"name": "network", "finder": "finder", "prior": true, "crop": 128, "around": 0.9}
      ]
    }

Generated CTs, if any, train as ``extra`` cases. Every stage is a training run with the options of
`Options`; its ``finder``, its list of ``views``, and what it starts from with ``init_from``, are
models of earlier stages.
The last stage's model is the recipe's.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib.backends.base import Backend
from KidneySegLib.backends.choosing import open_backend
from KidneySegLib.errors import UsageError
from KidneySegLib.evaluation import bootstrap_interval, evaluate_case
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import CARD_FILE, Model, load_model
from KidneySegLib.phantom import write_cases
from KidneySegLib.reading import read_labels
from KidneySegLib.segment import Result, segment
from KidneySegLib.writing import atomic, write_json
from UNetTrainerLib.cases import Case, find_everything, split_cases
from UNetTrainerLib.checkpoint import LAST
from UNetTrainerLib.loading import load
from UNetTrainerLib.options import DEFAULTS, resolve
from UNetTrainerLib.progress import Progress, Silent
from UNetTrainerLib.train import train

SIDES = "sides.nii.gz"  # beside a case's labels: 1 left, 2 right
RESULTS, TABLE = "results.json", "results.md"
# A stage is told by these where it is; the recipe has no say in them.
_ROLES = ("finder", "init_from", "views")  # what earlier stages can be to a later one
_PLACES = ("data", "extra", "output", "cache", "split", "folds", "fold", "resume", "progress")


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says; see the head of this file.

    Attributes:
        name: of the model, from the file's name.
        phantoms: arguments of `write_cases`, or None.
        stages: options of each stage by its name, in order.
    """

    name: str
    phantoms: Mapping[str, Any] | None
    stages: Mapping[str, Mapping[str, Any]]


def read_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        UsageError: what in it cannot work, with the file.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"There is no recipe {path}; check the path.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a recipe ({error}); check it.") from error
    if not isinstance(data, dict) or not isinstance(data.get("stages"), list):
        raise UsageError(f"{path} has no list of stages; see the recipe beside a shipped model.")
    unknown = sorted(set(data) - {"phantoms", "stages"})
    if unknown:
        raise UsageError(f"{path} has the entry {unknown[0]!r}, which no recipe knows.")
    stages: dict[str, dict[str, Any]] = {}
    for stage in data["stages"]:
        given = dict(stage) if isinstance(stage, dict) else {}
        name = given.pop("name", None)
        if not isinstance(name, str) or not name.isidentifier() or name in stages:
            raise UsageError(f"Every stage of {path} needs a name of its own, of letters.")
        wrong = sorted(set(given) - set(DEFAULTS) | set(given) & set(_PLACES))
        if wrong:
            raise UsageError(f"Stage {name} of {path} has {wrong[0]!r}, which is no choice of it.")
        for role in _ROLES:
            for wanted in _named(given.get(role)):
                if wanted not in stages:
                    raise UsageError(
                        f"Stage {name} of {path} wants {wanted!r} as {role}, which is no earlier "
                        "stage."
                    )
        alone = {key: value for key, value in given.items() if key != "init_from"}
        resolve({"output": "x", **alone})  # what cannot work together is said before any training
        stages[name] = given
    if not stages:
        raise UsageError(f"{path} has no stage; see the recipe beside a shipped model.")
    name = path.resolve().parent.name if path.stem == "recipe" else path.stem
    return Recipe(name, data.get("phantoms"), stages)


def follow(
    recipe: Recipe,
    data: Sequence[str],
    output: Path,
    *,
    folds: int = 0,
    fold: int = 0,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Model:
    """Train every stage, or go on where a run before was stopped.

    Args:
        folds: 0 trains on all patients; else those of ``fold`` are left out.

    Returns:
        The last stage's model, in ``<output>/<stage>/model``.
    """
    progress = progress or Silent()
    extra = _phantoms(recipe, output)
    home = output / f"fold{fold}" if folds else output
    model: Model | None = None
    for name, choices in recipe.stages.items():
        place = home / name
        options: dict[str, Any] = {
            **choices,
            "data": tuple(data),
            "extra": extra,
            "output": str(place),
            "cache": str(output / "cache"),
            "folds": folds,
            "fold": fold,
            "keep": choices.get("keep", "last"),
            "name": recipe.name if name == list(recipe.stages)[-1] else f"{recipe.name}-{name}",
        }
        for role in _ROLES:
            folders = [str(home / earlier / "model") for earlier in _named(choices.get(role))]
            if folders:
                options[role] = tuple(folders) if role == "views" else folders[0]
        model = _finished(place / "model", resolve(options).epochs)
        if model is not None:
            continue
        progress.line(f"stage {name}" + (f", fold {fold + 1} of {folds}" if folds else ""))
        options["resume"] = (place / LAST).is_file()
        model = train(resolve(options), progress, cancelled)
    assert model is not None
    return model


def _named(stages: str | Sequence[str] | None) -> Sequence[str]:
    """The stages that a role names: none, one, or a list."""
    return [stages] if isinstance(stages, str) else stages or []


def _finished(folder: Path, epochs: int) -> Model | None:
    """The model of a stage that a run before brought to its end."""
    if not (folder / CARD_FILE).is_file():
        return None
    model = load_model(folder)
    return model if model.card["training"]["epoch"] >= epochs else None


def _phantoms(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    if recipe.phantoms is None:
        return ()
    place = folder / "generated"
    if not place.is_dir():
        unfinished = place.with_name(".generated-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        choices = recipe.phantoms
        write_cases(unfinished, choices["cases"], choices["seed"], tuple(choices["size"]))
        unfinished.rename(place)
    return (str(place),)


# --- Cross-validation -----------------------------------------------------------------------------


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
    """
    progress = progress or Silent()
    cases, _ = find_everything(data)
    held_out: list[HeldOut] = []
    for fold in range(folds):
        known = output / f"fold{fold}" / RESULTS
        if known.is_file():
            rows = json.loads(known.read_text(encoding="utf-8"))
            held_out += [HeldOut(**{**row, "notes": tuple(row["notes"])}) for row in rows]
            continue
        model = follow(
            recipe, data, output, folds=folds, fold=fold, progress=progress, cancelled=cancelled
        )
        backend = open_backend(model)  # what users' CTs go through
        of_fold = []
        for case in split_cases(cases, "folds", folds, fold).validation:
            row = score(case, backend, fold)
            progress.line(
                f"{row.name}: Dice {_number(row.dice)}, confidence {_number(row.confidence)}"
            )
            of_fold.append(row)
        write_json([asdict(row) for row in of_fold], known)
        held_out += of_fold
        write_json(
            {"recipe": recipe.name, "cases": [asdict(r) for r in held_out]}, output / RESULTS
        )
        with atomic(output / TABLE) as temporary:
            temporary.write_text(markdown(held_out), encoding="utf-8")
    return held_out


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
    return sitk.Cast(images[0], sitk.sitkInt16), images[1]


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
