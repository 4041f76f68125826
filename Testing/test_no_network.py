"""What runs without what: without torch, without a network, without waiting for heavy packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
import toys

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "openvino", "monai", "scipy", "lightning", "matplotlib", "onnx")

# Both are found by Python when it starts.
NO_TORCH = """
import sys

sys.modules["torch"] = None
"""
NO_SOCKETS = """
import socket
import sys


def audit(event, arguments):
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname")
    internet = event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6)
    if asks or internet or event == "socket.connect" and isinstance(arguments[1], tuple):
        sys.stderr.write(f"CONNECTION {event} {arguments}\\n")
        raise OSError("no network here")


sys.addaudithook(audit)
"""


@pytest.fixture
def python(tmp_path):
    """Runs Python with something forbidden from its start."""

    def run(forbidden: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        (tmp_path / "start").mkdir(exist_ok=True)
        (tmp_path / "start" / "sitecustomize.py").write_text(forbidden)
        paths = [tmp_path / "start", ROOT / "KidneySeg", ROOT / "UNetTrainer"]
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "KIDNEYSEG_CACHE": str(tmp_path / "cache"),
            },
        )

    return run


def test_what_forbids_torch_does_so(python):
    run = python(NO_TORCH, "-c", "import torch")
    assert run.returncode == 1 and "ModuleNotFoundError" in run.stderr


def test_what_forbids_connections_does_so(python):
    code = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9', timeout=5)"
    run = python(NO_SOCKETS, "-c", code)
    assert run.returncode == 1 and "CONNECTION" in run.stderr


def test_segmenting_needs_no_torch(python, tmp_path, toy_model, toy_ct, toy_sides):
    run = python(
        NO_TORCH,
        *("-m", "KidneySegLib", "segment", toy_ct, "--output", tmp_path / "out.nii.gz"),
        *("--model", toy_model.folder, "--reference", toy_sides, "--report", tmp_path / "r.json"),
        *("--overlay", tmp_path / "o.png"),
    )
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["backend"] == "openvino" and report["dice"]["kidney"] > 0.99


def test_nor_does_a_batch_or_what_looks_at_its_results(
    python, tmp_path, toy_model, toy_ct, toy_sides
):
    (tmp_path / "cts").mkdir()
    (tmp_path / "cts" / "ct.nii.gz").write_bytes(toy_ct.read_bytes())
    run = python(
        NO_TORCH,
        "-c",
        "import sys; from KidneySegLib.batch import main; sys.exit(main(sys.argv[1:]))",
        *("--input", "cts", "--output", "out", "--model", toy_model.folder),
    )
    assert run.returncode == 0, run.stderr
    labels = next((tmp_path / "out").glob("*.seg.nrrd"))
    for command in (
        ("evaluate", labels, toy_sides),
        ("overlay", toy_ct, labels, "--output", "o.png"),
        ("models",),
    ):
        run = python(NO_TORCH, "-m", "KidneySegLib", *command)
        assert run.returncode == 0, run.stderr


def test_without_torch_and_without_an_onnx_file_one_sentence_says_what_to_do(
    python, tmp_path, toy_ct
):
    folder = toys.copying_model(tmp_path / "toy").folder
    card = json.loads((folder / "model.json").read_text())
    del card["onnx"]
    (folder / "model.json").write_text(json.dumps(card))
    run = python(
        NO_TORCH,
        *("-m", "KidneySegLib", "segment", toy_ct, "--output", "out.nii.gz", "--model", folder),
    )
    assert run.returncode == 4 and run.stderr.count("\n") == 1
    assert "has no ONNX file" in run.stderr and "--add-onnx" in run.stderr


def test_nothing_that_segments_opens_a_connection(python, toy_model, toy_ct, toy_sides):
    for backend in ("openvino", "torch"):
        run = python(
            NO_SOCKETS,
            *("-m", "KidneySegLib", "segment", toy_ct, "--output", "out.nii.gz"),
            *("--model", toy_model.folder, "--backend", backend, "--device", "cpu"),
        )
        assert run.returncode == 0 and "CONNECTION" not in run.stderr, run.stderr
    run = python(NO_SOCKETS, "-m", "KidneySegLib", "evaluate", "out.nii.gz", toy_sides)
    assert run.returncode == 0 and "CONNECTION" not in run.stderr, run.stderr


def test_nor_does_training(python, tmp_path):
    ct, labels = toys.toy()
    for number in range(3):
        folder = tmp_path / "data" / f"case_0000{number}"
        folder.mkdir(parents=True)
        sitk.WriteImage(toys.image_of(ct), str(folder / "imaging.nii.gz"))
        sitk.WriteImage(toys.image_of(labels), str(folder / "segmentation.nii.gz"))
    run = python(
        NO_SOCKETS,
        *("-m", "KidneySegLib", "train", "--data", "data", "--output", "run", "--epochs", 1),
        *("--folds", 3),
        *("--steps", 1, "--batch-size", 2, "--features", 2, "--depth", 2, "--rows", 32),
        *("--columns", 32, "--device", "cpu", "--workers", 0),
    )
    assert run.returncode == 0 and "CONNECTION" not in run.stderr, run.stderr


@pytest.mark.parametrize(
    "module",
    ["segment", "cli", "batch", "worker", "evaluation", "overlay", "commands.segment", "writing"],
)
def test_importing_loads_no_heavy_package(python, module):
    code = (
        f"import sys, KidneySegLib.{module}; "
        f"print(*sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    )
    run = python("", "-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
