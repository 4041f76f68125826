"""The benchmarks: what they count is right, and the table of speed can be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch.utils.flop_counter import FlopCounterMode

from KidneySegLib.answer import answer
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.geometry import to_axial
from KidneySegLib.network import NetworkParameters, build, margin, valid_size
from KidneySegLib.preprocess import Preprocessing
from KidneySegLib.reading import read_ct
from KidneySegLib.regions import Search

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import counting  # noqa: E402
import operations  # noqa: E402
import processes  # noqa: E402
import speed  # noqa: E402
import tables  # noqa: E402
import volumes  # noqa: E402

NETWORKS = (
    NetworkParameters(features=4, depth=3),
    NetworkParameters(features=4, depth=4, context_slices=5, prior=True, classes=3),
    NetworkParameters(features=4, depth=3, padding=False),
    NetworkParameters(features=4, depth=3, up_sampling="interpolation"),
    NetworkParameters(features=8, depth=3, kind="inception-unet"),
)


# --- operations -------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", NETWORKS, ids=str)
def test_operations_are_those_that_torch_counts(parameters):
    rows, columns = (valid_size(parameters, n) + 2 * margin(parameters) for n in (20, 33))
    batch = torch.zeros(2, parameters.input_channels, rows, columns)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        build(parameters).eval()(batch)
    found = operations.layers(parameters, batch.shape)
    assert sum(layer.operations for layer in found) == counter.get_total_flops()


def test_each_level_has_its_own_convolutions_and_figures():
    parameters = NetworkParameters(features=2, depth=2, classes=2)
    levels = operations.by_level(operations.layers(parameters, (1, 1, 8, 8)), 4)
    fine, coarse = 8 * 8, 4 * 4
    # Encoder, transposed convolution, decoder and head; then the lowest level.
    products = fine * 9 * (1 * 2 + 2 * 2) + coarse * 4 * 4 * 2 + fine * (9 * (4 * 2 + 2 * 2) + 4)
    assert levels[0]["operations"] == 2 * products
    assert levels[1]["operations"] == 2 * coarse * 9 * (2 * 4 + 4 * 4)
    moved = coarse * (2 + 4) + coarse * (4 + 4)
    weights = 9 * (2 * 4 + 4 * 4) + 2 * 4
    assert levels[1]["bytes"] == 4 * (moved + weights)


def test_all_that_the_networks_of_a_model_compute_for_a_ct_is_counted(tmp_path, toy_ct):
    views = tuple(
        toys.copying_model(tmp_path / view, preprocessing=Preprocessing(pixel_mm=4.0, view=view))
        for view in ("coronal", "sagittal")
    )
    model = toys.copying_model(
        tmp_path / "whole",
        preprocessing=Preprocessing(pixel_mm=3.0),
        finder=toys.copying_model(tmp_path / "coarse"),
        search=Search(wide=True),
        views=views,
    )
    volume, grid = to_axial(read_ct(toy_ct).image)
    with FlopCounterMode(display=False) as counter:
        answer(volume, grid.spacing_mm, TorchBackend(model, "cpu", "float32"))
    found = counting.networks(toy_ct, str(model.folder), "torch", "float32")["networks"]
    assert set(found) == {"finder", "axial", "coronal", "sagittal"}
    counted = [level["operations"] for one in found.values() for level in one["levels"].values()]
    assert sum(counted) == counter.get_total_flops()
    for one in found.values():
        assert one["slices"] == sum(asked["shape"][0] * asked["times"] for asked in one["batches"])


# --- processes and generated CTs --------------------------------------------------------------


def test_a_process_is_measured_from_start_to_end():
    code = "import time; block = bytearray(60_000_000); time.sleep(0.2); print('done')"
    ended = processes.run([sys.executable, "-c", code])
    assert ended.lines == ["done"]
    assert ended.seconds > 0.2
    assert ended.cpu_seconds < ended.seconds
    assert ended.peak_mb > 60


def test_a_process_that_fails_says_why():
    with pytest.raises(processes.Failed, match="something"):
        processes.run([sys.executable, "-c", "raise SystemExit('something')"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system holds none")
def test_a_process_is_held_to_its_cores_and_this_one_is_not():
    before = os.sched_getaffinity(0)
    code = "import os; print(len(os.sched_getaffinity(0)))"
    assert processes.run([sys.executable, "-c", code], cores=1).lines == ["1"]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("wanted", [4, 6, 10, 50])
def test_a_lengthened_ct_shows_the_kidneys_once_and_jumps_nowhere(wanted):
    index = volumes.chosen(10, 3, 8, wanted)
    assert len(index) == wanted
    assert index.min() >= 0 and index.max() < 10
    assert np.abs(np.diff(index)).max() == 1
    inside = index[(index >= 3) & (index < 8)]
    assert len(set(inside)) == len(inside) == min(wanted, 5)


# --- tables -----------------------------------------------------------------------------------


def test_only_what_stands_between_marks_is_replaced():
    text = "before\n<!-- speed:begin start -->\nold\n<!-- speed:end start -->\nafter\n"
    changed = tables.put_into(text, {"start": "new"})
    assert changed == text.replace("old", "new")
    assert tables.put_into(changed, {"start": "new"}) == changed
    with pytest.raises(SystemExit, match="no table 'start'"):
        tables.put_into(text, {"other": "new"})


def test_a_line_through_points_on_a_line_is_that_line():
    first, slope, off = tables.line_through([(1, 5.0), (2, 7.0), (4, 11.0)])
    assert (first, slope, off) == pytest.approx((3, 2, 0))


@pytest.mark.parametrize("document", speed.DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_hold_tables_that_exist(document):
    text = document.read_text(encoding="utf-8")
    names = [line.split()[2] for line in text.splitlines() if "<!-- speed:begin" in line]
    assert names
    made = dict.fromkeys(names, "new")
    assert tables.put_into(text, made).count("\nnew\n") == len(names)


def test_the_table_of_speed_is_made_from_start_to_end(tmp_path):
    output, figures, work = (tmp_path / name for name in ("speed.md", "speed.json", "work"))
    command = [sys.executable, BENCHMARKS / "speed.py", "--quick", "--work", work]
    subprocess.run([*command, "--output", output, "--json", figures], check=True)
    results = json.loads(figures.read_text(encoding="utf-8"))
    text = output.read_text(encoding="utf-8")
    for name, block in tables.blocks(results).items():
        assert f"## {name}\n\n{block}\n" in text
        assert "nan" not in block
    assert "each further CT of a batch" in text
    assert results["start"]["loaded"] == []
    assert results["machine"]["versions"]["torch"] == torch.__version__
