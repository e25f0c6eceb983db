"""Every notebook runs from top to bottom on small data without a network, and is kept without its outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
# What makes a notebook small. Each reads only what it knows.
SMALL = {"WORKBENCH_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SMALL_OF = {"02_decode_movement": {"WORKBENCH_STEPS": "500"},                   # fewer, and it compares no scores
            "03_the_zoo": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4",
                           "WORKBENCH_MODELS": "POYO,POSSM,NDT1,MtM,GRU,ridge"},
            "04_masking_seen": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4"},
            "05_pretrain_from_a_cell": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4", "WORKBENCH_LABELS": "15"},
            "06_latents": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4"},
            "07_new_sessions": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4", "WORKBENCH_ADAPT": "2,3",
                                "WORKBENCH_ALONE": "4"},
            "08_forecast": {"WORKBENCH_SECONDS": "60", "WORKBENCH_STEPS": "4", "WORKBENCH_ANIMALS": "2",
                            "WORKBENCH_REFERENCES": "5,30",
                            "WORKBENCH_BASELINES": "running_mean,psth,own_glm,population_glm_free"},
            "09_which_modality": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4", "WORKBENCH_UNITS": "16",
                                  "WORKBENCH_POINTS": "4"},
            "10_align": {"WORKBENCH_PICTURES": "130", "WORKBENCH_STEPS": "4"},
            "11_reconstruct": {"WORKBENCH_PICTURES": "130", "WORKBENCH_STEPS": "4", "WORKBENCH_TEST": "8",
                               "WORKBENCH_SEEDS": "0,1", "WORKBENCH_DENOISING": "4"},
            "12_scale": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4", "WORKBENCH_SEEDS": "1",
                         "WORKBENCH_SHARES": "0.3,0.5,0.7,1"}}
UNSET = ("WORKBENCH_RECORDING", "WORKBENCH_DATA", "WORKBENCH_CATALOG")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the catalog simulates once for all notebooks."""
    return tmp_path_factory.mktemp("cache")


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_no_cell_errors_or_stays_blank(notebook, request, cache, tmp_path, monkeypatch):
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in (SMALL | SMALL_OF.get(request.node.callspec.id, {})).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    there = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=there).execute()  # raises where a cell fails
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("text/html" in output.get("data", {}) for output in outputs)


def test_outputs_are_stripped(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_the_first_cells_say_what_and_load_the_workbench(notebook):
    head, first = notebook.cells[0], next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert head.cell_type == "markdown"
    for word in ("Question", "Data", "Time and memory"):
        assert word in head.source
    assert first.source.splitlines()[0] == "import workbench" and "workbench.notebook()" in first.source
    assert any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)


def test_notebooks_name_no_place_of_this_computer(notebook):
    assert str(Path.home()) not in json.dumps(notebook)
