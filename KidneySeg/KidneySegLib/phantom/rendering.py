"""From an anatomy to HU and labels, one plane at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from KidneySegLib.geometry import LEFT, RIGHT
from KidneySegLib.phantom.anatomy import Anatomy, KidneyShape, Lesion, Tube
from KidneySegLib.phantom.shapes import (
    Array,
    Box,
    Point,
    as_point,
    curve_at,
    ellipsoid,
    ramp_between,
    smooth_min,
)

KIDNEY, TUMOUR = 1, 2
AIR_HU = -1000.0

# Lower edges of L5 to T1, mm above the middle of L2.
_VERTEBRA_EDGES_MM = (
    -127.0, -91.0, -54.0, -18.0, 18.0, 52.0, 83.0, 112.0, 139.0, 166.0, 192.0, 217.0, 241.0,
    264.0, 286.0, 307.0, 327.0, 347.0, 366.0, 385.0, 404.0, 423.0,
)  # fmt: skip


class Renderer:
    """Samples an anatomy on slices: HU and labels of one plane at a time, so memory stays low."""

    MARGIN_MM = 16.0  # how far turning, bending and deformation may move a point out of its box

    def __init__(self, anatomy: Anatomy, x_mm: Array, y_mm: Array, back_mm: float) -> None:
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

    def _tube(self, tube: Tube, lump: float = 0.0) -> tuple[Box, Array] | None:
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
        centre = as_point((lo + hi) / 2 for lo, hi in zip(lows, highs, strict=True))
        half = as_point((hi - lo) / 2 for lo, hi in zip(lows, highs, strict=True))
        box = self._box(centre, half)
        if box is None:
            return None
        distance = np.full(self.x[box].shape, 99.0, np.float32)
        for p, q, r, s, w in near:
            middle = as_point((p[i] + q[i]) / 2 for i in range(3))
            part = self._box(middle, as_point(abs(p[i] - q[i]) / 2 + w for i in range(3)))
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

    def _vessel(self, tube: Tube, hu: float, wall_hu: float | None = None) -> None:
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
        erector_x = an.muscle * curve_at(
            self.z, ((-215, 6), (-150, 30), (-60, 37), (60, 35), (200, 27))
        )
        erector_y = an.muscle * curve_at(
            self.z, ((-215, 4), (-150, 20), (-60, 29), (60, 25), (200, 17))
        )
        ahead = curve_at(self.z, ((-215, 52), (-130, 30), (-60, 20), (40, 21), (75, 36), (110, 48)))
        erector = ellipsoid(
            np.abs(self.x) - erector_x + 2.0, self.y - ahead - erector_y, np.zeros_like(rho),
            (erector_x, erector_y, 1e3),
        )  # fmt: skip
        d_muscle = smooth_min(self.d_cage - wall_mm, erector, 8.0)
        self.d_cavity = np.maximum(self.d_cage, -erector)
        fat_l, fat_f, fat_b = an.fat_mm
        fat_mm = fat_l + np.where(behind, fat_b - fat_l, fat_f - fat_l) * s2
        self.d_skin = smooth_min(self.d_cage - wall_mm - fat_mm, erector - 0.75 * fat_b, 22.0)

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
        lines *= ramp_between(np.abs(self.x), 45.0, 75.0)
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
            surface = ellipsoid(p, v, w, k.radii) + 1.3 * lump + 0.45 * texture
            reach_, width, length = k.sinus
            ru, rv, rw = k.radii
            # A slot from the hilum into the middle, narrower where it opens to the outside.
            sinus = ellipsoid(
                p + (1.0 - 0.5 * (1.0 + reach_)) * ru + 0.06 * ru, v + 0.05 * rv, w,
                (0.5 * (1.0 + reach_) * ru, width * rv, length * rw),
            ) + 1.6 * lump + 0.8 * texture  # fmt: skip
            lip = np.maximum(np.abs(v) - 0.4 * rv, np.abs(w) - 0.36 * rw)
            opening = np.maximum(np.maximum(p + 0.6 * ru, lip), -(p + 1.6 * ru))
            sinus = smooth_min(sinus, opening + 1.2 * lump, 4.0)
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
            shape["surface"] = -smooth_min(-shape["surface"], -limit, 7.0)
            view = self.keep[box]
            np.minimum(view, shape["surface"], out=view)
        self.bridge = self._tube(an.isthmus, 0.8) if an.isthmus is not None else None
        if self.bridge is not None:
            box, d = self.bridge
            front = 40.0 - np.sqrt(self.x[box] ** 2 + (self.y[box] + 2.0) ** 2)
            self.bridge = box, np.maximum(d, front)
            view = self.keep[box]
            np.minimum(view, self.bridge[1], out=view)
        self.growths: dict[str, tuple[Box, Array, Lesion]] = {}
        for name, lesion, rough in (("tumour", an.tumour, 1.0), ("cyst", an.cyst, 0.25)):
            if lesion is None:
                continue
            box = self._box(lesion.centre, as_point(r + 6.0 for r in lesion.radii))
            if box is None:
                continue
            d = ellipsoid(*self._local(box, lesion.centre), lesion.radii)
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
        left = ramp_between(self.x, -15.0, 25.0)
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
            heart_d[box] = ellipsoid(x, y, z, (66.0, 52.0, 54.0)) + 2.0 * self._field("lump", box)
        wide = curve_at(self.z, ((60, 22), (150, 30), (240, 36), (320, 44)))
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
                * ramp_between(np.abs(self._field("vessel a", box)), 0.55, 0.2)
            )  # fmt: skip
            above = np.maximum(heart_d[box], dome[box] - 4.0 - self.zz[box])
            self._paint(box, self._cover(above), blood)
        if self.z > 160.0:
            split = self.z < 215.0
            for side in (-1.0, 1.0) if split else (0.0,):
                off = side * (215.0 - self.z) * 0.75
                bore = 7.0 if split else 9.0
                ends = ((off, -22.0, self.z - 20.0), (off, -22.0, self.z + 20.0))
                self._vessel(Tube(ends, (bore, bore)), -985.0)
            arch = Tube(
                ((12.0, -12.0, 205.0), (12.0, -18.0, 232.0), (2.0, -44.0, 240.0),
                 (-14.0, -68.0, 225.0), (-10.0, -70.0, 185.0)),
                (12.0, 13.0, 13.0, 14.0, 14.0),
            )  # fmt: skip
            self._vessel(arch, an.hu["aorta"])
            self._vessel(
                Tube(((-30.0, -62.0, 180.0), (-27.0, -58.0, 300.0)), (9.0, 8.0)), an.hu["heart"]
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
            found = self._tube(Tube((p, q), (radius, radius)))
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
                self._vessel(Tube(((x, y - 4.0, 66.0), foot), (2.4, 1.6)), an.hu["pancreas"])
        self._spleen(confined, gap)
        self._liver(confined, gap)
        centre, radii, present = an.gallbladder
        place = self._box(centre, radii) if present else None
        if place is not None:
            d = ellipsoid(*self._local(place, centre), radii) + 0.8 * self._field("lump", place)
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
        d = ellipsoid(x, y, z, radii) + 2.2 * self._field("lump", box)
        hollow = ellipsoid(x + 1.0 * radii[0], y + 16.0, z, (0.8 * radii[0], 38.0, 44.0))
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
            as_point((a + b) / 2 for a, b in zip(low, high, strict=True)),
            as_point((b - a) / 2 + 8.0 for a, b in zip(low, high, strict=True)),
        )
        if box is None:
            return
        d = smooth_min(
            ellipsoid(*self._local(box, c1), r1), ellipsoid(*self._local(box, c2), r2), 22.0
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
        size = curve_at(z, ((-240, 17), (-150, 20), (-100, 22), (-40, 18), (20, 12), (60, 5)))
        for side in (1.0, -1.0):
            x = curve_at(z, ((-240, 62), (-150, 50), (-90, 43), (-40, 38), (20, 31), (60, 26)))
            y = curve_at(z, ((-240, -52), (-170, -25), (-90, -4), (0, 8), (60, 14)))
            if -250.0 < z < 62.0:
                parts.append(((side * x, y, z), (size * an.muscle, 1.2 * size * an.muscle, 60.0)))
            if -95.0 < z < 60.0:
                wide = curve_at(z, ((-95, 6), (-80, 16), (-20, 20), (30, 16), (60, 5)))
                thick = curve_at(z, ((-95, 3), (-80, 8), (0, 8.5), (40, 6), (60, 2)))
                parts.append(((side * 60.0, 43.0, z), (wide, thick * an.muscle, 60.0)))
        for centre, radii in parts:
            box = self._box(centre, radii)
            if box is None:
                continue
            dx, dy, _ = self._local(box, centre)
            d = ellipsoid(dx, dy, np.zeros_like(dx), radii) + 1.2 * self._field("lump", box)
            self._paint(box, self._cover(self._away(box, d, 2.0)), self._muscle_hu(box))
        if 0.0 < z < 130.0:
            # Crura of the diaphragm hug the aorta and the vertebrae.
            thick = curve_at(z, ((0, 2.5), (50, 5.0), (130, 3.0)))
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
                d = ellipsoid(*self._local(place, bladder), (42.0, 32.0, 36.0))
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
            x, y = (
                self.x[found],
                self.y[found]
                - curve_at(self.z, ((-190, 50), (-130, 34), (-100, 27), (0, 25), (300, 22))),
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
        lean = curve_at(self.z, ((-130, 0.42), (-90, 0.18), (0, -0.05), (100, -0.12), (300, 0.1)))
        z = self.zz[box] + lean * y
        edges = np.array(_VERTEBRA_EDGES_MM, np.float32)
        level = np.clip(np.searchsorted(edges, z) - 1, 0, len(edges) - 2)
        height = (edges[1:] - edges[:-1])[level]
        u = z - 0.5 * (edges[1:] + edges[:-1])[level]
        half = 0.5 * height - curve_at(self.z, ((-130, 6.0), (20, 5.0), (150, 2.6)))
        grow = curve_at(self.z, ((-130, 1.12), (0, 1.0), (100, 0.86), (300, 0.68)))
        waist = 1.0 - 0.10 * (1.0 - np.clip((u / half) ** 2, 0.0, 1.0))
        rx, ry = 24.5 * grow, 17.0 * grow
        n = np.sqrt((x / (rx * waist)) ** 2 + (y / (ry * waist)) ** 2)
        round_ = (n - 1.0) * ry
        # The back of the body is flat.
        round_ = np.maximum(round_, y - 0.86 * ry)
        body = np.maximum(round_, np.abs(u) - half)
        disc = np.maximum(round_ - 0.5, half - np.abs(u))
        self._paint(box, self._cover(disc), 92.0 - 18.0 * ramp_between(-round_, 4.0, 9.0))
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
        reach = curve_at(self.z, ((-120, 46), (0, 42), (60, 26), (300, 30)))
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
        thick = 3.4 + 3.0 * ramp_between(self.zz, -150.0, -200.0) + 4.0 * np.clip(0.6 - t, 0.0, 0.4)
        wing = np.abs(self.d_cage - 9.0 - 3.0 * self._field("lump")) - thick
        wing = np.maximum(wing, (self.zz - crest) * 0.8)
        low_edge = ramp_between(self.zz, -235.0, -150.0)
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
            k: KidneyShape = shape["kidney"]
            box, surface, sinus = shape["box"], shape["surface"], shape["sinus"]
            p, v, w = shape["p"], shape["v"], shape["w"]
            ru, rv, rw = k.radii
            texture = shape["texture"]
            # The sinus holds the fat and the vessels painted before, and the renal pelvis.
            pelvis = ellipsoid(
                p + 0.62 * ru,
                v - 0.06 * rv,
                w + 0.06 * rw,
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
                dead = ramp_between(-d + 5.0 * lump, 7.0, 13.0)
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


class HeadRenderer(Renderer):
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
        face = ellipsoid(x, y + 28.0, zz + 55.0, (60.0, 68.0, 75.0))
        self.d_skin = smooth_min(
            np.minimum(ellipsoid(x, y, zz, (76.0, 95.0, 92.0)), face),
            np.maximum(neck, zz + 40.0), 15.0,
        )  # fmt: skip
        everywhere = self.everywhere
        self._paint(everywhere, self._cover(self.d_skin), 20.0)
        self._paint(everywhere, self._cover(self.d_skin + 2.0), an.fat_hu)
        self._paint(everywhere, self._cover(self.d_skin + 6.0 + lump), self._muscle_hu())
        vault = ellipsoid(x, y, zz - 4.0, (69.0, 88.0, 82.0))
        vault = np.maximum(vault, -(zz + 50.0 + 0.3 * y))
        self._bone(everywhere, vault, 1.8, 1.5)
        brain = vault + 6.5
        self._paint(everywhere, self._cover(brain), 8.0)
        folds = np.abs(self._field("vessel a") + 0.5 * texture)
        self._paint(everywhere, self._cover(brain + 2.5 + 5.0 * (folds < 0.15)), 37.0)
        self._paint(everywhere, self._cover(brain + 8.0 + 3.0 * lump, 3.0), 29.0)
        for side in (1.0, -1.0):
            ventricle = ellipsoid(side * x - 12.0, y - 5.0, zz - 14.0, (5.0, 34.0, 11.0))
            self._paint(everywhere, self._cover(ventricle + lump, 1.5), 6.0)
            eye = np.sqrt((side * x - 32.0) ** 2 + (y + 78.0) ** 2 + (zz + 32.0) ** 2) - 12.0
            self._paint(everywhere, self._cover(eye), 12.0)
            sinus = ellipsoid(side * x - 24.0, y + 62.0, zz + 66.0, (14.0, 16.0, 17.0))
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
