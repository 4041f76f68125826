"""``kidneyseg recipe``: train a model in stages, or cross-validate it."""

from __future__ import annotations

import argparse
from pathlib import Path

from KidneySegLib.errors import Cancelled, UsageError

NAME = "recipe"
HELP = "train a model in stages as a recipe says, or cross-validate it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a JSON file")
    parser.add_argument("--data", required=True, nargs="+", metavar="FOLDER")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="N",
        help="cross-validate in so many parts of the patients (default: train on all)",
    )
    parser.add_argument("--progress", default="auto", choices=("auto", "bar", "lines", "none"))


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.commands.train import check_packages
    from UNetTrainerLib.progress import choose

    check_packages()
    if options.folds < 0 or options.folds == 1:
        raise UsageError("--folds is 0, to train on all patients, or 2 or more.")
    from KidneySegLib.commands.common import keep_inputs
    from UNetTrainerLib.crossvalidation import TABLE, cross_validate
    from UNetTrainerLib.recipe import read_recipe
    from UNetTrainerLib.samerun import RECORD, RESULTS
    from UNetTrainerLib.stages import follow

    keep_inputs([options.recipe], [options.output / name for name in (RECORD, RESULTS, TABLE)])
    recipe = read_recipe(options.recipe)
    progress = choose(options.progress)
    try:
        if options.folds:
            cross_validate(recipe, options.data, options.output, options.folds, progress=progress)
            print((options.output / TABLE).read_text(encoding="utf-8"))
            print(f"The results are in {options.output / RESULTS}")
        else:
            model = follow(recipe, options.data, options.output, progress=progress)
            print(f"The model is in {model.folder}")
    except KeyboardInterrupt:
        raise Cancelled(
            f"Stopped; what was finished stays in {options.output}, and the same line goes on."
        ) from None
    finally:
        progress.close()
    return 0
