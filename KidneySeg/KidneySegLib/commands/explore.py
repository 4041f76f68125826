"""``kidneyseg explore``: a page about labelled cases, and what a model makes of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from KidneySegLib.errors import UsageError

NAME = "explore"
HELP = "one HTML page about labelled cases"

# As in UNetTrainerLib.explore, which `--help` does without.
SLICES, PREDICTIONS = 12, 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        type=Path,
        help="folder with cases as `kidneyseg train --data` takes them",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="PATH", help="the page (.html)"
    )
    parser.add_argument(
        "--model",
        metavar="RUN|FOLDER",
        help="also show what a model makes of cases that did not train it: the folder of its "
        "training run, or the model's folder in it",
    )
    parser.add_argument(
        "--slices",
        type=int,
        default=SLICES,
        metavar="N",
        help=f"random slices with their labels (default: {SLICES})",
    )
    parser.add_argument(
        "--predictions",
        type=int,
        default=PREDICTIONS,
        metavar="N",
        help=f"random cases for the model (default: {PREDICTIONS})",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of what is random (default: 0)"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    parser.add_argument("--title", default="", help="of the page")


def run(options: argparse.Namespace) -> int:
    for name in ("slices", "predictions", "seed"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name} {getattr(options, name)} is negative; give 0 or more.")

    from KidneySegLib.commands.common import Teller
    from KidneySegLib.opening import printable
    from KidneySegLib.plots import check_matplotlib
    from KidneySegLib.writing import check_output

    check_output(options.output, (".html", ".htm"))
    check_matplotlib()
    try:
        from UNetTrainerLib.explore import explore
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is missing, without which cases are not known; run `pip install .` in "
            "the folder of KidneySeg's source."
        ) from error

    teller = Teller("bar", 1)
    try:
        page, checked = explore(
            options.data,
            model=options.model,
            slices=options.slices,
            predictions=options.predictions,
            seed=options.seed,
            device=options.device,
            title=options.title,
            progress=teller,
        )
    finally:
        teller.close()
    page.write(options.output)
    size = options.output.stat().st_size / 1e6
    cases = "1 case" if len(checked.usable) == 1 else f"{len(checked.usable)} cases"
    print(f"{options.output}: {cases}, {size:.1f} MB")
    for finding in checked.unusable:
        print(printable(f"not shown: {checked.called(finding)}: {finding.sentence}"))
    return 0
