"""What the dashboards of a trained model show where nobody has trained one: a small network, made for all visitors.

    driven → a forecaster, its simulated recording in a file that every dashboard opens
"""

from __future__ import annotations

import threading
from collections.abc import Callable

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
