"""A batch: every CT of a folder or a list, a segmentation each, and one table of all results.

`segment_batch.py` runs it, in 3D Slicer without its window or in plain Python. The walk of each CT
is `segment()`, as everywhere; meanwhile the next one is read and the last one written. Each result
is written whole or not at all, and the table after each CT: a batch that was stopped, by whatever,
goes on where it was when the same line is run again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from KidneySegLib import __version__
from KidneySegLib.cli import Parser, fail, own_stderr, take_any_name
from KidneySegLib.commands.common import LABELS, one_thread_for_numpy, read_reference
from KidneySegLib.errors import Cancelled, InputError, KidneySegError, UsageError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from KidneySegLib.finding import Case, LeftOut
    from KidneySegLib.model import Model
    from KidneySegLib.pipeline import Turn
    from KidneySegLib.reading import LabelMap, Scan
    from KidneySegLib.segment import Result

TABLE = "results.csv"
COLUMNS = (
    "case",
    "input",
    "series",
    "left_ml",
    "right_ml",
    "kidneys_ml",
    "left_confidence",
    "right_confidence",
    "seconds",
    "dice",
    "dice_left",
    "dice_right",
    "notes",
    "error",
    "model",
    "state",
)
FAILED, STOPPED = KidneySegError.exit_code, Cancelled.exit_code

# Labels go up to here in what is found and turns out to be a label map: no CT has so few values.
_HIGHEST_LABEL = 20
_SHOWN = 10


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    options = Parser(
        prog="segment_batch.py",
        description="Segments the kidneys in every CT of a folder or a list. "
        "Research use only, not for clinical use.",
        epilog="Exit codes: 0 all segmented, 1 some failed, 2 wrong usage, 3 no CT found, "
        "4 unusable model, 130 stopped; run the same line again to go on.",
    )
    options.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="FOLDER|CSV",
        help="every CT below a folder (NIfTI, NRRD, MetaImage, DICOM), or those of a table with "
        "the columns input[,name][,reference][,series]",
    )
    options.add_argument(
        "--output", required=True, type=Path, metavar="FOLDER", help="for the results"
    )
    options.add_argument("--model", metavar="NAME|FOLDER", help="see `kidneyseg models`")
    options.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    options.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    options.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "openvino", "torch"),
        help="what computes on the CPU (default: OpenVINO where it is installed)",
    )
    options.add_argument(
        "--labels",
        default="sides",
        choices=LABELS,
        help="a segment for each kidney (default), or one for both",
    )
    options.add_argument(
        "--reference",
        metavar="FOLDER|COLUMN",
        help="folder with label maps to compare with, which may be the input; for a table the "
        "column that names them (default: reference)",
    )
    options.add_argument(
        "--mrb", action="store_true", help="write CT and segmentation as a scene of Slicer too"
    )
    options.add_argument(
        "--keep-small", action="store_true", help="keep every component, whatever its size"
    )
    options.add_argument(
        "--no-second-look",
        action="store_true",
        help="keep what the model's second look, if it has one, takes for no kidney",
    )
    options.add_argument(
        "--mirror",
        action="store_true",
        help="average with the answer for mirrored slices; takes twice the time",
    )
    options.add_argument(
        "--list", action="store_true", help="only say what would be segmented and what left out"
    )
    options.add_argument("--verbose", action="store_true", help="show where an error came from")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a batch and return its exit code.

    0 all segmented; 1 some failed; 2 wrong usage; 3 no CT found; 4 unusable model; 130 stopped.
    """
    take_any_name()
    options = parser().parse_args(arguments)
    try:
        with own_stderr(), _stopped_by_signals():
            return run(options)
    except KidneySegError as error:
        return fail(error, error.exit_code, options)
    except KeyboardInterrupt:
        return fail(Cancelled("Stopped; run the same line again to go on."), STOPPED, options)
    except ModuleNotFoundError as error:
        text = (
            f"The Python package {error.name} is missing; in 3D Slicer open the module KidneySeg "
            "and press Segment once, which installs it, elsewhere run `pip install kidneyseg`."
        )
        return fail(KidneySegError(text), FAILED, options)
    except Exception as error:  # Slicer stays open after an exception, so none may leave here
        text = f"{type(error).__name__}: {error} (run again with --verbose to see where)"
        return fail(KidneySegError(text), FAILED, options)


def _line(text: object) -> str:
    return " ".join(str(text).split())


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM stop a batch tidily.

    Slicer takes Python's own handler of Ctrl-C away, which would end it between any two
    instructions. Only the main thread may ask for signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)
    }  # fmt: skip
    try:
        yield
    finally:
        for number, handler in before.items():
            # None is a handler that was not set from Python; it cannot be given back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


# --- The batch ----------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """The batch of these options, those of `parser`; its exit code.

    Raises
    ------
    UsageError, InputError, ModelError
        It cannot be begun. What goes wrong with one CT is in the table instead.
    """
    one_thread_for_numpy()
    cases = _cases(options)
    if options.list:
        for case in cases:
            print(f"{case.name}: {case.source}")
        return 0

    from KidneySegLib.modelplaces import find_model
    from KidneySegLib.writing import check_output, only_writer

    check_output(options.output, None)
    _keep_inputs(cases, options)
    if options.mrb:
        from KidneySegLib.bundle import start_scene

        start_scene()
    model = find_model(options.model)
    with only_writer(options.output):
        return _work_through(cases, model, options)


def _work_through(cases: Sequence[Case], model: Model, options: argparse.Namespace) -> int:
    table = Table.load(options.output / TABLE)
    settings = _settings(model, options)
    states = {case.name: state_of(case, settings) for case in cases}
    waiting = [
        case
        for case in cases
        if not table.is_done(case.name, states[case.name], _outputs(case, options))
    ]
    done = len(cases) - len(waiting)
    print(
        f"{len(cases)} CTs"
        + (f", {done} of them done already" if done else "")
        + f"; model {model.name} {model.version}; results in {options.output}",
        flush=True,
    )
    if waiting:
        # Before there are threads: what two of them import at once, one may see half.
        import KidneySegLib.measure
        import KidneySegLib.reading  # noqa: F401
        from KidneySegLib.pipeline import pipeline

        # Slicer's scene, in which bundles are made, belongs to the main thread.
        walk = _Batch(model, options, table, states, len(cases), done)
        pipeline(waiting, walk, write_aside=not options.mrb)
    table.write([case.name for case in cases])
    failed = [case for case in cases if table.rows[case.name]["error"]]
    if failed:
        print(
            f"{len(failed)} of {len(cases)} CTs failed; see the column error in {table.path}.",
            file=sys.stderr,
            flush=True,
        )
    return FAILED if failed else 0


def _cases(options: argparse.Namespace) -> list[Case]:
    """What to segment, each with its reference if there is one.

    Raises
    ------
    InputError
        There is no CT.
    UsageError
        The table or the reference cannot be used.
    """
    from KidneySegLib.finding import CT_SUFFIXES, Case, find_cases, read_list, with_references
    from KidneySegLib.opening import printable
    from KidneySegLib.reading import case_name

    source, reference = options.input, options.reference
    folder = Path(reference) if reference and Path(reference).is_dir() else None
    if not source.exists():
        raise InputError(f"{source} does not exist; check the path.")
    left_out: Sequence[LeftOut] = ()
    if source.is_dir():
        print(f"Looking for CTs in {source}", flush=True)
        cases, left_out = find_cases(source, skip=[options.output])
    elif source.name.lower().endswith(CT_SUFFIXES):
        cases = [Case(printable(case_name(source)), source, listed=True)]
    elif folder is None and reference:
        cases = read_list(source, reference)
    else:
        cases = read_list(source)
    for one in left_out if options.list else left_out[:_SHOWN]:
        print(f"left out: {one}")
    if len(left_out) > _SHOWN and not options.list:
        print(f"left out: {len(left_out) - _SHOWN} more, which --list shows")
    if not cases:
        raise InputError(
            f"{source} holds no CT; give a folder with CTs or a table that names them."
        )
    if folder is not None:
        cases = with_references(cases, folder)
    elif reference and (source.is_dir() or not any(case.reference for case in cases)):
        raise UsageError(
            f"{reference} is neither a folder nor a column of {source} that names references; "
            "check --reference."
        )
    return cases


def _outputs(case: Case, options: argparse.Namespace) -> list[Path]:
    base = options.output / f"{case.name}_kidneys.seg.nrrd"
    if not options.mrb:
        return [base]
    return [base, base.with_name(base.name.removesuffix(".seg.nrrd") + ".mrb")]


def _keep_inputs(cases: Sequence[Case], options: argparse.Namespace) -> None:
    """No input is ever written to, not even when somebody asks for it.

    Raises
    ------
    UsageError
        A result would replace a CT or a reference.
    """
    inputs = {path.resolve() for case in cases for path in (case.source, case.reference) if path}
    outputs = [path for case in cases for path in _outputs(case, options)]
    for path in (*outputs, options.output / TABLE):
        if path.resolve() in inputs or path.resolve() == options.input.resolve():
            raise UsageError(f"{path} is an input and is not overwritten; give another --output.")


@dataclass(frozen=True)
class _Read:
    """A CT as it was read; without a scan it is a label map under another name."""

    scan: Scan | None
    reference: LabelMap | None = None


@dataclass(frozen=True)
class _Found:
    """What is written of a CT: the cells of its row, its labels, the CT itself if asked for."""

    cells: dict[str, str]
    labels: sitk.Image | None = None
    scan: Scan | None = None


@dataclass
class _Batch:
    """The walk of each CT, for `pipeline`; how it went is noted in the table.

    Attributes
    ----------
    done
        How many CTs of the batch earlier runs have done.
    """

    model: Model
    options: argparse.Namespace
    table: Table
    states: dict[str, str]
    total: int
    done: int
    _started: float = field(default_factory=time.perf_counter)

    def ready(self) -> None:
        from KidneySegLib.backends.choosing import open_backend

        options = self.options
        self.backend = open_backend(self.model, options.device, options.precision, options.backend)

    def read(self, case: Case, cancelled: Callable[[], bool]) -> _Read:
        from KidneySegLib.reading import read_ct

        scan = read_ct(case.source, case.series_uid, case.files or None, cancelled=cancelled)
        if not case.listed and _holds_labels(scan.image):
            return _Read(None)
        reference = None if case.reference is None else read_reference(case.reference)
        return _Read(replace(scan, name=case.name.rpartition("/")[2]), reference)

    def compute(self, turn: Turn[Case], read: _Read) -> _Found:
        from KidneySegLib.segment import segment

        if read.scan is None:
            return _Found({"notes": "left out: a label map and no CT"})
        result = segment(
            read.scan,
            self.backend,
            reference=read.reference,
            keep_small=self.options.keep_small,
            mirror=self.options.mirror,
            second_look=not self.options.no_second_look,
        )
        merged = self.options.labels == "kidney"
        labels = result.merged if merged else result.labels
        return _Found(_cells(result), labels, result.scan if self.options.mrb else None)

    def write(self, turn: Turn[Case], done: _Found) -> None:
        """All of a CT's results or none of them."""
        from KidneySegLib.writing import MERGED, SIDES, atomic, write_labels

        if done.labels is None:
            return
        segments = MERGED if self.options.labels == "kidney" else SIDES
        with ExitStack() as outputs:
            written = [
                outputs.enter_context(atomic(path)) for path in _outputs(turn.case, self.options)
            ]
            write_labels(done.labels, written[0], segments)
            if done.scan is not None:
                from KidneySegLib.bundle import write_bundle

                write_bundle(done.scan, done.labels, written[1], segments)

    def ended(self, turn: Turn[Case], done: _Found | None, error: Exception | None) -> None:
        case = turn.case
        row = dict.fromkeys(COLUMNS, "") | {
            "case": case.name,
            "input": str(case.source),
            "series": case.series_uid or "",
            "seconds": f"{sum(turn.seconds.values()):.2f}",
            "model": f"{self.model.name} {self.model.version}",
            "state": self.states[case.name],
        }
        if isinstance(error, KidneySegError):
            row["error"] = _line(error)
        elif error is not None:
            row["error"] = _line(f"{case.source}: {type(error).__name__}: {error}")
            if self.options.verbose:
                traceback.print_exception(error)
        elif done is not None:
            row |= done.cells
        self.table.put(row)
        number = turn.number + 1
        waiting = self.total - self.done - number
        left = (time.perf_counter() - self._started) / number * waiting
        _tell(row, number + self.done, self.total, left)


def _holds_labels(image: Any) -> bool:
    import SimpleITK as sitk

    if image.GetPixelID() != sitk.sitkInt16:
        return False
    values = sitk.GetArrayViewFromImage(image)
    return bool(values.min() >= 0 and values.max() <= _HIGHEST_LABEL)


def _cells(result: Result) -> dict[str, str]:
    report = result.report
    volumes = {side: kidney["volume_ml"] for side, kidney in report["kidneys"].items()}
    cells = {f"{side}_ml": f"{volume:.2f}" for side, volume in volumes.items()}
    cells["kidneys_ml"] = f"{sum(volumes.values()):.2f}"
    for side, kidney in report["kidneys"].items():
        belief = kidney["confidence"]
        cells[f"{side}_confidence"] = "" if belief is None else f"{belief:.3f}"
    for key, column in (("kidney", "dice"), ("left", "dice_left"), ("right", "dice_right")):
        value = report.get("dice", {}).get(key)
        cells[column] = "" if value is None else f"{value:.4f}"
    cells["notes"] = "; ".join(map(_line, report["notes"]))
    return cells


def _tell(row: dict[str, str], number: int, total: int, left_s: float) -> None:
    if row["error"]:
        found = f"error: {row['error']}"
    elif not row["kidneys_ml"]:
        found = row["notes"]
    else:
        found = f"left {float(row['left_ml']):.1f} ml, right {float(row['right_ml']):.1f} ml"
        found += f", Dice {float(row['dice']):.3f}" if row["dice"] else ""
    left = f", {_duration(left_s)} left" if number < total else ""
    print(f"[{number}/{total}] {row['case']}: {found} ({row['seconds']} s{left})", flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


# --- What is done already -----------------------------------------------------------------------


def _settings(model: Model, options: argparse.Namespace) -> list[Any]:
    """All that a result depends on, save for the CT and its reference.

    The device is not part of it: its results are meant to be the same.
    """
    from KidneySegLib.model import CARD_FILE

    assert model.folder is not None
    card = hashlib.sha256((model.folder / CARD_FILE).read_bytes())
    return [
        __version__,
        card.hexdigest(),
        model.digest,
        options.precision,
        options.labels,
        options.keep_small,
        options.mirror,
        options.no_second_look,
    ]


def state_of(case: Case, settings: Sequence[Any]) -> str:
    """A fingerprint that changes with the settings, the CT's files and the reference.

    Files are told by name, size and time, wherever they lie.
    """
    from KidneySegLib.finding import files_of

    reference = None if case.reference is None else _fact(case.reference)
    try:
        files = files_of(case)
    except InputError:  # as of `_fact`
        files = []
    facts = [*settings, case.series_uid, reference, [_fact(file) for file in files]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _fact(path: Path) -> list[Any]:
    try:
        status = path.stat()
    except OSError:  # it fails when its turn comes, with a sentence
        return [path.name, None, None]
    return [path.name, status.st_size, status.st_mtime_ns]


@dataclass
class Table:
    """`results.csv`: a row for each case.

    Attributes
    ----------
    rows
        By case; those of earlier batches into the same folder among them.
    """

    path: Path
    rows: dict[str, dict[str, str]]
    _told: bool = False

    @classmethod
    def load(cls, path: Path) -> Table:
        """The table of an earlier run, or an empty one.

        Raises
        ------
        UsageError
            The file is another table.
        """
        if not path.exists():
            return cls(path, {})
        try:
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                rows = [{key: row[key] or "" for key in COLUMNS} for row in reader]
                ours = tuple(reader.fieldnames or ()) == COLUMNS
        except (KeyError, ValueError, csv.Error):
            ours = False
        except OSError as error:
            raise UsageError(f"{path} cannot be opened ({error.strerror}).") from error
        if not ours:
            raise UsageError(
                f"{path} is not a table of this version of segment_batch.py and is not "
                "overwritten; move it away or give another --output."
            )
        return cls(path, {row["case"]: row for row in rows})

    def is_done(self, case: str, state: str, outputs: Sequence[Path]) -> bool:
        """Whether a case was finished with these settings and its results are there still."""
        row = self.rows.get(case)
        if row is None or row["error"] or row["state"] != state:
            return False
        return not row["kidneys_ml"] or all(path.is_file() for path in outputs)

    def put(self, row: dict[str, str]) -> None:
        """Note a case; a table that somebody has open does not stop the batch."""
        self.rows[row["case"]] = row
        try:
            self.write()
        except KidneySegError as error:
            if not self._told:
                print(f"warning: {_line(error)}", file=sys.stderr, flush=True)
            self._told = True

    def write(self, first: Sequence[str] = ()) -> None:
        """Write the table, all of it or nothing.

        Parameters
        ----------
        first
            The cases whose rows come first, in this order.

        Raises
        ------
        KidneySegError
            It cannot be written.
        """
        from KidneySegLib.writing import atomic

        order = dict.fromkeys(name for name in (*first, *self.rows) if name in self.rows)
        with (
            atomic(self.path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows[name] for name in order)
