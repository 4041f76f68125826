"""What a run of a recipe is, so that only the very same one goes on in a folder.

Beside the stages lies ``run.json``: the recipe, the folds, and who validates in which of them.
Nobody who trained is ever scored as held out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from KidneySegLib.errors import UsageError
from KidneySegLib.modelcard import MODEL_FOLDER, SPLIT_FILE
from KidneySegLib.writing import write_json
from UNetTrainerLib.cases import Case, find_cases, listed, read_split, split_cases
from UNetTrainerLib.checkpoint import LAST
from UNetTrainerLib.options import DEFAULTS, resolve
from UNetTrainerLib.progress import Progress
from UNetTrainerLib.recipe import Recipe
from UNetTrainerLib.train import find_usable

RECORD, RESULTS = "run.json", "results.json"
_MACHINE = ("device", "devices", "nodes", "workers")  # a run may go on with other ones
_ANOTHER = "go on with the same, or choose another --output"


def home_of(output: Path, folds: int, fold: int) -> Path:
    """The folder of the stages."""
    return output / f"fold{fold}" if folds else output


def usable(recipe: Recipe, data: Sequence[str], output: Path, progress: Progress) -> list[Case]:
    """The cases that every stage trains and validates with.

    Without ``skip_bad`` a stage refuses an unusable case, and nothing need be read here.
    """
    for choices in recipe.stages.values():
        if choices.get("skip_bad"):
            alone = {key: value for key, value in choices.items() if key != "init_from"}
            options = resolve({**alone, "data": tuple(data), "output": str(output)})
            return find_usable(options, output / "cache", progress)[0]
    return find_cases(data)


def begin(
    recipe: Recipe, cases: Sequence[Case], home: Path, folds: int, fold: int, progress: Progress
) -> None:
    """Make sure that what was trained here is of this very run, and record what that is.

    A folder from before there was a record is known by the splits of its stages alone.

    Raises:
        UsageError: it is of another run, with what differs.
    """
    record = home / RECORD
    now = _facts(recipe, cases, folds)
    begun = [stage for stage in recipe.stages if _is_begun(home / stage)]
    scored = bool(folds) and (home / RESULTS).is_file()
    if record.is_file() and (begun or scored):
        differing = _differing(read_json(record), now)
        if differing:
            raise UsageError(f"{home} is of a run with other {listed(differing)}; {_ANOTHER}.")
    check_splits(recipe, cases, home, folds, fold)
    if begun and not record.is_file():
        progress.line(
            f"{home} has no {RECORD} from before: {listed(begun)} fit these patients, and are "
            "taken to be of this recipe"
        )
    write_json(now, record)


def _is_begun(place: Path) -> bool:
    """Whether a stage has anything that a run could go on with."""
    return (place / LAST).is_file() or (place / MODEL_FOLDER).exists()


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); choose another --output.") from error
    return data if isinstance(data, dict) else {}


def _facts(recipe: Recipe, cases: Sequence[Case], folds: int) -> dict[str, Any]:
    """What makes a run this one."""
    fold_of = {
        case.patient: fold
        for fold in range(folds)
        for case in split_cases(cases, "folds", folds, fold).validation
    }
    patients: dict[str, Any] = {}
    for case in cases:
        facts = patients.setdefault(case.patient, {"fold": fold_of.get(case.patient), "cases": []})
        facts["cases"].append(f"{case.source}/{case.name}")
        facts["cases"].sort()
    return {
        "recipe": recipe.name,
        "phantoms": recipe.phantoms,
        "stages": [{"name": name, **choices} for name, choices in recipe.stages.items()],
        "folds": folds,
        "patients": {patient: patients[patient] for patient in sorted(patients)},
    }


def _differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two runs, by name."""
    found = [
        f"{name} ({then.get(name)}, now {now[name]})"
        for name in ("recipe", "folds")
        if then.get(name) != now[name]
    ]
    if then.get("phantoms") != now["phantoms"]:
        found.append("phantoms")
    old, new = (
        {stage["name"]: {k: v for k, v in stage.items() if k not in _MACHINE} for stage in stages}
        for stages in (then.get("stages", []), now["stages"])
    )
    if list(old) != list(new):
        found.append(f"stages ({', '.join(old)}, now {', '.join(new)})")
    for name in [name for name in new if name in old]:
        found += [f"{choice} of stage {name}" for choice in _unlike(old[name], new[name])]
    if then.get("folds") == now["folds"]:
        found += [f"cases of {who}" for who in _unlike(then.get("patients", {}), now["patients"])]
    return found


def _unlike(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys under which two mappings do not hold the same."""
    return sorted(key for key in {*then, *now} if then.get(key) != now.get(key))


def check_splits(recipe: Recipe, cases: Sequence[Case], home: Path, folds: int, fold: int) -> None:
    """Make sure that every stage so far trained and validated with those whom this run takes.

    Raises:
        UsageError: one did not.
    """
    split = split_cases(cases, "folds", folds, fold)
    for stage in recipe.stages:
        path = home / stage / SPLIT_FILE
        if not _is_begun(path.parent):
            continue
        if not path.is_file():
            raise UsageError(
                f"{path.parent} lacks {SPLIT_FILE}, so nobody knows who trained there; choose "
                "another --output."
            )
        whole = _view(recipe, stage) == "axial"  # single slices have no other view
        here, there = (
            {case.patient for case in part if whole or not case.is_slice}
            for part in (split.training, split.validation)
        )
        training, validation = read_split(path)
        others = sorted((training ^ here) | (validation ^ there))
        if others:
            raise UsageError(
                f"{path} places {listed(others)} otherwise than these data and folds; {_ANOTHER}."
            )


def _view(recipe: Recipe, stage: str) -> str:
    """Its own, or that of the stage that it goes on from."""
    choices = recipe.stages[stage]
    if "view" not in choices and choices.get("init_from"):
        return _view(recipe, choices["init_from"])
    return str(choices.get("view", DEFAULTS["view"]))
