"""Forms as Slicer loads them: the real .ui file, with what Qt would let pass raised as an error."""

from __future__ import annotations

import inspect
import xml.etree.ElementTree as ElementTree
from typing import Any

from . import binding
from ._pyside import QtCore, QtUiTools, QtWidgets


class FormError(ValueError):
    """Something in a .ui file that Qt skips with a warning, or not even that."""


def custom_classes() -> dict[str, type]:
    """Every class a form may use beside Qt's own."""
    from . import ctk, qmrml

    found = {}
    for module in (ctk, qmrml):
        for name, value in vars(module).items():
            if name.startswith(("ctk", "qMRML")) and isinstance(value, type):
                found[name] = value
    return found


class QUiLoader(QtUiTools.QUiLoader):
    """`load` returns the form's widget or raises FormError."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._made: dict[str, Any] = {}

    def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
        custom = custom_classes()
        if class_name in custom:
            widget = custom[class_name](parent)
            widget.setObjectName(name)
        elif class_name in self.availableWidgets() or class_name == "Line":
            widget = super().createWidget(class_name, parent, name)
        else:
            raise FormError(f"the stand-in has no widget {class_name}")
        self._made[name] = widget
        return widget

    @QtCore.Slot(QtCore.QObject, result=QtCore.QObject)
    @QtCore.Slot(QtCore.QObject, QtCore.QObject, result=QtCore.QObject)
    def load(self, device: Any, parent: Any = None) -> Any:
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        self._made.clear()
        _check_classes(root, set(custom_classes()) | set(self.availableWidgets()) | {"Line"})
        connections = root.find("connections")
        wanted = list(connections) if connections is not None else []
        if connections is not None:
            root.remove(connections)
        flags = _take_flags(root)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, parent)
        if widget is None:
            raise FormError(self.errorString())
        for node in root.iter("widget"):
            _check_properties(node, self._made[node.get("name", "")])
        for name, attribute, number in flags:
            if not self._made[name].setProperty(attribute, number):
                raise FormError(f"'{name}' does not accept the form's {attribute}")
        for connection in wanted:
            _connect(connection, self._made)
        widget._form = self  # the widgets made in Python live as long as their form
        self._kept = dict(self._made)
        return widget


def _check_classes(root: Any, known: set[str]) -> None:
    names: set[str] = set()
    for node in root.iter("widget"):
        if node.get("class") not in known:
            raise FormError(f"the stand-in has no widget {node.get('class')}")
        name = node.get("name", "")
        if not name or name in names:
            raise FormError(f"two widgets called '{name}'")
        names.add(name)


def _take_flags(root: Any) -> list[tuple[str, str, int]]:
    """Enumerators of properties that a class made in Python has: Qt cannot read those."""
    custom, taken = custom_classes(), []
    for node in root.iter("widget"):
        cls = custom.get(node.get("class", ""), object)
        for given in list(node.findall("property")):
            value = next(iter(given), None)
            if value is None or value.tag not in ("set", "enum"):
                continue
            name = given.get("name")
            if isinstance(inspect.getattr_static(cls, name, None), QtCore.Property):
                number = 0
                for part in (value.text or "").split("|"):
                    number |= _enumerator(part, cls)
                taken.append((node.get("name"), name, number))
                node.remove(given)
    return taken


def _enumerator(text: str, cls: type) -> int:
    *owner, name = text.strip().split("::")
    places = [cls, QtCore.Qt, *(getattr(QtWidgets, part, None) for part in owner)]
    for place in places:
        if place is not None and hasattr(place, name):
            return int(getattr(place, name))
    raise FormError(f"no enumerator {text}")


def _check_properties(node: Any, widget: Any) -> None:
    meta = widget.metaObject()
    for given in node.findall("property"):
        name = given.get("name")
        dynamic = given.get("stdset") == "0"
        if meta.indexOfProperty(name) < 0 and not dynamic and name != "buddy":
            raise FormError(f"{node.get('class')} '{node.get('name')}' has no property {name}")
        _check_set(given, widget, name)


def _check_set(given: Any, widget: Any, name: str) -> None:
    """Numbers, texts and switches must have arrived as they stand in the file."""
    value = next(iter(given), None)
    if value is None or widget.metaObject().indexOfProperty(name) < 0:
        return
    now = widget.property(name)
    text = value.text or ""
    expected: Any
    if value.tag == "bool":
        expected = text == "true"
        if name in ("visible", "checked", "enabled", "collapsed"):
            return  # these follow other widgets
    elif value.tag == "string":
        expected = text
    elif value.tag == "stringlist":
        expected = [item.text or "" for item in value.findall("string")]
    else:
        return
    if now != expected:
        raise FormError(
            f"{type(widget).__name__} '{widget.objectName()}': {name} is {now!r}, "
            f"the form says {expected!r}"
        )


def _connect(connection: Any, made: dict[str, Any]) -> None:
    sender, signal, receiver, slot = (
        connection.findtext(part) for part in ("sender", "signal", "receiver", "slot")
    )
    for name in (sender, receiver):
        if name not in made:
            raise FormError(f"a connection of the form names '{name}', which is not in it")
    binding.connect_slot(made[sender], signal, made[receiver], slot)


def load(path: str) -> Any:
    """The proxy of the form's widget; `slicer.util.loadUI` does the same through `qt`."""
    file = QtCore.QFile(path)
    if not file.open(QtCore.QIODevice.OpenModeFlag.ReadOnly):
        raise FormError(f"could not read {path}")
    return binding.wrap(QUiLoader().load(file))
