"""Slices through the network: batches, and tiles with mirrored borders."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np

from KidneySegLib.backends.base import Backend
from KidneySegLib.errors import Cancelled
from KidneySegLib.parameters import NetworkParameters, margin, valid_size
from KidneySegLib.preprocess import context_offset, with_context

Progress = Callable[[float], None]
PIXELS_AT_ONCE = 16 * 192 * 256
TILE = 768


def predict(
    working: np.ndarray,
    slice_spacing_mm: float,
    backend: Backend,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    batch_slices: int | None = None,
    mirror: bool = False,
    prior: np.ndarray | None = None,
    tile: int = TILE,
    classes: bool = False,
) -> np.ndarray:
    """Kidney probability of every pixel of a scaled working volume.

    Args:
        working: float32 ``(slices, rows, columns)``, scaled to the model's input range, or
            ``(slices, channels, rows, columns)``; all channels of the first neighbour of a slice
            reach the network before those of the next.
        slice_spacing_mm: distance of its slices.
        tile: slices with more rows or columns than this go through in overlapping tiles.
        classes: the probability of every output channel, background included, instead.
        batch_slices: slices that go through the network at once; None fits them to their size.
        mirror: also answer for the mirror image of each slice and take the mean of the two, at
            twice the time. A kidney is a kidney on either side, so no label changes with it.
        prior: what a finder answered, 0..1, of shape (slices, rows, columns); only for a network
            that has a channel for it.

    Returns:
        float16 array ``(slices, rows, columns)``, or ``(slices, classes, rows, columns)``.

    Raises:
        Cancelled: as soon as ``cancelled()`` is true between two batches.
    """
    network = backend.model.network
    offset = context_offset(slice_spacing_mm, backend.model.preprocessing)
    slices, rows, columns = len(working), *working.shape[-2:]
    channels = (network.classes,) if classes else ()
    out = np.zeros((slices, *channels, rows, columns), np.float16)
    border = margin(network)
    down, across = (_spans(length, network, tile) for length in (rows, columns))
    height, width = down[0].size + 2 * border, across[0].size + 2 * border
    at_once = batch_slices or max(1, PIXELS_AT_ONCE // (height * width))
    ask = backend.classes if classes else backend
    for start in range(0, slices, at_once):
        index = np.arange(start, min(start + at_once, slices))
        neighbours = with_context(slices, index, network.context_slices, offset)
        for row, column in product(down, across):
            if cancelled is not None and cancelled():
                raise Cancelled("Cancelled; nothing was written.")
            batch = _cut(working, neighbours, row, column, border)
            if prior is not None:
                known = _cut(prior, index[:, None], row, column, border)
                batch = np.concatenate([batch, known], axis=1)
            answer = ask(batch)
            if mirror:
                mirrored = np.ascontiguousarray(batch[..., ::-1])
                answer = (answer + ask(mirrored)[..., ::-1]) / 2
            kept = answer[
                ...,
                row.first - row.start : row.last - row.start,
                column.first - column.start : column.last - column.start,
            ]
            for number, one in zip(index, kept, strict=True):
                out[number, ..., row.first : row.last, column.first : column.last] = _coarse(one)
        if progress is not None:
            progress((int(index[-1]) + 1) / slices)
    return out


def _coarse(probability: np.ndarray) -> np.ndarray:
    """The same, as finely as halves hold it, so that they are not rounded one by one.

    Halves below 6e-5 are subnormal, and NumPy takes 15 times as long to round to one of these as to
    others. Beside 1, a float32 keeps of a small probability what they do.
    """
    coarse: np.ndarray = probability + np.float32(1)
    coarse -= np.float32(1)
    return coarse


class _Span(NamedTuple):
    """Where a tile lies along rows or columns: its answer, and the part of it that is kept."""

    start: int
    size: int
    first: int
    last: int


def _spans(length: int, network: NetworkParameters, tile: int) -> list[_Span]:
    """Tiles of one size that cover a slice along one axis.

    They start where the network's pooling would start in the whole slice too: shifted by other
    than a multiple of that, a U-Net answers differently.
    """
    size = valid_size(network, min(length, tile))
    if length <= tile:
        return [_Span(0, size, 0, length)]
    overlap = min(_overlap(network), size // 2)
    step = max(network.multiple, (size - overlap) // network.multiple * network.multiple)
    spans: list[_Span] = []
    start = 0
    while True:
        # Half the overlap is left to the tile before; where this one reaches it, it overwrites.
        first = start + (size - step) // 2 if spans else 0
        spans.append(_Span(start, size, first, min(start + size, length)))
        if start + size >= length:
            return spans
        start += step


def _overlap(network: NetworkParameters) -> int:
    """Pixels that two tiles share, so that neither is believed where its edge is felt.

    An unpadded network has real or mirrored surroundings (overlap-tile strategy of the U-Net
    paper), and only interpolation feels the edges of the lower levels. In a padded one the zeros
    beyond the edge reach further with every block, down all levels and up again.
    """
    interpolates = network.up_sampling == "interpolation"
    if not network.padding:
        return 2 * network.multiple if interpolates else 0
    reach = network.reach
    for _ in range(network.depth - 1):
        reach = -(-reach // 2) + network.reach
    for _ in range(network.depth - 1):
        reach = 2 * reach + network.reach + (1 if interpolates else 0)
    return 2 * reach


def _cut(
    working: np.ndarray, neighbours: np.ndarray, row: _Span, column: _Span, border: int
) -> np.ndarray:
    """The network's input for one tile: (N, channels, rows + 2 border, columns + 2 border).

    Its channels are the neighbours, or the channels of each neighbour in turn. What lies beyond the
    slice is its mirror image.
    """
    rows, columns = working.shape[-2:]
    r0, r1 = row.start - border, row.start + row.size + border
    c0, c1 = column.start - border, column.start + column.size + border
    inside = working[..., max(r0, 0) : min(r1, rows), max(c0, 0) : min(c1, columns)]
    batch = np.ascontiguousarray(inside[neighbours])
    batch = batch.reshape(len(batch), -1, *batch.shape[-2:])
    pads = (max(-c0, 0), max(c1 - columns, 0), max(-r0, 0), max(r1 - rows, 0))
    return batch if not any(pads) else _mirror(batch, pads)


def _mirror(batch: np.ndarray, pads: tuple[int, int, int, int]) -> np.ndarray:
    """Reflect as often as it takes: a border may be wider than the slice itself."""
    left, right, top, bottom = pads
    widths = ((0, 0), (0, 0), (top, bottom), (left, right))
    return np.pad(batch, widths, mode="reflect" if min(batch.shape[-2:]) > 1 else "edge")
