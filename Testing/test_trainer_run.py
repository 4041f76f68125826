"""Training runs from end to end: what they leave behind, and what stops and resumes them."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from KidneySegLib.errors import Cancelled, InputError, KidneySegError, UsageError
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import Model, load_model
from KidneySegLib.modelplaces import list_models
from KidneySegLib.modelsaving import save_model
from KidneySegLib.network import NetworkParameters, build
from KidneySegLib.phantom import write_cases
from KidneySegLib.preprocess import Preprocessing
from KidneySegLib.segment import segment

pytest.importorskip("lightning", reason="training needs the package lightning")

from preparedcases import prepared
from torch.optim.swa_utils import AveragedModel

from UNetTrainerLib.card import _command
from UNetTrainerLib.cases import find_cases, split_cases
from UNetTrainerLib.checkpoint import BEST, LAST, SafetensorsIO
from UNetTrainerLib.loop import averaged
from UNetTrainerLib.options import Options, flag, resolve
from UNetTrainerLib.progress import Silent
from UNetTrainerLib.report import HISTORY
from UNetTrainerLib.train import prepare, smallest_of, train

ROOT = Path(__file__).resolve().parents[1]

TINY: dict[str, Any] = {
    "epochs": 3,
    "steps": 6,
    "batch_size": 4,
    "features": 4,
    "depth": 3,
    "context_slices": 1,
    "rows": 64,
    "columns": 80,
    "pixel_mm": 6.0,
    "slice_mm": 8.0,
    "dropout": 0.2,
    "folds": 3,
    "workers": 0,
    "precision": "32",
    "device": "cpu",
}


class Lines(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def case_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder, 3, seed=5, size=(64, 64, 24))
    return folder


def tiny(data: Path, output: Path, **choices: Any) -> Options:
    return resolve({**TINY, "data": (str(data),), "output": str(output), **choices})


def history(output: Path) -> list[dict[str, float]]:
    with (output / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def assert_same_run(one: Path, other: Path, tolerance: float = 1e-6) -> None:
    """The same losses and scores in every epoch, and the same weights at the end."""
    first, second = history(one), history(other)
    assert [row["epoch"] for row in first] == [row["epoch"] for row in second]
    for a, b in zip(first, second, strict=True):
        for column in HISTORY:
            if column != "seconds":
                assert a[column] == pytest.approx(b[column], abs=tolerance, nan_ok=True), column
    weights = [load_model(path / "model").load_network().state_dict() for path in (one, other)]
    for a, b in zip(weights[0].values(), weights[1].values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=10 * tolerance)


def command(options: Options, *flags: str) -> list[str]:
    """The command line of the same run."""
    parts = [sys.executable, "-m", "KidneySegLib", "train", "--data", *options.data]
    parts += ["--output", options.output, "--cache", options.cache, "--progress", "lines"]
    for name in TINY:
        parts += [flag(name), str(getattr(options, name))]
    return [*parts, *flags]


def environment() -> dict[str, str]:
    places = [str(ROOT / "KidneySeg"), str(ROOT / "UNetTrainer")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}


def test_trains_a_model_that_segments_and_leaves_what_a_user_looks_for(
    case_folders: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    lines = Lines()
    options = tiny(case_folders, output, name="tiny", fold=1, steps=12, context_slices=3)
    model = train(options, lines)
    assert model is not None

    rows = history(output)
    assert tuple(rows[0]) == HISTORY
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(row["lr"] > 0 and row["seconds"] > 0 for row in rows)
    assert (output / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((output / "tensorboard").glob("events.*"))
    assert (output / LAST).is_file()
    assert (output / BEST).is_file()
    split = json.loads((output / "split.json").read_text())
    assert len(split["training"]) == 2
    assert len(split["validation"]) == 1

    scores = json.loads((output / "scores.json").read_text())
    (held_out,) = [case["name"] for case in scores["cases"]]
    pictures = sorted(path.name for path in (output / "examples").iterdir())
    assert pictures == [f"{title}_{held_out}.png" for title in ("best", "median", "worst")]
    assert any("waiting" in line for line in lines.lines)

    training = model.card["training"]
    assert model.name == "tiny"
    assert model.card["data"][0] | {"slices": 0} == {
        "source": case_folders.name, "patients": 2, "cases": 2, "slices": 0, "kind": "volumes",
    }  # fmt: skip
    assert training["options"]["features"] == 4
    assert training["seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=1)
    assert "--features 4" in training["command"]
    assert set(model.card["scores"]["validation_dice_per_case"]) == {held_out}
    assert model.folder is not None
    card = (model.folder / "README.md").read_text()
    assert "Research use only" in card
    assert held_out in card

    result = segment(case_folders / held_out, model, device="cpu", precision="float32")
    array, _ = to_axial(result.labels)
    assert array.shape == to_axial(result.scan.image)[0].shape


@pytest.mark.parametrize("deep_supervision", [0.0, 0.5])
def test_a_broken_run_resumes_to_the_same_losses_as_an_unbroken_one(
    case_folders: Path, tmp_path: Path, deep_supervision: float
) -> None:
    def options(name: str, **choices: Any) -> Options:
        settled = {"epochs": 4, "steps": 3, "dropout": 0.4, "cache": str(tmp_path / "cache")}
        settled["deep_supervision"] = deep_supervision
        return tiny(case_folders, tmp_path / name, name="m", **{**settled, **choices})

    train(options("whole"))
    asked = iter(range(1000))
    with pytest.raises(Cancelled, match="2 finished epochs"):  # in the middle of the third epoch
        train(options("broken"), cancelled=lambda: next(asked) >= 7)
    assert len(history(tmp_path / "broken")) == 2
    train(options("broken", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")

    with pytest.raises(UsageError, match="trained with other lr"):
        train(options("broken", resume=True, lr=1e-4))
    with pytest.raises(UsageError, match="trained with other features"):
        train(options("broken", resume=True, features=8))
    split = (tmp_path / "broken" / "split.json").read_bytes()
    with pytest.raises(UsageError, match="trained with other training cases"):
        train(options("broken", resume=True, folds=0))
    assert (tmp_path / "broken" / "split.json").read_bytes() == split
    with pytest.raises(InputError, match="to resume from"):
        train(options("nothing", resume=True))
    (tmp_path / "broken" / LAST).write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="damaged"):
        train(options("broken", resume=True))


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of Unix")
def test_a_run_killed_at_random_moments_resumes_to_the_same_losses(
    case_folders: Path, tmp_path: Path
) -> None:
    def options(name: str) -> Options:
        return tiny(
            case_folders, tmp_path / name, cache=str(tmp_path / "cache"), epochs=8, steps=10,
            dropout=0.4, workers=1,
        )  # fmt: skip

    subprocess.run(command(options("whole"), "--name", "m"), env=environment(), check=True)
    broken = command(options("broken"), "--name", "m")
    last = tmp_path / "broken" / LAST
    for attempt in range(3):
        process = subprocess.Popen(
            [*broken, *(["--resume"] if attempt else [])], env=environment(), start_new_session=True
        )
        before = last.stat().st_mtime_ns if attempt else 0
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.4))  # any moment will do: the result must be the same
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*broken, "--resume"], env=environment(), check=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes is tried on Unix")
def test_two_processes_train_the_same_model_as_one(case_folders: Path, tmp_path: Path) -> None:
    def options(name: str) -> Options:
        return tiny(
            case_folders, tmp_path / name, cache=str(tmp_path / "cache"), epochs=2, steps=4,
            dropout=0.0,
        )  # fmt: skip

    # Adam would blow rounding up where a gradient is almost nothing.
    flags = ("--name", "m", "--optimizer", "sgd", "--lr", "0.01")
    subprocess.run(command(options("one"), *flags), env=environment(), check=True)
    subprocess.run(command(options("two"), *flags, "--devices", "2"), env=environment(), check=True)
    assert_same_run(tmp_path / "one", tmp_path / "two", tolerance=1e-5)


def test_every_case_trains_when_nothing_validates(case_folders: Path, tmp_path: Path) -> None:
    options = tiny(case_folders, tmp_path / "run", folds=0, epochs=1, steps=2)
    model = train(options)
    assert model is not None
    (row,) = history(tmp_path / "run")
    assert math.isnan(row["valid_dice_case"])
    assert model.card["data"][0]["patients"] == 3
    assert not (tmp_path / "run" / "examples").exists()


def test_what_another_run_left_in_the_folder_is_not_taken_for_that_of_this_one(
    case_folders: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    train(tiny(case_folders, output, epochs=1, steps=1))
    (before,) = (output / "tensorboard").glob("events.*")
    assert (output / "scores.json").is_file()
    train(tiny(case_folders, output, epochs=1, steps=1, folds=0))
    assert not (output / "scores.json").exists() and not (output / "examples").exists()
    assert before not in [*(output / "tensorboard").iterdir()]


def test_models_that_do_not_go_together_are_refused_before_the_data_are_read(
    case_folders: Path, tmp_path: Path
) -> None:
    for name, choices in {
        "axial": {},
        "coronal": {"view": "coronal"},
        "minmax": {"view": "coronal", "scaling": "minmax"},
    }.items():
        shape = {"epochs": 1, "steps": 1, "folds": 0, "cache": str(tmp_path / "cache")}
        train(tiny(case_folders, tmp_path / name, **shape, **choices))
    folders = {name: str(tmp_path / name / "model") for name in ("axial", "coronal", "minmax")}
    for finder, views, reason in (
        ("axial", ("axial",), "others than the axial one"),
        ("axial", ("coronal", "coronal"), "each of them once"),
        ("axial", ("minmax",), "no minimum and maximum"),
        ("coronal", (), "finder looks at other slices than axial ones"),
    ):
        choices = {"finder": folders[finder], "views": tuple(folders[view] for view in views)}
        with pytest.raises(UsageError, match=rf"{reason}.*--finder and --views"):
            train(tiny(tmp_path / "no", tmp_path / "run", crop=32, around=0.5, **choices))


def test_a_place_that_the_model_cannot_take_is_said_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(tmp_path / "models"))
    for place in (tmp_path / "run" / "model", tmp_path / "models" / "mine"):
        place.mkdir(parents=True)
        (place / "notes.txt").write_text("")
    for output, choices, message in (
        ("run", {}, r"run.model exists and is no model"),
        ("other", {"install": True, "name": "mine"}, r"models.mine exists and is no model"),
        ("other", {"install": True, "name": "../mine"}, r"\.\./mine cannot be the name"),
    ):
        with pytest.raises(UsageError, match=message):
            train(tiny(tmp_path / "no", tmp_path / output, **choices))


def test_stopping_early_needs_a_split_with_somebody_who_validates(
    case_folders: Path, tmp_path: Path
) -> None:
    cases = find_cases([case_folders])
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": [c.patient for c in cases], "validation": []}))
    with pytest.raises(UsageError, match="--early-stopping needs cases that validate"):
        train(tiny(case_folders, tmp_path / "run", split=str(split), early_stopping=2))


def test_a_kidney_that_the_scan_cuts_off_tells_a_network_of_another_view_nothing(
    tmp_path: Path,
) -> None:
    cases = [
        prepared(tmp_path, f"a{number}", labelled=(3, 4, 5, 6, 7), spacing_mm=(3.0, 3.0, 3.0))
        for number in range(11)
    ]
    labels = np.load(cases[0].labels_file)
    labels[:] = 0
    labels[3:8, :8, 16:30] = 1  # of a coronal view: from its upper edge, the end of the scan
    np.save(cases[0].labels_file, labels)
    whole = np.count_nonzero(np.load(cases[1].labels_file)) * np.prod(cases[1].spacing_mm) / 1000
    cut = np.count_nonzero(labels) * np.prod(cases[0].spacing_mm) / 1000
    assert smallest_of(cases, "coronal") == round(whole / 2, 1)
    assert smallest_of(cases, "axial") == round(cut / 2, 1)


def test_the_card_names_no_folder_of_this_machine_and_its_command_can_be_typed() -> None:
    options = tiny(
        Path("/home/anna/my cases"), Path("/home/anna/runs/a b"), split="/home/anna/x/split.json"
    )
    text = _command(options)
    assert "/home" not in text
    assert "--data 'my cases' --output 'a b' --split split.json " in text


def test_a_cancelled_run_leaves_no_model_and_bad_data_no_training(
    case_folders: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nothing"):
        train(tiny(tmp_path / "nothing", tmp_path / "run"))
    with pytest.raises(Cancelled):
        train(tiny(case_folders, tmp_path / "run"), cancelled=lambda: True)
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / LAST).exists()


def test_an_unusable_case_stops_the_run_unless_it_is_left_out(
    case_folders: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for folder in case_folders.iterdir():
        (data / folder.name).symlink_to(folder)
    broken = data / "case_00009"
    broken.mkdir()
    (broken / "segmentation.nii.gz").write_bytes(b"")
    lines = Lines()
    with pytest.raises(InputError, match=r"1 of 4 cases cannot be used.*--skip-bad"):
        train(tiny(data, tmp_path / "run"), lines)
    assert any("case_00009" in line for line in lines.lines)
    assert not (tmp_path / "run" / "model").exists()
    model = train(tiny(data, tmp_path / "run", skip_bad=True, epochs=1, steps=1))
    assert model is not None
    assert train(tiny(data, tmp_path / "run", skip_bad=True, check_only=True)) is None


def test_an_extra_case_of_a_patient_who_validates_stops_the_run(
    case_folders: Path, tmp_path: Path
) -> None:
    (held_out,) = split_cases(find_cases([case_folders]), "folds", 3, 0).validation
    more = tmp_path / "more"
    more.mkdir()
    (more / held_out.name).symlink_to(case_folders / held_out.name)
    with pytest.raises(UsageError, match=f"is of {held_out.patient}, who validates"):
        train(tiny(case_folders, tmp_path / "run", extra=(str(more),)))
    assert not (tmp_path / "run" / "split.json").exists()
    data = prepare(tiny(case_folders, tmp_path, fold=1, extra=(str(more),)), tmp_path, Silent())
    assert data is not None and [item.case.name for item in data.extra] == [held_out.name]


def test_a_patient_of_two_folders_counts_once_in_the_card(
    case_folders: Path, tmp_path: Path
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "slices" / kind).mkdir(parents=True)
    rows = ["name,kits19_case,pixel_spacing_mm"]
    for number in range(3):
        picture = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
        Image.fromarray(picture).save(tmp_path / "slices" / "images" / f"s{number}.png")
        mask = (picture > 250).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "slices" / "masks" / f"s{number}.png")
        rows.append(f"s{number},{number},5")
    (tmp_path / "slices" / "index.csv").write_text("\n".join(rows))
    data = {"data": (str(case_folders), str(tmp_path / "slices"))}
    model = train(resolve({**TINY, **data, "output": str(tmp_path / "run"), "epochs": 1}))
    assert model is not None
    assert model.card["scores"]["validation_patients"] == 1


def test_a_loss_that_is_not_finite_stops_and_names_the_case(
    case_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from UNetTrainerLib import loop

    whole = loop.LOSSES["generalized-dice"]
    calls = iter(range(1000))

    def breaks(logits: torch.Tensor, labels: torch.Tensor, weights: Any) -> torch.Tensor:
        loss = whole(logits, labels, weights)
        return loss * math.nan if logits.requires_grad and next(calls) == 7 else loss

    monkeypatch.setitem(loop.LOSSES, "generalized-dice", breaks)
    with pytest.raises(KidneySegError, match=r"not finite in epoch 2, at .*case_0000"):
        train(tiny(case_folders, tmp_path / "run"))
    assert len(history(tmp_path / "run")) == 1
    assert load_model(tmp_path / "run" / "model").load_network() is not None
    monkeypatch.undo()
    train(tiny(case_folders, tmp_path / "run", resume=True))
    assert len(history(tmp_path / "run")) == 3


def test_an_installed_model_is_listed_and_none_that_ships_is_hidden(
    case_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(tmp_path / "models"))
    choices = {"epochs": 1, "steps": 1, "install": True}
    model = train(tiny(case_folders, tmp_path / "run", name="mine", **choices))
    assert model is not None
    assert model.folder == tmp_path / "models" / "mine"
    assert "mine" in {known.name for known in list_models()[0]}
    with pytest.raises(UsageError, match="ships with KidneySeg"):
        train(tiny(case_folders, tmp_path / "run", name="kidney-unet-views", **choices))


def test_fine_tuning_takes_the_shape_of_the_model_and_starts_from_its_weights(
    case_folders: Path, tmp_path: Path
) -> None:
    train(tiny(case_folders, tmp_path / "first", epochs=1, steps=2))
    start = tmp_path / "first" / "model"
    tuned = {k: v for k, v in TINY.items() if k not in ("features", "depth", "context_slices")}
    common = {**tuned, "data": (str(case_folders),), "init_from": str(start), "lr": 1e-12}
    options = resolve({**common, "output": str(tmp_path / "second"), "epochs": 1, "steps": 1})
    assert options.features == 4
    model = train(options)
    assert model is not None
    before = load_model(start).load_network().state_dict()
    after = model.load_network().state_dict()
    assert torch.allclose(before["head.weight"], after["head.weight"], atol=1e-6)
    with pytest.raises(UsageError, match="was trained with --features 4"):
        resolve({**common, "output": "x", "features": 8})


@pytest.mark.parametrize(
    "other", [{"normalisation": "before_relu"}, {"up_sampling": "interpolation"}]
)
def test_fine_tuning_refuses_a_network_that_means_something_else_by_its_weights(
    tmp_path: Path, other: dict[str, str]
) -> None:
    network = NetworkParameters(features=4, depth=3, **other)
    model = Model("other", "1.0.0", network, Preprocessing())
    save_model(model, build(network).state_dict(), tmp_path / "other")
    with pytest.raises(UsageError, match=f"{next(iter(other))}.*not trained here"):
        resolve({"data": ("d",), "output": "o", "init_from": str(tmp_path / "other")})


def test_kidney_and_tumour_train_as_classes_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "cases"
    write_cases(data, 2, seed=5, size=(64, 64, 24))
    choices = {"classes": "kidney-tumour", "folds": 2, "epochs": 1, "steps": 2}
    for folder in data.iterdir():
        path = folder / "segmentation.nii.gz"
        labels = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.Cast(labels > 0, sitk.sitkUInt8), str(path))
    with pytest.raises(InputError, match=r"No mask holds label 2 \(tumour\)"):
        train(tiny(data, tmp_path / "run", **choices))
    for folder in data.iterdir():
        path = folder / "segmentation.nii.gz"
        labels = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(labels)
        array[array.shape[0] // 2 :] *= 2
        tumour = sitk.GetImageFromArray(array)
        tumour.CopyInformation(labels)
        sitk.WriteImage(tumour, str(path))
    model = train(tiny(data, tmp_path / "run", **choices))
    assert model is not None
    assert model.labels == ("background", "kidney", "tumour")
    assert len(model.card["scores"]["validation_tumour_dice_per_case"]) == 1


def test_colour_pictures_train_without_any_volume(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "frames" / kind).mkdir(parents=True)
    for patient in range(3):
        for frame in range(2):
            name = f"patient{patient}_frame_{frame}"
            mask = np.zeros((48, 64), np.uint8)
            mask[10:30, 12:40] = 1
            picture = rng.integers(0, 90, (48, 64, 3), dtype=np.uint8)
            picture[mask > 0, 1] += 150
            Image.fromarray(picture).save(tmp_path / "frames" / "images" / f"{name}.bmp")
            Image.fromarray(mask * 255).save(tmp_path / "frames" / "masks" / f"{name}.png")
    options = tiny(
        tmp_path / "frames", tmp_path / "run", in_channels=3, scaling="minmax", pixel_mm=0.0,
        slice_mm=0.0, no_body_crop=True, steps=8, rows=48, columns=64,
    )  # fmt: skip
    model = train(options)
    assert model is not None
    rows = history(tmp_path / "run")
    assert rows[-1]["valid_dice_slice"] > 0.3
    assert math.isnan(rows[-1]["valid_dice_case"])
    assert len(list((tmp_path / "run" / "examples").iterdir())) == 3
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "in pictures" in card
    assert "| case |" not in card
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["training"]) == 2


@pytest.mark.parametrize(
    "choices",
    [
        {"no_padding": True, "rows": 40, "columns": 56},
        {"network": "inception-unet", "dropout_place": "everywhere"},
        {"loss": "dice", "optimizer": "nadam", "schedule": "plateau"},
        {"loss": "dice-bce", "optimizer": "adam", "schedule": "cosine", "min_lr": 1e-5},
        {"loss": "focal", "optimizer": "sgd", "schedule": "constant"},
        {"loss": "weighted-ce", "crop": 32, "augment": "light"},
        {"loss": "generalized-dice-ce", "steps": 0, "averaging": 0.0, "keep": "last"},
        {"precision": "bf16", "context_slices": 3, "workers": 1},
        {"deep_supervision": 0.5, "depth": 4, "averaging": 0.0},
        {"deep_supervision": 0.9, "no_padding": True, "rows": 40, "columns": 56},
        {"preset": "kits19-paper", "features": 4, "depth": 3, "rows": 64, "columns": 64},
    ],
    ids=lambda choices: "-".join(map(str, choices.values())),
)
def test_every_kind_of_choice_trains_and_segments(
    case_folders: Path, tmp_path: Path, choices: dict[str, Any]
) -> None:
    common = TINY
    if "preset" in choices:
        common = {name: TINY[name] for name in ("folds", "workers", "precision", "device")}
    given = {**common, "epochs": 1, "steps": 1, **choices}
    output = tmp_path / "run"
    model = train(resolve({**given, "data": (str(case_folders),), "output": str(output)}))
    assert model is not None
    (row,) = history(output)
    assert math.isfinite(row["train_loss"])
    assert math.isfinite(row["valid_loss"])
    result = segment(case_folders / "case_00000", model, device="cpu", precision="float32")
    assert result.labels.GetSize() == result.scan.image.GetSize()


@pytest.mark.skipif(sys.platform == "win32", reason="limits on a file's size are of Unix")
def test_a_full_disk_stops_the_run_and_the_last_good_checkpoint_stays(
    case_folders: Path, tmp_path: Path
) -> None:
    import resource

    def options(name: str, **choices: Any) -> Options:
        choices |= {"features": 12, "cache": str(tmp_path / "cache"), "name": "m"}
        return tiny(case_folders, tmp_path / name, **choices)

    train(options("whole"))
    size = (tmp_path / "whole" / LAST).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class FillsTheDisk(Lines):
        def batch(self, epoch: int, *others: Any) -> None:
            if epoch == 2:  # a file as large as a checkpoint no longer has room
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        with pytest.raises(KidneySegError, match=r"full cannot .*too large.*--resume"):
            train(options("full"), FillsTheDisk())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (tmp_path / "full").iterdir() if path.name.startswith(".")]
    train(options("full", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "full")


@pytest.mark.skipif(sys.platform == "win32", reason="limits on a file's size are of Unix")
def test_a_disk_that_is_full_of_a_model_is_told_of_as_by_any_other_file(
    tmp_path: Path, toy_model: Model
) -> None:
    import resource

    state = toy_model.load_network().state_dict()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            save_model(toy_model, state, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


def test_the_published_preset_is_that_experiment() -> None:
    options = resolve({"preset": "kits19-paper", "data": ("d",), "output": "o", "split": "kits19"})
    assert options.network_parameters.features == 64
    assert options.network_parameters.dropout == 0.5
    assert options.preprocessing.scaling == "minmax"
    assert options.preprocessing.pixel_mm is None
    assert (options.optimizer, options.lr, options.schedule) == ("nadam", 1e-4, "plateau")
    assert (options.loss, options.augment, options.steps) == ("generalized-dice", "none", 0)
    assert resolve({"preset": "kits19-paper", "features": 16}).features == 16


def test_early_stopping_ends_a_run_that_no_longer_improves(
    case_folders: Path, tmp_path: Path
) -> None:
    options = tiny(
        case_folders, tmp_path / "run", epochs=9, steps=1, early_stopping=2, lr=1e-9,
        averaging=0.0, schedule="constant",
    )  # fmt: skip
    train(options)
    assert len(history(tmp_path / "run")) < 9


def test_a_checkpoint_holds_no_pickle_and_comes_back_as_it_was(tmp_path: Path) -> None:
    io = SafetensorsIO()
    state = {
        "tensor": torch.arange(6).view(2, 3).t(),
        "optimizer": {0: {"step": torch.tensor(3.0)}, "groups": [{"lr": 1e-3, "betas": (0.9, 1)}]},
        "nothing": None,
        "nan": math.nan,
    }
    io.save_checkpoint(state, tmp_path / LAST)
    back = io.load_checkpoint(tmp_path / LAST)
    assert torch.equal(back["tensor"], state["tensor"])
    assert back["optimizer"] == state["optimizer"]
    assert math.isnan(back["nan"])
    with pytest.raises(TypeError, match="neither a tensor nor plain"):
        io.save_checkpoint({"function": print}, tmp_path / LAST)
    assert torch.equal(io.load_checkpoint(tmp_path / LAST)["tensor"], state["tensor"])


def test_averaged_weights_follow_first_and_settle_later() -> None:
    update = averaged(0.99)
    early, late = torch.zeros(2), torch.zeros(2)
    update([early, torch.ones(1)], [torch.tensor([1.0, 2.0]), torch.ones(1)], 0)
    assert early.tolist() == pytest.approx([0.9, 1.8])
    update([late], [torch.ones(2)], torch.tensor(10_000))
    assert late.tolist() == pytest.approx([0.01, 0.01])
    batches = torch.tensor(7)
    update([batches], [torch.tensor(9)], 0)
    assert batches.item() == 8  # whole numbers stay whole


def test_what_validates_is_the_average_of_the_weights_and_of_the_statistics() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    average = AveragedModel(network, multi_avg_fn=averaged(0.5), use_buffers=True)
    average.update_parameters(network)  # the first one is taken as it is
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(4)
    average.update_parameters(network)
    rate = 9 / 11
    for name, value in average.module.state_dict().items():
        expected = before[name] + 4 * rate
        assert torch.allclose(value, expected.to(value.dtype)), name


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"folds": 1}, "--folds 1"),
        ({"fold": 5}, "no fold 5 of 5"),
        ({"extra_share": 1.0}, "--extra-share"),
        ({"lr": 0.0}, "--lr"),
        ({"threshold": 1.0}, "--threshold"),
        ({"margin_mm": -1.0}, "--margin-mm must be at least 0"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"lr": 1e-4, "min_lr": 1e-3}, "--min-lr"),
        ({"rows": 100}, "--rows must be a multiple of 16"),
        ({"crop": 100}, "--crop must be a multiple of 16"),
        ({"context_slices": 2}, "odd"),
        ({"loss": "none"}, "--loss is one of generalized-dice"),
        ({"batch_size": 5, "devices": 2}, "multiple of 2"),
        ({"early_stopping": 3, "folds": 0}, "--early-stopping needs"),
        ({"window_low": 300.0}, "--window-low"),
    ],
)
def test_choices_that_cannot_work_are_named(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(data=("a",), output="b", **choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"device": "cuda:7"}, "cuda:7.*is not on this machine"),
        ({"precision": "16-mixed"}, "16-mixed needs a GPU"),
        ({"batch_size": 10_000_000}, r"--batch-size \d+"),
    ],
)
def test_what_this_machine_cannot_do_is_said_before_the_data_are_read(
    tmp_path: Path, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny(tmp_path / "nothing", tmp_path / "run", **choice))


def test_an_output_that_cannot_be_written_to_is_said_at_once(
    case_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        train(tiny(case_folders, tmp_path / "file" / "run"))
