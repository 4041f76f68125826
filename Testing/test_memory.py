"""What a CT needs in memory, as the operating system counts it: the volume, its labels, no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import toys

from KidneySegLib.preprocess import Preprocessing

KIDNEYSEG = Path(__file__).resolve().parent.parent / "KidneySeg"
PLANE = (512, 512)
FEW, MANY = 40, 240

# Says how many bytes more than before it the part in the middle needed at its worst.
FRAME = """
import re, sys
from pathlib import Path
{before}
def now(key):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(key + r":\\s+(\\d+)", status)[1])
at_first = now("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
{measured}
print(now("VmHWM") - at_first)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def needed(before: str, measured: str, *arguments: Path | str) -> int:
    code = FRAME.format(before=before, measured=measured)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, check=True, text=True, cwd=KIDNEYSEG,
    )  # fmt: skip
    return int(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[int, Path]:
    """A short CT and a long one, stored from front to back, in which the kidneys are the same."""
    folder = tmp_path_factory.mktemp("scans")
    found = {}
    for slices in (FEW, MANY):
        ct, _ = toys.toy(shape=(slices, 64, 64), spacing_mm=(4.0, 4.0, 5.0))
        ct = ct.repeat(PLANE[0] // 64, axis=1).repeat(PLANE[1] // 64, axis=2)
        found[slices] = folder / f"{slices}.nii.gz"
        image = toys.image_of(ct, (1, 0, 2), spacing_mm=(4.0, 0.5, 0.625))
        sitk.WriteImage(image, str(found[slices]))
    return found


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
def test_memory_grows_with_the_volume_and_its_labels_alone(scans, tmp_path, suffix):
    model = toys.copying_model(
        tmp_path / "toy", preprocessing=Preprocessing(pixel_mm=8.0, slice_mm=12.0)
    )
    peaks = {
        slices: needed(
            "from KidneySegLib.cli import main",
            "assert main(['segment', sys.argv[1], '--model', sys.argv[2], '--output', sys.argv[3],"
            " '--device', 'cpu', '--progress', 'none']) == 0",
            path, model.folder, tmp_path / f"{slices}{suffix}",
        )
        for slices, path in scans.items()
    }  # fmt: skip
    voxels = (MANY - FEW) * int(np.prod(PLANE))
    # int16 and uint8 are 3 bytes a voxel; the rest is the working grid.
    assert peaks[MANY] - peaks[FEW] < 3.6 * voxels


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".seg.nrrd"])
def test_writing_takes_a_copy_of_the_labels_at_most_and_what_reads_them_back(tmp_path, suffix):
    size = MANY * int(np.prod(PLANE))
    peak = needed(
        "import SimpleITK as sitk; from KidneySegLib.writing import write_labels, SIDES\n"
        f"labels = sitk.Image({(*PLANE, MANY)}, sitk.sitkUInt8); labels[5, 6, 7] = 1",
        "write_labels(labels, sys.argv[1], SIDES)",
        tmp_path / f"k{suffix}",
    )
    assert peak < (2.2 if suffix == ".seg.nrrd" else 0.2) * size + 20e6
