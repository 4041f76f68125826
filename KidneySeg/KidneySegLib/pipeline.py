"""CTs one after the other: while one is computed, the next is read and the last is written.

Reading waits for the disk and unzips, writing zips and waits for the disk; both leave Python's lock
alone meanwhile, so that a thread for each costs computing little. At most three CTs are there at a
time, one in each hand. Computing stays in the thread that calls, the only one that Ctrl-C reaches.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Generic, Protocol, TypeVar

from KidneySegLib.errors import Cancelled

Case = TypeVar("Case")
Read = TypeVar("Read")
Done = TypeVar("Done")


@dataclass
class Turn(Generic[Case]):
    """One CT on its way.

    Attributes
    ----------
    number
        Counted from 0, in the order in which they come.
    seconds
        How long reading (``read``), computing (``compute``) and writing (``write``) it took, as far
        as it got, without the time for which it waited.
    """

    case: Case
    number: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = time.perf_counter() - began


class Walk(Protocol[Case, Read, Done]):
    """What is done with each CT."""

    def read(self, case: Case, cancelled: Callable[[], bool]) -> Read:
        """In the reader's thread; ``cancelled()`` becomes true when nobody waits any more."""

    def ready(self) -> None:
        """Once, while the first CT is read: what computing needs. An error of it ends all."""

    def compute(self, turn: Turn[Case], read: Read) -> Done:
        """In the calling thread."""

    def write(self, turn: Turn[Case], done: Done) -> None:
        """In the writer's thread, whole or not at all: nothing cuts it short."""

    def ended(self, turn: Turn[Case], done: Done | None, error: Exception | None) -> None:
        """After each CT, in their order, where writing happens.

        ``done`` is what was computed, if it was; ``error`` says why it was not, or not written. An
        error of this method ends all.
        """


def pipeline(
    cases: Sequence[Case], walk: Walk[Case, Read, Done], *, write_aside: bool = True
) -> None:
    """Read, compute and write each case; whatever goes wrong with one is told to `Walk.ended`.

    Parameters
    ----------
    write_aside
        False writes in the calling thread, for what must not leave it.

    Raises
    ------
    Exception
        What `Walk.ready` and `Walk.ended` raise.
    Cancelled, KeyboardInterrupt
        Somebody asked to stop. What is being written then is written to its end and told.
    """
    stopped = threading.Event()

    def read(turn: Turn[Case]) -> Read:
        with turn.timed("read"):
            return walk.read(turn.case, stopped.is_set)

    def end(turn: Turn[Case], done: Done | None, error: Exception | None) -> None:
        if done is not None:
            try:
                with turn.timed("write"):
                    walk.write(turn, done)
            # A defect of ours included: the other cases are waiting.
            except Exception as failure:
                error = failure
        walk.ended(turn, done, error)

    def computed(turn: Turn[Case], coming: Future[Read]) -> Done:
        scan = coming.result()
        with turn.timed("compute"):
            return walk.compute(turn, scan)

    turns = [Turn(case, number) for number, case in enumerate(cases)]
    if not turns:
        return
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            ahead: Future[Read] | None = reader.submit(read, turns[0])
            writing: Future[Any] | None = None
            walk.ready()
            for turn, following in zip_longest(turns, turns[1:]):
                # Read once the present one is: the reader has one pair of hands.
                coming, ahead = ahead, None if following is None else reader.submit(read, following)
                assert coming is not None
                done, error = None, None
                try:
                    done = computed(turn, coming)
                except Cancelled:
                    raise
                except Exception as failure:  # as above
                    error = failure
                coming = None  # and with it the CT, unless it is to be written
                if writing is not None:
                    writing.result()
                failed = error is not None
                if write_aside:
                    writing = writer.submit(end, turn, done, error)
                else:
                    end(turn, done, error)
                del done, error
                if failed:
                    gc.collect()
            if writing is not None:
                writing.result()
        finally:
            stopped.set()
            reader.shutdown(wait=False, cancel_futures=True)
