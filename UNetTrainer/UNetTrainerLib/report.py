"""What a training run leaves for people to look at: history, curves, examples."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import Model
from KidneySegLib.overlay import draw_overlay
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import scale
from KidneySegLib.segment import segment
from KidneySegLib.writing import atomic
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.validation import CaseScore, Scores

HISTORY = (
    "epoch",
    "lr",
    "train_loss",
    "valid_loss",
    "valid_dice_case",
    "valid_dice_slice",
    "seconds",
)


def write_history(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """``history.csv``: one row an epoch; what does not exist is ``nan``."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HISTORY)
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path | str) -> None:
    """Losses, Dice per case beside the published per-slice score, and learning rate, as a PNG.

    Args:
        rows: one mapping an epoch, with the columns of ``history.csv``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = (
        ("loss", {"train_loss": "training", "valid_loss": "validation"}),
        ("score", {"valid_dice_case": "Dice per case", "valid_dice_slice": "per-slice score"}),
        ("learning rate", {"lr": "learning rate"}),
    )
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for column, label in lines.items():
            values = [row[column] for row in rows]
            if np.isfinite(values).any():
                axes.plot(epochs, values, marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
        else:
            axes.text(0.5, 0.5, "nothing validates", ha="center", transform=axes.transAxes)
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


def draw_examples(
    model: Model, cases: Sequence[CachedCase], scores: Scores, folder: Path, device: str
) -> None:
    """Red/blue pictures of the best, the median and the worst validation case.

    Whole volumes go through the whole walk from the CT to two kidneys, single slices through the
    network. The folder appears when all are drawn.
    """
    ranked = scores.volumes or sorted(scores.cases, key=lambda case: -case.slice_score)
    if not ranked:
        return
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    by_name = {(item.case.source, item.case.name): item for item in cases}
    backend = TorchBackend(model, device)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for title, place in places.items():
            score = ranked[place]
            item = by_name[score.source, score.name]
            path = temporary / f"{title}_{score.name}.png"
            if item.case.is_slice:
                _draw_slice(item, score, backend, path, title)
            else:
                _draw_volume(item, backend, path, title)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _draw_volume(item: CachedCase, backend: TorchBackend, path: Path, title: str) -> None:
    result = segment(item.case.image, backend, reference=item.case.labels)
    assert result.reference is not None
    ct, grid = to_axial(result.scan.image)
    labels, reference = (to_axial(image)[0] for image in (result.labels, result.reference))
    value = result.report["dice"]["kidney"]
    figure = "no kidney in either" if value is None else f"Dice {value:.3f}"
    draw_overlay(ct, grid, labels, reference, path, title=f"{title}: {item.case.name}, {figure}")


def _draw_slice(
    item: CachedCase, score: CaseScore, backend: TorchBackend, path: Path, title: str
) -> None:
    voxels = np.array(item.voxels(), np.float32)
    gray = voxels.mean(1)
    working = scale(voxels if voxels.shape[1] > 1 else voxels[:, 0], backend.model.preprocessing)
    prior = item.prior() / np.float32(255) if backend.model.network.prior else None
    probability = predict(working, item.spacing_mm[0], backend, prior=prior)
    prediction = probability >= backend.model.threshold
    image = sitk.GetImageFromArray(gray)
    image.SetSpacing(item.spacing_mm[::-1])
    _, grid = to_axial(image)
    window = backend.model.preprocessing.window_hu
    if backend.model.preprocessing.scaling == "minmax":
        window = (float(gray.min()), float(gray.max()) + 1)
    draw_overlay(
        gray,
        grid,
        prediction,
        np.asarray(item.labels()),
        path,
        title=f"{title}: {item.case.name}, per-slice score {score.slice_score:.3f}",
        window_hu=window,
    )
