"""What lies beneath the raster on the same time axis: the split, the population's rate, trials, series."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import holoviews as hv
import numpy as np

from workbench.analysis.raster import envelope, population_rate, resample
from workbench.colors import CATEGORIES, swatch
from workbench.errors import BadRecording
from workbench.session import Session
from workbench.splits import split

PARTS = {"train": "#56b4e9", "valid": "#e69f00", "test": "#332288"}     # light, warm, dark: for any eye
MOST = 2000                                                             # boxes in view: beyond, thinner than a pixel


class Strip(NamedTuple):
    """One plot: how it is drawn from (x_range, y_range), its height in pixels, and options of its own.

    fit: whether its y axis follows what is in view. moves: whether it is drawn anew when the view does, as it must be
    where there is too much to draw it whole.
    """

    draw: Callable
    height: int
    options: dict
    fit: bool = False
    moves: bool = True


class Beneath:
    """The strips of a session. span: x_range → (start, stop), the seconds in view. parts: see `parts_of`."""

    def __init__(self, session: Session, span: Callable[[object], tuple[float, float]]):
        self.session, self.span, self.parts = session, span, {}

    def strips(self, series: Sequence[str]) -> list[Strip]:
        """Top first; what the session does not have is left out."""
        found = []
        if any(map(len, self.parts.values())):
            several = sum(map(len, self.parts.values())) > MOST
            found.append(Strip(self.split, 26, {"yticks": [(0.5, "split")]}, moves=several))
        if len(self.session.spike_times):
            found.append(Strip(self.population, 84, {"yticks": 3}, fit=True))
        if len(self.session.trials):
            several = len(self.session.trials) > MOST
            found.append(Strip(self.trials, 34, {"yticks": [(0.5, "trials")]}, moves=several))
        for name in series:
            columns = self.session.series[name].values.shape[1]
            wide = columns > len(CATEGORIES)
            own = {"invert_yaxis": True, "ylim": (-0.5, columns - 0.5)} if wide else {}     # as the units run down
            found.append(Strip(partial(self.wide_series if wide else self.narrow_series, name),
                               int(np.clip(2.5 * columns, 100, 320)), {"yticks": 3, **own}, fit=not wide))
        return found

    def split(self, x_range, y_range) -> hv.Overlay:
        """The parts as boxes; time that belongs to none is left empty."""
        start, stop = self.span(x_range)
        boxes = []
        for name, color in PARTS.items():
            rows = self.parts.get(name, np.empty((0, 2)))
            rows = rows[(rows[:, 1] > start) & (rows[:, 0] < stop)]
            rows = rows[::max(-(-len(rows) // MOST), 1)]
            boxes += [(a, 0, b, 1, name, color) for a, b in rows]
        return hv.Overlay([hv.Rectangles(boxes, ["time", "low", "until", "high"], ["part", "color"]).opts(
            color="color", line_alpha=0, tools=["hover"], hover_tooltips=["time", "until", "part"], ylabel="")])

    def population(self, x_range, y_range) -> hv.Overlay:
        start, stop = self.span(x_range)
        edges = np.linspace(start, stop, int(np.clip((stop - start) / 0.02, 1, 300)) + 1)         # 20 ms or wider
        rate = population_rate(self.session.spike_times, self.session.intervals, edges) / max(
            len(self.session.units), 1)
        line = hv.Curve(((edges[:-1] + edges[1:]) / 2, rate), "time", "population").opts(
            color="#777777", line_width=1, interpolation="steps-mid", ylabel="spikes/s\nper unit")
        return hv.Overlay([line])

    def trials(self, x_range, y_range) -> hv.Overlay:
        start, stop = self.span(x_range)
        trials = self.session.trials
        seen = np.flatnonzero((trials["stop"] > start) & (trials["start"] < stop))
        seen = seen[::max(-(-len(seen) // MOST), 1)]
        says = [c for c in trials.columns if c not in ("start", "stop")][:8]
        told = zip(seen, trials["start"].iloc[seen], trials["stop"].iloc[seen],
                   trials[says].iloc[seen].astype(str).itertuples(index=False), strict=True)
        rows = [(a, 0, b, 1, i, *more) for i, a, b, more in told]
        return hv.Overlay([
            hv.Rectangles([row for row in rows if row[4] % 2 == turn], ["time", "low", "until", "high"],
                          ["trial", *says]).opts(color=color, line_alpha=0, tools=["hover"], ylabel="")
            for turn, color in enumerate(["#88a6c4", "#c5d3e2"])])

    def narrow_series(self, name: str, x_range, y_range) -> hv.Overlay:
        """One line a column."""
        s = self.session.series[name]
        times, values = envelope(s.times, s.values, *self.span(x_range))
        columns = s.columns or range(values.shape[1])
        labels = [str(column) for column in columns] if len(columns) > 1 else [""]      # one needs no legend
        return hv.Overlay([
            hv.Curve((times, values[:, i]), "time", name, label=label).opts(
                color=CATEGORIES[i], line_width=1, ylabel=f"{name}\n({s.unit})" if s.unit else name)
            for i, label in enumerate(labels)]).opts(legend_position="right", legend_opts={
                "label_text_font_size": "8pt", "padding": 2, "spacing": 0, "margin": 4, "border_line_alpha": 0,
                "label_height": 12, "glyph_height": 12, "glyph_width": 12})

    def wide_series(self, name: str, x_range, y_range) -> hv.Overlay:
        """One row a column, the first on top, and a bar that says which colour is which value."""
        s, (start, stop) = self.session.series[name], self.span(x_range)
        values = resample(s.times, s.values, start, stop, 600)
        low, high = np.nanpercentile(values, [1, 99]) if np.isfinite(values).any() else (0, 1)
        rows = values.shape[1]
        middles = np.linspace(start, stop, 601)[:-1] + (stop - start) / 1200
        return hv.Overlay([hv.Image((middles, np.arange(rows), values.T), ["time", "column"], name,
                                    bounds=(start, -0.5, stop, rows - 0.5)).opts(
            cmap="viridis", clim=(low, max(high, low + 1e-9)), ylabel=name, clabel=s.unit, colorbar=True,
            colorbar_opts={"width": 10, "padding": 4, "major_label_text_font_size": "8pt"})])


def parts_of(session: Session, how: Mapping) -> tuple[dict[str, np.ndarray], str]:
    """The parts of `split(session, **how)`, and a legend as HTML, which says why where there are
    none."""
    label = f'<span style="opacity:.7">{"split of the run" if how else "default split"}, by {how.get("by", "time")}'
    try:
        parts = split(session, **how)
    except BadRecording as error:
        return {}, f'<div style="font-size:12px">{label}: none, {html.escape(str(error))}</span></div>'
    said = "".join(swatch(f"11px;background:{color}") + f"{name} {np.diff(parts[name]).sum():,.4g} s"
                   for name, color in PARTS.items())
    rest = session.duration - sum(np.diff(rows).sum() for rows in parts.values())
    said += f'<span style="opacity:.7;margin-left:10px">{rest:,.4g} s in no part</span>' if rest > 0.001 else ""
    return parts, f'<div style="font-size:12px">{label}</span>{said}</div>'
