"""Points with colours, a legend, and a lasso: those left out of a choice stay where they are, in grey."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import panel as pn
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure

from workbench.analysis.trust import NEIGHBORS, SCORED
from workbench.colors import row_colors
from workbench.display import Text

UNKNOWN = "#c9c9c9"                                                     # points that have no label, or were not chosen


class Scatter(pn.viewable.Viewer):
    """about: what is said of every point under the pointer, name → [P]. chosen: called when the choice changes."""

    def __init__(self, about: dict[str, Sequence], chosen: Callable[[], None], *, size: int, **params):
        super().__init__(**params)
        number = len(next(iter(about.values())))
        nothing = np.zeros(number, np.float32)
        self._source = ColumnDataSource({"x": nothing, "y": nothing, "color": [UNKNOWN] * number,
                                         "label": [""] * number, **about})
        self._plot = figure(tools="lasso_select,box_select,pan,wheel_zoom,reset,save,hover", height=430,
                            active_drag="lasso_select", sizing_mode="stretch_width",
                            tooltips=[("", "@label"), *((name, f"@{{{name}}}") for name in about)])
        self._plot.scatter("x", "y", source=self._source, color="color", size=size, alpha=0.75, line_alpha=0,
                           selection_alpha=1.0, nonselection_color=UNKNOWN, nonselection_alpha=0.35)
        self._plot.grid.grid_line_alpha = 0.4
        self._source.selected.on_change("indices", lambda attr, old, new: chosen())
        self._legend = Text(sizing_mode="stretch_width", margin=(2, 10))

    def __panel__(self) -> pn.viewable.Viewable:
        return pn.Column(self._legend, pn.pane.Bokeh(self._plot, sizing_mode="stretch_width"),
                         sizing_mode="stretch_width")

    @property
    def at(self) -> np.ndarray:
        """Where the points are [P, 2]."""
        return np.stack([self._source.data["x"], self._source.data["y"]], axis=1)

    @property
    def chosen(self) -> np.ndarray:
        """Row numbers of the points inside the lasso."""
        return np.array(self._source.selected.indices, int)

    @chosen.setter
    def chosen(self, rows: np.ndarray) -> None:
        self._source.selected.indices = rows.tolist()

    def place(self, at: np.ndarray, title: str, axes: Sequence[str]) -> None:
        """Points to [P, 2]; what was chosen stays chosen."""
        self._source.data = {**self._source.data, "x": at[:, 0], "y": at[:, 1]}
        self._plot.title.text, (self._plot.xaxis.axis_label, self._plot.yaxis.axis_label) = title, axes

    def paint(self, values: pd.Series, name: str) -> None:
        """A colour for every value, grey where it is unknown."""
        there = values.notna().to_numpy()
        groups, palette, self._legend.object = row_colors(values[there], name, int(there.sum()))
        colors = np.full(len(values), UNKNOWN, dtype=object)
        colors[there] = np.array(palette, object)[groups]
        said = [f"{name} {v:.4g}" if isinstance(v, float) else f"{name} {v}" for v in values]
        self._source.data = {**self._source.data, "color": colors.tolist(),
                             "label": np.where(there, said, "").tolist()}


def components(share: np.ndarray) -> list[str]:
    """Names of the axes of a PCA."""
    return [f"PC{i} ({100 * part:.0f} % of variance)" for i, part in enumerate(share, 1)]


def believed(judged: pd.DataFrame, name: str, gap: float) -> str:
    """What `workbench.analysis.trust.judge` found, as HTML. name: of the label; gap: s between stretches of time."""
    cell = lambda text, how="td": f"<{how} style='text-align:right;padding-right:24px'>{text}</{how}>"
    measure, chance = judged["measure"].iloc[0], judged["chance"].iloc[0]
    head = "".join(cell(column, "th") for column in (
        "trustworthiness", f"{measure}, {NEIGHBORS} nearest points", f"{measure}, linear"))
    lines = "".join(f"<tr><td style='padding-right:24px'>{html.escape(str(row))}</td>" + "".join(
        cell("" if np.isnan(value) else f"{value:.2f}") for value in found) + "</tr>"
        for row, found in judged[["trustworthiness", "neighbours", "linear"]].iterrows())
    return (f"<b>How far to believe it</b><table style='font-size:13px'><tr><th></th>{head}</tr>{lines}</table>"
            f"<span style='opacity:.75;font-size:12px'>{html.escape(name)} told from the points of other stretches of "
            f"time, more than {gap:g} s away; five folds, no trial cut, at most {SCORED:,} points; knowing nothing "
            f"gives {chance:.2f}. Trustworthiness: whether neighbours in the picture are neighbours in full, 1 all of "
            "them, about 0.5 by chance.</span>")
