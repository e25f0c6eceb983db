"""The raster: every spike of a recording, with its trials and behaviour on the same time axis.

    session → CountPyramid → shades, one row a unit; beneath: population rate, trials, series

The last line of a cell is `Raster(session)`; `panel serve workbench/apps/raster.py` serves it alone, and the hub
(`main.py`) as `?app=raster`. Only what is in view is counted (`workbench.analysis.raster`), so ten million spikes pan
and zoom like ten thousand, and the line above the picture always says what is drawn, from how much, at what resolution.
"""

from __future__ import annotations

import html
from functools import partial

import holoviews as hv
import holoviews.plotting.bokeh  # registers the backend, which is all that a server needs
import numpy as np
import pandas as pd
import panel as pn
import param
from bokeh.models import CustomJSHover, HoverTool, WheelZoomTool
from holoviews.streams import PlotSize, RangeXY

from workbench.analysis.raster import CountPyramid, envelope, population_rate, resample, shade, sort_units, unit_columns
from workbench.colors import CATEGORIES, row_colors
from workbench.display import Dashboard, Text, built, served
from workbench.errors import UnknownName, WorkbenchError
from workbench.session import Session, overlap

SHADES = 24                                                             # steps from few spikes to most
MARGIN = 92                                                             # pixels beside every plot, so that times align
AXIS = 56                                                               # pixels of the time axis above the raster


class Raster(Dashboard):
    """Pan and zoom over a session's spikes.

    sort: "table order", "region", "rate" or a column of `session.units`; color: the same, or "none". series: names of
    the series drawn beneath. window: (start, stop) in seconds, None for all. UnknownName for names that are not there.
    """

    sort = param.Selector(default="table order", objects=["table order"], doc="Units from the first row to the last")
    color = param.Selector(default="none", objects=["none"], doc="What the colour of a row says")
    series = param.ListSelector(default=[], objects=[], doc="Series beneath the raster")
    window = param.Range(default=None, allow_None=True, doc="Seconds in view; None: the whole recording")
    recording = param.String(doc="The catalog name or path that opens the session, for `code`")
    status = param.String(doc="What is drawn, from how much, at what resolution")

    def __init__(self, session: Session, *, sort: str | None = None, color: str = "region",
                 series: list[str] | None = None, window: tuple[float, float] | None = None, **params):
        super().__init__(**params)
        self.session, self.pyramid = session, CountPyramid(session)
        self._columns, self._redrawing = unit_columns(session), False
        if sort is None:
            sort = "region" if session.units["region"].nunique() > 1 else "table order"
        if series is None:
            narrow = [name for name, s in session.series.items() if s.values.shape[1] <= len(CATEGORIES)]
            series = (narrow or list(session.series))[:2]
        for kind, what, names, known in [
            ("sort", "unit column to sort by", [sort], ["table order", *self._columns]),
            ("color", "unit column to colour by", [color], ["none", *self._columns]),
            ("series", "series", series, list(session.series)),
        ]:
            for name in names:
                if name not in known:
                    raise UnknownName(what, name, known, where=f"session {session.id!r}")
            self.param[kind].objects = known
        self._plots = pn.Column(sizing_mode="stretch_width")
        self._legend = Text(sizing_mode="stretch_width", margin=(2, 10))
        with param.parameterized.discard_events(self):
            self.param.update(sort=sort, color=color, series=list(series), window=self._checked(window))
        self._rebuild()

    def code(self) -> str:
        """The cell that makes this view."""
        window = None if self.window is None else tuple(round(float(t), 4) for t in self.window)
        return (f"from workbench.apps.raster import Raster\nfrom workbench.catalog import open_recording\n\n"
                f"session = open_recording({self.recording or self.session.id!r})\n"
                f"Raster(session, sort={self.sort!r}, color={self.color!r}, series={self.series!r}, window={window})")

    def __panel__(self):
        s = self.session
        badge = ('<span style="background:#d55e00;color:#fff;border-radius:4px;padding:2px 8px;font-size:12px;'
                 'letter-spacing:1px;vertical-align:middle">SIMULATED</span>') if s.simulated else ""
        about = " · ".join(html.escape(text) for text in (s.species, s.subject, s.task) if text)
        title = pn.pane.HTML(f'<span style="font-size:20px;font-weight:600">{html.escape(s.id)}</span> &nbsp; {badge}'
                             f'<span style="opacity:.65;font-size:13px;margin-left:10px">{about}</span>',
                             margin=(5, 10))
        choose = pn.FlexBox(
            pn.widgets.Select.from_param(self.param.sort, label="Sort units by", width=170),
            pn.widgets.Select.from_param(self.param.color, label="Colour rows by", width=170),
            pn.widgets.MultiChoice.from_param(self.param.series, label="Series beneath", width=360, solid=False))
        status = Text(self.param.status, margin=(0, 10), sizing_mode="stretch_width",
                      styles={"font-variant-numeric": "tabular-nums", "font-size": "13px"})
        changes = [self.param.window, self.param.sort, self.param.color, self.param.series]
        code = pn.Card(Text(pn.bind(lambda *_: f"<pre>{html.escape(self.code())}</pre>", *changes)),
                       title="As code", collapsed=True, sizing_mode="stretch_width", margin=(8, 10))
        return pn.Column(title, choose, status, self._legend, self._plots, code, sizing_mode="stretch_width")

    @param.depends("sort", "color", "series", watch=True)
    def _rebuild(self) -> None:
        self._order = sort_units(self.session, self.sort)
        self._groups, colors, self._legend.object = row_colors(
            self._columns.get(self.color), self.color, len(self._order))
        self._palette = [f"{color}{alpha:02x}" for color in colors
                         for alpha in [0, *np.linspace(48, 255, SHADES - 1).astype(int)]]
        view = RangeXY(x_range=self.window)                             # one for all plots: they show the same time
        beneath = [("population", self._population, 84)] if len(self.session.spike_times) else []
        if len(self.session.trials):
            beneath.append(("trials", self._trials, 34))
        wide = {}
        for name in self.series:
            columns = self.session.series[name].values.shape[1]
            wide[name] = columns if columns > len(CATEGORIES) else 0
            draw = self._wide_series if wide[name] else self._narrow_series
            beneath.append((name, partial(draw, name), int(np.clip(2.5 * columns, 100, 320))))
        self._image(self.window, None, 1000, 400, 1.0)                  # so that the status is true before it is drawn
        plots = [self._raster(view)]
        for i, (name, draw, height) in enumerate(beneath, 1):
            last, own = i == len(beneath), {"hooks": [self._frame, self._fit], "yticks": 3}
            if draw == self._trials:
                own = {"hooks": [self._frame], "yticks": [(0.5, "trials")]}
            elif wide.get(name):                                        # columns run down, as the units do
                own = {"hooks": [self._frame], "yticks": 3, "invert_yaxis": True, "ylim": (-0.5, wide[name] - 0.5)}
            plots.append(hv.DynamicMap(draw, streams=[view]).opts(*self._options(
                height + 46 * last, xaxis="bottom" if last else None, **own)))
        self._plots[:] = [pn.pane.HoloViews(p, sizing_mode="stretch_width", linked_axes=True, margin=0) for p in plots]

    @param.depends("window", watch=True)
    def _moved(self) -> None:
        if not self._redrawing:
            self._rebuild()

    def _checked(self, window) -> tuple[float, float] | None:
        if window is None:
            return None
        start, stop = max(window[0], self.pyramid.start), min(window[1], self.pyramid.stop)
        if not start < stop:
            raise WorkbenchError(f"the window {window[0]:g} to {window[1]:g} s shows nothing of {self.session.id!r}; "
                                 f"choose one inside {self.pyramid.start:g} to {self.pyramid.stop:g} s")
        return start, stop

    def _span(self, x_range) -> tuple[float, float]:
        """The seconds in view, inside the recording."""
        whole = self.pyramid.start, self.pyramid.stop
        start, stop = x_range or self.window or whole
        start, stop = max(start, whole[0]), min(stop, whole[1])
        return (start, stop) if start < stop else whole

    # The raster itself.

    def _raster(self, view: RangeXY) -> hv.Overlay:
        n = max(len(self._order), 1)
        height = int(np.clip(3 * n, 200, 520)) if len(self.session.spike_times) else 130
        height, ticks, borders = self._blocks(height)
        image = hv.DynamicMap(self._image, streams=[view, PlotSize(width=1000, height=height, scale=1.0)])
        marks = hv.DynamicMap(self._marks, streams=[view])
        lines = [hv.HLine(y).opts(color="#00000066", line_width=0.7) for y in borders]
        return hv.Overlay([image, marks, *lines]).collate().opts(
            *self._options(height, main=True, hooks=[self._frame, partial(self._raster_frame, n)], xaxis="top",
                           ylabel="unit" if self.sort == "table order" else f"units by {self.sort}",
                           yticks=ticks or None, ylim=(-0.5, n - 0.5), invert_yaxis=True, show_legend=False),
            hv.Options("Image", cmap=self._palette, clim=(-0.5, len(self._palette) - 0.5)))

    def _image(self, x_range, y_range, width, height, scale) -> hv.Image:
        n = len(self._order)
        top, bottom = sorted(y_range) if y_range else (-0.5, n - 0.5)
        first, last = max(int(np.floor(top + 0.5)), 0), min(int(np.ceil(bottom + 0.5)), n)
        start, stop = self._span(x_range)
        columns, rows = max(int(width or 1000), 100), max(int(height or 400), 50)
        drawn = self.pyramid.view(start, stop, columns, self._order, (first, last), rows)
        density = drawn.spikes / max(drawn.counts.size, 1)
        if drawn.exact and density < 0.03:                              # lone spikes one pixel wide are hard to see
            columns //= 3 if density < 0.005 else 2
            drawn = self.pyramid.view(start, stop, columns, self._order, (first, last), rows)
        self._tell(drawn, last - first, (start, stop))
        k, rows, counts = drawn.units_per_row, max(len(drawn.counts), 1), drawn.counts
        if not len(counts):                                             # a recording without units: one empty row
            counts = np.zeros((1, counts.shape[1]), np.uint32)
        group = self._groups[self._order[first:last:k]] if n else np.zeros(1, int)
        shades = (shade(counts, SHADES) + SHADES * group[:, None]).astype(np.uint16)
        middles = first - 0.5 + k * (np.arange(rows) + 0.5)
        return hv.Image((drawn.centers, middles, shades, counts), ["time", "unit"], ["shade", "spikes"],
                        bounds=(drawn.start, first - 0.5, drawn.stop, first - 0.5 + k * rows))

    def _tell(self, drawn, units: int, window: tuple[float, float]) -> None:
        total, n, width = len(self.session.spike_times), len(self._order), drawn.bin_size
        size = f"{1e3 * width:.3g} ms" if width < 1 else f"{width:.3g} s"
        how = f"exact to {size}" if drawn.tells_spikes_apart else f"binned at {size}"
        spikes = f"{drawn.spikes:,} of {total:,} spikes in view · {how}" if total else "no spikes in this recording"
        seen, view = float(np.diff(overlap(self.session.intervals, np.array([window]))).sum()), window[1] - window[0]
        digits = 1 if view >= 10 else 3
        gaps = f" · {seen:,.{digits}f} s observed of {view:,.{digits}f} s in view" if seen < 0.999 * view else ""
        shared = f", {drawn.units_per_row} units a row" if drawn.units_per_row > 1 else ""
        known = self.session.resolution
        finer = f" · spike times are known to {1e3 * known:.3g} ms only" if known > width else ""
        simulated = "<b>SIMULATED</b> · " if self.session.simulated else ""
        whole = (self.pyramid.start, self.pyramid.stop)
        self._redrawing = True                                          # the plot moved the window, not the other way
        try:
            self.param.update(
                status=f"{simulated}{units:,} of {n:,} units{shared} · {spikes} · "
                       f"{window[0]:,.2f} to {window[1]:,.2f} s{gaps}{finer}",
                window=None if np.allclose(window, whole, atol=1e-6, rtol=0) else window)
        finally:
            self._redrawing = False

    def _marks(self, x_range, y_range) -> hv.Overlay:
        """Where the recording is not valid, and where trials start while they can be told apart."""
        start, stop = self._span(x_range)
        valid = self.session.intervals
        gaps = np.stack([[self.pyramid.start, *valid[:, 1]], [*valid[:, 0], self.pyramid.stop]], axis=1)
        seen = (gaps[:, 1] - gaps[:, 0] > (stop - start) / 2000) & (gaps[:, 1] > start) & (gaps[:, 0] < stop)
        onsets = self.session.trials["start"].to_numpy(float)
        onsets = onsets[(onsets >= start) & (onsets < stop)]
        return hv.Overlay([
            hv.VSpans(gaps[seen][:1000]).opts(color="#9a9a9a", alpha=0.25, line_alpha=0),
            hv.VLines(onsets if len(onsets) <= 60 else []).opts(color="#00000055", line_width=0.8, line_dash="dotted")])

    def _blocks(self, height: int) -> tuple[int, list, list]:
        """The height, ticks in the middle of, and lines between, rows of one name, where units are sorted by names."""
        values, self._margin = self._columns.get(self.sort), MARGIN
        if values is None or not len(values) or pd.api.types.is_numeric_dtype(values) or values.nunique() > 40:
            return height, [], []
        names = values.to_numpy()[self._order]
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
        stops = np.r_[starts[1:], len(names)]
        height = max(height, AXIS + 13 * len(starts))
        ticks, last = [], -np.inf
        for a, b in zip(starts, stops, strict=True):
            middle, name = (a + b - 1) / 2, str(names[a])
            if (middle - last) * (height - AXIS) / len(names) >= 12:    # pixels: names would overlap
                ticks.append((middle, name if len(name) <= 24 else f"{name[:23]}…"))
                last = middle
        self._margin = max(MARGIN, 28 + round(6.5 * max(len(name) for _, name in ticks)))
        return height, ticks, [a - 0.5 for a in starts[1:]]

    # What lies beneath it.

    def _population(self, x_range, y_range) -> hv.Overlay:
        start, stop = self._span(x_range)
        edges = np.linspace(start, stop, int(np.clip((stop - start) / 0.02, 1, 300)) + 1)         # 20 ms or wider
        rate = population_rate(self.session.spike_times, self.session.intervals, edges) / max(len(self._order), 1)
        line = hv.Curve(((edges[:-1] + edges[1:]) / 2, rate), "time", "population").opts(
            color="#333333", line_width=1, interpolation="steps-mid", ylabel="spikes/s\nper unit")
        return hv.Overlay([line])

    def _trials(self, x_range, y_range) -> hv.Overlay:
        start, stop = self._span(x_range)
        trials = self.session.trials
        seen = np.flatnonzero((trials["stop"] > start) & (trials["start"] < stop))
        seen = seen[::max(-(-len(seen) // 2000), 1)]                    # beyond that, thinner than a pixel
        says = [c for c in trials.columns if c not in ("start", "stop")][:8]
        told = zip(seen, trials["start"].iloc[seen], trials["stop"].iloc[seen],
                   trials[says].iloc[seen].astype(str).itertuples(index=False), strict=True)
        rows = [(a, 0, b, 1, i, *more) for i, a, b, more in told]
        return hv.Overlay([
            hv.Rectangles([row for row in rows if row[4] % 2 == turn], ["time", "low", "until", "high"],
                          ["trial", *says]).opts(color=color, line_alpha=0, tools=["hover"], ylabel="")
            for turn, color in enumerate(["#88a6c4", "#c5d3e2"])])

    def _narrow_series(self, name: str, x_range, y_range) -> hv.Overlay:
        """One line a column."""
        s = self.session.series[name]
        times, values = envelope(s.times, s.values, *self._span(x_range))
        columns = s.columns or range(values.shape[1])
        labels = [str(column) for column in columns] if len(columns) > 1 else [""]      # one needs no legend
        return hv.Overlay([
            hv.Curve((times, values[:, i]), "time", name, label=label).opts(
                color=CATEGORIES[i], line_width=1, ylabel=_label(name, s.unit))
            for i, label in enumerate(labels)]).opts(legend_position="right", legend_opts={
                "label_text_font_size": "8pt", "padding": 2, "spacing": 0, "margin": 4, "border_line_alpha": 0,
                "label_height": 12, "glyph_height": 12, "glyph_width": 12})

    def _wide_series(self, name: str, x_range, y_range) -> hv.Overlay:
        """One row a column, the first on top, and a bar that says which colour is which value."""
        s, (start, stop) = self.session.series[name], self._span(x_range)
        values = resample(s.times, s.values, start, stop, 600)
        low, high = np.nanpercentile(values, [1, 99]) if np.isfinite(values).any() else (0, 1)
        rows = values.shape[1]
        middles = np.linspace(start, stop, 601)[:-1] + (stop - start) / 1200
        return hv.Overlay([hv.Image((middles, np.arange(rows), values.T), ["time", "column"], name,
                                    bounds=(start, -0.5, stop, rows - 0.5)).opts(
            cmap="viridis", clim=(low, max(high, low + 1e-9)), ylabel=name, clabel=s.unit, colorbar=True,
            colorbar_opts={"width": 10, "padding": 4, "major_label_text_font_size": "8pt"})])

    # Shared by all plots.

    def _options(self, height: int, main: bool = False, **options) -> tuple:
        """Options of one plot: time is panned and zoomed, and only the raster has the tools and the axis beside it."""
        tools = {"default_tools": ["box_zoom", "reset", "save"] if main else [],
                 "tools": ["xpan", "xwheel_zoom", *(["hover"] if main else [])],
                 "active_tools": ["xpan", "xwheel_zoom"]}
        whole = self.window or (self.pyramid.start, self.pyramid.stop)
        return (hv.Options("Overlay", height=height, responsive=True, xlim=whole, xlabel="time (s)", show_title=False,
                           toolbar="right" if main else None, fontsize={"ticks": "9pt", "labels": "10pt"}, **tools,
                           **options),
                *(hv.Options(kind, **tools) for kind in ("Image", "Curve")))

    def _frame(self, plot, element) -> None:
        """Times aligned under each other, and no way out of the recording."""
        plot.state.update(min_border_left=self._margin, min_border_right=MARGIN, min_border_top=4, min_border_bottom=4)
        plot.handles["x_range"].update(bounds=(self.pyramid.start, self.pyramid.stop), min_interval=0.01)
        for tool in plot.state.select(type=WheelZoomTool):
            tool.maintain_focus = False                                 # else zooming out stops short of the whole
        if hasattr(plot.handles["yaxis"].ticker, "num_minor_ticks"):
            plot.handles["yaxis"].ticker.num_minor_ticks = 0
        plot.handles["yaxis"].axis_label_text_font_style = plot.handles["xaxis"].axis_label_text_font_style = "normal"

    def _fit(self, plot, element) -> None:
        """The y axis follows what is in view, which HoloViews would only do by forgetting the zoom too."""
        low, high = element.range(1)
        if np.isfinite([low, high]).all():
            pad = 0.06 * (high - low) or 1.0
            plot.handles["y_range"].update(start=low - pad, end=high + pad)

    def _raster_frame(self, n: int, plot, element) -> None:
        plot.handles["y_range"].update(bounds=(-0.5, n - 0.5), min_interval=1)
        ticker = plot.handles["yaxis"].ticker
        if hasattr(ticker, "min_interval"):
            ticker.min_interval = 1                                     # no unit 89.5
        hover = next(iter(plot.state.select(type=HoverTool)), None)
        if hover is None or "units" in hover.tags:                      # this hook runs at every redraw
            return
        units, rates = self.session.units, self.session.rates()
        said = [f"{units['id'][u]} · {units['region'][u]} · {rates[u]:.2f} spikes/s" for u in self._order]
        hover.update(tags=["units"],
                     tooltips=[("unit", "$y{custom}"), ("time", "$x{0.000} s"), ("spikes here", "@spikes")],
                     formatters={"$y": CustomJSHover(args={"said": said},
                                                     code="return said[Math.round(special_vars.y)] ?? ''")})


def _label(name: str, unit: str) -> str:
    return f"{name}\n({unit})" if unit else name


def app() -> pn.viewable.Viewable:
    """The served page: a new state for every visitor."""
    return served("Raster", Raster, state=("sort", "color", "series", "window"))


if pn.state.served:
    built("Raster", app).servable(title="Raster · spike workbench")
