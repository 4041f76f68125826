"""Pictures in three planes, animations and folders, and the command that draws them."""

from __future__ import annotations

import tracemalloc
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys
from PIL import Image

from KidneySegLib.cli import main
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.overlay import (
    Look,
    animation,
    contact_sheet,
    outline_slice,
    write_pictures,
)
from KidneySegLib.pictures.style import COLOUR_BLIND, RED_BLUE, Colours, Style, window_of
from KidneySegLib.pictures.views import Marks, Plane, Subject, choose_slices, run_of_slices

HEADER = 66
CT, LABELS = toys.toy()
IMAGE, SIDES = toys.image_of(CT), toys.image_of(LABELS)
SAGITTAL_FILE = {"order": (2, 0, 1), "flips": (True, False, True)}
SMALL = Look(height_px=160)


def about(picture: Image.Image, colour: tuple[int, ...], tolerance: int = 40) -> np.ndarray:
    """Where a picture has about this colour below its header."""
    array = np.asarray(picture.convert("RGB")).astype(int)[HEADER:]
    return np.abs(array - np.array(colour)).max(axis=2) < tolerance


def only(*boxes: tuple[slice, slice, slice]) -> sitk.Image:
    """A label map of the toy's grid with boxes."""
    labels = np.zeros(toys.SHAPE, np.uint8)
    for box in boxes:
        labels[box] = 1
    return toys.image_of(labels)


def middle_of(picture: Image.Image) -> tuple[float, float]:
    """Where the prediction lies in a picture of one slice: shares from the top and the left."""
    marked = about(picture, RED_BLUE.prediction)
    rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
    return float(np.mean(rows)) / marked.shape[0], float(np.mean(columns)) / marked.shape[1]


# --- which way round --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plane", "box", "low", "right"),
    [
        # Slices run from head to foot, rows from front to back, columns to the patient's left.
        ("axial", (slice(8, 12), slice(24, 30), slice(30, 36)), True, True),
        ("coronal", (slice(2, 6), slice(15, 20), slice(30, 36)), False, True),
        ("sagittal", (slice(14, 18), slice(8, 12), slice(20, 24)), True, False),
        ("sagittal", (slice(2, 6), slice(24, 30), slice(20, 24)), False, True),
    ],
)
def test_every_plane_is_the_right_way_round(
    plane: Plane, box: tuple[slice, slice, slice], low: bool, right: bool
) -> None:
    for stored in ({}, SAGITTAL_FILE, {"flips": (True, True, True)}):
        labels = np.zeros(toys.SHAPE, np.uint8)
        labels[box] = 1
        picture = contact_sheet(
            toys.image_of(CT, **stored),
            toys.image_of(labels, **stored),
            planes=[plane],
            slices=1,
            look=Look(height_px=320, crop="whole"),
        )
        from_top, from_left = middle_of(picture)
        assert (from_top > 0.5) == low and (from_left > 0.5) == right


def test_however_a_volume_is_stored_its_picture_is_the_same() -> None:
    sheets = [
        contact_sheet(
            toys.image_of(CT, **stored),
            toys.image_of(LABELS, **stored),
            planes=["axial", "coronal", "sagittal"],
            look=SMALL,
        )
        for stored in ({}, SAGITTAL_FILE)
    ]
    assert sheets[0].tobytes() == sheets[1].tobytes()


def test_letters_say_what_lies_at_each_edge() -> None:
    subject = Subject.of(toys.image_of(CT, **SAGITTAL_FILE), None)
    assert subject.letters("axial") == ("R", "L", "A", "P")
    assert subject.letters("coronal") == ("R", "L", "S", "I")
    assert subject.letters("sagittal") == ("A", "P", "S", "I")


def test_letters_of_an_oblique_volume_say_both_directions() -> None:
    angle = np.radians(30)  # about the body's long axis
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    subject = Subject.of(toys.image_of(CT, turn=turn), None)
    assert subject.letters("axial") == ("RA", "LP", "AL", "PR")
    assert subject.letters("coronal") == ("RA", "LP", "S", "I")


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_captions_give_the_position_that_itk_gives(plane: Plane) -> None:
    subject = Subject.of(IMAGE, None)
    text = subject.caption(plane, 3, subject.crop("whole"))
    at = {"axial": (0, 0, 3), "coronal": (0, 3, 0), "sagittal": (3, 0, 0)}[plane]  # of the toy
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    mm = IMAGE.TransformIndexToPhysicalPoint(at)[axis]
    letter = ("RL", "AP", "IS")[axis][mm >= 0]
    assert text == f"{plane} 4 of {subject.count(plane)}   {letter} {abs(mm):.1f} mm"


@pytest.mark.parametrize("slice_mm", [1.0, 6.0, 12.0])
def test_coronal_and_sagittal_pictures_have_the_proportions_of_the_patient(
    slice_mm: float,
) -> None:
    spacing = (slice_mm, *toys.SPACING_MM[1:])
    labels = np.zeros(toys.SHAPE, np.uint8)
    labels[5:15, 12:24, 15:30] = 1
    images = [toys.image_of(array, spacing_mm=spacing) for array in (CT, labels)]
    for plane, across_mm in (("coronal", 15 * 7.0), ("sagittal", 12 * 5.5)):
        picture = contact_sheet(
            *images, planes=[plane], slices=1, look=Look(style=Style(opacity=0))
        )
        marked = about(picture, RED_BLUE.prediction, 90)
        rows, columns = (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))
        assert np.ptp(columns) / np.ptp(rows) == pytest.approx(across_mm / (10 * slice_mm), rel=0.1)


# --- which slices and how much of them --------------------------------------------------------


def test_sagittal_slices_go_through_both_kidneys_and_not_their_edges() -> None:
    chosen = choose_slices(Marks.of(LABELS, None), toys.SHAPE, 4, "sagittal")
    areas = [(LABELS[..., chosen] == side).sum(axis=(0, 1)) for side in (1, 2)]
    largest = [np.equal(LABELS, side).sum(axis=(0, 1)).max() for side in (1, 2)]
    for area, most in zip(areas, largest, strict=True):
        assert np.count_nonzero(area) == 2 and (area[area > 0] > most / 4).all()


def test_an_animation_goes_through_the_kidneys_and_is_thinned_evenly() -> None:
    marks = Marks.of(LABELS, None)
    held = np.flatnonzero((LABELS > 0).any(axis=(1, 2)))
    run = run_of_slices(marks, toys.SHAPE, "axial", 100)
    assert run == list(range(max(0, held[0] - 2), min(20, held[-1] + 2) + 1))
    thinned = run_of_slices(marks, toys.SHAPE, "coronal", 5)
    assert len(thinned) <= 5 and len(set(np.diff(thinned))) == 1
    assert run_of_slices(None, toys.SHAPE, "sagittal", 100) == list(range(45))


def test_frames_have_one_size_and_differ() -> None:
    frames = list(animation(IMAGE, SIDES, planes=["coronal", "sagittal"], most=4, look=SMALL))
    assert len({frame.size for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) == len(frames) == 4


def test_a_picture_of_the_kidneys_is_closer_than_one_of_the_body() -> None:
    subject = Subject.of(IMAGE, SIDES)
    boxes = [subject.crop(crop) for crop in ("kidneys", "body", "whole")]
    for axis in range(3):
        lengths = [box[axis].stop - box[axis].start for box in boxes]
        assert lengths == sorted(lengths)
    assert all(LABELS[box].sum() == LABELS.sum() for box in boxes)
    assert lengths[0] < lengths[1]  # of the columns: the kidneys are narrower than the body


def test_chosen_slices_are_drawn_and_others_refused() -> None:
    one = contact_sheet(IMAGE, SIDES, slices=[7], look=SMALL)
    two = contact_sheet(IMAGE, SIDES, slices=[7, 12], look=SMALL)
    assert two.width > one.width or two.height > one.height
    for wrong in ([21], [-1], [], 0):
        with pytest.raises(ValueError):
            contact_sheet(IMAGE, SIDES, slices=wrong, look=SMALL)


def test_a_large_volume_is_not_copied() -> None:
    shape = (60, 160, 160)
    ct, labels = toys.toy(shape=shape, spacing_mm=(2.0, 1.6, 1.9))
    image, map_of_sides = toys.image_of(ct), toys.image_of(labels)
    tracemalloc.start()
    contact_sheet(image, map_of_sides, map_of_sides, planes=["axial", "coronal"], look=SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A bool for each voxel, and some slices.
    assert peak < 1.25 * ct.size + 4e6 < 8 * ct.size


# --- how it looks -----------------------------------------------------------------------------


def test_fill_and_outline_can_be_had_alone() -> None:
    def sheet(**style: object) -> Image.Image:
        return contact_sheet(
            IMAGE, SIDES, slices=1, look=Look(style=Style(**style), window=(-160, 240))
        )

    gray = round(255 * (toys.KIDNEY + 160) / 400)
    filled = tuple(round(gray + 0.3 * (c - gray)) for c in RED_BLUE.prediction)
    assert about(sheet(outline=False), filled, 4).sum() > 2000
    assert not about(sheet(outline=False), RED_BLUE.prediction).any()
    assert about(sheet(opacity=0.0), RED_BLUE.prediction).any()
    assert not about(sheet(opacity=0.0), filled, 4).sum() > 100
    with pytest.raises(UsageError, match="nothing would be seen"):
        Style(opacity=0, outline=False)
    with pytest.raises(UsageError, match="from 0 to 1"):
        Style(opacity=30)


def test_the_other_colours_replace_red_and_blue() -> None:
    shifted = toys.image_of(np.roll(LABELS, 2, 2))
    picture = contact_sheet(IMAGE, shifted, SIDES, look=Look(style=Style(colours=COLOUR_BLIND)))
    for colour in COLOUR_BLIND:
        assert about(picture, colour, 12).any()
    for colour in RED_BLUE:
        assert not about(picture, colour, 12).any()


def test_colour_blind_people_tell_the_other_colours_apart() -> None:
    # Linear RGB as each kind sees it, severity 1.0: Machado, Oliveira and Fernandes, IEEE TVCG 15
    # (2009) 1291.
    seen = {
        "protanopia": [
            [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "deuteranopia": [
            [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "tritanopia": [
            [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }  # fmt: skip

    def lab(rgb: np.ndarray) -> np.ndarray:
        """CIE 1976 L*a*b* of linear sRGB, white D65."""
        to_xyz = [[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
        x, y, z = np.cbrt(rgb @ np.transpose(to_xyz) / (0.9505, 1.0, 1.0888))
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    def closest(colours: Colours) -> float:
        """The least difference of two fills of the published opacity on gray."""
        return min(
            float(np.linalg.norm(a - b))
            for matrix in seen.values()
            for gray in (100, 150, 200)
            for a, b in combinations(
                [
                    lab(
                        np.clip(
                            np.array(matrix) @ ((0.3 * np.array(colour) + 0.7 * gray) / 255) ** 2.2,
                            1e-3,
                            1,
                        )
                    )
                    for colour in colours
                ],
                2,
            )
        )

    assert closest(RED_BLUE) < 2.3 < 5 < closest(COLOUR_BLIND)  # 2.3: just noticeable


def test_windows_come_by_name_by_number_and_by_themselves() -> None:
    assert window_of(CT, "abdomen") == window_of(CT, (-160, 240)) == (-160.0, 240.0)
    assert window_of(CT, "auto") == (-160.0, 240.0)
    low, high = window_of((CT > 0) * np.uint8(200), "auto")  # no HU
    assert low == 0 and high == 200
    for wrong in ("kidney", (240, -160), (5, 5), (float("nan"), 5)):
        with pytest.raises(UsageError):
            window_of(CT, wrong)


def test_what_is_missing_is_neither_drawn_nor_in_the_legend() -> None:
    for pair, absent in (((SIDES, None), RED_BLUE.reference), ((None, SIDES), RED_BLUE.prediction)):
        array = np.asarray(contact_sheet(IMAGE, *pair, slices=1, look=SMALL)).astype(int)
        for colour in (absent, RED_BLUE.both):
            assert not (np.abs(array - np.array(colour)).max(axis=2) < 40).any()


@pytest.mark.parametrize("empty", ["prediction", "reference"])
def test_an_empty_label_map_is_said(empty: str) -> None:
    pair = [SIDES, SIDES]
    pair[empty == "reference"] = only()
    notice = np.array((255, 200, 80))

    def warned(picture: Image.Image) -> bool:
        header = np.asarray(picture).astype(int)[:HEADER]
        return bool((np.abs(header - notice).max(axis=2) < 20).any())

    assert warned(contact_sheet(IMAGE, *pair, look=SMALL))
    assert not warned(contact_sheet(IMAGE, SIDES, SIDES, look=SMALL))


def test_one_slice_of_arrays_keeps_its_proportions() -> None:
    marked = np.zeros((40, 60), bool)
    marked[10:30, 20:40] = True
    picture = outline_slice(np.zeros((40, 60)), marked, None, (2.0, 1.0), look=Look(window=(-1, 1)))
    assert picture.width / picture.height == pytest.approx(60 / 80, rel=0.01)


# --- files ------------------------------------------------------------------------------------


def test_a_gif_has_a_frame_for_each_slice_and_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "kidneys.gif"
    shifted = toys.image_of(np.roll(LABELS, 2, 2))
    told: list[float] = []
    number = write_pictures(IMAGE, shifted, SIDES, path, look=SMALL, fps=20, progress=told.append)
    with Image.open(path) as gif:
        assert (
            gif.n_frames
            == number
            == len(told)
            == len(run_of_slices(Marks.of(LABELS, None), toys.SHAPE, "axial", 100))
        )
        assert gif.info["loop"] == 0 and gif.info["duration"] == 50
        gif.seek(number // 2)
        for colour in RED_BLUE:
            assert about(gif, colour, 12).any()
        true = list(animation(IMAGE, shifted, SIDES, look=SMALL))[number // 2]
        difference = np.abs(
            np.asarray(gif.convert("RGB")).astype(int) - np.asarray(true).astype(int)
        )
    assert difference.mean() < 2
    assert told == sorted(told) and told[-1] == 1


def test_an_mp4_is_what_browsers_and_powerpoint_play(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="the package av is not installed")
    path = tmp_path / "kidneys.mp4"
    # 161 pixels of height make an odd frame.
    number = write_pictures(IMAGE, SIDES, None, path, most=6, fps=5, look=Look(height_px=161))
    frames = list(animation(IMAGE, SIDES, most=6, look=Look(height_px=161)))
    assert frames[0].height % 2 == 1
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert stream.width % 2 == 0 and stream.height == frames[0].height + 1
        assert float(stream.average_rate) == 5
        assert float(stream.duration * stream.time_base) == pytest.approx(number / 5)
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(read) == number == len(frames)
    for got, meant in zip(read, frames, strict=True):
        got = got[: meant.height, : meant.width].astype(int)
        assert np.abs(got - np.asarray(meant)).mean() < 4
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser starts before it has all


def test_without_the_package_an_mp4_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r'pip install "kidneyseg\[pictures\]"'):
        write_pictures(IMAGE, SIDES, None, tmp_path / "kidneys.mp4")
    assert not list(tmp_path.iterdir())


def test_pictures_of_more_than_999_slices_sort_as_the_slices_do(tmp_path: Path) -> None:
    voxels = np.zeros((1001, 20, 20), np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[998:, 8:12, 8:12] = 1
    ct, kidneys = (toys.image_of(array) for array in (voxels, labels))
    write_pictures(ct, kidneys, None, tmp_path / "slices", whole=False)
    names = sorted(path.stem for path in (tmp_path / "slices").iterdir())
    assert names == [f"axial_{number:04d}" for number in range(997, 1002)]


def test_a_folder_holds_a_picture_of_every_slice(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "slices"
    assert write_pictures(IMAGE, SIDES, None, folder, look=SMALL) == 21
    assert [path.name for path in sorted(folder.iterdir())] == [
        f"axial_{number:03d}.png" for number in range(1, 22)
    ]
    with pytest.raises(UsageError, match="not empty"):
        write_pictures(IMAGE, SIDES, None, folder, look=SMALL)


@pytest.mark.parametrize("name", ["kidneys.gif", "slices", "kidneys.mp4"])
def test_what_is_stopped_leaves_nothing(name: str, tmp_path: Path) -> None:
    if name.endswith("mp4"):
        pytest.importorskip("av", reason="the package av is not installed")

    def stop(share: float) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pictures(IMAGE, SIDES, None, tmp_path / "new" / name, look=SMALL, progress=stop)
    assert not list(tmp_path.iterdir())


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png, \.gif or \.mp4"):
        write_pictures(IMAGE, SIDES, None, tmp_path / "kidneys.jpg")


def test_different_grids_are_told_with_both(tmp_path: Path) -> None:
    other = sitk.Image(SIDES)
    other.SetSpacing((1.0, 2.0, 3.0))
    with pytest.raises(
        InputError, match=r"ct.nii and r.nii .*spacing 7 x 5.5 x 6 mm and 1 x 2 x 3"
    ):
        write_pictures(IMAGE, SIDES, other, tmp_path / "k.png", files=("ct.nii", "p.nii", "r.nii"))


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["overlay", *map(str, arguments)])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_command_draws_what_the_output_asks_for(
    run, tmp_path: Path, toy_ct: Path, toy_sides: Path, toy_kidney: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    code, said, _ = run(
        toy_ct, toy_sides, "--reference", toy_kidney, "--output", sheet, "--planes", "all",
        "--centre-width", 100, 300, "--colours", "colour-blind", "--height", 160,
    )  # fmt: skip
    assert code == 0 and said == f"{sheet}: 9 slices\n"
    expected = contact_sheet(
        sitk.ReadImage(str(toy_ct)),
        SIDES,
        SIDES,
        planes=["axial", "coronal", "sagittal"],
        look=Look(
            style=Style(colours=COLOUR_BLIND), window=(-50.0, 250.0), height_px=160, title="ct"
        ),
    )
    assert np.array_equal(np.asarray(Image.open(sheet)), np.asarray(expected))
    code, said, _ = run(
        toy_ct, toy_sides, "--output", tmp_path / "slices", "--range", "kidneys", "--height", 160,
        "--window", -160, 240, "--draw", "outline", "--planes", "coronal",
    )  # fmt: skip
    assert code == 0 and len(list((tmp_path / "slices").iterdir())) < 37


def test_the_command_says_what_is_wrong(run, tmp_path: Path, toy_ct: Path, toy_sides: Path) -> None:
    text = tmp_path / "text.nii.gz"
    text.write_text("no picture")
    output = tmp_path / "k.png"
    for arguments, code, part in (
        ((toy_ct, text, "--output", output), 3, str(text)),
        ((tmp_path / "missing", toy_sides, "--output", output), 3, "missing"),
        ((toy_ct, tmp_path, "--output", output), 3, "is a folder"),
        ((toy_ct, toy_sides, "--output", toy_sides), 2, "is an input"),
        ((toy_ct, toy_sides, "--output", output, "--window", 5, 5), 2, "shows nothing"),
        ((toy_ct, toy_sides, "--output", output, "--opacity", 3), 2, "from 0 to 1"),
        ((toy_ct, toy_sides, "--output", output, "--frames", 0), 2, "--frames 0"),
        ((toy_ct, toy_sides, "--output", output, "--planes", "axial,oblique"), 2, "oblique"),
        (
            (toy_ct, toy_sides, "--output", output, "--window", 0, 9, "--preset", "bone"),
            2,
            "not allowed with",
        ),
    ):
        got, said, error = run(*arguments)
        assert got == code and not said
        assert error.startswith("error: ") and error.count("\n") == 1 and part in error
    assert not output.exists()
