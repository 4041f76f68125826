"""The network run by OpenVINO on the CPU, from the model folder's ONNX file; needs no torch."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cache
from typing import Any

import numpy as np

from KidneySegLib.backends import compiled, processor
from KidneySegLib.backends.base import FINDER_PRECISION, Backend, check_precision
from KidneySegLib.backends.silent import openvino
from KidneySegLib.model import Model
from KidneySegLib.parameters import margin, valid_size

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class CannotRun(Exception):
    """OpenVINO does not run this network, in this precision, on this processor."""


def choose_precision(precision: str) -> str:
    """``auto`` to ``bfloat16`` where the processor multiplies it, else ``float32``."""
    check_precision(precision)
    if precision == "auto":
        return "bfloat16" if processor.has_bfloat16() else "float32"
    return precision


class OpenVinoBackend(Backend):
    """The `Backend` of OpenVINO.

    One slice goes through the network at a time, as many at once as the processor has use for:
    measured, that is up to twice as fast as batches of 16. The network is compiled once for slices
    of any size, since every CT, and every box in it, has its own; for a single size it would be a
    tenth faster, and each new one would take a quarter of a second.

    Nothing of Python is called from OpenVINO's threads: one that waits for Python's lock while
    Python ends, after Ctrl-C, aborts the process.

    Args:
        notes: see `Backend`.

    Raises:
        CannotRun: not this network in this precision on this processor.
        ModelError: the model has no ONNX file that belongs to its weights.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, model: Model, precision: str = "auto", notes: tuple[str, ...] = ()):
        self.model = model
        self.notes = notes
        self.precision = choose_precision(precision)
        try:
            self._compiled = _compiled(model, self.precision)
            at_once = self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
            self._requests = [self._compiled.create_infer_request() for _ in range(at_once)]
            self._try()
        except RuntimeError as error:
            raise CannotRun(_first_line(error)) from error
        self._finder: OpenVinoBackend | None = None
        if model.finder is not None:
            self._finder = OpenVinoBackend(model.finder, FINDER_PRECISION)
        self._views = [OpenVinoBackend(view, self.precision) for view in model.views]

    @property
    def finder(self) -> OpenVinoBackend | None:
        return self._finder

    @property
    def views(self) -> list[OpenVinoBackend]:
        return self._views

    def classes(self, batch: np.ndarray) -> np.ndarray:
        lost = 2 * margin(self.model.network)
        rows, columns = (length - lost for length in batch.shape[-2:])
        out = np.empty((len(batch), self.model.network.classes, rows, columns), np.float32)
        asked: dict[int, tuple[int, np.ndarray]] = {}

        def take(place: int) -> None:
            request = self._requests[place]
            request.wait()
            index, _ = asked.pop(place)
            out[index] = request.get_output_tensor(0).data[0]

        try:
            for index in range(len(batch)):
                place = index % len(self._requests)
                if place in asked:
                    take(place)
                # Kept until it is answered: the request reads it where it lies.
                asked[place] = index, np.ascontiguousarray(batch[index : index + 1])
                self._requests[place].start_async({0: openvino.Tensor(asked[place][1])})
            for place in list(asked):
                take(place)
        finally:
            # After Ctrl-C too: what is read must not go away before.
            for place in asked:
                self._requests[place].wait()
        return _softmax(out) if self.model.activation == "softmax" else _sigmoid(out)

    def _try(self) -> None:
        """Some primitives are only chosen when the first slice comes: better now than midway."""
        network = self.model.network
        size = valid_size(network, 1) + 2 * margin(network)
        self.classes(np.zeros((1, network.input_channels, size, size), np.float32))


@cache
def shared_core() -> openvino.Core:
    """One, which lives as long as the process.

    Where the processor has AMX, OpenVINO gives the thread a stack for signals. With the last core
    its library is unloaded and that stack with it, and the next signal, be it Ctrl-C or the end of
    a child process, ends the process with a segmentation fault.
    """
    return openvino.Core()


def _compiled(model: Model, precision: str) -> openvino.CompiledModel:
    """From the cache, or compiled and put there.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    graph = model.graph()
    core = shared_core()
    # No threads pinned to cores: another process on the same cores would halve the speed.
    choices: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "THROUGHPUT",
        "ENABLE_CPU_PINNING": False,
    }
    key = _key(model, core, choices)
    kept = compiled.load(key)
    if kept is not None:
        try:
            return core.import_model(io.BytesIO(kept), "CPU", choices)
        except RuntimeError:  # of another build of OpenVINO, say: compile again
            pass
    network = core.read_model(str(graph))
    network.reshape(openvino.PartialShape([1, model.network.input_channels, -1, -1]))
    made = core.compile_model(network, "CPU", choices)
    exported = made.export_model()
    compiled.store(key, exported.getvalue() if isinstance(exported, io.BytesIO) else exported)
    return made


def _key(model: Model, core: openvino.Core, choices: dict[str, Any]) -> str:
    """Of all that a compiled network depends on: network, processor, version, choices."""
    facts = [
        model.graph_digest,
        openvino.__version__,
        core.get_property("CPU", "FULL_DEVICE_NAME"),
        sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        sorted(processor.flags()),
        processor.held_to(),
        choices,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits -= logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(1, keepdims=True)
    return logits


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # By tanh: the exponential of a logit far below zero would overflow.
    logits *= 0.5
    np.tanh(logits, out=logits)
    logits += 1
    logits *= 0.5
    return logits


def _first_line(error: Exception) -> str:
    """The reason in OpenVINO's text, whose first lines name its own source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), "")
