"""Models trained in stages, and their cross-validation over patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from KidneySegLib.errors import UsageError
from KidneySegLib.phantom import write_cases

pytest.importorskip("lightning", reason="training needs the package lightning")

from UNetTrainerLib import recipe as room
from UNetTrainerLib.options import resolve
from UNetTrainerLib.recipe import HeldOut, cross_validate, follow, markdown, read_recipe

RECIPES = sorted((Path(__file__).parent.parent / "docs" / "recipes").glob("*.json"))
TINY: dict[str, Any] = {
    "epochs": 1, "steps": 2, "batch_size": 2, "features": 4, "depth": 3, "context_slices": 1,
    "slice_mm": 8.0, "workers": 0, "precision": "32", "device": "cpu",
}  # fmt: skip
FINDER = {"name": "finder", **TINY, "pixel_mm": 8.0, "rows": 48, "columns": 64}
CLOSE = {
    "name": "close", **TINY, "pixel_mm": 5.0, "crop": 32, "around": 0.8, "finder": "finder",
    "prior": True, "blend": 0.5,
}  # fmt: skip


def written(folder: Path, stages: list[dict[str, Any]], **more: Any) -> Path:
    path = folder / "small.json"
    path.write_text(json.dumps({"stages": stages, **more}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder, 2, seed=5, size=(64, 64, 24))
    return folder


def test_a_recipe_ends_in_a_model_that_holds_its_finder(cases: Path, tmp_path: Path) -> None:
    recipe = read_recipe(
        written(tmp_path, [FINDER, CLOSE], phantoms={"cases": 1, "seed": 3, "size": [64, 64, 16]})
    )
    model = follow(recipe, [str(cases)], tmp_path / "run")
    assert model.name == "small" and model.finder is not None
    assert model.network.prior and model.search is not None and model.search.blend == 0.5
    assert model.finder.preprocessing.pixel_mm == 8.0
    assert (tmp_path / "run" / "generated" / "case_00000").is_dir()
    before = (tmp_path / "run" / "finder" / "model" / "model.json").stat().st_mtime_ns
    again = follow(recipe, [str(cases)], tmp_path / "run")
    assert again.digest == model.digest
    assert (tmp_path / "run" / "finder" / "model" / "model.json").stat().st_mtime_ns == before


def test_stages_of_other_views_answer_together_with_the_last(cases: Path, tmp_path: Path) -> None:
    side = {"name": "side", **TINY, "view": "coronal", "pixel_mm": 6.0, "crop": 32, "around": 0.8}
    last = {
        **CLOSE,
        "prior": False,
        "blend": 0.0,
        "views": ["side"],
        "threshold": 0.4,
        "margin_mm": 31,
    }
    recipe = read_recipe(written(tmp_path, [FINDER, side, last]))
    model = follow(recipe, [str(cases)], tmp_path / "run")
    (view,) = model.views
    assert view.preprocessing.view == "coronal" and view.preprocessing.pixel_mm == 6.0
    assert (model.threshold, view.threshold) == (0.4, 0.5)
    assert model.search is not None and model.search.margin_mm == 31
    options = model.card["training"]["options"]
    assert (options["finder"], options["views"]) == ("finder", ["side"]), "no paths of a machine"
    assert str(tmp_path) not in (model.folder / "model.json").read_text()
    with pytest.raises(UsageError, match="no earlier stage"):
        read_recipe(written(tmp_path, [FINDER, last]))


def test_every_patient_is_held_out_once_from_a_model_that_never_saw_them(
    cases: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(written(tmp_path, [FINDER]))
    rows = cross_validate(recipe, [str(cases)], tmp_path / "cv", 2)
    assert sorted(row.name for row in rows) == ["case_00000", "case_00001"]
    for row in rows:
        split = json.loads(
            (tmp_path / "cv" / f"fold{row.fold}" / "finder" / "split.json").read_text()
        )
        assert split["validation"] == [row.patient]
        assert row.patient not in split["training"]
        assert row.reference_ml > 50
    results = json.loads((tmp_path / "cv" / "results.json").read_text())
    assert len(results["cases"]) == 2
    assert "| 2 | volumes |" in (tmp_path / "cv" / "results.md").read_text()


def test_a_fold_that_was_finished_is_not_trained_again(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(written(tmp_path, [FINDER]))
    first = cross_validate(recipe, [str(cases)], tmp_path / "cv", 2)

    def refuse(*arguments: object, **choices: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(room, "train", refuse)
    assert cross_validate(recipe, [str(cases)], tmp_path / "cv", 2) == first


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([], "no stage"),
        ([{"epochs": 1}], "needs a name"),
        ([FINDER, FINDER], "needs a name of its own"),
        ([{**FINDER, "colour": 1}], "colour"),
        ([{**FINDER, "output": "x"}], "output"),
        ([CLOSE], "no earlier stage"),
        ([{**FINDER, "steps": -1}], "--steps"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_any_training(
    stages: list[dict[str, Any]], text: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=text):
        read_recipe(written(tmp_path, stages))


def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for content in ("no json", "[]", '{"stages": 1}', '{"stages": [], "more": 1}'):
        path.write_text(content)
        with pytest.raises(UsageError, match=r"other\.json"):
            read_recipe(path)


def test_a_recipe_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no recipe .*none\.json"):
        read_recipe(tmp_path / "none.json")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_come_with_the_project_can_be_followed(path: Path) -> None:
    """Every choice of theirs is one that the trainer takes today."""
    for stage in read_recipe(path).stages.values():
        # A model to go on from is there once the stage before has ended.
        resolve({name: value for name, value in stage.items() if name != "init_from"})


def held_out(patient: str, dice: float | None, **more: Any) -> HeldOut:
    facts: dict[str, Any] = {
        "name": patient, "source": "s", "patient": patient, "is_slice": False, "fold": 0,
        "dice": dice, "dice_left": None, "dice_right": None, "slice_score": 0.5,
        "reference_ml": 300.0, "volume_ml": 290.0, "false_ml": 0.0, "confidence": 0.9,
        "seconds": 1.0, "notes": (),
    }  # fmt: skip
    return HeldOut(**{**facts, **more})


def test_a_patient_of_many_slices_weighs_as_much_as_one_of_few() -> None:
    rows = [held_out("a", dice, is_slice=True) for dice in (0.2, 0.4, 0.6)]
    rows += [held_out("b", 0.8, is_slice=True), held_out("c", None, is_slice=True)]
    table = markdown(rows)
    assert f"| 2 | single slices | {np.mean([0.4, 0.8]):.3f} (" in table
