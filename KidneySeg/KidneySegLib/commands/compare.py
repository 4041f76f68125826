"""``kidneyseg compare``: two models side by side on the same cases."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from KidneySegLib.commands.common import (
    Teller,
    figure_text,
    keep_inputs,
    keep_other_tables,
    print_problems,
    print_table,
)
from KidneySegLib.errors import InputError, UsageError

if TYPE_CHECKING:
    from KidneySegLib.comparing import Comparison
    from KidneySegLib.evaluation import Cohort

NAME = "compare"
HELP = "compare two models on the same cases"

_SHOWN = ("dice", "hausdorff_95_mm", "slice_score")  # of each case


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("a", "b"):
        parser.add_argument(
            name,
            metavar=name.upper(),
            type=Path,
            help="what `evaluate` wrote (.json, or .csv without slices), or a folder of label maps",
        )
    parser.add_argument(
        "--reference", type=Path, metavar="FOLDER", help="references of folders of label maps"
    )
    parser.add_argument(
        "--names", nargs=2, metavar=("A", "B"), help="what to call them (default: their names)"
    )
    parser.add_argument(
        "--slices", type=int, default=10, metavar="N", help="slices to name at most (default: 10)"
    )
    parser.add_argument("--report", type=Path, metavar="PATH", help="everything as .json")
    parser.add_argument("--csv", type=Path, metavar="PATH", help="differences by case as .csv")
    parser.add_argument(
        "--no-distances",
        action="store_true",
        help="leave out distances and surface Dice, which take most of the time",
    )
    parser.add_argument(
        "--definitions", action="store_true", help="say what each figure means, and its source"
    )


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.comparing import compare
    from KidneySegLib.opening import printable
    from KidneySegLib.writing import check_output

    if options.slices < 0:
        raise UsageError(f"--slices is {options.slices}; give 0 or more.")
    if options.report is not None:
        check_output(options.report, (".json",))
    if options.csv is not None:
        check_output(options.csv, (".csv",))
        keep_other_tables(options.csv, "case,figure,part,")
    outputs = [path for path in (options.report, options.csv) if path is not None]
    keep_inputs([options.a, options.b], outputs)
    folders = [path for path in (options.a, options.b) if path.is_dir()]
    if folders and options.reference is None:
        raise UsageError(f"{folders[0]} holds label maps; give their references by --reference.")
    if not folders and options.reference is not None:
        raise UsageError("--reference is for folders of label maps; leave it out.")
    names = options.names or [
        path.resolve().name if path.is_dir() else path.stem for path in (options.a, options.b)
    ]
    names = list(map(printable, names))
    if names[0] == names[1]:
        names = ["A", "B"]
    teller = Teller("bar", max(1, len(folders)))
    try:
        a, b = (_cohort(path, options, teller) for path in (options.a, options.b))
    finally:
        teller.close()
    comparison = compare(a, b, (names[0], names[1]), slices=options.slices)
    if options.report is not None:
        comparison.to_json(options.report)
    if options.csv is not None:
        comparison.to_csv(options.csv)
    _print(comparison)
    unusable = False
    for name, cohort in zip(names, (a, b), strict=True):
        unusable |= print_problems(cohort.problems, f"{name}: ")
    if options.definitions:
        print()
        for key, sentence in comparison.to_dict()["definitions"].items():
            print(f"{key}: {sentence}")
    return InputError.exit_code if unusable else 0


def _cohort(path: Path, options: argparse.Namespace, teller: Teller) -> Cohort:
    from KidneySegLib.evaluation import Cohort, evaluate_folders

    if path.is_dir():
        cohort = evaluate_folders(
            path, options.reference, distances=not options.no_distances, progress=teller
        )
        teller.case += 1
        return cohort
    return Cohort.from_csv(path) if path.suffix.lower() == ".csv" else Cohort.from_json(path)


def _print(comparison: Comparison) -> None:
    """By case, by figure, by slice."""
    from KidneySegLib.evaluation import FIGURES

    a, b = comparison.names
    heads = [head for name in _SHOWN for head in (FIGURES[name].title, "", "")]
    rows = [["", *heads], ["case", *[a, b, "difference"] * len(_SHOWN)]]
    for case in comparison.cases:
        row = [case.name]
        for name in _SHOWN:
            unit, values = FIGURES[name].unit, case.values(name)
            both = (None, None) if values is None else values
            row += [figure_text(value, unit) for value in both]
            row.append(_signed(None if values is None else values[1] - values[0], unit))
        rows.append(row)
    print_table(rows)
    print()
    rows = [
        [
            "",
            "part",
            a,
            b,
            "difference",
            "95 % interval",
            "cases",
            f"{a} better",
            f"{b} better",
            "p",
        ]
    ]
    for test in comparison.tests:
        title, unit = FIGURES[test.figure].title, FIGURES[test.figure].unit
        low, high = _signed(test.low, unit), _signed(test.high, unit)
        rows.append(
            [
                f"{title} ({unit})" if unit else title,
                test.part,
                figure_text(test.mean_a, unit),
                figure_text(test.mean_b, unit),
                _signed(test.mean_difference, unit),
                f"{low} to {high}" if test.low is not None else "-",
                str(test.cases),
                str(test.better_a),
                str(test.better_b),
                "-" if test.p is None else f"{test.p:.2g}",
            ]
        )
    print_table(rows, left=2)
    if comparison.slices:
        print()
        rows = [["slices that differ most", "slice", "z (mm)", f"Dice {a}", f"Dice {b}"]]
        rows += [
            [one.case, str(one.slice), f"{one.z_mm:.1f}", f"{one.dice_a:.4f}", f"{one.dice_b:.4f}"]
            for one in comparison.slices
        ]
        print_table(rows)
    for note in comparison.notes:
        print(f"note: {note}")


def _signed(value: float | None, unit: str) -> str:
    text = figure_text(value, unit)
    return f"+{text}" if value is not None and value > 0 else text
