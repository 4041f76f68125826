"""``kidneyseg evaluate``: predictions and their references, one pair or two folders."""

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
from KidneySegLib.errors import InputError

if TYPE_CHECKING:
    from KidneySegLib.evaluation import CaseScores, Cohort

NAME = "evaluate"
HELP = "compare segmentations with their references"

_SHOWN = 10  # notes
# Of a case's row: figure, part, head.
_COLUMNS = (
    ("dice", "kidney", "Dice"),
    ("dice", "left", "left"),
    ("dice", "right", "right"),
    ("volume_difference_ml", "kidney", "ml off"),
    ("volume_difference_percent", "kidney", "% off"),
    ("mean_surface_distance_mm", "kidney", "mean mm"),
    ("hausdorff_95_mm", "kidney", "HD95 mm"),
    ("surface_dice_2mm", "kidney", "surf.2mm"),
    ("slice_score", "kidney", "per slice"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prediction",
        metavar="PREDICTION",
        type=Path,
        help="label map, case folder, or a folder of them, such as `segment` writes",
    )
    parser.add_argument(
        "reference",
        metavar="REFERENCE",
        type=Path,
        help="the same; cases are paired by the names of their files or folders",
    )
    parser.add_argument(
        "--report", type=Path, metavar="PATH", help="figures and their definitions as .json"
    )
    parser.add_argument("--csv", type=Path, metavar="PATH", help="table, a row a case, as .csv")
    parser.add_argument(
        "--no-distances",
        action="store_true",
        help="leave out distances and surface Dice, which take most of the time",
    )
    parser.add_argument(
        "--definitions", action="store_true", help="say what each figure means, and its source"
    )


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.evaluation import (
        NOT_COUNTED,
        Cohort,
        definitions,
        evaluate_folders,
        evaluate_pair,
    )
    from KidneySegLib.pairing import pair_up
    from KidneySegLib.writing import check_output, write_json

    if options.report is not None:
        check_output(options.report, (".json",))
    if options.csv is not None:
        check_output(options.csv, (".csv",))
        keep_other_tables(options.csv, "case,dice,iou,")
    outputs = [path for path in (options.report, options.csv) if path is not None]
    keep_inputs([options.prediction, options.reference], outputs)
    distances = not options.no_distances
    pairing = pair_up(options.prediction, options.reference)
    if pairing.is_single:
        case = evaluate_pair(pairing.pairs[0], distances=distances)
        cohort = Cohort((case,), (), str(options.prediction), str(options.reference))
        if options.report is not None:
            write_json(case.to_dict() | {"definitions": definitions()}, options.report)
        _print_case(case)
    else:
        teller = Teller("bar", 1)
        try:
            cohort = evaluate_folders(
                options.prediction, options.reference, distances=distances, progress=teller
            )
        finally:
            teller.close()
        if options.report is not None:
            cohort.to_json(options.report)
        if cohort.cases:
            _print_cohort(cohort)
    if options.csv is not None:
        cohort.to_csv(options.csv)
    if options.definitions:
        print()
        for name, sentence in definitions().items():
            print(f"{name}: {sentence}")
    elif any(None in _figures(case) for case in cohort.cases):
        print(f"-: not defined. {NOT_COUNTED}")
    return InputError.exit_code if print_problems(cohort.problems) else 0


def _figures(case: CaseScores) -> list[float | None]:
    from KidneySegLib.evaluation import PART_FIGURES

    return [case.value(figure, part) for part in case.parts for figure in PART_FIGURES]


def _print_case(case: CaseScores) -> None:
    """A row for each figure, a column for each part."""
    from KidneySegLib.evaluation import FIGURES, PART_FIGURES

    rows = [["", *case.parts]]
    for who in ("prediction", "reference"):
        volumes = [case.value(f"{who}_ml", part) for part in case.parts]
        rows.append([f"volume of {who} (ml)", *(figure_text(value, "ml") for value in volumes)])
    for name in PART_FIGURES:
        title, unit = FIGURES[name].title, FIGURES[name].unit
        values = [case.value(name, part) for part in case.parts]
        rows.append(
            [
                f"{title} ({unit})" if unit else title,
                *(figure_text(value, unit) for value in values),
            ]
        )
    rows.append([FIGURES["slice_score"].title, figure_text(case.slice_score, "")])
    print_table(rows)
    for note in case.notes:
        print(f"note: {note}")


def _print_cohort(cohort: Cohort) -> None:
    """A row for each case, then one for each figure with its interval."""
    from KidneySegLib.evaluation import FIGURES

    rows = [["case", *(head for _, _, head in _COLUMNS)]]
    for case in cohort.cases:
        values = [(case.value(name, part), FIGURES[name].unit) for name, part, _ in _COLUMNS]
        rows.append([case.name, *(figure_text(*value) for value in values)])
    print_table(rows)
    print()
    rows = [["", "part", "mean", "95 % interval", "median", "cases", "not counted"]]
    for name, parts in cohort.summary().items():
        title, unit = FIGURES[name].title, FIGURES[name].unit
        for part, summary in parts.items():
            low, high = figure_text(summary.low, unit), figure_text(summary.high, unit)
            rows.append(
                [
                    f"{title} ({unit})" if unit else title,
                    part,
                    figure_text(summary.mean, unit),
                    f"{low} to {high}" if summary.low is not None else "-",
                    figure_text(summary.median, unit),
                    str(summary.counted),
                    str(summary.not_counted or ""),
                ]
            )
    print_table(rows, left=2)
    notes = [f"{case.name}: {note}" for case in cohort.cases for note in case.notes]
    for note in notes[:_SHOWN]:
        print(f"note: {note}")
    if len(notes) > _SHOWN:
        print(f"note: {len(notes) - _SHOWN} more, which --report and --csv hold")
