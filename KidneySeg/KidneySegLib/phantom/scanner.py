"""What the scanner adds to an anatomy: noise with its grain, streaks, cupping, the round field."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from KidneySegLib.phantom.anatomy import Anatomy
from KidneySegLib.phantom.shapes import Array, as_point

OUTSIDE_HU = -1024.0


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


class Scanner:
    """Noise with the grain of filtered back-projection, streaks, cupping, the round field."""

    PAD = 4

    def __init__(
        self, seed: int, anatomy: Anatomy, x_mm: Array, y_mm: Array, slice_mm: float, round_: bool
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
            (as_point((rng.uniform(-70, 70), rng.uniform(-110, -60), rng.uniform(-120, 120))),
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
