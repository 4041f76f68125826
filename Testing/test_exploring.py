"""Facts about labelled cases, the page about them, and whose predictions may be shown."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from pages import browse, read_page
from PIL import Image

from KidneySegLib.cli import main
from KidneySegLib.data_report import ExploredCase, data_page
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.exploring import (
    CORTICOMEDULLARY,
    EXCRETORY,
    NEPHROGRAPHIC,
    UNENHANCED,
    UNKNOWN,
    Brightness,
    Spread,
    brightness,
    case_facts,
    guess_phase,
)
from KidneySegLib.geometry import to_axial
from KidneySegLib.phantom import generate

pytest.importorskip("matplotlib")

from UNetTrainerLib.explore import explore

SPACING_MM = (3.0, 1.5, 1.5)
FAT = -90.0


def kidney(
    hu: float, *, medulla: float | None = None, urine: float | None = None, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of some HU in fat, with a darker inside and a bright middle if wanted."""
    k, j, i = np.ogrid[-10:11, -40:41, -40:41]
    away = (k / 8) ** 2 + (j / 24) ** 2 + (i / 18) ** 2
    labels = np.asarray(away < 1).astype(np.uint8)
    ct = np.where(labels, hu, FAT)
    if medulla is not None:
        ct[away < 0.5] = medulla
    if urine is not None:
        ct[away < 0.04] = urine
    ct[0, 0, 0] = 1200.0  # bone: nothing was clipped
    return ct + np.random.default_rng(0).normal(0, noise, ct.shape), labels


# --- Facts --------------------------------------------------------------------------------------


def test_volumes_and_slices_are_counted() -> None:
    ct, labels = kidney(150)
    labels[10:, :38][labels[10:, :38] > 0] = 2
    seen = case_facts(ct, labels, SPACING_MM)
    assert seen.kidney_ml == pytest.approx(np.count_nonzero(labels) * 3 * 1.5 * 1.5 / 1000)
    assert seen.tumour_ml == pytest.approx(np.count_nonzero(labels == 2) * 3 * 1.5 * 1.5 / 1000)
    assert seen.kidney_slices == np.count_nonzero(labels.any(axis=(1, 2)))
    assert seen.kidney_share == seen.kidney_slices / 21


def test_kidney_and_surroundings_are_measured_apart() -> None:
    ct, labels = kidney(150, noise=5)
    seen = brightness(ct, labels, SPACING_MM)
    assert seen is not None and seen.around is not None and seen.tumour is None
    assert seen.kidney.median == pytest.approx(150, abs=1)
    assert seen.around.median == pytest.approx(FAT, abs=1)
    # Quartiles of a normal distribution lie 0.674 standard deviations off its median.
    assert seen.kidney.high - seen.kidney.low == pytest.approx(2 * 0.674 * 5, rel=0.1)


def test_the_edge_of_a_label_is_no_kidney() -> None:
    ct, labels = kidney(150)
    wide = np.asarray(sum(np.roll(labels, shift, axis=2) for shift in (-1, 0, 1)) > 0)
    seen = brightness(ct, wide.astype(np.uint8), SPACING_MM)
    assert seen is not None and seen.kidney.low == pytest.approx(150)


def test_surroundings_leave_out_all_that_is_labelled() -> None:
    ct, labels = kidney(150)
    ct[:, :, 60:75], labels[:, :, 60:75] = 60, 2
    seen = brightness(ct, labels, SPACING_MM)
    assert seen is not None and seen.around is not None and seen.tumour is not None
    assert seen.around.high == FAT and seen.tumour.median == 60


@pytest.mark.parametrize(
    ("hu", "inside", "phase"),
    [
        (35, {}, UNENHANCED),
        (190, {"medulla": 90}, CORTICOMEDULLARY),
        (170, {}, NEPHROGRAPHIC),
        (140, {"urine": 800}, EXCRETORY),
    ],
)
def test_each_phase_is_told_from_the_others(hu: float, inside: dict, phase: str) -> None:
    seen = case_facts(*kidney(hu, noise=12, **inside), SPACING_MM)
    assert seen.phase.name == phase and seen.phase.sure and f"{seen.phase}" == phase


@pytest.mark.parametrize(
    ("phase", "expected"), [("arterial", CORTICOMEDULLARY), ("portal", NEPHROGRAPHIC)]
)
def test_the_phase_of_a_generated_ct_is_told(phase: str, expected: str) -> None:
    made = generate(2, size=(224, 224, 48), phase=phase)
    ct, grid = to_axial(made.image)
    assert case_facts(ct, to_axial(made.kidney)[0], grid.spacing_mm).phase.name == expected


def test_a_guess_close_to_a_limit_is_unsure() -> None:
    def seen(kidney_hu: float, unevenness: float, brightest: float = 1000) -> Brightness:
        spread = Spread(kidney_hu - 5, kidney_hu, kidney_hu + 5)
        return Brightness(spread, None, unevenness, None, 0.0, brightest)

    assert guess_phase(seen(40, 0.1)).sure and not guess_phase(seen(60, 0.1)).sure
    assert str(guess_phase(seen(60, 0.1))) == f"{UNENHANCED}?"
    assert not guess_phase(seen(75, 0.1)).sure
    assert not guess_phase(seen(150, 0.3)).sure and not guess_phase(seen(150, 0.36)).sure
    assert guess_phase(seen(150, 0.2)).sure
    # Where the values were clipped, bright urine cannot be seen.
    assert not guess_phase(seen(150, 0.2, brightest=275)).sure


def test_no_phase_is_guessed_without_kidney_or_hu() -> None:
    ct, labels = kidney(150)
    assert case_facts(ct, 0 * labels, SPACING_MM).phase.name == UNKNOWN
    assert case_facts(ct, 0 * labels, SPACING_MM).brightness is None
    assert case_facts(ct, labels, SPACING_MM, is_hu=False).phase.name == UNKNOWN


def test_labels_in_the_wrong_place_are_odd() -> None:
    ct, labels = kidney(150)
    assert not case_facts(ct, labels, SPACING_MM).oddities
    in_fat = case_facts(ct, np.roll(labels, 33, axis=1), SPACING_MM).oddities
    assert any("do the labels lie where the kidneys are" in sentence for sentence in in_fat)
    cut = case_facts(ct[:12], labels[:12], SPACING_MM).oddities
    assert cut == ("has kidney in its last slice, so that its volume is incomplete.",)


def test_arrays_of_other_shapes_are_refused() -> None:
    ct, labels = kidney(150)
    with pytest.raises(ValueError):
        case_facts(ct, labels[1:], SPACING_MM)


# --- From folders to a page ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three volumes, one of them without labels and so unusable, and two pictures."""
    top = tmp_path_factory.mktemp("explored") / "toys"
    ct, labels = toys.toy()
    for name in ("anna", "ben", "bad"):
        (top / name).mkdir(parents=True)
        own = np.minimum(labels, 1) if name != "bad" else 0 * labels
        sitk.WriteImage(toys.image_of(ct + (name == "ben")), str(top / name / "imaging.nii.gz"))
        sitk.WriteImage(toys.image_of(own), str(top / name / "segmentation.nii.gz"))
    for folder in ("images", "masks"):
        (top / folder).mkdir()
    for number in (1, 2):
        large = np.ones((4, 4), np.uint8)
        plane = np.kron(np.clip(ct[8 + number], 0, 255).astype(np.uint8), large)
        Image.fromarray(plane).save(top / "images" / f"patient{number}_slice_1.png")
        mask = np.kron(np.minimum(labels[8 + number], 1), large)
        Image.fromarray(mask).save(top / "masks" / f"patient{number}_slice_1.png")
    return top


def run_in(folder: Path, training: list[str], validation: list[str]) -> Path:
    """The folder of a training run whose model finds the toy's kidneys."""
    toys.copying_model(folder / "model", name="toy")
    split = {"training": training, "validation": validation}
    (folder / "split.json").write_text(json.dumps(split), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def page_file(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the command, with a model's predictions for ben and the second picture."""
    top = tmp_path_factory.mktemp("page")
    run = run_in(top / "run", ["toys/anna", "toys/patient1"], ["toys/ben", "toys/patient2"])
    output = top / "data.html"
    arguments = ["explore", str(data), "--output", str(output), "--model", str(run)]
    assert main([*arguments, "--slices", "5"]) == 0
    return output


def test_the_page_shows_every_case_and_loads_nothing(page_file: Path) -> None:
    page = read_page(page_file.read_text(encoding="utf-8"))
    names = ["anna", "ben", "patient1_slice_1", "patient2_slice_1"]
    assert sorted(page.column("cases", "Case")) == names
    assert page.column("cases", "Slices") == ["21", "21", "1", "1"]
    assert "Research use only" in page.words_shown and "4 patients" in page.words_shown
    assert page.tags.count("svg") == 4  # sizes, volumes, HU of volumes, values of pictures
    assert page.tags.count("img") == 5 + 2


def test_what_the_check_finds_stands_in_the_page(page_file: Path) -> None:
    page = read_page(page_file.read_text(encoding="utf-8"))
    found = dict(zip(page.column("odd", "Case"), page.column("odd", "What is odd"), strict=True))
    assert "holds no label at all" in found["bad"]
    assert "unusable" in page.column("odd", "In a training")


def test_predictions_are_shown_of_validating_patients_alone(page_file: Path) -> None:
    words = read_page(page_file.read_text(encoding="utf-8")).words_shown
    assert "2 of the 2 patients who did not train it" in words
    assert "ben, Dice 1.000" in words and "patient2_slice_1, Dice" in words
    assert "anna, Dice" not in words and "patient1_slice_1, Dice" not in words


def test_cases_of_one_name_in_two_sources_are_not_taken_for_each_other(tmp_path: Path) -> None:
    ct, labels = toys.toy()
    for source, hu in (("bern", np.where(labels > 0, -500, ct)), ("ulm", ct)):
        folder = tmp_path / source / "case_1"
        folder.mkdir(parents=True)
        sitk.WriteImage(toys.image_of(hu.astype(np.int16)), str(folder / "imaging.nii.gz"))
        sitk.WriteImage(toys.image_of(np.minimum(labels, 1)), str(folder / "segmentation.nii.gz"))
    shown = explore([tmp_path / "bern", tmp_path / "ulm"], slices=2)[0]
    page = read_page(str(shown))
    odd = dict(zip(page.column("odd", "What is odd"), page.column("odd", "Case"), strict=True))
    assert [odd[what] for what in odd if "has kidneys of" in what] == ["bern/case_1"]
    assert page.column("cases", "Case") == ["bern/case_1", "ulm/case_1"]
    row = re.search(r'<a href="#(row-\d)">bern/case_1</a></td><td[^>]*>has kidneys', str(shown))
    assert row is not None and f'<tr id="{row[1]}"><td>bern/case_1<' in str(shown)
    assert "bern/case_1, slice" in page.words_shown and "ulm/case_1, slice" in page.words_shown


def test_patients_are_counted_and_not_their_pictures(data: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for number in range(3):
            name = f"patient2_slice_{number}.png"
            shutil.copy(
                data / folder / "patient2_slice_1.png", tmp_path / "pictures" / folder / name
            )
    run = run_in(tmp_path / "run", ["pictures/patient1"], ["pictures/patient2"])
    words = read_page(str(explore([tmp_path / "pictures"], model=run, slices=0)[0])).words_shown
    assert "1 of the 1 patients who did not train it (3 cases)" in words


def test_the_same_seed_shows_the_same(data: Path) -> None:
    pages = [str(explore([data], slices=3, seed=seed)[0]) for seed in (1, 1, 2)]
    assert pages[0] == pages[1] != pages[2]


def test_sides_where_the_trainer_sees_a_tumour_are_odd(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "anna", tmp_path / "sides" / "anna")
    labels = toys.image_of(toys.toy()[1])
    sitk.WriteImage(labels, str(tmp_path / "sides" / "anna" / "segmentation.nii.gz"))
    page = read_page(str(explore([tmp_path / "sides"], slices=0)[0]))
    assert any("on two sides" in text for text in page.column("odd", "What is odd"))


def test_text_from_files_is_escaped() -> None:
    nasty = "<i>$x$</i> & <script>alert(1)</script>"
    seen = case_facts(*kidney(150), SPACING_MM)
    case = ExploredCase(nasty, nasty, nasty, False, True, seen)
    page = read_page(str(data_page([case], title=nasty, settings=[(nasty, nasty)])))
    assert page.column("cases", "Case") == [nasty] and "i" not in page.tags


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (["toys/anna", "toys/ben", "toys/patient1", "toys/patient2"], [], "trained the model"),
        (["other/a"], ["other/b"], "names no patient"),
        (["toys/anna", "toys/ben"], ["toys/ben"], "in training and in validation"),
    ],
)
def test_cases_that_may_have_trained_the_model_are_refused(
    training: list[str], validation: list[str], message: str, data: Path, tmp_path: Path
) -> None:
    run = run_in(tmp_path / "run", training, validation)
    with pytest.raises(UsageError, match=message):
        explore([data], model=run)


def test_a_model_whose_split_is_not_known_is_refused(data: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path / "run", ["toys/anna"], ["toys/ben"])
    installed = shutil.copytree(run / "model", tmp_path / "installed")
    with pytest.raises(UsageError, match="does not say who trained toy"):
        explore([data], model=installed)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--output", "x.html"], 3, "no folder"),
        (["DATA", "--output", "x.txt"], 2, ".html"),
        (["DATA", "--output", "x.html", "--slices", "-1"], 2, "negative"),
        (["DATA", "--output", "x.html", "--model", "nix"], 4, "nix"),
    ],
)
def test_what_cannot_be_explored_is_said_in_a_sentence(
    arguments: list[str],
    code: int,
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(data) if word == "DATA" else word for word in arguments]
    assert main(["explore", *given]) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_of_which_nothing_can_be_read_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "bad", tmp_path / "data" / "bad")
    with pytest.raises(InputError, match="No case can be read"):
        explore([tmp_path / "data"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_a_case_whose_name_is_no_utf_8_is_told(data: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(data / "anna", tmp_path / "data" / "anna")
    shutil.copytree(data / "ben", tmp_path / "data" / os.fsdecode(b"M\xfcller"))
    output = tmp_path / "page.html"
    assert main(["explore", str(tmp_path / "data"), "--output", str(output), "--slices", "0"]) == 0
    assert "not shown: M\\udcfcller: " in capsys.readouterr().out
    assert read_page(output.read_text(encoding="utf-8")).column("cases", "Case") == ["anna"]


def test_the_table_of_cases_sorts_in_a_browser(page_file: Path, tmp_path: Path) -> None:
    url = f"{page_file.as_uri()}#sort=cases.case.descending"
    page = browse(url, tmp_path / "profile", "--dump-dom")
    body = page[page.index('id="cases"') :]
    names = ("patient2_slice_1", "patient1_slice_1", "ben", "anna")
    places = [body.index(f">{name}</td>") for name in names]
    assert places == sorted(places)
