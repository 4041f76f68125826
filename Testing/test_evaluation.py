"""Figures of cases and cohorts, which prediction belongs to which reference, and the command."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from toys import everything_in

from KidneySegLib import cli
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.evaluation import (
    FIGURES,
    PART_FIGURES,
    Cohort,
    bootstrap_interval,
    definitions,
    evaluate_case,
    evaluate_folders,
    write_table,
)
from KidneySegLib.pairing import pair_up

SIDES = toys.toy()[1]
MERGED = (SIDES > 0).astype(np.uint8)
NOTHING = np.zeros_like(SIDES)
MOVED = np.roll(SIDES, 1, 1)


def scores(prediction: np.ndarray, reference: np.ndarray, **how):
    return evaluate_case(toys.image_of(prediction, **how), toys.image_of(reference, **how))


def with_tumour(rows: int) -> np.ndarray:
    """KiTS19's labels: a part of the left kidney is tumour."""
    labels = MERGED.copy()
    middle = np.argwhere(SIDES == 1).mean(axis=0).astype(int)
    part = tuple(slice(at - 2, at + 2) for at in middle)
    labels[part] = 2
    labels[:, : middle[1] - rows][labels[:, : middle[1] - rows] == 2] = 1
    return labels


# --- a case -----------------------------------------------------------------------------------


def test_every_figure_of_a_case_is_what_its_definition_says() -> None:
    case = scores(MOVED, SIDES)
    voxel_ml = np.prod(toys.SPACING_MM) / 1000
    assert list(case.parts) == ["kidney", "left", "right"] and case.notes == ()
    for part, a, b in (
        ("kidney", MOVED > 0, SIDES > 0),
        ("left", MOVED == 1, SIDES == 1),
        ("right", MOVED == 2, SIDES == 2),
    ):
        both, either = (a & b).sum(), (a | b).sum()
        assert case.value("dice", part) == pytest.approx(2 * both / (a.sum() + b.sum()))
        assert case.value("iou", part) == pytest.approx(both / either)
        assert case.value("precision", part) == pytest.approx(both / a.sum())
        assert case.value("recall", part) == pytest.approx(both / b.sum())
        assert case.value("prediction_ml", part) == pytest.approx(a.sum() * voxel_ml)
        assert case.value("volume_difference_ml", part) == pytest.approx(0)
        assert 0 < case.value("mean_surface_distance_mm", part) <= 5.5
        assert case.value("hausdorff_95_mm", part) == pytest.approx(5.5, abs=1e-4)
        assert 0 < case.value("surface_dice_2mm", part) < 1
    grown = scores(np.maximum(SIDES, MOVED), SIDES)
    more = (MOVED > 0).sum() - ((MOVED > 0) & (SIDES > 0)).sum()
    assert grown.value("volume_difference_ml") == pytest.approx(more * voxel_ml)
    assert grown.value("volume_difference_percent") == pytest.approx(100 * more / MERGED.sum())
    assert len(case.slice_dice) == len(case.slice_z_mm) == toys.SHAPE[0]
    assert np.mean(case.slice_dice) == pytest.approx(case.slice_score)
    assert case.slice_z_mm[0] == pytest.approx(toys.ORIGIN[2])
    assert np.diff(case.slice_z_mm) == pytest.approx(-toys.SPACING_MM[0])


def test_the_axis_order_of_the_file_changes_no_figure() -> None:
    turned = scores(MOVED, SIDES, order=(2, 0, 1), flips=(True, False, True)).to_dict()
    straight = scores(MOVED, SIDES).to_dict()
    assert turned["volume_ml"] == straight["volume_ml"]
    for name in (*PART_FIGURES, "slice_score", "slice_dice", "slice_z_mm"):
        assert turned[name] == pytest.approx(straight[name], abs=1e-5), name


@pytest.mark.parametrize(("ours", "theirs"), [(MERGED, SIDES), (SIDES, MERGED), (MERGED, MERGED)])
def test_kidneys_without_sides_are_told_apart_by_position(ours, theirs) -> None:
    case = scores(ours, theirs)
    assert [case.value("dice", part) for part in ("kidney", "left", "right")] == [1.0] * 3
    assert case.value("reference_ml", "left") > case.value("reference_ml", "right")
    (note,) = case.notes
    assert "told apart by position" in note
    assert ("prediction" in note, "reference" in note) == (ours is MERGED, theirs is MERGED)


def test_a_horseshoe_kidney_without_sides_is_parted_as_one_with_sides() -> None:
    joined = MERGED.copy()
    joined[12:14, 22:26, 10:36] = 1
    parted = np.where(np.arange(joined.shape[2]) < 23, 2, 1) * joined
    case = scores(parted.astype(np.uint8), joined)
    assert [case.value("dice", part) for part in ("kidney", "left", "right")] == pytest.approx(
        [1.0] * 3, abs=0.02
    )


@pytest.mark.parametrize("prediction", [2, 1])
def test_a_kidney_alone_in_a_narrow_picture_has_no_side_by_its_position(prediction) -> None:
    for first in (0, 4, 6):  # to either side of the picture's middle
        right = np.ascontiguousarray((SIDES == 2)[:, :, first:22]).astype(np.uint8)
        case = scores(right * np.uint8(prediction), np.roll(right, 1, axis=2))
        assert set(case.parts) == {"kidney"} and 0.8 < case.value("dice") < 1
        assert "too narrow to tell the side" in case.notes[-1]
    both = np.ascontiguousarray(SIDES[:, :, 8:38])
    assert scores(both, np.minimum(both, 1)).value("dice", "right") == 1.0


def test_holes_are_not_filled_by_telling_sides_apart() -> None:
    holed = MERGED.copy()
    middle = tuple(np.argwhere(SIDES == 1).mean(axis=0).astype(int))
    holed[middle] = 0
    case = scores(SIDES, holed)
    assert case.value("reference_ml", "left") < case.value("prediction_ml", "left")


def test_tumours_are_compared_where_both_mark_them() -> None:
    case = scores(with_tumour(0), with_tumour(2))
    assert set(case.parts) == {"kidney", "left", "right", "tumour"}
    assert case.value("dice") == 1.0 and 0 < case.value("dice", "tumour") < 1
    alone = scores(MERGED, with_tumour(2))
    assert "tumour" not in alone.parts and any("merged" in note for note in alone.notes)


def test_both_empty_counts_in_the_per_slice_score_only() -> None:
    case = scores(NOTHING, NOTHING)
    assert case.slice_score == 1.0 and set(case.slice_dice) == {1.0}
    for part in case.parts:
        assert {case.value(name, part) for name in PART_FIGURES} == {None}


def test_one_empty_mask_has_defined_results() -> None:
    missed, alarm = scores(NOTHING, SIDES), scores(SIDES, NOTHING)
    for case in (missed, alarm):
        for part in ("kidney", "left", "right"):
            assert [case.value(f, part) for f in ("dice", "iou", "surface_dice_2mm")] == [0, 0, 0]
            for name in ("mean_surface_distance_mm", "hausdorff_95_mm"):
                assert case.value(name, part) is None
        assert case.slice_score < 1 and len(case.notes) == 1 and "has no kidney" in case.notes[0]
    assert (missed.value("precision"), missed.value("recall")) == (None, 0.0)
    assert (alarm.value("precision"), alarm.value("recall")) == (0.0, None)
    assert missed.value("volume_difference_percent") == pytest.approx(-100)
    assert alarm.value("volume_difference_percent") is None
    assert alarm.value("volume_difference_ml") > 0


def test_every_figure_is_defined_in_one_sentence_with_its_source() -> None:
    for name in (*PART_FIGURES, "slice_score"):
        sentence = definitions()[name]
        assert sentence == FIGURES[name].definition and sentence.endswith(").")
        assert ". " not in sentence.replace("et al. ", "").replace("et al., ", "")
    assert set(FIGURES) < set(definitions())


# --- a cohort ---------------------------------------------------------------------------------


def test_the_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).beta(20, 2, 17)
    ours = bootstrap_interval(values.tolist(), resamples=2000, seed=5)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        method="percentile",
        random_state=np.random.default_rng(5),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.low < values.mean() < ours.high
    assert ours == bootstrap_interval(values.tolist(), resamples=2000, seed=5)
    assert bootstrap_interval([0.9]) is None


def write(labels: np.ndarray, path: Path, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(toys.image_of(labels, **how), str(path))
    return path


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Predictions as `segment` names them, and KiTS19's case folders."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for name, labels in (("a", SIDES), ("b", MOVED), ("empty", NOTHING), ("extra", SIDES)):
        write(labels, predictions / f"{name}_kidneys.nii.gz")
    write(SIDES, predictions / "turned_kidneys.nii.gz", order=(2, 1, 0))
    for name in ("a", "b", "turned", "gone"):
        write(MERGED, references / name / "segmentation.nii.gz")
        (references / name / "imaging.nii.gz").write_bytes(b"a CT, which nobody reads here")
    write(SIDES, references / "a" / "sides.nii.gz")
    write(NOTHING, references / "empty" / "segmentation.nii.gz")
    return predictions, references


def test_a_cohort_names_what_is_missing_extra_or_mismatching(folders) -> None:
    told = []
    cohort = evaluate_folders(*folders, progress=lambda share, step: told.append((share, step)))
    assert [case.name for case in cohort.cases] == ["a", "b", "empty"]
    problems = {(p.case, p.kind): p.reason for p in cohort.problems}
    assert set(problems) == {("gone", "missing"), ("extra", "extra"), ("turned", "unusable")}
    reason = problems["turned", "unusable"]
    assert "different grids" in reason and "45 x 37 x 21" in reason and "21 x 37 x 45" in reason
    assert told[0] == (0.0, "a") and len(told) == 4
    assert cohort.cases[0].reference.endswith("sides.nii.gz")

    dice = cohort.summary()["dice"]["kidney"]
    assert (dice.counted, dice.not_counted) == (2, 1)
    expected = [case.value("dice") for case in cohort.cases[:2]]
    assert dice.mean == dice.median == pytest.approx(np.mean(expected))
    assert (dice.minimum, dice.maximum) == (min(expected), max(expected))
    score = cohort.summary()["slice_score"]["kidney"]
    assert (score.counted, score.not_counted) == (3, 0) and score.maximum == 1.0


def test_json_and_csv_give_the_cohort_back(folders, tmp_path) -> None:
    cohort = evaluate_folders(*folders)
    cohort.to_json(tmp_path / "r.json")
    cohort.to_csv(tmp_path / "r.csv")
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["definitions"] == definitions()
    assert data["cases"][0]["dice"] == {"kidney": 1.0, "left": 1.0, "right": 1.0}

    back = Cohort.from_json(tmp_path / "r.json")
    assert back.problems == cohort.problems and back.summary() == cohort.summary()
    assert back.cases[1].parts == cohort.cases[1].parts
    assert back.cases[1].slice_dice == pytest.approx(cohort.cases[1].slice_dice, abs=1e-6)

    table = Cohort.from_csv(tmp_path / "r.csv")
    assert table.problems == cohort.problems
    for one, other in zip(table.cases, cohort.cases, strict=True):
        assert (one.name, one.notes) == (other.name, other.notes)
        for part in other.parts:
            for name in PART_FIGURES:
                expected = other.value(name, part)
                assert one.value(name, part) == (expected and pytest.approx(expected, abs=1e-6))
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["case"] for row in rows] == ["a", "b", "empty", "gone", "extra", "turned"]
    assert float(rows[1]["dice_left"]) == pytest.approx(
        cohort.cases[1].value("dice", "left"), abs=1e-6
    )


def test_a_table_that_was_edited_is_refused_rather_than_misread(folders, tmp_path) -> None:
    evaluate_folders(*folders, distances=False).to_csv(tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))

    def written(rows: list[dict[str, str]], heads: list[str]) -> Path:
        write_table(heads, ({head: row[head] for head in heads} for row in rows), tmp_path / "x")
        return tmp_path / "x"

    heads = list(rows[0])
    assert Cohort.from_csv(written(rows, heads)).cases
    with pytest.raises(InputError, match="holds the case a 2 times; keep one"):
        Cohort.from_csv(written([*rows, rows[0]], heads))
    for table in (
        written(rows, [head for head in heads if not head.endswith("_ml")]),
        written([rows[0] | {"prediction_ml": ""}], heads),
        written([rows[0] | {"dice": "nan"}], heads),
        written([rows[0] | {"slice_score": "inf"}], heads),
    ):
        with pytest.raises(InputError, match="x is no result of `kidneyseg evaluate`"):
            Cohort.from_csv(table)


@pytest.mark.parametrize("content", ["{}", "[1]", "{", "name,dice\na,1\n", '{"cases": [{}]}'])
def test_a_result_of_something_else_is_refused(tmp_path, content) -> None:
    (tmp_path / "x").write_text(content)
    for read in (Cohort.from_json, Cohort.from_csv):
        with pytest.raises(InputError, match="x is no result of `kidneyseg evaluate`"):
            read(tmp_path / "x")
    with pytest.raises(InputError, match="cannot be opened"):
        Cohort.from_json(tmp_path / "none")


# --- who belongs to whom ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("case_00001.nii.gz", "case_00001.nii.gz"),
        ("case_00001.nrrd", "case_00001.nii.gz"),
        ("case_00001_kidneys.seg.nrrd", "case_00001/segmentation.nii.gz"),
        ("prediction_00001.nii.gz", "case_00001/segmentation.nii.gz"),
        ("case_00001/segmentation.nii.gz", "case_00001/segmentation.nii.gz"),
        ("case_00001/whatever.nii.gz", "case_00001.nii.gz"),
        ("ward/case_00001_kidneys.nii.gz", "case_00001/sides.nii.gz"),
        ("ward/anna/ct_kidneys.seg.nrrd", "ward/anna/ct.nii.gz"),
        ("Case_00001.nii.gz", "case_00001_seg.nii.gz"),
    ],
)
def test_a_prediction_finds_its_reference_by_name(tmp_path, prediction, reference) -> None:
    for folder, name in (("p", prediction), ("r", reference)):
        for path in (tmp_path / folder / name, tmp_path / folder / "other.nii.gz"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    pairing = pair_up(tmp_path / "p", tmp_path / "r")
    found = {(pair.prediction.path, pair.reference.path) for pair in pairing.pairs}
    assert (tmp_path / "p" / prediction, tmp_path / "r" / reference) in found
    assert len(found) == 2 and not pairing.missing and not pairing.extra


def test_folders_with_other_names_are_refused_with_both(tmp_path) -> None:
    write(SIDES, tmp_path / "p" / "anna.nii.gz")
    write(SIDES, tmp_path / "r" / "case_1" / "segmentation.nii.gz")
    with pytest.raises(InputError, match=r"anna.*case_1.*name a prediction after its case"):
        pair_up(tmp_path / "p", tmp_path / "r")
    with pytest.raises(InputError, match="does not exist"):
        pair_up(tmp_path / "q", tmp_path / "r")
    (tmp_path / "q").mkdir()
    with pytest.raises(InputError, match="q holds no label map"):
        pair_up(tmp_path / "p", tmp_path / "q")
    with pytest.raises(UsageError, match="would be compared with itself"):
        pair_up(tmp_path / "r", tmp_path / "r")


def test_one_file_finds_its_reference_in_a_folder_and_nothing_is_missing(tmp_path) -> None:
    for name in ("p/case_1_kidneys.nii.gz", "r/case_1/sides.nii.gz", "r/case_2/sides.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    file, case = tmp_path / "p/case_1_kidneys.nii.gz", tmp_path / "r/case_1"
    for ours, theirs in ((file, tmp_path / "r"), (file, case), (tmp_path / "p", case)):
        pairing = pair_up(ours, theirs)
        assert pairing.is_single and not pairing.missing and not pairing.extra
        (pair,) = pairing.pairs
        assert (pair.prediction.path, pair.reference.path.parent) == (file, case)


def test_two_predictions_of_one_case_leave_one_over(tmp_path) -> None:
    for name in ("p/case_1.nii.gz", "p/case_1_kidneys.nii.gz", "r/case_1.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pairing = pair_up(tmp_path / "p", tmp_path / "r")
    assert [pair.prediction.path.name for pair in pairing.pairs] == ["case_1.nii.gz"]
    assert [one.path.name for one in pairing.extra] == ["case_1_kidneys.nii.gz"]


def test_a_name_that_several_patients_files_have_pairs_none_of_them(tmp_path) -> None:
    for name in ("p/ann/ct_kidneys.nii.gz", "p/bob/ct_kidneys.nii.gz", "r/cid/ct.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="No case of"):
        pair_up(tmp_path / "p", tmp_path / "r")
    (tmp_path / "r" / "bob.nii.gz").touch()
    pairing = pair_up(tmp_path / "p", tmp_path / "r")
    assert [pair.name for pair in pairing.pairs] == ["bob"]
    assert [one.name for one in pairing.extra] == ["ann"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_that_leads_back_adds_no_label_map(tmp_path) -> None:
    for name in ("p/a.nii.gz", "p/b.nii.gz", "r/a.nii.gz", "r/b/segmentation.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for folder in ("p", "r"):
        (tmp_path / folder / "back").symlink_to(tmp_path / folder)
    pairing = pair_up(tmp_path / "p", tmp_path / "r")
    assert [pair.name for pair in pairing.pairs] == ["a", "b"]
    assert not pairing.missing and not pairing.extra


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is text")
def test_a_label_map_whose_name_is_no_utf_8_has_a_name_that_is(tmp_path) -> None:
    for folder in "pr":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / os.fsdecode(b"M\xfcller.nii.gz")).touch()
    (pair,) = pair_up(tmp_path / "p", tmp_path / "r").pairs
    assert pair.name == "M\\udcfcller"
    write_table(["case"], [{"case": os.fsdecode(b"M\xfcller")}], tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text() == "case\nM\\udcfcller\n"


# --- the command ------------------------------------------------------------------------------


def test_no_input_is_overwritten(folders, tmp_path, capsys) -> None:
    prediction, reference = tmp_path / "prediction.json", folders[1] / "b"
    prediction.write_text("a label map under another name")
    before = everything_in(tmp_path)
    assert cli.main(["evaluate", *map(str, (prediction, reference, "--report", prediction))]) == 2
    assert "is an input and is not overwritten" in capsys.readouterr().err
    assert everything_in(tmp_path) == before


def test_evaluate_writes_table_and_json_and_names_what_it_left_out(folders, tmp_path, capsys):
    outputs = ["--report", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]
    assert cli.main(["evaluate", *map(str, folders), *outputs]) == 3
    out, err = capsys.readouterr()
    assert err.splitlines()[:2] == [
        "missing, no prediction: gone",
        "extra, no reference: extra",
    ]
    assert err.count("error: turned: ") == 1 and "different grids" in err
    lines = out.splitlines()
    assert lines[1].split()[:4] == ["a", "1.0000", "1.0000", "1.0000"]
    assert lines[3].split()[:2] == ["empty", "-"]
    row = next(line for line in lines if line.startswith("Dice") and " kidney " in line)
    assert row.split()[-2:] == ["2", "1"]
    assert lines[-1].startswith("-: not defined. Where prediction and reference are both empty")
    assert Cohort.from_json(tmp_path / "r.json").cases
    assert (tmp_path / "r.csv").read_text().startswith("case,dice,iou,")


def test_definitions_are_printed_when_asked_for(folders, capsys) -> None:
    predictions, references = folders
    pair = [str(predictions / "b_kidneys.nii.gz"), str(references / "b")]
    assert cli.main(["evaluate", *pair, "--definitions", "--no-distances"]) == 0
    out, _ = capsys.readouterr()
    assert all(sentence in out for sentence in definitions().values())
    assert next(li for li in out.splitlines() if li.startswith("95 % H")).split()[-1] == "-"


def test_the_table_of_a_batch_is_not_overwritten(folders, capsys) -> None:
    predictions, references = folders
    table = predictions / "results.csv"
    table.write_text("case,input,series\n")
    before = everything_in(predictions)
    assert cli.main(["evaluate", str(predictions), str(references), "--csv", str(table)]) == 2
    assert "another table" in capsys.readouterr().err and everything_in(predictions) == before
