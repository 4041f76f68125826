"""Where a volume of 3D Slicer's scene lies in the world, with all its parent transforms."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import slicer
import vtk

from KidneySegLib.errors import InputError
from KidneySegLib.volumes import SHEAR_DEGREES, shear_degrees

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Grid(NamedTuple):
    """A straight grid in world coordinates, LPS, in SimpleITK's order of axes."""

    size: tuple[int, int, int]
    spacing: list[float]
    origin: list[float]
    direction: list[list[float]]

    def placed(self, voxels: np.ndarray) -> sitk.Image:
        """An image of a copy of these voxels (slices, rows, columns as stored)."""
        return self._place(sitk.GetImageFromArray(voxels))

    def blank(self) -> sitk.Image:
        """An image of zeros, uint8."""
        return self._place(sitk.Image(self.size, sitk.sitkUInt8))

    def _place(self, image: sitk.Image) -> sitk.Image:
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection([cosine for row in self.direction for cosine in row])
        return image


def world_grid(node: Any) -> Grid:
    """The grid of a volume node with all its parent transforms.

    Axes that are off right angles by the rounding of a header or the residue of a registration
    are straightened, as in files.
    """
    matrix = _LPS_FROM_RAS @ _to_world(node) @ _ijk_to_ras(node)
    off = shear_degrees(matrix[:3, :3])
    if not off <= SHEAR_DEGREES:
        where = "lies under a transform that shears it" if node.GetParentTransformNode() else (
            "has axes that are not at right angles"
        )  # fmt: skip
        raise InputError(
            f"{node.GetName()} {where}; resample it to a straight grid (module Resample "
            "Scalar/Vector/DWI Volume) and choose the result."
        )
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    left, _, right = np.linalg.svd(matrix[:3, :3] / spacing)
    extent = node.GetImageData().GetExtent()
    origin = matrix @ (*extent[::2], 1)
    columns, rows, slices = node.GetImageData().GetDimensions()
    return Grid(
        (columns, rows, slices), spacing.tolist(), origin[:3].tolist(), (left @ right).tolist()
    )


def _ijk_to_ras(node: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def _to_world(node: Any) -> np.ndarray:
    """The matrix of all parent transforms of a node, in RAS."""
    matrix = vtk.vtkMatrix4x4()
    parent = node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        raise InputError(
            f"{node.GetName()} lies under a transform that is not linear ({parent.GetName()}); "
            "harden it (in the Data module, with a right click on the transform) or remove it."
        )
    if parent is not None:
        parent.GetMatrixTransformToWorld(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))
