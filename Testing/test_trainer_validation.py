"""What a validation sees of a case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toys
from preparedcases import AIR, KIDNEY_HU, prepared

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.parameters import NetworkParameters
from KidneySegLib.preprocess import Preprocessing
from UNetTrainerLib.losses import LOSSES
from UNetTrainerLib.validation import score_case


def test_surroundings_are_scaled_by_the_minimum_and_maximum_of_the_whole_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = prepared(tmp_path, spacing_mm=(30.0, 30.0, 30.0))
    voxels = np.load(case.voxels_file)
    voxels[0, 0, 0, 0] = 3000  # of a clip or a tooth, far from the kidneys
    np.save(case.voxels_file, voxels)
    model = toys.random_model(
        tmp_path / "model",
        NetworkParameters(features=4, depth=2),
        preprocessing=Preprocessing(scaling="minmax"),
    )
    brightest: list[float] = []

    def half(self: TorchBackend, batch: np.ndarray) -> np.ndarray:
        brightest.append(float(batch.max()))
        return np.full((len(batch), 2, *batch.shape[2:]), 0.5, np.float32)

    monkeypatch.setattr(TorchBackend, "classes", half)
    backend = TorchBackend(model, "cpu", "float32")
    score_case(case, backend, LOSSES["generalized-dice"], around=True)
    assert max(brightest) == pytest.approx((KIDNEY_HU - AIR) / (3000 - AIR))
