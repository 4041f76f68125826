"""Slicer's widgets that know the scene, on the real scene of slicer-core.

Properties, slots and invokables are those of Slicer's headers (Libs/MRML/Widgets: qMRMLWidget.h,
qMRMLNodeComboBox.h, qMRMLTableView.h); nothing else of these classes reaches Python there.
"""

from __future__ import annotations

import weakref
from typing import Any

import slicer
import vtk

from . import dialogs
from ._pyside import QtCore, QtGui, QtWidgets
from .ctk import ctkComboBox

_ID = int(QtCore.Qt.ItemDataRole.UserRole) + 1
_ACTION = int(QtCore.Qt.ItemDataRole.UserRole) + 2

Property, Signal, Slot = QtCore.Property, QtCore.Signal, QtCore.Slot


class qMRMLWidget(QtWidgets.QWidget):
    """Libs/MRML/Widgets/qMRMLWidget.h"""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene = None

    @Slot(result=object)
    def mrmlScene(self) -> Any:
        return self._scene

    @Slot(object)
    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class _Observers:
    """Observers of VTK objects that end with the widget and do not keep it alive."""

    def __init__(self, widget: Any) -> None:
        self._widget = weakref.ref(widget)
        self._made: list[tuple[Any, int]] = []
        made = self._made
        widget.destroyed.connect(lambda: _remove(made))

    def add(self, target: Any, event: Any, method: str, node: bool = False) -> None:
        widget = self._widget

        def call(caller: Any, name: str, data: Any = None) -> None:
            alive = widget()
            if alive is not None:
                getattr(alive, method)(data if node else caller)

        if node:
            call = vtk.calldata_type(vtk.VTK_OBJECT)(call)
        self._made.append((target, target.AddObserver(event, call)))

    def remove(self, target: Any = None) -> None:
        _remove(self._made, target)


def _remove(made: list[tuple[Any, int]], target: Any = None) -> None:
    for entry in list(made):
        if target is None or entry[0] is target:
            entry[0].RemoveObserver(entry[1])
            made.remove(entry)


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Libs/MRML/Widgets/qMRMLNodeComboBox.h

    Lists the nodes of the scene; which one is current changes only when the user or the program
    chooses one, or the current one goes. The rows are those of the real one: None, the nodes, the
    actions.
    """

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAddedByUserAction = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    nodeAboutToBeEdited = Signal(object)
    currentNodeRenamed = Signal(str)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._requested: Any = None
        self._values: dict[str, Any] = {
            "nodeTypes": [],
            "hideChildNodeTypes": [],
            "showHidden": False,
            "showChildNodeTypes": True,
            "noneEnabled": False,
            "addEnabled": True,
            "removeEnabled": True,
            "editEnabled": False,
            "renameEnabled": False,
            "selectNodeUponCreation": True,
            "noneDisplay": "None",
            "interactionNodeSingletonTag": "Singleton",
        }
        self._base_names: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._attributes: dict[str, tuple[str, Any]] = {}
        self._user_actions: list[Any] = []
        self._observers = _Observers(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._box = ctkComboBox(self)
        self._box.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed
        )
        layout.addWidget(self._box)
        self._quiet = False
        self._box.currentTextChanged.connect(self._announce)
        self._box.activated.connect(self._activated)
        self.setEnabled(False)

    # --- properties

    def _get(name: str) -> Any:
        return lambda self: self._values[name]

    def _set(name: str) -> Any:
        def set_value(self: Any, value: Any) -> None:
            if self._values[name] != value:
                self._values[name] = value
                self._rebuild()

        return set_value

    def _set_types(self, types: Any) -> None:
        self._values["nodeTypes"] = [name for name in types if name]
        self._rebuild()

    nodeTypes = Property("QStringList", _get("nodeTypes"), _set_types)
    hideChildNodeTypes = Property(
        "QStringList", _get("hideChildNodeTypes"), _set("hideChildNodeTypes")
    )
    showHidden = Property(bool, _get("showHidden"), _set("showHidden"))
    showChildNodeTypes = Property(bool, _get("showChildNodeTypes"), _set("showChildNodeTypes"))
    noneEnabled = Property(bool, _get("noneEnabled"), _set("noneEnabled"))
    addEnabled = Property(bool, _get("addEnabled"), _set("addEnabled"))
    removeEnabled = Property(bool, _get("removeEnabled"), _set("removeEnabled"))
    editEnabled = Property(bool, _get("editEnabled"), _set("editEnabled"))
    renameEnabled = Property(bool, _get("renameEnabled"), _set("renameEnabled"))
    selectNodeUponCreation = Property(
        bool, _get("selectNodeUponCreation"), _set("selectNodeUponCreation")
    )
    noneDisplay = Property(str, _get("noneDisplay"), _set("noneDisplay"))
    interactionNodeSingletonTag = Property(
        str, _get("interactionNodeSingletonTag"), _set("interactionNodeSingletonTag")
    )
    del _get, _set

    def _base_name(self) -> str:
        types = self._values["nodeTypes"]
        return self._base_names.get(types[0], "") if types else ""

    def _set_base_name(self, name: str) -> None:
        for kind in self._values["nodeTypes"]:
            self._base_names[kind] = name

    baseName = Property(str, _base_name, _set_base_name)

    def _current_id(self) -> str:
        node = self.currentNode()
        return node.GetID() if node is not None else ""

    def _set_current_id(self, node_id: str) -> None:
        self.setCurrentNodeID(node_id)

    currentNodeID = Property(str, _current_id, _set_current_id)

    # --- invokables and slots

    @Slot(result=object)
    def mrmlScene(self) -> Any:
        return self._scene

    @Slot(result=object)
    def currentNode(self) -> Any:
        return self._node_at(self._box.currentIndex())

    @Slot(result=int)
    def nodeCount(self) -> int:
        return len(self._rows())

    @Slot(int, result=object)
    def nodeFromIndex(self, index: int) -> Any:
        rows = self._rows()
        return self._node_at(rows[index]) if 0 <= index < len(rows) else None

    @Slot(str, str)
    @Slot(str, str, object)
    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        self._attributes[kind] = (name, value)
        self._rebuild()

    @Slot(str, str)
    def removeAttribute(self, kind: str, name: str) -> None:
        self._attributes.pop(kind, None)
        self._rebuild()

    @Slot(str, str)
    def setNodeTypeLabel(self, label: str, kind: str) -> None:
        self._labels[kind] = label
        self._rebuild()

    @Slot(str, result=str)
    def nodeTypeLabel(self, kind: str) -> str:
        if self._labels.get(kind):
            return self._labels[kind]
        shown = self._scene.GetTypeDisplayNameByClassName(kind) if self._scene else ""
        return shown or "node"

    @Slot(QtCore.QObject)
    def addMenuAction(self, action: Any) -> None:
        if all(action.text() != other.text() for other in self._user_actions):
            self._user_actions.append(action)
            self._rebuild()

    @Slot(object)
    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._scene:
            return
        self._observers.remove()
        self._scene = scene
        if scene is not None:
            add, events = self._observers.add, slicer.vtkMRMLScene
            add(scene, events.NodeAddedEvent, "_node_added", node=True)
            add(scene, events.NodeAboutToBeRemovedEvent, "_node_going", node=True)
            add(scene, events.EndCloseEvent, "_scene_closed")
        requested, self._requested = self._requested, None
        self._rebuild()
        if requested is not None:
            self.setCurrentNode(requested)
        self.setEnabled(scene is not None)

    @Slot(object)
    def setCurrentNode(self, node: Any) -> None:
        if node is not None and not isinstance(node, slicer.vtkMRMLNode):
            raise ValueError(f"setCurrentNode wants a node, not {node!r}")
        if self._scene is None:
            self._requested = node
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    @Slot(str)
    def setCurrentNodeID(self, node_id: str) -> None:
        row = self._row_of(node_id) if node_id else -1
        if row < 0:
            row = 0 if self._values["noneEnabled"] else -1
        self._box.setCurrentIndex(row)

    @Slot(int)
    def setCurrentNodeIndex(self, index: int) -> None:
        if index >= self.nodeCount():
            index = -1
        self._box.setCurrentIndex(index + bool(self._values["noneEnabled"]))

    @Slot(result=object)
    @Slot(str, result=object)
    def addNode(self, kind: str = "") -> Any:
        types = self._values["nodeTypes"]
        kind = kind or (types[0] if types else "")
        if kind not in types:
            return None
        node = self._scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        base = self._base_names.get(kind) or node.GetName() or node.GetDefaultNodeNamePrefix()
        node.SetName(self._scene.GetUniqueNameByString(base))
        for name, value in self._attributes.values():
            node.SetAttribute(name, str(value) if value is not None else "")
        node = self._scene.AddNode(node)
        if self._values["selectNodeUponCreation"]:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    @Slot()
    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self.currentNode())

    @Slot()
    def editCurrentNode(self) -> None:
        self.nodeAboutToBeEdited.emit(self.currentNode())

    @Slot()
    def renameCurrentNode(self) -> None:
        node = self.currentNode()
        if node is None:
            return
        title = f"Rename {self.nodeTypeLabel(node.GetClassName())}"
        name = dialogs.ask_for_text(self, title, "New name:")
        if name:
            node.SetName(name)
            self.currentNodeRenamed.emit(name)

    # --- rows

    def _rows(self) -> list[int]:
        return [row for row in range(self._box.count()) if self._box.itemData(row, _ID)]

    def _row_of(self, node_id: str) -> int:
        return next((row for row in self._rows() if self._box.itemData(row, _ID) == node_id), -1)

    def _node_at(self, row: int) -> Any:
        node_id = self._box.itemData(row, _ID) if row >= 0 else None
        return self._scene.GetNodeByID(node_id) if node_id and self._scene else None

    def _accepts(self, node: Any) -> bool:
        if node.GetHideFromEditors() and not self._values["showHidden"]:
            return False
        types = self._values["nodeTypes"]
        if not types:
            return True
        for kind in types:
            if not node.IsA(kind):
                continue
            if not self._values["showChildNodeTypes"] and node.GetClassName() != kind:
                continue
            if any(node.IsA(hidden) for hidden in self._values["hideChildNodeTypes"]):
                return False
            if kind in self._attributes:
                name, wanted = self._attributes[kind]
                given = node.GetAttribute(name)
                return given is not None and (wanted is None or str(wanted) == given)
            return True
        return False

    def _actions(self) -> list[tuple[str, str]]:
        values, types = self._values, self._values["nodeTypes"]
        label = self.nodeTypeLabel(types[0] if len(types) == 1 else "")
        found = []
        if values["renameEnabled"]:
            found.append((f"Rename current {label}", "RENAME"))
        if values["editEnabled"]:
            found.append((f"Edit current {label}", "EDIT"))
        for kind in types if values["addEnabled"] else []:
            name = self.nodeTypeLabel(kind)
            found.append((f"Create new {name}", f"CREATE/{kind}"))
            if values["renameEnabled"]:
                found.append((f"Create new {name} as...", f"CREATE_AS/{kind}"))
        if values["removeEnabled"]:
            found.append((f"Delete current {label}", "DELETE"))
        found.extend((action.text(), "USER") for action in self._user_actions)
        return found

    def _rebuild(self) -> None:
        """Fill all rows anew; the current node stays if it is still listed."""
        kept = self._box.itemData(self._box.currentIndex(), _ID)
        before = self._box.currentIndex()
        self._quiet = True
        self._box.clear()
        types = self._values["nodeTypes"]
        self._box.setDefaultText(f"Select a {self.nodeTypeLabel(types[0] if types else '')}")
        if self._scene is not None:
            if self._values["noneEnabled"]:
                self._box.addItem(self._values["noneDisplay"])
            for index in range(self._scene.GetNumberOfNodes()):
                node = self._scene.GetNthNode(index)
                if self._accepts(node):
                    self._append(node)
            actions = self._actions()
            if actions:
                self._box.insertSeparator(self._box.count())
            for text, action in actions:
                self._box.addItem(text)
                self._box.setItemData(self._box.count() - 1, action, _ACTION)
        row = self._row_of(kept) if kept else -1
        if row < 0 and self._values["noneEnabled"] and self._scene is not None:
            row = 0
        self._box.setCurrentIndex(row)
        self._quiet = False
        if (kept or before > 0) and self._box.itemData(row, _ID) != kept:
            self._announce()

    def _append(self, node: Any) -> None:
        row = self._rows()[-1] + 1 if self._rows() else int(self._values["noneEnabled"])
        self._box.insertItem(row, node.GetName() or "")  # its placeholder keeps it unchosen
        self._box.setItemData(row, node.GetID(), _ID)
        self._observers.add(node, vtk.vtkCommand.ModifiedEvent, "_node_modified")

    def _node_added(self, node: Any) -> None:
        if self._accepts(node) and self._row_of(node.GetID()) < 0:
            self._append(node)
            self.nodeAdded.emit(node)
        else:
            self._observers.add(node, vtk.vtkCommand.ModifiedEvent, "_node_modified")

    def _node_going(self, node: Any) -> None:
        if self._scene.IsClosing():
            return
        self._observers.remove(node)
        row = self._row_of(node.GetID())
        if row >= 0:
            self.nodeAboutToBeRemoved.emit(node)
            self._box.removeItem(row)

    def _node_modified(self, node: Any) -> None:
        row = self._row_of(node.GetID() or "")
        if row < 0:
            if self._scene.IsNodePresent(node) and self._accepts(node):
                self._append(node)
        elif not self._accepts(node):
            self._box.removeItem(row)
        elif self._box.itemText(row) != node.GetName():
            self._box.setItemText(row, node.GetName() or "")

    def _scene_closed(self, scene: Any) -> None:
        self._rebuild()

    def _announce(self, text: str = "") -> None:
        if self._quiet:
            return
        index = self._box.currentIndex()
        node = self._node_at(index)
        none = 0 if self._values["noneEnabled"] else -1
        if node is None and index != none:  # an action is no choice
            last = self._rows()
            self._box.setCurrentIndex(last[-1] if last else none)
            return
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _activated(self, index: int) -> None:
        node = self._node_at(index)
        if node is not None or (self._values["noneEnabled"] and index == 0):
            self.nodeActivated.emit(node)

    def choose(self, text: str) -> None:
        """What a user does: open the list and click the row with this text."""
        row = self._box.findText(text)
        if row < 0:
            rows = [self._box.itemText(index) for index in range(self._box.count())]
            raise AssertionError(f"the list has no '{text}', only {rows}")
        action = self._box.itemData(row, _ACTION)
        if not action:
            self._box.setCurrentIndex(row)
            self._activated(row)
        elif action.startswith("CREATE"):
            command, kind = action.split("/")
            name = ""
            if command == "CREATE_AS":
                title = f"Create new {self.nodeTypeLabel(kind)}"
                name = dialogs.ask_for_text(self, title, "New name:")
                if not name:
                    return
            node = self.addNode(kind)
            if name:
                node.SetName(name)
            self.setCurrentNode(node)
            self.nodeAddedByUserAction.emit(node)
        elif action == "USER":
            next(one for one in self._user_actions if one.text() == text).trigger()
        else:
            {
                "DELETE": self.removeCurrentNode,
                "EDIT": self.editCurrentNode,
                "RENAME": self.renameCurrentNode,
            }[action]()


class qMRMLTableView(QtWidgets.QTableView):
    """Libs/MRML/Widgets/qMRMLTableView.h: shows a table node, read anew when the node changes.

    As in qMRMLTableModel.cxx the node says what is a header: without
    SetUseColumnTitleAsColumnHeader the names of the columns are the first row. As in
    qMRMLTableView.cxx its properties cannot be set before there is a node: not in a .ui file.
    """

    mrmlSceneChanged = Signal(object)
    selectionChanged = Signal()

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._node: Any = None
        self._transposed = False
        self._cells = QtGui.QStandardItemModel(self)
        self.setModel(self._cells)
        self._observers = _Observers(self)

    def _has_node(self) -> bool:
        if self._node is None:
            QtCore.qWarning("qMRMLTableView: failed: invalid node")
        return self._node is not None

    def _is_transposed(self) -> bool:
        return self._has_node() and self._transposed

    def _transpose(self, transposed: bool) -> None:
        if self._has_node():
            self._transposed = transposed
            self._fill()

    def _locked(self, row: bool) -> bool:
        if not self._has_node():
            return False
        if row == self._transposed:
            return bool(self._node.GetUseFirstColumnAsRowHeader())
        return bool(self._node.GetUseColumnTitleAsColumnHeader())

    def _lock(self, row: bool, locked: bool) -> None:
        if not self._has_node():
            return
        if row == self._transposed:
            self._node.SetUseFirstColumnAsRowHeader(locked)
        else:
            self._node.SetUseColumnTitleAsColumnHeader(locked)

    transposed = Property(bool, _is_transposed, _transpose)
    firstRowLocked = Property(
        bool, lambda self: self._locked(True), lambda self, value: self._lock(True, value)
    )
    firstColumnLocked = Property(
        bool, lambda self: self._locked(False), lambda self, value: self._lock(False, value)
    )

    @Slot(result=object)
    def mrmlScene(self) -> Any:
        return self._scene

    @Slot(result=object)
    def mrmlTableNode(self) -> Any:
        return self._node

    @Slot(object)
    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)

    @Slot(object)
    def setMRMLTableNode(self, node: Any) -> None:
        if node is not None and not isinstance(node, slicer.vtkMRMLTableNode):
            raise ValueError(f"setMRMLTableNode wants a table node, not {node!r}")
        self._observers.remove()
        self._node = node
        if node is not None:
            self._observers.add(node, vtk.vtkCommand.ModifiedEvent, "_changed")
        self._fill()
        self.horizontalHeader().setMinimumSectionSize(60)
        self.resizeColumnsToContents()
        self.selectionChanged.emit()

    def _changed(self, node: Any) -> None:
        self._fill()

    def _fill(self) -> None:
        node, cells = self._node, self._cells
        cells.clear()
        if node is None or node.GetTable() is None or not node.GetNumberOfColumns():
            return
        names = [node.GetColumnName(column) for column in range(node.GetNumberOfColumns())]
        rows = [
            [node.GetCellText(row, column) for column in range(len(names))]
            for row in range(node.GetNumberOfRows())
        ]
        titled = node.GetUseColumnTitleAsColumnHeader()
        if not titled:
            rows.insert(0, names)
        skipped = int(bool(node.GetUseFirstColumnAsRowHeader()))
        cells.setRowCount(len(names) - skipped if self._transposed else len(rows))
        cells.setColumnCount(len(rows) if self._transposed else len(names) - skipped)
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts[skipped:]):
                item = QtGui.QStandardItem(text)
                item.setEditable(not node.GetLocked())
                cells.setItem(*((column, row) if self._transposed else (row, column)), item)
        along = [self._title(name) for name in names[skipped:]] if titled else []
        aside = [texts[0] for texts in rows] if skipped else []
        cells.setHorizontalHeaderLabels(aside if self._transposed else along)
        cells.setVerticalHeaderLabels(along if self._transposed else aside)

    def _title(self, name: str) -> str:
        unit = self._node.GetColumnUnitLabel(name)
        title = self._node.GetColumnTitle(name) or name
        return f"{title} [{unit}]" if unit else title
