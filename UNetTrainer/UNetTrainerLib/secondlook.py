"""Teach a model a second look: a small network that tells its true finds from its false ones.

It learns from the patients that trained the model, and is judged on those kept aside. The loss is
the focal loss, and candidates are labelled by how much of them is kidney; see
`UNetTrainerLib.candidates`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from KidneySegLib import __version__
from KidneySegLib.backends.torchbackend import TorchBackend
from KidneySegLib.errors import InputError, UsageError
from KidneySegLib.looknetwork import LookNetwork, mirrored, probabilities
from KidneySegLib.model import README_FILE, WEIGHTS_FILE, Model
from KidneySegLib.modelcard import SPLIT_FILE
from KidneySegLib.modelplaces import find_model
from KidneySegLib.modelsaving import check_place, save_model
from KidneySegLib.secondlook import CHANNELS, SecondLook
from UNetTrainerLib.candidates import (
    DRAWN,
    FOUND,
    TRUTH,
    Example,
    Survey,
    drawn_examples,
    found_examples,
    smallest_kidney_ml,
    survey,
)
from UNetTrainerLib.cases import (
    Case,
    Split,
    check_extra,
    find_cases,
    listed,
    read_split,
    split_cases,
)
from UNetTrainerLib.losses import focal
from UNetTrainerLib.progress import Progress, Silent
from UNetTrainerLib.varying import change_phase, smoothed

DRAWN_KIDNEYS, DRAWN_OTHERS = 36, 72  # of each CT that trains; a third of it of others
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-2

# To leave a kidney out is worse than to keep what is none. A kidney must be doubted more than this,
# and more than twice as much as the most doubtful of those that were learnt from: of patients whom
# it does not know a network is less sure.
MOST_THRESHOLD = 0.25
CAUTION = 0.5


@dataclass(frozen=True)
class LookOptions:
    """Every choice of a run; see ``kidneyseg train-second-look --help``.

    Attributes:
        model: name or folder of a finished model.
        data: folders of labelled cases; single slices are passed over.
        output: gets a copy of the model with its second look.
        extra: further cases that only train.
        split: who trained and who was kept aside; by default what lies beside the model.
        steps, batch_size: batches, and candidates in each.
        device: for the model's own answers; the second look is trained on the CPU.
        seed: of every random choice.
    """

    model: str
    data: tuple[str, ...]
    output: str
    extra: tuple[str, ...] = ()
    split: str = ""
    steps: int = 400
    batch_size: int = 48
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch_size", 2), ("seed", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {low}.")


def train_second_look(options: LookOptions, progress: Progress | None = None) -> Model:
    """Copy a model to ``output`` with a second look in it; nothing is written before the end.

    The same seed gives the same weights on the same machine.

    Returns:
        The copy.

    Raises:
        UsageError, InputError, ModelError: what cannot be used and what to do.
    """
    started = time.monotonic()
    progress = progress or Silent()
    model, split, extra = _start(options, progress)
    look = SecondLook()
    backend = TorchBackend(model, options.device)
    everything = [*split.training, *split.validation, *extra]
    first, last = len(split.training), len(everything) - len(extra)
    smallest: list[tuple[np.ndarray, tuple[float, float, float]]] = []
    examples: list[list[Example]] = []
    for number, case in enumerate(everything):
        progress.share(number / len(everything), "look at cases")
        seen = survey(case, look, backend)
        if number < first:
            smallest.append((seen.truth, seen.spacing_mm))
        # Each case has its own numbers, whatever stands before it.
        rng = np.random.default_rng([options.seed, *case.name.encode()])
        share = 3 if first <= number < last else 1
        examples.append(_examples(seen, look, model.threshold, share, rng))
    progress.share(1.0, "look at cases")

    own = [one for some in examples[:first] for one in some]
    learnt = own + [one for some in examples[last:] for one in some]
    _check_kinds(learnt, model)
    progress.line(
        f"{len(learnt)} candidates of {first + len(extra)} CTs train, "
        f"{sum(one.kidney for one in learnt)} of them kidneys"
    )
    network = _fit(learnt, look, options, progress)
    look = replace(look, threshold=_threshold(network, own))
    judged = [one for some in examples[first:last] for one in some]
    scores = {
        part: _scores(network, some, look.threshold)
        for part, some in (("training", own), ("validation", judged))
    }
    facts = {
        "date": date.today().isoformat(),
        "kidneyseg": __version__,
        "torch": torch.__version__.split("+")[0],
        "seed": options.seed,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "data": [Path(folder).name for folder in options.data],
        "extra": [Path(folder).name for folder in options.extra],
        "candidates": len(learnt),
        "seconds": round(time.monotonic() - started, 1),
        **scores,
    }
    for part, numbers in scores.items():
        progress.line(_sentence(part, numbers))
    looking = replace(
        model,
        second_look=look,
        smallest_kidney_ml=smallest_kidney_ml(smallest) or model.smallest_kidney_ml,
        card={**model.card, "second_look_training": facts},
    )
    return _saved(looking, network, Path(options.output), facts)


def _start(options: LookOptions, progress: Progress) -> tuple[Model, Split, list[Case]]:
    """The model, the volumes by who trained it, and the extra ones.

    Of whom the split does not place, such as those whom ``--skip-bad`` left out, nobody knows
    whether they were kept aside, so they are left out here too.

    All that can be wrong before a file is read is found here.
    """
    model = find_model(options.model)
    assert model.folder is not None
    if model.network.in_channels != 1:
        raise UsageError(
            f"Model {model.name} is for colour pictures, and a second look is for CT; choose "
            "another model."
        )
    output = Path(options.output)
    if output.resolve() == model.folder.resolve():
        raise UsageError(f"{output} is the model itself; give another --output.")
    check_place(output)
    path = Path(options.split) if options.split else model.folder.parent / SPLIT_FILE
    if not path.is_file():
        lacking = f"split {path}" if options.split else f"{SPLIT_FILE} beside {model.folder}"
        raise UsageError(
            f"There is no {lacking}; give --split, that of the run that trained it, so that nobody "
            "who was kept aside is learnt from."
        )
    cases = find_cases(options.data)
    training_patients, validating = read_split(path)
    placed = training_patients | validating
    unknown = sorted({case.patient for case in cases} - placed)
    if unknown:
        progress.line(f"{path} does not place {listed(unknown)}: left out")
    cases = [case for case in cases if case.patient in placed]
    split = split_cases(cases, str(path.resolve()), 0, 0)
    more = find_cases(options.extra) if options.extra else []
    training, validation, extra = (
        tuple(case for case in some if not case.is_slice)
        for some in (split.training, split.validation, more)
    )
    if not training:
        raise InputError(
            f"None of the patients who trained {model.name} has a whole CT in "
            f"{' and '.join(options.data)}; give the folders that it was trained on."
        )
    files = {case.image.resolve() for case in (*training, *validation)}
    twice = [case for case in extra if case.image.resolve() in files]
    if twice:
        raise UsageError(f"{twice[0].image} is in --data and in --extra; give it once.")
    check_extra(more, split.validation)
    return model, Split(training, validation), list(extra)


def _examples(
    seen: Survey, look: SecondLook, threshold: float, share: int, rng: np.random.Generator
) -> list[Example]:
    counts = (DRAWN_KIDNEYS // share, DRAWN_OTHERS // share)
    return [
        *found_examples(seen, look, threshold),
        *drawn_examples(seen, look, *counts, rng),
    ]


def _check_kinds(examples: Sequence[Example], model: Model) -> None:
    kinds = {one.kidney for one in examples}
    if kinds != {True, False}:
        lacking = "kidney" if True not in kinds else "soft tissue beside the kidneys"
        raise InputError(
            f"The CTs that trained {model.name} show no {lacking} of some ml to learn from; add "
            "cases to --data."
        )


# --- learning -----------------------------------------------------------------------------------


def _fit(
    examples: Sequence[Example], look: SecondLook, options: LookOptions, progress: Progress
) -> LookNetwork:
    """The network after training; the same for the same seed."""
    rng = np.random.default_rng(options.seed)
    pictures = torch.from_numpy(np.stack([one.pictures for one in examples]))
    labels = torch.tensor([int(one.kidney) for one in examples])
    chances = _chances(examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = LookNetwork(look).train()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        schedule = OneCycleLR(optimizer, LEARNING_RATE, total_steps=options.steps, pct_start=0.15)
        for step in range(options.steps):
            drawn = rng.choice(len(examples), options.batch_size, p=chances)
            views = augmented(pictures[drawn].float() / 255, look, rng)
            logits = network(views)
            # A candidate is a picture of one pixel to the losses of segmentation.
            loss = focal(logits[..., None, None], labels[drawn][:, None, None])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            progress.batch(1, 1, step + 1, options.steps, float(loss.detach()))
    return network.eval().requires_grad_(False)


def _chances(examples: Sequence[Example]) -> np.ndarray:
    """How often each example is drawn: kidneys and others alike, half of either not generated."""
    chances = np.zeros(len(examples))
    groups: dict[tuple[bool, bool], list[int]] = {}
    for number, one in enumerate(examples):
        groups.setdefault((one.kidney, one.kind == DRAWN), []).append(number)
    for (kidney, _), members in groups.items():
        alike = sum(key[0] == kidney for key in groups)
        chances[members] = 0.5 / alike / len(members)
    return chances / chances.sum()


def augmented(pictures: Tensor, look: SecondLook, rng: np.random.Generator) -> Tensor:
    """Random changes of candidates, the same in all sections of one but for the rotation.

    Args:
        pictures: float32 (N, views, 3, pixels, pixels), 0..1: CT, candidate, all that is kidney.

    Returns:
        float32 (N, views, 2, pixels, pixels), without the last.
    """
    count, views, _, rows, columns = pictures.shape
    flipped = torch.from_numpy(rng.random(count) < 0.5)
    pictures = torch.where(flipped[:, None, None, None, None], mirrored(pictures), pictures)

    # Turned by up to 12 degrees, scaled by up to a fifth, shifted by up to two pixels.
    angles = np.radians(rng.uniform(-12, 12, (count, views)))
    zoom = np.exp(rng.uniform(-0.18, 0.18, (count, 1)))
    shift = rng.uniform(-2, 2, (2, count, views)) * 2 / np.array([[[columns]], [[rows]]])
    cosine, sine = np.cos(angles) * zoom, np.sin(angles) * zoom
    matrix = np.stack(
        [np.stack([cosine, -sine, shift[0]], -1), np.stack([sine, cosine, shift[1]], -1)], -2
    )
    theta = torch.from_numpy(matrix.astype(np.float32)).flatten(0, 1)
    field = functional.affine_grid(theta, [count * views, 3, rows, columns], align_corners=False)
    pictures = functional.grid_sample(
        pictures.flatten(0, 1), field, align_corners=False, padding_mode="zeros"
    ).view(count, views, 3, rows, columns)

    low, high = look.window_hu
    hu = pictures[:, :, 0].numpy() * np.float32(high - low) + np.float32(low)
    truth = pictures[:, :, 2].numpy() >= 0.5
    for one in range(count):
        if rng.random() < 0.35:
            hu[one] = change_phase(hu[one][:, None], truth[one][:, None], rng)[:, 0]
        hu[one] = _changed_intensity(hu[one], rng)
    seen = np.clip((hu - low) / (high - low), 0, 1).astype(np.float32)
    return torch.stack([torch.from_numpy(seen), pictures[:, :, 1]], 2)[:, :, :CHANNELS]


def _changed_intensity(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gain, offset, other kernels, noise and a raised floor, as in the training of the U-Net."""
    hu = hu * np.float32(rng.uniform(0.85, 1.15)) + np.float32(rng.uniform(-20, 20))
    if rng.random() < 0.2:
        hu = smoothed(hu, "edge")
    if rng.random() < 0.5:
        noise = rng.standard_normal(hu.shape, np.float32)
        hu += noise * np.float32(rng.uniform(0, 20))
    if rng.random() < 0.15:
        np.maximum(hu, np.float32(rng.uniform(-125, 10)), out=hu)
    return hu


# --- judging ------------------------------------------------------------------------------------


def believed(network: nn.Module, examples: Sequence[Example]) -> np.ndarray:
    """Probability of being a kidney of each example, float64 (N,)."""
    found = [np.zeros(0)]
    for start in range(0, len(examples), 64):
        some = np.stack([one.pictures[:, :CHANNELS] for one in examples[start : start + 64]])
        views = torch.from_numpy(some).float() / 255
        found.append(probabilities(network, views).double().numpy())
    return np.concatenate(found)


def _threshold(network: nn.Module, examples: Sequence[Example]) -> float:
    """The probability from which a candidate stays, so that all kidneys that trained do."""
    kidneys = [one for one in examples if one.kidney and one.kind in (FOUND, TRUTH)]
    lowest = believed(network, kidneys).min(initial=1.0)
    return round(float(min(MOST_THRESHOLD, CAUTION * lowest)), 4)


def _scores(network: nn.Module, examples: Sequence[Example], threshold: float) -> dict[str, int]:
    """How candidates are judged, in numbers of them.

    ``found`` ones are what the model takes for kidney of at least some ml; ``kidneys`` are those of
    the masks as well.
    """
    stays = believed(network, examples) >= threshold
    kidney = np.array([one.kidney for one in examples], bool)
    drawn = np.array([one.kind == DRAWN for one in examples], bool)
    found = np.array([one.kind == FOUND for one in examples], bool)
    real = found | np.array([one.kind == TRUTH for one in examples], bool)
    return {
        "patients": len({one.case for one in examples}),
        "kidneys": int((real & kidney).sum()),
        "kidneys_kept": int((real & kidney & stays).sum()),
        "false_found": int((found & ~kidney).sum()),
        "false_found_left_out": int((found & ~kidney & ~stays).sum()),
        "drawn_kidneys": int((drawn & kidney).sum()),
        "drawn_kidneys_kept": int((drawn & kidney & stays).sum()),
        "drawn_others": int((drawn & ~kidney).sum()),
        "drawn_others_left_out": int((drawn & ~kidney & ~stays).sum()),
    }


def _sentence(part: str, scores: dict[str, int]) -> str:
    if not scores["patients"]:
        return f"{part}: nobody"
    right = scores["drawn_kidneys_kept"] + scores["drawn_others_left_out"]
    drawn = scores["drawn_kidneys"] + scores["drawn_others"]
    return (
        f"{part}, {scores['patients']} CTs: {scores['kidneys_kept']} of {scores['kidneys']} "
        f"kidneys kept, {scores['false_found_left_out']} of {scores['false_found']} false "
        f"detections left out; of the drawn candidates {right} of {drawn} are told right "
        f"(sensitivity {_share(scores, 'drawn_kidneys', 'kept')}, "
        f"specificity {_share(scores, 'drawn_others', 'left_out')})"
    )


def _share(scores: dict[str, int], of: str, how: str) -> str:
    return f"{scores[f'{of}_{how}'] / scores[of]:.3f}" if scores[of] else "unknown"


# --- the copy -----------------------------------------------------------------------------------


def _saved(model: Model, network: LookNetwork, output: Path, facts: dict[str, Any]) -> Model:
    """The model with its second look, in its own folder; the U-Net's weights stay as stored."""
    assert model.folder is not None and model.second_look is not None
    readme = ""
    if (model.folder / README_FILE).is_file():
        before = (model.folder / README_FILE).read_text(encoding="utf-8")
        about = [
            "## Second look",
            "",
            f"What is found is looked at again, and left out below a probability of "
            f"{model.second_look.threshold:g} (`--no-second-look` keeps it). Trained on "
            f"{facts['date']} with seed {facts['seed']}, in {facts['seconds']:.0f} s.",
            "",
            *(f"- {_sentence(part, facts[part])}" for part in ("training", "validation")),
            "",
        ]
        readme = before.partition("\n## Second look\n")[0].rstrip() + "\n\n" + "\n".join(about)
    return save_model(
        model,
        load_file(model.folder / WEIGHTS_FILE),
        output,
        readme,
        second_look=network.state_dict(),
    )
