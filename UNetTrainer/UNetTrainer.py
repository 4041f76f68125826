#!/usr/bin/env python-real
"""UNetTrainer for 3D Slicer, a scripted command line module: parse, call, report progress.

The work is done by ``kidneyseg train``, with the same flags, choices and exit codes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Where the libraries lie: in the source tree, then beside the folder of Slicer's command line
# modules, which a build with several configurations divides once more.
LIBRARIES = (
    HERE,
    HERE.parent / "KidneySeg",
    HERE.parent / "qt-scripted-modules",
    HERE.parent.parent / "qt-scripted-modules",
)


def main(arguments: Sequence[str]) -> int:
    """Train as Slicer asks, and return the exit code of ``kidneyseg train``."""
    sys.path[:0] = [str(folder) for folder in LIBRARIES if folder.is_dir()]
    from KidneySegLib.cli import main as kidneyseg

    # Slicer allows no hyphen in the flags that a module's XML names.
    spelled = [text.replace("_", "-") if text.startswith("--") else text for text in arguments]
    return kidneyseg(["train", *spelled, "--progress", "slicer"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
