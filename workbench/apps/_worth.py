"""What modalities are worth, drawn: bars with their intervals, curves with their bands, and the shares of gradients."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import panel as pn
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Range1d, Span, Whisker

from workbench.colors import CATEGORIES, swatch
from workbench.display import Text, bars
from workbench.grids import INK, plain

COLUMNS = "at", "modality", "kind", "color", "value", "low", "high"
KINDS = {"contribution": ("shown − withheld", "#0072b2", 0.2),          # column → what it is, colour, place in its row
         "over_shuffled": ("shown − another window's", "#e69f00", -0.2)}
BITS = "bits per spike"


class Bars(pn.viewable.Viewer):
    """A bar for every modality and kind of difference, the first modality on top."""

    def __init__(self, modalities: Sequence[str], **params):
        super().__init__(**params)
        self.plot = plain(height=70 + 56 * len(modalities), y_range=FactorRange(factors=list(modalities)[::-1]),
                          x_range=Range1d(0, 1), x_axis_label=BITS, min_border_left=90, min_border_top=24)
        self.source = ColumnDataSource({name: [] for name in COLUMNS})
        drawn = self.plot.hbar(y="at", right="value", height=0.34, color="color", source=self.source)
        self.plot.add_layout(Whisker(base="at", lower="low", upper="high", dimension="width", source=self.source,
                                     line_color=INK, line_width=1.4, level="overlay"))
        self.plot.add_layout(Span(location=0, dimension="height", line_color=INK, line_width=1))
        self.plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("", "@modality, @kind"), (
            BITS, "@value{+0.0000}, 95 %: @low{+0.0000} to @high{+0.0000}")]))

    def show(self, table: pd.DataFrame, title: str) -> None:
        """table: `contributions` with a row a modality."""
        rows = []
        for kind, (says, color, place) in KINDS.items():
            interval = "interval" if kind == "contribution" else f"{kind}_interval"
            rows += [((row["modality"], place), row["modality"], says, color, row[kind], *row[interval])
                     for row in table.to_dict("records")]
        self.source.data = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
        ends = np.array([0.0, *(v for row in rows for v in row[-3:] if np.isfinite(v))])    # intervals too, all in view
        pad = 0.04 * (np.ptp(ends) or 1.0)
        self.plot.x_range.update(start=ends.min() - pad, end=ends.max() + pad)
        self.plot.title.text = title

    def __panel__(self) -> pn.viewable.Viewable:
        legend = Text(_legend({says: color for says, color, _ in KINDS.values()}), margin=(2, 10))
        return pn.Column(legend, pn.pane.Bokeh(self.plot, sizing_mode="stretch_width"), sizing_mode="stretch_width")


class Curves(pn.viewable.Viewer):
    """A line for every modality over a time, and a band, its 95 % interval."""

    def __init__(self, modalities: Sequence[str], label: str, **params):
        super().__init__(**params)
        self.plot = plain(height=270, x_axis_label=label, y_axis_label=BITS, min_border_left=70, min_border_top=24)
        self.sources = {name: ColumnDataSource({"x": [], "value": [], "low": [], "high": []}) for name in modalities}
        for i, (name, source) in enumerate(self.sources.items()):
            color = _color(i)
            self.plot.varea("x", "low", "high", source=source, color=color, alpha=0.18)
            line = self.plot.line("x", "value", source=source, color=color, line_width=2)
            dots = self.plot.scatter("x", "value", source=source, color=color, size=5)
            self.plot.add_tools(HoverTool(renderers=[line, dots], tooltips=[("", name), ("time", "@x{0.000} s"), (
                BITS, "@value{+0.0000}, 95 %: @low{+0.0000} to @high{+0.0000}")]))
        self.plot.add_layout(Span(location=0, dimension="width", line_color=INK, line_width=1))

    def show(self, table: pd.DataFrame, x: str, title: str) -> None:
        """table: `contributions` with a row for every modality and value of the column `x`, seconds."""
        for name, source in self.sources.items():
            own = table[table["modality"] == name] if len(table) else pd.DataFrame({x: [], "contribution": [],
                                                                                    "interval": []})
            low, high = np.array(own["interval"].tolist()).reshape(-1, 2).T
            source.data = {"x": own[x].to_numpy(float), "value": own["contribution"].to_numpy(float), "low": low,
                           "high": high}
        self.plot.title.text = title

    def __panel__(self) -> pn.viewable.Viewable:
        legend = Text(_legend({name: _color(i) for i, name in enumerate(self.sources)}), margin=(2, 10))
        return pn.Column(legend, pn.pane.Bokeh(self.plot, sizing_mode="stretch_width"), sizing_mode="stretch_width")


def shares(table: pd.DataFrame, windows: int, error: float) -> str:
    """The `ledger` of integrated gradients as HTML, and how far it is from complete."""
    rows = {f"{row['modality']}: {row['bits']:+.3f} [{row['interval'][0]:+.3f}, {row['interval'][1]:+.3f}]":
            [row["share"]] for row in table.to_dict("records")}
    return bars(f"Integrated gradients of the log-likelihood: {BITS}, 95 % interval, share", [""], rows, most=1.0) + (
        f'<p style="font-size:12px;opacity:.75">Teacher-forced, {windows} windows, zeros as the baseline; the sum '
        f"misses {100 * error:.2f} % of the difference. Spikes have no gradients here.</p>")


def _color(i: int) -> str:
    return CATEGORIES[i % len(CATEGORIES)]


def _legend(colors: dict[str, str]) -> str:
    return f'<div style="font-size:12px">{"".join(swatch(c) + html.escape(says) for says, c in colors.items())}</div>'
