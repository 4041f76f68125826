"""Teaching a second look: what it learns from, that it learns, and the copy of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from KidneySegLib import cli
from KidneySegLib.errors import UsageError
from KidneySegLib.model import WEIGHTS_FILE, load_model
from KidneySegLib.phantom import write_cases
from KidneySegLib.preprocess import plan, resample
from KidneySegLib.secondlook import VIEWS, SecondLook, component_views

pytest.importorskip("scipy", reason="training needs the package scipy")
pytest.importorskip("monai", reason="training needs the package monai")

from UNetTrainerLib import candidates
from UNetTrainerLib import secondlook as trainer


def surveyed(seed: int = 0) -> Any:
    """Two kidneys and something as bright as they are, at 4 mm."""
    rng = np.random.default_rng(seed)
    shape = (32, 40, 60)
    k, j, i = np.indices(shape)
    truth = np.zeros(shape, bool)
    for column in (14, 45):
        truth |= ((k - 16) / 10) ** 2 + ((j - 22) / 5) ** 2 + ((i - column) / 5) ** 2 < 1
    other = ((k - 8) / 6) ** 2 + ((j - 10) / 6) ** 2 + ((i - 30) / 7) ** 2 < 1
    hu = np.where(truth | other, 150, 40) + rng.normal(0, 3, shape)
    found = ((truth | other) * 255).astype(np.uint8)
    look = SecondLook(pixels=16, pixel_mm=4.0, features=4)
    scaled = ((np.clip(hu, -125, 275) + 125) / 400).astype(np.float32)
    seen = candidates.Survey("toy", hu.astype(np.float32), scaled, truth, found, (4.0, 4.0, 4.0))
    return seen, look


def test_candidates_are_kidneys_or_not_by_how_much_of_them_is_kidney() -> None:
    truth = np.zeros((10, 10, 40), bool)
    truth[:, :, :20] = True
    hu = np.zeros(truth.shape, np.float32)
    seen = candidates.Survey("a", hu, hu, truth, truth * np.uint8(255), (5.0, 5.0, 5.0))

    def what(first: int, last: int, rows: int = 10) -> bool | None:
        box = (slice(0, 10), slice(0, rows), slice(first, last))
        mask = np.ones((10, rows, last - first), bool)
        return candidates.what_it_is(candidates.Piece(box, mask), seen)

    assert what(0, 20) is True
    assert what(10, 30) is True  # half of it is kidney
    assert what(10, 32) is None  # a little less
    assert what(0, 1) is None  # a splinter of a kidney
    assert what(19, 40, rows=9) is False  # a twentieth of it is, and of a kidney
    assert what(20, 40) is False


def test_a_model_finds_true_and_false_candidates_and_the_masks_add_theirs() -> None:
    seen, look = surveyed()
    examples = list(candidates.found_examples(seen, look, 0.5))
    kinds = [(one.kind, one.kidney) for one in examples]
    assert kinds.count((candidates.FOUND, True)) == 2
    assert kinds.count((candidates.FOUND, False)) == 1
    assert kinds.count((candidates.NEARLY, False)) == 2
    assert kinds.count((candidates.TRUTH, True)) == 2 and len(kinds) == 11
    assert all(one.pictures.shape == (VIEWS, 3, 16, 16) for one in examples)


def test_drawn_candidates_are_what_they_are_called_and_repeat_with_their_seed() -> None:
    seen, look = surveyed()
    draws = [
        list(candidates.drawn_examples(seen, look, 6, 12, np.random.default_rng(seed)))
        for seed in (1, 1, 2)
    ]
    first, again, other = (np.stack([one.pictures for one in some]) for some in draws)
    assert np.array_equal(first, again) and not np.array_equal(first, other[: len(first)])
    assert sum(one.kidney for one in draws[0]) == 6 and len(draws[0]) > 12
    for one in draws[0]:
        mask, truth = one.pictures[:, 1] > 127, one.pictures[:, 2] > 127
        assert ((mask & truth).sum() > 0.3 * mask.sum()) == one.kidney


def test_trainer_and_engine_see_a_component_alike() -> None:
    """One on its coarse grid of the whole CT, the other on that of the surroundings."""
    ct, labels = toys.toy(shape=(40, 80, 90), spacing_mm=(4.0, 2.2, 3.1))
    look = SecondLook(pixels=32, pixel_mm=5.0)
    box = (slice(0, 40), slice(10, 70), slice(45, 90))
    engine = component_views(ct, (4.0, 2.2, 3.1), box, labels[box] == 1, look)

    grid = plan(ct.shape, (4.0, 2.2, 3.1), look.preprocessing)
    truth = resample(labels == 1, grid) >= 0.5
    hu = resample(ct, grid)
    scaled = (np.clip(hu, -125, 275) + 125) / 400
    found = truth * np.uint8(255)
    seen = candidates.Survey("toy", hu, scaled, truth, found, grid.spacing_mm)
    (own,) = (
        one for one in candidates.found_examples(seen, look, 0.5) if one.kind == candidates.TRUTH
    )
    difference = np.abs(own.pictures[:, :2] / 255 - engine)
    assert difference.mean() < 0.02


def test_the_smallest_kidney_is_half_of_the_smallest_whole_one() -> None:
    def volume(*cubes: tuple[int, int], first: int = 2) -> tuple[np.ndarray, Any]:
        mask = np.zeros((16, 12, 40), bool)
        for size, column in cubes:
            mask[first : first + size, 1 : 1 + size, column : column + size] = True
        return mask, (10.0, 10.0, 10.0)

    pairs = [volume((6, 2), (5, 20)) for _ in range(4)]
    assert candidates.smallest_kidney_ml(pairs) is None
    # A speck, and a kidney that the scan cuts, are no small kidneys.
    pairs += [volume((4, 2), (6, 20)), volume((1, 2)), volume((2, 20), first=0)]
    assert candidates.smallest_kidney_ml(pairs) == 30.0  # of 64 ml, but never more than usual
    pairs.append(volume((3, 2)))
    assert candidates.smallest_kidney_ml(pairs) == 13.5


def examples_to_learn(look: SecondLook) -> list[Any]:
    """Bright kidneys and dark others, in the middle of noise."""
    rng = np.random.default_rng(3)
    examples = []
    for number in range(24):
        kidney = number % 2 == 0
        pictures = rng.integers(90, 120, (VIEWS, 3, look.pixels, look.pixels)).astype(np.uint8)
        pictures[:, 1:] = 0
        pictures[:, 1, 4:12, 4:12] = 255
        pictures[:, 0, 4:12, 4:12] += np.uint8(90 if kidney else 0)
        kind = candidates.DRAWN if number < 12 else candidates.FOUND
        examples.append(candidates.Example(pictures, kidney, kind, str(number)))
    return examples


def test_a_network_learns_what_it_is_shown_and_the_same_from_the_same_seed() -> None:
    look = SecondLook(pixels=16, pixel_mm=10.0, features=4)
    examples = examples_to_learn(look)
    options = trainer.LookOptions("", (), "", steps=40, batch_size=12)
    silent = trainer.Silent()
    first, again = (trainer._fit(examples, look, options, silent) for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    threshold = trainer._threshold(first, examples)
    assert 0 < threshold <= trainer.MOST_THRESHOLD
    scores = trainer._scores(first, examples, threshold)
    assert scores["kidneys"] == scores["kidneys_kept"] == 6
    kidneys = np.array([one.kidney for one in examples])
    believed = trainer.believed(first, examples)
    assert believed[kidneys].min() > believed[~kidneys].max()


def test_ct_and_candidate_are_moved_together() -> None:
    look = SecondLook(pixels=32)
    pictures = torch.zeros(6, VIEWS, 3, 32, 32)
    pictures[..., 8:20, 6:22] = 1.0
    views = trainer.augmented(pictures, look, np.random.default_rng(0))
    assert views.shape == (6, VIEWS, 2, 32, 32)
    assert float(views.min()) >= 0 and float(views.max()) <= 1
    for ct, mask in views.flatten(0, 1).numpy():
        assert np.corrcoef(ct.ravel(), mask.ravel())[0, 1] > 0.8
    assert not torch.equal(views[0], views[1])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model that takes all that is bright for kidney, and the CTs of it."""
    folder = tmp_path_factory.mktemp("run")
    write_cases(folder / "data", 3, seed=5, size=(64, 64, 24))
    toys.copying_model(folder / "model")
    names = sorted(path.name for path in (folder / "data").iterdir() if path.is_dir())
    split = {"training": names[:2], "validation": names[2:]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


def test_a_model_is_taught_a_second_look_and_stays_as_it_was(run_folder, tmp_path) -> None:
    before = toys.everything_in(run_folder)
    line = ["train-second-look", "--model", run_folder / "model", "--data", run_folder / "data"]
    line += ["--output", tmp_path / "looked", "--steps", "2", "--batch-size", "4"]
    line += ["--device", "cpu", "--progress", "none"]
    assert cli.main([str(word) for word in line]) == 0
    assert toys.everything_in(run_folder) == before
    model = load_model(tmp_path / "looked")
    assert (model.folder / WEIGHTS_FILE).read_bytes() == before[f"model/{WEIGHTS_FILE}"]
    assert model.second_look is not None and model.second_look.threshold <= 0.25
    facts = model.card["second_look_training"]
    assert facts["training"]["patients"] == 2 and facts["validation"]["patients"] == 1
    assert facts["training"]["kidneys"] == facts["training"]["kidneys_kept"] > 0
    assert model.load_second_look() is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": "model"}, "is the model itself"),
        ({"output": "data"}, "is no model, so it is not replaced"),
        ({"split": "none.json"}, "There is no split"),
        ({"split": "folds"}, "There is no split"),
        ({"extra": ("data",)}, "give it once"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(run_folder, change, reason, monkeypatch) -> None:
    monkeypatch.chdir(run_folder)
    monkeypatch.setattr(trainer, "survey", lambda *given: pytest.fail("worked already"))
    options = {"model": "model", "data": ("data",), "output": "looked", **change}
    with pytest.raises(UsageError, match=reason):
        trainer.train_second_look(trainer.LookOptions(**options))
    assert not (run_folder / "looked").exists()


def test_who_was_left_out_of_the_training_is_left_out_here_too(run_folder, tmp_path) -> None:
    write_cases(tmp_path / "data", 4, seed=5, size=(64, 64, 24))
    lines = []
    progress = trainer.Silent()
    progress.line = lines.append
    options = trainer.LookOptions(
        str(run_folder / "model"), (str(tmp_path / "data"),), str(tmp_path / "looked")
    )
    _, split, _ = trainer._start(options, progress)
    assert [case.name for case in split.training] == ["case_00000", "case_00001"]
    assert [case.name for case in split.validation] == ["case_00002"]
    assert lines == [f"{run_folder / 'split.json'} does not place case_00003: left out"]


def test_an_extra_case_of_who_was_kept_aside_is_refused(run_folder, tmp_path) -> None:
    write_cases(tmp_path / "more", 3, seed=6, size=(64, 64, 24))
    options = trainer.LookOptions(
        str(run_folder / "model"),
        (str(run_folder / "data"),),
        str(tmp_path / "looked"),
        (str(tmp_path / "more"),),
    )
    with pytest.raises(UsageError, match="is of case_00002, who validates"):
        trainer.train_second_look(options)


def test_without_a_split_nobody_is_learnt_from(run_folder, tmp_path) -> None:
    model = toys.copying_model(tmp_path / "alone" / "model")
    options = trainer.LookOptions(
        str(model.folder), (str(run_folder / "data"),), str(tmp_path / "looked")
    )
    with pytest.raises(UsageError, match=r"no split\.json beside .*; give --split"):
        trainer.train_second_look(options)
