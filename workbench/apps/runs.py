"""The run monitor: one training run while it goes on, or as it ended. It reads the run's folder and nothing else.

    metrics.jsonl, from the byte last read → curves;  status.json → state, progress, throughput;  Stop → a file STOP
    of several runs as one (a comparison, a sweep): the table as far as it has come, and each of them to choose

The last line of a cell is `run.watch()`; served, `?run=FOLDER` chooses the run. It works on a run of another kernel,
of another machine that shares the folder, or of last year. In a notebook it looks from a thread, because a cell that
waits for the run keeps the kernel from everything else. What a saved notebook keeps is the first look.
"""

from __future__ import annotations

import html
import threading
import time
from pathlib import Path

import pandas as pd
import panel as pn
import param
from bokeh.models import ColumnDataSource, Range1d, Span
from bokeh.plotting import figure

from workbench.display import Dashboard, Text, alert, in_kernel, page
from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.group import Group
from workbench.training.run import ENDED, Run, newest_rows, runs

PATIENCE = 3                                                            # looks until a silent browser is helped
SHOWN = 2000                                                            # points of a curve, at most
COLORS = {"this run": "#0072b2", "ridge": "#6e6e6e", "gru": "#d55e00"}
STATES = {"finished": "#009e73", "running": "#0072b2", "queued": "#0072b2", "stopped": "#e69f00"}


class RunMonitor(Dashboard):
    """Loss, validation score (R² with the baselines' held-out R² dashed, or loss), progress, throughput, Stop,
    Checkpoint now, Resume.

    run: the run's folder; None: the newest run in `folder`. interval: milliseconds between two looks.
    """

    run = param.Selector(doc="Folder of the run that is shown")
    interval = param.Integer(1000, bounds=(100, None))

    def __init__(self, run: str | Path | None = None, *, folder: str | Path = "runs", **params):
        super().__init__(**params)
        known = [place for p in runs(folder).index for place in _with_members(p)]
        asked = _with_members(run) if run is not None else []
        first = next(iter([*asked, *known]), None)
        self.param.run.objects = list(dict.fromkeys([*asked, *known]))
        self._choose = len(asked) > 1 or (run is None and bool(known))
        self._folder = Path(folder).expanduser().resolve()
        self._curve = ColumnDataSource({"step": [], "loss": [], "smooth": []})
        self._valid = ColumnDataSource({"step": [], "valid": []})
        self._head = Text(sizing_mode="stretch_width")
        self._progress = pn.indicators.Progress(max=100, value=0, sizing_mode="stretch_width", margin=(0, 10))
        self._stop = pn.widgets.Button(label="Stop", color="warning", width=90)
        self._save = pn.widgets.Button(label="Checkpoint now", width=130)
        self._resume = pn.widgets.Button(label="Resume", color="primary", width=90)
        self._stop.on_click(lambda _: self._act("stop"))
        self._save.on_click(lambda _: self._act("checkpoint"))
        self._resume.on_click(lambda _: self._act("resume"))
        self._ticking, self._on_show, self._lock = None, False, threading.RLock()
        self._plots()
        self.run = first
        self._open()

    def _plots(self) -> None:
        """Both plots, shown once there is something to draw."""
        share = dict(height=260, sizing_mode="stretch_width", toolbar_location="above",
                     tools="pan,wheel_zoom,box_zoom,reset,hover", tooltips=[("step", "$x{0,0}"), ("", "$y{0.000}")])
        self._loss = figure(title="training loss", x_axis_label="step", **share)
        self._loss.line("step", "loss", source=self._curve, color=COLORS["this run"], alpha=0.25)
        self._loss.line("step", "smooth", source=self._curve, color=COLORS["this run"], line_width=2)
        self._score = figure(x_axis_label="step", x_range=self._loss.x_range, y_range=Range1d(-0.1, 1.0), **share)
        self._score.line("step", "valid", source=self._valid, color=COLORS["this run"], line_width=2)
        self._score.scatter("step", "valid", source=self._valid, color=COLORS["this run"], size=6)
        plots = (self._loss, self._score)
        self._curves = pn.Row(*(pn.pane.Bokeh(plot, sizing_mode="stretch_width") for plot in plots),
                              sizing_mode="stretch_width", visible=False)

    @param.depends("run", watch=True)
    def _open(self) -> None:
        self._start_over()
        self._tick()

    def _start_over(self) -> None:
        """Blank everything, then show the run as it is now."""
        with self._lock:
            self._rows, self._offset, self._dashed = [], 0, {}
            self._score.center = [r for r in self._score.center if not isinstance(r, Span)]
            self._curve.data, self._valid.data = {"step": [], "loss": [], "smooth": []}, {"step": [], "valid": []}
            for part in (self._curves, self._progress, self._stop, self._save, self._resume):
                part.visible = False
            self._head.object, self._progress.value = "", 0
            self.refresh()

    def refresh(self) -> None:
        """Take in what the run has written since the last look."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        if self.run is None:
            self._head.object = (f"<b>No runs yet</b> in <code>{html.escape(str(self._folder))}</code>. Start one with "
                                 "<code>workbench.launch(\"demo\")</code>.")
            return
        run = Run(self.run)
        new, self._offset = storage.rows(run.path / "metrics.jsonl", self._offset)
        if new:
            self._rows += new
            table = newest_rows(self._rows)
            smooth = table["loss"].ewm(span=max(len(table) // 50, 2)).mean()
            thin = slice(None, None, -(-len(table) // SHOWN))
            self._curve.data = {"step": table["step"][thin], "loss": table["loss"][thin], "smooth": smooth[thin]}
            if "valid" in table:
                valid = table.dropna(subset="valid")
                self._valid.data = {"step": valid["step"], "valid": valid["valid"]}
                self._scale(run.status.get("valid_name"), valid["valid"])
        self._curves.visible = bool(self._rows)
        self._baselines(run)
        self._say_table(run) if isinstance(run, Group) else self._say(run)

    def _scale(self, name: str | None, values: pd.Series) -> None:
        """The axis of what validation measures: R² up to 1, the dashed lines on it too; a loss wherever it is."""
        if name == "loss":
            room = 0.05 * max(values.max() - values.min(), 1e-6)
            self._score.y_range.update(start=values.min() - room, end=values.max() + room)
            self._score.title.text = "validation loss"
        else:
            self._score.y_range.update(start=min(-0.1, max(values.min(), -1.0) - 0.05), end=1.0)
            self._score.title.text = "R²: validation by step, baselines on held-out time dashed"

    def _baselines(self, run: Run) -> None:
        places = {"this run": run.path, **{p.parent.name: p.parent for p in run.path.glob("baselines/*/scores.json")}}
        for name, place in places.items():
            own = storage.read_json(place / "scores.json")
            if own and name not in self._dashed:
                score = own["scores"].get(own["protocol"]["target"], {}).get("r2")
                if score is None:                                       # no target, or nothing there varied
                    continue
                self._dashed[name] = score
                if run.status.get("valid_name") != "loss":
                    self._score.add_layout(Span(location=score, dimension="width", line_dash="dashed", line_width=2,
                                                line_color=COLORS.get(name, "#cc79a7")))

    def _say(self, run: Run) -> None:
        status, state = run.status, run.state
        recipe = run.recipe
        steps = recipe.budget.steps
        step = status.get("step") or 0
        facts = [f"{recipe.model.name} on {recipe.data if isinstance(recipe.data, str) else ', '.join(recipe.data)}"]
        if state in ("running", "queued"):
            facts.append(status.get("stage", "starting"))
        if step:
            facts.append(f"step {step:,} of {steps:,}")
        elif state == "finished":
            facts.append("solved at once, without steps")
        if status.get("spikes_per_s") and state == "running":
            facts.append(f"{status['spikes_per_s']:,.0f} spikes/s")
        if self._rows:
            facts.append(f"{100 * self._rows[-1].get('data_wait', 0):.0f} % of a step waits for data")
        if status.get("valid") is not None:
            facts.append(f"best validation {status['valid_name']} {status['valid']:.3f}")
        facts += [f"<span style='color:{COLORS.get(n, '#cc79a7')}'>held-out R² of {html.escape(n)} {r2:.3f}</span>"
                  for n, r2 in self._dashed.items()]
        resolved = storage.read_json(run.path / "resolved.json") or {}
        simulated = " <b>simulated data</b>" if any(r["simulated"] for r in resolved.get("recordings", [])) else ""
        self._show(run, state, facts, step / steps, simulated)

    def _say_table(self, run: Group) -> None:
        """Of several runs as one: how many are done, and their table."""
        status, state, table = run.status, run.state, run.scores().dropna(axis=1, how="all")
        of = len(run.plan["runs"])
        done = of - len(run.left)
        facts = [f"{run.plan['kind']} of {of} runs, {done} done"]
        if state in ("running", "queued"):
            facts.append(html.escape(status.get("stage", "starting")))
        # nbclient, which executes saved notebooks, fails over a message that holds the word "state".
        shown = table.to_html(na_rep="", float_format="{:.4g}".format, border=0).replace("state", "st&#97;te")
        self._show(run, state, facts, done / of, below=f"<div style='overflow-x:auto'>{shown}</div>")

    def _show(self, run: Run, state: str, facts: list[str], share: float, beside: str = "", below: str = "") -> None:
        """The head, the progress and the buttons."""
        if run.error:
            facts.append(f"<span style='color:#b00020'>{html.escape(run.error)}</span>")
        badge = f"<b style='color:{STATES.get(state, '#b00020')}'>{state}</b>"
        self._head.object = (f"{badge} <code>{html.escape(str(run.path))}</code>{beside}<br>" + " · ".join(facts) +
                             below)
        alive = state in ("running", "queued")
        self._progress.value = round(100 * min(share, 1))
        self._progress.param.update(active=state == "running", visible=alive or share > 0)
        self._stop.visible, self._resume.visible = alive, not alive and state != "finished"
        self._save.visible = alive and not isinstance(run, Group)

    def _act(self, verb: str) -> None:
        getattr(Run(self.run), verb)()
        self._tick()
        self.refresh()

    def _tick(self) -> None:
        """Look again and again until the run has ended."""
        if not self._on_show or self._ticking or self.run is None or Run(self.run).state in ENDED:
            return
        if in_kernel() and not (pn.state.curdoc and pn.state.curdoc.session_context):
            self._ticking = threading.Thread(target=self._follow, daemon=True)
            self._ticking.start()
        else:
            self._ticking = pn.state.add_periodic_callback(self._look_again, period=self.interval)

    def _look_again(self) -> bool:
        """True while there may be more to see."""
        try:
            ended = Run(self.run).state in ENDED                        # asked first, so that the last look sees all
            self.refresh()
        except WorkbenchError as error:                                 # its folder is gone
            ended, self._head.object = True, html.escape(str(error))
        if ended and not isinstance(self._ticking, threading.Thread):
            self._ticking.stop()
            self._ticking = None
        return not ended

    def _follow(self) -> None:
        """Look from a thread of a kernel, which may be busy with a cell that waits for the run.

        The browser opens the line that changes are sent along by asking the kernel, and a busy one does not answer. So
        the line is opened from here, and when the browser's own replaces it, everything is sent once more: a change
        sent before the browser listened is lost.
        """
        line, own, looks, more = None, None, 0, True
        while more or line is own:
            time.sleep(self.interval / 1000)
            looks += 1
            for comm in [pn.state._views[ref][3] for ref in self._view._models if ref in pn.state._views]:
                if comm._comm is None and looks >= PATIENCE:
                    comm.init()
                    own = comm._comm
                if comm._comm is None:
                    continue
                if comm._comm is not line:
                    line = comm._comm
                    self._start_over()
                more = self._look_again()
            pn.io.push_notebook(self._view)
        self._ticking = None

    def __panel__(self) -> pn.viewable.Viewable:
        chooser = [pn.widgets.Select.from_param(self.param.run, label="Run", sizing_mode="stretch_width")]
        buttons = pn.Row(self._progress, self._stop, self._save, self._resume)
        self._view = pn.Column(*chooser * self._choose, self._head, buttons, self._curves, sizing_mode="stretch_width")
        self._on_show = True
        self._tick()
        return self._view


def _with_members(path: str | Path) -> list[str]:
    """The run's folder and, of several runs as one, those of the runs in it."""
    run = Run(path)
    return [str(run.path), *(str(one.path) for one in getattr(run, "runs", {}).values())]


def app() -> pn.viewable.Viewable:
    """The served page: the run that `?run=FOLDER` names, or a choice of the runs in `?folder=` (else in `runs`)."""
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    try:
        view = RunMonitor(asked.get("run"), folder=asked.get("folder", "runs"))
    except WorkbenchError as error:
        return page("Runs", alert(error))
    home = pn.pane.HTML('<a href="?" style="color:#0072b2">All dashboards</a>', visible="app" in asked, margin=(0, 10))
    return page("Runs", home, view)


if pn.state.served:
    app().servable(title="Runs · spike workbench")
