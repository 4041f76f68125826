"""Slices through the network: whatever the batches, tiles, precision or activation."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from toys import random_model, receptive_radius

from KidneySegLib import predict as room
from KidneySegLib.backends.torchbackend import TorchBackend, choose_device, choose_precision
from KidneySegLib.errors import Cancelled, UsageError
from KidneySegLib.network import NetworkParameters, margin, valid_size
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import Preprocessing


def slices(shape, seed=3) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.fixture
def make(tmp_path):
    """A backend with random weights."""

    def made(precision="float32", fields=None, **network):
        parameters = NetworkParameters(**{"features": 2, "depth": 3, **network})
        return TorchBackend(
            random_model(
                tmp_path / f"m{len(list(tmp_path.iterdir()))}", parameters, **fields or {}
            ),
            "cpu",
            precision,
        )

    return made


def straight(backend: TorchBackend, working: np.ndarray) -> np.ndarray:
    """A whole slice at a time, mirrored to a size that fits, written down a second time."""
    network = backend.model.network
    border = margin(network)
    _, rows, columns = working.shape
    pads = [(border, border + valid_size(network, length) - length) for length in (rows, columns)]
    answers = []
    for one in working:
        mirrored = np.pad(one, pads, mode="reflect")
        logits = backend.network(torch.from_numpy(mirrored)[None, None])[0]
        answers.append(torch.softmax(logits, 0)[1, :rows, :columns].numpy())
    return np.array(answers)


@pytest.mark.parametrize("padding", [True, False], ids=["padded", "unpadded"])
@pytest.mark.parametrize("shape", [(3, 40, 53), (1, 7, 33), (2, 16, 16)], ids=str)
def test_slices_of_any_size_go_through_whole(make, padding, shape):
    backend = make(padding=padding)
    working = slices(shape)
    got = predict(working, 3.0, backend)
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, straight(backend, working), atol=6e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 30), (2, 30, 1), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "unpadded"])
def test_slices_narrower_than_the_border_go_through(make, padding, shape):
    got = predict(slices(shape), 3.0, make(padding=padding))
    assert got.shape == shape and np.isfinite(got).all()


@pytest.mark.parametrize("up", ["transposed", "interpolation"])
@pytest.mark.parametrize("tile", [24, 37, 64])
def test_tiles_of_an_unpadded_network_give_the_whole_slices_result(make, tile, up):
    backend = make(padding=False, up_sampling=up)
    working = slices((2, 117, 90))
    tiled = predict(working, 3.0, backend, tile=tile).astype(np.float32)
    whole = predict(working, 3.0, backend, tile=1000).astype(np.float32)
    # Mirroring ends at different places, which an interpolating decoder sees at the very end.
    end = None if up == "transposed" else -backend.model.network.multiple
    np.testing.assert_allclose(tiled[:, :end, :end], whole[:, :end, :end], rtol=0, atol=6e-4)


@pytest.mark.parametrize("up", ["transposed", "interpolation"])
@pytest.mark.parametrize("tile", [101, 120])
def test_tiles_of_a_padded_network_give_the_whole_slices_result_away_from_the_edges(make, tile, up):
    backend = make(up_sampling=up)
    working = slices((2, 130, 203))
    tiled = predict(working, 3.0, backend, tile=tile).astype(np.float32)
    whole = predict(working, 3.0, backend, tile=1000).astype(np.float32)
    edge = receptive_radius(backend.model.network)
    # Both are kept as float16, whose steps below 1 are 0.0005.
    np.testing.assert_allclose(tiled[:, :-edge, :-edge], whole[:, :-edge, :-edge], atol=6e-4)


@pytest.mark.parametrize("up", ["transposed", "interpolation"])
def test_tiles_of_an_inception_network_give_the_whole_slices_result_away_from_the_edges(make, up):
    backend = make(kind="inception-unet", features=5, up_sampling=up)
    working = slices((2, 130, 303))
    tiled = predict(working, 3.0, backend, tile=200).astype(np.float32)
    whole = predict(working, 3.0, backend, tile=1000).astype(np.float32)
    assert whole.std() > 0.01
    # The reach of the blocks: 4 pixels at each of 3 levels down and 2 up, of 1, 2 and 4 pixels.
    edge = 4 * (1 + 2 + 4 + 2 + 1) + backend.model.network.multiple
    np.testing.assert_allclose(tiled[:, :-edge, :-edge], whole[:, :-edge, :-edge], atol=6e-4)


@pytest.mark.parametrize("tile", [1000, 24])
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "unpadded"])
def test_channels_of_a_neighbour_stay_together_and_neighbours_in_order(make, padding, tile):
    backend = make(padding=padding, in_channels=3, context_slices=3)
    working = slices((5, 3, 21, 26))
    seen = []
    ask = backend.network.forward

    def listen(batch):
        seen.append(batch)
        return ask(batch)

    backend.network.forward = listen
    got = predict(working, 3.0, backend, tile=tile)
    assert got.shape == (5, 21, 26)
    border = margin(backend.model.network)
    first = seen[0][2, :, border : border + 8, border : border + 8].numpy()
    expected = np.concatenate([working[1], working[2], working[3]])[:, :8, :8]
    np.testing.assert_array_equal(first, expected)


def test_one_channel_with_an_axis_of_its_own_is_no_other_result(make):
    backend = make(context_slices=3)
    working = slices((4, 20, 24))
    np.testing.assert_array_equal(
        predict(working[:, None], 3.0, backend), predict(working, 3.0, backend)
    )


@pytest.mark.parametrize(
    ("activation", "labels"),
    [("softmax", ("background", "kidney", "tumour")), ("sigmoid", ("kidney", "tumour"))],
)
def test_every_class_is_answered_when_asked_and_adds_up_to_kidney(make, activation, labels):
    backend = make(classes=len(labels), fields={"activation": activation, "labels": labels})
    working = slices((3, 37, 50))
    each = predict(working, 3.0, backend, classes=True).astype(np.float32)
    assert each.shape == (3, len(labels), 37, 50)
    assert all(one.std() > 0.01 for one in each.swapaxes(0, 1))
    kidney = predict(working, 3.0, backend).astype(np.float32)
    if activation == "softmax":
        np.testing.assert_allclose(each.sum(1), 1, atol=2e-3)
        np.testing.assert_allclose(each[:, 1:].sum(1), kidney, atol=2e-3)
    else:
        np.testing.assert_array_equal(each.max(1), kidney)


def test_every_pixel_is_answered_whatever_the_tile():
    asked = []

    def backend(batch):
        asked.append(batch.shape)
        return batch[:, 0] + 1

    backend.model = SimpleNamespace(
        network=NetworkParameters(features=1, depth=5), preprocessing=Preprocessing()
    )
    for rows, columns, tile in ((70, 33, 16), (65, 300, 64), (129, 129, 100), (17, 1, 16)):
        working = slices((2, rows, columns))
        got = predict(working, 3.0, backend, tile=tile)
        np.testing.assert_allclose(got, working + 1, atol=1e-3)
    assert len(asked) < 150


def test_a_larger_batch_does_not_change_the_result(make, monkeypatch):
    backend = make(context_slices=3)
    working = slices((7, 20, 24))
    results = []
    for pixels in (1, 3 * 20 * 24, 10**9):
        monkeypatch.setattr(room, "PIXELS_AT_ONCE", pixels)
        results.append(predict(working, 1.0, backend).astype(np.float32))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-3)


def test_neighbours_are_channels_in_order_at_their_distance():
    seen = []

    def backend(batch):
        seen.append(batch[:, :, 0, 0])
        return batch[:, 1]

    backend.model = SimpleNamespace(
        network=NetworkParameters(features=1, depth=1, context_slices=3),
        preprocessing=Preprocessing(context_mm=3.0),
    )
    working = np.arange(6, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    predict(working, 1.5, backend)
    np.testing.assert_array_equal(
        np.concatenate(seen),
        [[0, 0, 2], [0, 1, 3], [0, 2, 4], [1, 3, 5], [2, 4, 5], [3, 5, 5]],
    )


@pytest.mark.parametrize(
    ("activation", "labels", "expected"),
    [
        ("softmax", ("background", "kidney"), lambda z: torch.softmax(z, 1)[:, 1]),
        ("softmax", ("kidney", "background"), lambda z: torch.softmax(z, 1)[:, 0]),
        (
            "softmax",
            ("background", "kidney", "tumour"),
            lambda z: 1 - torch.softmax(z, 1)[:, 0],
        ),
        ("sigmoid", ("kidney",), lambda z: torch.sigmoid(z)[:, 0]),
        ("sigmoid", ("kidney", "tumour"), lambda z: torch.sigmoid(z).max(1).values),
    ],
)
def test_kidney_is_what_the_labels_and_the_activation_say(make, activation, labels, expected):
    backend = make(classes=len(labels), fields={"activation": activation, "labels": labels})
    batch = slices((2, 1, 16, 16))
    with torch.inference_mode():
        want = expected(backend.network(torch.from_numpy(batch))).numpy()
    assert want.std() > 0.01
    np.testing.assert_allclose(backend(batch), want, atol=1e-6)


def test_progress_rises_to_one_and_cancelling_stops_between_two_batches(make, monkeypatch):
    monkeypatch.setattr(room, "PIXELS_AT_ONCE", 2 * 16 * 16)
    backend = make()
    told: list[float] = []
    predict(slices((7, 16, 16)), 3.0, backend, told.append)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) == 4
    told.clear()
    with pytest.raises(Cancelled) as caught:
        predict(slices((7, 16, 16)), 3.0, backend, told.append, lambda: len(told) == 2)
    assert len(told) == 2 and caught.value.exit_code == 130


def test_memory_stays_near_the_size_of_the_volume():
    def backend(batch):
        return batch[:, 1]

    backend.model = SimpleNamespace(
        network=NetworkParameters(features=1, depth=3, context_slices=3),
        preprocessing=Preprocessing(),
    )
    working = np.zeros((160, 128, 130), np.float32)
    tracemalloc.start()
    predict(working, 3.0, backend)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    batch = room.PIXELS_AT_ONCE * 3 * 4
    assert peak < working.nbytes / 2 + 3 * batch


# --- Devices and precision --------------------------------------------------------------------


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:x", "cuda:-1", "cpu:1", "mps:0", "", "cuda:99", "CPU"]
)
def test_unknown_and_absent_devices_are_wrong_usage(device):
    with pytest.raises(UsageError, match=r"[Dd]evice.*use .*cpu") as caught:
        choose_device(device)
    assert caught.value.exit_code == 2


def test_a_device_that_is_there_is_taken():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_unknown_precisions_are_wrong_usage():
    with pytest.raises(UsageError, match="float16"):
        choose_precision("float16", torch.device("cpu"))
    assert choose_precision("float32", torch.device("cpu")) == "float32"
    assert choose_precision("auto", torch.device("mps")) == "float32"


def test_bfloat16_gives_nearly_the_probabilities_of_float32(make):
    working = slices((3, 32, 48))
    full = predict(working, 3.0, make(features=8)).astype(np.float32)
    half = predict(working, 3.0, make("bfloat16", features=8)).astype(np.float32)
    assert full.std() > 0.02
    assert np.abs(full - half).mean() < 0.02


def test_a_network_in_training_is_used_instead_of_stored_weights(make):
    backend = make()
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1))
    used = TorchBackend(backend.model, "cpu", "float32", network)
    assert used(slices((1, 1, 8, 8))).shape == (1, 8, 8)
    assert used.network is network


@pytest.mark.parametrize("classes", [False, True], ids=["kidney", "classes"])
def test_mirroring_is_the_mean_of_both_answers_and_blind_to_left_and_right(make, classes):
    backend = make()
    working = slices((3, 24, 32))
    plain, mirrored = (
        predict(working, 3.0, backend, classes=classes, mirror=mirror) for mirror in (False, True)
    )
    other = predict(np.ascontiguousarray(working[..., ::-1]), 3.0, backend, classes=classes)
    np.testing.assert_allclose(
        mirrored, (plain.astype(float) + other[..., ::-1].astype(float)) / 2, atol=2e-3
    )
    assert not np.allclose(mirrored, plain, atol=2e-3)
    again = predict(working[..., ::-1].copy(), 3.0, backend, classes=classes, mirror=True)
    np.testing.assert_allclose(again[..., ::-1], mirrored, atol=2e-3)


def test_a_batch_has_the_slices_that_were_asked_for(make, monkeypatch):
    backend = make()
    sizes = []
    real = TorchBackend.__call__
    monkeypatch.setattr(
        TorchBackend, "__call__", lambda self, batch: sizes.append(len(batch)) or real(self, batch)
    )
    working = slices((7, 16, 16))
    results = [predict(working, 3.0, backend, batch_slices=count) for count in (None, 1, 3)]
    assert sizes == [7, *[1] * 7, 3, 3, 1]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-3)


def test_a_finders_answer_reaches_the_network_as_the_last_channel_of_its_own_slice(tmp_path):
    seen = []

    class Backend:
        model = toys.random_model(
            tmp_path / "m", NetworkParameters(features=2, depth=2, context_slices=3, prior=True)
        )

        def __call__(self, batch):
            seen.append(batch)
            return batch[:, -1]

    working, prior = slices((5, 16, 16)), slices((5, 16, 16), seed=9)
    answer = predict(working, 3.0, Backend(), prior=prior)
    assert seen[0].shape == (5, 4, 16, 16)
    np.testing.assert_allclose(answer, prior, atol=1e-3)
    mirrored = predict(working, 3.0, Backend(), prior=prior, mirror=True)
    np.testing.assert_allclose(mirrored, prior, atol=1e-3)


def test_probabilities_too_small_for_halves_are_rounded_the_fast_way(make):
    """The slow way, one by one, NumPy reports an underflow."""
    backend = make()
    with torch.no_grad():
        backend.network.head.bias += torch.tensor([8.0, -8.0])
    working = slices((2, 32, 32))
    expected = straight(backend, working)
    assert 0 < np.median(expected) < 1e-5
    with np.errstate(under="raise"):
        got = predict(working, 3.0, backend)
    np.testing.assert_allclose(got, expected, atol=1e-7, rtol=2**-10)
