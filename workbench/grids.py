"""Pictures of units × time beside each other: units down, sorted by region, time across, one zoom for all of them.

    Grid(session) → order [N] → picture() … → Bokeh figures that share both axes; hover names the unit
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from bokeh.models import ColorBar, ColumnDataSource, CustomJSHover, FixedTicker, HoverTool, Range1d, Span
from bokeh.plotting import figure

from workbench.analysis.raster import sort_units
from workbench.session import Session

ABOVE, BELOW, SIDE = 78, 30, 16                                         # pixels for title and colours, axis, last label
INK = "#333333"
NAME = 11                                                               # pixels that the name of a region needs
LONGEST = 18                                                            # letters of one that are shown


class Grid:
    """order [N]: rows of the session's unit table, first row of the pictures first. height: of a picture, pixels.

    margin: pixels to the left of a labelled picture, for what is to be aligned with it.
    """

    def __init__(self, session: Session, height: int = 360):
        self.height, regions = height, session.units["region"]
        self.order = sort_units(session, "region" if regions.nunique() > 1 else "table order")
        self.names = regions.to_numpy()[self.order]
        self.x, self.y = Range1d(), Range1d(len(self.order) - 0.5, -0.5, bounds=(-0.5, len(self.order) - 0.5))
        self.margin = 44 + round(6.5 * max(len(str(name)[:LONGEST]) for name in self.names))
        units = session.units["id"].iloc[self.order]
        said = [f"{unit} · {region}" for unit, region in zip(units, self.names, strict=True)]
        self._unit = CustomJSHover(args={"said": said}, code="return said[Math.round(special_vars.y)] ?? ''")

    def show(self, start: float, stop: float) -> None:
        """The seconds that all pictures show, and do not leave."""
        self.x.update(bounds=(start, stop), start=start, end=stop)      # in this order: a browser keeps to the old ones

    def picture(self, labelled: bool = False):
        """A figure of all units; lines between regions, whose names are beside it where `labelled`."""
        plot = plain(height=self.height + ABOVE + BELOW, x_range=self.x, y_range=self.y, min_border_top=ABOVE,
                     min_border_bottom=BELOW, min_border_left=self.margin if labelled else SIDE,
                     toolbar_location="above" if labelled else None, tools="pan,box_zoom,wheel_zoom,reset")
        edges = np.r_[-0.5, np.flatnonzero(self.names[1:] != self.names[:-1]) + 0.5, len(self.names) - 0.5]
        for edge in edges[1:-1]:
            plot.add_layout(Span(location=edge, dimension="width", line_color="#00000066", line_width=0.7))
        plot.yaxis.visible, plot.yaxis.axis_label = labelled, "unit"
        if len(edges) > 2:
            middles, last = {}, -np.inf
            for a, b in pairwise(edges):
                if ((a + b) / 2 - last) * self.height / len(self.names) >= NAME:            # else names would overlap
                    last = (a + b) / 2
                    middles[last] = str(self.names[int(b - 0.5)])[:LONGEST]
            plot.yaxis.update(axis_label="units by region", ticker=FixedTicker(ticks=list(middles)),
                              major_label_overrides=middles)
        return plot

    def colored(self, plot, name: str, mapper, source: ColumnDataSource) -> list:
        """A picture of the column `name` [N, T] from (x, y), dw wide and dh high, with its colours above it."""
        image = plot.image(name, "x", "y", "dw", "dh", color_mapper=mapper, source=source)
        plot.add_layout(ColorBar(color_mapper=mapper, height=8, padding=2, margin=0, major_label_text_color=INK,
                                 background_fill_color="#ffffff"), "above")
        return [image]

    def ticks(self, plot, color: str, source: ColumnDataSource):
        """Spikes as vertical ticks, the columns `time` and `row` of the source; a selection does not change them."""
        return plot.scatter("time", "row", source=source, marker="dash", angle=np.pi / 2, line_width=1.4,
                            size=float(np.clip(0.8 * self.height / len(self.order), 3, 14)), nonselection_alpha=1,
                            **{f"{state}color": color for state in ("", "selection_", "nonselection_")})

    def by_region(self, *values: np.ndarray) -> dict[str, list[float]]:
        """The mean in every region of values [N, …] in the order of the pictures."""
        return {str(name): [float(each[self.names == name].mean()) for each in values]
                for name in dict.fromkeys(self.names)}

    def hover(self, plot, glyphs: list, *more: tuple[str, str]) -> None:
        """Say the unit and the time under the pointer, and `more` (label, Bokeh's field)."""
        plot.add_tools(HoverTool(renderers=glyphs, formatters={"$y": self._unit},
                                 tooltips=[("unit", "$y{custom}"), ("time", "$x{0.000} s"), *more]))


def plain(**options):
    """A figure as wide as there is room, white also where the page around it is dark."""
    plot = figure(sizing_mode="stretch_width", min_border_right=SIDE, background_fill_color="#ffffff",
                  border_fill_color="#ffffff", **{"tools": "", "toolbar_location": None, **options})
    plot.title.update(text_font_size="12px", text_font_style="normal", text_color=INK)
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = INK
    plot.axis.minor_tick_line_color, plot.axis.axis_label_text_font_style = None, "normal"
    plot.grid.visible, plot.toolbar.logo = False, None
    return plot
