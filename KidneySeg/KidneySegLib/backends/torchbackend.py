"""The network run by torch: the reference, on CUDA, MPS and the CPU."""

from __future__ import annotations

import numpy as np
import torch

from KidneySegLib.backends import processor
from KidneySegLib.backends.base import (
    FINDER_PRECISION,
    Backend,
    check_precision,
    split_device,
)
from KidneySegLib.errors import UsageError
from KidneySegLib.model import Model


def choose_device(device: str = "auto") -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` to a device that is there.

    Raises:
        UsageError: no such device on this machine.
    """
    kind, number = split_device(device)
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if kind == "cuda" and not (
        torch.cuda.is_available() and int(number or 0) < torch.cuda.device_count()
    ):
        raise UsageError(f"Device {device!r} is not on this machine; use --device cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("Device 'mps' is not on this machine; use --device cpu.")
    return torch.device(device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and processor.has_bfloat16()


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto`` to ``bfloat16`` where the device is good at it, else ``float32``."""
    check_precision(precision)
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return precision


class TorchBackend(Backend):
    """The `Backend` of torch.

    Args:
        network: used instead of the model's stored weights (a network in training).
        notes: see `Backend`.
    """

    name = "torch"

    def __init__(
        self,
        model: Model,
        device: str = "auto",
        precision: str = "auto",
        network: torch.nn.Module | None = None,
        notes: tuple[str, ...] = (),
    ):
        self.model = model
        self.notes = notes
        self._device = choose_device(device)
        self.precision = choose_precision(precision, self._device)
        # Channels last is what the processors' convolutions are fastest with.
        self.network = (network or model.load_network()).to(self._device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._finder: TorchBackend | None = None
        if model.finder is not None:
            self._finder = TorchBackend(model.finder, str(self._device), FINDER_PRECISION)
        self._views = [
            TorchBackend(view, str(self._device), self.precision) for view in model.views
        ]

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def finder(self) -> TorchBackend | None:
        return self._finder

    @property
    def views(self) -> list[TorchBackend]:
        return self._views

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        channels = self._channels(batch)[:, list(self.model.kidney_channels)]
        softmax = self.model.activation == "softmax"
        probability = channels.sum(1) if softmax else channels.amax(1)
        return probability.cpu().numpy()

    def classes(self, batch: np.ndarray) -> np.ndarray:
        return self._channels(batch).cpu().numpy()

    def _channels(self, batch: np.ndarray) -> torch.Tensor:
        slices = torch.from_numpy(batch).to(self._device, memory_format=torch.channels_last)
        reduced = self.precision == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=reduced),
        ):
            logits = self.network(slices).float()
        if self.model.activation == "softmax":
            return torch.softmax(logits, dim=1)
        return torch.sigmoid(logits)
