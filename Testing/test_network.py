"""The U-Net family against its description, and the import of the KiTS19 system's checkpoint."""

from __future__ import annotations

import os
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toys import everything_in

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.checkpointimport import import_checkpoint
from KidneySegLib.errors import ModelError
from KidneySegLib.model import load_model
from KidneySegLib.network import (
    OLD_PARAMETERS,
    Inception,
    NetworkParameters,
    build,
    count_parameters,
    import_old_state,
    margin,
    valid_size,
)
from KidneySegLib.predict import predict
from KidneySegLib.preprocess import scale, to_working


def test_the_kits19_form_has_exactly_31_042_434_parameters():
    with torch.device("meta"):
        assert count_parameters(build(NetworkParameters())) == 31_042_434


@pytest.mark.parametrize("place", ["after_relu", "before_relu"])
def test_a_block_is_convolution_then_relu_then_batch_norm_twice_or_norm_first_when_asked(place):
    torch.manual_seed(0)
    block = build(NetworkParameters(features=3, depth=1, normalisation=place)).eval().encoder[0]
    state = block.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = torch.rand_like(value) + 0.2 if "norm" in key else torch.randn_like(value)
    block.load_state_dict(state)
    x = torch.randn(2, 1, 9, 8)
    expected = x
    for number in "12":
        expected = F.conv2d(
            expected, state[f"conv{number}.weight"], state[f"conv{number}.bias"], padding=1
        )
        steps = [torch.relu, lambda y, n=number: _norm(y, state, f"norm{n}")]
        for step in steps if place == "after_relu" else reversed(steps):
            expected = step(expected)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), expected)
    assert (expected < 0).any() == (place == "after_relu")


def _norm(x, state, name, eps=1e-5):
    mean, variance, weight, bias = (
        state[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def test_convolutions_start_with_xavier_weights_and_no_bias():
    network = build(NetworkParameters(features=8, depth=3))
    weights = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(weights) == 2 * (3 + 2) + 1
    for layer in weights:
        outputs, inputs, *kernel = layer.weight.shape
        bound = (6 / ((inputs + outputs) * np.prod(kernel))) ** 0.5
        assert 0.7 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()


def test_the_unpadded_network_has_the_sizes_of_the_paper():
    parameters = NetworkParameters(features=1, padding=False)
    with torch.inference_mode():
        assert build(parameters).eval()(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    assert margin(parameters) == 92
    assert valid_size(parameters, 380) == 388
    assert margin(NetworkParameters()) == 0


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_valid_sizes_are_what_the_network_gives_and_every_level_divides_them(depth):
    for padding, up in product((True, False), ("transposed", "interpolation")):
        parameters = NetworkParameters(features=1, depth=depth, padding=padding, up_sampling=up)
        network = build(parameters).eval()
        for at_least in (1, 7, 30):
            size, border = valid_size(parameters, at_least), margin(parameters)
            assert size >= at_least
            sizes: list[int] = []
            for block in network.encoder[:-1]:
                block.register_forward_hook(lambda m, x, y, sizes=sizes: sizes.append(y.shape[-1]))
            with torch.inference_mode():
                answer = network(torch.zeros(1, 1, size + 2 * border, size + 2 * border))
            assert answer.shape[-2:] == (size, size)
            assert not any(one % 2 for one in sizes)


@pytest.mark.parametrize("place", ["lowest", "everywhere"])
def test_dropout_drops_whole_channels_at_the_lowest_level_only_or_everywhere(place):
    torch.manual_seed(1)
    parameters = NetworkParameters(features=8, depth=3, dropout=0.6, dropout_place=place)
    network = build(parameters).train()
    dropped = {}
    for name, block in [*network.encoder.named_children(), *network.decoder.named_children()]:
        key = f"{'encoder' if block in list(network.encoder) else 'decoder'}{name}"
        block.register_forward_hook(
            lambda m, x, y, key=key: dropped.update({key: bool((y.abs().amax((2, 3)) == 0).any())})
        )
    network(torch.randn(4, 1, 16, 16))
    expected = {"encoder2"} if place == "lowest" else set(dropped)
    assert {key for key, yes in dropped.items() if yes} == expected
    assert len(dropped) == 5
    dropped.clear()
    with torch.inference_mode():
        network.eval()(torch.randn(4, 1, 16, 16))
    assert not any(dropped.values())


COMBINATIONS = list(
    product(
        (True, False),
        ("lowest", "everywhere"),
        ("after_relu", "before_relu"),
        ("transposed", "interpolation"),
    )
)


@pytest.mark.parametrize(
    ("padding", "place", "norm", "up"),
    COMBINATIONS,
    ids=["-".join(map(str, c)) for c in COMBINATIONS],
)
def test_every_combination_of_options_builds_runs_and_keeps_its_size(padding, place, norm, up):
    for context, classes, depth, channels in ((1, 2, 3, 1), (3, 1, 2, 1), (5, 3, 1, 3)):
        parameters = NetworkParameters(
            in_channels=channels,
            context_slices=context,
            classes=classes,
            features=2,
            depth=depth,
            padding=padding,
            dropout_place=place,
            normalisation=norm,
            up_sampling=up,
        )
        rows, columns = valid_size(parameters, 12), valid_size(parameters, 20)
        border = 2 * margin(parameters)
        network = build(parameters).train()
        slices = torch.randn(2, channels * context, rows + border, columns + border)
        logits = network(slices)
        assert logits.shape == (2, classes, rows, columns)
        logits.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert NetworkParameters.from_dict(vars(parameters)) == parameters


INCEPTIONS = list(
    product(
        ("lowest", "everywhere"), ("after_relu", "before_relu"), ("transposed", "interpolation")
    )
)


@pytest.mark.parametrize(("place", "norm", "up"), INCEPTIONS, ids=map("-".join, INCEPTIONS))
def test_the_inception_form_takes_every_option_of_the_plain_one(place, norm, up):
    for context, classes, depth, channels in ((1, 2, 3, 1), (3, 1, 2, 1), (5, 3, 1, 3)):
        parameters = NetworkParameters(
            kind="inception-unet",
            in_channels=channels,
            context_slices=context,
            classes=classes,
            features=5,
            depth=depth,
            dropout_place=place,
            normalisation=norm,
            up_sampling=up,
        )
        assert (margin(parameters), valid_size(parameters, 12)) == (0, 12)
        network = build(parameters).train()
        logits = network(torch.randn(2, channels * context, 12, 20))
        assert logits.shape == (2, classes, 12, 20)
        logits.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert NetworkParameters.from_dict(vars(parameters)) == parameters


def test_an_inception_module_has_the_shares_of_the_papers_module_3a():
    """Szegedy et al. 2015, table 1: 192 channels to 64 + 128 + 32 + 32, through 96 and 16."""
    module = Inception(192, 256)
    sizes = {
        name: (layer.in_channels, layer.out_channels, layer.kernel_size[0])
        for name, layer in module.named_children()
    }
    assert sizes == {
        "branch1": (192, 64, 1),
        "reduce3": (192, 96, 1),
        "branch3": (96, 128, 3),
        "reduce5": (192, 16, 1),
        "branch5": (16, 32, 5),
        "branch_pool": (192, 32, 1),
    }
    for features in range(4, 40):
        assert Inception(3, features)(torch.zeros(1, 3, 4, 4)).shape[1] == features


@pytest.mark.parametrize("kind", ["unet", "inception-unet"])
def test_a_pixel_is_felt_as_far_as_the_parameters_say_after_a_block(kind):
    torch.manual_seed(2)
    parameters = NetworkParameters(kind=kind, features=64, depth=1)
    block = build(parameters).eval().encoder[0]
    flat = torch.rand(1, 1, 31, 31)
    poked = flat.clone()
    poked[..., 15, 15] += 3.0
    with torch.inference_mode():
        changed = (block(poked) - block(flat)).abs().amax((0, 1)) > 0
    felt = changed.nonzero() - 15
    assert felt.min() == -parameters.reach
    assert felt.max() == parameters.reach


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "resnet"},
        {"padding": False, "kind": "inception-unet"},
        {"features": 3, "kind": "inception-unet"},
        {"features": 0},
        {"features": 2.0},
        {"features": True},
        {"depth": 9},
        {"classes": 0},
        {"context_slices": 2},
        {"context_slices": -1},
        {"context_slices": "3"},
        {"context_slices": True},
        {"padding": "yes"},
        {"dropout": 1.0},
        {"dropout": float("nan")},
        {"normalisation": "none"},
        {"up_sampling": "nearest"},
        {"dropout_place": "nowhere"},
        {"heads": 3},
    ],
    ids=str,
)
def test_parameters_that_make_no_network_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NetworkParameters.from_dict(wrong)


# --- The old checkpoint -----------------------------------------------------------------------

WIDTHS = (64, 128, 256, 512, 1024)


def old_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the KiTS19 system's state dictionary, without the prefix."""
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, inputs: int, outputs: int) -> None:
        for number, channels in ((1, inputs), (2, outputs)):
            shapes[f"{name}.conv{number}.weight"] = (outputs, channels, 3, 3)
            shapes[f"{name}.conv{number}.bias"] = (outputs,)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bc{number}.{part}"] = (outputs,)
            shapes[f"{name}.bc{number}.num_batches_tracked"] = ()

    for level, width in enumerate(WIDTHS):
        block(f"encoder.encBlocks.{level}", WIDTHS[level - 1] if level else 1, width)
    for level, width in enumerate(reversed(WIDTHS[:-1])):
        shapes[f"decoder.upconv.{level}.weight"] = (2 * width, width, 2, 2)
        shapes[f"decoder.upconv.{level}.bias"] = (width,)
        block(f"decoder.decBlocks.{level}", 2 * width, width)
    shapes["head.weight"], shapes["head.bias"] = (2, 64, 1, 1), (2,)
    return shapes


@pytest.fixture(scope="module")
def old_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    state = {}
    for key, shape in old_shapes().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1234)
        elif "bc" in key and key.endswith(("weight", "running_var")):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else 50
            state[key] = torch.randn(shape, generator=generator) * float(2 / fan_in) ** 0.5
    return state


def restated(x: torch.Tensor, old: dict[str, torch.Tensor]) -> torch.Tensor:
    """The described network, written down a second time on the keys of the old checkpoint."""

    def block(x, name):
        for n in "12":
            x = F.conv2d(x, old[f"{name}.conv{n}.weight"], old[f"{name}.conv{n}.bias"], padding=1)
            x = F.batch_norm(
                F.relu(x),
                old[f"{name}.bc{n}.running_mean"],
                old[f"{name}.bc{n}.running_var"],
                old[f"{name}.bc{n}.weight"],
                old[f"{name}.bc{n}.bias"],
            )
        return x

    e0 = block(x, "encoder.encBlocks.0")
    e1 = block(F.max_pool2d(e0, 2), "encoder.encBlocks.1")
    e2 = block(F.max_pool2d(e1, 2), "encoder.encBlocks.2")
    e3 = block(F.max_pool2d(e2, 2), "encoder.encBlocks.3")
    y = block(F.max_pool2d(e3, 2), "encoder.encBlocks.4")
    for level, skip in enumerate((e3, e2, e1, e0)):
        name = f"decoder.upconv.{level}"
        y = F.conv_transpose2d(y, old[f"{name}.weight"], old[f"{name}.bias"], stride=2)
        y = block(torch.cat([y, skip], dim=1), f"decoder.decBlocks.{level}")
    return F.conv2d(y, old["head.weight"], old["head.bias"])


@pytest.fixture(scope="module")
def imported(old_state, tmp_path_factory):
    """The model imported from a file as the old system saved it, from DataParallel."""
    folder = tmp_path_factory.mktemp("old")
    checkpoint = folder / "best.pt"
    torch.save({f"module.{key}": value for key, value in old_state.items()}, checkpoint)
    model = import_checkpoint(checkpoint, folder / "imported", "old-unet")
    checkpoint.unlink()
    return model


def test_an_old_checkpoint_gives_the_same_output_as_the_network_it_was_saved_from(
    imported, old_state
):
    loaded = load_model(imported.folder)
    assert loaded.network == OLD_PARAMETERS
    network = loaded.load_network()
    torch.manual_seed(5)
    x = torch.rand(2, 1, 48, 32)
    with torch.inference_mode():
        expected = restated(x, old_state)
        assert 0.1 < expected.std() < 100
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)


def test_an_old_checkpoint_sees_minmax_scaled_slices_and_its_channel_1_is_kidney(
    imported, old_state
):
    hu = np.random.default_rng(6).integers(-1024, 1500, (2, 32, 48)).astype(np.int16)
    working, grid = to_working(hu, (3.0, 0.8, 0.8), imported.preprocessing)
    backend = TorchBackend(imported, "cpu", "float32")
    got = predict(scale(working, imported.preprocessing), grid.spacing_mm[0], backend)
    slices = (hu - hu.min()) / float(hu.max() - hu.min())
    with torch.inference_mode():
        logits = restated(torch.from_numpy(slices[:, None].astype(np.float32)), old_state)
    expected = torch.softmax(logits, 1)[:, 1].numpy()
    assert expected.std() > 0.03
    np.testing.assert_allclose(got, expected, rtol=0, atol=6e-4)  # kept as float16


def test_old_keys_are_read_with_and_without_the_prefix_of_dataparallel():
    shapes = old_shapes()
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    plain = import_old_state(state)
    prefixed = import_old_state({f"module.{key}": value for key, value in state.items()})
    assert list(plain) == list(prefixed)
    with torch.device("meta"):
        build(OLD_PARAMETERS).load_state_dict(plain, assign=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("head.bias"), "head.bias is missing"),
        (lambda s: s.update({"tail.weight": s["head.bias"]}), "tail.weight"),
        (lambda s: s.update({"head.weight": torch.empty(3, 64, 1, 1)}), r"\(3, 64, 1, 1\)"),
        (lambda s: s.update({"encoder.encBlocks.0.gn1.weight": s["head.bias"]}), "gn1"),
        (lambda s: s.update({"encoder.encBlocks.5.conv1.bias": s["head.bias"]}), "more levels"),
    ],
    ids=["missing", "unknown", "shape", "layer", "levels"],
)
def test_a_checkpoint_of_another_network_is_refused_with_the_key(change, text):
    state = {key: torch.empty(shape, device="meta") for key, shape in old_shapes().items()}
    change(state)
    with pytest.raises(ValueError, match=text):
        import_old_state(state)


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_malicious_checkpoint_is_refused_and_executes_nothing(tmp_path, legacy):
    checkpoint = tmp_path / "evil.pt"
    payload = {"module.head.weight": _Malicious(str(tmp_path / "executed"))}
    torch.save(payload, checkpoint, _use_new_zipfile_serialization=not legacy)
    before = everything_in(tmp_path)
    with pytest.raises(ModelError, match=r"evil\.pt is not a plain state dictionary") as caught:
        import_checkpoint(checkpoint, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == before
