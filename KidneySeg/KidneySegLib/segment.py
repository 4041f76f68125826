"""The whole walk, from a CT to two kidneys, as one function: `segment`.

The command line, the batch script, the console and the window's worker all call it; there is no
second way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib.answer import answer
from KidneySegLib.backends.base import Backend
from KidneySegLib.backends.choosing import open_backend
from KidneySegLib.confidence import confidence
from KidneySegLib.errors import Cancelled, InputError, ModelError, UsageError
from KidneySegLib.geometry import SIDE_NAMES, AxialGrid, from_axial, grid_difference, to_axial
from KidneySegLib.measure import evaluate, volumes_ml
from KidneySegLib.model import Model
from KidneySegLib.modelplaces import find_model
from KidneySegLib.postprocess import MINIMUM_ML, Candidate, find_kidneys
from KidneySegLib.reading import LabelMap, Scan, check_ct, read_ct, read_labels
from KidneySegLib.secondlook import LEAST_SCAN_MM, Look

Progress = Callable[[float, str], None]

# Share of the whole at which each step ends, as measured on CTs of 44 to 131 slices on two cores.
_STEPS = {
    "read": 0.08,
    "prepare": 0.15,
    "find": 0.35,
    "predict": 0.79,
    "kidneys": 0.86,
    "measure": 1.0,
}


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        labels: uint8 image on the CT's own grid: 0 background, 1 left kidney, 2 right kidney.
        report: JSON-ready facts; see the README for its entries.
        scan: the CT as it was read.
        reference: the label map it was compared with, if any.
    """

    labels: sitk.Image
    report: dict[str, Any]
    scan: Scan
    reference: sitk.Image | None = None

    @property
    def merged(self) -> sitk.Image:
        """Both kidneys as label 1."""
        merged: sitk.Image = sitk.Cast(self.labels > 0, sitk.sitkUInt8)
        return merged


@dataclass
class _Walk:
    """Where a run is: tells progress, looks whether to stop, and keeps time."""

    progress: Progress | None
    cancelled: Callable[[], bool] | None
    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    _before: float = 0.0
    _step_started: float = field(default_factory=time.perf_counter)

    def begin(self, step: str) -> None:
        self._step = step
        self._step_started = time.perf_counter()
        self.tell(0.0)

    def tell(self, share: float) -> None:
        """How much of the present step is done, 0 to 1."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("Cancelled; nothing was written.")
        if self.progress is not None:
            self.progress(self._before + share * (_STEPS[self._step] - self._before), self._step)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[float], None]]:
        """A step of the run, and what tells how much of it is done."""
        self.begin(name)
        yield self.tell
        self.end()

    def end(self) -> None:
        self.seconds[self._step] = time.perf_counter() - self._step_started
        self.tell(1.0)
        self._before = _STEPS[self._step]


def segment(
    source: Path | str | sitk.Image | Scan,
    model: Backend | Model | Path | str | None = None,
    *,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    series_uid: str | None = None,
    reference: Path | str | sitk.Image | LabelMap | None = None,
    keep_small: bool = False,
    minimum_ml: float | None = None,
    batch_slices: int | None = None,
    mirror: bool = False,
    second_look: bool = True,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Result:
    """Segment both kidneys of one CT.

    Args:
        source: a file, a DICOM or case folder, or an image in HU.
        model: a name, a model folder or a `Model`; a `Backend` to use it for many CTs; None
            for the default model.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``float32`` or ``bfloat16``.
        backend: ``auto``, ``openvino`` or ``torch``; see `backends.choosing.open_backend`.
        series_uid: which series of a DICOM folder.
        reference: a label map on the same grid to compare with.
        keep_small: keep components that are too small or in the wrong place for a kidney.
        minimum_ml: least volume of a kidney in a scan that shows it whole; None for the model's,
            and where it has none for `MINIMUM_ML`.
        batch_slices: slices that go through the network at once; None fits them to their size.
        mirror: average with the answer for the mirrored slices, at twice the time.
        second_look: drop what the model's second look, if it has one, takes for no kidney.
        progress: called with the share done (0 to 1, never falling) and the step's name.
        cancelled: asked between batches; true stops the run.

    Raises:
        InputError, ModelError, UsageError: what cannot be used, and what to do.
        Cancelled: ``cancelled()`` became true.

    Example:
        >>> result = segment("ct.nii.gz")  # doctest: +SKIP
        >>> result.report["kidneys"]["left"]["volume_ml"]  # doctest: +SKIP
        171.3
    """
    if batch_slices is not None and batch_slices < 1:
        raise UsageError(f"A batch holds 1 slice or more, not {batch_slices}; give another number.")
    if minimum_ml is not None and not 0 <= minimum_ml < math.inf:
        raise UsageError(
            f"The least volume of a kidney is 0 ml or more, not {minimum_ml}; give another one."
        )
    walk = _Walk(progress, cancelled)
    if isinstance(model, Backend):
        _check_channels(model.model)
        engine = model
    else:
        chosen = model if isinstance(model, Model) else find_model(model)
        _check_channels(chosen)
        engine = open_backend(chosen, device, precision, backend)
    if minimum_ml is None:
        minimum_ml = engine.model.smallest_kidney_ml
    if minimum_ml is None:
        minimum_ml = MINIMUM_ML

    walk.begin("read")
    scan = _scan(source, series_uid, cancelled)
    truth, truth_name = _reference(reference, scan)
    volume, grid = to_axial(scan.image)
    parameters, look = engine.model.second_look, None
    long_mm = grid.shape[0] * grid.spacing_mm[0]
    if second_look and parameters is not None and long_mm >= LEAST_SCAN_MM:
        look = Look(parameters, engine.model.load_second_look_weights())
    walk.end()

    full = answer(
        volume,
        grid.spacing_mm,
        engine,
        walk.step,
        cancelled=cancelled,
        batch_slices=batch_slices,
        mirror=mirror,
    )

    walk.begin("kidneys")
    looked_at: list[dict[str, float]] = []

    def believe(candidate: Candidate) -> float:
        assert look is not None
        probability = look(volume, grid.spacing_mm, candidate.box, candidate.mask)
        looked_at.append({"volume_ml": candidate.ml, "probability": probability})
        return probability

    kidneys = find_kidneys(
        full,
        grid,
        volume,
        threshold=engine.model.threshold,
        minimum_ml=minimum_ml,
        keep_small=keep_small,
        believe=None if look is None else believe,
        least_belief=0.0 if parameters is None else parameters.threshold,
    )
    walk.end()

    walk.begin("measure")
    found = kidneys.labels[kidneys.box]
    report = _report(scan, engine, found, grid)
    first, second, third = (part.start for part in kidneys.box)
    for label, side in SIDE_NAMES.items():
        belief = confidence(full, found == label, grid.spacing_mm, (first, second, third))
        report["kidneys"][side]["confidence"] = belief
    del full  # before there is an image as large as it
    labels = from_axial(kidneys.labels, grid, kidneys.box)
    report["horseshoe"] = kidneys.horseshoe
    report["notes"] = [*kidneys.notes, *scan.warnings, *engine.notes]
    if looked_at:
        report["second_look"] = looked_at
    if truth is not None:
        scores = evaluate(labels, truth, (f"the segmentation of {scan.name}", truth_name))
        report["reference"] = truth_name
        report["dice"] = scores["dice"]
        report["reference_volume_ml"] = scores["volume_ml"]["reference"]
        report["notes"] += scores["notes"]
    walk.end()
    report["seconds"] = {**walk.seconds, "total": time.perf_counter() - walk.started}
    return Result(labels, report, scan, truth)


def _check_channels(model: Model) -> None:
    channels = model.network.in_channels
    if channels != 1:
        raise ModelError(
            f"Model {model.name} was trained on colour pictures ({channels} channels) and a CT has "
            "one; choose another model."
        )


def _scan(
    source: Path | str | sitk.Image | Scan,
    series_uid: str | None,
    cancelled: Callable[[], bool] | None,
) -> Scan:
    if isinstance(source, Scan):
        return source
    if isinstance(source, sitk.Image):
        return check_ct(source)
    return read_ct(source, series_uid, cancelled=cancelled)


def _reference(
    reference: Path | str | sitk.Image | LabelMap | None, scan: Scan
) -> tuple[sitk.Image | None, str]:
    """The reference, read and held against the CT's grid before any computing."""
    if reference is None:
        return None, ""
    if isinstance(reference, sitk.Image):
        image, name = reference, "the reference"
    elif isinstance(reference, LabelMap):
        image, name = reference.image, str(reference.path)
    else:
        image, name = read_labels(reference), str(reference)
    difference = grid_difference(scan.image, image)
    if difference:
        raise InputError(
            f"{name} lies on another grid than {scan.path} ({difference}); give the label map "
            "that was drawn on this CT."
        )
    return image, name


def _report(scan: Scan, engine: Backend, labels: np.ndarray, grid: AxialGrid) -> dict[str, Any]:
    volumes = volumes_ml(labels, grid)
    return {
        "input": str(scan.path),
        "model": {"name": engine.model.name, "version": engine.model.version},
        "backend": engine.name,
        "device": str(engine.device),
        "precision": engine.precision,
        "seconds": {},
        "kidneys": {side: {"volume_ml": volumes[side]} for side in ("left", "right")},
    }
