"""The commands of ``kidneyseg``, a file each: they parse, call and print, and compute nothing.

A command's file has `NAME`, `HELP`, `add_arguments` and `run`, which returns the exit code or
raises a `KidneySegError`. Rooms are imported when `run` needs them, so that ``--help`` answers at
once.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from KidneySegLib.commands import (
    compare,
    evaluate,
    explore,
    export,
    models,
    overlay,
    phantom,
    recipe,
    report,
    segment,
    train,
    train_second_look,
)


class Command(Protocol):
    """What a module of this package offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> int: ...


# In the order of ``kidneyseg --help``.
COMMANDS: tuple[Command, ...] = (
    segment,
    evaluate,
    compare,
    report,
    overlay,
    export,
    explore,
    train,
    recipe,
    train_second_look,
    models,
    phantom,
)
