"""A model is a folder: what is refused and why, where it is looked for, how it is written."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import copying_model, everything_in

from KidneySegLib import modelplaces, modelsaving
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.checkpointimport import import_checkpoint
from KidneySegLib.errors import KidneySegError, ModelError
from KidneySegLib.model import CARD_FILE, ONNX_FILE, WEIGHTS_FILE, load_model
from KidneySegLib.modelplaces import find_model, list_cards, list_models
from KidneySegLib.modelsaving import save_model
from KidneySegLib.network import NetworkParameters
from KidneySegLib.preprocess import Preprocessing
from KidneySegLib.segment import segment

NETWORK = NetworkParameters(features=1, depth=2)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder to spoil."""
    copying_model(tmp_path / "toy", NETWORK, card={"licence": "none"})
    return tmp_path / "toy"


def edit(folder: Path, **changes) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    for key, value in changes.items():
        if value is ...:
            del card[key]
        elif isinstance(value, dict):
            card[key] = {**card[key], **value}
        else:
            card[key] = value
    (folder / CARD_FILE).write_text(json.dumps(card))


def reweigh(folder: Path, change) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    change(state)
    save_file(state, folder / WEIGHTS_FILE)


def test_what_is_saved_comes_back(tmp_path):
    network = NetworkParameters(features=2, depth=2, context_slices=3, up_sampling="interpolation")
    preprocessing = Preprocessing((-50.0, 300.0), pixel_mm=1.5, slice_mm=3.0, crop=True)
    card = {"licence": "CC0", "trained_on": ["a", "b"], "scores": {"dice": 0.5}}
    saved = copying_model(
        tmp_path / "deep" / "er" / "toy", network, preprocessing, threshold=0.4, card=card
    )
    loaded = load_model(tmp_path / "deep" / "er" / "toy")
    assert loaded == saved
    assert loaded.card == card
    network = loaded.load_network()
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_weights_stored_in_half_precision_are_used_in_full(folder):
    reweigh(folder, lambda s: s.update({k: v.half() for k, v in s.items() if v.ndim}))
    backend = TorchBackend(load_model(folder), "cpu", "float32")
    assert backend(np.ones((1, 1, 8, 8), np.float32)).dtype == np.float32


# --- Refused folders --------------------------------------------------------------------------

CARDS = {
    "no model.json": (lambda f: (f / CARD_FILE).unlink(), "has no model.json"),
    "a folder in its place": (
        lambda f: ((f / CARD_FILE).unlink(), (f / CARD_FILE).mkdir()),
        "has no model.json",
    ),
    "broken JSON": (lambda f: (f / CARD_FILE).write_text('{"format": 1,'), "cannot be read"),
    "binary": (lambda f: (f / CARD_FILE).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "a list": (lambda f: (f / CARD_FILE).write_text("[]"), "does not describe a model"),
    "a later format": (lambda f: edit(f, format=4), "format 4 .* reads formats 1 to 3"),
    "no format": (lambda f: edit(f, format=...), "format None"),
    "no name": (lambda f: edit(f, name=...), "lacks the entry 'name'"),
    "no labels": (lambda f: edit(f, labels=...), "lacks the entry 'labels'"),
    "a number as name": (lambda f: edit(f, name=7), "text was expected"),
    "network of another version": (lambda f: edit(f, network={"attention": 1}), "attention"),
    "network a list": (lambda f: edit(f, network=[1]), "not usable"),
    "features in text": (lambda f: edit(f, network={"features": "64"}), "features"),
    "dropout in text": (lambda f: edit(f, network={"dropout": "0.5"}), "dropout"),
    "unknown preprocessing": (lambda f: edit(f, preprocessing={"rotate": 1}), "rotate"),
    "a window upside down": (
        lambda f: edit(f, preprocessing={"window_hu": [275, -125]}),
        "window_hu",
    ),
    "a window of one": (lambda f: edit(f, preprocessing={"window_hu": [1]}), "window_hu"),
    "a window without end": (
        lambda f: edit(f, preprocessing={"window_hu": [-1e999, 0]}),
        "window_hu",
    ),
    "no distance of context": (
        lambda f: edit(f, preprocessing={"context_mm": None}),
        "context_mm",
    ),
    "pixel size in text": (lambda f: edit(f, preprocessing={"pixel_mm": "1.5"}), "pixel_mm"),
    "crop in text": (lambda f: edit(f, preprocessing={"crop": "no"}), "crop"),
    "scaling unknown": (lambda f: edit(f, preprocessing={"scaling": "z"}), "scaling"),
    "too few labels": (lambda f: edit(f, labels=["kidney"]), "1 labels for 2"),
    "labels in one text": (lambda f: edit(f, labels="bk"), "labels"),
    "nothing but background": (lambda f: edit(f, labels=["background"] * 2), "kidney"),
    "activation unknown": (lambda f: edit(f, activation="tanh"), "tanh"),
    "threshold off": (lambda f: edit(f, threshold=1.5), "threshold"),
    "threshold in text": (lambda f: edit(f, threshold="half"), "half"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), "has no weights.safetensors"),
}  # fmt: skip

WEIGHTS = {
    "empty": (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), "cannot be read as safetensors"),
    "truncated": (
        lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-100]),
        "cannot be read as safetensors",
    ),
    "a pickle": (
        lambda f: torch.save({"head.bias": torch.zeros(2)}, f / WEIGHTS_FILE),
        "cannot be read as safetensors",
    ),
    "a shape": (lambda f: edit(f, network={"features": 2}), "with shape"),
    "a level too many": (lambda f: edit(f, network={"depth": 3}), "lacks encoder.2"),
    "a level too few": (lambda f: edit(f, network={"depth": 1}), "holds decoder.0"),
    "a key missing": (lambda f: reweigh(f, lambda s: s.pop("head.bias")), "lacks head.bias"),
    "a key too many": (
        lambda f: reweigh(f, lambda s: s.update({"tail": torch.zeros(1)})),
        "holds tail",
    ),
    "not a number": (
        lambda f: reweigh(f, lambda s: s["head.bias"].fill_(float("nan"))),
        "not finite in head.bias",
    ),
    "infinite": (
        lambda f: reweigh(f, lambda s: s["encoder.0.norm1.running_var"].fill_(float("inf"))),
        "not finite in encoder.0.norm1.running_var",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CARDS)
def test_a_folder_that_is_no_model_is_refused_with_the_reason(folder, kind):
    spoil, text = CARDS[kind]
    spoil(folder)
    with pytest.raises(ModelError, match=text) as caught:
        load_model(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and message.endswith(".")


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_do_not_fit_are_refused_with_the_reason(folder, kind):
    spoil, text = WEIGHTS[kind]
    spoil(folder)
    with pytest.raises(ModelError, match=text) as caught:
        TorchBackend(load_model(folder), "cpu", "float32")
    message = str(caught.value)
    assert str(folder / WEIGHTS_FILE) in message and "\n" not in message


def test_what_is_no_folder_is_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(ModelError, match="is not a model folder"):
            load_model(path)


# --- Looking models up ------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty resources and user folders, and a working folder."""
    resources, user, here = (tmp_path / name for name in ("resources", "user", "here"))
    here.mkdir()
    monkeypatch.setattr(modelplaces, "resources_folder", lambda: resources)
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(user))
    monkeypatch.chdir(here)
    return resources, user, here


def test_a_model_is_looked_for_in_the_resources_then_the_users_folder_then_as_a_path(places):
    for place in reversed(places):
        copying_model(place / "toy", NETWORK)
        assert find_model("toy").folder.resolve() == place / "toy"
    assert find_model(places[1] / "toy").folder == places[1] / "toy"


def test_without_a_name_the_default_model_is_taken(places):
    with pytest.raises(ModelError, match=r"no model 'kidney-.*installed: none.*kidneyseg models"):
        find_model()
    copying_model(places[0] / modelplaces.DEFAULT_MODEL, NETWORK)
    assert find_model().name == modelplaces.DEFAULT_MODEL


def test_a_model_is_found_by_the_name_that_the_list_shows(places):
    copying_model(places[1] / "folder", NETWORK, name="my-unet")
    assert [model.name for model in list_models()[0]] == ["my-unet"]
    assert find_model("my-unet").folder == places[1] / "folder"


def test_the_list_names_what_it_refuses_and_shows_a_name_once(places):
    copying_model(places[0] / "a", NETWORK)
    copying_model(places[1] / "a", NETWORK)
    copying_model(places[1] / "b", NETWORK)
    copying_model(places[1] / "c", NETWORK)
    (places[1] / "c" / WEIGHTS_FILE).unlink()
    (places[1] / "empty").mkdir()
    (places[1] / ".hidden").mkdir()
    (places[1] / "note.txt").touch()
    models, refused = list_models()
    assert [model.folder for model in models] == [places[0] / "a", places[1] / "b"]
    assert len(refused) == 2
    assert str(places[1] / "c") in refused[0] and str(places[1] / "empty") in refused[1]


def test_a_name_with_a_path_in_it_does_not_reach_out_of_the_models_folder(places):
    copying_model(places[0].parent / "outside", NETWORK)
    with pytest.raises(ModelError, match="no model"):
        find_model("../resources/../nowhere")
    places[0].mkdir(exist_ok=True)
    # As a path, relative to the working folder, it is found: that is asked for.
    assert find_model("../outside").folder == Path("../outside")


def test_a_model_of_colour_pictures_is_listed_but_refuses_a_ct(places, toy_ct):
    network = replace(NETWORK, in_channels=3, classes=3)
    model = copying_model(places[1] / "colour", network, labels=("background", "kidney", "tumour"))
    assert list_models() == ([model], [])
    for given in ("colour", model, TorchBackend(model, "cpu", "float32")):
        with pytest.raises(ModelError, match=r"colour was trained on colour pictures \(3 channels"):
            segment(toy_ct, given, device="cpu")


# --- Saving -----------------------------------------------------------------------------------


def test_a_model_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(modelsaving.json, "dumps", fail)
    with pytest.raises(KeyboardInterrupt):
        copying_model(tmp_path / "toy", NETWORK)
    assert everything_in(tmp_path) == {}


def test_an_older_model_is_replaced_only_by_a_complete_one(folder, monkeypatch):
    before = everything_in(folder.parent)
    rename = Path.rename

    def fail_at_the_last_step(self, target):
        if Path(target) == folder and "-old-" not in str(self):
            raise OSError("the folder is in use")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail_at_the_last_step)
        with pytest.raises(OSError, match="in use"):
            copying_model(folder, NETWORK, threshold=0.3)
    assert everything_in(folder.parent) == before
    copying_model(folder, NETWORK, threshold=0.3)
    assert load_model(folder).threshold == 0.3
    assert sorted(everything_in(folder.parent)) == [
        "toy", f"toy/{CARD_FILE}", f"toy/{ONNX_FILE}", f"toy/{WEIGHTS_FILE}"
    ]  # fmt: skip


def test_saving_never_takes_the_place_of_what_is_no_model(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("more work")
    before = everything_in(tmp_path)
    for name in ("documents", "file"):
        with pytest.raises(KidneySegError, match=f"{name} .*choose"):
            copying_model(tmp_path / name, NETWORK)
    assert everything_in(tmp_path) == before
    (tmp_path / "empty").mkdir()
    copying_model(tmp_path / "empty", NETWORK)
    assert load_model(tmp_path / "empty").name == "empty"


def test_a_model_that_would_be_refused_is_not_saved(tmp_path, toy_model):
    with pytest.raises(ValueError, match="labels"):
        save_model(replace(toy_model, labels=("kidney",)), {}, tmp_path / "toy")
    assert everything_in(tmp_path) == {}


def test_a_card_cannot_change_what_the_model_is(tmp_path):
    copying_model(tmp_path / "toy", NETWORK, card={"threshold": 0.9, "name": "other", "note": "x"})
    model = load_model(tmp_path / "toy")
    assert (model.name, model.threshold, model.card) == ("toy", 0.5, {"note": "x"})


# --- Importing --------------------------------------------------------------------------------


def test_files_that_are_no_checkpoint_are_refused_in_one_sentence(tmp_path):
    torch.save({"a": torch.zeros(500)}, tmp_path / "good.pt")
    whole = (tmp_path / "good.pt").read_bytes()
    torch.save([torch.zeros(5)], tmp_path / "list.pt")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nested.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint\n" * 100)
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.pt").mkdir()
    names = ["missing", "good", "list", "nested", "text", "empty", "cut", "folder"]
    rng = random.Random(0)
    for number in range(40):  # whatever a damaged disk makes of a pickle
        head = bytes(rng.choice(b"\x80\x02}q.(tRX]ar0cKJNGhj\x85\x86su") for _ in range(12))
        (tmp_path / f"noise{number}.pt").write_bytes(head + b".")
        names.append(f"noise{number}")
    before = everything_in(tmp_path)
    for name in names:
        with pytest.raises(ModelError, match=rf"{name}\.pt") as caught:
            import_checkpoint(tmp_path / f"{name}.pt", tmp_path / "model")
        assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before


def test_cards_are_listed_for_a_window_that_has_no_torch(tmp_path, monkeypatch, toy_model):
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(toy_model.folder.parent))
    more = tmp_path / "more"
    copying_model(more / "mine", card={"licence": "free"})
    copying_model(more / "toy")  # the user's own comes first
    (more / "empty").mkdir()
    (more / "nameless").mkdir()
    shutil.copy(more / "mine" / "weights.safetensors", more / "nameless")
    (more / "nameless" / "model.json").write_text('{"format": 1, "name": ""}', encoding="utf-8")
    cards, refused = list_cards(more, tmp_path / "gone")
    assert [card["name"] for card in cards] == ["kidney-unet-views", "toy", "mine"]
    assert cards[1]["folder"] == toy_model.folder
    assert (cards[2]["licence"], cards[2]["folder"]) == ("free", more / "mine")
    assert len(refused) == 2 and "empty" in refused[0] and "nameless" in refused[1]
    assert [card["name"] for card in list_cards(more / "mine")[0]][-1] == "mine"
