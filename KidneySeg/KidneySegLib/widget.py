"""The panel of the module: what its buttons, lists and labels do.

It knows the widgets of KidneySeg.ui by their names and the module's logic; the scene and the
parameter node are brought to it by the module's widget class.
"""

from __future__ import annotations

import html
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from KidneySegLib import scene, scenecomparison, scenetable
from KidneySegLib.errors import Cancelled, KidneySegError
from KidneySegLib.modelplaces import DEFAULT_MODEL, list_cards, user_folder
from KidneySegLib.writing import write_json

DEVICE_KEY = "KidneySeg/Device"
MODEL_FOLDER_KEY = "KidneySeg/ModelFolder"
# Where the table of results keeps the report that it was made from, so that a scene brings it back.
REPORT_ATTRIBUTE = "KidneySeg.Report"
# Progress is shown in thousandths; time left is told once so much is done.
_WHOLE = 1000
_ENOUGH_SHARE = 0.1


class Panel:
    """Everything between the widgets of KidneySeg.ui and the logic.

    Args:
        ui: the widgets by their names, as `slicer.util.childWidgetVariables` gives them.
        logic: a KidneySegLogic.
    """

    def __init__(self, ui: Any, logic: Any):
        self.ui = ui
        self.logic = logic
        self.parameters: Any = None
        self.run: Any = None
        self._installing = False
        self._started = 0.0
        self._measured: tuple[Any, ...] | None = None
        self._cards: list[dict[str, Any]] = []
        self._refused: list[str] = []
        for text, device in _devices():
            ui.deviceComboBox.addItem(text, device)
        self._choose(ui.deviceComboBox, slicer.util.settingsValue(DEVICE_KEY, "auto"))
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.on_input_changed)
        ui.modelComboBox.connect("activated(int)", self.on_model_chosen)
        ui.modelFolderButton.connect("clicked(bool)", self.on_model_folder)
        ui.refreshButton.connect("clicked(bool)", self.on_refresh)
        ui.deviceComboBox.connect("activated(int)", self.on_device_chosen)
        ui.applyButton.connect("clicked(bool)", self.on_apply)
        ui.show3DButton.connect("clicked(bool)", self.on_show_3d)
        ui.compareButton.connect("clicked(bool)", self.on_compare)
        ui.outlineCheckBox.connect("toggled(bool)", self.on_comparison_style)
        ui.fillOpacitySlider.connect("valueChanged(double)", self.on_comparison_style)
        ui.saveReportButton.connect("clicked(bool)", self.on_save_report)
        ui.trainButton.connect("clicked(bool)", self.on_train)
        self.refresh_models()
        self.update()

    # --- state ----------------------------------------------------------------------------

    def set_parameters(self, parameters: Any) -> None:
        """Show the choices of another parameter node; None for none, while a scene is closed."""
        self.parameters = parameters
        if parameters is not None:
            self._choose_model()
        self.on_input_changed()
        self.update()

    def cancel(self) -> None:
        """Stop the run, if there is one, within a second."""
        if self.run is not None:
            self.run.cancel()

    def update(self) -> None:
        """Enable what can be done, and let the rest say in its tooltip why it cannot."""
        ui, chosen = self.ui, self.parameters
        running = self.run is not None
        ui.applyButton.text = _("Cancel") if running else _("Segment")
        if running:
            self._allow(ui.applyButton, "", _("Stop; the scene stays as it is."))
        else:
            self._allow(
                ui.applyButton,
                self._why_no_segmenting(),
                _("Segment both kidneys. Nothing leaves this computer."),
            )
        segmentation = None if chosen is None else chosen.segmentation
        reference = None if chosen is None else chosen.reference
        empty = segmentation is None or not segmentation.GetSegmentation().GetNumberOfSegments()
        why = _("Segment a CT first, or choose a segmentation.") if empty else ""
        self._allow(ui.show3DButton, why, _("Show the kidneys in the 3D view."))
        ui.show3DButton.checked = not empty and _has_surfaces(segmentation)
        if not why and reference is None:
            why = _("Choose a reference first.")
        elif not why and reference is segmentation:
            why = _("The segmentation is the reference; choose another one of the two.")
        self._allow(
            ui.compareButton,
            why,
            _("Show the reference in red, the segmentation in blue, and measure how they agree."),
        )
        ui.compareButton.checked = scenecomparison.comparison_shown(segmentation, reference)
        why = "" if self._report() else _("Segment a CT first: there are no results yet.")
        self._allow(ui.saveReportButton, why, _("Save volumes, figures and settings as a file."))
        here = hasattr(slicer.modules, "unettrainer")
        why = "" if here else _("The module UNetTrainer is not installed.")
        self._allow(ui.trainButton, why, _("Open UNetTrainer, which trains models on your cases."))
        table = None if chosen is None else chosen.resultsTable
        if ui.resultsTableView.mrmlTableNode() is not table:
            ui.resultsTableView.setMRMLTableNode(table)
            if table is not None:
                ui.resultsTableView.transposed = True  # not taken before there is a table
            ui.resultsTableView.resizeColumnsToContents()

    def _why_no_segmenting(self) -> str:
        chosen = self.parameters
        if self._installing:
            return _("Python packages are being installed; wait until that is done.")
        if chosen is None or chosen.inputVolume is None:
            return _("Load a CT and choose it as CT volume first.")
        if chosen.segmentation is not None and chosen.segmentation is chosen.reference:
            return _("The segmentation is the reference; choose another one of the two.")
        if not self._cards:
            return _("No model was found; choose a folder with models.")
        return ""

    def _allow(self, button: Any, why_not: str, tip: str) -> None:
        button.enabled = not why_not
        button.toolTip = why_not or tip

    @staticmethod
    def _choose(box: Any, data: str) -> None:
        """Select the entry of a combo box with this data, or the first."""
        box.setCurrentIndex(max(0, box.findData(data)))

    # --- input ----------------------------------------------------------------------------

    def on_input_changed(self, node: Any = None) -> None:
        """Say at once what is wrong with a volume, or odd."""
        volume = None if self.parameters is None else self.ui.inputSelector.currentNode()
        hint = ""
        if volume is not None:
            try:
                scene.check_volume(volume)
                hint = scene.hu_hint(volume) or ""
            except KidneySegError as error:
                hint = str(error)
        self.ui.hintLabel.text = hint
        self.ui.hintLabel.visible = bool(hint)

    # --- models and devices ---------------------------------------------------------------

    def refresh_models(self) -> None:
        """Look for models again, in their folders and in the one that the user chose."""
        folder = slicer.util.settingsValue(MODEL_FOLDER_KEY, "")
        self._cards, self._refused = list_cards(*([Path(folder)] if folder else []))
        box = self.ui.modelComboBox
        box.clear()
        for card in self._cards:
            box.addItem(f"{card['name']} {card['version']}", card["name"])
        where = _("Choose a folder with further models; your own folder is {folder}.").format(
            folder=user_folder()
        )
        chosen = _("Chosen: {folder}").format(folder=folder) if folder else ""
        self.ui.modelFolderButton.toolTip = f"{where}\n{chosen}".strip()
        self._choose_model()

    def _choose_model(self) -> None:
        """Show the model of the parameter node, or the default where there is none of that name."""
        box = self.ui.modelComboBox
        wanted = (self.parameters.model if self.parameters is not None else "") or DEFAULT_MODEL
        self._choose(box, wanted if box.findData(wanted) >= 0 else DEFAULT_MODEL)
        self._show_card()

    def _show_card(self) -> None:
        text = card_html(self._card()) if self._cards else _("No model was found.")
        for reason in self._refused:
            text += f"<br><i>{html.escape(reason)}</i>"
        wanted = self.parameters.model if self.parameters is not None else ""
        if self._cards and wanted and wanted != self._card()["name"]:
            missing = _("Model {name}, which this scene was made with, is not on this computer.")
            text = f"<b>{html.escape(missing.format(name=wanted))}</b><br>{text}"
        self.ui.modelCardLabel.text = text

    def _card(self) -> dict[str, Any]:
        return self._cards[self.ui.modelComboBox.currentIndex]

    def on_model_chosen(self, index: int) -> None:
        if self.parameters is not None:
            self.parameters.model = self.ui.modelComboBox.itemData(index)
        self._show_card()

    def on_model_folder(self) -> None:
        before = slicer.util.settingsValue(MODEL_FOLDER_KEY, "") or str(user_folder())
        folder = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder with models"), before
        )
        if folder:
            qt.QSettings().setValue(MODEL_FOLDER_KEY, folder)
            self.on_refresh()

    def on_refresh(self) -> None:
        self.refresh_models()
        self.update()

    def on_device_chosen(self, index: int) -> None:
        qt.QSettings().setValue(DEVICE_KEY, self.ui.deviceComboBox.itemData(index))

    # --- a run ----------------------------------------------------------------------------

    def on_apply(self) -> None:
        """Segment, or Cancel."""
        if self.run is not None:
            self.cancel()
        else:
            self.segment()

    def segment(self) -> None:
        """Install what is missing, after asking, and start a run."""
        chosen = self.parameters
        self.ui.logTextEdit.clear()
        self._say("")
        with self._told():
            self._installing = True
            self.update()
            box = self.ui.deviceComboBox
            device = box.itemData(box.currentIndex)
            try:
                self.logic.installRequirements(device=device)
            finally:
                self._installing = False
            self.run = self.logic.segmentAsync(
                chosen.inputVolume,
                chosen.segmentation,
                model=str(self._card()["folder"]),
                device=device,
                referenceNode=chosen.reference,
                mergeSides=chosen.mergeSides,
                keepSmall=chosen.keepSmall,
                batchSlices=chosen.batchSlices,
                mirror=chosen.mirror,
                onProgress=self.on_progress,
                onDone=self.on_done,
                onError=self.on_error,
                onCancel=self.on_cancel,
                onLine=self.on_line,
            )
            self._started = time.monotonic()
            self.ui.progressBar.value = 0
            self.ui.progressBar.visible = True
            self._say(_("Starting"))
            self.on_line(self.run.job.log)
        self.update()

    def on_progress(self, share: float, step: str) -> None:
        seconds = time.monotonic() - self._started
        self.ui.progressBar.value = round(share * _WHOLE)
        text = _step_text(step)
        if _ENOUGH_SHARE <= share < 1:
            left = seconds * (1 - share) / share
            text = _("{step}, {time} left").format(step=text, time=_time_text(left))
        self._say(text)

    def on_line(self, text: str) -> None:
        self.ui.logTextEdit.appendPlainText(text)

    def on_done(self, segmentation: Any) -> None:
        """The result is in the scene: show its figures."""
        report = self.run.report
        self._end_run()
        chosen = self.parameters
        if chosen is None:
            return
        chosen.segmentation = segmentation
        with self._told():
            self._show_results(report)
            if scenecomparison.comparison_shown(segmentation, chosen.reference):
                self._show_comparison()
        self.on_line(_log_text(report))
        taken = _time_text(time.monotonic() - self._started)
        notes = ". ".join([*report["notes"], _("Research use only, not for clinical use")])
        self._say(_("Done in {time}. {notes}.").format(time=taken, notes=notes))
        self.update()

    def on_error(self, message: str, log: str) -> None:
        self._end_run()
        self._say(message)
        slicer.util.errorDisplay(
            message, windowTitle=_("Kidney Segmentation"), detailedText=log or message
        )

    def on_cancel(self) -> None:
        self._end_run()
        self._say(_("Cancelled; the scene is as before."))

    def _end_run(self) -> None:
        self.run = None
        self.ui.progressBar.visible = False
        self.update()

    def _say(self, text: str) -> None:
        self.ui.statusLabel.text = text

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong in the block is told in one sentence."""
        try:
            yield
        except Cancelled as error:
            self._say(str(error))
        except KidneySegError as error:
            logging.error("%s", error)
            self._say(str(error))
            slicer.util.errorDisplay(str(error), windowTitle=_("Kidney Segmentation"))

    # --- results --------------------------------------------------------------------------

    def _report(self) -> dict[str, Any] | None:
        """The report behind the table of results, if there is one."""
        table = None if self.parameters is None else self.parameters.resultsTable
        text = None if table is None else table.GetAttribute(REPORT_ATTRIBUTE)
        return json.loads(text) if text else None

    def _show_results(self, report: dict[str, Any]) -> None:
        volumes = {side: kidney["volume_ml"] for side, kidney in report["kidneys"].items()}
        rows = scenetable.result_rows(volumes, report.get("comparison"))
        table = scenetable.results_table(rows, self.parameters.resultsTable)
        table.SetLocked(True)
        table.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))
        self.parameters.resultsTable = table
        self.ui.resultsTableView.resizeColumnsToContents()
        if "comparison" in report:
            self._measured = self._to_measure()

    def on_show_3d(self, shown: bool) -> None:
        with self._told(), _busy():
            scene.show_surfaces(self.parameters.segmentation, shown)
        self.update()

    def on_compare(self, shown: bool) -> None:
        """Switch red and blue on, with figures, or off."""
        chosen = self.parameters
        with self._told():
            if shown:
                self._show_comparison()
                self._compare()
            else:
                scenecomparison.hide_comparison(chosen.segmentation, chosen.reference)
        self.update()

    def on_comparison_style(self, value: Any = None) -> None:
        """The outline or the fill was changed: change what is shown."""
        chosen = self.parameters
        if chosen is None or chosen.reference is None or chosen.segmentation is None:
            return
        if scenecomparison.comparison_shown(chosen.segmentation, chosen.reference):
            with self._told():
                self._show_comparison()

    def _show_comparison(self) -> None:
        chosen = self.parameters
        scenecomparison.show_comparison(
            chosen.segmentation,
            chosen.reference,
            outline=self.ui.outlineCheckBox.checked,
            fill_opacity=self.ui.fillOpacitySlider.value,
        )

    def _compare(self) -> None:
        """Measure a segmentation against a reference that was chosen after the run."""
        chosen = self.parameters
        if self._measured == self._to_measure():
            return
        self.logic.installRequirements()  # may ask, which goes ill with an hourglass
        with _busy():
            comparison = self.logic.compare(chosen.segmentation, chosen.reference, self._drawn_on())
        report = self._report() or {"input": chosen.segmentation.GetName(), "notes": []}
        volumes = comparison["volume_ml"]["prediction"]
        report["kidneys"] = {side: {"volume_ml": ml} for side, ml in volumes.items()}
        report["reference"] = chosen.reference.GetName()
        report["comparison"] = comparison
        self._show_results(report)

    def _to_measure(self) -> tuple[Any, ...]:
        """Changes when either of the two that are compared does."""
        nodes = (self.parameters.segmentation, self.parameters.reference)
        return tuple(
            (node.GetID(), node.GetSegmentation().GetMTime() if _is_segmentation(node) else 0)
            for node in nodes
        )

    def _drawn_on(self) -> Any:
        """The volume that a segmentation was made on, as far as it knows."""
        role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
        known = self.parameters.segmentation.GetNodeReference(role)
        return known or self.parameters.inputVolume

    def on_save_report(self) -> None:
        report = self._report()
        name = f"{(report or {}).get('input', 'kidneys')}.json"
        path = qt.QFileDialog.getSaveFileName(
            slicer.util.mainWindow(), _("Save report"), name, _("Report (*.json)")
        )
        if path:
            path = path if path.lower().endswith(".json") else f"{path}.json"
            with self._told():
                write_json(report, path)
                self._say(_("The report is in {path}.").format(path=path))

    def on_train(self) -> None:
        slicer.util.selectModule("UNetTrainer")


def card_html(card: dict[str, Any]) -> str:
    """What a user should know of a model before using it, as lines of HTML.

    Cards may leave things out: those lines are left out, too.
    """
    lines = []
    if isinstance(card.get("description"), str):
        lines.append(html.escape(card["description"]))
    data = card.get("data")
    if isinstance(data, list):
        sources = [one for one in data if isinstance(one, dict) and "source" in one]
        told = "; ".join(
            html.escape(
                f"{one['source']} ({one['patients']})" if "patients" in one else str(one["source"])
            )
            for one in sources
        )
        lines.append(_("<b>Trained on</b> (patients): {data}").format(data=told))
    scores = card.get("scores")
    if isinstance(scores, dict) and isinstance(scores.get("dice_kidney_mean"), float):
        text = _("<b>Measured</b>: mean Dice {mean:.3f}").format(mean=scores["dice_kidney_mean"])
        if isinstance(scores.get("dice_kidney_lowest"), float):
            text += _(", lowest {lowest:.3f}").format(lowest=scores["dice_kidney_lowest"])
        if "patients" in scores:
            text += _(", {count} patients").format(count=html.escape(str(scores["patients"])))
        if "method" in scores:
            text += f" ({html.escape(str(scores['method']))})"
        lines.append(text)
    if isinstance(card.get("licence"), str):
        lines.append(_("<b>Licence</b>: {text}").format(text=html.escape(card["licence"])))
    return "<br>".join(lines)


def _log_text(report: dict[str, Any]) -> str:
    """How a run was done and how long each step took."""
    model = report["model"]
    steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in report["seconds"].items())
    return (
        f"model {model['name']} {model['version']}, device {report['device']}, "
        f"{report['precision']}; seconds: {steps}"
    )


def _devices() -> list[tuple[str, str]]:
    """What can be chosen as device; whether it is there is found out by the worker."""
    gpu = (_("Apple GPU"), "mps") if sys.platform == "darwin" else (_("NVIDIA GPU"), "cuda")
    return [(_("Automatic"), "auto"), (_("CPU"), "cpu"), gpu]


def _step_text(step: str) -> str:
    return {
        "read": _("Reading the CT"),
        "prepare": _("Preparing slices"),
        "find": _("Looking for kidneys"),
        "predict": _("Outlining kidneys"),
        "kidneys": _("Telling left from right"),
        "measure": _("Measuring"),
        "write": _("Writing"),
    }.get(step, step)


def _time_text(seconds: float) -> str:
    if seconds < 60:
        return _("{count} s").format(count=max(1, round(seconds)))
    return _("{minutes} min {seconds} s").format(
        minutes=int(seconds) // 60, seconds=int(seconds) % 60
    )


def _is_segmentation(node: Any) -> bool:
    return bool(node.IsA("vtkMRMLSegmentationNode"))


def _has_surfaces(segmentation: Any) -> bool:
    representation = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName
    return bool(segmentation.GetSegmentation().ContainsRepresentation(representation()))


@contextmanager
def _busy() -> Iterator[None]:
    """An hourglass for what takes a second or two."""
    slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        slicer.app.restoreOverrideCursor()
