"""Training a recipe's stages, one after the other, or going on where a run before was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from KidneySegLib.errors import UsageError
from KidneySegLib.model import CARD_FILE, Model, load_model
from KidneySegLib.modelcard import MODEL_FOLDER
from KidneySegLib.phantom import MARK, write_cases
from KidneySegLib.writing import write_json
from UNetTrainerLib.checkpoint import LAST
from UNetTrainerLib.options import resolve
from UNetTrainerLib.progress import Progress, Silent
from UNetTrainerLib.recipe import ROLES, Recipe, named
from UNetTrainerLib.samerun import begin, home_of, read_json, usable
from UNetTrainerLib.train import SCORES, train


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

    Raises:
        UsageError: a run before was another one, with what differs.
    """
    progress = progress or Silent()
    cases = usable(recipe, data, output, progress)
    begin(recipe, cases, home_of(output, folds, fold), folds, fold, progress)
    return train_stages(recipe, data, output, folds, fold, progress, cancelled)


def train_stages(
    recipe: Recipe,
    data: Sequence[str],
    output: Path,
    folds: int,
    fold: int,
    progress: Progress,
    cancelled: Callable[[], bool] | None,
) -> Model:
    extra = _phantoms(recipe, output)
    home = home_of(output, folds, fold)
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
        for role in ROLES:
            folders = [str(home / earlier / MODEL_FOLDER) for earlier in named(choices.get(role))]
            if folders:
                options[role] = tuple(folders) if role == "views" else folders[0]
        model = _finished(place, resolve(options).epochs)
        if model is not None:
            continue
        progress.line(f"stage {name}" + (f", fold {fold + 1} of {folds}" if folds else ""))
        options["resume"] = (place / LAST).is_file()
        model = train(resolve(options), progress, cancelled)
    assert model is not None
    return model


def _finished(place: Path, epochs: int) -> Model | None:
    """The model of a stage that a run before brought to its end."""
    folder = place / MODEL_FOLDER
    if not (folder / CARD_FILE).is_file():
        return None
    model = load_model(folder)
    # The best epoch may be an earlier one, and a run may stop early. Where that is so somebody
    # validates, and the scores are written at the end.
    training = model.card["training"]
    scored = training["options"]["epochs"] == epochs and (place / SCORES).is_file()
    return model if scored or training["epoch"] >= epochs else None


def _phantoms(recipe: Recipe, folder: Path) -> tuple[str, ...]:
    """The folder of generated cases, marked as such so that they are no patients of KiTS19.

    Raises:
        UsageError: those that are there are of another recipe.
    """
    if recipe.phantoms is None:
        return ()
    choices = recipe.phantoms
    place = folder / "generated"
    mark = place / MARK
    if not place.is_dir():
        unfinished = place.with_name(".generated-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_cases(unfinished, choices["cases"], choices["seed"], tuple(choices["size"]))
        write_json(choices, unfinished / MARK)
        unfinished.rename(place)
    elif not mark.is_file() and len([*place.glob("case_*")]) == choices["cases"]:
        write_json(choices, mark)  # drawn before there was such a file
    if not mark.is_file() or read_json(mark) != choices:
        raise UsageError(
            f"{place} holds cases of other phantoms; remove it to draw these, or choose another "
            "--output."
        )
    return (str(place),)
