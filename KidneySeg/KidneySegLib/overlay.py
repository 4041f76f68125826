"""Pictures of a segmentation on its CT: reference red, prediction blue, both purple.

Pictures are as a radiologist looks at them: axial from the feet, coronal from the front, both with
the patient's right on the left of the picture, sagittal with the front on its left; pixels in their
true proportions. What they are made of is in `KidneySegLib.pictures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk
from PIL import Image

from KidneySegLib.errors import UsageError
from KidneySegLib.geometry import AxialGrid
from KidneySegLib.pictures.animation import check_folder, check_mp4, save_folder, save_gif, save_mp4
from KidneySegLib.pictures.drawing import draw_sheet, draw_slice, legend_of, letter
from KidneySegLib.pictures.style import AUTO, RED_BLUE, Style, Window, window_of
from KidneySegLib.pictures.views import Crop, Plane, Subject, choose_slices, run_of_slices
from KidneySegLib.postprocess import NOTE_NONE
from KidneySegLib.writing import atomic, check_output

REFERENCE, PREDICTION, BOTH = RED_BLUE

# What the name of a picture may end in; any other name is that of a folder.
SUFFIXES = (".png", ".gif", ".mp4")

AXIAL: tuple[Plane, ...] = ("axial",)
HEIGHT_PX = 480
FPS = 10.0
MOST_FRAMES = 120

# Slices of a contact sheet, of one plane and of each of several.
_SLICES, _SLICES_EACH = 6, 3
_ACROSS = 3
# The widths that the tiles of one plane keep within, as multiples of their height, and the height
# and width of the largest of several planes, as multiples of the height of the first.
_WIDTHS = (0.5, 2.0)
_LARGEST = (1.5, 1.6)

_At = tuple[Plane, int]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Look:
    """Everything about pictures but what is on them.

    Attributes
    ----------
    style
        Colours, fill and outlines.
    window
        Lowest and highest value drawn, or a name that `window_of` knows.
    crop
        What is shown: the body at the kidneys, the kidneys, or the whole slice.
    height_px
        Height of a slice in pixels; very wide and very narrow ones get another.
    title
        Stands above the slices.
    names
        What the legend calls prediction and reference.
    """

    style: Style = field(default_factory=Style)
    window: str | Window = AUTO
    crop: Crop = "body"
    height_px: int = HEIGHT_PX
    title: str = ""
    names: tuple[str, str] = ("prediction", "reference")


def contact_sheet(
    ct: sitk.Image,
    prediction: sitk.Image | None,
    reference: sitk.Image | None = None,
    *,
    planes: Sequence[Plane] = AXIAL,
    slices: int | Sequence[int] | None = None,
    look: Look | None = None,
) -> Image.Image:
    """The slices that show the kidneys best, side by side.

    Parameters
    ----------
    ct
        3-D, stored in any order and direction.
    prediction, reference
        Label maps on its grid in which anything but 0 is kidney, or None.
    planes
        Drawn one below the other.
    slices
        How many of each plane at most (6, or 3 each of several planes), or which ones, counted
        from 0: axial from the head, coronal from the front, sagittal from the patient's right.

    Raises
    ------
    InputError
        The grids differ.
    UsageError
        The window shows nothing or is not known.
    ValueError
        No slices are asked for, or some that are not there.
    """
    subject = Subject.of(ct, prediction, reference)
    return _contact_sheet(subject, _chosen(subject, planes, slices), look or Look())


def animation(
    ct: sitk.Image,
    prediction: sitk.Image | None,
    reference: sitk.Image | None = None,
    *,
    planes: Sequence[Plane] = AXIAL,
    most: int = MOST_FRAMES,
    whole: bool = False,
    look: Look | None = None,
) -> Iterator[Image.Image]:
    """Frames of one size through the kidneys, each drawn when it is asked for.

    Parameters
    ----------
    ct, prediction, reference
        As for `contact_sheet`.
    planes
        Shown side by side, each from its first slice with kidney to its last.
    most
        Frames at most; slices are left out evenly.
    whole
        Go through the whole scan rather than the kidneys.

    Raises
    ------
    InputError, UsageError
        As for `contact_sheet`.
    """
    subject = Subject.of(ct, prediction, reference)
    drawing = _Drawing(subject, planes, look or Look())
    return (drawing.sheet([row]) for row in _frames(subject, planes, most, whole))


def outline_slice(
    ct: np.ndarray,
    prediction: np.ndarray | None,
    reference: np.ndarray | None = None,
    spacing_mm: tuple[float, float] = (1.0, 1.0),
    *,
    sides: tuple[str, str, str, str] = ("R", "L", "A", "P"),
    caption: str = "",
    look: Look | None = None,
) -> Image.Image:
    """One slice without title and legend, of arrays, whatever they are a slice of.

    Parameters
    ----------
    ct, prediction, reference
        Shape (rows, columns); in the last two anything but 0 is kidney.
    spacing_mm
        Distance between rows and between columns.
    sides
        The letters to the left, right, top and bottom; empty ones are left out.
    caption
        Stands in the lower left corner.
    look
        Its crop, title and names play no part.

    Raises
    ------
    UsageError
        The window shows nothing or is not known.
    """
    look = look or Look()
    extent_mm = (ct.shape[0] * spacing_mm[0], ct.shape[1] * spacing_mm[1])
    (size,) = _sizes([extent_mm], look.height_px)
    window = window_of(ct[np.newaxis], look.window)
    tile = draw_slice(ct, prediction, reference, size, window, look.style)
    letter(tile, sides, caption)
    return tile


def write_pictures(
    ct: sitk.Image,
    prediction: sitk.Image | None,
    reference: sitk.Image | None,
    output: Path | str,
    *,
    planes: Sequence[Plane] = AXIAL,
    slices: int | Sequence[int] | None = None,
    most: int = MOST_FRAMES,
    whole: bool | None = None,
    fps: float = FPS,
    look: Look | None = None,
    files: Sequence[str] = ("the CT", "the prediction", "the reference"),
    progress: Callable[[float], None] | None = None,
) -> int:
    """Write what the name of the output asks for.

    A contact sheet (`.png`), an animation (`.gif`, `.mp4`), or a folder with a PNG of every slice.
    A file is replaced once the new one is complete; a folder must be new or empty.

    Parameters
    ----------
    ct, prediction, reference, planes, slices, most
        As for `contact_sheet` and `animation`.
    whole
        Go through the whole scan rather than the kidneys; by default into a folder only.
    fps
        Frames a second of an animation.
    files
        What to call the three images in messages.
    progress
        Told the share that is done, from 0 to 1.

    Returns
    -------
    How many slices a contact sheet shows, frames an animation has or files are in the folder.

    Raises
    ------
    InputError
        The grids differ.
    UsageError
        As `check_pictures`, or the window shows nothing.
    KidneySegError
        The output cannot be written; nothing has changed then.
    """
    output, look = Path(output), look or Look()
    kind = check_pictures(output)
    subject = Subject.of(ct, prediction, reference, files)
    if kind == ".png":
        rows = _chosen(subject, planes, slices)
        _save_png(_contact_sheet(subject, rows, look), output)
        return sum(map(len, rows))
    if kind:
        drawing = _Drawing(subject, planes, look)
        frames = _frames(subject, planes, most, bool(whole))
        pictures = _told((drawing.sheet([row]) for row in frames), len(frames), progress)
        if kind == ".gif":
            return save_gif(pictures, output, look.style, fps)
        return save_mp4(pictures, output, fps)
    drawings = {plane: _Drawing(subject, [plane], look) for plane in planes}
    single = [
        at
        for plane in planes
        for (at,) in _frames(subject, [plane], subject.count(plane), whole is not False)
    ]
    digits = {plane: max(3, len(str(subject.count(plane)))) for plane in planes}
    named = (
        (f"{plane}_{number + 1:0{digits[plane]}d}", drawings[plane].sheet([[(plane, number)]]))
        for plane, number in single
    )
    return save_folder(_told(named, len(single), progress), output)


def check_pictures(output: Path) -> str:
    """Make sure, before any work, that the output can be written; returns its suffix.

    The suffix is one of `SUFFIXES`, or empty for a folder.

    Raises
    ------
    UsageError
        The output has another suffix, the folder is not empty, or a package is missing for an
        `.mp4`.
    KidneySegError
        Its folder cannot be written to.
    """
    kind = "" if output.is_dir() else output.suffix.lower()
    if not kind:
        check_output(output, None)
        check_folder(output)
        return kind
    if kind not in SUFFIXES:
        raise UsageError(
            f"{output} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or be the name "
            "of a folder; choose such a name."
        )
    check_output(output, SUFFIXES)
    if kind == ".mp4":
        check_mp4()
    return kind


def draw_overlay(
    ct: np.ndarray,
    grid: AxialGrid,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    path: Path,
    *,
    title: str = "",
    slices: int = 6,
    window_hu: tuple[float, float] = (-160.0, 240.0),
) -> list[int]:
    """A contact sheet of axial slices from axial arrays, as a PNG.

    Parameters
    ----------
    ct, prediction, reference
        Axial arrays of shape (slices, rows, columns): HU, and label maps in which anything but 0
        is kidney.
    path
        The PNG to write; it appears only when it is complete.
    title
        Stands above the pictures.
    slices
        How many to draw at most.
    window_hu
        What is drawn black and what white.

    Returns
    -------
    The indices of the slices drawn, from the head on, counted from 0; the picture counts from 1.

    Raises
    ------
    ValueError
        The shapes of the arrays and of the grid differ, or no slices are asked for.
    KidneySegError
        The picture cannot be written.
    """
    subject = Subject(ct, grid, prediction, reference)
    rows = _chosen(subject, AXIAL, slices)
    _save_png(_contact_sheet(subject, rows, Look(window=window_hu, title=title)), path)
    return [number for row in rows for _, number in row]


class _Drawing:
    """Slices of a subject at one scale, with what stands above them."""

    def __init__(
        self,
        subject: Subject,
        planes: Sequence[Plane],
        look: Look,
        axial: Sequence[int] | None = None,
    ) -> None:
        self.subject, self.look = subject, look
        self.box = subject.crop(look.crop, axial)
        self.window = window_of(subject.ct, look.window)
        extents = [subject.extent_mm(plane, self.box) for plane in planes]
        self.sizes = dict(zip(planes, _sizes(extents, look.height_px), strict=True))
        self.legend = legend_of(
            look.style,
            None if subject.prediction is None else look.names[0],
            None if subject.reference is None else look.names[1],
        )

    def tile(self, plane: Plane, number: int) -> Image.Image:
        subject = self.subject
        ct, prediction, reference = (
            None if array is None else subject.view(array, plane, number, self.box)
            for array in (subject.ct, subject.prediction, subject.reference)
        )
        assert ct is not None
        tile = draw_slice(
            ct, prediction, reference, self.sizes[plane], self.window, self.look.style
        )
        letter(tile, subject.letters(plane), subject.caption(plane, number, self.box))
        return tile

    def sheet(self, rows: Sequence[Sequence[_At]]) -> Image.Image:
        return draw_sheet(
            [[self.tile(*at) for at in row] for row in rows],
            self.look.title,
            self.legend,
            self.look.style,
            remark=self.remark,
            window=self.window,
        )

    @property
    def remark(self) -> str:
        """What is worth a warning: one of the label maps is empty."""
        if self.subject.prediction is not None and not self.subject.prediction.any():
            return NOTE_NONE
        if self.subject.reference is not None and not self.subject.reference.any():
            return f"no kidney in the {self.look.names[1]}"
        return ""


def _contact_sheet(subject: Subject, rows: Sequence[Sequence[_At]], look: Look) -> Image.Image:
    planes = list(dict.fromkeys(plane for row in rows for plane, _ in row))
    axial = [number for row in rows for _, number in row] if planes == ["axial"] else None
    return _Drawing(subject, planes, look, axial).sheet(rows)


def _chosen(
    subject: Subject, planes: Sequence[Plane], slices: int | Sequence[int] | None
) -> list[list[_At]]:
    """The slices of a contact sheet by rows."""
    if slices is None:
        slices = _SLICES if len(planes) == 1 else _SLICES_EACH
    rows: list[list[_At]] = []
    for plane in planes:
        if isinstance(slices, int):
            if slices < 1:
                raise ValueError("At least one slice must be drawn.")
            numbers = choose_slices(subject.marks, subject.grid.shape, slices, plane)
        else:
            numbers = list(slices)
            if not numbers or min(numbers) < 0 or max(numbers) >= subject.count(plane):
                raise ValueError(f"Slices {numbers} are not in 0..{subject.count(plane) - 1}.")
        across = 2 if len(numbers) == 4 else _ACROSS
        ats: list[_At] = [(plane, number) for number in numbers]
        rows += [ats[first : first + across] for first in range(0, len(ats), across)]
    return rows


def _frames(
    subject: Subject, planes: Sequence[Plane], most: int, whole: bool
) -> list[tuple[_At, ...]]:
    """The slices that the frames of an animation show, one of each plane."""
    marks = None if whole else subject.marks
    runs = {plane: run_of_slices(marks, subject.grid.shape, plane, most) for plane in planes}
    number = max(map(len, runs.values()))
    # A shorter run stays longer on each slice, so that all arrive at their end together.
    return [
        tuple((plane, run[frame * len(run) // number]) for plane, run in runs.items())
        for frame in range(number)
    ]


def _sizes(extents_mm: Sequence[tuple[float, float]], height_px: int) -> list[tuple[int, int]]:
    """Width and height in pixels for heights and widths in mm, all at one scale."""
    height, width = extents_mm[0]
    if len(extents_mm) == 1:
        narrowest, widest = (height_px * share for share in _WIDTHS)
        scale = min(max(height_px * width / height, narrowest), widest) / width
    else:
        largest = np.max(extents_mm, axis=0)
        scale = min(height_px / height, *(np.array(_LARGEST) * height_px / largest))
    return [(max(1, round(w * scale)), max(1, round(h * scale))) for h, w in extents_mm]


def _told(
    items: Iterator[_Item], number: int, progress: Callable[[float], None] | None
) -> Iterator[_Item]:
    """The items, telling after each how much is done."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(done / number)


def _save_png(picture: Image.Image, path: Path) -> None:
    with atomic(path) as temporary:
        picture.save(temporary, format="PNG")
