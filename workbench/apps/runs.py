"""The run monitor: one training run while it goes on, or as it ended. It reads the run's folder and nothing else.

    metrics.jsonl, what is new in it → curves;  status.json → state, progress, throughput;  Stop → a file STOP
    of several runs: a table of them to choose from; of several as one (a comparison, a sweep) its own table too

The last line of a cell is `run.watch()`; served, `?run=FOLDER` chooses the run, of those in `&folder=FOLDER` where the
address has that too; it is written anew as another is chosen. It works on a run of another kernel,
of another machine that shares the folder, or of last year. In a notebook it looks from a thread, because a cell that
waits for the run keeps the kernel from everything else. What a saved notebook keeps is the first look.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import panel as pn
import param

from workbench.apps._decoded import Decoded
from workbench.apps._run_curves import Curves
from workbench.apps._run_facts import facts, ink_of, opening, recipe_of, red, wrong
from workbench.apps._run_table import RunTable, measured
from workbench.apps._tiles import TABLE
from workbench.display import Dashboard, Text, address, built, home, in_kernel, page
from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.group import Group
from workbench.training.run import ENDED, Run

PATIENCE = 3                                                            # looks until a silent browser is helped
SELDOM = 6                                                              # looks at the run for one at all the others


class RunMonitor(Dashboard):
    """Loss, gradient norm, validation score (R² with the baselines' held-out R² dashed, or loss), progress, throughput,
    memory, Stop, Checkpoint now, Resume; a table of the runs where there are several.

    run: the folder of the run that is shown first; None: the newest. folder: where the runs are that can be chosen: by
    default the run alone, with those in it where it is several as one; without a run those in `runs`. interval:
    milliseconds between two looks. link: makes the address of a dashboard, link(name, run=FOLDER), for what opens the
    model; None: the code that does is shown. NoRun where there is none.
    """

    run = param.Selector(doc="Folder of the run that is shown")
    interval = param.Integer(500, bounds=(100, None))

    def __init__(self, run: str | Path | None = None, *, folder: str | Path | None = None,
                 link: Callable[..., str] | None = None, **params):
        super().__init__(**params)
        chosen = [str(Run(run).path)] if run is not None else []
        self.folder, self._link = storage.place(folder or run or "runs"), link
        self.param.run.objects = list(dict.fromkeys([*self._places(), *chosen]))
        self._curves, self._table = Curves(), RunTable(lambda place: setattr(self, "run", place))
        self._decoded = Decoded()
        self._head, self._alert, self._opens = (Text(sizing_mode="stretch_width", margin=(5, 10)) for _ in range(3))
        self._head.stylesheets = [TABLE]
        self._progress = Text(sizing_mode="stretch_width", margin=(12, 10, 2, 10))
        self._stop = pn.widgets.Button(label="Stop", color="warning", width=90)
        self._save = pn.widgets.Button(label="Checkpoint now", width=130)
        self._resume = pn.widgets.Button(label="Resume", color="primary", width=90)
        self._stop.on_click(lambda _: self._act("stop"))
        self._save.on_click(lambda _: self._act("checkpoint"))
        self._resume.on_click(lambda _: self._act("resume"))
        self._ticking, self._on_show, self._lock = None, False, threading.RLock()
        self.run = next(iter([*chosen, *self.param.run.objects]), None)  # which opens it
        if self.run is None:
            self._open()

    def code(self) -> str:
        """The cell that makes this view."""
        if self.run is None:
            return f"from workbench.apps.runs import RunMonitor\n\nRunMonitor(folder={str(self.folder)!r})"
        return f"import workbench\n\nworkbench.Run({self.run!r}).watch()"

    def _places(self) -> list[str]:
        """Folders of the runs to choose from, as they are now."""
        single = any((self.folder / name).is_file() for name in (Run.HOLDS, Group.HOLDS))
        return [place for path in ([self.folder] if single else _newest_first(self.folder))
                for place in _with_members(path)]

    @param.depends("run", watch=True)
    def _open(self) -> None:
        self._start_over()
        self._tick()

    def _start_over(self) -> None:
        """Blank everything, then show the run as it is now."""
        with self._lock, _at_once():
            self._looks, self._state = 0, ""
            self._tail = storage.Tail(storage.place(self.run or self.folder) / "metrics.jsonl")
            self._blank()
            self.refresh()

    def _blank(self) -> None:
        self._curves.start_over()
        self._decoded.offer(None, False)
        for part in (self._progress, self._stop, self._save, self._resume, self._alert, self._opens):
            part.visible = False
        self._head.object = self._alert.object = self._progress.object = ""

    def refresh(self) -> None:
        """Take in what the run has written since the last look; a folder that is gone is told in a sentence."""
        with self._lock, _at_once():
            try:
                self._look()
            except (WorkbenchError, OSError) as error:
                self._blank()
                self._survey()                                          # the others are there still
                self._complain(str(error))

    def _look(self) -> None:
        if self.run is None:
            self._head.object = (f"<b>No runs yet</b> in <code>{html.escape(str(self.folder))}</code>. Start one with "
                                 "<code>workbench.launch(\"demo\")</code>.")
            return
        run = Run(self.run)
        state = run.state                                               # asked first, so that the last look sees all
        new, anew = self._tail.look()
        if new or anew:
            self._curves.take(new, anew, run.status.get("valid_name"))
        self._baselines(run)
        self._say_table(run, state) if isinstance(run, Group) else self._say(run, state)
        self._complain(wrong(run, self._curves))
        if self._looks % SELDOM == 0 or state != self._state:
            self._survey()
            said = opening(run, self._link)
            self._opens.param.update(object=said, visible=bool(said))
            self._decoded.offer(None if isinstance(run, Group) else run, state == "finished")
        self._looks, self._state = self._looks + 1, state

    def _survey(self) -> None:
        """All runs that there are by now, where there are several."""
        try:
            places = self._places()
        except (WorkbenchError, OSError):                               # the run itself is gone, which will be said
            places = []
        offered = [*places, *[self.run] * (self.run not in places)]
        if offered != self.param.run.objects:
            self.param.run.objects = offered
        self._table.show(places if len(places) > 1 else [], self.run)

    def _complain(self, sentence: str) -> None:
        self._alert.param.update(object=red(sentence), visible=bool(sentence))

    def _baselines(self, run: Run) -> None:
        places = {"this run": run.path, **{p.parent.name: p.parent for p in run.path.glob("baselines/*/scores.json")}}
        for name, place in places.items():
            own = None if name in self._curves.dashed else storage.read_json(place / "scores.json")
            score = own and own["scores"].get(own["protocol"]["target"], {}).get("r2")
            if score is not None:                                       # else no target, or nothing there varied
                self._curves.dash(name, score, run.status.get("valid_name") != "loss")

    def _say(self, run: Run, state: str) -> None:
        resolved = storage.read_json(run.path / "resolved.json") or {}
        simulated = " <b>simulated data</b>" if any(r["simulated"] for r in resolved.get("recordings", [])) else ""
        share = (run.status.get("step") or 0) / (recipe_of(run.path) or run.recipe).budget.steps
        self._show(run, state, facts(run, state, self._curves), share, simulated)

    def _say_table(self, run: Group, state: str) -> None:
        """Of several runs as one: how many are done, and their table."""
        status = run.status
        of = len(run.plan["runs"])
        done = of - len(run.left)
        said = [f"{run.plan['kind']} of {of} runs, {done} done"]
        if state in ("running", "queued"):
            said.append(html.escape(status.get("stage", "starting")))
        self._show(run, state, said, done / of, below=measured(run.scores()))

    def _show(self, run: Run, state: str, said: list[str], share: float, beside: str = "", below: str = "") -> None:
        """The head, the progress and the buttons."""
        badge = f"<b style='color:{ink_of(state)}'>{state}</b>"
        self._head.object = (f"{badge} <code>{html.escape(str(run.path))}</code>{beside}<br>" + " · ".join(said) +
                             below)
        alive = state in ("running", "queued")
        self._progress.param.update(visible=alive or share > 0, object=(
            f'<progress max="1" value="{min(share, 1):.3f}" style="width:100%;height:14px;accent-color:#0072b2">'
            "</progress>"))
        self._stop.visible, self._resume.visible = alive, not alive and state != "finished"
        self._save.visible = alive and not isinstance(run, Group)

    def _act(self, verb: str) -> None:
        try:
            getattr(Run(self.run), verb)()
        except WorkbenchError as error:
            self._complain(str(error))
            return
        self._tick()
        self.refresh()

    @property
    def _every(self) -> int:
        """Milliseconds between two looks; in an object store, where each takes requests, at least two seconds."""
        return self.interval if self.run is None or storage.local(storage.place(self.run)) else max(self.interval, 2000)

    @property
    def _ended(self) -> bool:
        """Whether nothing that is on view can change any more."""
        try:
            return not self._table.going and (self.run is None or Run(self.run).state in ENDED)
        except (WorkbenchError, OSError):                               # its folder is gone
            return not self._table.going

    def _tick(self) -> None:
        """Look again and again until the run has ended."""
        if not self._on_show or self._ticking or self._ended:
            return
        if in_kernel() and not (pn.state.curdoc and pn.state.curdoc.session_context):
            self._ticking = threading.Thread(target=self._follow, daemon=True)
            self._ticking.start()
        else:
            self._ticking = pn.state.add_periodic_callback(self._look_again, period=self._every)

    def _look_again(self) -> bool:
        """True while there may be more to see."""
        ended = self._ended                                             # asked first, so that the last look sees all
        self.refresh()
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
            time.sleep(self._every / 1000)
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
        buttons = pn.Row(self._progress, self._stop, self._save, self._resume)
        several = not (self.folder / Run.HOLDS).is_file()
        self._view = pn.Column(*[self._table] * several, self._head, self._alert, buttons, self._opens, self._curves,
                               self._decoded, self.as_code("run"), sizing_mode="stretch_width")
        self._on_show = True
        self._tick()
        return self._view


def _at_once() -> AbstractContextManager:
    """What changes meanwhile is sent to a served page in one piece, and drawn once, as it is to a cell anyway."""
    served = pn.state.curdoc and pn.state.curdoc.session_context
    return pn.io.hold() if served else nullcontext()


def _newest_first(folder: Path) -> list[Path]:
    """The runs in a folder, as `runs` lists them, without reading their recipes."""
    found = [file.parent for name in (Run.HOLDS, Group.HOLDS) for file in folder.glob(f"*/{name}")]
    started = lambda path: (storage.read_json(path / "status.json") or {}).get("started") or 0
    return sorted(found, key=started, reverse=True)


def _with_members(path: str | Path) -> list[str]:
    """The run's folder and, of several runs as one, those of the runs in it."""
    run = Run(path)
    return [str(run.path), *(str(one.path) for one in getattr(run, "runs", {}).values())]


def app() -> pn.viewable.Viewable:
    """The served page: the run that `?run=FOLDER` names, or a choice of the runs in `?folder=` (else in `runs`)."""
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    hub = "app" in asked
    link = lambda name, **told: address(app=name, **told) if hub else name + address(**told)            # its neighbours
    monitor = RunMonitor(asked.get("run"), folder=asked.get("folder"), link=link)

    def remember(*_) -> None:
        listed = {} if str(monitor.folder) == monitor.run else {"folder": str(monitor.folder)}
        if pn.state.location and monitor.run:
            pn.state.location.update_query(run=monitor.run, **listed)

    monitor.param.watch(remember, "run")
    pn.state.onload(remember)
    return page("Runs", home(), monitor)


if pn.state.served:
    built("Runs", app).servable(title="Runs · spike workbench")
