"""A second look at what may be a kidney, against false detections.

The U-Net judges pixel by pixel; a small network of another kind looks at a found component as a
whole, with its surroundings, and says how likely it is a kidney. The idea, a classifier after the
segmentation that decides whether a predicted mask is kept, is that of systems for nerves in
ultrasound, where many pictures show no nerve at all.

It sees five sections of a fixed size in mm: three axial ones through the middle third of the
component, a coronal and a sagittal one, each as a picture of the CT and one of the component. All
five go through the same convolutions (Su et al., "Multi-view Convolutional Neural Networks for 3D
Shape Recognition", ICCV 2015, arXiv:1505.00880).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from KidneySegLib.parameters import Tensors, norm_shapes
from KidneySegLib.preprocess import Preprocessing, WorkingGrid, plan, resample

Box = tuple[slice, slice, slice]

# Shares of the component's voxels above each axial section; then come the coronal and the sagittal
# one through its middle.
AXIAL_SHARES = (1 / 3, 1 / 2, 2 / 3)
VIEWS = len(AXIAL_SHARES) + 2
CHANNELS = 2  # the CT and the component
SAGITTAL = VIEWS - 1
# In a shorter scan, a single slice above all, there are only pieces of kidneys, and those are like
# nothing that it learnt from: no second look is taken.
LEAST_SCAN_MM = 40.0
_SPARE_PIXELS = 2  # read beyond the sections, for what is interpolated at their edges


@dataclass(frozen=True)
class SecondLook:
    """How a second look is taken; stored as ``second_look`` in a model's ``model.json``.

    Attributes:
        pixels: rows and columns of a section.
        pixel_mm: size of its pixels; thinner slices are averaged up to it.
        window_hu: intensities that are told apart.
        features: channels of the first convolution; those after it have two and three times as
            many.
        threshold: probability below which a component is no kidney.
    """

    pixels: int = 64
    pixel_mm: float = 2.5
    window_hu: tuple[float, float] = (-125.0, 275.0)
    features: int = 16
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (("pixels", 16, 512), ("features", 1, 256)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, not {value}")
        if not isinstance(self.pixel_mm, int | float) or not 0 < self.pixel_mm < 100:
            raise ValueError(f"pixel_mm must be between 0 and 100 mm, not {self.pixel_mm!r}")
        low_hu, high_hu = self.window_hu
        if not low_hu < high_hu or not math.isfinite(high_hu - low_hu):
            raise ValueError(
                f"window_hu must be a lower and a higher figure, not {low_hu}, {high_hu}"
            )
        if not isinstance(self.threshold, int | float) or not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must be at least 0 and below 1, not {self.threshold!r}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SecondLook:
        """Read the entry of a model; raises ValueError naming what is not known."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown entry {', '.join(unknown)} of second_look")
        window = tuple(float(v) for v in values.get("window_hu", cls.window_hu))
        if len(window) != 2:
            raise ValueError("window_hu must be two figures")
        return cls(**{**values, "window_hu": window})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the network's convolutions."""
        return tuple(self.features * factor for factor in (1, 2, 3, 3))

    @property
    def weight_shapes(self) -> Tensors:
        """Name and shape of every tensor of the network's state."""
        shapes: Tensors = {}
        before, place = CHANNELS, 0
        for level, width in enumerate(self.widths):
            shapes[f"trunk.{place}.weight"] = (width, before, 3, 3)
            shapes |= norm_shapes(f"trunk.{place + 1}", width)
            place += 4 if 0 < level < len(self.widths) - 1 else 3
            before = width
        for name, into, out in (
            ("head.0", 3 * 2 * before, 2 * self.features),
            ("head.3", 2 * self.features, 2),
        ):
            shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
        return shapes

    @property
    def preprocessing(self) -> Preprocessing:
        """The grid that sections are taken from: pixels of this size, slices up to it."""
        return Preprocessing(
            window_hu=self.window_hu, pixel_mm=self.pixel_mm, slice_mm=self.pixel_mm
        )


@dataclass(frozen=True)
class Places:
    """Where sections lie, as indices of an array that need not be whole.

    Attributes:
        slices: of the axial sections.
        middle: (slice, row, column) that the others go through and all are centred on.
    """

    slices: tuple[float, ...]
    middle: tuple[float, float, float]

    def moved(self, by: Sequence[float]) -> Places:
        """The same places, counted from another corner of the array."""
        return Places(
            tuple(at + by[0] for at in self.slices),
            _three(at + more for at, more in zip(self.middle, by, strict=True)),
        )


def places_in(mask: np.ndarray) -> Places:
    """Where to take sections of a component, a mask of shape (slices, rows, columns)."""
    counts = [mask.sum(axes, dtype=float) for axes in ((1, 2), (0, 2), (0, 1))]
    first, second, third = (_with_share(along, 0.5) for along in counts)
    axial = tuple(_with_share(counts[0], share) for share in AXIAL_SHARES)
    return Places(axial, (first, second, third))


def _with_share(counts: np.ndarray, share: float) -> float:
    """The index up to which there is this share of all counts; whole at the centre of a voxel."""
    upto = np.concatenate([[0.0], np.cumsum(counts)])
    return float(np.interp(share * upto[-1], upto, np.arange(len(upto)) - 0.5))


def sections(
    array: np.ndarray,
    spacing_mm: tuple[float, float, float],
    places: Places,
    parameters: SecondLook,
) -> np.ndarray:
    """The sections of an array; what lies beyond it is 0.

    Args:
        array: (slices, rows, columns), at pixels and slices no finer than ``parameters`` says.

    Returns:
        float32 (views, pixels, pixels): the axial ones and the coronal one with the patient's left
        on the right of the picture, the sagittal one with the back there; head or front on top.
    """
    steps = (np.arange(parameters.pixels) - (parameters.pixels - 1) / 2) * parameters.pixel_mm
    across = [centre + steps / mm for centre, mm in zip(places.middle, spacing_mm, strict=True)]
    slices = _along(array, np.array(places.slices), 0)
    _, row, column = (np.array([at]) for at in places.middle)
    axial = _along(_along(slices, across[1], 1), across[2], 2)
    coronal = _along(_along(_along(array, row, 1), across[0], 0), across[2], 2)
    sagittal = _along(_along(_along(array, column, 2), across[0], 0), across[1], 1)
    return np.concatenate([axial, coronal.transpose(1, 0, 2), sagittal.transpose(2, 0, 1)])


def _along(array: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis, float32; 0 beyond the outermost voxels' faces."""
    last = array.shape[axis] - 1
    inside = (at >= -0.5) & (at <= last + 0.5)
    at = np.clip(at, 0, last)
    low = np.minimum(at.astype(int), max(last - 1, 0))
    shape = [1] * array.ndim
    shape[axis] = len(at)
    share = (at - low).astype(np.float32).reshape(shape)
    below = array.take(low, axis).astype(np.float32)
    above = array.take(np.minimum(low + 1, last), axis).astype(np.float32)
    taken: np.ndarray = (below + share * (above - below)) * inside.reshape(shape)
    return taken


def solid(share: np.ndarray) -> np.ndarray:
    """A component on a coarser grid, bool: where at least half is of it, or of what is most."""
    return np.asarray(share >= max(0.5 * float(share.max()), 1e-6))


def scaled(hu: np.ndarray, parameters: SecondLook) -> np.ndarray:
    """HU to the network's 0..1, float32."""
    low, high = parameters.window_hu
    return np.asarray((np.clip(hu, low, high) - low) / (high - low), np.float32)


def component_views(
    volume: np.ndarray,
    spacing_mm: tuple[float, float, float],
    box: Box,
    mask: np.ndarray,
    parameters: SecondLook,
) -> np.ndarray:
    """What the network sees of a component of a CT.

    Args:
        volume: axial array (slices, rows, columns) in HU, at its own spacing.
        box: of the component in it.
        mask: bool array of the box's shape.

    Returns:
        float32 (views, 2, pixels, pixels).
    """
    places = places_in(mask).moved([part.start for part in box])
    # The component may be larger than what is shown of it.
    aside_mm = (parameters.pixels / 2 + _SPARE_PIXELS) * parameters.pixel_mm
    spans = [
        (math.floor(middle - aside_mm / mm), math.ceil(middle + aside_mm / mm))
        for middle, mm in zip(places.middle, spacing_mm, strict=True)
    ]
    # An axial section through the middle third of a long one may lie further away.
    spans[0] = (
        min(spans[0][0], math.floor(places.slices[0])),
        max(spans[0][1], math.ceil(places.slices[-1]) + 1),
    )
    around = _three(
        slice(max(0, first), min(size, stop))
        for (first, stop), size in zip(spans, volume.shape, strict=True)
    )
    crop = volume[around]
    component = np.zeros(crop.shape, bool)
    here, there = _common(around, box)
    component[here] = mask[there]

    grid = plan(_three(crop.shape), spacing_mm, parameters.preprocessing)
    on_grid = _on(grid, places.moved([-part.start for part in around]))
    pictures = (
        scaled(resample(crop, grid), parameters),
        solid(resample(component, grid)),
    )
    return np.stack(
        [sections(one, grid.spacing_mm, on_grid, parameters) for one in pictures], axis=1
    )


def _common(one: Sequence[slice], other: Sequence[slice]) -> tuple[Box, Box]:
    """What two boxes share, as counted from the corner of each."""
    shared = [(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    first, second = (
        tuple(
            slice(low - part.start, high - part.start)
            for (low, high), part in zip(shared, parts, strict=True)
        )
        for parts in (one, other)
    )
    return _three(first), _three(second)


def _on(grid: WorkingGrid, places: Places) -> Places:
    """Places of an axial array as indices of the working one made from it."""
    scales = (
        grid.group,
        grid.full_shape[1] / grid.shape[0],
        grid.full_shape[2] / grid.shape[1],
    )
    first, second, third = (
        (at + 0.5) / scale - 0.5 for at, scale in zip(places.middle, scales, strict=True)
    )
    return Places(
        tuple((at + 0.5) / scales[0] - 0.5 for at in places.slices), (first, second, third)
    )


class Look:
    """A second look at components of CTs, on the CPU and without torch: its network is small.

    Args:
        weights: those of `looknetwork.LookNetwork`, by name.
    """

    def __init__(self, parameters: SecondLook, weights: Mapping[str, np.ndarray]):
        self.parameters = parameters
        self._weights = weights

    def __call__(
        self,
        volume: np.ndarray,
        spacing_mm: tuple[float, float, float],
        box: Box,
        mask: np.ndarray,
    ) -> float:
        """How likely a component is a kidney, 0..1; see `component_views`.

        The mean with the answer for its mirror image; a sagittal section shows the same in that.
        """
        views = component_views(volume, spacing_mm, box, mask, self.parameters)
        mirrored = views.copy()
        mirrored[:SAGITTAL] = views[:SAGITTAL, ..., ::-1]
        logits = np.stack([self._logits(views), self._logits(mirrored)])
        return float((1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).mean())

    def _logits(self, views: np.ndarray) -> np.ndarray:
        """Float32 (views, 2, pixels, pixels) to (2,), as `looknetwork.LookNetwork` computes it."""
        weights = self._weights
        seen = views
        last = len(self.parameters.widths) - 1
        place = 0
        for level in range(last + 1):
            seen = _convolved(seen, weights[f"trunk.{place}.weight"], 2 if level == 0 else 1)
            norm = f"trunk.{place + 1}."
            factor = weights[norm + "weight"] / np.sqrt(weights[norm + "running_var"] + 1e-5)
            shift = weights[norm + "bias"] - weights[norm + "running_mean"] * factor
            seen = np.maximum(seen * factor[:, None, None] + shift[:, None, None], 0)
            place += 3
            if 0 < level < last:
                rows, columns = (length // 2 * 2 for length in seen.shape[-2:])
                seen = seen[..., :rows, :columns]
                seen = seen.reshape(*seen.shape[:2], rows // 2, 2, columns // 2, 2).max((3, 5))
                place += 1
        component = views[:, 1]
        pool = _pooling(component.shape[-1], seen.shape[-1])
        inside = (pool @ component @ pool.T)[:, None]
        within = (seen * inside).sum((2, 3)) / np.maximum(inside.sum((2, 3)), 1e-3)
        features = np.concatenate([within, seen.mean((2, 3))], axis=1)
        axial = features[: len(AXIAL_SHARES)].mean(0)
        told = np.concatenate([axial, *features[len(AXIAL_SHARES) :]])
        hidden = np.maximum(weights["head.0.weight"] @ told + weights["head.0.bias"], 0)
        return np.asarray(weights["head.3.weight"] @ hidden + weights["head.3.bias"])


def _convolved(pictures: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """A 3x3 convolution with one pixel of zeros around: (N, C, rows, columns)."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    windows = windows[:, :, ::stride, ::stride].transpose(0, 2, 3, 1, 4, 5)
    number, rows, columns = windows.shape[:3]
    flat = windows.reshape(number * rows * columns, -1) @ weight.reshape(len(weight), -1).T
    return flat.reshape(number, rows, columns, -1).transpose(0, 3, 1, 2)


def _pooling(pixels: int, fewer: int) -> np.ndarray:
    """Means of stretches of nearly equal length, as torch pools adaptively: (fewer, pixels)."""
    pool = np.zeros((fewer, pixels), np.float32)
    for index in range(fewer):
        first, stop = index * pixels // fewer, -(-(index + 1) * pixels // fewer)
        pool[index, first:stop] = 1 / (stop - first)
    return pool


def _three(values: Any) -> Any:
    first, second, third = values
    return first, second, third
