"""PySide6, started the way the stand-in needs it. Import this before anything of PySide6."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from typing import Any

# PythonQt's enumerators are numbers; PySide6's are only where this is set before its import.
if "PySide6" in sys.modules and os.environ.get("PYSIDE6_OPTION_PYTHON_ENUM") != "0x02":
    raise ImportError("import pythonqt before PySide6: its enumerators must be numbers")
os.environ["PYSIDE6_OPTION_PYTHON_ENUM"] = "0x02"
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


def _protect_singletons() -> None:
    """Keep None, True and False alive on Python 3.10 and 3.11.

    PySide6's wheels return them as Python 3.12 and later allow, without counting the reference.
    Older Pythons count, reach zero after some thousand calls and abort.
    """
    if sys.version_info < (3, 12):
        for single in (None, True, False):
            ctypes.c_ssize_t.from_address(id(single)).value += 1 << 40


_protect_singletons()

# As Any: the stand-in works by names that no type checker can follow.
QtCore: Any = importlib.import_module("PySide6.QtCore")
QtGui: Any = importlib.import_module("PySide6.QtGui")
QtUiTools: Any = importlib.import_module("PySide6.QtUiTools")
QtWidgets: Any = importlib.import_module("PySide6.QtWidgets")
shiboken6: Any = importlib.import_module("shiboken6")
get_signature: Any = importlib.import_module("shibokensupport.signature").get_signature
