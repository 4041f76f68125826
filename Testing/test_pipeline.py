"""CTs one after the other: what overlaps, how much is held, and what an error or a stop does."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import pytest

from KidneySegLib.errors import Cancelled
from KidneySegLib.pipeline import Turn, pipeline

# Only a test that fails waits so long.
PATIENCE_S = 30


class Volume:
    """Stands for a CT: something whose life can be watched."""

    def __init__(self, case: str):
        self.case = case


class Walk:
    """Notes what happens; events tell the other threads that it did."""

    def __init__(self, **hooks: Callable) -> None:
        self.hooks = hooks
        self.happened: list[tuple[str, str]] = []
        self.events: dict[tuple[str, str], threading.Event] = {}
        self.alive: weakref.WeakSet[Volume] = weakref.WeakSet()
        self.threads: dict[str, set[int]] = {}
        self.errors: dict[str, str] = {}
        self.seconds: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def event(self, what: str, case: str) -> threading.Event:
        with self._lock:
            return self.events.setdefault((what, case), threading.Event())

    def wait(self, what: str, case: str) -> None:
        assert self.event(what, case).wait(PATIENCE_S), f"{case}: {what} never happened"

    def note(self, what: str, case: str) -> None:
        self.threads.setdefault(what, set()).add(threading.get_ident())
        self.happened.append((what, case))
        self.event(what, case).set()
        if what in self.hooks:
            self.hooks[what](self, case)

    def ready(self) -> None:
        self.note("ready", "")

    def read(self, case: str, cancelled: Callable[[], bool]) -> Volume:
        self.cancelled = cancelled
        self.note("read", case)
        volume = Volume(case)
        self.alive.add(volume)
        self.event("was read", case).set()
        return volume

    def compute(self, turn: Turn[str], read: Volume) -> str:
        assert read.case == turn.case
        self.note("compute", turn.case)
        return read.case.upper()

    def write(self, turn: Turn[str], done: str) -> None:
        assert done == turn.case.upper()
        self.note("write", turn.case)

    def ended(self, turn: Turn[str], done: str | None, error: Exception | None) -> None:
        self.seconds[turn.case] = set(turn.seconds)
        if error is not None:
            self.errors[turn.case] = str(error)
        self.note("ended", turn.case)

    def order(self, what: str) -> str:
        return "".join(case for one, case in self.happened if one == what)


def failing(*cases: str) -> Callable:
    def fail(walk: Walk, case: str) -> None:
        if case in cases:
            raise ValueError(f"{case} is bad")

    return fail


# --- What overlaps ----------------------------------------------------------------------------


def test_the_next_is_read_while_the_present_one_is_computed():
    def compute(walk: Walk, case: str) -> None:
        if case != "c":
            walk.wait("was read", chr(ord(case) + 1))

    walk = Walk(compute=compute)
    pipeline("abc", walk)
    assert walk.order("ended") == "abc"


def test_the_first_is_read_while_computing_is_made_ready():
    walk = Walk(ready=lambda walk, _: walk.wait("was read", "a"))
    pipeline("ab", walk)
    assert walk.order("ready") == "" and walk.order("ended") == "ab"


def test_the_last_is_written_while_the_present_one_is_computed():
    def compute(walk: Walk, case: str) -> None:
        if case != "a":
            walk.wait("write", chr(ord(case) - 1))

    def write(walk: Walk, case: str) -> None:
        if case != "c":
            walk.wait("compute", chr(ord(case) + 1))

    walk = Walk(compute=compute, write=write)
    pipeline("abc", walk)
    assert walk.order("ended") == "abc"


def test_no_more_than_one_is_read_ahead():
    def compute(walk: Walk, case: str) -> None:
        if case != "f":
            walk.wait("was read", chr(ord(case) + 1))
        # The reader has nothing to do, and still does not go on to the next but one.
        assert not walk.event("read", chr(ord(case) + 2)).wait(0.05)

    walk = Walk(compute=compute)
    pipeline("abcdef", walk)
    assert walk.errors == {}


def test_no_more_than_two_volumes_are_held():
    held = []

    def compute(walk: Walk, case: str) -> None:
        if case != "f":
            walk.wait("was read", chr(ord(case) + 1))
        held.append(len(walk.alive))

    walk = Walk(compute=compute, write=lambda walk, case: held.append(len(walk.alive)))
    pipeline("abcdef", walk)
    assert max(held) == 2 and not walk.alive


def test_computing_stays_in_the_calling_thread_and_writing_on_demand():
    here = threading.get_ident()
    walk = Walk()
    pipeline("abc", walk)
    assert walk.threads["compute"] == walk.threads["ready"] == {here}
    assert len(walk.threads["read"] | walk.threads["write"] | {here}) == 3
    assert walk.threads["write"] == walk.threads["ended"]
    walk = Walk()
    pipeline("abc", walk, write_aside=False)
    assert walk.threads["write"] == walk.threads["ended"] == {here}


def test_each_part_is_timed():
    walk = Walk(read=failing("b"), compute=failing("c"))
    pipeline("abcd", walk)
    parts = {"read", "compute", "write"}
    assert walk.seconds == {"a": parts, "b": {"read"}, "c": {"read", "compute"}, "d": parts}


def test_nothing_is_done_for_no_cts():
    walk = Walk()
    pipeline("", walk)
    assert walk.happened == []


# --- What goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("aside", [True, False])
@pytest.mark.parametrize("part", ["read", "compute", "write"])
@pytest.mark.parametrize("bad", ["a", "b", "d", "ab", "abcd"])
def test_a_bad_ct_is_told_in_its_turn_and_the_others_go_on(part, bad, aside):
    walk = Walk(**{part: failing(*bad)})
    pipeline("abcd", walk, write_aside=aside)
    assert walk.order("ended") == "abcd"
    assert walk.errors == {case: f"{case} is bad" for case in bad}
    assert walk.order("write") == "".join(c for c in "abcd" if part == "write" or c not in bad)
    assert not walk.alive


@pytest.mark.parametrize("aside", [True, False])
def test_what_is_wrong_with_the_telling_ends_all(aside):
    walk = Walk(ended=failing("b"))
    with pytest.raises(ValueError, match="b is bad"):
        pipeline("abcdef", walk, write_aside=aside)
    assert walk.order("ended") == "ab" and "e" not in walk.order("compute")


def test_what_cannot_be_made_ready_ends_all():
    walk = Walk(ready=failing(""))
    with pytest.raises(ValueError):
        pipeline("ab", walk)
    assert walk.order("compute") == walk.order("ended") == ""


# --- Stopping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Cancelled("Cancelled.")])
def test_a_stop_lets_writing_end_and_keeps_nothing_else_waiting(stop):
    def read(walk: Walk, case: str) -> None:
        if case == "c":
            while not walk.cancelled():
                pass

    def compute(walk: Walk, case: str) -> None:
        if case == "b":
            walk.wait("write", "a")
            walk.wait("read", "c")
            raise stop

    def write(walk: Walk, case: str) -> None:
        while not walk.cancelled():  # still at it when the stop comes
            pass

    walk = Walk(read=read, compute=compute, write=write)
    with pytest.raises(type(stop)):
        pipeline("abcd", walk)
    assert walk.order("ended") == "a" and walk.errors == {}
    assert walk.order("read") == "abc" and walk.order("compute") == "ab"
