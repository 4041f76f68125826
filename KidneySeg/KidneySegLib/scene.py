"""To and from 3D Slicer's scene: volumes and labels out, segmentations in.

Images that leave the scene are in world coordinates, every linear parent transform applied, and in
LPS as ITK has them (Slicer itself uses RAS). Results come back voxel for voxel: nothing is
resampled where a segmentation lies on the volume's own grid. Every check comes before the first
change, so that the scene is as before when something cannot be done.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import grid_difference
from KidneySegLib.reading import oddities
from KidneySegLib.volumes import Volume
from KidneySegLib.worldgrid import world_grid
from KidneySegLib.writing import MERGED, SIDES, Segment, atomic

_NRRD_TYPES = {"float32": "float", "float64": "double"}
_LABELMAP = "Binary labelmap"
_SURFACE = "Closed surface"
_OUR_IDS = [segment.id for segment in (*SIDES, *MERGED)]


# --- from the scene ---------------------------------------------------------------------------


def check_volume(node: Any) -> None:
    """Make sure that a node is a volume that can be segmented.

    The proxy volume of a sequence is taken as what it shows at present.

    Raises
    ------
    InputError
        It is none, or no scalar 3-D volume with voxels, or its place in the world cannot be told
        by a straight grid (a transform that is not linear, or shears it).
    """
    if node is None:
        raise InputError("No volume is chosen; choose the CT to segment.")
    if not hasattr(node, "IsA") or not node.IsA("vtkMRMLNode"):
        raise InputError(f"{node!r} is no node of the scene; give the volume node of the CT.")
    name = node.GetName()
    if node.IsA("vtkMRMLSequenceNode"):
        raise InputError(
            f"{name} is a sequence of volumes; choose the volume that shows one of them, by "
            "default it has the same name."
        )
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(f"{name} is a label map and not a CT; choose the CT it was drawn on.")
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(f"{name} is no scalar volume; choose a CT.")
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        raise InputError(f"{name} has no image data; load the CT again.")
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(
            f"{name} holds {components} values a voxel (colours, vectors or several time points); "
            "choose a CT with one."
        )
    world_grid(node)


def hu_hint(node: Any) -> str | None:
    """A sentence if the values of a volume node do not look like Hounsfield units, or None."""
    low, high = node.GetImageData().GetScalarRange()
    voxels = Volume(sitk.Image(), not_finite=0, low=low, high=high)
    return next(iter(oddities(node.GetName(), voxels)), None)


def volume_image(node: Any) -> sitk.Image:
    """A volume node as an image in world coordinates, LPS, in the node's scalar type.

    Raises
    ------
    InputError
        See `check_volume`.
    """
    check_volume(node)
    return world_grid(node).placed(slicer.util.arrayFromVolume(node))


def write_volume(node: Any, path: Path | str) -> None:
    """Write a volume node as an uncompressed NRRD file in world coordinates.

    What is written is `volume_image`, without a copy of the voxels in memory.

    Raises
    ------
    InputError
        See `check_volume`.
    KidneySegError
        The folder cannot be written to or the disk is full; nothing is left there then.
    """
    check_volume(node)
    grid = world_grid(node)
    voxels = np.ascontiguousarray(slicer.util.arrayFromVolume(node))
    kind = voxels.dtype.newbyteorder("<")
    steps = (np.array(grid.direction) * grid.spacing).T.tolist()
    header = (
        "NRRD0004",
        f"type: {_NRRD_TYPES.get(kind.name, kind.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(size) for size in grid.size)}",
        f"space directions: {' '.join(_nrrd_vector(step) for step in steps)}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: {_nrrd_vector(grid.origin)}",
    )
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join(header) + "\n\n").encode("ascii"))
        file.write(voxels.astype(kind, copy=False).data)


def _nrrd_vector(values: Sequence[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def labels_image(node: Any, volume_node: Any) -> sitk.Image:
    """The kidneys of a segmentation or label map node on a volume's grid, as uint8.

    Of a segmentation, the segments that are kidneys by name or terminology: left 1 and right 2
    where some tell sides, and nothing else; otherwise kidney 1 and tumour or cyst 2; where none is
    a kidney, all of them, numbered. A label map keeps its values. What lies on another grid, or
    under another transform, is resampled to the closest voxel.

    Raises
    ------
    InputError
        The node is neither, is empty, or none of it lies in the volume.
    """
    check_volume(volume_node)
    if node is None:
        raise InputError("No segmentation is chosen; choose one with kidneys.")
    name = node.GetName()
    if node.IsA("vtkMRMLSegmentationNode"):
        return _segmentation_labels(node, volume_node)
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _label_map_labels(node, volume_node)
    raise InputError(
        f"{name} is neither a segmentation nor a label map; convert it to a label map (in the Data "
        "module, with a right click) and choose that."
    )


def compare(segmentation_node: Any, reference_node: Any, volume_node: Any = None) -> dict[str, Any]:
    """Compare a segmentation with a reference, on the grid of the volume.

    Parameters
    ----------
    segmentation_node, reference_node
        Segmentation or label map nodes, see `labels_image`.
    volume_node
        By default the volume that the segmentation was made on.

    Returns
    -------
    `KidneySegLib.measure.evaluate` with distances.

    Raises
    ------
    InputError
        See `labels_image` and `evaluate`; or both nodes are the same.
    """
    # Connected components are not in Slicer until the user has installed what segmenting needs.
    from KidneySegLib.measure import evaluate

    if segmentation_node is not None and segmentation_node is reference_node:
        raise InputError(
            f"{reference_node.GetName()} is both the segmentation and the reference; choose "
            "another reference."
        )
    volume_node = volume_node or volume_of(segmentation_node, reference_node)
    nodes = (segmentation_node, reference_node)
    ours, theirs = (labels_image(node, volume_node) for node in nodes)
    names = (segmentation_node.GetName(), reference_node.GetName())
    return evaluate(ours, theirs, names, distances=True)


# --- into the scene ---------------------------------------------------------------------------


def check_output(segmentation_node: Any, reference_node: Any = None) -> None:
    """Make sure, before any work, that a node can take the result; None is a new one.

    Raises
    ------
    InputError
        It is no segmentation, the reference itself, made of surfaces, no longer in the scene, or
        under a transform that is not linear.
    """
    if segmentation_node is None:
        return
    name = segmentation_node.GetName()
    if not segmentation_node.IsA("vtkMRMLSegmentationNode"):
        raise InputError(f"{name} is no segmentation; choose one for the output.")
    if segmentation_node is reference_node:
        raise InputError(
            f"{name} is the reference and would be overwritten; choose another output."
        )
    if segmentation_node.GetScene() is None:
        raise InputError(f"{name} is no longer in the scene; choose another output.")
    segmentation = segmentation_node.GetSegmentation()
    source = segmentation.GetSourceRepresentationName()
    if segmentation.GetNumberOfSegments() and source != _LABELMAP:
        raise InputError(
            f"{name} is made of {source.lower()}s and not of voxels; choose another output."
        )
    parent = segmentation_node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        raise InputError(
            f"{name} lies under a transform that is not linear; choose another output."
        )


def place_labels(
    labels: sitk.Image,
    volume_node: Any,
    segmentation_node: Any = None,
    segments: Sequence[Segment] = SIDES,
) -> Any:
    """Show a label map as a segmentation of the volume that it was made from.

    The segmentation gets the volume's parent transform, subject hierarchy folder and reference
    geometry. A segment that exists already keeps its name, colour and display, and closed
    surfaces are made anew where there were some; segments of other IDs stay where they are in the
    world, save that those of `SIDES` and `MERGED` replace each other.

    Parameters
    ----------
    labels
        On the grid of `volume_image`, uint8.
    segmentation_node
        What to update; None for a new node.
    segments
        What the labels mean.

    Returns
    -------
    The vtkMRMLSegmentationNode.

    Raises
    ------
    InputError
        The volume is no longer in the scene or was changed meanwhile, or see `check_output`.
    """
    check_volume(volume_node)
    scene = volume_node.GetScene()
    if scene is None:
        raise InputError(
            f"{volume_node.GetName()} is no longer in the scene; load it and segment it again."
        )
    check_output(segmentation_node)
    layer = _layer(labels, volume_node, segments)
    scene.SaveStateForUndo()
    with ExitStack() as undo:
        node = segmentation_node
        if node is None:
            name = scene.GenerateUniqueName(f"{volume_node.GetName()} kidneys")
            node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
            undo.callback(scene.RemoveNode, node)
        if node.GetDisplayNode() is None:  # of a new node, as selectors make them, too
            undo.callback(scene.RemoveNode, display_of(node))
        with slicer.util.NodeModify(node):
            surfaces = node.GetSegmentation().ContainsRepresentation(_SURFACE)
            if surfaces:
                undo.callback(node.CreateClosedSurfaceRepresentation)
            _move_below(node, volume_node.GetParentTransformNode(), undo)
            _replace_segments(node, layer, segments, undo)
            if surfaces:
                node.CreateClosedSurfaceRepresentation()
            _file_beside(node, volume_node)
            undo.pop_all()
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
            for stale in set(_OUR_IDS) - {segment.id for segment in segments}:
                if node.GetSegmentation().GetSegment(stale) is not None:
                    node.RemoveSegment(stale)
    return node


def show_surfaces(segmentation_node: Any, shown: bool) -> None:
    """Show or hide a segmentation in 3-D, as Slicer's own button "Show 3D" does.

    Raises
    ------
    InputError
        The segmentation has no segment.
    """
    segmentation = segmentation_node.GetSegmentation()
    if shown:
        if not segmentation.GetNumberOfSegments():
            raise InputError(f"{segmentation_node.GetName()} has no segment to show in 3-D.")
        display = display_of(segmentation_node)
        with slicer.util.NodeModify(display):
            segmentation_node.CreateClosedSurfaceRepresentation()
            display.SetPreferredDisplayRepresentationName3D(_SURFACE)
            display.SetPreferredDisplayRepresentationName2D(_LABELMAP)
            display.SetVisibility3D(True)
    elif segmentation.GetSourceRepresentationName() == _SURFACE:
        display_of(segmentation_node).SetVisibility3D(False)
    else:
        segmentation_node.RemoveClosedSurfaceRepresentation()


def display_of(node: Any) -> Any:
    """The display node of a segmentation, made where there was none."""
    node.CreateDefaultDisplayNodes()
    return node.GetDisplayNode()


# --- labels out of nodes ----------------------------------------------------------------------


def kidney_values(segmentation: Any) -> dict[str, int]:
    """Which segments are kidneys, and the label of each; see `labels_image`.

    SNOMED CT: 64033007 kidney, 7771000 left, 24028007 right.
    """
    sides, merged, lesions = {}, {}, {}
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        words = set(re.findall(r"[a-z]+", (segment.GetName() or "").lower()))
        code = segment.GetTerminology()
        if words & {"tumor", "tumour", "cyst"}:
            lesions[segment_id] = 2
        elif words & {"kidney", "kidneys"} or "~SCT^64033007^" in code:
            if "left" in words or "~SCT^7771000^" in code:
                sides[segment_id] = 1
            elif "right" in words or "~SCT^24028007^" in code:
                sides[segment_id] = 2
            else:
                merged[segment_id] = 1
    if sides:
        return sides
    if merged:
        return merged | lesions
    return {segment_id: n for n, segment_id in enumerate(segmentation.GetSegmentIDs(), start=1)}


def _segmentation_labels(node: Any, volume_node: Any) -> sitk.Image:
    segmentation = node.GetSegmentation()
    values = kidney_values(segmentation)
    if not values:
        raise InputError(f"{node.GetName()} has no segment; choose a segmentation with kidneys.")
    ids, numbers = vtk.vtkStringArray(), vtk.vtkIntArray()
    for segment_id, value in values.items():
        ids.InsertNextValue(segment_id)
        numbers.InsertNextValue(value)
    with ExitStack() as after:
        if not segmentation.ContainsRepresentation(_LABELMAP):
            node.CreateBinaryLabelmapRepresentation()
            after.callback(node.RemoveBinaryLabelmapRepresentation)
        merged = slicer.vtkOrientedImageData()
        slicer.vtkSlicerSegmentationsModuleLogic.GenerateMergedLabelmapInReferenceGeometry(
            node, volume_node, ids, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY, merged,
            numbers,
        )  # fmt: skip
        empty = all(_is_empty(segmentation.GetSegment(segment_id)) for segment_id in values)
    grid = world_grid(volume_node)
    voxels = vtk_to_numpy(merged.GetPointData().GetScalars()).reshape(grid.size[::-1])
    if not empty and not voxels.any():
        raise _outside(node, volume_node)
    return grid.placed(voxels.astype(np.uint8))


def _is_empty(segment: Any) -> bool:
    image = segment.GetRepresentation(_LABELMAP)
    scalars = None if image is None else image.GetPointData().GetScalars()
    return scalars is None or not (vtk_to_numpy(scalars) == segment.GetLabelValue()).any()


def _label_map_labels(node: Any, volume_node: Any) -> sitk.Image:
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise InputError(f"{node.GetName()} has no image data; load the label map again.")
    voxels = slicer.util.arrayFromVolume(node)
    with np.errstate(invalid="ignore"):
        whole = voxels.astype(np.uint8)
    if voxels.ndim != 3 or not np.array_equal(whole, voxels):
        raise InputError(
            f"{node.GetName()} holds values that are no labels from 0 to 255; choose a label map "
            "of kidneys."
        )
    labels = world_grid(node).placed(whole)
    grid = world_grid(volume_node)
    target = grid.blank()
    if grid_difference(labels, target) is None:
        return grid.placed(sitk.GetArrayViewFromImage(labels))
    resampled = sitk.Resample(labels, target, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    if voxels.any() and not sitk.GetArrayViewFromImage(resampled).any():
        raise _outside(node, volume_node)
    return resampled


def _outside(node: Any, volume_node: Any) -> InputError:
    return InputError(
        f"Nothing of {node.GetName()} lies within {volume_node.GetName()}; choose what was drawn "
        "on this CT."
    )


def volume_of(*nodes: Any) -> Any:
    """The volume that the first segmentation node that knows one was made on."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    for node in nodes:
        if node is not None and node.GetNodeReference(role) is not None:
            return node.GetNodeReference(role)
    raise InputError("It is not known which CT the segmentation was made on; give the CT, too.")


# --- segments into nodes ----------------------------------------------------------------------


def _layer(labels: sitk.Image, volume_node: Any, segments: Sequence[Segment]) -> Any:
    """The labels as Slicer's image of voxels, cropped, in the volume's local coordinates."""
    grid = world_grid(volume_node)
    difference = grid_difference(labels, grid.blank())
    if difference:
        raise InputError(
            f"{volume_node.GetName()} is no longer the volume that was segmented ({difference}); "
            "segment it again."
        )
    voxels = sitk.GetArrayViewFromImage(labels)
    known = {0, *(segment.label for segment in segments)}
    occupied = [np.flatnonzero(voxels.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    layer = slicer.vtkOrientedImageData()
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    layer.SetGeometryFromImageToWorldMatrix(matrix)
    if not occupied[0].size:
        layer.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)  # of no voxel, but of a type for labels
        return layer
    box = [(int(at[0]), int(at[-1])) for at in occupied]
    crop = voxels[tuple(slice(first, last + 1) for first, last in box)]
    if not set(np.unique(crop).tolist()) <= known:
        raise ValueError(f"The label map has labels that are none of {sorted(known)}.")
    start = volume_node.GetImageData().GetExtent()[::2]
    layer.SetExtent(
        [bound + first for ends, first in zip(reversed(box), start, strict=True) for bound in ends]
    )
    flat = crop.astype(np.uint8).ravel()
    layer.GetPointData().SetScalars(numpy_to_vtk(flat, True, vtk.VTK_UNSIGNED_CHAR))
    return layer


def _replace_segments(node: Any, layer: Any, segments: Sequence[Segment], undo: ExitStack) -> None:
    segmentation = node.GetSegmentation()
    if not segmentation.GetNumberOfSegments():
        segmentation.SetSourceRepresentationName(_LABELMAP)
    for segment in segments:
        existing = segmentation.GetSegment(segment.id)
        if existing is None:
            added = _new_segment(segment, layer)
            segmentation.AddSegment(added, segment.id)
            undo.callback(segmentation.RemoveSegment, segment.id)
            continue
        segmentation.SeparateSegmentLabelmap(segment.id)
        undo.callback(existing.AddRepresentation, _LABELMAP, existing.GetRepresentation(_LABELMAP))
        undo.callback(existing.SetLabelValue, existing.GetLabelValue())
        existing.SetLabelValue(segment.label)
        existing.AddRepresentation(_LABELMAP, layer)
    layer.Modified()


def _new_segment(segment: Segment, layer: Any) -> Any:
    made = slicer.vtkSegment()
    made.SetName(segment.name)
    made.SetNameAutoGenerated(False)
    made.SetTerminology(segment.terminology)  # before the colour, which it suggests
    made.SetColor(segment.color)
    made.SetColorAutoGenerated(False)
    made.SetLabelValue(segment.label)
    made.AddRepresentation(_LABELMAP, layer)
    return made


def _move_below(node: Any, parent: Any, undo: ExitStack) -> None:
    """Put a segmentation under a transform; the segments it has stay in their place."""
    before = node.GetParentTransformNode()
    if before is parent:
        return
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(before, parent, matrix)
    there, back = vtk.vtkTransform(), vtk.vtkTransform()
    there.SetMatrix(matrix)
    matrix.Invert()
    back.SetMatrix(matrix)
    segmentation = node.GetSegmentation()
    if segmentation.GetNumberOfSegments():
        segmentation.ApplyLinearTransform(there)
        undo.callback(segmentation.ApplyLinearTransform, back)
    node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    undo.callback(node.SetAndObserveTransformNodeID, before.GetID() if before is not None else None)


def _file_beside(node: Any, volume_node: Any) -> None:
    """Move a node to the volume's folder (its study) in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    item, volume_item = (hierarchy.GetItemByDataNode(one) for one in (node, volume_node))
    if not volume_item:  # without Slicer's windows nobody files volumes unless a script does
        return
    folder = hierarchy.GetItemParent(volume_item)
    if not item:
        hierarchy.CreateItem(folder, node)
        return
    # Where the user has sorted it into a folder inside of that, it stays.
    above = hierarchy.GetItemParent(item)
    while above not in (folder, hierarchy.GetSceneItemID()):
        above = hierarchy.GetItemParent(above)
    if above != folder:
        hierarchy.SetItemParent(item, folder)
