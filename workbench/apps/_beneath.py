"""What lies beneath the raster on the same time axis: the split, the population's rate, trials, series."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Legend,
    LinearColorMapper,
    Plot,
    Range1d,
)

from workbench.analysis.raster import envelope, population_rate, resample
from workbench.colors import CATEGORIES, swatch
from workbench.errors import BadRecording
from workbench.grids import INK
from workbench.session import Session
from workbench.splits import split

PARTS = {"train": "#56b4e9", "valid": "#e69f00", "test": "#332288"}     # light, warm, dark: for any eye
TRIALS = np.array(["#88a6c4", "#c5d3e2"])                               # in turn
MOST = 2000                                                             # boxes in view: beyond, thinner than a pixel


class Strip(NamedTuple):
    """One plot, and what draws the seconds (start, stop) in it.

    moves: whether it is drawn anew when the view moves, as it must be where there is too much to draw it whole.
    """

    plot: Plot
    show: Callable[[float, float], None]
    moves: bool = True


class Beneath:
    """The strips of a session. parts: see `parts_of`."""

    def __init__(self, session: Session):
        self.session, self.parts = session, {}

    def strips(self, series: Sequence[str], frame: Callable[..., Plot]) -> list[Strip]:
        """Top first; what the session does not have is left out. frame(height): an empty plot on the time axis."""
        found, boxes = [], sum(map(len, self.parts.values()))
        if boxes:
            said = [("part", "@part"), ("time", "@left{0.000} to @right{0.000} s")]
            found.append(_boxes(frame(26), "split", self.split, said, moves=boxes > MOST))
        if len(self.session.spike_times):
            found.append(self._lines(frame(84), "spikes/s\nper unit", self.population, [""], ["#777777"], step=True))
        if len(self.session.trials):
            said = [("trial", "@trial"), ("time", "@left{0.000} to @right{0.000} s"),
                    *((name, f"@says{i}") for i, name in enumerate(self._told_of_trials()))]
            found.append(_boxes(frame(34), "trials", self.trials, said, moves=len(self.session.trials) > MOST))
        return [*found, *(self._series(name, frame) for name in series)]

    def split(self, start: float, stop: float) -> dict[str, Sequence]:
        """The parts as boxes; time that belongs to none is left empty."""
        found = {"left": [], "right": [], "color": [], "part": []}
        for name, color in PARTS.items():
            rows = self.parts.get(name, np.empty((0, 2)))
            rows = _thinned(rows[(rows[:, 1] > start) & (rows[:, 0] < stop)])
            for key, more in (("left", rows[:, 0].tolist()), ("right", rows[:, 1].tolist()),
                              ("color", [color] * len(rows)), ("part", [name] * len(rows))):
                found[key] += more
        return found

    def population(self, start: float, stop: float) -> tuple[np.ndarray, np.ndarray]:
        """Middles of bins of 20 ms or more [C] and spikes per second and unit in them [C, 1]."""
        edges = np.linspace(start, stop, int(np.clip((stop - start) / 0.02, 1, 300)) + 1)
        rate = population_rate(self.session.spike_times, self.session.intervals, edges)
        return (edges[:-1] + edges[1:]) / 2, rate[:, None] / max(len(self.session.units), 1)

    def _told_of_trials(self) -> list[str]:
        return [name for name in self.session.trials.columns if name not in ("start", "stop")][:8]

    def trials(self, start: float, stop: float) -> dict[str, Sequence]:
        """Trials as boxes, in two colours in turn, with what the table says of them."""
        trials = self.session.trials
        seen = _thinned(np.flatnonzero((trials["stop"] > start) & (trials["start"] < stop)))
        shown = trials.iloc[seen]
        says = {f"says{i}": shown[name].astype(str).tolist() for i, name in enumerate(self._told_of_trials())}
        return {"left": shown["start"].to_numpy(float), "right": shown["stop"].to_numpy(float),
                "color": TRIALS[seen % 2], "trial": seen, **says}

    def _series(self, name: str, frame: Callable[..., Plot]) -> Strip:
        s = self.session.series[name]
        columns, label = s.values.shape[1], f"{name}\n({s.unit})" if s.unit else name
        if columns > len(CATEGORIES):
            return self._rows(frame(int(np.clip(2.5 * columns, 100, 320))), name)
        names = [str(column) for column in s.columns or range(columns)]
        return self._lines(frame(100), label, lambda start, stop: envelope(s.times, s.values, start, stop), names,
                           CATEGORIES)

    def _lines(self, plot: Plot, label: str, values: Callable, names: Sequence[str], colors: Sequence[str],
               step: bool = False) -> Strip:
        """One line a column. values(start, stop) → times [T], values [T, D]."""
        source = ColumnDataSource({"time": [], **{f"y{i}": [] for i in range(len(names))}})
        draw = plot.step if step else plot.line
        how = {"mode": "center"} if step else {}
        drawn = [draw("time", f"y{i}", source=source, color=colors[i], **how) for i in range(len(names))]
        if len(names) > 1:                                              # one needs no legend
            plot.add_layout(Legend(items=[(name, [line]) for name, line in zip(names, drawn, strict=True)],
                                   click_policy="mute", location="center_left", label_text_font_size="8pt",
                                   label_text_color=INK, label_height=12, glyph_height=12, glyph_width=12, padding=2,
                                   spacing=0, margin=4, border_line_alpha=0, background_fill_alpha=0), "right")
        plot.yaxis.update(axis_label=label, ticker=BasicTicker(desired_num_ticks=3, num_minor_ticks=0))
        plot.y_range = Range1d()

        def show(start: float, stop: float) -> None:
            times, found = values(start, stop)
            source.data = {"time": times, **{f"y{i}": found[:, i] for i in range(len(names))}}
            finite = found[np.isfinite(found)]
            low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
            pad = 0.06 * (high - low) or 1.0
            plot.y_range.update(start=low - pad, end=high + pad)

        return Strip(plot, show)

    def _rows(self, plot: Plot, name: str) -> Strip:
        """One row a column, the first on top as the units are, and a bar that says which colour is which value."""
        s, source = self.session.series[name], ColumnDataSource({"image": [], "x": [], "dw": []})
        columns, colors = s.values.shape[1], LinearColorMapper("Viridis256", nan_color="#00000000")
        plot.image("image", x="x", y=-0.5, dw="dw", dh=columns, color_mapper=colors, source=source)
        plot.add_layout(ColorBar(color_mapper=colors, title=s.unit, width=10, padding=4, background_fill_alpha=0,
                                 major_label_text_font_size="8pt", major_label_text_color=INK, title_text_color=INK),
                        "right")
        plot.yaxis.update(axis_label=name, ticker=BasicTicker(desired_num_ticks=3, num_minor_ticks=0))
        plot.y_range = Range1d(columns - 0.5, -0.5)

        def show(start: float, stop: float) -> None:
            values = resample(s.times, s.values, start, stop, 600)
            low, high = np.nanpercentile(values, [1, 99]) if np.isfinite(values).any() else (0, 1)
            colors.update(low=low, high=max(high, low + 1e-9))
            source.data = {"image": [np.ascontiguousarray(values.T)], "x": [start], "dw": [stop - start]}

        return Strip(plot, show)


def _boxes(plot: Plot, label: str, boxes: Callable, said: list[tuple[str, str]], moves: bool) -> Strip:
    """boxes(start, stop) → columns left, right, color, and those that `said` tells of."""
    source = ColumnDataSource({"left": [], "right": [], "color": []})
    drawn = plot.quad(left="left", right="right", bottom=0, top=1, color="color", line_alpha=0, source=source)
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=said))
    plot.yaxis.update(ticker=FixedTicker(ticks=[0.5]), major_label_overrides={0.5: label})
    plot.y_range = Range1d(0, 1)

    def show(start: float, stop: float) -> None:
        source.data = boxes(start, stop)

    return Strip(plot, show, moves)


def _thinned(rows: np.ndarray) -> np.ndarray:
    return rows[::max(-(-len(rows) // MOST), 1)]


def parts_of(session: Session, how: Mapping) -> tuple[dict[str, np.ndarray], str]:
    """The parts of `split(session, **how)`, and a legend as HTML, which says why where there are
    none."""
    label = f'<span style="opacity:.7">{"split of the run" if how else "default split"}, by {how.get("by", "time")}'
    try:
        parts = split(session, **how)
    except BadRecording as error:
        return {}, f'<div style="font-size:12px">{label}: none, {html.escape(str(error))}</span></div>'
    said = "".join(swatch(color) + f"{name} {np.diff(parts[name]).sum():,.4g} s"
                   for name, color in PARTS.items())
    rest = session.duration - sum(np.diff(rows).sum() for rows in parts.values())
    said += f'<span style="opacity:.7;margin-left:10px">{rest:,.4g} s in no part</span>' if rest > 0.001 else ""
    return parts, f'<div style="font-size:12px">{label}</span>{said}</div>'
