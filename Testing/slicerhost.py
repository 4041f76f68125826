"""3D Slicer in batch, without Slicer: the wheel `slicer-core` made to look like
`Slicer --no-main-window --python-script`.

The wheel holds Slicer's own C++ classes (scene, nodes, module logics, displayable managers) and
`slicer.util`, but nobody starts them. `boot` does: afterwards `slicer.mrmlScene`, `slicer.app`,
`slicer.modules.<name>.logic()` and `slicer.util`'s functions to load and save work as in Slicer.
Not there, as in the wheel: qt, ctk, ScriptedLoadableModule, parameterNodeWrapper, the terminology
files.

    import slicerhost
    slicer = slicerhost.boot()
    node = slicer.util.loadVolume("ct.nii.gz")
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

# As `slicer.modules` names them: the class of the logic and its name in the application logic.
MODULES = {
    "cameras": ("vtkSlicerCamerasModuleLogic", "Cameras"),
    "colors": ("", "Colors"),  # made by the application logic itself
    "cropvolume": ("vtkSlicerCropVolumeLogic", "CropVolume"),
    "data": ("vtkSlicerDataModuleLogic", "Data"),
    "markups": ("vtkSlicerMarkupsLogic", "Markups"),
    "models": ("vtkSlicerModelsLogic", "Models"),
    "segmentations": ("vtkSlicerSegmentationsModuleLogic", "Segmentations"),
    "sequences": ("vtkSlicerSequencesLogic", "Sequences"),
    "subjecthierarchy": ("vtkSlicerSubjectHierarchyModuleLogic", "SubjectHierarchy"),
    "tables": ("vtkSlicerTablesLogic", "Tables"),
    "terminologies": ("vtkSlicerTerminologiesModuleLogic", "Terminologies"),
    "transforms": ("vtkSlicerTransformLogic", "Transforms"),
    "units": ("vtkSlicerUnitsLogic", "Units"),
    "volumerendering": ("vtkSlicerVolumeRenderingLogic", "VolumeRendering"),
    "volumes": ("vtkSlicerVolumesLogic", "Volumes"),
}

# What Slicer's classes reported as errors, one text each, since `clear` was called last.
errors: list[str] = []

_FILE_TYPES = {
    ".seg.nrrd": "SegmentationFile",
    ".mrb": "SceneFile",
    ".mrml": "SceneFile",
    ".csv": "TableFile",
    ".tsv": "TableFile",
    ".h5": "TransformFile",
    ".tfm": "TransformFile",
    ".vtp": "ModelFile",
    ".stl": "ModelFile",
}

_kept: list[Any] = []  # objects that the scene uses but does not own


def why_not() -> str:
    """The reason why `boot` cannot work here, or nothing."""
    if importlib.util.find_spec("slicer") is None:
        return "slicer-core is not installed (it needs Python 3.11 or later)"
    if importlib.util.find_spec("slicer_core") is None:
        return "the installed package 'slicer' is not that of slicer-core"
    return ""


def boot() -> types.ModuleType:
    """Start what the wheel holds, once; returns the module `slicer`.

    Raises ImportError where `why_not` gives a reason.
    """
    reason = why_not()
    if reason:
        raise ImportError(reason)
    draw_into_memory()
    import slicer
    import slicer.util

    if getattr(slicer, "mrmlScene", None) is not None:
        return slicer
    _hide_what_slicer_lacks(slicer)
    _collect_errors()
    slicer.mrmlScene = slicer.vtkMRMLScene()
    cache = tempfile.mkdtemp(prefix="slicerhost-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    _start_remote_io(slicer, cache)
    logic = slicer.vtkSlicerApplicationLogic()
    _start_modules(slicer, logic)
    slicer.app = Application(slicer, logic, cache)
    atexit.register(_stop, slicer)
    _kept[0].SetDisplayModeToAlwaysStdErr()
    errors.clear()
    return slicer


def draw_into_memory() -> None:
    """Have what is rendered rendered by EGL, which needs no display."""
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


def clear(slicer: types.ModuleType) -> None:
    """File > Close Scene; forgets the errors so far."""
    slicer.mrmlScene.Clear(False)
    errors.clear()


def add_volume(image: Any, name: str = "CT", kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    """A volume node of a SimpleITK image, as loading its file would give."""
    import numpy as np
    import SimpleITK as sitk

    slicer = boot()
    to_lps = np.eye(4)
    to_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    to_lps[:3, 3] = image.GetOrigin()
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ to_lps
    voxels = sitk.GetArrayFromImage(image)
    node = slicer.util.addVolumeFromArray(voxels, ijkToRAS=to_ras, name=name, nodeClassName=kind)
    node.CreateDefaultDisplayNodes()
    return node


class Module:
    """What `slicer.modules.<name>` is, as far as scripts use it in batch."""

    def __init__(self, name: str, logic: Any) -> None:
        self.name = name
        self._logic = logic

    def logic(self) -> Any:
        return self._logic


class Application:
    """What `slicer.app` is, as far as scripts use it in batch."""

    applicationName = "Slicer"
    majorVersion, minorVersion, revision = 5, 12, "0"

    def __init__(self, slicer: types.ModuleType, logic: Any, folder: str) -> None:
        self._slicer = slicer
        self._logic = logic
        self._files = Files(slicer)
        self.temporaryPath = folder

    def applicationLogic(self) -> Any:
        return self._logic

    def mrmlScene(self) -> Any:
        return self._slicer.mrmlScene

    def coreIOManager(self) -> Files:
        return self._files

    def ioManager(self) -> Files:
        return self._files

    def layoutManager(self) -> None:
        """None, as in Slicer with --no-main-window."""

    def mainWindow(self) -> None:
        """None, as in Slicer with --no-main-window."""

    def testingEnabled(self) -> bool:
        return True

    def commandOptions(self) -> Any:
        return types.SimpleNamespace(noMainWindow=True, runPythonAndExit=False)

    def moduleManager(self) -> Any:
        return types.SimpleNamespace(
            module=lambda name: getattr(self._slicer.modules, name.lower(), None)
        )

    def processEvents(self, flags: int = 0) -> None:
        """There is no event loop."""

    def pauseRender(self) -> None:
        """There is nothing that renders by itself."""

    def resumeRender(self) -> None:
        """There is nothing that renders by itself."""

    def exit(self, code: int = 0) -> None:
        sys.exit(code)


class Files:
    """What `slicer.app.coreIOManager()` is, as far as `slicer.util` uses it to load and save."""

    def __init__(self, slicer: types.ModuleType) -> None:
        self._slicer = slicer

    def fileType(self, path: str) -> str:
        name = str(path).lower()
        known = (kind for suffix, kind in _FILE_TYPES.items() if name.endswith(suffix))
        return next(known, "VolumeFile")

    def loadNodes(self, kind: str, properties: dict, loaded: Any, messages: Any = None) -> bool:
        path = str(properties["fileName"])
        if not os.path.exists(path):
            return False
        if kind == "SceneFile":
            return self._load_scene(path, bool(properties.get("clear", False)))
        node = self._load_node(kind, path, properties)
        if node is not None:
            loaded.AddItem(node)
        return node is not None

    def _load_node(self, kind: str, path: str, properties: dict) -> Any:
        modules = self._slicer.modules
        name = properties.get("name") or Path(path).name.split(".")[0]
        if kind == "VolumeFile":
            # The bits of vtkSlicerVolumesLogic's loading options.
            options = 8 * bool(properties.get("autoWindowLevel", True))
            options |= bool(properties.get("labelmap")) | 4 * bool(properties.get("singleFile"))
            return modules.volumes.logic().AddArchetypeVolume(path, name, options)
        if kind == "SegmentationFile":
            node = modules.segmentations.logic().LoadSegmentationFromFile(path, True, name)
            if node is not None:
                node.CreateDefaultDisplayNodes()
            return node
        if kind == "TableFile":
            return modules.tables.logic().AddTable(path, name)
        if kind == "TransformFile":
            return modules.transforms.logic().AddTransform(path, self._slicer.mrmlScene)
        if kind == "ModelFile":
            return modules.models.logic().AddModel(path)
        raise ValueError(f"No reader for {kind}.")

    def _load_scene(self, path: str, clear: bool) -> bool:
        scene = self._slicer.mrmlScene
        if path.lower().endswith(".mrb"):
            return bool(scene.ReadFromMRB(path, clear))
        scene.SetURL(path)
        return bool(scene.Connect() if clear else scene.Import())

    def fileWriterFileType(self, node: Any) -> str:
        return "NodeFile"

    def saveNodes(self, kind: str, properties: dict, messages: Any = None) -> bool:
        scene, path = self._slicer.mrmlScene, str(properties["fileName"])
        if kind == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(scene.WriteToMRB(path, None, messages))
            return bool(scene.Commit(path))
        node = scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(properties["useCompression"])
        written = bool(storage.WriteData(node))
        if messages is not None:
            messages.AddMessages(storage.GetUserMessages())
        return written


def _hide_what_slicer_lacks(slicer: types.ModuleType) -> None:
    """The wheel has `slicer.loadVolume` and the like; in Slicer they are in `slicer.util` only."""
    for name, value in list(vars(slicer.util).items()):
        if getattr(value, "__module__", "") == "slicer.util" and vars(slicer).get(name) is value:
            delattr(slicer, name)


def _collect_errors() -> None:
    import vtk

    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)  # each would be printed twice
    window = vtk.vtkOutputWindow()
    window.SetDisplayModeToNever()  # the terminologies miss their files when they start

    @vtk.calldata_type(vtk.VTK_STRING)
    def remember(caller: Any, event: str, text: str) -> None:
        errors.append(text.strip())

    window.AddObserver("ErrorEvent", remember)
    vtk.vtkOutputWindow.SetInstance(window)
    _kept.append(window)


def _start_remote_io(slicer: types.ModuleType, cache: str) -> None:
    """Without it the scene can write a .mrb but not read it back."""
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.GetCacheManager().SetRemoteCacheDirectory(cache)
    remote.SetMRMLScene(slicer.mrmlScene)
    remote.AddDataIOToScene()
    _kept.append(remote)


def _start_modules(slicer: types.ModuleType, application: Any) -> None:
    import vtk

    scene = slicer.mrmlScene
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    for factory in (
        slicer.vtkMRMLSliceViewDisplayableManagerFactory,
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
    ):
        factory.GetInstance().SetMRMLApplicationLogic(application)
    modules = types.ModuleType("slicer.modules")
    slicer.modules = modules
    sys.modules["slicer.modules"] = modules
    for attribute, (kind, name) in MODULES.items():
        logic = getattr(slicer, kind)() if kind else application.GetColorLogic()
        logic.SetMRMLApplicationLogic(application)
        if kind:
            logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        setattr(modules, attribute, Module(name, logic))
    scene.RegisterNodeClass(slicer.vtkMRMLCommandLineModuleNode())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)


def _stop(slicer: types.ModuleType) -> None:
    """Empty the scene while Python is still there to be told about it."""
    slicer.mrmlScene.Clear(True)
