"""The notebook in docs: it runs from its first line to its last, and ships as it ran."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbformat")

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "walkthrough.ipynb"


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook: Any) -> str:
    said = [output.get("text", "") for output in outputs_of(notebook)]
    said += [output.get("data", {}).get("text/plain", "") for output in outputs_of(notebook)]
    return "\n".join(said)


def dice_in(text: str) -> float:
    """Of both kidneys together, as the notebook prints it."""
    found = re.search(r"^kidney +([0-9.]+) ", text, re.MULTILINE)
    assert found, text
    return float(found[1])


def pictures_in(notebook: Any) -> list[Image.Image]:
    data = [output.get("data", {}).get("image/jpeg") for output in outputs_of(notebook)]
    return [Image.open(BytesIO(base64.b64decode(one))) for one in data if one]


def test_the_notebook_runs_from_start_to_end(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient")
    pytest.importorskip("ipykernel", reason="the notebook is run by ipykernel")
    pytest.importorskip("lightning", reason="training needs the package lightning")
    monkeypatch.setenv("KIDNEYSEG_WALKTHROUGH", "quick")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    # So short a training finds a kidney or none, but what is compared is a part of the truth.
    assert 0 <= dice_in(printed(notebook)) <= 1
    assert re.search(r"3 cases train, 1 validate", printed(notebook))
    assert len(pictures_in(notebook)) == 3
    # It works where it says and nowhere else.
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} <= {"kidneyseg", "pymp"}


def test_the_notebook_ships_with_the_outputs_of_a_full_run():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {output.output_type for output in outputs_of(notebook)} <= {
        "stream", "execute_result", "display_data"
    }  # fmt: skip
    assert all(output.get("name") != "stderr" for output in outputs_of(notebook))
    assert dice_in(printed(notebook)) > 0.7
    assert len(pictures_in(notebook)) == 3
    assert all(max(picture.size) <= 800 for picture in pictures_in(notebook))
    assert NOTEBOOK.stat().st_size < 500_000


def test_the_notebook_names_no_place_of_the_machine_it_ran_on():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    said = printed(notebook) + str(notebook.metadata)
    # Two or more folders from the root on, or a drive of Windows.
    assert re.findall(r"(?<![\w.])/[\w.-]+/[\w.-]+|[A-Z]:\\", said) == []
