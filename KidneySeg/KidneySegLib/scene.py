"""To and from 3D Slicer's scene: volumes out, segmentations in, red and blue on the screen.

Images that leave the scene are in world coordinates, every linear parent transform applied, and in
LPS as ITK has them (Slicer itself uses RAS). Results come back voxel for voxel: nothing is
resampled where a segmentation lies on the volume's own grid. Every check comes before the first
change, so that the scene is as before when something cannot be done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.geometry import grid_difference
from KidneySegLib.reading import oddities
from KidneySegLib.volumes import SHEAR_DEGREES, Volume, shear_degrees
from KidneySegLib.writing import MERGED, SIDES, Segment, atomic

# As in the pictures of `overlay`, from 0 to 1.
REFERENCE_COLOR = (1.0, 45 / 255, 45 / 255)
PREDICTION_COLOR = (70 / 255, 130 / 255, 1.0)
# In 3-D the reference is a shell through which the prediction is seen.
REFERENCE_OPACITY_3D = 0.4
OUTLINE_PIXELS = 2

_LABELMAP = "Binary labelmap"
_SURFACE = "Closed surface"
_REMEMBERED = "KidneySeg.DisplayBeforeComparison"
_STAND_IN_FOR = "KidneySeg.StandInFor"
_OUR_IDS = [segment.id for segment in (*SIDES, *MERGED)]

_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_NODE_DISPLAY = (
    "Visibility", "Visibility2D", "Visibility3D", "Visibility2DFill", "Visibility2DOutline",
    "Opacity", "Opacity2DFill", "Opacity2DOutline", "Opacity3D", "SliceIntersectionThickness",
)  # fmt: skip
_SEGMENT_DISPLAY = (
    "Visibility", "Visibility3D", "Visibility2DFill", "Visibility2DOutline",
    "Opacity3D", "Opacity2DFill", "Opacity2DOutline",
)  # fmt: skip


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
    _world_grid(node)


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
    return _world_grid(node).placed(slicer.util.arrayFromVolume(node))


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
    grid = _world_grid(node)
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
    volume_node = volume_node or _volume_of(segmentation_node, reference_node)
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
            node.CreateDefaultDisplayNodes()
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
        display = _display(segmentation_node)
        with slicer.util.NodeModify(display):
            segmentation_node.CreateClosedSurfaceRepresentation()
            display.SetPreferredDisplayRepresentationName3D(_SURFACE)
            display.SetPreferredDisplayRepresentationName2D(_LABELMAP)
            display.SetVisibility3D(True)
    elif segmentation.GetSourceRepresentationName() == _SURFACE:
        _display(segmentation_node).SetVisibility3D(False)
    else:
        segmentation_node.RemoveClosedSurfaceRepresentation()


# --- red and blue -----------------------------------------------------------------------------


def show_comparison(
    segmentation_node: Any,
    reference_node: Any,
    outline: bool = True,
    fill_opacity: float = 0.3,
) -> None:
    """Show the reference in red and the segmentation in blue, kidneys only.

    How the user had them is remembered in the scene until `hide_comparison`. May be called again
    to change the outline or the opacity. In place of a label map, a segmentation made of it is
    shown until then.

    Parameters
    ----------
    outline
        Draw outlines in the slice views.
    fill_opacity
        Of the filled areas in the slice views, 0 to 1; 0 for none.

    Raises
    ------
    InputError
        See `labels_image`; or both nodes are the same.
    UsageError
        The opacity is not from 0 to 1.
    """
    if not 0 <= fill_opacity <= 1:
        raise UsageError(f"The opacity must be from 0 to 1, not {fill_opacity}; choose another.")
    for node, role in ((segmentation_node, "segmentation"), (reference_node, "reference")):
        if node is None:
            raise InputError(f"No {role} is chosen; choose one to compare.")
    if segmentation_node is reference_node:
        raise InputError(
            f"{reference_node.GetName()} is both the segmentation and the reference; choose "
            "another reference."
        )
    shown = [
        _as_segmentation(node, other)
        for node, other in (
            (segmentation_node, reference_node),
            (reference_node, segmentation_node),
        )
    ]
    for node, color, opacity_3d in (
        (shown[0], PREDICTION_COLOR, 1.0),
        (shown[1], REFERENCE_COLOR, REFERENCE_OPACITY_3D),
    ):
        display = _display(node)
        with slicer.util.NodeModify(display):
            _remember(display, node.GetSegmentation())
            display.SetVisibility(True)
            display.SetVisibility2D(True)
            display.SetVisibility2DOutline(outline)
            display.SetVisibility2DFill(fill_opacity > 0)
            display.SetSliceIntersectionThickness(OUTLINE_PIXELS)
            display.SetOpacity(1.0)
            display.SetOpacity2DOutline(1.0)
            display.SetOpacity2DFill(fill_opacity)
            display.SetOpacity3D(opacity_3d)
            kidneys = _kidney_values(node.GetSegmentation())
            for segment_id in node.GetSegmentation().GetSegmentIDs():
                display.SetSegmentVisibility(segment_id, segment_id in kidneys)
                if segment_id in kidneys:
                    display.SetSegmentOverrideColor(segment_id, *color)
                    display.SetSegmentVisibility2DFill(segment_id, True)
                    display.SetSegmentVisibility2DOutline(segment_id, True)
                    display.SetSegmentVisibility3D(segment_id, True)
                    display.SetSegmentOpacity(segment_id, 1.0)


def hide_comparison(*nodes: Any) -> None:
    """Show nodes as they were before `show_comparison`; those that were not changed stay."""
    for node in nodes:
        if node is None:
            continue
        stand_in = _stand_in(node)
        if stand_in is not None:
            node.GetScene().RemoveNode(stand_in)
        if node.IsA("vtkMRMLSegmentationNode") and node.GetDisplayNode() is not None:
            _restore(node.GetDisplayNode(), node.GetSegmentation())


def comparison_shown(*nodes: Any) -> bool:
    """Whether any of these nodes is shown in the colours of the comparison."""
    return any(
        _stand_in(node) is not None
        or (
            node.IsA("vtkMRMLSegmentationNode")
            and node.GetDisplayNode() is not None
            and node.GetDisplayNode().GetAttribute(_REMEMBERED) is not None
        )
        for node in nodes
        if node is not None
    )


# --- the table --------------------------------------------------------------------------------


class _Column(NamedTuple):
    """One figure of the table; its title is short, since a module's panel is narrow."""

    name: str
    title: str
    unit: str
    decimals: int


COLUMNS = (
    _Column("volume_ml", "Volume", "ml", 2),
    _Column("reference_volume_ml", "Reference volume", "ml", 2),
    _Column("dice", "Dice", "", 4),
    _Column("iou", "IoU", "", 4),
    _Column("mean_surface_distance_mm", "Surface distance", "mm", 2),
    _Column("hausdorff_95_mm", "95 % Hausdorff", "mm", 2),
)

_ROWS = {"left": "Left", "right": "Right", "kidney": "Both"}


def result_rows(
    volumes_ml: Mapping[str, float], comparison: Mapping[str, Any] | None = None
) -> dict[str, dict[str, float | None]]:
    """The rows of `results_table` for one case.

    Parameters
    ----------
    volumes_ml
        "left", "right" and "kidney" (both; their sum where it is left out).
    comparison
        What `compare` gave.

    Example
    -------
    >>> result_rows({"left": 170.0, "right": 150.0})["Both"]
    {'volume_ml': 320.0}
    """
    volumes = dict(volumes_ml)
    volumes.setdefault("kidney", sum(volumes.values()))
    rows = {}
    for key, name in _ROWS.items():
        row: dict[str, float | None] = {"volume_ml": volumes.get(key)}
        if comparison is not None:
            row["reference_volume_ml"] = comparison["volume_ml"]["reference"].get(key)
            for column in COLUMNS[2:]:
                row[column.name] = comparison[column.name].get(key)
        if any(value is not None for value in row.values()):
            rows[name] = row
    return rows


def results_table(
    rows: Mapping[str, Mapping[str, float | None]], table_node: Any = None, scene: Any = None
) -> Any:
    """A table node with a row for each structure, rounded as in `results.csv`.

    Parameters
    ----------
    rows
        From the name of a row to its values by the names of `COLUMNS`; a column that no row has
        a value for is left out, a value that is missing (or None) in a column is NaN.
    table_node
        What to fill anew; None for a new node.
    scene
        Where to make it; the application's by default.

    Returns
    -------
    The vtkMRMLTableNode.
    """
    if table_node is None:
        scene = slicer.mrmlScene if scene is None else scene
        name = scene.GenerateUniqueName("Kidneys")
        table_node = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
    with slicer.util.NodeModify(table_node):
        table_node.RemoveAllColumns()
        names = vtk.vtkStringArray()
        names.SetName("structure")
        for name in rows:
            names.InsertNextValue(name)
        table_node.AddColumn(names)
        table_node.SetColumnTitle("structure", "Structure")
        for column in COLUMNS:
            values = [row.get(column.name) for row in rows.values()]
            if all(value is None for value in values):
                continue
            array = vtk.vtkDoubleArray()
            array.SetName(column.name)
            for value in values:
                array.InsertNextValue(
                    float("nan") if value is None else round(value, column.decimals)
                )
            table_node.AddColumn(array)
            table_node.SetColumnType(column.name, vtk.VTK_DOUBLE)
            table_node.SetColumnTitle(column.name, column.title)
            table_node.SetColumnUnitLabel(column.name, column.unit)
        table_node.SetUseColumnTitleAsColumnHeader(True)
        table_node.SetUseFirstColumnAsRowHeader(True)
    return table_node


# --- geometry ---------------------------------------------------------------------------------

_NRRD_TYPES = {"float32": "float", "float64": "double"}


class _Grid(NamedTuple):
    """A straight grid in world coordinates, LPS, in SimpleITK's order of axes."""

    size: tuple[int, int, int]
    spacing: list[float]
    origin: list[float]
    direction: list[list[float]]

    def placed(self, voxels: np.ndarray) -> sitk.Image:
        """An image of a copy of these voxels (slices, rows, columns as stored)."""
        return self._place(sitk.GetImageFromArray(voxels))

    def blank(self) -> sitk.Image:
        """An image of zeros, uint8."""
        return self._place(sitk.Image(self.size, sitk.sitkUInt8))

    def _place(self, image: sitk.Image) -> sitk.Image:
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection([cosine for row in self.direction for cosine in row])
        return image


def _world_grid(node: Any) -> _Grid:
    """The grid of a volume node with all its parent transforms.

    Axes that are off right angles by the rounding of a header or the residue of a registration
    are straightened, as in files.
    """
    matrix = _LPS_FROM_RAS @ _to_world(node) @ _ijk_to_ras(node)
    off = shear_degrees(matrix[:3, :3])
    if not off <= SHEAR_DEGREES:
        where = "lies under a transform that shears it" if node.GetParentTransformNode() else (
            "has axes that are not at right angles"
        )  # fmt: skip
        raise InputError(
            f"{node.GetName()} {where}; resample it to a straight grid (module Resample "
            "Scalar/Vector/DWI Volume) and choose the result."
        )
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    left, _, right = np.linalg.svd(matrix[:3, :3] / spacing)
    extent = node.GetImageData().GetExtent()
    origin = matrix @ (*extent[::2], 1)
    columns, rows, slices = node.GetImageData().GetDimensions()
    return _Grid(
        (columns, rows, slices), spacing.tolist(), origin[:3].tolist(), (left @ right).tolist()
    )


def _ijk_to_ras(node: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def _to_world(node: Any) -> np.ndarray:
    """The matrix of all parent transforms of a node, in RAS."""
    matrix = vtk.vtkMatrix4x4()
    parent = node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        raise InputError(
            f"{node.GetName()} lies under a transform that is not linear ({parent.GetName()}); "
            "harden it (in the Data module, with a right click on the transform) or remove it."
        )
    if parent is not None:
        parent.GetMatrixTransformToWorld(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


def _nrrd_vector(values: Sequence[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


# --- labels out of nodes ----------------------------------------------------------------------


def _kidney_values(segmentation: Any) -> dict[str, int]:
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
    values = _kidney_values(segmentation)
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
    grid = _world_grid(volume_node)
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
    labels = _world_grid(node).placed(whole)
    grid = _world_grid(volume_node)
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


def _volume_of(*nodes: Any) -> Any:
    """The volume that the first segmentation node that knows one was made on."""
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    for node in nodes:
        if node is not None and node.GetNodeReference(role) is not None:
            return node.GetNodeReference(role)
    raise InputError("It is not known which CT the segmentation was made on; give the CT, too.")


# --- segments into nodes ----------------------------------------------------------------------


def _layer(labels: sitk.Image, volume_node: Any, segments: Sequence[Segment]) -> Any:
    """The labels as Slicer's image of voxels, cropped, in the volume's local coordinates."""
    grid = _world_grid(volume_node)
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


# --- display ----------------------------------------------------------------------------------


def _display(node: Any) -> Any:
    node.CreateDefaultDisplayNodes()
    return node.GetDisplayNode()


def _as_segmentation(node: Any, other: Any) -> Any:
    """The node itself, or for a label map the segmentation that stands for it on the screen."""
    if node.IsA("vtkMRMLSegmentationNode"):
        if not node.GetSegmentation().GetNumberOfSegments():
            raise InputError(f"{node.GetName()} has no segment; choose one with kidneys.")
        return node
    stand_in = _stand_in(node)
    if stand_in is not None:
        return stand_in
    volume_node = _volume_of(other)
    mask = sitk.Cast(labels_image(node, volume_node) > 0, sitk.sitkUInt8)
    stand_in = place_labels(mask, volume_node, segments=MERGED)
    stand_in.SetName(f"{node.GetName()} (comparison)")
    stand_in.SetNodeReferenceID(_STAND_IN_FOR, node.GetID())
    return stand_in


def _stand_in(node: Any) -> Any:
    scene = node.GetScene()
    for other in slicer.util.getNodesByClass("vtkMRMLSegmentationNode", scene) if scene else ():
        if other.GetNodeReference(_STAND_IN_FOR) is node:
            return other
    return None


def _remember(display: Any, segmentation: Any) -> None:
    """Keep in the display node how it is, unless it is kept there already."""
    text = display.GetAttribute(_REMEMBERED)
    kept = json.loads(text) if text else {"node": {}, "segments": {}}
    if not kept["node"]:
        kept["node"] = {name: getattr(display, f"Get{name}")() for name in _NODE_DISPLAY}
    for segment_id in segmentation.GetSegmentIDs():
        if segment_id not in kept["segments"]:
            values = {
                name: getattr(display, f"GetSegment{name}")(segment_id) for name in _SEGMENT_DISPLAY
            }
            override = display.GetSegmentOverrideColor(segment_id)
            values["OverrideColor"] = [override[axis] for axis in range(3)]
            kept["segments"][segment_id] = values
    display.SetAttribute(_REMEMBERED, json.dumps(kept))


def _restore(display: Any, segmentation: Any) -> None:
    text = display.GetAttribute(_REMEMBERED)
    if not text:
        return
    kept = json.loads(text)
    with slicer.util.NodeModify(display):
        for name, value in kept["node"].items():
            getattr(display, f"Set{name}")(value)
        for segment_id in segmentation.GetSegmentIDs():
            values = kept["segments"].get(segment_id)
            if values is None:  # came meanwhile
                continue
            for name in _SEGMENT_DISPLAY:
                getattr(display, f"SetSegment{name}")(segment_id, values[name])
            display.SetSegmentOverrideColor(segment_id, *values["OverrideColor"])
        display.RemoveAttribute(_REMEMBERED)
