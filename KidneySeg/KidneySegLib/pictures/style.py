"""How a picture looks: colours, fill and outlines, and which intensities are black and white."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from KidneySegLib.errors import UsageError

Colour = tuple[int, int, int]


class Colours(NamedTuple):
    """Colours of what only the reference holds, only the prediction, and both."""

    reference: Colour
    prediction: Colour
    both: Colour


# With the purple of both, red and blue are how such results are published; to colour-blind people
# blue and purple are one. The other three are vermilion, sky blue and yellow of Okabe and Ito
# (2008), of whose triples this one stays furthest apart on gray for every kind of colour blindness.
RED_BLUE = Colours((255, 45, 45), (70, 130, 255), (190, 80, 255))
COLOUR_BLIND = Colours((213, 94, 0), (86, 180, 233), (240, 228, 66))
COLOURS = {"red-blue": RED_BLUE, "colour-blind": COLOUR_BLIND}

Window = tuple[float, float]

# Lowest and highest HU, of the customary centres and widths: 40/400, 30/150, 400/1800, -600/1500.
WINDOWS: dict[str, Window] = {
    "abdomen": (-160.0, 240.0),
    "liver": (-45.0, 105.0),
    "bone": (-500.0, 1300.0),
    "lung": (-1350.0, 150.0),
}
AUTO = "auto"
# Nothing as dark as fat: these are no HU, or nothing darker was kept.
_HU_LOW = -50
_SPREAD_PERCENT = (0.5, 99.5)
_SAMPLED = (24, 128, 128)


@dataclass(frozen=True)
class Style:
    """How reference and prediction are drawn on a CT.

    Attributes
    ----------
    colours
        One of `COLOURS` or others.
    opacity
        Of the fill, from 0 (none) to 1; the KiTS19 U-Nets' pictures have 0.3.
    outline
        Whether there are outlines, of two pixels.
    """

    colours: Colours = RED_BLUE
    opacity: float = 0.3
    outline: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UsageError(f"The opacity is {self.opacity:g}; give a number from 0 to 1.")
        if not self.opacity and not self.outline:
            raise UsageError(
                "Without fill and without outlines nothing would be seen; choose one of them."
            )


def window_of(ct: np.ndarray, window: str | Window) -> Window:
    """The intensities drawn black and white.

    Parameters
    ----------
    ct
        The volume, of three dimensions; a sample of it is looked at for "auto".
    window
        Lowest and highest value, a name of `WINDOWS`, or "auto": that of the abdomen, or where
        the values are no HU nearly all of their range.

    Raises
    ------
    UsageError
        There is no window of that name, or its lowest value is not below its highest.
    """
    if isinstance(window, str):
        if window in WINDOWS:
            return WINDOWS[window]
        if window != AUTO:
            raise UsageError(
                f"There is no window {window}; choose {', '.join((AUTO, *WINDOWS))} or two numbers."
            )
        steps = (max(1, n // most) for n, most in zip(ct.shape, _SAMPLED, strict=True))
        sample = ct[tuple(slice(None, None, step) for step in steps)]
        if sample.min() < _HU_LOW:
            return WINDOWS["abdomen"]
        low, high = (float(value) for value in np.percentile(sample, _SPREAD_PERCENT))
        return low, max(high, low + 1)
    low, high = window
    if not (np.isfinite([low, high]).all() and low < high):
        raise UsageError(
            f"A window from {low:g} to {high:g} shows nothing; give a lower and a higher number."
        )
    return float(low), float(high)
