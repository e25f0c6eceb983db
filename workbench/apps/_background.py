"""Work that goes on while a page or a cell stays alive: it is looked at now and then, and what changed is shown."""

from __future__ import annotations

import time
from collections.abc import Callable

import panel as pn

from workbench.display import in_kernel


class Background:
    """look: takes in what was done, returns True while more is under way. Nobody looks before `shown`, or `wait`."""

    def __init__(self, look: Callable[[], bool]):
        self._look, self._view, self._looking = look, None, None

    def shown(self, view: pn.viewable.Viewable) -> None:
        """There is something to look at."""
        self._view = view
        self.start()

    def start(self) -> None:
        """Look until nothing is under way."""
        if self._view is not None and self._looking is None:
            self._looking = pn.state.add_periodic_callback(self._turn, period=250)

    def _turn(self) -> None:
        busy = self._look()
        if in_kernel() and not (pn.state.curdoc and pn.state.curdoc.session_context):
            pn.io.push_notebook(self._view)
        if not busy:
            self._looking.stop()
            self._looking = None

    def wait(self, timeout: float) -> None:
        """Look again and again, for at most `timeout` seconds."""
        until = time.monotonic() + timeout
        while self._look() and time.monotonic() < until:
            time.sleep(0.05)
