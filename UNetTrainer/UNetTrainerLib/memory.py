"""How much memory a training step needs, told before the first one is tried.

The network is run without figures (torch's meta device), counting what it keeps for the backward
pass; weights, gradients, optimiser and a batch's way through the loss are added. Held against the
peak of real steps on a CPU, the estimate was 0.9 to 1.2 times those of 0.3 to 2.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from KidneySegLib.backends.torchbackend import choose_precision
from KidneySegLib.errors import UsageError
from KidneySegLib.network import build, count_parameters, margin
from UNetTrainerLib.options import Options
from UNetTrainerLib.supervision import coarser_levels

# Beside what is kept, the backward pass holds about this many tensors of the largest size, and the
# libraries take a fixed room for kernels and buffers.
TRANSIENT = 3
LIBRARIES = 100 * 2**20
# Of each class of a pixel: logits, softmax, truth, products and their gradients.
LOSS_BYTES = 48
# How many float32 copies of a batch are about: those that wait, the one in use, another layout.
INPUT_COPIES = 5
_STATES = {"sgd": 1}


@dataclass(frozen=True)
class _Cost:
    """Bytes of one process: whatever the batch, and for each slice of its own share."""

    fixed: float
    per_slice: float


def bytes_needed(options: Options, device: torch.device | None = None) -> int:
    """Peak memory of one process during a training step, beyond what it has before.

    Args:
        device: where it trains; settles what ``--precision auto`` means.
    """
    cost = _cost(options, device or torch.device("cpu"))
    return round(cost.fixed + cost.per_slice * options.batch_size / options.processes)


def largest_batch(
    options: Options, available_bytes: float, device: torch.device | None = None
) -> int:
    """The largest ``--batch-size`` that fits; 0 where not even a slice for each process does.

    Args:
        available_bytes: of one process.
    """
    cost = _cost(options, device or torch.device("cpu"))
    return max(0, int((available_bytes - cost.fixed) / cost.per_slice)) * options.processes


def check_memory(options: Options, device: torch.device) -> None:
    """Make sure that a batch fits into the memory that is free now.

    Raises:
        UsageError: it does not; names the size that does.
    """
    needed = bytes_needed(options, device)
    sharing = 1 if device.type == "cuda" else options.devices
    free = available_bytes(device) / sharing
    if needed <= free:
        return
    rows, columns = options.training_size
    fits = largest_batch(options, free, device)
    slices = f"{options.batch_size} slices of {rows}x{columns}"
    advice = f"use --batch-size {fits}"
    if fits == 0:
        advice = "not even one slice fits, so lower --features or train on squares with --crop"
    where = "the GPU" if device.type == "cuda" else "this machine"
    raise UsageError(
        f"A batch of {slices} needs about {_gigabytes(needed * sharing)} but {where} has "
        f"{_gigabytes(free * sharing)} free; {advice}."
    )


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device now; of a container or cluster job, what it may still take.

    Of Apple's GPUs, whose memory is the machine's, it is the machine's.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = int(psutil.virtual_memory().available)
    allowed = _allowed_bytes()
    return free if allowed is None else min(free, allowed)


def _allowed_bytes(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What Linux's control groups (version 2) still grant this process; None without a limit."""
    if not proc.is_file():
        return None
    own = next((line[3:] for line in proc.read_text().splitlines() if line[:3] == "0::"), None)
    if own is None:
        return None
    grants = []
    group = root / own.strip("/")
    for folder in (group, *group.parents):
        limit, used = folder / "memory.max", folder / "memory.current"
        if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
            statistics = dict(line.split() for line in (folder / "memory.stat").open())
            # Pages of files read long ago are given back as soon as they are wanted.
            idle = int(statistics.get("inactive_file", 0))
            grants.append(int(limit.read_text()) - int(used.read_text()) + idle)
        if folder == root:
            break
    return max(0, min(grants)) if grants else None


def _gigabytes(count: float) -> str:
    gigabytes = count / 1e9
    return f"{gigabytes:.0f} GB" if gigabytes >= 10 else f"{gigabytes:.1f} GB"


def _cost(options: Options, device: torch.device) -> _Cost:
    parameters = options.network_parameters
    reduced = options.precision in ("bf16", "16-mixed") or (
        options.precision == "auto" and choose_precision("auto", device) == "bfloat16"
    )
    border = 2 * margin(parameters)
    rows, columns = options.training_size
    channels = parameters.input_channels
    kept, largest, weights = _kept(options, (channels, rows + border, columns + border), reduced)

    pixels = rows * columns
    inputs = channels * (rows + border) * (columns + border) * 4 + pixels * 12
    # Every process computes the loss of the whole batch.
    loss = pixels * parameters.classes * LOSS_BYTES * options.processes
    loss *= 1 + (coarser_levels(parameters.depth) if options.deep_supervision else 0)
    copies = 2 + _STATES.get(options.optimizer, 2)  # weights, gradients, the optimiser's state
    copies += options.averaging > 0
    copies += options.processes > 1  # gradients on their way to the others
    return _Cost(
        fixed=weights * (copies + (0.5 if reduced else 0)) + LIBRARIES,
        per_slice=kept + TRANSIENT * largest + INPUT_COPIES * inputs + loss,
    )


def _kept(options: Options, shape: tuple[int, int, int], reduced: bool) -> tuple[float, int, int]:
    """Bytes of one slice kept for the backward pass, of its largest tensor, and of all weights.

    Args:
        shape: channels, rows and columns of the input.
        reduced: whether the network computes in 16 bits.
    """
    kind = torch.bfloat16 if reduced else torch.float32
    with torch.device("meta"):
        network = build(options.network_parameters).train()
        weights = 4 * count_parameters(network)
        network.to(kind)
        slices = torch.empty(2, *shape, dtype=kind)  # batch norm asks for more than one
    own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
    # Held until all are counted, so that none takes the place and the number of one before.
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(slices)
    del logits
    sizes = [storage.nbytes() / len(slices) for storage in storages.values()]
    return sum(sizes), round(max(sizes)), weights
