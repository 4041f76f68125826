"""A segmentation and its reference on 3D Slicer's screen in blue and red, and back again."""

from __future__ import annotations

import json
from typing import Any

import SimpleITK as sitk
import slicer

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.scene import display_of, kidney_values, labels_image, place_labels, volume_of
from KidneySegLib.writing import MERGED

# As in the pictures of `overlay`, from 0 to 1.
REFERENCE_COLOR = (1.0, 45 / 255, 45 / 255)
PREDICTION_COLOR = (70 / 255, 130 / 255, 1.0)
# In 3-D the reference is a shell through which the prediction is seen.
REFERENCE_OPACITY_3D = 0.4
OUTLINE_PIXELS = 2

_REMEMBERED = "KidneySeg.DisplayBeforeComparison"
_STAND_IN_FOR = "KidneySeg.StandInFor"

_NODE_DISPLAY = (
    "Visibility", "Visibility2D", "Visibility3D", "Visibility2DFill", "Visibility2DOutline",
    "Opacity", "Opacity2DFill", "Opacity2DOutline", "Opacity3D", "SliceIntersectionThickness",
)  # fmt: skip
_SEGMENT_DISPLAY = (
    "Visibility", "Visibility3D", "Visibility2DFill", "Visibility2DOutline",
    "Opacity3D", "Opacity2DFill", "Opacity2DOutline",
)  # fmt: skip


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
        display = display_of(node)
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
            kidneys = kidney_values(node.GetSegmentation())
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


def _as_segmentation(node: Any, other: Any) -> Any:
    """The node itself, or for a label map the segmentation that stands for it on the screen."""
    if node.IsA("vtkMRMLSegmentationNode"):
        if not node.GetSegmentation().GetNumberOfSegments():
            raise InputError(f"{node.GetName()} has no segment; choose one with kidneys.")
        return node
    stand_in = _stand_in(node)
    if stand_in is not None:
        return stand_in
    volume_node = volume_of(other)
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
