"""`slicer.app`, the main window and the modules: what Slicer starts before a module is opened."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import slicer

from . import qmrml
from ._pyside import QtCore, QtGui, QtWidgets
from .binding import Proxy, class_of, wrap

Property, Signal, Slot = QtCore.Property, QtCore.Signal, QtCore.Slot


def _kept(kind: Any, name: str, default: Any) -> Any:
    return Property(
        kind,
        lambda self: self.__dict__.get(f"_{name}", default),
        lambda self, value: self.__dict__.__setitem__(f"_{name}", value),
    )


class qSlicerScriptedLoadableModule(QtCore.QObject):
    """Base/QTGUI/qSlicerScriptedLoadableModule.h: `parent` of a module's first class."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._widget: Any = None

    name = Property(str, lambda self: Path(self._path).stem)
    path = Property(str, lambda self: self._path)
    title = _kept(str, "title", "")
    categories = _kept("QStringList", "categories", [])
    contributors = _kept("QStringList", "contributors", [])
    associatedNodeTypes = _kept("QStringList", "associatedNodeTypes", [])
    helpText = _kept(str, "helpText", "")
    acknowledgementText = _kept(str, "acknowledgementText", "")
    icon = _kept(QtGui.QIcon, "icon", QtGui.QIcon())
    hidden = _kept(bool, "hidden", False)
    dependencies = _kept("QStringList", "dependencies", [])
    index = _kept(int, "index", -1)
    widgetRepresentationCreationEnabled = _kept(bool, "widgetRepresentationCreationEnabled", True)
    defaultDocumentationLink = Property(str, lambda self: "")
    isInstalled = Property(bool, lambda self: False)
    isBuiltIn = Property(bool, lambda self: False)

    @Slot(result=object)
    def mrmlScene(self) -> Any:
        return slicer.mrmlScene

    @Slot(result=QtWidgets.QWidget)
    def widgetRepresentation(self) -> Any:
        if self._widget is None:
            self._widget = self._new_widget()
        return self._widget

    @Slot(result=QtWidgets.QWidget)
    def createNewWidgetRepresentation(self) -> Any:
        return self._new_widget()

    def _new_widget(self) -> Any:
        widget = qSlicerScriptedLoadableModuleWidget(self._path)
        widget.setMRMLScene(slicer.mrmlScene)
        widget._start()
        return widget


class qSlicerScriptedLoadableModuleWidget(QtWidgets.QWidget):
    """Base/QTGUI/qSlicerScriptedLoadableModuleWidget.h: `parent` of a module's widget class."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._scene: Any = None
        self._python: Any = None
        self._entered = False
        QtWidgets.QVBoxLayout(self)

    moduleName = Property(str, lambda self: Path(self._path).stem)
    isEntered = Property(bool, lambda self: self._entered)

    def _start(self) -> None:
        name = Path(self._path).stem
        cls = getattr(sys.modules[name], f"{name}Widget")
        self._python = cls(wrap(self))
        setattr(slicer.modules, f"{name}Widget", self._python)
        self._python.setup()

    @Slot()
    def reload(self) -> None:
        self._start()

    @Slot(result=object)
    def self(self) -> Any:
        return self._python

    @Slot(result=object)
    def mrmlScene(self) -> Any:
        return self._scene

    @Slot(object)
    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    @Slot()
    def enter(self) -> None:
        self._entered = True
        if hasattr(self._python, "enter"):
            self._python.enter()

    @Slot()
    def exit(self) -> None:
        self._entered = False
        if hasattr(self._python, "exit"):
            self._python.exit()


class qSlicerModuleManager(QtCore.QObject):
    """Base/QTCore/qSlicerModuleManager.h"""

    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    @Slot(str, result=object)
    def module(self, name: str) -> Any:
        return getattr(slicer.modules, name.lower(), None)

    @Slot(result=object)
    def factoryManager(self) -> Any:
        loaded = [name for name in vars(slicer.modules) if not name.startswith("_")]
        return types.SimpleNamespace(loadedModuleNames=lambda: tuple(loaded))


class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):
    """Base/QTGUI/qSlicerModuleSelectorToolBar.h"""

    moduleSelected = Signal(str)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._selected = ""

    selectedModule = Property(str, lambda self: self._selected)

    @Slot(str)
    def selectModule(self, name: str) -> None:
        module = getattr(slicer.modules, name.lower(), None)
        if module is None:
            raise RuntimeError(f"there is no module {name}")
        self._selected = name
        self.moduleSelected.emit(name)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """Base/QTApp/qSlicerMainWindow.h"""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self._selector = qSlicerModuleSelectorToolBar(self)
        self.addToolBar(self._selector)

    @Slot(result=QtCore.QObject)
    def moduleSelector(self) -> Any:
        return self._selector


class LayoutManager:
    """`slicer.app.layoutManager()` with a window: views without pictures that note what they did.

    Attributes:
        calls: what was asked for, in order.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threeDViewCount = 1

    def sliceViewNames(self) -> tuple[str, ...]:
        return ("Red", "Green", "Yellow")

    def setLayout(self, layout: int) -> None:
        self.calls.append(f"setLayout({layout})")

    def resetSliceViews(self) -> None:
        self.calls.append("resetSliceViews()")

    def resetThreeDViews(self) -> None:
        self.calls.append("resetThreeDViews()")

    def threeDWidget(self, index: int) -> Any:
        if index != 0:
            raise ValueError(f"there is no 3D view {index}")
        view = types.SimpleNamespace(
            resetFocalPoint=lambda: self.calls.append("resetFocalPoint()"),
            resetCamera=lambda: self.calls.append("resetCamera()"),
            forceRender=lambda: self.calls.append("forceRender()"),
        )
        return types.SimpleNamespace(threeDView=lambda: view)


class qSlicerApplication(QtCore.QObject):
    """Base/QTGUI/qSlicerApplication.h: the signals that it adds to those of Qt's application."""

    startupCompleted = Signal()


class Application:
    """`slicer.app`: the batch application of slicerhost, with Qt and, if wanted, a window.

    Attributes:
        restarts: how often the application was asked to restart.
    """

    def __init__(self, batch: Any, window: bool, testing: bool, temporary: str) -> None:
        self._batch = batch
        self._testing = testing
        self._manager = qSlicerModuleManager()
        self._own = qSlicerApplication()
        self._window = qSlicerMainWindow() if window else None
        self._layouts = LayoutManager() if window else None
        self.temporaryPath = temporary
        self.slicerHome = temporary
        self.restarts = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if hasattr(self._batch, name):
            return getattr(self._batch, name)
        return getattr(wrap(QtWidgets.QApplication.instance()), name)

    def connect(self, signal: str, *receiver: Any) -> bool:
        return self._sender(signal).connect(signal, *receiver)

    def disconnect(self, signal: str, *receiver: Any) -> bool:
        return self._sender(signal).disconnect(signal, *receiver)

    def _sender(self, signal: str) -> Any:
        own = signal.partition("(")[0] in vars(qSlicerApplication)
        return wrap(self._own if own else QtWidgets.QApplication.instance())

    def layoutManager(self) -> LayoutManager | None:
        return self._layouts

    def mainWindow(self) -> Any:
        return wrap(self._window)

    def topLevelWidgets(self) -> tuple[Any, ...]:
        return tuple(wrap(widget) for widget in QtWidgets.QApplication.topLevelWidgets())

    def testingEnabled(self) -> bool:
        return self._testing

    def commandOptions(self) -> Any:
        return types.SimpleNamespace(noMainWindow=self._window is None, runPythonAndExit=False)

    def moduleManager(self) -> Proxy:
        return wrap(self._manager)

    def processEvents(self) -> None:
        QtWidgets.QApplication.processEvents()

    def userSettings(self) -> Any:
        return class_of(QtCore.QSettings)()

    settings = userSettings

    def startupEnvironment(self) -> Any:
        return wrap(QtCore.QProcessEnvironment.systemEnvironment())

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"https://example.org/{name}"

    def translate(self, context: str, text: str) -> str:
        return text

    def restart(self) -> None:
        self.restarts += 1


def load_module(path: Path) -> Any:
    """What Slicer does with a scripted module when it starts; returns `slicer.modules.<name>`."""
    name = path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    python = importlib.util.module_from_spec(spec)
    sys.modules[name] = python
    spec.loader.exec_module(python)
    module = wrap(qSlicerScriptedLoadableModule(str(path)))
    setattr(slicer.modules, name.lower(), module)
    setattr(slicer.modules, f"{name}Instance", getattr(python, name)(module))
    if not hasattr(python, f"{name}Widget"):
        module.widgetRepresentationCreationEnabled = False
    return module


def install_widgets() -> None:
    """Put Slicer's widgets where modules look for them: into `slicer`."""
    for name, cls in vars(qmrml).items():
        if name.startswith("qMRML"):
            setattr(slicer, name, class_of(cls))
    for cls in (qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, cls.__name__, class_of(cls))
