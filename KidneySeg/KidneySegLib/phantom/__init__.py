"""Generated CTs with exact kidney labels, for tests, the demonstration and training.

No patient is behind these images. A seed draws an anatomy in millimetres (body, spine, organs,
vessels, two kidneys with a tumour and a cyst or without), and a renderer samples it on a grid of
any size. Every surface is a signed distance in mm, negative inside: the image blends tissues over
the width of a pixel around it (partial volume) and the label is where it is negative, so image and
label cannot disagree.

Template space is LPS mm about the middle of the vertebral body L2: x to the patient's left, y to
the back, z to the head. The patient is turned, bent and deformed on the way to the scanner's space.

Only additions, multiplications, divisions, square roots and comparisons touch the voxels: they are
exact under IEEE 754, so a seed gives the same voxels on every processor (vectorised exponentials
and matrix products do not).

HU of tissues follow common textbook values for the four contrast phases of an abdominal CT.
"""

from __future__ import annotations

import gzip
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import KidneySegError, UsageError
from KidneySegLib.geometry import LEFT, RIGHT
from KidneySegLib.phantom.anatomy import PHASES, Anatomy
from KidneySegLib.phantom.rendering import KIDNEY, TUMOUR, HeadRenderer, Renderer
from KidneySegLib.phantom.scanner import Scanner
from KidneySegLib.phantom.shapes import Array, Point

__all__ = [
    "KIDNEY",
    "KIDNEYS",
    "LEFT",
    "PHASES",
    "REGIONS",
    "RIGHT",
    "TUMOUR",
    "Phantom",
    "generate",
    "write_cases",
]

KIDNEYS = ("both", "left", "right", "none", "horseshoe")
REGIONS = ("abdomen", "trunk", "chest", "pelvis", "head")

_THICKEST_SLICE_MM = 10.0


@dataclass(frozen=True)
class Phantom:
    """A generated CT in the KiTS19 axis convention (file axes: slice, row, column).

    image: int16 HU. kidney: uint8, KiTS19 labels 1 kidney (cysts included), 2 tumour.
    sides: uint8, 1 left, 2 right, tumour and cyst included. All three share one grid.
    description: what was generated: seed, region, phase, kidneys, spacing, volumes in ml, lesions.
    """

    image: sitk.Image
    kidney: sitk.Image
    sides: sitk.Image
    description: dict[str, Any]


def _check(seed: int, size: Sequence[int] | None, **choices: tuple[Any, Sequence[str]]) -> None:
    if seed < 0:
        raise UsageError(f"The seed of a generated CT must be 0 or more, not {seed}.")
    if size is not None and (len(size) != 3 or min(size) < 1 or min(size[:2]) < 16):
        text = "x".join(str(n) for n in size)
        raise UsageError(
            f"The size {text} is too small for a generated CT: give COLUMNSxROWSxSLICES with at "
            "least 16 columns, 16 rows and 1 slice, for example 256x256x60."
        )
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise UsageError(
                f"A generated CT knows no {name} '{value}': choose one of {', '.join(allowed)}."
            )


def _extent(anatomy: Anatomy, region: str, rng: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest z of a scan of the region, template mm."""
    low, high = anatomy.kidney_range()
    drawn_low, drawn_high = rng.uniform(-255.0, -105.0), rng.uniform(92.0, 165.0)
    if region == "abdomen":
        return min(low - 12.0, drawn_low), max(high + 12.0, drawn_high)
    if region == "trunk":
        return -285.0, 280.0 + 0.3 * drawn_high
    if region == "chest":
        return max(high + 8.0, 110.0), 280.0 + 0.3 * drawn_high
    if region == "pelvis":
        return -285.0, min(low - 8.0, -95.0)
    return -115.0, 98.0


def generate(
    seed: int,
    size: tuple[int, int, int] | None = None,
    kidneys: str = "both",
    phase: str | None = None,
    region: str = "abdomen",
    *,
    tumour: bool | None = None,
    cyst: bool | None = None,
    progress: Callable[[float], None] | None = None,
) -> Phantom:
    """Generate one CT with exact labels.

    seed: 0 or more; the same seed, size and choices give the same voxels.
    size: (columns, rows, slices) of the axial slices; pixel and slice spacing adapt so that the
        whole body and the whole region are covered (slices at most 10 mm apart: fewer slices are
        centred on the kidneys). None: 512x512 and a slice spacing of 1 to 5 mm by the seed.
    kidneys: "both", "left" or "right" (a single kidney), "none", "horseshoe".
    phase: "plain", "arterial", "portal", "excretory"; None: by the seed.
    region: "abdomen" and "trunk" show the kidneys; "chest", "pelvis" and "head" show none.
    tumour, cyst: whether there is one; None: by the seed.
    progress: called with the fraction done, 0 to 1, after every slice.

    Raises UsageError for a choice that does not exist.

    >>> phantom = generate(1, size=(64, 64, 12))
    >>> phantom.image.GetSize()
    (12, 64, 64)
    """
    _check(
        seed,
        size,
        kidneys=(kidneys, KIDNEYS),
        region=(region, REGIONS),
        phase=(PHASES[0] if phase is None else phase, PHASES),
    )
    anatomy = Anatomy(seed, kidneys, phase, tumour, cyst)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 2]))
    low, high = _extent(anatomy, region, rng)
    drawn_slice_mm = float(
        rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0], p=[.05, .1, .1, .2, .2, .2, .05, .1])
    )  # fmt: skip
    if size is None:
        size = (512, 512, math.ceil((high - low) / drawn_slice_mm))
    columns, rows, slices = size
    if slices * _THICKEST_SLICE_MM < high - low:
        slice_mm = _THICKEST_SLICE_MM
        middle = 0.5 * sum(anatomy.kidney_range()) if region == "abdomen" else 0.5 * (low + high)
    else:
        slice_mm = round((high - low) / slices, 3)
        middle = 0.5 * (low + high)
    top = middle + 0.5 * slice_mm * (slices - 1)

    # The body fits the field of view whatever the matrix.
    if region == "head":
        outline = [(76.0 * s, 98.0 * t) for s in (-1.0, 1.0) for t in (-1.0, 1.0)]
    else:
        span = np.linspace(top - slice_mm * (slices - 1), top, 24).tolist()
        outline = [p for z in span for p in anatomy.outline(z)]
    spare = 3.0 + 2.2 * max(anatomy.warp_mm)
    left, right = min(p[0] for p in outline) - spare, max(p[0] for p in outline) + spare
    front, back = min(p[1] for p in outline) - spare, max(p[1] for p in outline) + spare + 14.0
    zoom = float(rng.uniform(1.02, 1.18))
    pixel_mm = round(zoom * max((right - left) / columns, (back - front) / rows), 4)
    room = 0.5 * (pixel_mm * columns - (right - left)), 0.5 * (pixel_mm * rows - (back - front))
    centre_x = 0.5 * (left + right) + float(rng.uniform(-0.5, 0.5)) * room[0]
    centre_y = 0.5 * (front + back) + float(rng.uniform(0.0, 0.5)) * room[1]
    x_mm = centre_x + pixel_mm * (np.arange(columns) - 0.5 * (columns - 1))
    y_mm = centre_y + pixel_mm * (np.arange(rows) - 0.5 * (rows - 1))
    radius = 0.5 * pixel_mm * min(columns, rows) - spare
    round_ = bool(rng.uniform() < 0.5) and all(
        (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2 for x, y in outline
    )
    offset = [round(float(v), 1) for v in rng.uniform((-20, -250, -900), (20, 50, 300))]

    kind = HeadRenderer if region == "head" else Renderer
    renderer = kind(anatomy, x_mm, y_mm, back - spare - 16.0)
    scanner = Scanner(seed, anatomy, x_mm, y_mm, slice_mm, round_)
    # Thick slices average what lies in them.
    parts = (0.0,) if slice_mm <= 3.5 else (0.0, -1.0 / 3.0, 1.0 / 3.0)
    image = np.empty((slices, rows, columns), np.int16)
    kidney = np.empty((slices, rows, columns), np.uint8)
    sides = np.empty((slices, rows, columns), np.uint8)
    for index in range(slices):
        z = top - slice_mm * index
        hu, kidney[index], sides[index], d_skin = renderer.plane(z)
        for part in parts[1:]:
            hu = hu + renderer.plane(z + part * slice_mm)[0]
        if len(parts) > 1:
            hu /= np.float32(len(parts))
        image[index] = scanner.acquire(hu, d_skin, z)
        if progress is not None:
            progress((index + 1) / slices)

    voxel_ml = slice_mm * pixel_mm * pixel_mm / 1000.0
    volumes = {
        name: round(float(np.count_nonzero(sides == label)) * voxel_ml, 2)
        for name, label in (("left", LEFT), ("right", RIGHT))
    }
    shown = [name for name, ml in volumes.items() if ml > 0.0]
    description: dict[str, Any] = {
        "seed": seed,
        "region": region,
        "phase": anatomy.phase,
        "kidneys": kidneys if region in ("abdomen", "trunk") else "none",
        "missing": [name for name in ("left", "right") if name not in shown],
        "size": (columns, rows, slices),
        "spacing_mm": (slice_mm, pixel_mm, pixel_mm),
        "volume_ml": volumes,
        "hu": {name: round(value, 1) for name, value in anatomy.hu.items()},
        "tumour": None,
        "cyst": None,
    }
    if region in ("abdomen", "trunk"):
        for name, lesion in (("tumour", anatomy.tumour), ("cyst", anatomy.cyst)):
            if lesion is not None:
                description[name] = {
                    "side": "left" if lesion.side > 0 else "right",
                    "diameter_mm": round(2.0 * max(lesion.radii), 1),
                    "growth": lesion.growth,
                }
        if description["tumour"] is not None:
            description["tumour"]["volume_ml"] = round(
                float(np.count_nonzero(kidney == TUMOUR)) * voxel_ml, 2
            )
    origin = (float(x_mm[0]) + offset[0], float(y_mm[0]) + offset[1], top + offset[2])
    spacing = (slice_mm, pixel_mm, pixel_mm)
    return Phantom(
        image=_to_kits(image, spacing, origin),
        kidney=_to_kits(kidney, spacing, origin),
        sides=_to_kits(sides, spacing, origin),
        description=description,
    )


def _to_kits(axial: Array, spacing: Point, origin: Point) -> sitk.Image:
    """An axial array (slices, rows, columns) as an image with the file axes of KiTS19."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(axial.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    # Column by column: the first axis runs to the feet, the second to the back, the third left.
    image.SetDirection((0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0))
    return image


# In a folder of nothing but generated cases: they are no patients of KiTS19, though named so.
MARK = "phantoms.json"


def write_cases(
    folder: Path,
    count: int,
    seed: int = 0,
    size: tuple[int, int, int] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Path]:
    """Write `count` case folders in the KiTS19 layout and return them.

    case_00000/imaging.nii.gz (HU), segmentation.nii.gz (1 kidney, 2 tumour), sides.nii.gz
    (1 left, 2 right) and so on. Cases of another seed are other patients. A case appears in
    the folder when it is complete; progress is called with the fraction done, 0 to 1.

    Raises UsageError if a case exists already or the folder cannot be made, KidneySegError if a
    file cannot be written.
    """
    folder = Path(folder)
    if count < 1:
        raise UsageError(f"The number of CTs to generate must be 1 or more, not {count}.")
    _check(seed, size)
    cases = [folder / f"case_{index:05d}" for index in range(count)]
    for case in cases:
        if case.exists():
            raise UsageError(
                f"{case} exists already and is not overwritten: choose another folder or remove it."
            )
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The folder {folder} cannot be made ({error.strerror}): choose another one."
        ) from error
    done: list[Path] = []
    try:
        for index, case in enumerate(cases):
            child = np.random.SeedSequence([seed, index]).generate_state(1)[0]

            def report(fraction: float, before: int = index) -> None:
                if progress is not None:
                    progress((before + fraction) / count)

            _write_case(case, generate(int(child), size, progress=report))
            done.append(case)
    finally:
        if not done:
            # Leave nothing behind that was not there before.
            for made in missing:
                if made.is_dir() and not any(made.iterdir()):
                    made.rmdir()
    return done


def _write_case(case: Path, phantom: Phantom) -> None:
    """Write beside the final place first: an interrupted run leaves no half a case."""
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{case.name}-", dir=case.parent))
    except OSError as error:
        raise UsageError(
            f"The folder {case.parent} cannot be written to ({error.strerror}): choose another one."
        ) from error
    try:
        for name, image in (
            ("imaging", phantom.image),
            ("segmentation", phantom.kidney),
            ("sides", phantom.sides),
        ):
            file = part / f"{name}.nii.gz"
            sitk.WriteImage(image, str(file), useCompression=True)
            _check_complete(file, image)
        part.chmod(0o755)  # a temporary folder is private to its maker, a case is not
        part.rename(case)
    except (RuntimeError, OSError, EOFError) as error:
        raise KidneySegError(
            f"{case} cannot be written: make room on the disk or choose another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_complete(file: Path, image: sitk.Image) -> None:
    """Raise EOFError for a file cut short: ITK says nothing when a disk is full."""
    voxels = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent()
    length = 0
    with gzip.open(file) as stream:
        while block := stream.read(1 << 22):
            length += len(block)
    if length < voxels:
        raise EOFError(f"{file} holds {length} of at least {voxels} bytes")
