"""One window three times: its spikes, the forecast with everything shown, and the forecast without a modality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, LogColorMapper
from bokeh.palettes import Cividis256

from workbench.display import beside
from workbench.grids import Grid
from workbench.session import Session

SPIKE = "#1b1b1b"


class Beside(pn.viewable.Viewer):
    """Units down, the horizon across; both forecasts have the same colours."""

    def __init__(self, session: Session, **params):
        super().__init__(**params)
        self._grid, self.expected = Grid(session, height=300), LogColorMapper(Cividis256)
        self.spikes, self.images = ColumnDataSource(), ColumnDataSource()
        self.plots = [self._grid.picture(labelled=i == 0) for i in range(3)]
        self._grid.hover(self.plots[0], [self._grid.ticks(self.plots[0], SPIKE, self.spikes)])
        for plot, name in zip(self.plots[1:], ("shown", "without"), strict=True):
            drawn = self._grid.colored(plot, name, self.expected, self.images)
            self._grid.hover(plot, drawn, ("expected", f"@{name}{{0.0000}}"), ("spikes", "@counts"))

    def show(self, found, at: float, horizon: float) -> None:
        """found: `side_by_side` of the window whose horizon begins at `at` s and lasts `horizon` s."""
        order, (times, units) = self._grid.order, found.spikes
        self.spikes.data = {"time": at + times, "row": np.argsort(order)[units]}
        low, high = float(np.quantile(found.shown, 0.01)), float(max(found.shown.max(), found.without.max()))
        self.expected.update(low=max(low, 1e-6), high=max(high, 1.01 * low, 1e-5))
        one = {"x": at, "y": -0.5, "dw": horizon, "dh": len(order)}
        one |= {name: getattr(found, name)[order] for name in ("shown", "without", "counts")}
        self.images.data = {name: [value] for name, value in one.items()}
        self._grid.show(at, at + horizon)

    def title(self, titles: Sequence[str]) -> None:
        for plot, title in zip(self.plots, titles, strict=True):
            plot.title.text = title

    def __panel__(self) -> pn.viewable.Viewable:
        return beside(*(pn.pane.Bokeh(plot, margin=2, sizing_mode="stretch_width") for plot in self.plots))
