"""What is installed into 3D Slicer, when, in which order, and what is said where it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from KidneySegLib.errors import Cancelled, KidneySegError
from KidneySegLib.installing import (
    REQUIREMENTS,
    SlicerInstaller,
    ensure,
    missing,
    read_requirements,
)

PACKAGES = ["connected-components-3d>=3.16", "safetensors>=0.4"]
TORCH = "torch>=2.2"


class Fake:
    """An installer that keeps a diary instead of fetching anything."""

    def __init__(self, has=(), answer=True, extension=True, fails=None, quietly=False):
        self.there = set(has)
        self.answer = answer
        self.extension = extension
        self.fails = fails
        self.quietly = quietly
        self.diary: list = []

    def has(self, requirement):
        return requirement in self.there

    def can_install_torch(self):
        return self.extension

    def ask(self, question, details):
        self.diary.append(("ask", details.splitlines()))
        return self.answer

    def install(self, requirements):
        self._install(list(requirements))

    def install_torch(self, version):
        self._install([f"torch{version}"])

    def _install(self, requirements):
        self.diary.append(("install", requirements))
        if self.fails in requirements:
            if self.quietly:
                return
            raise subprocess.CalledProcessError(1, "pip install")
        self.there.update(requirements)


def test_with_everything_there_nothing_is_asked_and_nothing_fetched():
    fake = Fake(has=[*PACKAGES, TORCH])
    assert not ensure(fake, PACKAGES, device="cuda")
    assert fake.diary == []


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_pytorch_is_neither_asked_for_nor_fetched_where_the_processor_computes(device):
    fake = Fake(extension=False)
    assert ensure(fake, PACKAGES, device=device)
    assert fake.diary == [("ask", PACKAGES), ("install", PACKAGES)]
    assert not ensure(fake, PACKAGES, device=device)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_gpu_needs_pytorch(device):
    fake = Fake(has=PACKAGES)
    assert ensure(fake, PACKAGES, device=device)
    assert fake.diary == [("ask", [TORCH]), ("install", [TORCH])]


def test_it_asks_once_and_installs_small_things_before_pytorch():
    fake = Fake()
    assert ensure(fake, PACKAGES, device="cuda")
    assert fake.diary == [
        ("ask", [*PACKAGES, TORCH]),
        ("install", PACKAGES),
        ("install", [TORCH]),
    ]
    assert not ensure(fake, PACKAGES, device="cuda")
    assert len(fake.diary) == 3


@pytest.mark.parametrize("there", [[TORCH], PACKAGES, [*PACKAGES[:1], TORCH]])
def test_only_what_is_missing_is_installed(there):
    fake = Fake(has=there)
    wanted = [one for one in (*PACKAGES, TORCH) if one not in there]
    assert missing(fake, PACKAGES, "cuda") == wanted
    ensure(fake, PACKAGES, device="cuda")
    assert fake.diary == [("ask", wanted), ("install", wanted)]


def test_no_means_no_and_says_how_to_do_it_by_hand():
    fake = Fake(answer=False)
    with pytest.raises(Cancelled, match="Nothing was installed") as told:
        ensure(fake, PACKAGES, device="cuda")
    assert [kind for kind, _ in fake.diary] == ["ask"]
    assert f"slicer.packaging.pip_install({PACKAGES!r})" in str(told.value)
    assert "installTorch(torchVersionRequirement='>=2.2')" in str(told.value)


def test_a_script_whose_user_has_agreed_is_not_asked():
    fake = Fake()
    ensure(fake, PACKAGES, ask=False, device="cuda")
    assert [kind for kind, _ in fake.diary] == ["install", "install"]


def test_without_the_pytorch_extension_nothing_is_fetched_at_all():
    fake = Fake(extension=False)
    with pytest.raises(KidneySegError, match=r"extension PyTorch.*Extensions Manager"):
        ensure(fake, PACKAGES, device="cuda")
    assert fake.diary == []


def test_the_pytorch_extension_is_not_missed_where_pytorch_is_there():
    fake = Fake(has=[TORCH], extension=False)
    assert ensure(fake, PACKAGES, device="cuda")


@pytest.mark.parametrize("quietly", [False, True], ids=["with an error", "without a word"])
@pytest.mark.parametrize("fails", [PACKAGES[1], TORCH])
def test_a_failure_says_what_failed_and_how_to_do_it_by_hand(fails, quietly):
    fake = Fake(fails=fails, quietly=quietly)
    with pytest.raises(KidneySegError) as told:
        ensure(fake, PACKAGES, device="cuda")
    sentence = str(told.value)
    assert sentence.startswith(PACKAGES[0] if fails != TORCH else TORCH)
    assert "by hand in the Python console: " in sentence
    assert ("pip_install" in sentence) == (fails != TORCH)
    assert ("exit status 1" in sentence) != quietly
    # After a failure of the small ones, nobody waits for PyTorch.
    assert (("install", [TORCH]) in fake.diary) == (fails == TORCH)


def test_what_was_installed_in_spite_of_an_error_counts():
    class Noisy(Fake):
        def _install(self, requirements):
            super()._install(requirements)
            raise RuntimeError("a warning in disguise")

    assert ensure(Noisy(), PACKAGES)


def test_the_requirements_are_the_engines_needs_but_for_what_slicer_brings():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    needs = re.findall(r'"(.+?)"', listed.group(1))
    brought = {"numpy", "SimpleITK"}
    wanted = [one for one in needs if re.match(r"[\w-]+", one).group() not in brought]
    assert sorted(read_requirements(REQUIREMENTS)) == sorted(wanted)
    assert TORCH not in needs
    assert re.search(r'^gpu = \["(.+?)"\]', text, re.MULTILINE).group(1) == TORCH


# --- inside Slicer ----------------------------------------------------------------------------


class Slicer:
    """As much of the module `slicer` as the installer uses; keeps what was called."""

    def __init__(self, window=True, testing=False):
        self.called: list = []
        self.app = types.SimpleNamespace(testingEnabled=lambda: testing)
        self.util = types.SimpleNamespace(
            mainWindow=lambda: object() if window else None,
            confirmOkCancelDisplay=lambda text, **more: self.called.append((text, more)) or True,
        )
        self.packaging = types.SimpleNamespace(
            pip_check=lambda requirement: requirement == "there>=1",
            pip_ensure=lambda requirements, **more: self.called.append((requirements, more)),
        )


@pytest.fixture
def slicer(monkeypatch):
    def put(**choices) -> Slicer:
        made = Slicer(**choices)
        monkeypatch.setitem(sys.modules, "slicer", made)
        monkeypatch.setitem(sys.modules, "slicer.packaging", made.packaging)
        return made

    return put


@pytest.fixture
def extension(monkeypatch):
    """The module of the extension PyTorch."""
    made = types.ModuleType("PyTorchUtils")
    made.__spec__ = types.SimpleNamespace()
    made.called = []

    class Logic:
        def installTorch(self, **options):
            made.called.append(options)

    made.PyTorchUtilsLogic = Logic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", made)
    return made


def test_in_a_window_slicer_asks_and_shows_what_pip_does(slicer):
    made = slicer()
    installer = SlicerInstaller()
    assert installer.ask("Install?", "a\nb")
    installer.install(("a", "b"))
    assert made.called[0] == ("Install?", {"windowTitle": "KidneySeg", "detailedText": "a\nb"})
    requirements, options = made.called[1]
    assert requirements == ["a", "b"]
    assert options["prompt_install"] is False  # asked already
    assert options["show_progress"] and options["prompt_restart"]


@pytest.mark.parametrize("choices", [{"window": False}, {"testing": True}], ids=str)
def test_where_nobody_can_answer_nobody_is_asked_and_nothing_fetched(slicer, extension, choices):
    made = slicer(**choices)
    with pytest.raises(Cancelled, match="Nothing was installed"):
        ensure(SlicerInstaller(), ["there>=1", "missing>=1"])
    assert made.called == []
    assert extension.called == []


def test_in_a_batch_no_dialog_opens(slicer):
    made = slicer(window=False)
    SlicerInstaller().install(["a"])
    options = made.called[0][1]
    assert not options["prompt_install"] and not options["prompt_restart"]
    assert not options["show_progress"]


def test_a_slicer_that_is_too_old_says_so(slicer, monkeypatch):
    slicer()
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    with pytest.raises(KidneySegError, match=r"install 3D Slicer 5\.12 or later"):
        ensure(SlicerInstaller(), ["there>=1"])


def test_slicer_is_asked_what_is_there(slicer):
    slicer()
    assert SlicerInstaller().has("there>=1")
    assert not SlicerInstaller().has("missing>=1")


def test_pytorch_comes_from_the_extension_and_without_a_second_question(extension):
    assert SlicerInstaller().can_install_torch()
    SlicerInstaller().install_torch(">=2.2")
    assert extension.called == [{"askConfirmation": False, "torchVersionRequirement": ">=2.2"}]


def test_the_extension_may_not_be_there():
    assert not SlicerInstaller().can_install_torch()
