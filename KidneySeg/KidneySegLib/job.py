"""One click of Segment: from a volume node through the worker process to a segmentation node.

Nothing in the scene changes before the result is there; whatever goes wrong on the way leaves it
as it was, and neither a process nor a temporary file behind.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer

from KidneySegLib import scene
from KidneySegLib.errors import Cancelled, InputError, KidneySegError
from KidneySegLib.worker import Done, Line, Progress, Worker, check_space
from KidneySegLib.writing import MERGED, SIDES

OnProgress = Callable[[float, str], None]

POLL_MILLISECONDS = 100
_WAIT_SECONDS = 0.05
# Beside the volume: its labels, and room for the report and for whatever else needs the disk.
_SPARE_BYTES = 50_000_000


class Job:
    """A segmentation that runs in a worker process; `poll` it until it has ended.

    Args:
        volume: vtkMRMLScalarVolumeNode with a CT.
        segmentation: vtkMRMLSegmentationNode that gets the result; None for a new one.
        model: name or folder of a model; None for the default.
        device: auto, cpu, cuda, cuda:N or mps.
        reference: vtkMRMLSegmentationNode or vtkMRMLLabelMapVolumeNode to compare with, or None.
        merge_sides: one segment for both kidneys.
        keep_small: keep components that are too small or in the wrong place for a kidney.
        batch_slices: slices that go through the network at once; 0 fits them to their size.
        mirror: test-time augmentation by mirroring.
        on_progress: called by `poll` with the share done, 0 to 1, and the step's name.
        on_line: called by `poll` with each line for the log.

    Attributes:
        segmentation: the node with the result, once there is one.
        report: facts on the run; with a reference also "comparison", as `scene.compare` gives it.
    """

    def __init__(
        self,
        volume: Any,
        segmentation: Any = None,
        *,
        model: str | Path | None = None,
        device: str = "auto",
        reference: Any = None,
        merge_sides: bool = False,
        keep_small: bool = False,
        batch_slices: int = 0,
        mirror: bool = False,
        on_progress: OnProgress | None = None,
        on_line: Callable[[str], None] | None = None,
    ):
        self.volume = volume
        self.segmentation = segmentation
        self.reference = reference
        self.merge_sides = merge_sides
        self.on_progress = on_progress
        self.on_line = on_line
        self.report: dict[str, Any] = {}
        self.ended = False
        self._cancelled = False
        self._truth: sitk.Image | None = None
        self._worker: Worker | None = None
        self._scene = slicer.mrmlScene
        self._observer: int | None = None
        self._options = ["--device", device or "auto"]
        if model:
            self._options += ["--model", str(model)]
        if keep_small:
            self._options.append("--keep-small")
        if batch_slices:
            self._options += ["--batch-slices", str(batch_slices)]
        if mirror:
            self._options.append("--mirror")
        self._options += ["--labels", "kidney" if merge_sides else "sides"]

    @property
    def log(self) -> str:
        """What the worker said so far, and how it was called."""
        return "\n".join(self._worker.log) if self._worker is not None else ""

    def start(self) -> None:
        """Check everything, write the volume for the worker and start it.

        Raises:
            KidneySegError: one sentence; nothing was started, and the scene is as before.
        """
        scene.check_volume(self.volume)
        scene.check_output(self.segmentation, self.reference)
        self._check_nodes()
        if self.reference is not None:
            self._truth = scene.labels_image(self.reference, self.volume)
        worker = Worker(slicer.app.temporaryPath)
        self._worker = worker
        try:
            image = self.volume.GetImageData()
            voxels = image.GetNumberOfPoints()
            check_space(worker.folder, voxels * (image.GetScalarSize() + 1) + _SPARE_BYTES)
            ct = worker.folder / "ct.nrrd"
            scene.write_volume(self.volume, ct)
            worker.start(
                [
                    *("segment", ct, "--output", self._labels, "--report", self._report),
                    *("--progress", "lines", "--stop-with-stdin", *self._options),
                ]
            )
        except BaseException:
            worker.close()
            self.ended = True
            raise
        self._observer = self._scene.AddObserver(
            self._scene.StartCloseEvent, lambda *_: self.cancel()
        )

    def poll(self) -> bool:
        """Tell progress; at the end put the result into the scene. Returns whether it has ended.

        Raises:
            KidneySegError: the run failed; one sentence, and the scene is as before.
            Cancelled: it was stopped.
        """
        if self._cancelled:
            raise Cancelled("Cancelled; the scene is as before.")
        if self.ended or self._worker is None:
            return True
        try:
            self._check_nodes()
            for event in self._worker.poll():
                if isinstance(event, Progress) and self.on_progress is not None:
                    self.on_progress(event.share, event.step)
                elif isinstance(event, Line) and self.on_line is not None:
                    self.on_line(event.text)
                elif isinstance(event, Done):
                    self._finish(event)
                    return True
        except BaseException:
            self._stop()
            raise
        return False

    def wait(self) -> None:
        """Poll until the end, and keep the application's window alive meanwhile."""
        try:
            while not self.poll():
                slicer.app.processEvents()
                time.sleep(_WAIT_SECONDS)
        finally:
            self.cancel()  # whatever stopped the waiting, Ctrl-C included, stops the run

    def cancel(self) -> None:
        """Stop, within a second; the scene stays as it is. Does nothing after the end."""
        if not self.ended:
            self._cancelled = True
            self._stop()

    def _stop(self) -> None:
        self.ended = True
        if self._worker is not None:
            self._worker.close()
        if self._observer is not None:
            self._scene.RemoveObserver(self._observer)
            self._observer = None

    @property
    def _labels(self) -> Path:
        assert self._worker is not None
        return self._worker.folder / "labels.nrrd"

    @property
    def _report(self) -> Path:
        assert self._worker is not None
        return self._worker.folder / "report.json"

    def _check_nodes(self) -> None:
        """Raise InputError where a node is not, or no longer, in the scene."""
        for node, what in (
            (self.volume, "CT volume"),
            (self.segmentation, "output segmentation"),
            (self.reference, "reference"),
        ):
            if node is not None and not self._scene.IsNodePresent(node):
                raise InputError(
                    f"The {what} is no longer in the scene; choose another one and segment again."
                )

    def _finish(self, done: Done) -> None:
        if done.error is not None:
            raise KidneySegError(done.error)
        try:
            labels = sitk.ReadImage(str(self._labels))
            report = json.loads(self._report.read_text(encoding="utf-8"))
        except (RuntimeError, OSError, ValueError) as error:
            raise KidneySegError(
                "The result of the segmentation cannot be read, maybe because the disk is full; "
                "free some space and segment again."
            ) from error
        report["input"] = self.volume.GetName()
        if self._truth is not None:
            # Not in Slicer before the user has installed what segmenting needs.
            from KidneySegLib.measure import evaluate

            names = (f"the segmentation of {self.volume.GetName()}", self.reference.GetName())
            report["reference"] = self.reference.GetName()
            report["comparison"] = evaluate(labels, self._truth, names, distances=True)
        self.segmentation = scene.place_labels(
            labels, self.volume, self.segmentation, MERGED if self.merge_sides else SIDES
        )
        self.report = report
        self._stop()


class Run:
    """A started job that goes on while the application does; ends by itself or by `cancel`.

    Args:
        on_done: called with the segmentation node.
        on_error: called with a sentence and the log.
        on_cancel: called when the run was cancelled, or the scene closed.

    Attributes:
        running: it has neither ended nor been cancelled.
    """

    def __init__(
        self,
        job: Job,
        on_done: Callable[[Any], None] | None = None,
        on_error: Callable[[str, str], None] | None = None,
        on_cancel: Callable[[], None] | None = None,
    ):
        import qt

        self.job = job
        self.running = True
        self._on_done, self._on_error, self._on_cancel = on_done, on_error, on_cancel
        self._timer: Any = qt.QTimer()
        self._timer.setInterval(POLL_MILLISECONDS)
        self._timer.connect("timeout()", self._poll)
        self._timer.start()
        # Scripts start runs without a module window, whose end would stop them.
        slicer.app.connect("aboutToQuit()", self.cancel)

    @property
    def report(self) -> dict[str, Any]:
        """Facts on the run, once it is done."""
        return self.job.report

    def cancel(self) -> None:
        """Stop within a second; the scene stays as it is. Does nothing after the end."""
        if self.running:
            self.job.cancel()
            self._poll()

    def _poll(self) -> None:
        if not self.running:
            return
        try:
            if not self.job.poll():
                return
        except Cancelled:
            self._end()
            if self._on_cancel is not None:
                self._on_cancel()
        except KidneySegError as error:
            self._end()
            logging.error("%s\n%s", error, self.job.log)
            if self._on_error is not None:
                self._on_error(str(error), self.job.log)
        except BaseException:
            self._end()
            raise
        else:
            self._end()
            if self._on_done is not None:
                self._on_done(self.job.segmentation)

    def _end(self) -> None:
        import qt

        self.running = False
        self._timer.stop()
        # A connection must not be cut, nor its timer go, while its own signal is being delivered.
        qt.QTimer.singleShot(0, self._release)

    def _release(self) -> None:
        """Let go of what keeps this run, and with it the volume, in memory."""
        self._timer.disconnect("timeout()", self._poll)
        self._timer = None
        slicer.app.disconnect("aboutToQuit()", self.cancel)
