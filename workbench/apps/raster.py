"""The raster: every spike of a recording, with its trials and behaviour on the same time axis.

    session → CountPyramid → shades, one row a unit; over them the tokens that a model makes of them (`_tokens`), and
    what is chosen (`_selection`); beneath: split, population rate, trials, series (`_beneath`) → plots (`_picture`)

The last line of a cell is `Raster(session)`; `panel serve workbench/apps/raster.py` serves it alone, and the hub
(`main.py`) as `?app=raster`. Only what is in view is counted (`workbench.analysis.raster`), so ten million spikes pan
and zoom like ten thousand, and the line above the picture always says what is drawn, from how much, at what resolution.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

import numpy as np
import pandas as pd
import panel as pn
import param
from bokeh.events import SelectionGeometry

from workbench.analysis.raster import CountPyramid, shade, sort_units, unit_columns
from workbench.apps import _selection, _tokens
from workbench.apps._beneath import Beneath, parts_of
from workbench.apps._marks import Drawn
from workbench.apps._picture import Picture
from workbench.apps._shown_in import shown_in
from workbench.colors import CATEGORIES, row_colors
from workbench.display import Dashboard, Text, alert, built, served
from workbench.errors import UnknownName, WorkbenchError
from workbench.selection import parsed, parsed_units
from workbench.session import Session, overlap
from workbench.training.run import Run

SHADES = 24                                                             # steps from few spikes to most
STATE = ("sort", "color", "series", "window", "tokens", "run", "moments", "chosen_units")      # in the address


class Seen(NamedTuple):
    """Spikes in view: counts and shades [R, C], the first row on top; their edges in seconds and in rows; in words."""

    counts: np.ndarray
    shades: np.ndarray
    start: float
    stop: float
    top: float
    bottom: float
    says: str


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
        self.whole = self.pyramid.start, self.pyramid.stop
        self._columns, self._layers = unit_columns(session), _tokens.Layers(session)
        self.beneath, self._pictures = Beneath(session), WeakSet()      # of every cell and page that shows this
        self._asked = None
        if sort is None:
            sort = "region" if session.units["region"].nunique() > 1 else "table order"
        if series is None:
            narrow = [name for name, s in session.series.items() if s.values.shape[1] <= len(CATEGORIES)]
            series = (narrow or list(session.series))[:2]
        self._alerts = pn.Column(sizing_mode="stretch_width")
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
        s, picture = self.session, Picture(self)
        self._pictures.add(picture)
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
        chosen = [self.param[name] for name in ("moments", "chosen_units", "run")]
        clear = pn.widgets.Button(label="Clear", description="Choose no moments and no units", margin=(4, 10),
                                  on_click=lambda _: self.param.update(moments="", chosen_units=""))
        lead = lambda *what: shown_in("raster", self.recording, self.session.id, *what)
        links = Text(pn.bind(lead, *chosen), margin=(10, 0))
        about = pn.Row(clear, links, visible=pn.bind(lambda *both: any(both), *chosen[:2]))
        return pn.Column(title, choose, self._alerts, picture.status, about, self._legend, self._split,
                         picture.plots, self.as_code(*STATE), sizing_mode="stretch_width")

    # The run, its split and its tokens.

    def _open(self, run: str) -> None:
        how = self._layers.open(run)
        self.beneath.parts, self._split.object = parts_of(self.session, how)
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
        self._mark()

    # What is chosen.

    @param.depends("moments", "chosen_units", watch=True)
    def _choose(self) -> None:
        self._chosen = parsed(self.moments), parsed_units(self.session, self.chosen_units)
        self._mark()

    def boxed(self, event: SelectionGeometry) -> None:
        """A box dragged on the raster chooses moments and units."""
        box = event.geometry
        if event.final and box["type"] == "rect":
            self.param.update(**_selection.of_a_box(self.session, [box[side] for side in ("x0", "y0", "x1", "y1")],
                                                    self.whole, self.order))

    def _around(self, moments: np.ndarray) -> tuple[float, float]:
        inside = moments[(moments[:, 1] > self.whole[0]) & (moments[:, 0] < self.whole[1])]
        if not len(inside):
            raise WorkbenchError(f"none of the chosen moments, {moments[0, 0]:g} to {moments[-1, 1]:g} s, lies in "
                                 f"{self.session.id!r}, {self.whole[0]:g} to {self.whole[1]:g} s")
        return _selection.around(inside, self.whole)

    # What is in view.

    @property
    def in_view(self) -> tuple[float, float]:
        """Seconds."""
        return self.window or self.whole

    def go(self, start: float, stop: float, asked: Picture | None = None) -> bool:
        """Show these seconds, as far as they are in the recording; False where they are shown already, or nothing is.

        asked: where somebody panned; `status` is of that one then.
        """
        before, seen = self.window, (max(start, self.whole[0]), min(stop, self.whole[1]))
        if seen[0] < seen[1]:
            self._asked = asked
            self.window = None if np.allclose(seen, self.whole, atol=1e-6, rtol=0) else seen
            self._asked = None
        return self.window != before

    def _each(self, do: Callable[[Picture], None]) -> None:
        """`do` of all pictures; of another visitor's when its document is not locked, as all but ours are now."""
        for picture in sorted(self._pictures, key=lambda one: one is self._asked):
            doc = picture.spikes.document
            if doc and doc.session_context and doc is not pn.state.curdoc:
                doc.add_next_tick_callback(partial(do, picture))
            else:
                do(picture)

    @param.depends("window", watch=True)
    def _moved(self) -> None:
        try:
            window = self._checked(self.window)
        except WorkbenchError:
            self.window = None
            raise
        if window != self.window:                                       # comes here again, with less
            self.window = window
            return
        self._each(Picture.show)
        self._look_unseen()

    @param.depends("sort", "color", "series", watch=True)
    def _rebuild(self) -> None:
        self.order = sort_units(self.session, self.sort, self._columns)
        self._groups, colors, self._legend.object = row_colors(
            self._columns.get(self.color), self.color, len(self.order))
        self.palette = [f"{color}{alpha:02x}" for color in colors
                        for alpha in [0, *np.linspace(48, 255, SHADES - 1).astype(int)]]
        self._each(Picture.build)
        self._look_unseen()

    def _look_unseen(self) -> None:
        if not self._pictures:                                          # so that the status is true before it is drawn
            self.look((-0.5, len(self.order) - 0.5))

    def _mark(self) -> None:
        self._each(Picture.mark)
        self.status = self.told(self._drawn)

    @property
    def names(self) -> np.ndarray | None:
        """Of what rows are sorted by, top first; None where these are numbers, or too many names for a plot."""
        values = self._columns.get(self.sort)
        if values is None or pd.api.types.is_numeric_dtype(values) or values.nunique() > 40:
            return None
        return values.to_numpy()[self.order]

    @property
    def said(self) -> list[str]:
        """What the pointer is told of every row."""
        units, rates = self.session.units, self._columns["rate"]
        return [f"{units['id'][u]} · {units['region'][u]} · {rates[u]:.2f} spikes/s" for u in self.order]

    def _checked(self, window) -> tuple[float, float] | None:
        if window is None:
            return None
        start, stop = max(window[0], self.whole[0]), min(window[1], self.whole[1])
        if not start < stop:
            raise WorkbenchError(f"the window {window[0]:g} to {window[1]:g} s shows nothing of {self.session.id!r}; "
                                 f"choose one inside {self.whole[0]:g} to {self.whole[1]:g} s")
        return start, stop

    def look(self, rows: tuple[float, float], width: int = 1000, height: int = 400) -> Seen:
        """The spikes of the rows between two edges in view, on so many pixels; `status` says what they are."""
        (top, bottom), (start, stop), n = sorted(rows), self.in_view, len(self.order)
        first, last = max(int(np.floor(top + 0.5)), 0), min(int(np.ceil(bottom + 0.5)), n)
        columns, height = max(width, 100), max(height, 50)
        drawn = self.pyramid.view(start, stop, columns, self.order, (first, last), height)
        density = drawn.spikes / max(drawn.counts.size, 1)
        if drawn.exact and density < 0.03:                              # lone spikes one pixel wide are hard to see
            columns //= 3 if density < 0.005 else 2
            drawn = self.pyramid.view(start, stop, columns, self.order, (first, last), height)
        self._drawn = self._says(drawn, last - first, (start, stop))
        self.status = self.told(self._drawn)
        k, counts = drawn.units_per_row, drawn.counts
        if not len(counts):                                             # a recording without units: one empty row
            counts = np.zeros((1, counts.shape[1]), np.uint32)
        group = self._groups[self.order[first:last:k]] if n else np.zeros(1, int)
        shades = (shade(counts, SHADES) + SHADES * group[:, None]).astype(np.min_scalar_type(len(self.palette)))
        return Seen(counts.astype(np.min_scalar_type(counts.max())), shades, drawn.start, drawn.stop,
                    first - 0.5, first - 0.5 + k * len(counts), self._drawn)    # few bytes, which may have far to go

    def _says(self, drawn, units: int, window: tuple[float, float]) -> str:
        total, n, width = len(self.session.spike_times), len(self.order), drawn.bin_size
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
        return (f"{simulated}{units:,} of {n:,} units{shared} · {spikes} · "
                f"{window[0]:,.2f} to {window[1]:,.2f} s{gaps}{finer}")

    def told(self, drawn: str) -> str:
        """What is drawn, in a line; which tokens, and what is chosen, in two more where there are any."""
        layer = self._layers.at(self.tokens, *self.in_view, self.order)
        return "<br>".join(filter(None, (drawn, layer and layer.says, _selection.told(*self._chosen))))

    def marks(self, rows: float) -> Drawn:
        """Where the recording is not valid, what is chosen, where trials start while they can be told apart, tokens.

        rows: how many are in view.
        """
        valid, (start, stop) = self.session.intervals, self.in_view
        gaps = np.stack([[self.whole[0], *valid[:, 1]], [*valid[:, 0], self.whole[1]]], axis=1)
        seen = (gaps[:, 1] - gaps[:, 0] > (stop - start) / 2000) & (gaps[:, 1] > start) & (gaps[:, 0] < stop)
        onsets = self.session.trials["start"].to_numpy(float)
        onsets = onsets[(onsets >= start) & (onsets < stop)]
        n, (moments, units) = len(self.order), self._chosen
        shown = Drawn(over=[(a, -0.5, b, n - 0.5, "#9a9a9a40", _selection.CLEAR) for a, b in gaps[seen][:1000]],
                      lines=[(t, -0.5, t, n - 0.5, "#00000050", 0.8) for t in onsets if len(onsets) <= 60])
        layer = self._layers.at(self.tokens, start, stop, self.order)
        return shown + _selection.bands(moments, start, stop, units, self.order) + (
            layer.draw(rows) if layer else Drawn())


def app() -> pn.viewable.Viewable:
    """The served page: a new state for every visitor."""
    return served("Raster", Raster, state=STATE)


if pn.state.served:
    built("Raster", app).servable(title="Raster · spike workbench")
