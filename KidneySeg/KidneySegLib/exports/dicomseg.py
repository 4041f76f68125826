"""A label map as a DICOM segmentation object of the DICOM CT that it was drawn on.

The object is a Segmentation Storage instance (DICOM PS3.3, A.51) with one bit a voxel, one frame
for each slice that shows a structure, and the CT's own positions, orientation and pixel spacing.
It belongs to the patient and the study of the CT, whose names and numbers it repeats.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from KidneySegLib import __version__
from KidneySegLib.dicom import is_dicom_folder, read_dicom
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.exports.labels import pasted
from KidneySegLib.writing import Segment, atomic

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIX = ".dcm"
# The longest text that DICOM takes as a Long String.
_LONG = 64
_UTF_8 = "ISO_IR 192"
# Attributes that every object of a patient and study has, if only without a value; programs that
# take away names may take away the attributes too.
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "StudyID", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip
# Without these nobody could tell which images the object belongs to.
_NEEDED = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
)  # fmt: skip


@dataclass(frozen=True)
class Algorithm:
    """Who made a label map: the name and version of a model."""

    name: str
    version: str


@dataclass(frozen=True)
class Written:
    """What is in a DICOM segmentation object.

    Attributes
    ----------
    structures
        Names of its segments.
    slices, frames
        Slices of the CT that show any of them; frames of all segments together.
    bytes
        Size of the file.
    warnings
        One sentence for each oddity of the CT.
    """

    structures: tuple[str, ...]
    slices: int
    frames: int
    bytes: int
    warnings: tuple[str, ...]


def write_dicom_seg(
    labels: sitk.Image,
    folder: Path | str,
    path: Path | str,
    segments: Sequence[Segment],
    algorithm: Algorithm | None,
    *,
    series_uid: str | None = None,
    files: Sequence[Path] | None = None,
    name: str = "the label map",
) -> Written:
    """Write a DICOM segmentation object.

    Category, type, side and region are the SNOMED CT codes of each segment's terminology.

    Parameters
    ----------
    labels
        3-D uint8; its voxels are voxels of the CT, see `KidneySegLib.exports.labels.pasted`.
    folder
        Of the DICOM CT.
    path
        Ends in `.dcm`.
    algorithm
        The model that made the labels; None where somebody drew them.
    series_uid, files
        Which series of the folder, and which of its files, as in `KidneySegLib.reading.read_ct`.
    name
        What to call the label map in messages: its file name.

    Raises
    ------
    InputError
        The folder has no such CT, the CT lacks what the object must repeat, the label map lies on
        another grid or is empty.
    UsageError
        highdicom is not installed.
    KidneySegError
        The file cannot be written; nothing has changed then.
    """
    try:
        import highdicom
        from highdicom import seg as dicom
    except ImportError as error:
        raise UsageError(
            'A DICOM SEG needs highdicom; install it with: pip install "kidneyseg[exports]".'
        ) from error
    folder, path = Path(folder), Path(path)
    if not files and not is_dicom_folder(folder):
        raise InputError(
            f"{folder} is not a DICOM folder; give the folder of the DICOM CT, or export to "
            "another kind of file."
        )
    ct = read_dicom(folder, series_uid, files)
    if not ct.files:
        raise InputError(
            f"{folder} holds its CT in one multi-frame file, for which no DICOM SEG is made; "
            "export the CT as single slices, or export to another kind of file."
        )
    array = sitk.GetArrayFromImage(pasted(labels, ct.image, (name, str(folder))))
    found = [one for one in segments if (array == one.label).any()]
    if not found:
        raise InputError(f"{name} has no kidney, and a DICOM SEG must have a structure.")
    sources = [_header(file, ct.image.GetSpacing()[2]) for file in ct.files]

    numbers = np.zeros(array.shape, np.uint8)
    for number, one in enumerate(found, start=1):
        numbers[array == one.label] = number
    model = algorithm or Algorithm("drawn by hand", "-")
    said = f"{model.name} {model.version}" if algorithm else model.name
    with warnings.catch_warnings():
        # Remarks on values of the CT that are copied as they are, such as too long names.
        warnings.simplefilter("ignore")
        instance = dicom.Segmentation(
            source_images=sources,
            pixel_array=numbers,
            segmentation_type=dicom.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, one, algorithm) for number, one in enumerate(found, start=1)
            ],
            series_instance_uid=highdicom.UID(),
            series_number=_series_number(sources[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="KidneySeg",
            manufacturer_model_name=model.name[:_LONG],
            software_versions=f"KidneySeg {__version__}",
            device_serial_number="-",
            content_label="KIDNEYS",
            content_description=f"Kidneys: {said}; research use only"[:_LONG],
            series_description=f"Kidneys ({said})"[:_LONG],
        )
        instance.ContentCreatorName = None  # must be there, and nobody was asked
        with atomic(path) as temporary:
            instance.save_as(temporary)
    return Written(
        structures=tuple(one.name for one in found),
        slices=int(numbers.any(axis=(1, 2)).sum()),
        frames=int(instance.NumberOfFrames),
        bytes=path.stat().st_size,
        warnings=tuple(ct.warnings),
    )


def _header(file: Path, distance_mm: float) -> Dataset:
    """The attributes of a slice of the CT, without its voxels."""
    import pydicom
    from pydicom.valuerep import DSfloat

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        _drop_nonsense(header)
        missing = [word for word in _NEEDED if not header.get(word)]
    if missing:
        raise InputError(
            f"{file} has no {missing[0]}, which a DICOM SEG must repeat; export the original CT "
            "series from the scanner or archive."
        )
    # Of the many character sets that CTs come in, and spellings of those, highdicom takes but some.
    header.SpecificCharacterSet = _UTF_8
    for word in _MAY_BE_EMPTY:
        if word not in header:
            setattr(header, word, None)
    # What a CT says of the distance of its slices is not always true; their positions are.
    header.SpacingBetweenSlices = DSfloat(distance_mm, auto_format=True)
    if not header.get("SliceThickness"):
        header.SliceThickness = header.SpacingBetweenSlices
    return header


def _drop_nonsense(header: Dataset) -> None:
    """Decode all values, and leave out those that DICOM does not know in their place.

    Such as the dates 00000000 or "unknown" of a CT without names.
    """
    from highdicom.enum import PatientSexValues
    from pydicom.multival import MultiValue
    from pydicom.valuerep import DA, TM

    for tag in list(header.keys()):
        try:
            element = header[tag]
            for item in element.value if element.VR == "SQ" else ():
                _drop_nonsense(item)
        except (ValueError, TypeError, NotImplementedError):  # pydicom's for what it cannot decode
            del header[tag]
    for word, parsed in {
        "PatientBirthDate": DA,
        "StudyDate": DA,
        "StudyTime": TM,
        "PatientSex": PatientSexValues,
        "PatientName": str,
        "SeriesNumber": int,
        "SliceThickness": float,
    }.items():
        if isinstance(header.get(word), MultiValue):
            setattr(header, word, header.get(word)[0])
        try:
            parsed(header.get(word))
        except (ValueError, TypeError):
            setattr(header, word, None)


def _series_number(source: Dataset) -> int:
    """One that shows in lists behind the CT's own."""
    return 100 * max(1, int(source.get("SeriesNumber") or 1) % 100_000)


def _description(number: int, segment: Segment, algorithm: Algorithm | None) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    _, category, kind, modifier, _, region, _ = segment.terminology.split("~")
    where = _code(region)
    made = None
    if algorithm:
        made = AlgorithmIdentificationSequence(
            name=algorithm.name[:_LONG],
            family=codes.DCM.ArtificialIntelligence,
            version=algorithm.version[:_LONG],
            source="KidneySeg",
        )
    how = SegmentAlgorithmTypeValues.AUTOMATIC if made else SegmentAlgorithmTypeValues.MANUAL
    item = SegmentDescription(
        segment_number=number,
        segment_label=segment.name,
        segmented_property_category=_code(category),
        segmented_property_type=_code(kind),
        algorithm_type=how,
        algorithm_identification=made,
        tracking_uid=generate_uid(),
        tracking_id=segment.id,
        anatomic_regions=[where] if where else None,
        display_color=CIELabColor.from_rgb(*(round(255 * part) for part in segment.color)),
    )
    side = _code(modifier)
    if side:
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
    by = f"by {algorithm.name} {algorithm.version}" if algorithm else "drawn by hand"
    item.SegmentDescription = f"{segment.name} {by}"[:_LONG]
    return item


def _code(text: str) -> Any:
    """A code of 3D Slicer's terminology entry, scheme^value^meaning; None where it is empty."""
    from highdicom.sr import CodedConcept

    scheme, value, meaning = text.split("^")
    return CodedConcept(value, scheme, meaning) if value else None
