"""A model's card, filled from the facts of the run that made it."""

from __future__ import annotations

import math
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from KidneySegLib import __version__
from KidneySegLib.model import RESEARCH_USE, Model
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.options import DEFAULTS, Options, flag
from UNetTrainerLib.validation import AROUND_MM

if TYPE_CHECKING:
    from UNetTrainerLib.loop import Training

_WHAT = {
    "kidney": "Kidneys, tumours and cysts included, in",
    "kidney-tumour": "Kidneys and their tumours, apart, in",
}
_PATHS = ("output", "split", "init_from", "finder")
PLACES = ("data", "extra", "output", "cache", "resume", "check_only", "install", "progress")


def card(
    options: Options,
    training: Sequence[CachedCase],
    validation: Sequence[CachedCase],
    run: Training,
    waiting_share: float,
    started: float,
) -> dict[str, Any]:
    """What ``model.json`` says of the run so far, all of it facts.

    Args:
        training: cases that trained, the extra ones included.
        started: `time.monotonic` at the start of this run.
    """
    row = run.rows[-1]
    scores = run.scores
    volumes = {case.name: round(float(case.dice or 0), 4) for case in scores.volumes}
    tumours = {
        case.name: round(case.tumour_dice, 4)
        for case in scores.volumes
        if case.tumour_dice is not None
    }
    only_pictures = all(item.case.is_slice for item in training)
    return {
        "description": f"{_WHAT[options.classes]} {'pictures' if only_pictures else 'CT'}.",
        "licence": f"{RESEARCH_USE} The terms of the data it was trained on apply as well.",
        "data": [_source(training, source) for source in _sources(training)],
        "training": {
            "date": date.today().isoformat(),
            "kidneyseg": __version__,
            "commit": _commit(),
            "torch": torch.__version__.split("+")[0],
            "machine": _machine(run),
            "options": {
                name: _named(name, value)
                for name, value in asdict(options).items()
                if name not in PLACES
            },
            "command": _command(options),
            "epoch": row["epoch"],
            "seconds": round(sum(r["seconds"] for r in run.rows), 1),
            "seconds_with_preparation": round(time.monotonic() - started, 1),
            "waiting_for_slices": _finite(round(waiting_share, 4)),
        },
        "scores": {
            "validation_patients": len({item.case.patient for item in validation}),
            "validation_dice_mean": _finite(scores.dice_case),
            "validation_dice_per_case": volumes,
            "validation_tumour_dice_per_case": tumours,
            "validation_slice_score": _finite(scores.dice_slice),
        },
    }


def _sources(cases: Sequence[CachedCase]) -> list[str]:
    return sorted({item.case.source for item in cases})


def _source(cases: Sequence[CachedCase], source: str) -> dict[str, Any]:
    own = [item for item in cases if item.case.source == source]
    return {
        "source": source,
        "patients": len({item.case.patient for item in own}),
        "cases": len(own),
        "slices": sum(item.slices for item in own),
        "kind": "single slices" if own[0].case.is_slice else "volumes",
    }


def _machine(run: Training) -> str:
    device = run.device
    if device.type == "cuda":
        return f"{run.trainer.world_size} x {torch.cuda.get_device_name(device)}"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device.type}"


def _commit() -> str | None:
    """Of the source that trained; None where it does not lie in its repository."""
    git = shutil.which("git")
    here = Path(__file__).resolve().parent
    if git is None or not (here.parents[1] / ".git").exists():
        return None
    done = subprocess.run(
        [git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _command(options: Options) -> str:
    """The command line of this run, with the folders' names in place of their paths."""
    parts = ["kidneyseg train"]
    for name, value in asdict(options).items():
        if value == DEFAULTS[name] or name in ("resume", "progress", "cache"):
            continue
        if isinstance(value, bool):
            parts.append(flag(name))
        else:
            value = _named(name, value)
            texts = value if isinstance(value, list) else [value]
            parts.append(f"{flag(name)} {shlex.join(map(str, texts))}")
    return " ".join(parts)


def _named(option: str, value: Any) -> Any:
    """What an option says, with the folders' names in place of their paths."""
    if isinstance(value, tuple):
        return [_name(folder) for folder in value]
    return _name(value) if option in _PATHS and value else value


def _name(folder: str) -> str:
    """Of a folder; of the model of a training run, that of the run's."""
    path = Path(folder)
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def _finite(value: float) -> float | None:
    """None for what is not a number: JSON has no word for it."""
    return value if math.isfinite(value) else None


def readme(model: Model, facts: Mapping[str, Any]) -> str:
    """The card for people, as Markdown."""
    training, scores = facts["training"], facts["scores"]
    lines = [
        f"# {model.name} {model.version}",
        "",
        f"{facts['description']} **{RESEARCH_USE}**",
        "",
        "## Data",
        "",
        "| source | patients | cases | slices | kind |",
        "|---|---|---|---|---|",
    ]
    for entry in facts["data"]:
        cells = (entry[key] for key in ("source", "patients", "cases", "slices", "kind"))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", facts["licence"], "", "## How well it does", ""]
    if scores["validation_patients"]:
        chosen = "; the epoch was chosen on these patients" * (
            training["options"]["keep"] == "best"
        )
        # As where a finder leads it; what it takes for kidney elsewhere is not in these figures.
        where = f", no further than {AROUND_MM:g} mm from a kidney" * (
            training["options"]["around"] > 0
        )
        lines += [
            f"On {scores['validation_patients']} patients it did not train on, on the network's "
            f"own grid{where} and before components are chosen{chosen}.",
            "",
        ]
        rows = _rows(scores)
        if rows:
            lines += ["| case | Dice |", "|---|---|"]
            lines += [f"| {name} | {dice:.3f} |" for name, dice in rows]
            lines.append("")
        lines.append(_slice_score(scores))
    else:
        lines.append("No patient was kept aside, so nothing is known of how well it does.")
    lines += [
        "",
        "## How it was made",
        "",
        f"`{training['command']}`",
        "",
        f"Epoch {training['epoch']} on {training['date']}, after {training['seconds']:.0f} s of "
        f"training ({training['machine']}), with KidneySeg {training['kidneyseg']}"
        + (f" at commit {training['commit']}" if training["commit"] else "")
        + f" and torch {training['torch']}.",
        "",
    ]
    return "\n".join(lines)


def _rows(scores: Mapping[str, Any]) -> list[tuple[str, float]]:
    rows = list(scores["validation_dice_per_case"].items())
    mean = scores["validation_dice_mean"]
    return rows if mean is None else [("**mean**", mean), *rows]


def _slice_score(scores: Mapping[str, Any]) -> str:
    return (
        f"Published per-slice score: {scores['validation_slice_score']:.3f} (mean over all slices "
        "of each slice's Dice with smoothing 1e-4; a slice empty in both counts as 1)."
    )
