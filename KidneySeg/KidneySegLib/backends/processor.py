"""What the processor of this machine is good at; asks no engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# What oneDNN, which computes for torch and OpenVINO, may be held to; none of these has bfloat16.
_WITHOUT_BFLOAT16 = {
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
}


def flags() -> frozenset[str]:
    """The processor's instruction sets as Linux names them; none where there is no Linux."""
    if not sys.platform.startswith("linux"):
        return frozenset()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(values.split())
    return frozenset()


def held_to() -> str:
    """The instruction set that a user holds the engines to, in capitals; empty for none."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


def has_bfloat16() -> bool:
    """Whether bfloat16 is multiplied in hardware, and the engines may do so."""
    return held_to() not in _WITHOUT_BFLOAT16 and bool({"avx512_bf16", "amx_bf16"} & flags())
