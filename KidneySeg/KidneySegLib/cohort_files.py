"""What lies around a cohort's figures: where cases come from, how they were made, their CTs."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import SimpleITK as sitk

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.evaluation import CaseScores, Cohort
from KidneySegLib.finding import Case, find_cases
from KidneySegLib.opening import printable
from KidneySegLib.pairing import find_labels
from KidneySegLib.reading import case_name, read_ct, read_labels

Images = tuple[sitk.Image, sitk.Image, sitk.Image]
Found = TypeVar("Found")


class Origin(NamedTuple):
    """Where a case comes from.

    Attributes
    ----------
    source
        Hospital, data set or folder.
    patient
        Cases of one patient count as one where patients are counted, whatever their sources.
    """

    source: str
    patient: str


def read_origins(path: Path | str) -> dict[str, Origin]:
    """Source and patient of cases by their names, from a table.

    Parameters
    ----------
    path
        CSV in UTF-8 with the column case and, if wanted, source and patient.

    Raises
    ------
    UsageError
        It cannot be read or has no such column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read; give a table as CSV in UTF-8.") from error
    head = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=";" if ";" in head else ",")
    if "case" not in (rows.fieldnames or ()):
        raise UsageError(
            f"{path} has no column 'case'; its first line must name its columns, such as "
            "'case,source,patient'."
        )
    origins = {}
    for row in rows:
        name = (row["case"] or "").strip()
        patient = (row.get("patient") or "").strip()
        origins[name] = Origin((row.get("source") or "").strip(), patient or name)
    return origins


def origins_of(cohort: Cohort, given: Mapping[str, Origin] | None = None) -> dict[str, Origin]:
    """Source and patient of every case of a cohort.

    Without a table, the source of `hospital/case_1` is `hospital`, that of `case_1` the folder of
    the references; and every case is a patient.

    Raises
    ------
    UsageError
        The table names none of the cases.
    """
    given = given or {}
    names = [case.name for case in cohort.cases]
    if given and not set(names) & set(given):
        raise UsageError(
            f"The table of cases names none of them ({', '.join(names[:3])}, ...); its column "
            "'case' must hold such names."
        )
    folder = Path(cohort.reference).resolve().name if cohort.reference else ""
    origins = {}
    for name in names:
        parent = PurePosixPath(name).parent.as_posix()
        source, patient = given.get(name, Origin("", name))
        origins[name] = Origin(source or (folder if parent == "." else parent), patient)
    return origins


@dataclass(frozen=True)
class Run:
    """How predictions were made, as far as what lies beside them tells.

    Attributes
    ----------
    models
        Names and versions.
    settings
        Further entries for people.
    errors
        By case, why there is no prediction.
    """

    models: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)


def run_of(predictions: Path) -> Run:
    """What the batch's `results.csv` or a report of `kidneyseg segment` in a folder says."""
    table_file = predictions / "results.csv"
    rows: list[dict[str, str]] = []
    if table_file.is_file():
        text = table_file.read_text(encoding="utf-8", errors="replace")
        rows = [row for row in csv.DictReader(text.splitlines()) if row.get("case")]
    if rows and {"model", "seconds", "error"} <= set(rows[0]):
        models = tuple(sorted({row["model"] for row in rows if row["model"]}))
        errors = {row["case"]: row["error"] for row in rows if row["error"]}
        return Run(models, tuple(_timing([row["seconds"] for row in rows])), errors)
    for path in sorted(predictions.glob("*.json")):
        run = _run_in(path)
        if run is not None:
            return run
    return Run()


def _run_in(path: Path) -> Run | None:
    """A report of `kidneyseg segment`; None for other JSON."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        reports = [one for one in data.get("cases", [data]) if "seconds" in one]
        models = {f"{one['model']['name']} {one['model']['version']}" for one in reports}
        devices = {f"{one['device']}, {one['precision']}" for one in reports}
        seconds = [one["seconds"]["total"] for one in reports]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not reports:
        return None
    settings = [("Device", "; ".join(sorted(devices))), *_timing(seconds)]
    return Run(tuple(sorted(models)), tuple(settings))


def _timing(seconds: Sequence[Any]) -> list[tuple[str, str]]:
    known = []
    for value in seconds:
        try:
            known.append(float(value))
        except (TypeError, ValueError):
            continue
    if not known:
        return []
    text = f"median {np.median(known):.1f} s, longest {max(known):.1f} s ({len(known)} CTs)"
    return [("Time to segment a CT", text)]


# --- Pictures -----------------------------------------------------------------------------------


class Files:
    """CT, prediction and reference of cases from the files they are in."""

    def __init__(self, images: Path, references: Path | None = None) -> None:
        """Look for the CTs of cases.

        Parameters
        ----------
        images
            Folder with CTs or case folders of the cases' names; or one CT, of the only case.
        references
            Where the references are now, if not where the evaluation found them.

        Raises
        ------
        InputError
            There is no such folder, or no CT or no label map in it.
        """
        self.images = images
        if images.is_dir():
            cases = find_cases(images)[0]
        else:
            cases = [Case(printable(case_name(images)), images)]
        if not images.exists() or not cases:
            raise InputError(f"{images} holds no CT; give the folder with the CTs of the cases.")
        self._cases = {case.name: case for case in cases}
        self._references: dict[str, Path] = {}
        if references is not None:
            self._references = {one.name: one.path for one in find_labels(references)}

    def of(self, cohort: Cohort) -> Callable[[CaseScores], Images]:
        """What gives the images of a case of a cohort.

        It raises an `InputError` where one of them is not there or cannot be read.
        """
        names = [case.name for case in cohort.cases]
        sources = _matched(names, self._cases)
        references = _matched(names, self._references)
        if len(names) == len(self._cases) == 1:
            sources = dict(zip(names, self._cases.values(), strict=True))

        def images_of(case: CaseScores) -> Images:
            source = sources.get(case.name)
            if source is None:
                raise InputError(f"{self.images} holds no CT named {case.name}.")
            if not case.prediction:
                raise InputError(
                    "A table does not say where the label maps are; give the .json that `evaluate "
                    "--report` wrote, or the folder of the predictions."
                )
            scan = read_ct(source.source, source.series_uid, source.files or None)
            prediction = read_labels(case.prediction)
            return scan.image, prediction, read_labels(references.get(case.name, case.reference))

        return images_of


def _matched(names: Sequence[str], found: Mapping[str, Found]) -> dict[str, Found]:
    """To each name what is called so, or so but for the folders around it.

    The latter counts only where it fits nothing else: another hospital's `case_1` is another
    patient.
    """
    keys = {name.casefold(): name for name in found}
    pairs = {name: keys[name.casefold()] for name in names if name.casefold() in keys}
    near = [
        (name, other)
        for name in set(names) - set(pairs)
        for other in set(found) - set(pairs.values())
        if _within(name.casefold(), other.casefold())
    ]
    ours, theirs = Counter(name for name, _ in near), Counter(other for _, other in near)
    pairs |= {name: other for name, other in near if ours[name] == theirs[other] == 1}
    return {name: found[other] for name, other in pairs.items()}


def _within(one: str, other: str) -> bool:
    """Whether one name is the other one without the first of its folders."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")
