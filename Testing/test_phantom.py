"""The generator of CTs: anatomy on the right side, labels exact, files complete."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from KidneySegLib import phantom
from KidneySegLib.errors import Cancelled, KidneySegError, UsageError
from KidneySegLib.geometry import to_axial
from KidneySegLib.phantom import KIDNEYS, PHASES, REGIONS, Phantom, generate, write_cases

SMALL = (80, 80, 26)


@lru_cache(maxsize=32)
def made(seed: int, size: tuple[int, int, int] = SMALL, **choices: object) -> Phantom:
    return generate(seed, size, **choices)  # type: ignore[arg-type]


def arrays(case: Phantom) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, kidney labels and sides as axial arrays."""
    hu, kidney, sides = (to_axial(image)[0] for image in (case.image, case.kidney, case.sides))
    return hu, kidney, sides


def centre_mm(image: sitk.Image, label: int) -> np.ndarray:
    """LPS centroid of a label, by SimpleITK alone."""
    stats = sitk.LabelShapeStatisticsImageFilter()
    stats.Execute(image)
    return np.array(stats.GetCentroid(label))


# --- geometry -------------------------------------------------------------------------------------


def test_file_axes_are_slice_row_column_with_slices_towards_the_feet() -> None:
    case = made(1)
    columns, rows, slices = SMALL
    for image in (case.image, case.kidney, case.sides):
        assert image.GetSize() == (slices, rows, columns)
        assert image.GetDirection() == (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
        assert image.GetOrigin() == case.image.GetOrigin()
        assert image.GetSpacing() == pytest.approx(case.description["spacing_mm"])
    first = case.image.TransformIndexToPhysicalPoint((0, 0, 0))
    for axis, (physical, sign) in enumerate(((2, -1), (1, 1), (0, 1))):
        index = [0, 0, 0]
        index[axis] = 5
        moved = np.subtract(case.image.TransformIndexToPhysicalPoint(index), first)
        assert moved[physical] * sign > 0
        assert np.count_nonzero(np.abs(moved) > 1e-6) == 1


def test_pixel_types_are_those_of_ct_and_label_maps() -> None:
    case = made(1)
    assert case.image.GetPixelID() == sitk.sitkInt16
    assert case.kidney.GetPixelID() == sitk.sitkUInt8
    assert case.sides.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_label_left_lies_at_larger_physical_x_than_label_right(seed: int) -> None:
    left, right = (centre_mm(made(seed).sides, label) for label in (1, 2))
    assert left[0] - right[0] > 70.0
    assert abs(left[1] - right[1]) < 50.0
    assert abs(left[2] - right[2]) < 70.0


def test_spine_lies_between_and_behind_the_kidneys() -> None:
    hu, _, sides = arrays(made(2, phase="plain"))
    bone = hu[np.nonzero(sides.any(axis=(1, 2)))[0]].max(axis=0) > 250
    left = np.nonzero(sides == 1)
    right = np.nonzero(sides == 2)
    columns, rows = np.nonzero(bone)[1], np.nonzero(bone)[0]
    between = (columns > right[2].max()) & (columns < left[2].min())
    assert between.sum() > 50
    assert rows[between].mean() > np.concatenate((left[1], right[1])).mean()


@pytest.mark.parametrize("size", [(64, 64, 12), (128, 96, 40), (96, 128, 3), (160, 160, 1)])
def test_body_fits_the_field_of_view_and_size_is_as_asked(size: tuple[int, int, int]) -> None:
    case = generate(5, size)
    hu, _, _ = arrays(case)
    assert hu.shape == (size[2], size[1], size[0])
    assert case.image.GetSpacing()[1] == case.image.GetSpacing()[2]
    # Left, right and front border show air; the table may leave at the back.
    for border in (hu[:, :, 0], hu[:, :, -1], hu[:, 0]):
        assert np.percentile(border, 95) < -850
    assert hu.max() > 300


def test_whole_kidneys_are_covered_at_any_number_of_slices() -> None:
    volumes = []
    for size in (SMALL, (80, 80, 52)):
        case = made(4, size, tumour=False, cyst=False)
        _, kidney, _ = arrays(case)
        assert not kidney[[0, -1]].any()
        volumes.append(case.description["volume_ml"])
    for side in ("left", "right"):
        assert 70 < volumes[0][side] < 290
        # The patient is the same: finer slices do not change it.
        assert volumes[1][side] == pytest.approx(volumes[0][side], rel=0.06)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_sides_cover_exactly_kidney_tumour_and_cyst(seed: int) -> None:
    _, kidney, sides = arrays(made(seed, tumour=True, cyst=True))
    assert set(np.unique(kidney)) == {0, 1, 2}
    assert set(np.unique(sides)) == {0, 1, 2}
    assert np.array_equal(kidney > 0, sides > 0)


@pytest.mark.parametrize("seed", range(3))
def test_each_kidney_is_one_solid_piece(seed: int) -> None:
    _, _, sides = arrays(made(seed, (112, 112, 40), tumour=False, cyst=False))
    for label in (1, 2):
        parts, count = ndimage.label(sides == label)
        sizes = np.bincount(parts.ravel())[1:]
        assert sizes.max() > 0.98 * sizes.sum(), f"{count} pieces"


@pytest.mark.parametrize("seed", range(5))
def test_tumour_lies_in_the_side_that_the_description_names(seed: int) -> None:
    case = made(seed, tumour=True, cyst=True)
    _, kidney, sides = arrays(case)
    label = {"left": 1, "right": 2}[case.description["tumour"]["side"]]
    assert set(np.unique(sides[kidney == 2])) == {label}
    ml = np.count_nonzero(kidney == 2) * np.prod(case.image.GetSpacing()) / 1000
    assert case.description["tumour"]["volume_ml"] == pytest.approx(ml, abs=0.01)


def test_tumour_touches_its_kidney() -> None:
    for seed in range(5):
        _, kidney, _ = arrays(made(seed, tumour=True, cyst=True))
        assert (ndimage.binary_dilation(kidney == 2) & (kidney == 1)).any()


def test_without_tumour_no_voxel_is_labelled_tumour() -> None:
    case = made(2, tumour=False)
    assert case.description["tumour"] is None
    assert not (arrays(case)[1] == 2).any()


@pytest.mark.parametrize("seed", range(3))
def test_labels_lie_on_what_the_image_shows(seed: int) -> None:
    """Enhanced parenchyma is bright inside the label, and its immediate surroundings are not."""
    case = made(seed, (112, 112, 40), phase="portal", tumour=False, cyst=False)
    hu, kidney, _ = arrays(case)
    expected = case.description["hu"]
    core = ndimage.binary_erosion(kidney == 1)
    low, high = sorted((expected["medulla"], expected["cortex"]))
    assert low - 12 < np.median(hu[core]) < high + 12
    ring = ndimage.binary_dilation(kidney == 1, iterations=2) & (kidney == 0)
    assert np.median(hu[ring]) < 0.5 * low
    # A label moved by two pixels would be found out.
    for axis in (1, 2):
        moved = np.roll(kidney == 1, 2, axis=axis)
        assert hu[kidney == 1].mean() > hu[moved].mean() + 5


def test_volumes_in_the_description_are_those_of_the_label_map() -> None:
    case = made(3)
    voxel_ml = np.prod(case.image.GetSpacing()) / 1000
    _, _, sides = arrays(case)
    for name, label in (("left", 1), ("right", 2)):
        ml = np.count_nonzero(sides == label) * voxel_ml
        assert case.description["volume_ml"][name] == pytest.approx(ml, abs=0.01)


# --- anatomy by choice ----------------------------------------------------------------------------


@pytest.mark.parametrize("kidneys", KIDNEYS)
def test_kidneys_that_were_asked_for_are_there_and_no_other(kidneys: str) -> None:
    case = made(6, SMALL, kidneys=kidneys)
    _, kidney, sides = arrays(case)
    expected = {
        "both": {1, 2}, "left": {1}, "right": {2}, "none": set(), "horseshoe": {1, 2}
    }[kidneys]  # fmt: skip
    assert set(np.unique(sides)) - {0} == expected
    assert case.description["kidneys"] == kidneys
    names = {1: "left", 2: "right"}
    assert set(case.description["missing"]) == {names[n] for n in {1, 2} - expected}
    if kidneys == "none":
        assert not kidney.any()
        assert case.description["tumour"] is None and case.description["cyst"] is None


@pytest.mark.parametrize("seed", range(3))
def test_horseshoe_kidney_is_one_piece_across_the_midline_and_two_kidneys_are_not(
    seed: int,
) -> None:
    size = (112, 112, 40)
    together = arrays(made(seed, size, kidneys="horseshoe", tumour=False))[2]
    parts, _ = ndimage.label(together > 0)
    largest = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    assert {1, 2} <= set(np.unique(together[largest]))
    apart = arrays(made(seed, size, tumour=False))[2]
    parts, _ = ndimage.label(apart > 0)
    for number in range(1, parts.max() + 1):
        assert len(set(np.unique(apart[parts == number]))) == 1


@pytest.mark.parametrize("region", REGIONS)
def test_regions_show_kidneys_only_where_there_are_some(region: str) -> None:
    case = made(7, SMALL, region=region)
    hu, kidney, sides = arrays(case)
    shown = region in ("abdomen", "trunk")
    assert kidney.any() == shown
    assert sides.any() == shown
    assert (hu > 300).any()
    assert case.description["region"] == region
    if not shown:
        assert case.description["kidneys"] == "none"
        assert case.description["volume_ml"] == {"left": 0.0, "right": 0.0}


def test_chest_is_mostly_lung_and_abdomen_is_not() -> None:
    lung = {}
    for region in ("chest", "abdomen"):
        hu = arrays(made(7, SMALL, region=region))[0]
        lung[region] = np.count_nonzero((hu > -930) & (hu < -700)) / hu.size
    assert lung["chest"] > 0.1 > lung["abdomen"]


# --- intensities ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "low", "high"),
    [("plain", 22, 45), ("arterial", 95, 240), ("portal", 115, 240), ("excretory", 100, 190)],
)
def test_parenchyma_enhances_with_the_contrast_phase(phase: str, low: float, high: float) -> None:
    case = made(8, SMALL, phase=phase, tumour=False, cyst=False)
    hu, kidney, _ = arrays(case)
    assert case.description["phase"] == phase
    assert low < np.median(hu[ndimage.binary_erosion(kidney == 1)]) < high


def test_plain_kidneys_are_as_dark_as_muscle_and_have_no_bright_pelvis() -> None:
    hu, kidney, _ = arrays(made(8, SMALL, phase="plain", tumour=False, cyst=False))
    assert np.percentile(hu[kidney == 1], 99) < 110
    excreted, kidney, _ = arrays(made(8, SMALL, phase="excretory", tumour=False, cyst=False))
    around = ndimage.binary_dilation(kidney == 1, iterations=3)
    assert np.count_nonzero(excreted[around] > 250) > 20


def test_aorta_is_brightest_in_the_arterial_phase() -> None:
    values = {phase: made(8, SMALL, phase=phase).description["hu"]["aorta"] for phase in PHASES}
    assert values["arterial"] > 230 > values["portal"] > values["excretory"] > values["plain"]
    hu, kidney, _ = arrays(made(8, SMALL, phase="arterial"))
    inside = kidney.any(axis=(1, 2))
    seen = np.abs(hu[inside] - values["arterial"]) < 35
    # A vessel of 2 cm shows on every slice.
    assert (np.count_nonzero(seen, axis=(1, 2)) >= 6).all()


def test_air_fat_soft_tissue_and_bone_have_their_hu() -> None:
    hu, _, _ = arrays(made(9, (128, 128, 26), phase="plain"))
    assert hu.min() >= -1024
    assert hu.max() <= 3071
    air = hu[:, :6, :6]
    assert -1024 <= np.median(air) < -980
    share = {
        "fat": np.count_nonzero((hu > -130) & (hu < -80)),
        "soft tissue": np.count_nonzero((hu > 20) & (hu < 80)),
        "bone": np.count_nonzero(hu > 200),
    }
    body = np.count_nonzero(hu > -300)
    assert share["fat"] > 0.1 * body
    assert share["soft tissue"] > 0.25 * body
    assert 0.01 * body < share["bone"] < 0.2 * body


def test_noise_has_a_grain_and_is_not_white() -> None:
    """Neighbouring pixels of the noise of a fine matrix are correlated."""
    hu, _, _ = arrays(generate(10, (320, 320, 1)))
    plane = hu[0].astype(float)
    residue = plane - ndimage.median_filter(plane, 9)
    flat = (np.abs(residue) < 60) & (plane > 0) & (plane < 150)
    pair = flat[:, 1:] & flat[:, :-1]
    assert np.corrcoef(residue[:, 1:][pair], residue[:, :-1][pair])[0, 1] > 0.3
    assert 3 < residue[flat].std() < 40


# --- reproducibility ------------------------------------------------------------------------------


def test_same_seed_and_size_give_the_same_voxels() -> None:
    np.random.seed(0)
    again = generate(1, SMALL)
    for a, b in zip(arrays(made(1)), arrays(again), strict=True):
        assert np.array_equal(a, b)
    assert made(1).description == again.description
    assert made(1).image.GetOrigin() == again.image.GetOrigin()


def test_other_seeds_are_other_patients() -> None:
    cases = [made(seed) for seed in range(6)]
    assert len({case.description["volume_ml"]["left"] for case in cases}) == 6
    assert len({case.image.GetSpacing() for case in cases}) == 6
    assert len({case.description["phase"] for case in (made(s) for s in range(6))}) > 1


def test_choosing_what_the_seed_would_have_drawn_changes_nothing() -> None:
    case = made(1)
    again = generate(1, SMALL, phase=case.description["phase"])
    assert np.array_equal(arrays(case)[0], arrays(again)[0])


def test_without_a_size_the_matrix_is_512_and_covers_the_abdomen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first slice is enough to see the plan; the rest of 512x512 is left out for speed."""

    class Enough(Exception):
        pass

    planes = []

    def plane(self: object, z: float) -> None:
        planes.append((z, len(self.x_mm), len(self.y_mm)))  # type: ignore[attr-defined]
        raise Enough

    monkeypatch.setattr(phantom.Renderer, "plane", plane)
    with pytest.raises(Enough):
        generate(1)
    assert planes[0][1:] == (512, 512)
    assert planes[0][0] > 50.0


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 0, "size": (0, 64, 64)}, "0x64x64"),
        ({"seed": 0, "size": (64, 64, 0)}, "64x64x0"),
        ({"seed": 0, "kidneys": "three"}, "three"),
        ({"seed": 0, "phase": "late"}, "late"),
        ({"seed": 0, "region": "knee"}, "knee"),
    ],
)
def test_wrong_choices_are_refused_with_the_value_in_one_sentence(
    choice: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        generate(**choice)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- on disk --------------------------------------------------------------------------------------

TINY = (48, 48, 8)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_cases_have_the_layout_of_kits19(tmp_path: Path) -> None:
    seen: list[float] = []
    cases = write_cases(tmp_path / "a" / "b", 2, seed=3, size=TINY, progress=seen.append)
    assert [case.name for case in cases] == ["case_00000", "case_00001"]
    assert files(tmp_path / "a" / "b") == sorted(
        [case.name for case in cases]
        + [f"{case.name}/{name}.nii.gz" for case in cases
           for name in ("imaging", "segmentation", "sides")]
    )  # fmt: skip
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    image, kidney, sides = (
        sitk.ReadImage(str(cases[0] / f"{name}.nii.gz"))
        for name in ("imaging", "segmentation", "sides")
    )
    assert image.GetSize() == kidney.GetSize() == sides.GetSize() == (8, 48, 48)
    assert image.GetPixelID() == sitk.sitkInt16
    # The signs of the zeros in NIfTI's affine are of no meaning.
    assert np.array(image.GetDirection()) == pytest.approx([0, 0, 1, 0, 1, 0, -1, 0, 0])
    assert np.array_equal(
        sitk.GetArrayViewFromImage(kidney) > 0, sitk.GetArrayViewFromImage(sides) > 0
    )
    left, right = centre_mm(sides, 1), centre_mm(sides, 2)
    assert left[0] > right[0]


def test_cases_of_one_folder_and_of_other_seeds_differ(tmp_path: Path) -> None:
    first = write_cases(tmp_path / "0", 2, seed=0, size=TINY)
    other = write_cases(tmp_path / "1", 1, seed=1, size=TINY)
    same = write_cases(tmp_path / "2", 1, seed=0, size=TINY)
    images = [
        sitk.GetArrayFromImage(sitk.ReadImage(str(case / "imaging.nii.gz")))
        for case in (*first, *other, *same)
    ]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert not np.array_equal(images[1], images[2])
    assert np.array_equal(images[0], images[3])


def test_existing_cases_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "case_00001").mkdir()
    with pytest.raises(UsageError, match="case_00001"):
        write_cases(tmp_path, 2, size=TINY)
    assert files(tmp_path) == ["case_00001"]


@pytest.mark.parametrize("count", [0, -3])
def test_a_number_of_cases_below_one_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match=str(count)):
        write_cases(tmp_path / "new", count)
    assert files(tmp_path) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="file"):
            write_cases(folder, 1, size=TINY)
    assert (tmp_path / "file").read_text() == "x"


def test_a_failed_write_leaves_complete_cases_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real = sitk.WriteImage

    def full(image: sitk.Image, name: str, **options: object) -> None:
        if len(written) == 4:
            Path(name).write_bytes(b"half")
            raise RuntimeError("no space")
        written.append(name)
        real(image, name, **options)

    monkeypatch.setattr(phantom.sitk, "WriteImage", full)
    with pytest.raises(KidneySegError, match="case_00001"):
        write_cases(tmp_path / "out", 3, size=TINY)
    assert files(tmp_path / "out") == [
        "case_00000",
        *(f"case_00000/{name}.nii.gz" for name in ("imaging", "segmentation", "sides")),
    ]


def test_cancelling_the_first_case_leaves_no_folder(tmp_path: Path) -> None:
    def stop(fraction: float) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        write_cases(tmp_path / "a" / "b", 1, size=TINY, progress=stop)
    assert files(tmp_path) == []


def test_a_full_disk_is_noticed_although_itk_is_silent(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk."""
    pytest.importorskip("resource", reason="limits on files exist on POSIX systems only")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from KidneySegLib.errors import KidneySegError\n"
        "from KidneySegLib.phantom import write_cases\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try:\n"
        f"    write_cases(Path(sys.argv[1]), 1, size={TINY})\n"
        "except KidneySegError as error:\n"
        "    print('refused:', error)\n"
    )
    engine = str(Path(phantom.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": engine},
    )  # fmt: skip
    assert "refused:" in done.stdout
    assert "case_00000" in done.stdout
    assert files(tmp_path) == []
