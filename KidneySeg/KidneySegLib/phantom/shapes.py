"""What phantoms are made of: smooth random fields and signed distances, both in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Box = tuple[slice, slice]
Point = tuple[float, float, float]


def spline(position: Array) -> tuple[Array, list[Array]]:
    """Index of the first of four knots and the cubic B-spline weights, float32."""
    first = np.floor(position)
    t = position - first
    u = 1.0 - t
    weights = [
        u * u * u / 6.0,
        (3.0 * t * t * t - 6.0 * t * t + 4.0) / 6.0,
        (3.0 * u * u * u - 6.0 * u * u + 4.0) / 6.0,
        t * t * t / 6.0,
    ]
    return first.astype(np.intp), [w.astype(np.float32) for w in weights]


class Field:
    """A smooth random field of unit standard deviation, defined in mm and not in voxels.

    Because its knots lie in mm, a seed shows the same patient at every matrix size.
    """

    LOW = (-340.0, -340.0, -340.0)
    HIGH = (340.0, 340.0, 440.0)

    def __init__(self, rng: np.random.Generator, knot_mm: float) -> None:
        shape = [
            int((high - low) / knot_mm) + 5 for low, high in zip(self.LOW, self.HIGH, strict=True)
        ]
        coefficients = rng.standard_normal((shape[2], shape[1], shape[0]), dtype=np.float32)
        # The variance of a cubic B-spline of unit noise is about 0.48 an axis.
        self._coefficients = coefficients * np.float32(0.48**-1.5)
        self._knot_mm = knot_mm

    def place(self, x_mm: Array, y_mm: Array) -> None:
        """Choose the columns (x_mm) and rows (y_mm) that `at` is sampled on."""
        self._columns = spline(self._knots(x_mm, 0))
        self._rows = spline(self._knots(y_mm, 1))

    def _knots(self, position_mm: Array, axis: int) -> Array:
        inside = np.clip(position_mm, self.LOW[axis], self.HIGH[axis])
        return (inside - self.LOW[axis]) / self._knot_mm

    def at(self, z_mm: float, box: Box | None = None) -> Array:
        """The field on the slice at z_mm, float32 of the box's (rows, columns)."""
        rows, columns = box if box is not None else (slice(None), slice(None))
        first, weights = spline(self._knots(np.array([z_mm]), 2))
        k = int(first[0])
        plane = self._coefficients[k] * weights[0][0]
        for m in range(1, 4):
            plane += self._coefficients[k + m] * weights[m][0]
        index, across = self._columns[0][columns], [w[columns] for w in self._columns[1]]
        wide = plane[:, index] * across[0]
        for m in range(1, 4):
            wide += plane[:, index + m] * across[m]
        index, down = self._rows[0][rows], [w[rows, None] for w in self._rows[1]]
        out = wide[index] * down[0]
        for m in range(1, 4):
            out += wide[index + m] * down[m]
        return out


def ellipsoid(x: Array, y: Array, z: Array, radii: Point) -> Array:
    """First-order distance to an axis-parallel ellipsoid about the origin."""
    rx, ry, rz = radii
    u, v, w = x / rx, y / ry, z / rz
    k1 = np.sqrt(u * u + v * v + w * w)
    u /= rx
    v /= ry
    w /= rz
    k2 = np.sqrt(u * u + v * v + w * w) + 1e-6
    return k1 * (k1 - 1.0) / k2


def smooth_min(a: Array, b: Array, k: float) -> Array:
    """Union of two shapes with a fillet of about k mm."""
    h = np.clip(0.5 + (0.5 / k) * (b - a), 0.0, 1.0)
    return b + h * (a - b) - k * h * (1.0 - h)


def ramp_between(values: Array, low: float, high: float) -> Array:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def curve_at(z: float, points: Sequence[tuple[float, float]]) -> float:
    """Piecewise linear profile along the body axis."""
    return float(np.interp(z, [p[0] for p in points], [p[1] for p in points]))


def frame_along(
    side: int, turn_deg: float, tip_medial: float, tip_back: float
) -> tuple[Point, Point, Point]:
    """Axes of a kidney in template space: lateral (away from the hilum), back, head.

    side is +1 on the left. turn_deg turns the hilum from medial to the front; tip_medial and
    tip_back are the sines of the upper pole's tilt.
    """
    up = unit_vector((-side * tip_medial, tip_back, 1.0))
    turn = math.radians(turn_deg)
    out = (side * math.cos(turn), math.sin(turn), 0.0)
    lean = sum(a * b for a, b in zip(out, up, strict=True))
    out = unit_vector(as_point(a - lean * b for a, b in zip(out, up, strict=True)))
    back = as_point(
        side * (up[i - 2] * out[i - 1] - up[i - 1] * out[i - 2]) for i in range(3)
    )  # the cross product
    return out, back, up


def unit_vector(vector: Point) -> Point:
    length = math.sqrt(sum(v * v for v in vector))
    return as_point(v / length for v in vector)


def as_point(values: Any) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z
