"""Which of Qt's classes and methods PythonQt has, where that differs from PySide6.

Read off PythonQt's generated wrappers for Qt 5.15 (generated_cpp_515 in MeVisLab/pythonqt) and its
decorators (src/PythonQtStdDecorators.h).
"""

from __future__ import annotations

# Classes the module `qt` offers here; PythonQt has more. Any other name is an AttributeError.
_CLASSES = """
    QAbstractButton QAbstractItemModel QAbstractItemView QAbstractScrollArea QAbstractSlider
    QAbstractSpinBox QAction QApplication QBoxLayout QBrush QButtonGroup QByteArray QCheckBox
    QClipboard QColor QComboBox QCoreApplication QCursor QDate QDateTime QDesktopServices QDialog
    QDialogButtonBox QDir QDoubleSpinBox QElapsedTimer QEvent QEventLoop QFile QFileDevice
    QFileDialog QFileInfo QFont QFontMetrics QFormLayout QFrame QGridLayout QGroupBox
    QGuiApplication QHBoxLayout QHeaderView QIcon QImage QInputDialog QIODevice QItemSelectionModel
    QKeySequence QLabel QLayout QLayoutItem QLineEdit QListView QListWidget QListWidgetItem QLocale
    QMainWindow QMenu QMessageBox QModelIndex QObject QPalette QPixmap QPlainTextEdit QPoint
    QProcess QProcessEnvironment QProgressBar QProgressDialog QPushButton QRadioButton QRect
    QScrollArea QSettings QShortcut QSize QSizePolicy QSlider QSpacerItem QSpinBox QSplitter
    QStackedWidget QStandardItem QStandardItemModel QStandardPaths QStatusBar QStyle QSysInfo
    QTabWidget QTableView QTableWidget QTableWidgetItem QTemporaryDir QTextBrowser QTextCursor
    QTextDocument QTextEdit QThread QTime QTimer QToolButton QToolTip QTreeView QTreeWidget
    QTreeWidgetItem QUiLoader QUrl QVBoxLayout QWidget
"""
CLASSES = frozenset(_CLASSES.split())

# Methods that PySide6 has and PythonQt has not.
_ABSENT = """
QObject: connectNotify disconnectNotify emit isQmlExposed isQuickItemType receivers
QWidget: create find internalWinId isTopLevel setAccessibleIdentifier setScreen topLevelWidget
    updateMicroFocus
QLineEdit: del_
QComboBox: setLabelDrawingMode
QMessageBox: buttonText setButtonText setOption setOptions standardIcon testOption
QProgressDialog: forceShow
QDialogButtonBox: standardButtonShortcut standardButtonText
QLayout: getContentsMargins setHorizontalSizeConstraint setSizeConstraints
    setVerticalSizeConstraint totalMinimumHeightForWidth unsetContentsMargins
QGridLayout: getItemPosition
QFormLayout: isRowVisible setRowVisible
QAbstractItemView: itemDelegateForIndex setKeyboardSearchFlags setUpdateThreshold
QTableWidget: setSupportedDragActions
QHeaderView: isSortIndicatorClearable setSortIndicatorClearable
QListWidget: setSupportedDragActions
QTreeWidget: setSupportedDragActions
QAction: associatedObjects
QMenu: menuInAction
QPixmap: deviceIndependentSize fromImageInPlace
QColor: fromString getHsv getHsvF getRgb getRgbF isValidColorName toTuple
QSize: toSizeF toTuple
QTimer: id intervalAsDuration remainingTimeAsDuration
QProcess: failChildProcessModifier setUnixProcessParameters startCommand unixProcessParameters
QProcessEnvironment: inheritsFromParent
QFile: supportsMoveToTrash
QFileInfo: fileTime isAlias isOther junctionTarget readSymLink stat
QCoreApplication: checkPermission installNativeEventFilter instanceExists removeNativeEventFilter
    requestPermission resolveInterface shutdown
QLocale: codeToCountry codeToLanguage codeToScript codeToTerritory countryToCode formattedDataSize
    languageToCode nativeTerritoryName scriptToCode territory territoryToCode territoryToString
QDateTime: addDuration timeRepresentation toPython
QDate: toPython
QTime: toPython
QFont: clearFeatures featureTags featureValue isFeatureSet legacyWeight setFeature setLegacyWeight
    unsetFeature
QPalette: accent resolveMask setResolveMask
QUiLoader: registerCustomWidget
QTextCursor: insertMarkdown selectedTableCells
QPoint: toPointF toTuple
QRect: getCoords getRect span toRectF
QTemporaryDir: swap
QModelIndex: constInternalPointer multiData
QAbstractItemModel: checkIndex clearItemData multiData
QStandardItem: multiData
QImage: bits constBits constScanLine convertedTo flip flipped mirror rgbSwap scanLine
QThread: isCurrentThread isMainThread serviceLevel setServiceLevel
QShortcut: keys setKeys
QStyle: itemTextRect
"""

ABSENT: dict[str, frozenset[str]] = {
    line.split(":")[0]: frozenset(line.split(":")[1].split())
    for line in _ABSENT.replace("\n    ", " ").strip().splitlines()
}
