"""The stand-in for Slicer's window is as strict as it says, and as forgiving as PythonQt is."""

# Without `from __future__ import annotations`: parameterNodeWrapper reads the annotations.

import importlib.util
import textwrap
from pathlib import Path
from typing import Annotated

import pytest
import slicerhost

_MISSING = slicerhost.why_not() or (
    "" if importlib.util.find_spec("PySide6") else "PySide6-Essentials is not installed"
)
pytestmark = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)

if not _MISSING:
    import pythonqt
    from pythonqt import binding
    from pythonqt.binding import NoSuchSignal, WrongArguments
    from pythonqt.dialogs import UnexpectedDialog
    from pythonqt.uiloader import FormError

FORM = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0">
 <class>Form</class>
 <widget class="qMRMLWidget" name="Form">
  <layout class="QVBoxLayout" name="column">
   <item>
    <widget class="ctkCollapsibleButton" name="box">
     <property name="text"><string>Choices</string></property>
     <layout class="QFormLayout" name="lines">
      <item row="0" column="0">
       <widget class="QLabel" name="label"><property name="text"><string>CT:</string></property></widget>
      </item>
      <item row="0" column="1">
       <widget class="qMRMLNodeComboBox" name="inputSelector">
        <property name="nodeTypes">
         <stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist>
        </property>
        <property name="noneEnabled"><bool>true</bool></property>
        <property name="SlicerParameterName" stdset="0"><string>volume</string></property>
       </widget>
      </item>
      <item row="1" column="1">
       <widget class="ctkPathLineEdit" name="folder">
        <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>
       </widget>
      </item>
      <item row="2" column="1">
       <widget class="ctkSliderWidget" name="opacity">
        <property name="SlicerParameterName" stdset="0"><string>opacity</string></property>
       </widget>
      </item>
      <item row="3" column="1">
       <widget class="QCheckBox" name="merge">
        <property name="SlicerParameterName" stdset="0"><string>merge</string></property>
       </widget>
      </item>
      <item row="4" column="1">
       <widget class="QSpinBox" name="batch">
        <property name="SlicerParameterName" stdset="0"><string>batch</string></property>
       </widget>
      </item>
      <item row="5" column="1">
       <widget class="QLineEdit" name="model">
        <property name="SlicerParameterName" stdset="0"><string>model</string></property>
       </widget>
      </item>
      <item row="6" column="1">
       <widget class="ctkComboBox" name="device">
        <property name="SlicerParameterName" stdset="0"><string>device</string></property>
       </widget>
      </item>
     </layout>
    </widget>
   </item>
   <item><widget class="QPushButton" name="apply"><property name="text"><string>Go</string></property></widget></item>
  </layout>
 </widget>
 <connections>
  <connection>
   <sender>Form</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
   <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
  </connection>
 </connections>
</ui>
"""  # noqa: E501

MODULE = """
import qt
import slicer
import vtk
from slicer.ScriptedLoadableModule import *
from slicer.i18n import tr as _


class Toy(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("Toy")


class ToyWidget(ScriptedLoadableModuleWidget):
    cleaned = 0

    def setup(self):
        super().setup()
        self.button = qt.QPushButton("Go")
        self.layout.addWidget(self.button)

    def cleanup(self):
        ToyWidget.cleaned += 1
"""


@pytest.fixture
def window(tmp_path):
    with pythonqt.session(tmp_path) as session:
        yield session


@pytest.fixture
def qt(window):
    import qt

    return qt


@pytest.fixture
def form(window, tmp_path):
    return load(tmp_path, FORM)


def load(folder: Path, text: str):
    import slicer

    (folder / "form.ui").write_text(text, encoding="utf-8")
    return slicer.util.loadUI(str(folder / "form.ui"))


def volume(name: str):
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)


def expected_failure() -> BaseException:
    """Take the exception that would fail the session, and look at it."""
    return binding.uncaught.pop()


# --- attributes ------------------------------------------------------------------------------


def test_a_property_is_an_attribute_and_calling_it_fails(qt):
    button = qt.QPushButton("Go")
    button.toolTip = "Does it"
    assert (button.text, button.toolTip, button.enabled) == ("Go", "Does it", True)
    with pytest.raises(TypeError, match="not callable"):
        button.text()


def test_name_is_the_objects_name_unless_the_class_has_a_name_of_its_own(window, qt, tmp_path):
    button = qt.QPushButton("Go")
    button.name = "apply"
    assert button.objectName == "apply"
    (tmp_path / "Toy.py").write_text(MODULE, encoding="utf-8")
    module = window.load(tmp_path / "Toy.py")
    assert (module.name, module.objectName, module.title) == ("Toy", "", "Toy")


def test_a_new_attribute_is_refused_on_a_qt_object_and_kept_on_a_class_derived_in_python(qt):
    button = qt.QPushButton("Go")
    with pytest.raises(AttributeError, match="creating new attributes"):
        button.mine = 1

    class Mine(qt.QPushButton):
        pass

    mine = Mine("Go")
    mine.counter = 1
    assert (mine.counter, mine.text) == (1, "Go")
    box = qt.QWidget()
    qt.QVBoxLayout(box).addWidget(mine)
    del mine
    assert box.findChild(qt.QPushButton).counter == 1


def test_an_unknown_attribute_class_or_enumerator_does_not_exist(qt):
    for expression in ("QLabel().nothing", "QNothing", "Qt.Nothing", "QLabel.Nothing"):
        with pytest.raises(AttributeError):
            eval(f"qt.{expression}")


def test_methods_that_pyside_adds_to_qt_do_not_exist(qt):
    with pytest.raises(AttributeError):
        qt.QDate.currentDate().toPython()
    with pytest.raises(AttributeError):
        qt.QSize(1, 2).toTuple()
    with pytest.raises(AttributeError):
        qt.QObject().emit("x")


def test_public_methods_of_qt_are_there_beside_the_properties(qt):
    box = qt.QComboBox()
    box.addItem("Automatic", "auto")
    box.addItems(["CPU"])
    assert (box.findData("auto"), box.itemData(0), box.count) == (0, "auto", 2)
    assert qt.QPushButton("Go").isEnabled()
    assert qt.QDir("/tmp").absolutePath() == "/tmp"


def test_enumerators_are_numbers_of_the_class(qt):
    assert qt.QProcess.NotRunning == 0
    assert qt.Qt.AlignLeft | qt.Qt.AlignTop == 0x21
    assert qt.QMessageBox.Ok == 0x400
    label = qt.QLabel("CT")
    label.alignment = qt.Qt.AlignRight
    label.setSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Fixed)
    assert label.alignment == qt.Qt.AlignRight


def test_a_slot_cannot_be_overwritten_nor_a_read_only_property_set(qt):
    label = qt.QLabel("CT")
    with pytest.raises(AttributeError, match="can not be overwritten"):
        label.setText = print
    with pytest.raises(AttributeError, match="not writable"):
        label.width = 3


def test_a_widget_is_found_by_class_by_the_name_of_a_class_and_as_an_attribute(qt):
    box = qt.QWidget()
    column = qt.QVBoxLayout(box)
    button = qt.QPushButton("Go")
    button.objectName = "apply"
    column.addWidget(button)
    assert box.findChild(qt.QPushButton, "apply") is button
    assert box.findChildren("QPushButton") == (button,)
    assert box.findChildren("apply") == ()  # a text is the name of a class
    assert box.apply is button
    assert button.parent() is box


def test_lists_come_back_as_tuples_and_bytes_as_bytes(qt):
    process = qt.QProcess()
    process.start("echo", ["kidney"])
    assert process.waitForFinished()
    assert process.readAllStandardOutput() == b"kidney\n"
    assert qt.QFileInfo("/tmp").dir().entryList().__class__ is tuple


def test_a_destroyed_object_raises(window, qt):
    label = qt.QLabel("CT")
    assert label
    label.deleteLater()
    window.process()
    assert not label
    with pytest.raises(ValueError, match="destroyed"):
        label.text  # noqa: B018


def test_a_class_that_overrides_what_qt_calls_is_refused(qt):
    with pytest.raises(NotImplementedError, match="resizeEvent"):

        class Mine(qt.QWidget):
            def resizeEvent(self, event):
                """Would never be called."""


# --- values ----------------------------------------------------------------------------------


def test_a_value_that_pythonqt_would_silently_change_is_refused(qt):
    box, line, button = qt.QSpinBox(), qt.QLineEdit(), qt.QPushButton()
    for target, attribute, value in (
        (box, "value", 3.7),
        (box, "value", True),
        (line, "text", None),
        (line, "text", 3),
        (button, "enabled", 1),
        (button, "enabled", None),
        (qt.QDoubleSpinBox(), "value", "1"),
    ):
        with pytest.raises(WrongArguments):
            setattr(target, attribute, value)
    assert (box.value, line.text, button.enabled) == (0, "", True)


def test_the_same_holds_for_arguments_of_methods(qt):
    for call in (
        lambda: qt.QSpinBox().setValue(3.7),
        lambda: qt.QLineEdit().setText(None),
        lambda: qt.QComboBox().addItem(3),
        lambda: qt.QComboBox().addItems("CPU"),
        lambda: qt.QProgressBar().setRange(0, 0.5),
        lambda: qt.QLabel("CT").setText("a", "b"),
        lambda: qt.QLabel("CT").setText(text="a"),
    ):
        with pytest.raises(WrongArguments):
            call()


def test_the_same_holds_for_the_widgets_of_ctk_and_slicer(window):
    import ctk
    import slicer

    with pytest.raises(WrongArguments):
        ctk.ctkPathLineEdit().currentPath = Path("/tmp")
    with pytest.raises(WrongArguments):
        ctk.ctkSliderWidget().setValue("1")
    with pytest.raises(WrongArguments):
        slicer.qMRMLNodeComboBox().nodeTypes = "vtkMRMLScalarVolumeNode"


# --- signals ---------------------------------------------------------------------------------


def test_connecting_to_an_unknown_signal_or_slot_raises(qt):
    button, label = qt.QPushButton("Go"), qt.QLabel("CT")
    for signal in ("nothing()", "clicked", "clicked(int)"):
        with pytest.raises(NoSuchSignal):
            button.connect(signal, print)
    with pytest.raises(NoSuchSignal):
        button.connect("clicked()", label, "nothing()")
    with pytest.raises(NoSuchSignal):
        button.connect("clicked(bool)", label, "setText(QString)")
    with pytest.raises(NoSuchSignal):
        button.disconnect("nothing()", print)


def test_a_signal_passes_as_many_arguments_as_a_function_takes(qt):
    button, heard = qt.QPushButton("Go"), []
    button.checkable = True

    class Listener:
        def none(self):
            heard.append(())

        def one(self, checked):
            heard.append((checked,))

    listener = Listener()
    button.connect("clicked(bool)", listener.none)
    button.connect("clicked(bool)", listener.one)
    button.clicked.connect(lambda *all_of_them: heard.append(all_of_them))
    button.connect("clicked()", lambda: heard.append("plain"))
    button.click()
    assert heard == [(), (True,), (True,), "plain"]


def test_a_function_that_takes_more_than_the_signal_gives_fails_the_test(qt):
    button = qt.QPushButton("Go")
    button.connect("clicked()", lambda checked: None)
    button.click()
    assert isinstance(expected_failure(), TypeError)


def test_a_callable_that_is_no_function_gets_every_argument(qt):
    button, label = qt.QPushButton("Go"), qt.QLabel("CT")
    button.connect("clicked(bool)", label.clear)
    button.click()
    assert isinstance(expected_failure(), WrongArguments)
    button.disconnect("clicked(bool)", label.clear)
    button.connect("clicked()", label.clear)
    button.click()
    assert label.text == ""


def test_disconnecting_ends_one_connection_or_all(qt):
    button, heard = qt.QPushButton("Go"), []
    one, two = lambda: heard.append(1), lambda: heard.append(2)
    button.connect("clicked()", one)
    button.connect("clicked()", two)
    assert button.disconnect("clicked()", one)
    assert not button.disconnect("clicked()", one)
    button.click()
    button.disconnect("clicked()")
    button.click()
    assert heard == [2]


def test_an_exception_in_a_slot_fails_the_session(tmp_path):
    def wrong():
        raise KeyError("kidney")

    def run():
        with pythonqt.session(tmp_path):
            import qt

            button = qt.QPushButton("Go")
            button.connect("clicked()", wrong)
            button.click()

    with pytest.raises(KeyError, match="kidney"):
        run()


def test_an_exception_in_a_timer_or_an_observer_fails_the_session(window, qt):
    import slicer
    import vtk

    qt.QTimer.singleShot(0, lambda: 1 / 0)
    window.process()
    assert isinstance(expected_failure(), ZeroDivisionError)
    node = volume("CT")
    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: {}["kidney"])
    node.Modified()
    assert isinstance(expected_failure(), KeyError)
    slicer.mrmlScene.RemoveNode(node)


def test_what_qt_complains_about_fails_the_session(tmp_path):
    def run():
        with pythonqt.session(tmp_path):
            import qt

            qt.QTimer().start(-1)

    with pytest.raises(AssertionError, match="negative intervals"):
        run()


def test_single_shot_is_the_static_function_only(window, qt):
    heard = []
    qt.QTimer.singleShot(0, lambda: heard.append(1))
    window.process()
    assert heard == [1]
    with pytest.raises(TypeError):
        qt.QTimer().singleShot(0, print)
    with pytest.raises(WrongArguments):
        qt.QTimer.singleShot(0.5, print)


# --- dialogs, settings -----------------------------------------------------------------------


def test_dialogs_are_answered_by_the_test(window, qt):
    import slicer

    window.dialogs.expect("Install torch?", qt.QMessageBox.Ok)
    window.dialogs.expect("Overwrite?", qt.QMessageBox.No)
    window.dialogs.expect("Folder with models", "/models")
    window.dialogs.expect("No CT", qt.QMessageBox.Ok)
    assert slicer.util.confirmOkCancelDisplay("Install torch?", detailedText="torch>=2.2")
    assert not slicer.util.confirmYesNoDisplay("Overwrite?")
    assert qt.QFileDialog.getExistingDirectory(None, "Folder with models", "") == "/models"
    slicer.util.errorDisplay("No CT", windowTitle="KidneySeg")
    assert [one.kind for one in window.dialogs.shown] == [
        "ctkMessageBox",
        "ctkMessageBox",
        "QFileDialog.getExistingDirectory",
        "ctkMessageBox",
    ]


def test_an_unexpected_dialog_raises_and_fails_the_session(window, qt):
    with pytest.raises(UnexpectedDialog, match="Delete all"):
        qt.QMessageBox.question(None, "KidneySeg", "Delete all?")
    assert isinstance(expected_failure(), UnexpectedDialog)


def test_an_expected_dialog_that_does_not_come_fails_the_session(tmp_path):
    def run():
        with pythonqt.session(tmp_path) as session:
            session.dialogs.expect("Sure?", 0)

    with pytest.raises(AssertionError, match="Sure"):
        run()


def test_in_a_batch_there_is_no_window_and_messages_are_only_logged(tmp_path):
    import slicer

    with pythonqt.session(tmp_path, window=False) as session:
        assert slicer.util.mainWindow() is None
        assert slicer.app.layoutManager() is None
        slicer.util.errorDisplay("No CT")
        assert session.dialogs.shown == []


def test_a_web_address_is_noted_and_not_opened(window, qt):
    qt.QDesktopServices.openUrl(qt.QUrl("https://example.org"))
    assert window.dialogs.opened == ["https://example.org"]
    with pytest.raises(WrongArguments):
        qt.QDesktopServices.openUrl("https://example.org")


def test_settings_begin_empty_in_each_session(tmp_path):
    import slicer

    for folder in (tmp_path / "one", tmp_path / "two"):
        with pythonqt.session(folder):
            import qt

            assert slicer.util.settingsValue("KidneySeg/Device", "auto") == "auto"
            qt.QSettings().setValue("KidneySeg/Device", "cpu")
            assert slicer.util.settingsValue("KidneySeg/Device", "auto") == "cpu"


def test_nothing_of_a_session_stays_behind(tmp_path):
    import sys

    import slicer

    app = slicerhost.boot().app
    with pythonqt.session(tmp_path):
        assert slicer.app is not app
    assert slicer.app is app
    assert not {"qt", "ctk", "slicer.packaging"} & set(sys.modules)
    assert not hasattr(slicer, "packaging")


# --- forms -----------------------------------------------------------------------------------


def test_a_form_comes_with_its_widgets_properties_and_connections(window, form):
    import slicer

    ui = slicer.util.childWidgetVariables(form)
    assert ui.inputSelector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.inputSelector.property("SlicerParameterName") == "volume"
    assert ui.folder.filters == 0x11
    assert type(ui.box).__name__ == "ctkCollapsibleButton"
    assert not ui.inputSelector.enabled
    form.setMRMLScene(slicer.mrmlScene)
    assert ui.inputSelector.enabled
    assert ui.inputSelector.mrmlScene() is slicer.mrmlScene


@pytest.mark.parametrize(
    ("good", "bad", "what"),
    [
        ("QPushButton", "QGoButton", "QGoButton"),
        ("noneEnabled", "nonEnabled", "nonEnabled"),
        ('name="apply"', 'name="merge"', "merge"),
        ("<receiver>inputSelector", "<receiver>outputSelector", "outputSelector"),
        ("ctkPathLineEdit::Dirs", "ctkPathLineEdit::Folders", "Folders"),
    ],
)
def test_a_form_with_a_mistake_is_refused(window, tmp_path, good, bad, what):
    assert good in FORM
    with pytest.raises(FormError, match=what):
        load(tmp_path, FORM.replace(good, bad))


@pytest.mark.parametrize("part", ["mrmlSceneChanged(", "setMRMLScene("])
def test_a_form_that_connects_what_is_not_there_is_refused(window, tmp_path, part):
    with pytest.raises(NoSuchSignal):
        load(tmp_path, FORM.replace(part, f"x{part}"))


def test_a_collapsed_box_hides_what_is_in_it_and_shows_it_again(window, form):
    import slicer

    ui = slicer.util.childWidgetVariables(form)
    form.show()
    ui.merge.visible = False
    ui.box.collapsed = True
    assert not ui.batch.visible
    ui.merge.visible = True
    assert not ui.merge.visible
    ui.box.collapsed = False
    assert ui.batch.visible and ui.merge.visible


def test_only_slots_properties_and_invokables_of_ctk_and_slicer_reach_python(form):
    import slicer

    ui = slicer.util.childWidgetVariables(form)
    for widget, name in (
        (ui.folder, "setNameFilters"),
        (ui.opacity, "setMinimum"),
        (ui.opacity, "setRange"),
        (ui.inputSelector, "setNodeTypes"),
        (ui.inputSelector, "nodes"),
        (ui.inputSelector, "choose"),  # the stand-in's own helper
        (ui.device, "setDefaultText"),
    ):
        assert not hasattr(widget, name), name


def test_browsing_for_a_folder_asks_the_user(window, form):
    import slicer

    ui, heard = slicer.util.childWidgetVariables(form), []
    ui.folder.connect("currentPathChanged(QString)", heard.append)
    window.dialogs.expect("Select a directory", "/tmp")
    ui.folder.browse()
    assert (ui.folder.currentPath, heard) == ("/tmp", ["/tmp"])


# --- nodes -----------------------------------------------------------------------------------


@pytest.fixture
def selector(window, form):
    import slicer

    form.setMRMLScene(slicer.mrmlScene)
    return form.findChild(slicer.qMRMLNodeComboBox)


def test_a_selector_lists_nodes_of_its_types_as_they_come_and_go(selector):
    import slicer

    one = volume("CT")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Model")
    volume("Second").SetHideFromEditors(True)
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    assert [selector.nodeFromIndex(row) for row in range(selector.nodeCount())] == [one, labels]
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 1
    slicer.mrmlScene.RemoveNode(one)
    assert selector.nodeCount() == 0


def test_a_selector_does_not_choose_a_new_node_by_itself(selector):
    import slicer

    for none, actions in ((True, True), (False, True), (True, False), (False, False)):
        slicer.mrmlScene.Clear(False)
        selector.noneEnabled = none
        selector.addEnabled = selector.removeEnabled = actions
        volume("CT")
        assert selector.nodeCount() == 1
        assert selector.currentNode() is None


def test_a_selector_tells_of_a_choice_once_with_node_id_and_validity(selector):
    node, heard = volume("CT"), []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", heard.append)
    selector.connect("currentNodeChanged(bool)", heard.append)
    selector.connect("currentNodeIDChanged(QString)", heard.append)
    selector.setCurrentNode(node)
    selector.setCurrentNode(node)
    assert heard == [node, True, node.GetID()]
    assert selector.currentNodeID == node.GetID()
    selector.setCurrentNode(None)
    assert heard[3:] == [None, False, ""]


def test_a_selector_loses_its_node_with_the_node_and_with_the_scene(selector):
    import slicer

    heard = []
    selector.currentNodeChanged.connect(heard.append)
    node = volume("CT")
    selector.setCurrentNode(node)
    slicer.mrmlScene.RemoveNode(node)
    assert selector.currentNode() is None
    selector.setCurrentNodeID(volume("Second").GetID())
    slicer.mrmlScene.Clear(False)
    assert selector.currentNode() is None
    assert [one and one.GetName() for one in heard] == ["CT", None, "Second", None]


def test_a_node_chosen_before_there_is_a_scene_is_chosen_afterwards(window):
    import slicer

    node = volume("CT")
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setCurrentNode(node)
    assert selector.currentNode() is None
    selector.setMRMLScene(slicer.mrmlScene)
    assert selector.currentNode() is node


def test_the_user_chooses_creates_renames_and_deletes_nodes(window, selector):
    import slicer

    window.choose(selector, "Create new Volume")
    node = selector.currentNode()
    assert slicer.mrmlScene.IsNodePresent(node)
    selector.renameEnabled = True
    window.dialogs.expect("Rename", "Kidneys")
    window.choose(selector, "Rename current Volume")
    assert node.GetName() == "Kidneys"
    window.choose(selector, "None")
    assert selector.currentNode() is None
    window.choose(selector, "Kidneys")
    window.choose(selector, "Delete current Volume")
    assert not slicer.mrmlScene.IsNodePresent(node)


def test_a_selector_refuses_what_is_no_node(selector):
    with pytest.raises(ValueError):
        selector.setCurrentNode("CT")


def test_a_table_view_shows_its_node_and_follows_it(window, qt):
    import slicer

    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "Results")
    column = table.AddColumn()
    column.SetName("Side")
    view = slicer.qMRMLTableView()
    view.setMRMLScene(slicer.mrmlScene)
    view.setMRMLTableNode(table)
    table.AddEmptyRow()
    table.SetCellText(0, 0, "left")
    table.Modified()
    model = view.model()
    cells = [model.index(row, 0).data() for row in range(model.rowCount())]
    assert cells == ["Side", "left"]
    table.SetUseColumnTitleAsColumnHeader(True)
    assert (model.rowCount(), model.index(0, 0).data()) == (1, "left")
    assert model.headerData(0, qt.Qt.Horizontal) == "Side"
    view.transposed = True
    table.SetUseFirstColumnAsRowHeader(True)
    assert model.headerData(0, qt.Qt.Horizontal) == "left"
    assert view.firstRowLocked and view.firstColumnLocked
    view.selectAll()


def test_a_table_view_without_a_node_does_not_take_its_properties(window):
    import slicer

    view = slicer.qMRMLTableView()
    view.transposed = True
    assert "invalid node" in window.complaints.pop()
    assert not view.transposed
    window.complaints.clear()


# --- the parameter node ----------------------------------------------------------------------


@pytest.fixture
def choices(window):
    """A wrapped parameter node with one value of each kind."""
    import enum

    import slicer
    from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
    from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
    from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

    class Kind(enum.Enum):
        FULL = 1
        SMALL = 2

    @parameterNodeWrapper
    class Choices:
        volume: vtkMRMLScalarVolumeNode
        reference: vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode | None
        model: str = "kidney"
        merge: bool = False
        batch: Annotated[int, WithinRange(0, 64)] = 4
        opacity: Annotated[float, WithinRange(0, 1)] = 0.3
        device: Annotated[str, Choice(["auto", "cpu"])] = "auto"
        kind: Kind
        limit: int | None
        folder: Annotated[Path, Default(Path("models"))]

    logic = ScriptedLoadableModuleLogic()
    logic.moduleName = "Toy"
    wrapped = Choices(logic.getParameterNode())
    assert slicer.mrmlScene.GetSingletonNode("Toy", "vtkMRMLScriptedModuleNode")
    wrapped.Kind = Kind
    return wrapped


def test_values_lie_in_the_node_as_slicers_own_wrapper_puts_them(choices):
    import slicer

    choices.volume = volume("CT")
    choices.reference = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    choices.merge = True
    node = choices.parameterNode
    assert node.GetParameter("model") == "kidney"
    assert node.GetParameter("merge") == "True"
    assert node.GetParameter("opacity") == "0.3"
    assert node.GetParameter("kind") == "FULL"
    assert node.GetParameter("folder") == "models"
    assert node.GetParameter("volume") == ""
    assert node.GetNodeReference("volume") is choices.volume
    assert not node.HasParameter("reference")
    assert node.GetNodeReference("reference.1") is choices.reference
    assert node.HasParameter("limit.1") and choices.limit is None
    choices.limit = 3
    assert node.GetParameter("limit.0") == "3" and not node.HasParameter("limit.1")


def test_values_come_back_from_a_saved_scene(choices, tmp_path):
    import slicer

    choices.volume = volume("CT")
    choices.batch, choices.kind = 8, choices.Kind.SMALL
    slicer.util.saveScene(str(tmp_path / "scene.mrml"))
    cls, name = type(choices), choices.volume.GetName()
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(str(tmp_path / "scene.mrml"))
    node = slicer.mrmlScene.GetSingletonNode("Toy", "vtkMRMLScriptedModuleNode")
    again = cls(node)
    assert (again.batch, again.kind.name, again.volume.GetName()) == (8, "SMALL", name)


def test_a_value_that_does_not_fit_is_refused_and_nothing_changes(choices):
    import slicer

    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Model")
    for name, value in (
        ("batch", 65),
        ("batch", 1.5),
        ("model", None),
        ("merge", 1),
        ("device", "tpu"),
        ("volume", model),
        ("reference", model),
        ("limit", "3"),
    ):
        before = getattr(choices, name)
        with pytest.raises((TypeError, ValueError)):
            setattr(choices, name, value)
        assert getattr(choices, name) == before


def test_a_type_that_the_stand_in_does_not_know_is_refused(window):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(NotImplementedError):

        @parameterNodeWrapper
        class Choices:
            names: list[str]


def test_widgets_and_parameters_follow_each_other(window, form, choices):
    import slicer

    form.setMRMLScene(slicer.mrmlScene)
    ui = slicer.util.childWidgetVariables(form)
    tag = choices.connectGui(ui)
    assert (ui.model.text, ui.batch.value, ui.opacity.value) == ("kidney", 4, 0.3)
    assert (ui.batch.maximum, ui.opacity.maximum) == (64, 1.0)
    node = volume("CT")
    window.choose(ui.inputSelector, "CT")
    ui.merge.click()
    ui.batch.value = 9
    ui.opacity.value = 0.5
    window.type_text(ui.model, "other")
    window.choose(ui.device, "cpu")
    assert choices.volume is node
    assert (choices.merge, choices.batch, choices.opacity) == (True, 9, 0.5)
    assert (choices.model, choices.device) == ("other", "cpu")
    choices.volume = None
    choices.model, choices.merge, choices.device = "third", False, "auto"
    choices.batch, choices.opacity = 1, 0.25
    assert ui.inputSelector.currentNode() is None
    assert (ui.model.text, ui.merge.checked, ui.device.currentText) == ("third", False, "auto")
    assert (ui.batch.value, ui.opacity.value) == (1, 0.25)
    choices.disconnectGui(tag)
    ui.batch.value = 2
    choices.model = "fourth"
    assert (choices.batch, ui.model.text) == (1, "third")


def test_a_widget_that_cannot_show_a_parameter_is_refused(window, form, choices):
    import slicer

    ui = slicer.util.childWidgetVariables(form)
    for mapping in ({"merge": ui.model}, {"model": ui.device}, {"kind": ui.batch}):
        with pytest.raises(RuntimeError):
            choices.connectParametersToGui(mapping)
    with pytest.raises(ValueError):
        choices.connectParametersToGui({"nothing": ui.model})


# --- modules ---------------------------------------------------------------------------------


@pytest.fixture
def toy(window, tmp_path):
    (tmp_path / "Toy.py").write_text(MODULE, encoding="utf-8")
    return window.open(tmp_path / "Toy.py")


def test_a_module_is_loaded_opened_and_unloaded_as_in_slicer(window, toy):
    import slicer

    assert slicer.modules.ToyWidget is toy
    assert slicer.modules.toy.title == "Toy"
    assert slicer.util.getModuleWidget("Toy") is toy
    assert toy.parent.isEntered
    assert toy.resourcePath("UI/Toy.ui").endswith("/Resources/UI/Toy.ui")
    slicer.util.selectModule("Toy")
    assert slicer.util.selectedModule() == "Toy"
    window.quit()
    assert type(toy).cleaned == 1
    assert not hasattr(slicer.modules, "toy")


def test_a_module_is_reloaded_as_in_slicer(window, toy):
    import slicer

    toy.onReload()
    window.process()
    again = slicer.modules.ToyWidget
    assert again is not toy and type(again) is not type(toy)
    assert (type(toy).cleaned, again.button.text) == (1, "Go")
    assert not toy.button.visible


def test_a_package_is_installed_on_paper_only(window, qt):
    import slicer.packaging

    window.packages.missing = {"numpy"}
    assert not slicer.packaging.pip_check("numpy>=1.0")
    window.dialogs.expect("1 Python packages", qt.QMessageBox.Cancel)
    with pytest.raises(RuntimeError, match="declined"):
        slicer.packaging.pip_ensure("numpy>=1.0", requester="KidneySeg")
    slicer.packaging.pip_ensure("numpy>=1.0", prompt_install=False)
    assert window.packages.installed == ["numpy>=1.0"]
    assert slicer.packaging.pip_check("numpy>=1.0")
    with pytest.raises(TypeError):
        slicer.packaging.pip_ensure("numpy", quiet=True)


def test_temporary_folders_lie_in_the_folder_of_the_session(window, tmp_path):
    import slicer

    assert Path(slicer.util.tempDirectory()).parent == tmp_path


def test_a_console_process_tells_its_lines_and_its_end(window):
    import sys

    import slicer

    lines, ends = [], []
    code = textwrap.dedent("print('left'); print('right')")
    slicer.util.launchConsoleProcess(
        [sys.executable, "-c", code],
        blocking=False,
        logCallback=lines.append,
        completedCallback=ends.append,
    )
    window.wait_until(lambda: bool(ends))
    assert (lines, ends) == (["left", "right"], [0])


def test_a_picture_of_the_window_has_letters_and_no_boxes(window, qt, tmp_path):
    """Without a font all letters look the same."""
    from PIL import Image

    pictures = []
    for letter in "iM":
        label = qt.QLabel(letter)
        label.setFixedSize(40, 40)
        window.screenshot(label, tmp_path / f"{letter}.png")
        pictures.append(Image.open(tmp_path / f"{letter}.png").tobytes())
    assert pictures[0] != pictures[1]
