"""A strict stand-in for Slicer's window: qt, ctk and what of `slicer` needs them. See README.md.

    with pythonqt.session(tmp_path) as slicer_window:
        module = slicer_window.open("KidneySeg/KidneySeg.py")
        module.ui.applyButton.click()
        slicer_window.wait_until(lambda: ...)

The session fails where an exception was raised in a slot, a dialog came unexpectedly or did not
come, or Qt complained.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Session", "session", "why_not"]

# Qt's messages that tell about the place where the tests run, not about the module.
_HARMLESS = ("propagateSizeHints", "This plugin supports grabbing", "fontconfig", "QFontDatabase")


def why_not() -> str:
    """The reason why the stand-in cannot work here, or nothing."""
    import slicerhost

    if importlib.util.find_spec("PySide6") is None:
        return "PySide6-Essentials is not installed"
    return slicerhost.why_not()


class Session:
    """A started Slicer without its pictures.

    Attributes:
        dialogs: what the user answers; see dialogs.Dialogs.
        packages: what is installed; see packages.Packages.
        complaints: what Qt printed.
    """

    def __init__(self, slicer: Any, folder: Path, window: bool, testing: bool) -> None:
        from . import application, dialogs, packages

        self.slicer = slicer
        self.dialogs = dialogs.Dialogs()
        self.packages = packages.Packages()
        self.complaints: list[str] = []
        self.application = application.Application(slicer.app, window, testing, str(folder))
        self._modules: list[Any] = []

    def load(self, path: str | Path) -> Any:
        """What Slicer does with a scripted module when it starts; returns the module."""
        from . import application

        module = application.load_module(Path(path).resolve())
        self._modules.append(module)
        return module

    def open(self, path: str | Path) -> Any:
        """Load a module, make its window, show it and enter it; returns the module's widget."""
        representation = self.load(path).widgetRepresentation()
        representation.resize(480, 900)
        representation.show()
        representation.enter()
        self.process()
        return representation.self()

    def process(self) -> None:
        """Let Qt do what is waiting."""
        from ._pyside import QtCore, QtWidgets

        QtWidgets.QApplication.processEvents()
        QtWidgets.QApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)

    def wait_until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        """Let the window live until something is true; raises AssertionError when it never is."""
        end = time.monotonic() + seconds
        while not true():
            self.process()
            assert time.monotonic() < end, "this never happened"
            time.sleep(0.01)

    def choose(self, box: Any, text: str) -> None:
        """Choose an entry of a list: of a combo box, or of a node selector with its actions."""
        if hasattr(box._qt, "choose"):
            box._qt.choose(text)
        else:
            row = box._qt.findText(text)
            assert row >= 0, f"the list has no '{text}'"
            box._qt.setCurrentIndex(row)
            box._qt.activated.emit(row)
        self.process()

    def type_text(self, line: Any, text: str) -> None:
        """Type into a line, as a user does: the text is replaced."""
        line.selectAll()
        line._qt.insert(text)
        line._qt.editingFinished.emit()
        self.process()

    def screenshot(self, widget: Any, path: str | Path) -> None:
        """Write a picture of a widget as it looks."""
        self.process()
        if not widget._qt.grab().save(str(path)):
            raise OSError(f"could not write {path}")

    def check(self) -> None:
        """Raise what went wrong where nobody could catch it."""
        from . import binding

        problems, binding.uncaught[:] = list(binding.uncaught), []
        if problems:
            raise problems[0]
        self.dialogs.check()
        assert not self.complaints, f"Qt complained: {self.complaints}"

    def quit(self) -> None:
        """File > Exit."""
        from ._pyside import QtWidgets

        QtWidgets.QApplication.instance().aboutToQuit.emit()
        self.close()

    def close(self) -> None:
        """Unload the modules, as Slicer does when it ends."""
        from . import binding
        from ._pyside import QtWidgets

        for module in reversed(self._modules):
            name = module.name
            self.application._manager.moduleAboutToBeUnloaded.emit(name)
            if module._qt._widget is not None:
                module._qt._widget.deleteLater()
            for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
                if hasattr(self.slicer.modules, attribute):
                    delattr(self.slicer.modules, attribute)
            sys.modules.pop(name, None)
        self._modules.clear()
        if self.application._window is not None:
            self.application._window.deleteLater()
            self.application._window = None
        self.process()
        binding.disconnect_all(QtWidgets.QApplication.instance())


@contextmanager
def session(folder: Path, window: bool = True, testing: bool = False) -> Iterator[Session]:
    """Start everything, and take it away again.

    Args:
        folder: for temporary files and settings.
        window: False for Slicer with --no-main-window.
        testing: True for Slicer with --testing, where dialogs answer themselves.
    """
    import slicerhost

    slicer: Any = slicerhost.boot()
    from . import application, binding, ctk, dialogs, i18n, parameternode, qt, scripted
    from ._pyside import QtCore, QtWidgets

    qapplication = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    qapplication.setQuitOnLastWindowClosed(False)
    _prepare(qapplication, folder)
    names = {
        "qt": qt,
        "ctk": _module_of("ctk", ctk),
        "slicer.ScriptedLoadableModule": scripted,
        "slicer.parameterNodeWrapper": parameternode,
        "slicer.i18n": i18n,
    }
    before = {name: sys.modules.get(name) for name in [*names, "slicer.packaging"]}
    attributes = ("ScriptedLoadableModule", "parameterNodeWrapper", "i18n", "packaging", "app")
    had = {name: vars(slicer)[name] for name in attributes if name in vars(slicer)}
    path, hook = list(sys.path), sys.excepthook
    made = Session(slicer, folder, window, testing)
    packaging: Any = made.packages
    binding.uncaught.clear()
    dialogs.install(made.dialogs)
    application.install_widgets()
    sys.modules.update({**names, "slicer.packaging": packaging})
    for name in names:
        if name.startswith("slicer."):
            setattr(slicer, name.partition(".")[2], sys.modules[name])
    slicer.packaging, slicer.app = packaging, made.application

    def complain(kind: Any, context: Any, message: str) -> None:
        if not any(part in message for part in _HARMLESS):
            made.complaints.append(message)

    def uncaught(kind: type, problem: BaseException, trace: Any) -> None:
        hook(kind, problem, trace)  # VTK prints what an observer raises, and goes on
        binding.uncaught.append(problem)

    QtCore.qInstallMessageHandler(complain)
    sys.excepthook = uncaught
    try:
        yield made
        made.close()
        slicer.mrmlScene.Clear(False)
        made.check()
    finally:
        made.close()
        QtCore.qInstallMessageHandler(None)
        sys.excepthook = hook
        sys.path[:] = path
        slicer.mrmlScene.Clear(False)
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
        for name in attributes:
            if name in had:
                setattr(slicer, name, had[name])
            elif hasattr(slicer, name):
                delattr(slicer, name)


def _module_of(name: str, source: types.ModuleType) -> types.ModuleType:
    from .binding import class_of

    module = types.ModuleType(name)
    for found, value in vars(source).items():
        if found.startswith(name) and isinstance(value, type):
            setattr(module, found, class_of(value))
    return module


def _prepare(qapplication: Any, folder: Path) -> None:
    """Settings in a folder of the test's own, and letters on every machine."""
    from ._pyside import QtCore, QtGui

    settings = QtCore.QSettings
    settings.setDefaultFormat(settings.Format.IniFormat)
    settings.setPath(settings.Format.IniFormat, settings.Scope.UserScope, str(folder / "settings"))
    qapplication.setOrganizationName("NA-MIC")
    qapplication.setApplicationName("Slicer")
    qapplication.setStyle("Fusion")
    if QtGui.QFont().family() != "DejaVu Sans":
        # Without fonts the offscreen platform draws boxes; matplotlib brings one along.
        import matplotlib

        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        for style in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"):
            QtGui.QFontDatabase.addApplicationFont(str(fonts / style))
        qapplication.setFont(QtGui.QFont("DejaVu Sans", 9))
