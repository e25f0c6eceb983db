"""Moments and units chosen in a cloud of latents: their spikes, laid end to end, and when in the session they lie."""

from __future__ import annotations

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, FixedTicker, Range1d
from bokeh.plotting import figure

from workbench.analysis.labels import spikes_of, stretches
from workbench.analysis.raster import sort_units
from workbench.display import Text
from workbench.session import Session

SECONDS, PIECES = 20.0, 60                                              # that the raster shows, at most
LEFT, RIGHT = 70, 40                                                    # pixels beside both plots
NOTHING = "Draw around points with the lasso or the box: their spikes, trials and times appear here."


class Chosen(pn.viewable.Viewer):
    """A strip of the session's time, a small raster, and a line that says what they show."""

    def __init__(self, **params):
        super().__init__(**params)
        self._marks = ColumnDataSource({"left": [], "right": [], "color": []})
        share = dict(sizing_mode="stretch_width", min_border_left=LEFT, min_border_right=RIGHT)
        self._strip = figure(height=64, tools="", y_range=Range1d(0, 1), x_range=Range1d(0, 1), toolbar_location=None,
                             x_axis_label="time in the session (s): trials blue, chosen moments red", **share)
        self._strip.quad(left="left", right="right", bottom=0, top=1, color="color", source=self._marks, line_alpha=0)
        self._strip.yaxis.visible = self._strip.grid.visible = False
        self._image = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self._cuts = ColumnDataSource({"x0": [], "y0": [], "y1": []})
        self._raster = figure(height=260, tools="save", x_range=Range1d(0, 1), y_range=Range1d(1, 0),
                              x_axis_label="chosen moments, laid end to end: the second at which each begins", **share)
        self._raster.image("image", source=self._image, palette=["#ffffff", "#8f8f8f", "#555555", "#000000"])
        self._raster.segment("x0", "y0", "x0", "y1", source=self._cuts, color="#0072b2", line_width=1)
        self._raster.grid.visible = False
        self._plots = pn.Column(*(pn.pane.Bokeh(plot, sizing_mode="stretch_width")
                                  for plot in (self._strip, self._raster)), visible=False, sizing_mode="stretch_width")
        self._says = Text(NOTHING, sizing_mode="stretch_width", margin=(2, 10))

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self._says, self._plots, sizing_mode="stretch_width")

    @property
    def says(self) -> str:
        return self._says.object

    def clear(self) -> None:
        self._plots.visible, self._says.object = False, NOTHING

    def show(self, session: Session, times: np.ndarray, width: float, units: np.ndarray, said: str) -> None:
        """times: chosen moments [n] of a session, each `width` s long; without any, its first 10 s. units: rows of the
        table of units, all where there are none. said: what else to say of them."""
        pieces = stretches(times, width)
        if not len(pieces):
            pieces = np.array([[session.start, session.start + min(10.0, session.stop - session.start)]])
        by = "region" if session.units["region"].nunique() > 1 else "rate"
        order = sort_units(session, by)
        order = order[np.isin(order, units)] if len(units) else order
        shown = _some(pieces)
        counts, cuts = spikes_of(session, shown, order)
        self._draw_raster(np.minimum(counts, 3).astype(np.uint8), shown[:, 0], cuts, f"{len(order)} units by {by}")
        self._draw_strip(session, pieces)
        where = f"{len(pieces):,} stretches from {pieces[0, 0]:,.2f} to {pieces[-1, 1]:,.2f} s" if len(times) else ""
        part = f"{np.diff(shown).sum():.3g} s in {len(shown)} of them" if len(times) else "the first seconds"
        self._says.object = " · ".join(
            text for text in (said, where, f"the raster shows {part}, {len(order)} of {len(session.units)} units")
            if text)
        self._plots.visible = True

    def _draw_raster(self, counts: np.ndarray, starts: np.ndarray, cuts: np.ndarray, ylabel: str) -> None:
        rows, columns = max(len(counts), 1), counts.shape[1]
        self._raster.x_range.end, self._raster.y_range.start = columns, rows
        self._raster.yaxis.axis_label = ylabel
        self._image.data = {"image": [counts], "x": [0], "y": [0], "dw": [columns], "dh": [rows]}
        inner = cuts[1:]
        self._cuts.data = {"x0": inner, "y0": np.zeros(len(inner)), "y1": np.full(len(inner), rows)}
        ticks, last = {}, -np.inf
        for cut, start in zip(cuts.tolist(), starts, strict=True):
            if cut - last > columns / 14:                               # else their numbers overlap
                ticks[cut], last = f"{start:,.1f}", cut
        self._raster.xaxis.ticker = FixedTicker(ticks=list(ticks))
        self._raster.xaxis.major_label_overrides = ticks

    def _draw_strip(self, session: Session, pieces: np.ndarray) -> None:
        trials = session.trials[["start", "stop"]].to_numpy(float)
        bars = np.concatenate([trials[::max(-(-len(trials) // 2000), 1)], pieces])
        self._strip.x_range.update(start=session.start, end=session.stop)
        least = max(session.stop - session.start, 1e-9) / 1200          # else thinner than a pixel
        self._marks.data = {"left": bars[:, 0], "right": np.maximum(bars[:, 1], bars[:, 0] + least),
                            "color": np.where(np.arange(len(bars)) < len(bars) - len(pieces), "#c5d3e2", "#d55e00")}


def _some(pieces: np.ndarray) -> np.ndarray:
    """At most so many stretches, evenly chosen, and so many seconds of them, that a small raster can show."""
    pieces = pieces[np.unique(np.linspace(0, len(pieces) - 1, min(len(pieces), PIECES)).astype(int))]
    each = np.diff(pieces)[:, 0]
    share = SECONDS / max(each.sum(), SECONDS)
    return np.stack([pieces[:, 0], pieces[:, 0] + each * share], axis=1)
