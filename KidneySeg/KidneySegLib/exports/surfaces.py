"""Closed surfaces of the structures of a label map, in mm, as STL or OBJ.

A surface runs through the middle between voxels inside and outside and is smoothed, which by
itself would shrink it; it is then moved until it encloses the volume of the voxels again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk

from KidneySegLib import __version__
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.geometry import bounding_box, to_axial
from KidneySegLib.writing import Segment, atomic, whole_folder

Space = Literal["LPS", "RAS"]
SPACES = ("LPS", "RAS")
SURFACES = {"stl": ".stl", "obj": ".obj"}

# The edge of the triangles: at most so many mm, and small enough for small structures.
_EDGE_MM = 1.0
_EDGES_ACROSS = 12
# Distances are smoothed over this share of a voxel, which flattens the steps between them, and
# over so many mm at least.
_SMOOTHING = 0.75
_SMOOTHING_MM = 0.9
# A surface is moved until its volume is off by no more than this share.
_TOLERANCE = 1e-3
_MOST_MOVES = 8
_MOST_POINTS = 30_000_000
# Around the box of a structure, in voxels, and as many times the largest distance between voxels:
# where slices are thick a surface moves as far sidewards as between them.
_LEAST_MARGIN = 4
_MARGIN_SPACINGS = 2.0


@dataclass(frozen=True)
class Surface:
    """A closed surface.

    Attributes
    ----------
    name
        Of the structure, such as `left_kidney`.
    points_mm
        float64 of shape (points, 3), LPS: x to the left, y to the back, z to the head.
    triangles
        int64 of shape (triangles, 3), indices of points, counter-clockwise seen from outside.
    """

    name: str
    points_mm: np.ndarray
    triangles: np.ndarray

    @property
    def volume_ml(self) -> float:
        """Enclosed volume: a sixth of the triple products of all triangles, summed (Gauss)."""
        return _volume_mm3(self.points_mm, self.triangles) / 1000.0


def surface(labels: sitk.Image, segment: Segment, name: str = "the label map") -> Surface:
    """The surface of one structure of a label map.

    The distance to the structure's border is smoothed and interpolated between slices (Raya and
    Udupa, IEEE Trans Med Imaging 9 (1990) 32); the surface is where it has the level that
    encloses the volume of the voxels to 0.1 %, by marching cubes (Lewiner et al., J Graphics
    Tools 8 (2003) 1).

    Parameters
    ----------
    labels
        3-D uint8.
    name
        What to call it in messages: its file name.

    Raises
    ------
    InputError
        The label map does not have the structure.
    UsageError
        scikit-image is not installed.
    """
    try:
        from skimage.measure import marching_cubes
    except ImportError as error:
        raise UsageError(
            'Surfaces need scikit-image; install it with: pip install "kidneyseg[exports]".'
        ) from error
    array, grid = to_axial(labels)
    mask = array == segment.label
    box = bounding_box(mask)
    if box is None:
        raise InputError(f"{name} has no {segment.name.lower()}, so there is no surface of it.")
    volume_mm3 = 1000.0 * grid.voxel_volume_ml * np.count_nonzero(mask)
    distance_mm, first, step_mm = _distance_mm(mask[box], grid.spacing_mm, volume_mm3)

    def at(level_mm: float) -> tuple[np.ndarray, np.ndarray, float]:
        vertices, triangles, _, _ = marching_cubes(distance_mm, level_mm)
        index = first + vertices.astype(np.float64) * (step_mm / np.array(grid.spacing_mm))
        points = grid.to_physical(index + [part.start for part in box])
        enclosed = _volume_mm3(points, triangles)
        if enclosed < 0:  # axial axes may be left-handed in space
            triangles, enclosed = triangles[:, ::-1], -enclosed
        return points, triangles.astype(np.int64), enclosed

    # As many points lie below the first level as make up the volume; from there by the secant.
    count = min(distance_mm.size - 1, max(1, round(volume_mm3 / step_mm**3)))
    level = float(np.partition(distance_mm, count, axis=None)[count])
    points, triangles, enclosed = at(level)
    slope = float(_area_mm2(points, triangles))
    for _ in range(_MOST_MOVES):
        if abs(enclosed - volume_mm3) <= _TOLERANCE * volume_mm3:
            break
        move = (volume_mm3 - enclosed) / slope
        before = enclosed
        points, triangles, enclosed = at(level + move)
        level += move
        slope = (enclosed - before) / move if enclosed != before else slope
    return Surface(segment.id, points, triangles)


def _distance_mm(
    mask: np.ndarray, spacing_mm: tuple[float, float, float], volume_mm3: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Smoothed distance in mm to the border of a mask, negative inside, on cubes.

    Returns
    -------
    float32 of shape (slices, rows, columns), the place of its first point in the indices of the
    mask, and the edge of its cubes in mm.
    """
    spacing = np.array(spacing_mm)
    edge_mm = min(_EDGE_MM, float(np.cbrt(volume_mm3)) / _EDGES_ACROSS)
    reach = np.ceil(_MARGIN_SPACINGS * spacing.max() / spacing).astype(int)
    margin = np.maximum(_LEAST_MARGIN, reach)
    image = sitk.GetImageFromArray(np.pad(mask, margin[:, np.newaxis]).astype(np.uint8))
    image.SetSpacing(spacing[::-1].tolist())
    extent_mm = (np.array(image.GetSize()[::-1]) - 1) * spacing
    edge_mm = max(edge_mm, float(np.cbrt(extent_mm.prod() / _MOST_POINTS)))

    distance = sitk.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    sigma_mm = np.maximum(_SMOOTHING * spacing, _SMOOTHING_MM)
    smoothed = sitk.SmoothingRecursiveGaussian(distance, sigma_mm[::-1].tolist())
    size = [int(n) for n in np.floor(extent_mm[::-1] / edge_mm) + 1]
    cubes = sitk.Resample(
        smoothed, size, sitk.Transform(), sitk.sitkBSpline, (0.0, 0.0, 0.0), [edge_mm] * 3
    )
    return sitk.GetArrayFromImage(cubes), -margin.astype(float), edge_mm


def _volume_mm3(points: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = np.moveaxis((points - points.mean(axis=0))[triangles], 1, 0)
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6.0)


def _area_mm2(points: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = np.moveaxis(points[triangles], 1, 0)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2.0)


def surfaces(
    labels: sitk.Image, segments: Sequence[Segment], name: str = "the label map"
) -> list[Surface]:
    """The surfaces of those structures that the label map has.

    Raises
    ------
    InputError
        It has none of them.
    UsageError
        scikit-image is not installed.
    """
    array = sitk.GetArrayViewFromImage(labels)
    found = [one for one in segments if (array == one.label).any()]
    if not found:
        raise InputError(f"{name} has no kidney, so there is no surface of it.")
    return [surface(labels, one, name) for one in found]


def write_surfaces(found: Sequence[Surface], path: Path | str, space: Space = "LPS") -> None:
    """Write surfaces as one `.stl` (binary) or `.obj` (an object each) in mm.

    The comment at the head of the file names the space, ``SPACE=LPS`` or ``SPACE=RAS``, as 3D
    Slicer writes and reads it.

    Parameters
    ----------
    space
        "LPS", as DICOM, ITK and 3D Slicer's own surfaces have it, or "RAS".

    Raises
    ------
    UsageError
        The name ends in something else.
    KidneySegError
        The file cannot be written; nothing has changed then.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SURFACES.values():
        raise UsageError(
            f"{path} must end in {' or '.join(SURFACES.values())}; choose such a name."
        )
    sign = np.array([1.0, 1.0, 1.0] if space == "LPS" else [-1.0, -1.0, 1.0])
    head = f"KidneySeg {__version__}, in mm. SPACE={space}"
    with atomic(path) as temporary:
        if suffix == ".stl":
            temporary.write_bytes(_stl(found, sign, head))
        else:
            with temporary.open("w", encoding="ascii", newline="\n") as file:
                file.writelines(_obj(found, sign, head))


def write_surface_folder(
    found: Sequence[Surface], folder: Path | str, kind: str, space: Space = "LPS"
) -> list[str]:
    """Write a file for each surface, called after its structure, such as `left_kidney.stl`.

    Parameters
    ----------
    folder
        New or empty.
    kind
        "stl" or "obj".

    Returns
    -------
    The names of the files.

    Raises
    ------
    UsageError
        The folder holds something.
    KidneySegError
        The folder cannot be written; nothing has changed then.
    """
    files = [one.name + SURFACES[kind] for one in found]
    with whole_folder(folder) as temporary:
        for file, one in zip(files, found, strict=True):
            write_surfaces([one], temporary / file, space)
    return files


def _stl(found: Sequence[Surface], sign: np.ndarray, head: str) -> bytes:
    """Binary STL: 80 bytes of comment, the number of triangles, then 50 bytes for each of them."""
    corners = np.concatenate([(one.points_mm * sign)[one.triangles] for one in found])
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records = np.zeros(
        len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")]
    )
    records["normal"] = np.divide(normals, lengths, out=normals, where=lengths > 0)
    records["corners"] = corners
    count = np.array(len(records), "<u4").tobytes()
    return head.encode("ascii").ljust(80) + count + records.tobytes()


def _obj(found: Sequence[Surface], sign: np.ndarray, head: str) -> list[str]:
    lines = [f"# {head}\n", "# vertex coordinates are measured in units, where 1 unit = 1 mm\n"]
    first = 1
    for one in found:
        lines.append(f"o {one.name}\n")
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in (one.points_mm * sign).tolist()]
        lines += [f"f {a} {b} {c}\n" for a, b, c in (one.triangles + first).tolist()]
        first += len(one.points_mm)
    return lines
