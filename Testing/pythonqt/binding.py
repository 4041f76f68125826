"""Qt objects as PythonQt shows them to Python: a proxy around each PySide6 object.

A property is an attribute, a slot is a method, a signal has `connect`, and nothing else is there.
Where PythonQt prints a line or quietly converts a value, the proxy raises.

The rules are those of PythonQt's sources: PythonQtInstanceWrapper.cpp (attributes),
PythonQtSignalReceiver.cpp (arguments of slots), PythonQtStdDecorators.cpp (connect, findChild),
PythonQtConversion.cpp (values), PythonQtClassInfo.cpp (`name`, `exec_`).
"""

from __future__ import annotations

import enum
import functools
import inspect
import sys
import traceback
import typing
import warnings
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from . import names
from ._pyside import QtCore, get_signature, shiboken6

# Exceptions that nobody could catch, because Qt called the Python code: the test fails with them.
uncaught: list[BaseException] = []

# What would open a window, by class and name; `dialogs` puts in what answers instead.
replaced: dict[tuple[str, str], Callable] = {}  # called with the PySide6 object and arguments
replaced_static: dict[tuple[str, str], Callable] = {}

_INTEGERS = {"int", "uint", "qlonglong", "qulonglong", "long", "ulong", "short", "ushort"}
_INTERNAL = frozenset({"className", "help", "delete", "connect", "disconnect"})


class WrongArguments(TypeError, ValueError):
    """A value that PythonQt refuses (ValueError there), or takes and silently changes."""


class NoSuchSignal(ValueError):
    """PythonQt prints that there is no such signal or slot, and `connect` returns False."""


# --- classes ---------------------------------------------------------------------------------


class QtClass(type):
    """The class of the proxies' classes: enumerators and static functions are its attributes."""

    _of: ClassVar[dict[type, QtClass]] = {}

    def __new__(mcs, name: str, bases: tuple, space: dict, pyside: type | None = None) -> Any:
        cls = super().__new__(mcs, name, bases, space)
        if pyside is not None:
            cls._pyside = pyside
        elif bases:
            inherited = cls._pyside
            for attribute, value in space.items():
                of_qt = inspect.isfunction(value) and _has(inherited, attribute)
                if of_qt and callable(getattr(inherited, attribute)):
                    raise NotImplementedError(
                        f"{name}.{attribute} overrides a method of {inherited.__name__}; "
                        "the stand-in cannot make Qt call it"
                    )
        return cls

    def __init__(cls, name: str, bases: tuple, space: dict, pyside: type | None = None) -> None:
        super().__init__(name, bases, space)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_") or not _has(cls._pyside, name):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        for base in cls._pyside.__mro__:
            if (base.__name__, name) in replaced_static:
                return replaced_static[base.__name__, name]
        if cls._pyside is QtCore.QTimer and name == "singleShot":
            return _single_shot
        value = getattr(cls._pyside, name)
        if isinstance(value, enum.Enum) or (isinstance(value, type) and _is_enum(value)):
            return value
        if isinstance(value, type):
            return class_of(value)
        if isinstance(value, (QtCore.Property, QtCore.Signal)):
            raise AttributeError(f"'{name}' of {cls.__name__} needs an object")
        if type(value).__name__ in ("builtin_function_or_method", "function"):
            return Method(cls._pyside, name, value)
        return _Unbound(name)

    def __setattr__(cls, name: str, value: Any) -> None:
        if name != "_pyside" and "_pyside" in vars(cls) and cls._pyside.__name__ == cls.__name__:
            raise AttributeError(f"{cls.__name__} is a C++ class; '{name}' cannot be set on it")
        super().__setattr__(name, value)


class _Unbound:
    """`qt.QWidget.show`, to be called with the object."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, owner: Any, *args: Any) -> Any:
        return getattr(owner, self._name)(*args)


def class_of(pyside: type) -> QtClass:
    """The proxy class for a class of PySide6, or one that the stand-in derives from those."""
    found = QtClass._of.get(pyside)
    if found is None:
        bases = tuple(class_of(base) for base in pyside.__bases__ if _is_qt(base))
        found = QtClass(pyside.__name__, bases or (Proxy,), {}, pyside=pyside)
        QtClass._of[pyside] = found
    return found


def _is_qt(cls: type) -> bool:
    return issubclass(cls, shiboken6.Object) and cls is not shiboken6.Object


def _is_enum(cls: type) -> bool:
    return issubclass(cls, enum.Enum)


def _from_qt(cls: type) -> bool:
    return cls.__module__.startswith("PySide6")


def _has(pyside: type, name: str) -> bool:
    """Whether PythonQt has `name` on objects or on the class itself, seen from PySide6's class."""
    if name.startswith("_"):
        return False
    if name in ("exec_", "raise_", "print_"):
        name = name[:-1] if hasattr(pyside, name[:-1]) else name
    for base in pyside.__mro__:
        if name in names.ABSENT.get(base.__name__, ()):
            return False
        if name in vars(base):
            return _from_qt(base) or isinstance(vars(base)[name], (enum.Enum, type))
    # PySide6 finds enumerators without the name of their enumeration, but not in vars().
    return isinstance(getattr(pyside, name, None), enum.Enum)


# --- values ----------------------------------------------------------------------------------


def wrap(value: Any) -> Any:
    """From PySide6 to the caller: objects as proxies, lists as tuples, byte arrays as bytes."""
    if isinstance(value, QtCore.QByteArray):
        return bytes(value.data())
    if isinstance(value, QtCore.QObject):
        return _proxy_of(value)
    if _is_qt(type(value)):
        return _around(value)
    if isinstance(value, (list, tuple)):
        return tuple(wrap(item) for item in value)
    if type(value) is dict:
        return {key: wrap(item) for key, item in value.items()}
    return value


def unwrap(value: Any) -> Any:
    """From the caller to PySide6."""
    if isinstance(value, Proxy):
        return value._alive()
    if type(value) in (list, tuple):
        return type(value)(unwrap(item) for item in value)
    if type(value) is dict:
        return {key: unwrap(item) for key, item in value.items()}
    return value


# A PySide6 object's proxy, as long as somebody holds it: `a.parent() is a.parent()`.
_proxies: weakref.WeakValueDictionary[int, Proxy] = weakref.WeakValueDictionary()


def _proxy_of(qobject: Any) -> Proxy:
    address = shiboken6.getCppPointer(qobject)[0]
    found = _proxies.get(address)
    if found is not None and found._qt is qobject:
        return found
    kept = getattr(qobject, "_proxy_of_subclass", None)
    return kept if kept is not None else _around(qobject)


def _around(value: Any) -> Proxy:
    cls: Any = class_of(type(value))
    proxy: Proxy = object.__new__(cls)
    object.__setattr__(proxy, "_qt", value)
    if isinstance(value, QtCore.QObject):
        _proxies[shiboken6.getCppPointer(value)[0]] = proxy
    return proxy


def check_value(value: Any, kind: str, what: str) -> None:
    """Refuse what PythonQt would quietly turn into something else.

    `kind` is a C++ type as Qt's meta-object names it.
    """
    given = f"{type(value).__name__} ({value!r})"
    if kind == "QString" and not isinstance(value, str):
        raise WrongArguments(f"{what} is text; PythonQt would silently take str() of {given}")
    if kind == "bool" and not isinstance(value, bool):
        raise WrongArguments(
            f"{what} is a bool; PythonQt takes or refuses {given} by its own rules"
        )
    if kind in _INTEGERS and (isinstance(value, bool) or not isinstance(value, int)):
        raise WrongArguments(f"{what} is a whole number; PythonQt would silently change {given}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind in ("double", "float") and not number:
        raise WrongArguments(f"{what} is a number; PythonQt does not accept {given}")
    if kind == "QStringList":
        items = value if isinstance(value, (list, tuple)) else None
        if items is None or not all(isinstance(item, str) for item in items):
            raise WrongArguments(f"{what} is a list of texts; PythonQt would change {given}")


# --- objects ---------------------------------------------------------------------------------


class Proxy(metaclass=QtClass, pyside=shiboken6.Object):
    """What all proxies share. Its attributes are found by `__getattr__`, as PythonQt does it."""

    _qt: Any

    def __init__(self, *args: Any) -> None:
        pyside = type(self)._pyside
        _check_arguments(pyside, "__init__", args)
        made = pyside(*unwrap(args))
        object.__setattr__(self, "_qt", made)
        if isinstance(made, QtCore.QObject):
            _proxies[shiboken6.getCppPointer(made)[0]] = self
            if type(self).__name__ != pyside.__name__ or type(self) is not class_of(pyside):
                made._proxy_of_subclass = self  # its Python attributes live as long as it does

    def _alive(self) -> Any:
        if not shiboken6.isValid(self._qt):
            raise ValueError(f"Trying to use a destroyed {type(self)._pyside.__name__} object")
        return self._qt

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        qt = self._alive()
        cls = type(qt)
        known = _find_property(qt, name)
        if known is not None:
            return wrap(qt.property(known.name))
        for base in cls.__mro__:
            if (base.__name__, name) in replaced:
                return Method(qt, name, functools.partial(replaced[base.__name__, name], qt))
            if (base.__name__, name) in replaced_static:
                return replaced_static[base.__name__, name]
        if name in _signals(qt):
            return BoundSignal(self, name)
        plain = name[:-1] if name in ("exec_", "raise_", "print_") else name
        if plain in _slots(qt) and hasattr(qt, plain):
            return Method(qt, plain, getattr(qt, plain))
        if isinstance(qt, QtCore.QObject) and name in _DECORATED:
            return Method(qt, name, lambda *args: _DECORATED[name](self, *args))
        if _has(cls, name):
            value = getattr(qt, plain if hasattr(qt, plain) else name)
            if isinstance(value, enum.Enum) or (isinstance(value, type) and _is_enum(value)):
                return value
            if callable(value):
                return Method(qt, plain, value)
        if isinstance(qt, QtCore.QObject):
            if name in _dynamic(qt):
                return wrap(qt.property(name))
            if name == "className":
                return lambda: qt.metaObject().className()
            if name == "delete":
                return lambda: shiboken6.delete(qt)
            for child in qt.children():
                if child.objectName() == name:
                    return wrap(child)
        raise AttributeError(f"{cls.__name__} has no attribute named '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        qt = self._alive()
        cls = type(qt)
        found = _find_property(qt, name)
        if found is not None:
            _set_property(qt, found, value)
        elif name in _slots(qt) or (isinstance(qt, QtCore.QObject) and name in _DECORATED):
            raise AttributeError(f"Slot '{name}' can not be overwritten on {cls.__name__} object")
        elif name in _signals(qt):
            raise AttributeError(f"Signal '{name}' can not be overwritten on {cls.__name__} object")
        elif _has(cls, name):
            raise AttributeError(f"'{name}' can not be overwritten on {cls.__name__} object")
        elif isinstance(qt, QtCore.QObject) and name in _dynamic(qt):
            qt.setProperty(name, unwrap(value))
        elif type(self) is not class_of(cls):  # a class derived in Python
            object.__setattr__(self, name, value)
        else:
            raise AttributeError(
                f"'{name}' does not exist on {cls.__name__} and creating new attributes on C++ "
                "objects is not allowed"
            )

    def __dir__(self) -> list[str]:
        qt = self._alive()
        methods = [name for name in dir(type(qt)) if _has(type(qt), name)]
        return sorted({*_properties(qt), *_signals(qt), *_slots(qt), *methods})

    def __bool__(self) -> bool:
        return shiboken6.isValid(self._qt)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Proxy):
            return NotImplemented
        if isinstance(self._qt, QtCore.QObject):
            return self._qt is other._qt
        return bool(self._qt == other._qt)

    def __hash__(self) -> int:
        return id(self._qt) if isinstance(self._qt, QtCore.QObject) else hash(repr(self._qt))

    def __repr__(self) -> str:
        return f"{type(self).__name__} ({type(self)._pyside.__name__} at {hex(id(self._qt))})"


class Method:
    """A slot, an invokable or a wrapped method, bound to its object."""

    def __init__(self, owner: Any, name: str, function: Callable) -> None:
        self._owner, self._name, self._function = owner, name, function

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if keywords:
            raise WrongArguments(f"{self._name}() takes no keyword arguments in PythonQt")
        if not isinstance(self._owner, type) and not shiboken6.isValid(self._owner):
            raise ValueError(f"Trying to call '{self._name}' on a destroyed object")
        if self._name in _DECORATED and not isinstance(self._owner, type):
            return wrap(self._function(*args))
        _check_arguments(self._owner, self._name, args)
        return wrap(self._function(*unwrap(args)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Method):
            return NotImplemented
        return self._owner is other._owner and self._name == other._name

    def __hash__(self) -> int:
        return hash((id(self._owner), self._name))


def _set_property(qt: Any, found: _Property, value: Any) -> None:
    cls, name, kind = type(qt).__name__, found.name, found.kind
    if not found.writable:
        raise AttributeError(f"Property '{name}' of {cls} object is not writable")
    check_value(value, kind, f"{cls}.{name}")
    if found.is_enumeration and not isinstance(value, int):
        raise AttributeError(f"Property '{name}' of type '{kind}' does not accept {value!r}")
    given = unwrap(list(value) if kind == "QStringList" else value)
    if not qt.setProperty(name, given):
        raise AttributeError(f"Property '{name}' of type '{kind}' does not accept {value!r}")


# --- what a class has, from its meta-object --------------------------------------------------

_cache: dict[tuple[str, type], dict] = {}


def _cached(what: str, build: Callable[[Any], dict]) -> Callable[[Any], dict]:
    def look_up(qt: Any) -> dict:
        if not isinstance(qt, QtCore.QObject):
            return {}
        key = (what, type(qt))
        if key not in _cache:
            _cache[key] = build(qt.metaObject())
        return _cache[key]

    return look_up


def _methods(meta: Any, *kinds: Any) -> dict[str, list[str]]:
    """Signatures by name, in the order of declaration."""
    found: dict[str, list[str]] = {}
    for index in range(meta.methodCount()):
        method = meta.method(index)
        if method.methodType() in kinds and method.access() == QtCore.QMetaMethod.Access.Public:
            name = bytes(method.name()).decode()
            found.setdefault(name, []).append(bytes(method.methodSignature()).decode())
    return found


_KIND = QtCore.QMetaMethod.MethodType
_signals = _cached("signals", lambda meta: _methods(meta, _KIND.Signal))
_slots = _cached("slots", lambda meta: _methods(meta, _KIND.Slot, _KIND.Method))


class _Property(NamedTuple):
    name: str
    kind: str
    writable: bool
    is_enumeration: bool


def _all_properties(meta: Any) -> dict[str, _Property]:
    found = {}
    for index in range(meta.propertyCount()):
        one = meta.property(index)
        found[one.name()] = _Property(
            one.name(), one.typeName(), one.isWritable(), one.isEnumType()
        )
    return found


_properties = _cached("properties", _all_properties)


def _find_property(qt: Any, name: str) -> _Property | None:
    """The property; `name` means the object's name where the class has none of its own."""
    known = _properties(qt)
    return known.get(name) or (known.get("objectName") if name == "name" else None)


def _dynamic(qt: Any) -> set[str]:
    return {bytes(name.data()).decode() for name in qt.dynamicPropertyNames()}


class _Overload(NamedTuple):
    """The parameters of one way to call a method: names, C++ types as far as they matter."""

    needed: int
    names: list[str]
    kinds: list[str]


_known_overloads: dict[tuple[type, str], list[_Overload]] = {}


def _overloads(owner: Any, name: str) -> list[_Overload]:
    """Of a method of an object, or of a static function or constructor of a class."""
    cls = owner if isinstance(owner, type) else type(owner)
    key = (cls, name)
    if key not in _known_overloads:
        if _declared_by_qt(cls, name):
            _known_overloads[key] = _from_signature(cls, name)
        else:
            _known_overloads[key] = _from_meta_object(owner, name)
    return _known_overloads[key]


def _from_signature(cls: type, name: str) -> list[_Overload]:
    """Of a method of Qt's: PySide6 knows its parameters."""
    function = cls if name == "__init__" else getattr(cls, name, None)
    with warnings.catch_warnings():  # PySide6 cannot read all of its own defaults
        warnings.simplefilter("ignore", RuntimeWarning)
        found = get_signature(function)
    overloads = []
    for signature in found if isinstance(found, list) else [found] if found else []:
        wanted = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.name != "self" and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        needed = sum(parameter.default is inspect.Parameter.empty for parameter in wanted)
        kinds = [_kind(parameter.annotation) for parameter in wanted]
        overloads.append(_Overload(needed, [parameter.name for parameter in wanted], kinds))
    return overloads


def _from_meta_object(owner: Any, name: str) -> list[_Overload]:
    """Of a slot of the stand-in's own widgets."""
    overloads = []
    for signature in _slots(owner).get(name, []):
        inner = signature[signature.index("(") + 1 : -1]
        kinds = inner.split(",") if inner else []
        overloads.append(_Overload(len(kinds), [f"value {at}" for at in range(len(kinds))], kinds))
    return overloads


def _check_arguments(owner: Any, name: str, args: tuple) -> None:
    """Raise where no overload takes these arguments as they are."""
    problems = []
    cls = owner if isinstance(owner, type) else type(owner)
    overloads = _overloads(owner, name)
    for overload in overloads:
        if not overload.needed <= len(args) <= len(overload.kinds):
            continue
        try:
            for value, what, kind in zip(args, overload.names, overload.kinds, strict=False):
                check_value(value, kind, f"{cls.__name__}.{name}'s {what}")
        except WrongArguments as problem:
            problems.append(problem)
        else:
            return
    if problems:
        raise problems[0]
    if overloads:
        raise WrongArguments(f"{cls.__name__}.{name}() does not take {len(args)} arguments")


def _declared_by_qt(cls: type, name: str) -> bool:
    owner = next((base for base in cls.__mro__ if name in vars(base)), None)
    return owner is not None and _from_qt(owner)


def _kind(annotation: Any) -> str:
    if annotation in (str, bool, int):
        return {str: "QString", bool: "bool", int: "int"}[annotation]
    if annotation is float:
        return "double"
    inner = typing.get_args(annotation)
    if set(inner) == {str, type(None)}:
        return "QString"  # PySide6 takes None for it, PythonQt makes "None" of it
    return "QStringList" if inner == (str,) else ""


# --- signals ---------------------------------------------------------------------------------


def called_by_qt(function: Callable, args: tuple) -> None:
    """Call Python from Qt: PythonQt prints an exception and goes on; here the test fails later."""
    try:
        function(*wrap(args)[: _taken(function)])
    except BaseException as problem:
        traceback.print_exc(file=sys.stderr)
        uncaught.append(problem)


def _taken(function: Callable) -> int | None:
    """How many arguments of a signal PythonQt passes to this callable: None for all.

    Only functions and methods are looked at; a callable of any other kind gets all of them.
    """
    inner = function.__func__ if inspect.ismethod(function) else function
    if not inspect.isfunction(inner) or inner.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return inner.__code__.co_argcount - (1 if inspect.ismethod(function) else 0)


class _Connections:
    """The callables connected to one object's signals."""

    of: ClassVar[dict[int, _Connections]] = {}

    def __init__(self) -> None:
        self.made: list[tuple[str, Callable, Any]] = []

    @classmethod
    def from_object(cls, qt: Any) -> _Connections:
        address = shiboken6.getCppPointer(qt)[0]
        if address not in cls.of:
            cls.of[address] = cls()
            qt.destroyed.connect(lambda: cls.of.pop(address, None))
        return cls.of[address]


def find_signal(qt: Any, signature: str) -> str:
    """The signature as Qt spells it; raises NoSuchSignal."""
    wanted = signature[1:] if signature[:1].isdigit() else signature
    wanted = bytes(QtCore.QMetaObject.normalizedSignature(_shown_to_qt(wanted)).data()).decode()
    for overloads in _signals(qt).values():
        if wanted in overloads:
            return wanted
    raise NoSuchSignal(f"signal '{signature}' does not exist on {type(qt).__name__}")


def find_slot(qt: Any, signature: str) -> str:
    """The signature as Qt spells it; raises NoSuchSignal."""
    wanted = signature[1:] if signature[:1].isdigit() else signature
    wanted = bytes(QtCore.QMetaObject.normalizedSignature(_shown_to_qt(wanted)).data()).decode()
    for overloads in (*_slots(qt).values(), *_signals(qt).values()):
        if wanted in overloads:
            return wanted
    raise NoSuchSignal(f"slot '{signature}' does not exist on {type(qt).__name__}")


def _shown_to_qt(signature: str) -> str:
    """PySide6 declares pointers to VTK's objects as PyObject."""
    start, rest = signature.split("(", 1) if "(" in signature else (signature, "")
    if not rest:
        return signature
    types = [part.strip() for part in rest.rstrip(") ").split(",")]
    shown = ["PyObject" if part.startswith("vtk") else part for part in types]
    return f"{start}({','.join(shown)})"


def connect(sender: Any, signal: str, function: Callable) -> bool:
    if not callable(function):
        raise WrongArguments(f"{function!r} is not callable")
    spelled = find_signal(sender, signal)

    def receive(*args: Any) -> None:
        called_by_qt(function, args)

    made = QtCore.QObject.connect(sender, QtCore.SIGNAL(spelled), receive)
    _Connections.from_object(sender).made.append((spelled, function, made))
    return True


def connect_slot(sender: Any, signal: str, receiver: Any, slot: str) -> bool:
    spelled, wanted = find_signal(sender, signal), find_slot(receiver, slot)
    given, taken = (text[text.index("(") + 1 : -1] for text in (spelled, wanted))
    if given.split(",")[: len(taken.split(","))] != taken.split(",") and taken:
        raise NoSuchSignal(f"signal '{signal}' does not fit slot '{slot}'")
    if not QtCore.QObject.connect(sender, QtCore.SIGNAL(spelled), receiver, QtCore.SLOT(wanted)):
        raise NoSuchSignal(f"signal '{signal}' could not be connected to slot '{slot}'")
    return True


def disconnect(sender: Any, signal: str, function: Callable | None = None) -> bool:
    spelled = find_signal(sender, signal)
    connections = _Connections.from_object(sender)
    for entry in list(connections.made):
        if entry[0] == spelled and (function is None or entry[1] == function):
            QtCore.QObject.disconnect(entry[2])
            connections.made.remove(entry)
            if function is not None:
                return True
    return function is None


def disconnect_all(sender: Any) -> None:
    """End what Python connected to this object."""
    connections = _Connections.from_object(sender)
    for entry in connections.made:
        QtCore.QObject.disconnect(entry[2])
    connections.made.clear()


class BoundSignal:
    """`button.clicked`: the first of the signal's overloads, as in PythonQt."""

    def __init__(self, owner: Proxy, name: str) -> None:
        self._owner, self._name = owner, name

    @property
    def _signature(self) -> str:
        return _signals(self._owner._alive())[self._name][0]

    def connect(self, function: Callable) -> bool:
        return connect(self._owner._alive(), self._signature, _python_callable(function))

    def disconnect(self, *function: Callable) -> bool:
        return disconnect(self._owner._alive(), self._signature, *function)

    def emit(self, *args: Any) -> None:
        qt = self._owner._alive()
        for signature in _signals(qt)[self._name]:
            inner = signature[signature.index("(") + 1 : -1]
            kinds = inner.split(",") if inner else []
            if len(kinds) == len(args):
                for value, kind in zip(args, kinds, strict=True):
                    check_value(value, kind, f"signal {self._name}")
                signal = getattr(qt, self._name)
                overloaded = len(_signals(qt)[self._name]) > 1 and inner
                (signal[inner] if overloaded else signal).emit(*unwrap(args))
                return
        raise WrongArguments(f"signal {self._name} takes other arguments")

    __call__ = emit


def _python_callable(function: Any) -> Callable:
    return function.emit if isinstance(function, BoundSignal) else function


# --- methods PythonQt adds to every QObject --------------------------------------------------


def _connect(self: Proxy, signal: str, *to: Any) -> bool:
    if len(to) == 1:
        return connect(self._alive(), signal, _python_callable(to[0]))
    if len(to) == 2:
        return connect_slot(self._alive(), signal, unwrap(to[0]), to[1])
    raise WrongArguments("connect(signal, callable) or connect(signal, receiver, slot)")


def _disconnect(self: Proxy, signal: str, *to: Any) -> bool:
    if len(to) == 2:
        spelled, slot = find_signal(self._alive(), signal), find_slot(unwrap(to[0]), to[1])
        return QtCore.QObject.disconnect(
            self._alive(), QtCore.SIGNAL(spelled), unwrap(to[0]), QtCore.SLOT(slot)
        )
    return disconnect(self._alive(), signal, *(_python_callable(one) for one in to))


def _children(qt: Any) -> list[Any]:
    """Without the nameless helpers that PySide6 adds for its connections."""
    return [
        child for child in qt.children() if type(child) is not QtCore.QObject or child.objectName()
    ]


def _is_a(qt: Any, kind: Any) -> bool:
    if isinstance(kind, str):  # a name here is that of a class, not of an object
        return qt.inherits(kind)
    if isinstance(kind, QtClass):
        return isinstance(qt, kind._pyside)
    raise WrongArguments(f"findChild wants a class or its name, not {kind!r}")


def _find_children(self: Proxy, kind: Any, name: str | None = None) -> list[Any]:
    def below(qt: Any) -> list[Any]:
        found = []
        for child in qt.children():
            if (name is None or child.objectName() == name) and _is_a(child, kind):
                found.append(child)
            found.extend(below(child))
        return found

    return below(self._alive())


def _find_child(self: Proxy, kind: Any, name: str | None = None) -> Any:
    level = [self._alive()]
    while level:
        level = [child for qt in level for child in qt.children()]
        for child in level:
            if (name is None or child.objectName() == name) and _is_a(child, kind):
                return child
    return None


def _set_any_property(self: Proxy, name: str, value: Any) -> bool:
    check_value(name, "QString", "setProperty's name")
    found = _properties(self._alive()).get(name)
    if found is not None:
        _set_property(self._alive(), found, value)
        return True
    self._alive().setProperty(name, unwrap(value))
    return False  # as Qt answers for a dynamic property


def _property(self: Proxy, name: str) -> Any:
    check_value(name, "QString", "property's name")
    return self._alive().property(name)


_DECORATED: dict[str, Callable] = {
    "connect": _connect,
    "disconnect": _disconnect,
    "findChild": _find_child,
    "findChildren": _find_children,
    "property": _property,
    "setProperty": _set_any_property,
    "parent": lambda self: self._alive().parent(),
    "setParent": lambda self, parent, *flags: self._alive().setParent(unwrap(parent), *flags),
    "children": lambda self: _children(self._alive()),
    "metaObject": lambda self: self._alive().metaObject(),
    "inherits": lambda self, name: self._alive().inherits(name),
    "tr": lambda self, text: text,
}


def _single_shot(milliseconds: int, function: Callable) -> None:
    check_value(milliseconds, "int", "singleShot's time in milliseconds")
    if not callable(function):
        raise WrongArguments(f"{function!r} is not callable")
    QtCore.QTimer.singleShot(milliseconds, lambda: called_by_qt(function, ()))
