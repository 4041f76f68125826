"""Label maps for other programs, and what comes back from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicerhost
import toys
from dicomseries import write_series
from PIL import Image

from KidneySegLib.cli import main
from KidneySegLib.errors import InputError, KidneySegError, UsageError
from KidneySegLib.exports.dicomseg import Algorithm, write_dicom_seg
from KidneySegLib.exports.labels import KIDNEY, TUMOUR, pasted, understood
from KidneySegLib.exports.runlength import decode, encode, read_run_lengths, write_run_lengths
from KidneySegLib.exports.slices import read_slices, write_slices
from KidneySegLib.exports.surfaces import surface, surfaces, write_surfaces
from KidneySegLib.geometry import grid_difference, to_axial
from KidneySegLib.reading import read_ct, read_labels
from KidneySegLib.writing import KIDNEYS, LEFT_KIDNEY, RIGHT_KIDNEY, SIDES

# An order and direction of axes that no scanner writes, and a turned patient.
ODD = {"order": (2, 0, 1), "flips": (True, False, True)}
TURN = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])


def same(one: sitk.Image, other: sitk.Image) -> bool:
    """To the bit: voxels, grid and type."""
    facts = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelID")
    return all(getattr(one, fact)() == getattr(other, fact)() for fact in facts) and bool(
        np.array_equal(sitk.GetArrayViewFromImage(one), sitk.GetArrayViewFromImage(other))
    )


@pytest.fixture(scope="module")
def labels() -> sitk.Image:
    return toys.image_of(toys.toy()[1])


# --- what labels are --------------------------------------------------------------------------


def test_labels_are_told_by_where_they_lie(labels):
    assert understood(labels)[1] == SIDES
    assert understood(labels, meaning="tumour")[1] == (KIDNEY, TUMOUR)
    merged, (kidneys,) = understood(labels, meaning="kidney")
    assert kidneys == KIDNEYS
    assert np.array_equal(sitk.GetArrayFromImage(merged), sitk.GetArrayFromImage(labels) > 0)
    bright = sitk.Cast(labels > 0, sitk.sitkUInt8) * 255
    one_label, kidneys = understood(bright)
    assert kidneys == (KIDNEYS,)
    assert np.array_equal(*map(sitk.GetArrayViewFromImage, (one_label, merged)))


@pytest.mark.parametrize("kind", ["seg.nrrd", "png", "csv"])
def test_a_file_that_names_its_labels_is_believed(tmp_path, toy_ct, kind):
    """By where they lie, a left kidney alone might be both, and a tumour alone a right kidney."""
    sides = toys.toy()[1]
    for meaning, axial, names in (
        ("sides", sides * (sides == 1), ["left_kidney.csv", "right_kidney.csv"]),
        ("tumour", sides, ["kidney.csv", "tumour.csv"]),
    ):
        given, there = tmp_path / f"{meaning}.nii.gz", tmp_path / meaning
        how = ["--output", str(there), "--format", kind]
        if kind == "seg.nrrd":
            if meaning == "tumour":
                continue  # Slicer numbers its segments as it likes
            there = tmp_path / "left.seg.nrrd"
            how = ["--output", str(there)]
        sitk.WriteImage(toys.image_of(axial), str(given))
        assert main(["export", str(given), "--labels", meaning, *how]) == 0
        back = tmp_path / f"{meaning}-back"
        again = ["export", str(there), "--like", str(toy_ct), "--output", str(back)]
        assert main([*again, "--format", "csv"]) == 0
        assert sorted(os.listdir(back)) == names


def test_swapped_sides_are_never_exported_as_they_are(labels):
    swapped = sitk.ChangeLabel(labels, {1: 2, 2: 1})
    with pytest.raises(InputError, match="on the patient's right"):
        understood(swapped)
    assert understood(swapped, meaning="sides")[1] == SIDES


def test_a_part_of_a_ct_is_pasted_back_into_the_whole(labels):
    array, _ = to_axial(labels)
    full = toys.image_of(array, **ODD, turn=TURN)
    part = full[3:-2, 1:, 4:-3]
    assert grid_difference(part, full) is not None
    assert same(pasted(part, full), full)


def test_axes_in_another_order_are_the_same_voxels(labels):
    array, _ = to_axial(labels)
    assert same(pasted(toys.image_of(array, **ODD), labels), labels)


def test_labels_that_are_not_of_the_ct_are_refused_with_both_grids(labels):
    moved = sitk.Image(labels)
    moved.SetOrigin([x + 2.5 for x in labels.GetOrigin()])
    with pytest.raises(InputError, match=r"mine lies on another grid than the CT \(origin"):
        pasted(labels, moved, ("mine", "the CT"))
    with pytest.raises(InputError, match="labelled voxels beyond the CT"):
        pasted(labels, labels[:, :, :10], ("mine", "the CT"))


# --- a picture for each slice -----------------------------------------------------------------


@pytest.mark.parametrize("picture", ["png", "tiff"])
def test_slices_come_back_as_they_were(tmp_path, picture):
    ct_labels = toys.image_of(toys.toy()[1], **ODD, turn=TURN)
    assert write_slices(ct_labels, tmp_path / "slices", SIDES, picture) == toys.SHAPE[0]
    assert same(read_slices(tmp_path / "slices"), ct_labels)


def test_a_picture_shows_a_whole_slice_with_labels_as_values(labels, tmp_path):
    write_slices(labels, tmp_path / "slices", SIDES)
    array, grid = to_axial(labels)
    with Image.open(tmp_path / "slices" / "slice_011.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), array[10])
    index = json.loads((tmp_path / "slices" / "slices.json").read_text())
    assert index["values"] == {"0": "Background", "1": "Left kidney", "2": "Right kidney"}
    assert index["slices"][10]["file"] == "slice_011.png"
    assert index["slices"][10]["z_mm"] == pytest.approx(grid.to_physical([10, 0, 0])[2])


def test_a_corrected_picture_is_read_and_a_broken_one_named(labels, tmp_path):
    folder = tmp_path / "slices"
    write_slices(labels, folder, SIDES)
    Image.fromarray(np.full(toys.SHAPE[1:], 2, np.uint8)).save(folder / "slice_001.png")
    assert (to_axial(read_slices(folder))[0][0] == 2).all()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / "slice_001.png")
    with pytest.raises(InputError, match=r"slice_001\.png has 6 x 5 pixels"):
        read_slices(folder)
    Image.new("RGB", (45, 37)).save(folder / "slice_001.png")
    with pytest.raises(InputError, match="has colours"):
        read_slices(folder)
    (folder / "slice_001.png").unlink()
    with pytest.raises(InputError, match=r"slice_001\.png is missing"):
        read_slices(folder)


def test_a_folder_that_holds_something_is_left_alone(labels, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        write_slices(labels, tmp_path, SIDES)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_failure_half_way_leaves_nothing(labels, tmp_path, monkeypatch):
    save = Image.Image.save

    def full(self, path, **how):
        if path.name == "slice_007.png":
            raise OSError(28, "No space left on device")
        save(self, path, **how)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(KidneySegError, match=r"new.slices cannot be written, the disk is full"):
        write_slices(labels, tmp_path / "new" / "slices", SIDES)
    assert os.listdir(tmp_path) == []


# --- run lengths ------------------------------------------------------------------------------


def test_run_lengths_count_down_the_columns_from_one():
    """The competition's own example: "1 3 10 5" are the pixels 1, 2, 3, 10, 11, 12, 13, 14."""
    mask = decode("1 3 10 5", (4, 4))
    assert np.flatnonzero(mask.ravel(order="F")).tolist() == [0, 1, 2, 9, 10, 11, 12, 13]
    assert mask[:, 0].tolist() == [True, True, True, False]
    assert encode(mask) == "1 3 10 5"


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_agree_with_a_plain_count(seed):
    mask = np.random.default_rng(seed).random((7, 5)) < (0.0, 0.3, 0.8, 1.0)[seed]
    runs: list[list[int]] = []
    before = False
    for number, value in enumerate(mask.T.ravel().tolist(), start=1):
        if value and before:
            runs[-1][1] += 1
        elif value:
            runs.append([number, 1])
        before = value
    text = " ".join(f"{first} {length}" for first, length in runs)
    assert encode(mask) == text
    np.testing.assert_array_equal(decode(text, mask.shape), mask)


@pytest.mark.parametrize("text", ["0 3", "1", "1 0", "14 4", "3 4 5 2", "one 2", "-1 2"])
def test_impossible_runs_are_refused(text):
    with pytest.raises(ValueError):
        decode(text, (4, 4))


def test_a_table_has_a_row_for_each_slice_and_none_for_empty_ones(labels, tmp_path):
    write_run_lengths(labels, tmp_path / "runs.csv")
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert rows[0] == "img,pixels"
    assert rows[1] == "1,"
    assert len(rows) == 1 + toys.SHAPE[0]
    assert same(
        read_run_lengths(tmp_path / "runs.csv", labels), sitk.Cast(labels > 0, sitk.sitkUInt8)
    )


def test_both_sides_come_back_from_run_lengths_by_the_command_line(tmp_path, toy_ct, toy_sides):
    runs, back = tmp_path / "runs", tmp_path / "back.nii.gz"
    assert main(["export", str(toy_sides), "--output", str(runs), "--format", "csv"]) == 0
    assert sorted(os.listdir(runs)) == ["left_kidney.csv", "right_kidney.csv"]
    assert main(["export", str(runs), "--like", str(toy_ct), "--output", str(back)]) == 0
    assert same(read_labels(back), read_labels(toy_sides))


def test_a_table_of_another_ct_is_refused(labels, tmp_path):
    write_run_lengths(labels[:, :, :20], tmp_path / "runs.csv")
    with pytest.raises(InputError, match="20 rows, which are not the slices 1 to 21"):
        read_run_lengths(tmp_path / "runs.csv", labels)
    (tmp_path / "runs.csv").write_text("a table\n")
    with pytest.raises(InputError, match="no columns img and pixels"):
        read_run_lengths(tmp_path / "runs.csv", labels)


# --- surfaces ---------------------------------------------------------------------------------


def edges_of(triangles: np.ndarray) -> dict[tuple[int, int], int]:
    """How often each directed edge occurs."""
    edges = np.concatenate([triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    found, counts = np.unique(edges, axis=0, return_counts=True)
    return {(int(a), int(b)): int(n) for (a, b), n in zip(found, counts, strict=True)}


@pytest.mark.parametrize("how", [{}, {**ODD, "turn": TURN}], ids=["axial", "odd"])
def test_surfaces_are_closed_and_true_to_the_volume(how):
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    image = toys.image_of(toys.toy()[1], **how)
    for one, segment in zip(surfaces(image, SIDES), SIDES, strict=True):
        edges = edges_of(one.triangles)
        # Watertight, and all triangles face the same way: each edge is met once from either side.
        assert set(edges.values()) == {1}
        assert all((b, a) in edges for a, b in edges)
        voxels = np.count_nonzero(sitk.GetArrayViewFromImage(image) == segment.label)
        voxels_ml = voxels * np.prod(image.GetSpacing()) / 1000
        assert one.volume_ml == pytest.approx(voxels_ml, rel=0.002)


def test_a_surface_is_smooth_and_keeps_to_the_voxels(labels):
    """The toy's kidney is an ellipsoid, so the true surface is known."""
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    found = surface(labels, LEFT_KIDNEY)
    _, grid = to_axial(labels)
    middle = grid.to_physical((np.array(toys.SHAPE) - 1) / 2)
    # Centre and radii as in toys.toy; its slices run to the foot.
    centre, radii = np.add(middle, (65.0, 20.0, 6.0)), np.array([30.0, 26.0, 48.0])
    from_centre = found.points_mm - centre
    off = 1 - 1 / np.linalg.norm(from_centre / radii, axis=1)
    off_mm = np.abs(off) * np.linalg.norm(from_centre, axis=1)
    assert off_mm.mean() < 1.0 and off_mm.max() < min(toys.SPACING_MM)
    # The steps between voxels are right angles.
    a, b, c = np.moveaxis(found.points_mm[found.triangles], 1, 0)
    normals = np.cross(b - a, c - a)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    edges = np.sort(found.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    pairs = np.lexsort(edges.T).reshape(-1, 2) // 3  # the two triangles of each edge
    cosines = np.sum(normals[pairs[:, 0]] * normals[pairs[:, 1]], axis=1)
    flat = np.linalg.norm(normals, axis=1)[pairs].min(axis=1) > 0.5  # both have an area
    assert np.quantile(cosines[flat], 0.01) > np.cos(np.radians(15))


@pytest.mark.parametrize("space", ["LPS", "RAS"])
@pytest.mark.parametrize("suffix", [".stl", ".obj"])
def test_surface_files_hold_millimetres_in_the_space_they_name(labels, tmp_path, suffix, space):
    vtk = pytest.importorskip("vtk", reason="the files are read with VTK")
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    path = tmp_path / f"left{suffix}"
    found = surface(labels, LEFT_KIDNEY)
    write_surfaces([found], path, space)
    reader = vtk.vtkSTLReader() if suffix == ".stl" else vtk.vtkOBJReader()
    reader.SetFileName(str(path))
    reader.Update()
    said = reader.GetHeader() if suffix == ".stl" else reader.GetComment()
    assert f"SPACE={space}" in said
    volume = vtk.vtkMassProperties()
    volume.SetInputData(reader.GetOutput())
    assert volume.GetVolume() / 1000 == pytest.approx(found.volume_ml, rel=1e-4)
    middle = np.array(reader.GetOutput().GetCenter()) * (
        (1, 1, 1) if space == "LPS" else (-1, -1, 1)
    )
    low, high = found.points_mm.min(axis=0), found.points_mm.max(axis=0)
    np.testing.assert_allclose(middle, (low + high) / 2, atol=0.01)


def test_a_kidney_cut_off_by_the_end_of_the_scan_has_a_closed_surface(labels):
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    found = surface(labels[:, :, 8:], LEFT_KIDNEY)
    edges = edges_of(found.triangles)
    assert all((b, a) in edges for a, b in edges)


def test_a_single_thick_slice_has_a_closed_surface():
    """It swells between its slices, and so its sides move further than some of its pixels."""
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    axial = np.zeros((1, 60, 60), np.uint8)
    axial[0, 20:40, 20:50] = 1
    image = toys.image_of(axial, spacing_mm=(10.0, 0.5, 0.5))
    found = surface(image, LEFT_KIDNEY)
    edges = edges_of(found.triangles)
    assert set(edges.values()) == {1} and all((b, a) in edges for a, b in edges)
    assert found.volume_ml == pytest.approx(1.5, rel=0.002)


def test_what_is_not_there_has_no_surface(labels, tmp_path, toy_ct, capsys):
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    assert [one.name for one in surfaces(labels == 1, SIDES)] == ["left_kidney"]
    with pytest.raises(InputError, match="has no right kidney"):
        surface(labels == 1, RIGHT_KIDNEY)
    sitk.WriteImage(labels * 0, str(tmp_path / "empty.nii.gz"))
    empty, output = str(tmp_path / "empty.nii.gz"), tmp_path / "kidneys.stl"
    assert main(["export", empty, "--output", str(output)]) == 3
    assert "has no kidney" in capsys.readouterr().err
    assert not output.exists()


def test_both_kidneys_are_files_of_their_own_in_a_folder(toy_sides, tmp_path):
    pytest.importorskip("skimage", reason="surfaces need scikit-image")
    given = ["export", str(toy_sides), "--output"]
    assert main([*given, str(tmp_path / "meshes"), "--format", "obj"]) == 0
    assert sorted(os.listdir(tmp_path / "meshes")) == ["left_kidney.obj", "right_kidney.obj"]
    assert main([*given, str(tmp_path / "both.obj")]) == 0
    lines = (tmp_path / "both.obj").read_text().splitlines()
    assert [line for line in lines if line[0] == "o"] == ["o left_kidney", "o right_kidney"]
    points = sum(line.startswith("v ") for line in lines)
    used = {int(n) for line in lines if line[0] == "f" for n in line.split()[1:]}
    assert used == set(range(1, points + 1))


# --- DICOM SEG --------------------------------------------------------------------------------

MODEL = Algorithm("toy-model", "2.1.0")


@pytest.fixture(scope="module", params=["from head", "from foot"])
def series(request, tmp_path_factory) -> Path:
    """A DICOM CT of the toy."""
    folder = tmp_path_factory.mktemp("dicom") / "ct"
    write_series(toys.image_of(toys.toy()[0]), folder, from_foot=request.param == "from foot")
    return folder


@pytest.fixture(scope="module")
def seg(series, labels, tmp_path_factory) -> Path:
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom")
    path = tmp_path_factory.mktemp("seg") / "kidneys.dcm"
    write_dicom_seg(labels, series, path, SIDES, MODEL)
    return path


def test_frames_lie_on_the_ct_slices_they_show_to_the_bit(series, seg, labels):
    """Decoded here by DICOM's own rules: bits from the lowest on, frames without a gap."""
    import pydicom

    slices = {}
    for file in series.iterdir():
        header = pydicom.dcmread(file)
        slices[header.SOPInstanceUID] = header
    stored = pydicom.dcmread(seg)
    shape = (stored.Rows, stored.Columns)
    bits = np.unpackbits(np.frombuffer(stored.PixelData, np.uint8), bitorder="little")
    frames = bits[: stored.NumberOfFrames * shape[0] * shape[1]].reshape(-1, *shape)
    array, grid = to_axial(labels)
    shared = stored.SharedFunctionalGroupsSequence[0]
    shown = []
    for frame, groups in zip(frames, stored.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        ct = slices[source.ReferencedSOPInstanceUID]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert position == ct.ImagePositionPatient
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        assert orientation == ct.ImageOrientationPatient
        measures = shared.PixelMeasuresSequence[0]
        assert measures.PixelSpacing == ct.PixelSpacing
        assert measures.SliceThickness == ct.SliceThickness
        assert measures.SpacingBetweenSlices == toys.SPACING_MM[0]
        z_mm = grid.to_physical(np.stack([np.arange(len(array))] + [np.zeros(len(array))] * 2, 1))
        k = int(np.argmin(np.abs(z_mm[:, 2] - float(position[2]))))
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(frame, array[k] == segment)
        shown.append((k, segment))
    expected = {(k, side) for side in (1, 2) for k in np.flatnonzero((array == side).any((1, 2)))}
    assert set(shown) == expected and len(shown) == len(expected)
    reference = stored.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == next(iter(slices.values())).SeriesInstanceUID
    assert stored.FrameOfReferenceUID == next(iter(slices.values())).FrameOfReferenceUID


def test_the_object_says_what_it_shows_and_which_model_made_it(seg):
    import pydicom

    stored = pydicom.dcmread(seg)
    assert (stored.Modality, stored.SegmentationType) == ("SEG", "BINARY")
    assert stored.PatientName == "Generated^Patient"
    assert "toy-model 2.1.0" in stored.SeriesDescription
    assert "toy-model 2.1.0" in stored.ContentDescription
    for item, (code, side) in zip(
        stored.SegmentSequence, (("7771000", "Left"), ("24028007", "Right")), strict=True
    ):
        assert item.SegmentLabel == f"{side} kidney"
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
        modifier = kind.SegmentedPropertyTypeModifierCodeSequence[0]
        assert (modifier.CodeValue, modifier.CodeMeaning) == (code, side)
        made = item.SegmentationAlgorithmIdentificationSequence[0]
        assert (made.AlgorithmName, made.AlgorithmVersion) == ("toy-model", "2.1.0")
        assert item.SegmentAlgorithmType == "AUTOMATIC"


def test_slicers_importer_gets_the_label_map_back(series, seg, labels, tmp_path):
    """By dcmqi's segimage2itkimage, called as the plugin in Slicer calls it."""
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("segimage2itkimage", path=here)
    if program is None:
        pytest.skip("segimage2itkimage of the package dcmqi is not installed")
    done = subprocess.run(
        [program, "--inputDICOM", seg, "--outputDirectory", tmp_path, "--mergeSegments"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "meta.json").read_text())
    (group,) = facts["segmentAttributes"]
    for number, (item, segment) in enumerate(zip(group, SIDES, strict=True), start=1):
        assert item["labelID"] == number
        # The plugin reads these three without asking whether they are there.
        assert item["SegmentLabel"] == segment.name
        assert "toy-model" in item["SegmentDescription"]
        assert item["SegmentAlgorithmName"] == "toy-model"
        rgb = [round(255 * part) for part in segment.color]
        assert np.abs(np.subtract(item["recommendedDisplayRGBValue"], rgb)).max() <= 1
    back = sitk.ReadImage(str(tmp_path / "1.nrrd"), sitk.sitkUInt8)
    ct = read_ct(series).image
    # It holds only the slices with kidney.
    np.testing.assert_allclose(back.GetSpacing(), ct.GetSpacing(), rtol=1e-6)
    whole = pasted(back, ct)
    np.testing.assert_array_equal(to_axial(whole)[0], to_axial(labels)[0])


def test_a_tumour_has_its_own_codes(series, labels, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="DICOM SEG needs highdicom")
    path = tmp_path / "tumour.dcm"
    write_dicom_seg(labels, series, path, (KIDNEY, TUMOUR), None)
    kidney, tumour = pydicom.dcmread(path).SegmentSequence
    assert kidney.SegmentAlgorithmType == "MANUAL"
    assert (
        "SegmentedPropertyTypeModifierCodeSequence"
        not in (kidney.SegmentedPropertyTypeCodeSequence[0])
    )
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert tumour.AnatomicRegionSequence[0].CodeValue == "64033007"


def test_a_dicom_seg_from_the_command_line_names_the_model_of_the_report(
    series, toy_sides, tmp_path, capsys
):
    pydicom = pytest.importorskip("pydicom", reason="DICOM SEG needs highdicom")
    output, report = tmp_path / "kidneys.dcm", tmp_path / "report.json"
    report.write_text(json.dumps({"model": {"name": "toy-model", "version": "2.1.0"}}))
    given = ["export", str(toy_sides), "--output", str(output), "--dicom", str(series)]
    assert main(given) == 2
    assert "--by-hand" in capsys.readouterr().err
    assert main([*given, "--report", str(report)]) == 0
    assert "Left kidney and Right kidney on" in capsys.readouterr().out
    assert "toy-model 2.1.0" in pydicom.dcmread(output).SeriesDescription
    inside = ["export", str(toy_sides), "--output", str(series / "k.dcm"), "--dicom", str(series)]
    assert main([*inside, "--by-hand"]) == 2
    assert "lies in the folder of the CT" in capsys.readouterr().err


def test_what_no_dicom_seg_can_be_made_of_is_said(series, labels, tmp_path):
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom")
    output = tmp_path / "kidneys.dcm"
    moved = sitk.Image(labels)
    moved.SetOrigin([x + 2.5 for x in labels.GetOrigin()])
    with pytest.raises(InputError, match="lies on another grid"):
        write_dicom_seg(moved, series, output, SIDES, MODEL)
    with pytest.raises(InputError, match="has no kidney"):
        write_dicom_seg(labels * 0, series, output, SIDES, MODEL)
    with pytest.raises(InputError, match="is not a DICOM folder"):
        write_dicom_seg(labels, tmp_path, output, SIDES, MODEL)
    assert os.listdir(tmp_path) == []


def test_a_ct_of_odd_names_and_dates_gets_its_object_all_the_same(labels, tmp_path):
    """A Japanese patient, and dates as programs that take away names leave them."""
    pydicom = pytest.importorskip("pydicom", reason="DICOM SEG needs highdicom")
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom")
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    write_series(toys.image_of(toys.toy()[0]), tmp_path / "ct")
    for file in (tmp_path / "ct").iterdir():
        header = pydicom.dcmread(file)
        header.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        header.PatientName = name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header.StudyTime, header.StudyDate = "anonymous", "20261126"
            header.PatientSex, header.PatientBirthDate = "unknown", "00000000"
        header.save_as(file)
    path = tmp_path / "kidneys.dcm"
    write_dicom_seg(labels, tmp_path / "ct", path, SIDES, MODEL)
    stored = pydicom.dcmread(path)
    assert (str(stored.PatientName), stored.StudyDate) == (name, "20261126")
    assert not stored.StudyTime and not stored.PatientSex and not stored.PatientBirthDate


def test_a_ct_in_one_multi_frame_file_is_refused_with_a_way_out(labels, tmp_path):
    pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom")
    ct = toys.image_of(toys.toy()[0])
    for key, value in {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2.1",
        "0008|0060": "CT",
    }.items():
        ct.SetMetaData(key, value)
    (tmp_path / "ct").mkdir()
    sitk.WriteImage(ct, str(tmp_path / "ct" / "enhanced.dcm"))
    with pytest.raises(InputError, match="in one multi-frame file"):
        write_dicom_seg(labels, tmp_path / "ct", tmp_path / "kidneys.dcm", SIDES, MODEL)


def test_what_is_in_slicers_scene_is_exported_as_files_are(slicer_scene, series, labels, tmp_path):
    """A CT from Slicer's DICOM module knows its files; here they are named."""
    pydicom = pytest.importorskip("pydicom", reason="DICOM SEG needs highdicom")
    from KidneySegLib.scene import labels_image, place_labels

    ct = read_ct(series).image
    volume = slicerhost.add_volume(ct, "CT", "vtkMRMLScalarVolumeNode")
    node = place_labels(pasted(labels, ct), volume, segments=SIDES)
    found, segments = understood(labels_image(node, volume), node.GetName())
    files = sorted(series.iterdir())
    write_dicom_seg(found, series, tmp_path / "seg.dcm", segments, MODEL, files=files)
    names = [item.SegmentLabel for item in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence]
    assert names == ["Left kidney", "Right kidney"]
    write_slices(found, tmp_path / "slices", segments)
    assert same(pasted(read_slices(tmp_path / "slices"), labels), labels)


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["--output", "kidneys"], "does not tell what to write"),
        (["--output", "kidneys.stl", "--format", "png"], "does not go with --format png"),
        (["--output", "kidneys.dcm"], "give --dicom FOLDER"),
    ],
)
def test_what_the_command_cannot_do_is_said_in_one_line(
    words, said, toy_sides, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(toy_sides), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_missing_package_is_named_with_how_to_install_it(
    toy_sides, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(["export", str(toy_sides), "--output", str(tmp_path / "kidneys.stl")]) == 2
    assert 'pip install "kidneyseg[exports]"' in capsys.readouterr().err


def test_no_input_is_overwritten(toy_ct, toy_sides, series, labels, tmp_path, capsys):
    case, tables = tmp_path / "case", tmp_path / "tables"
    case.mkdir()
    shutil.copy(toy_ct, case / "imaging.nii.gz")
    assert main(["export", str(toy_sides), "--output", str(tables), "--format", "csv"]) == 0
    before = toys.everything_in(tmp_path)
    for source, output, *more in (
        (toy_sides, case / "imaging.nii.gz", "--like", case),
        (toy_sides, case / "imaging.nii.gz", "--dicom", case),
        (tables, tables / "left_kidney.csv", "--like", case),
    ):
        assert main(["export", *map(str, (source, "--output", output, *more))]) == 2
        assert "is an input and is not overwritten" in capsys.readouterr().err
    slice_of_ct = sorted(series.iterdir())[0]
    given = ["--output", slice_of_ct, "--like", series, "--dicom", case, "--by-hand"]
    assert main(["export", *map(str, (toy_sides, *given))]) == 2
    assert "lies in the folder of the CT" in capsys.readouterr().err
    assert toys.everything_in(tmp_path) == before
