"""Several processes that train one network as a single one would.

Each process sees its share of a batch. Batch norm takes its statistics from all shares, and the
loss is computed from all shares on every process, so that losses which are no mean over pixels,
such as Generalised Dice, are those of the whole batch. Everything here also works in one process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable

from KidneySegLib.errors import UsageError
from UNetTrainerLib.options import Options


class Place(NamedTuple):
    """Where a launcher put this process among those that train together.

    Attributes:
        devices: processes on each machine.
        nodes: machines.
        rank: of this process among all, from 0.
    """

    devices: int
    nodes: int
    rank: int


def launched(options: Options, environment: Mapping[str, str] | None = None) -> tuple[Options, int]:
    """The options with the processes and machines that really are, and this process's rank.

    Told from what torchrun, SLURM or Lightning's own launcher leave in the environment, before any
    process group exists.

    Args:
        environment: instead of this process's own.

    Raises:
        UsageError: other processes than ``--devices`` and ``--nodes`` ask for, or a batch that
            they cannot share evenly.
    """
    here = os.environ if environment is None else environment
    place = _torchrun(here) or _slurm(here)
    if place is None:  # Lightning starts the others itself, and tells them alone
        rank = int(here.get("NODE_RANK", 0)) * options.devices + int(here.get("LOCAL_RANK", 0))
        return options, rank
    asked = options.devices, options.nodes
    if asked not in ((1, 1), place[:2]):
        raise UsageError(
            f"--devices {options.devices} --nodes {options.nodes} was asked for where "
            f"{place.devices} processes were started on each of {place.nodes} machines; leave "
            "both out, or start as many."
        )
    return replace(options, devices=place.devices, nodes=place.nodes), place.rank


def _torchrun(here: Mapping[str, str]) -> Place | None:
    if not {"RANK", "WORLD_SIZE"} <= set(here):
        return None
    world = int(here["WORLD_SIZE"])
    return _place(world, int(here.get("LOCAL_WORLD_SIZE", world)), int(here["RANK"]))


def _slurm(here: Mapping[str, str]) -> Place | None:
    world = int(here.get("SLURM_NTASKS", 1))
    # A shell on a cluster is told of tasks that nobody starts.
    if world == 1 or here.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    on_each = -(-world // int(here.get("SLURM_NNODES", 1)))
    on_each = int(here.get("SLURM_NTASKS_PER_NODE", on_each))
    return _place(world, on_each, int(here.get("SLURM_PROCID", 0)))


def _place(world: int, on_each: int, rank: int) -> Place:
    if world % on_each:
        raise UsageError(
            f"{world} processes were started, which {on_each} on every machine do not make up; "
            "start as many on each."
        )
    return Place(on_each, world // on_each, rank)


def processes() -> int:
    """How many train together; 1 where no process group was made."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def gathered(tensor: Tensor) -> Tensor:
    """The shares of all processes as the one batch they are parts of.

    Process r of W holds the positions r, r + W, ... of the batch along the first axis. Only this
    process's own part of the result carries its gradient. A loss of the result, times the number
    of processes before ``backward()``, therefore has the gradients of a single process once
    `torch.nn.parallel.DistributedDataParallel` has averaged them.

    Args:
        tensor: ``(n, ...)``, of the same shape on every process.
    """
    world = processes()
    if world == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world)]
    distributed.all_gather(parts, tensor.detach().contiguous())
    parts[distributed.get_rank()] = tensor
    return torch.stack(parts, dim=1).flatten(0, 1)


def share_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm in a network take its statistics from the batch of all processes.

    The keys and values of the state stay as they were. On NVIDIA's GPUs torch's own layer does it;
    that one refuses all else, where `SharedBatchNorm2d` does the same.

    Args:
        network: changed in place.
        device: where it is going to train.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the pixels of all processes while it trains; `nn.BatchNorm2d` otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(input)
        result, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return result


class _Normalise(torch.autograd.Function):
    """``weight * (x - mean) / sqrt(variance + eps) + bias`` with the statistics of all processes.

    Ioffe and Szegedy, "Batch Normalization" (arXiv:1502.03167), algorithm 1, and the gradients of
    its section 3, whose sums run over all processes too. Those of weight and bias stay this
    process's own share, as those of all other parameters do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pixels = x.numel() // x.shape[1]
        own_variance, own_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        totals = torch.cat((own_mean * pixels, own_mean.new_tensor([pixels])))
        distributed.all_reduce(totals)
        mean, count = totals[:-1] / totals[-1], totals[-1]
        # Sums of squares about the common mean, not about zero, which would cost digits.
        squares = pixels * (own_variance + (own_mean - mean) ** 2)
        distributed.all_reduce(squares)
        variance = squares / count
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(mean, variance, count)
        result = torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False)
        return result, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        gradient = gradients[0].float()
        across = (slice(None), None, None)
        unit = (x.float() - mean[across]) * inverse[across]
        sums = torch.stack((gradient.sum((0, 2, 3)), (gradient * unit).sum((0, 2, 3))))
        own_bias, own_weight = sums.clone()
        distributed.all_reduce(sums)
        of_bias, of_weight = sums / count
        gradient = gradient - of_bias[across] - unit * of_weight[across]
        gradient *= (weight * inverse)[across]
        return gradient.to(x.dtype), own_weight, own_bias, None
