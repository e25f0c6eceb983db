"""The curves of a run: loss, gradient norm and validation score by step, of every session too where there are several.

    metrics rows, as they come → step, loss, norm; scores → smoothed and thinned → three plots, one line a baseline
"""

from __future__ import annotations

import html
import math
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
from bokeh.models import BasicTickFormatter, ColumnDataSource, FixedTicker, HoverTool, Range1d
from bokeh.plotting import figure

from workbench.display import Text, beside

FEW = 30                                                                # points that are dots too
SHOWN = 2000                                                            # points of a curve, at most
COLORS = {"this run": "#0072b2", "ridge": "#6e6e6e", "gru": "#d55e00"}
OTHER = "#cc79a7"                                                       # any other baseline
EACH = ["#009e73", "#56b4e9", "#e69f00", "#332288", "#cc79a7", "#d55e00"]              # of sessions, where they are few
MANY = "#9a9a9a"                                                        # where they are more
TOOLS = "pan,wheel_zoom,box_zoom,reset"


class Curves(pn.viewable.Viewer):
    """loss, norm, valid, each: what is drawn, as column sources; dashed: baseline → R². `newest`: the last row."""

    def __init__(self, **params):
        super().__init__(**params)
        blank = lambda *names: ColumnDataSource({name: [] for name in names})
        self.loss, self.norm = blank("step", "loss", "smooth"), blank("step", "norm", "smooth")
        self.valid, self.each = blank("step", "valid"), blank("steps", "scores", "session", "color")
        share = dict(sizing_mode="stretch_width", toolbar_location="above")
        hover = dict(tooltips=[("step", "$x{0,0}"), ("", "$y{0.0000}")])
        self._loss = figure(title="training loss", height=250, tools=TOOLS, **share)
        self._norm = figure(title="gradient norm", height=190, tools=TOOLS, y_axis_type="log", x_axis_label="step",
                            x_range=self._loss.x_range, **share)
        self._norm.yaxis.update(ticker=FixedTicker(), formatter=BasicTickFormatter(precision=2))
        self._dots = []
        for plot, source, name in (self._loss, self.loss, "loss"), (self._norm, self.norm, "norm"):
            plot.line("step", name, source=source, color=COLORS["this run"], alpha=0.25)
            smooth = plot.line("step", "smooth", source=source, color=COLORS["this run"], line_width=2)
            plot.add_tools(HoverTool(renderers=[smooth], **hover))
            self._dots.append(plot.scatter("step", name, source=source, color=COLORS["this run"], size=5))
        self.score = figure(height=440, tools=TOOLS, x_range=self._loss.x_range, x_axis_label="step",
                            y_range=Range1d(-0.1, 1.0), **share)
        # No Span: where some leave and others come at once, a browser loses all that was sent with them.
        self._dashes = blank("y", "color")
        self.score.hspan("y", source=self._dashes, line_color="color", line_dash="dashed", line_width=2)
        thin = self.score.multi_line("steps", "scores", source=self.each, color="color", line_width=1)
        thick = self.score.line("step", "valid", source=self.valid, color=COLORS["this run"], line_width=2.5)
        self._marks = self.score.scatter("step", "valid", source=self.valid, color=COLORS["this run"], size=6)
        self.score.add_tools(HoverTool(renderers=[thick], **hover),
                             HoverTool(renderers=[thin], tooltips=[("", "@session"), ("step", "$x{0,0}")]))
        self._sessions = Text(sizing_mode="stretch_width", margin=(0, 10))
        wide = dict(sizing_mode="stretch_width")
        losses, norms, scores = (pn.pane.Bokeh(plot, **wide) for plot in (self._loss, self._norm, self.score))
        self._view = pn.Column(beside(pn.Column(losses, norms, **wide), scores), self._sessions, visible=False, **wide)
        self.start_over()

    def __panel__(self) -> pn.viewable.Viewable:
        return self._view

    @property
    def visible(self) -> bool:
        """Whether there is anything to draw."""
        return self._view.visible

    def start_over(self) -> None:
        """Blank everything, as for a run that has no row yet."""
        self.newest: dict[str, Any] = {}
        self.dashed: dict[str, float] = {}
        self._dashes.data = {"y": [], "color": []}
        self._forget()
        self._draw("")

    def _forget(self) -> None:
        self._step, self._losses, self._norm_of = array("q"), array("d"), array("d")
        self._scores: list[tuple[int, float, dict[str, float]]] = []    # step, of all, of each session

    def take(self, rows: Iterable[dict], anew: bool, name: str | None) -> None:
        """Draw rows that are new, or `anew` are all there are; `name` of the validation score: "R²" or "loss"."""
        if anew:
            self._forget()
        for row in rows:
            step = row.get("step")
            if not isinstance(step, int):
                continue
            while self._step and self._step[-1] >= step:                # a resumed run goes over them again
                for each in self._step, self._losses, self._norm_of:
                    each.pop()
            while self._scores and self._scores[-1][0] >= step:
                self._scores.pop()
            self._step.append(step)
            self._losses.append(_number(row.get("loss")))
            self._norm_of.append(_number(row.get("grad_norm")) or math.nan)             # a logarithm needs more than 0
            if row.get("valid") is not None:
                each = {id_: _number(score) for id_, score in (row.get("valid_sessions") or {}).items()}
                self._scores.append((step, _number(row["valid"]), each))
            self.newest = row
        self._draw(name)

    @property
    def lost_at(self) -> int | None:
        """The first of the newest steps whose loss is no number; None where the newest has one, or says none."""
        if not self._step or "loss" not in self.newest or math.isfinite(self._losses[-1]):
            return None
        known = np.flatnonzero(np.isfinite(np.array(self._losses)))
        return self._step[known[-1] + 1 if len(known) else 0]

    def dash(self, name: str, score: float, shown: bool) -> None:
        """The held-out R² of a baseline, or of this run, as a dashed line where the axis is one of R²."""
        self.dashed[name] = score
        if shown:
            self.score.visible = True
            self._dashes.stream({"y": [score], "color": [COLORS.get(name, OTHER)]})

    def _draw(self, name: str | None) -> None:
        steps = np.array(self._step, int)
        table = pd.DataFrame({"loss": np.array(self._losses), "norm": np.array(self._norm_of)})
        smooth = table.ewm(span=max(len(table) // 50, 2)).mean()
        every = np.arange(0, len(steps), -(-len(steps) // SHOWN) or 1)
        thin = np.unique(np.append(every, len(steps) - 1)) if len(steps) else every     # the newest always among them
        for source, what in (self.loss, "loss"), (self.norm, "norm"):
            source.data = {"step": steps[thin], what: table[what].to_numpy()[thin],
                           "smooth": smooth[what].to_numpy()[thin]}
        for dots in self._dots:                                         # a line of one point is nothing
            dots.visible = len(thin) < FEW
        self._marks.visible = len(self._scores) < FEW
        known = table["norm"].dropna()
        self._norm.visible = bool(len(known))
        if len(known):
            self._norm.yaxis.ticker.ticks = _ticks(known.min(), known.max())
        self.valid.data = {"step": [s for s, _, _ in self._scores], "valid": [v for _, v, _ in self._scores]}
        self._draw_sessions(name)
        self._scale(name)
        self.score.visible = bool(self._scores) or bool(len(self._dashes.data["y"]))
        self._view.visible = bool(len(steps))

    def _draw_sessions(self, name: str | None) -> None:
        """A thin line a session, and what each has now: beside its colour or, where they are many, in a table."""
        newest = self._scores[-1][2] if self._scores else {}
        colors = dict(zip(newest, EACH if len(newest) <= len(EACH) else [MANY] * len(newest), strict=False))
        of = {id_: [(step, each[id_]) for step, _, each in self._scores if id_ in each] for id_ in newest}
        self.each.data = {"steps": [[step for step, _ in line] for line in of.values()],
                          "scores": [[score for _, score in line] for line in of.values()],
                          "session": list(newest), "color": [colors[id_] for id_ in newest]}
        if not newest:
            self._sessions.object = ""
            return
        title = f"validation {name or 'score'} of {len(newest)} sessions at step {self._scores[-1][0]:,}"
        few = len(newest) <= len(EACH)
        worst = lambda each: (math.isfinite(each[1]), -each[1] if name == "loss" else each[1])
        line = "display:inline-block;width:18px;height:3px;vertical-align:middle;margin-right:5px"
        told = [f'<span style="{line};background:{colors[id_]}"></span>{html.escape(id_)} <b>{score:.3f}</b>'
                for id_, score in (newest.items() if few else sorted(newest.items(), key=worst))]
        self._sessions.object = (
            f'<div style="font-size:13px;margin:6px 0 3px">{html.escape(title)}{"" if few else ", worst first"}</div>'
            '<div style="font-size:12px;max-height:200px;overflow-y:auto"><div style="columns:200px">' +
            "".join(f'<div style="break-inside:avoid">{one}</div>' for one in told) + "</div></div>")

    def _scale(self, name: str | None) -> None:
        """The axis of what validation measures: R² up to 1, the dashed lines on it too; a loss wherever it is."""
        values = [v for _, all_, each in self._scores for v in (all_, *each.values()) if math.isfinite(v)]
        if name == "loss":
            low, high = (min(values), max(values)) if values else (0.0, 1.0)
            room = 0.05 * max(high - low, 1e-6)
            self.score.y_range.update(start=low - room, end=high + room)
            self.score.title.text = "validation loss"
        else:
            self.score.y_range.update(start=min(-0.1, max(min(values, default=0.0), -1.0) - 0.05), end=1.0)
            self.score.title.text = "R²: validation by step, baselines on held-out time dashed"


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers for a logarithmic axis, which by itself marks too many or none."""
    mantissas = (1, 2, 5) if high < 15 * low else (1, 3) if high < 300 * low else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
    inside = sum(low <= tick <= high for tick in ticks)
    return ticks if inside > 1 else [float(f"{each:.2g}") for each in (low, (low * high) ** 0.5, high)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
