"""Gray values that change: contrast phases, painted lesions, noise, and a doubted finder."""

from __future__ import annotations

import numpy as np
import torch

from UNetTrainerLib.augmentation import Augmentation
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.moving import bicubic

PRIOR_MISSED, PRIOR_MOVED, PRIOR_DOUBTED, PRIOR_FALSE = 0.1, 0.4, 0.7, 0.3  # shares of the draws
PRIOR_DOUBT = 4.0  # largest standard deviation of the logits of a doubted prior
PRIOR_MOST_PIXELS = 4
# What contrast medium brightens lies between muscle and this, where kidneys are not brighter yet;
# so much further up there is bone.
_ENHANCED_HU, _TO_BONE_HU = 210.0, 65.0
LESION_RADIUS_MM = (5.0, 30.0)


def change_phase(
    hu: np.ndarray, kidney: np.ndarray, rng: np.random.Generator, plain: bool = False
) -> np.ndarray:
    """Draw the kidney's intensity towards another contrast phase, plain ones included.

    Only the pixels within the (softened) kidney change, in every neighbouring slice alike: enhanced
    tissue is moved to a random mean and its spread is narrowed or widened.

    Args:
        hu: float32 (slices, channels, rows, columns). kidney: bool of the same shape.
        plain: bring it to what it is before contrast, in any case.
    """
    if not kidney.any():
        return hu
    # Gray values of kidneys before contrast lie near those of muscle: the hard case, drawn often.
    if plain:
        target, spread = rng.uniform(18, 45), rng.uniform(0.2, 0.6)
    elif rng.random() < 0.5:
        target, spread = rng.uniform(25, 50), rng.uniform(0.2, 0.5)
    else:
        target, spread = rng.uniform(25, 240), rng.uniform(0.5, 1.5)
    # All of it happens within the kidneys and the pixel around them.
    rows, columns = (np.flatnonzero(kidney.any(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
    near = (
        ...,
        slice(max(int(rows[0]) - 1, 0), int(rows[-1]) + 2),
        slice(max(int(columns[0]) - 1, 0), int(columns[-1]) + 2),
    )
    part, mask = hu[near], kidney[near].astype(np.float32)
    mean = float(part[mask > 0].mean())
    # Fat and air that partial volume or the sinus brings into the label stay what they are.
    tissue = np.clip((part + 30) / 40, 0, 1)
    changed = target + (part - mean) * np.float32(spread)
    hu = hu.copy()
    hu[near] = part + smoothed(mask, "constant") * tissue * (changed - part)
    return hu


def wash_out(hu: np.ndarray, enhanced: float, rng: np.random.Generator) -> np.ndarray:
    """Take contrast medium out of everything, as far as gray values can tell what it is in.

    Kidneys, liver, vessels and bowel come close to muscle, fat stays as it is, and bone as bright.
    `change_phase` darkens kidneys alone and so leaves an edge exactly where the label has one; here
    edges stay where the CT has them, but low ones.

    Args:
        hu: float32 of any shape.
        enhanced: the HU up to which there is more contrast medium than bone, see `enhanced_hu`.
    """
    muscle = rng.uniform(10, 50)
    left = muscle + rng.uniform(0.05, 0.5) * (enhanced - muscle)
    bone = enhanced + _TO_BONE_HU
    known = (-1e4, muscle, enhanced, bone, 1e4)
    return np.interp(hu, known, (-1e4, muscle, left, bone, 1e4)).astype(np.float32)


def enhanced_hu(case: CachedCase) -> float:
    """How bright the kidneys of a case become with its contrast medium; at least `_ENHANCED_HU`.

    In an arterial phase they are as bright as bone elsewhere, and a fixed limit would leave them
    half with contrast and half without, speckled.
    """
    voxels, labels = case.voxels(), case.labels()
    # Some slices say it; the whole case need not be read.
    labelled = case.labelled_slices[:: max(len(case.labelled_slices) // 8, 1)]
    kidney = [voxels[index][:, labels[index] == 1].ravel() for index in labelled]
    inside = np.concatenate(kidney) if kidney else np.empty(0)
    return max(_ENHANCED_HU, float(np.percentile(inside, 95))) if len(inside) else _ENHANCED_HU


def add_lesion(
    hu: np.ndarray,
    labels: np.ndarray,
    heights_mm: np.ndarray,
    pixel_mm: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A round cyst or tumour that grows out of a kidney, through all neighbouring slices.

    It leaves air, bone and bright vessels as they are, and belongs to the kidney: a cyst as kidney,
    a tumour as tumour.

    Args:
        hu: float32 (slices, channels, rows, columns). labels: uint8 (rows, columns) of the slice at
            height 0, with some kidney.
        heights_mm: of each slice.

    Returns:
        Both, changed.
    """
    radius = rng.uniform(*LESION_RADIUS_MM)
    kidney = np.argwhere(labels > 0)
    row, column = kidney[rng.integers(len(kidney))]
    angle, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0, 0.9)
    height = radius * rng.uniform(-0.8, 0.8)
    y = (np.arange(labels.shape[0]) - row) * pixel_mm[0] - away * np.sin(angle)
    x = (np.arange(labels.shape[1]) - column) * pixel_mm[1] - away * np.cos(angle)
    stretch = rng.uniform(0.8, 1.25)
    distance = np.sqrt((y[:, None] * stretch) ** 2 + (x / stretch) ** 2).astype(np.float32)
    cyst = rng.random() < 0.5
    level = rng.uniform(-5, 25) if cyst else rng.uniform(25, 130)
    texture = 0.0 if cyst else rng.uniform(0, 25)
    coarse = rng.standard_normal((9, 9), np.float32) * np.float32(texture)
    rows, columns = labels.shape
    inside = level + bicubic(9, rows) @ coarse @ bicubic(9, columns).T
    hu = hu.copy()
    here = labels
    for plane, mm in zip(hu, heights_mm, strict=True):
        across = np.sqrt(max(radius**2 - (mm - height) ** 2, 0.0))
        if across == 0:
            continue
        soft = np.clip((across - distance) / pixel_mm[0] + 0.5, 0, 1)
        soft *= (plane[0] > -150) & ((plane[0] < 160) | (labels > 0))
        plane += soft * (inside - plane)
        if mm == 0:
            here = np.where(soft >= 0.5, np.uint8(1 if cyst else 2), labels)
    return hu, here


def change_prior(prior: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a finder might have answered for a patient whom it never saw.

    On the cases that it learnt from it is too good to be believed elsewhere: here whole regions are
    doubted, taken for kidney or missed, and sometimes the slice as a whole.

    Args:
        prior: float32 (rows, columns), 0..1.
    """
    if rng.random() < PRIOR_MISSED:
        return np.zeros_like(prior)
    rows, columns = prior.shape
    if rng.random() < PRIOR_MOVED:
        step = rng.integers(-PRIOR_MOST_PIXELS, PRIOR_MOST_PIXELS + 1, 2)
        prior = np.roll(prior, tuple(step.tolist()), (0, 1))
    if rng.random() < PRIOR_DOUBTED:
        certain = np.clip(prior, 0.01, 0.99)
        coarse = rng.standard_normal((8, 8), np.float32) * np.float32(rng.uniform(0, PRIOR_DOUBT))
        field = bicubic(8, rows) @ coarse @ bicubic(8, columns).T
        odds = np.log(certain / (1 - certain)) + field + np.float32(rng.uniform(-1.5, 1.5))
        prior = (1 / (1 + np.exp(-odds))).astype(np.float32)
    if rng.random() < PRIOR_FALSE:
        y = (np.arange(rows) - rng.uniform(0, rows)) / rng.uniform(0.04, 0.2) / rows
        x = (np.arange(columns) - rng.uniform(0, columns)) / rng.uniform(0.04, 0.2) / columns
        distance = (y[:, None] ** 2 + x**2).astype(np.float32)
        false = np.float32(rng.uniform(0.4, 1.0)) / (1 + distance**4)
        prior = np.maximum(prior, false)
    return prior


def smoothed(planes: np.ndarray, beyond: str) -> np.ndarray:
    """Mean of 3x3 pixels of the last two axes; ``beyond`` the edge as `numpy.pad` knows it."""
    around = ((0, 0),) * (planes.ndim - 2) + ((1, 1), (1, 1))
    wide = np.pad(planes, around, mode=beyond)  # type: ignore[call-overload]
    down = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    across = down[..., :-2] + down[..., 1:-1] + down[..., 2:]
    return np.asarray(across * np.float32(1 / 9))


def change_intensity(
    slices: np.ndarray,
    case: CachedCase,
    how: Augmentation,
    windowed: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Gain, offset, smoothing, noise, raised floor and field of view of float32 slices.

    Args:
        slices: ``(..., rows, columns)``, stored intensities of the case; may be changed in place.
        windowed: whether they are HU and will be cut to a window.
    """
    unit = case.hu_unit
    if how.gain > 0 or how.offset_hu > 0:
        # A gain is about 0 HU, and about the smallest value where there are no HU.
        about = 0.0 if windowed else case.fill
        gain = rng.uniform(1 - how.gain, 1 + how.gain)
        offset = rng.uniform(-how.offset_hu, how.offset_hu) * unit
        slices *= np.float32(gain)
        slices += np.float32(offset + about * (1 - gain))
    if rng.random() < how.blur:
        slices = smoothed(slices, "edge")
    if how.noise_hu > 0 and rng.random() < 0.5:
        # Of torch, whose random numbers come three times as fast as NumPy's.
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        sigma = rng.uniform(0, how.noise_hu) * unit
        slices += torch.randn(slices.shape, generator=noise).mul_(sigma).numpy()
    if windowed and rng.random() < how.floor:
        np.maximum(slices, np.float32(rng.uniform(-125, 10)), out=slices)
    if rng.random() < how.field_of_view:
        rows, columns = slices.shape[-2:]
        y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None] * (rows / columns)
        x = np.linspace(-1, 1, columns, dtype=np.float32)
        slices[..., x**2 + y**2 > rng.uniform(0.6, 0.9) ** 2] = case.fill
    return slices
