"""Models trained in stages, and their cross-validation over patients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from KidneySegLib.errors import UsageError
from KidneySegLib.phantom import MARK, write_cases

pytest.importorskip("lightning", reason="training needs the package lightning")

from UNetTrainerLib import crossvalidation, stages
from UNetTrainerLib.cases import find_cases
from UNetTrainerLib.crossvalidation import HeldOut, cross_validate, markdown
from UNetTrainerLib.options import resolve
from UNetTrainerLib.progress import Silent
from UNetTrainerLib.recipe import Recipe, read_recipe
from UNetTrainerLib.stages import follow

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


PHANTOMS_OF_ONE = {"cases": 1, "seed": 3, "size": [64, 64, 16]}


class Lines(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def written(folder: Path, stages: list[dict[str, Any]], **more: Any) -> Path:
    path = folder / "small.json"
    path.write_text(json.dumps({"stages": stages, **more}), encoding="utf-8")
    return path


def never(*arguments: object, **choices: object) -> None:
    raise AssertionError("trained again")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder, 2, seed=5, size=(64, 64, 24))
    return folder


def test_a_recipe_ends_in_a_model_that_holds_its_finder(cases: Path, tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, [FINDER, CLOSE], phantoms=PHANTOMS_OF_ONE))
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
    recipe = read_recipe(written(tmp_path, [FINDER], phantoms=PHANTOMS_OF_ONE))
    rows = cross_validate(recipe, [str(cases)], tmp_path / "cv", 2)
    assert sorted(row.name for row in rows) == ["case_00000", "case_00001"]
    (phantom,) = find_cases([tmp_path / "cv" / "generated"])
    assert (phantom.name, phantom.patient) == ("case_00000", "generated/case_00000")
    for row in rows:
        split = json.loads(
            (tmp_path / "cv" / f"fold{row.fold}" / "finder" / "split.json").read_text()
        )
        assert split["validation"] == [row.patient]
        assert row.patient not in split["training"]
        card = json.loads((tmp_path / f"cv/fold{row.fold}/finder/model/model.json").read_text())
        assert "generated" in {entry["source"] for entry in card["data"]}
        assert row.reference_ml > 50
    results = json.loads((tmp_path / "cv" / "results.json").read_text())
    assert len(results["cases"]) == 2
    assert "| 2 | volumes |" in (tmp_path / "cv" / "results.md").read_text()


def test_a_case_that_is_left_out_neither_trains_nor_is_scored(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", 4, seed=5, size=(48, 48, 16))
    path = str(tmp_path / "cases" / "case_00000" / "segmentation.nii.gz")
    sitk.WriteImage(sitk.ReadImage(path) * 5, path)
    recipe = read_recipe(written(tmp_path, [{**FINDER, "skip_bad": True}]))
    rows = cross_validate(recipe, [str(tmp_path / "cases")], tmp_path / "cv", 2)
    assert sorted(row.name for row in rows) == [f"case_0000{number}" for number in range(1, 4)]
    for fold in range(2):
        split = json.loads((tmp_path / "cv" / f"fold{fold}/finder/split.json").read_text())
        assert split["validation"] == sorted(row.patient for row in rows if row.fold == fold)


# --- Only the same run goes on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def more(cases: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The cases, and a slice of somebody else."""
    folder = tmp_path_factory.mktemp("slices")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    for kind, array in (("images", picture), ("masks", np.eye(64, dtype=np.uint8))):
        (folder / kind).mkdir()
        Image.fromarray(array).save(folder / kind / "anna_1.png")
    (folder / "index.csv").write_text("name,patient,pixel_spacing_mm\nanna_1,anna,5\n")
    return [str(cases), str(folder)]


@pytest.fixture(scope="module")
def trained(more: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's run, and its file beside it."""
    folder = tmp_path_factory.mktemp("trained")
    side = {**FINDER, "name": "side", "view": "coronal"}
    recipe = read_recipe(written(folder, [FINDER, side], phantoms=PHANTOMS_OF_ONE))
    follow(recipe, more, folder / "run")
    return folder


@pytest.fixture
def again(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, whose stages must not be trained again."""
    shutil.copytree(trained, tmp_path / "again")
    monkeypatch.setattr(stages, "train", never)
    return tmp_path / "again"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda recipe: recipe["stages"][0].update(lr=1e-4), "other lr of stage finder;"),
        (lambda recipe: recipe["stages"].append({**FINDER, "name": "new"}), "finder, side, new"),
        (lambda recipe: recipe["phantoms"].update(seed=4), "other phantoms;"),
        (lambda recipe: recipe.pop("phantoms"), "other phantoms;"),
    ],
)
def test_a_finished_stage_of_another_recipe_is_not_taken_for_this_one(
    again: Path, more: list[str], change: Any, what: str
) -> None:
    path = again / "small.json"
    recipe = json.loads(path.read_text())
    change(recipe)
    path.write_text(json.dumps(recipe))
    with pytest.raises(UsageError, match=rf"run is of a run with .*{what}.* another --output"):
        follow(read_recipe(path), more, again / "run")


def test_a_finished_stage_of_other_patients_is_not_taken_for_this_one(
    again: Path, more: list[str]
) -> None:
    recipe = read_recipe(again / "small.json")
    with pytest.raises(UsageError, match=r"other cases of .*slices.*/anna"):
        follow(recipe, more[:1], again / "run")
    (again / "run" / "run.json").unlink()
    with pytest.raises(UsageError, match=r"finder.split\.json places .*/anna otherwise"):
        follow(recipe, more[:1], again / "run")


def test_a_run_goes_on_on_another_machine(again: Path, more: list[str]) -> None:
    path = again / "small.json"
    path.write_text(path.read_text().replace('"workers": 0', '"workers": 1'))
    assert follow(read_recipe(path), more, again / "run").name == "small"


def test_a_run_from_before_there_was_a_record_goes_on_and_is_said_to(
    again: Path, more: list[str]
) -> None:
    (again / "run" / "run.json").unlink()
    (again / "run" / "generated" / MARK).unlink()
    recipe, lines = read_recipe(again / "small.json"), Lines()
    assert follow(recipe, more, again / "run", progress=lines).name == "small"
    assert any("has no run.json from before: finder and side fit" in line for line in lines.lines)
    assert set(json.loads((again / "run" / "run.json").read_text())["patients"]) >= {"case_00000"}
    assert json.loads((again / "run" / "generated" / MARK).read_text()) == PHANTOMS_OF_ONE
    (again / "run" / "side" / "split.json").unlink()
    with pytest.raises(UsageError, match="nobody knows who trained there"):
        follow(recipe, more, again / "run")


def test_phantoms_of_another_recipe_are_not_trained_with(again: Path, more: list[str]) -> None:
    recipe = read_recipe(again / "small.json")
    for stage in recipe.stages:
        shutil.rmtree(again / "run" / stage)
    other = Recipe(recipe.name, {**PHANTOMS_OF_ONE, "cases": 2}, recipe.stages)
    for _ in range(2):  # with what says what they are, and without
        with pytest.raises(UsageError, match="holds cases of other phantoms; remove it"):
            follow(other, more, again / "run")
        (again / "run" / "generated" / MARK).unlink(missing_ok=True)


def test_what_never_trained_may_change(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "train", never)
    for lr in (1e-3, 1e-4):
        recipe = read_recipe(written(tmp_path, [{**FINDER, "lr": lr}]))
        with pytest.raises(AssertionError, match="trained again"):
            follow(recipe, [str(cases)], tmp_path / "run")


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases, cross-validated in two folds."""
    folder = tmp_path_factory.mktemp("validated")
    write_cases(folder / "cases", 3, seed=5, size=(48, 48, 16))
    recipe = read_recipe(written(folder, [FINDER]))
    cross_validate(recipe, [str(folder / "cases")], folder / "cv", 2)
    return folder


@pytest.fixture
def folds(validated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that, whose folds must not be trained again."""
    shutil.copytree(validated, tmp_path / "folds")
    monkeypatch.setattr(stages, "train", never)
    return tmp_path / "folds"


def test_a_fold_that_was_finished_is_not_trained_again(folds: Path) -> None:
    path = folds / "cv" / "results.json"
    before = json.loads(path.read_text())
    path.unlink()  # as after a stop between the fold's results and those of all
    rows = cross_validate(
        read_recipe(folds / "small.json"), [str(folds / "cases")], folds / "cv", 2
    )
    assert json.loads(path.read_text()) == before
    assert [row.name for row in rows] == [row["name"] for row in before["cases"]]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("scored", [True, False])
def test_folds_of_another_number_are_not_mixed(folds: Path, recorded: bool, scored: bool) -> None:
    for fold in (folds / "cv" / "fold0", folds / "cv" / "fold1"):
        if not recorded:
            (fold / "run.json").unlink()
        if not scored:
            (fold / "results.json").unlink()
    recipe, data = read_recipe(folds / "small.json"), [str(folds / "cases")]
    what = r"other folds \(2, now 3\)" if recorded else r"split\.json places case_0000. otherwise"
    with pytest.raises(UsageError, match=what):
        cross_validate(recipe, data, folds / "cv", 3)


def test_a_patient_who_trained_is_not_scored_as_held_out(folds: Path) -> None:
    path = folds / "cv" / "fold1" / "finder" / "split.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps({"training": split["validation"], "validation": split["training"]}))
    (folds / "cv" / "fold1" / "results.json").unlink()
    recipe = read_recipe(folds / "small.json")
    with pytest.raises(UsageError, match=r"fold1.finder.split\.json places case_0000.* otherwise"):
        cross_validate(recipe, [str(folds / "cases")], folds / "cv", 2)


def test_scores_of_others_than_the_fold_holds_out_are_refused(folds: Path) -> None:
    shutil.copy(folds / "cv" / "fold0" / "results.json", folds / "cv" / "fold1" / "results.json")
    recipe = read_recipe(folds / "small.json")
    with pytest.raises(UsageError, match=r"fold1.results\.json scores other cases than fold 2"):
        cross_validate(recipe, [str(folds / "cases")], folds / "cv", 2)


@pytest.mark.parametrize("choice", [{"keep": "best"}, {"early_stopping": 1}])
def test_a_stage_that_ended_early_or_kept_an_early_epoch_is_finished(
    cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any]
) -> None:
    still = {"epochs": 3, "steps": 1, "lr": 1e-9, "averaging": 0.0, "schedule": "constant"}
    recipe = read_recipe(written(tmp_path, [{**FINDER, **still, **choice}]))
    model = follow(recipe, [str(cases)], tmp_path / "cv", folds=2, fold=0)
    assert model.card["training"]["epoch"] < 3
    monkeypatch.setattr(stages, "train", never)
    assert follow(recipe, [str(cases)], tmp_path / "cv", folds=2, fold=0).digest == model.digest


def test_a_picture_of_16_bits_is_scored_with_its_own_values(tmp_path: Path) -> None:
    picture = np.array([[0, 30000], [40000, 65535]], np.uint16)
    for kind, array in (("images", picture), ("masks", np.eye(2, dtype=np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "anna_1.png")
    ct, _ = crossvalidation._as_volume(find_cases([tmp_path])[0])
    assert np.array_equal(sitk.GetArrayFromImage(ct)[0], picture)


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
