"""The spikes of one presentation, in the gallery: session, onset → ticks of all units, from before it until after."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, Span

from workbench.apps._background import Background
from workbench.catalog import open_recording
from workbench.display import LINK, Text, address, alert
from workbench.errors import UnknownName, WorkbenchError
from workbench.grids import Grid
from workbench.session import Session

log = logging.getLogger(__name__)

BEFORE, AFTER = 0.1, 0.4                                                # s of spikes, from the onset
NOWHERE = ("No spikes: nobody says where the recording is. Give Gallery(…, sessions=[…]), or reconstructions whose "
           "protocol says data={session id: catalog name or path}.")
SPIKE, SHOWN, READ = "#1b1b1b", "#e69f00", "#0072b2"


class Spikes(pn.viewable.Viewer):
    """Ticks of all units, sorted by region, around the onset of a picture; what is on and what is read, as boxes.

    sessions: Session objects, names or paths, or {session id: either}; they are opened in the background as they are
    asked for. windows: region → (from, until), s after the onset, where its spikes are read.
    """

    def __init__(self, sessions: Sequence | Mapping, windows: Mapping[str, Sequence[float]], **params):
        super().__init__(**params)
        several = [sessions] if isinstance(sessions, str | Path | Session) else sessions
        named = several if isinstance(several, Mapping) else {s.id: s for s in several if isinstance(s, Session)}
        self._named, self._windows = dict(named), windows
        self._unnamed = [] if named is several else [one for one in several if not isinstance(one, Session)]
        self._opened: dict[str, tuple[Session, str]] = {}
        self._pool, self._job, self._of, self._grid, self.plot = ThreadPoolExecutor(1), None, None, None, None
        self.spikes, self.boxes, self._background = ColumnDataSource(), ColumnDataSource(), Background(self._look)
        self.says = Text(margin=(2, 10), sizing_mode="stretch_width", styles={"font-size": "13px"})
        self._alerts, self._body = (pn.Column(sizing_mode="stretch_width") for _ in range(2))

    def clear(self) -> None:
        self._job, self.says.object = None, ""
        self._alerts.clear()
        self._body.clear()

    def show(self, session: str, onset: float) -> None:
        """Those of that session, once it is open."""
        self._alerts.clear()
        if not self._named and not self._unnamed:
            self.says.object = NOWHERE
            return
        self.says.object = f"opening {html.escape(session)} …"
        self._job = self._pool.submit(self._open, session), onset
        self._background.start()

    def _open(self, session: str) -> tuple[Session, str]:
        """A recording, and what opens it again; "" for an object."""
        for what in [self._named[session]] if session in self._named else [*self._unnamed]:
            if session not in self._opened:
                one = what if isinstance(what, Session) else open_recording(what)
                self._opened[session if session in self._named else one.id] = one, "" if one is what else str(what)
        if session not in self._opened:
            raise UnknownName("session", session, self._opened.keys() | self._named.keys(), "those that were given")
        return self._opened[session]

    def _look(self) -> bool:
        """Draw what was opened; True while it is being opened."""
        if self._job is None or not self._job[0].done():
            return self._job is not None
        (job, onset), self._job = self._job, None
        try:
            self._show(*job.result(), onset)
        except Exception as error:                                      # of whatever file there is
            if not isinstance(error, WorkbenchError):
                log.exception("the spikes cannot be shown")
            self.says.object, self._alerts[:] = "", [alert(error)]
            self._body.clear()
        return False

    def _show(self, session: Session, name: str, onset: float) -> None:
        if self._of is not session:
            self._of, self._grid = session, Grid(session, height=300)
            self._draw()
        order, regions, until = self._grid.order, self._grid.names, _until(session, onset)
        first, last = np.searchsorted(session.spike_times, (onset - BEFORE, onset + AFTER))
        self.spikes.data = {"time": session.spike_times[first:last] - onset,
                            "row": np.argsort(order)[session.spike_units[first:last]]}
        rows = {region: np.flatnonzero(regions == region) for region in self._windows}
        boxes = [(*self._windows[region], at[0] - 0.5, at[-1] + 0.5) for region, at in rows.items() if len(at)]
        self.boxes.data = dict(zip(("left", "right", "top", "bottom"), np.reshape(boxes, (-1, 4)).T, strict=True))
        self._gone.update(location=until or 0.0, visible=until is not None)
        self.plot.title.text = f"{last - first:,} spikes of {len(order):,} units of {session.id}"
        window = f"{onset - BEFORE:.3f},{onset + AFTER:.3f}"
        link = f"<code>Raster(session, window=({window}))</code> shows them at length"
        if name and "app" in (pn.state.session_args or {}):             # served by the hub, where the raster is, too
            link = (f'<a style="{LINK}" href="{html.escape(address(app="raster", data=name, window=window))}">'
                    "Open in the raster</a>")
        self.says.object = " · ".join([
            "<b>Spikes</b> of this presentation",
            "orange lines: the picture comes on" + " and goes" * (until is not None),
            *["blue boxes: what is read of each region"] * bool(len(boxes)), link])
        if not len(self._body):
            self._body[:] = [pn.pane.Bokeh(self.plot, sizing_mode="stretch_width")]

    def _draw(self) -> None:
        """A plot of its own for every session: its rows are other units."""
        self.spikes, self.boxes = ColumnDataSource(), ColumnDataSource()
        self.plot = plot = self._grid.picture(labelled=True)
        plot.xaxis.axis_label = "time from the onset of the picture (s)"
        plot.update(min_border_top=30, min_border_bottom=44, height=400)
        plot.quad("left", "right", "top", "bottom", fill_color=READ, fill_alpha=0.12, line_color=READ, line_alpha=0.5,
                  source=self.boxes)
        self._gone = Span(dimension="height", line_color=SHOWN, line_width=2, line_dash="dashed")
        for span in (Span(location=0, dimension="height", line_color=SHOWN, line_width=2), self._gone):
            plot.add_layout(span)
        self._grid.hover(plot, [self._grid.ticks(plot, SPIKE, self.spikes)])
        self._grid.show(-BEFORE, AFTER)
        self._body.clear()

    def wait(self, timeout: float) -> None:
        self._background.wait(timeout)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __panel__(self) -> pn.viewable.Viewable:
        view = pn.Column(self._alerts, self.says, self._body, sizing_mode="stretch_width")
        self._background.shown(view)
        return view


def _until(session: Session, onset: float) -> float | None:
    """How long the picture that came on then stayed, s; None where the session does not say."""
    if not len(session.stimuli):
        return None
    start, stop = (session.stimuli[name].to_numpy(float) for name in ("start", "stop"))
    at = int(np.abs(start - onset).argmin())
    return float(stop[at] - start[at]) if abs(start[at] - onset) < 1e-3 else None
