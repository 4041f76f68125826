"""What Slicer's views show, drawn into memory by its own displayable managers.

In Slicer the widgets of the views put these parts together; here they are put together without
widgets. The picture is the same: a slice as a radiologist looks at it, and a 3-D view.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import slicerhost

_TRY = """
import vtk
renderer = vtk.vtkRenderer()
renderer.SetBackground(1, 0, 0)
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(True)
window.SetSize(8, 8)
window.AddRenderer(renderer)
window.Render()
grab = vtk.vtkWindowToImageFilter()
grab.SetInput(window)
grab.Update()
print(grab.GetOutput().GetScalarComponentAsDouble(4, 4, 0, 0))
"""


@functools.cache
def why_not() -> str:
    """The reason why nothing can be drawn here, or nothing."""
    if slicerhost.why_not():
        return slicerhost.why_not()
    slicerhost.draw_into_memory()
    # In a process of its own: without the libraries VTK may bring it down.
    tried = subprocess.run([sys.executable, "-c", _TRY], capture_output=True, text=True)
    drawn = tried.stdout.strip() == "255.0"
    return "" if drawn else "OpenGL cannot draw into memory here (EGL is missing)"


class _View:
    """A window in memory in which one displayable manager draws for a view node."""

    def __init__(
        self, node: Any, factory: Any, manager: str, size: tuple[int, int], behind: Any = None
    ) -> None:
        """Args: behind: a 2-D actor drawn before what the displayable manager draws."""
        import vtk

        self.node = node
        self.size = size
        self.renderer = vtk.vtkRenderer()
        if behind is not None:
            self.renderer.AddViewProp(behind)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(True)
        self._window.SetMultiSamples(0)
        self._window.SetSize(*size)
        self._window.AddRenderer(self.renderer)
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        if not factory.IsDisplayableManagerRegistered(manager):
            factory.RegisterDisplayableManager(manager)
        self._group = factory.InstantiateDisplayableManagers(self.renderer)
        self._group.SetMRMLDisplayableNode(node)

    def picture(self) -> np.ndarray:
        """uint8 array (rows, columns, RGB), the first row on top."""
        import vtk
        from vtk.util.numpy_support import vtk_to_numpy

        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        columns, rows, _ = grab.GetOutput().GetDimensions()
        pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        return pixels.reshape(rows, columns, -1)[::-1, :, :3].copy()

    def close(self) -> None:
        self._group.SetMRMLDisplayableNode(None)
        self._group = None
        self._interactor.SetRenderWindow(None)
        self._window.Finalize()


class AxialView(_View):
    """An axial slice view of a CT and all segmentations."""

    def __init__(self, volume_node: Any, size: tuple[int, int] = (400, 400)) -> None:
        """Args: size: columns and rows of the picture."""
        slicer = slicerhost.boot()
        import vtk

        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(slicer.mrmlScene)
        # Not one of the views that a scene loaded earlier may have left: those outlive it.
        node = self._logic.AddSliceNode("Picture")
        slicer.app.applicationLogic().GetSliceLogics().AddItem(self._logic)
        node.SetOrientationToAxial()
        self._logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume_node.GetID())
        self._logic.ResizeSliceNode(*size)
        self._logic.FitSliceToBackground(*size)
        mapper = vtk.vtkImageMapper()
        mapper.SetInputConnection(self._logic.GetImageDataConnection())
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        background = vtk.vtkActor2D()
        background.SetMapper(mapper)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        manager = "vtkMRMLSegmentationsDisplayableManager2D"
        super().__init__(node, factory, manager, size, background)

    def show(self, world_ras: Sequence[float], width_mm: float | None = None) -> np.ndarray:
        """The picture of the slice through a point; with a width, the point is in the middle."""
        if width_mm is not None:
            columns, rows = self.size
            self.node.SetFieldOfView(width_mm, width_mm * rows / columns, 1)
            self.node.JumpSliceByCentering(*world_ras)
        self.node.JumpSliceByOffsetting(*world_ras)
        return self.picture()

    def place(self, world_ras: Sequence[float]) -> tuple[int, int]:
        """Row and column of the picture at which a point is seen."""
        import vtk

        to_xy = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), to_xy)
        x, y = to_xy.MultiplyPoint((*world_ras, 1))[:2]
        return self.size[1] - 1 - round(y), round(x)

    def close(self) -> None:
        super().close()
        slicer = slicerhost.boot()
        slicer.app.applicationLogic().GetSliceLogics().RemoveItem(self._logic)
        composite = self._logic.GetSliceCompositeNode()
        self._logic.SetMRMLScene(None)
        slicer.mrmlScene.RemoveNode(composite)
        slicer.mrmlScene.RemoveNode(self.node)


class FrontView(_View):
    """A 3-D view of the patient from the front, head up, of all that is shown in 3-D."""

    def __init__(self, size: tuple[int, int] = (400, 400)) -> None:
        """Args: size: columns and rows of the picture."""
        slicer = slicerhost.boot()

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode")
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        super().__init__(node, factory, "vtkMRMLSegmentationsDisplayableManager3D", size)
        # The background of Slicer's 3-D views.
        self.renderer.SetBackground(0.757, 0.765, 0.910)
        self.renderer.SetBackground2(0.455, 0.471, 0.745)
        self.renderer.GradientBackgroundOn()

    def show(self) -> np.ndarray:
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(0, 1, 0)
        camera.SetViewUp(0, 0, 1)
        self.picture()  # the surfaces are taken from the scene only now
        self.renderer.ResetCamera()
        return self.picture()
