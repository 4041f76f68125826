"""What `speed.py` measures inside a process of its own, each as one JSON object on standard output.

python benchmarks/kernels.py rates|instructions|kits19|networks|imports ...
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE / "KidneySeg")]

MATMUL_SIZES = (512, 1024, 2048, 4096)
# Importing the module in Slicer must load none of these.
HEAVY = ("torch", "openvino", "monai", "scipy")
# What the module finds in Slicer.
SLICERS_OWN = (
    "slicer", "slicer.i18n", "slicer.parameterNodeWrapper", "slicer.ScriptedLoadableModule",
    "slicer.util", "vtk", "vtk.util", "vtk.util.numpy_support", "qt", "ctk",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("rates", help="matrix products, convolutions and copies a second")
    part.add_argument("--sizes", nargs="+", type=int, default=MATMUL_SIZES)
    part.add_argument("--enough", type=float, default=1.0, help="seconds for each")
    part.set_defaults(run=lambda asked: rates(asked.sizes, asked.enough))
    part = parts.add_parser("instructions", help="what the libraries compute with")
    part.set_defaults(run=lambda asked: instructions())
    part = parts.add_parser("kits19", help="seconds a slice of the KiTS19 system's network")
    part.add_argument("--slices", type=int, default=5)
    part.add_argument("--features", type=int, default=64)
    part.add_argument("--pixels", type=int, default=512)
    part.set_defaults(run=lambda asked: kits19(asked.slices, asked.features, asked.pixels))
    part = parts.add_parser("networks", help="what a model's networks are asked, and how fast")
    part.add_argument("ct", type=Path)
    part.add_argument("--model")
    part.add_argument("--backend", default="auto")
    part.add_argument("--precision", default="auto")
    part.set_defaults(
        run=lambda asked: networks(asked.ct, asked.model, asked.backend, asked.precision)
    )
    part = parts.add_parser("imports", help="seconds to import the module in Slicer")
    part.set_defaults(run=lambda asked: imports())
    asked = parser.parse_args()
    print("\n" + json.dumps(asked.run(asked)))


# --- rates ------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any], enough: float) -> float:
    """The shortest of several times, after one that does not count: what the machine can do.

    Args:
        enough: seconds after which no further time is taken; one that is longer is not repeated.
    """
    times: list[float] = []
    while len(times) < 100:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
        if times[-1] > enough or (len(times) > 3 and sum(times[1:]) > enough):
            break
    return min(times[1:] or times)


def rates(sizes: list[int], enough: float) -> dict[str, Any]:
    """Operations a second of matrix products and of one convolution; bytes a second copied."""
    import numpy as np

    found: dict[str, Any] = {}
    for library, works in (("torch", torch_works), ("openvino", openvino_works)):
        for precision in ("float32", "bfloat16"):
            figures = found.setdefault(library, {}).setdefault(precision, {})
            rate = math.inf
            for name, operations, prepare in works(precision, sizes):
                if operations / rate > 4 * enough:  # no instructions for it: slow, not refused
                    continue
                try:
                    rate = operations / seconds_of(prepare(), enough)
                    figures[name] = rate
                except RuntimeError as error:  # no such instructions
                    figures[name] = None
                    lines = [line for line in str(error).splitlines() if line]
                    found.setdefault("refused", {})[f"{library} {precision} {name}"] = lines[-1]
    block = np.zeros(1 << 26, np.float32)
    target = np.empty_like(block)
    copied = 2 * block.nbytes / seconds_of(lambda: np.copyto(target, block), enough)
    return {**found, "bytes_a_second": copied}


Works = Iterator[tuple[str, int, Callable[[], Callable[[], Any]]]]
# Slices, channels in and out, rows and columns of the convolution of 3x3.
CONVOLUTION = (4, 64, 128)


def _convolution_operations() -> int:
    batch, channels, pixels = CONVOLUTION
    return 2 * 9 * channels * channels * batch * pixels * pixels


def torch_works(precision: str, sizes: list[int]) -> Works:
    import torch

    kind = getattr(torch, precision)

    def product(size: int) -> Callable[[], Any]:
        one, other = (torch.rand(size, size).to(kind) for _ in range(2))
        return lambda: one @ other

    def convolution() -> Callable[[], Any]:
        batch, channels, pixels = CONVOLUTION
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(kind)
        layer = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        slices = torch.rand(batch, channels, pixels, pixels).to(kind)
        slices = slices.to(memory_format=torch.channels_last)

        def work() -> None:
            with torch.inference_mode():
                layer(slices)

        return work

    for size in sizes:
        yield f"matmul {size}", 2 * size**3, lambda size=size: product(size)  # type: ignore[misc]
    yield "convolution", _convolution_operations(), convolution


def openvino_works(precision: str, sizes: list[int]) -> Works:
    import numpy as np

    from KidneySegLib.backends.silent import openvino

    ops = openvino.opset13

    def product(size: int) -> Callable[[], Any]:
        given = ops.parameter([size, size], np.float32)
        other = ops.constant(np.random.default_rng(0).random((size, size), np.float32))
        return _compiled(ops.matmul(given, other, False, False), given, precision)

    def convolution() -> Callable[[], Any]:
        batch, channels, pixels = CONVOLUTION
        given = ops.parameter([batch, channels, pixels, pixels], np.float32)
        kernel = np.random.default_rng(0).random((channels, channels, 3, 3), np.float32)
        layer = ops.convolution(given, ops.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1])
        return _compiled(layer, given, precision)

    for size in sizes:
        yield f"matmul {size}", 2 * size**3, lambda size=size: product(size)  # type: ignore[misc]
    yield "convolution", _convolution_operations(), convolution


def _compiled(answer: Any, given: Any, precision: str) -> Callable[[], Any]:
    import numpy as np

    request = _model(answer, given, precision).create_infer_request()
    values = np.random.default_rng(1).random(list(given.shape), np.float32)
    return lambda: request.infer([values], share_inputs=True, share_outputs=True)


def _model(answer: Any, given: Any, precision: str) -> Any:
    from KidneySegLib.backends.silent import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    return openvino.Core().compile_model(openvino.Model([answer], [given]), "CPU", settings)


# --- instructions -----------------------------------------------------------------------------


def instructions() -> dict[str, Any]:
    """What OpenVINO and torch say that they compute with, in float32.

    oneDNN and MKL inside torch print it themselves when `ONEDNN_VERBOSE` and `MKL_VERBOSE` are 1.
    """
    import numpy as np
    import torch

    from KidneySegLib.backends.silent import openvino

    ops = openvino.opset13

    print(f"ATen: {torch.backends.cpu.get_cpu_capability()}", flush=True)
    with torch.inference_mode():
        torch.rand(256, 256) @ torch.rand(256, 256)
        torch.nn.Conv2d(16, 16, 3)(torch.rand(1, 16, 64, 64))
    given = ops.parameter([1, 16, 64, 64], np.float32)
    kernel = ops.constant(np.ones((16, 16, 3, 3), np.float32))
    layer = ops.convolution(given, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
    matrix = ops.parameter([256, 256], np.float32)
    other = ops.constant(np.ones((256, 256), np.float32))
    product = ops.matmul(matrix, other, False, False)
    return {
        "OpenVINO, convolution": _primitive(_model(layer, given, "float32"), "Convolution"),
        "OpenVINO, matrix product": _primitive(
            _model(product, matrix, "float32"), "FullyConnected"
        ),
    }


def _primitive(compiled: Any, kind: str) -> str | None:
    """What OpenVINO calls the code that it chose for a layer."""
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = operation.get_rt_info()
        if facts["layerType"].astype(str) == kind:
            return str(facts["primitiveType"].astype(str))
    return None


# --- the KiTS19 system's network ------------------------------------------------------------------


def kits19(slices: int, features: int, pixels: int) -> dict[str, Any]:
    """Seconds a slice of the KiTS19 system's network, one at a time, as PyTorch runs it."""
    import torch
    from operations import by_level, layers

    from KidneySegLib.network import NetworkParameters, build

    parameters = NetworkParameters(features=features)
    unet = build(parameters).eval()
    batch = torch.rand(1, 1, pixels, pixels)
    times = []
    with torch.inference_mode():
        for _ in range(slices + 1):
            began = time.perf_counter()
            unet(batch)
            times.append(time.perf_counter() - began)
    return {
        "seconds_a_slice": median(times[1:]),
        "shape": list(batch.shape),
        "levels": by_level(layers(parameters, batch.shape), 4),
    }


def networks(ct: Path, model: str | None, backend: str, precision: str) -> dict[str, Any]:
    """See `counting.networks`; everything else here does without what that imports."""
    import counting

    return counting.networks(ct, model, backend, precision)


# --- imports ----------------------------------------------------------------------------------


class OfSlicer(ModuleType):
    """A module of Slicer in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *given, **named: None})


def imports() -> dict[str, Any]:
    """Import the module and its window's code as Slicer does, which has numpy and SimpleITK.

    What they import of Slicer itself is there already, too.
    """
    import numpy  # noqa: F401
    import SimpleITK  # noqa: F401

    for name in SLICERS_OWN:
        sys.modules[name] = OfSlicer(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    began = time.perf_counter()
    for name in ("KidneySeg", "KidneySegLib.widget", "KidneySegLib.job"):
        importlib.import_module(name)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "loaded": [name for name in HEAVY if name in sys.modules]}


if __name__ == "__main__":
    main()
