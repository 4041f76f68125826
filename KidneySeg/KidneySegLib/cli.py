"""The command ``kidneyseg``: parse, call, report; nothing is computed here.

Rooms are imported when a command needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import _thread
import argparse
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from KidneySegLib import __version__
from KidneySegLib.errors import Cancelled, KidneySegError, UsageError

if TYPE_CHECKING:
    from KidneySegLib.predict import TorchBackend
    from KidneySegLib.segment import Result

LABELS = ("sides", "kidney")
PROGRESS = ("bar", "lines", "none")
# How long a run that is asked to stop may take before it is cut short.
_STOP_SECONDS = 0.5


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        print(f"error: {text}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(UsageError.exit_code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done; 1 failed; 2 wrong usage; 3 unusable input; 4 unusable model; 130 stopped.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser(training=given[:1] == ["train"]).parse_args(given)
    try:
        with _stopped_by_sigterm():
            code: int = options.run(options)
        return code
    except KidneySegError as error:
        return fail(error, error.exit_code, options)
    except KeyboardInterrupt:
        return fail(Cancelled("Stopped; nothing was left half-done."), 130, options)
    except BrokenPipeError:
        # Whoever read our output has gone: point stdout elsewhere so that the exit is silent.
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        return 1
    except Exception as error:
        text = f"{type(error).__name__}: {error} (run again with --verbose to see where)"
        return fail(KidneySegError(text), 1, options)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM stops a run as tidily as Ctrl-C does; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def fail(error: BaseException, code: int, options: argparse.Namespace) -> int:
    """Say what went wrong in one line; returns the exit code."""
    if options.verbose:
        traceback.print_exc()
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return code


def parser(training: bool = True) -> argparse.ArgumentParser:
    """The whole command line.

    Args:
        training: with the flags of ``train``, which are the trainer's: segmenting does without it.
    """
    top = Parser(
        prog="kidneyseg",
        description="Segments both kidneys in CT. Research use only, not for clinical use.",
    )
    top.add_argument("--version", action="version", version=f"kidneyseg {__version__}")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)

    common = Parser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="show where an error came from")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Parser:
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        return added

    segment = command("segment", _segment, "segment the kidneys of one or more CTs")
    segment.add_argument(
        "input",
        nargs="+",
        metavar="INPUT",
        type=Path,
        help="NIfTI, NRRD or MetaImage file, DICOM folder or case folder",
    )
    segment.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help="label map (.nii.gz, .nii, .nrrd, .mha) or .seg.nrrd; with several inputs a folder",
    )
    segment.add_argument("--model", metavar="NAME|FOLDER", help="see `kidneyseg models`")
    segment.add_argument("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")
    segment.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    segment.add_argument(
        "--labels",
        default="sides",
        choices=LABELS,
        help="sides: 1 left, 2 right (default); kidney: 1",
    )
    segment.add_argument("--series", metavar="UID", help="which series of a DICOM folder")
    segment.add_argument(
        "--reference",
        type=Path,
        metavar="PATH",
        help="label map to compare with; with several inputs a folder",
    )
    segment.add_argument(
        "--overlay",
        type=Path,
        metavar="PATH",
        help="picture (.png) of the result; with several inputs a folder",
    )
    segment.add_argument("--report", type=Path, metavar="PATH", help="facts as .json")
    segment.add_argument(
        "--progress",
        default="bar",
        choices=PROGRESS,
        help="bar (default; in a terminal), JSON lines on stdout, or none",
    )
    segment.add_argument(
        "--minimum-ml",
        type=float,
        metavar="X",
        help="least volume of a kidney (default: 30; less where a scan cuts it off)",
    )
    segment.add_argument(
        "--keep-small", action="store_true", help="keep every component, whatever its size"
    )
    segment.add_argument(
        "--mirror",
        action="store_true",
        help="average with the answer for mirrored slices; takes twice the time",
    )
    segment.add_argument(
        "--batch-slices",
        type=int,
        metavar="N",
        help="slices that go through the network at once (default: by their size)",
    )
    segment.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop when standard input closes, for programs that run this one",
    )

    evaluate = command("evaluate", _evaluate, "compare a segmentation with a reference")
    evaluate.add_argument("prediction", metavar="PREDICTION", type=Path)
    evaluate.add_argument("reference", metavar="REFERENCE", type=Path)
    evaluate.add_argument("--report", type=Path, metavar="PATH", help="figures as .json")

    train = command("train", _train, "train a model on labelled cases")
    if training:
        _add_training_options(train)

    models = command("models", _models, "list the models that are there")
    models.add_argument("--json", action="store_true", help="as JSON, with their cards")

    phantom = command("phantom", _phantom, "generate CTs with labels")
    phantom.add_argument("folder", metavar="FOLDER", type=Path)
    phantom.add_argument("--cases", required=True, type=int, metavar="N")
    phantom.add_argument("--seed", type=int, default=0, metavar="S")
    phantom.add_argument("--size", type=_size, metavar="COLSxROWSxSLICES")
    return top


def _add_training_options(train: argparse.ArgumentParser) -> None:
    """A flag for each of the trainer's options; of what was not said there is no trace."""
    from dataclasses import fields

    try:
        from UNetTrainerLib.options import Options, flag
    except ModuleNotFoundError:
        train.error(
            "UNetTrainer, which trains models, is not there; run `pip install .` in the folder of "
            "KidneySeg's source"
        )
    train.usage = "%(prog)s --data FOLDER [FOLDER ...] --output FOLDER [option ...]"
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in fields(Options):
        about, default = option.metadata, option.default
        text = about["help"].replace("%", "%%")
        how: dict[str, Any] = {"required": option.name in ("data", "output")}
        if isinstance(default, bool):
            how["action"] = "store_true"
        else:
            how["metavar"] = about["metavar"] or None
            how["choices"] = about["choices"] or None
            if isinstance(default, tuple):
                how |= {"nargs": "+", "action": "extend"}
            else:
                how["type"] = type(default)
                text += f" (default: {default})" if default != "" else ""
        title = about["group"]
        if title not in groups:
            groups[title] = train.add_argument_group(title)
        groups[title].add_argument(flag(option.name), default=argparse.SUPPRESS, help=text, **how)


def _size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLSxROWSxSLICES, such as 512x512x120")
    columns, rows, slices = (int(part) for part in parts)
    return columns, rows, slices


# --- segment ----------------------------------------------------------------------------------


class _Teller:
    """Progress of one run as a bar on stderr or as JSON lines on stdout."""

    def __init__(self, kind: str, cases: int):
        self.kind = kind
        self.cases = cases
        self.case = 0
        self.bar: Any = None
        if kind == "bar" and sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc:<8} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
            self.bar = tqdm(total=1.0, bar_format=layout, leave=False)

    def __call__(self, share: float, step: str) -> None:
        whole = (self.case + share) / self.cases
        if self.kind == "lines":
            print(json.dumps({"progress": round(whole, 4), "step": step}), flush=True)
        elif self.bar is not None:
            self.bar.set_description_str(step, refresh=False)
            self.bar.update(whole - self.bar.n)

    def say(self, text: str, *, error: bool = False) -> None:
        """A line for people: warnings and errors on stderr, results on stdout.

        When a program reads stdout, which then holds JSON only, every line goes to stderr.
        """
        stream = sys.stderr if error or self.kind == "lines" else sys.stdout
        if self.bar is not None:
            self.bar.write(text, file=stream)
        else:
            print(text, file=stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _stop_with_stdin() -> None:
    """Stop this run as SIGTERM does once standard input closes, within half a second.

    Whoever started this process may have done so through a launcher, which takes signals but does
    not pass them on; a pipe reaches through it, and closes when its other end dies too.
    """

    def watch() -> None:
        # The file descriptor itself: Python's own reader would hold a lock when the run ends.
        with suppress(OSError):
            while os.read(0, 1024):
                pass
        _thread.interrupt_main(signal.SIGTERM)
        time.sleep(_STOP_SECONDS)  # the main thread may be deep in a library
        os._exit(Cancelled.exit_code)

    threading.Thread(target=watch, daemon=True).start()


def _segment(options: argparse.Namespace) -> int:
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
    from KidneySegLib.reading import unique_names

    names = unique_names(options.input)
    _keep_inputs(options, names)

    from KidneySegLib.model import find_model
    from KidneySegLib.predict import TorchBackend

    backend = TorchBackend(find_model(options.model), options.device, options.precision)
    teller = _Teller(options.progress, len(options.input))
    reports: list[dict[str, Any]] = []
    codes: set[int] = set()
    try:
        for teller.case, (source, name) in enumerate(zip(options.input, names, strict=True)):
            try:
                with ExitStack() as outputs:
                    reports.append(
                        _segment_one(source, name, several, options, backend, teller, outputs)
                    )
            except Cancelled:
                raise
            except (KidneySegError, MemoryError, RuntimeError) as error:
                # The latter two are how a CT too large for this machine's memory shows itself.
                if not several:
                    raise
                if isinstance(error, KidneySegError):
                    code, text = error.exit_code, str(error)
                else:
                    code, text = 1, f"{source}: {type(error).__name__}: {error}"
                codes.add(code)
                reports.append({"input": str(source), "error": text})
                teller.say("error: " + " ".join(text.split()), error=True)
                if options.verbose:
                    traceback.print_exc()
    finally:
        teller.close()
    if several and options.report is not None:
        from KidneySegLib.writing import write_json

        write_json({"cases": reports}, options.report)
    if several and codes:
        teller.say(
            f"{sum('error' in report for report in reports)} of {len(reports)} inputs failed.",
            error=True,
        )
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def _segment_one(
    source: Path,
    name: str,
    several: bool,
    options: argparse.Namespace,
    backend: TorchBackend,
    teller: _Teller,
    outputs: ExitStack,
) -> dict[str, Any]:
    """Segment one CT and write what was asked for, all of it or nothing."""
    from KidneySegLib.segment import segment
    from KidneySegLib.writing import atomic, write_json

    def place(path: Path, suffix: str) -> AbstractContextManager[Path]:
        return atomic(_place(path, name, suffix, several))

    result = segment(
        source,
        backend,
        series_uid=options.series,
        reference=_reference_of(name, options.reference),
        keep_small=options.keep_small,
        **({} if options.minimum_ml is None else {"minimum_ml": options.minimum_ml}),
        batch_slices=options.batch_slices,
        mirror=options.mirror,
        progress=teller,
    )
    for warning in result.scan.warnings:
        teller.say(f"warning: {warning}", error=True)
    teller(1.0, "write")
    _write_labels(result, options.labels, outputs.enter_context(place(options.output, ".nii.gz")))
    if options.overlay is not None:
        _draw(result, name, outputs.enter_context(place(options.overlay, ".png")))
    if options.report is not None and not several:
        write_json(result.report, outputs.enter_context(atomic(options.report)))
    outputs.close()
    teller.say(_summary(name, result))
    return result.report


def _place(path: Path, name: str, suffix: str, several: bool) -> Path:
    """Where a result goes: the path that was given, with several inputs a file in that folder."""
    return path / f"{name}_kidneys{suffix}" if several else path


def _write_labels(result: Result, kind: str, path: Path) -> None:
    from KidneySegLib.writing import MERGED, SIDES, write_labels

    if kind == "kidney":
        write_labels(result.merged, path, MERGED)
    else:
        write_labels(result.labels, path, SIDES)


def _draw(result: Result, name: str, path: Path) -> None:
    from KidneySegLib.geometry import to_axial
    from KidneySegLib.overlay import draw_overlay

    ct, grid = to_axial(result.scan.image)
    labels, _ = to_axial(result.labels)
    reference = None if result.reference is None else to_axial(result.reference)[0]
    draw_overlay(ct, grid, labels, reference, path, title=_summary(name, result))


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


def _reference_of(name: str, reference: Path | None) -> Path | None:
    """The reference of one input: the file given, or in a folder the one of that name.

    Raises:
        InputError: there is none.
    """
    from KidneySegLib.errors import InputError
    from KidneySegLib.finding import REFERENCE_NAMES, REFERENCE_SUFFIXES

    if reference is None or not reference.is_dir():
        return reference
    for candidate in _reference_candidates(name, reference):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{reference} holds no reference for {name}; looked for {name}/{REFERENCE_NAMES[1]} and "
        f"{name}{REFERENCE_SUFFIXES[0]}."
    )


def _reference_candidates(name: str, folder: Path) -> list[Path]:
    from KidneySegLib.finding import REFERENCE_NAMES, REFERENCE_SUFFIXES

    case = folder / name if (folder / name).is_dir() else folder
    candidates = [case / file for file in REFERENCE_NAMES]
    return candidates + [folder / f"{name}{suffix}" for suffix in REFERENCE_SUFFIXES]


def _keep_inputs(options: argparse.Namespace, names: Sequence[str]) -> None:
    """No input is ever written to, not even when somebody asks for it.

    Inputs are the CTs, also those inside case folders, and the references.
    """
    from KidneySegLib.volumes import IMAGING

    kept = [source / file for source in options.input for file in ("", *IMAGING)]
    if options.reference is not None:
        kept.append(options.reference)
        for name in names:
            kept += _reference_candidates(name, options.reference)
    inputs = {_identity(path) for path in kept}
    several = len(names) > 1
    outputs = [] if options.report is None else [options.report]
    for name in names:
        outputs.append(_place(options.output, name, ".nii.gz", several))
        if options.overlay is not None:
            outputs.append(_place(options.overlay, name, ".png", several))
    for path in outputs:
        if path.exists() and _identity(path) in inputs:
            raise UsageError(f"{path} is an input and is not overwritten; give another name.")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UsageError(f"{outputs[0]} is named twice as an output; give different names.")


def _identity(path: Path) -> tuple[int, int] | Path:
    """The same for every path to a file, links and other spellings included."""
    try:
        status = path.stat()
    except OSError:  # there is no such file, or no way to it
        return path.resolve()
    return status.st_dev, status.st_ino


# --- the other commands -----------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    from KidneySegLib.measure import evaluate
    from KidneySegLib.reading import read_labels
    from KidneySegLib.writing import check_output, write_json

    if options.report is not None:
        check_output(options.report, (".json",))
    prediction, reference = map(read_labels, (options.prediction, options.reference))
    scores = evaluate(prediction, reference, (str(options.prediction), str(options.reference)))
    if options.report is not None:
        write_json(scores, options.report)
    print(f"{'':8} {'Dice':>7} {'IoU':>7} {'prediction':>13} {'reference':>13}")
    for part, value in scores["dice"].items():
        volumes = [scores["volume_ml"][who].get(part) for who in ("prediction", "reference")]
        cells = [f"{v:.1f} ml" if v is not None else "-" for v in volumes]
        figures = [f"{v:.4f}" if v is not None else "-" for v in (value, scores["iou"][part])]
        print(f"{part:8} {figures[0]:>7} {figures[1]:>7} {cells[0]:>13} {cells[1]:>13}")
    print(f"per-slice score {scores['slice_score']:.4f}")
    for note in scores["notes"]:
        print(f"note: {note}")
    return 0


# What training and, in Slicer's Python, the engine must find, by the names they import.
TRAINING_PACKAGES = (
    "filelock",
    "lightning",
    "matplotlib",
    "monai",
    "psutil",
    "scipy",
    "tensorboard",
)
ENGINE_PACKAGES = ("PIL", "SimpleITK", "cc3d", "numpy", "safetensors", "torch", "tqdm")


def _train(options: argparse.Namespace) -> int:
    from UNetTrainerLib.options import DEFAULTS, resolve
    from UNetTrainerLib.progress import choose, stderr_to_stdout

    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in DEFAULTS
    }
    in_slicer = given.get("progress") == "slicer"
    if in_slicer:  # it passes every number and choice, said or not
        given = {name: value for name, value in given.items() if value != DEFAULTS[name]}
    progress = choose(given.get("progress", DEFAULTS["progress"]))
    with stderr_to_stdout() if in_slicer else nullcontext():
        try:
            _check_packages(in_slicer)
            from UNetTrainerLib.train import train

            model = train(resolve(given), progress)
        except BaseException as error:
            if not _came_of_a_stop(error):
                raise
            if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of a machine says it
                raise SystemExit(Cancelled.exit_code) from None
            raise Cancelled(
                f"Stopped; the epochs that were finished stay in {given['output']}, and --resume "
                "goes on after them."
            ) from None
        finally:
            progress.close()
    if model is not None:
        print(f"The model is in {model.folder}")
    return 0


def _came_of_a_stop(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind it: workers that were stopped too fail their own way."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _check_packages(in_slicer: bool) -> None:
    """All are looked for before any work, as some are imported late."""
    from importlib.util import find_spec

    training, engine = (
        [name for name in names if find_spec(name) is None]
        for names in (TRAINING_PACKAGES, ENGINE_PACKAGES)
    )
    if not training and not engine:
        return
    how = 'run `pip install ".[train]"` in the folder of KidneySeg\'s source'
    if in_slicer and engine:
        how = "segment a CT with the module KidneySeg, which installs what it needs"
    elif in_slicer:
        how = f"run slicer.util.pip_install({' '.join(training)!r}) in Slicer's Python console"
    raise UsageError(
        f"Training needs {', '.join(engine + training)}, which Python does not find here; {how}, "
        "then start again."
    )


def _models(options: argparse.Namespace) -> int:
    from KidneySegLib.model import DEFAULT_MODEL, list_models

    models, refused = list_models()
    if options.json:
        entries = [
            {
                "name": model.name,
                "version": model.version,
                "folder": str(model.folder),
                "default": model.name == DEFAULT_MODEL,
                **model.card,
            }
            for model in models
        ]
        print(json.dumps({"models": entries, "refused": refused}, indent=2, ensure_ascii=False))
        return 0
    for model in models:
        mark = " (default)" if model.name == DEFAULT_MODEL else ""
        print(f"{model.name} {model.version}{mark}\n  {model.folder}")
        for key in ("description", "licence"):
            if key in model.card:
                print(f"  {model.card[key]}")
    if not models:
        print("No model is installed.")
    for reason in refused:
        print(f"refused: {reason}", file=sys.stderr)
    return 0


def _phantom(options: argparse.Namespace) -> int:
    from KidneySegLib.phantom import write_cases

    teller = _Teller("bar", 1)
    try:
        written = write_cases(
            options.folder,
            options.cases,
            options.seed,
            options.size,
            progress=lambda share: teller(share, "phantom"),
        )
    finally:
        teller.close()
    print(f"{len(written)} cases in {options.folder}")
    return 0
