"""Generated CTs of any number of slices, kept in a folder for the next time.

    python benchmarks/volumes.py CASE SLICES OUTPUT

Lengthens a case that `kidneyseg phantom` generated beyond its kidneys, or cuts it around them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", type=Path)
    parser.add_argument("slices", type=int)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args()
    image = sitk.ReadImage(str(asked.case / "imaging.nii.gz"))
    sides = sitk.GetArrayFromImage(sitk.ReadImage(str(asked.case / "sides.nii.gz")))
    # A generated case stores its slices along the first axis of the file, numpy's last.
    inside = np.flatnonzero(sides.any(axis=(0, 1)))
    index = chosen(sides.shape[2], int(inside[0]), int(inside[-1]) + 1, asked.slices)
    array = sitk.GetArrayViewFromImage(image)
    long = np.empty((*array.shape[:2], asked.slices), array.dtype)
    np.take(array, index, axis=2, out=long)
    made = sitk.GetImageFromArray(long)
    made.SetSpacing(image.GetSpacing())
    made.SetOrigin(image.GetOrigin())
    made.SetDirection(image.GetDirection())
    part = asked.output.with_name(f"part-{asked.output.name}")
    sitk.WriteImage(made, str(part), useCompression=True)
    part.rename(asked.output)


def chosen(slices: int, first: int, stop: int, wanted: int) -> np.ndarray:
    """Numbers of the slices to take, so that the kidneys appear once and stay in the middle.

    Beyond the kidneys, what is there is repeated, forth and back.

    Args:
        slices: there are so many, with kidneys from ``first`` to before ``stop``.
        wanted: so many come out; fewer than the kidneys fill are their middle.
    """
    begin = (first + stop) // 2 - wanted // 2
    position = np.arange(begin, begin + wanted)
    if (position[0] < first and first == 0) or (position[-1] >= stop and stop == slices):
        raise SystemExit("The kidneys of the generated CT reach its end; generate another one.")
    above = _back_and_forth(first - 1 - position, first)
    below = _back_and_forth(position - stop, slices - stop)
    return np.where(
        position < first, first - 1 - above, np.where(position < stop, position, stop + below)
    )


def _back_and_forth(steps: np.ndarray, length: int) -> np.ndarray:
    """0, 1, ... length - 1, length - 1, ... 1, 0, 0, 1, ...: never a jump."""
    within = np.mod(steps, 2 * max(length, 1))
    return np.minimum(within, 2 * length - 1 - within)


if __name__ == "__main__":
    main()
