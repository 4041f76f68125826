"""How much memory a training step needs, and what is said when it is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from KidneySegLib.errors import UsageError
from KidneySegLib.network import build, margin
from UNetTrainerLib import memory as room
from UNetTrainerLib.memory import available_bytes, bytes_needed, check_memory, largest_batch
from UNetTrainerLib.options import Options

CPU = torch.device("cpu")


def options(**choices) -> Options:
    return Options(**{"precision": "32", "rows": 64, "columns": 48, "depth": 3, **choices})


@pytest.mark.parametrize(
    "choices",
    [{}, {"network": "inception-unet"}, {"no_padding": True}, {"in_channels": 3, "features": 8}],
    ids=["unet", "inception", "unpadded", "colour"],
)
def test_what_is_counted_without_figures_is_what_a_real_step_keeps(choices):
    chosen = options(dropout=0.0, context_slices=1, **choices)
    rows, columns = chosen.training_size
    border = 2 * margin(chosen.network_parameters)
    shape = (chosen.in_channels, rows + border, columns + border)
    kept, largest, weights = room._kept(chosen, shape, reduced=False)

    network = build(chosen.network_parameters).train()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    alive: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = network(torch.randn(3, *shape))
    assert answer.shape[-2:] == (rows, columns)
    sizes = [storage.nbytes() / 3 for storage in alive.values()]
    assert kept == pytest.approx(sum(sizes), rel=0.01)
    assert largest == pytest.approx(max(sizes), rel=0.01)
    assert weights == sum(p.numel() * 4 for p in network.parameters())


def test_more_of_anything_needs_more_memory():
    plain = bytes_needed(options())
    for more in (
        {"batch_size": 24},
        {"features": 32},
        {"rows": 128},
        {"context_slices": 31},
        {"classes": "kidney-tumour"},
        {"deep_supervision": 0.5},
    ):
        assert bytes_needed(options(**more)) > plain, more
    for less in (
        {"precision": "bf16"},
        {"optimizer": "sgd"},
        {"averaging": 0.0},
        {"crop": 32},
        {"depth": 2},
        {"devices": 2},
    ):
        assert bytes_needed(options(**less)) < plain, less


@pytest.mark.parametrize("choices", [{}, {"devices": 2}, {"precision": "bf16"}], ids=str)
def test_the_largest_batch_fits_and_the_next_does_not(choices):
    for available in (2**28, 2**30, 2**33):
        size = largest_batch(options(**choices), available)
        processes = choices.get("devices", 1)
        assert size > 0 and size % processes == 0
        assert bytes_needed(options(batch_size=size, **choices)) <= available
        assert bytes_needed(options(batch_size=size + processes, **choices)) > available


def test_a_batch_that_does_not_fit_is_refused_with_the_size_that_does(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda device: 20e9)
    chosen = options(batch_size=64, rows=512, columns=512, features=64, depth=5, context_slices=1)
    with pytest.raises(UsageError) as caught:
        check_memory(chosen, CPU)
    message = str(caught.value)
    assert re.fullmatch(
        r"A batch of 64 slices of 512x512 needs about \d+ GB but this machine has 20 GB free; "
        r"use --batch-size \d+\.",
        message,
    )
    size = int(message.rstrip(".").split()[-1])
    assert 1 <= size < 64
    check_memory(options(batch_size=size, rows=512, columns=512, features=64, depth=5,
                         context_slices=1), CPU)  # fmt: skip


def test_where_not_even_one_slice_fits_something_else_is_advised(monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda device: 50e6)
    with pytest.raises(UsageError, match="not even one slice fits, so lower --features"):
        check_memory(options(batch_size=1), CPU)


def test_processes_on_one_machine_share_its_memory(monkeypatch):
    chosen = options(batch_size=32, devices=2)
    monkeypatch.setattr(room, "available_bytes", lambda device: 2 * bytes_needed(chosen) + 2)
    check_memory(chosen, CPU)
    monkeypatch.setattr(room, "available_bytes", lambda device: 1.9 * bytes_needed(chosen))
    with pytest.raises(UsageError, match=r"use --batch-size (28|30)\."):
        check_memory(chosen, CPU)


def test_this_machine_has_some_memory_free():
    pytest.importorskip("psutil")
    assert 2**20 < available_bytes(CPU) < 2**50


def test_a_container_may_grant_less_than_the_machine_has(tmp_path: Path):
    job = tmp_path / "groups" / "slurm" / "job_7"
    job.mkdir(parents=True)
    own = tmp_path / "cgroup"

    def allowed() -> int | None:
        return room._allowed_bytes(own, tmp_path / "groups")

    assert allowed() is None
    own.write_text("0::/slurm/job_7\n")
    assert allowed() is None
    (job / "memory.max").write_text("max\n")
    (job / "memory.current").write_text("300\n")
    assert allowed() is None
    (job.parent / "memory.max").write_text("1000\n")
    (job.parent / "memory.current").write_text("700\n")
    (job.parent / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert allowed() == 450
    (job / "memory.max").write_text("310\n")
    (job / "memory.stat").write_text("anon 300\n")
    assert allowed() == 10
    own.write_text("4:memory:/slurm\n")  # version 1
    assert allowed() is None
