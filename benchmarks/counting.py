"""What the networks of a model are asked for a CT, and how long they take for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from operations import by_level, layers

from KidneySegLib.answer import answer
from KidneySegLib.backends.base import Backend
from KidneySegLib.backends.choosing import open_backend
from KidneySegLib.geometry import to_axial
from KidneySegLib.model import Model
from KidneySegLib.modelplaces import find_model
from KidneySegLib.reading import read_ct

# (name of the network, shape of the batch) to how often and for how many seconds in all.
Calls = dict[tuple[str, tuple[int, ...]], tuple[int, float]]


class Counted(Backend):
    """Another backend, and what it was asked.

    Args:
        name: under which the calls are kept.
    """

    def __init__(self, backend: Backend, name: str, calls: Calls):
        self.name, self.model, self.precision = backend.name, backend.model, backend.precision
        self._backend, self._called, self._calls = backend, name, calls
        finder = backend.finder
        self._finder = None if finder is None else Counted(finder, "finder", calls)
        self._views = [Counted(view, view_of(view.model), calls) for view in backend.views]

    @property
    def device(self) -> object:
        return self._backend.device

    @property
    def finder(self) -> Backend | None:
        return self._finder

    @property
    def views(self) -> list[Counted]:
        return self._views

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return self._timed(self._backend, batch)

    def classes(self, batch: np.ndarray) -> np.ndarray:
        return self._timed(self._backend.classes, batch)

    def _timed(self, ask: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> np.ndarray:
        key = (self._called, tuple(batch.shape))
        times, seconds = self._calls.get(key, (0, 0.0))
        began = time.perf_counter()
        found = ask(batch)
        self._calls[key] = (times + 1, seconds + time.perf_counter() - began)
        return found


def view_of(model: Model) -> str:
    return model.preprocessing.view


def networks(ct: Path, model: str | None, backend: str, precision: str) -> dict[str, Any]:
    """Operations, bytes and seconds of each network of a model on a CT, JSON-ready."""
    chosen = find_model(model)
    opened = open_backend(chosen, precision=precision, backend=backend)
    volume, grid = to_axial(read_ct(ct).image)
    answer(volume, grid.spacing_mm, opened)  # code is chosen for each shape
    calls: Calls = {}
    began = time.perf_counter()
    answer(volume, grid.spacing_mm, Counted(opened, view_of(chosen), calls))
    seconds = time.perf_counter() - began
    parts = {view_of(part): part for part in (chosen, *chosen.views)}
    if chosen.finder is not None:
        parts["finder"] = chosen.finder
    found: dict[str, dict[str, Any]] = {}
    for (name, shape), (times, spent) in calls.items():
        network = parts[name].network
        entry = found.setdefault(
            name,
            {
                "network": asdict(network),
                "batches": [],
                "slices": 0,
                "seconds": 0.0,
                "levels": {},
            },
        )
        entry["batches"].append({"shape": list(shape), "times": times})
        entry["slices"] += shape[0] * times
        entry["seconds"] += spent
        bytes_each = 2 if opened.precision == "bfloat16" else 4
        for level, sums in by_level(layers(network, shape), bytes_each).items():
            kept = entry["levels"].setdefault(str(level), {"operations": 0, "bytes": 0})
            for kind, value in sums.items():
                kept[kind] += value * times
    return {
        "backend": opened.name,
        "precision": opened.precision,
        "shape": list(volume.shape),
        "seconds": seconds,
        "networks": found,
    }
