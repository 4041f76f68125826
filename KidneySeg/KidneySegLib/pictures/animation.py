"""Frames to a GIF, an MP4 or a folder of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from KidneySegLib.errors import UsageError
from KidneySegLib.pictures.drawing import FAINT, INK, NOTICE, PAPER
from KidneySegLib.pictures.style import Style
from KidneySegLib.writing import atomic, whole_folder

# A GIF has 256 colours; those that the pictures are made of serve better than counted ones.
_GRAYS = 112
_FILL_SHADES = 28
_LINE_SHADES = 12
# H.264 quality: 0 is lossless, 23 its default, 18 is taken for visually lossless.
_CRF = 18
_ENCODER, _PIXELS = "libx264", "yuv420p"
# ITU-T H.273: matrix, primaries and transfer of BT.709 are all 1; luma from 16 to 235 is 1.
_BT709 = _LIMITED_RANGE = 1


def save_gif(frames: Iterable[Image.Image], path: Path, style: Style, fps: float) -> int:
    """Write frames as a GIF that starts again at its end; returns their number.

    Raises
    ------
    KidneySegError
        It cannot be written; nothing has changed then.
    """
    number = 0

    def reduced() -> Iterator[Image.Image]:
        nonlocal number
        for frame in frames:
            number += 1
            yield frame.quantize(palette=palette, dither=Image.Dither.NONE)

    palette = _palette(style)
    images = reduced()
    with atomic(path) as temporary:
        next(images).save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=images,
            duration=round(1000 / fps),
            loop=0,
        )
    return number


def _palette(style: Style) -> Image.Image:
    """The grays of a CT, each colour as fill and as an outline's edge on them, and the letters'."""
    grays = np.linspace(0, 255, _GRAYS)
    colours = [np.repeat(grays[:, None], 3, axis=1)]
    for colour in style.colours:
        for share, number in ((style.opacity, _FILL_SHADES), (0.6, _LINE_SHADES), (1.0, 1)):
            under = np.linspace(0, 255, number)[:, None]
            colours.append(under + share * (np.array(colour) - under))
    colours.append(np.array([PAPER, INK, FAINT, NOTICE], float))
    entries = np.round(np.concatenate(colours)).astype(np.uint8)
    image = Image.new("P", (1, 1))
    image.putpalette(entries.tobytes())
    return image


def save_mp4(frames: Iterable[Image.Image], path: Path, fps: float) -> int:
    """Write frames as an MP4 (H.264, yuv420p) that browsers and PowerPoint play.

    All frames have one size; an odd one is made even by a line of background.

    Returns
    -------
    The number of frames.

    Raises
    ------
    UsageError
        The package `av` is not installed.
    KidneySegError
        It cannot be written; nothing has changed then.
    """
    check_mp4()
    import av
    from av.video.reformatter import Colorspace

    images = iter(frames)
    first = next(images)
    even = (first.width + first.width % 2, first.height + first.height % 2)
    number = 0
    with (
        atomic(path) as temporary,
        av.open(str(temporary), "w", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream(
            _ENCODER, rate=Fraction(fps).limit_denominator(1000), options={"crf": str(_CRF)}
        )
        stream.width, stream.height = even
        stream.pix_fmt = _PIXELS
        # Without the tags players guess the matrix by the picture's size, and red turns orange.
        encoder = stream.codec_context
        encoder.colorspace = encoder.color_primaries = encoder.color_trc = _BT709
        encoder.color_range = _LIMITED_RANGE
        for image in chain([first], images):
            picture = Image.new("RGB", even, PAPER)
            picture.paste(image)
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            container.mux(
                stream.encode(frame.reformat(format=_PIXELS, dst_colorspace=Colorspace.ITU709))
            )
            number += 1
        container.mux(stream.encode())
    return number


def check_mp4() -> None:
    """Make sure, before any work, that an MP4 can be written.

    Raises
    ------
    UsageError
        The package `av` is not installed, or without H.264.
    """
    other = 'run `pip install "kidneyseg[pictures]"`, or choose a name that ends in .gif'
    try:
        import av
    except ModuleNotFoundError:
        raise UsageError(
            f"An MP4 needs the package av, which Python does not find here; {other}."
        ) from None
    if _ENCODER not in av.codecs_available:
        raise UsageError(f"The package av that is installed here does not write H.264; {other}.")


def check_folder(folder: Path) -> None:
    """Make sure, before any work, that a folder is new or empty.

    Raises
    ------
    UsageError
        It holds something, with which the pictures would mix.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give a new or an empty folder for the pictures.")


def save_folder(pictures: Iterable[tuple[str, Image.Image]], folder: Path) -> int:
    """Write named pictures as PNG, all of them or none; returns their number.

    Raises
    ------
    UsageError
        The folder is not empty.
    KidneySegError
        It cannot be written; nothing has changed then.
    """
    number = 0
    with whole_folder(folder) as temporary:
        for name, picture in pictures:
            picture.save(temporary / f"{name}.png", format="PNG")
            number += 1
    return number
