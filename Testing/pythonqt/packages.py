"""`slicer.packaging`: says what is installed here, installs nothing, and records what it would."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import slicer
from packaging.requirements import Requirement


class Packages:
    """What the test decides, and what was asked for.

    Attributes:
        missing: names that are not installed until something installs them.
        fails: whether an installation ends with an error.
        installed: requirements in the order of their installation, one text each.
        calls: the keyword arguments of each `pip_ensure`.
    """

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.fails = False
        self.installed: list[str] = []
        self.calls: list[dict[str, Any]] = []

    def load_requirements(self, path: str | Path) -> list[Requirement]:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
        return [Requirement(line) for line in lines if line and line[0] not in "#-"]

    def pip_check(self, req: Any) -> bool:
        return all(self._has(one) for one in _requirements(req))

    def _has(self, requirement: Requirement) -> bool:
        if requirement.marker is not None and not requirement.marker.evaluate():
            return True
        if requirement.name in self.missing:
            return False
        try:
            return version(requirement.name) in requirement.specifier
        except PackageNotFoundError:
            return False

    def pip_ensure(
        self,
        requirements: Any,
        constraints: Any = None,
        skip_packages: list[str] | None = None,
        prompt_install: bool = True,
        prompt_restart: bool = True,
        requester: str | None = None,
        skip_in_testing: bool = True,
        show_progress: bool = True,
    ) -> None:
        self.calls.append(
            {
                "prompt_install": prompt_install,
                "prompt_restart": prompt_restart,
                "requester": requester,
                "skip_in_testing": skip_in_testing,
                "show_progress": show_progress,
            }
        )
        missing = [one for one in _requirements(requirements) if not self._has(one)]
        if not missing or (skip_in_testing and slicer.app.testingEnabled()):
            return
        if prompt_install:
            message = f"{len(missing)} Python packages need to be installed."
            details = "\n".join(str(one) for one in missing)
            title = f"{requester} - Install Python Packages"
            if not slicer.util.confirmOkCancelDisplay(message, title, detailedText=details):
                raise RuntimeError("User declined package installation")
        self.pip_install([str(one) for one in missing])

    def pip_install(self, requirements: Any, **options: Any) -> None:
        wanted = _requirements(requirements)
        if self.fails:
            raise subprocess.CalledProcessError(1, ["PythonSlicer", "-m", "pip", "install"])
        for one in wanted:
            self.installed.append(str(one))
            self.missing.discard(one.name)


def _requirements(given: Any) -> list[Requirement]:
    if isinstance(given, Requirement):
        return [given]
    parts = given.split() if isinstance(given, str) else given
    return [part if isinstance(part, Requirement) else Requirement(part) for part in parts]
