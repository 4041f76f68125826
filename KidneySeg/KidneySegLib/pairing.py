"""Which prediction belongs to which reference, by the names of files and folders.

Folders may hold KiTS19's case folders or files; what `kidneyseg segment` and the batch add to a
name, `_kidneys`, does not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.finding import CT_SUFFIXES, REFERENCE_NAMES, folders_below
from KidneySegLib.opening import printable
from KidneySegLib.reading import case_name
from KidneySegLib.volumes import IMAGING

# What programs and people add to the name of a case for its label map.
_ADDED = re.compile(
    r"[ _.-](gt|kidneys?|labels?|labelmap|mask|pred|prediction|reference|seg|segmentation|sides)$"
)
# KiTS19's challenge has its predictions named so.
_KITS_PREDICTION = re.compile(r"^prediction_(?=\d+$)")
_SHOWN = 3


@dataclass(frozen=True)
class LabelFile:
    """A label map in a folder of them.

    Attributes
    ----------
    name
        Of its case, with `/` between folders.
    path
        The file.
    aliases
        Names that it goes by, the most telling first, in small letters.
    with_tumour
        The case's other map, which may mark tumours where `path` tells sides.
    is_whole
        It is all that there is: the only file, or the case folder itself was given.
    """

    name: str
    path: Path
    aliases: tuple[str, ...]
    with_tumour: Path | None = None
    is_whole: bool = False


@dataclass(frozen=True)
class CasePair:
    """A prediction and its reference."""

    name: str
    prediction: LabelFile
    reference: LabelFile


@dataclass(frozen=True)
class Pairing:
    """Who belongs to whom, and who is left over."""

    pairs: tuple[CasePair, ...]
    missing: tuple[LabelFile, ...] = ()  # references without a prediction
    extra: tuple[LabelFile, ...] = ()  # predictions without a reference

    @property
    def is_single(self) -> bool:
        """Whether one label map was given, for which there is a reference, or the other way."""
        return any(one.is_whole for pair in self.pairs for one in (pair.prediction, pair.reference))


def pair_up(predictions: Path, references: Path) -> Pairing:
    """Pair the label maps of two folders, of two files, or of one of each.

    Raises
    ------
    InputError
        There is no such file or folder, it holds no label map, or no name is in both.
    UsageError
        A file of a folder would be compared with itself.
    """
    ours, theirs = find_labels(predictions), find_labels(references)
    if len(ours) == len(theirs) == 1 and (ours[0].is_whole and theirs[0].is_whole):
        found = [(ours[0], theirs[0])]
    else:
        found = _matched(ours, theirs)
    if not found:
        raise InputError(
            f"No case of {predictions} ({_some(ours)}) is in {references} ({_some(theirs)}); name "
            "a prediction after its case, such as case_00001.nii.gz or case_00001_kidneys.nii.gz."
        )
    paired = {id(one) for pair in found for one in pair}
    pairing = Pairing(tuple(CasePair(other.name, one, other) for one, other in found))
    if pairing.is_single:
        return pairing
    for one, other in found:
        if one.path.samefile(other.path):
            raise UsageError(
                f"{one.path} would be compared with itself; give the folder of the predictions and "
                "that of the references."
            )
    return replace(
        pairing,
        missing=tuple(other for other in theirs if id(other) not in paired),
        extra=tuple(one for one in ours if id(one) not in paired),
    )


def find_labels(path: Path) -> list[LabelFile]:
    """Every label map of a folder, in the order of their names; a file is its own.

    A folder with one of `REFERENCE_NAMES` is a case folder and counts as one label map; elsewhere
    each volume does, but for imaging.

    Raises
    ------
    InputError
        There is none.
    """
    if path.is_file():
        name = case_name(path)
        if name in map(case_name, REFERENCE_NAMES):
            name = path.resolve().parent.name or name
        name = printable(name)
        return [LabelFile(name, path, _aliases(name), is_whole=True)]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; check the path.")
    found: list[LabelFile] = []
    for here, names in folders_below(path):
        relative = PurePosixPath(printable(here.relative_to(path).as_posix()))
        in_case = [here / name for name in REFERENCE_NAMES if name in names]
        if in_case:
            name = str(relative) if relative.parts else printable(path.resolve().name)
            first, *others = in_case
            aliases = _aliases(name)
            whole = not relative.parts
            found.append(LabelFile(name, first, aliases, others[0] if others else None, whole))
            continue
        volumes = [
            name
            for name in names
            if name.lower().endswith(CT_SUFFIXES) and name.lower() not in IMAGING
        ]
        for volume in volumes:
            own = printable(case_name(volume))
            name = str(relative / _stripped(own))
            aliases = _aliases(str(relative / own))
            if len(volumes) == 1 and relative.parts:
                name = str(relative)
                aliases = tuple(dict.fromkeys((*_aliases(name), *aliases)))
            found.append(LabelFile(name, here / volume, aliases))
    if not found:
        raise InputError(
            f"{path} holds no label map; give a folder with files such as case_00001.nii.gz or "
            f"case folders with {REFERENCE_NAMES[1]}."
        )
    return sorted(found, key=lambda one: (one.name.casefold(), str(one.path)))


def _aliases(name: str) -> tuple[str, ...]:
    """The name itself, without what was added to it, and the last part of both."""
    parent, last = PurePosixPath(name).parent, PurePosixPath(name).name
    stripped = _stripped(last)
    names = (name, str(parent / stripped), last, stripped, _KITS_PREDICTION.sub("case_", stripped))
    return tuple(dict.fromkeys(one.casefold() for one in names))


def _stripped(name: str) -> str:
    return name[: match.start()] if (match := _ADDED.search(name.casefold())) else name


def _matched(
    predictions: Sequence[LabelFile], references: Sequence[LabelFile]
) -> list[tuple[LabelFile, LabelFile]]:
    """Each reference with the prediction that shares its most telling name.

    A name that several predictions in different folders go by tells nothing of them.
    """
    by_alias: defaultdict[str, list[int]] = defaultdict(list)
    for number, reference in enumerate(references):
        for alias in reference.aliases:
            by_alias[alias].append(number)
    folders: defaultdict[str, set[Path]] = defaultdict(set)
    for prediction in predictions:
        for alias in prediction.aliases[1:]:
            folders[alias].add(prediction.path.parent)
    taken: dict[int, LabelFile] = {}
    waiting = list(predictions)
    for rank in range(max(len(one.aliases) for one in predictions)):
        left = []
        for prediction in waiting:
            alias = prediction.aliases[rank] if rank < len(prediction.aliases) else ""
            candidates = by_alias.get(alias, [])
            telling = rank == 0 or len(folders[alias]) == 1
            if telling and len(candidates) == 1 and candidates[0] not in taken:
                taken[candidates[0]] = prediction
            else:
                left.append(prediction)
        waiting = left
    return [(taken[number], references[number]) for number in sorted(taken)]


def _some(labels: Sequence[LabelFile]) -> str:
    """A few names, for a message."""
    names = ", ".join(one.name for one in labels[:_SHOWN])
    return names + (", ..." if len(labels) > _SHOWN else "")
