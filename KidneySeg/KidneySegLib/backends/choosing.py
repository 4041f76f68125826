"""Which engine runs a model's network on this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path

from KidneySegLib.backends.base import Backend, check_precision, split_device
from KidneySegLib.errors import KidneySegError, ModelError, UsageError
from KidneySegLib.model import Model

BACKENDS = ("auto", "openvino", "torch")


def open_backend(
    model: Model, device: str = "auto", precision: str = "auto", backend: str = "auto"
) -> Backend:
    """A backend that runs this model here.

    A GPU through torch, where torch is installed and has one; else OpenVINO on the CPU, where it
    is installed and the model has an ONNX file; else torch on the CPU. What cannot run the network
    is replaced by the next: OpenVINO in bfloat16, OpenVINO in float32, torch; `Backend.notes` says
    so. Importing torch takes seconds, so it is not imported where it could have no GPU; see
    `may_have_gpu`.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        backend: one of `BACKENDS`.

    Raises:
        UsageError: what was asked for is not known, or not on this machine.
        ModelError: the weights cannot be used.
        KidneySegError: nothing is installed that can run the model; what to install.
    """
    if backend not in BACKENDS:
        raise UsageError(f"Backend {backend!r} is not known; use {', '.join(BACKENDS)}.")
    check_precision(precision)
    kind, _ = split_device(device)
    on_gpu = kind in ("cuda", "mps")
    if on_gpu and backend == "openvino":
        raise UsageError(f"OpenVINO computes on the CPU and not on {device}; use --backend torch.")
    if on_gpu and not installed("torch"):
        raise UsageError(
            f"Device {device!r} needs PyTorch, which is not installed; use --device cpu, or "
            "install it (`pip install torch`; in 3D Slicer the extension PyTorch)."
        )
    if on_gpu or backend == "torch":
        return _torch(model, device, precision, ())
    if backend == "auto" and kind == "auto" and may_have_gpu() and installed("torch"):
        from KidneySegLib.backends.torchbackend import choose_device

        found = choose_device()
        if found.type != "cpu":
            return _torch(model, str(found), precision, ())
    if not installed("openvino"):
        if backend == "openvino":
            raise UsageError(
                "OpenVINO is not installed; use --backend torch, or `pip install openvino`."
            )
        return _torch(model, "cpu", precision, ())
    return _on_cpu(model, precision)


def may_have_gpu() -> bool:
    """Whether torch, if it is installed, might find a GPU here; told without importing it.

    On macOS that is so on Apple's own processors; elsewhere where the driver of an NVIDIA or (on
    Linux) AMD card is loaded.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        windows = Path(os.environ.get("SYSTEMROOT", "C:/Windows"))
        return (windows / "System32" / "nvcuda.dll").is_file()
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def installed(package: str) -> bool:
    """Whether a package is there; it is not imported."""
    return importlib.util.find_spec(package) is not None


def _on_cpu(model: Model, precision: str) -> Backend:
    """OpenVINO, in the precision asked for or else in float32; or torch."""
    from KidneySegLib.backends.openvinobackend import (
        CannotRun,
        OpenVinoBackend,
        choose_precision,
    )

    notes: list[str] = []
    try:
        for attempt in dict.fromkeys((choose_precision(precision), "float32")):
            try:
                return OpenVinoBackend(model, attempt, tuple(notes))
            except CannotRun as error:
                notes.append(
                    f"OpenVINO cannot run this network in {attempt} on this processor ({error})"
                )
    except ModelError as error:
        if not installed("torch"):
            raise
        notes.append(f"PyTorch computed instead of OpenVINO: {error}")
    return _torch(model, "cpu", precision, tuple(notes))


def _torch(model: Model, device: str, precision: str, notes: tuple[str, ...]) -> Backend:
    if not installed("torch"):
        reason = "; ".join(notes) or "OpenVINO is not installed"
        raise KidneySegError(
            f"{reason}, and neither is there PyTorch; install one of them, `pip install openvino` "
            "or `pip install torch` (in 3D Slicer press Segment once)."
        )
    from KidneySegLib.backends.torchbackend import TorchBackend

    return TorchBackend(model, device, precision, notes=notes)
