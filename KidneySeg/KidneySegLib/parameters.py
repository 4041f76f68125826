"""What fixes the shape of a network, and what follows from it without building one.

Segmenting with an engine other than torch needs the shapes of the weights and the sizes of the
slices, but not the network's own code, which is in `network`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

NORMALISATION_PLACES = ("after_relu", "before_relu")
UP_SAMPLINGS = ("transposed", "interpolation")
DROPOUT_PLACES = ("lowest", "everywhere")
KINDS = ("unet", "inception-unet")


@dataclass(frozen=True)
class NetworkParameters:
    """Everything that fixes the shape of a network; stored as ``network`` in ``model.json``.

    Attributes:
        kind: ``unet``, or ``inception-unet`` with blocks of several kernel sizes side by side.
        in_channels: channels of one slice (1 for CT, 3 for colour pictures).
        context_slices: odd number of neighbouring slices given as channels (2.5-D); 1 is plain 2-D.
        prior: what a finder thinks of the slice is given as one more channel, the last.
        classes: output channels, background included; 1 means a sigmoid instead of a softmax.
        features: channels of the finest level; every level below doubles them.
        depth: number of levels, the lowest included.
        padding: pad convolutions so that input and output sizes agree; without padding the skip
            connections are cropped as in the paper and the output is smaller than the input.
        dropout: probability of dropping a whole channel.
        dropout_place: ``lowest`` level only, or ``everywhere``.
        normalisation: batch norm ``after_relu`` (KiTS19 system) or ``before_relu``.
        up_sampling: ``transposed`` 2x2 convolution, or bilinear ``interpolation`` and a 1x1
            convolution.
    """

    kind: str = "unet"
    in_channels: int = 1
    context_slices: int = 1
    prior: bool = False
    classes: int = 2
    features: int = 64
    depth: int = 5
    padding: bool = True
    dropout: float = 0.5
    dropout_place: str = "lowest"
    normalisation: str = "after_relu"
    up_sampling: str = "transposed"

    def __post_init__(self) -> None:
        for name, high in (
            ("in_channels", 64),
            ("context_slices", 63),
            ("classes", 256),
            ("features", 1024),
            ("depth", 8),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
                raise ValueError(f"{name} must be a whole number from 1 to {high}, not {value!r}")
        if self.context_slices % 2 != 1:
            raise ValueError(f"context_slices must be an odd number, not {self.context_slices!r}")
        for name in ("padding", "prior"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        for name, choices in (
            ("kind", KINDS),
            ("dropout_place", DROPOUT_PLACES),
            ("normalisation", NORMALISATION_PLACES),
            ("up_sampling", UP_SAMPLINGS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        if self.kind == "inception-unet":
            if not self.padding:
                raise ValueError("padding cannot be left out of an inception-unet")
            if self.features < 4:
                raise ValueError(
                    "features must be at least 4 for the branches of an inception-unet"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkParameters:
        """Read the ``network`` entry of a model; raises ValueError naming what is not known."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown network parameter {', '.join(unknown)}")
        return cls(**values)

    @property
    def input_channels(self) -> int:
        """Channels that reach the first convolution."""
        return self.in_channels * self.context_slices + self.prior

    @property
    def reach(self) -> int:
        """How far a pixel is felt on each side of it after the two convolutions of a block."""
        return 4 if self.kind == "inception-unet" else 2

    @property
    def multiple(self) -> int:
        """Padded networks take slices whose rows and columns are multiples of this."""
        return 2 ** (self.depth - 1)


def margin(parameters: NetworkParameters) -> int:
    """Pixels that an unpadded network loses on each side (92 for the paper's five levels)."""
    if parameters.padding:
        return 0
    lost = 4 * (2 ** (parameters.depth - 1))
    for level in range(parameters.depth - 1):
        lost += 2 * 4 * 2**level
    return lost // 2


def valid_size(parameters: NetworkParameters, at_least: int) -> int:
    """The smallest network *output* of at least ``at_least`` pixels that every level divides.

    The matching input is ``valid_size + 2 * margin``.
    """
    step = parameters.multiple
    if parameters.padding:
        return -(-at_least // step) * step
    # Unpadded: going up from a lowest level of n pixels gives an exact chain for every n.
    lowest = 1
    while True:
        size = lowest
        for _ in range(parameters.depth - 1):
            size = 2 * size - 4
        if size >= max(at_least, 1):
            return size
        lowest += 1


@dataclass(frozen=True)
class Branches:
    """Output channels of the convolutions of an `Inception` module.

    The shares of the branches and of the 1x1 convolutions before the 3x3 and 5x5 ones are those of
    module 3a of Szegedy et al. (arXiv:1409.4842).
    """

    ones: int
    before_3: int
    threes: int
    before_5: int
    fives: int
    pooled: int

    @classmethod
    def of(cls, features: int) -> Branches:
        few = max(1, features // 8)
        ones = max(1, features // 4)
        # A branch behind a single channel would be lost for good once its ReLU answers only zero.
        before_3, before_5 = max(4, features * 3 // 8), max(4, features // 16)
        return cls(ones, before_3, features - ones - 2 * few, before_5, few, few)


Tensors = dict[str, tuple[int, ...]]


def weight_shapes(parameters: NetworkParameters) -> Tensors:
    """Name and shape of every tensor of the network's state, in the order of its modules."""
    shapes: Tensors = {}
    channels = parameters.input_channels
    widths = [parameters.features * 2**level for level in range(parameters.depth)]
    for level, width in enumerate(widths):
        shapes |= _block(f"encoder.{level}", channels, width, parameters)
        channels = width
    for number, level in enumerate(reversed(range(parameters.depth - 1))):
        above, width = widths[level + 1], widths[level]
        if parameters.up_sampling == "transposed":
            shapes[f"up.{number}.layer.weight"] = (above, width, 2, 2)
            shapes[f"up.{number}.layer.bias"] = (width,)
        else:
            shapes |= _convolution(f"up.{number}.layer.1", above, width, 1)
    for number, level in enumerate(reversed(range(parameters.depth - 1))):
        shapes |= _block(f"decoder.{number}", 2 * widths[level], widths[level], parameters)
    return shapes | _convolution("head", widths[0], parameters.classes, 1)


def _block(name: str, channels: int, width: int, parameters: NetworkParameters) -> Tensors:
    shapes: Tensors = {}
    for layer in ("1", "2"):
        for place, before, after, size in convolutions(
            f"{name}.conv{layer}", channels, width, parameters
        ):
            shapes |= _convolution(place, before, after, size)
        shapes |= norm_shapes(f"{name}.norm{layer}", width)
        channels = width
    return shapes


def convolutions(
    name: str, channels: int, width: int, parameters: NetworkParameters
) -> Iterator[tuple[str, int, int, int]]:
    """(name, input channels, output channels, kernel size) of what one convolution consists of."""
    if parameters.kind != "inception-unet":
        yield name, channels, width, 3
        return
    branches = Branches.of(width)
    yield f"{name}.branch1", channels, branches.ones, 1
    yield f"{name}.reduce3", channels, branches.before_3, 1
    yield f"{name}.branch3", branches.before_3, branches.threes, 3
    yield f"{name}.reduce5", channels, branches.before_5, 1
    yield f"{name}.branch5", branches.before_5, branches.fives, 5
    yield f"{name}.branch_pool", channels, branches.pooled, 1


def _convolution(name: str, channels: int, width: int, size: int) -> Tensors:
    return {f"{name}.weight": (width, channels, size, size), f"{name}.bias": (width,)}


def norm_shapes(name: str, width: int) -> Tensors:
    """The tensors of a batch norm."""
    shapes: Tensors = {
        f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    return {**shapes, f"{name}.num_batches_tracked": ()}
