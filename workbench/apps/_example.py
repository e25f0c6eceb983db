"""What the dashboards of a trained model show where nobody has trained one: a small network, made for all visitors.

    driven → a forecaster, its simulated recording in a file that every dashboard opens
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import panel as pn

from workbench.places import cache_folder

EXAMPLE = "example"                                                     # in place of a run, in an address
_MAKING = threading.Lock()                                              # two visitors at once make one


def example(tell: Callable[[str], None]) -> tuple:
    """The model and the path of its recording. tell: how far it is, in words."""
    from workbench.analysis.driven import driven  # torch, which the hub should not wait for

    with _MAKING:
        if "driven" not in pn.state.cache:
            progress = lambda done, of: done % 20 or tell(f"Training the example: step {done} of {of}")
            model, session = driven(progress=progress)
            pn.state.cache["driven"] = model, str(session.save(cache_folder("examples") / f"{session.id}.h5"))
        return pn.state.cache["driven"]


def excused(what: str, folder: Path, known: Sequence[str], asked: str | None) -> str:
    """Why the example is shown, as HTML, where no run was asked for and none is there; "" otherwise."""
    if known or asked not in (None, EXAMPLE):
        return ""
    return (f"There is no {what} in {html.escape(str(folder.resolve()))}: this is an example, a small network trained "
            "here on a simulated recording.")
