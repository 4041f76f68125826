"""The command ``kidneyseg``: its parser, how it stops, what it says of an error.

What each command does is in its file of `KidneySegLib.commands`.
"""

from __future__ import annotations

import argparse
import locale
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from KidneySegLib import __version__
from KidneySegLib.commands import COMMANDS, train
from KidneySegLib.errors import Cancelled, KidneySegError, UsageError


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
    take_any_name()
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser(training=given[:1] == [train.NAME]).parse_args(given)
    try:
        with own_stderr(), _stopped_by_sigterm():
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


def take_any_name() -> None:
    """Print names of files that do not fit the terminal's encoding, and open them on Windows.

    There ITK hands names in UTF-8 to the C library, which takes them for the code page of the
    machine; that cannot open what lies below ``C:\\Users\\Jürgen``.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.platform == "win32":
        with suppress(locale.Error):  # before Windows 10 1803, which knows no UTF-8
            locale.setlocale(locale.LC_CTYPE, ".UTF8")


@contextmanager
def own_stderr() -> Iterator[None]:
    """Give what we say a way to standard error of its own.

    Reading a file turns descriptor 2 away from the screen, for the C++ libraries print there; that
    must not swallow what another thread says meanwhile.
    """
    stream = sys.stderr
    try:
        own = os.dup(2) if stream.fileno() == 2 else -1
    except (AttributeError, OSError, ValueError):  # none, that of Slicer or of a test
        own = -1
    if own < 0:
        yield
        return
    stream.flush()
    with open(own, "w", buffering=1, encoding=stream.encoding, errors=stream.errors) as ours:
        sys.stderr = ours
        try:
            yield
        finally:
            sys.stderr = stream


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
    for command in COMMANDS:
        added = commands.add_parser(
            command.NAME, help=command.HELP, description=command.HELP, parents=[common]
        )
        added.set_defaults(run=command.run)
        if training or command.NAME != train.NAME:
            command.add_arguments(added)
    return top
