"""The anatomy that a seed decides: where every organ lies, how large it is, how bright."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from KidneySegLib.phantom.shapes import (
    Field,
    Point,
    as_point,
    curve_at,
    frame_along,
)

PHASES = ("plain", "arterial", "portal", "excretory")

# Tissue HU: plain, arterial, portal-venous, excretory.
TISSUE_HU: dict[str, tuple[float, float, float, float]] = {
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


@dataclass(frozen=True)
class Tube:
    """A chain of points with radii, mm: vessel, bowel, ureter."""

    points: tuple[Point, ...]
    radii: tuple[float, ...]


@dataclass(frozen=True)
class Lesion:
    side: int
    centre: Point
    radii: Point
    hu: float  # of a cyst its HU, of a tumour the difference from the phase's usual
    growth: str


@dataclass(frozen=True)
class KidneyShape:
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
        return as_point(
            self.centre[i] + sum(bent[j] * self.axes[j][i] for j in range(3)) for i in range(3)
        )


class Anatomy:
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
            name: row[0] + (row[column] - row[0]) * enhancement for name, row in TISSUE_HU.items()
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
            name: Field(rng, knot)
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
        a = self.a * curve_at(z, (
            (-300, 0.46), (-235, 0.50), (-165, 0.72), (-110, 0.93), (-60, 0.99), (0, 0.97),
            (60, 1.0), (120, 0.99), (200, 0.93), (260, 0.82), (310, 0.62), (345, 0.42), (420, 0.3),
        ))  # fmt: skip
        b = self.b * curve_at(z, (
            (-300, 0.60), (-230, 0.68), (-160, 0.86), (-100, 0.98), (0, 1.0), (60, 1.0),
            (130, 1.0), (220, 0.94), (290, 0.76), (340, 0.52), (420, 0.36),
        ))  # fmt: skip
        back = curve_at(z, ((-300, 62), (-200, 66), (-130, 56), (0, 52), (100, 55), (300, 48)))
        return a, b, back - b

    def wall(self, z: float) -> tuple[float, float, float]:
        """Thickness of the muscular wall: lateral, front, back."""
        lateral = curve_at(z, (
            (-300, 66), (-235, 62), (-165, 42), (-115, 21), (-70, 14), (0, 12), (60, 13),
            (150, 16), (230, 30), (300, 58), (345, 80), (420, 70),
        ))  # fmt: skip
        front = curve_at(z, ((-300, 34), (-210, 14), (-120, 9), (90, 9), (200, 20), (300, 28)))
        back = curve_at(z, ((-300, 40), (-200, 34), (-130, 20), (-95, 10), (90, 10), (250, 30)))
        return lateral * self.muscle, front * self.muscle, back * self.muscle

    def place(self, xn: float, yn: float, z: float) -> Point:
        """A point from fractions of the cavity's half width and half depth."""
        a, b, centre = self.cavity(z)
        return xn * a, centre + yn * b, z

    # Content --------------------------------------------------------------------------------------

    def _jitter(self, points: Sequence[Point], mm: float) -> tuple[Point, ...]:
        return tuple(as_point(np.array(p) + self.rng.normal(0.0, mm, 3)) for p in points)

    def _vessels(self) -> None:
        u = self.rng.uniform
        r = u(7.5, 10.0) + 2.5 * self.age
        x = u(6.0, 13.0)
        fork = u(-88.0, -70.0)
        self.aorta = Tube(
            ((x - 2, -10.0, 300.0), (x + 4, -16.0, 200.0), (x, -24.0, 90.0), (x, -32.0, 20.0),
             (x - 3, -35.0, fork)),
            (r + 3, r + 2.5, r + 1, r, r * 0.85),
        )  # fmt: skip
        y = u(-34.0, -28.0)
        self.cava = Tube(
            ((-22.0, -48.0, 150.0), (-20.0, -42.0, 95.0), (-19.0, y - 4, 40.0), (-20.0, y, -20.0),
             (-18.0, y, fork - 10)),
            (13.0, 13.5, 11.5, 11.0, 10.5),
        )  # fmt: skip
        self.iliac_arteries = [
            Tube(((x - 3, -35.0, fork), (s * 24 + 4, -28.0, fork - 45), (s * 52.0, -22.0, -170.0),
                   (s * 66.0, -62.0, -235.0), (s * 68.0, -85.0, -290.0)), (6.5, 5.8, 5.2, 5.0, 4.8))
            for s in (1, -1)
        ]  # fmt: skip
        self.iliac_veins = [
            Tube(((-18.0, y, fork - 8), (s * 26.0, -14.0, fork - 52), (s * 50.0, -8.0, -175.0),
                   (s * 58.0, -56.0, -238.0), (s * 60.0, -78.0, -290.0)), (8.5, 7.0, 6.5, 6.0, 6.0))
            for s in (1, -1)
        ]  # fmt: skip
        top = u(22.0, 36.0)
        self.branches = [  # superior mesenteric artery, coeliac trunk
            Tube(((x, -30.0, top), (x - 2, -50.0, top - 8), (x - 4, -58.0, top - 40),
                   (x - 8, -66.0, -60.0)), (4.0, 3.8, 3.4, 2.6)),
            Tube(((x, -28.0, top + 14), (x, -50.0, top + 12), (-30.0, -62.0, top + 20)),
                  (4.0, 3.6, 2.8)),
            Tube(((x, -50.0, top + 12), (42.0, -40.0, top + 22), (78.0, -12.0, top + 30)),
                  (3.2, 2.8, 2.4)),
        ]  # fmt: skip
        self.portal = [
            Tube(((-4.0, -68.0, -50.0), (-7.0, -62.0, 0.0), (-10.0, -56.0, 18.0),
                   (-34.0, -60.0, 44.0), (-62.0, -62.0, 58.0)), (5.0, 6.0, 7.5, 7.5, 5.5)),
            Tube(((-10.0, -56.0, 18.0), (34.0, -46.0, 28.0), (76.0, -16.0, 44.0)),
                  (6.0, 4.8, 4.0)),
        ]  # fmt: skip

    def _gut(self) -> None:
        u, p, rng = self.rng.uniform, self.place, self.rng
        # What a lumen holds: (HU of the liquid or stool, level of gas as a fraction of the depth,
        # mottle). A level of -1 means no gas, 1 only gas.
        self.oral_hu = float(rng.choice([12.0, 15.0, 210.0, 330.0], p=[0.4, 0.25, 0.2, 0.15]))
        self.stomach = Tube(
            self._jitter(
                (p(0.36, 0.12, 92), p(0.48, -0.2, 66), p(0.44, -0.45, 34), p(0.12, -0.62, 8),
                 p(-0.22, -0.45, 4)), 5.0),
            tuple(u(0.75, 1.15) * r for r in (30.0, 32.0, 28.0, 21.0, 11.0)),
        )  # fmt: skip
        self.stomach_level = u(-0.55, 0.3)
        self.colon = Tube(
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
        self.duodenum = Tube(
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
                        loops.append(
                            (as_point(start - along), as_point(start + along), radius, kind)
                        )
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
        self.pancreas = Tube(
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
        self.kidneys: list[KidneyShape] = []
        self.isthmus: Tube | None = None
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
            kidney = KidneyShape(
                side,
                (side * x, y, z),
                frame_along(side, turn, medial, back),
                as_point(radii),
                bend,
                sinus,
                pelvis,
                gap,
                tuple(pyramids),
                calyces,
            )
            if kidneys in ("both", "horseshoe", name):
                self.kidneys.append(kidney)
        thickness = u(11.0, 15.0)
        if kidneys == "horseshoe":
            ends = [k.to_template((-0.1, 0.0, -0.72)) for k in self.kidneys]
            low = min(p[2] for p in ends) - 4.0
            x_left, x_right = 0.55 * ends[0][0], 0.55 * ends[1][0]
            self.isthmus = Tube(
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
                Tube(((start[0], -30.0, z + 10), (0.55 * hilum[0], -18.0, z + 5), hilum, inside),
                      (3.2, 3.0, 2.6, 2.0))
            )  # fmt: skip
            over = (
                ((4.0, -48.0, z + 8), (-16.0, -38.0, z + 9))
                if k.side > 0
                else ((-22.0, -34.0, z + 5),)
            )
            middle = (0.6 * hilum[0], hilum[1] - 9.0, z + 3)
            self.renal_veins.append(
                Tube(
                    (*reversed(over), middle, hilum, inside),
                    (*(5.0,) * len(over), 5.2, 4.6, 2.6),
                )
            )
            for end in branches:
                self.renal_veins.append(Tube((inside, end), (2.7, 1.9)))
            self.ureters.append(
                Tube(
                    (k.to_template((-0.75, 0.05, -0.05)), k.to_template((-1.15, -0.05, -0.4)),
                     (k.side * 40.0, -16.0, z - 62), (k.side * 38.0, -20.0, -120.0),
                     (k.side * 46.0, -12.0, -185.0), (k.side * 22.0, -30.0, -245.0)),
                    (4.5, 3.0, 2.0, 2.0, 2.0, 2.0))
            )  # fmt: skip

    def _lesions(self, tumour: bool | None, cyst: bool | None) -> None:
        u, rng = self.rng.uniform, self.rng
        self.tumour: Lesion | None = None
        self.cyst: Lesion | None = None
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
            shape = as_point((radius * u(0.88, 1.15), radius * u(0.88, 1.15), radius * u(0.9, 1.1)))
            shift = u(-22.0, 22.0) if kind == "tumour" else u(0.0, 20.0)
            if not (wanted[index] and self.kidneys):
                continue
            k = self.kidneys[pick[index] % len(self.kidneys)]
            ring = math.sqrt(max(0.1, 1.0 - level * level)) * depth
            centre = k.to_template((ring * math.cos(angle), ring * math.sin(angle), level * depth))
            lesion = Lesion(k.side, centre, shape, shift, growth)
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
            extra = [(lateral, front, back)[m] + self.fat_mm[m] for m in range(3)]
            toward = extra[1] if s < 0 else max(extra[2], 30.0 * self.muscle + 0.8 * self.fat_mm[2])
            radius += extra[0] + (toward - extra[0]) * s * s
            dx, dy = self.bend(z)
            x, y = radius * c + dx, centre + radius * s + dy
            points.append((
                math.cos(self.turn) * x - math.sin(self.turn) * y,
                math.sin(self.turn) * x + math.cos(self.turn) * y,
            ))  # fmt: skip
        return points
