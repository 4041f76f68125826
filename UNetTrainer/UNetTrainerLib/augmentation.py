"""How much, and how often, draws are varied: the choices behind ``--augment``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; the defaults are ``full``, all zero is ``none``.

    Where values are no HU, ``offset_hu`` and ``noise_hu`` count `CachedCase.hu_unit`.

    Attributes:
        rotation_degrees, shear, shift: largest absolute values; the shift is a share of the field.
        zoom: largest factor, also its inverse; covers unknown pixel spacings.
        stretch: rows against columns, largest logarithm of either's factor; a large one covers
            slices of unknown distance, seen from the side.
        mirror: probability of exchanging left and right of the picture. Sides are told apart by
            position after the network, so the kidney label stays right.
        elastic_pixels: standard deviation of smooth displacements.
        gain, offset_hu: relative and absolute change of intensity.
        noise_hu: largest standard deviation of added noise.
        blur: probability of a 3x3 smoothing (other reconstruction kernels).
        floor: probability of a raised lower clip (data stored from 0 HU); only with a window.
        phase: probability of drawing the kidney's own intensity towards another contrast phase;
            only in volumes and with a window.
        plain: probability of taking the contrast medium out of everything, see `wash_out`; only in
            volumes and with a window.
        dark: of those draws, the share whose kidneys come out about as dark as muscle or darker.
        lesion: probability of a cyst or tumour painted onto a kidney; only in volumes and with a
            window.
        lone: probability that a slice stands for its neighbours (single slices as input).
        thicker: probability that neighbours are taken one slice further away.
        field_of_view: probability of a circular field of view that cuts the body.
    """

    rotation_degrees: float = 15.0
    shear: float = 0.1
    shift: float = 0.08
    zoom: float = 1.3
    stretch: float = 0.05
    mirror: float = 0.3
    elastic_pixels: float = 3.0
    gain: float = 0.15
    offset_hu: float = 20.0
    noise_hu: float = 20.0
    blur: float = 0.2
    floor: float = 0.15
    phase: float = 0.35
    plain: float = 0.0
    dark: float = 0.0
    lesion: float = 0.15
    lone: float = 0.1
    thicker: float = 0.2
    field_of_view: float = 0.05

    @property
    def moves(self) -> bool:
        """Whether pixels change their places."""
        moving = (self.rotation_degrees, self.shear, self.shift, self.mirror, self.elastic_pixels)
        return self.zoom > 1 or any(moving)


_STRONG = Augmentation(
    rotation_degrees=25,
    shift=0.15,
    zoom=1.45,
    mirror=0.5,
    gain=0.2,
    offset_hu=25,
    noise_hu=30,
    blur=0.25,
    floor=0.2,
    lesion=0.0,
    lone=0.15,
    thicker=0.3,
    field_of_view=0.1,
)
_PHASES = replace(_STRONG, phase=0.25, plain=0.2)
_PLAIN = replace(_STRONG, phase=0.2, plain=0.25, dark=0.5)

AUGMENTATIONS = {
    "none": Augmentation(**{one.name: float(one.name == "zoom") for one in fields(Augmentation)}),
    "light": Augmentation(
        rotation_degrees=8,
        shear=0,
        zoom=1.15,
        elastic_pixels=0,
        noise_hu=10,
        phase=0,
        lesion=0,
        blur=0,
        field_of_view=0,
    ),
    "full": Augmentation(),
    "strong": _STRONG,
    "strong-stretched": replace(_STRONG, stretch=0.2),
    "phases": _PHASES,
    "phases-stretched": replace(_PHASES, stretch=0.2),
    "plain": _PLAIN,
    "plain-stretched": replace(_PLAIN, stretch=0.2),
}
