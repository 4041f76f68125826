"""What several test files need, made once for a whole session of tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import SimpleITK as sitk
import slicerhost
import torch
import toys

from KidneySegLib.model import Model


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    """Networks this small are slower on many threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _only_these_models(tmp_path_factory, monkeypatch):
    """No test sees the models that the person who runs it has installed."""
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(tmp_path_factory.getbasetemp() / "no-models"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is put into, or taken from, the cache of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIDNEYSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True)
def _signals():
    """The command line takes SIGTERM over; what it did in one test must not reach the next."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Model:
    """A saved model that finds the toy's kidneys exactly."""
    return toys.copying_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def _toy_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    ct, labels = toys.toy()
    sitk.WriteImage(toys.image_of(ct), str(folder / "ct.nii.gz"))
    sitk.WriteImage(toys.image_of(labels), str(folder / "sides.nii.gz"))
    merged = toys.image_of((labels > 0).astype("uint8"))
    sitk.WriteImage(merged, str(folder / "kidney.nii.gz"))
    return folder


@pytest.fixture(scope="session")
def toy_ct(_toy_folder) -> Path:
    return _toy_folder / "ct.nii.gz"


@pytest.fixture(scope="session")
def toy_sides(_toy_folder) -> Path:
    """Labels of the toy: 1 left, 2 right."""
    return _toy_folder / "sides.nii.gz"


@pytest.fixture(scope="session")
def toy_kidney(_toy_folder) -> Path:
    """Labels of the toy: 1 kidney."""
    return _toy_folder / "kidney.nii.gz"


@pytest.fixture
def slicer_scene():
    """The module `slicer` of slicer-core, started like Slicer in batch, with an empty scene."""
    reason = slicerhost.why_not()
    if reason:
        pytest.skip(reason)
    slicer = slicerhost.boot()
    slicerhost.clear(slicer)
    yield slicer
    slicerhost.clear(slicer)
