"""``kidneyseg overlay``: pictures and animations of a segmentation on its CT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from KidneySegLib.errors import UsageError

if TYPE_CHECKING:
    from KidneySegLib.overlay import Look
    from KidneySegLib.pictures.views import Plane

NAME = "overlay"
HELP = "draw a segmentation on its CT: a picture, an animation or a folder of slices"

# As in KidneySegLib.pictures, which `--help` does without.
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
CROPS = ("body", "kidneys", "whole")
COLOURS = ("red-blue", "colour-blind")
PRESETS = ("auto", "abdomen", "liver", "bone", "lung")
DRAWN = ("both", "fill", "outline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "ct", metavar="CT", type=Path, help="what was segmented: a file, DICOM or case folder"
    )
    parser.add_argument("prediction", metavar="PREDICTION", type=Path, help="label map, in blue")
    parser.add_argument(
        "--reference", type=Path, metavar="PATH", help="label map to compare with, in red"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help=".png: the best slices on a sheet; .gif or .mp4: an animation through the kidneys; "
        "a folder: a .png of every slice",
    )
    parser.add_argument(
        "--planes",
        type=_planes,
        default=PLANES[:1],
        metavar="PLANE,...",
        help="axial (default), coronal, sagittal, several of them with commas, or all",
    )
    parser.add_argument(
        "--slices", type=int, metavar="N", help="of a sheet: how many of each plane (default: 6)"
    )
    parser.add_argument(
        "--crop",
        default="body",
        choices=CROPS,
        help="what is shown: the body at the kidneys (default), the kidneys, or the whole scan",
    )
    parser.add_argument(
        "--draw", default="both", choices=DRAWN, help="outline, fill, or both (default)"
    )
    parser.add_argument(
        "--opacity", type=float, default=0.3, metavar="X", help="of the fill (default: 0.3)"
    )
    parser.add_argument(
        "--colours",
        default="red-blue",
        choices=COLOURS,
        help="red, blue, and purple for both (default); or vermilion, sky blue and yellow",
    )
    window = parser.add_mutually_exclusive_group()
    window.add_argument(
        "--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="HU drawn black and white"
    )
    window.add_argument(
        "--centre-width", nargs=2, type=float, metavar=("CENTRE", "WIDTH"), help="the same"
    )
    window.add_argument(
        "--preset",
        default="auto",
        choices=PRESETS,
        help="a window by name (default: that of the abdomen; where values are no HU, their range)",
    )
    parser.add_argument(
        "--range",
        choices=("kidneys", "whole"),
        help="slices of an animation or a folder (default: kidneys; of a folder, whole)",
    )
    parser.add_argument(
        "--frames", type=int, metavar="N", help="of an animation at most (default: 120)"
    )
    parser.add_argument("--fps", type=float, metavar="X", help="frames a second (default: 10)")
    parser.add_argument(
        "--height", type=int, metavar="PIXELS", help="of a slice in the picture (default: 480)"
    )
    parser.add_argument("--title", help="what stands above (default: the name of the CT)")
    parser.add_argument("--series", metavar="UID", help="which series of a DICOM folder")


def run(options: argparse.Namespace) -> int:
    _check_numbers(options)

    from KidneySegLib.commands.common import Teller, keep_inputs
    from KidneySegLib.overlay import FPS, MOST_FRAMES, check_pictures, write_pictures
    from KidneySegLib.reading import read_ct, read_labels
    from KidneySegLib.volumes import IMAGING

    sources = [
        path for path in (options.ct, options.prediction, options.reference) if path is not None
    ]
    keep_inputs([*sources, *(options.ct / name for name in IMAGING)], [options.output])
    kind = check_pictures(options.output)
    teller = Teller("bar", 1)
    try:
        scan = read_ct(options.ct, options.series)
        for warning in scan.warnings:
            teller.say(f"warning: {warning}", error=True)
        labels = [read_labels(path) for path in sources[1:]]
        reference = labels[1] if options.reference is not None else None
        number = write_pictures(
            scan.image,
            labels[0],
            reference,
            options.output,
            planes=options.planes,
            slices=options.slices,
            most=options.frames or MOST_FRAMES,
            whole=None if options.range is None else options.range == "whole",
            fps=options.fps or FPS,
            look=_look(options, scan.name),
            files=[str(path) for path in (options.ct, options.prediction, options.reference)],
            progress=lambda share: teller(share, "draw"),
        )
    finally:
        teller.close()
    what = {"": "pictures", ".png": "slices"}.get(kind, "frames")
    print(f"{options.output}: {number} {what}")
    return 0


def _planes(text: str) -> tuple[Plane, ...]:
    if text == "all":
        return PLANES
    asked = text.split(",")
    if not set(asked) <= set(PLANES):
        raise argparse.ArgumentTypeError(f"{text!r} is not all or some of {','.join(PLANES)}")
    return tuple(plane for plane in PLANES if plane in asked)


def _look(options: argparse.Namespace, name: str) -> Look:
    from KidneySegLib.overlay import HEIGHT_PX, Look
    from KidneySegLib.pictures.style import COLOURS, Style

    window = options.preset
    if options.window is not None:
        window = tuple(options.window)
    elif options.centre_width is not None:
        centre, width = options.centre_width
        window = (centre - width / 2, centre + width / 2)
    style = Style(
        colours=COLOURS[options.colours],
        opacity=0.0 if options.draw == "outline" else options.opacity,
        outline=options.draw != "fill",
    )
    return Look(
        style=style,
        window=window,
        crop=options.crop,
        height_px=options.height or HEIGHT_PX,
        title=name if options.title is None else options.title,
    )


def _check_numbers(options: argparse.Namespace) -> None:
    for name, least, most in (
        ("slices", 1, 100),
        ("frames", 1, 10_000),
        ("fps", 0.5, 60),
        ("height", 100, 4000),
    ):
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} {value:g} is not from {least:g} to {most:g}.")
