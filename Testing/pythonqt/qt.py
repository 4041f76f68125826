"""The module `qt` as Slicer has it: Qt's classes, all in one module, as PythonQt shows them."""

from __future__ import annotations

from typing import Any

from . import names
from ._pyside import QtCore, QtGui, QtUiTools, QtWidgets
from .binding import class_of


def __getattr__(name: str) -> Any:
    if name == "Qt":
        return QtCore.Qt
    if name == "QUiLoader":
        from .uiloader import QUiLoader

        return class_of(QUiLoader)
    if name in names.CLASSES:
        for module in (QtCore, QtGui, QtWidgets, QtUiTools):
            if hasattr(module, name):
                return class_of(getattr(module, name))
    raise AttributeError(f"the stand-in's module qt has no '{name}'")
