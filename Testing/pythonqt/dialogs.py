"""Dialogs are answered by the test, in the order it expects them; any other one fails it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import binding
from ._pyside import QtCore, QtWidgets


class UnexpectedDialog(AssertionError):
    """A dialog that the test had not announced. In Slicer the user would be looking at it."""


class Shown(NamedTuple):
    """A dialog as the user would have seen it."""

    kind: str
    title: str
    text: str


class Dialogs:
    """What the user answers."""

    def __init__(self) -> None:
        self.shown: list[Shown] = []
        self._expected: list[tuple[str, Any]] = []
        self.opened: list[str] = []  # addresses given to QDesktopServices.openUrl

    def expect(self, text: str, answer: Any) -> None:
        """The next dialog contains `text` and is answered with `answer`.

        `answer` is a button (`qt.QMessageBox.Yes`), a path or text for dialogs that ask for one,
        or a function that gets the dialog and returns what `exec_` returns.
        """
        self._expected.append((text, answer))

    def check(self) -> None:
        """Raise AssertionError where an announced dialog did not come."""
        assert not self._expected, f"dialogs that did not come: {self._expected}"

    def answer(self, kind: str, title: str, text: str) -> Any:
        self.shown.append(Shown(kind, title, text))
        whole = f"{title}\n{text}"
        if not self._expected or self._expected[0][0] not in whole:
            waiting = self._expected[0][0] if self._expected else "no dialog"
            problem = UnexpectedDialog(f"{kind} '{title}': {text} (expected: {waiting})")
            binding.uncaught.append(problem)
            raise problem
        return self._expected.pop(0)[1]


_ANSWERS_BY_TEXT = {
    "getExistingDirectory": "QFileDialog",
    "getOpenFileName": "QFileDialog",
    "getOpenFileNames": "QFileDialog",
    "getSaveFileName": "QFileDialog",
    "getText": "QInputDialog",
    "getMultiLineText": "QInputDialog",
    "getItem": "QInputDialog",
    "getInt": "QInputDialog",
    "getDouble": "QInputDialog",
}


def install(dialogs: Dialogs) -> None:
    """Let `dialogs` answer whatever would open a window and wait."""

    def execute(dialog: Any) -> Any:
        if isinstance(dialog, QtWidgets.QMessageBox):
            text = "\n".join(part for part in (dialog.text(), dialog.informativeText()) if part)
        else:
            labels = dialog.findChildren(QtWidgets.QLabel)
            text = "\n".join(label.text() for label in labels)
        kind = dialog.metaObject().className()
        answer = dialogs.answer(kind, dialog.windowTitle().strip(), text)
        return answer(binding.wrap(dialog)) if callable(answer) else answer

    binding.replaced["QDialog", "exec"] = execute
    binding.replaced["QDialog", "exec_"] = execute
    binding.replaced["QMenu", "exec"] = binding.replaced["QMenu", "exec_"] = execute

    def message(kind: str) -> Callable:
        def show(parent: Any, title: str, text: str, *buttons: Any) -> Any:
            binding.check_value(title, "QString", "the title of a message")
            binding.check_value(text, "QString", "the text of a message")
            return dialogs.answer(f"QMessageBox.{kind}", title, text)

        return show

    for kind in ("about", "critical", "information", "question", "warning"):
        binding.replaced_static["QMessageBox", kind] = message(kind)

    def ask(owner: str, name: str) -> Callable:
        def show(parent: Any = None, title: str = "", text: str = "", *more: Any) -> Any:
            binding.check_value(title, "QString", "the title of a dialog")
            return dialogs.answer(f"{owner}.{name}", title, text)

        return show

    for name, owner in _ANSWERS_BY_TEXT.items():
        binding.replaced_static[owner, name] = ask(owner, name)

    def open_address(address: Any) -> bool:
        url = binding.unwrap(address)
        if not isinstance(url, QtCore.QUrl):
            raise binding.WrongArguments("QDesktopServices.openUrl wants a qt.QUrl")
        dialogs.opened.append(url.toString())
        return True

    binding.replaced_static["QDesktopServices", "openUrl"] = open_address


def ask_for_folder(parent: Any, title: str) -> str:
    """For the stand-in's own widgets: what their browse buttons open."""
    return binding.replaced_static["QFileDialog", "getExistingDirectory"](parent, title)


def ask_for_file(parent: Any, title: str, save: bool) -> str:
    name = "getSaveFileName" if save else "getOpenFileName"
    return binding.replaced_static["QFileDialog", name](parent, title)


def ask_for_text(parent: Any, title: str, text: str) -> str:
    return binding.replaced_static["QInputDialog", "getText"](parent, title, text)
