"""Sample data: a CT that is generated on demand, and KiTS19 only after its terms were accepted."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from pathlib import Path
from typing import ClassVar

import pytest
import SimpleITK as sitk

from KidneySegLib.errors import Cancelled, KidneySegError
from KidneySegLib.geometry import grid_difference

ICONS = Path(__file__).resolve().parent.parent / "KidneySeg" / "Resources" / "Icons"


class SampleDataSource:
    def __init__(self, **given):
        vars(self).update(given)
        # Slicer refuses a source whose lists are of different lengths.
        lists = [given[key] for key in ("uris", "fileNames", "nodeNames", "loadFileTypes")]
        assert {type(one) for one in lists} == {list}
        assert len({len(one) for one in lists}) == 1


class SampleDataLogic:
    """As much of Slicer's as the samples use, with its parameters; it has no network."""

    sources: ClassVar[dict[str, list[SampleDataSource]]] = {}
    titles: ClassVar[dict[str, str]] = {}
    asked_for: ClassVar[list[str]] = []
    cache: ClassVar[Path]
    broken: ClassVar[set[str]] = set()  # sites that cut a download short

    def __init__(self, logMessage=None):
        if logMessage:
            self.logMessage = logMessage

    def logMessage(self, message, logLevel=logging.DEBUG):
        pass

    @staticmethod
    def registerCustomSampleDataCategory(category, title):
        SampleDataLogic.titles[category] = title

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
        customDownloader=None, thumbnailFileName=None, loadFileTypes=None, loadFiles=None,
        loadFileProperties=None, checksums=None, loadFileType=None,
    ):  # fmt: skip
        source = SampleDataSource(
            sampleName=sampleName, uris=uris, fileNames=fileNames, nodeNames=nodeNames,
            customDownloader=customDownloader, thumbnailFileName=thumbnailFileName,
            loadFileTypes=loadFileTypes,
        )  # fmt: skip
        SampleDataLogic.sources.setdefault(category, []).append(source)

    def loadNode(self, uri, name, fileType=None, fileProperties=None):
        import slicer

        load = {
            "VolumeFile": slicer.util.loadVolume,
            "SegmentationFile": slicer.util.loadSegmentation,
        }
        return load[fileType](uri, {"name": name, **(fileProperties or {})})

    def downloadFromURL(
        self, uris=None, fileNames=None, nodeNames=None, checksums=None, loadFiles=None,
        customDownloader=None, loadFileTypes=None, loadFileProperties=None, forceDownload=False,
    ):  # fmt: skip
        assert loadFiles is False
        path = SampleDataLogic.cache / fileNames
        if not path.is_file():
            SampleDataLogic.asked_for.append(uris)
            self.logMessage(f"<i>Downloaded 1 MB of {fileNames}</i>")
            if uris.split("/")[2] in SampleDataLogic.broken:
                path.write_bytes(b"half")
                self.logMessage("Download failed", logging.ERROR)
                return []
            voxels = sitk.Image(3, 4, 5, sitk.sitkInt16)
            sitk.WriteImage(voxels, str(path))
        return [str(path)]


@pytest.fixture
def samples(slicer_scene, monkeypatch, tmp_path):
    """The room, in a Slicer with the module Sample Data and an empty cache."""
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: text
    monkeypatch.setitem(sys.modules, "slicer.i18n", i18n)
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    qt = types.ModuleType("qt")
    qt.Qt = types.SimpleNamespace(ApplicationModal=2)
    qt.QEventLoop = types.SimpleNamespace(ExcludeUserInputEvents=1)
    monkeypatch.setitem(sys.modules, "qt", qt)
    monkeypatch.setattr(SampleDataLogic, "cache", tmp_path, raising=False)
    for kept in (
        SampleDataLogic.sources,
        SampleDataLogic.titles,
        SampleDataLogic.asked_for,
        SampleDataLogic.broken,
    ):
        kept.clear()
    monkeypatch.setattr(slicer_scene.util, "mainWindow", lambda: None)
    monkeypatch.delitem(sys.modules, "KidneySegLib.samples", raising=False)
    samples = importlib.import_module("KidneySegLib.samples")
    monkeypatch.setattr(samples, "_cache", lambda: tmp_path)
    monkeypatch.setattr(samples, "_SIZE", (48, 40, 12))
    return samples


class Window:
    """A progress window as slicer.util.createProgressDialog makes it."""

    def __init__(self, cancel_at: int = 1000):
        self.shown: list[int] = []
        self.cancel_at = cancel_at
        self.closed = False
        self.told: list[str] = []

    def opened(self, given):
        self.given = given
        return self

    @property
    def wasCanceled(self) -> bool:
        return bool(self.shown) and self.shown[-1] >= self.cancel_at

    def __setattr__(self, name, value):
        if name == "value":
            self.shown.append(value)
        else:
            object.__setattr__(self, name, value)

    def close(self):
        self.closed = True


@pytest.fixture
def window(samples, slicer_scene, monkeypatch):
    """Slicer with its main window and somebody in front of it."""
    window = Window()
    monkeypatch.setattr(slicer_scene.util, "mainWindow", object)
    monkeypatch.setattr(
        slicer_scene.util, "createProgressDialog", lambda **given: window.opened(given)
    )
    monkeypatch.setattr(
        slicer_scene.util, "showStatusMessage", lambda text, duration=0: window.told.append(text)
    )
    monkeypatch.setattr(slicer_scene.app, "testingEnabled", lambda: False)
    return window


def registered(samples) -> dict[str, SampleDataSource]:
    samples.register_sample_data()
    (category,) = SampleDataLogic.sources
    assert category == samples.CATEGORY and SampleDataLogic.titles == {category: "KidneySeg"}
    return {source.sampleName: source for source in SampleDataLogic.sources[category]}


def test_both_samples_are_registered_and_nothing_is_made_or_downloaded(samples, tmp_path):
    sources = registered(samples)
    assert list(sources) == [samples.GENERATED, samples.KITS19]
    assert list(tmp_path.iterdir()) == [] and SampleDataLogic.asked_for == []
    for source in sources.values():
        assert Path(source.thumbnailFileName).parent == ICONS
        assert Path(source.thumbnailFileName).is_file()
        assert callable(source.customDownloader)


def test_no_registered_address_leads_into_a_network(samples):
    """Slicer downloads from them for scripts that ask by name, past the terms."""
    for source in registered(samples).values():
        for uri in source.uris:
            assert uri.partition(":")[0] in ("generated-by-kidneyseg", "terms-first")


def test_an_older_slicer_has_no_titles_of_categories(samples, monkeypatch):
    monkeypatch.delattr(SampleDataLogic, "registerCustomSampleDataCategory")
    samples.register_sample_data()
    assert len(SampleDataLogic.sources[samples.CATEGORY]) == 2


# --- The generated CT -------------------------------------------------------------------------


def test_the_click_makes_the_ct_and_loads_it_with_its_kidneys(samples, tmp_path, slicer_scene):
    volume, segmentation = registered(samples)[samples.GENERATED].customDownloader(None)
    assert (volume.GetName(), segmentation.GetName()) == ("GeneratedCT", "GeneratedCT reference")
    assert volume.IsA("vtkMRMLScalarVolumeNode")
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    assert ids == ["left_kidney", "right_kidney"]
    ct, kidneys = (sitk.ReadImage(str(tmp_path / name)) for name in samples._GENERATED_FILES)
    assert ct.GetSize() == (12, 40, 48) and grid_difference(ct, kidneys) is None
    assert sitk.GetArrayFromImage(ct).min() < -900


def test_a_ct_that_is_there_already_is_not_made_again(samples, tmp_path, monkeypatch):
    samples.load_generated_ct()
    before = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    monkeypatch.setattr(samples, "make_generated_ct", None)
    assert len(samples.load_generated_ct()) == 2
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == before


def test_progress_is_shown_and_the_window_closed(samples, window):
    samples.load_generated_ct()
    assert window.shown == sorted(window.shown) and window.shown[-1] == 100 and window.closed
    assert window.given["windowModality"]  # no second click meanwhile


def test_cancel_leaves_nothing(samples, window, tmp_path):
    window.cancel_at = 50
    assert registered(samples)[samples.GENERATED].customDownloader(None) == []
    assert window.closed and list(tmp_path.iterdir()) == []
    with pytest.raises(Cancelled):
        samples.load_generated_ct()


def test_a_cache_that_cannot_be_written_to_is_shown_in_a_sentence(
    samples, slicer_scene, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(samples, "_cache", lambda: tmp_path / "file" / "cache")
    shown = []
    monkeypatch.setattr(slicer_scene.util, "errorDisplay", shown.append)
    assert registered(samples)[samples.GENERATED].customDownloader(None) == []
    assert len(shown) == 1 and "cannot be written" in shown[0]


def test_half_a_disk_full_leaves_neither_file(samples, tmp_path, monkeypatch):
    from KidneySegLib import writing

    def full(*arguments):
        raise KidneySegError("the disk is full")

    monkeypatch.setattr(writing, "write_labels", full)
    with pytest.raises(KidneySegError):
        samples.load_generated_ct()
    assert list(tmp_path.iterdir()) == []


# --- KiTS19 -----------------------------------------------------------------------------------


@pytest.fixture
def asked(samples, slicer_scene, monkeypatch):
    """The questions that were shown; `answer` is what the user says to them."""
    asked = types.SimpleNamespace(texts=[], answer=False)

    def confirm(text, windowTitle=None):
        asked.texts.append(text)
        return asked.answer

    monkeypatch.setattr(slicer_scene.util, "confirmOkCancelDisplay", confirm)
    return asked


def test_the_terms_are_shown_before_the_download(samples, window, asked):
    asked.answer = True
    loaded = registered(samples)[samples.KITS19].customDownloader(None)
    (text,) = asked.texts
    for word in ("CC BY-NC-SA 4.0", "huggingface.co", "github.com", "arXiv:1904.00445"):
        assert word in text
    assert [uri.split("/")[2] for uri in SampleDataLogic.asked_for] == [
        "huggingface.co",
        "github.com",
    ]
    assert [node.GetClassName() for node in loaded] == [
        "vtkMRMLScalarVolumeNode",
        "vtkMRMLLabelMapVolumeNode",
    ]
    assert window.told[0] == "Downloaded 1 MB of KiTS19-case_00009-imaging.nii.gz"


@pytest.mark.parametrize("broken", ["huggingface.co", "github.com"])
def test_a_download_that_fails_says_so_and_leaves_no_half(
    samples, window, asked, slicer_scene, monkeypatch, tmp_path, broken
):
    """Slicer's own download only logs it, and takes half a file for a whole one the next time."""
    asked.answer = True
    shown: list[str] = []
    monkeypatch.setattr(slicer_scene.util, "errorDisplay", shown.append)
    SampleDataLogic.broken.add(broken)
    assert registered(samples)[samples.KITS19].customDownloader(None) == []
    assert len(shown) == 1 and broken in shown[0] and "connection to the internet" in shown[0]
    assert slicer_scene.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == 0
    assert not [path for path in tmp_path.iterdir() if path.read_bytes() == b"half"]


def test_no_means_no(samples, window, asked):
    assert registered(samples)[samples.KITS19].customDownloader(None) == []
    assert len(asked.texts) == 1 and SampleDataLogic.asked_for == []


@pytest.mark.parametrize("nobody", ["testing", "no window"])
def test_where_nobody_is_asked_nothing_is_downloaded(
    samples, window, asked, slicer_scene, monkeypatch, nobody
):
    """In testing mode Slicer itself says yes to every question."""
    asked.answer = True
    if nobody == "testing":
        monkeypatch.setattr(slicer_scene.app, "testingEnabled", lambda: True)
    else:
        monkeypatch.setattr(slicer_scene.util, "mainWindow", lambda: None)
    with pytest.raises(Cancelled):
        samples.load_kits19_case()
    assert asked.texts == [] and SampleDataLogic.asked_for == []


def test_what_was_accepted_and_downloaded_is_loaded_without_asking(
    samples, window, asked, tmp_path
):
    for _, file, *_others in samples._KITS19_FILES:
        sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkInt16), str(tmp_path / file))
    assert len(samples.load_kits19_case()) == 2
    assert asked.texts == [] and SampleDataLogic.asked_for == []
