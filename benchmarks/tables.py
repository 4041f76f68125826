"""The figures of `speed.py` as tables in Markdown, beside what they should be.

Each table is a block with a name. A document holds a block between two marks,

    <!-- speed:begin NAME -->
    <!-- speed:end NAME -->

and `put_into` writes what was measured there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

# (slices of 512x512) to the most seconds and GB of a whole process.
WHOLE = {129: (6.0, 1.2), 280: (10.0, 1.5)}
BATCH = 1.15
NETWORK, NETWORK_AVX2 = 100.0, 30.0
START_SECONDS = 0.3
# Of the volume's own bytes, for each further slice; and of the straight line through all times.
FLAT, STRAIGHT = 0.1, 0.1
LONG = 2000
# A CT has two bytes a voxel, what was found in it one.
VOXEL_BYTES = 3
COHORT, SERVER_CORES = 100_000, 32


def blocks(results: Figures) -> dict[str, str]:
    """Every table by its name."""
    return {
        "targets": targets(results),
        "short": short(results),
        "machine": described(results),
        "whole": whole(results),
        "rooms": rooms(results),
        "start": start(results),
        "batch": batch(results),
        "networks": networks(results),
        "levels": levels(results),
        "rates": rates(results),
        "rest": rest(results),
        "instructions": instructions(results),
        "slices": slices(results),
        "cores": cores(results),
        "cohort": cohort(results),
    }


def put_into(text: str, found: Mapping[str, str]) -> str:
    """A document with its blocks replaced; everything else stays, unknown names are an error."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in found:
            raise SystemExit(f"There is no table {name!r}; there are {', '.join(found)}.")
        return f"<!-- speed:begin {name} -->\n{found[name]}\n<!-- speed:end {name} -->"

    return re.sub(
        r"<!-- speed:begin ([\w-]+) -->\n.*?<!-- speed:end \1 -->", block, text, flags=re.DOTALL
    )


# --- how figures are written ------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (head, *rows)]
    lines.insert(1, "|".join("---" for _ in head))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def size_text(shape: Sequence[int]) -> str:
    """(slices, rows, columns) as people write it."""
    return f"{shape[2]}x{shape[1]}x{shape[0]}"


def seconds_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"


def memory_text(peak_mb: float) -> str:
    return f"{peak_mb / 1000:.2f} GB"


def rate_text(rate: float | None) -> str:
    """Operations a second."""
    if rate is None:
        return "refused or too slow"
    return f"{rate / 1e12:.2f} Tflop/s" if rate >= 1e11 else f"{rate / 1e9:.1f} Gflop/s"


def count_text(number: float) -> str:
    """Operations or bytes, in billions."""
    return f"{number / 1e9:.1f} G" if number < 1e12 else f"{number / 1e12:.2f} T"


def times_text(times: float) -> str:
    return f"{times:.0f} times" if times >= 10 else f"{times:.1f} times"


def verdict(reached: bool | None) -> str:
    return {True: "reached", False: "**missed**", None: ""}[reached]


# --- what tables need -------------------------------------------------------------------------


def main_row(results: Figures, how: str = "default") -> Any:
    """Of the CT that was measured in every way."""
    return next(
        row for row in results["whole"] if row["ct"] == results["main_ct"] and row["how"] == how
    )


def network_seconds(row: Figures) -> float:
    """Of the steps in which networks run."""
    return sum(row["rooms"].get(step, 0.0) for step in ("find", "predict"))


def speed_up(results: Figures, name: str, how: str) -> tuple[float, float, float]:
    """The KiTS19 network's seconds for a CT, our networks', and how many times faster they are."""
    row = main_row(results, how)
    old = results["networks"][name]["kits19"]["seconds_a_slice"] * row["shape"][0]
    ours = network_seconds(row)
    return old, ours, old / ours


def further(results: Figures) -> dict[str, float]:
    """What each further CT of a batch takes, and reading with writing, and computing it alone."""
    *_, fewer, more = results["batch"]
    added = more["cts"] - fewer["cts"]
    alone = results["batch"][0]["rooms"]
    files = alone["read"] + alone["write"]
    computing = alone["total"] - files
    seconds = (more["seconds"] - fewer["seconds"]) / added
    return {
        "seconds": seconds,
        "cpu_seconds": (more["cpu_seconds"] - fewer["cpu_seconds"]) / added,
        "files": files,
        "computing": computing,
        "ratio": seconds / max(files, computing),
        "peak_mb": more["peak_mb"],
    }


def counted(results: Figures, name: str = "free") -> dict[str, float]:
    """Operations, bytes and seconds of all networks of the CT together."""
    sums = {"operations": 0.0, "bytes": 0.0, "seconds": 0.0}
    for one in results["networks"][name]["network"]["networks"].values():
        sums["seconds"] += one["seconds"]
        for level in one["levels"].values():
            sums["operations"] += level["operations"]
            sums["bytes"] += level["bytes"]
    return sums


def best(figures: Figures, library: str, precision: str, of: str = "matmul") -> float | None:
    """The best rate of a library's matrix products, or of its convolution."""
    found = [
        rate
        for name, rate in figures[library][precision].items()
        if name.startswith(of) and rate is not None
    ]
    return max(found, default=None)


def best_of_all(results: Figures) -> float:
    """The best rate of any library in the precision in which the networks ran."""
    figures = results["networks"]["free"]
    precision = figures["network"]["precision"]
    return max(
        best(figures["rates"], library, precision, of) or 0.0
        for library in ("torch", "openvino")
        for of in ("matmul", "convolution")
    )


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Least squares: where the line starts, its slope, and the largest deviation, as a share."""
    number = len(points)
    mean_x = sum(x for x, _ in points) / number
    mean_y = sum(y for _, y in points) / number
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    first = mean_y - slope * mean_x
    return first, slope, max(abs(y / (first + slope * x) - 1) for x, y in points)


def beyond(results: Figures) -> list[tuple[int, float, float, float]]:
    """(slices, peak, bytes of the volume and its labels, the rest), in MB."""
    pixels = results["slices"]["pixels"]
    rows = []
    for row in results["slices"]["rows"]:
        own = row["slices"] * pixels * pixels * VOXEL_BYTES / 1e6
        rows.append((row["slices"], row["peak_mb"], own, row["peak_mb"] - own))
    return rows


def growth(results: Figures) -> float:
    """How much the rest of the memory grows, as a share of the volume's growth."""
    first, *_, last = beyond(results)
    return (last[3] - first[3]) / (last[2] - first[2])


# --- tables -----------------------------------------------------------------------------------


def targets(results: Figures) -> str:
    """What was to be reached, beside what was."""
    rows: list[tuple[str, str, str, bool | None]] = []
    for row in results["whole"]:
        if row["how"] == "default":
            rows.append(_whole_target(row, results))
    one = further(results)
    rows.append(
        (
            "each further CT of a batch, beside the slower of its files and its computing",
            f"at most {BATCH:g} times",
            f"{one['ratio']:.2f} times ({seconds_text(one['seconds'])}; files "
            f"{seconds_text(one['files'])}, computing {seconds_text(one['computing'])})",
            one["ratio"] <= BATCH,
        )
    )
    for text, name, how, least in (
        ("as PyTorch runs it in float32", "free", "default", NETWORK),
        ("both held to AVX2", "avx2", "openvino, AVX2", NETWORK_AVX2),
    ):
        old, ours, times = speed_up(results, name, how)
        rows.append(
            (
                f"the networks, beside that of the KiTS19 system slice by slice, {text}",
                f"at least {least:g} times faster",
                f"{times_text(times)} ({seconds_text(ours)}; {seconds_text(old)})",
                times >= least,
            )
        )
    rows.append(_rate_row(results))
    begin = results["start"]
    rows.append(
        (
            "`kidneyseg --help`",
            f"at most {START_SECONDS:g} s",
            seconds_text(begin["help"]),
            begin["help"] <= START_SECONDS,
        )
    )
    loaded = ", ".join(begin["loaded"]) or "none of torch, openvino, monai, scipy"
    rows.append(
        (
            "importing the module in Slicer",
            f"at most {START_SECONDS:g} s, none of torch, openvino, monai, scipy",
            f"{seconds_text(begin['module'])}, loads {loaded}",
            begin["module"] <= START_SECONDS and not begin["loaded"],
        )
    )
    peaks = ", ".join(f"{peak / 1000:.2f} GB" for _, peak, _, _ in beyond(results))
    numbers = ", ".join(f"{slices:,}" for slices, *_ in beyond(results))
    rows.append(
        (
            f"memory of {numbers} slices, beyond the volume and its labels",
            f"grows by at most {FLAT:.0%} of these",
            f"{growth(results):.0%} ({peaks} in all)",
            growth(results) <= FLAT,
        )
    )
    rows.append(_long_row(results))
    lines = table(
        ("work", "to reach", "measured", ""),
        [(work, target, figure, verdict(reached)) for work, target, figure, reached in rows],
    )
    return f"{lines}\n\n{described(results)}"


def short(results: Figures) -> str:
    """The whole process in a line for each CT."""
    about = results["machine"]
    return table(
        (f"measured on {about['cores']} cores of an {about['processor']}, no GPU", ""),
        [
            (
                f"{row['ct']}, from start of the command to files written",
                f"{seconds_text(row['seconds'])}, {memory_text(row['peak_mb'])}",
            )
            for row in results["whole"]
            if row["how"] == "default"
        ],
    )


def _whole_target(row: Figures, results: Figures) -> tuple[str, str, str, bool | None]:
    slices, *sides = row["shape"]
    first = next(
        other
        for other in results["whole"]
        if other["ct"] == row["ct"] and other["how"] == "first run"
    )
    figure = (
        f"{seconds_text(row['seconds'])}, {memory_text(row['peak_mb'])} "
        f"(the first time {seconds_text(first['seconds'])})"
    )
    work = f"`kidneyseg segment`, {row['ct']}"
    if sides != [512, 512] or slices not in WHOLE:
        return work, "", figure, None
    most, memory = WHOLE[slices]
    reached = row["seconds"] <= most and row["peak_mb"] <= memory * 1000
    return work, f"at most {most:g} s, {memory:g} GB", figure, reached


def _rate_row(results: Figures) -> tuple[str, str, str, bool | None]:
    sums = counted(results)
    figures = results["networks"]["free"]
    precision = figures["network"]["precision"]
    others = ", ".join(
        f"{name} {rate_text(best(figures['rates'], library, precision))}"
        for name, library in (("torch", "torch"), ("OpenVINO", "openvino"))
    )
    rate = rate_text(sums["operations"] / sums["seconds"])
    text = f"rate of the networks, beside the best matrix products in {precision}"
    return text, "", f"{rate}; {others}", None


def _long_row(results: Figures) -> tuple[str, str, str, bool | None]:
    rows = results["slices"]["rows"]
    _, _, off = line_through([(row["slices"], row["seconds"]) for row in rows])
    last = rows[-1]
    done = last["slices"] >= LONG
    return (
        f"a CT of {last['slices']:,} slices",
        "time in proportion to slices",
        f"{seconds_text(last['seconds'])}; off a straight line by {off:.0%} at most",
        off <= STRAIGHT if done else None,
    )


def described(results: Figures) -> str:
    """The machine and the circumstances in a paragraph."""
    about = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    clock = f" at {about['clock_hz'] / 1e9:.1f} GHz" if about["clock_hz"] else ""
    memory = f", {about['memory_bytes'] / 1e9:.0f} GB memory" if about["memory_bytes"] else ""
    flags = ", ".join(about["instructions"]) or "unknown"
    loads = [about[name] for name in ("load_before", "load_after")]
    load = "" if None in loads else f" Load before {loads[0]:.1f} and after {loads[1]:.1f}."
    row = main_row(results)
    number = f"{results['runs']} run{'s' * (results['runs'] != 1)}"
    engine = f"{row['backend'] or 'torch'} in {row['precision']}"
    return (
        f"Measured on {results['date']}: {about['processor']}{clock}, {about['cores']} of "
        f"{about['cores_there']} cores used{memory}, {about['system']}; instructions: {flags}; "
        f"{versions}. Networks ran with {engine}. Median of {number}, each a whole "
        f"process; memory is that of its largest process.{load}"
    )


def whole(results: Figures) -> str:
    """`kidneyseg segment` in every way."""
    rows = []
    for row in results["whole"]:
        base = next(
            other
            for other in results["whole"]
            if other["ct"] == row["ct"] and other["how"] == "default"
        )
        rows.append(
            (
                row["ct"],
                row["how"],
                f"{row['backend'] or 'torch'} {row['precision']}",
                seconds_text(row["seconds"]),
                f"{row['seconds'] / base['seconds']:.2f}",
                f"{row['cpu_seconds']:.1f} s",
                memory_text(row["peak_mb"]),
            )
        )
    head = ("CT", "how", "ran with", "seconds", "beside default", "of all cores", "memory")
    return table(head, rows)


def rooms(results: Figures) -> str:
    """Seconds in each room of the walk, for each CT."""
    shown = [row for row in results["whole"] if row["how"] == "default"]
    names = [name for name in shown[0]["rooms"] if name != "total"]
    rows = []
    for name in names:
        rows.append((name, *(seconds_text(row["rooms"].get(name, 0.0)) for row in shown)))
    rows.append(
        (
            "start and end of the process",
            *(seconds_text(row["seconds"] - row["rooms"]["total"]) for row in shown),
        )
    )
    lines = table(("room", *(row["ct"] for row in shown)), rows)
    spent = {name: shown[0]["rooms"][name] for name in names}
    slowest, fastest = max(spent, key=spent.__getitem__), min(spent, key=spent.__getitem__)
    return (
        f"{lines}\n\nThe slowest room of the first CT is *{slowest}* with "
        f"{seconds_text(spent[slowest])}, the fastest *{fastest}* with "
        f"{seconds_text(spent[fastest])}."
    )


def start(results: Figures) -> str:
    """What a process takes before it does anything."""
    begin = results["start"]
    row = main_row(results)
    fixed = row["seconds"] - row["rooms"]["total"]
    return table(
        ("process", "seconds"),
        [
            ("Python alone", seconds_text(begin["interpreter"])),
            ("`kidneyseg --help`", seconds_text(begin["help"])),
            ("import of the module in Slicer, after numpy and SimpleITK",
             seconds_text(begin["module"])),
            ("`kidneyseg segment`, what no room accounts for", seconds_text(fixed)),
        ],
    )  # fmt: skip


def batch(results: Figures) -> str:
    """Time against CTs."""
    one = further(results)
    rows = [
        (
            str(row["cts"]),
            seconds_text(row["seconds"]),
            seconds_text(row["seconds"] / row["cts"]),
            f"{row['cpu_seconds'] / row['cts']:.1f} s",
            memory_text(row["peak_mb"]),
        )
        for row in results["batch"]
    ]
    lines = table(("CTs", "seconds", "a CT", "of all cores, a CT", "memory"), rows)
    return (
        f"{lines}\n\nEach further CT takes {seconds_text(one['seconds'])}. Alone, its files take "
        f"{seconds_text(one['files'])} and computing {seconds_text(one['computing'])}: "
        f"{one['ratio']:.2f} times the slower of the two."
    )


def networks(results: Figures) -> str:
    """What each network is asked for one CT, and the network of the KiTS19 system."""
    figures = results["networks"]["free"]
    found = figures["network"]
    rows = []
    for name, one in found["networks"].items():
        most = max(one["batches"], key=lambda asked: asked["times"] * asked["shape"][0])
        rows.append(_network_row(name, one["levels"], one["slices"], most["shape"], one["seconds"]))
    sums = counted(results)
    ours = sums["operations"] / sums["seconds"]
    rows.append(
        (
            "all of these", "", "", "", count_text(sums["operations"]),
            f"{sums['bytes'] / 1e9:.2f} GB", seconds_text(sums["seconds"]), rate_text(ours),
        )
    )  # fmt: skip
    old = figures["kits19"]
    slices, seconds = found["shape"][0], old["seconds_a_slice"] * found["shape"][0]
    many = {
        level: {kind: slices * value for kind, value in kinds.items()}
        for level, kinds in old["levels"].items()
    }
    rows.append(_network_row("KiTS19 system", many, slices, old["shape"], seconds))
    operations = sum(kinds["operations"] for kinds in many.values())
    head = (
        "network", "slices", "most frequent batch", "operations a slice", "operations", "bytes",
        "seconds", "rate",
    )  # fmt: skip
    return (
        f"For {results['main_ct']}, in {found['precision']}; the KiTS19 system's network in "
        f"float32.\n\n{table(head, rows)}\n\nThat network needs "
        f"{times_text(operations / sums['operations'])} the operations of all of ours, and ours "
        f"run at {times_text(ours * seconds / operations)} its rate."
    )


def _network_row(
    name: str, levels: Figures, slices: int, shape: Sequence[int], seconds: float
) -> tuple[str, ...]:
    operations = sum(kinds["operations"] for kinds in levels.values())
    moved = sum(kinds["bytes"] for kinds in levels.values())
    return (
        name,
        str(slices),
        "x".join(str(length) for length in shape),
        f"{operations / slices / 1e9:.1f} G",
        count_text(operations),
        f"{moved / 1e9:.2f} GB",
        seconds_text(seconds),
        rate_text(operations / seconds),
    )


def levels(results: Figures) -> str:
    """Operations and bytes by level, of all networks together."""
    sums: dict[str, dict[str, float]] = {}
    for one in results["networks"]["free"]["network"]["networks"].values():
        for level, kinds in one["levels"].items():
            kept = sums.setdefault(level, {"operations": 0.0, "bytes": 0.0})
            for kind, value in kinds.items():
                kept[kind] += value
    all_ = counted(results)
    rows = [
        (
            level,
            count_text(kinds["operations"]),
            f"{kinds['operations'] / all_['operations']:.0%}",
            f"{kinds['bytes'] / 1e9:.2f} GB",
            f"{kinds['bytes'] / all_['bytes']:.0%}",
            f"{kinds['operations'] / kinds['bytes']:.0f}",
        )
        for level, kinds in sorted(sums.items(), key=lambda item: int(item[0]))
    ]
    return table(("level", "operations", "share", "bytes", "share", "operations a byte"), rows)


def rates(results: Figures) -> str:
    """The networks' rate beside what this machine can do."""
    figures = results["networks"]["free"]
    held = results["networks"]["avx2"]
    rows = []
    for library, name in (("torch", "torch"), ("openvino", "OpenVINO")):
        for precision in ("float32", "bfloat16"):
            for of, text in (("matmul", "matrix product"), ("convolution", "convolution")):
                rows.append(
                    (
                        f"{name}, {text}, {precision}",
                        rate_text(best(figures["rates"], library, precision, of)),
                        rate_text(best(held["rates"], library, precision, of)),
                    )
                )
    for text, precision in (("float32", "float32"), ("bfloat16", "bfloat16")):
        if precision in results["theory"]:
            rows.append(
                (f"the processor on paper, {text}", rate_text(results["theory"][precision]), "")
            )
    ours, copies = [], []
    for name, one in (("free", figures), ("avx2", held)):
        sums = counted(results, name)
        rate = rate_text(sums["operations"] / sums["seconds"])
        ours.append(f"{rate} ({one['network']['precision']})")
        copies.append(f"{one['rates']['bytes_a_second'] / 1e9:.1f} GB/s")
    rows.append(("**our networks**", ours[0], ours[1]))
    rows.append(("memory, read and written by a copy", copies[0], copies[1]))
    return table(("", "all instructions", "held to AVX2"), rows)


def rest(results: Figures) -> str:
    """From the operations at the best rate to the whole process."""
    row = main_row(results)
    found = results["networks"]["free"]["network"]
    sums = counted(results)
    rate = best_of_all(results)
    ideal = sums["operations"] / rate
    copied = results["networks"]["free"]["rates"]["bytes_a_second"]
    parts = [
        (f"the operations at {rate_text(rate)}, the best rate measured here", ideal),
        ("the networks beyond that", sums["seconds"] - ideal),
        ("around the networks: resampling, cutting, joining", found["seconds"] - sums["seconds"]),
    ]
    inside = ("prepare", "find", "predict", "total")
    for name, value in row["rooms"].items():
        if name not in inside:
            parts.append((name, value))
    parts.append(("start and end of the process", row["seconds"] - row["rooms"]["total"]))
    lines = table(
        ("where the time goes", "seconds", "of the whole"),
        [
            (text, seconds_text(value), f"{value / row['seconds']:.0%}")
            for text, value in [*parts, ("the whole process", row["seconds"])]
        ],
    )
    lower = sums["bytes"] / copied
    paper = results["theory"].get(found["precision"])
    best_case = (
        f" On paper the processor could do their operations in "
        f"{seconds_text(sums['operations'] / paper)}."
        if paper
        else ""
    )
    return (
        f"{lines}\n\nThe networks reach {sums['operations'] / sums['seconds'] / rate:.0%} of the "
        f"best rate measured here.{best_case} Moving their {sums['bytes'] / 1e9:.1f} GB through "
        f"the memory, which the caches spare in part, would take {seconds_text(lower)}. The "
        "networks were timed inside one process, the rest from start to end, so that the parts "
        "add up to the whole only nearly."
    )


def instructions(results: Figures) -> str:
    """Whether the libraries obey."""
    free, held = (results["networks"][name]["instructions"] for name in ("free", "avx2"))
    names = sorted({*free, *held})
    return table(
        ("computes with", "all instructions", "held to AVX2"),
        [(name, free.get(name, ""), held.get(name, "")) for name in names],
    )


def slices(results: Figures) -> str:
    """Time and memory against slices."""
    measured = results["slices"]["rows"]
    first, slope, off = line_through([(row["slices"], row["seconds"]) for row in measured])
    rows = []
    for row, (_, _, own, more) in zip(measured, beyond(results), strict=True):
        straight = first + slope * row["slices"]
        rows.append(
            (
                f"{row['slices']:,}",
                seconds_text(row["seconds"]),
                seconds_text(straight),
                f"{row['seconds'] / straight:.2f}",
                memory_text(row["peak_mb"]),
                memory_text(own),
                memory_text(more),
            )
        )
    pixels = results["slices"]["pixels"]
    head = (
        f"slices of {pixels}x{pixels}", "seconds", "straight line", "ratio", "memory",
        "volume and labels", "beyond",
    )  # fmt: skip
    return (
        f"{table(head, rows)}\n\nThe line: {first:.2f} s, and {1000 * slope:.1f} ms a slice; no "
        f"figure lies further from it than {off:.0%}. Beyond the volume and its labels the memory "
        f"grows by {growth(results):.0%} of these."
    )


def cores(results: Figures) -> str:
    """Time against cores."""
    all_ = results["machine"]["cores"]
    found = {all_: main_row(results)}
    for row in results["whole"]:
        number = row["how"].partition(" core")[0]
        if number.isdigit():
            found[int(number)] = row
    one = found[min(found)]
    rows = [
        (
            str(number),
            seconds_text(row["seconds"]),
            f"{one['seconds'] / row['seconds']:.2f}",
            seconds_text(network_seconds(row)),
            f"{network_seconds(one) / network_seconds(row):.2f}",
        )
        for number, row in sorted(found.items())
    ]
    return table(("cores", "seconds", "times faster", "find and predict", "times faster"), rows)


def cohort(results: Figures) -> str:
    """What many CTs like the measured one cost."""
    one = further(results)
    row = main_row(results)
    about = results["machine"]
    days = COHORT * one["seconds"] / 86400
    side_by_side = max(1, SERVER_CORES // about["cores"])
    cts = results["batch"][-1]
    rows = [
        (f"days on this machine, {about['cores']} cores", f"{days:.1f}"),
        (f"days on a server of {SERVER_CORES} such cores, {side_by_side} processes side by side",
         f"{days / side_by_side:.2f}"),
        ("hours of all cores", f"{COHORT * one['cpu_seconds'] / 3600:,.0f}"),
        ("memory of a process", memory_text(one["peak_mb"])),
        (f"memory of {side_by_side} processes", memory_text(side_by_side * one["peak_mb"])),
        ("read from the disk", f"{COHORT * row['read_bytes'] / 1e12:.2f} TB"),
        ("written to the disk",
         f"{COHORT * cts['written_bytes'] / cts['cts'] / 1e9:.1f} GB"),
    ]  # fmt: skip
    lines = table((f"{COHORT:,} CTs like {results['main_ct']}", ""), rows)
    return (
        f"{lines}\n\nOf each CT {seconds_text(one['seconds'])} in a batch. The server is on paper: "
        "its cores as fast as these, disks and memory as fast for each of its processes as here "
        "for one."
    )
