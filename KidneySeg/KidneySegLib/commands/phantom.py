"""``kidneyseg phantom``: generated CTs with their labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from KidneySegLib.commands.common import Teller

NAME = "phantom"
HELP = "generate CTs with labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--cases", required=True, type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--size", type=_size, metavar="COLSxROWSxSLICES")


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.phantom import MARK, write_cases
    from KidneySegLib.writing import write_json

    apart = not options.folder.is_dir() or not any(options.folder.iterdir())
    teller = Teller("bar", 1)
    try:
        written = write_cases(
            options.folder,
            options.cases,
            options.seed,
            options.size,
            progress=lambda share: teller(share, "phantom"),
        )
    finally:
        teller.close()
    if apart:
        made = {"cases": options.cases, "seed": options.seed, "size": options.size}
        write_json(made, options.folder / MARK)
    print(f"{len(written)} cases in {options.folder}")
    return 0


def _size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLSxROWSxSLICES, such as 512x512x120")
    columns, rows, slices = (int(part) for part in parts)
    return columns, rows, slices
