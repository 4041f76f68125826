"""The U-Net family: 2-D networks that see a CT slice by slice.

The plain form follows Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical
Image Segmentation" (MICCAI 2015, arXiv:1505.04597), in the padded, batch-normalised variant of the
KiTS19 system: in every block convolution, ReLU, batch norm, twice. The inception form has a module
of Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015, arXiv:1409.4842) in place of every
3x3 convolution, and is the same in all else.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from KidneySegLib.parameters import Branches, NetworkParameters, margin, valid_size

# Those of the parameters are here, too, for whoever builds networks.
__all__ = [
    "OLD_PARAMETERS",
    "Block",
    "Inception",
    "NetworkParameters",
    "UNet",
    "Up",
    "build",
    "count_parameters",
    "import_old_state",
    "margin",
    "valid_size",
]


class Inception(nn.Module):
    """Convolutions of several sizes side by side: (N, C, H, W) to (N, features, H, W).

    The shares of the branches are those of `Branches`. The branch that pools does so after its 1x1
    convolution instead of before, which takes a fraction of the memory: training keeps an index of
    each pooled figure.
    """

    def __init__(self, channels: int, features: int):
        super().__init__()
        shares = Branches.of(features)
        self.branch1 = nn.Conv2d(channels, shares.ones, 1)
        self.reduce3 = nn.Conv2d(channels, shares.before_3, 1)
        self.branch3 = nn.Conv2d(shares.before_3, shares.threes, 3, padding=1)
        self.reduce5 = nn.Conv2d(channels, shares.before_5, 1)
        self.branch5 = nn.Conv2d(shares.before_5, shares.fives, 5, padding=2)
        self.branch_pool = nn.Conv2d(channels, shares.pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.branch1(x),
            self.branch3(torch.relu(self.reduce3(x))),
            self.branch5(torch.relu(self.reduce5(x))),
            torch.max_pool2d(self.branch_pool(x), 3, stride=1, padding=1),
        )
        return torch.cat(branches, dim=1)


def _convolution(channels: int, features: int, network: NetworkParameters) -> nn.Module:
    if network.kind == "inception-unet":
        return Inception(channels, features)
    return nn.Conv2d(channels, features, 3, padding=1 if network.padding else 0)


class Block(nn.Module):
    """Two 3x3 convolutions, each with ReLU and batch norm: (N, C, H, W) to (N, features, ...).

    In an ``inception-unet`` two `Inception` modules stand in their place.
    """

    def __init__(self, channels: int, features: int, network: NetworkParameters, dropout: float):
        super().__init__()
        self.conv1 = _convolution(channels, features, network)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = _convolution(features, features, network)
        self.norm2 = nn.BatchNorm2d(features)
        self.dropout = nn.Dropout2d(dropout)
        self.norm_first = network.normalisation == "before_relu"

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = conv(x)
            x = torch.relu(norm(x)) if self.norm_first else norm(torch.relu(x))
        return self.dropout(x)


class Up(nn.Module):
    """Twice the rows and columns, half the channels."""

    def __init__(self, features: int, network: NetworkParameters):
        super().__init__()
        self.layer: nn.Module
        if network.up_sampling == "transposed":
            self.layer = nn.ConvTranspose2d(features, features // 2, 2, stride=2)
        else:
            self.layer = nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                nn.Conv2d(features, features // 2, 1),
            )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        return result


class UNet(nn.Module):
    """The U-Net described by ``parameters``.

    Input ``(N, input_channels, rows, columns)``, output logits
    ``(N, classes, rows, columns)``; an unpadded network's output lacks ``margin`` pixels a side.
    """

    def __init__(self, parameters: NetworkParameters):
        super().__init__()
        self.parameters_ = parameters
        widths = [parameters.features * 2**level for level in range(parameters.depth)]

        def dropout(level: int) -> float:
            lowest = level == parameters.depth - 1
            return parameters.dropout if lowest or parameters.dropout_place == "everywhere" else 0.0

        channels = parameters.input_channels
        self.encoder = nn.ModuleList()
        for level, width in enumerate(widths):
            self.encoder.append(Block(channels, width, parameters, dropout(level)))
            channels = width
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level in reversed(range(parameters.depth - 1)):
            self.up.append(Up(widths[level + 1], parameters))
            self.decoder.append(Block(2 * widths[level], widths[level], parameters, dropout(level)))
        self.head = nn.Conv2d(widths[0], parameters.classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.encoder):
            if level:
                x = torch.max_pool2d(x, 2)
            x = block(x)
            skips.append(x)
        skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            x = up(x)
            x = block(torch.cat((x, _crop(skips.pop(), x)), dim=1))
        logits: Tensor = self.head(x)
        return logits


def _crop(skip: Tensor, like: Tensor) -> Tensor:
    """Crop the skip connection to the size of ``like``, centred, as in the U-Net paper."""
    rows, columns = like.shape[-2:]
    top = (skip.shape[-2] - rows) // 2
    left = (skip.shape[-1] - columns) // 2
    return skip[..., top : top + rows, left : left + columns]


def build(parameters: NetworkParameters) -> UNet:
    """A freshly initialised network."""
    return UNet(parameters)


def count_parameters(network: nn.Module) -> int:
    """Number of trainable figures."""
    return sum(p.numel() for p in network.parameters())


OLD_PARAMETERS = NetworkParameters()


def import_old_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of the KiTS19 system's checkpoint to this module's.

    Args:
        state: plain state dictionary with or without the prefix ``module.``.

    Raises:
        ValueError: a key that this network has no place for, or a missing one.
    """
    depth = OLD_PARAMETERS.depth
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = key.removeprefix("module.").split(".")
        match parts:
            case ["encoder", "encBlocks", level, layer, name]:
                new = f"encoder.{level}.{_old_layer(layer, key)}.{name}"
            case ["decoder", "decBlocks", level, layer, name]:
                new = f"decoder.{level}.{_old_layer(layer, key)}.{name}"
            case ["decoder", "upconv", level, name]:
                new = f"up.{level}.layer.{name}"
            case ["head", name]:
                new = f"head.{name}"
            case _:
                raise ValueError(f"key {key!r} is not one of a {depth}-level KiTS19 U-Net")
        renamed[new] = value
    with torch.device("meta"):
        expected = build(OLD_PARAMETERS).state_dict()
    for key, value in expected.items():
        if key not in renamed:
            raise ValueError(f"{key} is missing from the old checkpoint")
        if renamed[key].shape != value.shape:
            raise ValueError(
                f"{key} has shape {tuple(renamed[key].shape)} instead of {tuple(value.shape)}"
            )
    if len(renamed) != len(expected):
        raise ValueError("the old checkpoint holds more levels than the network")
    return renamed


def _old_layer(layer: str, key: str) -> str:
    names = {"conv1": "conv1", "conv2": "conv2", "bc1": "norm1", "bc2": "norm2"}
    if layer not in names:
        raise ValueError(f"key {key!r} names the unknown layer {layer!r}")
    return names[layer]
