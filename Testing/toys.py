"""Stand-ins for the tests: a toy CT, and networks set by hand that find its kidneys exactly.

In the toy, air is -1000 HU, the body 40 HU and the kidneys 200 HU. A network that copies its input
and asks whether it exceeds a level therefore segments it perfectly, whatever else a U-Net's layers
would do, and every voxel of a result can be foretold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from KidneySegLib.model import Model
from KidneySegLib.modelsaving import save_model
from KidneySegLib.network import NetworkParameters, build, margin
from KidneySegLib.preprocess import Preprocessing

AIR, BODY, KIDNEY = -1000, 40, 200
# Odd, not square, no multiple of 16; slices, rows, columns.
SHAPE = (21, 37, 45)
SPACING_MM = (6.0, 5.5, 7.0)
ORIGIN = (-160.25, -90.5, 480.125)
LEVEL_HU = 120.0

# Directions (LPS) of the columns, rows and slices of an axial array, as the columns of a matrix.
AXIAL = np.diag([1.0, 1.0, -1.0])


def toy(
    kidneys: tuple[str, ...] = ("left", "right"),
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> tuple[np.ndarray, np.ndarray]:
    """An axial int16 volume in HU and its labels (1 left, 2 right)."""
    k, j, i = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)),
        indexing="ij",
    )
    ct = np.full(shape, AIR, np.int16)
    ct[(i / 140) ** 2 + (j / 90) ** 2 < 1] = BODY
    labels = np.zeros(shape, np.uint8)
    # The columns of an axial array run to the patient's left. The left kidney is the larger one.
    for side, label, centre, radii in (
        ("left", 1, (-6.0, 20.0, 65.0), (48.0, 26.0, 30.0)),
        ("right", 2, (6.0, 20.0, -65.0), (42.0, 24.0, 26.0)),
    ):
        if side in kidneys:
            away = sum(((x - c) / r) ** 2 for x, c, r in zip((k, j, i), centre, radii, strict=True))
            labels[away < 1] = label
    ct[labels > 0] = KIDNEY
    return ct, labels


def image_of(
    axial: np.ndarray,
    order: tuple[int, int, int] = (0, 1, 2),
    flips: tuple[bool, bool, bool] = (False, False, False),
    turn: np.ndarray | None = None,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> sitk.Image:
    """An axial array as an image whose file stores its axes in another order and direction.

    Args:
        order: for each axis of the stored array (numpy's count) the axial axis it runs along.
        flips: for each of them whether it runs the other way.
        turn: rotation of the whole patient.
    """
    directions = (np.eye(3) if turn is None else turn) @ AXIAL
    towards = directions[:, ::-1].T  # of slices, rows and columns
    first = np.array(ORIGIN)
    matrix, spacing = np.zeros((3, 3)), [0.0, 0.0, 0.0]
    for axis, (axial_axis, flip) in enumerate(zip(order, flips, strict=True)):
        spacing[2 - axis] = spacing_mm[axial_axis]
        matrix[:, 2 - axis] = -towards[axial_axis] if flip else towards[axial_axis]
        if flip:
            last = axial.shape[axial_axis] - 1
            first = first + towards[axial_axis] * last * spacing_mm[axial_axis]
    stored = axial.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored))
    image.SetSpacing(spacing)
    image.SetOrigin(first.tolist())
    image.SetDirection(matrix.ravel().tolist())
    return image


def copying_state(parameters: NetworkParameters, level: float) -> dict[str, torch.Tensor]:
    """Weights with which the network's logits are kidney where the input exceeds a level.

    The finest level copies the middle slice, the decoder takes the skip connection and nothing of
    what comes from below, and the head compares.
    """
    network = build(parameters)
    state = {key: torch.zeros_like(value) for key, value in network.state_dict().items()}
    for key, value in state.items():
        if ".norm" in key and key.endswith((".weight", ".running_var")):
            value.fill_(1.0)
    middle = parameters.in_channels * parameters.context_slices // 2
    blocks = [("encoder.0", middle)]
    if parameters.depth > 1:
        blocks.append((f"decoder.{parameters.depth - 2}", parameters.features))
    for block, channel in blocks:
        state[f"{block}.conv1.weight"][0, channel, 1, 1] = 1.0
        state[f"{block}.conv2.weight"][0, 0, 1, 1] = 1.0
    kidney = 0 if parameters.classes == 1 else 1
    state["head.weight"][kidney, 0] = 1000.0
    state["head.bias"][kidney] = -1000.0 * level
    return state


def copying_model(
    folder: Path,
    network: NetworkParameters | None = None,
    preprocessing: Preprocessing | None = None,
    **fields,
) -> Model:
    """A model folder that finds the toy's kidneys: what exceeds 120 HU."""
    network = network or NetworkParameters(features=1, depth=3)
    preprocessing = preprocessing or Preprocessing()
    low, high = preprocessing.window_hu
    if preprocessing.scaling == "minmax":
        low, high = AIR, KIDNEY
    state = copying_state(network, (LEVEL_HU - low) / (high - low))
    model = Model(
        name=fields.pop("name", folder.name),
        version="0.1.0",
        network=network,
        preprocessing=preprocessing,
        **fields,
    )
    return save_model(model, state, folder)


def random_model(folder: Path, network: NetworkParameters, seed: int = 0, **fields) -> Model:
    """A model folder with random weights, batch norm statistics included."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in build(network).state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif ".norm" in key and key.endswith((".weight", ".running_var")):
            state[key] = 0.5 + torch.rand(value.shape, generator=generator)
        else:
            fan_in = max(1, value[0].numel()) if value.ndim > 1 else 25
            state[key] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    fields.setdefault("preprocessing", Preprocessing())
    return save_model(
        Model(name=folder.name, version="0.1.0", network=network, **fields), state, folder
    )


def receptive_radius(network: NetworkParameters) -> int:
    """More than how far a pixel of the input can reach in the output, in pixels."""
    return margin(replace(network, padding=False)) + network.multiple


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
