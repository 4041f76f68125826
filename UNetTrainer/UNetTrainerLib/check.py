"""Everything that is wrong with the data, found before training and not in the middle of it.

First every header is read, which is quick, then every file whole, several at a time. What was found
in a case is remembered until one of its files changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from KidneySegLib.errors import InputError
from KidneySegLib.geometry import AxialGrid
from KidneySegLib.volumes import NOT_STRAIGHT, check_shape, header_of
from KidneySegLib.writing import write_json
from UNetTrainerLib.cases import NOTE, UNUSABLE, Case, Incomplete, listed, person
from UNetTrainerLib.loading import load
from UNetTrainerLib.pictures import picture_size

LAYOUT = 1  # of what is remembered; a change makes older files ignored
SAVE_EVERY = 32  # cases, so that a killed check does not start over

# How far from the median a spacing is noted. KiTS19's pixels lie within a factor of 1.8 of theirs
# and most of its slices within 3.
PIXEL_FACTOR = 2.0
SLICE_FACTOR = 4.0

TABLE_COLUMNS = 100
LISTED = 30  # cases that share a row


@dataclass(frozen=True)
class Finding:
    """One thing about one case.

    Attributes:
        name: of the case, or of the source where the sentence is about all of it.
        severity: ``unusable`` stops a run that does not leave such cases out; ``note`` does not.
        sentence: begins with a verb whose subject is the case, or with one of its files.
        used: whether a case with a note trains all the same.
    """

    name: str
    source: str
    severity: str
    sentence: str
    used: bool = True


@dataclass(frozen=True)
class Facts:
    """What was seen in a case.

    Attributes:
        slices, rows, columns: of its axial array.
        spacing_mm: slice, row and column; ``(1, 1, 1)`` for a picture of unknown spacing.
        axes: the stored axes' order and directions against the axial ones, empty for a picture.
        labels: those present, of 1 and 2.
        labelled: slices with any label.
        repeats: slices (from the head, from 0) that show what an earlier one shows.
        mislabelled: those of them whose labels differ from the earlier one's.
        digest: of the voxels, empty where all are the same.
        size_bytes: of its files.
        warnings: sentences of the reader.
    """

    slices: int
    rows: int
    columns: int
    spacing_mm: tuple[float, float, float]
    axes: str
    labels: tuple[int, ...]
    labelled: int
    repeats: tuple[int, ...]
    mislabelled: tuple[int, ...]
    digest: str
    size_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        cases: all that were complete.
        findings: unusable ones first.
        facts: of every case that could be read.
        seconds: that it took.
        remembered: cases that an earlier check had read.
        workers: files read at a time.
    """

    cases: tuple[Case, ...]
    findings: tuple[Finding, ...]
    facts: dict[Case, Facts]
    seconds: float
    remembered: int
    workers: int

    @property
    def usable(self) -> list[Case]:
        """The cases that can train, in their order."""
        return [case for case in self.cases if case in self.facts]

    @property
    def unusable(self) -> list[Finding]:
        """One finding for each case that cannot."""
        return [one for one in self.findings if one.severity == UNUSABLE]

    @cached_property
    def _several(self) -> bool:
        sources = {case.source for case in self.cases} | {one.source for one in self.findings}
        return len(sources) > 1

    def called(self, one: Case | Finding) -> str:
        """What to call a case: each of several sources may have one of the same name."""
        own = not self._several or one.name == one.source
        return one.name if own else f"{one.source}/{one.name}"

    @property
    def labels(self) -> set[int]:
        """Labels that occur in usable cases."""
        return {label for case in self.usable for label in self.facts[case].labels}


def check(
    cases: Sequence[Case],
    incomplete: Sequence[Incomplete] = (),
    channels: int = 1,
    workers: int | None = None,
    remembered: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    extra: Collection[Case] = (),
) -> Checked:
    """Read every case and report what is wrong or odd.

    Args:
        channels: that the network will see; pictures that cannot be shown so are unusable.
        workers: files read at a time, each of which needs the memory of one case; by default as
            many as there are cores.
        remembered: JSON file of earlier checks, read and renewed; one that is damaged is ignored.
        progress: gets the cases done, their number and the name of the last one. What it raises
            ends the check, and what was read until then is remembered.
        extra: those of the cases that train and never validate.

    Raises:
        KidneySegError: ``remembered`` cannot be written.
    """
    begin = time.perf_counter()
    workers = workers or os.cpu_count() or 1
    report = progress or (lambda done, total, name: None)
    memory = _Memory(remembered)
    problems: dict[Case, str] = {}
    facts: dict[Case, Facts] = {}
    stamps = {case: _stamp(case, channels) for case in cases}
    for case in cases:
        known = memory.facts(case, stamps[case])
        if known is not None:
            facts[case] = known
            report(len(facts), len(cases), case.name)
    from_memory = len(facts)
    waiting = [case for case in cases if case not in facts]
    pool = ThreadPoolExecutor(workers)
    try:
        # Each stage over all cases: what headers tell is told within seconds.
        for case, problem in zip(waiting, pool.map(_header_problem, waiting), strict=True):
            if problem:
                problems[case] = problem
                report(len(facts) + len(problems), len(cases), case.name)
        futures = {
            pool.submit(_read, case, channels): case for case in waiting if case not in problems
        }
        for future in as_completed(futures):
            case = futures.pop(future)
            try:
                facts[case] = future.result()
            except InputError as error:
                problems[case] = _shortened(str(error), case)
            except OSError as error:
                problems[case] = f"cannot be read ({error.strerror or error}); copy it again."
            else:
                memory.keep(case, stamps[case], facts[case])
            report(len(facts) + len(problems), len(cases), case.name)
    finally:
        pool.shutdown(cancel_futures=True)
        memory.save()
    findings = [
        Finding(one.name, one.source, one.severity, one.sentence, used=False) for one in incomplete
    ]
    findings += [Finding(c.name, c.source, UNUSABLE, problems[c]) for c in cases if c in problems]
    findings += _findings({case: facts[case] for case in cases if case in facts}, extra)
    findings.sort(key=lambda one: one.severity != UNUSABLE)
    return Checked(
        tuple(cases), tuple(findings), facts, time.perf_counter() - begin, from_memory, workers
    )


def usable_cases(checked: Checked, skip_bad: bool = False, classes: str = "kidney") -> list[Case]:
    """The cases to train with.

    Args:
        skip_bad: leave unusable cases out instead of refusing them.
        classes: ``kidney`` or ``kidney-tumour``.

    Raises:
        InputError: unusable cases, none left, or none that holds what the classes need.
    """
    usable, unusable = checked.usable, checked.unusable
    if not usable:
        raise InputError("No case can be used; see what is wrong with each in the table.")
    if unusable and not skip_bad:
        names = listed([one.name for one in unusable])
        raise InputError(
            f"{len(unusable)} of {len(usable) + len(unusable)} cases cannot be used ({names}); "
            "repair them, or leave them out with --skip-bad."
        )
    labels = checked.labels
    if not labels:
        raise InputError("No mask holds a kidney (label 1); label the kidneys.")
    if classes == "kidney-tumour":
        for label, name in ((1, "kidney"), (2, "tumour")):
            if label not in labels:
                raise InputError(
                    f"No mask holds label {label} ({name}), which --classes kidney-tumour needs; "
                    "label it, or train with --classes kidney."
                )
    return usable


def table(checked: Checked) -> str:
    """The findings as an aligned table, and a summary."""
    rows = [("case", "what", "what happens"), *_rows(checked)]
    first = max(len(case) for case, _, _ in rows)
    last = max(len(then) for _, _, then in rows)
    middle = TABLE_COLUMNS - first - last - 4
    lines = []
    for case, what, then in rows:
        for number, part in enumerate(textwrap.wrap(what, middle)):
            start, end = (case, then) if number == 0 else ("", "")
            lines.append(f"{start:{first}}  {part:{middle}}  {end}".rstrip())
    if len(rows) == 1:
        lines = ["Nothing is wrong with the data."]
    return "\n".join([*lines, "", *_summary(checked)])


def _rows(checked: Checked) -> Iterator[tuple[str, str, str]]:
    """Findings that differ in nothing but the case's name share a row."""
    groups: dict[tuple[str, str, str, bool], list[Finding]] = defaultdict(list)
    for one in checked.findings:
        alike = re.sub(rf"\b{re.escape(one.name)}\b", "*", one.sentence)
        groups[one.source, one.severity, alike, one.used].append(one)
    for (_, severity, _, used), group in groups.items():
        name, what = checked.called(group[0]), group[0].sentence
        if len(group) > 1:
            name += f" and {len(group) - 1} more"
            what += f" Likewise {listed([one.name for one in group[1:]], LISTED)}."
        then = "unusable" if severity == UNUSABLE else "used" if used else "left out"
        yield name, what, then


def _summary(checked: Checked) -> list[str]:
    usable = checked.usable
    facts = [checked.facts[case] for case in usable]
    bad = len(checked.unusable)
    pictures = sum(case.is_slice for case in usable)
    slices = sum(one.slices for one in facts)
    labelled = sum(one.labelled for one in facts)
    gigabytes = sum(one.size_bytes for one in facts) / 1e9
    patients = len({case.patient for case in usable})
    share = f" ({labelled / slices:.0%} with kidney)" if slices else ""
    volumes = len(usable) - pictures
    return [
        f"{len(usable)} of {len(usable) + bad} cases usable: {_number(volumes, 'volume')}, "
        f"{_number(pictures, 'picture')}, {_number(patients, 'patient')}, "
        f"{_number(slices, 'slice')}{share}, {gigabytes:.2f} GB.",
        f"Checked in {checked.seconds:.1f} s, {_number(checked.workers, 'file')} at a time"
        + (f"; {checked.remembered} remembered from before." if checked.remembered else "."),
    ]


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _shortened(sentence: str, case: Case) -> str:
    """A sentence without the folders, which the row of the table names."""
    for path in (case.image, case.labels):
        sentence = sentence.replace(str(path), path.name)
    return sentence


def _header_problem(case: Case) -> str | None:
    """What the headers alone show to be wrong."""
    try:
        if case.is_slice:
            sizes = [picture_size(path)[::-1] for path in (case.image, case.labels)]
        else:
            sizes = []
            for path in (case.image, case.labels):
                header = header_of(path)
                check_shape(path, header)
                sizes.append(header.GetSize()[:3])
    except InputError as error:
        # Axes a little off right angles are straightened when the file is read.
        straight = {NOT_STRAIGHT.format(path=path) for path in (case.image, case.labels)}
        return None if str(error) in straight else _shortened(str(error), case)
    if sizes[0] != sizes[1]:
        image, labels = (" x ".join(map(str, size)) for size in sizes)
        what = "pixels" if case.is_slice else "voxels"
        return (
            f"{case.labels.name} has {labels} {what} and {case.image.name} {image}; copy both "
            "again, they do not belong together."
        )
    return None


def _read(case: Case, channels: int) -> Facts:
    loaded = load(case, channels)
    voxels, labels = loaded.voxels, loaded.labels
    slices, _, rows, columns = voxels.shape
    labelled = labels.any((1, 2))
    if not labelled.any() and not case.is_slice:
        raise InputError(
            f"{case.labels} holds no label at all; label the kidneys or remove the case."
        )
    repeats, mislabelled, digest = _repeats(voxels, labels)
    return Facts(
        slices=slices,
        rows=rows,
        columns=columns,
        spacing_mm=loaded.spacing_mm,
        axes=_axes(loaded.grid),
        labels=tuple(label for label in (1, 2) if (labels == label).any()),
        labelled=int(labelled.sum()),
        repeats=repeats,
        mislabelled=mislabelled,
        digest=digest,
        size_bytes=sum(path.stat().st_size for path in (case.image, case.labels)),
        warnings=tuple(_shortened(sentence, case) for sentence in loaded.warnings),
    )


def _repeats(
    voxels: np.ndarray, labels: np.ndarray
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """Slices that repeat an earlier one, those of them with other labels, and a digest of all.

    Slices of one value, such as padding, repeat nothing.
    """
    first: dict[bytes, int] = {}
    repeats, mislabelled = [], []
    whole = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    blank = True
    for number, plane in enumerate(voxels):
        key = hashlib.blake2b(np.ascontiguousarray(plane).data, digest_size=16).digest()
        whole.update(key)
        twin = first.setdefault(key, number)
        constant = (twin != number or blank) and bool((plane == plane.flat[0]).all())
        blank = blank and constant
        if twin != number and not constant:
            repeats.append(number)
            if not np.array_equal(labels[number], labels[twin]):
                mislabelled.append(number)
    return tuple(repeats), tuple(mislabelled), "" if blank else whole.hexdigest()


def _axes(grid: AxialGrid | None) -> str:
    if grid is None:
        return ""
    signs = ("-" if flip else "+" for flip in grid.flips)
    return "".join(f"{sign}{axis}" for sign, axis in zip(signs, grid.order, strict=True))


def _findings(facts: dict[Case, Facts], extra: Collection[Case]) -> Iterator[Finding]:
    """What is odd about cases, by themselves and beside the others."""
    for case, seen in facts.items():
        for sentence in _oddities(case, seen):
            yield _note(case, sentence)
    groups: dict[tuple[str, bool], list[Case]] = defaultdict(list)
    for case in facts:
        groups[case.source, case.is_slice].append(case)
    for group in groups.values():
        yield from _other_sizes(group, facts)
        yield from _other_axes(group, facts)
        yield from _other_spacings(group, facts)
        yield from _guessed_patients(group)
    yield from _shared_patients(facts, extra)
    yield from _twins(facts)


def _note(case: Case, sentence: str) -> Finding:
    return Finding(case.name, case.source, NOTE, sentence)


def _oddities(case: Case, seen: Facts) -> Iterator[str]:
    yield from seen.warnings
    if not case.is_slice and seen.labels == (2,):
        yield "holds a tumour (label 2) without a kidney (label 1): are the labels right?"
    if seen.repeats:
        otherwise = len(seen.mislabelled)
        but = f", {otherwise} of them with other labels" if otherwise else ""
        runs = _runs(seen.repeats)
        yield f"shows earlier slices again at {runs} (from the head, counted from 0){but}."


def _runs(numbers: Sequence[int], most: int = 4) -> str:
    """``3-7, 12`` for 3, 4, 5, 6, 7 and 12."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][-1] = number
        else:
            runs.append([number, number])
    texts = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs]
    return listed(texts, most)


def _usual(values: Sequence[Any]) -> Any:
    """What more than half of them are, or None."""
    value, number = Counter(values).most_common(1)[0]
    return value if number * 2 > len(values) else None


def _other_sizes(group: list[Case], facts: dict[Case, Facts]) -> Iterator[Finding]:
    sizes = {case: f"{facts[case].columns} x {facts[case].rows}" for case in group}
    usual = _usual(list(sizes.values()))
    for case, size in sizes.items():
        if usual not in (None, size):
            yield _note(case, f"has slices of {size}, where {usual} is usual.")


def _other_axes(group: list[Case], facts: dict[Case, Facts]) -> Iterator[Finding]:
    usual = _usual([facts[case].axes for case in group])
    for case in group:
        if usual not in (None, facts[case].axes):
            yield _note(
                case,
                "stores its axes in another order or direction than the others; that is fine if "
                "its header says so rightly.",
            )


def _other_spacings(group: list[Case], facts: dict[Case, Facts]) -> Iterator[Finding]:
    if group[0].is_slice:
        group = [case for case in group if case.pixel_mm is not None]
    if len(group) < 3:
        return
    for axis, what, factor in ((2, "pixels", PIXEL_FACTOR), (0, "slices", SLICE_FACTOR)):
        median = float(np.median([facts[case].spacing_mm[axis] for case in group]))
        for case in group:
            mm = facts[case].spacing_mm[axis]
            if not median / factor <= mm <= median * factor:
                yield _note(
                    case,
                    f"has {what} {mm:.3g} mm apart, far from the usual {median:.3g} mm: is its "
                    "spacing right?",
                )


def _guessed_patients(group: list[Case]) -> Iterator[Finding]:
    guessed = [case for case in group if case.guessed]
    if not guessed:
        return
    case = guessed[0]
    told = f"({case.patient.removeprefix(f'{case.source}/')} from {case.image.name})"
    if (case.image.parent.parent / "index.csv").is_file():
        sentence = (
            f"index.csv names no patient for {len(guessed)} of {_number(len(group), 'picture')}, "
            f"so file names tell who they are of {told}; if that is wrong, fill in its column "
            "patient."
        )
    else:
        sentence = (
            f"has no index.csv, so file names tell the patients {told}; if that is wrong, add one "
            "with the columns name and patient."
        )
    yield Finding(case.source, case.source, NOTE, sentence)


def _shared_patients(facts: dict[Case, Facts], extra: Collection[Case]) -> Iterator[Finding]:
    """Once for every patient whose cases stay together, and for every one who must not validate."""
    alone = frozenset(extra)
    first: dict[str, Case] = {}
    told: set[tuple[str, bool]] = set()
    for case in facts:
        who = person(case)
        other = first.setdefault(who, case)
        only = case in alone and other not in alone
        if (other.source != case.source or only) and (who, only) not in told:
            told.add((who, only))
            then = "must not validate, since this case trains" if only else "taken as one patient"
            yield _note(case, f"is of {case.patient}, who is in {other.source} too: {then}.")


def _twins(facts: dict[Case, Facts]) -> Iterator[Finding]:
    first: dict[str, Case] = {}
    for case, seen in facts.items():
        twin = first.setdefault(seen.digest, case) if seen.digest else case
        if twin.patient != case.patient:
            yield _note(
                case,
                f"shows the same as {twin.name}, which counts as another patient: remove one.",
            )


def _stamp(case: Case, channels: int) -> list[int]:
    """Differs once a file is another one, or is looked at for another network."""
    numbers = [channels if case.is_slice else 0]
    for path in (case.image, case.labels):
        try:
            status = path.stat()
        except OSError:  # its reader says why
            return []
        numbers += [status.st_size, status.st_mtime_ns]
    return numbers


class _Memory:
    """Facts of earlier checks in a JSON file, by the case's image."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cases: dict[str, Any] = {}
        self._unsaved = 0
        if path is None:
            return
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # there is none yet, or it is damaged and will be replaced
        if isinstance(data, dict) and data.get("layout") == LAYOUT:
            cases = data.get("cases")
            self._cases = cases if isinstance(cases, dict) else {}

    def facts(self, case: Case, stamp: list[int]) -> Facts | None:
        known = self._cases.get(_key(case))
        if not isinstance(known, dict) or not stamp or known.get("stamp") != stamp:
            return None
        try:
            given = dict(known["facts"])
            for name in ("spacing_mm", "labels", "repeats", "mislabelled", "warnings"):
                given[name] = tuple(given[name])
            return Facts(**given)
        except (KeyError, TypeError, ValueError):
            return None

    def keep(self, case: Case, stamp: list[int], facts: Facts) -> None:
        if self._path is None:
            return
        self._cases[_key(case)] = {"stamp": stamp, "facts": asdict(facts)}
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        if self._path is not None and self._unsaved:
            write_json({"layout": LAYOUT, "cases": self._cases}, self._path)
            self._unsaved = 0


def _key(case: Case) -> str:
    return f"{case.image.resolve()} {case.labels.resolve()}"
