"""From folders of cases to one HTML page about them, and about what a model makes of them.

The facts and the page are the engine's (`KidneySegLib.exploring`, `KidneySegLib.data_report`); what
a case is, what is odd about it and who is a patient is known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.data_report import (
    ExploredCase,
    Predictions,
    Sample,
    Suspicion,
    data_page,
    labelled_slice,
)
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.exploring import case_facts
from KidneySegLib.geometry import from_axial, to_axial
from KidneySegLib.htmlpage import Page
from KidneySegLib.labelmaps import labels_kind
from KidneySegLib.measure import dice
from KidneySegLib.model import load_model
from KidneySegLib.modelcard import Card, Patients, find_card, patients_of
from KidneySegLib.overlay import Look, contact_sheet
from KidneySegLib.plots import check_matplotlib
from KidneySegLib.reading import read_label_values
from KidneySegLib.segment import segment
from UNetTrainerLib.cases import UNUSABLE, Case, find_everything
from UNetTrainerLib.check import Checked, check
from UNetTrainerLib.loading import Loaded, load

SLICES, PREDICTIONS = 12, 6
_SLICES_EACH = 3
_TILE_PX = 340

Tell = Callable[[float, str], None]


def explore(
    folders: Sequence[Path | str],
    *,
    model: str | Path | None = None,
    slices: int = SLICES,
    predictions: int = PREDICTIONS,
    seed: int = 0,
    device: str = "auto",
    title: str = "",
    progress: Tell | None = None,
) -> tuple[Page, Checked]:
    """A page about the cases of some folders.

    Args:
        folders: as `find_everything` takes them.
        model: the folder of a training run or the model's folder in it, to show what it makes of
            cases that did not train it.
        slices: how many random slices to show with their labels.
        predictions: how many random cases to show the model's answer for.
        seed: of what is random.
        device: for the model.
        progress: gets the share that is done and what is being done.

    Returns:
        The page, and what the check found.

    Raises:
        InputError: no case can be read, or a folder cannot be used.
        UsageError: matplotlib is missing; it is not known who trained the model, or all cases did.
        ModelError: the model cannot be used.
    """
    check_matplotlib()
    tell = progress or (lambda share, step: None)
    parts = 2 if model is None else 3
    cases, incomplete = find_everything(folders)
    card = split = None
    chosen: list[Case] = []
    if model is not None:
        card = find_card(model)
        split = _split_of(card)
        chosen = _validating(cases, split, folders)
    checked = check(
        cases,
        incomplete,
        channels=3 if any(case.is_slice for case in cases) else 1,
        progress=lambda done, total, name: tell(done / total / parts, "check"),
    )
    explored, samples = _explored(
        checked, slices, seed, lambda share, name: tell((1 + share) / parts, "look")
    )
    shown = None
    settings = [("Data", ", ".join(map(str, folders))), ("Seed of what is random", str(seed))]
    if card is not None and split is not None:
        settings.append(("Who trained the model", str(split.path)))
        usable = [case for case in chosen if case in checked.facts]
        shown = _predicted(
            card,
            {case: checked.called(case) for case in usable},
            predictions,
            seed,
            device,
            lambda share, name: tell((2 + share) / parts, "predict"),
        )
    names = ", ".join(dict.fromkeys(case.source for case in cases))
    page = data_page(
        explored,
        list(_suspicions(checked)),
        samples,
        shown,
        title=title or f"Kidney data: {names}",
        settings=settings,
    )
    return page, checked


# --- Cases --------------------------------------------------------------------------------------


def _explored(
    checked: Checked, slices: int, seed: int, tell: Tell
) -> tuple[list[ExploredCase], list[Sample]]:
    """The facts of every usable case, and random slices of some."""
    usable = checked.usable
    if not usable:
        raise InputError(
            f"No case can be read ({checked.unusable[0].name} {checked.unusable[0].sentence})"
        )
    random = np.random.default_rng(seed)
    order = _drawn([checked.facts[case].labelled for case in usable], slices, random)
    wanted = Counter(order)
    explored: list[ExploredCase] = []
    samples: dict[int, list[Sample]] = {}
    for number, case in enumerate(usable):
        tell(number / len(usable), case.name)
        loaded = load(case, 3 if case.is_slice else 1)
        ct = _gray(loaded.voxels)
        is_hu = not case.is_slice and bool(ct.min() < 0)
        seen = case_facts(
            ct,
            loaded.labels,
            loaded.spacing_mm,
            is_hu=is_hu,
            oddities=_odd_labels(case, loaded) if checked.facts[case].labels == (1, 2) else (),
        )
        known = not case.is_slice or case.pixel_mm is not None
        called = checked.called(case)
        explored.append(ExploredCase(called, case.source, case.patient, case.is_slice, known, seen))
        inside = np.flatnonzero(loaded.labels.any(axis=(1, 2)))
        for k in random.permutation(inside)[: wanted[number]]:
            caption = called if case.is_slice else f"{called}, slice {k + 1} of {len(ct)}"
            tile = labelled_slice(ct[k], loaded.labels[k], loaded.spacing_mm[1:], "")
            samples.setdefault(number, []).append(Sample(caption, tile))
    return explored, [one for number in dict.fromkeys(order) for one in samples.get(number, [])]


def _drawn(available: Sequence[int], count: int, random: np.random.Generator) -> list[int]:
    """Which case each random slice is of: as many cases as possible, none beyond what it has."""
    drawn: list[int] = []
    left = np.array(available)
    while len(drawn) < count and left.any():
        for number in random.permutation(np.flatnonzero(left))[: count - len(drawn)]:
            drawn.append(int(number))
            left[number] -= 1
    return drawn


def _gray(voxels: np.ndarray) -> np.ndarray:
    """(slices, rows, columns) of voxels with channels."""
    return voxels[:, 0] if voxels.shape[1] == 1 else voxels.mean(axis=1)


def _odd_labels(case: Case, loaded: Loaded) -> list[str]:
    """Whether label 2 is a side and no tumour, which the trainer takes it for."""
    if (
        loaded.grid is None
        or labels_kind(from_axial(loaded.labels, loaded.grid), case.name) != "sides"
    ):
        return []
    return ["has labels 1 and 2 on two sides: label 2 counts as tumour and is a kidney here."]


def _suspicions(checked: Checked) -> Iterator[Suspicion]:
    """What the trainer's check found."""
    for finding in checked.findings:
        then = "used" if finding.used else "left out"
        if finding.severity == UNUSABLE:
            then = "unusable"
        yield Suspicion(checked.called(finding), finding.sentence, then)


# --- Predictions --------------------------------------------------------------------------------


def _split_of(card: Card) -> Patients:
    split = patients_of(card.folder)
    if split is None:
        raise UsageError(
            f"{card.folder} does not say who trained {card.title}, so no case is known to be new "
            "to it; give the folder of its training run, which holds split.json."
        )
    return split


def _validating(
    cases: Sequence[Case], split: Patients, folders: Sequence[Path | str]
) -> list[Case]:
    """The cases of patients who validated the model and did not train it.

    Raises
    ------
    UsageError
        There is none.
    """
    both = sorted(split.training & split.validation)
    if both:
        raise UsageError(
            f"{split.path} places {both[0]} in training and in validation, so that nobody is known "
            "to be new to the model; give the folder of another run."
        )
    chosen = [case for case in cases if case.patient in split.validation]
    if chosen:
        return chosen
    data = ", ".join(map(str, folders))
    trained = sum(case.patient in split.training for case in cases)
    if trained:
        raise UsageError(
            f"{trained} of the {len(cases)} cases of {data} trained the model and none validated "
            f"it ({split.path}); give data with patients that are new to it."
        )
    raise UsageError(
        f"{split.path} names no patient of {data}, so that none is known to be new to the model; "
        "give the folder that it was trained from, under the same name."
    )


def _predicted(
    card: Card, names: Mapping[Case, str], number: int, seed: int, device: str, tell: Tell
) -> Predictions:
    """Random slices of random cases, given with their names, and what the model makes of them."""
    if not names:
        raise InputError("None of the cases that validated the model can be read.")
    cases = list(names)
    backend = TorchBackend(load_model(card.folder), device)
    random = np.random.default_rng([seed, 1])
    chosen = [cases[n] for n in random.permutation(len(cases))[:number]]
    samples = []
    for done, case in enumerate(chosen):
        tell(done / len(chosen), case.name)
        samples.append(_sample(case, names[case], backend, random))
    shown, all_of_them = (len({case.patient for case in some}) for some in (chosen, cases))
    return Predictions(card, samples, shown, all_of_them)


def _sample(case: Case, name: str, backend: TorchBackend, random: np.random.Generator) -> Sample:
    """A contact sheet of some slices that hold kidney, in the reference or the prediction."""
    if case.is_slice:
        image, reference = _one_slice(load(case, 1))
    else:
        image, reference = None, read_label_values(case.labels)
    result = segment(case.image if image is None else image, backend, keep_small=case.is_slice)
    masks = [to_axial(one)[0] != 0 for one in (result.labels, reference)]
    value = dice(*masks)
    inside = np.flatnonzero((masks[0] | masks[1]).any(axis=(1, 2)))
    slices = random.permutation(inside)[:_SLICES_EACH] if inside.size else np.arange(1)
    text = f"{name}, " + ("no kidney in either" if value is None else f"Dice {value:.3f}")
    sheet = contact_sheet(
        result.scan.image,
        result.labels,
        reference,
        slices=sorted(map(int, slices)),
        look=Look(title=text, height_px=_TILE_PX),
    )
    return Sample(f"{text} (1 patient)", sheet)


def _one_slice(loaded: Loaded) -> tuple[sitk.Image, sitk.Image]:
    """A picture and its labels as volumes of one slice."""
    images = []
    for array in (_gray(loaded.voxels), loaded.labels):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(loaded.spacing_mm[::-1])
        # Axial slices run from head to foot.
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
        images.append(image)
    return images[0], images[1]
