"""The figures of kidneys as a table in 3D Slicer's scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import slicer
import vtk


class _Column(NamedTuple):
    """One figure of the table; its title is short, since a module's panel is narrow."""

    name: str
    title: str
    unit: str
    decimals: int


COLUMNS = (
    _Column("volume_ml", "Volume", "ml", 2),
    _Column("reference_volume_ml", "Reference volume", "ml", 2),
    _Column("dice", "Dice", "", 4),
    _Column("iou", "IoU", "", 4),
    _Column("mean_surface_distance_mm", "Surface distance", "mm", 2),
    _Column("hausdorff_95_mm", "95 % Hausdorff", "mm", 2),
)

_ROWS = {"left": "Left", "right": "Right", "kidney": "Both"}


def result_rows(
    volumes_ml: Mapping[str, float], comparison: Mapping[str, Any] | None = None
) -> dict[str, dict[str, float | None]]:
    """The rows of `results_table` for one case.

    Parameters
    ----------
    volumes_ml
        "left", "right" and "kidney" (both; their sum where it is left out).
    comparison
        What `compare` gave.

    Example
    -------
    >>> result_rows({"left": 170.0, "right": 150.0})["Both"]
    {'volume_ml': 320.0}
    """
    volumes = dict(volumes_ml)
    volumes.setdefault("kidney", sum(volumes.values()))
    rows = {}
    for key, name in _ROWS.items():
        row: dict[str, float | None] = {"volume_ml": volumes.get(key)}
        if comparison is not None:
            row["reference_volume_ml"] = comparison["volume_ml"]["reference"].get(key)
            for column in COLUMNS[2:]:
                row[column.name] = comparison[column.name].get(key)
        if any(value is not None for value in row.values()):
            rows[name] = row
    return rows


def results_table(
    rows: Mapping[str, Mapping[str, float | None]], table_node: Any = None, scene: Any = None
) -> Any:
    """A table node with a row for each structure, rounded as in `results.csv`.

    Parameters
    ----------
    rows
        From the name of a row to its values by the names of `COLUMNS`; a column that no row has
        a value for is left out, a value that is missing (or None) in a column is NaN.
    table_node
        What to fill anew; None for a new node.
    scene
        Where to make it; the application's by default.

    Returns
    -------
    The vtkMRMLTableNode.
    """
    if table_node is None:
        scene = slicer.mrmlScene if scene is None else scene
        name = scene.GenerateUniqueName("Kidneys")
        table_node = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
    with slicer.util.NodeModify(table_node):
        table_node.RemoveAllColumns()
        names = vtk.vtkStringArray()
        names.SetName("structure")
        for name in rows:
            names.InsertNextValue(name)
        table_node.AddColumn(names)
        table_node.SetColumnTitle("structure", "Structure")
        for column in COLUMNS:
            values = [row.get(column.name) for row in rows.values()]
            if all(value is None for value in values):
                continue
            array = vtk.vtkDoubleArray()
            array.SetName(column.name)
            for value in values:
                array.InsertNextValue(
                    float("nan") if value is None else round(value, column.decimals)
                )
            table_node.AddColumn(array)
            table_node.SetColumnType(column.name, vtk.VTK_DOUBLE)
            table_node.SetColumnTitle(column.name, column.title)
            table_node.SetColumnUnitLabel(column.name, column.unit)
        table_node.SetUseColumnTitleAsColumnHeader(True)
        table_node.SetUseFirstColumnAsRowHeader(True)
    return table_node
