"""Generated DICOM series for the tests: an axial array as one file a slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from KidneySegLib.geometry import AxialGrid, to_axial

ROOT = "1.2.826.0.1.3680043.8.498."


def write_series(image: sitk.Image, folder: Path, *, from_foot: bool = False) -> AxialGrid:
    """A CT as a DICOM series whose instance numbers run from the head or from the foot.

    Names of files sort neither as the slices do nor against them.
    """
    array, grid = to_axial(image)
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    towards = [np.subtract(grid.to_physical(np.eye(3)[axis]), grid.to_physical([0, 0, 0]))
               for axis in (2, 1)]  # fmt: skip
    cosines = [step / np.linalg.norm(step) for step in towards]
    last = len(array) - 1
    for k, values in enumerate(array):
        number = last - k if from_foot else k
        picture = sitk.GetImageFromArray(np.ascontiguousarray(values))
        picture.SetSpacing((grid.spacing_mm[2], grid.spacing_mm[1]))
        for key, value in {
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{ROOT}3.{number + 1}",
            "0008|0060": "CT",
            "0010|0010": "Generated^Patient",
            "0010|0020": "G1",
            "0018|0050": f"{grid.spacing_mm[0]:.6g}",
            "0018|0088": "1",  # not true, as some programs write it
            "0020|000d": ROOT + "1",
            "0020|000e": ROOT + "3",
            "0020|0011": "4",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{x:.6f}" for x in grid.to_physical([k, 0, 0])),
            "0020|0037": "\\".join(f"{x:.9f}" for x in np.concatenate(cosines)),
            "0020|0052": ROOT + "2",
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            picture.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"I{number * 7 % 1009:04d}.dcm"))
        writer.Execute(picture)
    return grid
