"""Operations and bytes of a network, exactly, from the shapes that are really run.

An operation is a multiplication or an addition of a convolution: a multiply-add counts as two.
Batch norm, ReLU, pooling and interpolation are left out; they are under 1 % of a U-Net's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from KidneySegLib.network import NetworkParameters, build


@dataclass(frozen=True)
class Layer:
    """A convolution at work on one batch.

    Attributes:
        name: of the module in the network.
        level: 0 is the finest; a level below has half the rows and columns.
        operations: multiplications and additions.
        read, written: figures of the batch that go in and come out.
        weights: figures of the kernel and its bias.
    """

    name: str
    level: int
    operations: int
    read: int
    written: int
    weights: int


def layers(parameters: NetworkParameters, shape: Sequence[int]) -> list[Layer]:
    """Every convolution of a network that is asked for a batch.

    Nothing is computed: the network runs on tensors without figures.

    Args:
        shape: (N, input channels, rows, columns) of the batch.
    """
    found: list[Layer] = []
    with torch.device("meta"):
        network = build(parameters).eval()
        batch = torch.empty(tuple(shape))
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            level = _level(name, parameters.depth)

            def count(
                module: Any, given: tuple[Tensor], answer: Tensor, name: str = name, at: int = level
            ) -> None:
                found.append(_layer(name, at, module, given[0], answer))

            module.register_forward_hook(count)
    with torch.inference_mode():
        network(batch)
    return found


def by_level(found: Sequence[Layer], bytes_each: int) -> dict[int, dict[str, int]]:
    """Operations, and bytes read and written, of each level.

    Args:
        bytes_each: of a figure, 4 in float32 and 2 in bfloat16.
    """
    levels: dict[int, dict[str, int]] = {}
    for layer in found:
        sums = levels.setdefault(layer.level, {"operations": 0, "bytes": 0})
        sums["operations"] += layer.operations
        sums["bytes"] += bytes_each * (layer.read + layer.written + layer.weights)
    return dict(sorted(levels.items()))


def _layer(
    name: str, level: int, module: nn.Conv2d | nn.ConvTranspose2d, given: Tensor, answer: Tensor
) -> Layer:
    kernel = math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        # Every figure that goes in is spread over the kernel of every channel that comes out.
        products = given.numel() * module.out_channels * kernel
    else:
        products = answer.numel() * module.in_channels * kernel
    weights = sum(parameter.numel() for parameter in module.parameters())
    return Layer(name, level, 2 * products, given.numel(), answer.numel(), weights)


def _level(name: str, depth: int) -> int:
    """Of a module by its name: the encoder goes down, the decoder and what leads to it go up."""
    part, *rest = name.split(".")
    if part == "encoder":
        return int(rest[0])
    return 0 if part == "head" else depth - 2 - int(rest[0])
