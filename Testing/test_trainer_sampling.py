"""Draws: which slices, the same ones everywhere, and what becomes of them before the network."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from preparedcases import prepared
from scipy import ndimage
from torch.utils.data import DataLoader

from KidneySegLib.predict import predict
from KidneySegLib.preprocess import scale, with_context
from UNetTrainerLib import sampling
from UNetTrainerLib.augmentation import AUGMENTATIONS
from UNetTrainerLib.cache import CachedCase
from UNetTrainerLib.options import Options
from UNetTrainerLib.sampling import (
    BatchSampler,
    SliceDataset,
    border_weights,
    class_weights,
    loader,
)


def options(**chosen: Any) -> Options:
    small = {
        "rows": 48, "columns": 64, "depth": 3, "features": 2, "context_slices": 3, "batch_size": 4,
        "steps": 5, "workers": 0,
    }  # fmt: skip
    return Options(**{**small, **chosen})


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    return [prepared(tmp_path, "a"), prepared(tmp_path, "bb", (14, 40, 80))]


def equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True)
    )


def test_a_draw_has_the_shapes_and_the_range_the_network_wants(cases: list[CachedCase]) -> None:
    slices, labels, weights, number = SliceDataset(cases, [], options(augment="full"))[0, 0]
    assert slices.shape == (3, 48, 64)
    assert slices.dtype == torch.float32
    assert 0 <= slices.min() <= slices.max() <= 1
    assert labels.shape == (48, 64)
    assert labels.dtype == torch.int64
    assert weights.shape == (0,)
    assert number in (0, 1)


def test_a_draw_is_its_own_and_repeats_for_a_seed(cases: list[CachedCase]) -> None:
    dataset = SliceDataset(cases, [], options())
    backwards = [dataset[1, position] for position in reversed(range(6))]
    forwards = [SliceDataset(cases, [], options())[1, position] for position in range(6)]
    assert all(equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    others = (dataset[0, 0], dataset[1, 1], SliceDataset(cases, [], options(seed=1))[1, 0])
    assert not any(torch.equal(forwards[0][0], other[0]) for other in others)


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_what_one_process_gives(
    cases: list[CachedCase], start: str, workers: int
) -> None:
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {start} processes")
    chosen = options(steps=3)
    dataset = SliceDataset(cases, [], chosen)
    alone = list(loader(dataset, chosen))
    batches = BatchSampler(dataset, chosen)
    others: DataLoader[Any] = DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, multiprocessing_context=start,
        worker_init_fn=sampling._start_worker,
    )  # fmt: skip
    assert all(equal(a, b) for a, b in zip(alone, others, strict=True))


def test_workers_stay_for_the_next_epoch_and_hear_of_it(cases: list[CachedCase]) -> None:
    chosen = options(workers=1, steps=2)
    dataset = SliceDataset(cases, [], chosen)
    batches = loader(dataset, chosen)
    for epoch in (0, 1, 0):
        batches.batch_sampler.sampler.set_epoch(epoch)
        expected = [dataset[epoch, position] for position in range(4)]
        first = next(iter(batches))
        assert equal(first[0], torch.stack([draw[0] for draw in expected]))
        assert first[3].tolist() == [draw[3] for draw in expected]


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is a file system on Linux")
def test_workers_are_as_many_as_cores_and_shared_memory_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = 4 * (3 * 48 * 64 * 4 + 48 * 64 * 12)
    for cores, free, devices, expected in (
        (1, 1 << 30, 1, 0),
        (2, 1 << 30, 1, 1),
        (64, 1 << 30, 1, 8),
        (16, 1 << 30, 4, 2),
        (16, 5 * batch, 1, 2),
        (16, 2 * batch, 1, 0),
    ):
        monkeypatch.setattr(sampling.os, "sched_getaffinity", lambda _, n=cores: set(range(n)))
        monkeypatch.setattr(
            sampling.shutil, "disk_usage", lambda _, n=free: SimpleNamespace(free=n)
        )
        assert sampling._workers(options(devices=devices), 1) == expected


def test_preparing_batches_leaves_the_random_numbers_of_the_network_alone(
    cases: list[CachedCase],
) -> None:
    before = torch.get_rng_state()
    list(loader(SliceDataset(cases, [], options()), options()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [5, 0])
def test_two_processes_share_the_batches_of_one(cases: list[CachedCase], steps: int) -> None:
    chosen = options(steps=steps)
    dataset = SliceDataset(cases, [], chosen)
    one = list(BatchSampler(dataset, chosen))
    ranks = [list(BatchSampler(dataset, chosen, rank, 2)) for rank in (0, 1)]
    assert len(one) == len(BatchSampler(dataset, chosen)) == len(ranks[0]) == len(ranks[1])
    for whole, *parts in zip(one, *ranks, strict=True):
        assert [len(part) for part in parts] == [2, 2]
        assert sorted(parts[0] + parts[1]) == whole


def test_without_steps_an_epoch_is_every_slice_once_in_another_order(
    cases: list[CachedCase],
) -> None:
    chosen = options(steps=0, batch_size=5)
    dataset = SliceDataset(cases, [], chosen)
    rng = np.random.default_rng(0)

    def chosen_in(epoch: int) -> list[tuple[int, int]]:
        return [dataset._choose(epoch, position, rng) for position in range(dataset.draws)]

    everything = [(number, i) for number, case in enumerate(cases) for i in range(case.slices)]
    assert dataset.draws == 25, "23 slices in batches of 5"
    assert sorted(chosen_in(0)[:23]) == everything
    assert chosen_in(0)[23:] == chosen_in(0)[:2], "the last batch is filled from the beginning"
    assert sorted(chosen_in(1)[:23]) == everything
    assert chosen_in(0) != chosen_in(1)
    assert chosen_in(0) == chosen_in(0)


def test_slices_with_a_kidney_and_extra_cases_take_their_shares(
    cases: list[CachedCase], tmp_path: Path
) -> None:
    extra = [prepared(tmp_path, "ccc", (30, 20, 20), labelled=()),
             prepared(tmp_path, "dddd", (1, 20, 20), labelled=(0,))]  # fmt: skip
    chosen = options(extra_share=0.25, foreground=0.5)
    dataset = SliceDataset(cases, extra, chosen)
    rng = np.random.default_rng(0)
    draws = [dataset._draw(rng, 0) for _ in range(4000)]
    share = Counter(number for number, _ in draws)
    assert (share[2] + share[3]) / 4000 == pytest.approx(0.25, abs=0.03)
    assert share[2] / share[3] == pytest.approx(30**0.6, rel=0.3)
    labelled = [index in (3, 4, 5) for number, index in draws if number == 0]
    assert np.mean(labelled) == pytest.approx(0.5 + 0.5 * 3 / 9, abs=0.05)

    whole = SliceDataset(cases, extra, replace(chosen, steps=0))
    drawn = [whole._choose(0, position, rng)[0] for position in range(whole.draws)]
    assert sum(number >= 2 for number in drawn[: whole._whole_epoch]) == round(23 / 3)


def test_without_augmentation_slices_stay_as_they_are(tmp_path: Path) -> None:
    case = prepared(tmp_path, channels=2)
    chosen = options(augment="none", steps=0, in_channels=2, foreground=0.0)
    dataset = SliceDataset([case], [], chosen)
    for position in range(9):
        slices, labels, _, _ = dataset[0, position]
        _, index = dataset._choose(0, position, np.random.default_rng(0))
        neighbours = with_context(9, np.array([index]), 3, 1)[0]
        seen = case.voxels()[neighbours].astype(np.float32).reshape(6, 48, 64)
        assert np.abs(slices.numpy() - (seen.clip(-125, 275) + 125) / 400).max() < 1e-6
        assert np.array_equal(labels, case.labels()[index] > 0)


def test_minimum_and_maximum_of_the_whole_volume_become_0_and_1(tmp_path: Path) -> None:
    case = prepared(tmp_path)
    chosen = options(augment="none", steps=0, scaling="minmax", context_slices=1)
    dataset = SliceDataset([case], [], chosen)
    volume = scale(case.voxels()[:, 0].astype(np.float32), chosen.preprocessing)
    for position in range(9):
        _, index = dataset._choose(0, position, np.random.default_rng(0))
        assert np.abs(dataset[0, position][0][0].numpy() - volume[index]).max() < 1e-6


def test_tumours_are_their_own_class_only_where_they_are_asked_for(
    cases: list[CachedCase],
) -> None:
    for augment in ("none", "full"):
        for classes, most in (("kidney", 1), ("kidney-tumour", 2)):
            chosen = options(classes=classes, augment=augment, foreground=0.99)
            dataset = SliceDataset(cases, [], chosen)
            assert max(int(dataset[0, position][1].max()) for position in range(9)) == most


def test_small_slices_are_filled_and_large_ones_cut_around_their_centre(tmp_path: Path) -> None:
    case = prepared(tmp_path, shape=(3, 30, 90), labelled=(0, 1, 2))
    chosen = options(augment="none", context_slices=1, scaling="minmax")
    slices, labels, _, _ = SliceDataset([case], [], chosen)[0, 0]
    assert (slices[0, :9] == 0).all()
    assert (slices[0, 39:] == 0).all()
    assert np.array_equal(labels[9:39], case.labels()[0, :, 13:77] > 0)


def test_an_unpadded_network_gets_the_surroundings_that_prediction_gives_it(
    tmp_path: Path,
) -> None:
    chosen = options(no_padding=True, rows=20, columns=28, augment="none", steps=0)
    size = chosen.training_size
    case = prepared(tmp_path, shape=(9, *size))
    dataset = SliceDataset([case], [], chosen)
    asked: list[np.ndarray] = []

    class Backend:
        model = SimpleNamespace(
            network=chosen.network_parameters, preprocessing=chosen.preprocessing
        )

        def __call__(self, batch: np.ndarray, *_: Any, **__: Any) -> np.ndarray:
            asked.append(batch.copy())
            return np.zeros((len(batch), *size), np.float32)

    working = scale(case.voxels()[:, 0].astype(np.float32), chosen.preprocessing)
    predict(working, 3.0, Backend())  # type: ignore[arg-type]
    expected = np.concatenate(asked)
    assert dataset.margin > max(size) / 2
    for position in range(9):
        slices, labels, _, _ = dataset[0, position]
        _, index = dataset._choose(0, position, np.random.default_rng(0))
        assert slices.shape == expected[index].shape
        assert np.abs(slices.numpy() - expected[index]).max() < 1e-6
        assert np.array_equal(labels, case.labels()[index] > 0)


def test_random_crops_come_from_everywhere_with_real_surroundings(tmp_path: Path) -> None:
    case = prepared(tmp_path, shape=(4, 80, 96), labelled=())
    ramp = np.arange(80)[:, None] * 96 + np.arange(96)
    np.save(case.voxels_file, np.broadcast_to(ramp, (4, 1, 80, 96)).astype(np.int16))
    case = replace(case, value_range=(0.0, 7679.0))
    for no_padding in (False, True):
        chosen = options(
            crop=16, augment="none", scaling="minmax", context_slices=1, no_padding=no_padding
        )
        dataset = SliceDataset([case], [], chosen)
        rows, columns = chosen.training_size
        edge, corners = dataset.margin, set()
        for position in range(40):
            slices, labels, _, _ = dataset[0, position]
            assert labels.shape == (rows, columns)
            assert slices.shape == (1, rows + 2 * edge, columns + 2 * edge)
            seen = np.rint(slices[0].numpy() * 7679).astype(int)
            top, left = divmod(int(seen[edge, edge]), 96)
            corners.add((top, left))
            mirrored = np.pad(ramp, edge, mode="reflect")
            part = mirrored[top : top + rows + 2 * edge, left : left + columns + 2 * edge]
            assert np.array_equal(seen, part)
        assert len(corners) > 30
        assert max(top for top, _ in corners) > 80 - rows - 12
        assert min(left for _, left in corners) < 12


def test_squares_around_a_kidney_hold_some_of_it_or_lie_beside_its_nearest_slice(
    tmp_path: Path,
) -> None:
    case = prepared(tmp_path, shape=(9, 160, 192), labelled=(4,))
    chosen = options(crop=32, around=0.99, augment="none", context_slices=1, foreground=0.5)
    dataset = SliceDataset([case], [], chosen)
    kidney = np.argwhere(case.labels()[4] > 0)
    with_kidney = 0
    for position in range(60):
        rng = np.random.default_rng(position)
        place = dataset._place(0, position % 9, rng)
        if place is None:  # one square in a hundred lies anywhere
            continue
        assert np.abs(kidney - place).max(1).min() <= 0.2 * 32 + 1
        window = dataset._window(case, rng, place)
        assert (window.rows, window.columns) == (32, 32)
        assert abs(window.top + 16 - place[0]) <= 0.5
    for position in range(20):
        _, labels, _, _ = dataset[0, position]
        with_kidney += bool(labels.any())
    assert with_kidney >= 8


def test_a_case_without_kidney_has_squares_anywhere(tmp_path: Path) -> None:
    case = prepared(tmp_path, labelled=())
    dataset = SliceDataset([case], [], options(crop=16, around=0.9))
    assert dataset._place(0, 2, np.random.default_rng(1)) is None
    slices, labels, _, _ = dataset[0, 0]
    assert slices.shape[-2:] == (16, 16) and not labels.any()


def with_prior(case: CachedCase) -> CachedCase:
    """The same with a finder's answer: the kidney itself, half believed."""
    path = case.labels_file.with_name("prior.npy")
    np.save(path, np.where(case.labels() > 0, 128, 0).astype(np.uint8))
    return replace(case, prior_file=path)


def test_a_finders_answer_is_the_last_channel_and_moves_with_the_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "change_prior", lambda prior, rng: prior)
    case = with_prior(prepared(tmp_path, shape=(9, 64, 64)))
    for augment in ("none", "full"):
        chosen = options(
            crop=32, around=0.9, prior=True, finder="x", context_slices=3, augment=augment
        )
        dataset = SliceDataset([case], [], chosen)
        seen = 0
        for position in range(30):
            slices, labels, _, _ = dataset[0, position]
            assert slices.shape[0] == 4
            known = slices[-1] >= 0.25
            union = (known | (labels > 0)).sum()
            if union < 60 or how_lesion(labels, known):
                continue
            seen += 1
            assert (known & (labels > 0)).sum() / union > 0.8
        assert seen > 5


def how_lesion(labels: torch.Tensor, known: torch.Tensor) -> bool:
    """Whether something was painted on that no finder could know of."""
    return bool(((labels > 0) & ~known).sum() > 30)


@pytest.mark.parametrize(("change", "how"), [("change_phase", "full"), ("wash_out", "phases")])
def test_only_volumes_with_a_window_change_their_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, how: str
) -> None:
    asked: list[int] = []

    def refuse(hu: np.ndarray, *_: Any) -> np.ndarray:
        asked.append(1)
        return hu

    monkeypatch.setattr(sampling, change, refuse)
    volume = prepared(tmp_path)
    picture = replace(volume, case=replace(volume.case, is_slice=True))
    for case, scaling, expected in (
        (picture, "window", False), (volume, "minmax", False), (volume, "window", True),
    ):  # fmt: skip
        dataset = SliceDataset([case], [], options(scaling=scaling, augment=how))
        for position in range(20):
            dataset[0, position]
        assert bool(asked) is expected


@pytest.mark.parametrize("dark", [0.0, 1.0])
def test_without_contrast_kidneys_stay_bright_or_become_as_dark_as_muscle(
    tmp_path: Path, dark: float
) -> None:
    dataset = SliceDataset([prepared(tmp_path)], [], options(augment="plain"))
    dataset.how = replace(AUGMENTATIONS["none"], plain=1.0, dark=dark)
    kidneys = []
    for position in range(60):
        slices, labels, _, _ = dataset[0, position]
        whole = ndimage.binary_erosion(labels.numpy() == 1, iterations=2)
        if whole.any():
            kidneys.append(float(slices[1][torch.from_numpy(whole)].mean()) * 400 - 125)
    assert len(kidneys) > 10
    assert max(kidneys) < 130, "without their contrast"
    assert (max(kidneys) < 50) == bool(dark)


def test_the_weights_of_the_unet_paper_follow_its_equation() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[10:20, 8:20] = 1
    labels[12:25, 24:40] = 1
    labels[15:18, 26:30] = 2
    labels[30:34, 50:55] = 1
    weights = np.array([0.5, 3.0, 9.0], np.float32)
    result = border_weights(labels, weights)
    objects = np.zeros(labels.shape, int)
    objects[10:20, 8:20], objects[12:25, 24:40], objects[30:34, 50:55] = 1, 2, 3
    places = [np.argwhere(objects == number) for number in (1, 2, 3)]
    for row, column in np.ndindex(labels.shape):
        expected = float(weights[labels[row, column]])
        if labels[row, column] == 0:
            near = sorted(np.sqrt(((place - (row, column)) ** 2).sum(1)).min() for place in places)
            expected += 10 * np.exp(-((near[0] + near[1]) ** 2) / (2 * 5**2))
        assert result[row, column] == pytest.approx(expected, abs=2e-3)
    assert result[15, 22] > 3 > result[15, 5]


def test_one_object_or_none_has_no_border_to_another() -> None:
    labels = np.zeros((20, 20), np.uint8)
    weights = np.array([0.5, 3.0], np.float32)
    assert (border_weights(labels, weights) == 0.5).all()
    labels[5:9, 5:9] = 1
    assert np.array_equal(border_weights(labels, weights), weights[labels])


def test_classes_weigh_the_same_in_total(cases: list[CachedCase]) -> None:
    counts = np.sum([case.label_counts for case in cases], axis=0)
    weights = class_weights(cases, 3)
    assert np.allclose(weights * counts, counts.sum() / 3)
    kidney = class_weights(cases, 2)
    assert kidney[1] * (counts[1] + counts[2]) == pytest.approx(kidney[0] * counts[0], rel=1e-5)
    without = [replace(case, label_counts=(100, 0, 0)) for case in cases]
    assert class_weights(without, 2).tolist() == [1, 1]


def test_weights_come_with_every_draw_where_the_loss_asks_for_them(
    cases: list[CachedCase],
) -> None:
    dataset = SliceDataset(cases, [], options(loss="weighted-ce", foreground=0.99))
    for position in range(6):
        _, labels, weights, _ = dataset[0, position]
        assert weights.shape == labels.shape
        assert weights.dtype == torch.float32
        expected = class_weights(cases, 2)[labels.numpy()]
        assert (weights.numpy() >= expected - 1e-6).all()


def test_a_draw_keeps_no_file_open(cases: list[CachedCase], tmp_path: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell which files are mapped")
    dataset = SliceDataset(cases, [], options())
    drawn = [dataset[0, position] for position in range(6)]
    assert len(drawn) == 6
    assert str(tmp_path) not in maps.read_text()
