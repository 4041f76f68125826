"""Any volume to axial slices and back, exactly."""

from __future__ import annotations

import gc
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import (
    AxialGrid,
    blank_image,
    from_axial,
    grid_difference,
    signed_distances_mm,
    to_axial,
)

# LPS directions of an axial array's columns, rows and slices, as the columns of a matrix.
AXIAL = np.diag([1.0, 1.0, -1.0])


def rotation(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    """Rodrigues' formula."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def axial_volume(turn: np.ndarray | None = None, shape=(4, 5, 7)) -> sitk.Image:
    """Voxels all different, stored as an axial array is: head to foot, front to back."""
    image = sitk.GetImageFromArray(np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-31.4, 15.9, 26.5))
    image.SetDirection(((np.eye(3) if turn is None else turn) @ AXIAL).ravel().tolist())
    return image


def stored_otherwise(image: sitk.Image, order: tuple[int, ...], flips: tuple[bool, ...]):
    """The same content with the file's axes in another order and direction (numpy's count)."""
    array = sitk.GetArrayFromImage(image)
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    first = np.zeros(3)  # the old index, in SimpleITK's order, of the new first voxel
    columns, spacing = [], []
    for axis, flip in zip(order, flips, strict=True):
        itk_axis = 2 - axis
        first[itk_axis] = image.GetSize()[itk_axis] - 1 if flip else 0
        columns.insert(0, direction[:, itk_axis] * (-1 if flip else 1))
        spacing.insert(0, image.GetSpacing()[itk_axis])
    flipped = array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    other = sitk.GetImageFromArray(np.ascontiguousarray(flipped))
    other.SetSpacing(spacing)
    other.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(first.tolist()))
    other.SetDirection(np.array(columns).T.ravel().tolist())
    return other


def all_48(image: sitk.Image):
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            yield stored_otherwise(image, order, flips)


@pytest.mark.parametrize(
    "turn",
    [
        None,
        rotation(12, (1, 0, 0)),
        rotation(12, (1, 2, 3)),
        rotation(44, (0, 0, 1)),
        rotation(45, (0, 0, 1)),
        rotation(45, (1, 0, 0)),
        rotation(60, (1, 1, 1)),
        rotation(54.7, (1, -1, 0.3)),
        np.diag([-1.0, 1.0, 1.0]),
    ],
    ids=["straight", "12 x", "12", "44", "45 z", "45 x", "60 diagonal", "55", "left-handed"],
)
def test_all_48_axis_orders_give_the_same_slices_and_come_back_exactly(turn):
    image = axial_volume(turn)
    expected, _ = to_axial(image)
    for stored in all_48(image):
        array, grid = to_axial(stored)
        np.testing.assert_array_equal(array, expected)
        back = from_axial(array, grid)
        assert back.GetSize() == stored.GetSize()
        assert back.GetSpacing() == stored.GetSpacing()
        assert back.GetOrigin() == stored.GetOrigin()
        assert back.GetDirection() == stored.GetDirection()
        assert back.GetPixelID() == stored.GetPixelID()
        np.testing.assert_array_equal(
            sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(stored)
        )


def test_an_axial_volume_stays_as_it_is():
    image = axial_volume()
    array, grid = to_axial(image)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))
    assert grid.shape == (4, 5, 7)
    assert grid.spacing_mm == (2.5, 0.9, 0.7)
    assert grid.voxel_volume_ml == pytest.approx(2.5 * 0.9 * 0.7 / 1000)


def test_slices_run_head_to_foot_rows_front_to_back_columns_right_to_left():
    for stored in all_48(axial_volume()):
        _, grid = to_axial(stored)
        at = grid.to_physical([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
        np.testing.assert_allclose(at[1] - at[0], (0, 0, -2.5), atol=1e-9)
        np.testing.assert_allclose(at[2] - at[0], (0, 0.9, 0), atol=1e-9)
        np.testing.assert_allclose(at[3] - at[0], (0.7, 0, 0), atol=1e-9)


def test_the_convention_of_kits19_is_read_by_its_directions_and_not_by_its_order():
    image = axial_volume()
    kits = stored_otherwise(image, (2, 1, 0), (False, False, False))
    assert kits.GetSize() == (4, 5, 7)  # slice, row, column
    array, _ = to_axial(kits)
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))


def test_an_oblique_volume_is_taken_along_the_closest_axes():
    straight, _ = to_axial(axial_volume())
    oblique, grid = to_axial(axial_volume(rotation(12, (1, 2, 3))))
    np.testing.assert_array_equal(oblique, straight)
    assert grid.order == (0, 1, 2)


def test_no_oblique_volume_has_one_axis_used_twice():
    random = np.random.default_rng(7)
    for _ in range(300):
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        assert sorted(AxialGrid.of(axial_volume(turn)).order) == [0, 1, 2]


def test_the_assignment_has_the_largest_sum_of_cosines():
    random = np.random.default_rng(8)
    for _ in range(300):
        direction, _ = np.linalg.qr(random.normal(size=(3, 3)))
        image = axial_volume()
        image.SetDirection(direction.ravel().tolist())
        slices, rows, columns = (2 - axis for axis in AxialGrid.of(image).order)
        cosines = np.abs(direction)
        found = cosines[2, slices] + cosines[1, rows] + cosines[0, columns]
        best = max(sum(cosines[p, a] for p, a in enumerate(o)) for o in permutations(range(3)))
        assert found == pytest.approx(best)


def test_physical_positions_are_those_of_itk():
    random = np.random.default_rng(9)
    image = axial_volume(rotation(33, (3, 1, 2)))
    for stored in all_48(image):
        array, grid = to_axial(stored)
        for k, j, i in random.integers(0, array.shape, size=(3, 3)):
            column, row, slice_ = np.argwhere(sitk.GetArrayViewFromImage(stored) == array[k, j, i])[
                0
            ][::-1].tolist()
            expected = stored.TransformIndexToPhysicalPoint((column, row, slice_))
            np.testing.assert_allclose(grid.to_physical((k, j, i)), expected, atol=1e-9)
    assert grid.to_physical(np.zeros((2, 4, 3))).shape == (2, 4, 3)
    middle = grid.to_physical([(0.5, 0.5, 0.5)])
    ends = grid.to_physical([(0, 0, 0), (1, 1, 1)])
    np.testing.assert_allclose(middle[0], ends.mean(axis=0))


def test_left_and_right_follow_physical_x_and_not_the_array_index():
    image = axial_volume()
    for stored in all_48(image):
        array, grid = to_axial(stored)
        index = np.argwhere(array == 3)  # in the first slice and row, the fourth of columns
        assert index.tolist() == [[0, 0, 3]]
        assert grid.to_physical(index)[0, 0] == pytest.approx(-31.4 + 3 * 0.7)


@pytest.mark.parametrize("shape", [(1, 6, 9), (3, 1, 4), (5, 3, 1), (1, 1, 1)])
def test_thin_volumes_keep_their_one_slice(shape):
    for stored in all_48(axial_volume(shape=shape)):
        array, grid = to_axial(stored)
        assert array.shape == grid.shape == shape
        assert from_axial(array, grid).GetSize() == stored.GetSize()


def test_the_axial_array_is_a_read_only_view_that_outlives_its_image():
    stored = stored_otherwise(axial_volume(shape=(40, 50, 70)), (2, 0, 1), (True, False, True))
    array, _ = to_axial(stored)
    assert np.shares_memory(array, sitk.GetArrayViewFromImage(stored))
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0, 0] = 1
    expected = array.copy()
    del stored
    gc.collect()
    fill = [np.full((40, 50, 70), 77, dtype=np.int16) for _ in range(4)]
    np.testing.assert_array_equal(array, expected)
    assert len(fill) == 4


def test_masks_of_booleans_come_back_as_uint8():
    array, grid = to_axial(axial_volume(rotation(12, (1, 0, 0))))
    mask = from_axial(array > 10, grid)
    assert mask.GetPixelID() == sitk.sitkUInt8
    assert sitk.GetArrayViewFromImage(mask).sum() == (array > 10).sum()


def test_an_array_of_another_shape_is_refused():
    array, grid = to_axial(axial_volume())
    with pytest.raises(ValueError, match=r"\(3, 5, 7\)"):
        from_axial(array[:3], grid)


def test_an_image_of_two_dimensions_is_refused():
    with pytest.raises(InputError, match="three dimensions"):
        to_axial(sitk.Image(5, 6, sitk.sitkInt16))


def test_the_same_grid_written_by_two_programs_counts_as_the_same(tmp_path):
    image = axial_volume(rotation(23, (1, 5, 2)), shape=(60, 128, 128))
    image.SetOrigin((-231.4159265, 415.926535, -1926.535897))
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    assert grid_difference(image, sitk.ReadImage(str(tmp_path / "a.nii"))) is None
    assert grid_difference(image, image) is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda image: image[:, :, :3], "size 7 x 5 x 4 and 7 x 5 x 3"),
        (lambda image: image.SetSpacing((0.7, 0.9, 3)), "spacing 0.7 x 0.9 x 2.5 mm and "),
        (lambda image: image.SetOrigin((-31.4, 15.9, 27)), "origin -31.4 x 15.9 x 26.5 mm and "),
        (lambda image: image.SetDirection(np.eye(3).ravel().tolist()), "direction 1 0 0 0 1 0 0"),
        (lambda image: image.SetOrigin((31.4, 15.9, 26.5)), "and 31.4 x 15.9 x 26.5 mm"),
    ],
)
def test_what_differs_between_two_grids_is_named_with_both_values(change, text):
    image, other = axial_volume(), axial_volume()
    other = change(other) or other
    assert text in (grid_difference(image, other) or "")
    assert grid_difference(other, image) is not None


def test_the_thickness_of_a_single_slice_counts():
    image, other = axial_volume(shape=(1, 5, 7)), axial_volume(shape=(1, 5, 7))
    other.SetSpacing((0.7, 0.9, 5))
    assert "spacing" in (grid_difference(image, other) or "")


@pytest.mark.parametrize("kind", ["u1", "i2", "f4"])
def test_what_is_written_into_a_blank_image_is_in_the_image(kind):
    image, array = blank_image((4, 5, 7), np.dtype(kind))
    assert image.GetSize() == (7, 5, 4) and array.dtype == kind and not array.any()
    array[3, 1, 6] = 9
    assert image.GetPixel(6, 1, 3) == 9
    copy = sitk.Image(image)
    del image
    gc.collect()
    array[0, 0, 0] = 5  # its memory is alive
    assert array[3, 1, 6] == 9 and copy.GetPixel(6, 1, 3) == 9


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_part_is_put_in_its_place_of_the_stored_image(order):
    image = axial_volume()
    for flips in product((False, True), repeat=3):
        turned = sitk.Flip(sitk.PermuteAxes(image, order), flips)
        axial, grid = to_axial(turned)
        part = np.zeros(axial.shape, axial.dtype)
        box = (slice(1, 3), slice(2, 4), slice(0, 3))
        part[box] = axial[box]
        found, expected = from_axial(part, grid, box), from_axial(part, grid)
        np.testing.assert_array_equal(*map(sitk.GetArrayFromImage, (found, expected)))
        assert grid_difference(found, turned) is None and part.any()


# --- distances --------------------------------------------------------------------------------


def test_distances_count_in_mm_along_each_axis_and_are_negative_inside() -> None:
    mask = np.zeros((9, 11, 13), bool)
    mask[4, 5, 6] = True
    distances = signed_distances_mm(mask, (3.0, 2.0, 0.5))
    assert distances[4, 5, 10] == pytest.approx(2.0)
    assert distances[4, 8, 6] == pytest.approx(6.0)
    assert distances[6, 5, 6] == pytest.approx(6.0)
    assert distances[5, 6, 7] == pytest.approx(np.sqrt(9 + 4 + 0.25))
    mask[2:7, 3:8, 4:9] = True
    assert signed_distances_mm(mask, (3.0, 2.0, 0.5))[4, 5, 6] < 0
    # Of a slice, and of what is no contiguous array.
    assert signed_distances_mm(mask[4, ::2], (4.0, 0.5)).shape == (6, 13)
