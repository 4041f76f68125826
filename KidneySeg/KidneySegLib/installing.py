"""What the engine needs that 3D Slicer lacks, and how it gets there: asked once, least first.

PyTorch is large and only a GPU needs it: on the processor OpenVINO computes.

How something is installed is left to an `Installer`; nothing else here needs Slicer or a network.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from KidneySegLib.errors import Cancelled, KidneySegError

# Not among the requirements: pip would fetch the largest build of it.
TORCH = "torch"
TORCH_VERSION = ">=2.2"
REQUIREMENTS = Path(__file__).resolve().parent.parent / "Resources" / "requirements.txt"


class Installer(Protocol):
    """What 3D Slicer does for `ensure`."""

    def has(self, requirement: str) -> bool:
        """Whether this is installed, and new enough."""
        ...

    def can_install_torch(self) -> bool:
        """Whether the extension that installs PyTorch is there."""
        ...

    def ask(self, question: str, details: str) -> bool:
        """Ask the user; False where the answer is no, or there is nobody to ask."""
        ...

    def install(self, requirements: Sequence[str]) -> None:
        """Install packages with pip."""
        ...

    def install_torch(self, version: str) -> None:
        """Install the PyTorch that suits this machine, of a version such as ``>=2.2``."""
        ...


class SlicerInstaller:
    """The `Installer` inside 3D Slicer.

    It asks nothing where nobody can answer: in a batch, and in testing mode, where Slicer takes
    every answer for a yes.
    """

    def has(self, requirement: str) -> bool:
        try:
            import slicer.packaging
        except ImportError as error:
            raise KidneySegError(
                "This 3D Slicer is too old for KidneySeg; install 3D Slicer 5.12 or later."
            ) from error
        return bool(slicer.packaging.pip_check(requirement))

    def can_install_torch(self) -> bool:
        return importlib.util.find_spec("PyTorchUtils") is not None

    def ask(self, question: str, details: str) -> bool:
        import slicer

        if slicer.app.testingEnabled() or slicer.util.mainWindow() is None:
            return False
        return bool(
            slicer.util.confirmOkCancelDisplay(
                question, windowTitle="KidneySeg", detailedText=details
            )
        )

    def install(self, requirements: Sequence[str]) -> None:
        import slicer.packaging

        in_window = slicer.util.mainWindow() is not None
        slicer.packaging.pip_ensure(
            list(requirements),
            prompt_install=False,
            prompt_restart=in_window,
            requester="KidneySeg",
            skip_in_testing=False,
            show_progress=in_window,
        )

    def install_torch(self, version: str) -> None:
        extension = importlib.import_module("PyTorchUtils")
        extension.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=version
        )


def read_requirements(path: Path | str) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = (line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def needs_torch(device: str) -> bool:
    """Whether a device cannot do without PyTorch; ``auto`` can, and uses it where it is there."""
    return device.partition(":")[0] in ("cuda", "mps")


def missing(installer: Installer, requirements: Sequence[str], device: str = "auto") -> list[str]:
    """Which of the requirements are missing, PyTorch last if at all; asks no network."""
    torch = [TORCH + TORCH_VERSION] if needs_torch(device) else []
    return [one for one in (*requirements, *torch) if not installer.has(one)]


def ensure(
    installer: Installer,
    requirements: Sequence[str] | None = None,
    *,
    ask: bool = True,
    device: str = "auto",
) -> bool:
    """Install what is missing, after asking once.

    The small packages come first: where a firewall stops them, nobody has waited for PyTorch.

    Args:
        requirements: all that is needed beside PyTorch; None for those of `REQUIREMENTS`.
        ask: False installs without asking, for scripts whose user has agreed.
        device: what will compute; PyTorch is installed only for a GPU.

    Returns:
        Whether anything was installed. With everything there, nothing is asked and no network used.

    Raises:
        Cancelled: the answer was no; nothing was installed.
        KidneySegError: what could not be installed, and how to do it by hand.
    """
    needed = missing(
        installer,
        read_requirements(REQUIREMENTS) if requirements is None else requirements,
        device,
    )
    if not needed:
        return False
    torch = TORCH + TORCH_VERSION in needed
    packages = [one for one in needed if one != TORCH + TORCH_VERSION]
    if torch and not installer.can_install_torch():
        raise KidneySegError(
            f"PyTorch {TORCH_VERSION} is needed and the extension PyTorch, which installs it, is "
            "not there; install that extension in the Extensions Manager and restart 3D Slicer, or "
            "choose another device."
        )
    if ask and not installer.ask(_question(packages, torch), "\n".join(needed)):
        raise Cancelled(
            "Nothing was installed, and without it nothing can be segmented; by hand it is done so "
            f"in the Python console: {by_hand(needed)}."
        )
    if packages:
        _attempt(lambda: installer.install(packages), installer, packages)
    if torch:
        _attempt(lambda: installer.install_torch(TORCH_VERSION), installer, [TORCH + TORCH_VERSION])
    return True


def by_hand(requirements: Sequence[str]) -> str:
    """What to type into Slicer's Python console to install these."""
    commands = []
    packages = [one for one in requirements if one != TORCH + TORCH_VERSION]
    if packages:
        commands.append(f"slicer.packaging.pip_install({packages!r})")
    if TORCH + TORCH_VERSION in requirements:
        commands.append(
            "import PyTorchUtils; PyTorchUtils.PyTorchUtilsLogic().installTorch("
            f"torchVersionRequirement={TORCH_VERSION!r})"
        )
    return "; ".join(commands)


def _question(packages: Sequence[str], torch: bool) -> str:
    small = _("a few Python packages (80 MB)")
    large = _("PyTorch (200 MB, with a graphics card up to 3 GB)")
    if packages and torch:
        what = _("{small} and {large}").format(small=small, large=large)
    else:
        what = small if packages else large
    return _(
        "KidneySeg needs {packages}. They are downloaded once, into 3D Slicer's own Python; your "
        "images stay on this computer. Install them now?"
    ).format(packages=what)


def _(text: str) -> str:
    """A text in the language of Slicer, where there is one."""
    try:
        from slicer.i18n import translate
    except ImportError:
        return text
    return str(translate("KidneySegLib.installing", text))


def _attempt(
    install: Callable[[], None], installer: Installer, requirements: Sequence[str]
) -> None:
    """Install, and make sure that it is there."""
    reason = ""
    try:
        install()
    except (subprocess.CalledProcessError, OSError, RuntimeError, ImportError, ValueError) as error:
        # What pip, its wrappers and the import that follows an installation raise.
        reason = f" ({' '.join(str(error).split())})"
    left = [one for one in requirements if not installer.has(one)]
    if left:
        raise KidneySegError(
            f"{', '.join(left)} could not be installed{reason}; check the connection to the "
            f"internet, or install by hand in the Python console: {by_hand(left)}."
        )
