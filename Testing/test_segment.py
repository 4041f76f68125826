"""The whole walk, from a CT in any orientation to two kidneys on that CT's own grid."""

from __future__ import annotations

import tracemalloc
import warnings
import weakref
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import toys

from KidneySegLib import predict as predict_room
from KidneySegLib import segment as segment_room
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import Cancelled, InputError, ModelError, UsageError
from KidneySegLib.network import NetworkParameters
from KidneySegLib.preprocess import Preprocessing
from KidneySegLib.segment import segment


@pytest.fixture(scope="module")
def backend(toy_model) -> TorchBackend:
    return TorchBackend(toy_model, "cpu", "float32")


def rotation(degrees: float, axis: int) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.eye(3)
    a, b = (n for n in range(3) if n != axis)
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    return turn


def same_grid(a: sitk.Image, b: sitk.Image) -> bool:
    return all(
        getattr(a, get)() == getattr(b, get)()
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
    )


def voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


# --- Orientation ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", list(permutations(range(3))), ids=lambda o: "".join("kji"[n] for n in o)
)
def test_all_axis_orders_and_flips_give_the_same_kidneys_on_their_own_grid(backend, order):
    ct, labels = toys.toy()
    for flips in product((False, True), repeat=3):
        image = toys.image_of(ct, order, flips)
        result = segment(image, backend)
        assert same_grid(result.labels, image)
        expected = voxels(toys.image_of(labels, order, flips))
        np.testing.assert_array_equal(voxels(result.labels), expected)


def test_every_step_of_preprocessing_is_blind_to_the_order_of_axes(tmp_path):
    network = NetworkParameters(features=1, depth=3, context_slices=3)
    preprocessing = Preprocessing(pixel_mm=8.0, slice_mm=12.0, crop=True)
    model = toys.copying_model(tmp_path / "toy", network, preprocessing)
    backend = TorchBackend(model, "cpu", "float32")
    ct, labels = toys.toy()
    found = []
    for order, flips in (
        ((0, 1, 2), (False, False, False)),
        ((2, 1, 0), (False, True, True)),
        ((1, 2, 0), (True, False, True)),
    ):
        mask = voxels(segment(toys.image_of(ct, order, flips), backend).labels)
        back = mask[tuple(slice(None, None, -1 if f else 1) for f in flips)]
        found.append(back.transpose(np.argsort(order)))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])
    for side in (1, 2):
        both = ((found[0] == side) & (labels == side)).sum()
        assert 2 * both / ((found[0] == side).sum() + (labels == side).sum()) > 0.8


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [12, -30])
def test_an_oblique_volume_comes_back_on_its_oblique_grid(backend, axis, degrees):
    ct, labels = toys.toy()
    image = toys.image_of(ct, (2, 0, 1), (True, False, True), rotation(degrees, axis))
    result = segment(image, backend)
    assert same_grid(result.labels, image)
    expected = voxels(toys.image_of(labels, (2, 0, 1), (True, False, True)))
    np.testing.assert_array_equal(voxels(result.labels), expected)


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.nrrd", "ct.mha"])
@pytest.mark.parametrize("kind", ["int16", "float32", "float64", "int32"])
def test_files_of_every_format_and_type_in_the_convention_of_kits19(backend, tmp_path, name, kind):
    ct, labels = toys.toy()
    # The file's axes are slice, row, column as numpy reads KiTS19; the first runs to the feet.
    image = toys.image_of(ct.astype(kind), (2, 1, 0))
    assert image.GetDirection() == (0, 0, 1, 0, 1, 0, -1, 0, 0)
    sitk.WriteImage(image, str(tmp_path / name), useCompression=name != "ct.nii")
    result = segment(tmp_path / name, backend)
    stored = sitk.ReadImage(str(tmp_path / name))
    assert same_grid(result.labels, stored)
    np.testing.assert_array_equal(voxels(result.labels), voxels(toys.image_of(labels, (2, 1, 0))))
    assert result.labels.GetPixelID() == sitk.sitkUInt8


def test_left_is_the_patients_left_even_if_only_one_kidney_is_there(backend):
    for side, label in (("left", 1), ("right", 2)):
        ct, _ = toys.toy((side,))
        for flips in ((False, False, False), (False, False, True)):
            result = segment(toys.image_of(ct, flips=flips), backend)
            assert set(np.unique(voxels(result.labels))) == {0, label}
            assert f"one kidney found ({side})" in result.report["notes"]


# --- Shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "unpadded"])
def test_any_network_of_the_family_fits_slices_of_any_size(tmp_path, padding, depth):
    network = NetworkParameters(features=1, depth=depth, padding=padding)
    backend = TorchBackend(toys.copying_model(tmp_path / "toy", network), "cpu", "float32")
    for shape, spacing in (
        ((21, 37, 45), (6.0, 5.5, 7.0)),
        ((30, 24, 100), (4.2, 8.5, 3.1)),
        ((6, 48, 16), (20.0, 4.3, 19.0)),
    ):
        ct, labels = toys.toy(shape=shape, spacing_mm=spacing)
        result = segment(toys.image_of(ct, spacing_mm=spacing), backend)
        np.testing.assert_array_equal(voxels(result.labels) > 0, labels > 0)


def test_a_single_slice_is_a_volume(backend, tmp_path):
    ct, labels = toys.toy()
    for order in ((0, 1, 2), (2, 1, 0)):
        image = toys.image_of(ct[10:11], order)
        sitk.WriteImage(image, str(tmp_path / "one.nii.gz"))
        for source in (image, tmp_path / "one.nii.gz"):
            result = segment(source, backend)
            expected = voxels(toys.image_of(labels[10:11], order))
            np.testing.assert_array_equal(voxels(result.labels), expected)


def test_slices_larger_than_a_tile_are_put_together(backend, monkeypatch):
    ct, labels = toys.toy()
    seen = []

    def in_tiles(*arguments, **options):
        seen.append(1)
        return predict_room.predict(*arguments, **options, tile=20)

    monkeypatch.setattr("KidneySegLib.answer.predict", in_tiles)
    result = segment(toys.image_of(ct), backend)
    assert seen
    np.testing.assert_array_equal(voxels(result.labels), labels)


def test_bfloat16_finds_the_kidneys_of_float32(toy_model):
    ct, labels = toys.toy()
    result = segment(toys.image_of(ct), toy_model, device="cpu", precision="bfloat16")
    assert result.report["precision"] == "bfloat16"
    np.testing.assert_array_equal(voxels(result.labels), labels)


@pytest.mark.parametrize("choices", [{"mirror": True}, {"batch_slices": 2}], ids=str)
def test_mirroring_and_batches_keep_left_left_and_right_right(backend, choices):
    ct, labels = toys.toy()
    result = segment(toys.image_of(ct), backend, **choices)
    np.testing.assert_array_equal(voxels(result.labels), labels)


def test_how_large_a_kidney_is_at_least_can_be_chosen(backend):
    image = toys.image_of(toys.toy(("left",))[0])
    volume = segment(image, backend).report["kidneys"]["left"]["volume_ml"]
    assert volume > 0
    too_small = segment(image, backend, minimum_ml=4 * volume)
    assert too_small.report["kidneys"]["left"]["volume_ml"] == 0
    kept = segment(image, backend, minimum_ml=4 * volume, keep_small=True)
    assert kept.report["kidneys"]["left"]["volume_ml"] == volume


@pytest.mark.parametrize(
    "choices", [{"batch_slices": 0}, {"minimum_ml": -1.0}, {"minimum_ml": float("nan")}], ids=str
)
def test_choices_that_make_no_sense_are_wrong_usage(backend, toy_ct, choices):
    with pytest.raises(UsageError):
        segment(toy_ct, backend, **choices)


def test_memory_stays_a_few_times_the_volume(backend):
    shape, spacing = (80, 96, 128), (1.6, 2.2, 2.5)
    ct, _ = toys.toy(shape=shape, spacing_mm=spacing)
    image = toys.image_of(ct, spacing_mm=spacing)
    tracemalloc.start()
    segment(image, backend)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    in_float32 = 4 * np.prod(shape)
    assert peak < 4 * in_float32


# --- What it says -----------------------------------------------------------------------------


def test_the_probabilities_are_gone_before_the_labels_become_an_image(backend, toy_ct, monkeypatch):
    """Each is as large as the CT has voxels: of 2,000 slices half a gigabyte."""
    alive = []
    answer, from_axial = segment_room.answer, segment_room.from_axial

    def watched_answer(*arguments, **choices):
        full = answer(*arguments, **choices)
        alive.append(weakref.ref(full))
        return full

    def watched_image(*arguments):
        assert alive and not any(reference() is not None for reference in alive)
        return from_axial(*arguments)

    monkeypatch.setattr(segment_room, "answer", watched_answer)
    monkeypatch.setattr(segment_room, "from_axial", watched_image)
    assert segment(toy_ct, backend).report["kidneys"]["left"]["confidence"] > 0


def test_the_report_is_complete_and_its_volumes_are_those_of_the_labels(
    backend, toy_ct, toy_sides, toy_model
):
    report = segment(toy_ct, backend, reference=toy_sides).report
    assert report["input"] == str(toy_ct)
    assert report["model"] == {"name": toy_model.name, "version": "0.1.0"}
    assert (report["device"], report["precision"]) == ("cpu", "float32")
    assert {"read", "predict", "total"} <= set(report["seconds"])
    assert sum(report["seconds"].values()) <= 2 * report["seconds"]["total"]
    _, labels = toys.toy()
    for side, label in (("left", 1), ("right", 2)):
        expected = (labels == label).sum() * np.prod(toys.SPACING_MM) / 1000
        assert report["kidneys"][side]["volume_ml"] == pytest.approx(expected)
    assert report["dice"] == {"kidney": 1.0, "left": 1.0, "right": 1.0}
    assert report["notes"] == []


def test_a_merged_reference_is_compared_without_sides(backend, toy_ct, toy_kidney):
    report = segment(toy_ct, backend, reference=toy_kidney).report
    assert report["dice"] == {"kidney": 1.0}
    assert any("left from right" in note for note in report["notes"])


def test_a_ct_without_kidneys_succeeds_with_no_volume_and_says_so(backend):
    ct, _ = toys.toy(())
    result = segment(toys.image_of(ct), backend)
    assert not voxels(result.labels).any()
    nothing = {"volume_ml": 0.0, "confidence": None}
    assert result.report["kidneys"] == {"left": nothing, "right": nothing}
    assert result.report["notes"] == ["no kidney found"]


def test_progress_never_falls_and_names_the_steps(backend, toy_ct):
    told: list[tuple[float, str]] = []
    segment(toy_ct, backend, progress=lambda share, step: told.append((share, step)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == pytest.approx(1.0)
    steps = list(dict.fromkeys(step for _, step in told))
    assert steps == ["read", "prepare", "predict", "kidneys", "measure"]


def test_a_run_can_be_cancelled_at_any_of_its_steps(backend, toy_ct):
    for stop in ("read", "prepare", "predict", "kidneys", "measure"):
        at: list[str] = []
        with pytest.raises(Cancelled):
            segment(
                toy_ct,
                backend,
                progress=lambda _, step, at=at: at.append(step),
                cancelled=lambda at=at, stop=stop: bool(at) and at[-1] == stop,
            )
        assert at[-1] == stop


# --- Images in memory, as a program passes them -----------------------------------------------


def test_an_image_in_memory_is_checked_like_a_file(backend):
    ct, labels = toys.toy()
    spoilt = ct.astype(np.float32)
    spoilt[0, 0, :3] = np.nan, np.inf, -np.inf
    result = segment(toys.image_of(spoilt), backend)
    np.testing.assert_array_equal(voxels(result.labels), labels)
    assert any("3 voxels" in note and "taken as air" in note for note in result.report["notes"])
    result = segment(toys.image_of((ct + 1024).astype(np.uint16)), backend)
    assert any("no negative value" in note for note in result.report["notes"])


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (sitk.Image([8, 8], sitk.sitkInt16), "2-D"),
        (sitk.Image([8, 8, 8, 2], sitk.sitkInt16), "4-D"),
        (sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), "colour"),
        (sitk.Image([8, 8, 8], sitk.sitkInt16), "every voxel is 0"),
    ],
    ids=["2-D", "4-D", "RGB", "constant"],
)
def test_an_image_in_memory_that_is_no_ct_is_refused(backend, image, text):
    with pytest.raises(InputError, match=text):
        segment(image, backend)


def test_libraries_do_not_warn_on_the_users_screen(backend):
    ct, _ = toys.toy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segment(toys.image_of(ct + np.float32(0.25)), backend)


def test_the_image_that_was_passed_is_not_changed(backend):
    ct, _ = toys.toy()
    ct = ct.astype(np.float32)
    ct[0, 0, 0] = np.nan
    image = toys.image_of(ct)
    segment(image, backend)
    np.testing.assert_array_equal(voxels(image), ct)


def test_what_cannot_be_used_is_told_by_its_kind(toy_model, toy_ct, toy_sides, tmp_path):
    with pytest.raises(UsageError):
        segment(toy_ct, toy_model, device="warp")
    with pytest.raises(ModelError):
        segment(toy_ct, tmp_path / "nothing")
    with pytest.raises(InputError, match="does not exist"):
        segment(tmp_path / "nothing.nii.gz", toy_model)
    ct, _ = toys.toy()
    other = toys.image_of(ct, (2, 1, 0))
    with pytest.raises(InputError, match="another grid"):
        segment(other, toy_model, reference=toy_sides)
