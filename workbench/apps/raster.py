"""The raster: every spike of a recording, with its trials and behaviour on the same time axis.

    session → CountPyramid → shades, one row a unit; over them the tokens that a model makes of them (`_tokens`), and
    what is chosen (`_selection`); beneath: split, population rate, trials, series (`_beneath`)

The last line of a cell is `Raster(session)`; `panel serve workbench/apps/raster.py` serves it alone, and the hub
(`main.py`) as `?app=raster`. Only what is in view is counted (`workbench.analysis.raster`), so ten million spikes pan
and zoom like ten thousand, and the line above the picture always says what is drawn, from how much, at what resolution.
"""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path

import holoviews as hv
import holoviews.plotting.bokeh  # registers the backend, which is all that a server needs
import numpy as np
import pandas as pd
import panel as pn
import param
from bokeh.events import SelectionGeometry
from bokeh.models import BoxSelectTool, CustomJS, CustomJSHover, HoverTool, WheelZoomTool
from holoviews.streams import Params, PlotSize, RangeXY

from workbench.analysis.raster import CountPyramid, shade, sort_units, unit_columns
from workbench.apps import _selection, _tokens
from workbench.apps._beneath import Beneath, parts_of
from workbench.apps._marks import Drawn, Marks
from workbench.apps._shown_in import shown_in
from workbench.colors import CATEGORIES, row_colors
from workbench.display import Dashboard, Text, alert, built, served
from workbench.errors import UnknownName, WorkbenchError
from workbench.selection import parsed, parsed_units
from workbench.session import Session, overlap
from workbench.training.run import Run

SHADES = 24                                                             # steps from few spikes to most
MARGIN = 92                                                             # pixels beside every plot, so that times align
AXIS = 56                                                               # pixels of the time axis above the raster
AT_LEAST = """
const {start, end, min_interval} = cb_obj, middle = (start + end) / 2
if (end - start < 0.999 * min_interval)
  cb_obj.setv({start: middle - min_interval / 2, end: middle + min_interval / 2})
"""
STATE = ("sort", "color", "series", "window", "tokens", "run", "moments", "chosen_units")      # in the address


class Raster(Dashboard):
    """Pan and zoom over a session's spikes.

    sort: "table order", "region", "rate" or a column of `session.units`; color: the same, or "none". series: names of
    the series drawn beneath. window: (start, stop) in seconds, None for all, or for the first of the chosen moments.
    tokens: "none", a view of `workbench.analysis.tokens`, or "model". run: a `Run`, or the folder of a run or of a
    saved model, whose split and tokens are shown. moments: "12.3:12.9,40:41" s and chosen_units: "a3,b7", what is
    chosen.
    UnknownName for names that are not there, WorkbenchError for what else cannot be.
    """

    sort = param.Selector(default="table order", objects=["table order"], doc="Units from the first row to the last")
    color = param.Selector(default="none", objects=["none"], doc="What the colour of a row says")
    series = param.ListSelector(default=[], objects=[], doc="Series beneath the raster")
    window = param.Range(default=None, allow_None=True, doc="Seconds in view; None: the whole recording")
    tokens = param.Selector(default="none", objects=[*_tokens.CHOICES], doc="The tokens drawn over the spikes")
    run = param.String(doc="Folder of the run or model whose split and tokens are shown")
    moments = param.String(doc="Chosen stretches of time, as workbench.selection writes them")
    chosen_units = param.String(doc="Ids of the chosen units")
    recording = param.String(doc="The catalog name or path that opens the session, for `code`")
    status = param.String(doc="What is drawn, from how much, at what resolution")

    def __init__(self, session: Session, *, sort: str | None = None, color: str = "region",
                 series: list[str] | None = None, window: tuple[float, float] | None = None, tokens: str = "none",
                 run: str | Path | Run = "", moments: str = "", chosen_units: str = "", **params):
        super().__init__(**params)
        self.session, self.pyramid, run = session, CountPyramid(session), str(getattr(run, "path", run))
        self._columns, self._redrawing = unit_columns(session), False
        self._beneath, self._layers, self._drawn = Beneath(session, self._span), _tokens.Layers(session), ""
        self._choice = Params(parameters=[self.param[name] for name in ("tokens", "moments", "chosen_units")])
        if sort is None:
            sort = "region" if session.units["region"].nunique() > 1 else "table order"
        if series is None:
            narrow = [name for name, s in session.series.items() if s.values.shape[1] <= len(CATEGORIES)]
            series = (narrow or list(session.series))[:2]
        self._plots, self._alerts = pn.Column(sizing_mode="stretch_width"), pn.Column(sizing_mode="stretch_width")
        self._legend, self._split = (Text(sizing_mode="stretch_width", margin=(2, 10)) for _ in range(2))
        self._open(run)
        for kind, what, names, known in [
            ("sort", "unit column to sort by", [sort], ["table order", *self._columns]),
            ("color", "unit column to colour by", [color], ["none", *self._columns]),
            ("series", "series", series, list(session.series)),
            ("tokens", "view of tokens", [tokens], self.param.tokens.objects),
        ]:
            for name in names:
                if name not in known:
                    raise UnknownName(what, name, known, where=f"session {session.id!r}")
            self.param[kind].objects = known
        self._layers.reading(tokens)                                    # so that what is wrong with it is said here
        self._chosen = parsed(moments), parsed_units(session, chosen_units)
        if window is None and len(self._chosen[0]):
            window = self._around(self._chosen[0])
        with param.parameterized.discard_events(self):
            self.param.update(sort=sort, color=color, series=list(series), window=self._checked(window), tokens=tokens,
                              run=run, moments=moments, chosen_units=chosen_units)
        self._rebuild()

    def code(self) -> str:
        """The cell that makes this view."""
        window = None if self.window is None else tuple(round(float(t), 4) for t in self.window)
        more = "".join(f", {name}={getattr(self, name)!r}" for name in ("tokens", "run", "moments", "chosen_units")
                       if getattr(self, name) != self.param[name].default)
        return (f"from workbench.apps.raster import Raster\nfrom workbench.catalog import open_recording\n\n"
                f"session = open_recording({self.recording or self.session.id!r})\n"
                f"Raster(session, sort={self.sort!r}, color={self.color!r}, series={self.series!r}, window={window}"
                f"{more})")

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
            pn.widgets.MultiChoice.from_param(self.param.series, label="Series beneath", width=300, solid=False),
            pn.widgets.Select.from_param(self.param.tokens, label="Tokens", width=120),
            pn.widgets.TextInput.from_param(self.param.run, label="Folder of a run or a saved model", width=270))
        status = Text(self.param.status, margin=(0, 10), sizing_mode="stretch_width",
                      styles={"font-variant-numeric": "tabular-nums", "font-size": "13px"})
        chosen = [self.param[name] for name in ("moments", "chosen_units", "run")]
        clear = pn.widgets.Button(label="Clear", description="Choose no moments and no units", margin=(4, 10),
                                  on_click=lambda _: self.param.update(moments="", chosen_units=""))
        lead = lambda *what: shown_in("raster", self.recording, self.session.id, *what)
        links = Text(pn.bind(lead, *chosen), margin=(10, 0))
        about = pn.Row(clear, links, visible=pn.bind(lambda *both: any(both), *chosen[:2]))
        code = pn.Card(Text(pn.bind(lambda *_: f"<pre style='white-space:pre-wrap'>{html.escape(self.code())}</pre>",
                                    *(self.param[name] for name in STATE))),
                       title="As code", collapsed=True, sizing_mode="stretch_width", margin=(8, 10))
        return pn.Column(title, choose, self._alerts, status, about, self._legend, self._split,
                         self._plots, code, sizing_mode="stretch_width")

    # The run, its split and its tokens.

    def _open(self, run: str) -> None:
        how = self._layers.open(run)
        self._beneath.parts, self._split.object = parts_of(self.session, how)
        self.param.tokens.objects = [*_tokens.CHOICES, *["model"] * bool(run)]

    @param.depends("run", watch=True)
    def _other_run(self) -> None:
        self._alerts.clear()
        try:
            self._open(self.run)
        except WorkbenchError as error:
            self._open("")                                              # and not the last one's split and tokens
            self._rebuild()
            self._alerts.append(alert(error))
            return
        self._other_tokens()                                            # there may be none of this one
        self._rebuild()

    @param.depends("tokens", watch=True)
    def _other_tokens(self) -> None:
        self._alerts.clear()
        try:
            self._layers.reading(self.tokens)
        except WorkbenchError as error:
            self.tokens = "none"                                        # comes here again, and clears the alerts
            self._alerts.append(alert(error))
        self._say()

    # What is chosen.

    @param.depends("moments", "chosen_units", watch=True)
    def _choose(self) -> None:
        self._chosen = parsed(self.moments), parsed_units(self.session, self.chosen_units)
        self._say()

    def _boxed(self, event: SelectionGeometry) -> None:
        """A box dragged on the raster chooses moments and units."""
        box = event.geometry
        if event.final and box["type"] == "rect":
            self.param.update(**_selection.of_a_box(self.session, [box[side] for side in ("x0", "y0", "x1", "y1")],
                                                    (self.pyramid.start, self.pyramid.stop), self._order))

    def _around(self, moments: np.ndarray) -> tuple[float, float]:
        inside = moments[(moments[:, 1] > self.pyramid.start) & (moments[:, 0] < self.pyramid.stop)]
        if not len(inside):
            raise WorkbenchError(f"none of the chosen moments, {moments[0, 0]:g} to {moments[-1, 1]:g} s, lies in "
                                 f"{self.session.id!r}, {self.pyramid.start:g} to {self.pyramid.stop:g} s")
        return _selection.around(inside, (self.pyramid.start, self.pyramid.stop))

    @param.depends("sort", "color", "series", watch=True)
    def _rebuild(self) -> None:
        self._order = sort_units(self.session, self.sort, self._columns)
        self._groups, colors, self._legend.object = row_colors(
            self._columns.get(self.color), self.color, len(self._order))
        self._palette = [f"{color}{alpha:02x}" for color in colors
                         for alpha in [0, *np.linspace(48, 255, SHADES - 1).astype(int)]]
        view = RangeXY(x_range=self.window)                             # one for all plots: they show the same time
        self._image(self.window, None, 1000, 400, 1.0)                  # so that the status is true before it is drawn
        plots, strips = [self._raster(view)], self._beneath.strips(self.series)
        whole = self.pyramid.start, self.pyramid.stop
        for i, strip in enumerate(strips, 1):
            last, hooks = i == len(strips), [self._frame, *[self._fit] * strip.fit]
            drawn = hv.DynamicMap(strip.draw, streams=[view]) if strip.moves else strip.draw(whole, None)
            plots.append(drawn.opts(*self._options(
                strip.height + 46 * last, xaxis="bottom" if last else None, hooks=hooks, **strip.options)))
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

    def _raster(self, view: RangeXY) -> hv.DynamicMap:
        n = max(len(self._order), 1)
        height = int(np.clip(3 * n, 250, 520)) if len(self.session.spike_times) else 130
        height, ticks, borders = self._blocks(height)
        lines = [hv.HLine(y).opts(color="#00000066", line_width=0.7) for y in borders]
        draw = lambda **seen: hv.Overlay([self._image(**seen), *lines])  # an overlay even where there are no lines
        size = PlotSize(width=1000, height=height, scale=1.0)
        return hv.DynamicMap(draw, streams=[view, size, self._choice]).opts(
            *self._options(height, main=True, hooks=[self._frame, partial(self._raster_frame, n)], xaxis="top",
                           ylabel="unit" if self.sort == "table order" else f"units by {self.sort}",
                           yticks=ticks or None, ylim=(-0.5, n - 0.5), invert_yaxis=True, show_legend=False),
            hv.Options("Image", cmap=self._palette, clim=(-0.5, len(self._palette) - 0.5)))

    def _image(self, x_range, y_range, width, height, scale, **chosen) -> hv.Image:
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
        self._drawn = (f"{simulated}{units:,} of {n:,} units{shared} · {spikes} · "
                       f"{window[0]:,.2f} to {window[1]:,.2f} s{gaps}{finer}")
        self._redrawing = True                                          # the plot moved the window, not the other way
        try:
            self.window = None if np.allclose(window, whole, atol=1e-6, rtol=0) else window
        finally:
            self._redrawing = False
        self._say()

    def _say(self) -> None:
        """What is drawn, in a line; which tokens, and what is chosen, in two more where there are any."""
        layer = self._layers.at(self.tokens, *self._span(None), self._order)
        said = self._drawn, layer and layer.says, _selection.told(*self._chosen)
        self.status = "<br>".join(filter(None, said))

    def _marks(self, start: float, stop: float, rows: float) -> Drawn:
        """Where the recording is not valid, what is chosen, where trials start while they can be told apart, tokens."""
        valid = self.session.intervals
        gaps = np.stack([[self.pyramid.start, *valid[:, 1]], [*valid[:, 0], self.pyramid.stop]], axis=1)
        seen = (gaps[:, 1] - gaps[:, 0] > (stop - start) / 2000) & (gaps[:, 1] > start) & (gaps[:, 0] < stop)
        onsets = self.session.trials["start"].to_numpy(float)
        onsets = onsets[(onsets >= start) & (onsets < stop)]
        n, (moments, units) = len(self._order), self._chosen
        shown = Drawn(over=[(a, -0.5, b, n - 0.5, "#9a9a9a40", _selection.CLEAR) for a, b in gaps[seen][:1000]],
                      lines=[(t, -0.5, t, n - 0.5, "#00000050", 0.8) for t in onsets if len(onsets) <= 60])
        layer = self._layers.at(self.tokens, start, stop, self._order)
        return shown + _selection.bands(moments, start, stop, units, self._order) + (
            layer.draw(rows) if layer else Drawn())

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

    # Shared by all plots.

    def _options(self, height: int, main: bool = False, **options) -> tuple:
        """Options of one plot: time is panned and zoomed, and only the raster has the tools and the axis beside it."""
        tools = {"default_tools": ["box_zoom", "reset", "save"] if main else [],
                 "tools": ["xpan", "xwheel_zoom", *(["box_select", "hover"] if main else [])],
                 "active_tools": ["xpan", "xwheel_zoom"]}
        whole = self.window or (self.pyramid.start, self.pyramid.stop)
        return (hv.Options("Overlay", height=height, responsive=True, xlim=whole, xlabel="time (s)", show_title=False,
                           toolbar="right" if main else None, fontsize={"ticks": "9pt", "labels": "10pt"}, **tools,
                           **options),
                *(hv.Options(kind, **tools) for kind in ("Image", "Curve")))

    def _frame(self, plot, element) -> None:
        """Times aligned under each other, and no way out of the recording."""
        plot.state.update(min_border_left=self._margin, min_border_right=MARGIN, min_border_top=4, min_border_bottom=4)
        time = plot.handles["x_range"]
        time.update(bounds=(self.pyramid.start, self.pyramid.stop), min_interval=0.01)
        if not time.js_property_callbacks:                              # this hook runs at every redraw
            for end in ("start", "end"):                                # a wheel that keeps no focus goes below it
                time.js_on_change(end, CustomJS(code=AT_LEAST))
        plot.state.toolbar.logo = None
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
        row = plot.handles["y_range"]
        row.update(bounds=(-0.5, n - 0.5), min_interval=1)
        if "marks" not in plot.handles:
            plot.handles["marks"] = Marks(plot.state)
        plot.handles["marks"].show(self._marks(*self._span(None), abs(row.end - row.start)))
        ticker = plot.handles["yaxis"].ticker
        if hasattr(ticker, "min_interval"):
            ticker.min_interval = 1                                     # no unit 89.5
        hover = next(iter(plot.state.select(type=HoverTool)), None)
        if hover is None or "units" in hover.tags:                      # this hook runs at every redraw
            return
        units, rates = self.session.units, self._columns["rate"]
        said = [f"{units['id'][u]} · {units['region'][u]} · {rates[u]:.2f} spikes/s" for u in self._order]
        plot.state.on_event(SelectionGeometry, self._boxed)
        for tool in plot.state.select(type=BoxSelectTool):              # it only says where the box is
            tool.update(renderers=[], description="Choose moments and units: drag a box over them")
        hover.update(tags=["units"], visible=False,
                     tooltips=[("unit", "$y{custom}"), ("time", "$x{0.000} s"), ("spikes here", "@spikes")],
                     formatters={"$y": CustomJSHover(args={"said": said},
                                                     code="return said[Math.round(special_vars.y)] ?? ''")})


def app() -> pn.viewable.Viewable:
    """The served page: a new state for every visitor."""
    return served("Raster", Raster, state=STATE)


if pn.state.served:
    built("Raster", app).servable(title="Raster · spike workbench")
