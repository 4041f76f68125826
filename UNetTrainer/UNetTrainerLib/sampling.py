"""Which slices make a batch, and how they are varied before the network sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from KidneySegLib.preprocess import Preprocessing, context_offset, with_context
from KidneySegLib.volumes import AIR_HU
from UNetTrainerLib.cache import CachedCase


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; the defaults are ``full``, all zero is ``none``.

    Attributes:
        rotation_degrees, shear, shift: largest absolute values; the shift is a share of the field.
        zoom: largest factor, also its inverse; covers unknown pixel spacings.
        mirror: probability of exchanging left and right of the picture. Sides are told apart by
            position after the network, so the kidney label stays right.
        elastic_pixels: standard deviation of smooth displacements.
        gain, offset_hu: relative and absolute change of intensity.
        noise_hu: largest standard deviation of added noise.
        blur: probability of a 3x3 smoothing (other reconstruction kernels).
        floor: probability of a raised lower clip (data stored from 0 HU).
        phase: probability of drawing the kidney's own intensity towards another contrast phase.
        lone: probability that a slice stands for its neighbours (single slices as input).
        field_of_view: probability of a circular field of view that cuts the body.
    """

    rotation_degrees: float = 15.0
    shear: float = 0.1
    shift: float = 0.08
    zoom: float = 1.3
    mirror: float = 0.3
    elastic_pixels: float = 3.0
    gain: float = 0.15
    offset_hu: float = 20.0
    noise_hu: float = 20.0
    blur: float = 0.2
    floor: float = 0.15
    phase: float = 0.35
    lone: float = 0.1
    field_of_view: float = 0.05


AUGMENTATIONS = {
    "full": Augmentation(),
    "light": Augmentation(
        rotation_degrees=8,
        shear=0,
        zoom=1.15,
        elastic_pixels=0,
        noise_hu=10,
        phase=0,
        blur=0,
        field_of_view=0,
    ),
    "none": Augmentation(0, 0, 0, 1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
}


def centred(plane: np.ndarray, size: tuple[int, int], fill: int) -> np.ndarray:
    """Crop or pad the last two axes to ``size`` around their centre."""
    out = np.full((*plane.shape[:-2], *size), fill, plane.dtype)
    source, target = [], []
    for have, want in zip(plane.shape[-2:], size, strict=True):
        length = min(have, want)
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
        target.append(slice((want - length) // 2, (want - length) // 2 + length))
    out[..., target[0], target[1]] = plane[..., source[0], source[1]]
    return out


class Sampler:
    """Draws batches of ``(HU slices with context, labels)`` without end, the same for a seed.

    Cases are drawn in proportion to ``slices ** 0.6``, so that neither a long volume nor many
    single slices take over, then a slice: with kidney with probability ``foreground``.

    Args:
        extra: further cases that take ``extra_share`` of the draws (generated CTs).
        size: rows and columns of the network's input.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        extra: Sequence[CachedCase],
        preprocessing: Preprocessing,
        context_slices: int,
        size: tuple[int, int],
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        extra_share: float = 0.15,
        foreground: float = 0.6,
    ):
        self.cases = [*cases, *extra]
        weight = np.array([min(case.slices, 100) ** 0.6 for case in self.cases])
        weight[: len(cases)] /= weight[: len(cases)].sum()
        if extra:
            weight[: len(cases)] *= 1 - extra_share
            weight[len(cases) :] *= extra_share / weight[len(cases) :].sum()
        self.weight = weight / weight.sum()
        self.arrays = [(case.hu(), case.labels()) for case in self.cases]
        self.preprocessing = preprocessing
        self.context_slices = context_slices
        self.size = size
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.foreground = foreground
        self.rng = np.random.default_rng(seed)
        self.torch_rng = torch.Generator().manual_seed(seed)

    def batches(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``count`` batches: float32 ``(N, context, rows, columns)`` in 0..1 and int64 labels."""
        for _ in range(count):
            slices, labels = zip(*(self._draw() for _ in range(self.batch_size)), strict=True)
            hu = torch.from_numpy(np.stack(slices)).float()
            truth = torch.from_numpy(np.stack(labels))
            hu, truth = augment(hu, truth, self.augmentation, self.torch_rng)
            low, high = self.preprocessing.window_hu
            yield (hu.clamp_(low, high) - low) / (high - low), truth

    def _draw(self) -> tuple[np.ndarray, np.ndarray]:
        number = int(self.rng.choice(len(self.cases), p=self.weight))
        case = self.cases[number]
        hu, labels = self.arrays[number]
        if case.kidney_slices and self.rng.random() < self.foreground:
            index = int(self.rng.choice(case.kidney_slices))
        else:
            index = int(self.rng.integers(case.slices))
        offset = context_offset(case.spacing_mm[0], self.preprocessing)
        if self.rng.random() < self.augmentation.lone:
            neighbours = np.full(self.context_slices, index)
        else:
            if self.augmentation.zoom > 1 and self.rng.random() < 0.2:
                offset += 1  # thicker slices than those seen
            neighbours = with_context(case.slices, np.array([index]), self.context_slices, offset)[
                0
            ]
        return (
            centred(np.asarray(hu[neighbours]), self.size, AIR_HU),
            centred(np.asarray(labels[neighbours]), self.size, 0),
        )


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    return torch.rand(count, generator=rng) * (high - low) + low


def augment(
    hu: Tensor, labels: Tensor, how: Augmentation, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vary a batch: float HU and uint8 labels, both ``(N, C, H, W)``, C the neighbouring slices.

    Returns:
        float HU ``(N, C, H, W)`` and int64 labels ``(N, H, W)`` of the middle slice.
    """
    field = displaced_grid(len(hu), tuple(hu.shape[-2:]), how, rng)
    if how.phase > 0:
        hu = change_phase(hu, labels, how.phase, rng)
    labels = labels[:, labels.shape[1] // 2]
    if field is None:
        truth = labels.long()
    else:
        hu = functional.grid_sample(
            hu - AIR_HU, field, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        hu += AIR_HU
        # Each label is interpolated as a mask of its own and cut at one half: smooth edges.
        masks = torch.stack([labels > 0, labels > 1], dim=1).float()
        masks = functional.grid_sample(masks, field, mode="bilinear", align_corners=False)
        kidney = masks[:, 0] >= 0.5
        truth = kidney.long() + (kidney & (masks[:, 1] >= 0.5)).long()
    return change_intensity(hu, how, rng), truth


def displaced_grid(
    count: int, size: tuple[int, ...], how: Augmentation, rng: torch.Generator
) -> Tensor | None:
    """Sampling positions ``(N, H, W, 2)`` for `grid_sample`, or None when nothing moves."""
    still = how.zoom == 1 and how.mirror == 0 and how.elastic_pixels == 0
    if still and how.rotation_degrees == 0 and how.shear == 0 and how.shift == 0:
        return None
    rows, columns = size
    angle = torch.deg2rad(_uniform(count, -how.rotation_degrees, how.rotation_degrees, rng))
    zoom = torch.exp(_uniform(count, -1, 1, rng) * float(np.log(how.zoom)))
    stretch = torch.exp(_uniform(count, -0.05, 0.05, rng)) if how.zoom > 1 else torch.ones(count)
    shear = _uniform(count, -how.shear, how.shear, rng)
    flip = torch.where(torch.rand(count, generator=rng) < how.mirror, -1.0, 1.0)
    aspect = rows / columns
    matrix = torch.zeros(count, 2, 3)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    # In pixels isotropic, hence the aspect ratio in the normalised off-diagonal terms.
    matrix[:, 0, 0] = cosine * flip * stretch / zoom
    matrix[:, 0, 1] = (-sine + shear) * aspect / zoom
    matrix[:, 1, 0] = sine * flip / aspect / zoom
    matrix[:, 1, 1] = cosine / stretch / zoom
    matrix[:, :, 2] = _uniform(count * 2, -2 * how.shift, 2 * how.shift, rng).view(count, 2)
    grid = functional.affine_grid(matrix, [count, 1, rows, columns], align_corners=False)
    if how.elastic_pixels > 0:
        coarse = torch.randn(count, 2, 5, 6, generator=rng) * how.elastic_pixels * 2
        coarse *= torch.tensor([1 / columns, 1 / rows]).view(1, 2, 1, 1)
        coarse *= _uniform(count, 0, 1, rng).view(-1, 1, 1, 1)
        smooth = functional.interpolate(
            coarse, size=(rows, columns), mode="bicubic", align_corners=True
        )
        grid = grid + smooth.movedim(1, -1)
    return grid


def change_phase(hu: Tensor, labels: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Draw the kidney's intensity towards another contrast phase, plain ones included.

    Only the pixels within the (softened) kidney label change, in every neighbouring slice alike:
    enhanced tissue is moved to a random mean and its spread is narrowed or widened.
    """
    kidney = (labels == 1).float()
    soft = functional.avg_pool2d(kidney, 3, stride=1, padding=1)
    area = kidney.sum((1, 2, 3), keepdim=True)
    mean = (hu * kidney).sum((1, 2, 3), keepdim=True) / area.clamp(min=1)
    target = _uniform(len(hu), 25, 240, rng).view(-1, 1, 1, 1)
    # Gray values of kidneys before contrast lie near those of muscle: the hard case, drawn often.
    plain = _uniform(len(hu), 25, 50, rng).view(-1, 1, 1, 1)
    is_plain = (torch.rand(len(hu), generator=rng) < 0.5).view(-1, 1, 1, 1)
    target = torch.where(is_plain, plain, target)
    spread = torch.where(
        is_plain,
        _uniform(len(hu), 0.2, 0.5, rng).view(-1, 1, 1, 1),
        _uniform(len(hu), 0.5, 1.5, rng).view(-1, 1, 1, 1),
    )
    changed = target + (hu - mean) * spread
    # Fat and air that partial volume or the sinus brings into the label stay what they are.
    tissue = ((hu + 30) / 40).clamp(0, 1)
    chosen = ((torch.rand(len(hu), generator=rng) < share).view(-1, 1, 1, 1) & (area > 0)).float()
    return hu + chosen * soft * tissue * (changed - hu)


def change_intensity(hu: Tensor, how: Augmentation, rng: torch.Generator) -> Tensor:
    """Gain, offset, noise, smoothing, raised floor and field of view of ``(N, C, H, W)`` HU."""
    count = len(hu)

    def per_slice(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    def chosen(share: float) -> Tensor:
        return per_slice(torch.rand(count, generator=rng) < share)

    if how.gain > 0 or how.offset_hu > 0:
        gain = per_slice(_uniform(count, 1 - how.gain, 1 + how.gain, rng))
        offset = per_slice(_uniform(count, -how.offset_hu, how.offset_hu, rng))
        hu = hu * gain + offset
    if how.blur > 0:
        smooth = functional.avg_pool2d(
            functional.pad(hu, (1, 1, 1, 1), mode="replicate"), 3, stride=1
        )
        hu = torch.where(chosen(how.blur), smooth, hu)
    if how.noise_hu > 0:
        sigma = per_slice(_uniform(count, 0, how.noise_hu, rng)) * chosen(0.5)
        noise = torch.randn(hu.shape, generator=rng)
        hu = hu + sigma * noise
    if how.floor > 0:
        floor = per_slice(_uniform(count, -125, 10, rng))
        hu = torch.where(chosen(how.floor), torch.maximum(hu, floor), hu)
    if how.field_of_view > 0:
        rows, columns = hu.shape[-2:]
        y = torch.linspace(-1, 1, rows).view(1, 1, -1, 1) * rows / columns
        x = torch.linspace(-1, 1, columns).view(1, 1, 1, -1)
        radius = per_slice(_uniform(count, 0.6, 0.9, rng))
        outside = (x**2 + y**2 > radius**2) & chosen(how.field_of_view)
        hu = torch.where(outside, torch.tensor(float(AIR_HU)), hu)
    return hu
