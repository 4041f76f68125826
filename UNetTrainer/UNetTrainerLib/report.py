"""What a training run leaves for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from KidneySegLib.writing import atomic


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
        ("loss", {"train_loss": "training", "valid_loss": "validation (1 - Dice)"}),
        ("score", {"valid_dice_case": "Dice per case", "valid_dice_slice": "per-slice score"}),
        ("learning rate", {"lr": "learning rate"}),
    )
    for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for column, label in lines.items():
            axes.plot(epochs, [row[column] for row in rows], marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
