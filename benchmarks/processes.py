"""Running a command as a user would, and what it took: seconds and memory.

Nothing large is imported here: on Linux a new process inherits the peak of the memory of the one
that starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


@dataclass(frozen=True)
class Run:
    """A process that has ended.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of all cores together.
        peak_mb: memory of the largest of its processes, in MB.
        lines: of its standard output.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    lines: list[str]


class Failed(Exception):
    """A command that ended with an error."""


def run(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    cores: int | None = None,
) -> Run:
    """Run a command to its end.

    Args:
        environment: what is different from this process's.
        cores: it may use so many; None for all.

    Raises:
        Failed: its exit code is not 0.
    """
    with tempfile.TemporaryFile() as errors, held_to(cores):
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdout is not None
        with process.stdout as stream:
            lines = stream.read().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace")
    if process.returncode:
        raise Failed(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{said}")
    return Run(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss * _PEAK_UNIT / 1e6,
        lines=lines,
    )


def cores_here() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def held_to(cores: int | None) -> Iterator[None]:
    """Processes started meanwhile may use so many cores; where a system knows no such thing, all.

    Only what starts them is held, and only while it does.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
