"""Sample data in Slicer's module Sample Data: a generated CT, and the way to a case of KiTS19.

The generated CT is made on this machine when somebody wants it. The case of KiTS19 is downloaded
from where its owners put it, after its terms were shown and accepted: no other way to it is
registered. Both are kept in Slicer's cache folder, which the user can empty.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from KidneySegLib import __version__
from KidneySegLib.errors import Cancelled, KidneySegError

CATEGORY = "KidneySeg"
GENERATED = "KidneySegGeneratedCT"
KITS19 = "KidneySegKiTS19"

# Another version may generate other voxels.
_GENERATED_FILES = (
    f"{GENERATED}-{__version__}.nrrd",
    f"{GENERATED}-{__version__}-kidneys.seg.nrrd",
)
# The result of a segmentation is called "GeneratedCT kidneys".
_GENERATED_NODES = ("GeneratedCT", "GeneratedCT reference")
_SEED, _SIZE = 1, (384, 384, 120)

# One of the smaller cases, of a patient whom the model that ships has not seen.
_KITS19_CASE = "case_00009"
# https://github.com/neheller/kits19: the imaging where its get_imaging.py looks, the labels by
# the commit that was looked at.
_KITS19_FILES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging/resolve/main/images/"
        f"{_KITS19_CASE}.nii.gz",
        f"KiTS19-{_KITS19_CASE}-imaging.nii.gz",
        f"KiTS19 {_KITS19_CASE}",
        {},
    ),
    (
        "https://github.com/neheller/kits19/raw/456b293435b25303bbc7995f094f83a0afdff0eb/data/"
        f"{_KITS19_CASE}/segmentation.nii.gz",
        f"KiTS19-{_KITS19_CASE}-segmentation.nii.gz",
        f"KiTS19 {_KITS19_CASE} kidney and tumour",
        {"labelmap": True},
    ),
)


def register_sample_data() -> None:
    """Add both to the module Sample Data; nothing is made or downloaded.

    To be called once Slicer has started.
    """
    logic = _slicers_logic()
    if hasattr(logic, "registerCustomSampleDataCategory"):  # newer than Slicer 5.10
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("KidneySeg"))
    icons = Path(__file__).resolve().parent.parent / "Resources" / "Icons"
    # Their own downloaders are what the buttons call. Scripts that ask by name skip these, so the
    # addresses lead nowhere: nothing comes unless it is in the cache already.
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=GENERATED,
        thumbnailFileName=str(icons / f"{GENERATED}.png"),
        uris=["generated-by-kidneyseg:ct", "generated-by-kidneyseg:kidneys"],
        fileNames=list(_GENERATED_FILES),
        nodeNames=list(_GENERATED_NODES),
        loadFileTypes=["VolumeFile", "SegmentationFile"],
        customDownloader=lambda source: _on_click(load_generated_ct),
    )
    logic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=KITS19,
        thumbnailFileName=str(icons / "KidneySeg.png"),
        uris=[f"terms-first:{uri}" for uri, *_others in _KITS19_FILES],
        fileNames=[file for _uri, file, *_others in _KITS19_FILES],
        nodeNames=[node for *_others, node, _properties in _KITS19_FILES],
        loadFileTypes=["VolumeFile", "VolumeFile"],
        customDownloader=lambda source: _on_click(load_kits19_case),
    )


def _on_click(load: Callable[[], list[Any]]) -> list[Any]:
    """For a button: what goes wrong is shown."""
    try:
        return load()
    except Cancelled:
        return []
    except KidneySegError as error:
        slicer.util.errorDisplay(str(error))
        return []


# --- The generated CT ---------------------------------------------------------------------------


def load_generated_ct() -> list[Any]:
    """The generated CT and its kidneys as a volume and a segmentation node.

    They are made, which takes some seconds, unless the cache holds them.

    Raises
    ------
    Cancelled
        The user stopped it.
    KidneySegError
        The cache folder cannot be written to.
    """
    folder = _cache()
    if not all((folder / name).is_file() for name in _GENERATED_FILES):
        make_generated_ct(folder)
    return [
        _load(folder / name, node, kind, {})
        for name, node, kind in zip(
            _GENERATED_FILES, _GENERATED_NODES, ("VolumeFile", "SegmentationFile"), strict=True
        )
    ]


def _load(path: Path, node: str, kind: str, properties: Mapping[str, Any]) -> Any:
    """The node of a file in the cache."""
    loaded = _slicers_logic()().loadNode(str(path), node, kind, dict(properties))
    if loaded is None:
        text = _("{file} cannot be loaded; delete it and try again.")
        raise KidneySegError(text.format(file=path))
    return loaded


def make_generated_ct(folder: Path) -> None:
    """Generate a CT and its two kidneys, both or none of the files, in a folder.

    Raises
    ------
    Cancelled
        The user stopped it.
    KidneySegError
        The folder cannot be written to.
    """
    import SimpleITK as sitk

    from KidneySegLib.phantom import generate
    from KidneySegLib.writing import SIDES, atomic, write_labels

    window = None
    if slicer.util.mainWindow() is not None:
        window = slicer.util.createProgressDialog(
            labelText=_("Generating a CT; no patient is behind it"),
            windowTitle=_("KidneySeg"),
            windowModality=qt.Qt.ApplicationModal,  # of its own it is not
        )

    def tell(share: float) -> None:
        if window is None:
            return
        window.value = round(100 * share)
        slicer.app.processEvents()
        if window.wasCanceled:
            raise Cancelled(_("Cancelled; nothing was written."))

    try:
        phantom = generate(_SEED, _SIZE, progress=tell)
        image, kidneys = (folder / name for name in _GENERATED_FILES)
        with atomic(image) as first, atomic(kidneys) as second:
            try:
                sitk.WriteImage(phantom.image, str(first), useCompression=True)
                complete = sitk.Hash(sitk.ReadImage(str(first))) == sitk.Hash(phantom.image)
            except RuntimeError:
                complete = False
            if not complete:  # ITK does not always notice a full disk
                raise KidneySegError(
                    _("{file} cannot be written; free some space and try again.").format(file=image)
                )
            write_labels(phantom.sides, second, SIDES)
    finally:
        if window is not None:
            window.close()


def _slicers_logic() -> Any:
    """The class SampleDataLogic; its module is there once Slicer has started."""
    return import_module("SampleData").SampleDataLogic


def _cache() -> Path:
    return Path(slicer.mrmlScene.GetCacheManager().GetRemoteCacheDirectory())


# --- KiTS19 -------------------------------------------------------------------------------------


def load_kits19_case() -> list[Any]:
    """A CT of KiTS19 and its labels (1 kidney, 2 tumour), downloaded if the user accepts the terms.

    Raises
    ------
    Cancelled
        They were not accepted, or there is nobody to ask.
    KidneySegError
        One of the two could not be downloaded; neither is loaded.
    """
    folder = _cache()
    if not all((folder / file).is_file() for _uri, file, *_others in _KITS19_FILES):
        # In testing mode a question is answered with yes by nobody.
        if slicer.app.testingEnabled() or slicer.util.mainWindow() is None:
            raise Cancelled(_("The terms of KiTS19 were shown to nobody; nothing was downloaded."))
        if not slicer.util.confirmOkCancelDisplay(terms(), windowTitle=_("Terms of KiTS19")):
            raise Cancelled(_("The terms were not accepted; nothing was downloaded."))
    for uri, file, *_others in _KITS19_FILES:
        _download(uri, folder / file)
    return [
        _load(folder / file, node, "VolumeFile", properties)
        for _uri, file, node, properties in _KITS19_FILES
    ]


def _download(uri: str, path: Path) -> None:
    """Have Slicer download a file into its cache, unless it is there."""
    logic = _slicers_logic()(logMessage=_tell_download)
    if not logic.downloadFromURL(uris=uri, fileNames=path.name, loadFiles=False):
        # Slicer has only logged why, and would take the beginning of a file for the whole.
        with suppress(OSError):
            path.unlink()
        text = _(
            "{file} could not be downloaded from {site}; check the connection to the internet and "
            "try again."
        )
        raise KidneySegError(text.format(file=path.name, site=uri.split("/")[2]))


def _tell_download(message: str, level: int = logging.DEBUG) -> None:
    """Show how far a download is, and keep the window alive meanwhile."""
    text = re.sub("<[^>]*>", "", message).strip()
    logging.log(level, text)
    slicer.util.showStatusMessage(text, 3000)
    slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)


def terms() -> str:
    """Under what terms the case of KiTS19 comes, and from where."""
    return _(
        "This downloads {case} of the KiTS19 challenge (a CT of a patient with a kidney tumour and "
        "its label map) from huggingface.co and github.com.\n\n"
        "Terms: Creative Commons CC BY-NC-SA 4.0. You may use, change and pass on the data for "
        "purposes that are not commercial, if you name the source and pass it on under the same "
        "terms.\n"
        "https://creativecommons.org/licenses/by-nc-sa/4.0/\n\n"
        "Source: N. Heller et al., The KiTS19 Challenge Data, arXiv:1904.00445.\n\n"
        "KidneySeg has no part in these data. Accept the terms and download?"
    ).format(case=_KITS19_CASE)
