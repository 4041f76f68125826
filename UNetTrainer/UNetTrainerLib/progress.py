"""Telling of a run: a bar in a terminal, plain lines elsewhere, tags where Slicer listens."""

from __future__ import annotations

import html
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Where the steps lie on the way of a whole run from 0 to 1; training takes the most by far.
_SPANS = {"check": (0.0, 0.03), "cache": (0.03, 0.1)}
_TRAINING = (0.1, 1.0)

# How often a bar is drawn at most, and plain lines tell of tenths and of batches.
_REDRAW_S = 0.1
_TENTHS_S = 1.0
_BATCHES_S = 600.0


class Progress:
    """What a run tells whoever waits for it; this one shows nothing."""

    def line(self, text: str) -> None:
        """A fact worth keeping, one line or more: the table, an epoch, a warning."""

    def share(self, fraction: float, step: str) -> None:
        """How far a step before training is.

        Args:
            fraction: of this step, from 0 to 1.
            step: ``check`` or ``cache``; the same at every call of one step.
        """

    def batch(
        self,
        epoch: int,
        epochs: int,
        batch: int,
        batches: int,
        loss: float,
        dice: float | None = None,
    ) -> None:
        """A batch is done.

        Args:
            epoch: counted from 1, after a resumption too.
            epochs: of the whole run.
            batch: of this epoch, counted from 1.
            batches: of every epoch.
            loss: of this batch.
            dice: of the last validation, if there was one.
        """

    def close(self) -> None:
        """Nothing more is told."""

    def counter(self, step: str) -> Callable[..., None]:
        """`share` of one step for those who count: takes how many are done, of all, and a name."""

        def count(done: int, total: int, name: str = "") -> None:
            self.share(done / total if total else 1.0, step)

        return count


class Silent(Progress):
    """Shows nothing."""


class _Shown(Progress, ABC):
    """Keeps count of where a run is, for those that show it.

    Args:
        clock: seconds that only rise.

    Attributes:
        position: on the way of the whole run, from 0 to 1; never falls.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.position = 0.0
        self._first: tuple[float, int] | None = None
        self._left_s: float | None = None

    def share(self, fraction: float, step: str) -> None:
        start, end = _SPANS.get(step, (self.position, self.position))
        self._reach(start + (end - start) * fraction)
        self._show_share(fraction, step)

    def batch(
        self,
        epoch: int,
        epochs: int,
        batch: int,
        batches: int,
        loss: float,
        dice: float | None = None,
    ) -> None:
        now, done, total = self.clock(), (epoch - 1) * batches + batch, epochs * batches
        if self._first is None:
            self._first = (now, done)
        elif done > self._first[1]:
            seconds, since = now - self._first[0], done - self._first[1]
            self._left_s = seconds / since * (total - done)
        start, end = _TRAINING
        self._reach(start + (end - start) * done / total)
        parts = [f"epoch {epoch}/{epochs}", f"batch {batch}/{batches}", f"loss {loss:.4f}"]
        if dice is not None:
            parts.append(f"Dice {dice:.3f}")
        if self._left_s is not None:
            parts.append(f"{duration(self._left_s)} left")
        self._show_batch(epoch, "  ".join(parts))

    @abstractmethod
    def _show_share(self, fraction: float, step: str) -> None:
        """Show how far a step before training is."""

    @abstractmethod
    def _show_batch(self, epoch: int, text: str) -> None:
        """Show a batch of an epoch, as text."""

    def _reach(self, position: float) -> None:
        self.position = min(1.0, max(self.position, position))


class Bars(_Shown):
    """One bar on standard error, of the step at first and then of the whole training.

    Lines go to standard output, above the bar.
    """

    _LAYOUT = "{percentage:3.0f}% |{bar}| {desc}"

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._bar: Any = None
        self._step = ""
        self._began = 0.0
        self._drawn = 0.0

    def line(self, text: str) -> None:
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)

    def _show_share(self, fraction: float, step: str) -> None:
        if step != self._step:
            self._began = self.clock()
        text = step
        if fraction > 0:
            left_s = (self.clock() - self._began) / fraction * (1 - fraction)
            text += f"  {duration(left_s)} left"
        self._draw(fraction, step, text)

    def _show_batch(self, epoch: int, text: str) -> None:
        start, end = _TRAINING
        self._draw((self.position - start) / (end - start), "train", text)

    def _draw(self, fraction: float, step: str, text: str) -> None:
        now = self.clock()
        if step == self._step and fraction < 1 and now - self._drawn < _REDRAW_S:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=1.0, bar_format=self._LAYOUT, leave=False, dynamic_ncols=True, mininterval=0
            )
        self._step, self._drawn = step, now
        self._bar.n = fraction
        self._bar.set_description_str(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines(_Shown):
    """Plain lines on standard output: tenths of a step, and every fact.

    The batches, and with them the time left, are told of every ten minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._tenth = ("", 0)
        self._said = clock()

    def line(self, text: str) -> None:
        print(text, flush=True)

    def _show_share(self, fraction: float, step: str) -> None:
        now, tenth = self.clock(), (step, int(10 * fraction + 1e-6))
        # What takes no time is told of once.
        if tenth != self._tenth and (fraction >= 1 or now - self._said >= _TENTHS_S):
            self._tenth, self._said = tenth, now
            self.line(f"{step} {10 * tenth[1]} %")

    def _show_batch(self, epoch: int, text: str) -> None:
        now = self.clock()
        if now - self._said >= _BATCHES_S:
            self._said = now
            self.line(text)


class Slicer(_Shown):
    """Tags of the Slicer execution model on standard output, as often as its bar can show.

    Slicer searches all that was printed for the last tag each time, so there are few.
    """

    _STEP = 0.005

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        self._began: float | None = None
        self._told = (-1.0, "")

    def line(self, text: str) -> None:
        print(text, flush=True)

    def _show_share(self, fraction: float, step: str) -> None:
        self._tell(step, f"{step} {fraction:.0%}")

    def _show_batch(self, epoch: int, text: str) -> None:
        self._tell(f"epoch {epoch}", text)

    def _tell(self, part: str, comment: str) -> None:
        if self._began is None:
            self._began = self.clock()
            print("<filter-start>\n<filter-name>UNetTrainer</filter-name>\n</filter-start>")
        if part == self._told[1] and self.position < min(1.0, self._told[0] + self._STEP):
            return
        self._told = (self.position, part)
        # Those who listen read XML; a bare < would end the tag for them.
        print(
            f"<filter-progress>{self.position:.4f}</filter-progress>\n"
            f"<filter-comment>{html.escape(comment, quote=False)}</filter-comment>",
            flush=True,
        )

    def close(self) -> None:
        if self._began is not None:
            print(
                "<filter-end>\n<filter-name>UNetTrainer</filter-name>\n"
                f"<filter-time>{self.clock() - self._began:.1f}</filter-time>\n</filter-end>",
                flush=True,
            )
            self._began = None


def choose(kind: str) -> Progress:
    """What ``--progress`` names; ``auto`` is a bar in a terminal and lines elsewhere."""
    if kind == "auto":
        kind = "bar" if sys.stderr is not None and sys.stderr.isatty() else "lines"
    kinds: dict[str, type[Progress]] = {
        "bar": Bars,
        "lines": Lines,
        "slicer": Slicer,
        "none": Silent,
    }
    return kinds[kind]()


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


@contextmanager
def stderr_to_stdout() -> Iterator[None]:
    """Let whatever anyone prints on standard error come out on standard output.

    That goes for C++ libraries and child processes too. Slicer logs every word on a module's
    standard error as an error and shows it in red.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(1, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
