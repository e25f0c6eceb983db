"""What lies under and over the spikes of a raster.

    boxes (left, bottom, right, top, fill, line) · lines (x0, y0, x1, y1, color, width) · a path · points → Marks
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource

BOX, LINE = ("left", "bottom", "right", "top", "fill", "line"), ("x0", "y0", "x1", "y1", "color", "width")
INK = "#000000b0"


class Drawn(NamedTuple):
    """What is to be seen. under, over: boxes; points: (seconds [S], rows [S]), joined in their order where `path`."""

    under: Sequence[tuple] = ()
    over: Sequence[tuple] = ()
    lines: Sequence[tuple] = ()
    points: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))
    path: bool = False

    def __add__(self, other: Drawn) -> Drawn:
        return Drawn([*self.under, *other.under], [*self.over, *other.over], [*self.lines, *other.lines],
                     max(self.points, other.points, key=lambda both: len(both[0])), self.path or other.path)


class Marks:
    """The marks of one Bokeh figure, which change as one."""

    def __init__(self, figure):
        self.sources = {name: ColumnDataSource() for name in ("under", "over", "lines", "path", "points")}
        self.show(Drawn())
        for image in figure.renderers:                                  # between what is under and over them, and
            image.level = "underlay"                                    # all of it inside the frame
        for name, level in (("under", "image"), ("over", "glyph")):
            figure.quad("left", "right", "top", "bottom", fill_color="fill", line_color="line",
                        source=self.sources[name], level=level)
        figure.segment(*LINE[:4], color="color", line_width="width", source=self.sources["lines"], level="glyph")
        figure.line("x", "y", color=INK, line_width=0.8, source=self.sources["path"], level="glyph")
        figure.scatter("x", "y", size=5, fill_alpha=0, line_color=INK, source=self.sources["points"],
                       level="glyph")

    def show(self, drawn: Drawn) -> None:
        for name, keys in (("under", BOX), ("over", BOX), ("lines", LINE)):
            rows = getattr(drawn, name)
            self.sources[name].data = {key: [row[i] for row in rows] for i, key in enumerate(keys)}
        points = dict(zip("xy", drawn.points, strict=True))
        self.sources["points"].data = points
        self.sources["path"].data = points if drawn.path else {"x": [], "y": []}
