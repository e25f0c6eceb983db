"""Every notebook runs from top to bottom on small data without a network, in the time and memory that it states, is
kept without its outputs, and leads into a dashboard and to the next one of the path."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nbformat
import numpy as np
import pandas as pd
import pytest

from docs.rendered import LESSON_OF, NOTEBOOKS, ROOT, Cost, environment, execute
from workbench.session import Series, Session

SLOW = 5                                                                # times what is stated: on a busy machine
SMALL = re.compile(r"\*\*Time and memory\.\*\* Small \(as the tests run it\): under (\d+) s, ([\d.]+) GB\. Full: ")
LINK = re.compile(r"\]\(([^)#:]+\.ipynb)\)")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the catalog simulates once for all notebooks."""
    return tmp_path_factory.mktemp("cache")


def stated(notebook) -> Cost:
    """What its first cell says of the small form."""
    found = SMALL.search(notebook.cells[0].source)
    assert found, "say 'Small (as the tests run it): under 30 s, 0.8 GB. Full: …'"
    return Cost(float(found[1]), float(found[2]))


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_no_cell_errors_or_stays_blank_and_it_costs_what_it_says(notebook, request, cache, tmp_path):
    env = environment(request.node.callspec.id, "small") | {"WORKBENCH_CACHE": str(cache)}
    cost, most = execute(notebook, tmp_path, env), stated(notebook)             # raises where a cell fails
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("text/html" in output.get("data", {}) for output in outputs)
    print(f"{cost.seconds:.1f} s of {most.seconds:g}, {cost.gigabytes:.2f} GB of {most.gigabytes:g}")
    assert cost.gigabytes <= most.gigabytes, f"it took {cost.gigabytes:.2f} GB: state that, or make it smaller"
    assert cost.seconds <= SLOW * most.seconds, f"it took {cost.seconds:.0f} s, {SLOW} times what it states and more"
    said = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    addresses = re.findall(r"http://localhost:5006/apps(\?\S+)", said)
    assert addresses, "the last cell prints the address of a dashboard"
    for address in addresses:
        asks = parse_qs(urlsplit(address).query)
        assert (ROOT / "workbench" / "apps" / f"{asks['app'][0]}.py").is_file()
        assert {"data", "run", "folder"} & set(asks), "the address says what to show"


@pytest.mark.slow
@pytest.mark.parametrize("name", LESSON_OF)
def test_the_lesson_holds_where_it_is_asserted(name, cache, tmp_path):
    """With more steps than the small form has; an assertion of the notebook fails otherwise."""
    path = next(path for path in NOTEBOOKS if path.stem == name)
    env = environment(name, "small") | LESSON_OF[name] | {"WORKBENCH_CACHE": str(cache)}
    execute(nbformat.read(path, as_version=4), tmp_path, env, timeout=1800)


def test_outputs_are_stripped(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_the_first_cells_say_what_and_load_the_workbench(notebook):
    head, first = notebook.cells[0], next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert head.cell_type == "markdown"
    for word in ("Question", "Data", "Time and memory", "Dashboard"):
        assert f"**{word}.**" in head.source
    assert stated(notebook).seconds > 0
    assert first.source.splitlines()[0] == "import workbench" and "workbench.notebook()" in first.source
    assert any("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)


def test_a_notebook_is_valid_and_short_and_asserts_its_lesson(notebook):
    nbformat.validate(notebook)
    assert len(notebook.cells) < 40
    assert any(re.search(r"^\s*assert ", cell.source, re.M) for cell in notebook.cells if cell.cell_type == "code")


def test_notebooks_are_one_path(notebook, request):
    """What to read before at the start, where there is something; the next one at the end; every link leads somewhere,
    and calls what it leads to by its name."""
    name, names = request.node.callspec.id, [path.stem for path in NOTEBOOKS]
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    before = re.search(r"\*\*Read before\.\*\*(.*)", texts[0])
    assert (before is None) == (name == names[0])
    assert before is None or all(link[:-6] in names[:names.index(name)] for link in LINK.findall(before[1]))
    assert "## Next" in texts[-1]
    if name != names[-1]:
        assert f"{names[names.index(name) + 1]}.ipynb" in LINK.findall(texts[-1])
    titles = {path.name: nbformat.read(path, as_version=4).cells[0].source.splitlines()[0][2:] for path in NOTEBOOKS}
    for text, link in re.findall(r"\[([^\]]+)\]\(([^)#:]+\.ipynb)\)", "\n".join(texts)):
        assert titles[link] == text


def test_notebooks_name_no_place_of_this_computer(notebook):
    assert str(Path.home()) not in json.dumps(notebook)


def test_a_recording_of_ones_own_may_be_of_cells_without_spikes(tmp_path):
    ids = tuple("abcdef")
    traces = Series(np.arange(0, 120, 0.1), np.random.default_rng(0).normal(size=(1200, 6)), "dF/F", ids)
    own = Session(id="cells", spike_times=[], spike_units=[], units=pd.DataFrame({"id": ids}), series={"dF/F": traces})
    path = next(path for path in NOTEBOOKS if path.stem.startswith("90"))
    env = environment(path.stem, "small") | {"WORKBENCH_RECORDING": str(own.save(tmp_path / "cells.h5"))}
    execute(nbformat.read(path, as_version=4), tmp_path, env)           # raises where a cell fails
