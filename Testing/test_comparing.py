"""Two models on the same cases: differences, the paired test, the slices, the command."""

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

from KidneySegLib import cli
from KidneySegLib.comparing import compare
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.evaluation import CaseScores, Cohort, PartScores, evaluate_folders

SIDES = toys.toy()[1]


def cohort(*figures: tuple[str, float, float], slices: dict[str, list[float]] | None = None):
    """Cases of a name, a Dice and a volume difference."""
    return Cohort(
        tuple(
            CaseScores(
                name,
                {"kidney": PartScores(1.0, 1.0, dice=dice, volume_difference_ml=ml)},
                0.9,
                tuple((slices or {}).get(name, ())),
                tuple(10.0 - k for k, _ in enumerate((slices or {}).get(name, ()))),
            )
            for name, dice, ml in figures
        )
    )


RANDOM = np.random.default_rng(0)
FIRST = [(f"c{n}", float(RANDOM.uniform(0.8, 0.9)), 10.0) for n in range(12)]
SECOND = [(name, dice + float(RANDOM.normal(0.03, 0.02)), -4.0) for name, dice, _ in FIRST]


def test_the_paired_test_is_that_of_scipy_and_the_interval_holds_the_mean() -> None:
    stats = pytest.importorskip("scipy.stats")
    tests = {t.figure: t for t in compare(cohort(*FIRST), cohort(*SECOND)).tests}
    first, second = ([one[1] for one in figures] for figures in (FIRST, SECOND))
    dice = tests["dice"]
    assert dice.p == pytest.approx(stats.wilcoxon(second, first).pvalue, abs=1e-15)
    assert dice.mean_difference == pytest.approx(np.mean(second) - np.mean(first))
    assert dice.low < dice.mean_difference < dice.high and dice.low > 0
    better = sum(b > a for a, b in zip(first, second, strict=True))
    assert (dice.cases, dice.better_b, dice.better_a) == (12, better, 12 - better)
    reverse = {t.figure: t for t in compare(cohort(*SECOND), cohort(*FIRST)).tests}["dice"]
    assert reverse.p == pytest.approx(dice.p) and reverse.better_a == dice.better_b
    assert (reverse.low, reverse.high) == pytest.approx((-dice.high, -dice.low), abs=0.005)


def test_differences_of_equal_size_are_tied_whatever_their_last_digits() -> None:
    stats = pytest.importorskip("scipy.stats")
    steps = [1, 1, 1, -1, 2, 2, 3, -2]
    before = [0.1, 0.7, 1.3, 0.9, 2.1, 3.3, 4.9, 5.7]
    a = cohort(*((f"c{n}", 0.9, ml) for n, ml in enumerate(before)))
    b = cohort(*((f"c{n}", 0.9, ml + 0.1 * steps[n]) for n, ml in enumerate(before)))
    volume = {test.figure: test for test in compare(a, b).tests}["volume_difference_ml"]
    assert volume.p == pytest.approx(stats.wilcoxon(steps).pvalue, abs=1e-12)


def test_of_volume_differences_the_sizes_count() -> None:
    tests = {t.figure: t for t in compare(cohort(*FIRST), cohort(*SECOND)).tests}
    volume = tests["volume_difference_ml"]
    assert (volume.mean_a, volume.mean_b, volume.mean_difference) == (10.0, 4.0, -6.0)
    assert (volume.better_a, volume.better_b) == (0, 12)


def test_equal_models_have_no_p() -> None:
    (dice, _, score) = compare(cohort(*FIRST), cohort(*FIRST)).tests
    assert (dice.p, score.p, dice.better_a, dice.better_b) == (None, None, 0, 0)
    assert (dice.low, dice.high) == (0.0, 0.0)


def test_what_was_only_rounded_counts_as_equal() -> None:
    noise = [(name, dice + (-1) ** n * 2e-6, ml) for n, (name, dice, ml) in enumerate(FIRST)]
    (dice, _, _) = compare(cohort(*FIRST), cohort(*noise)).tests
    assert (dice.p, dice.better_a, dice.better_b, dice.mean_difference) == (None, 0, 0, 0.0)


def test_slices_are_named_by_number_from_the_head_the_largest_difference_first() -> None:
    a = cohort(("x", 0.9, 0.0), ("y", 0.9, 0.0), slices={"x": [1, 0.5, 0.9], "y": [1, 1, 0.25]})
    b = cohort(("x", 0.9, 0.0), ("y", 0.9, 0.0), slices={"x": [1, 0.75, 0.8], "y": [1, 1, 1]})
    found = [(s.case, s.slice, s.z_mm, s.dice_a, s.dice_b) for s in compare(a, b).slices]
    assert found == [("y", 3, 8.0, 0.25, 1), ("x", 2, 9.0, 0.5, 0.75), ("x", 3, 8.0, 0.9, 0.8)]
    assert len(compare(a, b, slices=1).slices) == 1


def test_cases_of_one_only_are_named_and_without_a_common_one_it_is_refused() -> None:
    comparison = compare(cohort(*FIRST[:3]), cohort(*SECOND[1:4]), ("old", "new"))
    assert [case.name for case in comparison.cases] == ["c1", "c2"]
    assert comparison.notes[:2] == ("c0 is only in old", "c3 is only in new")
    assert any("no p below 0.05" in note for note in comparison.notes)
    with pytest.raises(InputError, match="old and new have no case in common"):
        compare(cohort(*FIRST[:1]), cohort(*SECOND[1:]), ("old", "new"))


def test_without_scipy_it_is_said_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UsageError, match="pip install scipy"):
        compare(cohort(*FIRST), cohort(*SECOND))


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """References, and two models of which the second is exact but in one slice of b."""
    spoilt = SIDES.copy()
    spoilt[10, :, :22] = 0
    maps = {
        "references": {"a": SIDES, "b": SIDES},
        "old": {"a": np.roll(SIDES, 1, 1), "b": np.roll(SIDES, 1, 1)},
        "new": {"a": SIDES, "b": spoilt},
    }
    for folder, cases in maps.items():
        (tmp_path / folder).mkdir()
        for name, labels in cases.items():
            sitk.WriteImage(toys.image_of(labels), str(tmp_path / folder / f"{name}.nii.gz"))
    return {name: tmp_path / name for name in maps}


def test_compare_takes_folders_json_and_csv_alike(folders, tmp_path, capsys) -> None:
    references = folders["references"]
    given = {"folder": [str(folders["old"]), str(folders["new"]), "--reference", str(references)]}
    for name in ("old", "new"):
        result = evaluate_folders(folders[name], references)
        result.to_json(tmp_path / f"{name}.json")
        result.to_csv(tmp_path / f"{name}.csv")
    for kind in ("json", "csv"):
        given[kind] = [str(tmp_path / f"{name}.{kind}") for name in ("old", "new")]
    tables, told = {}, {}
    for kind, arguments in given.items():
        outputs = ["--csv", str(tmp_path / f"{kind}.d.csv"), "--report", str(tmp_path / "d.json")]
        assert cli.main(["compare", *arguments, *outputs]) == 0
        told[kind], err = capsys.readouterr()
        assert err == ""
        tables[kind] = list(csv.DictReader((tmp_path / f"{kind}.d.csv").open()))
        data = json.loads((tmp_path / "d.json").read_text())
        assert (data["a"], data["b"]) == ("old", "new")
        assert {"p", "interval", "slices", "dice"} <= set(data["definitions"])
        assert bool(data["slices"]) == (kind != "csv")
    assert tables["folder"] == tables["json"]
    for one, other in zip(tables["json"], tables["csv"], strict=True):  # a table is rounded
        assert [one[key] for key in ("case", "figure", "part")] == [
            other[key] for key in ("case", "figure", "part")
        ]
        assert float(one["difference"]) == pytest.approx(float(other["difference"]), abs=3e-6)
    row = tables["csv"][0]
    assert (row["case"], row["figure"], row["part"]) == ("a", "dice", "kidney")
    assert float(row["b"]) == 1.0
    assert float(row["difference"]) == pytest.approx(1 - float(row["a"]))
    assert told["folder"] == told["json"] and "slices that differ most" in told["json"]
    assert "does not hold the figures of single slices" in told["csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("old new", 2, "give their references by --reference"),
        ("old.json old.json --reference old", 2, "leave it out"),
        ("none.json none.json", 3, "cannot be opened"),
        ("text.csv text.csv", 3, "no result of `kidneyseg evaluate`"),
        ("old new --reference references --slices -1", 2, "give 0 or more"),
    ],
)
def test_bad_input_is_one_sentence(folders, monkeypatch, capsys, arguments, code, message) -> None:
    monkeypatch.chdir(folders["old"].parent)
    Path("text.csv").write_text("hello\nworld\n")
    assert cli.main(["compare", *arguments.split()]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_no_result_that_is_compared_is_overwritten(folders, tmp_path, capsys) -> None:
    for name in ("old", "new"):
        evaluate_folders(folders[name], folders["references"], distances=False).to_json(
            tmp_path / f"{name}.json"
        )
    given = [str(tmp_path / f"{name}.json") for name in ("old", "new")]
    before = toys.everything_in(tmp_path)
    for name in given:
        assert cli.main(["compare", *given, "--report", name]) == 2
        assert "is an input and is not overwritten" in capsys.readouterr().err
    assert toys.everything_in(tmp_path) == before


def test_models_whose_names_are_no_utf_8_are_compared(folders, tmp_path, capsys) -> None:
    strange = os.fsdecode(b"M\xfcller")
    given = [str(folders["old"]), "--reference", str(folders["references"])]
    assert cli.main(["compare", str(folders["new"]), *given, "--names", strange, "b"]) == 0
    assert "M\\udcfcller" in capsys.readouterr().out
