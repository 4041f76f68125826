"""Two processes train as one: real ones, on CPUs, that meet over a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from KidneySegLib.errors import UsageError
from KidneySegLib.network import NetworkParameters, build
from UNetTrainerLib.distributed import (
    SharedBatchNorm2d,
    gathered,
    launched,
    processes,
    share_batch_norm,
)
from UNetTrainerLib.losses import LOSSES, Loss
from UNetTrainerLib.options import Options
from UNetTrainerLib.supervision import DeepSupervision

PROCESSES = 2
CPU = torch.device("cpu")
NETWORK = NetworkParameters(features=4, depth=3, dropout=0.0, classes=3)


def whole_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Slices, labels and weights; the two halves differ much in intensity and kidney."""
    generator = torch.Generator().manual_seed(0)
    slices = (
        torch.randn(6, 1, 16, 16, generator=generator) * torch.arange(1, 7)[:, None, None, None]
    )
    slices += 3 * (torch.arange(6) % 2)[:, None, None, None]
    labels = torch.zeros(6, 16, 16, dtype=torch.long)
    labels[1, 2:9, 3:8], labels[3, 4:6, 4:6], labels[4, 10:12, 9:14] = 1, 2, 1
    return slices, labels, 0.5 + torch.rand(6, 16, 16, generator=generator)


class Learner(nn.Module):
    """A network and its coarser levels' heads, as a training step asks them."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build(NETWORK)
        self.supervision = DeepSupervision(self.network, 0.5)

    def forward(self, loss: Loss, slices: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        truth = gathered(labels), gathered(weights)
        return loss(gathered(self.network(slices)), *truth) + self.supervision(loss, *truth)


def step(name: str, rank: int, processes: int) -> dict[str, Tensor]:
    """Loss, gradients and batch norm's statistics after one pass in this process."""
    torch.manual_seed(1)
    learner: nn.Module = Learner().train()
    inner = learner
    if processes > 1:
        share_batch_norm(learner, CPU)
        learner = DistributedDataParallel(learner, broadcast_buffers=False)
    loss = learner(LOSSES[name], *(part[rank::processes] for part in whole_batch()))
    (loss * processes).backward()
    found = {f"gradient.{key}": value.grad for key, value in inner.named_parameters()}
    found |= {f"buffer.{key}": value for key, value in inner.named_buffers()}
    return {**found, "loss": loss.detach()}


def one_of_two(rank: int, folder: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    found = {
        f"{name}/{key}": value
        for name in LOSSES
        for key, value in step(name, rank, PROCESSES).items()
    }
    found["order"] = gathered(torch.arange(10)[rank::PROCESSES])
    values = torch.full((2, 3), float(rank + 1)).T.requires_grad_()  # not contiguous
    (gathered(values) ** 2).sum().backward()
    found["own"] = values.grad if values.grad is not None else torch.zeros(1)
    norm = nn.BatchNorm2d(4)
    x = torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(3)).bfloat16()
    found["half expected"] = norm(x)[rank::PROCESSES].clone()
    share_batch_norm(norm, CPU)
    found["half"] = norm(x[rank::PROCESSES])
    save_file({key: value.contiguous() for key, value in found.items()}, f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, Tensor]]:
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=PROCESSES)
    return [load_file(folder / str(rank)) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_have_the_loss_gradients_and_statistics_of_one(results, name):
    expected = step(name, 0, 1)
    assert expected["gradient.network.encoder.0.conv1.weight"].abs().max() > 1e-4
    assert expected["gradient.supervision.heads.0.weight"].abs().max() > 1e-4
    for result in results:
        for key, value in expected.items():
            torch.testing.assert_close(
                result[f"{name}/{key}"],
                value,
                rtol=1e-5,
                atol=1e-6,
                msg=lambda m, k=key: f"{k}: {m}",
            )


def test_shares_are_gathered_in_the_order_of_the_batch(results):
    for result in results:
        assert result["order"].tolist() == list(range(10))


def test_only_the_own_share_carries_its_gradient(results):
    for rank, result in enumerate(results):
        assert torch.equal(result["own"], torch.full((3, 2), 2.0 * (rank + 1)))


def test_batch_norm_of_half_precision_stays_half_precision(results):
    for result in results:
        assert result["half"].dtype == torch.bfloat16
        torch.testing.assert_close(result["half"], result["half expected"])


def test_shared_batch_norm_keeps_the_keys_and_is_the_same_alone():
    network, plain = build(NETWORK), build(NETWORK)
    plain.load_state_dict(network.state_dict())
    keys = list(network.state_dict())
    share_batch_norm(network, CPU)
    assert list(network.state_dict()) == keys
    assert sum(isinstance(module, SharedBatchNorm2d) for module in network.modules()) == 10
    x = torch.randn(2, 1, 16, 16)
    for mode in (True, False):
        torch.testing.assert_close(network.train(mode)(x), plain.train(mode)(x), rtol=0, atol=0)


def test_one_process_gathers_nothing():
    tensor = torch.randn(3, 2)
    assert processes() == 1
    assert gathered(tensor) is tensor


# --- Launchers --------------------------------------------------------------------------------

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "6",
    "SLURM_JOB_NAME": "train",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 1, 0)),
        (TORCHRUN, (4, 2, 5)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (2, 1, 1)),
        (SLURM, (4, 2, 6)),
        ({**SLURM, "SLURM_NTASKS_PER_NODE": "8", "SLURM_NNODES": "1"}, (8, 1, 6)),
        ({k: v for k, v in SLURM.items() if k != "SLURM_NTASKS_PER_NODE"}, (4, 2, 6)),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, (1, 1, 0)),
        ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (1, 1, 0)),
        ({**SLURM, **TORCHRUN}, (4, 2, 5)),
    ],
    ids=["alone", "torchrun", "torchrun-short", "slurm", "one-node", "no-per-node", "shell",
         "one-task", "torchrun-within-slurm"],
)  # fmt: skip
def test_the_launchers_say_how_many_train_and_which_this_is(environment, expected):
    options, rank = launched(Options(batch_size=16), environment)
    assert (options.devices, options.nodes, rank) == expected


def test_processes_that_lightning_starts_count_on_from_the_first():
    asked = Options(batch_size=16, devices=2, nodes=2)
    assert launched(asked, {}) == (asked, 0)
    assert launched(asked, {"LOCAL_RANK": "1"}) == (asked, 1)
    assert launched(asked, {"LOCAL_RANK": "1", "NODE_RANK": "1"}) == (asked, 3)


def test_the_environment_of_this_very_process_is_read(monkeypatch):
    for key, value in TORCHRUN.items():
        monkeypatch.setenv(key, value)
    options, rank = launched(Options(batch_size=8))
    assert (options.processes, rank) == (8, 5)


@pytest.mark.parametrize(
    ("choices", "environment", "message"),
    [
        ({"devices": 2}, TORCHRUN, r"--devices 2 --nodes 1 .* 4 processes .* each of 2 machines"),
        ({}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "8 processes .* 3 on every machine"),
        ({"batch_size": 12}, TORCHRUN, "--batch-size 12 cannot be shared evenly by 8"),
    ],
    ids=["asked-otherwise", "uneven", "batch"],
)
def test_what_does_not_fit_the_launcher_is_refused(choices, environment, message):
    with pytest.raises(UsageError, match=message):
        launched(Options(**{"batch_size": 16, **choices}), environment)
