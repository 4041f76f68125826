"""Reading CTs and label maps, and refusing what is none."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from KidneySegLib.errors import Cancelled, InputError
from KidneySegLib.reading import case_name, holds, read_ct, read_labels, unique_names
from KidneySegLib.volumes import header_of

SPACING = (0.7, 0.8, 3.0)
ORIGIN = (-12.5, 7.25, 100.0)


def hounsfield(shape=(6, 24, 32), seed=1) -> np.ndarray:
    """Air around, something like tissue within, whole HU."""
    array = np.full(shape, -1000, dtype=np.int16)
    inner = tuple(slice(n // 6, n - n // 6) for n in shape)
    array[inner] = np.random.default_rng(seed).normal(40, 60, array[inner].shape).astype(np.int16)
    return array


def as_image(array: np.ndarray, **options) -> sitk.Image:
    image = sitk.GetImageFromArray(array, **options)
    dimensions = image.GetDimension()
    image.SetSpacing((*SPACING, 1.0)[:dimensions])
    image.SetOrigin((*ORIGIN, 0.0)[:dimensions])
    return image


def write(array: np.ndarray, path: Path, **options) -> Path:
    sitk.WriteImage(as_image(array, **options), str(path))
    return path


def voxels(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


# --- Formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("name", ["ct.nii", "ct.nii.gz", "ct.nrrd", "ct.mha", "ct.mhd", "ct.nhdr"])
def test_every_format_gives_the_same_voxels_and_grid(tmp_path, name, compress):
    sitk.WriteImage(as_image(hounsfield()), str(tmp_path / name), compress)
    scan = read_ct(tmp_path / name)
    np.testing.assert_array_equal(voxels(scan.image), hounsfield())
    np.testing.assert_allclose(scan.image.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(scan.image.GetOrigin(), ORIGIN, rtol=1e-6)
    assert scan.image.GetPixelID() == sitk.sitkInt16
    assert (scan.name, scan.path, scan.warnings) == ("ct", tmp_path / name, ())


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_whole_values_of_any_type_become_int16(tmp_path, kind, suffix):
    array = hounsfield().clip(-100, 100).astype(np.int16)
    array = (array + 100 if kind[0] == "u" else array).astype(kind)
    scan = read_ct(write(array, tmp_path / f"ct{suffix}"))
    assert scan.image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(voxels(scan.image), array)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_fractions_and_large_values_become_float32(tmp_path, suffix):
    array = hounsfield().astype(np.float64)
    array[-1, 3, 3] = 0.25
    scan = read_ct(write(array, tmp_path / f"ct{suffix}"))
    assert scan.image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(voxels(scan.image), array)
    array[-1, 3, 3] = 40000
    scan = read_ct(write(array, tmp_path / f"ct{suffix}"))
    assert scan.image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(voxels(scan.image), array)


def test_a_volume_of_several_slabs_is_put_together_in_order(tmp_path, monkeypatch):
    for room in ("volumes", "nifti"):
        monkeypatch.setattr(f"KidneySegLib.{room}.SLAB_VOXELS", 24 * 32 * 4)
    array = hounsfield((11, 24, 32)).astype(np.float64)
    for name in ("ct.nii.gz", "ct.nrrd", "ct.mha"):
        sitk.WriteImage(as_image(array), str(tmp_path / name), False)
        np.testing.assert_array_equal(voxels(read_ct(tmp_path / name).image), array)
    array[9, 2, 2] = 0.5  # in the last slab: what was read as int16 so far must survive
    for name in ("ct.nii.gz", "ct.nrrd", "ct.mha"):
        sitk.WriteImage(as_image(array), str(tmp_path / name), False)
        np.testing.assert_array_equal(voxels(read_ct(tmp_path / name).image), array)


def nifti_bytes(array: np.ndarray) -> bytearray:
    """What ITK writes, to be tampered with."""
    with tempfile.TemporaryDirectory() as folder:
        return bytearray(write(array, Path(folder, "ct.nii")).read_bytes())


def test_scale_slope_and_intercept_give_hounsfield_units(tmp_path):
    stored = np.arange(6 * 24 * 32).reshape(6, 24, 32) % 51
    data = nifti_bytes(stored.astype(np.uint8))
    data[112:120] = struct.pack("<2f", 8.0, -125.0)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(bytes(data)))
    scan = read_ct(tmp_path / "ct.nii.gz")
    assert scan.image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(voxels(scan.image), stored * 8 - 125)
    assert scan.warnings == ()


def test_big_endian_is_read(tmp_path):
    array = hounsfield()
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, 32, 24, 6, 1, 1, 1, 1)
    struct.pack_into(">2h", header, 70, 4, 16)
    struct.pack_into(">4f", header, 76, 1, *SPACING)
    struct.pack_into(">3f", header, 108, 352, 0, 0)
    struct.pack_into(">2h", header, 252, 0, 1)
    struct.pack_into(">12f", header, 280, 0.7, 0, 0, -1, 0, 0.8, 0, -2, 0, 0, 3, -3)
    header[344:348] = b"n+1\0"
    (tmp_path / "ct.nii").write_bytes(bytes(header) + array.astype(">i2").tobytes())
    scan = read_ct(tmp_path / "ct.nii")
    np.testing.assert_array_equal(voxels(scan.image), array)
    np.testing.assert_allclose(scan.image.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(scan.image.GetOrigin(), (1, 2, -3), rtol=1e-6)


@pytest.mark.parametrize("offset", [0, 1, 347, 348, 351, 352, 353.5, 360])
def test_voxels_of_nifti_begin_where_itk_finds_them(tmp_path, offset):
    data = nifti_bytes(hounsfield())
    struct.pack_into("<f", data, 108, offset)
    path = tmp_path / "ct.nii"
    path.write_bytes(data + bytes(16))
    np.testing.assert_array_equal(voxels(read_ct(path).image), voxels(sitk.ReadImage(str(path))))


@pytest.mark.parametrize(
    "name",
    ["CT.MHA", "Ct.Mha", "CT.MHD", "ct.Nii", "CT.NII", "Ct.Nii.Gz", "ct.nii.GZ", "CT.NRRD"],
)
def test_capitals_in_a_suffix_change_nothing(tmp_path, name):
    written = tmp_path / name.lower()
    sitk.WriteImage(as_image(hounsfield()), str(written), True)
    path = written.rename(tmp_path / name)
    assert header_of(path).GetSize() == (32, 24, 6)
    scan = read_ct(path)
    np.testing.assert_array_equal(voxels(scan.image), hounsfield())
    np.testing.assert_allclose(scan.image.GetSpacing(), SPACING, rtol=1e-6)
    assert scan.name == case_name(name) and not scan.warnings


def meta_image(
    path: Path, body: bytes, /, kind: str = "MET_SHORT", data: str = "LOCAL", **fields: str
) -> Path:
    """A MetaImage of 32 x 24 x 6 voxels."""
    fields = {
        "NDims": "3", "BinaryData": "True", "CompressedData": "True",
        "ElementSpacing": "0.7 0.8 3", "DimSize": "32 24 6", "ElementType": kind, **fields,
        "ElementDataFile": data,
    }  # fmt: skip
    header = "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()
    if data != "LOCAL":
        (path.parent / data).write_bytes(body)
        body = b""
    elif "HeaderSize" in fields:
        header = header.ljust(int(fields["HeaderSize"]), b"#")
    path.write_bytes(header + body)
    return path


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"data": "voxels.zraw"},
        {"HeaderSize": "700"},
        {"kind": "MET_DOUBLE"},
        {"kind": "MET_USHORT", "BinaryDataByteOrderMSB": "True"},
        {"kind": "MET_LONG", "ElementByteOrderMSB": "True"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "pack",
    [zlib.compress, gzip.compress, lambda data: zlib.compress(data) + b"more"],
    ids=["zlib", "gzip", "more behind it"],
)
def test_a_compressed_metaimage_is_read_whatever_its_header_leaves_out(tmp_path, how, pack):
    kind = {"MET_DOUBLE": "<f8", "MET_USHORT": ">u2", "MET_LONG": ">i4"}.get(how.get("kind"), "<i2")
    array = hounsfield().clip(-100, None) + 100
    path = meta_image(tmp_path / "ct.mha", pack(array.astype(kind).tobytes()), **how)
    scan = read_ct(path)
    np.testing.assert_array_equal(voxels(scan.image), array)
    np.testing.assert_allclose(scan.image.GetSpacing(), SPACING)


def test_a_metaimage_whose_voxels_lie_in_a_gz_file_is_read(tmp_path):
    path = meta_image(tmp_path / "ct.mhd", b"", data="ct.raw", CompressedData="False")
    (tmp_path / "ct.raw").unlink()
    (tmp_path / "ct.raw.gz").write_bytes(gzip.compress(hounsfield().tobytes()))
    np.testing.assert_array_equal(voxels(read_ct(path).image), hounsfield())


def test_a_fourth_dimension_of_one_is_none(tmp_path):
    for name in ("ct.nii.gz", "ct.nrrd"):
        scan = read_ct(write(hounsfield()[np.newaxis], tmp_path / name, isVector=False))
        np.testing.assert_array_equal(voxels(scan.image), hounsfield())
        np.testing.assert_allclose(scan.image.GetSpacing(), SPACING, rtol=1e-6)


def test_a_volume_of_one_slice_is_a_volume(tmp_path):
    scan = read_ct(write(hounsfield((1, 24, 32)), tmp_path / "ct.nii.gz"))
    assert scan.image.GetSize() == (32, 24, 1)


def sheared(path: Path, shear: float) -> Path:
    data = nifti_bytes(hounsfield())
    data[252:254] = struct.pack("<h", 0)  # no qform to fall back on
    data[280:284] = struct.pack("<f", -0.7)
    data[284:288] = struct.pack("<f", shear * 0.8)
    path.write_bytes(data)
    return path


def test_axes_a_little_off_right_angles_are_straightened_with_a_warning(tmp_path):
    scan = read_ct(sheared(tmp_path / "ct.nii", 0.005))
    assert "0.29 degrees off right angles" in scan.warnings[0]
    np.testing.assert_array_equal(voxels(scan.image), hounsfield())
    direction = np.reshape(scan.image.GetDirection(), (3, 3))
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-6)


def test_a_sheared_grid_is_refused_whatever_the_format(tmp_path):
    with pytest.raises(InputError, match="right angles; resample"):
        read_ct(sheared(tmp_path / "ct.nii", 0.3))
    image = as_image(hounsfield())
    image.SetDirection((1, 0.3, 0, 0, 0.9539392, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    with pytest.raises(InputError, match="right angles; resample"):
        read_ct(tmp_path / "ct.nrrd")


# --- What is no CT ----------------------------------------------------------------------------


def text_file(folder):
    path = folder / "ct.nii.gz"
    path.write_text("This is not an image.\n" * 40)
    return path


def short_text(folder):
    path = folder / "ct.nii"
    path.write_text("no")
    return path


def zipped_text(folder):
    path = folder / "ct.nii.gz"
    path.write_bytes(gzip.compress(b"This is not an image.\n" * 40))
    return path


def empty_file(folder):
    path = folder / "ct.nii.gz"
    path.touch()
    return path


def cut(name, share, compress=True):
    def make(folder):
        path = folder / name
        sitk.WriteImage(as_image(hounsfield()), str(path), compress)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return make


def without_checksum(folder):
    path = write(hounsfield(), folder / "ct.nii.gz")
    path.write_bytes(path.read_bytes()[:-4])
    return path


def bit_error(folder):
    array = hounsfield((40, 64, 64))
    path = write(array, folder / "ct.nii.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    return path


def huge_header(folder):
    data = nifti_bytes(hounsfield())
    data[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    path = folder / "ct.nii.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    return path


def zipped_without_gz(folder):
    path = folder / "ct.nii"
    path.write_bytes(gzip.compress(bytes(nifti_bytes(hounsfield()))))
    return path


def nifti_2(folder):
    path = folder / "ct.nii.gz"
    path.write_bytes(gzip.compress(struct.pack("<i8s", 540, b"n+2\0\r\n\x1a\n") + bytes(600)))
    return path


def random_bytes(folder):
    path = folder / "ct.nrrd"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def no_spacing(folder):
    data = nifti_bytes(hounsfield())
    data[80:92] = struct.pack("<3f", np.nan, np.nan, np.nan)
    data[252:256] = struct.pack("<2h", 0, 0)
    path = folder / "ct.nii"
    path.write_bytes(data)
    return path


def flipped(name):
    """The middle byte of the compressed voxels is another one."""

    def make(folder):
        path = folder / name
        sitk.WriteImage(as_image(hounsfield((40, 64, 64))), str(path), True)
        file = path.with_suffix(".zraw") if name.endswith(".mhd") else path
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0x55
        file.write_bytes(data)
        return path

    return make


def deflated(data):
    def make(folder):
        return meta_image(folder / "ct.mha", data)

    return make


def rewritten(name, old, new, compress=False):
    """A header that says something else."""

    def make(folder):
        path = folder / name
        sitk.WriteImage(as_image(hounsfield()), str(path), compress)
        data = path.read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))
        return path

    return make


def nifti_with(offset, code, value):
    def make(folder):
        data = nifti_bytes(hounsfield())
        struct.pack_into(code, data, offset, value)
        path = folder / "ct.nii"
        path.write_bytes(data)
        return path

    return make


def spaced(name, spacing):
    def make(folder):
        image = as_image(hounsfield())
        image.SetSpacing(spacing)
        sitk.WriteImage(image, str(folder / name))
        return folder / name

    return make


def nrrd_of(dimensions):
    def make(folder):
        sizes = " ".join(["2"] * dimensions)
        header = f"NRRD0004\ntype: short\ndimension: {dimensions}\nsizes: {sizes}\n"
        header += "encoding: raw\nendian: little\n\n"
        path = folder / "ct.nrrd"
        path.write_bytes(header.encode() + bytes(2 * 2**dimensions))
        return path

    return make


VOXELS = hounsfield().tobytes()
BAD = {
    "missing": (lambda f: f / "ct.nii.gz", "does not exist; check the path"),
    "text": (text_file, "called NIfTI but is none"),
    "two bytes": (short_text, "called NIfTI but is none"),
    "zipped text": (zipped_text, "called NIfTI but is none"),
    "empty": (empty_file, "is empty"),
    "truncated at 1 %": (cut("ct.nii.gz", 0.01), "is truncated"),
    "truncated at 50 %": (cut("ct.nii.gz", 0.5), "is truncated"),
    "truncated at 99 %": (cut("ct.nii.gz", 0.99), "is truncated"),
    "truncated check sum": (without_checksum, "is truncated"),
    "bit error": (bit_error, "is damaged"),
    "truncated plain": (cut("ct.nii", 0.5), "is truncated"),
    "truncated nrrd": (cut("ct.nrrd", 0.5), "damaged or truncated"),
    "truncated plain nrrd": (cut("ct.nrrd", 0.5, False), "damaged or truncated"),
    "truncated mha": (cut("ct.mha", 0.5), "damaged or truncated"),
    "truncated plain mha": (cut("ct.mha", 0.5, False), "damaged or truncated"),
    "flipped mha": (flipped("ct.mha"), "damaged or truncated"),
    "flipped zraw": (flipped("ct.mhd"), "damaged or truncated"),
    "mha that inflates to less": (deflated(zlib.compress(VOXELS[:-2])), "damaged or truncated"),
    "mha that inflates to more": (deflated(zlib.compress(VOXELS + b"x")), "damaged or truncated"),
    "mha without check sum": (deflated(zlib.compress(VOXELS)[:-4]), "damaged or truncated"),
    "mha with a wrong check sum": (
        deflated(zlib.compress(VOXELS)[:-4] + b"wrong"),
        "damaged or truncated",
    ),
    "huge header": (huge_header, "is truncated"),
    "no columns": (rewritten("ct.mha", b"32 24 6", b"0 24 6"), "damaged or truncated"),
    **{
        f"NDims = {number}": (
            rewritten("ct.mha", b"NDims = 3", b"NDims = " + number.encode()),
            "damaged header, its number of dimensions is not from 1 to 10",
        )
        for number in ("9999", "-1", "0", "1e9", "")
    },
    "16 dimensions": (nrrd_of(16), "damaged header, its number of dimensions"),
    "1-D": (nrrd_of(1), "1-D image of 2; give the whole"),
    "voxels nowhere": (nifti_with(108, "<f", np.nan), "damaged NIfTI header"),
    "voxels at infinity": (nifti_with(108, "<f", np.inf), "damaged NIfTI header"),
    "voxels before the file": (nifti_with(108, "<f", -5.0), "damaged NIfTI header"),
    "metres": (nifti_with(123, "B", 1), "32 x 24 x 6 voxels of 700 x 800 x 3000 mm, which is too"),
    "coarse": (spaced("ct.mha", (1.0, 1.0, 101.0)), "1 x 1 x 101 mm, which is too large"),
    "long": (spaced("ct.nrrd", (0.7, 0.8, 900.0)), "0.7 x 0.8 x 900 mm, which is too large"),
    "zipped without gz": (zipped_without_gz, "rename it to end in .nii.gz"),
    "NIfTI-2": (nifti_2, "save it as NIfTI-1"),
    "random bytes": (random_bytes, "not an image in a known format"),
    "no spacing": (no_spacing, "no usable voxel spacing"),
    "2-D": (lambda f: write(hounsfield()[0], f / "ct.nii.gz"), "2-D image of 32 x 24"),
    "2-D picture": (
        lambda f: write(hounsfield()[0].clip(0).astype(np.uint8), f / "ct.png"),
        "2-D image of 32 x 24",
    ),
    "4-D": (
        lambda f: write(np.stack([hounsfield()] * 5), f / "ct.nii.gz", isVector=False),
        "4-D image of 5 volumes; extract one",
    ),
    "4-D nrrd": (
        lambda f: write(np.stack([hounsfield()] * 5), f / "ct.nrrd", isVector=False),
        "4-D image of 5 volumes; extract one",
    ),
    "RGB": (
        lambda f: write(np.zeros((5, 6, 7, 3), np.uint8), f / "ct.nii.gz", isVector=True),
        "colour",
    ),
    "RGB nrrd": (
        lambda f: write(np.zeros((5, 6, 7, 3), np.uint8), f / "ct.nrrd", isVector=True),
        "a colour picture",
    ),
    "vector": (
        lambda f: write(np.zeros((5, 6, 7, 2), np.float32), f / "ct.nii.gz", isVector=True),
        "vector image|5-D image",
    ),
    "complex": (
        lambda f: write(np.ones((5, 6, 7), np.complex64), f / "ct.nii.gz"),
        "complex numbers",
    ),
    "constant": (
        lambda f: write(np.full((5, 6, 7), 40, np.int16), f / "ct.nii.gz"),
        "every voxel is 40",
    ),
    "constant but for NaN": (
        lambda f: write(
            np.where(np.arange(210).reshape(5, 6, 7) > 9, 40, np.nan).astype("f4"), f / "ct.nii.gz"
        ),
        "every voxel is 40",
    ),
    "only NaN": (
        lambda f: write(np.full((5, 6, 7), np.nan, np.float32), f / "ct.nii.gz"),
        "no two voxels of different value",
    ),
    "empty folder": (lambda f: f, "neither imaging.nii.gz, imaging.nii, imaging.nrrd nor a DICOM"),
    "labels only": (
        lambda f: write(np.ones((5, 6, 7), np.uint8), f / "segmentation.nii.gz").parent,
        "only segmentation.nii.gz; give the CT",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gets_one_sentence_with_its_name_and_nothing_on_stderr(tmp_path, capfd, kind):
    make, message = BAD[kind]
    folder = tmp_path / "case_00042"
    folder.mkdir()
    path = make(folder)
    capfd.readouterr()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as caught:
        read_ct(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text and text.endswith(".") and "ITK" not in text
    assert caught.value.exit_code == 3
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("name", ["ct.mha", "ct.mhd", "ct.nrrd"])
def test_no_memory_is_taken_for_voxels_that_a_file_cannot_hold(
    tmp_path, monkeypatch, name, compress
):
    path = rewritten(name, b"32 24 6", b"3000 3000 300", compress)(tmp_path)

    def taken(*_):
        raise AssertionError

    monkeypatch.setattr("KidneySegLib.volumes.blank_image", taken)
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", taken)
    with pytest.raises(InputError, match="damaged or truncated"):
        read_ct(path)


def test_standard_error_works_again_after_a_refusal(tmp_path, capfd):
    with pytest.raises(InputError):
        read_ct(cut("ct.mha", 0.5)(tmp_path))
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


def test_a_file_is_read_without_any_standard_error(tmp_path):
    path = write(hounsfield(), tmp_path / "ct.nii.gz")
    code = "import os, sys; os.close(2); from KidneySegLib.reading import read_ct; "
    code += "print(read_ct(sys.argv[1]).name)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, check=False, text=True
    )
    assert (done.returncode, done.stdout) == (0, "ct\n")


def test_series_of_a_file_is_refused(tmp_path):
    path = write(hounsfield(), tmp_path / "ct.nii.gz")
    with pytest.raises(InputError, match="leave out --series"):
        read_ct(path, series_uid="1.2.3")


# --- Odd values -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_voxels_that_are_no_number_are_counted_and_taken_as_air(tmp_path, suffix):
    array = hounsfield().astype(np.float32)
    array[2, 3, 4:7] = np.nan
    array[3, 3, 4], array[3, 3, 5] = np.inf, -np.inf
    scan = read_ct(write(array, tmp_path / f"ct{suffix}"))
    found = voxels(scan.image)
    assert scan.image.GetPixelID() == sitk.sitkInt16
    assert (found[2, 3, 4:7] == -1024).all() and (found[3, 3, 4:6] == -1024).all()
    assert (found[np.isfinite(array)] == array[np.isfinite(array)]).all()
    (warning,) = scan.warnings
    assert "5 voxels that are not a number (NaN or infinite): taken as air" in warning


@pytest.mark.parametrize(
    ("array", "text"),
    [
        ((hounsfield() + 1024).clip(0, 4095), "subtract 1024, or export it again"),
        ((hounsfield() + 1000).clip(0, 255).astype(np.uint8), "8-bit gray values (0 to 255)"),
        (hounsfield().clip(0, 255).astype(np.float32) / 255, "normalised"),
        (hounsfield().clip(-125, 275), None),
        (hounsfield().clip(-1000, 255), None),
        (hounsfield() * 3, None),
    ],
    ids=["12-bit", "8-bit", "normalised", "clipped HU", "HU", "wide HU"],
)
def test_values_that_are_not_hounsfield_units_are_told_and_never_changed(tmp_path, array, text):
    scan = read_ct(write(array, tmp_path / "ct.nii.gz"))
    np.testing.assert_array_equal(voxels(scan.image), array)
    if text is None:
        assert scan.warnings == ()
    else:
        (warning,) = scan.warnings
        assert text in warning and str(tmp_path) in warning


# --- DICOM ------------------------------------------------------------------------------------

ROOT = "1.2.826.0.1.3680043.8.498."
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def write_series(
    folder: Path,
    array: np.ndarray,
    uid: str = ROOT + "1",
    *,
    modality="CT",
    image_type="ORIGINAL\\PRIMARY\\AXIAL",
    description="Abdomen",
    directions=AXIAL,
    step=(0.0, 0.0, 3.0),
    first=ORIGIN,
    intercept="-1024",
    keep=None,
    suffix=".dcm",
    compress=False,
    acquisition="1",
    positions=None,
) -> list[Path]:
    """One file a slice; the array's first slice at `first`, the others a `step` further each."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetUseCompression(compress)
    paths = []
    for k in range(len(array)) if keep is None else keep:
        at = np.add(first, np.multiply(positions[k] if positions else k, step))
        image = sitk.GetImageFromArray(array[k])
        image.SetSpacing(SPACING[:2])
        for key, value in {
            "0008|0008": image_type,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.{acquisition}.{k + 1}",
            "0008|0060": modality,
            "0008|103e": description,
            "0018|0050": "3",
            "0020|000d": ROOT + "999",
            "0020|000e": uid,
            "0020|0012": acquisition,
            "0020|0013": str(1000 - k),  # against the order in space
            "0020|0032": "\\".join(f"{x:.6g}" for x in at),
            "0020|0037": "\\".join(f"{x:.9g}" for x in directions),
            "0020|0052": ROOT + "888",
            **({"0028|1052": intercept, "0028|1053": "1"} if intercept else {}),
        }.items():
            image.SetMetaData(key, value)
        # Names that sort neither as the slices do nor against them.
        name = f"I{(k * 7 + 3) % 101:03d}_{uid.rsplit('.', 1)[-1]}_{acquisition}"
        written = folder / f"{name}.dcm"
        writer.SetFileName(str(written))
        writer.Execute(image)
        paths.append(written.rename(folder / f"{name}{suffix}"))
    return paths


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA", ".1.2.840.7"])
def test_a_dicom_folder_is_read_in_the_order_of_positions(tmp_path, suffix):
    array = hounsfield((9, 24, 32))
    write_series(tmp_path / "scan", array, suffix=suffix)
    (tmp_path / "scan" / "notes.txt").write_text("not an image")
    (tmp_path / "scan" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 50)
    scan = read_ct(tmp_path / "scan")
    np.testing.assert_array_equal(voxels(scan.image), array)
    assert scan.image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_allclose(scan.image.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(scan.image.GetOrigin(), ORIGIN)
    assert (scan.name, scan.warnings) == ("scan", ())


def test_slices_stored_from_head_to_foot_are_the_same_volume(tmp_path):
    array = hounsfield((9, 24, 32))
    top = np.add(ORIGIN, (0, 0, 24.0))
    write_series(tmp_path, array[::-1], first=top, step=(0, 0, -3.0))
    image = read_ct(tmp_path).image
    np.testing.assert_array_equal(voxels(image), array)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN)


def test_compressed_dicom_is_read(tmp_path):
    array = hounsfield((5, 24, 32))
    paths = write_series(tmp_path, array, compress=True)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(paths[0]))
    plain = write_series(tmp_path.parent / "plain", array)
    assert paths[0].stat().st_size < plain[0].stat().st_size
    np.testing.assert_array_equal(voxels(read_ct(tmp_path).image), array)


def test_dicom_in_folders_of_folders_is_found(tmp_path):
    array = hounsfield((5, 24, 32))
    write_series(tmp_path / "DICOM" / "ST0" / "SE0", array, suffix="")
    np.testing.assert_array_equal(voxels(read_ct(tmp_path).image), array)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_link_to_nowhere_is_no_slice(tmp_path):
    array = hounsfield((5, 24, 32))
    write_series(tmp_path, array)
    (tmp_path / "0.dcm").symlink_to(tmp_path / "gone.dcm")
    np.testing.assert_array_equal(voxels(read_ct(tmp_path).image), array)


def test_a_scout_is_left_out_even_within_the_series(tmp_path):
    array = hounsfield((7, 24, 32))
    write_series(tmp_path, array)
    scout = {"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER", "directions": CORONAL}
    write_series(tmp_path, hounsfield((1, 60, 50)), ROOT + "2", **scout)
    write_series(tmp_path, hounsfield((1, 60, 50)), acquisition="9", **scout)
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), array)
    assert scan.warnings == ()


def test_the_axial_ct_is_chosen_among_other_series(tmp_path):
    array = hounsfield((7, 24, 32))
    write_series(tmp_path, array)
    coronal = hounsfield((20, 24, 32), seed=2)
    write_series(tmp_path, coronal, ROOT + "2", directions=CORONAL, step=(0, 3, 0))
    write_series(tmp_path, hounsfield((15, 24, 32)), ROOT + "3", modality="MR", intercept="")
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), array)
    assert scan.warnings == ()
    np.testing.assert_array_equal(voxels(read_ct(tmp_path, series_uid=ROOT + "2").image), coronal)
    with pytest.raises(InputError, match="is not CT"):
        read_ct(tmp_path, series_uid=ROOT + "3")


def test_among_axial_series_the_one_with_far_more_slices_is_read_with_a_warning(tmp_path):
    thin = hounsfield((12, 24, 32))
    write_series(tmp_path / "thin", thin, description="1 mm", step=(0, 0, 1.0))
    write_series(tmp_path / "thick", hounsfield((4, 24, 32)), ROOT + "2", description="3 mm")
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), thin)
    (warning,) = scan.warnings
    assert ROOT + "2 (3 mm, CT, 4 slices)" in warning and "--series UID" in warning


def test_series_that_are_equally_plausible_are_listed_to_choose_from(tmp_path):
    arterial, venous = hounsfield((8, 24, 32)), hounsfield((9, 24, 32), seed=2)
    write_series(tmp_path, arterial, description="arterial")
    write_series(tmp_path, venous, ROOT + "2", description="venous")
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path)
    text = str(caught.value)
    assert f"{ROOT}1 (arterial, CT, 8 slices)" in text
    assert f"{ROOT}2 (venous, CT, 9 slices)" in text
    assert "--series UID" in text and "\n" not in text
    scan = read_ct(tmp_path, series_uid=ROOT + "1")
    np.testing.assert_array_equal(voxels(scan.image), arterial)
    scan = read_ct(tmp_path, series_uid=ROOT + "2")
    np.testing.assert_array_equal(voxels(scan.image), venous)
    with pytest.raises(InputError, match=r"no series 9\.9\.9;.*venous.*arterial"):
        read_ct(tmp_path, series_uid="9.9.9")


@pytest.mark.parametrize(
    "options",
    [
        {"modality": "MR", "intercept": ""},
        {"directions": CORONAL, "step": (0, 3, 0)},
        {"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"},
    ],
    ids=["MR", "coronal", "scout"],
)
def test_a_folder_without_an_axial_ct_is_refused(tmp_path, options):
    write_series(tmp_path, hounsfield(), **options)
    with pytest.raises(InputError, match="no series of axial CT slices") as caught:
        read_ct(tmp_path)
    assert ROOT + "1" in str(caught.value)


def test_missing_slices_are_counted_and_located(tmp_path):
    write_series(tmp_path, hounsfield((12, 24, 32)), keep=[0, 1, 2, 3, 6, 7, 8, 9, 10, 11])
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path)
    assert "lacks 2 slices between positions 109.0 and 118.0 mm" in str(caught.value)
    assert "10 slices, 3 mm apart" in str(caught.value)


@pytest.mark.parametrize("keep", [[0, 2, 3], [0, 1, 3]])
def test_a_missing_slice_is_told_where_only_three_are_left(tmp_path, keep):
    write_series(tmp_path, hounsfield((4, 24, 32)), keep=keep)
    with pytest.raises(InputError, match=r"lacks 1 slice between .* \(3 slices, 3 mm apart\)"):
        read_ct(tmp_path)


def test_slices_at_changing_distances_are_refused(tmp_path):
    positions = [0, 1, 2, 3, 5, 7, 9, 11]
    write_series(tmp_path, hounsfield((8, 24, 32)), positions=positions)
    with pytest.raises(InputError, match=r"changing distances \(3 to 6 mm\)"):
        read_ct(tmp_path)


def test_rounded_positions_are_no_gap(tmp_path):
    array = hounsfield((8, 24, 32))
    positions = [round(k * 0.333333, 1) for k in range(8)]
    write_series(tmp_path, array, positions=positions, step=(0, 0, 9.0))
    scan = read_ct(tmp_path)
    assert scan.image.GetSpacing()[2] == pytest.approx(2.7, abs=0.4)
    assert "slightly changing distances" in scan.warnings[0]


def test_slices_at_the_same_place_are_dropped_with_a_warning(tmp_path):
    array = hounsfield((7, 24, 32))
    paths = write_series(tmp_path, array)
    (tmp_path / "copy.dcm").write_bytes(paths[2].read_bytes())
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), array)
    assert "1 slice at a place that another slice already has" in scan.warnings[0]


def test_of_two_phases_in_one_series_one_is_read_whole(tmp_path):
    first, second = hounsfield((7, 24, 32)), hounsfield((7, 24, 32), seed=2)
    write_series(tmp_path, second, acquisition="2")
    write_series(tmp_path, first, acquisition="1")
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), first)
    assert "7 slices at a place" in scan.warnings[0]


def test_a_step_aside_within_a_series_is_told_and_not_taken_for_a_tilt(tmp_path):
    """As where a scan was reconstructed in two parts."""
    array = hounsfield((6, 24, 32))
    write_series(tmp_path, array, keep=range(3))
    write_series(tmp_path, array, keep=range(3, 6), first=np.add(ORIGIN, (20, 0, 0)))
    (warning,) = read_ct(tmp_path).warnings
    assert "has a step of 20 mm to the side between two slices" in warning


def test_a_tilted_gantry_is_told(tmp_path):
    array = hounsfield((7, 24, 32))
    angle = np.radians(15)
    tilted = (1, 0, 0, 0, np.cos(angle), -np.sin(angle))
    write_series(tmp_path, array, directions=tilted)
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), array)
    assert "gantry tilted by 15.0 degrees" in scan.warnings[0]
    # The distance between the planes, which the volume of a voxel needs, not the table's feed.
    assert scan.image.GetSpacing()[2] == pytest.approx(3 * np.cos(angle), abs=1e-3)


def test_an_oblique_series_keeps_its_orientation(tmp_path):
    angle = np.radians(12)
    normal = np.array([0, -np.sin(angle), np.cos(angle)])
    directions = (1, 0, 0, 0, np.cos(angle), np.sin(angle))
    write_series(tmp_path, hounsfield(), directions=directions, step=tuple(3 * normal))
    scan = read_ct(tmp_path)
    np.testing.assert_allclose(
        np.reshape(scan.image.GetDirection(), (3, 3))[:, 2], normal, atol=1e-6
    )
    assert scan.image.GetSpacing()[2] == pytest.approx(3, abs=1e-3)
    assert scan.warnings == ()


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("bytes_lost", [1000, 10])
def test_a_truncated_slice_is_named(tmp_path, capfd, number, bytes_lost):
    paths = write_series(tmp_path, hounsfield())
    bad = paths[number]
    bad.write_bytes(bad.read_bytes()[:-bytes_lost])
    capfd.readouterr()
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path)
    assert str(bad) in str(caught.value) and "truncated" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_slice_of_another_series_does_not_matter(tmp_path):
    array = hounsfield((7, 24, 32))
    write_series(tmp_path, array)
    for path in write_series(tmp_path, hounsfield((2, 24, 32)), ROOT + "2"):
        path.write_bytes(path.read_bytes()[:-600])
    np.testing.assert_array_equal(voxels(read_ct(tmp_path).image), array)


def test_dicom_without_rescale_and_air_is_told(tmp_path):
    write_series(tmp_path, (hounsfield() + 1024).clip(0, 4095), intercept="")
    (warning,) = read_ct(tmp_path).warnings
    assert "rescale intercept" in warning


def test_slices_without_a_position_are_refused(tmp_path):
    # A position in the file, its tag turned into a private one that nobody knows.
    for path in write_series(tmp_path, hounsfield()):
        path.write_bytes(path.read_bytes().replace(b"\x20\0\x32\0", b"\x21\0\x32\0"))
    with pytest.raises(InputError, match="do not say where they lie"):
        read_ct(tmp_path)


def test_a_dicom_file_of_another_kind_is_no_ct(tmp_path):
    (path,) = write_series(tmp_path, hounsfield((1, 24, 32)), modality="MR", intercept="")
    with pytest.raises(InputError, match="is MR and not CT"):
        read_ct(path)


def test_one_dicom_slice_is_read_with_a_hint(tmp_path):
    array = hounsfield((3, 24, 32))
    paths = write_series(tmp_path, array)
    scan = read_ct(paths[1])
    np.testing.assert_array_equal(voxels(scan.image)[0], array[1])
    assert "single DICOM slice: give its folder" in scan.warnings[0]
    assert scan.image.GetSpacing()[2] == 3  # its SliceThickness


def test_one_dicom_slice_in_a_folder_is_as_thick_as_its_header_says(tmp_path):
    array = hounsfield((1, 24, 32))
    write_series(tmp_path, array)
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), array)
    np.testing.assert_allclose(scan.image.GetSpacing(), SPACING)
    (warning,) = scan.warnings
    assert "single DICOM slice, taken to be 3 mm thick: give the folder" in warning


def write_frames(path: Path, array: np.ndarray, top: float = 0.0) -> Path:
    """A multi-frame CT of the series that `write_series` makes by default."""
    image = as_image(array)
    image.SetOrigin((*ORIGIN[:2], ORIGIN[2] + top))
    for key, value in {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2.1",
        "0008|0018": f"{ROOT}77.{path.stem}",
        "0008|0060": "CT",
        "0020|000d": ROOT + "999",
        "0020|000e": ROOT + "1",
        "0028|1052": "0",
        "0028|1053": "1",
    }.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)
    return path


def test_a_multi_frame_file_is_a_volume(tmp_path):
    write_frames(tmp_path / "1.dcm", hounsfield())
    scan = read_ct(tmp_path)
    np.testing.assert_array_equal(voxels(scan.image), hounsfield())
    assert scan.warnings == ()


def test_several_multi_frame_files_of_a_series_are_listed_to_choose_from(tmp_path):
    write_frames(tmp_path / "1.dcm", hounsfield())
    second = write_frames(tmp_path / "2.dcm", hounsfield((9, 24, 32)), 300)
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path)
    assert "in 2 multi-frame files, which are no volume together; give one" in str(caught.value)
    assert f"1.dcm (6 slices); {second} (9 slices)." in str(caught.value)
    np.testing.assert_array_equal(voxels(read_ct(second).image), hounsfield((9, 24, 32)))


def test_a_multi_frame_file_is_never_mixed_with_single_slices(tmp_path):
    frames = write_frames(tmp_path / "1.dcm", hounsfield())
    write_series(tmp_path, hounsfield())
    with pytest.raises(InputError) as caught:
        read_ct(tmp_path)
    assert "in 1 multi-frame file and 6 files of one slice, which are no" in str(caught.value)
    assert f"or a folder with only the others: {frames} (6 slices)." in str(caught.value)


def test_a_folder_of_other_dicom_objects_is_refused(tmp_path):
    (tmp_path / "report.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0\x16\0UI\x02\x001\0")
    with pytest.raises(InputError, match="none of them is an image"):
        read_ct(tmp_path)


# --- Names ------------------------------------------------------------------------------------


def test_a_case_folder_is_an_input_named_after_itself(tmp_path):
    folder = tmp_path / "case_00042"
    folder.mkdir()
    write(hounsfield(), folder / "imaging.nii.gz")
    write((hounsfield() > 0).astype(np.uint8), folder / "segmentation.nii.gz")
    scan = read_ct(folder)
    assert (scan.name, scan.path) == ("case_00042", folder)
    np.testing.assert_array_equal(voxels(scan.image), hounsfield())
    assert read_ct(folder / "imaging.nii.gz").name == "imaging"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.mha", "ct.seg.nrrd", "folder", "slice.dcm"])
def test_a_name_that_is_not_utf8_is_told_in_text_that_can_be_printed(tmp_path, name):
    path = tmp_path / name
    if path.suffix in ("", ".dcm"):
        folder = path if path.suffix == "" else tmp_path
        bad = write_series(folder, hounsfield())[2]
    else:
        bad = write(hounsfield().clip(0, 1), path)
    renamed = os.fsdecode(os.fsencode(bad.parent) + b"/M\xfcller" + "".join(bad.suffixes).encode())
    bad.rename(renamed)
    given = bad.parent if bad.suffix == ".dcm" and name == "folder" else renamed
    # The C++ library would end the process.
    code = "import sys; from KidneySegLib.reading import read_ct, read_labels\n"
    code += "from KidneySegLib.errors import InputError\n"
    code += "for read in (read_ct, read_labels) if sys.argv[2] == 'seg' else (read_ct,):\n"
    code += "    try: read(sys.argv[1])\n"
    code += "    except InputError as error: print(str(error).encode('utf-8').decode())\n"
    done = subprocess.run(
        [sys.executable, "-c", code, given, "seg" if "seg" in name else ""],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(
        f"/M\\udcfcller{''.join(bad.suffixes)} has a name that is not UTF-8; rename it."
    )
    assert len(done.stdout.splitlines()) == (2 if "seg" in name else 1)


def test_names_lose_their_suffix_and_nothing_else(tmp_path):
    assert case_name("a/CT.2024.NII.GZ") == "CT.2024"
    assert case_name("a/kidneys.seg.nrrd") == "kidneys"
    assert case_name("a/scan.v2") == "scan.v2"
    (tmp_path / "study.nrrd").mkdir()
    assert case_name(tmp_path / "study.nrrd") == "study.nrrd"


def test_inputs_that_share_a_name_take_their_folders(tmp_path):
    assert unique_names(["c1/imaging.nii.gz", "c2/imaging.nii.gz", "x/ct.nrrd"]) == [
        "c1",
        "c2",
        "ct",
    ]
    assert unique_names(["imaging.nii.gz"]) == ["imaging"]


def test_names_that_are_still_equal_are_numbered():
    assert unique_names(["a/x/ct.nii", "b/x/ct.nii", "c/x/CT.nrrd"]) == ["x", "x_2", "x_3"]
    names = unique_names(["a/ct.nii", "b/ct.nii", "z/a.nii", "z/A_2.nii"])
    assert names == ["a", "b", "a_3", "A_2"]
    assert unique_names(["a/ct.nii", "a/ct.nii"]) == ["a", "a_2"]


# --- Labels -----------------------------------------------------------------------------------


def two_kidneys() -> np.ndarray:
    labels = np.zeros((6, 24, 32), np.uint8)
    labels[2:4, 8:12, 20:26] = 1
    labels[2:5, 8:12, 5:11] = 2
    return labels


@pytest.mark.parametrize("kind", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("name", ["s.nii.gz", "s.nii", "s.nrrd", "s.mha", "s.seg.nrrd"])
def test_labels_of_any_type_and_format_become_uint8(tmp_path, name, kind):
    labels = read_labels(write(two_kidneys().astype(kind), tmp_path / name))
    assert labels.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(voxels(labels), two_kidneys())
    np.testing.assert_allclose(labels.GetSpacing(), SPACING, rtol=1e-6)


def test_an_empty_label_map_is_a_label_map(tmp_path):
    labels = read_labels(write(np.zeros((4, 5, 6), np.uint8), tmp_path / "s.nii.gz"))
    assert voxels(labels).max() == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (two_kidneys() * 0.5, "values are not whole"),
        (np.where(two_kidneys() > 0, np.nan, 0.0), "values are not whole"),
        (two_kidneys().astype(np.int16) - 1, "from -1 to 1"),
        (two_kidneys().astype(np.int16) * 200, "from 0 to 400"),
    ],
)
def test_other_values_are_no_labels(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        read_labels(write(array, tmp_path / "s.nii.gz"))


@pytest.mark.parametrize("kind", ["missing", "text", "truncated at 50 %", "4-D", "empty folder"])
def test_bad_label_files_are_refused_like_bad_cts(tmp_path, capfd, kind):
    path = BAD[kind][0](tmp_path)
    with pytest.raises(InputError) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    assert capfd.readouterr().err == ""


def seg_nrrd(path: Path, array: np.ndarray, segments: list[dict[str, str]]) -> Path:
    image = as_image(array, isVector=array.ndim == 4)
    for number, segment in enumerate(segments):
        for key, value in {"ID": f"Segment_{number}", **segment}.items():
            image.SetMetaData(f"Segment{number}_{key}", value)
    sitk.WriteImage(image, str(path), True)
    return path


def test_a_segmentation_says_itself_which_kidney_is_left(tmp_path):
    swapped = np.choose(two_kidneys(), [0, 7, 5]).astype(np.uint8)
    swapped[0, 0, 0] = 9
    right = {"Name": "Right_Kidney", "LabelValue": "5", "Layer": "0"}
    left = {"Name": "Niere", "LabelValue": "7", "Layer": "0"}
    left["Tags"] = "TerminologyEntry:C~SCT^1^A~SCT^64033007^Kidney~SCT^7771000^Left~R~^^~^^|"
    liver = {"Name": "left lobe of the liver", "LabelValue": "9", "Layer": "0"}
    path = seg_nrrd(tmp_path / "r.seg.nrrd", swapped, [right, liver, left])
    np.testing.assert_array_equal(voxels(read_labels(path)), two_kidneys())


def test_a_segmentation_of_other_structures_keeps_its_values(tmp_path):
    segments = [{"Name": "kidney", "LabelValue": "1"}, {"Name": "tumor", "LabelValue": "2"}]
    path = seg_nrrd(tmp_path / "r.seg.nrrd", two_kidneys(), segments)
    np.testing.assert_array_equal(voxels(read_labels(path)), two_kidneys())


def test_segments_in_several_layers_are_put_together(tmp_path):
    layers = np.stack([two_kidneys() > 0, two_kidneys() == 2], axis=-1).astype(np.uint8)
    segments = [
        {"Name": "kidney", "LabelValue": "1", "Layer": "0"},
        {"Name": "tumor", "LabelValue": "1", "Layer": "1"},
    ]
    path = seg_nrrd(tmp_path / "r.seg.nrrd", layers, segments)
    labels = read_labels(path)
    np.testing.assert_array_equal(voxels(labels), two_kidneys())
    np.testing.assert_allclose(labels.GetSpacing(), SPACING, rtol=1e-6)


KIDNEYS = [{"Name": "left kidney"}, {"Name": "right kidney"}]


@pytest.mark.parametrize("four", [False, True], ids=["components", "4-D"])
def test_old_segmentations_have_a_layer_of_ones_for_each_segment(tmp_path, four):
    layers = [two_kidneys() == 1, two_kidneys() == 2]
    path = tmp_path / "r.seg.nrrd"
    if four:
        image = as_image(np.stack(layers).astype(np.uint8), isVector=False)
        for number, segment in enumerate(KIDNEYS):
            image.SetMetaData(f"Segment{number}_ID", str(number))
            image.SetMetaData(f"Segment{number}_Name", segment["Name"])
        sitk.WriteImage(image, str(path))
    else:
        seg_nrrd(path, np.stack(layers, axis=-1).astype(np.uint8), KIDNEYS)
    labels = read_labels(path)
    np.testing.assert_array_equal(voxels(labels), two_kidneys())
    np.testing.assert_allclose(labels.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(labels.GetOrigin(), ORIGIN, rtol=1e-6)


@pytest.mark.parametrize(
    ("segments", "layers"),
    [
        ([{**KIDNEYS[0], "LabelValue": "0"}, KIDNEYS[1]], 2),
        ([{**KIDNEYS[0], "Layer": "7"}, KIDNEYS[1]], 2),
        ([KIDNEYS[0], {**KIDNEYS[1], "Layer": "0"}], 2),
        (KIDNEYS, 1),
    ],
    ids=["background", "no such layer", "the same voxels", "one layer without values"],
)
def test_a_segment_whose_voxels_are_not_told_is_refused(tmp_path, segments, layers):
    array = two_kidneys() if layers == 1 else np.stack([two_kidneys()] * layers, axis=-1)
    path = seg_nrrd(tmp_path / "r.seg.nrrd", array, segments)
    with pytest.raises(InputError, match="does not say which voxels belong to the segment 'left k"):
        read_labels(path)


def test_layers_without_segments_are_refused(tmp_path):
    layers = np.stack([two_kidneys() > 0, two_kidneys() == 2], axis=-1).astype(np.uint8)
    with pytest.raises(InputError, match="which segments it holds"):
        read_labels(seg_nrrd(tmp_path / "r.seg.nrrd", layers, []))


@pytest.mark.parametrize("name", ["ct.nii.gz", "ct.nii", "ct.mha", "folder"])
def test_reading_stops_between_slices_when_asked(tmp_path, name):
    array = hounsfield((9, 300, 300))
    path = tmp_path / name
    if name == "folder":
        write_series(path, array, ROOT + "1")
    else:
        write(array, path)
    asked = []
    with pytest.raises(Cancelled):
        read_ct(path, cancelled=lambda: bool(asked) or asked.append(1))
    np.testing.assert_array_equal(voxels(read_ct(path, cancelled=lambda: False).image), array)


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nii", "l.nrrd", "l.mha"])
def test_a_file_holds_an_image_when_not_a_voxel_differs(tmp_path, name):
    image = sitk.GetImageFromArray(np.zeros((9, 300, 300), np.uint8))
    image[7, 8, 2] = 1
    image.SetSpacing((0.7, 0.8, 2.5))
    path = tmp_path / name
    sitk.WriteImage(image, str(path), useCompression=name != "l.nii")
    assert holds(path, image)
    for at in ((0, 0, 0), (7, 8, 2), (299, 299, 8)):
        other = sitk.Image(image)
        other[at] = 1 - other[at]
        assert not holds(path, other)
    moved = sitk.Image(image)
    moved.SetOrigin((0, 0, 0.5))
    assert not holds(path, moved) and not holds(path, image[:, :, :8])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError):
        holds(path, image)


# --- Memory -----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("kind", "name"), [("f8", "ct.nii.gz"), ("i2", "ct.nii.gz"), ("i2", "ct.nrrd")]
)
def test_reading_takes_little_more_than_the_size_of_the_result(tmp_path, kind, name):
    shape = (120, 512, 512)
    result = 2 * int(np.prod(shape))  # as int16
    array = np.zeros(shape, kind)
    array[::7] = -1000
    path = write(array, tmp_path / name)
    code = """
import re, sys
from pathlib import Path
from KidneySegLib.reading import read_ct
def now(key):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(key + r":\\s+(\\d+)", status)[1])
before = now("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
scan = read_ct(sys.argv[1])
print(now("VmHWM") - before, scan.image.GetPixelIDTypeAsString())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, check=True, text=True
    )
    peak, pixel = done.stdout.split(maxsplit=1)
    assert pixel.strip() == "16-bit signed integer"
    assert int(peak) < 1.2 * result + 20e6  # a few slabs, and what importing left to load
