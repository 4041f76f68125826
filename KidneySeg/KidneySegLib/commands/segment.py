"""``kidneyseg segment``: the kidneys of one or more CTs."""

from __future__ import annotations

import _thread
import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from KidneySegLib.commands.common import (
    LABELS,
    PROGRESS,
    Teller,
    keep_inputs,
    one_thread_for_numpy,
    read_reference,
)
from KidneySegLib.errors import Cancelled, InputError, KidneySegError, UsageError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from KidneySegLib.finding import Case
    from KidneySegLib.pipeline import Turn
    from KidneySegLib.reading import LabelMap, Scan
    from KidneySegLib.segment import Result

NAME = "segment"
HELP = "segment the kidneys of one or more CTs"

# How long a run that is asked to stop may take before it is cut short.
_STOP_SECONDS = 0.5
# How often Windows is asked whether standard input is open.
_LOOK_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        type=Path,
        help="NIfTI, NRRD or MetaImage file, DICOM folder or case folder",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help="label map (.nii.gz, .nii, .nrrd, .mha) or .seg.nrrd; with several inputs a folder",
    )
    parser.add_argument("--model", metavar="NAME|FOLDER", help="see `kidneyseg models`")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "openvino", "torch"),
        help="what computes on the CPU (default: OpenVINO where it is installed)",
    )
    parser.add_argument(
        "--labels",
        default="sides",
        choices=LABELS,
        help="sides: 1 left, 2 right (default); kidney: 1",
    )
    parser.add_argument("--series", metavar="UID", help="which series of a DICOM folder")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="PATH",
        help="label map to compare with; with several inputs a folder",
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="PATH",
        help="picture (.png) of the result; with several inputs a folder",
    )
    parser.add_argument("--report", type=Path, metavar="PATH", help="facts as .json")
    parser.add_argument(
        "--progress",
        default="bar",
        choices=PROGRESS,
        help="bar (default; in a terminal), JSON lines on stdout, or none",
    )
    parser.add_argument(
        "--minimum-ml",
        type=float,
        metavar="X",
        help="least volume of a kidney (default: the model's, else 30; less where a scan cuts it "
        "off)",
    )
    parser.add_argument(
        "--keep-small", action="store_true", help="keep every component, whatever its size"
    )
    parser.add_argument(
        "--no-second-look",
        action="store_true",
        help="keep what the model's second look, if it has one, takes for no kidney",
    )
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="average with the answer for mirrored slices; takes twice the time",
    )
    parser.add_argument(
        "--batch-slices",
        type=int,
        metavar="N",
        help="slices that go through the network at once (default: by their size)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="say on stderr at the end which part of the work took how long",
    )
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop when standard input closes, for programs that run this one",
    )


def run(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    one_thread_for_numpy()
    if options.stop_with_stdin:
        _stop_with_stdin()

    from KidneySegLib.writing import check_output

    several = len(options.input) > 1
    check_output(options.output, *((None,) if several else ()))
    if options.overlay is not None:
        check_output(options.overlay, None if several else (".png",))
    if options.report is not None:
        check_output(options.report, (".json",))
    if several and options.reference is not None and not options.reference.is_dir():
        raise UsageError(
            f"{options.reference} is not a folder; with several inputs give a folder that holds "
            "the reference of each."
        )
    # Before there are threads: what two of them import at once, one may see half.
    from KidneySegLib.finding import Case, with_references
    from KidneySegLib.opening import printable
    from KidneySegLib.pipeline import pipeline
    from KidneySegLib.reading import unique_names

    if options.reference is not None:
        import KidneySegLib.measure  # noqa: F401

    names = map(printable, unique_names(options.input))
    cases = [Case(name, source) for name, source in zip(names, options.input, strict=True)]
    _keep_inputs(options, cases)
    if options.reference is not None and options.reference.is_dir():
        cases = with_references(cases, options.reference)
    elif options.reference is not None:
        cases = [replace(case, reference=options.reference) for case in cases]

    walk = _Run(options, several, Teller(options.progress, len(cases)), started)
    try:
        # One by itself is written where Ctrl-C still stops it.
        pipeline(cases, walk, write_aside=several)
    finally:
        walk.teller.close()
    if several and options.report is not None:
        from KidneySegLib.writing import write_json

        write_json({"cases": walk.reports}, options.report)
    codes = walk.codes
    if several and codes:
        walk.teller.say(
            f"{sum('error' in report for report in walk.reports)} of {len(cases)} inputs failed.",
            error=True,
        )
    if options.profile:
        walk.tell_profile(time.perf_counter() - started)
    return codes.pop() if len(codes) == 1 else int(bool(codes))


@dataclass(frozen=True)
class _Found:
    """What is written and said of a CT; the CT itself is in it only for a picture."""

    labels: sitk.Image
    report: dict[str, Any]
    summary: str
    warnings: tuple[str, ...]
    pictured: Result | None


@dataclass
class _Run:
    """The walk of each CT, for `pipeline`.

    Attributes
    ----------
    several
        More than one was given: outputs are folders, and an error is told and the rest goes on.
    reports, codes
        Of the CTs that have ended, and the exit codes of those that failed.
    seconds
        By room of the walk, of all that have ended together.
    """

    options: argparse.Namespace
    several: bool
    teller: Teller
    started: float
    reports: list[dict[str, Any]] = field(default_factory=list)
    codes: set[int] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    def ready(self) -> None:
        self.teller(0.0, "read")
        from KidneySegLib.backends.choosing import open_backend
        from KidneySegLib.modelplaces import find_model

        options = self.options
        self.backend = open_backend(
            find_model(options.model), options.device, options.precision, options.backend
        )
        self.seconds["start"] = time.perf_counter() - self.started

    def read(self, case: Case, cancelled: Callable[[], bool]) -> tuple[Scan, LabelMap | None]:
        from KidneySegLib.reading import read_ct

        scan = read_ct(case.source, self.options.series, cancelled=cancelled)
        if case.reference is not None:
            return scan, read_reference(case.reference)
        if self.options.reference is not None:
            raise _no_reference(case.name, self.options.reference)
        return scan, None

    def compute(self, turn: Turn[Case], read: tuple[Scan, LabelMap | None]) -> _Found:
        from KidneySegLib.segment import segment

        scan, reference = read
        self.teller.case = turn.number
        result = segment(
            scan,
            self.backend,
            reference=reference,
            keep_small=self.options.keep_small,
            minimum_ml=self.options.minimum_ml,
            batch_slices=self.options.batch_slices,
            mirror=self.options.mirror,
            second_look=not self.options.no_second_look,
            progress=self.teller,
        )
        self.teller(1.0, "write")
        return _Found(
            result.merged if self.options.labels == "kidney" else result.labels,
            result.report,
            _summary(turn.case.name, result),
            result.scan.warnings,
            None if self.options.overlay is None else result,
        )

    def write(self, turn: Turn[Case], done: _Found) -> None:
        """What was asked for, all of it or nothing."""
        from KidneySegLib.writing import MERGED, SIDES, atomic, write_json, write_labels

        options, name = self.options, turn.case.name
        for warning in done.warnings:
            self.teller.say(f"warning: {warning}", error=True)
        began = time.perf_counter()
        with ExitStack() as outputs:

            def place(path: Path, suffix: str) -> Path:
                return outputs.enter_context(atomic(_place(path, name, suffix, self.several)))

            segments = MERGED if options.labels == "kidney" else SIDES
            write_labels(done.labels, place(options.output, ".nii.gz"), segments)
            if done.pictured is not None:
                _draw(done.pictured, done.summary, place(options.overlay, ".png"))
            seconds = done.report["seconds"]
            seconds["read"] += turn.seconds["read"]
            total = seconds.pop("total") + turn.seconds["read"]
            seconds["write"] = time.perf_counter() - began
            seconds["total"] = total + seconds["write"]
            if options.report is not None and not self.several:
                write_json(done.report, outputs.enter_context(atomic(options.report)))

    def ended(self, turn: Turn[Case], done: _Found | None, error: Exception | None) -> None:
        if error is None and done is not None:
            self.teller.say(done.summary)
            self.reports.append(done.report)
            for room, seconds in done.report["seconds"].items():
                self.seconds[room] = self.seconds.get(room, 0.0) + seconds
            return
        assert error is not None
        # Nobody reads what is said any more, and no CT is at fault.
        if not self.several or isinstance(error, BrokenPipeError):
            raise error
        source = str(turn.case.source)
        if isinstance(error, KidneySegError):
            code, text = error.exit_code, str(error)
        else:
            code, text = 1, f"{source}: {type(error).__name__}: {error}"
        self.codes.add(code)
        self.reports.append({"input": source, "error": text})
        self.teller.say("error: " + " ".join(text.split()), error=True)
        if self.options.verbose:
            traceback.print_exception(error)

    def tell_profile(self, whole: float) -> None:
        """The seconds of each room, of all CTs together, and of the whole run."""
        seconds = {room: spent for room, spent in self.seconds.items() if room != "total"}
        for room, spent in {**seconds, "whole run": whole}.items():
            self.teller.say(f"{room:<10}{spent:8.2f} s{spent / whole:7.0%}", error=True)


def _place(path: Path, name: str, suffix: str, several: bool) -> Path:
    """Where a result goes: the path that was given, with several inputs a file in that folder."""
    return path / f"{name}_kidneys{suffix}" if several else path


def _draw(result: Result, title: str, path: Path) -> None:
    from KidneySegLib.geometry import to_axial
    from KidneySegLib.overlay import draw_overlay

    ct, grid = to_axial(result.scan.image)
    labels, _ = to_axial(result.labels)
    reference = None if result.reference is None else to_axial(result.reference)[0]
    draw_overlay(ct, grid, labels, reference, path, title=title)


def _summary(name: str, result: Result) -> str:
    volumes = ", ".join(
        f"{side} {kidney['volume_ml']:.1f} ml" for side, kidney in result.report["kidneys"].items()
    )
    text = f"{name}: {volumes}"
    value = result.report.get("dice", {}).get("kidney")
    if value is not None:
        text += f", Dice {value:.3f}"
    remarks = [n for n in result.report["notes"] if n not in result.scan.warnings]
    return f"{text} ({'; '.join(remarks)})" if remarks else text


def _no_reference(name: str, folder: Path) -> InputError:
    from KidneySegLib.finding import REFERENCE_NAMES, REFERENCE_SUFFIXES

    return InputError(
        f"{folder} holds no reference for {name}; looked for {name}/{REFERENCE_NAMES[1]} and "
        f"{name}{REFERENCE_SUFFIXES[0]}."
    )


def _keep_inputs(options: argparse.Namespace, cases: Sequence[Case]) -> None:
    """Inputs are the CTs, also those inside case folders, the references and the model."""
    from KidneySegLib.finding import references_in
    from KidneySegLib.model import CARD_FILE
    from KidneySegLib.volumes import IMAGING

    inputs = [case.source / file for case in cases for file in ("", *IMAGING)]
    if options.reference is not None:
        inputs.append(options.reference)
        inputs += [path for found in references_in(options.reference, cases) for path in found]
    if options.model is not None:
        inputs.append(Path(options.model, CARD_FILE))
    several = len(cases) > 1
    outputs = [] if options.report is None else [options.report]
    for case in cases:
        outputs.append(_place(options.output, case.name, ".nii.gz", several))
        if options.overlay is not None:
            outputs.append(_place(options.overlay, case.name, ".png", several))
    keep_inputs(inputs, outputs)


def _stop_with_stdin() -> None:
    """Stop this run as SIGTERM does once standard input closes, within half a second.

    Whoever started this process may have done so through a launcher, which takes signals but does
    not pass them on; a pipe reaches through it, and closes when its other end dies too.
    """

    def watch() -> None:
        with suppress(OSError):
            _wait_for_end_of_input()
        _thread.interrupt_main(signal.SIGTERM)
        time.sleep(_STOP_SECONDS)  # the main thread may be deep in a library
        os._exit(Cancelled.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def _wait_for_end_of_input() -> None:
    """Wait until the other end of standard input is closed, or fail with an OSError where it is.

    On Windows nothing may wait in a read of it: the first import of NumPy asks the same pipe for
    its state, and would wait for that read to end (https://github.com/numpy/numpy/issues/24290).
    """
    if sys.platform == "win32":
        import _winapi
        import msvcrt

        while True:
            _winapi.PeekNamedPipe(msvcrt.get_osfhandle(0), 0)
            time.sleep(_LOOK_SECONDS)
    # The file descriptor itself: Python's own reader would hold a lock when the run ends.
    while os.read(0, 1024):
        pass
