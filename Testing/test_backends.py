"""The engines that run a network: that they agree, which is chosen, and what replaces which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from toys import copying_model, random_model

from KidneySegLib.backends import choosing, compiled, processor
from KidneySegLib.backends.base import Backend
from KidneySegLib.backends.choosing import open_backend
from KidneySegLib.backends.openvinobackend import CannotRun, OpenVinoBackend
from KidneySegLib.backends.silent import openvino
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import KidneySegError, ModelError, UsageError
from KidneySegLib.measure import dice
from KidneySegLib.model import ONNX_FILE, Model, load_model
from KidneySegLib.modelplaces import find_model
from KidneySegLib.network import NetworkParameters
from KidneySegLib.phantom import generate
from KidneySegLib.predict import predict
from KidneySegLib.segment import segment

ENGINE = Path(__file__).resolve().parent.parent / "KidneySeg"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache of compiled networks, an empty one."""
    monkeypatch.setenv("KIDNEYSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr(choosing, "may_have_gpu", lambda: False)


def without(monkeypatch, *packages: str) -> None:
    """As if these were not installed."""
    real = choosing.installed
    monkeypatch.setattr(choosing, "installed", lambda name: name not in packages and real(name))


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ENGINE), **environment},
    )


# --- They agree ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "fields"),
    [
        ({}, {}),
        ({"padding": False, "normalisation": "before_relu", "features": 8}, {}),
        ({"kind": "inception-unet", "features": 4, "context_slices": 3}, {}),
        ({"classes": 3}, {"labels": ("background", "kidney", "tumour")}),
        ({"classes": 2}, {"labels": ("kidney", "tumour"), "activation": "sigmoid"}),
    ],
    ids=["plain", "unpadded", "inception", "three classes", "sigmoid"],
)
@pytest.mark.parametrize("classes", [False, True], ids=["kidney", "classes"])
def test_openvino_answers_as_torch_does(tmp_path, network, fields, classes):
    parameters = NetworkParameters(**{"features": 2, "depth": 3, **network})
    model = random_model(tmp_path / "model", parameters, **fields)
    working = np.random.default_rng(1).random((5, 37, 51), dtype=np.float32)
    answers = [
        predict(working, 3.0, backend, tile=40, classes=classes).astype(np.float32)
        for backend in (TorchBackend(model, "cpu", "float32"), OpenVinoBackend(model, "float32"))
    ]
    assert answers[0].shape == answers[1].shape
    assert np.abs(answers[0] - answers[1]).max() < 2e-3  # half precision has no more near 1
    assert answers[0].std() > 0.01


def test_probabilities_stay_so_however_far_the_logits_are_from_zero(tmp_path):
    for network, fields in (
        (NetworkParameters(features=1, depth=2), {}),
        (
            NetworkParameters(features=1, depth=2, classes=1),
            {"labels": ("kidney",), "activation": "sigmoid"},
        ),
    ):
        model = copying_model(tmp_path / fields.get("activation", "softmax"), network, **fields)
        batch = np.array([-1e6, 0.0, 1e6], np.float32)[:, None, None, None] * np.ones((4, 4))
        with np.errstate(over="raise", invalid="raise"):
            answer = OpenVinoBackend(model, "float32")(batch.astype(np.float32))
        assert np.isfinite(answer).all()
        assert answer[0].max() == 0 and answer[2].min() == 1


def test_ctrl_c_between_slices_ends_the_process_and_does_not_abort_it(tmp_path):
    """OpenVINO's threads go on with what they were given; none of them may need Python then."""
    model = random_model(tmp_path / "slow", NetworkParameters(features=16, depth=4))
    program = textwrap.dedent(
        f"""
        import sys
        import numpy as np
        from KidneySegLib.backends import openvinobackend
        from KidneySegLib.model import load_model
        backend = openvinobackend.OpenVinoBackend(load_model({str(model.folder)!r}), "float32")
        tensor, asked = openvinobackend.openvino.Tensor, []
        def interrupted(array):
            asked.append(array)
            if len(asked) == len(backend._requests) + 2:
                raise KeyboardInterrupt
            return tensor(array)
        openvinobackend.openvino.Tensor = interrupted
        try:
            backend(np.zeros((20, 1, 256, 256), np.float32))
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (130, "")


def test_segmentations_of_the_toy_are_the_same(toy_model, toy_ct):
    one, other = (
        sitk.GetArrayFromImage(segment(toy_ct, toy_model, device="cpu", backend=backend).labels)
        for backend in ("openvino", "torch")
    )
    assert (one == other).all() and set(np.unique(one)) == {0, 1, 2}


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_shipped_model_finds_the_same_kidneys_with_every_engine(precision):
    phantom = generate(71, (160, 160, 40))
    reference = segment(phantom.image, TorchBackend(find_model(), "cpu", "float32"))
    result = segment(phantom.image, OpenVinoBackend(find_model(), precision))
    assert result.report["backend"] == "openvino"
    one, other = (sitk.GetArrayFromImage(each.merged) > 0 for each in (reference, result))
    assert one.any() and dice(one, other) >= 0.998


@pytest.mark.parametrize("engine", [OpenVinoBackend, TorchBackend])
def test_views_are_run_like_their_model_and_a_finder_without_rounding_boxes_elsewhere(
    toy_model, engine
):
    """A box that begins a pixel further on is resampled to other pixels, all of it."""
    model = replace(toy_model, finder=toy_model, views=(toy_model,))
    backend = engine(model, precision="bfloat16")
    assert [type(view) for view in (backend.finder, *backend.views)] == [engine, engine]
    assert (backend.precision, backend.views[0].precision) == ("bfloat16", "bfloat16")
    assert backend.finder.precision == "float32"


# --- Which is chosen ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "name"), [("auto", "openvino"), ("openvino", "openvino"), ("torch", "torch")]
)
def test_on_the_processor_openvino_is_the_default(toy_model, toy_ct, no_gpu, backend, name):
    opened = open_backend(toy_model, precision="float32", backend=backend)
    assert isinstance(opened, Backend) and opened.notes == ()
    report = segment(toy_ct, opened).report
    assert (report["backend"], report["device"], report["precision"]) == (name, "cpu", "float32")
    assert report["notes"] == []


def test_without_openvino_torch_computes(toy_model, no_gpu, monkeypatch):
    without(monkeypatch, "openvino")
    assert open_backend(toy_model).name == "torch"
    with pytest.raises(UsageError, match="OpenVINO is not installed"):
        open_backend(toy_model, backend="openvino")


def test_without_either_one_sentence_says_what_to_install(toy_model, monkeypatch):
    without(monkeypatch, "openvino", "torch")
    with pytest.raises(KidneySegError, match="`pip install openvino` or `pip install torch`"):
        open_backend(toy_model, "cpu")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpu_needs_torch(toy_model, monkeypatch, device):
    without(monkeypatch, "torch")
    with pytest.raises(UsageError, match=f"'{device}' needs PyTorch"):
        open_backend(toy_model, device)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "'gpu' is not known"),
        ({"device": "cuda:x"}, "'cuda:x' is not known"),
        ({"precision": "float16"}, "'float16' is not known"),
        ({"backend": "onnx"}, "'onnx' is not known"),
        ({"backend": "openvino", "device": "cuda"}, "on the CPU and not on cuda"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused(toy_model, options, message):
    with pytest.raises(UsageError, match=message):
        open_backend(toy_model, **options)


def test_a_gpu_of_torch_comes_before_the_processor(toy_model, monkeypatch):
    import torch

    from KidneySegLib.backends import torchbackend

    asked = []

    class Fake(TorchBackend):
        def __init__(self, model, device, precision, notes=()):
            asked.append(device)

    monkeypatch.setattr(choosing, "may_have_gpu", lambda: True)
    monkeypatch.setattr(torchbackend, "choose_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torchbackend, "TorchBackend", Fake)
    assert isinstance(open_backend(toy_model), Fake)
    monkeypatch.setattr(torchbackend, "choose_device", lambda: torch.device("cpu"))
    assert open_backend(toy_model).name == "openvino"
    assert open_backend(toy_model, "cpu").name == "openvino"
    assert asked == ["cuda"]


def test_torch_is_not_asked_for_a_gpu_where_no_driver_is(toy_model, no_gpu, monkeypatch):
    def never(*arguments):
        raise AssertionError

    from KidneySegLib.backends import torchbackend

    monkeypatch.setattr(torchbackend, "choose_device", never)
    assert open_backend(toy_model).name == "openvino"


# --- What replaces which ------------------------------------------------------------------------


def test_weights_exchanged_since_are_run_by_torch_and_the_report_says_why(
    tmp_path, toy_ct, no_gpu, monkeypatch
):
    folder = copying_model(tmp_path / "toy").folder
    (folder / ONNX_FILE).write_bytes((folder / ONNX_FILE).read_bytes() + b"\0")
    model = load_model(folder)
    report = segment(toy_ct, model).report
    assert report["backend"] == "torch"
    assert [note for note in report["notes"] if "the file itself has changed" in note]
    without(monkeypatch, "torch")
    with pytest.raises(ModelError, match="the file itself has changed"):
        segment(toy_ct, model)


def refusing(monkeypatch, *precisions: str) -> None:
    """An OpenVINO that compiles nothing in these precisions."""
    from KidneySegLib.backends import openvinobackend

    real = openvinobackend._compiled

    def refuses(model: Model, precision: str):
        if precision in precisions:
            raise RuntimeError("Exception from a.cpp:1:\nno primitive of this kind\n")
        return real(model, precision)

    monkeypatch.setattr(openvinobackend, "_compiled", refuses)


def test_a_precision_that_does_not_compile_is_replaced_and_the_report_says_so(
    toy_model, toy_ct, no_gpu, monkeypatch
):
    refusing(monkeypatch, "bfloat16")
    report = segment(toy_ct, toy_model, precision="bfloat16").report
    assert (report["backend"], report["precision"]) == ("openvino", "float32")
    assert report["notes"] == [
        "OpenVINO cannot run this network in bfloat16 on this processor (no primitive of this kind)"
    ]
    refusing(monkeypatch, "bfloat16", "float32")
    report = segment(toy_ct, toy_model, precision="bfloat16").report
    assert (report["backend"], report["precision"]) == ("torch", "bfloat16")
    assert len(report["notes"]) == 2
    without(monkeypatch, "torch")
    with pytest.raises(KidneySegError, match=r"cannot run this network in float32.*pip install"):
        open_backend(toy_model)


def test_with_instructions_held_to_avx2_it_still_segments(tmp_path, toy_ct):
    """OpenVINO then refuses transposed convolutions in bfloat16, on processors that have that."""
    folder = copying_model(tmp_path / "toy", NetworkParameters(features=8, depth=3)).folder
    run = in_a_process(
        f"""
        import json
        from KidneySegLib.segment import segment
        options = dict(device="cpu", precision="bfloat16")
        report = segment({str(toy_ct)!r}, {str(folder)!r}, **options).report
        print(json.dumps([report[key] for key in ("backend", "precision", "notes", "kidneys")]))
        """,
        ONEDNN_MAX_CPU_ISA="AVX2",
    )
    assert run.returncode == 0, run.stderr
    backend, precision, notes, kidneys = json.loads(run.stdout)
    assert bool(notes) == ((backend, precision) != ("openvino", "bfloat16"))
    assert min(side["volume_ml"] for side in kidneys.values()) > 30


@pytest.mark.parametrize(
    ("flags", "held", "has"),
    [
        ("avx2 avx512_bf16", "", True),
        ("avx2 amx_bf16", "", True),
        ("avx2 avx512f", "", False),
        ("avx2 amx_bf16", "AVX2", False),
        ("avx2 amx_bf16", "avx512_core", False),
        ("avx2 amx_bf16", "AVX512_CORE_BF16", True),
        ("avx2 amx_bf16", "ALL", True),
    ],
)
def test_bfloat16_is_automatic_only_where_the_processor_may_multiply_it(
    monkeypatch, flags, held, has
):
    monkeypatch.setattr(processor, "flags", lambda: frozenset(flags.split()))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held)
    assert processor.has_bfloat16() == has


# --- Compiled networks are kept -----------------------------------------------------------------


def test_a_compiled_network_is_kept_and_used_again(toy_model, cache, monkeypatch):
    batch = np.random.default_rng(0).random((2, 1, 20, 24), dtype=np.float32)
    first = OpenVinoBackend(toy_model, "float32")(batch)
    (kept,) = cache.iterdir()
    made = kept.stat().st_mtime_ns

    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(openvino.Core, "compile_model", never)
    assert (OpenVinoBackend(toy_model, "float32")(batch) == first).all()
    assert kept.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"",
        lambda content: b"garbage" * 1000,
        lambda content: content[:-1],
        lambda content: content[:40] + b"garbage" + content[47:],
    ],
    ids=["empty", "garbage", "cut", "changed"],
)
def test_a_broken_cache_is_built_anew(toy_model, cache, broken):
    batch = np.random.default_rng(0).random((1, 1, 20, 24), dtype=np.float32)
    first = OpenVinoBackend(toy_model, "float32")(batch)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(broken(whole))
    assert (OpenVinoBackend(toy_model, "float32")(batch) == first).all()
    assert len(kept.read_bytes()) == len(whole)
    assert compiled.load(kept.stem) is not None


def test_what_another_build_of_openvino_made_is_built_anew(toy_model, cache):
    OpenVinoBackend(toy_model, "float32")
    (kept,) = cache.iterdir()
    compiled.store(kept.stem, b"of another build")
    OpenVinoBackend(toy_model, "float32")
    assert compiled.load(kept.stem) != b"of another build"


def test_a_cache_that_cannot_be_written_stops_nothing(toy_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KIDNEYSEG_CACHE", str(tmp_path / "file" / "below"))
    assert OpenVinoBackend(toy_model, "float32").precision == "float32"


def test_another_network_processor_or_version_has_a_file_of_its_own(
    tmp_path, toy_model, cache, monkeypatch
):
    OpenVinoBackend(toy_model, "float32")
    OpenVinoBackend(random_model(tmp_path / "other", toy_model.network), "float32")
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(processor, "flags", lambda: frozenset({"another"}))
    OpenVinoBackend(toy_model, "float32")
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(openvino, "__version__", "another")
    OpenVinoBackend(toy_model, "float32")
    assert len(list(cache.iterdir())) == 4


def test_the_cache_does_not_grow_for_ever(cache, monkeypatch):
    monkeypatch.setattr(compiled, "_KEPT", 3)
    for number in range(5):
        compiled.store(f"key{number}", b"content")
        os.utime(cache / f"key{number}.compiled", (number, number))
    compiled.store("last", b"content")
    names = sorted(path.stem for path in cache.iterdir())
    assert len(names) == 3 and "last" in names and "key0" not in names


@pytest.mark.parametrize(
    ("system", "variable", "inside"),
    [
        ("linux", "XDG_CACHE_HOME", "KidneySeg"),
        ("win32", "LOCALAPPDATA", "KidneySeg"),
        ("darwin", "HOME", "Library/Caches/KidneySeg"),
    ],
)
def test_it_lies_where_the_system_keeps_caches(monkeypatch, tmp_path, system, variable, inside):
    monkeypatch.delenv("KIDNEYSEG_CACHE")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv(variable, str(tmp_path))
    assert compiled.folder() == tmp_path / inside


def test_an_error_while_a_slice_is_computed_is_not_taken_for_an_answer(toy_model):
    backend = OpenVinoBackend(toy_model, "float32")
    with pytest.raises(RuntimeError):
        backend(np.zeros((1, 5, 16, 16), np.float32))  # a channel is what it takes
    assert CannotRun is not RuntimeError


def test_signals_reach_a_process_whose_backends_are_gone():
    """On a processor with AMX, OpenVINO once took the stack for signals away with it."""
    code = (
        "import gc, os, signal, sys\n"
        "from KidneySegLib.backends.openvinobackend import OpenVinoBackend\n"
        "from KidneySegLib.modelplaces import find_model\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('reached', flush=True))\n"
        "backend = OpenVinoBackend(find_model())\n"
        "del backend\n"
        "gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "reached\n"), done.stderr
