"""CTK's widgets as far as the modules use them, drawn with Qt's own.

Properties, signals, slots and invokables are those of CTK's headers (Libs/Widgets); PythonQt shows
nothing else of these classes. The module `ctk` is made of the classes whose names begin with ctk.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from . import dialogs
from ._pyside import QtCore, QtWidgets

Property, Signal, Slot = QtCore.Property, QtCore.Signal, QtCore.Slot
_Policy = QtWidgets.QSizePolicy.Policy


def _plain(kind: Any, name: str, default: Any) -> Any:
    """A property that only keeps its value: what it changes cannot be seen here."""
    return Property(
        kind,
        lambda self: self.__dict__.get(f"_{name}", default),
        lambda self, value: self.__dict__.__setitem__(f"_{name}", value),
    )


class ctkCheckBox(QtWidgets.QCheckBox):
    """ctkCheckBox.h"""


class ctkPushButton(QtWidgets.QPushButton):
    """ctkPushButton.h"""

    elideMode = _plain(int, "elideMode", 3)
    buttonTextAlignment = _plain(int, "buttonTextAlignment", 0x84)
    iconAlignment = _plain(int, "iconAlignment", 0x81)


class ctkComboBox(QtWidgets.QComboBox):
    """ctkComboBox.h"""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._default_text = ""

    def _set_default_text(self, text: str) -> None:
        self._default_text = text
        self.setPlaceholderText(text)

    def _user_data(self) -> str:
        data = self.currentData()
        return "" if data is None else str(data)

    def _choose_user_data(self, text: str) -> None:
        self.setCurrentUserDataAsString(text)

    defaultText = Property(str, lambda self: self._default_text, _set_default_text)
    setDefaultText = _set_default_text
    forceDefault = _plain(bool, "forceDefault", False)
    elideMode = _plain(int, "elideMode", 3)
    currentUserDataAsString = Property(str, _user_data, _choose_user_data)

    @Slot(str)
    def setCurrentUserDataAsString(self, text: str) -> None:
        for index in range(self.count()):
            if str(self.itemData(index)) == text:
                self.setCurrentIndex(index)


class ctkMessageBox(QtWidgets.QMessageBox):
    """ctkMessageBox.h"""

    dontShowAgain = _plain(bool, "dontShowAgain", False)
    dontShowAgainVisible = _plain(bool, "dontShowAgainVisible", False)
    dontShowAgainSettingsKey = _plain(str, "dontShowAgainSettingsKey", "")


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """ctkCollapsibleButton.h: a header that shows and hides the widgets below it."""

    contentsCollapsed = Signal(bool)

    def __init__(self, *arguments: Any) -> None:
        text = arguments[0] if arguments and isinstance(arguments[0], str) else ""
        parent = arguments[-1] if arguments and not isinstance(arguments[-1], str) else None
        super().__init__(parent)
        self._collapsed = False
        self._hidden: list[Any] = []
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(_Policy.Preferred, _Policy.Preferred)
        self.setContentsMargins(0, self._header(), 0, 0)
        self.toggled.connect(lambda opened: self._collapse(not opened))

    def _header(self) -> int:
        return self.fontMetrics().height() + 8

    def _collapse(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self.setChecked(not collapsed)
        children = self.findChildren(
            QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly
        )
        if collapsed:
            self._hidden = [child for child in children if not child.isHidden()]
        for child in children:
            child.removeEventFilter(self)
        for child in self._hidden:
            child.setVisible(not collapsed)
        for child in children if collapsed else []:
            child.installEventFilter(self)
        self.setMaximumHeight(self._header() if collapsed else 16777215)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def eventFilter(self, child: Any, event: Any) -> bool:
        """What is shown while the button is collapsed appears once it is opened."""
        if event.type() == QtCore.QEvent.Type.ShowToParent and self._collapsed:
            child.removeEventFilter(self)
            child.setVisible(False)
            child.installEventFilter(self)
            if child not in self._hidden:
                self._hidden.append(child)
        return False

    collapsed = Property(bool, lambda self: self._collapsed, _collapse)
    collapsedHeight = _plain(int, "collapsedHeight", 10)
    flat = _plain(bool, "flat", False)
    contentsLineWidth = _plain(int, "contentsLineWidth", 1)
    contentsMidLineWidth = _plain(int, "contentsMidLineWidth", 0)
    contentsFrameShape = _plain(int, "contentsFrameShape", 0)
    contentsFrameShadow = _plain(int, "contentsFrameShadow", 16)
    buttonTextAlignment = _plain(int, "buttonTextAlignment", 0x84)
    indicatorAlignment = _plain(int, "indicatorAlignment", 0x81)

    def hitButton(self, position: Any) -> bool:
        return position.y() < self._header()

    def sizeHint(self) -> Any:
        width = self.fontMetrics().horizontalAdvance(self.text()) + 40
        if self._collapsed or self.layout() is None:
            return QtCore.QSize(width, self._header())
        return self.layout().totalSizeHint().expandedTo(QtCore.QSize(width, self._header()))

    def minimumSizeHint(self) -> Any:
        if self._collapsed or self.layout() is None:
            return QtCore.QSize(40, self._header())
        return self.layout().totalMinimumSize()

    def paintEvent(self, event: Any) -> None:
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        option.rect = QtCore.QRect(0, 0, self.width(), self._header())
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, self._header() // 2 - 5, 10, 10)
        elements = QtWidgets.QStyle.PrimitiveElement
        shape = (
            elements.PE_IndicatorArrowRight if self._collapsed else elements.PE_IndicatorArrowDown
        )
        painter.drawPrimitive(shape, arrow)
        text = option.rect.adjusted(22, 0, -4, 0)
        painter.drawText(text, int(QtCore.Qt.AlignmentFlag.AlignVCenter), self.text())


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """ctkCollapsibleGroupBox.h"""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._hidden: list[Any] = []
        self.setCheckable(True)
        self.setChecked(True)
        self.toggled.connect(self._show)

    def _show(self, shown: bool) -> None:
        if not shown:
            children = self.findChildren(
                QtWidgets.QWidget, options=QtCore.Qt.FindChildOption.FindDirectChildrenOnly
            )
            self._hidden = [child for child in children if not child.isHidden()]
        for child in self._hidden:
            child.setVisible(shown)

    def _set_collapsed(self, collapsed: bool) -> None:
        self.setChecked(not collapsed)

    collapsed = Property(bool, lambda self: not self.isChecked(), _set_collapsed)
    collapsedHeight = _plain(int, "collapsedHeight", 14)


class ctkPathLineEdit(QtWidgets.QWidget):
    """ctkPathLineEdit.h: a path that can be typed, chosen from the last ones, or browsed for."""

    class Filter(enum.IntFlag):
        Dirs = 0x001
        Files = 0x002
        Drives = 0x004
        NoSymLinks = 0x008
        AllEntries = 0x007
        Readable = 0x010
        Writable = 0x020
        Executable = 0x040
        Hidden = 0x100
        System = 0x200
        NoDotAndDotDot = 0x1000
        NoDot = 0x2000
        NoDotDot = 0x4000

    class Option(enum.IntFlag):
        ShowDirsOnly = 0x01
        DontResolveSymlinks = 0x02
        DontConfirmOverwrite = 0x04
        DontUseSheet = 0x08
        DontUseNativeDialog = 0x10
        ReadOnly = 0x20
        HideNameFilterDetails = 0x40

    QtCore.QFlag(Filter)
    QtCore.QFlag(Option)
    Dirs, Files, Writable = Filter.Dirs, Filter.Files, Filter.Writable
    Readable, AllEntries, NoDot, NoDotDot = (
        Filter.Readable,
        Filter.AllEntries,
        Filter.NoDot,
        Filter.NoDotDot,
    )

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self._box = QtWidgets.QComboBox(self)
        self._box.setEditable(True)
        self._box.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._box.setSizePolicy(_Policy.Expanding, _Policy.Fixed)
        self._browse = QtWidgets.QToolButton(self)
        self._browse.setText("...")
        layout.addWidget(self._box)
        layout.addWidget(self._browse)
        self._browse.clicked.connect(self.browse)
        self._box.lineEdit().textChanged.connect(self.currentPathChanged)
        self.setSizePolicy(_Policy.Expanding, _Policy.Fixed)
        self._filters = self.Filter.AllEntries

    def _set_path(self, path: str) -> None:
        self._box.lineEdit().setText(path)

    def _set_filters(self, filters: Any) -> None:
        self._filters = filters

    def _set_browse_shown(self, shown: bool) -> None:
        self._browse.setVisible(shown)

    currentPath = Property(str, lambda self: self._box.currentText(), _set_path)
    filters = Property(int, lambda self: int(self._filters), _set_filters)
    label = _plain(str, "label", "")
    options = _plain(int, "options", 0)
    settingKey = _plain(str, "settingKey", "")
    showHistoryButton = _plain(bool, "showHistoryButton", True)
    showBrowseButton = Property(bool, lambda self: not self._browse.isHidden(), _set_browse_shown)
    sizeAdjustPolicy = _plain(int, "sizeAdjustPolicy", 1)
    minimumContentsLength = _plain(int, "minimumContentsLength", 0)
    nameFilters = _plain("QStringList", "nameFilters", [])

    @Slot(result=QtCore.QObject)
    def comboBox(self) -> Any:
        return self._box

    @Slot(str)
    def setCurrentPath(self, path: str) -> None:
        self._set_path(path)

    @Slot()
    def browse(self) -> None:
        if self._filters & self.Filter.Files:
            save = bool(self._filters & self.Filter.Writable)
            title = "Select a file to save " if save else "Open a file"
            path = dialogs.ask_for_file(self, title, save)
        else:
            path = dialogs.ask_for_folder(self, "Select a directory...")
        if path:
            self.setCurrentPath(path)

    def _key(self) -> str:
        return self.property("settingKey") or f"ctkPathLineEdit/{self.objectName()}"

    @Slot()
    def retrieveHistory(self) -> None:
        path = self._box.currentText()
        self.blockSignals(True)
        self._box.clear()
        history = QtCore.QSettings().value(self._key()) or []
        self._box.addItems([history] if isinstance(history, str) else list(history))
        self.blockSignals(False)
        if path:
            self._set_path(path)

    @Slot()
    def addCurrentPathToHistory(self) -> None:
        path = self._box.currentText()
        if not path:
            return
        history = QtCore.QSettings().value(self._key()) or []
        history = [history] if isinstance(history, str) else list(history)
        kept = [path, *(old for old in history if old != path)]
        QtCore.QSettings().setValue(self._key(), kept)
        self._box.blockSignals(True)
        self._box.clear()
        self._box.addItems(kept)
        self._box.blockSignals(False)


class ctkDirectoryButton(QtWidgets.QWidget):
    """ctkDirectoryButton.h"""

    directoryChanged = Signal(str)
    directorySelected = Signal(str)

    def __init__(self, *arguments: Any) -> None:
        directory = arguments[0] if arguments and isinstance(arguments[0], str) else "."
        parent = arguments[-1] if arguments and not isinstance(arguments[-1], str) else None
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._button = QtWidgets.QPushButton(self)
        layout.addWidget(self._button)
        self._button.clicked.connect(self.browse)
        self._directory = directory
        self._button.setText(directory)

    def _set_directory(self, path: str) -> None:
        whole = str(Path(path).absolute())
        if whole != str(Path(self._directory).absolute()):
            self._directory = whole
            self._button.setText(self.property("text") or whole)
            self.directoryChanged.emit(whole)
        self.directorySelected.emit(path)

    directory = Property(str, lambda self: self._directory, _set_directory)
    caption = _plain(str, "caption", "")
    text = _plain(str, "text", "")
    options = _plain(int, "options", 1)
    acceptMode = _plain(int, "acceptMode", 0)
    elideMode = _plain(int, "elideMode", 3)

    @Slot(result=str)
    def browse(self) -> str:
        path = dialogs.ask_for_folder(self, self.property("caption") or "Select a directory...")
        if path:
            self._set_directory(path)
        return path


class ctkSliderWidget(QtWidgets.QWidget):
    """ctkSliderWidget.h: a slider with a box to type the number."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._slider.setRange(0, 1000)
        self._box = QtWidgets.QDoubleSpinBox(self)
        self._box.setRange(0.0, 99.0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._moved)
        self._slider.sliderMoved.connect(self._slid)
        self.setSizePolicy(_Policy.Expanding, _Policy.Fixed)

    def _moved(self, value: float) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        share = (value - low) / (high - low) if high > low else 0.0
        self._slider.blockSignals(True)
        self._slider.setValue(round(share * 1000))
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    def _slid(self, position: int) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        self._box.setValue(low + (high - low) * position / 1000)

    def _forward(kind: Any, name: str, getter: str) -> Any:
        setter = f"set{name[0].upper()}{name[1:]}"
        return Property(
            kind,
            lambda self: getattr(self._box, getter)(),
            lambda self, value: getattr(self._box, setter)(value),
        )

    minimum = _forward(float, "minimum", "minimum")
    maximum = _forward(float, "maximum", "maximum")
    value = _forward(float, "value", "value")
    singleStep = _forward(float, "singleStep", "singleStep")
    decimals = _forward(int, "decimals", "decimals")
    prefix = _forward(str, "prefix", "prefix")
    suffix = _forward(str, "suffix", "suffix")
    del _forward
    pageStep = _plain(float, "pageStep", 10.0)
    tickInterval = _plain(float, "tickInterval", 0.0)
    tracking = _plain(bool, "tracking", True)
    spinBoxVisible = _plain(bool, "spinBoxVisible", True)
    popupSlider = _plain(bool, "popupSlider", False)
    invertedAppearance = _plain(bool, "invertedAppearance", False)
    invertedControls = _plain(bool, "invertedControls", False)

    @Slot(float)
    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    @Slot(int)
    def setDecimals(self, decimals: int) -> None:
        self._box.setDecimals(decimals)
        self.decimalsChanged.emit(decimals)

    @Slot()
    def reset(self) -> None:
        self._box.setValue(0.0)


class ctkFittedTextBrowser(QtWidgets.QTextBrowser):
    """ctkFittedTextBrowser.h"""

    collapsed = _plain(bool, "collapsed", True)
    collapsibleText = _plain(str, "collapsibleText", "")
