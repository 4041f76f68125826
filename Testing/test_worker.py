"""The worker process: progress, errors, cancelling, crashes, and nothing left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import SimpleITK as sitk

from KidneySegLib.commands import segment as segment_command
from KidneySegLib.errors import KidneySegError
from KidneySegLib.worker import Done, Line, Progress, Worker, check_space, find_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")


@pytest.fixture
def parent(tmp_path) -> Path:
    """A temporary folder as a user far from ASCII has it."""
    folder = tmp_path / "temporäre Dateien 腎臓"
    folder.mkdir()
    return folder


@pytest.fixture
def python(tmp_path):
    """Makes a program that stands in for Python and runs the given source instead."""

    def make(source: str) -> str:
        path = tmp_path / "python-stand-in"
        lines = f"#!{sys.executable}\nimport json, os, signal, sys, time\n{source}\n"
        path.write_text(lines, encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


def events_of(worker: Worker) -> list:
    """All events until the end, as a program that polls sees them."""
    events: list = []
    while not (events and isinstance(events[-1], Done)):
        events += worker.poll()
        time.sleep(0.01)
    return events


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def written(path: Path) -> str:
    """What a process writes into a file, once it is there."""
    while not path.is_file() or not path.read_text().strip():
        time.sleep(0.01)
    return path.read_text()


def test_a_run_tells_its_progress_and_leaves_labels_until_it_is_closed(parent, toy_ct, toy_model):
    with Worker(parent) as worker:
        labels = worker.folder / "labels.nrrd"
        files = ["segment", toy_ct, "--output", labels, "--model", toy_model.folder]
        worker.start([*files, "--device", "cpu", "--progress", "lines", "--stop-with-stdin"])
        events = events_of(worker)
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(labels)))
        assert worker.wait() == Done(0)
    shares = [event.share for event in events if isinstance(event, Progress)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {event.step for event in events if isinstance(event, Progress)} >= {"read", "predict"}
    assert any(isinstance(event, Line) and "left" in event.text for event in events)
    assert events[-1] == Done(0)
    assert set(found.ravel()) == {0, 1, 2}
    assert list(parent.iterdir()) == []


def test_an_error_of_the_worker_comes_out_as_its_own_sentence(parent, tmp_path, toy_model):
    missing = tmp_path / "no such CT.nii.gz"
    worker = Worker(parent)
    files = ["segment", missing, "--output", worker.folder / "labels.nrrd"]
    worker.start([*files, "--model", toy_model.folder, "--progress", "lines", "--stop-with-stdin"])
    done = worker.wait()
    assert done.code == 3
    assert str(missing) in done.error
    assert not done.error.startswith("error")
    assert f"error: {done.error}" in worker.log
    assert list(parent.iterdir()) == []


def test_cancel_ends_the_real_command_by_itself_though_a_launcher_is_in_between(
    parent, python, tmp_path, toy_ct, toy_model
):
    launcher = python(
        "import subprocess\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([{sys.executable!r}, *sys.argv[1:]])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "sys.exit(child.wait())"
    )
    worker = Worker(parent, launcher)
    files = ["segment", toy_ct, "--output", worker.folder / "labels.nrrd"]
    worker.start([*files, "--model", toy_model.folder, "--progress", "lines", "--stop-with-stdin"])
    pid = int(written(tmp_path / "pid"))
    while not any(isinstance(event, Progress) for event in worker.poll()):
        time.sleep(0.01)
    worker.cancel()
    assert worker.wait().cancelled
    assert not alive(pid)
    assert not alive(worker._process.pid)
    assert list(parent.iterdir()) == []


def test_cancel_kills_the_whole_tree_where_nobody_listens(parent, python, tmp_path):
    stubborn = python(
        "import subprocess\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)"
    )
    worker = Worker(parent, stubborn)
    worker.start([])
    pids = [int(text) for text in written(tmp_path / "pids").split()]
    worker.cancel()
    assert worker.wait().cancelled
    assert [alive(pid) for pid in pids] == [False, False]
    assert list(parent.iterdir()) == []
    assert worker.poll()[-1].cancelled


def test_a_launcher_that_goes_first_does_not_count_as_the_end(parent, python):
    leaving = python(
        "if os.fork():\n    sys.exit(0)\ntime.sleep(0.3)\nprint('the last', flush=True)"
    )
    with Worker(parent, leaving) as worker:
        worker.start([])
        events = events_of(worker)
    assert events == [Line("the last"), Done(0)]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory"),
        ("sys.exit(128 + 11)", "SIGSEGV"),
        ("sys.exit(77)", "exit code 77"),
    ],
)
def test_a_crash_is_a_sentence_with_the_log(parent, python, source, told):
    worker = Worker(parent, python(f"print('what came before', file=sys.stderr)\n{source}"))
    worker.start([])
    done = worker.wait()
    assert told in done.error
    assert done.error.endswith(".")
    assert "what came before" in worker.log
    assert list(parent.iterdir()) == []


def test_lines_that_are_no_progress_go_to_the_log(parent, python):
    with Worker(parent, python("print('[1]'); print('{\"progress\": 1}'); print('ö')")) as worker:
        worker.start([])
        assert events_of(worker)[:-1] == [Line("[1]"), Line('{"progress": 1}'), Line("ö")]


def test_a_python_that_is_not_there_is_a_sentence_and_leaves_no_folder(parent):
    with pytest.raises(KidneySegError, match=r"cannot be started .*install 3D Slicer again\.$"):
        Worker(parent, "/nowhere/PythonSlicer").start([])
    assert list(parent.iterdir()) == []


def test_a_temporary_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(KidneySegError, match="cannot be written to"):
        Worker(tmp_path / "missing")


def test_too_little_room_is_told_before_anything_is_written(parent):
    with Worker(parent) as worker:
        check_space(worker.folder, 1)
        with pytest.raises(KidneySegError, match="free space and 1000000000000 MB are needed"):
            check_space(worker.folder, 10**18)


def test_a_worker_that_is_forgotten_leaves_no_folder(parent):
    worker = Worker(parent)
    assert worker.folder.is_dir()
    del worker
    gc.collect()
    assert list(parent.iterdir()) == []


def test_the_command_stops_when_the_program_that_started_it_dies(tmp_path, toy_ct, toy_model):
    command = [sys.executable, "-m", "KidneySegLib", "segment", str(toy_ct), "--stop-with-stdin"]
    command += ["--model", str(toy_model.folder), "--output", str(tmp_path / "labels.nrrd")]
    reading, writing = os.pipe()
    process = subprocess.Popen(command, stdin=reading, stderr=subprocess.PIPE, text=True)
    os.close(reading)
    os.close(writing)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in errors or not errors
    assert not list(tmp_path.glob("*labels*"))


def test_on_windows_no_read_of_standard_input_is_left_waiting(monkeypatch):
    """The first import of NumPy would wait for it: github.com/numpy/numpy/issues/24290."""
    looks = iter([(0, 0), (0, 0), BrokenPipeError()])

    def peek(handle, size):
        assert (handle, size) == (70, 0)
        look = next(looks)
        if isinstance(look, OSError):
            raise look
        return look

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "_winapi", types.SimpleNamespace(PeekNamedPipe=peek))
    handles = types.SimpleNamespace(get_osfhandle=lambda descriptor: 70 + descriptor)
    monkeypatch.setitem(sys.modules, "msvcrt", handles)
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("a read that waits"))
    with pytest.raises(BrokenPipeError):
        segment_command._wait_for_end_of_input()
    assert next(looks, None) is None


def test_the_python_inside_slicer_is_the_one_that_runs_scripts(tmp_path, monkeypatch):
    slicer_python = tmp_path / "PythonSlicer"
    slicer_python.write_text("#!/bin/sh\n")
    slicer_python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", "/opt/Slicer/bin/SlicerApp-real")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python() == str(slicer_python)
    slicer_python.unlink()
    with pytest.raises(KidneySegError, match="PythonSlicer was not found"):
        find_python()
    monkeypatch.setattr(sys, "executable", str(slicer_python))
    assert find_python() == str(slicer_python)
