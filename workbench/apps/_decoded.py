"""What a decoder says of held-out time, beside what was done: a trace for every dimension of the target.

    run → button → in the background: test part of its first recording → model, ridge → lines over the same time
"""

from __future__ import annotations

import html
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import panel as pn
from bokeh.models import ColumnDataSource, Range1d

from workbench.apps._background import Background
from workbench.apps._run_curves import COLORS
from workbench.display import Text, alert
from workbench.errors import WorkbenchError
from workbench.grids import INK, plain
from workbench.training import storage
from workbench.training.run import Run

log = logging.getLogger(__name__)

LONGEST, SHOWN, MOST = 60.0, 15.0, 3                                    # s that are decoded, s in view, dimensions


class Decoded(pn.viewable.Viewer):
    """A button, and what it brings: true and decoded traces, to be panned. Nothing for a run that decodes nothing."""

    def __init__(self, **params):
        super().__init__(**params)
        self._run, self._job, self._pool = None, None, ThreadPoolExecutor(1)
        self._background = Background(self._look)
        self._ask = pn.widgets.Button(label="Show decoded traces", width=190, visible=False)
        self._ask.on_click(lambda _: self.decode())
        self._says, self._body = Text(margin=(2, 10), sizing_mode="stretch_width"), pn.Column(
            sizing_mode="stretch_width")
        self.traces: dict[str, tuple[np.ndarray, np.ndarray]] = {}      # whose → times [T], values [T, D]

    def __panel__(self) -> pn.viewable.Viewable:
        view = pn.Column(self._ask, self._says, self._body, sizing_mode="stretch_width")
        self._background.shown(view)
        return view

    def offer(self, run: Run | None, finished: bool) -> None:
        """The button, for a finished run that was scored by what it decodes."""
        if not finished or run is None or self._run is None or run.path != self._run.path:
            self._run, self._job, self.traces = run, None, {}
            self._says.object = ""
            self._body.clear()
        self._ask.visible = bool(finished and run and not self._job and not self.traces and _target(run))

    def decode(self) -> Decoded:
        """Begin, in the background."""
        self._ask.visible, self._says.object = False, "decoding held-out time …"
        self._job = self._pool.submit(_decoded, self._run)
        self._background.start()
        return self

    def wait(self, timeout: float = 600) -> Decoded:
        self._background.wait(timeout)
        return self

    def _look(self) -> bool:
        if self._job is None or not self._job.done():
            return self._job is not None
        job, self._job = self._job, None
        try:
            self._draw(*job.result())
        except Exception as error:                                      # of whatever recording there is
            if not isinstance(error, WorkbenchError):
                log.exception("the traces cannot be shown")
            self._says.object, self._body[:] = "", [alert(error)]
        return False

    def _draw(self, session, target: str, traces: dict) -> None:
        self.traces, series = traces, session.get_series(target)
        times = next(iter(traces.values()))[0]
        x = Range1d(times[0], min(times[0] + SHOWN, times[-1]), bounds=(times[0], times[-1]))
        names, plots = series.columns or range(series.values.shape[1]), []
        for i, name in list(enumerate(names))[:MOST]:
            plot = plain(height=190, x_range=x, y_axis_label=f"{name} ({series.unit})" if series.unit else str(name),
                         tools="xpan,xwheel_zoom,reset", toolbar_location="right", min_border_left=70)
            for whose, (when, values) in traces.items():
                color = INK if whose == "true" else COLORS.get(whose, COLORS["this run"])
                plot.line("time", "value", source=ColumnDataSource({"time": when, "value": values[:, i]}), color=color,
                          line_width=1.2 if whose == "true" else 2, line_dash="dashed" if whose == "ridge" else "solid",
                          legend_label=whose)
            plot.legend.update(orientation="horizontal", location="top_right", padding=2, spacing=12, margin=2,
                               label_text_font_size="11px", background_fill_alpha=0.75, border_line_alpha=0)
            plots.append(plot)
        plots[-1].xaxis.axis_label = "time in the recording (s)"
        self._says.object = (
            f"<b>{html.escape(target)}</b> of {html.escape(session.id)}{' <b>SIMULATED</b>' * session.simulated}, "
            f"{times[0]:,.1f} to {times[-1]:,.1f} s of the test part, which no training has seen; predictions averaged "
            f"over overlapping windows{f'; {MOST} of {len(names)} columns' if len(names) > MOST else ''}. Pan, or zoom "
            "with the wheel.")
        self._body[:] = [pn.pane.Bokeh(plot, sizing_mode="stretch_width", margin=0) for plot in plots]


def _target(run: Run) -> str:
    """What the run was scored by decoding; "" where it decodes nothing, or is not scored."""
    own = storage.read_json(run.path / "scores.json") or {}
    target = (own.get("protocol") or {}).get("target") or ""
    return target if "r2" in own.get("scores", {}).get(target, {}) else ""


def _decoded(run: Run) -> tuple:
    """The first recording of the run, the target, and name → (times, values) of what is true and what is decoded."""
    from workbench.analysis.decoding import decode  # torch, which the page should not wait for
    from workbench.catalog import open_recordings
    from workbench.splits import split

    recipe, target = run.recipe, _target(run)
    session = open_recordings(recipe.data if isinstance(recipe.data, str) else recipe.data[0])[0]
    part = split(session, **recipe.split.model_dump())["test"]
    part = np.minimum(part, part[0, 0] + LONGEST)
    part, traces = part[part[:, 0] < part[:, 1]], {}
    ridge = Path(run.path) / "baselines" / "ridge"
    for whose, model in (("ridge", Run(ridge).model() if (ridge / "model").is_dir() else None),
                         ("this run", run.model())):
        if model is not None:
            found = decode(model, session, part, target)
            traces.setdefault("true", (found.times, found.true))
            traces[whose] = found.times, found.averaged
    return session, target, traces
