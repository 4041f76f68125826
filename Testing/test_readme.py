"""README.md: its lines run, its options, columns and messages exist, its pictures are there."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from KidneySegLib import batch, cli
from KidneySegLib.phantom import generate

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULE = ROOT / "KidneySeg" / "KidneySeg.py"
SMALL = (128, 128, 40)  # columns, rows and slices of a generated CT

# Options of other programs that the README names.
OTHERS = {
    "Slicer": {"--no-splash", "--no-main-window", "--python-script"},
    "pip": {"--dest", "--only-binary", "--index-url", "--no-index", "--find-links"},
    "torchrun": {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"},
    "srun": {"--nodes", "--ntasks-per-node", "--gpus-per-node"},
    "tensorboard": {"--logdir"},
}


def section(title: str) -> str:
    """What stands below a heading, down to the next one of its level."""
    level, _, _ = title.partition(" ")
    after = README.partition(f"\n{title}\n")[2]
    assert after, f"there is no section {title}"
    return re.split(rf"^{level} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {
        flag
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }


def commands() -> dict[str, set[str]]:
    """The options of each command of `kidneyseg`."""
    (subparsers,) = (
        action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return {name: flags_of(parser) for name, parser in subparsers.choices.items()}


def named(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


# --- the command line -------------------------------------------------------------------------


def test_every_option_of_a_line_with_kidneyseg_is_one_of_that_command():
    known = commands()
    code = [*blocks(README), *re.findall(r"`([^`\n]+)`", README)]
    lines = [line for text in code for line in text.replace("\\\n", " ").splitlines()]
    seen = set()
    for line in lines:
        called = re.search(r"\bkidneyseg ([\w-]+)(.*)", line) or re.search(
            r"-m KidneySegLib (\w+)(.*)", line
        )
        if called and called[1] in known:
            assert named(called[2]) <= known[called[1]], line
            seen.add(called[1])
    assert seen == set(known)


def test_every_other_option_that_is_named_belongs_to_some_program():
    known = set().union(*commands().values(), *OTHERS.values(), flags_of(batch.parser()))
    assert named(README) <= known


def test_every_option_of_segment_has_its_row():
    rows = re.findall(r"^\| `(--[a-z-]+)", section("## The command"), re.MULTILINE)
    assert set(rows) == commands()["segment"] - {"--help"}
    assert len(rows) == len(set(rows))


def test_every_option_and_every_column_of_a_batch_has_its_row():
    text = section("## Many CTs")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    assert named(" ".join(rows)) == flags_of(batch.parser()) - {"--help"}
    columns = [name for row in rows for name in re.findall(r"`([a-z_]+)`", row)]
    assert tuple(columns) == batch.COLUMNS


def test_the_exit_codes_of_a_batch_are_those_that_its_help_tells():
    told = re.search(r"Exit codes: (.*?)[.;]", batch.parser().epilog)[1]
    assert told in " ".join(section("## Many CTs").split())


# --- what is said -----------------------------------------------------------------------------


def sentences() -> list[str]:
    """Every text in the sources, with `…` for what is filled in."""
    found = []
    for file in (ROOT / "KidneySeg").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                ]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w+\}", "…", node.value))
    return found


def test_the_messages_of_the_troubleshooting_are_those_of_the_program():
    rows = re.findall(r"^\| `([^`]+)` \|", section("## Troubleshooting"), re.MULTILINE)
    messages = [row for row in rows if " " in row]
    assert len(messages) > 10
    texts = sentences()
    for message in messages:
        pattern = re.compile(".*".join(map(re.escape, re.split(r"\s*…\s*", message))))
        assert any(pattern.search(text) for text in texts), message


def test_the_names_on_the_panel_are_those_of_the_tutorial():
    form = (ROOT / "KidneySeg/Resources/UI/KidneySeg.ui").read_text(encoding="utf-8")
    labels = {
        text.strip(":.")
        for text in re.findall(
            r'<widget class="\w+" name="\w+">(?:(?!<widget|</widget>).)*?'
            r'<property name="text">\s*<string>([^<]+)</string>',
            form,
            re.DOTALL,
        )
    }
    text = section("## Tutorial")
    wanted = {"Segment", "Reference", "Show 3D", "Red/blue comparison", "Save report", "Outlines"}
    wanted |= {"Fill", "Advanced", "Merge sides", "Keep small components", "Slices at once"}
    wanted |= {"Segmentation", "Test-time augmentation"}
    for name in wanted:
        assert name in labels, name
        assert f"*{name}" in text or f"**3. {name}" in text, name


# --- pictures and links -----------------------------------------------------------------------


def test_pictures_are_there_and_small_and_say_what_they_show():
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
    assert {Path(path) for _, path in pictures} == {
        path.relative_to(ROOT) for path in (ROOT / "Resources/Screenshots").iterdir()
    }
    for text, path in pictures:
        assert len(text) > 20, path
        assert (ROOT / path).stat().st_size < 400_000, path
        with Image.open(ROOT / path) as picture:
            picture.verify()


def test_links_lead_somewhere():
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for link in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in headings, link
        elif not link.startswith("http"):
            assert (ROOT / link).exists(), link


# --- lines that run ---------------------------------------------------------------------------


def test_the_lines_for_plain_python_run(tmp_path, monkeypatch):
    made = generate(1, SMALL, tumour=False)
    sitk.WriteImage(made.image, str(tmp_path / "ct.nii.gz"))
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(section("## From Python"), "python")
    names: dict = {}
    exec(code, names)
    labels = sitk.GetArrayFromImage(names["result"].labels)
    assert set(np.unique(labels)) == {0, 1, 2}


class SampleDataLogic:
    """As much of Slicer's own as the samples need to be loaded."""

    def loadNode(self, uri, name, fileType=None, fileProperties=None):
        import slicer

        load = {
            "VolumeFile": slicer.util.loadVolume,
            "SegmentationFile": slicer.util.loadSegmentation,
        }
        return load[fileType](uri, {"name": name})


@pytest.fixture
def window(tmp_path, monkeypatch):
    pythonqt = pytest.importorskip("pythonqt", reason="the stand-in for Slicer's Qt is not there")
    if pythonqt.why_not():
        pytest.skip(pythonqt.why_not())
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    with pythonqt.session(tmp_path, window=False) as session:
        session.slicer.app.temporaryPath = str(tmp_path)
        yield session


def test_the_lines_for_slicers_console_run(window, monkeypatch, capsys):
    window.load(MODULE)
    from KidneySegLib import samples

    monkeypatch.setattr(samples, "_SIZE", SMALL)
    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    names: dict = {"slicer": window.slicer}
    first, second = blocks(section("## From Slicer's Python console"), "python")

    exec(first, names)
    assert names["left"].sum() > 1000
    assert names["scores"]["dice"]["kidney"] > 0.8
    assert str(names["scores"]["dice"]) in capsys.readouterr().out

    exec(second, names)
    window.wait_until(lambda: not names["run"].running)
    told = capsys.readouterr().out
    assert "% predict" in told
    assert told.endswith("done: GeneratedCT kidneys_1\n")
    exec(second + "\nrun.cancel()", names)
    assert not names["run"].running


def test_the_screenshots_can_be_drawn_and_show_the_left_kidney_on_the_right(tmp_path, monkeypatch):
    slicerviews = pytest.importorskip("slicerviews")
    pythonqt = pytest.importorskip("pythonqt")
    if slicerviews.why_not() or pythonqt.why_not():
        pytest.skip(slicerviews.why_not() or pythonqt.why_not())
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    path = ROOT / "Testing/draw_screenshots.py"
    spec = importlib.util.spec_from_file_location("draw_screenshots", path)
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    drawn = {file.stem: np.asarray(Image.open(file)) for file in drawing.draw(tmp_path, SMALL)}
    shown = {file.stem for file in drawing.FOLDER.iterdir()} - {"overlay"}  # of `make segment`
    assert set(drawn) == shown
    views = drawn["overview"][:, drawing.PANEL_WIDTH + drawing.GAP :].astype(int)
    half = len(views) // 2
    for view in (views[:half], views[half + drawing.GAP :]):
        redder = view[..., 0] - view[..., 2]
        orange, blue = (np.argwhere(where)[:, 1] for where in (redder > 60, redder < -75))
        assert len(orange) > 300 and len(blue) > 300
        assert np.median(orange) > view.shape[1] / 2 > np.median(blue)
