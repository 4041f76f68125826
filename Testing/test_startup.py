"""Slicer loads the module at every start, and `--help` answers at once: neither waits for more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTING = Path(__file__).resolve().parent
KIDNEYSEG = TESTING.parent / "KidneySeg"

# What takes its time to load, of what segmenting, training and drawing need.
HEAVY = {
    "torch", "openvino", "monai", "scipy", "lightning", "cc3d", "safetensors", "matplotlib", "PIL",
    "skimage",
}  # fmt: skip


def more(code: str) -> set[str]:
    """The words that some code prints after `more:`, in a new process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (KIDNEYSEG, TESTING)))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("more:"))
    return set(line.split()[1:])


def loaded(code: str) -> set[str]:
    """The packages that are loaded after some code in a new process."""
    return more(f"{code}\nprint('more:', *{{name.partition('.')[0] for name in sys.modules}})")


def answer(*arguments: str) -> str:
    return (
        "from KidneySegLib.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit as stop: assert stop.code == 0"
    )


@pytest.mark.parametrize("command", ["", "segment", "evaluate", "overlay", "export", "models"])
def test_help_loads_none_of_what_computes(command):
    found = loaded(answer(*command.split(), "--help"))
    assert "KidneySegLib" in found
    assert not found & {*HEAVY, "numpy", "SimpleITK"}


def test_the_help_of_a_batch_loads_none_of_what_computes():
    code = answer("--help").replace("KidneySegLib.cli", "KidneySegLib.batch")
    assert not loaded(code) & {*HEAVY, "numpy", "SimpleITK"}


def test_loading_and_opening_the_module_in_slicer_loads_none_of_what_computes(tmp_path):
    """What Slicer itself has loaded before does not count."""
    pythonqt = pytest.importorskip("pythonqt", reason="the stand-in for Slicer's Qt is not there")
    if pythonqt.why_not():
        pytest.skip(pythonqt.why_not())

    def loaded_by(action: str) -> set[str]:
        return more(
            "import os; os.environ['QT_QPA_PLATFORM'] = 'offscreen'\n"
            "import pythonqt\n"
            "from pathlib import Path\n"
            f"with pythonqt.session(Path({str(tmp_path)!r})) as session:\n"
            "    before = set(sys.modules)\n"
            f"    session.{action}({str(KIDNEYSEG / 'KidneySeg.py')!r})\n"
            "    after = set(sys.modules)\n"
            "print('more:', *{name.partition('.')[0] for name in after - before})"
        )

    loading, opening = loaded_by("load"), loaded_by("open")
    assert "KidneySeg" in loading and not loading & {*HEAVY, "SimpleITK"}
    assert "KidneySegLib" in opening and not opening & HEAVY
