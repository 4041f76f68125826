"""Patients made of ellipsoids, for whatever asks where kidneys lie."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from KidneySegLib.geometry import AxialGrid, to_axial


class Patient:
    """Ellipsoids in a body, placed in mm from its middle: x to the left, y back, z to the head."""

    def __init__(
        self,
        shape: tuple[int, int, int] = (36, 60, 84),
        spacing_mm: tuple[float, float, float] = (5.0, 4.0, 4.0),
        middle_x_mm: float = 0.0,
        tilt: float = 0.0,
    ) -> None:
        image = sitk.Image(*(int(n) for n in shape[::-1]), sitk.sitkUInt8)
        image.SetSpacing(spacing_mm[::-1])
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
        self.grid: AxialGrid = to_axial(image)[1]
        self.mask = np.zeros(shape, bool)
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        centre = self.grid.to_physical((np.array(shape) - 1) / 2)
        x, self.y, self.z = np.moveaxis(self.grid.to_physical(index) - centre, -1, 0)
        self.x = x - middle_x_mm - tilt * self.z
        self.ct = np.full(shape, -1000, np.int16)
        self.ct[(self.x / 130) ** 2 + (self.y / 90) ** 2 < 1] = 30

    def at(
        self, place: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> np.ndarray:
        """The voxels of an ellipsoid."""
        axes = zip((self.x, self.y, self.z), place, radii, strict=True)
        return np.asarray(sum(((at - p) / r) ** 2 for at, p, r in axes) < 1)

    def add(
        self, place: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> np.ndarray:
        """Mark an ellipsoid as kidney and return where it is."""
        here = self.at(place, radii)
        self.mask |= here
        return here

    def left(self) -> np.ndarray:
        return self.add((60, 25, 0), (25, 25, 50))

    def right(self) -> np.ndarray:
        return self.add((-60, 25, -10), (25, 25, 50))
