"""How fast KidneySeg is here, beside what it should be: one command, tables as Markdown and JSON.

    python benchmarks/speed.py [--ct CT] [--long] [--update]

Every figure of `kidneyseg` is that of whole processes, as a user starts them, the median of several
runs. CTs are generated and kept in the work folder; none is written beside a CT that is given.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import machine
import tables
from processes import Run, cores_here, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")

# Hold the libraries to what a processor without AVX-512 and AMX has; `kernels.py instructions`
# tells whether they obey.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions of OpenVINO and torch
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # matrix products of torch
    "ATEN_CPU_CAPABILITY": "avx2",  # everything else of torch
}
VARIANTS = (
    ("openvino", "bfloat16"),
    ("openvino", "float32"),
    ("torch", "bfloat16"),
    ("torch", "float32"),
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        pixels: rows and columns of generated CTs.
        generated: slices of those whose time has a target; others are made from the last.
        series: slices of those that show how time and memory grow.
        batches: CTs in a batch.
        runs: of each command; the median counts.
        compiled: a run before them, which does not count, compiles what is then kept.
        variants: engines and precisions that the first CT is segmented with.
        held: engines that do so with the instructions of AVX2.
        fewer_cores: it is also segmented with fewer cores than there are.
        kits19, rates: options of `kernels.py` for these.
    """

    pixels: int = 512
    generated: tuple[int, ...] = (129, 280)
    series: tuple[int, ...] = (100, 400, 1000)
    batches: tuple[int, ...] = (1, 3, 9)
    runs: int = 3
    compiled: bool = True
    variants: tuple[tuple[str, str], ...] = VARIANTS
    held: tuple[str, ...] = ("openvino", "torch")
    fewer_cores: bool = True
    kits19: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()


QUICK = Sizes(
    pixels=64,
    generated=(32,),
    series=(24, 40),
    batches=(1, 2),
    runs=1,
    compiled=False,
    variants=(),
    held=("openvino",),
    fewer_cores=False,
    kits19=("--slices", "1", "--features", "4", "--pixels", "64"),
    rates=("--sizes", "64", "--enough", "0.01"),
)


@dataclass
class Bench:
    """Runs commands, and keeps what they took.

    Attributes:
        work: folder for generated CTs and results.
        warm: folder of compiled networks that is kept.
        results: everything that was measured, JSON-ready.
        compiled: ways of running for which networks have been compiled.
    """

    sizes: Sizes
    work: Path
    model: str | None = None
    results: dict[str, Any] = field(default_factory=dict)
    compiled: set[str] = field(default_factory=set)

    @property
    def warm(self) -> Path:
        return self.work / "compiled"

    @property
    def _model(self) -> tuple[str, ...]:
        return ("--model", self.model) if self.model else ()

    def tell(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    # --- CTs ----------------------------------------------------------------------------------

    def case(self, slices: int) -> Path:
        """A case folder with a generated CT."""
        size = f"{self.sizes.pixels}x{self.sizes.pixels}x{slices}"
        folder = self.work / f"generated-{size}"
        if not folder.is_dir():
            self.tell(f"generating a CT of {size}")
            run([*kidneyseg(), "phantom", folder, "--cases", "1", "--seed", "1", "--size", size])
        return folder / "case_00000"

    def generated(self, slices: int) -> Path:
        """The CT of a case."""
        return self.case(slices) / "imaging.nii.gz"

    def lengthened(self, slices: int) -> Path:
        """The largest generated CT with more or fewer slices of the same patient."""
        file = self.work / f"lengthened-{self.sizes.pixels}-{slices}.nii.gz"
        if not file.is_file():
            self.tell(f"making a CT of {slices} slices")
            case = self.case(self.sizes.generated[-1])
            run([sys.executable, HERE / "volumes.py", case, str(slices), file])
        return file

    def copies(self, ct: Path, number: int) -> list[Path]:
        """Links to a CT under other names; a case folder is linked whole."""
        folder = self.work / "copies"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        suffix = "" if ct.is_dir() else "".join(ct.suffixes[-2:])
        links = [folder / f"copy_{index}{suffix}" for index in range(number)]
        for link in links:
            link.symlink_to(ct.resolve(), target_is_directory=ct.is_dir())
        return links

    # --- commands -----------------------------------------------------------------------------

    def segment(
        self,
        inputs: Sequence[Path],
        *options: str,
        cold: bool = False,
        environment: dict[str, str] | None = None,
        cores: int | None = None,
    ) -> dict[str, Any]:
        """One process of `kidneyseg segment`.

        Args:
            cold: no network has been compiled before.
        """
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            folder = Path(name)
            output = folder / ("kidneys" if len(inputs) > 1 else "kidneys.nii.gz")
            report = folder / "report.json"
            command: list[str | Path] = [*kidneyseg(), "segment", *inputs]
            command += ["--output", output, "--report", report, *self._model, *options]
            ended = run(
                command,
                {
                    "KIDNEYSEG_CACHE": str(folder / "compiled" if cold else self.warm),
                    **(environment or {}),
                },
                cores,
            )
            facts = json.loads(report.read_text(encoding="utf-8"))
            written = sum(file.stat().st_size for file in folder.glob("kidneys*/*"))
            written += output.stat().st_size if output.is_file() else 0
        return {
            **_figures(ended),
            "reports": facts.get("cases", [facts]),
            "written_bytes": written,
        }

    def median(self, *inputs: Path, runs: int | None = None, **options: Any) -> dict[str, Any]:
        """Medians of several runs of `segment`, once the networks have been compiled.

        Args:
            options: as for `segment`; ``flags`` are those of the command.
        """
        flags = options.pop("flags", ())
        way = json.dumps([flags, options], sort_keys=True)
        if self.sizes.compiled and not options.get("cold") and way not in self.compiled:
            self.segment(inputs, *flags, **options)
            self.compiled.add(way)
        done = [self.segment(inputs, *flags, **options) for _ in range(runs or self.sizes.runs)]
        return together(done)

    def kernel(self, *part: str | Path, environment: dict[str, str] | None = None) -> Run:
        return run(
            [sys.executable, HERE / "kernels.py", *part],
            {"KIDNEYSEG_CACHE": str(self.warm), **(environment or {})},
        )

    # --- parts of the table -------------------------------------------------------------------

    def start(self) -> None:
        """The process itself, before it does anything."""
        self.tell("start")
        figures = {}
        for name, command in (
            ("interpreter", [sys.executable, "-c", "pass"]),
            ("help", [*kidneyseg(), "--help"]),
        ):
            ended = [run(command) for _ in range(2 * self.sizes.runs + 1)]
            figures[name] = median(one.seconds for one in ended)
        found = [answer_of(self.kernel("imports")) for _ in range(self.sizes.runs)]
        figures["module"] = median(one["seconds"] for one in found)
        self.results["start"] = {**figures, "loaded": found[0]["loaded"]}

    def whole(self, cts: Sequence[tuple[str, Path]], main: Path) -> None:
        """`kidneyseg segment` as a whole process."""
        rows = []

        def add(name: str, ct: Path, how: str, **options: Any) -> None:
            self.tell(f"{name}, {how}")
            slices, rows_, columns = shape_of(self, ct)
            taken = self.median(ct, **options)
            rows.append(
                {
                    "ct": name,
                    "how": how,
                    "shape": [slices, rows_, columns],
                    "read_bytes": bytes_of(ct),
                    **taken,
                }
            )

        for name, ct in cts:
            add(name, ct, "first run", cold=True)
            add(name, ct, "default")
        name = next(name for name, ct in cts if ct == main)
        for backend, precision in self.sizes.variants:
            flags = ("--backend", backend, "--precision", precision)
            add(name, main, f"{backend} {precision}", flags=flags)
        for backend in self.sizes.held:
            held = ("--backend", backend)
            add(name, main, f"{backend}, AVX2", flags=held, environment=AVX2)
        for cores in range(1, cores_here() if self.sizes.fewer_cores else 1):
            add(name, main, cores_text(cores), cores=cores)
        self.results["whole"] = rows
        self.results["main_ct"] = name

    def batch(self, ct: Path) -> None:
        """Copies of a CT in one process."""
        rows = []
        for number in self.sizes.batches:
            self.tell(f"a batch of {number}")
            taken = self.median(*self.copies(ct, number))
            rows.append({"cts": number, **taken})
        self.results["batch"] = rows

    def slices(self) -> None:
        """The same patient with more and more slices."""
        rows = []
        for number in self.sizes.series:
            ct = self.lengthened(number)
            self.tell(f"{number} slices")
            runs = 1 if number > 1000 else None
            rows.append({"slices": number, **self.median(ct, runs=runs)})
        self.results["slices"] = {"pixels": self.sizes.pixels, "rows": rows}

    def networks(self, ct: Path) -> None:
        """What is computed, how fast, and how fast it could be."""
        model = self._model
        found = {}
        for name, environment in (("free", None), ("avx2", AVX2)):
            self.tell(f"rates and networks, {name}")
            verbose = {"ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
            said = self.kernel("instructions", environment={**(environment or {}), **verbose})
            found[name] = {
                "instructions": instructions_of(said),
                "rates": answer_of(
                    self.kernel("rates", *self.sizes.rates, environment=environment)
                ),
                "kits19": answer_of(
                    self.kernel("kits19", *self.sizes.kits19, environment=environment)
                ),
                "network": answer_of(self.kernel("networks", ct, *model, environment=environment)),
            }
        self.results["networks"] = found


def kidneyseg() -> list[str]:
    """The command, of this environment."""
    return [str(Path(sys.executable).parent / "kidneyseg")]


def _figures(ended: Run) -> dict[str, float]:
    return {
        "seconds": ended.seconds,
        "cpu_seconds": ended.cpu_seconds,
        "peak_mb": ended.peak_mb,
    }


def together(done: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of one command as one: medians, and the rooms of the median run."""
    middle = sorted(done, key=lambda one: one["seconds"])[(len(done) - 1) // 2]
    figures = {
        name: median(one[name] for one in done) for name in ("seconds", "cpu_seconds", "peak_mb")
    }
    first = middle["reports"][0]
    rooms = {
        room: median(report["seconds"][room] for one in done for report in one["reports"])
        for room in first["seconds"]
    }
    return {
        **figures,
        "all_seconds": [one["seconds"] for one in done],
        "rooms": rooms,
        "written_bytes": middle["written_bytes"],
        "precision": first["precision"],
        "backend": first.get("backend"),
        "notes": first["notes"],
    }


def answer_of(ended: Run) -> Any:
    """What `kernels.py` printed last."""
    return json.loads(ended.lines[-1])


def instructions_of(ended: Run) -> dict[str, str]:
    """What each library said that it computes with."""
    found = {}
    for line in ended.lines:
        name, _, rest = line.partition(": ")
        if name == "ATen":
            found["torch, other operations"] = rest
        elif line.startswith("MKL_VERBOSE oneMKL"):
            named = re.findall(r"\(Intel\(R\) ([\w-]+)\)", line)
            found["torch, matrix product"] = ", ".join(named) or line
        elif ",exec,cpu,convolution," in line:
            found.setdefault("torch, convolution", line.split(",")[6])
    return {**found, **{name: value or "unknown" for name, value in answer_of(ended).items()}}


def cores_text(number: int) -> str:
    return f"{number} core{'s' * (number != 1)}"


def bytes_of(ct: Path) -> int:
    files = [ct] if ct.is_file() else [file for file in ct.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def shape_of(bench: Bench, ct: Path) -> list[int]:
    """(slices, rows, columns) of a CT, in axial order."""
    code = (
        "import json, sys\n"
        "from KidneySegLib.geometry import to_axial\n"
        "from KidneySegLib.reading import read_ct\n"
        "print(json.dumps(to_axial(read_ct(sys.argv[1]).image)[0].shape))\n"
    )
    known = bench.results.setdefault("shapes", {})
    if str(ct) not in known:
        known[str(ct)] = json.loads(run([sys.executable, "-c", code, ct]).lines[-1])
    shape: list[int] = known[str(ct)]
    return shape


def measure(sizes: Sizes, work: Path, ct: Path | None, model: str | None) -> dict[str, Any]:
    """Everything, JSON-ready."""
    bench = Bench(sizes, work, model)
    cts = [] if ct is None else [("a patient's CT", ct)]
    cts += [("generated CT", bench.generated(slices)) for slices in sizes.generated]
    main = cts[0][1]
    named = [(f"{name} of {tables.size_text(shape_of(bench, file))}", file) for name, file in cts]
    before = machine.load()
    parts: list[Callable[[], None]] = [
        bench.start,
        lambda: bench.whole(named, main),
        lambda: bench.networks(main),
        lambda: bench.batch(main),
        bench.slices,
    ]
    for part in parts:
        part()
    del bench.results["shapes"]
    return {
        "date": date.today().isoformat(),
        "machine": {**machine.describe(), "load_before": before, "load_after": machine.load()},
        "theory": machine.theory(machine.describe()),
        "runs": sizes.runs,
        **bench.results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ct", type=Path, help="a CT of yours: file, DICOM or case folder")
    parser.add_argument("--model", help="of `kidneyseg models`, or a folder")
    parser.add_argument("--runs", type=int, help="of each command; the median counts (default 3)")
    parser.add_argument("--long", action="store_true", help="also 2,000 slices; 2 GB on the disk")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works at all")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "kidneyseg-speed",
        help="folder for generated CTs, kept (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="Markdown (default: standard output)")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    parser.add_argument(
        "--results", type=Path, help="measure nothing; take the figures that --json wrote"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="put the tables into README.md and docs/performance.md",
    )
    asked = parser.parse_args()
    if asked.results:
        results = json.loads(asked.results.read_text(encoding="utf-8"))
    else:
        sizes = QUICK if asked.quick else Sizes()
        changed: dict[str, Any] = {}
        if asked.runs:
            changed["runs"] = asked.runs
        if asked.long:
            changed["series"] = (*sizes.series, 2 * sizes.series[-1])
        sizes = Sizes(**{**sizes.__dict__, **changed})
        asked.work.mkdir(parents=True, exist_ok=True)
        results = measure(sizes, asked.work, asked.ct, asked.model)
    if asked.json:
        text = json.dumps(results, indent=1) + "\n"
        asked.json.write_text(text, encoding="utf-8")
    blocks = tables.blocks(results)
    text = "\n\n".join(f"## {name}\n\n{block}" for name, block in blocks.items()) + "\n"
    if asked.output:
        asked.output.write_text(text, encoding="utf-8")
    elif not asked.update:
        print(text, end="")
    if asked.update:
        for document in DOCUMENTS:
            before = document.read_text(encoding="utf-8")
            document.write_text(tables.put_into(before, blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
