"""The three doors to training: the command, the Slicer module, its XML; and what they show."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import toys
from ctk_cli import CLIModule

from KidneySegLib import cli
from KidneySegLib.commands.train import TRAINING_PACKAGES
from UNetTrainerLib import progress as telling
from UNetTrainerLib.options import _AT_LEAST, _SHARES, DEFAULTS, Options, flag

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "UNetTrainer"
XML = TRAINER / "UNetTrainer.xml"

# UNetTrainer.py itself says how progress is told.
NOT_IN_SLICER = {"progress"}


def actions() -> dict[str, Any]:
    """The command line's flags, by the option they set."""
    commands = next(a for a in cli.parser()._actions if hasattr(a, "choices") and a.choices)
    train = commands.choices["train"]
    return {action.dest: action for action in train._actions if action.dest in DEFAULTS}


@pytest.fixture(scope="module")
def parameters() -> dict[str, Any]:
    """The XML's parameters, by their names."""
    return {parameter.name: parameter for parameter in CLIModule(str(XML)).parameters()}


# --- Flags, defaults, choices -----------------------------------------------------------------


def test_the_command_line_has_a_flag_for_every_option_and_no_other() -> None:
    found = actions()
    assert set(found) == {option.name for option in fields(Options)}
    for option in fields(Options):
        action = found[option.name]
        assert action.option_strings == [flag(option.name)]
        assert tuple(action.choices or ()) == option.metadata["choices"]
        assert action.required == (option.name in ("data", "output"))


def test_the_xml_has_the_flags_defaults_and_choices_of_the_command_line(parameters) -> None:
    assert list(parameters) == [name for name in DEFAULTS if name not in NOT_IN_SLICER]
    for name, action in actions().items():
        if name in NOT_IN_SLICER:
            continue
        parameter, default = parameters[name], DEFAULTS[name]
        assert parameter.longflag.lstrip("-") == name
        assert action.option_strings == ["--" + name.replace("_", "-")]
        assert (parameter.elements or None) == (list(action.choices) if action.choices else None)
        if isinstance(default, bool):
            assert parameter.typ == "boolean" and parameter.parseValue("false") is default
            assert not parameter.default
        elif isinstance(default, (int, float)):
            assert parameter.typ == ("integer" if isinstance(default, int) else "double")
            assert type(parameter.default) is type(default) and parameter.default == default
        else:
            assert parameter.typ in ("string", "string-enumeration", "directory")
            assert (parameter.default or "") == ("" if default == () else default)


def test_the_xml_keeps_to_the_limits_of_the_options(parameters) -> None:
    for name, low in _AT_LEAST.items():
        limits = parameters[name].constraints
        assert float(limits.minimum) == low, name
        assert float(limits.maximum) > DEFAULTS[name] and float(limits.step) > 0
    for name in _SHARES:
        limits = parameters[name].constraints
        assert float(limits.minimum) == 0 and 0.99 < float(limits.maximum) < 1


def test_slicer_can_read_the_xml() -> None:
    """What Slicer's own reader asks for, and ctk-cli does not."""
    text = XML.read_text(encoding="utf-8")
    assert text.startswith('<?xml version="1.0" encoding="utf-8"?>\n<executable>')
    root = ElementTree.fromstring(text)
    heads = ["category", "title", "description", "version", "documentation-url", "license",
             "contributor", "acknowledgements"]  # fmt: skip
    assert [child.tag for child in root if child.tag != "parameters"] == heads
    assert all((root.findtext(head) or "").strip() for head in heads)
    assert root.findtext("category") == "Segmentation"
    assert "not for clinical use" in (root.findtext("description") or "")
    groups = root.findall("parameters")
    titles = [(group.findtext("label") or "").lower() for group in groups]
    assert titles == list(dict.fromkeys(option.metadata["group"] for option in fields(Options)))
    for group, title in zip(groups, titles, strict=True):
        for parameter in group.findall("./*[name]"):
            for tag in ("name", "longflag"):
                assert re.fullmatch(r"[A-Za-z_]\w*", parameter.findtext(tag) or "", re.ASCII)
            assert parameter.findtext("label") and parameter.findtext("description")
            option = next(o for o in fields(Options) if o.name == parameter.findtext("name"))
            assert option.metadata["group"] == title


def test_cmake_lists_every_file_of_the_library() -> None:
    text = (TRAINER / "CMakeLists.txt").read_text()
    listed = re.findall(r"^\s+(UNetTrainerLib/\S+)$", text, re.MULTILINE)
    there = (
        path.relative_to(TRAINER).as_posix() for path in TRAINER.glob("UNetTrainerLib/**/*.py")
    )
    assert listed == sorted(there)


def test_the_packages_that_are_looked_for_are_those_that_pip_installs() -> None:
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = [re.match(r"[\w-]+", line)[0] for line in extra["train"]]  # type: ignore[index]
    assert sorted(TRAINING_PACKAGES) == sorted(names)


# --- The command ------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Options, Any]]:
    """What `train` is called with, in place of training."""
    calls: list[tuple[Options, Any]] = []

    class Room:
        @staticmethod
        def train(options: Options, progress: Any) -> None:
            calls.append((options, progress))

    monkeypatch.setitem(sys.modules, "UNetTrainerLib.train", Room)
    return calls


def test_only_what_was_said_overrides_a_preset(asked) -> None:
    command = ["train", "--data", "a", "b", "--output", "o", "--preset", "kits19-paper"]
    assert cli.main([*command, "--batch-size", "12", "--data", "c", "--progress", "none"]) == 0
    ((options, progress),) = asked
    assert options.data == ("a", "b", "c")
    assert (options.features, options.optimizer, options.batch_size) == (64, "nadam", 12)
    assert type(progress) is telling.Silent


def test_what_slicer_passes_at_its_default_counts_as_not_said(asked) -> None:
    command = ["train", "--data", "a", "--output", "o", "--progress", "slicer"]
    for name, value in DEFAULTS.items():  # as Slicer does: numbers and choices, always
        if not isinstance(value, (bool, tuple)) and name not in ("output", "preset", "progress"):
            command += [flag(name), str(value)] if value != "" else []
    assert cli.main([*command, "--preset", "kits19-paper", "--seed", "3"]) == 0
    ((options, progress),) = asked
    assert (options.features, options.batch_size, options.seed) == (64, 4, 3)
    assert type(progress) is telling.Slicer


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "o"], "--data"),
        (["--data", "d"], "--output"),
        (["--data", "d", "--output", "o", "--fold", "9"], "There is no fold 9 of 5"),
        (["--data", "d", "--output", "o", "--epochs", "many"], "--epochs"),
        (["--data", "d", "--output", "o", "--loss", "l1"], "generalized-dice"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(asked, capsys, flags, message) -> None:
    try:
        code = cli.main(["train", *flags])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    assert (code, out, asked) == (2, "", [])
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("flags", "missing", "how"),
    [
        ([], "monai", '`pip install ".[train]"`'),
        (["--progress", "slicer"], "monai", "slicer.util.pip_install('monai')"),
        (["--progress", "slicer"], "torch", "the module PyTorch Util"),
        (["--progress", "slicer"], "cc3d", "the module KidneySeg"),
    ],
)
def test_a_missing_package_is_named_with_how_to_get_it(
    asked, capfd, monkeypatch, flags, missing, how
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else name)
    assert cli.main(["train", "--data", "d", "--output", "o", *flags]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: Training needs {missing}, ") and how in err
    assert err.count("\n") == 1 and not asked


def stopped(*_: Any) -> None:
    """Ctrl-C, and workers that notice it before anybody can tell them."""
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("worker is killed by signal: Terminated")


def test_a_stopped_run_says_that_it_can_go_on(asked, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.modules["UNetTrainerLib.train"], "train", stopped)
    command = ["train", "--data", "d", "--output", "runs/mine"]
    assert cli.main(command) == 130
    err = capsys.readouterr().err
    assert "stay in runs/mine" in err and "--resume" in err and err.count("\n") == 1
    monkeypatch.setenv("LOCAL_RANK", "1")  # the second process of a machine
    with pytest.raises(SystemExit, match="130"):
        cli.main(command)
    assert capsys.readouterr().err == ""


def test_segmenting_does_without_the_trainer() -> None:
    code = """
import sys
sys.modules["UNetTrainerLib"] = None  # an import of it fails
from KidneySegLib.cli import main
main(sys.argv[1:])
"""
    done = [
        subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                       cwd=ROOT / "KidneySeg")
        for arguments in (["segment", "--help"], ["train", "--data", "d"])
    ]  # fmt: skip
    assert done[0].returncode == 0 and "--overlay" in done[0].stdout
    assert done[1].returncode == 2 and done[1].stderr.startswith("error: UNetTrainer")
    assert done[1].stderr.count("\n") == 1


# --- Progress ---------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def walk(shown: telling.Progress, clock: Clock, epochs: int = 2, batches: int = 1000) -> None:
    """A run that checks, caches and trains, a second a batch."""
    for step in ("check", "cache"):
        for done in range(41):
            clock.now += 1
            shown.counter(step)(done, 40)
    shown.line("a table\nof two lines")
    for epoch in range(1, epochs + 1):
        for batch in range(1, batches + 1):
            clock.now += 1
            shown.batch(epoch, epochs, batch, batches, 1 / batch, 0.91 if epoch > 1 else None)
        shown.line(f"epoch {epoch} done")
    shown.close()


def test_lines_tell_every_tenth_of_a_step_and_every_fact(capsys) -> None:
    clock = Clock()
    walk(telling.Lines(clock), clock, batches=250)
    out, err = capsys.readouterr()
    steps = [f"{step} {tenth} %" for step in ("check", "cache") for tenth in range(0, 101, 10)]
    assert out.splitlines() == [*steps, "a table", "of two lines", "epoch 1 done", "epoch 2 done"]
    assert err == ""


def test_lines_tell_once_of_a_step_that_takes_no_time(capsys) -> None:
    shown = telling.Lines(Clock())
    for done in range(5):
        shown.counter("check")(done, 4)
    assert capsys.readouterr().out == "check 100 %\n"


def test_lines_tell_of_the_batches_every_ten_minutes(capsys) -> None:
    clock = Clock()
    walk(telling.Lines(clock), clock, epochs=1, batches=3000)
    told = [line for line in capsys.readouterr().out.splitlines() if "batch" in line]
    assert told[0] == "epoch 1/1  batch 600/3000  loss 0.0017  40 min left"
    assert len(told) == 5


def tags(text: str, tag: str) -> list[str]:
    """What stands in the tags of one kind; everything together must be XML."""
    lines = (line for line in text.splitlines() if "filter-" in line)
    root = ElementTree.fromstring(f"<all>{''.join(lines)}</all>")
    return [element.text or "" for element in root.iter(tag)]


def test_slicer_gets_tags_that_it_can_show_and_not_many_of_them(capsys) -> None:
    clock = Clock()
    shown = telling.Slicer(clock)
    shown.share(0.0, "a <step> & more")
    walk(shown, clock)
    out, err = capsys.readouterr()
    assert err == ""
    shares = [float(text) for text in tags(out, "filter-progress")]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert 150 < len(shares) < 250
    assert max(b - a for a, b in pairwise(shares)) < 0.01
    comments = tags(out, "filter-comment")
    assert comments[0] == "a <step> & more 0%"
    assert comments[-1] == "epoch 2/2  batch 1000/1000  loss 0.0010  Dice 0.910  0 s left"
    assert "a table\nof two lines\n" in out
    assert tags(out, "filter-name") == ["UNetTrainer"] * 2
    assert tags(out, "filter-time") == ["2082.0"]


def test_a_resumed_run_starts_where_it_was_and_counts_its_own_time(capsys) -> None:
    clock = Clock()
    shown = telling.Slicer(clock)
    for batch in (1, 2):
        shown.batch(9, 10, batch, 100, 0.5)
        clock.now += 3
    assert shown.position == pytest.approx(0.1 + 0.9 * 0.802)
    shown.batch(9, 10, 50, 100, 0.5)
    # 49 batches took 6 s, 150 are left
    assert tags(capsys.readouterr().out, "filter-comment")[-1].endswith("18 s left")


def test_a_bar_shows_epoch_batch_loss_dice_and_time_left(monkeypatch, capsys) -> None:
    terminal, clock = Terminal(), Clock()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert type(telling.choose("auto")) is telling.Bars
    shown = telling.Bars(clock)
    walk(shown, clock, batches=50)
    drawn = terminal.getvalue()
    assert re.search(r"  0% \|.*\| check", drawn) and re.search(r"100% \|.*\| cache", drawn)
    assert re.search(r"\d+% \|.*\| epoch 2/2  batch 20/50  loss 0.0500  Dice 0.910  30 s", drawn)
    out = capsys.readouterr().out
    assert "a table\nof two lines\n" in out and "epoch 2 done\n" in out


def test_without_a_terminal_auto_is_lines(monkeypatch) -> None:
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert type(telling.choose("auto")) is telling.Lines


def test_silence_is_silent(capfd) -> None:
    walk(telling.choose("none"), Clock())
    assert capfd.readouterr() == ("", "")


def test_durations_are_for_people() -> None:
    seconds = (0.4, 59.4, 59.6, 61 * 60, 3599, 23.999 * 3600, 52 * 3600)
    assert [telling.duration(s) for s in seconds] == [
        "0 s", "59 s", "1 min", "1 h 01 min", "1 h 00 min", "1 d 0 h", "2 d 4 h",
    ]  # fmt: skip


# --- The Slicer module as a process -----------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three case folders in the KiTS19 layout."""
    folder = tmp_path_factory.mktemp("cases")
    for number in range(3):
        case = folder / f"case_{number:05}"
        case.mkdir()
        ct, labels = toys.toy()
        ct[:, :2] += number  # so that no case is another one's copy
        sitk.WriteImage(toys.image_of(ct), str(case / "imaging.nii.gz"))
        sitk.WriteImage(
            toys.image_of((labels > 0).astype("uint8")), str(case / "segmentation.nii.gz")
        )
    return folder


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """UNetTrainer.py in the source tree and where Slicer's CMake macros put it."""
    lib = tmp_path_factory.mktemp("Slicer") / "lib" / "Slicer-5.12"
    (lib / "cli-modules").mkdir(parents=True)
    for file in ("UNetTrainer.py", "UNetTrainer.xml"):
        shutil.copy(TRAINER / file, lib / "cli-modules")
    for library in (ROOT / "KidneySeg" / "KidneySegLib", TRAINER / "UNetTrainerLib"):
        target = lib / "qt-scripted-modules" / library.name
        shutil.copytree(library, target, ignore=shutil.ignore_patterns("__pycache__"))
    return {
        "source": TRAINER / "UNetTrainer.py",
        "installed": lib / "cli-modules" / "UNetTrainer.py",
    }


def as_slicer_does(
    script: Path, data: Path, output: Path, *more: str
) -> subprocess.CompletedProcess:
    """Run the module with every number and choice, as Slicer passes them, from another folder."""
    passed = {"data": str(data), "output": str(output)}
    for parameter in CLIModule(str(script.with_suffix(".xml"))).parameters():
        if parameter.typ != "boolean" and parameter.default:
            passed[parameter.longflag.lstrip("-")] = str(parameter.default)
    passed |= {"slice_mm": "0", "pixel_mm": "7", "folds": "3"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    # As in Slicer, the packages are there and KidneySeg is none of them.
    environment["PYTHONPATH"] = sysconfig.get_paths()["purelib"]
    flags = [text for name, value in passed.items() for text in (f"--{name}", value)]
    return subprocess.run(
        [sys.executable, "-S", str(script), *flags, *more],
        cwd=output.parent, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["source", "installed"])
def test_the_slicer_module_checks_cases_and_says_nothing_on_stderr(
    layouts, cases, tmp_path, layout
) -> None:
    done = as_slicer_does(layouts[layout], cases, tmp_path / "out", "--check_only")
    assert (done.returncode, done.stderr) == (0, "")
    shares = [float(text) for text in tags(done.stdout, "filter-progress")]
    assert shares == sorted(shares) and shares and max(shares) <= 0.1
    assert any("check" in comment for comment in tags(done.stdout, "filter-comment"))
    plain = re.sub(r"(?s)<filter-(\w+)>.*?</filter-\1>\s*", "", done.stdout)
    assert "3" in plain and "case" in plain


def test_the_slicer_module_refuses_bad_cases_with_one_sentence(layouts, cases, tmp_path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(cases, bad)
    image = bad / "case_00001" / "imaging.nii.gz"
    image.write_bytes(image.read_bytes()[:-200])
    done = as_slicer_does(layouts["source"], bad, tmp_path / "out", "--check_only")
    assert done.returncode == 3
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "case_00001" in done.stdout and "truncated" in done.stdout


def test_the_module_is_found_as_python_and_not_as_a_scripted_one() -> None:
    """Slicer tells command line modules from the others by their first two characters."""
    assert (TRAINER / "UNetTrainer.py").read_bytes().startswith(b"#!/usr/bin/env python-real\n")
