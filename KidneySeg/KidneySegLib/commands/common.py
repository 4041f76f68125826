"""What several commands share: choices, progress, and the promise to keep every input as it is."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from KidneySegLib.errors import UsageError

if TYPE_CHECKING:
    from KidneySegLib.evaluation import Problem
    from KidneySegLib.reading import LabelMap

LABELS = ("sides", "kidney")
PROGRESS = ("bar", "lines", "none")
# Names of cases in one line.
_SHOWN = 20


class Teller:
    """Progress of one run as a bar on stderr or as JSON lines on stdout."""

    def __init__(self, kind: str, cases: int):
        self.kind = kind
        self.cases = cases
        self.case = 0
        self.bar: Any = None
        self._lock = threading.RLock()  # CTs are computed and written in threads of their own
        if kind == "bar" and sys.stderr.isatty():
            from tqdm import tqdm

            layout = "{desc:<8} {percentage:3.0f}% |{bar}| {elapsed} < {remaining}"
            self.bar = tqdm(total=1.0, bar_format=layout, leave=False)

    def __call__(self, share: float, step: str) -> None:
        whole = (self.case + share) / self.cases
        with self._lock:
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
        with self._lock:
            if self.bar is not None:
                self.bar.write(text, file=stream)
            else:
                print(text, file=stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def one_thread_for_numpy() -> None:
    """Keep numpy's matrix products to a thread each, unless the user says otherwise.

    Ours are small, and threads that wait for each other on cores that also read, write and run the
    network make them several times slower. Does nothing once numpy is loaded.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def keep_inputs(inputs: Iterable[Path], outputs: Sequence[Path]) -> None:
    """No input is ever written to, not even when somebody asks for it.

    Raises
    ------
    UsageError
        An output is one of the inputs, or two outputs are the same file.
    """
    kept = {identity(path) for path in inputs}
    for path in outputs:
        if identity(path) in kept and path.exists():
            raise UsageError(f"{path} is an input and is not overwritten; give another name.")
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UsageError(f"{outputs[0]} is named twice as an output; give different names.")


def keep_replaced(inputs: Iterable[Path], folder: Path) -> None:
    """Refuse to replace a folder that is an input or holds one.

    Raises
    ------
    UsageError
        It is, or does.
    """
    replaced = folder.resolve()
    for path in inputs:
        if replaced in (path.resolve(), *path.resolve().parents):
            raise UsageError(
                f"{path} is an input and would be replaced with {folder}; give another --output."
            )


def identity(path: Path) -> tuple[int, int] | Path:
    """The same for every path to a file, links and other spellings included."""
    try:
        status = path.stat()
    except OSError:  # there is no such file, or no way to it
        return path.resolve()
    return status.st_dev, status.st_ino


def keep_other_tables(path: Path, begins: str) -> None:
    """Refuse to write over a table that is another one, such as that of a batch.

    Parameters
    ----------
    begins
        What the first line of the table that will be written begins with.

    Raises
    ------
    UsageError
        There is a file that begins otherwise.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(len(begins))
    if start and start != begins.encode():
        raise UsageError(f"{path} is another table and is not overwritten; give another name.")


def read_reference(path: Path) -> LabelMap:
    """A reference for what has yet to be computed.

    Raises
    ------
    InputError
        It cannot be read, or its labels are not understood.
    """
    from KidneySegLib.labelmaps import labels_kind
    from KidneySegLib.reading import LabelMap, read_labels

    labels = read_labels(path)
    labels_kind(labels, str(path))
    return LabelMap(labels, path)


def print_table(rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print rows of cells as columns, the first ones flush left, the others flush right."""
    columns = max(map(len, rows))
    widths = [max(len(row[n]) for row in rows if n < len(row)) for n in range(columns)]
    for row in rows:
        cells = [
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        print("  ".join(cells).rstrip())


def figure_text(value: float | None, unit: str) -> str:
    """A figure of `evaluation.FIGURES` with as many digits as mean something."""
    if value is None:
        return "-"
    digits = {"": 4, "ml": 1, "%": 1}.get(unit, 2)
    return f"{value:.{digits}f}"


def print_problems(problems: Sequence[Problem], before: str = "") -> bool:
    """Name the cases that were not compared, on stderr; returns whether one is unusable."""
    for kind, what in (("missing", "no prediction"), ("extra", "no reference")):
        names = [problem.case for problem in problems if problem.kind == kind]
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            text = f"{before}{kind}, {what}: {', '.join(names[:_SHOWN])}{more}"
            print(text, file=sys.stderr)
    unusable = [problem for problem in problems if problem.kind == "unusable"]
    for problem in unusable:
        reason = " ".join(problem.reason.split())
        print(f"error: {before}{problem.case}: {reason}", file=sys.stderr)
    return bool(unusable)
