"""What notebook 00 opens on Binder: a small real recording that may be passed on, else the simulated one.

    mc_maze_small fetched → notebook 00 runs on it → its default in this copy of the notebook
    either fails, a network that is not there among others → a line that says why → the same with reach-sim

Running the notebook also compiles what would otherwise be compiled while the first visitor waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError

from docs.rendered import execute
from workbench.catalog import prepare
from workbench.errors import WorkbenchError

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "00_open_a_recording.ipynb"
SHIPPED = '"WORKBENCH_RECORDING", "reach-sim"'


def choose(notebook: Path = NOTEBOOK, names: Sequence[str] = ("mc_maze_small", "reach-sim")) -> str:
    """The first of the recordings that comes here and that the notebook runs on; the notebook then begins with it."""
    for name in names:
        try:
            prepare(name)
            run(notebook, name)
        except (WorkbenchError, CellExecutionError, DeadKernelError, OSError) as error:
            print(f"Binder: not {name}: {(str(error).strip() or repr(error)).splitlines()[-1]}", file=sys.stderr)
            continue
        text = notebook.read_text(encoding="utf-8")
        if json_text(SHIPPED) not in text:
            raise SystemExit(f"{notebook.name} does not hold {SHIPPED}, which names its recording")
        notebook.write_text(text.replace(*(json_text(part) for part in (SHIPPED, SHIPPED.replace("reach-sim", name)))),
                            encoding="utf-8")
        print(f"Binder: {notebook.name} opens {name}")
        return name
    raise SystemExit(f"{notebook.name} runs on none of {', '.join(names)}")


def run(notebook: Path, name: str) -> None:
    execute(nbformat.read(notebook, as_version=4), notebook.parent, {**os.environ, "WORKBENCH_RECORDING": name})


def json_text(text: str) -> str:
    """As it stands in the file of a notebook."""
    return text.replace('"', '\\"')


if __name__ == "__main__":
    choose()
