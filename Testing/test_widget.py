"""The window of the module, through clicks and the real worker, on the stand-in for Slicer's Qt."""

from __future__ import annotations

import gc
import html
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys

from KidneySegLib.modelplaces import find_model

pythonqt = pytest.importorskip("pythonqt", reason="the stand-in for Slicer's Qt is not there")
if pythonqt.why_not():
    pytest.skip(pythonqt.why_not(), allow_module_level=True)

MODULE = Path(__file__).resolve().parent.parent / "KidneySeg" / "KidneySeg.py"


@pytest.fixture
def temporary(tmp_path) -> Path:
    """Slicer's temporary folder, in a place with spaces and letters beyond ASCII."""
    folder = tmp_path / "Müllers Slicer 腎" / "temp"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def _library():
    """Reloading imports the library anew; what other tests imported must stay what it is."""

    def loaded() -> dict:
        return {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "KidneySegLib"}

    before = loaded()
    yield
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def window(temporary, toy_model, monkeypatch):
    """Slicer with a main window; the toy's model is among the user's own."""
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setenv("KIDNEYSEG_MODELS", str(toy_model.folder.parent))
    with pythonqt.session(temporary.parent) as session:
        session.slicer.app.temporaryPath = str(temporary)
        yield session


@pytest.fixture
def module(window):
    """The module, opened, in an empty scene."""
    return window.open(MODULE)


def add(slicer, image: sitk.Image, name: str, kind: str = "vtkMRMLScalarVolumeNode"):
    """An image (LPS) as a node of the scene."""
    ijk_to_ras = np.eye(4)
    ijk_to_ras[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    ijk_to_ras[:3, 3] = image.GetOrigin()
    ijk_to_ras[:2] *= -1
    return slicer.util.addVolumeFromArray(
        sitk.GetArrayFromImage(image), ijk_to_ras, name=name, nodeClassName=kind
    )


def add_toy(slicer):
    """The toy's CT and its true labels as nodes."""
    ct, labels = toys.toy()
    return (
        add(slicer, toys.image_of(ct), "CT"),
        add(slicer, toys.image_of(labels), "Truth", "vtkMRMLLabelMapVolumeNode"),
    )


@pytest.fixture
def case(window, module):
    """The toy's CT, chosen, and its true labels, with the toy's model."""
    volume, truth = add_toy(window.slicer)
    module.ui.inputSelector.setCurrentNode(volume)
    choose_model(module, "toy")
    return volume, truth


def choose_model(module, name: str) -> None:
    """What a click on an entry of the list of models does."""
    box = module.ui.modelComboBox
    box.setCurrentIndex(box.findData(name))
    module.panel.on_model_chosen(box.currentIndex)


def finish(window, module) -> None:
    window.wait_until(lambda: module.panel.run is None)


def begin(window, module):
    """Click Segment; returns the worker's process."""
    module.ui.applyButton.click()
    process = module.panel.run.job._worker._process
    window.process()
    assert process.poll() is None
    return process


def nodes_of(slicer) -> dict[str, int]:
    """The scene, but for the module's own choices: node IDs and when each was changed."""
    nodes = [
        slicer.mrmlScene.GetNthNode(index) for index in range(slicer.mrmlScene.GetNumberOfNodes())
    ]
    return {
        node.GetID(): node.GetMTime()
        for node in nodes
        if node.GetClassName() not in ("vtkMRMLScriptedModuleNode", "vtkMRMLSubjectHierarchyNode")
    }


def disabled(module) -> dict[str, str]:
    """Every disabled button with its tooltip."""
    ui = module.ui
    buttons = (
        ui.applyButton,
        ui.show3DButton,
        ui.compareButton,
        ui.saveReportButton,
        ui.trainButton,
    )
    return {button.name: button.toolTip for button in buttons if not button.enabled}


# --- set-up and choices -----------------------------------------------------------------------


def test_what_cannot_be_done_yet_is_disabled_and_says_why(window, module):
    assert disabled(module) == {
        "applyButton": "Load a CT and choose it as CT volume first.",
        "show3DButton": "Segment a CT first, or choose a segmentation.",
        "compareButton": "Segment a CT first, or choose a segmentation.",
        "saveReportButton": "Segment a CT first: there are no results yet.",
        "trainButton": "The module UNetTrainer is not installed.",
    }
    assert module.ui.inputSelector.currentNode() is None
    assert not module.ui.progressBar.visible
    assert not module.ui.hintLabel.visible


def test_the_first_volume_is_taken_and_a_label_map_is_none(window):
    slicer = window.slicer
    volume, _ = add_toy(slicer)
    slicer.mrmlScene.RemoveNode(volume)
    volume, _ = add_toy(slicer)  # now a label map comes first
    module = window.open(MODULE)
    assert module.ui.inputSelector.currentNode() is volume
    assert module.ui.applyButton.enabled


def test_a_volume_that_slicer_hides_is_not_taken(window):
    volume, _ = add_toy(window.slicer)
    volume.SetHideFromEditors(True)
    assert window.open(MODULE).ui.inputSelector.currentNode() is None


def test_opened_again_the_module_adds_no_observers(window, module):
    """Slicer's mixin keeps every object that it has ever observed."""
    first = module._parameterNode
    for _ in range(3):
        module.enter()
    assert module._parameterNode is first
    assert len({id(observed) for observed, *_more in module.Observations}) == 2  # scene, choices


def test_choices_are_bound_both_ways_and_kept_in_the_scene(window, module, case):
    volume, truth = case
    ui, chosen = module.ui, module.logic.getParameterNode()
    ui.referenceSelector.setCurrentNode(truth)
    ui.mergeSidesCheckBox.click()
    ui.keepSmallCheckBox.click()
    ui.mirrorCheckBox.click()
    ui.outlineCheckBox.click()
    ui.batchSlicesSpinBox.value = 3
    ui.fillOpacitySlider.value = 0.5
    assert (chosen.inputVolume, chosen.reference) == (volume, truth)
    assert chosen.mergeSides and chosen.keepSmall and chosen.mirror and not chosen.outline
    assert (chosen.batchSlices, chosen.fillOpacity, chosen.model) == (3, 0.5, "toy")

    chosen.mergeSides = False
    chosen.batchSlices = 0
    chosen.fillOpacity = 0.25
    chosen.reference = None
    assert not ui.mergeSidesCheckBox.checked
    assert (ui.batchSlicesSpinBox.value, ui.fillOpacitySlider.value) == (0, 0.25)
    assert ui.referenceSelector.currentNode() is None

    path = str(Path(window.slicer.app.temporaryPath) / "scene.mrml")
    assert window.slicer.util.saveScene(path)
    window.slicer.mrmlScene.Clear(False)
    assert module.logic.getParameterNode().model == ""
    assert not ui.mirrorCheckBox.checked
    window.slicer.util.loadScene(path)
    window.process()
    assert module.logic.getParameterNode().model == "toy"
    assert ui.inputSelector.currentNode().GetName() == "CT"
    assert ui.mirrorCheckBox.checked and not ui.outlineCheckBox.checked
    assert ui.modelComboBox.currentText == "toy 0.1.0"


def test_the_device_is_remembered_by_the_computer_and_not_by_the_scene(window, module):
    box = module.ui.deviceComboBox
    assert box.itemData(box.currentIndex) == "auto"
    module.panel.on_device_chosen(box.findData("cpu"))
    window.slicer.mrmlScene.Clear(False)
    module.onReload()
    box = window.slicer.modules.KidneySegWidget.ui.deviceComboBox
    assert box.itemData(box.currentIndex) == "cpu"


def test_the_output_cannot_be_the_reference(window, module, case):
    node = window.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    module.ui.outputSelector.setCurrentNode(node)
    module.ui.referenceSelector.setCurrentNode(node)
    assert "is the reference" in disabled(module)["applyButton"]


def test_a_volume_that_does_not_look_like_hu_gets_a_hint(window, module, case):
    assert not module.ui.hintLabel.visible
    ct, _ = toys.toy()
    odd = add(window.slicer, toys.image_of((ct + 1000).astype(np.uint16)), "shifted")
    module.ui.inputSelector.setCurrentNode(odd)
    window.process()
    assert "shifted" in module.ui.hintLabel.text
    assert module.ui.hintLabel.visible
    assert module.ui.applyButton.enabled


def test_a_volume_without_voxels_is_named_at_once_and_refused(window, module, case):
    empty = window.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    module.ui.inputSelector.setCurrentNode(empty)
    assert "empty has no image data" in module.ui.hintLabel.text
    before = nodes_of(window.slicer)
    window.dialogs.expect("empty has no image data", 0)
    module.ui.applyButton.click()
    assert module.panel.run is None
    assert nodes_of(window.slicer) == before


# --- models -----------------------------------------------------------------------------------


def test_models_have_their_cards_and_refused_folders_their_reasons(
    window, module, toy_model, monkeypatch, tmp_path
):
    ui = module.ui
    names = [ui.modelComboBox.itemData(index) for index in range(ui.modelComboBox.count)]
    assert names == ["kidney-unet-views", "toy"]
    assert "Research use only" in ui.modelCardLabel.text
    scores = find_model().card["scores"]
    assert f"mean Dice {scores['dice_kidney_mean']:.3f}" in ui.modelCardLabel.text
    assert "BTCV" in ui.modelCardLabel.text

    folder = tmp_path / "more models"
    toys.copying_model(folder / "mine", card={"licence": "x"})
    (folder / "broken").mkdir()
    window.dialogs.expect("Folder with models", str(folder))
    ui.modelFolderButton.click()
    assert ui.modelComboBox.findData("mine") >= 0
    assert "broken is not a model folder" in ui.modelCardLabel.text
    (folder / "mine" / "model.json").unlink()
    ui.refreshButton.click()
    assert ui.modelComboBox.findData("mine") < 0
    window.dialogs.expect("Folder with models", "")  # Cancel
    ui.modelFolderButton.click()
    assert str(folder) in ui.modelFolderButton.toolTip


def test_a_card_is_text_and_no_html(window, module):
    from KidneySegLib.widget import card_html

    nasty = "<script>&"
    card = {
        "description": nasty,
        "licence": nasty,
        "data": [{"source": nasty, "patients": nasty}, "?", {"source": "b"}],
        "scores": {"dice_kidney_mean": 0.9, "patients": nasty, "method": nasty},
    }
    text = card_html(card)
    assert "<script" not in text
    assert text.count(html.escape(nasty)) == 6
    for value in (None, 1, [], {}, "x"):
        assert card_html({"description": value, "data": value, "scores": value}) is not None


def test_a_scene_made_with_a_model_that_is_not_here_says_so(window, module):
    module.logic.getParameterNode().model = "hers"
    module.enter()
    assert module.ui.modelComboBox.currentText.startswith("kidney-unet-views")
    assert "Model hers, which this scene was made with" in module.ui.modelCardLabel.text


# --- a run ------------------------------------------------------------------------------------


def test_a_click_segments_compares_and_fills_the_table(window, module, case, temporary, tmp_path):
    slicer, ui = window.slicer, module.ui
    volume, truth = case
    ui.referenceSelector.setCurrentNode(truth)
    begin(window, module)
    assert ui.applyButton.text == "Cancel"
    assert ui.progressBar.visible
    assert ui.statusLabel.text
    finish(window, module)
    assert ui.statusLabel.text.startswith("Done in ")
    assert ui.applyButton.text == "Segment"
    assert not ui.progressBar.visible
    assert "-m KidneySegLib segment" in ui.logTextEdit.toPlainText()
    assert "device cpu" in ui.logTextEdit.toPlainText()

    node = ui.outputSelector.currentNode()
    assert node.GetSegmentation().GetSegmentIDs() == ("left_kidney", "right_kidney")
    assert node.GetName() == "CT kidneys"
    from KidneySegLib import scene

    ours, theirs = (
        sitk.GetArrayFromImage(scene.labels_image(one, volume)) for one in (node, truth)
    )
    assert np.array_equal(ours, theirs)
    table = ui.resultsTableView.mrmlTableNode()
    assert [table.GetTable().GetValueByName(row, "dice").ToDouble() for row in range(3)] == [1] * 3
    assert table.GetLocked()
    assert list(temporary.iterdir()) == []

    path = tmp_path / "report"
    window.dialogs.expect("Save report", str(path))
    ui.saveReportButton.click()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["input"] == "CT"
    assert report["comparison"]["dice"] == {"kidney": 1.0, "left": 1.0, "right": 1.0}
    assert report["model"]["name"] == "toy"

    # A second run updates the same nodes, and nothing of a run stays in memory.
    before = nodes_of(slicer).keys()
    ui.applyButton.click()
    run = weakref.ref(module.panel.run)
    finish(window, module)
    assert nodes_of(slicer).keys() == before
    assert ui.outputSelector.currentNode() is node
    window.process()
    gc.collect()
    assert run() is None


def test_cancel_ends_it_within_a_second_and_leaves_nothing(window, module, case, temporary):
    before = nodes_of(window.slicer)
    process = begin(window, module)
    window.wait_until(lambda: module.ui.progressBar.value > 0)
    module.ui.applyButton.click()
    assert module.panel.run is None
    assert process.poll() is not None
    assert list(temporary.iterdir()) == []
    assert nodes_of(window.slicer) == before
    assert "Cancelled" in module.ui.statusLabel.text
    assert module.ui.applyButton.text == "Segment"


def test_closing_the_scene_ends_a_run(window, module, case, temporary):
    process = begin(window, module)
    window.slicer.mrmlScene.Clear(False)
    assert module.panel.run is None
    assert process.poll() is not None
    assert list(temporary.iterdir()) == []
    assert not module.ui.applyButton.enabled


def test_ending_the_application_ends_a_run(window, module, case, temporary):
    process = begin(window, module)
    module.cleanup()
    assert process.poll() is not None
    assert list(temporary.iterdir()) == []


def test_ending_the_application_ends_a_run_from_the_console(window, module, case, temporary):
    volume, _ = case
    ended = []
    run = module.logic.segmentAsync(volume, onCancel=lambda: ended.append(True))
    process = run.job._worker._process
    window.slicer.app.aboutToQuit()
    assert process.poll() is not None
    assert ended == [True]
    assert not run.running
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("which", ["CT volume", "output segmentation", "reference"])
def test_a_node_that_goes_during_a_run_ends_it_with_one_message(
    window, module, case, temporary, which
):
    slicer = window.slicer
    volume, truth = case
    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    module.ui.referenceSelector.setCurrentNode(truth)
    module.ui.outputSelector.setCurrentNode(output)
    process = begin(window, module)
    gone = {"CT volume": volume, "output segmentation": output, "reference": truth}[which]
    window.dialogs.expect(f"The {which} is no longer in the scene", 0)
    slicer.mrmlScene.RemoveNode(gone)
    finish(window, module)
    assert process.poll() is not None
    assert list(temporary.iterdir()) == []
    assert output.GetSegmentation().GetNumberOfSegments() == 0
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


def test_an_error_of_the_worker_is_shown_with_its_log(window, module, case, temporary, tmp_path):
    folder = tmp_path / "models"
    model = toys.copying_model(folder / "mine")
    window.dialogs.expect("Folder with models", str(folder))
    module.ui.modelFolderButton.click()
    choose_model(module, "mine")
    (model.folder / "weights.safetensors").unlink()
    before = nodes_of(window.slicer)
    details = []

    def read(dialog):
        details.append(dialog.detailedText)
        return 0

    window.dialogs.expect("mine has no weights.safetensors", read)
    module.ui.applyButton.click()
    finish(window, module)
    assert "no weights.safetensors" in module.ui.statusLabel.text
    assert "error: " in details[0] and "-m KidneySegLib segment" in details[0]
    assert nodes_of(window.slicer) == before
    assert list(temporary.iterdir()) == []


def test_a_temporary_folder_that_is_not_there_is_one_message(window, module, case, tmp_path):
    window.slicer.app.temporaryPath = str(tmp_path / "gone")
    window.dialogs.expect("cannot be written to", 0)
    module.ui.applyButton.click()
    assert module.panel.run is None


def test_too_little_room_is_one_message(window, module, case, temporary, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    window.dialogs.expect("of free space and", 0)
    module.ui.applyButton.click()
    assert module.panel.run is None
    assert list(temporary.iterdir()) == []


# --- installing -------------------------------------------------------------------------------


def test_no_means_no(window, module, case):
    window.packages.missing = {"safetensors"}
    window.dialogs.expect("downloaded once", module_button("Cancel"))
    module.ui.applyButton.click()
    assert window.packages.installed == []
    assert module.panel.run is None
    assert "Nothing was installed" in module.ui.statusLabel.text
    assert "pip_install" in module.ui.statusLabel.text


def test_yes_installs_once_and_segments(window, module, case):
    window.packages.missing = {"safetensors", "connected-components-3d"}
    window.dialogs.expect("downloaded once", module_button("Ok"))
    module.ui.applyButton.click()
    assert len(window.packages.installed) == 2
    assert module.panel.run is not None
    module.ui.applyButton.click()
    assert len(window.dialogs.shown) == 1


def test_a_failed_installation_says_how_to_do_it_by_hand(window, module, case):
    window.packages.missing = {"safetensors"}
    window.packages.fails = True
    window.dialogs.expect("downloaded once", module_button("Ok"))
    window.dialogs.expect("could not be installed", 0)
    module.ui.applyButton.click()
    assert module.panel.run is None
    assert module.ui.applyButton.enabled


def module_button(name: str) -> int:
    import qt

    return getattr(qt.QMessageBox, name)


def test_the_window_opens_before_anything_is_installed(tmp_path):
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "cc3d", "safetensors", "tqdm"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
import pythonqt
from pathlib import Path
with pythonqt.session(Path({str(tmp_path)!r})) as session:
    module = session.open({str(MODULE)!r})
    node = session.slicer.util.addVolumeFromArray(__import__("numpy").zeros((3, 4, 5)), name="CT")
    module.ui.inputSelector.setCurrentNode(node)
    assert module.ui.applyButton.enabled, module.ui.applyButton.toolTip
    assert "kidney-unet-views" in module.ui.modelComboBox.currentText
print("opened")
"""
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(MODULE.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.endswith("opened\n"), done.stderr


# --- results ----------------------------------------------------------------------------------


@pytest.fixture
def segmented(window, module, case):
    """A segmentation of the toy, as a run leaves it, without a run."""
    from KidneySegLib import scene

    volume, truth = case
    labels = scene.labels_image(truth, volume)
    node = scene.place_labels(labels, volume)
    module.ui.outputSelector.setCurrentNode(node)
    return node


def test_red_and_blue_go_on_with_figures_and_off_again(window, module, case, segmented):
    from KidneySegLib import scenecomparison

    ui, (_, truth) = module.ui, case
    assert disabled(module)["compareButton"] == "Choose a reference first."
    ui.referenceSelector.setCurrentNode(truth)
    display = segmented.GetDisplayNode()
    before = display.GetSegmentOverrideColor("left_kidney")
    ui.compareButton.click()
    assert scenecomparison.comparison_shown(segmented, truth)
    assert ui.compareButton.checked
    assert tuple(display.GetSegmentOverrideColor("left_kidney")) == scenecomparison.PREDICTION_COLOR
    table = ui.resultsTableView.mrmlTableNode()
    assert table.GetTable().GetValueByName(2, "dice").ToDouble() == 1
    ui.fillOpacitySlider.value = 0.75
    assert display.GetOpacity2DFill() == 0.75
    ui.outlineCheckBox.click()
    assert not display.GetVisibility2DOutline()
    ui.compareButton.click()
    assert not scenecomparison.comparison_shown(segmented, truth)
    assert not ui.compareButton.checked
    assert tuple(display.GetSegmentOverrideColor("left_kidney")) == tuple(before)


def test_what_cannot_be_compared_is_told_and_the_button_comes_up_again(
    window, module, case, segmented
):
    slicer = window.slicer
    away = add(slicer, toys.image_of(toys.toy()[1]), "away", "vtkMRMLLabelMapVolumeNode")
    away.SetOrigin(5000, 0, 0)
    module.ui.referenceSelector.setCurrentNode(away)
    window.dialogs.expect("Nothing of away lies within CT", 0)
    module.ui.compareButton.click()
    assert not module.ui.compareButton.checked


def test_surfaces_go_on_and_off(window, module, case, segmented):
    module.ui.show3DButton.click()
    assert segmented.GetSegmentation().ContainsRepresentation("Closed surface")
    assert module.ui.show3DButton.checked
    module.ui.show3DButton.click()
    assert not segmented.GetSegmentation().ContainsRepresentation("Closed surface")
    assert not module.ui.show3DButton.checked


def test_training_opens_the_trainer(window, module, monkeypatch):
    window.load(MODULE)  # any module that is there
    monkeypatch.setattr(
        window.slicer.modules, "unettrainer", window.slicer.modules.kidneyseg, raising=False
    )
    module.panel.update()
    assert module.ui.trainButton.enabled
    module.ui.trainButton.click()
    assert window.slicer.util.selectedModule() == "UNetTrainer"


# --- the module -------------------------------------------------------------------------------


def test_reloading_reloads_the_library_and_ends_a_run(window, module, case, temporary):
    before = sys.modules["KidneySegLib.widget"]
    process = begin(window, module)
    module.onReload()
    assert process.poll() is not None
    assert list(temporary.iterdir()) == []
    assert sys.modules["KidneySegLib.widget"] is not before
    again = window.slicer.modules.KidneySegWidget
    assert again is not module
    assert again.ui.inputSelector.currentNode() is case[0]
    assert type(again.panel) is sys.modules["KidneySegLib.widget"].Panel
    begin(window, again)
    again.ui.applyButton.click()
    assert "Cancelled" in again.ui.statusLabel.text


def test_the_console_segments_and_gives_the_node_back(window, module, case, temporary):
    volume, truth = case
    turned = window.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.array([[0.6, -0.8, 0, 30], [0.8, 0.6, 0, -9], [0, 0, 1, 7.5], [0, 0, 0, 1]])
    turned.SetMatrixTransformToParent(window.slicer.util.vtkMatrixFromArray(matrix))
    for one in case:
        one.SetAndObserveTransformNodeID(turned.GetID())
    told = []
    node = module.logic.segment(
        volume,
        model="toy",
        progress=lambda share, step: told.append((share, step)),
        mergeSides=True,
    )
    assert node.GetSegmentation().GetSegmentIDs() == ("kidneys",)
    assert told[-1] == (1.0, "write")
    assert node.GetParentTransformNode() is turned
    assert module.logic.compare(node, truth)["dice"]["kidney"] == 1.0
    assert list(temporary.iterdir()) == []
    from KidneySegLib.errors import InputError, KidneySegError

    with pytest.raises(InputError, match="is a label map"):
        module.logic.segment(truth)
    with pytest.raises(KidneySegError, match="no model 'nowhere'"):
        module.logic.segment(volume, model="nowhere")
    with pytest.raises(InputError, match="No volume is chosen"):
        module.logic.segmentAsync(None)
    assert list(temporary.iterdir()) == []


def test_the_modules_own_test_passes(window, module):
    window.slicer.selfTests["KidneySeg"]()  # raises where it does not


def test_the_modules_own_test_installs_what_is_missing(window, module, monkeypatch):
    """On a machine that builds Slicer nothing is there, and in testing mode nobody is asked."""
    monkeypatch.setattr(window.slicer.app, "testingEnabled", lambda: True)
    window.packages.missing.add("openvino")
    monkeypatch.setattr(type(module.logic), "segment", _Stop.here)
    with pytest.raises(_Stop):
        window.slicer.selfTests["KidneySeg"]()
    assert "openvino" in " ".join(window.packages.installed)


class _Stop(Exception):
    """Ends the module's own test where it begins to segment."""

    @staticmethod
    def here(*arguments, **choices):
        raise _Stop
