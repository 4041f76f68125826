"""The ONNX file of a model: the same network, the weights stored once, and whose they are."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import copying_model, everything_in, random_model

from KidneySegLib import cli
from KidneySegLib.backends.openvinobackend import shared_core
from KidneySegLib.errors import ModelError, UsageError
from KidneySegLib.looknetwork import LookNetwork, probabilities
from KidneySegLib.model import (
    CARD_FILE,
    FINDER_FOLDER,
    ONNX_FILE,
    VIEWS_FOLDER,
    WEIGHTS_FILE,
    Model,
    load_model,
)
from KidneySegLib.modelsaving import add_onnx, save_model
from KidneySegLib.network import build
from KidneySegLib.parameters import NetworkParameters, margin, valid_size, weight_shapes
from KidneySegLib.preprocess import Preprocessing
from KidneySegLib.regions import Search
from KidneySegLib.secondlook import Look, SecondLook, component_views

VARIANTS = [
    {"kind": kind, "padding": padding, "up_sampling": up, "normalisation": place, "depth": depth}
    for kind, padding, up, place, depth in itertools.product(
        ("unet", "inception-unet"),
        (True, False),
        ("transposed", "interpolation"),
        ("after_relu", "before_relu"),
        (1, 2, 4),
    )
    if kind == "unet" or padding
]
MORE = [
    {"classes": 1, "depth": 2},
    {"classes": 3, "depth": 2, "context_slices": 5},
    {"in_channels": 3, "depth": 2, "prior": True},
]


def named(variant: dict) -> str:
    return " ".join(str(value) for value in variant.values())


def labels_of(network: NetworkParameters) -> dict:
    if network.classes == 1:
        return {"labels": ("kidney",), "activation": "sigmoid"}
    return {"labels": ("background", "kidney", "tumour")[: network.classes]}


@pytest.fixture
def model(tmp_path) -> Model:
    return copying_model(tmp_path / "toy")


def logits_of(folder: Path, slices: np.ndarray) -> np.ndarray:
    compiled = shared_core().compile_model(
        str(folder / ONNX_FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(slices)[0]


@pytest.mark.parametrize("variant", VARIANTS + MORE, ids=named)
def test_every_network_answers_as_in_torch_whatever_the_size_of_the_slices(tmp_path, variant):
    network = NetworkParameters(**{"features": 4, **variant})
    model = random_model(tmp_path / "model", network, **labels_of(network))
    reference = model.load_network()
    for rows, columns in ((20, 37), (33, 20)):
        size = [valid_size(network, length) + 2 * margin(network) for length in (rows, columns)]
        random = np.random.default_rng(rows)
        slices = random.random((2, network.input_channels, *size), dtype=np.float32)
        with torch.inference_mode():
            wanted = reference(torch.from_numpy(slices)).numpy()
        got = logits_of(model.folder, slices)
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("variant", VARIANTS + MORE, ids=named)
def test_the_shapes_of_weights_are_foretold_without_torch(variant):
    network = NetworkParameters(**{"features": 8, **variant})
    state = {key: tuple(value.shape) for key, value in build(network).state_dict().items()}
    assert list(weight_shapes(network).items()) == list(state.items())


def test_so_are_those_of_the_second_look():
    look = SecondLook(features=3)
    state = {key: tuple(value.shape) for key, value in LookNetwork(look).state_dict().items()}
    assert look.weight_shapes == state


def test_weights_are_stored_once(tmp_path):
    folder = random_model(tmp_path / "model", NetworkParameters(features=16, depth=4)).folder
    assert (folder / ONNX_FILE).stat().st_size < (folder / WEIGHTS_FILE).stat().st_size / 20


def test_weights_in_half_precision_serve_too(tmp_path):
    network = NetworkParameters(features=4, depth=3)
    model = random_model(tmp_path / "model", network, half_weights=True)
    kinds = {value.dtype for value in load_file(model.folder / WEIGHTS_FILE).values()}
    assert torch.float16 in kinds
    slices = np.random.default_rng(0).random((1, 1, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        wanted = model.load_network()(torch.from_numpy(slices)).numpy()
    assert np.abs(logits_of(model.folder, slices) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_finder_and_views_have_theirs(tmp_path):
    coronal = Preprocessing(view="coronal")
    finder = copying_model(tmp_path / "finder")
    view = copying_model(tmp_path / "coronal", preprocessing=coronal)
    main = copying_model(tmp_path / "main")
    whole = save_model(
        Model(
            name="whole",
            version="1",
            network=main.network,
            preprocessing=main.preprocessing,
            finder=finder,
            search=Search(),
            views=(view,),
        ),
        main.load_network().state_dict(),
        tmp_path / "whole",
    )
    parts = [Path(), Path(FINDER_FOLDER), Path(VIEWS_FOLDER, "coronal")]
    for part in parts:
        (whole.folder / part / ONNX_FILE).unlink()
    add_onnx(whole.folder)
    for part in parts:
        folder = whole.folder / part
        assert load_model(folder).graph() == folder / ONNX_FILE


def test_it_is_added_to_a_model_that_has_none_and_nothing_else_changes(model, capsys):
    written = everything_in(model.folder)
    (model.folder / ONNX_FILE).unlink()
    path = model.folder / CARD_FILE
    card = json.loads(path.read_text())
    del card["onnx"]
    path.write_text(json.dumps(card))
    with pytest.raises(ModelError, match="has no ONNX file"):
        load_model(model.folder).graph()
    assert cli.main(["models", "--add-onnx", str(model.folder)]) == 0
    assert "has its ONNX file now" in capsys.readouterr().out
    assert everything_in(model.folder) == written


def test_without_the_package_onnx_a_model_is_saved_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = copying_model(tmp_path / "toy")
    assert model.onnx is None and not (model.folder / ONNX_FILE).exists()
    assert load_model(model.folder).load_network() is not None
    with pytest.raises(UsageError, match="pip install onnx"):
        add_onnx(model.folder)


def new_weights(folder: Path) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    state["head.bias"] += 1
    save_file(state, folder / WEIGHTS_FILE)


def other_network(folder: Path) -> None:
    path = folder / CARD_FILE
    card = json.loads(path.read_text())
    card["network"]["normalisation"] = "before_relu"
    path.write_text(json.dumps(card))


def other_graph(folder: Path) -> None:
    path = folder / ONNX_FILE
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (new_weights, "the weights have changed"),
        (other_network, "the network in the card has changed"),
        (other_graph, "the file itself has changed"),
        (lambda folder: (folder / ONNX_FILE).unlink(), f"has no {ONNX_FILE}"),
    ],
    ids=["weights", "card", "graph", "no file"],
)
def test_a_file_that_belongs_to_other_weights_is_refused_until_it_is_written_anew(
    model, change, reason
):
    assert load_model(model.folder).graph().is_file()
    change(model.folder)
    with pytest.raises(ModelError, match=reason):
        load_model(model.folder).graph()
    add_onnx(model.folder)
    assert load_model(model.folder).graph().is_file()


def test_a_copied_model_keeps_its_file(model, tmp_path):
    shutil.copytree(model.folder, tmp_path / "copy")
    assert load_model(tmp_path / "copy").graph() == tmp_path / "copy" / ONNX_FILE


def test_a_model_saved_again_has_the_file_of_its_new_weights(model, tmp_path):
    state = {key: value * 2 for key, value in model.load_network().state_dict().items()}
    again = save_model(model, state, tmp_path / "again")
    assert load_model(again.folder).graph().is_file()
    assert load_model(again.folder).onnx != model.onnx


def test_nothing_is_added_to_a_model_whose_weights_are_broken(model):
    state = load_file(model.folder / WEIGHTS_FILE)
    state["head.bias"][0] = float("nan")
    save_file(state, model.folder / WEIGHTS_FILE)
    before = everything_in(model.folder)
    with pytest.raises(ModelError, match="not finite"):
        add_onnx(model.folder)
    assert everything_in(model.folder) == before


def test_the_second_look_answers_as_in_torch(tmp_path):
    for pixels, features in ((64, 16), (30, 5), (17, 2)):
        parameters = SecondLook(pixels=pixels, features=features)
        generator = torch.Generator().manual_seed(pixels)
        network = LookNetwork(parameters).eval()
        state = network.state_dict()
        for key, value in state.items():
            if key.endswith(("running_var", ".weight")) and value.ndim == 1:
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.ndim:
                share = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
                value.copy_(torch.randn(value.shape, generator=generator) * share)
        look = Look(parameters, {key: value.numpy() for key, value in state.items()})
        random = np.random.default_rng(pixels)
        volume = random.normal(40, 100, (20, 50, 60)).astype(np.int16)
        mask = np.zeros((9, 20, 18), bool)
        mask[2:7, 3:17, 4:15] = True
        box = (slice(5, 14), slice(10, 30), slice(20, 38))
        got = look(volume, (5.0, 4.0, 4.0), box, mask)
        views = component_views(volume, (5.0, 4.0, 4.0), box, mask, parameters)
        wanted = float(probabilities(network, torch.from_numpy(views)[None])[0])
        assert got == pytest.approx(wanted, abs=1e-5)
        assert 1e-4 < wanted < 1 - 1e-4
