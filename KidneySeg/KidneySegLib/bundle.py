"""A CT and its kidneys as one `.mrb`, which 3D Slicer opens with a double click.

Works inside 3D Slicer, in its own scene, and in plain Python with the package `slicer-core`, which
brings Slicer's scene without the application. The scene is emptied before and after each bundle.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import KidneySegError, UsageError
from KidneySegLib.writing import SIDES, Segment, asked_for, atomic

if TYPE_CHECKING:
    from KidneySegLib.reading import Scan

# What abdominal CTs are read at, in HU.
_WINDOW_HU, _LEVEL_HU = 400.0, 40.0

_kept: list[Any] = []  # what a scene made here uses but does not own


def write_bundle(
    scan: Scan, labels: sitk.Image, path: Path | str, segments: Sequence[Segment] = SIDES
) -> None:
    """Write a CT and its segmentation as a scene of 3D Slicer.

    Whatever the scene of a running Slicer holds is closed.

    Parameters
    ----------
    labels
        3-D uint8 on the CT's grid.
    segments
        What the labels mean.

    Raises
    ------
    UsageError
        Neither 3D Slicer nor `slicer-core` is here.
    KidneySegError
        The folder cannot be written to or the disk is full; nothing has changed then.
    """
    path = Path(path)
    slicer = start_scene()
    slicer.mrmlScene.Clear(False)
    try:
        from KidneySegLib.scene import place_labels

        volume = _add_volume(slicer, scan)
        place_labels(labels, volume, segments=segments)
        _show(slicer, volume, labels)
        with atomic(path) as temporary:
            # The scene inside a bundle is called after its file, so the name must be final.
            folder = Path(tempfile.mkdtemp(dir=temporary.parent, prefix=".bundle-"))
            try:
                file = folder / asked_for(path).name
                _save(slicer, file, asked_for(path))
                os.replace(file, temporary)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        slicer.mrmlScene.Clear(False)


def start_scene() -> types.ModuleType:
    """The module `slicer` with a scene: that of the application, or one made for this process.

    Raises
    ------
    UsageError
        Neither 3D Slicer nor `slicer-core` is here.
    """
    try:
        import slicer
        import slicer.util
        import vtk
    except ImportError as error:
        raise UsageError(
            "An .mrb needs 3D Slicer; run this script in Slicer, or install the Python package "
            "slicer-core (Python 3.11 or later)."
        ) from error
    module: types.ModuleType = slicer
    if getattr(slicer, "mrmlScene", None) is not None:
        return module
    if not hasattr(slicer, "vtkMRMLScene"):
        raise UsageError(
            "Another Python package is called slicer too; uninstall it and install slicer-core."
        )
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    # Base classes of nodes are made known by the application's logic, others by their module's.
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    _kept.append(application)
    for name, logic in (
        ("SubjectHierarchy", slicer.vtkSlicerSubjectHierarchyModuleLogic()),
        ("Segmentations", slicer.vtkSlicerSegmentationsModuleLogic()),
        ("Volumes", slicer.vtkSlicerVolumesLogic()),
    ):
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        _kept.append(logic)
    return module


def _add_volume(slicer: types.ModuleType, scan: Scan) -> Any:
    """The CT as a volume node, voxel for voxel."""
    image = scan.image
    to_ras = np.eye(4)
    to_ras[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    to_ras[:3, 3] = image.GetOrigin()
    to_ras[:2] *= -1.0  # from LPS
    volume = slicer.util.addVolumeFromArray(
        sitk.GetArrayViewFromImage(image), ijkToRAS=to_ras, name=scan.name
    )
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(_WINDOW_HU, _LEVEL_HU)
    return volume


def _show(slicer: types.ModuleType, volume: Any, labels: sitk.Image) -> None:
    """The CT in the three slice views, at the middle of the kidneys."""
    found = sitk.LabelShapeStatisticsImageFilter()
    found.Execute(labels > 0)
    if found.HasLabel(1):
        x, y, z = found.GetCentroid(1)
    else:
        x, y, z = labels.TransformContinuousIndexToPhysicalPoint(
            [(size - 1) / 2 for size in labels.GetSize()]
        )
    scene = slicer.mrmlScene
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(scene)
        view = scene.GetSingletonNode(name, "vtkMRMLSliceNode")
        if view is None:
            view = logic.AddSliceNode(name)
        else:
            logic.SetSliceNode(view)
        view.SetOrientation(orientation)
        logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        logic.FitSliceToBackground(*view.GetDimensions()[:2])
        view.JumpSlice(-x, -y, z)  # from LPS


def _save(slicer: types.ModuleType, file: Path, path: Path) -> None:
    messages = slicer.vtkMRMLMessageCollection()
    if not slicer.mrmlScene.WriteToMRB(str(file), None, messages) or not file.is_file():
        said = " ".join(messages.GetAllMessagesAsString().split())
        raise KidneySegError(
            f"{path} cannot be written, {said or 'the disk may be full or not writable'}; "
            "free some space and run again."
        )
