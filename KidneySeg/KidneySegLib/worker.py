"""The command `kidneyseg` in a process of its own, so that a window stays alive.

A crash in there is an error message out here. The process ends by itself when its standard input
closes, which also happens when the program that started it dies; killing the process tree is the
last resort, since the program that is started may only be a launcher of the one that works
(`PythonSlicer` is).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from KidneySegLib.errors import Cancelled, KidneySegError

# A worker that is asked to stop needs up to half a second to do so by itself.
GRACE_SECONDS = 0.7
_POLL_SECONDS = 0.02
_YIELD_SECONDS = 0.002
# What a launcher or a shell returns for a program that a signal ended.
_SHELL_SIGNAL = 128


@dataclass(frozen=True)
class Progress:
    """How far the worker is: the share done, 0 to 1, and the step's name."""

    share: float
    step: str


@dataclass(frozen=True)
class Line:
    """A line for people, such as a warning."""

    text: str


@dataclass(frozen=True)
class Done:
    """The worker has ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        error: a sentence on what went wrong, or None.
        cancelled: it was stopped by `Worker.cancel`.
    """

    code: int
    error: str | None = None
    cancelled: bool = False


Event = Progress | Line | Done


class Worker:
    """One run of `kidneyseg` in a process of its own, with a folder for its temporary files.

    The folder is there from the beginning, so that the input can be written into it, and is gone
    after `cancel`, a failed run, `close`, or when the program ends.

    Args:
        parent: where to make the folder; None for the system's own temporary folder.
        python: the Python to run; None for the one of this program.

    Raises:
        KidneySegError: no folder can be made there.

    Example:
        >>> with Worker() as worker:  # doctest: +SKIP
        ...     worker.start(["segment", "ct.nii.gz", "--output", worker.folder / "labels.nrrd"])
        ...     worker.wait()
        Done(code=0, error=None, cancelled=False)
    """

    def __init__(self, parent: Path | str | None = None, python: str | None = None):
        self.python = python
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="KidneySeg-", dir=parent))
        except OSError as error:
            raise _no_folder(Path(parent or tempfile.gettempdir()), error) from error
        self.log: list[str] = []
        self._remove_folder = weakref.finalize(self, shutil.rmtree, self.folder, True)
        self._events: queue.SimpleQueue[Progress | Line] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[threading.Thread] = []
        self._error: str | None = None
        self._done: Done | None = None
        self._told_done = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended yet."""
        return self._process is not None and self._done is None

    def start(self, arguments: Sequence[str | Path]) -> None:
        """Run `kidneyseg` with these arguments, which name files by their whole paths.

        Raises:
            KidneySegError: there is no Python to run, or it cannot be started.
        """
        if self._process is not None:
            raise ValueError("A worker runs once; make another one.")
        python = self.python or find_python()
        command = [python, "-m", "KidneySegLib", *map(str, arguments)]
        self.log.append(" ".join(command))
        # From its parent folder the package is found whatever a launcher does to PYTHONPATH.
        folder = Path(__file__).resolve().parent.parent
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=_environment(),
                **_own_group(),
            )
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise KidneySegError(
                f"{python} cannot be started ({reason}); install 3D Slicer again."
            ) from error
        assert self._process.stdout is not None and self._process.stderr is not None
        for stream, take in (
            (self._process.stdout, self._take_output),
            (self._process.stderr, self._take_message),
        ):
            reader = threading.Thread(target=_read_lines, args=(stream, take), daemon=True)
            reader.start()
            self._readers.append(reader)

    def poll(self) -> list[Event]:
        """What has happened since the last call; `Done` comes once and last."""
        # An event loop of C++ keeps Python's lock to itself, and the readers need it for a moment.
        time.sleep(_YIELD_SECONDS)
        ended = self._look()  # first: what is read after it is complete
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        if ended and self._done is not None and not self._told_done:
            self._told_done = True
            events.append(self._done)
        return events

    def wait(self, timeout_seconds: float | None = None) -> Done | None:
        """Wait for the end; None where it has not come within the time."""
        if self._process is None:
            raise ValueError("The worker was not started.")
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._look():
            if end is not None and time.monotonic() >= end:
                return None
            time.sleep(_POLL_SECONDS)
        return self._done

    def cancel(self) -> None:
        """Stop the worker, within a second, and remove its files; does nothing after its end."""
        if self._process is not None and self._done is None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            ended = self.wait(GRACE_SECONDS) is not None
            if not ended:
                _kill_tree(self._process)
                self.wait(GRACE_SECONDS)
            code = self._done.code if self._done is not None else Cancelled.exit_code
            self._done = Done(code, cancelled=True)
        self._remove_folder()

    def close(self) -> None:
        """Stop the worker if it runs, and remove the folder. May be called twice."""
        self.cancel()

    def _look(self) -> bool:
        """Whether the worker has ended; finds out how."""
        if self._done is not None:
            return True
        # A launcher may have ended while what it launched still holds the other ends of the pipes.
        if (
            self._process is None
            or self._process.poll() is None
            or any(reader.is_alive() for reader in self._readers)
        ):
            return False
        code = self._process.returncode
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if code == 0:
            self._done = Done(0)
        else:
            self._done = Done(code, self._error or _ended_by(code))
            self._remove_folder()
        return True

    def _take_output(self, text: str) -> None:
        try:
            told = json.loads(text)
            event = Progress(float(told["progress"]), str(told["step"]))
        except (ValueError, TypeError, KeyError):
            self._take_message(text)  # some library prints; it does no harm
            return
        self._events.put(event)

    def _take_message(self, text: str) -> None:
        self.log.append(text)
        if text.startswith("error: "):
            self._error = text.removeprefix("error: ")
        self._events.put(Line(text))


def find_python() -> str:
    """The Python that runs scripts, which inside 3D Slicer is `PythonSlicer`.

    Raises:
        KidneySegError: there is none.
    """
    # Slicer puts PythonSlicer here and its folder on the PATH; older versions only the latter.
    if Path(sys.executable).name.lower().startswith("python"):
        return sys.executable
    python = shutil.which("PythonSlicer")
    if python is None:
        raise KidneySegError(
            "PythonSlicer was not found, which runs the segmentation; install 3D Slicer again."
        )
    return python


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise KidneySegError unless the disk of a folder has that much room.

    ITK does not notice a full disk, so this is asked before anything is written.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise KidneySegError(
            f"The temporary folder {folder.parent} has {free / 1e6:.0f} MB of free space and "
            f"{needed_bytes / 1e6:.0f} MB are needed; free some space, or choose another temporary "
            "folder in the application settings."
        )


def _no_folder(parent: Path, error: OSError) -> KidneySegError:
    reason = error.strerror or str(error)
    return KidneySegError(
        f"The temporary folder {parent} cannot be written to ({reason}); free some space, or "
        "choose another temporary folder in the application settings."
    )


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONIOENCODING"] = "utf-8"
    environment["PYTHONUNBUFFERED"] = "1"
    environment.pop("PYTHONSAFEPATH", None)  # with it, -m would not look into the folder
    return environment


def _own_group() -> dict[str, Any]:
    """Options that make the process the head of a group, which can be ended as a whole."""
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
        return {"creationflags": flags}
    return {"start_new_session": True}


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    if sys.platform == "win32":
        command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(
            command, capture_output=True, creationflags=subprocess.CREATE_NO_WINDOW, check=False
        )
        return
    # The group outlives its head as long as one of its processes runs.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_lines(stream: IO[bytes], take: Any) -> None:
    with stream:
        for line in stream:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                take(text)


def _ended_by(code: int) -> str:
    """A sentence on a worker that ended without one of its own."""
    number = -code if code < 0 else code - _SHELL_SIGNAL
    try:
        name = signal.Signals(number).name if number > 0 else ""
    except ValueError:
        name = ""
    if name == "SIGKILL":
        return (
            "The segmentation was ended by the system, most likely because the memory ran out; "
            "close other programs or volumes and try again."
        )
    how = f"signal {name}" if name else f"exit code {code}"
    return f"The segmentation ended unexpectedly ({how}); look into the log and try again."
