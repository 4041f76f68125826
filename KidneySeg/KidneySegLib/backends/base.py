"""What the walk asks of whatever runs a network; it knows no engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from KidneySegLib.errors import UsageError
from KidneySegLib.model import Model

PRECISIONS = ("auto", "float32", "bfloat16")
# A finder's answer decides where boxes begin. Rounded, it now and then moved one by a pixel, and
# all that is resampled within came out elsewhere: Dice 0.996 between precisions instead of 0.9997.
FINDER_PRECISION = "float32"


class Backend(ABC):
    """Runs a model's network: batches of scaled slices to kidney probabilities.

    Attributes:
        name: of the engine, as ``--backend`` has it.
        model: the model that is run.
        precision: ``float32`` or ``bfloat16``, what the network is computed in.
        notes: what a user should know of how this engine came to be chosen.
    """

    name: str
    model: Model
    precision: str
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def device(self) -> object:
        """What computes; its text is ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""

    @property
    @abstractmethod
    def finder(self) -> Backend | None:
        """The same engine for the model's finder, if it has one, in `FINDER_PRECISION`."""

    @property
    @abstractmethod
    def views(self) -> Sequence[Backend]:
        """And for its views."""

    @abstractmethod
    def classes(self, batch: np.ndarray) -> np.ndarray:
        """The probability of every output channel, background included.

        Args:
            batch: float32 ``(N, channels, rows, columns)``, scaled.

        Returns:
            float32 array ``(N, classes, rows', columns')``; an unpadded network's answer lacks
            `parameters.margin` pixels a side.
        """

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """The same, but the probability of kidney alone: float32 ``(N, rows', columns')``."""
        channels = self.classes(batch)[:, list(self.model.kidney_channels)]
        softmax = self.model.activation == "softmax"
        return np.asarray(channels.sum(1) if softmax else channels.max(1))


def check_precision(precision: str) -> None:
    """Raise UsageError where it is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UsageError(f"Precision {precision!r} is not known; use {', '.join(PRECISIONS)}.")


def split_device(device: str) -> tuple[str, str]:
    """``cuda:1`` to its kind and number; raises UsageError where it is no device's name."""
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (
        number and not (kind == "cuda" and number.isdigit())
    ):
        raise UsageError(f"Device {device!r} is not known; use auto, cpu, cuda, cuda:N or mps.")
    return kind, number
