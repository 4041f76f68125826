"""``kidneyseg train``: the trainer, with a flag for each of its options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from KidneySegLib.errors import Cancelled, UsageError

NAME = "train"
HELP = "train a model on labelled cases"

# What training and, in Slicer's Python, the engine must find, by the names they import.
TRAINING_PACKAGES = (
    "filelock",
    "lightning",
    "matplotlib",
    "monai",
    "onnx",
    "psutil",
    "scipy",
    "tensorboard",
    "torch",
)
ENGINE_PACKAGES = ("PIL", "SimpleITK", "cc3d", "numpy", "safetensors", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each of the trainer's options; of what was not said there is no trace."""
    from dataclasses import fields

    try:
        from UNetTrainerLib.options import Options, flag
    except ModuleNotFoundError:
        parser.error(
            "UNetTrainer, which trains models, is not there; run `pip install .` in the folder of "
            "KidneySeg's source"
        )
    parser.usage = "%(prog)s --data FOLDER [FOLDER ...] --output FOLDER [option ...]"
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in fields(Options):
        about, default = option.metadata, option.default
        text = about["help"].replace("%", "%%")
        how: dict[str, Any] = {"required": option.name in ("data", "output")}
        if isinstance(default, bool):
            how["action"] = "store_true"
        else:
            how["metavar"] = about["metavar"] or None
            how["choices"] = about["choices"] or None
            if isinstance(default, tuple):
                how |= {"nargs": "+", "action": "extend"}
            else:
                how["type"] = type(default)
                text += f" (default: {default})" if default != "" else ""
        title = about["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(flag(option.name), default=argparse.SUPPRESS, help=text, **how)


def run(options: argparse.Namespace) -> int:
    from UNetTrainerLib.options import DEFAULTS, resolve
    from UNetTrainerLib.progress import choose, stderr_to_stdout

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in DEFAULTS
    }
    in_slicer = given.get("progress") == "slicer"
    if in_slicer:  # it passes every number and choice, said or not
        given = {name: value for name, value in given.items() if value != DEFAULTS[name]}
    progress = choose(given.get("progress", DEFAULTS["progress"]))
    with stderr_to_stdout() if in_slicer else nullcontext():
        try:
            check_packages(in_slicer)
            _keep_models(given)
            from UNetTrainerLib.train import train

            model = train(resolve(given), progress)
        except BaseException as error:
            if not _came_of_a_stop(error):
                raise
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of a machine says it
                raise SystemExit(Cancelled.exit_code) from None
            raise Cancelled(
                f"Stopped; the epochs that were finished stay in {given['output']}, and --resume "
                "goes on after them."
            ) from None
        finally:
            progress.close()
    if model is not None:
        print(f"The model is in {model.folder}")
    return 0


def _keep_models(given: Mapping[str, Any]) -> None:
    """The new model replaces none that it is made with.

    Raises
    ------
    UsageError
        It would.
    """
    from KidneySegLib.commands.common import keep_replaced

    names = (given.get("init_from"), given.get("finder"), *given.get("views", ()))
    keep_replaced([Path(name) for name in names if name], Path(given["output"], "model"))


def _came_of_a_stop(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind it: workers that were stopped too fail their own way."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def check_packages(in_slicer: bool = False) -> None:
    """All are looked for before any work, as some are imported late."""
    from importlib.util import find_spec

    training, engine = (
        [name for name in names if find_spec(name) is None]
        for names in (TRAINING_PACKAGES, ENGINE_PACKAGES)
    )
    if not training and not engine:
        return
    how = 'run `pip install ".[train]"` in the folder of KidneySeg\'s source'
    if in_slicer and engine:
        how = "segment a CT with the module KidneySeg, which installs what it needs"
    elif in_slicer and "torch" in training:
        how = "let the module PyTorch Util of the extension PyTorch install PyTorch"
    elif in_slicer:
        how = f"run slicer.util.pip_install({' '.join(training)!r}) in Slicer's Python console"
    raise UsageError(
        f"Training needs {', '.join(engine + training)}, which Python does not find here; {how}, "
        "then start again."
    )
