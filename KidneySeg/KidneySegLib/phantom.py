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

PHASES = ("plain", "arterial", "portal", "excretory")
KIDNEYS = ("both", "left", "right", "none", "horseshoe")
REGIONS = ("abdomen", "trunk", "chest", "pelvis", "head")

_THICKEST_SLICE_MM = 10.0

LEFT, RIGHT = 1, 2
KIDNEY, TUMOUR = 1, 2
AIR_HU, OUTSIDE_HU = -1000.0, -1024.0

# Tissue HU: plain, arterial, portal-venous, excretory.
_HU: dict[str, tuple[float, float, float, float]] = {
    "muscle": (52, 58, 64, 62),
    "liver": (56, 74, 112, 95),
    "spleen": (48, 125, 122, 98),
    "pancreas": (40, 105, 98, 78),
    "bowel wall": (38, 88, 92, 72),
    "aorta": (42, 320, 165, 122),
    "cava": (40, 75, 152, 118),
    "renal vein": (40, 175, 168, 122),
    "portal vein": (40, 135, 172, 122),
    "hepatic vein": (42, 72, 165, 116),
    "heart": (42, 210, 150, 115),
    "cortex": (33, 185, 188, 142),
    "medulla": (31, 88, 172, 146),
    "urine": (6, 7, 12, 650),
    "tumour": (37, 128, 98, 82),
}

# Lower edges of L5 to T1, mm above the middle of L2.
_VERTEBRA_EDGES_MM = (
    -127.0, -91.0, -54.0, -18.0, 18.0, 52.0, 83.0, 112.0, 139.0, 166.0, 192.0, 217.0, 241.0,
    264.0, 286.0, 307.0, 327.0, 347.0, 366.0, 385.0, 404.0, 423.0,
)  # fmt: skip

Array = np.ndarray
Box = tuple[slice, slice]
Point = tuple[float, float, float]


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


# --- smooth random fields -------------------------------------------------------------------------


def _spline(position: Array) -> tuple[Array, list[Array]]:
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


class _Field:
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
        self._columns = _spline(self._knots(x_mm, 0))
        self._rows = _spline(self._knots(y_mm, 1))

    def _knots(self, position_mm: Array, axis: int) -> Array:
        inside = np.clip(position_mm, self.LOW[axis], self.HIGH[axis])
        return (inside - self.LOW[axis]) / self._knot_mm

    def at(self, z_mm: float, box: Box | None = None) -> Array:
        """The field on the slice at z_mm, float32 of the box's (rows, columns)."""
        rows, columns = box if box is not None else (slice(None), slice(None))
        first, weights = _spline(self._knots(np.array([z_mm]), 2))
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


# --- signed distances, mm, negative inside --------------------------------------------------------


def _ellipsoid(x: Array, y: Array, z: Array, radii: Point) -> Array:
    """First-order distance to an axis-parallel ellipsoid about the origin."""
    rx, ry, rz = radii
    u, v, w = x / rx, y / ry, z / rz
    k1 = np.sqrt(u * u + v * v + w * w)
    u /= rx
    v /= ry
    w /= rz
    k2 = np.sqrt(u * u + v * v + w * w) + 1e-6
    return k1 * (k1 - 1.0) / k2


def _smooth_min(a: Array, b: Array, k: float) -> Array:
    """Union of two shapes with a fillet of about k mm."""
    h = np.clip(0.5 + (0.5 / k) * (b - a), 0.0, 1.0)
    return b + h * (a - b) - k * h * (1.0 - h)


def _ramp(values: Array, low: float, high: float) -> Array:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _curve(z: float, points: Sequence[tuple[float, float]]) -> float:
    """Piecewise linear profile along the body axis."""
    return float(np.interp(z, [p[0] for p in points], [p[1] for p in points]))


def _frame(
    side: int, turn_deg: float, tip_medial: float, tip_back: float
) -> tuple[Point, Point, Point]:
    """Axes of a kidney in template space: lateral (away from the hilum), back, head.

    side is +1 on the left. turn_deg turns the hilum from medial to the front; tip_medial and
    tip_back are the sines of the upper pole's tilt.
    """
    up = _unit((-side * tip_medial, tip_back, 1.0))
    turn = math.radians(turn_deg)
    out = (side * math.cos(turn), math.sin(turn), 0.0)
    lean = sum(a * b for a, b in zip(out, up, strict=True))
    out = _unit(_point(a - lean * b for a, b in zip(out, up, strict=True)))
    back = _point(
        side * (up[i - 2] * out[i - 1] - up[i - 1] * out[i - 2]) for i in range(3)
    )  # the cross product
    return out, back, up


def _unit(vector: Point) -> Point:
    length = math.sqrt(sum(v * v for v in vector))
    return _point(v / length for v in vector)


def _point(values: Any) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z


# --- anatomy --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tube:
    """A chain of points with radii, mm: vessel, bowel, ureter."""

    points: tuple[Point, ...]
    radii: tuple[float, ...]


@dataclass(frozen=True)
class _Lesion:
    side: int
    centre: Point
    radii: Point
    hu: float  # of a cyst its HU, of a tumour the difference from the phase's usual
    growth: str


@dataclass(frozen=True)
class _Kidney:
    side: int  # +1 left, -1 right
    centre: Point
    axes: tuple[Point, Point, Point]
    radii: Point
    bend_mm: float
    sinus: tuple[float, float, float]  # reach, width, length as fractions of the radii
    pelvis: float
    gap_mm: float
    pyramids: tuple[tuple[Point, float], ...]
    calyces: tuple[Point, ...]

    def to_template(self, local: Point) -> Point:
        """A point given as fractions of the radii along lateral, back, head."""
        bent = (
            local[0] * self.radii[0] - self.bend_mm * local[2] ** 2 + 0.35 * self.bend_mm,
            local[1] * self.radii[1],
            local[2] * self.radii[2],
        )
        return _point(
            self.centre[i] + sum(bent[j] * self.axes[j][i] for j in range(3)) for i in range(3)
        )


class _Anatomy:
    """Everything a seed decides about a patient, in template mm."""

    def __init__(
        self,
        seed: int,
        kidneys: str,
        phase: str | None,
        tumour: bool | None,
        cyst: bool | None,
    ) -> None:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
        self.rng = rng
        u = rng.uniform

        # Drawn first and always, so that a choice by the caller does not change the patient.
        drawn = PHASES[int(rng.choice(4, p=[0.2, 0.22, 0.43, 0.15]))]
        self.phase = drawn if phase is None else phase
        enhancement = u(0.8, 1.2)
        column = PHASES.index(self.phase)
        self.hu = {
            name: row[0] + (row[column] - row[0]) * enhancement for name, row in _HU.items()
        }
        if self.phase == "portal":
            # From the late corticomedullary to the nephrographic moment.
            self.hu["medulla"] = self.hu["cortex"] * u(0.8, 1.0)
        else:
            u()
        steatosis = max(0.0, u(-0.6, 1.0))
        self.hu["liver"] -= 45.0 * steatosis**2
        for name in self.hu:
            self.hu[name] += u(-3.0, 3.0)
        self.fat_hu = u(-112.0, -96.0)
        self.marrow_hu = u(110.0, 240.0)

        # Body: half width a and half depth b of the cavity inside the abdominal wall.
        self.obesity = u(0.0, 1.0) ** 1.4
        self.a = u(112.0, 128.0) + 22.0 * self.obesity
        self.b = u(74.0, 86.0) + 26.0 * self.obesity
        self.square = u(0.35, 0.75)
        self.fat_mm = (  # lateral, front, back
            4.0 + 26.0 * self.obesity * u(0.6, 1.1),
            6.0 + 34.0 * self.obesity * u(0.6, 1.2),
            6.0 + 30.0 * self.obesity * u(0.7, 1.3),
        )
        self.muscle = u(0.8, 1.15)
        self.turn = math.radians(max(-7.0, min(7.0, rng.normal(0.0, 2.5))))
        self.scoliosis = (u(-0.03, 0.03), u(-5.0, 5.0), u(-3.0, 3.0))
        self.lordosis = (u(-0.02, 0.02), u(-4.0, 4.0))
        self.warp_mm = (u(2.5, 5.5), u(2.0, 4.0), u(2.0, 5.0))
        self.age = u(0.0, 1.0)
        self.dome_mm = u(118.0, 142.0)

        self.fields = {
            name: _Field(rng, knot)
            for name, knot in (
                ("warp x", 75.0),
                ("warp y", 75.0),
                ("warp z", 75.0),
                ("lump", 24.0),
                ("texture", 8.0),
                ("vessel a", 27.0),
                ("vessel b", 27.0),
            )
        }
        self._vessels()
        self._gut()
        self._organs()
        self._kidneys(kidneys)
        self._lesions(tumour, cyst)

    # Scalars along the body axis ------------------------------------------------------------------

    def bend(self, z: float) -> tuple[float, float]:
        """Offset (x, y) of the spine at z: scoliosis and lordosis."""
        t = z / 150.0
        c1, c2, c3 = self.scoliosis
        return c1 * z + c2 * t * t + c3 * t * t * t, self.lordosis[0] * z + self.lordosis[1] * t * t

    def cavity(self, z: float) -> tuple[float, float, float]:
        """Half width, half depth and y of the centre of the cavity inside the wall."""
        a = self.a * _curve(z, (
            (-300, 0.46), (-235, 0.50), (-165, 0.72), (-110, 0.93), (-60, 0.99), (0, 0.97),
            (60, 1.0), (120, 0.99), (200, 0.93), (260, 0.82), (310, 0.62), (345, 0.42), (420, 0.3),
        ))  # fmt: skip
        b = self.b * _curve(z, (
            (-300, 0.60), (-230, 0.68), (-160, 0.86), (-100, 0.98), (0, 1.0), (60, 1.0),
            (130, 1.0), (220, 0.94), (290, 0.76), (340, 0.52), (420, 0.36),
        ))  # fmt: skip
        back = _curve(z, ((-300, 62), (-200, 66), (-130, 56), (0, 52), (100, 55), (300, 48)))
        return a, b, back - b

    def wall(self, z: float) -> tuple[float, float, float]:
        """Thickness of the muscular wall: lateral, front, back."""
        lateral = _curve(z, (
            (-300, 66), (-235, 62), (-165, 42), (-115, 21), (-70, 14), (0, 12), (60, 13),
            (150, 16), (230, 30), (300, 58), (345, 80), (420, 70),
        ))  # fmt: skip
        front = _curve(z, ((-300, 34), (-210, 14), (-120, 9), (90, 9), (200, 20), (300, 28)))
        back = _curve(z, ((-300, 40), (-200, 34), (-130, 20), (-95, 10), (90, 10), (250, 30)))
        return lateral * self.muscle, front * self.muscle, back * self.muscle

    def place(self, xn: float, yn: float, z: float) -> Point:
        """A point from fractions of the cavity's half width and half depth."""
        a, b, centre = self.cavity(z)
        return xn * a, centre + yn * b, z

    # Content --------------------------------------------------------------------------------------

    def _jitter(self, points: Sequence[Point], mm: float) -> tuple[Point, ...]:
        return tuple(_point(np.array(p) + self.rng.normal(0.0, mm, 3)) for p in points)

    def _vessels(self) -> None:
        u = self.rng.uniform
        r = u(7.5, 10.0) + 2.5 * self.age
        x = u(6.0, 13.0)
        fork = u(-88.0, -70.0)
        self.aorta = _Tube(
            ((x - 2, -10.0, 300.0), (x + 4, -16.0, 200.0), (x, -24.0, 90.0), (x, -32.0, 20.0),
             (x - 3, -35.0, fork)),
            (r + 3, r + 2.5, r + 1, r, r * 0.85),
        )  # fmt: skip
        y = u(-34.0, -28.0)
        self.cava = _Tube(
            ((-22.0, -48.0, 150.0), (-20.0, -42.0, 95.0), (-19.0, y - 4, 40.0), (-20.0, y, -20.0),
             (-18.0, y, fork - 10)),
            (13.0, 13.5, 11.5, 11.0, 10.5),
        )  # fmt: skip
        self.iliac_arteries = [
            _Tube(((x - 3, -35.0, fork), (s * 24 + 4, -28.0, fork - 45), (s * 52.0, -22.0, -170.0),
                   (s * 66.0, -62.0, -235.0), (s * 68.0, -85.0, -290.0)), (6.5, 5.8, 5.2, 5.0, 4.8))
            for s in (1, -1)
        ]  # fmt: skip
        self.iliac_veins = [
            _Tube(((-18.0, y, fork - 8), (s * 26.0, -14.0, fork - 52), (s * 50.0, -8.0, -175.0),
                   (s * 58.0, -56.0, -238.0), (s * 60.0, -78.0, -290.0)), (8.5, 7.0, 6.5, 6.0, 6.0))
            for s in (1, -1)
        ]  # fmt: skip
        top = u(22.0, 36.0)
        self.branches = [  # superior mesenteric artery, coeliac trunk
            _Tube(((x, -30.0, top), (x - 2, -50.0, top - 8), (x - 4, -58.0, top - 40),
                   (x - 8, -66.0, -60.0)), (4.0, 3.8, 3.4, 2.6)),
            _Tube(((x, -28.0, top + 14), (x, -50.0, top + 12), (-30.0, -62.0, top + 20)),
                  (4.0, 3.6, 2.8)),
            _Tube(((x, -50.0, top + 12), (42.0, -40.0, top + 22), (78.0, -12.0, top + 30)),
                  (3.2, 2.8, 2.4)),
        ]  # fmt: skip
        self.portal = [
            _Tube(((-4.0, -68.0, -50.0), (-7.0, -62.0, 0.0), (-10.0, -56.0, 18.0),
                   (-34.0, -60.0, 44.0), (-62.0, -62.0, 58.0)), (5.0, 6.0, 7.5, 7.5, 5.5)),
            _Tube(((-10.0, -56.0, 18.0), (34.0, -46.0, 28.0), (76.0, -16.0, 44.0)),
                  (6.0, 4.8, 4.0)),
        ]  # fmt: skip

    def _gut(self) -> None:
        u, p, rng = self.rng.uniform, self.place, self.rng
        # What a lumen holds: (HU of the liquid or stool, level of gas as a fraction of the depth,
        # mottle). A level of -1 means no gas, 1 only gas.
        self.oral_hu = float(rng.choice([12.0, 15.0, 210.0, 330.0], p=[0.4, 0.25, 0.2, 0.15]))
        self.stomach = _Tube(
            self._jitter(
                (p(0.36, 0.12, 92), p(0.48, -0.2, 66), p(0.44, -0.45, 34), p(0.12, -0.62, 8),
                 p(-0.22, -0.45, 4)), 5.0),
            tuple(u(0.75, 1.15) * r for r in (30.0, 32.0, 28.0, 21.0, 11.0)),
        )  # fmt: skip
        self.stomach_level = u(-0.55, 0.3)
        self.colon = _Tube(
            self._jitter(
                (p(-0.62, 0.1, -150), p(-0.76, 0.32, -90), p(-0.78, 0.35, -35), p(-0.72, 0.1, -2),
                 p(-0.42, -0.55, -12), p(0.0, -0.72, -30 + u(-35, 15)), p(0.42, -0.6, 0),
                 p(0.74, 0.0, 34), p(0.83, 0.3, -5), p(0.81, 0.38, -70), p(0.68, 0.28, -130),
                 p(0.45, 0.0, -170), p(0.15, 0.3, -190), p(0.0, 0.72, -225), p(0.0, 0.8, -285)),
                5.0),
            tuple(u(0.8, 1.2) * r for r in
                  (25, 23, 21, 22, 19, 18, 18, 18, 15, 14, 14, 15, 16, 17, 14)),
        )  # fmt: skip
        self.colon_gas = u(0.2, 0.9)
        self.duodenum = _Tube(
            self._jitter(((-26.0, -62.0, 14.0), (-46.0, -48.0, 6.0), (-47.0, -38.0, -26.0),
                          (-26.0, -46.0, -42.0), (12.0, -50.0, -36.0), (30.0, -56.0, -6.0)), 3.0),
            (12.0, 12.0, 12.0, 11.0, 10.0, 10.0),
        )  # fmt: skip
        loops = []
        density = 1.1 - 0.4 * self.obesity
        for xn in np.linspace(-0.64, 0.64, 7).tolist():
            for yn in (-0.62, -0.22, 0.15):
                for z in range(-195, 25, 30):
                    start = np.array(p(xn, yn, z)) + rng.normal(0.0, 9.0, 3)
                    along = rng.normal(0.0, 1.0, 3)
                    along *= u(8.0, 26.0) / math.sqrt(float(along @ along))
                    kind = int(rng.choice(4, p=[0.38, 0.34, 0.16, 0.12]))
                    radius = (u(8.5, 12.5), u(11.0, 17.0), u(11.0, 18.0), u(10.0, 15.0))[kind]
                    if u() < density and (z < 0 or abs(xn) < 0.5):
                        loops.append((_point(start - along), _point(start + along), radius, kind))
        self.loops = loops

    def _organs(self) -> None:
        u = self.rng.uniform
        self.liver = (
            (-0.55 * self.a, u(-46.0, -34.0), u(50.0, 64.0)),
            (u(0.56, 0.66) * self.a, u(78.0, 95.0), u(74.0, 94.0)),
            (u(-12.0, 12.0), -0.95 * self.b, u(70.0, 88.0)),
            (u(58.0, 92.0), u(34.0, 46.0), u(34.0, 46.0)),
        )
        self.gallbladder = (
            (-0.42 * self.a, self.place(0, -0.32, 0)[1], u(-8.0, 12.0)),
            (u(11.0, 18.0), u(12.0, 18.0), u(24.0, 34.0)),
            u() < 0.85,
        )
        self.spleen = (
            (0.80 * self.a, u(-2.0, 12.0), u(56.0, 74.0)),
            (u(34.0, 46.0), u(46.0, 58.0), u(44.0, 62.0)),
        )
        self.pancreas = _Tube(
            self._jitter(((-32.0, -52.0, -14.0), (-27.0, -60.0, 6.0), (-4.0, -66.0, 16.0),
                          (28.0, -52.0, 24.0), (56.0, -30.0, 32.0), (76.0, -10.0, 40.0)), 3.0),
            tuple(u(0.8, 1.2) * r for r in (12.0, 13.0, 9.0, 9.5, 9.0, 7.0)),
        )  # fmt: skip
        self.table_mm = u(0.0, 6.0)
        self.table_curve = u(1.0 / 1500, 1.0 / 700)
        self.table_hu = u(-150.0, 250.0)
        self.table_kind = int(self.rng.integers(0, 2))

    def _kidneys(self, kidneys: str) -> None:
        u, rng = self.rng.uniform, self.rng
        self.kidneys: list[_Kidney] = []
        self.isthmus: _Tube | None = None
        common = rng.normal(0.0, 8.0)
        general = u(0.97, 1.15)
        for side, name in ((1, "left"), (-1, "right")):
            z = common + (7.0 if side > 0 else -8.0) + rng.normal(0.0, 6.0)
            size = general * u(0.94, 1.07)
            radii = [
                u(27.5, 33.0) * size,
                u(19.5, 24.5) * size,
                u(50.0, 58.0) * size,
            ]
            x = 0.3 * self.a + 25.0 + u(-4.0, 5.0) + 6.0 * self.obesity
            y = u(-2.0, 8.0) - 8.0 * self.obesity
            turn, medial, back = u(22.0, 50.0), u(0.14, 0.32), u(0.06, 0.24)
            bend, sinus = u(4.0, 9.0), (u(0.02, 0.34), u(0.3, 0.46), u(0.38, 0.54))
            gap = u(1.0, 4.0) + 9.0 * self.obesity * u(0.4, 1.0)
            # A dilated pelvis now and then: urine is not fat, and not parenchyma either.
            pelvis, dilated, widening = u(0.6, 1.25), u() < 0.12, u(0.5, 1.2)
            if dilated:
                pelvis += widening
            pyramids = []
            for w in (-0.72, -0.42, -0.1, 0.22, 0.52, 0.76):
                for angle in (-62.0, 0.0, 62.0) if abs(w) < 0.6 else (-30.0, 30.0):
                    at = math.radians(angle + rng.normal(0.0, 9.0))
                    shrink = math.sqrt(1.0 - 0.6 * w * w)
                    pyramids.append((
                        (0.56 * shrink * math.cos(at) + 0.02, 0.60 * shrink * math.sin(at),
                         w * 0.95 + rng.normal(0.0, 0.03)),
                        u(5.2, 7.2) * size,
                    ))  # fmt: skip
            calyces = tuple(
                (u(-0.05, 0.16), u(-0.22, 0.22), w + rng.normal(0.0, 0.04))
                for w in (-0.46, -0.16, 0.14, 0.44)
            )
            if kidneys == "horseshoe":
                z, medial, turn = common - 26.0, -u(0.2, 0.3), u(50.0, 70.0)
                x, y = max(x - 4.0, 56.0), y - 6.0
            elif kidneys in ("left", "right"):
                # A single kidney does the work of two and is larger.
                radii = [r * 1.1 for r in radii]
            kidney = _Kidney(
                side, (side * x, y, z), _frame(side, turn, medial, back), _point(radii), bend,
                sinus, pelvis, gap, tuple(pyramids), calyces,
            )  # fmt: skip
            if kidneys in ("both", "horseshoe", name):
                self.kidneys.append(kidney)
        thickness = u(11.0, 15.0)
        if kidneys == "horseshoe":
            ends = [k.to_template((-0.1, 0.0, -0.72)) for k in self.kidneys]
            low = min(p[2] for p in ends) - 4.0
            x_left, x_right = 0.55 * ends[0][0], 0.55 * ends[1][0]
            self.isthmus = _Tube(
                (ends[0], (x_left, -40.0, low), (0.0, -58.0, low - 2), (x_right, -40.0, low),
                 ends[1]),
                (16.0, thickness + 1, thickness, thickness + 1, 16.0),
            )  # fmt: skip
        self.renal_arteries, self.renal_veins, self.ureters = [], [], []
        for k in self.kidneys:
            hilum = k.to_template((-0.95, -0.05, 0.02))
            inside = k.to_template((-0.45, 0.0, 0.02))
            branches = [
                k.to_template((-0.05, v, w))
                for v, w in ((-0.22, 0.34), (0.2, -0.3), (0.24, 0.2), (-0.24, -0.16), (0.0, 0.42))
            ]
            z = hilum[2]
            start = self.aorta.points[3]
            self.renal_arteries.append(
                _Tube(((start[0], -30.0, z + 10), (0.55 * hilum[0], -18.0, z + 5), hilum, inside),
                      (3.2, 3.0, 2.6, 2.0))
            )  # fmt: skip
            over = (
                ((4.0, -48.0, z + 8), (-16.0, -38.0, z + 9))
                if k.side > 0
                else ((-22.0, -34.0, z + 5),)
            )
            middle = (0.6 * hilum[0], hilum[1] - 9.0, z + 3)
            self.renal_veins.append(
                _Tube(
                    (*reversed(over), middle, hilum, inside),
                    (*(5.0,) * len(over), 5.2, 4.6, 2.6),
                )
            )
            for end in branches:
                self.renal_veins.append(_Tube((inside, end), (2.7, 1.9)))
            self.ureters.append(
                _Tube(
                    (k.to_template((-0.75, 0.05, -0.05)), k.to_template((-1.15, -0.05, -0.4)),
                     (k.side * 40.0, -16.0, z - 62), (k.side * 38.0, -20.0, -120.0),
                     (k.side * 46.0, -12.0, -185.0), (k.side * 22.0, -30.0, -245.0)),
                    (4.5, 3.0, 2.0, 2.0, 2.0, 2.0))
            )  # fmt: skip

    def _lesions(self, tumour: bool | None, cyst: bool | None) -> None:
        u, rng = self.rng.uniform, self.rng
        self.tumour: _Lesion | None = None
        self.cyst: _Lesion | None = None
        drawn = (u() < 0.4, u() < 0.4)
        wanted = (drawn[0] if tumour is None else tumour, drawn[1] if cyst is None else cyst)
        levels: list[float] = []
        pick = (int(rng.integers(0, 2)), int(rng.integers(0, 2)))
        for index, kind in enumerate(("tumour", "cyst")):
            # Sizes of tumours are skewed: most are small, a few replace half of the kidney.
            radius = 7.0 + 24.0 * u() ** 2 if kind == "tumour" else 4.0 + 18.0 * u() ** 2
            angle, level = math.radians(u(-75.0, 75.0)), u(-0.8, 0.8)
            if kind == "cyst" and self.tumour is not None and pick[0] == pick[1]:
                # Not where the tumour is: the other pole.
                level = math.copysign(u(0.45, 0.8), -levels[0])
            levels.append(level)
            depth = u(0.45, 1.0)
            growth = "exophytic" if depth > 0.72 else "endophytic"
            shape = _point((radius * u(0.88, 1.15), radius * u(0.88, 1.15), radius * u(0.9, 1.1)))
            shift = u(-22.0, 22.0) if kind == "tumour" else u(0.0, 20.0)
            if not (wanted[index] and self.kidneys):
                continue
            k = self.kidneys[pick[index] % len(self.kidneys)]
            ring = math.sqrt(max(0.1, 1.0 - level * level)) * depth
            centre = k.to_template((ring * math.cos(angle), ring * math.sin(angle), level * depth))
            lesion = _Lesion(k.side, centre, shape, shift, growth)
            if kind == "tumour":
                self.tumour = lesion
            else:
                self.cyst = lesion

    def kidney_range(self) -> tuple[float, float]:
        """Lowest and highest z a kidney, tumour or cyst may reach, deformation included."""
        low, high = -70.0, 70.0
        if self.kidneys:
            low = min(k.centre[2] - k.radii[2] for k in self.kidneys) - 6.0
            high = max(k.centre[2] + k.radii[2] for k in self.kidneys) + 6.0
        if self.isthmus is not None:
            low = min(low, min(p[2] for p in self.isthmus.points) - 18.0)
        for lesion in (self.tumour, self.cyst):
            if lesion is not None:
                low = min(low, lesion.centre[2] - lesion.radii[2] - 4.0)
                high = max(high, lesion.centre[2] + lesion.radii[2] + 4.0)
        margin = 2.5 * self.warp_mm[2]
        return low - margin, high + margin

    def outline(self, z: float, count: int = 48) -> list[tuple[float, float]]:
        """Points (x, y) of the skin in scanner space at z, deformation excluded."""
        a, b, centre = self.cavity(z)
        lateral, front, back = self.wall(z)
        points = []
        for i in range(count):
            c, s = math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)
            q = self.square
            n2 = (c / a) ** 2 + (s / b) ** 2
            n4 = (c / a) ** 4 + (s / b) ** 4
            radius = 1.0 / (q * n4 + (1 - q) * n2 * n2) ** 0.25
            extra = [
                (lateral, front, back)[m] + self.fat_mm[m] for m in range(3)
            ]
            toward = extra[1] if s < 0 else max(extra[2], 30.0 * self.muscle + 0.8 * self.fat_mm[2])
            radius += extra[0] + (toward - extra[0]) * s * s
            dx, dy = self.bend(z)
            x, y = radius * c + dx, centre + radius * s + dy
            points.append((
                math.cos(self.turn) * x - math.sin(self.turn) * y,
                math.sin(self.turn) * x + math.cos(self.turn) * y,
            ))  # fmt: skip
        return points


# --- rendering ------------------------------------------------------------------------------------


class _Renderer:
    """Samples an anatomy on slices: HU and labels of one plane at a time, so memory stays low."""

    MARGIN_MM = 16.0  # how far turning, bending and deformation may move a point out of its box

    def __init__(self, anatomy: _Anatomy, x_mm: Array, y_mm: Array, back_mm: float) -> None:
        self.an = anatomy
        self.x_mm, self.y_mm = x_mm, y_mm
        self.back_mm = back_mm
        pixel = float(x_mm[1] - x_mm[0]) if len(x_mm) > 1 else 1.0
        # A reconstruction kernel is never sharper than about a millimetre.
        self.edge_mm = max(1.1, pixel)
        for field in anatomy.fields.values():
            field.place(x_mm, y_mm)
        self.cos, self.sin = math.cos(anatomy.turn), math.sin(anatomy.turn)
        x, y = x_mm.astype(np.float32)[None, :], y_mm.astype(np.float32)[:, None]
        self._turned = self.cos * x + self.sin * y, self.cos * y - self.sin * x

    # Tools ----------------------------------------------------------------------------------------

    def _box(self, centre: Point, half: Point) -> Box | None:
        """Rows and columns that a template box may reach on this slice, None if it does not."""
        if abs(self.z - centre[2]) > half[2] + self.MARGIN_MM:
            return None
        dx, dy = self.an.bend(self.z)
        x, y = centre[0] + dx, centre[1] + dy
        wx, wy = self.cos * x - self.sin * y, self.sin * x + self.cos * y
        spread = abs(self.sin)
        hx = half[0] + spread * half[1] + self.MARGIN_MM
        hy = half[1] + spread * half[0] + self.MARGIN_MM
        columns = np.searchsorted(self.x_mm, (wx - hx, wx + hx))
        rows = np.searchsorted(self.y_mm, (wy - hy, wy + hy))
        if columns[0] == columns[1] or rows[0] == rows[1]:
            return None
        return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))

    def _field(self, name: str, box: Box | None = None) -> Array:
        """A random field on this slice; whole planes are computed once."""
        if name not in self._planes:
            self._planes[name] = self.an.fields[name].at(self.z)
        plane = self._planes[name]
        return plane if box is None else plane[box]

    def _cover(self, distance: Array, width: float = 1.0) -> Array:
        """Fraction of a pixel inside the surface: the partial volume."""
        return np.clip(0.5 - distance / (self.edge_mm * width), 0.0, 1.0)

    def _paint(self, box: Box, cover: Array, hu: Array | float) -> None:
        view = self.image[box]
        view += cover * (hu - view)

    def _local(self, box: Box, centre: Point) -> tuple[Array, Array, Array]:
        return self.x[box] - centre[0], self.y[box] - centre[1], self.zz[box] - centre[2]

    def _away(self, box: Box, distance: Array, gap_mm: float) -> Array:
        """Organs give way to the kidneys and leave the perirenal fat free."""
        if not self.near_kidney:
            return distance
        return np.maximum(distance, gap_mm * self._gap[box] - self.keep[box])

    def _tube(self, tube: _Tube, lump: float = 0.0) -> tuple[Box, Array] | None:
        """Distance to a chain of cones, on the box of the parts that reach this slice."""
        near = []
        for (p, q), (r, s) in zip(
            zip(tube.points[:-1], tube.points[1:], strict=True),
            zip(tube.radii[:-1], tube.radii[1:], strict=True),
            strict=True,
        ):
            widest = max(r, s) + abs(lump)
            low, high = min(p[2], q[2]) - widest, max(p[2], q[2]) + widest
            if low - self.MARGIN_MM <= self.z <= high + self.MARGIN_MM:
                near.append((p, q, r, s, widest))
        if not near:
            return None
        lows = [min(min(p[i], q[i]) - w for p, q, _, _, w in near) for i in range(3)]
        highs = [max(max(p[i], q[i]) + w for p, q, _, _, w in near) for i in range(3)]
        centre = _point((lo + hi) / 2 for lo, hi in zip(lows, highs, strict=True))
        half = _point((hi - lo) / 2 for lo, hi in zip(lows, highs, strict=True))
        box = self._box(centre, half)
        if box is None:
            return None
        distance = np.full(self.x[box].shape, 99.0, np.float32)
        for p, q, r, s, w in near:
            middle = _point((p[i] + q[i]) / 2 for i in range(3))
            part = self._box(middle, _point(abs(p[i] - q[i]) / 2 + w for i in range(3)))
            if part is None:
                continue
            x, y, z = self._local(part, p)
            d = [q[i] - p[i] for i in range(3)]
            length2 = d[0] ** 2 + d[1] ** 2 + d[2] ** 2
            t = np.clip((x * d[0] + y * d[1] + z * d[2]) / length2, 0.0, 1.0)
            x -= t * d[0]
            y -= t * d[1]
            z -= t * d[2]
            inner = (
                slice(part[0].start - box[0].start, part[0].stop - box[0].start),
                slice(part[1].start - box[1].start, part[1].stop - box[1].start),
            )
            view = distance[inner]
            np.minimum(view, np.sqrt(x * x + y * y + z * z) - (r + (s - r) * t), out=view)
        if lump:
            distance += lump * self._field("lump", box)
        return box, distance

    def _vessel(self, tube: _Tube, hu: float, wall_hu: float | None = None) -> None:
        found = self._tube(tube)
        if found is None:
            return
        box, distance = found
        if wall_hu is not None:
            self._paint(box, self._cover(distance - 1.2), wall_hu)
        self._paint(box, self._cover(distance), hu)

    # One plane ------------------------------------------------------------------------------------

    def plane(self, z: float) -> tuple[Array, Array, Array, Array]:
        """HU (float32), kidney label, side label and distance from the skin of the plane at z."""
        an = self.an
        self.z = z
        self._planes: dict[str, Array] = {}
        dx, dy = an.bend(z)
        warp = [w * self._field(f"warp {n}") for w, n in zip(an.warp_mm, "xyz", strict=True)]
        self.x = self._turned[0] - dx + warp[0]
        self.y = self._turned[1] - dy + warp[1]
        self.zz = z + warp[2]
        shape = self.x.shape
        self.image = np.full(shape, AIR_HU, np.float32)
        self.label = np.zeros(shape, np.uint8)
        self.side = np.zeros(shape, np.uint8)
        self.everywhere: Box = (slice(0, shape[0]), slice(0, shape[1]))

        self._body()
        self._kidney_shapes()
        self._thorax()
        self._bowel()
        self._upper_organs()
        self._muscles()
        self._great_vessels()
        self._ribs()
        self._spine_and_pelvis()
        self._paint_kidneys()
        self._table()
        return self.image, self.label, self.side, self.d_skin

    def _body(self) -> None:
        an = self.an
        a, b, centre = an.cavity(self.z)
        y = self.y - centre
        u, v = self.x / a, y / b
        u *= u
        v *= v
        q = an.square
        n = np.sqrt(np.sqrt(q * (u * u + v * v) + (1 - q) * (u + v) * (u + v))) + 1e-6
        rho = np.sqrt(self.x * self.x + y * y) + 1e-3
        self.depth = n  # 1 on the wall of the cavity, 0 on its axis
        self.d_cage = rho - rho / n
        s = y / rho
        s2 = s * s
        self.back_of_axis = s
        behind = s > 0
        lateral, front, back = an.wall(self.z)
        wall_mm = lateral + np.where(behind, back - lateral, front - lateral) * s2
        lump, texture = self._field("lump"), self._field("texture")
        # The long muscles of the back fill the room between the arches and the skin.
        erector_x = an.muscle * _curve(
            self.z, ((-215, 6), (-150, 30), (-60, 37), (60, 35), (200, 27))
        )
        erector_y = an.muscle * _curve(
            self.z, ((-215, 4), (-150, 20), (-60, 29), (60, 25), (200, 17))
        )
        ahead = _curve(self.z, ((-215, 52), (-130, 30), (-60, 20), (40, 21), (75, 36), (110, 48)))
        erector = _ellipsoid(
            np.abs(self.x) - erector_x + 2.0, self.y - ahead - erector_y, np.zeros_like(rho),
            (erector_x, erector_y, 1e3),
        )  # fmt: skip
        d_muscle = _smooth_min(self.d_cage - wall_mm, erector, 8.0)
        self.d_cavity = np.maximum(self.d_cage, -erector)
        fat_l, fat_f, fat_b = an.fat_mm
        fat_mm = fat_l + np.where(behind, fat_b - fat_l, fat_f - fat_l) * s2
        self.d_skin = _smooth_min(self.d_cage - wall_mm - fat_mm, erector - 0.75 * fat_b, 22.0)

        everywhere = self.everywhere
        fat = an.fat_hu + 5.0 * texture
        self._paint(everywhere, self._cover(self.d_skin), 12.0)
        # Fine septa run through the subcutaneous fat.
        septa = np.clip(1.0 - np.abs(self._field("vessel a")) * 14.0, 0.0, 1.0)
        self._paint(everywhere, self._cover(self.d_skin + 2.2), fat + 38.0 * septa)
        muscle = self._muscle_hu()
        # Three layers with fat between them at the sides, a white line in front.
        layer = self.d_cage / wall_mm + 0.06 * lump
        lines = np.maximum(
            np.clip(1.0 - np.abs(layer - 0.36) * 10.0, 0.0, 1.0),
            np.clip(1.0 - np.abs(layer - 0.68) * 10.0, 0.0, 1.0),
        )
        lines *= np.clip(0.45 + 0.4 * self._field("vessel b"), 0.0, 0.9)
        lines *= _ramp(np.abs(self.x), 45.0, 75.0)
        lines = np.maximum(lines, 0.6 * np.clip(1.0 - np.abs(self.x) * 0.22, 0.0, 1.0) * (s < 0))
        muscle = muscle + lines * (an.fat_hu - muscle) * (erector > 0)
        self._paint(everywhere, self._cover(d_muscle + 0.8 * lump), muscle)
        strands = np.clip(1.0 - np.abs(self._field("vessel b")) * 16.0, 0.0, 1.0)
        self._paint(everywhere, self._cover(self.d_cavity), fat + 3.0 + 30.0 * strands * (n < 0.9))
        # Fat between the muscles of the back, more of it with age.
        x = np.abs(self.x) + 3.0 * lump
        seam = np.clip(1.0 - np.abs(x - 0.9 * erector_x - 0.3 * (self.y - 60.0)) * 0.6, 0.0, 1.0)
        seam = np.maximum(seam, np.clip(1.0 - np.abs(self.x) * 0.6, 0.0, 1.0))
        near_bone = np.clip((ahead + 16.0 - self.y) * 0.06, 0.0, 0.7) * (texture > 0.2)
        seam = np.maximum(seam * (0.35 + 0.4 * an.age), near_bone) * self._cover(erector + 2.0)
        self._paint(everywhere, seam, an.fat_hu + 15.0)

    def _muscle_hu(self, box: Box | None = None) -> Array:
        """Muscle with the fatty infiltration that comes with age."""
        texture, strand = self._field("texture", box), self._field("vessel a", box)
        streak = np.clip(1.0 - np.abs(strand + 0.5 * texture) * 4.0, 0.0, 1.0)
        return self.an.hu["muscle"] + 3.0 * texture - (8.0 + 50.0 * self.an.age**2) * streak

    def _kidney_shapes(self) -> None:
        """Distances of the kidneys on this slice, before anything that has to give way to them."""
        an = self.an
        self.shapes: list[dict[str, Any]] = []
        self.near_kidney = False
        if not an.kidneys:
            return
        reach = max(max(k.radii) for k in an.kidneys) + 40.0
        if all(abs(self.z - k.centre[2]) > reach for k in an.kidneys):
            return
        self.near_kidney = True
        self.keep = np.full(self.x.shape, 99.0, np.float32)
        # Perirenal fat: thick here, a bare line there, so that liver and spleen touch the kidney.
        self._gap = np.clip(0.45 + 0.55 * self._field("lump"), 0.05, 1.6)
        for k in an.kidneys:
            side = max(k.radii[0], k.radii[1]) + 14.0
            tall = k.radii[2] + 10.0
            lean = 0.35 * tall
            box = self._box(k.centre, (side + lean + 20.0, side + lean + 20.0, tall))
            if box is None:
                continue
            x, y, z = self._local(box, k.centre)
            out, back, up = k.axes
            w = x * up[0] + y * up[1] + z * up[2]
            wn = w / k.radii[2]
            p = x * out[0] + y * out[1] + z * out[2] + k.bend_mm * (wn * wn - 0.35)
            v = x * back[0] + y * back[1] + z * back[2]
            lump, texture = self._field("lump", box), self._field("texture", box)
            surface = _ellipsoid(p, v, w, k.radii) + 1.3 * lump + 0.45 * texture
            reach_, width, length = k.sinus
            ru, rv, rw = k.radii
            # A slot from the hilum into the middle, narrower where it opens to the outside.
            sinus = _ellipsoid(
                p + (1.0 - 0.5 * (1.0 + reach_)) * ru + 0.06 * ru, v + 0.05 * rv, w,
                (0.5 * (1.0 + reach_) * ru, width * rv, length * rw),
            ) + 1.6 * lump + 0.8 * texture  # fmt: skip
            lip = np.maximum(np.abs(v) - 0.4 * rv, np.abs(w) - 0.36 * rw)
            opening = np.maximum(np.maximum(p + 0.6 * ru, lip), -(p + 1.6 * ru))
            sinus = _smooth_min(sinus, opening + 1.2 * lump, 4.0)
            self.shapes.append(
                {"kidney": k, "box": box, "p": p, "v": v, "w": w, "sinus": sinus,
                 "surface": surface, "texture": texture}
            )  # fmt: skip
        for shape in self.shapes:
            # The kidney lies inside the wall and in front of the vertebrae.
            box = shape["box"]
            limit = self.d_cavity[box] + 2.5
            spine = 31.0 - np.sqrt(self.x[box] ** 2 + (self.y[box] - 4.0) ** 2)
            limit = np.maximum(limit, spine)
            # Pressed against them it flattens and keeps no sharp edge.
            shape["surface"] = -_smooth_min(-shape["surface"], -limit, 7.0)
            view = self.keep[box]
            np.minimum(view, shape["surface"], out=view)
        self.bridge = self._tube(an.isthmus, 0.8) if an.isthmus is not None else None
        if self.bridge is not None:
            box, d = self.bridge
            front = 40.0 - np.sqrt(self.x[box] ** 2 + (self.y[box] + 2.0) ** 2)
            self.bridge = box, np.maximum(d, front)
            view = self.keep[box]
            np.minimum(view, self.bridge[1], out=view)
        self.growths: dict[str, tuple[Box, Array, _Lesion]] = {}
        for name, lesion, rough in (("tumour", an.tumour, 1.0), ("cyst", an.cyst, 0.25)):
            if lesion is None:
                continue
            box = self._box(lesion.centre, _point(r + 6.0 for r in lesion.radii))
            if box is None:
                continue
            d = _ellipsoid(*self._local(box, lesion.centre), lesion.radii)
            d += rough * (0.9 * self._field("lump", box) + 0.5 * self._field("texture", box))
            spine = 33.0 - np.sqrt(self.x[box] ** 2 + (self.y[box] - 4.0) ** 2)
            d = np.maximum(d, np.maximum(self.d_cavity[box] + 2.5, spine))
            self.growths[name] = box, d, lesion
            view = self.keep[box]
            np.minimum(view, d, out=view)

    def _thorax(self) -> None:
        """Lungs over the domes of the diaphragm, heart, airways."""
        an = self.an
        if self.z < -15.0:
            return
        left = _ramp(self.x, -15.0, 25.0)
        n2 = np.clip(self.depth, 0.0, 1.2)
        n2 = n2 * n2
        # The domes fall steeply at the wall, deepest at the back and the side.
        front = np.clip(-self.back_of_axis, 0.0, 1.0)
        dome = an.dome_mm - 12.0 * left - 12.0 * (1.0 - np.abs(self.x) / an.a)
        dome -= 34.0 * n2 + (66.0 - 46.0 * front) * (n2 * n2) * (n2 * n2)
        d = np.maximum((dome - self.zz) * (0.25 + 0.55 * (1.0 - n2 * n2)), self.d_cavity + 2.0)
        self.d_lung = d
        if self.z < 8.0:
            return
        mid_y = an.cavity(self.z)[2]
        heart_d = np.full(d.shape, 99.0, np.float32)
        box = self._box((22.0, mid_y - 0.25 * an.b, an.dome_mm + 40.0), (72.0, 62.0, 62.0))
        if box is not None:
            x, y, z = self._local(box, (22.0, mid_y - 0.25 * an.b, an.dome_mm + 40.0))
            heart_d[box] = _ellipsoid(x, y, z, (66.0, 52.0, 54.0)) + 2.0 * self._field("lump", box)
        wide = _curve(self.z, ((60, 22), (150, 30), (240, 36), (320, 44)))
        middle = np.abs(self.x) - wide - 3.0 * self._field("lump")
        middle = np.maximum(middle, self.y - 24.0)
        middle = np.minimum(middle, np.sqrt(self.x * self.x + (self.y - 2.0) ** 2) - 27.0)
        d = np.maximum(d, -np.minimum(heart_d - 3.0, middle))
        self.d_lung = d
        vessels = np.sqrt(self._field("vessel a") ** 2 + self._field("vessel b") ** 2)
        hu = -860.0 + 22.0 * self._field("texture")
        hu += np.clip((0.27 - vessels) * 7.0, 0.0, 1.0) * 820.0
        self._paint(self.everywhere, self._cover(d), hu)
        if box is not None:
            blood = an.hu["heart"] + (
                0.35 * (an.hu["muscle"] + 30.0 - an.hu["heart"])
                * _ramp(np.abs(self._field("vessel a", box)), 0.55, 0.2)
            )  # fmt: skip
            above = np.maximum(heart_d[box], dome[box] - 4.0 - self.zz[box])
            self._paint(box, self._cover(above), blood)
        if self.z > 160.0:
            split = self.z < 215.0
            for side in (-1.0, 1.0) if split else (0.0,):
                off = side * (215.0 - self.z) * 0.75
                bore = 7.0 if split else 9.0
                ends = ((off, -22.0, self.z - 20.0), (off, -22.0, self.z + 20.0))
                self._vessel(_Tube(ends, (bore, bore)), -985.0)
            arch = _Tube(
                ((12.0, -12.0, 205.0), (12.0, -18.0, 232.0), (2.0, -44.0, 240.0),
                 (-14.0, -68.0, 225.0), (-10.0, -70.0, 185.0)),
                (12.0, 13.0, 13.0, 14.0, 14.0),
            )  # fmt: skip
            self._vessel(arch, an.hu["aorta"])
            self._vessel(
                _Tube(((-30.0, -62.0, 180.0), (-27.0, -58.0, 300.0)), (9.0, 8.0)), an.hu["heart"]
            )

    def _lumen(self, box: Box, d: Array, kind: int, level: float | Array, key: float) -> None:
        """Wall and content of a hollow organ; level is the height (y) of the gas."""
        an = self.an
        texture = self._field("texture", box)
        wall = 2.2 if kind != 4 else 3.6
        self._paint(box, self._cover(d), an.hu["bowel wall"] + 4.0 * texture)
        if kind == 0:  # collapsed: mucosa and a little liquid
            self._paint(box, self._cover(d + 4.0, 2.5), an.hu["bowel wall"] - 28.0)
            return
        inside = self._cover(d + wall)
        if kind == 3 or key > 0.75:  # stool or food: mottled with bubbles
            bubble = np.clip((texture - 0.75) * 2.5, 0.0, 1.0)
            content = 45.0 + 32.0 * self._field("lump", box) - bubble * 520.0
        else:
            content = an.oral_hu + 9.0 * texture
        self._paint(box, inside, content)
        if kind in (2, 3, 4):
            gas = inside * self._cover(self.y[box] - level)
            self._paint(box, gas, -975.0)

    def _bowel(self) -> None:
        an = self.an
        low = min(-200.0, self.z - 1)
        if self.z > 70.0 or self.z < low:
            return
        mid_y = an.cavity(self.z)[2]
        # Vessels and nodes of the mesentery.
        vessels = np.sqrt(self._field("vessel a") ** 2 + (self._field("vessel b") - 0.5) ** 2)
        region = np.clip(1.0 - np.maximum(self.depth - 0.75, 0.0) * 12.0, 0.0, 1.0)
        region *= np.clip((-44.0 - self.y) * 0.15, 0.0, 1.0)
        if self.near_kidney:
            region *= np.clip((self.keep - 8.0) * 0.3, 0.0, 1.0)
        cover = np.clip((0.21 - vessels) * 10.0, 0.0, 1.0) * region
        self._paint(self.everywhere, cover, an.hu["portal vein"] - 12.0)

        # Small bowel: capsules that flatten against each other (second nearest minus nearest).
        near: list[tuple[Box, Array, int, float]] = []
        shape = self.x.shape
        first = np.full(shape, 99.0, np.float32)
        second = np.full(shape, 99.0, np.float32)
        for p, q, radius, kind in an.loops:
            found = self._tube(_Tube((p, q), (radius, radius)))
            if found is None:
                continue
            box, d = found
            np.minimum(second[box], np.maximum(first[box], d), out=second[box])
            np.minimum(first[box], d, out=first[box])
            near.append((box, d, kind, (p[1] + q[1]) / 2 - 0.25 * radius))
        limit = np.maximum(self.d_cavity + 3.0, 47.0 - np.sqrt(self.x**2 + self.y**2))
        limit = self._away(self.everywhere, limit, 9.0)
        lump = 1.2 * self._field("lump") + 0.8 * self._field("texture")
        for number, (box, d, kind, level) in enumerate(near):
            mine = d <= first[box]
            other = np.where(mine, second[box], first[box])
            surface = np.maximum(np.maximum(d, 0.5 * (d - other) + 0.6) + lump[box], limit[box])
            self._lumen(box, surface, kind, level, 0.5 * (number % 2))
        # Colon with haustra.
        found = self._tube(an.colon, 2.0)
        if found is not None:
            box, d = found
            d = d + 1.8 * np.abs(self._field("vessel a", box)) - 1.0
            d = self._away(box, np.maximum(d, self.d_cavity[box] + 3.0), 3.0)
            d = np.maximum(d, 44.0 - np.sqrt(self.x[box] ** 2 + self.y[box] ** 2))
            level = mid_y + (an.colon_gas - 0.75) * an.b + 14.0 * self._field("lump", box)
            kind = 3 if an.colon_gas > 0.3 else 2
            self._lumen(box, d, kind, level, 0.9)

    def _upper_organs(self) -> None:
        an = self.an
        keep_off = None
        if self.z > -15.0:
            keep_off = np.maximum(self.d_cavity + 2.5, 3.5 - self.d_lung)
        crus = 33.0 - np.sqrt(self.x**2 + (self.y + 2.0) ** 2)

        def confined(box: Box, d: Array, gap: float) -> Array:
            limit = self.d_cavity[box] + 2.5 if keep_off is None else keep_off[box]
            return self._away(box, np.maximum(np.maximum(d, limit), crus[box]), gap)

        gap = max((k.gap_mm for k in an.kidneys), default=3.0)
        found = self._tube(an.duodenum, 1.0)
        if found is not None:
            box, d = found
            self._lumen(box, confined(box, d, gap), 1, 0.0, 0.0)
        found = self._tube(an.stomach, 2.5)
        if found is not None:
            box, d = found
            level = an.cavity(self.z)[2] + an.stomach_level * an.b
            self._lumen(box, confined(box, d, gap + 3.0), 4, level, 0.0)
        found = self._tube(an.pancreas, 1.2)
        if found is not None:
            box, d = found
            texture = self._field("texture", box)
            d = confined(box, d + 1.6 * texture, gap + 1.0)
            lobules = np.clip(np.abs(texture) - 1.0 + 0.5 * an.age, 0.0, 1.0)
            self._paint(box, self._cover(d, 1.5), an.hu["pancreas"] - 45.0 * lobules)
        # Adrenal glands: thin limbs over the kidneys.
        for x, y, side in ((30.0, -18.0, 1.0), (-27.0, -12.0, -1.0)):
            for reach in (7.0, 17.0):
                foot = (x + side * reach, y + 16.0 - 0.5 * reach, 50.0)
                self._vessel(_Tube(((x, y - 4.0, 66.0), foot), (2.4, 1.6)), an.hu["pancreas"])
        self._spleen(confined, gap)
        self._liver(confined, gap)
        centre, radii, present = an.gallbladder
        place = self._box(centre, radii) if present else None
        if place is not None:
            d = _ellipsoid(*self._local(place, centre), radii) + 0.8 * self._field("lump", place)
            d = confined(place, d, 6.0)
            self._paint(place, self._cover(d), an.hu["bowel wall"])
            self._paint(place, self._cover(d + 1.8), 9.0)
        for tube in an.portal:
            self._vessel(tube, an.hu["portal vein"])

    def _spleen(self, confined: Callable[[Box, Array, float], Array], gap: float) -> None:
        an = self.an
        centre, radii = an.spleen
        box = self._box(centre, radii)
        if box is None:
            return
        x, y, z = self._local(box, centre)
        x, z = 0.96 * x + 0.28 * z, 0.96 * z - 0.28 * x
        d = _ellipsoid(x, y, z, radii) + 2.2 * self._field("lump", box)
        hollow = _ellipsoid(x + 1.0 * radii[0], y + 16.0, z, (0.8 * radii[0], 38.0, 44.0))
        d = confined(box, np.maximum(d, -hollow), 0.5 * gap)
        hu = an.hu["spleen"] + 2.0 * self._field("texture", box)
        if an.phase == "arterial":
            # The red pulp fills unevenly: bands in the first seconds.
            hu = hu + 26.0 * np.clip(self._field("vessel a", box) * 2.0, -1.0, 1.0)
        self._paint(box, self._cover(d), hu)

    def _liver(self, confined: Callable[[Box, Array, float], Array], gap: float) -> None:
        an = self.an
        (c1, r1, c2, r2) = an.liver
        low = [min(c1[i] - r1[i], c2[i] - r2[i]) for i in range(3)]
        high = [max(c1[i] + r1[i], c2[i] + r2[i]) for i in range(3)]
        box = self._box(
            _point((a + b) / 2 for a, b in zip(low, high, strict=True)),
            _point((b - a) / 2 + 8.0 for a, b in zip(low, high, strict=True)),
        )
        if box is None:
            return
        d = _smooth_min(
            _ellipsoid(*self._local(box, c1), r1), _ellipsoid(*self._local(box, c2), r2), 22.0
        )
        d += 3.0 * self._field("lump", box)
        x, y = self.x[box], self.y[box]
        # The fissure of the ligament between the lobes.
        across = x + 4.0 + 0.3 * (y + 90.0) + 4.0 * self._field("vessel a", box)
        ahead = y + 66.0 + 0.5 * np.maximum(self.zz[box] - 40.0, 0.0)
        cleft = np.maximum(np.abs(across) + 0.035 * (62.0 + y), ahead)
        d = np.maximum(d, -(cleft + 0.8 * self._field("lump", box)))
        d = confined(box, d, 0.45 * gap)
        texture = self._field("texture", box)
        hu = np.full(d.shape, an.hu["liver"], np.float32) + 2.0 * texture
        va, vb = self._field("vessel a", box), self._field("vessel b", box)
        inside = np.clip(-d * 0.15, 0.0, 1.0)
        for shift, name in ((0.0, "portal vein"), (1.3, "hepatic vein")):
            n = np.sqrt((va - shift) ** 2 + (vb + shift) ** 2)
            hu += np.clip((0.19 - n) * 12.0, 0.0, 1.0) * inside * (an.hu[name] - an.hu["liver"])
        self._paint(box, self._cover(d), hu)

    def _muscles(self) -> None:
        an = self.an
        z = self.z
        parts: list[tuple[Point, Point]] = []
        size = _curve(z, ((-240, 17), (-150, 20), (-100, 22), (-40, 18), (20, 12), (60, 5)))
        for side in (1.0, -1.0):
            x = _curve(z, ((-240, 62), (-150, 50), (-90, 43), (-40, 38), (20, 31), (60, 26)))
            y = _curve(z, ((-240, -52), (-170, -25), (-90, -4), (0, 8), (60, 14)))
            if -250.0 < z < 62.0:
                parts.append(((side * x, y, z), (size * an.muscle, 1.2 * size * an.muscle, 60.0)))
            if -95.0 < z < 60.0:
                wide = _curve(z, ((-95, 6), (-80, 16), (-20, 20), (30, 16), (60, 5)))
                thick = _curve(z, ((-95, 3), (-80, 8), (0, 8.5), (40, 6), (60, 2)))
                parts.append(((side * 60.0, 43.0, z), (wide, thick * an.muscle, 60.0)))
        for centre, radii in parts:
            box = self._box(centre, radii)
            if box is None:
                continue
            dx, dy, _ = self._local(box, centre)
            d = _ellipsoid(dx, dy, np.zeros_like(dx), radii) + 1.2 * self._field("lump", box)
            self._paint(box, self._cover(self._away(box, d, 2.0)), self._muscle_hu(box))
        if 0.0 < z < 130.0:
            # Crura of the diaphragm hug the aorta and the vertebrae.
            thick = _curve(z, ((0, 2.5), (50, 5.0), (130, 3.0)))
            box = self._box((0.0, -12.0, z), (44.0, 38.0, 10.0))
            if box is not None:
                ring = np.sqrt((0.9 * self.x[box]) ** 2 + (self.y[box] + 8.0) ** 2)
                d = np.maximum(np.abs(ring - 30.0) - thick, self.y[box] - 2.0)
                self._paint(box, self._cover(d), self._muscle_hu(box))

    def _great_vessels(self) -> None:
        an = self.an
        kept = an.hu["cava"]
        if self.z > -6.0:
            kept = 0.5 * (an.hu["cava"] + an.hu["renal vein"])
        plaque = an.hu["aorta"] if an.age < 0.55 else an.hu["muscle"] - 10.0
        for tube in an.iliac_veins:
            self._vessel(tube, an.hu["cava"])
        self._vessel(an.cava, kept)
        for tube in an.renal_veins:
            self._vessel(tube, an.hu["renal vein"])
        for tube in an.renal_arteries:
            self._vessel(tube, an.hu["aorta"])
        for tube in an.branches:
            self._vessel(tube, an.hu["aorta"])
        for tube in an.iliac_arteries:
            self._vessel(tube, an.hu["aorta"], plaque)
        self._vessel(an.aorta, an.hu["aorta"], plaque)
        found = self._tube(an.aorta)
        if found is not None and an.age > 0.55:
            box, d = found
            rim = np.clip(1.0 - np.abs(d - 0.3) * 0.8, 0.0, 1.0)
            spots = np.clip((self._field("texture", box) - 1.5 + 0.7 * an.age) * 2.0, 0.0, 1.0)
            self._paint(box, rim * spots, 620.0)
        for tube in an.ureters:
            self._vessel(tube, an.hu["urine"] if an.phase == "excretory" else 25.0)
        if self.z < -175.0:
            bladder = (0.0, -62.0, -225.0)
            place = self._box(bladder, (46.0, 36.0, 40.0))
            if place is not None:
                d = _ellipsoid(*self._local(place, bladder), (42.0, 32.0, 36.0))
                self._paint(place, self._cover(d), an.hu["bowel wall"])
                self._paint(place, self._cover(d + 3.0), min(250.0, an.hu["urine"]))

    def _bone(self, box: Box, d: Array, cortex_mm: float, strength: float = 1.0) -> None:
        """Dense shell and spongy core."""
        texture = self._field("texture", box)
        self._paint(box, self._cover(d), 580.0 * strength + 60.0 * texture)
        core = self._cover(d + cortex_mm, 1.6)
        self._paint(box, core, self.an.marrow_hu * strength + 38.0 * texture)

    def _ribs(self) -> None:
        if self.z < -40.0:
            return
        y = self.back_of_axis
        across = np.sqrt(np.maximum(1.0 - y * y, 0.0))
        t = 1.0 - y / (np.abs(y) + across + 1e-6)  # 0 back, 1 side, 2 front
        drop = 112.0 * np.minimum(t, 1.25) - 60.0 * np.maximum(t - 1.25, 0.0)
        q = (self.zz + drop - 70.0) / 30.0
        number = np.floor(q + 0.5)  # 0 is the twelfth rib
        dz = (q - number) * 30.0
        e = np.sqrt((dz / 7.5) ** 2 + ((self.d_cage - 6.0) / 3.4) ** 2)
        d = (e - 1.0) * 3.4
        length = np.where(number < 0.5, 0.62, np.where(number < 1.5, 0.95, 1.42))
        d = np.maximum(d, (t - length) * 60.0)
        d = np.maximum(d, (0.16 - t) * 60.0)
        d = np.where(number < -0.5, 99.0, d)
        self._bone(self.everywhere, d, 1.4)
        # Cartilage from the eighth rib up, and the sternum.
        cart = np.maximum(np.maximum((e - 1.0) * 3.6, (1.42 - t) * 60.0), (t - 1.86) * 60.0)
        cart = np.where(number < 3.5, 99.0, cart)
        self._paint(self.everywhere, self._cover(cart), 112.0)
        if self.z > 95.0:
            plate = np.maximum(np.abs(self.x) - 17.0, np.abs(self.d_cage - 6.0) - 5.5)
            plate = np.maximum(np.maximum(plate, 105.0 - self.zz), y + 0.5)
            self._bone(self.everywhere, np.maximum(plate, self.zz - 290.0), 1.3, 0.9)

    def _spine_and_pelvis(self) -> None:
        box = self._box((0.0, 22.0, self.z), (56.0, 62.0, 10.0))
        if box is not None and self.z > -135.0:
            self._vertebrae(box)
        if self.z < -60.0:
            self._pelvis()
        found = box if self.z > -190.0 else None
        if found is not None:
            # Canal: dural sac with a rim of fat.
            x, y = self.x[found], self.y[found] - _curve(
                self.z, ((-190, 50), (-130, 34), (-100, 27), (0, 25), (300, 22))
            )
            n = np.sqrt((x / 10.5) ** 2 + (y / 8.0) ** 2)
            d = (n - 1.0) * 8.5
            self._paint(found, self._cover(d), -45.0)
            self._paint(found, self._cover(d + 1.3), 24.0)
            if self.z > 20.0:
                cord = np.sqrt(x * x + y * y) - 5.0
                self._paint(found, self._cover(cord), 40.0)

    def _vertebrae(self, box: Box) -> None:
        an = self.an
        x, y = self.x[box], self.y[box]
        # Discs lean with the lordosis of the lumbar spine.
        lean = _curve(self.z, ((-130, 0.42), (-90, 0.18), (0, -0.05), (100, -0.12), (300, 0.1)))
        z = self.zz[box] + lean * y
        edges = np.array(_VERTEBRA_EDGES_MM, np.float32)
        level = np.clip(np.searchsorted(edges, z) - 1, 0, len(edges) - 2)
        height = (edges[1:] - edges[:-1])[level]
        u = z - 0.5 * (edges[1:] + edges[:-1])[level]
        half = 0.5 * height - _curve(self.z, ((-130, 6.0), (20, 5.0), (150, 2.6)))
        grow = _curve(self.z, ((-130, 1.12), (0, 1.0), (100, 0.86), (300, 0.68)))
        waist = 1.0 - 0.10 * (1.0 - np.clip((u / half) ** 2, 0.0, 1.0))
        rx, ry = 24.5 * grow, 17.0 * grow
        n = np.sqrt((x / (rx * waist)) ** 2 + (y / (ry * waist)) ** 2)
        round_ = (n - 1.0) * ry
        # The back of the body is flat.
        round_ = np.maximum(round_, y - 0.86 * ry)
        body = np.maximum(round_, np.abs(u) - half)
        disc = np.maximum(round_ - 0.5, half - np.abs(u))
        self._paint(box, self._cover(disc), 92.0 - 18.0 * _ramp(-round_, 4.0, 9.0))
        strength = 1.12 - 0.35 * an.age
        self._bone(box, body, 1.1, strength)
        # End plates are dense.
        plate = np.clip(1.0 - np.abs(half - np.abs(u) - 0.8) * 0.7, 0.0, 1.0)
        self._paint(box, plate * self._cover(round_ + 1.0) * 0.55, 420.0 * strength)

        # Arch: pedicles, laminae, transverse and spinous processes, facet joints.
        ax = np.abs(x)
        w = u - 0.12 * height
        pedicle = np.maximum(np.maximum(np.abs(ax - 14.5 * grow) - 4.6, np.abs(w) - 7.5),
                             np.abs(y - 20.0) - 9.0)  # fmt: skip
        lamina = np.maximum(
            np.abs(0.75 * (y - 36.0) + 0.66 * (ax - 4.0)) - 3.4,
            np.maximum(np.abs(u + 0.08 * height) - 0.34 * height, np.maximum(ax - 19.0, 25.0 - y)),
        )
        spinous = np.maximum(
            np.maximum(ax - 3.6, np.abs(y - 48.0) - 14.0),
            np.abs(u + 0.22 * height + 0.12 * (y - 40.0)) - 0.30 * height,
        )
        reach = _curve(self.z, ((-120, 46), (0, 42), (60, 26), (300, 30)))
        transverse = np.maximum(
            np.maximum(np.abs(y - 27.0 - 0.1 * ax) - 4.0, np.abs(w) - 5.0),
            np.maximum(ax - reach, 14.0 - ax),
        )
        facet = np.sqrt((ax - 17.0 * grow) ** 2 + (y - 32.0) ** 2 * 0.8
                        + (0.45 * (np.abs(u) - 0.5 * height)) ** 2) - 7.0  # fmt: skip
        arch = np.minimum(np.minimum(pedicle, lamina), np.minimum(spinous, transverse))
        arch = np.minimum(arch, facet)
        self._bone(box, arch + 0.4 * self._field("texture", box), 1.6, strength)
        joint = np.clip(1.0 - np.abs(ax - 17.0 * grow - 0.3 * (y - 32.0)) * 1.2, 0.0, 1.0)
        self._paint(box, joint * self._cover(facet + 1.0) * (self.z < 60.0), 60.0)

    def _pelvis(self) -> None:
        an = self.an
        everywhere = self.everywhere
        y = self.back_of_axis
        across = np.sqrt(np.maximum(1.0 - y * y, 0.0))
        t = 1.0 - y / (np.abs(y) + across + 1e-6)
        crest = -78.0 - 75.0 * (t - 0.75) ** 2
        thick = 3.4 + 3.0 * _ramp(self.zz, -150.0, -200.0) + 4.0 * np.clip(0.6 - t, 0.0, 0.4)
        wing = np.abs(self.d_cage - 9.0 - 3.0 * self._field("lump")) - thick
        wing = np.maximum(wing, (self.zz - crest) * 0.8)
        low_edge = _ramp(self.zz, -235.0, -150.0)
        wing = np.maximum(wing, np.maximum((0.30 - t) * 70.0, (t - 0.8 - 0.55 * low_edge) * 70.0))
        self._bone(everywhere, wing, 1.5)
        for side in (1.0, -1.0):
            centre = (side * 0.72 * an.a, an.cavity(-240.0)[2] + 10.0, -245.0)
            box = self._box(centre, (40.0, 40.0, 42.0))
            if box is None:
                continue
            x, yy, z = self._local(box, centre)
            ball = np.sqrt(x * x + yy * yy + z * z)
            socket = np.maximum(np.abs(ball - 31.0) - 4.0, side * x - 14.0)
            self._bone(box, socket, 1.4)
            self._paint(box, self._cover(ball - 26.0), 60.0)
            self._bone(box, ball - 24.0, 1.2, 1.15)
        box = self._box((0.0, 34.0, -172.0), (56.0, 40.0, 60.0))
        if box is not None:
            x, yy, z = self._local(box, (0.0, 0.0, -172.0))
            yy = yy - (30.0 - 0.28 * z)
            wide = np.clip(50.0 + 0.42 * z, 14.0, 54.0)
            sacrum = np.maximum((np.sqrt((x / wide) ** 2 + (yy / 15.0) ** 2) - 1.0) * 14.0,
                                np.abs(z) - 50.0)  # fmt: skip
            holes = np.sqrt((np.abs(x) - 0.42 * wide) ** 2 + yy * yy * 0.5) - 4.0
            self._bone(box, np.maximum(sacrum, -holes), 1.4, 0.9)

    # Kidneys --------------------------------------------------------------------------------------

    def _paint_kidneys(self) -> None:
        """The kidneys last: their labels are exactly what is seen."""
        if not self.near_kidney:
            return
        hu = self.an.hu
        for shape in self.shapes:
            k: _Kidney = shape["kidney"]
            box, surface, sinus = shape["box"], shape["surface"], shape["sinus"]
            p, v, w = shape["p"], shape["v"], shape["w"]
            ru, rv, rw = k.radii
            texture = shape["texture"]
            # The sinus holds the fat and the vessels painted before, and the renal pelvis.
            pelvis = _ellipsoid(
                p + 0.62 * ru, v - 0.06 * rv, w + 0.06 * rw,
                (0.46 * ru, 0.18 * rv * k.pelvis, 0.22 * rw * k.pelvis),
            )
            pelvis = np.maximum(pelvis + 0.8 * texture, p - 0.25 * ru)
            self._paint(box, self._cover(pelvis), 0.5 * (hu["urine"] + hu["muscle"]))
            self._paint(box, self._cover(pelvis + 1.2), hu["urine"])

            parenchyma = np.maximum(surface, -sinus)
            tissue = np.full(p.shape, hu["cortex"], np.float32) + 2.5 * texture
            medulla = np.full(p.shape, 99.0, np.float32)
            for (pn, vn, wn), radius in k.pyramids:
                cw = wn * rw
                if float(np.min(np.abs(w - cw))) > radius + 4.0:
                    continue
                dp, dv, dw = p - pn * ru, v - vn * rv, w - cw
                # A wedge: wide under the cortex, its tip at the sinus.
                reach = math.sqrt((pn * ru) ** 2 + (vn * rv) ** 2)
                ep, ev = pn * ru / reach, vn * rv / reach
                along, across = dp * ep + dv * ev, dv * ep - dp * ev
                wedge = np.sqrt(0.45 * along * along + across * across + dw * dw)
                np.minimum(medulla, wedge - radius - 0.22 * along, out=medulla)
            medulla = np.maximum(medulla + 0.8 * texture, surface + 5.0)
            tissue += self._cover(medulla, 2.2) * (hu["medulla"] - tissue)
            for pn, vn, wn in k.calyces:
                dp, dv, dw = p - pn * ru, v - vn * rv, 0.6 * (w - wn * rw)
                cup = np.sqrt(dp * dp + dv * dv + dw * dw) - 3.4 * k.pelvis
                tissue += self._cover(cup, 1.3) * (hu["urine"] - tissue)
            self._paint(box, self._cover(parenchyma), tissue)
            self._mark(box, parenchyma < 0.0, KIDNEY, LEFT if k.side > 0 else RIGHT)
        if self.bridge is not None:
            box, d = self.bridge
            tissue = 0.5 * (hu["cortex"] + hu["medulla"]) + 2.5 * self._field("texture", box)
            self._paint(box, self._cover(d), tissue)
            x = self.x[box]
            # The isthmus belongs to the side of the spine that it lies on.
            self._mark(box, (d < 0.0) & (x >= 0.0), KIDNEY, LEFT)
            self._mark(box, (d < 0.0) & (x < 0.0), KIDNEY, RIGHT)
        for name in ("cyst", "tumour"):
            if name not in self.growths:
                continue
            box, d, lesion = self.growths[name]
            texture, lump = self._field("texture", box), self._field("lump", box)
            side = LEFT if lesion.side > 0 else RIGHT
            if name == "cyst":
                self._paint(box, self._cover(d), lesion.hu + 0.5 * texture)
                self._mark(box, d < 0.0, KIDNEY, side)
                continue
            tissue = hu["tumour"] + lesion.hu + 14.0 * lump + 9.0 * texture
            if min(lesion.radii) > 14.0:
                # Large tumours outgrow their supply: a necrotic middle.
                dead = _ramp(-d + 5.0 * lump, 7.0, 13.0)
                tissue += dead * (24.0 - tissue) * 0.8
            self._paint(box, self._cover(d), tissue)
            self._mark(box, d < 0.0, TUMOUR, side)

    def _mark(self, box: Box, inside: Array, label: int, side: int) -> None:
        self.label[box][inside] = label
        self.side[box][inside] = side

    def _table(self) -> None:
        """A curved carbon table with foam, in scanner space: it does not turn with the patient."""
        an = self.an
        x = self.x_mm.astype(np.float32)[None, :] - float(self.x_mm[len(self.x_mm) // 2])
        y = self.y_mm.astype(np.float32)[:, None]
        top = self.back_mm + an.table_mm
        if an.table_kind == 0:
            d = y - (top - np.minimum(an.table_curve * x * x, 60.0))
            edge = np.abs(x) - 225.0
        else:
            d = y - (top - np.maximum(np.abs(x) - 150.0, 0.0) * 0.5)
            edge = np.abs(x) - 235.0
        outside = np.clip(self.d_skin, 0.0, 1.0)
        shell = np.minimum(np.abs(d - 1.0) - 0.9, np.abs(d - 34.0) - 1.1)
        foam = np.maximum(np.maximum(-d, d - 34.0), edge)
        self._paint(self.everywhere, self._cover(foam) * outside, -955.0)
        self._paint(self.everywhere, self._cover(np.maximum(shell, edge)) * outside, an.table_hu)


class _HeadRenderer(_Renderer):
    """A head, the region where a kidney would be the grossest of errors."""

    def plane(self, z: float) -> tuple[Array, Array, Array, Array]:
        an = self.an
        self.z = z
        self._planes = {}
        warp = [0.6 * w * self._field(f"warp {n}") for w, n in zip(an.warp_mm, "xyz", strict=True)]
        self.x, self.y = self._turned[0] + warp[0], self._turned[1] + warp[1]
        self.zz = z + warp[2]
        shape = self.x.shape
        self.image = np.full(shape, AIR_HU, np.float32)
        self.everywhere = (slice(0, shape[0]), slice(0, shape[1]))
        texture, lump = self._field("texture"), self._field("lump")
        x, y, zz = self.x, self.y, self.zz
        neck = np.sqrt(x * x + (y - 22.0) ** 2) - 58.0
        face = _ellipsoid(x, y + 28.0, zz + 55.0, (60.0, 68.0, 75.0))
        self.d_skin = _smooth_min(
            np.minimum(_ellipsoid(x, y, zz, (76.0, 95.0, 92.0)), face),
            np.maximum(neck, zz + 40.0), 15.0,
        )  # fmt: skip
        everywhere = self.everywhere
        self._paint(everywhere, self._cover(self.d_skin), 20.0)
        self._paint(everywhere, self._cover(self.d_skin + 2.0), an.fat_hu)
        self._paint(everywhere, self._cover(self.d_skin + 6.0 + lump), self._muscle_hu())
        vault = _ellipsoid(x, y, zz - 4.0, (69.0, 88.0, 82.0))
        vault = np.maximum(vault, -(zz + 50.0 + 0.3 * y))
        self._bone(everywhere, vault, 1.8, 1.5)
        brain = vault + 6.5
        self._paint(everywhere, self._cover(brain), 8.0)
        folds = np.abs(self._field("vessel a") + 0.5 * texture)
        self._paint(everywhere, self._cover(brain + 2.5 + 5.0 * (folds < 0.15)), 37.0)
        self._paint(everywhere, self._cover(brain + 8.0 + 3.0 * lump, 3.0), 29.0)
        for side in (1.0, -1.0):
            ventricle = _ellipsoid(side * x - 12.0, y - 5.0, zz - 14.0, (5.0, 34.0, 11.0))
            self._paint(everywhere, self._cover(ventricle + lump, 1.5), 6.0)
            eye = np.sqrt((side * x - 32.0) ** 2 + (y + 78.0) ** 2 + (zz + 32.0) ** 2) - 12.0
            self._paint(everywhere, self._cover(eye), 12.0)
            sinus = _ellipsoid(side * x - 24.0, y + 62.0, zz + 66.0, (14.0, 16.0, 17.0))
            self._paint(everywhere, self._cover(sinus - 1.5 + lump), 500.0)
            self._paint(everywhere, self._cover(sinus + lump), -990.0)
        airway = np.maximum(np.sqrt((x / 9.0) ** 2 + ((y + 22.0) / 13.0) ** 2) - 1.0, 0.02 *
                            (zz + 62.0)) * 10.0  # fmt: skip
        self._paint(everywhere, self._cover(airway), -995.0)
        jaw = np.abs(np.sqrt(x * x + (y + 45.0) ** 2) - 44.0) - 5.0
        jaw = np.maximum(np.maximum(jaw, y + 30.0), np.maximum(zz + 82.0, -(zz + 112.0)))
        self._bone(everywhere, jaw, 2.0, 1.5)
        neck_bone = np.maximum(np.sqrt(x * x + (y - 18.0) ** 2) - 12.0, zz + 62.0)
        self._bone(everywhere, neck_bone, 1.2, 1.1)
        self._table()
        empty = np.zeros(shape, np.uint8)
        return self.image, empty, empty, self.d_skin


# --- what the scanner adds ------------------------------------------------------------------------


def _filter(image: Array, kernel: Sequence[float]) -> Array:
    """Separable symmetric filter over the part of the plane where it fits."""
    reach = len(kernel) - 1
    rows = image.shape[0] - reach
    out = image[:rows] * np.float32(kernel[0])
    for m in range(1, len(kernel)):
        out += image[m : m + rows] * np.float32(kernel[m])
    columns = image.shape[1] - reach
    wide = out[:, :columns] * np.float32(kernel[0])
    for m in range(1, len(kernel)):
        wide += out[:, m : m + columns] * np.float32(kernel[m])
    return wide


class _Scanner:
    """Noise with the grain of filtered back-projection, streaks, cupping, the round field."""

    PAD = 4

    def __init__(
        self, seed: int, anatomy: _Anatomy, x_mm: Array, y_mm: Array, slice_mm: float, round_: bool
    ) -> None:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 3]))
        self.rng = rng
        self.shape = (len(y_mm), len(x_mm))
        pixel = float(x_mm[1] - x_mm[0]) if len(x_mm) > 1 else 1.0
        self.sigma_hu = float(rng.uniform(5.0, 15.0)) * (0.8 + 0.6 * anatomy.obesity)
        self.cupping_hu = float(rng.uniform(0.0, 7.0))
        self.starved_hu = float(rng.uniform(0.0, 3.5))
        soft = float(rng.uniform(0.03, 0.16))
        self.blur = (soft, 1.0 - 2.0 * soft, soft)
        # The grain is about a millimetre wide: many fine pixels share it, coarse ones do not.
        g = min(0.24, 0.20 / pixel)
        narrow = [0.3 * g, g, 1.0 - 2.6 * g, g, 0.3 * g]
        self.narrow = tuple(v / sum(narrow) for v in narrow)
        self.broad = (0.2, 0.2, 0.2, 0.2, 0.2)
        # The response to a single point gives the factor back to unit standard deviation.
        point = np.zeros((17, 17), np.float32)
        point[8, 8] = 1.0
        grain = self._filters(point)
        self.gain = 1.0 / math.sqrt(sum(v * v for v in grain.ravel().tolist()))
        self.along = max(0.0, min(0.6, 1.0 - slice_mm / 2.0))
        self.before: Array | None = None
        self.x = x_mm.astype(np.float32)[None, :]
        self.y = y_mm.astype(np.float32)[:, None]
        self.sources = [
            (_point((rng.uniform(-70, 70), rng.uniform(-110, -60), rng.uniform(-120, 120))),
             [(rng.uniform(0.0, math.pi), rng.uniform(-30.0, 30.0)) for _ in range(5)])
            for _ in range(int(rng.integers(0, 5)))
        ]  # fmt: skip
        self.outside: Array | None = None
        if round_:
            middle = float(x_mm.mean()), float(y_mm.mean())
            radius = 0.5 * pixel * min(self.shape)
            self.outside = (self.x - middle[0]) ** 2 + (self.y - middle[1]) ** 2 > radius**2

    def _filters(self, white: Array) -> Array:
        """Band-pass: reconstruction weakens the slowest variations as well as the fastest."""
        narrow = _filter(white, self.narrow)
        return narrow[2:-2, 2:-2] - np.float32(0.55) * _filter(narrow, self.broad)

    def _grain(self) -> Array:
        rows, columns = self.shape
        white = self.rng.standard_normal(
            (rows + 2 * self.PAD, columns + 2 * self.PAD), dtype=np.float32
        )
        grain = self._filters(white)
        grain *= np.float32(self.gain)
        if self.before is not None and self.along > 0.0:
            grain *= np.float32(math.sqrt(1.0 - self.along**2))
            grain += self.before * np.float32(self.along)
        self.before = grain
        return grain

    def acquire(self, image: Array, d_skin: Array, z: float) -> Array:
        """int16 HU of one plane, from its noiseless HU."""
        rows = self.shape[0]
        image[1:-1, 1:-1] = _filter(image, self.blur)
        inside = np.clip(d_skin * np.float32(-1.0 / 110.0), 0.0, 1.0)
        image -= self.cupping_hu * inside
        level = self.sigma_hu * (0.55 + 0.65 * inside)
        image += level * self._grain()
        # Few photons come through from side to side: horizontal streaks in the thick middle.
        rows_noise = self.rng.standard_normal((rows + 2, 1), dtype=np.float32)
        rows_noise = rows_noise[:-2] + 1.4 * rows_noise[1:-1] + rows_noise[2:]
        image += (0.5 * self.starved_hu) * rows_noise * inside
        for (x, y, at), rays in self.sources:
            fade = 1.0 - abs(z - at) / 9.0
            if fade <= 0.0:
                continue
            dx, dy = self.x - x, self.y - y
            far = fade / (1.0 + (dx * dx + dy * dy) * (1.0 / 3600.0))
            far *= d_skin < 0.0
            for angle, strength in rays:
                off = math.cos(angle) * dy - math.sin(angle) * dx
                image += strength * far / (1.0 + off * off * 0.35)
        np.clip(image, OUTSIDE_HU, 3071.0, out=image)
        if self.outside is not None:
            image[self.outside] = OUTSIDE_HU
        return np.rint(image).astype(np.int16)


# --- public ---------------------------------------------------------------------------------------


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


def _extent(anatomy: _Anatomy, region: str, rng: np.random.Generator) -> tuple[float, float]:
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
    anatomy = _Anatomy(seed, kidneys, phase, tumour, cyst)
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

    kind = _HeadRenderer if region == "head" else _Renderer
    renderer = kind(anatomy, x_mm, y_mm, back - spare - 16.0)
    scanner = _Scanner(seed, anatomy, x_mm, y_mm, slice_mm, round_)
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
