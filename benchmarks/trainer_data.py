"""Whether training waits for its data, and whether memory grows with the number of cases.

    python benchmarks/trainer_data.py

Everything it trains on is generated in a temporary folder (about 2 GB, removed at the end). The
memory of processes is read from Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE / "KidneySeg"), str(HERE / "UNetTrainer")]

from KidneySegLib.backends.torchbackend import has_bfloat16  # noqa: E402
from KidneySegLib.network import build  # noqa: E402
from KidneySegLib.phantom import write_cases  # noqa: E402
from UNetTrainerLib.cache import CachedCase, build_cache  # noqa: E402
from UNetTrainerLib.cases import find_cases  # noqa: E402
from UNetTrainerLib.losses import LOSSES  # noqa: E402
from UNetTrainerLib.options import Options  # noqa: E402
from UNetTrainerLib.sampling import SliceDataset, loader  # noqa: E402

SIZE = (192, 192, 56)  # columns, rows, slices of a generated case: 6.2 MB prepared
DISTINCT, MANY = 10, 200
MEMORY_KINDS = ("RssAnon", "RssFile", "RssShmem")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", metavar="FOLDER", help=argparse.SUPPRESS)
    folder = parser.parse_args().memory
    if folder:
        print(json.dumps(memory(Path(folder))))
        return
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, ", end="")
    print(f"{'bfloat16' if has_bfloat16(torch.device('cpu')) else 'float32'}, ", end="")
    print(f"load of the last minute {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="trainer-data-") as name:
        few, many = generate(Path(name))
        cache(few, Path(name) / "cache", options())  # files read and code loaded for the first time
        seconds = {number: time_cache(few, Path(name), number) for number in (1, 2)}
        print("\n| cache of 10 cases | seconds |\n|---|---|")
        for number, value in seconds.items():
            print(f"| {number} thread{'s' * (number > 1)} | {value:.2f} |")
        print("\n| U-Net at 256x256, 5 slices as channels | share of waiting | slices/s |")
        print("|---|---|---|", flush=True)
        for features, batch, steps in ((16, 12, 40), (64, 4, 8)):
            share, rate = waiting(few, Path(name), features, batch, steps)
            line = f"| {features} features, batches of {batch} | {share:.2%} | {rate:.1f} |"
            print(line, flush=True)
        print("\n| cases | prepared | process | own memory | of files | shared |")
        print("|---|---|---|---|---|---|")
        for cases in (few, many):
            for line in measured(cases):
                print(line, flush=True)
    print(f"\nload of the last minute {os.getloadavg()[0]:.2f}")


def generate(folder: Path) -> tuple[Path, Path]:
    """A folder of distinct cases, and one of twenty times as many that are links to them."""
    few, many = folder / "few", folder / "many"
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        parts = [folder / f"part{number}" for number in range(DISTINCT)]
        list(pool.map(write_cases, parts, [1] * DISTINCT, range(DISTINCT), [SIZE] * DISTINCT))
    for number in range(MANY):
        for target, count in ((few, DISTINCT), (many, MANY)):
            if number < count:
                place = target / f"case_{number:05d}"
                place.mkdir(parents=True)
                for file in (parts[number % DISTINCT] / "case_00000").iterdir():
                    os.link(file, place / file.name)
    return few, many


def options(**chosen: object) -> Options:
    """Whole slices at the pixels they have, everything else at its default."""
    whole = {"pixel_mm": 0.0, "slice_mm": 0.0, "no_body_crop": True}
    return Options(**{**whole, **chosen})  # type: ignore[arg-type]


def time_cache(cases: Path, folder: Path, workers: int) -> float:
    started = time.perf_counter()
    cache(cases, folder / f"cache-of-{workers}", Options(), workers)
    return time.perf_counter() - started


def cache(
    cases: Path, folder: Path, chosen: Options, workers: int | None = None
) -> list[CachedCase]:
    return build_cache(find_cases([cases]), folder, chosen.preprocessing, workers=workers)


def waiting(
    cases: Path, folder: Path, features: int, batch: int, steps: int
) -> tuple[float, float]:
    """Share of the time that training steps wait for slices, and slices a second.

    The first two batches, while processes start and kernels are chosen, do not count.
    """
    chosen = options(features=features, rows=256, columns=256, batch_size=batch, steps=steps + 2)
    waited, spent = train(cache(cases, folder / "cache", chosen), chosen, skip=2)
    return waited / spent, steps * batch / spent


def train(cached: Sequence[CachedCase], chosen: Options, skip: int = 0) -> tuple[float, float]:
    """An epoch; seconds of it that were spent waiting for slices, and all."""
    network = build(chosen.network_parameters)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), chosen.lr)
    loss_function = LOSSES[chosen.loss]
    reduced = has_bfloat16(torch.device("cpu"))
    waited = spent = 0.0
    batches = iter(loader(SliceDataset(cached, [], chosen), chosen))
    for step in range(chosen.steps):
        started = time.perf_counter()
        slices, labels, _, _ = next(batches)
        arrived = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            logits = network(slices.to(memory_format=torch.channels_last))
        loss = loss_function(logits.float(), labels, None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step >= skip:
            waited += arrived - started
            spent += time.perf_counter() - started
    return waited, spent


class Watch(threading.Thread):
    """Peaks of the memory of this process and of those it started, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, dict[str, float]] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self._look("training", "self")
            for worker in multiprocessing.active_children():
                self._look("worker", str(worker.pid))

    def _look(self, name: str, process: str) -> None:
        try:
            lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended
            return
        peaks = self.peaks.setdefault(name, dict.fromkeys(MEMORY_KINDS, 0.0))
        for line in lines:
            kind, _, rest = line.partition(":")
            if kind in peaks:
                peaks[kind] = max(peaks[kind], int(rest.split()[0]) / 1024)


def memory(folder: Path) -> dict[str, dict[str, float]]:
    """Peaks over an epoch in which every case of a prepared folder is drawn.

    One thread is enough: this is no race.
    """
    torch.set_num_threads(1)
    chosen = options(
        features=4, depth=4, rows=192, columns=192, batch_size=12, steps=150, workers=2
    )
    cached = cache(folder, folder.parent / f"cache-{folder.name}", chosen)
    watch = Watch()
    watch.start()
    train(cached, chosen)
    watch.done.set()
    watch.join()
    return watch.peaks


def measured(folder: Path) -> list[str]:
    """Rows of the table; in a process of its own, which has built no cache."""
    chosen = options()
    cached = cache(folder, folder.parent / f"cache-{folder.name}", chosen)
    size = sum(
        file.stat().st_size for case in cached for file in (case.voxels_file, case.labels_file)
    )
    answer = subprocess.run(
        [sys.executable, __file__, "--memory", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [
        f"| {len(cached)} | {size / 1e6:.0f} MB | {name} | "
        + " | ".join(f"{peaks[kind]:.0f} MB" for kind in MEMORY_KINDS)
        + " |"
        for name, peaks in json.loads(answer.stdout).items()
    ]


if __name__ == "__main__":
    main()
