"""Which loss finds small structures: each trained alike on generated cases.

    python benchmarks/losses.py [--cases 16] [--epochs 8] [--losses generalized-dice dice ...]

Prints a Markdown table: Dice per case of the patients kept aside, and the mean Dice of their slices
by the area of kidney in the slice, where both the mask and the answer count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.measure import dice
from KidneySegLib.model import Model
from KidneySegLib.phantom import write_cases
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import scale
from UNetTrainerLib.cache import CachedCase, build_cache
from UNetTrainerLib.cases import find_cases, split_cases
from UNetTrainerLib.options import LOSSES, Options, resolve
from UNetTrainerLib.train import train

BINS_MM2 = (0.0, 250.0, 750.0, 1500.0, np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES)
    asked = parser.parse_args()
    names = [f"{low:g} to {high:g} mm2" for low, high in pairwise(BINS_MM2)]
    print(
        f"{asked.cases} generated cases, a quarter kept aside; {asked.epochs} epochs of "
        f"{asked.steps} batches of 12; 8 features, 2.5 mm pixels, no augmentation; seed 0\n"
    )
    print(f"| loss | Dice per case | {' | '.join(names)} | seconds |")
    print(f"|---|{'---|' * (len(names) + 2)}")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "generated"
        write_cases(data, asked.cases, seed=500, size=(192, 192, 60))
        for loss in asked.losses:
            options = options_of(loss, data, Path(folder), asked.epochs, asked.steps)
            started = time.monotonic()
            model = train(options)
            seconds = time.monotonic() - started
            assert model is not None
            row = scores(model, kept_aside(options))
            print(f"| {loss} | {' | '.join(f'{v:.3f}' for v in row)} | {seconds:.0f} |", flush=True)


def options_of(loss: str, data: Path, folder: Path, epochs: int, steps: int) -> Options:
    return resolve(
        {
            "data": (str(data),), "output": str(folder / loss), "cache": str(folder / "cache"),
            "loss": loss, "epochs": epochs, "steps": steps, "features": 8, "context_slices": 3,
            "pixel_mm": 2.5, "rows": 128, "columns": 176, "folds": 4, "keep": "last",
            "augment": "none", "device": "cpu",
        }
    )  # fmt: skip


def kept_aside(options: Options) -> list[CachedCase]:
    """The validation cases on the working grid."""
    split = split_cases(find_cases(options.data), options.split, options.folds, options.fold)
    return build_cache(split.validation, Path(options.cache), options.preprocessing)


def scores(model: Model, cases: Sequence[CachedCase]) -> list[float]:
    """Mean Dice per case, and mean Dice per slice in each bin of kidney area."""
    backend = TorchBackend(model, "cpu")
    whole: list[float] = []
    binned: list[list[float]] = [[] for _ in BINS_MM2[1:]]
    for case in cases:
        working = scale(np.array(case.voxels()[:, 0], np.float32), model.preprocessing)
        answer = predict(working, case.spacing_mm[0], backend) >= model.threshold
        truth = np.asarray(case.labels()) > 0
        whole.append(dice(answer, truth) or 0.0)
        pixel_mm2 = case.spacing_mm[1] * case.spacing_mm[2]
        for one, other in zip(answer, truth, strict=True):
            area = other.sum() * pixel_mm2
            if area:
                place = int(np.searchsorted(BINS_MM2, area, side="left")) - 1
                binned[place].append(dice(one, other) or 0.0)
    return [float(np.mean(whole)), *(float(np.mean(part)) for part in binned)]


if __name__ == "__main__":
    main()
