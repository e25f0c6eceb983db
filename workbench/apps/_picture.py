"""The figures of a raster that is on a page or in a cell: spikes, and strips beneath, on one time axis.

    pan, zoom → Raster.window → `show` → data of Bokeh's figures, and nothing else of them

Bokeh's own figures, because HoloViews takes several times as long for a redraw as all that is redrawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import panel as pn
from bokeh.events import RangesUpdate, SelectionGeometry
from bokeh.models import (
    BasicTicker,
    BoxSelectTool,
    BoxZoomTool,
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    PanTool,
    Plot,
    Range1d,
    ResetTool,
    SaveTool,
    WheelZoomTool,
)
from tornado.ioloop import IOLoop

from workbench.apps._marks import Marks
from workbench.display import Text
from workbench.grids import plain

if TYPE_CHECKING:
    from workbench.apps.raster import Raster

SIZES = {"inner_width": "width", "inner_height": "height"}              # of a figure, and of a picture
MARGIN = 92                                                             # pixels beside every plot, so that times align
AXIS = 56                                                               # pixels of the time axis above the spikes
STILL = 30                                                              # ms after which a wheel is said to rest
SOON = 20                                                               # ms to wait for more of what a browser says
AT_LEAST = """
const {start, end, min_interval, bounds} = cb_obj
if (end > start && end - start < 0.999 * min_interval) {
  const from = Math.max(bounds[0], Math.min((start + end - min_interval) / 2, bounds[1] - min_interval))
  cb_obj.setv({start: from, end: from + min_interval})
}
"""


class Picture:
    """The plots of one display of a raster, and the line that says what they show. Bokeh's figures are of one document
    alone: to show them in another place takes another `Raster.__panel__()`, as every cell and every visitor has."""

    def __init__(self, raster: Raster):
        self.raster, self._waits = raster, False
        self.size = {"width": 1000, "height": 400}                      # pixels, until a browser says otherwise
        self.plots = pn.Column(sizing_mode="stretch_width")
        self.status = Text(margin=(0, 10), sizing_mode="stretch_width",
                           styles={"font-variant-numeric": "tabular-nums", "font-size": "13px"})
        self.build()

    def build(self) -> None:
        """All plots anew: other rows, other strips."""
        raster, whole = self.raster, self.raster.whole
        start, stop = raster.in_view
        self.time = Range1d(start, stop, bounds=whole, min_interval=0.01, reset_start=whole[0], reset_end=whole[1])
        for end in ("start", "end"):                                    # a wheel that keeps no focus goes below it
            self.time.js_on_change(end, CustomJS(code=AT_LEAST))
        height, names, borders = blocks(raster.names, len(raster.session.spike_times) > 0, len(raster.order))
        self._margin = max([MARGIN, *(28 + round(6.5 * len(name)) for name in names.values())])
        self.spikes = self._spikes(height, names, borders)
        self.strips = raster.beneath.strips(raster.series, self._strip)
        last = self.strips[-1].plot if self.strips else None
        if last:
            last.xaxis.update(visible=True, axis_label="time (s)")
            last.height += 46
        for strip in self.strips:
            if not strip.moves:
                strip.show(*whole)
        self.show()
        self.plots[:] = [pn.pane.Bokeh(plot, sizing_mode="stretch_width", margin=0)
                         for plot in (self.spikes, *(strip.plot for strip in self.strips))]

    def show(self) -> None:
        """Move the axis to what is in view, which does nothing where it moved itself, and draw that."""
        start, stop = self.raster.in_view
        with self._at_once():
            self.time.update(start=start, end=stop)
            seen = self.raster.look((self.rows.end, self.rows.start), **self.size)
            self.status.object, self._drawn = self.raster.status, seen.says
            self._image.data = {
                "shade": [seen.shades], "spikes": [seen.counts], "x": [seen.start], "y": [seen.top],
                "dw": [seen.stop - seen.start], "dh": [seen.bottom - seen.top]}
            self._marks.show(self.raster.marks(abs(self.rows.end - self.rows.start)))
            for strip in self.strips:
                if strip.moves:
                    strip.show(start, stop)

    def mark(self) -> None:
        """Draw what is under and over the spikes anew."""
        with self._at_once():
            self.status.object = self.raster.told(self._drawn)
            self._marks.show(self.raster.marks(abs(self.rows.end - self.rows.start)))

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """One message, one redraw in the browser."""
        with pn.io.hold(self.spikes.document):
            yield
        pn.io.push_notebook(*self.plots)                                # which a served page does not need

    # Plots.

    def _plot(self, height: int, *tools, **options) -> Plot:
        """An empty plot on the time axis, which alone is panned and zoomed."""
        pan = PanTool(dimensions="width")                               # a wheel that keeps focus would stop short of
        wheel = WheelZoomTool(dimensions="width", maintain_focus=False)  # the whole when it zooms out
        plot = plain(height=height, x_range=self.time, tools=[pan, *tools, wheel], active_drag=pan, active_scroll=wheel,
                     lod_timeout=STILL, outline_line_color=None, min_border_left=self._margin, min_border_top=4,
                     min_border_bottom=4, **options)
        plot.min_border_right = MARGIN                                  # all plots have the same, with a legend or not
        return plot

    def _strip(self, height: int) -> Plot:
        plot = self._plot(height)
        plot.xaxis.visible = False
        return plot

    def _spikes(self, height: int, names: dict[float, str], borders: list[float]) -> Plot:
        raster, n = self.raster, max(len(self.raster.order), 1)
        self.rows = Range1d(n - 0.5, -0.5, bounds=(-0.5, n - 0.5), min_interval=1)      # the first on top
        boxes = BoxSelectTool(renderers=[], description="Choose moments and units: drag a box over them")
        plot = self._plot(height, BoxZoomTool(), boxes, ResetTool(), SaveTool(), y_range=self.rows,
                          x_axis_location="above", x_axis_label="time (s)", toolbar_location="right",
                          y_axis_label="unit" if raster.sort == "table order" else f"units by {raster.sort}")
        ticker = FixedTicker(ticks=list(names)) if names else BasicTicker(min_interval=1, num_minor_ticks=0)
        plot.yaxis.update(ticker=ticker, major_label_overrides=names)   # no unit 89.5
        self._image = ColumnDataSource({"shade": [], "spikes": [], "x": [], "y": [], "dw": [], "dh": []})
        colors = LinearColorMapper(raster.palette, low=-0.5, high=len(raster.palette) - 0.5)
        image = plot.image("shade", "x", "y", "dw", "dh", color_mapper=colors, source=self._image)
        self._marks = Marks(plot)
        if borders:
            plot.hspan(y=borders, color="#00000066", line_width=0.7)
        said = CustomJSHover(args={"said": raster.said}, code="return said[Math.round(special_vars.y)] ?? ''")
        plot.add_tools(HoverTool(renderers=[image], visible=False, formatters={"$y": said}, tooltips=[
            ("unit", "$y{custom}"), ("time", "$x{0.000} s"), ("spikes here", "@spikes")]))
        plot.on_event(SelectionGeometry, raster.boxed)
        plot.on_event(RangesUpdate, self._moved)                        # of the strips too: one time axis, one event
        for side in SIZES:
            plot.on_change(side, self._resized)
        return plot

    def _moved(self, _) -> None:
        self._follow_soon()

    def _resized(self, attr, old, new) -> None:
        if abs(new - self.size[SIZES[attr]]) > 2:
            self.size[SIZES[attr]] = new
            self._follow_soon()

    def _follow_soon(self) -> None:
        """Of a wheel that turns on only the last view is drawn. And what a notebook's browser says is sent back to it,
        and its view with it, if it is answered within the same message."""
        if self._waits:
            return
        self._waits, doc = True, self.spikes.document
        if doc is None:                                                 # nobody looks
            self._follow()
        elif doc.session_context:
            doc.add_timeout_callback(self._follow, SOON)
        else:
            IOLoop.current().call_later(SOON / 1000, self._follow)

    def _follow(self) -> None:
        self._waits = False
        if not self.raster.go(self.time.start, self.time.end, self):    # other rows, or pixels, of the same seconds
            self.show()


def blocks(names: np.ndarray | None, spikes: bool, n: int) -> tuple[int, dict[float, str], list[float]]:
    """The height in pixels of `n` rows, a name in the middle of each block of neighbouring rows of one name, and where
    lines between them are. names [n]: of the rows, None where they are no names. spikes: whether there are any."""
    height = int(np.clip(3 * n, 250, 520)) if spikes else 130
    if names is None or not len(names):
        return height, {}, []
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    stops = np.r_[starts[1:], len(names)]
    height = max(height, AXIS + 13 * len(starts))
    shown, last = {}, -np.inf
    for a, b in zip(starts.tolist(), stops.tolist(), strict=True):
        middle, name = (a + b - 1) / 2, str(names[a])
        if (middle - last) * (height - AXIS) / len(names) >= 12:        # pixels: names would overlap
            shown[middle] = name if len(name) <= 24 else f"{name[:23]}…"
            last = middle
    return height, shown, [a - 0.5 for a in starts[1:].tolist()]
