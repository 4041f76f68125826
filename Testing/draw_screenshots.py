"""Draws the pictures of README.md: the module's window and Slicer's views of a generated CT.

    PYTHONPATH=KidneySeg python Testing/draw_screenshots.py [FOLDER]

The window is drawn by the stand-in for Slicer's Qt (`pythonqt`), so its style and fonts are not
those of Slicer; the views are drawn by Slicer's own displayable managers. The CT is generated: no
patient is behind it. Everything happens through the clicks that the tutorial describes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pythonqt
import slicerhost
import slicerviews
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "Resources/Screenshots"
MODULE = ROOT / "KidneySeg/KidneySeg.py"

# The generated CT of the module Sample Data.
SEED, SIZE = 1, (384, 384, 120)
CT, TRUTH = "GeneratedCT", "GeneratedCT reference"
WINDOW_HU, LEVEL_HU = 350, 40  # Slicer's preset CT-Abdomen
PANEL_WIDTH = 420
VIEW_WIDTH, CLOSE_UP = 500, (440, 330)
BODY_MM, KIDNEYS_MM = 350, 230
AHEAD_MM = 20  # of the kidneys lies the middle of a view
LEVELS = (0.45, 0.725)  # slices, as a share of the kidneys' height from the upper poles
GAP = 6

Save = Callable[[np.ndarray, str], None]


def draw(folder: Path, size: tuple[int, int, int] = SIZE) -> list[Path]:
    """Draw every picture into a folder; returns their paths.

    Args:
        size: columns, rows and slices of the generated CT.
    """
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    written: list[Path] = []

    def save(pixels: np.ndarray, name: str) -> None:
        written.append(folder / f"{name}.png")
        Image.fromarray(pixels).save(written[-1], optimize=True)

    with tempfile.TemporaryDirectory() as temporary:
        # Nobody's own models are to be seen.
        os.environ["KIDNEYSEG_MODELS"] = str(Path(temporary) / "models")
        with pythonqt.session(Path(temporary)) as window:
            _walk(window, Path(temporary), size, save)
    return written


def _walk(window: Any, temporary: Path, size: tuple[int, int, int], save: Save) -> None:
    """The steps of the tutorial."""
    from KidneySegLib.phantom import generate
    from KidneySegLib.writing import SIDES, write_labels

    slicer = window.slicer
    slicer.app.temporaryPath = str(temporary)
    made = generate(SEED, size)
    volume = slicerhost.add_volume(made.image, CT)
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevel(WINDOW_HU, LEVEL_HU)
    write_labels(made.sides, temporary / "kidneys.seg.nrrd", SIDES)
    truth = slicer.util.loadSegmentation(str(temporary / "kidneys.seg.nrrd"), {"name": TRUTH})
    truth.GetDisplayNode().SetVisibility(False)
    module = window.open(MODULE)
    # In Slicer the trainer comes along, which the stand-in cannot start.
    slicer.modules.unettrainer = slicer.modules.kidneyseg
    ui = module.ui
    ui.inputSelector.setCurrentNode(volume)
    ui.referenceSelector.setCurrentNode(truth)
    ui.resultsCollapsibleButton.collapsed = True
    module.panel.update()
    save(_picture_of(module.parent, window, temporary), "choose")

    ui.applyButton.click()
    window.wait_until(lambda: ui.progressBar.value > 300)
    running = _picture_of(module.parent, window, temporary)
    button = ui.applyButton._qt.mapTo(module.parent._qt, ui.applyButton._qt.rect().topLeft()).y()
    log = ui.logCollapsibleButton._qt
    save(running[button - 8 : log.mapTo(module.parent._qt, log.rect().topLeft()).y()], "running")
    window.wait_until(lambda: module.panel.run is None)
    ui.resultsCollapsibleButton.collapsed = False
    ui.modelCollapsibleButton.collapsed = True

    ui.show3DButton.click()
    panel = _picture_of(module.parent, window, temporary)
    upper = len(panel) // 2
    first, second = _middles(made.sides)
    views = (
        _axial(volume, (VIEW_WIDTH, upper), first, BODY_MM),
        _from_the_front((VIEW_WIDTH, len(panel) - upper - GAP)),
    )
    save(_beside(panel, _above(*views)), "overview")
    ui.compareButton.click()
    views = [_axial(volume, CLOSE_UP, middle, KIDNEYS_MM) for middle in (first, second)]
    save(_beside(*views), "comparison")
    ui.compareButton.click()
    del slicer.modules.unettrainer


def _picture_of(panel: Any, window: Any, temporary: Path) -> np.ndarray:
    """A panel at its least height."""
    window.process()
    panel.resize(PANEL_WIDTH, panel._qt.sizeHint().height())
    window.process()
    panel.resize(PANEL_WIDTH, panel._qt.layout().heightForWidth(PANEL_WIDTH))
    window.screenshot(panel, temporary / "panel.png")
    with Image.open(temporary / "panel.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    busy = np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2)))
    return pixels[: busy[-1] + 10]


def _axial(volume: Any, size: tuple[int, int], middle: list[float], width_mm: float) -> np.ndarray:
    """A slice view with the letters of the patient's sides."""
    view = slicerviews.AxialView(volume, size)
    try:
        picture = Image.fromarray(view.show(middle, width_mm))
    finally:
        view.close()
    letters = ImageDraw.Draw(picture)
    font = ImageFont.load_default(18)
    for letter, column, anchor in (("R", 8, "lm"), ("L", size[0] - 8, "rm")):
        place = (column, size[1] // 2)
        letters.text(place, letter, "white", font, anchor, stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


def _from_the_front(size: tuple[int, int]) -> np.ndarray:
    view = slicerviews.FrontView(size)
    try:
        return view.show()
    finally:
        view.close()


def _middles(sides: Any) -> list[list[float]]:
    """A point amid the body in each slice of `LEVELS`, in RAS."""
    from KidneySegLib.geometry import to_axial

    labels, grid = to_axial(sides)
    slices = np.flatnonzero(labels.any((1, 2)))
    found = []
    for level in LEVELS:
        number = slices[0] + round(level * (len(slices) - 1))
        rows, columns = np.nonzero(labels[number])
        lps = grid.to_physical([number, rows.mean(), columns.mean()])
        found.append((np.asarray(lps, float) * (-1, -1, 1) + (0, AHEAD_MM, 0)).tolist())
    return found


def _beside(*pictures: np.ndarray) -> np.ndarray:
    gap = np.full((len(pictures[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([pictures[0], gap, pictures[1]], axis=1)


def _above(*pictures: np.ndarray) -> np.ndarray:
    return _beside(*(picture.swapaxes(0, 1) for picture in pictures)).swapaxes(0, 1)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for file in draw(target):
        with Image.open(file) as image:
            print(f"{file.name} {image.width}x{image.height} {file.stat().st_size // 1000} kB")
