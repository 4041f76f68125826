"""``kidneyseg train-second-look``: teach a model to tell its true finds from its false ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from KidneySegLib.errors import Cancelled

NAME = "train-second-look"
HELP = "teach a trained model a second look, against false detections"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME|FOLDER", help="a trained model")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="FOLDER",
        help="the labelled cases that it was trained on",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="gets a copy of the model that looks twice",
    )
    parser.add_argument(
        "--extra",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="further cases that only train, such as generated ones",
    )
    parser.add_argument(
        "--split",
        default="",
        metavar="FILE",
        help="who trained the model (default: the split.json beside its folder)",
    )
    parser.add_argument(
        "--steps", type=int, default=400, metavar="N", help="batches (default: 400)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=48, metavar="N", help="candidates a step (default: 48)"
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of every choice (default: 0)"
    )
    parser.add_argument("--progress", default="auto", choices=("auto", "bar", "lines", "none"))


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.commands.common import keep_replaced
    from KidneySegLib.commands.train import check_packages
    from UNetTrainerLib.progress import choose

    check_packages()
    inputs = (options.model, options.split, *options.data, *options.extra)
    keep_replaced([Path(path) for path in inputs if path], Path(options.output))
    from UNetTrainerLib.secondlook import LookOptions, train_second_look

    progress = choose(options.progress)
    try:
        model = train_second_look(
            LookOptions(
                model=options.model,
                data=tuple(options.data),
                output=options.output,
                extra=tuple(options.extra),
                split=options.split,
                steps=options.steps,
                batch_size=options.batch_size,
                device=options.device,
                seed=options.seed,
            ),
            progress,
        )
    except KeyboardInterrupt:
        raise Cancelled("Stopped; nothing was written.") from None
    finally:
        progress.close()
    print(f"The model is in {model.folder}")
    return 0
