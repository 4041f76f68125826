"""`slicer.parameterNodeWrapper`, as far as the modules use it; anything else raises.

Values lie in a real vtkMRMLScriptedModuleNode under the names that Slicer's own wrapper uses
(Base/Python/slicer/parameterNodeWrapper: serializers.py, wrapper.py, guiConnectors.py), so that a
scene saved with either can be read by the other: a parameter per value, "True" and "False", a node
as a reference beside an empty parameter of the same name, and `name.0`, `name.1` for the
alternatives of a union.
"""

from __future__ import annotations

import enum
import pathlib
import types
import typing
import weakref
from collections.abc import Callable
from typing import Annotated, Any

import slicer
import vtk

from . import qt
from .binding import Proxy, class_of

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Maximum",
    "Minimum",
    "SingleStep",
    "WithinRange",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]

PROPERTY = "SlicerParameterName"
_RESERVED = """
    allParameters default isCached dataType getValue setValue connectGui connectParametersToGui
    disconnectGui StartModify EndModify AddObserver RemoveObserver Modified
"""
_NONE = type(None)


# --- annotations -----------------------------------------------------------------------------


class Default:
    """The value of a parameter that was never set."""

    def __init__(self, value: Any = None, *, generator: Callable | None = None) -> None:
        self._value, self._generator = value, generator

    @property
    def value(self) -> Any:
        return self._generator() if self._generator else self._value


class _Validator:
    def validate(self, value: Any) -> None:
        raise NotImplementedError


class WithinRange(_Validator):
    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} to {self.maximum}")


class Minimum(_Validator):
    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def validate(self, value: Any) -> None:
        if value < self.minimum:
            raise ValueError(f"{value} is below {self.minimum}")


class Maximum(_Validator):
    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        if value > self.maximum:
            raise ValueError(f"{value} is above {self.maximum}")


class Choice(_Validator):
    def __init__(self, choices: typing.Sequence) -> None:
        self.choices = choices

    def validate(self, value: Any) -> None:
        if value not in self.choices:
            raise ValueError(f"{value!r} is none of {self.choices}")


class Decimals:
    def __init__(self, value: int) -> None:
        self.value = value


class SingleStep:
    def __init__(self, value: float) -> None:
        self.value = value


def _split(annotation: Any) -> tuple[Any, list[Any]]:
    """A type and what `Annotated` says about it."""
    if typing.get_origin(annotation) is Annotated:
        kind, *notes = typing.get_args(annotation)
        return kind, list(notes)
    return annotation, []


def _first(notes: list[Any], kind: type) -> Any:
    return next((note for note in notes if isinstance(note, kind)), None)


# --- values in the node ----------------------------------------------------------------------


class _Stored:
    """One value of a plain type."""

    def __init__(self, kind: Any, notes: list[Any]) -> None:
        self.kind = kind
        self.validators = [note for note in notes if isinstance(note, _Validator)]
        unknown = [
            note
            for note in notes
            if not isinstance(note, (_Validator, Default, Decimals, SingleStep))
        ]
        if unknown:
            raise TypeError(f"the stand-in does not know the annotation {unknown[0]!r}")

    def default(self) -> Any:
        if self.is_node:
            return None
        if issubclass(self.kind, enum.Enum):
            return next(iter(self.kind))
        return {bool: False, str: "", int: 0, float: 0}.get(self.kind, self.kind)

    @property
    def is_node(self) -> bool:
        return issubclass(self.kind, slicer.vtkMRMLNode)

    def takes(self, kind: type) -> bool:
        """Whether a value of this class would be stored here, among a union's alternatives."""
        if self.is_node:
            return issubclass(kind, slicer.vtkMRMLNode)
        return kind in (int, float) if self.kind in (int, float) else kind is self.kind

    def validate(self, value: Any) -> None:
        if value is None and not (self.is_node or issubclass(self.kind, enum.Enum)):
            raise ValueError("Value must not be None")
        wanted = (int, float) if self.kind is float else self.kind
        if value is not None and not isinstance(value, wanted):
            raise TypeError(f"Value must be of type {self.kind}, is {type(value)}: {value!r}")
        if isinstance(value, bool) and self.kind in (int, float):
            raise TypeError(f"{value} would be stored as text that is no number")
        for validator in self.validators:
            validator.validate(value)

    def is_in(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        self.validate(value)
        if self.is_node:
            node.SetParameter(name, "")  # None is a value, too, and leaves no reference
            node.SetNodeReferenceID(name, value.GetID() if value is not None else None)
        elif issubclass(self.kind, enum.Enum):
            node.SetParameter(name, value.name)
        else:
            node.SetParameter(name, str(value))

    def read(self, node: Any, name: str) -> Any:
        if self.is_node:
            return node.GetNodeReference(name)
        text = node.GetParameter(name)
        if self.kind is bool:
            return text == "True"
        return self.kind[text] if issubclass(self.kind, enum.Enum) else self.kind(text)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)
        if self.is_node:
            node.RemoveNodeReferenceIDs(name)


class _Nothing(_Stored):
    """None, as one of a union's alternatives."""

    def __init__(self) -> None:
        super().__init__(_NONE, [])

    def takes(self, kind: type) -> bool:
        return kind is _NONE

    def validate(self, value: Any) -> None:
        if value is not None:
            raise ValueError("Value must be None")

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "True")

    def read(self, node: Any, name: str) -> None:
        return None

    @property
    def is_node(self) -> bool:
        return False


class _Union:
    """One of several types; which one is told by the name of the parameter."""

    def __init__(self, kinds: list[Any], notes: list[Any]) -> None:
        self.parts: list[Any] = [_stored(kind) for kind in kinds]
        self.validators = [note for note in notes if isinstance(note, _Validator)]

    def default(self) -> Any:
        optional = len(self.parts) == 2 and isinstance(self.parts[1], _Nothing)
        return None if optional else self.parts[0].default()

    def is_in(self, node: Any, name: str) -> bool:
        return any(part.is_in(node, f"{name}.{at}") for at, part in enumerate(self.parts))

    def write(self, node: Any, name: str, value: Any) -> None:
        for validator in self.validators:
            validator.validate(value)
        problem: Exception = TypeError(f"cannot store {value!r} of {type(value)} in '{name}'")
        for at, part in enumerate(self.parts):
            if not part.takes(type(value)):
                continue
            try:
                part.validate(value)
            except (TypeError, ValueError) as error:
                problem = error
                continue
            with slicer.util.NodeModify(node):
                self.remove(node, name)
                part.write(node, f"{name}.{at}", value)
            return
        raise problem

    def read(self, node: Any, name: str) -> Any:
        for at, part in enumerate(self.parts):
            if part.is_in(node, f"{name}.{at}"):
                return part.read(node, f"{name}.{at}")
        raise KeyError(name)

    def remove(self, node: Any, name: str) -> None:
        for at, part in enumerate(self.parts):
            part.remove(node, f"{name}.{at}")


def _stored(annotation: Any) -> _Stored | _Union:
    kind, notes = _split(annotation)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return _Union(list(typing.get_args(kind)), notes)
    if kind is _NONE:
        return _Nothing()
    plain = (bool, int, float, str, pathlib.Path, pathlib.PurePath)
    if kind in plain or (
        isinstance(kind, type) and issubclass(kind, (slicer.vtkMRMLNode, enum.Enum))
    ):
        return _Stored(kind, notes)
    raise NotImplementedError(f"the stand-in's parameterNodeWrapper has no {annotation!r}")


class _Value:
    """A parameter of one wrapped node, read anew whenever the node says that it changed."""

    def __init__(self, stored: Any, name: str, default: Default, node: Any) -> None:
        self._stored, self._name, self._default, self._node = stored, name, default, node
        if not stored.is_in(node, name):
            stored.write(node, name, default.value)
        self._writing = False
        self._value = stored.read(node, name)
        this = weakref.ref(self)

        def changed(caller: Any, event: str) -> None:
            alive = this()
            if alive is not None:
                alive._on_modified()

        self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, changed)

    def __del__(self) -> None:
        self._node.RemoveObserver(self._tag)

    def _read(self) -> Any:
        if not self._stored.is_in(self._node, self._name):
            self._stored.write(self._node, self._name, self._default.value)
        return self._stored.read(self._node, self._name)

    def _on_modified(self) -> None:
        if not self._writing:
            self._value = self._read()

    def read(self) -> Any:
        return self._value

    def write(self, value: Any) -> None:
        self._writing = True
        try:
            with slicer.util.NodeModify(self._node):
                self._stored.write(self._node, self._name, value)
                self._value = self._read()
        finally:
            self._writing = False


# --- widgets ---------------------------------------------------------------------------------


class _Connector:
    """A widget that shows and changes one parameter: as a property, with a signal."""

    def __init__(self, widget: Proxy, signal: str, read: Callable, write: Callable) -> None:
        self._widget, self._signal = widget, signal
        self.read, self.write = read, write
        self._callback: Callable | None = None

    def on_changed(self, callback: Callable | None) -> None:
        self._callback = callback
        signal = getattr(self._widget, self._signal)
        if callback is None:
            signal.disconnect(self._changed)
        else:
            signal.connect(self._changed)

    def _changed(self) -> None:
        if self._callback is not None:
            self._callback()


def _is(widget: Proxy, *names: str) -> bool:
    """As Slicer compares: exactly these classes, none derived from them."""
    return type(widget)._pyside.__name__ in names and type(widget) is class_of(type(widget)._pyside)


def _connector(widget: Proxy, annotation: Any) -> _Connector:
    kind, notes = _split(annotation)

    def by(attribute: str, signal: str) -> _Connector:
        return _Connector(
            widget,
            signal,
            lambda: getattr(widget, attribute),
            lambda value: setattr(widget, attribute, value),
        )

    if kind is bool and _is(widget, "QCheckBox", "ctkCheckBox"):
        return by("checked", "stateChanged")
    if kind is bool and _is(widget, "QPushButton"):
        if not widget.checkable:
            raise RuntimeError(f"button '{widget.name}' is bound to a bool but is not checkable")
        return by("checked", "toggled")
    if kind is int and _is(widget, "QSlider", "QSpinBox"):
        return _whole_number(widget, notes, by)
    if kind in (int, float) and _is(widget, "QDoubleSpinBox", "ctkSliderWidget"):
        return _number(widget, kind, notes)
    if kind is str and _is(widget, "QLineEdit"):
        return _line(widget)
    if kind is str and _is(widget, "QLabel"):
        connector = by("text", "destroyed")
        connector.on_changed = lambda callback: None  # type: ignore[method-assign]
        return connector
    if _is(widget, "QComboBox", "ctkComboBox"):
        if kind in (int, float, str, bool):
            return _choice(widget, notes)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return _enumeration(widget, kind)
    if kind in (pathlib.Path, pathlib.PurePath):
        if _is(widget, "ctkPathLineEdit"):
            return _path(widget, kind, "currentPath", "currentPathChanged")
        if _is(widget, "ctkDirectoryButton"):
            return _path(widget, kind, "directory", "directoryChanged")
    if _is(widget, "qMRMLNodeComboBox") and _node_types(annotation):
        widget.nodeTypes = _node_types(annotation)
        return _Connector(widget, "currentNodeChanged", widget.currentNode, widget.setCurrentNode)
    raise RuntimeError(
        f"Unable to create GUI connector from datatype '{annotation}' to widget type "
        f"'{type(widget).__name__}'"
    )


def _whole_number(widget: Proxy, notes: list[Any], by: Callable) -> _Connector:
    step = _first(notes, SingleStep)
    if step is not None:
        widget.singleStep = step.value
    within = _first(notes, WithinRange)
    low, high = _first(notes, Minimum), _first(notes, Maximum)
    if _is(widget, "QSlider") and within is None and (low is None or high is None):
        raise RuntimeError("Cannot have a connection to QSlider where the int type is unbounded.")
    if within is not None:
        widget.setRange(within.minimum, within.maximum)
    else:
        widget.setMinimum(low.minimum if low else -(2**31))
        widget.setMaximum(high.maximum if high else 2**31 - 1)
    return by("value", "valueChanged")


def _number(widget: Proxy, kind: type, notes: list[Any]) -> _Connector:
    decimals, step = _first(notes, Decimals), _first(notes, SingleStep)
    if kind is int:
        widget.decimals = 0
    elif decimals is not None:
        widget.decimals = decimals.value
    if step is not None:
        widget.singleStep = step.value
    within = _first(notes, WithinRange)
    low, high = _first(notes, Minimum), _first(notes, Maximum)
    if _is(widget, "ctkSliderWidget") and within is None and (low is None or high is None):
        raise RuntimeError(
            "Cannot have a connection to ctkSliderWidget where the float types is unbounded."
        )
    lowest = within.minimum if within else low.minimum if low else float("-inf")
    highest = within.maximum if within else high.maximum if high else float("inf")
    widget.minimum, widget.maximum = lowest, highest
    return _Connector(
        widget,
        "valueChanged",
        lambda: kind(widget.value),
        lambda value: setattr(widget, "value", value),
    )


def _line(widget: Proxy) -> _Connector:
    def write(text: str) -> None:
        if text != widget.text:  # writing moves the cursor
            widget.text = text

    return _Connector(widget, "textChanged", lambda: widget.text, write)


def _choice(widget: Proxy, notes: list[Any]) -> _Connector:
    choice = _first(notes, Choice)
    if choice is None:
        raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation.")
    return _list_of(widget, [(str(value), value) for value in choice.choices])


def _enumeration(widget: Proxy, kind: Any) -> _Connector:
    label = getattr(kind, "label", lambda value: value.name)
    return _list_of(widget, [(label(value), value) for value in kind])


def _list_of(widget: Proxy, values: list[tuple[str, Any]]) -> _Connector:
    widget.clear()
    for text, _ in values:
        widget.addItem(text)

    def write(wanted: Any) -> None:
        found = [index for index, (_, value) in enumerate(values) if value == wanted]
        if not found:
            raise ValueError(f"Unable to find value {wanted} in choices")
        widget.currentIndex = found[0]

    return _Connector(widget, "currentIndexChanged", lambda: values[widget.currentIndex][1], write)


def _path(widget: Proxy, kind: Any, attribute: str, signal: str) -> _Connector:
    return _Connector(
        widget,
        signal,
        lambda: kind(getattr(widget, attribute)),
        lambda value: setattr(widget, attribute, str(value)),
    )


def _node_types(annotation: Any) -> tuple[str, ...]:
    """Class names of a node type or a union of node types; empty for anything else."""
    kind, _ = _split(annotation)
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    parts = [_split(part)[0] for part in typing.get_args(kind)] if is_union else [kind]
    nodes = [
        part for part in parts if isinstance(part, type) and issubclass(part, slicer.vtkMRMLNode)
    ]
    if len(nodes) + (_NONE in parts) != len(parts):
        return ()
    return tuple(node.__name__ for node in nodes)


# --- the wrapper -----------------------------------------------------------------------------


class _Wrapper:
    """What every wrapped class can do."""

    allParameters: dict[str, tuple[Any, Any, Default]]

    def _start(self, node: Any, prefix: str | None = None) -> None:
        if node is None:
            raise ValueError("a parameter node wrapper needs a node")
        self.parameterNode = node
        self._values = {
            name: _Value(stored, f"{prefix or ''}{name}", default, node)
            for name, (_, stored, default) in self.allParameters.items()
        }
        self._guis: dict[int, dict[str, _Connector]] = {}
        self._tags: dict[int, int] = {}
        self._showing = False

    def _known(self, name: str) -> None:
        if name not in self.allParameters:
            raise ValueError(
                f"Cannot find a param with the given name: {name}; there are "
                f"{', '.join(self.allParameters)}"
            )

    def default(self, name: str) -> Default:
        self._known(name)
        return self.allParameters[name][2]

    def isCached(self, name: str) -> bool:
        self._known(name)
        return True

    def getValue(self, name: str) -> Any:
        self._known(name)
        return self._values[name].read()

    def setValue(self, name: str, value: Any) -> None:
        self._known(name)
        self._values[name].write(value)

    def connectGui(self, gui: Any) -> int:
        """Bind the widgets whose property SlicerParameterName names a parameter."""
        if isinstance(gui, Proxy):
            widgets = gui.findChildren(qt.QWidget)
        else:
            widgets = tuple(gui.__dict__.values())
        mapping = {widget.property(PROPERTY): widget for widget in widgets}
        return self.connectParametersToGui({name: w for name, w in mapping.items() if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        for name in mapping:
            self._known(name)
        connectors = {
            name: _connector(widget, self.allParameters[name][0])
            for name, widget in mapping.items()
        }
        tag = len(self._tags)
        while tag in self._tags:
            tag += 1
        self._guis[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.on_changed(lambda name=name, connector=connector: self._take(name, connector))
        self._tags[tag] = self.AddObserver(
            vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._show()
        )
        return tag

    def disconnectGui(self, tag: int) -> None:
        for connector in self._guis.pop(tag, {}).values():
            connector.on_changed(None)
        if tag in self._tags:
            self.RemoveObserver(self._tags.pop(tag))

    def _take(self, name: str, connector: _Connector) -> None:
        with slicer.util.NodeModify(self):
            if not self._showing:
                self.setValue(name, connector.read())

    def _show(self) -> None:
        if self._showing:
            return
        self._showing = True
        try:
            with slicer.util.NodeModify(self):
                for connectors in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._showing = False

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, was: Any) -> Any:
        return self.parameterNode.EndModify(was)

    def AddObserver(self, event: Any, callback: Callable, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()


def parameterNodeWrapper(cls: Any = None) -> Any:
    """Class decorator: its annotated names become values in a parameter node."""
    return _wrapped if cls is None else _wrapped(cls)


def _wrapped(cls: Any) -> Any:
    parameters = {}
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        stored = _stored(annotation)
        default = _first(_split(annotation)[1], Default)
        if name in vars(cls):
            default = Default(vars(cls)[name])
        parameters[name] = (annotation, stored, default or Default(stored.default()))
        setattr(cls, name, property(*_accessors(name)))
    for name in _RESERVED.split():
        if hasattr(cls, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        if name in vars(_Wrapper):
            setattr(cls, name, vars(_Wrapper)[name])
    for name in ("_known", "_take", "_show"):
        setattr(cls, name, vars(_Wrapper)[name])
    cls.allParameters = parameters
    cls.dataType = staticmethod(lambda name: parameters[name][0])
    cls.__init__ = vars(_Wrapper)["_start"]
    cls._is_parameter_node_wrapper = True
    return cls


def _accessors(name: str) -> tuple[Callable, Callable]:
    return (
        lambda self: self._values[name].read(),
        lambda self, value: self._values[name].write(value),
    )


def isParameterNodeWrapper(thing: Any) -> bool:
    return getattr(thing, "_is_parameter_node_wrapper", False)
