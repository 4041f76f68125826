"""``kidneyseg export``: a label map for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from KidneySegLib.commands.common import keep_inputs
from KidneySegLib.errors import InputError, UsageError

if TYPE_CHECKING:
    import SimpleITK as sitk

    from KidneySegLib.exports.dicomseg import Algorithm
    from KidneySegLib.exports.labels import Meaning
    from KidneySegLib.writing import Segment

NAME = "export"
HELP = "label maps as pictures, run lengths, surfaces or DICOM SEG"

# What the ending of a file stands for; a folder needs --format.
_ENDINGS = {".dcm": "dicom", ".csv": "csv", ".stl": "stl", ".obj": "obj"}
_FOLDERS = ("png", "tiff", "csv", "stl", "obj")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="LABELS",
        type=Path,
        help="label map or .seg.nrrd; or, to turn it back, a .csv or folder that was exported",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PATH",
        help=".dcm (DICOM SEG), .csv (run lengths), .stl or .obj (surface), a label map, or a "
        "folder with --format",
    )
    parser.add_argument(
        "--format",
        choices=_FOLDERS,
        help="what a folder gets: png or tiff, one for each slice; csv, stl or obj, one for each "
        "structure",
    )
    parser.add_argument(
        "--labels",
        choices=("sides", "kidney", "tumour"),
        help="sides: 1 left, 2 right; kidney: all as 1; tumour: 1 kidney, 2 tumour (default: as "
        "the source names them, else told by where they lie)",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="CT",
        help="paste the labels into the whole grid of this CT; needed to turn a .csv back",
    )
    surface = parser.add_argument_group("surfaces")
    surface.add_argument(
        "--space", default="LPS", choices=("LPS", "RAS"), help="of the points (default: LPS)"
    )
    dicom = parser.add_argument_group("DICOM SEG")
    dicom.add_argument("--dicom", type=Path, metavar="FOLDER", help="the DICOM CT, needed")
    dicom.add_argument("--series", metavar="UID", help="which series of that folder")
    who = dicom.add_mutually_exclusive_group()
    who.add_argument("--report", type=Path, metavar="PATH", help="of `segment`: names the model")
    who.add_argument("--model", metavar="NAME|FOLDER", help="the model that made the labels")
    who.add_argument("--by-hand", action="store_true", help="somebody drew the labels")


def run(options: argparse.Namespace) -> int:
    kind = _kind(options)
    _check(options, kind)
    from KidneySegLib.exports.labels import understood

    name = str(options.source)
    labels, told = _labels(options)
    labels, segments = understood(labels, name, options.labels, told)
    write = {
        "dicom": _dicom,
        "csv": _run_lengths,
        "png": _slices,
        "tiff": _slices,
        "stl": _surfaces,
        "obj": _surfaces,
        "labels": _label_map,
    }[kind]
    write(labels, segments, options, kind)
    return 0


def _kind(options: argparse.Namespace) -> str:
    """What is asked for, as its name or --format says."""
    from KidneySegLib.writing import LABEL_SUFFIXES

    output: Path = options.output
    name = output.name.lower()
    told = _ENDINGS.get(output.suffix.lower())
    if told is None and name.endswith(LABEL_SUFFIXES):
        told = "labels"
    kind = options.format or told
    if kind is None:
        raise UsageError(
            f"{output} does not tell what to write; end it in {', '.join(_ENDINGS)} or "
            f"{LABEL_SUFFIXES[1]}, or give a folder and --format {'|'.join(_FOLDERS)}."
        )
    if told not in (None, kind):
        raise UsageError(f"{output} does not go with --format {kind}; choose one of the two.")
    return str(kind)


def _check(options: argparse.Namespace, kind: str) -> None:
    """Everything that can be told before anything is read."""
    from KidneySegLib.volumes import IMAGING
    from KidneySegLib.writing import check_output

    output: Path = options.output
    check_output(output, (output.suffix.lower(),) if _is_file(options) else None)
    cts = [path for path in (options.like, options.dicom) if path is not None]
    inputs = [options.source, *cts, *(ct / name for ct in cts for name in IMAGING)]
    if options.source.is_dir():
        inputs += options.source.iterdir()
    if options.report is not None:
        inputs.append(options.report)
    keep_inputs(inputs, [output])
    if kind == "dicom":
        if options.dicom is None:
            raise UsageError("A DICOM SEG needs the CT it belongs to; give --dicom FOLDER.")
        if any(ct.is_dir() and ct.resolve() in output.resolve().parents for ct in cts):
            raise UsageError(
                f"{output} lies in the folder of the CT, where it would be taken for a part of it; "
                "give another folder."
            )
        if not (options.report or options.model or options.by_hand):
            raise UsageError(
                "A DICOM SEG says who made the labels; give --report with the .json of `kidneyseg "
                "segment`, --model or --by-hand."
            )


def _is_file(options: argparse.Namespace) -> bool:
    from KidneySegLib.writing import LABEL_SUFFIXES

    name = options.output.name.lower()
    return name.endswith((*_ENDINGS, *LABEL_SUFFIXES))


def _labels(options: argparse.Namespace) -> tuple[sitk.Image, Meaning | None]:
    """The labels, from a label map or from what this command wrote, on the grid of --like.

    And what they are, where their source says it.
    """
    from KidneySegLib.exports.labels import pasted, told_by_names
    from KidneySegLib.exports.runlength import read_run_lengths, tables_in
    from KidneySegLib.exports.slices import INDEX_FILE, names_in, read_slices
    from KidneySegLib.reading import read_ct, read_labels, tells_sides

    source: Path = options.source
    like = None if options.like is None else read_ct(options.like).image
    tables = source.suffix.lower() == ".csv" or (source.is_dir() and any(source.glob("*.csv")))
    if tables:
        if like is None:
            raise UsageError(
                f"{source} does not say how large its slices are; give the CT with --like."
            )
        return read_run_lengths(source, like), told_by_names(tables_in(source))
    if (source / INDEX_FILE).is_file():
        labels, told = read_slices(source), told_by_names(names_in(source))
    else:
        labels, told = read_labels(source), "sides" if tells_sides(source) else None
    if like is not None:
        labels = pasted(labels, like, (str(source), str(options.like)))
    return labels, told


def _algorithm(options: argparse.Namespace) -> Algorithm | None:
    """The model that made the labels, None if it was somebody's hand."""
    import json

    from KidneySegLib.exports.dicomseg import Algorithm
    from KidneySegLib.modelplaces import find_model

    if options.by_hand:
        return None
    if options.report is None:
        model = find_model(options.model)
        return Algorithm(model.name, model.version)
    try:
        said = json.loads(options.report.read_text(encoding="utf-8"))["model"]
        return Algorithm(str(said["name"]), str(said["version"]))
    except OSError as error:
        raise InputError(
            f"{options.report} cannot be opened ({error.strerror}); check the path."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{options.report} names no model; give the report of one CT by `kidneyseg segment`."
        ) from error


def _dicom(
    labels: sitk.Image, segments: Sequence[Segment], options: argparse.Namespace, kind: str
) -> None:
    import sys

    from KidneySegLib.exports.dicomseg import write_dicom_seg

    written = write_dicom_seg(
        labels,
        options.dicom,
        options.output,
        segments,
        _algorithm(options),
        series_uid=options.series,
        name=str(options.source),
    )
    for warning in written.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(
        f"{options.output}: {' and '.join(written.structures)} on {written.slices} slices in "
        f"{written.frames} frames, {_size(written.bytes)} at one bit a voxel"
    )


def _run_lengths(
    labels: sitk.Image, segments: Sequence[Segment], options: argparse.Namespace, kind: str
) -> None:
    from KidneySegLib.exports.runlength import write_run_length_folder, write_run_lengths

    if not _is_file(options):
        files = write_run_length_folder(labels, options.output, segments)
        print(f"{options.output}: {', '.join(files)}")
        return
    write_run_lengths(labels, options.output)
    print(f"{options.output}: {_together(segments)}")


def _slices(
    labels: sitk.Image, segments: Sequence[Segment], options: argparse.Namespace, kind: str
) -> None:
    from KidneySegLib.exports.slices import write_slices

    count = write_slices(labels, options.output, segments, kind)
    values = ", ".join(f"{one.label} {one.name.lower()}" for one in segments)
    print(f"{options.output}: {count} slices from head to foot; 0 background, {values}")


def _surfaces(
    labels: sitk.Image, segments: Sequence[Segment], options: argparse.Namespace, kind: str
) -> None:
    from KidneySegLib.exports.surfaces import surfaces, write_surface_folder, write_surfaces

    found = surfaces(labels, segments, str(options.source))
    if _is_file(options):
        write_surfaces(found, options.output, options.space)
    else:
        write_surface_folder(found, options.output, kind, options.space)
    print(f"{options.output}, in mm, {options.space}:")
    for one in found:
        print(f"  {one.name}: {one.volume_ml:.1f} ml, {len(one.triangles)} triangles")


def _label_map(
    labels: sitk.Image, segments: Sequence[Segment], options: argparse.Namespace, kind: str
) -> None:
    from KidneySegLib.writing import write_labels

    write_labels(labels, options.output, segments)
    print(f"{options.output}: {', '.join(f'{one.label} {one.name.lower()}' for one in segments)}")


def _together(segments: Sequence[Segment]) -> str:
    names = " and ".join(one.name.lower() for one in segments)
    if len(segments) == 1:
        return names
    return f"{names} as one mask; for one each give a folder and --format csv"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
