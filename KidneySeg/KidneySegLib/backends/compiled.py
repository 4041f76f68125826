"""Compiled networks, kept in the user's cache folder so that the next run need not compile.

A file holds the SHA-256 of what follows it: what is broken, whatever broke it, is not there.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_SUFFIX = ".compiled"
_DIGEST_BYTES = hashlib.sha256().digest_size
# Each model has up to four networks, and a user a few models in two precisions.
_KEPT = 32


def folder() -> Path:
    """Where they lie; ``KIDNEYSEG_CACHE`` names another folder."""
    named = os.environ.get("KIDNEYSEG_CACHE")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "KidneySeg"


def load(key: str) -> bytes | None:
    """What was stored under a key, whole, or None."""
    try:
        held = (folder() / f"{key}{_SUFFIX}").read_bytes()
    except OSError:
        return None
    digest, content = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def store(key: str, content: bytes) -> None:
    """Keep something; where that cannot be, the next run compiles again, and nothing is said."""
    place = folder()
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{key}-", dir=place)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            Path(name).replace(place / f"{key}{_SUFFIX}")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        kept = sorted(place.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-_KEPT]:
            path.unlink(missing_ok=True)
