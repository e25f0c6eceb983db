"""Notebooks with their outputs, as pages that open without a network: `make rendered`, or NOTEBOOK=00, SIZE=full.

    notebooks/NAME.ipynb → run from top to bottom in rendered/runs/NAME → rendered/NAME.html, with the plots' JavaScript

Small is what the tests run; full is what a notebook says of itself. `execute` is what both share, and Binder's
`recording.py`, with what it cost.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import nbformat
import psutil
from jinja2 import DictLoader
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What makes a notebook small. Each reads only what it knows.
SMALL = {"WORKBENCH_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SMALL_OF = {"02_decode_movement": {"WORKBENCH_SECONDS": "120", "WORKBENCH_STEPS": "60"},
            "03_the_zoo": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4",
                           "WORKBENCH_MODELS": "POYO,POSSM,NDT1,MtM,GRU,ridge"},
            "04_masking_seen": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4"},
            "05_pretrain_from_a_cell": {"WORKBENCH_SECONDS": "30", "WORKBENCH_STEPS": "4", "WORKBENCH_LABELS": "12"},
            "06_latents": {"WORKBENCH_SECONDS": "40", "WORKBENCH_STEPS": "4"},
            "07_new_sessions": {"WORKBENCH_RECORDING": "reach-sim/day0,reach-sim/day1,reach-sim/day3",
                                "WORKBENCH_SECONDS": "30", "WORKBENCH_STEPS": "4", "WORKBENCH_ADAPT": "2,3",
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
# The fewest steps at which a notebook's lesson holds, where it is asserted of so few; the slow tests run these.
LESSON_OF = {"02_decode_movement": {"WORKBENCH_SECONDS": "600", "WORKBENCH_STEPS": "500"}}
UNSET = ("WORKBENCH_RECORDING", "WORKBENCH_DATA", "WORKBENCH_CATALOG")
# The page without what nbconvert would fetch: require.js, MathJax and Mermaid, of which the notebooks use none.
# An icon is named, an empty one, because a browser asks the server for one of a page that names none.
INSTEAD = {"html_head_js_requirejs": '<link rel="icon" href="data:,">', "html_head_js_mathjax": "",
           "html_head_js_mermaidjs": ""}
PAGE = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block {name} %}}{html}{{% endblock %}}" for name, html in INSTEAD.items())


class Cost(NamedTuple):
    """seconds: from the kernel's start to the end of the last cell. gigabytes: of memory, at most, of the kernel and of
    all that it started, shared memory counted once."""

    seconds: float
    gigabytes: float


def environment(name: str, size: str) -> dict[str, str]:
    """What a notebook's kernel is told, small or full; the plots' JavaScript goes into the notebook either way."""
    if size == "full":
        return {**os.environ, "WORKBENCH_OFFLINE": "1"}
    return {key: value for key, value in os.environ.items() if key not in UNSET} | SMALL | SMALL_OF.get(name, {})


def execute(notebook, folder: Path, env: dict[str, str], timeout: int | None = 600) -> Cost:
    """Run all cells in a folder, for at most `timeout` seconds each; raises as nbclient does where a cell fails.

    The kernel is spoken to by files: ports that were free when it was started may be another's once it listens.
    """
    memory, began = Memory(folder), time.monotonic()
    with tempfile.TemporaryDirectory() as sockets:                      # whose path is short, as a socket's must be
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
            extra_arguments=["--IPKernelApp.log_level=40"],             # less talkative
            on_notebook_start=lambda **_: memory.start(), on_cell_executed=lambda **_: memory.look())
        try:
            client.execute(env=env)
        finally:
            memory.over.set()
    return Cost(time.monotonic() - began, memory.most / 1e9)


class Memory(threading.Thread):
    """Looks now and then at the memory of all processes that work in a folder: trainings are nobody's children."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.most, self.over = str(Path(folder).resolve()), 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(2.0):
            self.look()

    def look(self) -> None:
        own, shared, peaks = 0, [0], [0]
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.cwd() == self.folder:
                    told = process.memory_full_info()
                    own, shared = own + told.uss, [*shared, told.rss - told.uss]
                    peaks.append(_peak(process.pid))                    # of that process alone, between two looks too
        self.most = max(self.most, own + max(shared), *peaks)


def _peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes; 0 where the system does not tell. Not `getrusage`, in which a
    new process begins with the peak of the one that started it."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def render(path: Path, size: str, out: Path) -> tuple[Path, Cost]:
    """The page of a notebook that was run just now."""
    notebook, folder = nbformat.read(path, as_version=4), out / "runs" / path.stem
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cost = execute(notebook, folder, environment(path.stem, size), 600 if size == "small" else None)
    said = " ".join(f"`{key}={value}`" for key, value in SMALL_OF.get(path.stem, {}).items() if size == "small")
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(
        f"> **A rendered copy, at the {size} size**{f' ({said})' * bool(said)}: {cost.seconds:.0f} s, "
        f"{cost.gigabytes:.1f} GB. " + "Of so little training no score says anything. " * bool(said) +
        "Plots pan and zoom; what would ask Python, as buttons and choices do, stays as it is."))
    for cell in notebook.cells:
        if cell.cell_type == "markdown":                                # the neighbours are pages too
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.html)", cell.source)
        else:                                                           # nbconvert warns of outputs without content
            cell.outputs = [each for each in cell.outputs if each.get("data", True)]
    exporter = HTMLExporter(extra_loaders=[DictLoader({"page.html.j2": PAGE})], template_file="page.html.j2")
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    page = out / f"{path.stem}.html"
    page.write_text(body, encoding="utf-8")
    return page, cost


def main(argv: list[str] | None = None) -> int:
    """Render the notebooks whose names begin as asked; stop at the first cell that fails, with one sentence."""
    parser = argparse.ArgumentParser(prog="python docs/rendered.py", description="Notebooks with outputs, as pages.")
    parser.add_argument("notebook", nargs="?", default="", help="how its name begins, as 00; all without")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--out", type=Path, default=ROOT / "rendered")
    asked = parser.parse_args(argv)
    chosen = [path for path in NOTEBOOKS if path.stem.startswith(asked.notebook)]
    if not chosen:
        print(f"rendered: no notebook begins with {asked.notebook!r}; there are "
              f"{', '.join(path.stem for path in NOTEBOOKS)}", file=sys.stderr)
        return 2
    for path in chosen:
        print(f"{path.stem}, {asked.size} …", flush=True)
        (asked.out / f"{path.stem}.html").unlink(missing_ok=True)       # of another day
        try:
            page, cost = render(path, asked.size, asked.out)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            why = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)
            print(f"rendered: a cell of {path.stem} failed: {why.splitlines()[0][:300]}; no page was written",
                  file=sys.stderr)
            return 1
        print(f"  {page}: {page.stat().st_size / 1e6:.1f} MB; {cost.seconds:.0f} s, {cost.gigabytes:.1f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
