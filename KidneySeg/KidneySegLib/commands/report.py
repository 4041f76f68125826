"""``kidneyseg report``: a page about predictions and their references."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from KidneySegLib.errors import UsageError

NAME = "report"
HELP = "one HTML page about predictions and their references"

# As in KidneySegLib.pictures, which `--help` does without.
COLOURS = ("red-blue", "colour-blind")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results",
        metavar="RESULTS",
        type=Path,
        help="folder of predictions, as `kidneyseg segment` and `kidneyseg-batch` write it; or a "
        ".json or .csv of `kidneyseg evaluate`",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="label maps to compare with: case folders, or files of the predictions' names",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="the CTs, for pictures; may be the same"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="PATH", help="the page (.html)"
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FOLDER",
        help="whose card to show, by name, model folder or run folder (default: the one that the "
        "predictions name, where it is installed)",
    )
    parser.add_argument(
        "--cases",
        type=Path,
        metavar="CSV",
        help="table with the columns case[,source][,patient]: where cases come from, and which are "
        "of one patient (a patient of the same name in another source is the same one)",
    )
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument(
        "--pictures",
        type=int,
        metavar="N",
        help="cases with a picture at most: best, median and worst, then from the worst on "
        "(default: 20)",
    )
    parser.add_argument(
        "--colours",
        default="red-blue",
        choices=COLOURS,
        help="of the pictures: red, blue, and purple for both (default); or vermilion, sky blue "
        "and yellow",
    )


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.commands.common import Teller, keep_inputs
    from KidneySegLib.opening import printable
    from KidneySegLib.plots import check_matplotlib
    from KidneySegLib.writing import check_output

    started = time.perf_counter()
    results, reference = options.results, options.reference
    is_evaluation = results.is_file() and results.suffix.lower() in (".json", ".csv")
    if not is_evaluation and reference is None:
        raise UsageError(
            f"{results} has to be compared with something; give the references with --reference."
        )
    if options.pictures is not None and options.pictures < 0:
        raise UsageError(f"--pictures {options.pictures} is less than none; give 0 or more.")
    check_output(options.output, (".html", ".htm"))
    inputs = (results, reference, options.images, options.cases)
    keep_inputs([path for path in inputs if path is not None], [options.output])
    check_matplotlib()

    from KidneySegLib.cohort_files import Files, Run, origins_of, read_origins, run_of
    from KidneySegLib.cohort_report import PICTURES, report_page
    from KidneySegLib.evaluation import Cohort, evaluate_folders
    from KidneySegLib.modelcard import find_card, find_named
    from KidneySegLib.overlay import Look
    from KidneySegLib.pictures.style import COLOURS as PALETTES
    from KidneySegLib.pictures.style import Style

    card = None if options.model is None else find_card(options.model)
    origins = None if options.cases is None else read_origins(options.cases)
    files = None if options.images is None else Files(options.images, reference)
    teller = Teller("bar", 2)
    try:
        if not is_evaluation:
            cohort = evaluate_folders(
                results, reference, progress=lambda share, name: teller(share, "measure")
            )
        elif results.suffix.lower() == ".csv":
            cohort = Cohort.from_csv(results)
        else:
            cohort = Cohort.from_json(results)
        made = run_of(Path(cohort.prediction)) if cohort.prediction else Run()
        if card is None and len(made.models) == 1:
            card = find_named(made.models[0])
        teller.case = 1
        page = report_page(
            cohort,
            title=options.title,
            load=None if files is None else files.of(cohort),
            origins=origins_of(cohort, origins),
            card=card,
            run=made,
            pictures=PICTURES if options.pictures is None else options.pictures,
            look=Look(style=Style(colours=PALETTES[options.colours])),
            progress=lambda share, name: teller(share, "draw"),
        )
        page.write(options.output)
    finally:
        teller.close()
    size = options.output.stat().st_size / 1e6
    seconds = time.perf_counter() - started
    cases = "1 case" if len(cohort.cases) == 1 else f"{len(cohort.cases)} cases"
    print(f"{options.output}: {cases}, {size:.1f} MB, {seconds:.1f} s")
    kinds = Counter(problem.kind for problem in cohort.problems)
    for kind, what in (("missing", "without a prediction"), ("extra", "without a reference")):
        if kinds[kind]:
            print(f"not compared: {kinds[kind]} {what}, named in the page")
    for problem in cohort.problems:
        if problem.kind == "unusable":
            print(f"not compared: {problem.case}: {printable(problem.reason)}")
    return 0
