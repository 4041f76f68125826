"""To and from Slicer's scene, on Slicer's own classes (the wheel `slicer-core`)."""

from __future__ import annotations

import itertools
import json
import re
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import slicerhost
import toys

from KidneySegLib.errors import InputError, KidneySegError, UsageError
from KidneySegLib.geometry import grid_difference, to_axial
from KidneySegLib.measure import evaluate
from KidneySegLib.reading import read_ct, read_labels
from KidneySegLib.segment import segment
from KidneySegLib.writing import MERGED, SIDES

if slicerhost.why_not():
    pytest.skip(slicerhost.why_not(), allow_module_level=True)
slicer = slicerhost.boot()
import vtk  # noqa: E402

from KidneySegLib import overlay, scene, scenecomparison, scenetable  # noqa: E402

CT, LABELS = toys.toy()
LEFT, RIGHT = SIDES


@pytest.fixture(autouse=True)
def _clean(slicer_scene):
    """An empty scene for every test, and not an error of Slicer's classes in it."""
    yield
    assert slicerhost.errors == []


def add(array=CT, name="CT", kind="vtkMRMLScalarVolumeNode", **place):
    return slicerhost.add_volume(toys.image_of(array, **place), name, kind)


def add_labels(array=LABELS, name="reference", **place):
    return add(array, name, "vtkMRMLLabelMapVolumeNode", **place)


def add_segmentation(array=LABELS, volume=None, name="", segments=SIDES):
    volume = volume or add()
    labels = sitk.GetImageFromArray(array)
    labels.CopyInformation(scene.volume_image(volume))
    node = scene.place_labels(labels, volume, segments=segments)
    if name:
        node.SetName(name)
    return node


def turned(degrees, axis=2):
    """Rotation matrix, 4x4."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    first, second = [i for i in range(3) if i != axis]
    matrix[first, first] = matrix[second, second] = c
    matrix[first, second], matrix[second, first] = -s, s
    return matrix


def add_transform(matrix, parent=None):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def add_warp():
    """A transform that is not linear."""
    spline = vtk.vtkThinPlateSplineTransform()
    corners = [[x, y, z] for x in (0, 99) for y in (0, 99) for z in (0, 99)]
    for points, bump in ((spline.SetSourceLandmarks, 0), (spline.SetTargetLandmarks, 9)):
        landmarks = vtk.vtkPoints()
        for number, corner in enumerate(corners):
            landmarks.InsertNextPoint([value + bump * (number == 3) for value in corner])
        points(landmarks)
    spline.SetBasisToR()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    node.SetAndObserveTransformToParent(spline)
    return node


def under(node, transform):
    node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def voxels(node, segment_id, volume=None):
    """A segment on the volume's grid, as Slicer's own function gives it."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume)


def array_of(image):
    return sitk.GetArrayFromImage(image)


def world_position(node, index):
    """LPS position of a voxel (i, j, k), by Slicer's own transforms."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    local = matrix.MultiplyPoint((*index, 1))[:3]
    general = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        node.GetParentTransformNode(), None, general
    )
    return np.multiply(general.TransformPoint(local), (-1, -1, 1))


def nodes():
    """What is in the scene: class and name of every node."""
    every = slicer.util.getNodesByClass("vtkMRMLNode")
    return sorted((node.GetClassName(), node.GetName() or "") for node in every)


def refusal(function, *arguments, **options):
    """The message of an InputError, with the scene as before."""
    before = nodes()
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert nodes() == before
    assert re.fullmatch(r"[^\n]+\.", message) and ". " not in message
    return message


def test_the_host_offers_what_slicer_does_and_no_more():
    assert not hasattr(slicer, "loadVolume") and slicer.util.loadVolume
    assert slicer.app.layoutManager() is None and slicer.app.mainWindow() is None
    assert slicer.modules.segmentations.logic().GetMRMLScene() is slicer.mrmlScene


# --- volumes out of the scene -----------------------------------------------------------------


def test_a_volume_leaves_as_its_file_was_in_each_of_the_48_axis_orders():
    array = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            image = toys.image_of(array, order, flips)
            node = slicerhost.add_volume(image)
            out = scene.volume_image(node)
            assert grid_difference(out, image) is None
            np.testing.assert_array_equal(array_of(out), array_of(image))
            slicer.mrmlScene.RemoveNode(node)


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_a_written_volume_is_the_volume_in_its_own_scalar_type(tmp_path, kind):
    array = (CT // 100 + 20).astype(kind)
    node = under(add(array, order=(2, 0, 1)), add_transform(turned(20)))
    scene.write_volume(node, tmp_path / "Größe 1.nrrd")
    written = sitk.ReadImage(str(tmp_path / "Größe 1.nrrd"))
    expected = scene.volume_image(node)
    assert written.GetPixelID() == expected.GetPixelID()
    np.testing.assert_array_equal(array_of(written), array_of(expected))
    assert array_of(written).dtype == np.dtype(kind)
    np.testing.assert_allclose(written.GetDirection(), expected.GetDirection(), atol=1e-12)
    assert grid_difference(written, expected) is None
    assert grid_difference(read_ct(tmp_path / "Größe 1.nrrd").image, expected) is None
    assert [path.name for path in tmp_path.iterdir()] == ["Größe 1.nrrd"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    import resource

    node = add()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
    try:
        with pytest.raises(KidneySegError, match=r"ct\.nrrd cannot be written, the disk is full"):
            scene.write_volume(node, tmp_path / "ct.nrrd")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_voxels_lie_where_slicers_transforms_put_them(levels):
    parent = None
    shift = np.eye(4)
    shift[:3, 3] = (12, -34, 56)
    for matrix in [np.eye(4), turned(30) @ shift, turned(-25, 0), turned(50, 1)][: levels + 1]:
        parent = add_transform(matrix, parent)
    node = under(add(order=(1, 2, 0), flips=(True, False, False)), parent)
    image = scene.volume_image(node)
    for index in ((0, 0, 0), (5, 7, 11), tuple(size - 1 for size in image.GetSize())):
        np.testing.assert_allclose(
            image.TransformIndexToPhysicalPoint(index), world_position(node, index), atol=1e-9
        )


def test_a_transform_that_scales_and_mirrors_is_in_the_spacing_and_direction():
    node = under(add(), add_transform(np.diag([-1.1, 1.1, 1.1, 1])))
    image = scene.volume_image(node)
    np.testing.assert_allclose(image.GetSpacing(), np.multiply(toys.SPACING_MM[::-1], 1.1))
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint((3, 4, 5)), world_position(node, (3, 4, 5))
    )
    assert image.GetDirection()[0] == pytest.approx(-1)


def test_an_image_whose_extent_does_not_begin_at_zero_keeps_its_place():
    node = add()
    cut = vtk.vtkExtractVOI()
    cut.SetInputData(node.GetImageData())
    cut.SetVOI(4, 20, 3, 30, 2, 10)
    cut.Update()
    node.GetImageData().DeepCopy(cut.GetOutput())
    assert node.GetImageData().GetExtent()[0] == 4
    image = scene.volume_image(node)
    np.testing.assert_array_equal(array_of(image), CT[2:11, 3:31, 4:21])
    np.testing.assert_allclose(image.GetOrigin(), world_position(node, (4, 3, 2)))
    segmentation = add_segmentation(LABELS[2:11, 3:31, 4:21], node)
    merged = scene.labels_image(segmentation, node)
    np.testing.assert_array_equal(array_of(merged), LABELS[2:11, 3:31, 4:21])


def test_a_residue_of_shear_is_straightened_and_more_is_refused():
    shear = np.eye(4)
    shear[0, 1] = np.tan(np.radians(0.5))
    node = under(add(), add_transform(shear))
    direction = np.reshape(scene.volume_image(node).GetDirection(), (3, 3))
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
    shear[0, 1] = 0.2
    node.GetParentTransformNode().SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shear))
    assert "CT lies under a transform that shears it" in refusal(scene.check_volume, node)
    node.SetAndObserveTransformNodeID(None)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(shear))
    assert "CT has axes that are not at right angles" in refusal(scene.volume_image, node)


def test_what_is_no_volume_is_refused_with_one_sentence():
    assert "No volume is chosen" in refusal(scene.check_volume, None)
    assert "'CT' is no node" in refusal(scene.check_volume, "CT")
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    assert "nothing has no image data" in refusal(scene.check_volume, empty)
    empty.SetAndObserveImageData(vtk.vtkImageData())
    assert "nothing has no image data" in refusal(scene.volume_image, empty)
    assert "reference is a label map" in refusal(scene.check_volume, add_labels())
    for components in (2, 3, 4):
        colours = np.zeros((*CT.shape, components), np.int16)
        node = slicer.util.addVolumeFromArray(
            colours, name="RGB", nodeClassName="vtkMRMLVectorVolumeNode"
        )
        assert f"RGB holds {components} values a voxel" in refusal(scene.check_volume, node)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "kidneys")
    assert "kidneys is no scalar volume" in refusal(scene.check_volume, segmentation)
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "phases")
    assert "phases is a sequence" in refusal(scene.check_volume, sequence)


def test_a_transform_that_is_not_linear_is_refused_with_its_name(tmp_path):
    node = under(add(), add_transform(turned(10), add_warp()))
    message = refusal(scene.check_volume, node)
    assert "CT lies under a transform that is not linear" in message and "harden it" in message
    refusal(scene.write_volume, node, tmp_path / "ct.nrrd")
    assert list(tmp_path.iterdir()) == []


def test_of_a_sequence_the_proxy_volume_is_taken_as_it_is_shown():
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "phases")
    for number in range(3):
        item = add(CT + np.int16(number))
        sequence.SetDataNodeAtValue(item, str(number))
        slicer.mrmlScene.RemoveNode(item)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic = slicer.modules.sequences.logic()
    for number in (0, 2):
        browser.SetSelectedItemNumber(number)
        logic.UpdateProxyNodesFromSequences(browser)
        proxy = browser.GetProxyNode(sequence)
        np.testing.assert_array_equal(array_of(scene.volume_image(proxy)), CT + number)
    node = add_segmentation(LABELS, proxy)
    np.testing.assert_array_equal(array_of(scene.labels_image(node, proxy)), LABELS)


def test_a_hint_is_given_where_the_values_are_no_hounsfield_units():
    assert scene.hu_hint(add()) is None
    assert "CT has 8-bit gray values" in scene.hu_hint(add((LABELS * 100).astype(np.uint8)))
    assert "CT has no negative value" in scene.hu_hint(add(CT + np.int16(1024)))
    assert "normalised" in scene.hu_hint(add(CT.astype(np.float32) / 1000))


# --- segmentations into the scene -------------------------------------------------------------


def test_segments_have_ids_names_colours_terminology_and_the_exact_voxels():
    volume = add(order=(2, 1, 0), flips=(False, True, True))
    labels = toys.image_of(LABELS, (2, 1, 0), (False, True, True))
    node = scene.place_labels(labels, volume)
    segmentation = node.GetSegmentation()
    assert segmentation.GetSegmentIDs() == ("left_kidney", "right_kidney")
    assert segmentation.GetSourceRepresentationName() == "Binary labelmap"
    assert segmentation.GetNumberOfLayers() == 1
    for written in SIDES:
        placed = segmentation.GetSegment(written.id)
        assert placed.GetName() == written.name and not placed.GetNameAutoGenerated()
        np.testing.assert_allclose(placed.GetColor(), written.color)
        assert not placed.GetColorAutoGenerated()
        assert placed.GetTerminology() == written.terminology
        mask = array_of(labels) == written.label
        np.testing.assert_array_equal(voxels(node, written.id, volume), mask)
        np.testing.assert_array_equal(voxels(node, written.id), mask)  # reference geometry
    assert node.GetName() == "CT kidneys"
    assert node.GetDisplayNode() is not None
    role = node.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReference(role) is volume
    parameter = segmentation.GetConversionParameter("Reference image geometry")
    geometry = slicer.vtkOrientedImageData()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(parameter, geometry, False)
    assert geometry.GetDimensions() == volume.GetImageData().GetDimensions()


def test_merged_kidneys_are_one_segment():
    node = add_segmentation((LABELS > 0).astype(np.uint8), segments=MERGED)
    assert node.GetSegmentation().GetSegmentIDs() == ("kidneys",)
    np.testing.assert_array_equal(voxels(node, "kidneys"), LABELS > 0)


@pytest.mark.parametrize("kidneys", [(), ("left",), ("right",)])
def test_a_missing_kidney_is_an_empty_segment(kidneys, tmp_path):
    _, labels = toys.toy(kidneys)
    volume = add()
    node = add_segmentation(labels, volume)
    for written in SIDES:
        np.testing.assert_array_equal(voxels(node, written.id, volume), labels == written.label)
    np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), labels)
    scene.show_surfaces(node, True)
    scenecomparison.show_comparison(node, add_segmentation(volume=volume))
    scene.place_labels(toys.image_of(LABELS), volume, node)
    scene.place_labels(toys.image_of(labels), volume, node)
    np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), labels)
    assert slicer.util.saveNode(node, str(tmp_path / "a.seg.nrrd"))
    loaded = slicer.util.loadSegmentation(str(tmp_path / "a.seg.nrrd"))
    assert loaded.GetSegmentation().GetSegmentIDs() == ("left_kidney", "right_kidney")
    np.testing.assert_array_equal(array_of(scene.labels_image(loaded, volume)), labels)


def test_a_volume_of_one_slice_is_a_volume():
    volume = add(CT[10:11])
    node = add_segmentation(LABELS[10:11], volume)
    np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), LABELS[10:11])
    scene.show_surfaces(node, True)
    assert node.GetClosedSurfaceInternalRepresentation("left_kidney").GetNumberOfPoints() > 0


@pytest.mark.parametrize("degrees", [0, 30, -30])
def test_left_stays_left_in_the_world_when_a_transform_turns_the_volume(degrees, toy_model):
    """The whole walk: out of the scene, segmented, and back."""
    volume = under(
        add(order=(2, 0, 1), flips=(True, True, False)),
        add_transform(turned(degrees), add_transform(turned(degrees / 2, 0))),
    )
    result = segment(scene.volume_image(volume), toy_model)
    node = scene.place_labels(result.labels, volume)
    assert node.GetParentTransformNode() is volume.GetParentTransformNode()
    centres = []
    for written in SIDES:
        centre = [0.0, 0.0, 0.0]
        node.GetSegmentCenterRAS(written.id, centre)
        centres.append(centre)
        index = np.argwhere(array_of(result.labels) == written.label).mean(axis=0)[::-1]
        world = world_position(volume, index)
        np.testing.assert_allclose(np.multiply(world, (-1, -1, 1)), centre, atol=8)
    assert centres[0][0] < centres[1][0]  # RAS: x grows to the right
    truth = toys.image_of(LABELS, (2, 0, 1), (True, True, False))
    np.testing.assert_array_equal(array_of(result.labels), array_of(truth))


def test_a_segmentation_is_filed_in_the_study_of_its_volume():
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    root = hierarchy.GetSceneItemID()
    study = hierarchy.CreateStudyItem(root, "study")
    other = hierarchy.CreateStudyItem(root, "other")
    inside = hierarchy.CreateFolderItem(study, "mine")
    volume = add()
    hierarchy.CreateItem(study, volume)
    labels = toys.image_of(LABELS)
    node = scene.place_labels(labels, volume)
    item = hierarchy.GetItemByDataNode(node)
    assert hierarchy.GetItemParent(item) == study
    for sorted_into, expected in ((other, study), (root, study), (inside, inside)):
        hierarchy.SetItemParent(item, sorted_into)
        scene.place_labels(labels, volume, node)
        assert hierarchy.GetItemParent(item) == expected


def user_segment(node, mask, volume, name="aorta"):
    segment_id = node.GetSegmentation().AddEmptySegment("", name, (0.1, 0.9, 0.2))
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), node, segment_id, volume
    )
    return segment_id


def test_a_node_that_a_selector_made_is_shown():
    """What "Create new Segmentation" makes has no display yet, and nothing would be seen."""
    volume = add()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert node.GetDisplayNode() is None
    scene.place_labels(toys.image_of(LABELS), volume, node)
    assert node.GetDisplayNode().GetVisibility()
    assert node.GetDisplayNode().GetSegmentVisibility("left_kidney")


def test_an_existing_node_is_updated_and_the_users_own_segment_and_display_are_kept():
    volume = add()
    node = add_segmentation(volume=volume)
    mask = np.zeros_like(LABELS)
    mask[4:15, 10:30, 5:20] = 1  # overlaps a kidney
    extra = user_segment(node, mask, volume)
    segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
    segmentation.GetSegment("left_kidney").SetColor(0.2, 0.3, 0.4)
    segmentation.GetSegment("left_kidney").SetName("Niere links")
    display.SetSegmentVisibility("right_kidney", False)
    display.SetSegmentOpacity2DFill("left_kidney", 0.25)
    display.SetOpacity2DFill(0.75)
    scene.show_surfaces(node, True)
    before = segmentation.GetSegment("left_kidney").GetRepresentation("Closed surface").GetBounds()
    count = slicer.mrmlScene.GetNumberOfNodes()

    moved = np.roll(LABELS, 2, axis=1)
    labels = toys.image_of(moved)
    assert scene.place_labels(labels, volume, node) is node
    assert node.GetSegmentation() is segmentation and node.GetDisplayNode() is display
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert segmentation.GetSegmentIDs() == ("left_kidney", "right_kidney", extra)
    np.testing.assert_array_equal(voxels(node, "left_kidney", volume), moved == 1)
    np.testing.assert_array_equal(voxels(node, "right_kidney", volume), moved == 2)
    np.testing.assert_array_equal(voxels(node, extra, volume), mask)
    assert segmentation.GetSegment("left_kidney").GetColor() == (0.2, 0.3, 0.4)
    assert segmentation.GetSegment("left_kidney").GetName() == "Niere links"
    assert not display.GetSegmentVisibility("right_kidney")
    assert display.GetSegmentOpacity2DFill("left_kidney") == 0.25
    assert display.GetOpacity2DFill() == 0.75
    after = segmentation.GetSegment("left_kidney").GetRepresentation("Closed surface").GetBounds()
    np.testing.assert_allclose(np.subtract(after, before)[2:4], -2 * toys.SPACING_MM[1], atol=0.5)
    for segment_id in segmentation.GetSegmentIDs():
        assert segmentation.GetSegment(segment_id).GetRepresentation("Closed surface")


def test_a_segment_of_the_user_that_shares_a_layer_with_the_kidneys_is_kept():
    volume = add()
    node = add_segmentation(volume=volume)
    mask = np.zeros_like(LABELS)
    mask[8:12, 2:6, 20:25] = 1
    extra = user_segment(node, mask, volume)
    node.GetSegmentation().CollapseBinaryLabelmaps()
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    moved = np.roll(LABELS, 2, axis=1)
    scene.place_labels(toys.image_of(moved), volume, node)
    np.testing.assert_array_equal(voxels(node, extra, volume), mask)
    np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), moved)
    layer = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, extra)
    label = node.GetSegmentation().GetSegment(extra).GetLabelValue()
    assert np.unique(layer).tolist() == [0, label]  # the old kidneys are gone from it


def test_merged_and_separate_kidneys_replace_each_other():
    volume = add()
    node = add_segmentation(volume=volume)
    merged = toys.image_of((LABELS > 0).astype(np.uint8))
    scene.place_labels(merged, volume, node, MERGED)
    assert node.GetSegmentation().GetSegmentIDs() == ("kidneys",)
    scene.place_labels(toys.image_of(LABELS), volume, node)
    assert node.GetSegmentation().GetSegmentIDs() == ("left_kidney", "right_kidney")


def test_an_empty_node_of_surfaces_takes_voxels():
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    volume = add()
    scene.place_labels(toys.image_of(LABELS), volume, node)
    np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), LABELS)


def test_a_node_of_another_volume_takes_over_the_new_grid_and_transform():
    first = under(add(name="first"), add_transform(turned(40, 1)))
    node = add_segmentation(volume=first)
    mask = np.zeros_like(LABELS)
    mask[8:12, 2:6, 20:25] = 1
    extra = user_segment(node, mask, first)
    centre = np.zeros(3)
    node.GetSegmentCenterRAS(extra, centre)
    second = under(add(name="second", order=(1, 0, 2)), add_transform(turned(-20)))
    labels = scene.volume_image(second)
    placed = sitk.GetImageFromArray(LABELS.transpose(1, 0, 2))
    placed.CopyInformation(labels)
    scene.place_labels(placed, second, node)
    assert node.GetParentTransformNode() is second.GetParentTransformNode()
    np.testing.assert_array_equal(
        array_of(scene.labels_image(node, second)), LABELS.transpose(1, 0, 2)
    )
    now = np.zeros(3)
    node.GetSegmentCenterRAS(extra, now)
    np.testing.assert_allclose(now, centre, atol=1e-6)


def test_an_output_that_cannot_take_the_result_is_refused():
    volume = add()
    node = add_segmentation(volume=volume, name="kidneys")
    assert "kidneys is the reference" in refusal(scene.check_output, node, node)
    assert "CT is no segmentation" in refusal(scene.check_output, volume)
    scene.check_output(None)
    scene.check_output(node, volume)
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    assert "kidneys is made of closed surfaces" in refusal(
        scene.place_labels, toys.image_of(LABELS), volume, node
    )
    node = add_segmentation(volume=volume, name="bent")
    under(node, add_warp())
    assert "bent lies under a transform that is not linear" in refusal(scene.check_output, node)
    slicer.mrmlScene.RemoveNode(node)
    assert "bent is no longer in the scene" in refusal(
        scene.place_labels, toys.image_of(LABELS), volume, node
    )


def test_a_volume_that_went_or_changed_during_the_run_is_refused():
    volume = add()
    labels = toys.image_of(LABELS)
    volume.SetSpacing(1, 1, 1)
    assert "CT is no longer the volume that was segmented (spacing" in refusal(
        scene.place_labels, labels, volume
    )
    slicer.mrmlScene.RemoveNode(volume)
    volume.SetSpacing(labels.GetSpacing())
    assert "CT is no longer in the scene" in refusal(scene.place_labels, labels, volume)


def test_labels_without_a_segment_are_a_mistake_of_the_program():
    volume = add()
    with pytest.raises(ValueError, match="none of"):
        scene.place_labels(toys.image_of(LABELS), volume, segments=MERGED)


@pytest.mark.parametrize("existing", [False, True, "empty"])
def test_a_failure_half_way_leaves_the_scene_as_before(monkeypatch, existing):
    volume = under(add(), add_transform(turned(15)))
    node = None
    if existing == "empty":
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    elif existing:
        node = add_segmentation(volume=volume)
        extra = user_segment(node, LABELS == 0, volume)
        node.GetSegmentation().SeparateSegmentLabelmap("right_kidney")
        assert node.GetSegmentation().GetSegment("right_kidney").GetLabelValue() == 1
        scene.show_surfaces(node, True)
        node.SetAndObserveTransformNodeID(None)
        place = np.zeros(3)
        node.GetSegmentCenterRAS("left_kidney", place)
    before = nodes()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(scene, "_file_beside", fail)
    labels = scene.volume_image(volume)
    moved = sitk.GetImageFromArray(np.roll(LABELS, 2, 1))
    moved.CopyInformation(labels)
    with pytest.raises(MemoryError):
        scene.place_labels(moved, volume, node)
    assert nodes() == before
    if existing is True:
        assert node.GetParentTransformNode() is None
        assert node.GetSegmentation().GetSegmentIDs() == ("left_kidney", "right_kidney", extra)
        now = np.zeros(3)
        node.GetSegmentCenterRAS("left_kidney", now)
        np.testing.assert_allclose(now, place, atol=1e-6)
        assert node.GetClosedSurfaceInternalRepresentation("left_kidney") is not None
        node.SetAndObserveTransformNodeID(volume.GetParentTransformNode().GetID())
        np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), LABELS)


# --- saving -----------------------------------------------------------------------------------


def test_a_saved_segmentation_has_the_identical_voxels(tmp_path):
    volume = add(order=(2, 1, 0))
    labels = toys.image_of(LABELS, (2, 1, 0))
    node = scene.place_labels(labels, volume)
    path = tmp_path / "kidneys.seg.nrrd"
    assert slicer.util.saveNode(node, str(path))
    back = read_labels(path)
    np.testing.assert_array_equal(array_of(back), array_of(labels))
    assert grid_difference(back, labels) is None
    loaded = slicer.util.loadSegmentation(str(path))
    np.testing.assert_array_equal(array_of(scene.labels_image(loaded, volume)), array_of(labels))
    assert loaded.GetSegmentation().GetSegment(LEFT.id).GetTerminology() == LEFT.terminology


def test_a_saved_scene_has_the_identical_voxels_place_and_names(tmp_path):
    volume = under(add(flips=(True, False, True)), add_transform(turned(30)))
    node = add_segmentation(volume=volume)
    name = node.GetName()
    before = [
        to_axial(image) for image in (scene.volume_image(volume), scene.labels_image(node, volume))
    ]
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicerhost.clear(slicer)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    volume, node = slicer.util.getNode("CT"), slicer.util.getNode(name)
    assert node.GetParentTransformNode() is volume.GetParentTransformNode() is not None
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    # Slicer stores the slices of a left-handed volume the other way round, so not by their index.
    for image, (array, grid) in zip(
        (scene.volume_image(volume), scene.labels_image(node, volume)), before, strict=True
    ):
        loaded, loaded_grid = to_axial(image)
        np.testing.assert_array_equal(loaded, array)
        corners = np.array(list(np.ndindex(2, 2, 2))) * 9
        np.testing.assert_allclose(
            loaded_grid.to_physical(corners), grid.to_physical(corners), atol=1e-3
        )
    for written in SIDES:
        placed = node.GetSegmentation().GetSegment(written.id)
        assert (placed.GetName(), placed.GetTerminology()) == (written.name, written.terminology)
        np.testing.assert_allclose(placed.GetColor(), written.color, atol=1e-5)


# --- labels out of the scene ------------------------------------------------------------------


def test_a_label_map_on_the_grid_keeps_its_values():
    volume = add()
    kits = LABELS.copy()
    kits[LABELS == 2] = 1
    kits[10, 18:20, 12:14] = 2
    out = scene.labels_image(add_labels(kits), volume)
    np.testing.assert_array_equal(array_of(out), kits)
    assert grid_difference(out, scene.volume_image(volume)) is None
    assert out.GetPixelID() == sitk.sitkUInt8


@pytest.mark.parametrize("as_segmentation", [False, True])
def test_a_reference_stored_in_another_axis_order_is_brought_to_the_volume(as_segmentation):
    volume = add()
    order, flips = (1, 2, 0), (True, False, True)
    if as_segmentation:
        other = add(order=order, flips=flips)
        stored = toys.image_of(LABELS, order, flips)
        reference = scene.place_labels(stored, other)
    else:
        reference = add_labels(order=order, flips=flips)
    np.testing.assert_array_equal(array_of(scene.labels_image(reference, volume)), LABELS)


def finer():
    """The toy's labels on a grid of half the pixel size, turned, as an image."""
    source = toys.image_of(LABELS)
    half = [spacing / 2 for spacing in toys.SPACING_MM[::-1]]
    size = [2 * extent + 12 for extent in source.GetSize()]
    turn = np.reshape(source.GetDirection(), (3, 3)) @ turned(8)[:3, :3]
    middle = np.array(source.TransformContinuousIndexToPhysicalPoint([22, 18, 10]))
    origin = middle - turn @ (np.multiply(size, half) / 2)
    return sitk.Resample(
        source, size, sitk.Transform(), sitk.sitkNearestNeighbor, origin.tolist(), half,
        turn.ravel().tolist(), 0, sitk.sitkUInt8,
    )  # fmt: skip


@pytest.mark.parametrize("as_segmentation", [False, True])
def test_a_reference_on_a_finer_turned_grid_is_resampled(as_segmentation):
    volume = add()
    image = finer()
    if as_segmentation:
        other = slicerhost.add_volume(sitk.Cast(image, sitk.sitkInt16), "other")
        reference = scene.place_labels(image, other)
    else:
        reference = slicerhost.add_volume(image, "reference", "vtkMRMLLabelMapVolumeNode")
    # A fine grid forgets nothing of a coarse one.
    np.testing.assert_array_equal(array_of(scene.labels_image(reference, volume)), LABELS)
    assert scene.compare(add_segmentation(volume=volume), reference)["dice"]["left"] == 1


def test_a_reference_under_another_transform_is_compared_where_it_is_seen():
    turn = turned(30)
    volume = under(add(), add_transform(turn))
    here = add_segmentation(volume=volume)
    hardened = add_labels()
    hardened.ApplyTransformMatrix(slicer.util.vtkMatrixFromArray(turn))
    np.testing.assert_array_equal(array_of(scene.labels_image(hardened, volume)), LABELS)
    aside = add_segmentation(volume=volume, name="aside")
    shift = turn.copy()
    shift[:3, 3] += turn[:3, 0] * toys.SPACING_MM[2]
    under(aside, add_transform(shift))
    # One column to the right, which is towards the first.
    moved = np.zeros_like(LABELS)
    moved[:, :, :-1] = LABELS[:, :, 1:]
    np.testing.assert_array_equal(array_of(scene.labels_image(aside, volume)), moved)
    assert scene.compare(here, aside, volume)["dice"]["left"] < 1


def test_surfaces_are_turned_into_voxels_and_the_node_stays_as_it_is():
    volume = add()
    node = add_segmentation(volume=volume)
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    node.RemoveBinaryLabelmapRepresentation()
    out = array_of(scene.labels_image(node, volume))
    assert evaluate(toys.image_of(out), toys.image_of(LABELS))["dice"]["left"] > 0.9
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_segments_that_are_no_kidneys_are_left_out():
    volume = add()
    node = add_segmentation(volume=volume)
    user_segment(node, LABELS == 0, volume, "body")
    before = nodes()
    np.testing.assert_array_equal(array_of(scene.labels_image(node, volume)), LABELS)
    assert nodes() == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("kidney_left", "kidney_right", "liver"), (1, 2, 0)),
        (("Right kidney", "Left Kidney", "cyst"), (2, 1, 0)),
        (("right kidney", "spleen", "liver"), (2, 0, 0)),
        (("Kidney", "Tumor", "aorta"), (1, 2, 0)),
        (("kidneys", "liver", "aorta"), (1, 0, 0)),
        (("kidneys", "left kidney", "right kidney"), (0, 1, 2)),
        (("Segment_1", "Segment_2", "Segment_3"), (1, 2, 3)),
    ],
)
def test_which_segments_are_kidneys_follows_from_their_names(names, expected):
    volume = add()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "reference")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.CreateDefaultDisplayNodes()
    for number, name in enumerate(names):
        mask = np.zeros_like(LABELS)
        mask[3:6, 4:8, 5 + 8 * number : 10 + 8 * number] = 1
        user_segment(node, mask, volume, name)
    out = array_of(scene.labels_image(node, volume))
    assert tuple(out[4, 5, 6 + 8 * number] for number in range(3)) == expected


def test_what_cannot_be_compared_is_refused_with_its_name():
    volume = add()
    node = add_segmentation(volume=volume, name="kidneys")
    assert "No segmentation is chosen" in refusal(scene.labels_image, None, volume)
    assert "CT is neither" in refusal(scene.labels_image, volume, volume)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    assert "empty has no segment" in refusal(scene.labels_image, empty, volume)
    hollow = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "hollow")
    assert "hollow has no image data" in refusal(scene.labels_image, hollow, volume)
    floats = add_labels(np.where(LABELS, 0.5, 0), "floats")
    assert "floats holds values that are no labels" in refusal(scene.labels_image, floats, volume)
    far = np.eye(4)
    far[0, 3] = 5000
    for reference in (add_labels(name="far"), add_segmentation(volume=volume, name="far")):
        under(reference, add_transform(far))
        assert "Nothing of far lies within CT" in refusal(scene.labels_image, reference, volume)
    bent = under(add_labels(name="bent"), add_warp())
    assert "bent lies under a transform" in refusal(scene.labels_image, bent, volume)
    assert "both the segmentation and the reference" in refusal(scene.compare, node, node, volume)
    lonely = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "lonely")
    assert "not known which CT" in refusal(scene.compare, lonely, add_labels())
    organs = add_labels((LABELS * 3).astype(np.uint8), "organs")
    assert "organs holds the values 3, 6" in refusal(scene.compare, node, organs)


def test_nodes_are_compared_as_their_arrays_are():
    volume = under(add(), add_transform(turned(30)))
    node = add_segmentation(volume=volume, name="mine")
    moved = np.roll(LABELS, 1, axis=1)
    reference = under(add_labels(moved, "theirs"), volume.GetParentTransformNode())
    before = nodes()
    scores = scene.compare(node, reference)
    assert nodes() == before
    images = [toys.image_of(array) for array in (LABELS, moved)]
    expected = evaluate(*images, ("mine", "theirs"), distances=True)
    assert scores.keys() == expected.keys() and scores["notes"] == expected["notes"] == []
    for name, value in expected.items():
        if isinstance(value, dict) and name != "volume_ml":
            assert scores[name] == pytest.approx(value)
    assert scores["volume_ml"]["reference"] == pytest.approx(expected["volume_ml"]["reference"])
    assert scores["mean_surface_distance_mm"]["left"] > 0
    json.dumps(scores)


# --- red and blue -----------------------------------------------------------------------------


def display_of(node):
    """Everything that the user can choose about how a segmentation is shown."""
    display, ids = node.GetDisplayNode(), node.GetSegmentation().GetSegmentIDs()
    return {name: getattr(display, f"Get{name}")() for name in scenecomparison._NODE_DISPLAY} | {
        segment_id: [
            *(
                getattr(display, f"GetSegment{name}")(segment_id)
                for name in scenecomparison._SEGMENT_DISPLAY
            ),
            tuple(display.GetSegmentOverrideColor(segment_id)),
            node.GetSegmentation().GetSegment(segment_id).GetColor(),
        ]
        for segment_id in ids
    }


def two_to_compare():
    volume = add()
    prediction = add_segmentation(volume=volume, name="prediction")
    reference = add_segmentation(np.roll(LABELS, 2, axis=1), volume, name="reference")
    user_segment(reference, LABELS == 0, volume, "body")
    display = reference.GetDisplayNode()
    display.SetSegmentOverrideColor("left_kidney", 0.123456789012345, 0.5, 0.25)
    display.SetSegmentVisibility("right_kidney", False)
    display.SetSegmentOpacity3D("left_kidney", 1 / 3)
    display.SetOpacity2DFill(0.1 + 0.2)
    display.SetVisibility2DOutline(False)
    display.SetVisibility(False)
    prediction.GetSegmentation().GetSegment("left_kidney").SetColor(0.11, 0.22, 0.33)
    return volume, prediction, reference


def test_the_reference_is_red_and_the_prediction_blue_and_only_kidneys_are_shown():
    _, prediction, reference = two_to_compare()
    scenecomparison.show_comparison(prediction, reference, fill_opacity=0.4)
    for node, color in ((prediction, (70, 130, 255)), (reference, (255, 45, 45))):
        display = node.GetDisplayNode()
        assert display.GetVisibility() and display.GetVisibility2D()
        assert display.GetVisibility2DOutline() and display.GetVisibility2DFill()
        assert display.GetOpacity2DFill() == 0.4
        for segment_id in ("left_kidney", "right_kidney"):
            assert display.GetSegmentVisibility(segment_id)
            np.testing.assert_allclose(
                display.GetSegmentColor(segment_id), np.array(color) / 255, atol=1e-6
            )
            # The segment itself has the colour that the user gave it.
            assert node.GetSegmentation().GetSegment(segment_id).GetColor() != color
    body = reference.GetSegmentation().GetSegmentIdBySegmentName("body")
    assert not reference.GetDisplayNode().GetSegmentVisibility(body)
    assert scenecomparison.comparison_shown(prediction) and scenecomparison.comparison_shown(
        None, reference
    )


def test_the_colours_are_those_of_the_pictures():
    for ours, theirs in (
        (scenecomparison.REFERENCE_COLOR, overlay.REFERENCE),
        (scenecomparison.PREDICTION_COLOR, overlay.PREDICTION),
    ):
        np.testing.assert_allclose(ours, np.divide(theirs, 255))


def test_what_the_user_had_is_restored_exactly_however_often_it_was_switched():
    _, prediction, reference = two_to_compare()
    before = [display_of(node) for node in (prediction, reference)]
    for opacity, outline in ((0.3, True), (0.0, True), (1.0, False)):
        scenecomparison.show_comparison(prediction, reference, outline, opacity)
        display = reference.GetDisplayNode()
        assert display.GetVisibility2DOutline() == outline
        assert display.GetVisibility2DFill() == (opacity > 0)
    scenecomparison.hide_comparison(prediction, reference)
    assert [display_of(node) for node in (prediction, reference)] == before
    assert not scenecomparison.comparison_shown(prediction, reference)
    scenecomparison.hide_comparison(prediction, reference, None)
    assert [display_of(node) for node in (prediction, reference)] == before


def test_a_reloaded_scene_restores_what_was_there_before_the_comparison(tmp_path):
    _, prediction, reference = two_to_compare()
    before = [display_of(node) for node in (prediction, reference)]
    scenecomparison.show_comparison(prediction, reference)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicerhost.clear(slicer)
    add(name="something else first")
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    pair = [slicer.util.getNode(name) for name in ("prediction", "reference")]
    assert scenecomparison.comparison_shown(*pair)
    scenecomparison.hide_comparison(*pair)
    for node, expected in zip(pair, before, strict=True):
        shown = display_of(node)
        for key, value in expected.items():
            if isinstance(value, list):  # the colour of a segment itself is Slicer's to round
                assert shown[key][:-1] == value[:-1]
                np.testing.assert_allclose(shown[key][-1], value[-1], atol=1e-5)
            else:
                assert shown[key] == value


def test_a_new_run_during_the_comparison_is_shown_in_its_colours_and_forgotten_after_it():
    volume = add()
    merged = (LABELS > 0).astype(np.uint8)
    prediction = add_segmentation(merged, volume, "prediction", MERGED)
    reference = add_segmentation(volume=volume, name="reference")
    scenecomparison.show_comparison(prediction, reference)
    scene.place_labels(toys.image_of(LABELS), volume, prediction)
    scenecomparison.show_comparison(prediction, reference)
    display = prediction.GetDisplayNode()
    np.testing.assert_allclose(
        display.GetSegmentColor("left_kidney"), scenecomparison.PREDICTION_COLOR, atol=1e-6
    )
    scenecomparison.hide_comparison(prediction, reference)
    np.testing.assert_allclose(display.GetSegmentColor("left_kidney"), LEFT.color)


def test_in_place_of_a_label_map_a_segmentation_is_shown_until_the_comparison_ends(tmp_path):
    volume = under(add(), add_transform(turned(30)))
    prediction = add_segmentation(volume=volume, name="prediction")
    reference = under(add_labels(), volume.GetParentTransformNode())
    before = nodes()
    scenecomparison.show_comparison(prediction, reference)
    scenecomparison.show_comparison(prediction, reference, fill_opacity=0.5)
    stand_in = slicer.util.getNode("reference (comparison)")
    assert len(nodes()) == len(before) + 2  # with its display node
    np.testing.assert_array_equal(voxels(stand_in, "kidneys", volume), LABELS > 0)
    np.testing.assert_allclose(
        stand_in.GetDisplayNode().GetSegmentColor("kidneys"),
        scenecomparison.REFERENCE_COLOR,
        atol=1e-6,
    )
    assert scenecomparison.comparison_shown(reference)
    scenecomparison.hide_comparison(prediction, reference)
    assert nodes() == before and not scenecomparison.comparison_shown(prediction, reference)


def test_a_comparison_that_makes_no_sense_is_refused():
    volume, prediction, reference = two_to_compare()
    assert "No reference is chosen" in refusal(scenecomparison.show_comparison, prediction, None)
    assert "No segmentation is chosen" in refusal(scenecomparison.show_comparison, None, reference)
    assert "both" in refusal(scenecomparison.show_comparison, prediction, prediction)
    assert "CT is neither" in refusal(scenecomparison.show_comparison, prediction, volume)
    for opacity in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="from 0 to 1"):
            scenecomparison.show_comparison(prediction, reference, fill_opacity=opacity)
    assert not scenecomparison.comparison_shown(prediction, reference)


# --- surfaces and the table -------------------------------------------------------------------


def test_surfaces_are_made_in_the_right_place_and_taken_away():
    volume = add()
    node = add_segmentation(volume=volume)
    scene.show_surfaces(node, True)
    assert node.GetDisplayNode().GetVisibility3D()
    for written in SIDES:
        surface = node.GetClosedSurfaceInternalRepresentation(written.id)
        assert surface.GetNumberOfPoints() > 100
        index = np.argwhere(written.label == LABELS).mean(axis=0)[::-1]
        centre = np.multiply(world_position(volume, index), (-1, -1, 1))
        np.testing.assert_allclose(surface.GetCenter(), centre, atol=8)
    scene.show_surfaces(node, False)
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    assert "empty has no segment" in refusal(scene.show_surfaces, empty, True)


def cells(table):
    return [
        [
            table.GetTable().GetValue(row, column).ToString()
            for column in range(table.GetNumberOfColumns())
        ]
        for row in range(table.GetNumberOfRows())
    ]


def test_the_table_has_typed_columns_and_a_row_for_each_structure(tmp_path):
    volume = add()
    node = add_segmentation(volume=volume)
    rows = scenetable.result_rows({"left": 155.0, "right": 109.25})
    table = scenetable.results_table(rows)
    assert cells(table) == [
        ["Left", "155"], ["Right", "109.25"], ["Both", "264.25"]
    ]  # fmt: skip
    reference = add_labels(np.roll(LABELS, 1, axis=1))
    scores = scene.compare(node, reference)
    rows = scenetable.result_rows(scores["volume_ml"]["prediction"], scores)
    count = slicer.mrmlScene.GetNumberOfNodes()
    assert scenetable.results_table(rows, table) is table
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    names = [column.name for column in scenetable.COLUMNS]
    assert [table.GetColumnName(n) for n in range(7)] == ["structure", *names]
    for number, column in enumerate(scenetable.COLUMNS, start=1):
        assert table.GetTable().GetColumn(number).IsA("vtkDoubleArray")
        assert table.GetColumnTitle(column.name) == column.title
    assert rows["Left"]["dice"] == scores["dice"]["left"]
    assert table.GetTable().GetValue(1, 3).ToDouble() == round(scores["dice"]["right"], 4)
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    expected, name = cells(table), table.GetName()
    slicerhost.clear(slicer)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    table = slicer.util.getNode(name)
    assert table.GetTable().GetColumnByName("dice").IsA("vtkDoubleArray")
    np.testing.assert_allclose(
        np.array(cells(table))[:, 1:].astype(float), np.array(expected)[:, 1:].astype(float), 1e-4
    )


def test_a_reference_without_sides_leaves_cells_of_the_sides_open():
    volume = add()
    node = add_segmentation(volume=volume)
    merged = add_labels((LABELS > 0).astype(np.uint8))
    scores = scene.compare(node, merged)
    table = scenetable.results_table(
        scenetable.result_rows(scores["volume_ml"]["prediction"], scores)
    )
    assert np.isnan(table.GetTable().GetValueByName(0, "dice").ToDouble())
    assert table.GetTable().GetValueByName(2, "dice").ToDouble() == 1.0
