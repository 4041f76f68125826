"""What this machine is, as far as its speed depends on it."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from processes import cores_here

PACKAGES = ("numpy", "SimpleITK", "torch", "openvino")
# Sets of instructions that multiply matrices or vectors, from the oldest.
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
# Operations that a core of Intel's servers can start in a clock cycle by its widest instructions:
# two units of multiply-add on vectors (AVX2: 8 figures of float32, AVX-512: 16), one on tiles of
# AMX (16 x 16 results, each of 32 products of bfloat16, in 16 cycles).
PER_CYCLE = {
    "float32": (("avx512f", 2 * 2 * 16), ("avx2", 2 * 2 * 8)),
    "bfloat16": (("amx_bf16", 2 * 16 * 16 * 32 // 16),),
}


def describe() -> dict[str, Any]:
    """Processor, cores, memory (bytes), system, versions and sets of instructions, JSON-ready."""
    facts = _text("/proc/cpuinfo")
    have = set(_entry(facts, "flags").split())
    clock = _entry(facts, "cpu MHz")
    memory = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo"))
    return {
        "processor": _entry(facts, "model name") or platform.processor() or platform.machine(),
        "clock_hz": float(clock) * 1e6 if clock else None,
        "cores": cores_here(),
        "cores_there": os.cpu_count(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "versions": {"Python": platform.python_version(), **_versions()},
        "instructions": [flag for flag in FLAGS if flag in have],
    }


def theory(machine: dict[str, Any]) -> dict[str, float]:
    """Operations a second that its cores could start at the clock that the system names.

    Returns:
        For ``float32`` and ``bfloat16``, where the processor has instructions for it.
    """
    if not machine["clock_hz"]:
        return {}
    rates = {}
    for precision, sets in PER_CYCLE.items():
        best = next((each for flag, each in sets if flag in machine["instructions"]), None)
        if best is not None:
            rates[precision] = best * machine["clock_hz"] * machine["cores"]
    return rates


def load() -> float | None:
    """Processes that wanted a core in the last minute, on average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _entry(facts: str, name: str) -> str:
    found = re.search(rf"^{re.escape(name)}\s*: (.*)$", facts, re.MULTILINE)
    return found[1].strip() if found else ""
