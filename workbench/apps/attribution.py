"""Attribution: what each modality is worth to a forecast, to which region, when; and one window with and without it.

    model, session → windows of held-out time ─┬→ `measure` → bars, curves over the horizon and in the trial
                                               └→ `integrated_gradients` of the region, beside the bars
    window, modality → its spikes · the forecast with everything · the forecast without the modality

The last line of a cell is `Attribution(model, session)`, the model an object, a run or its folder; served,
`?run=FOLDER&session=NAME` opens it, and the hub (`main.py`) as `?app=attribution`. Without a run there is an example: a
small network, trained on the spot on a simulated recording whose drives are known.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import panel as pn
import param

from workbench.apps._background import Background
from workbench.apps._beside import Beside
from workbench.apps._example import EXAMPLE, example, excused
from workbench.apps._of_a_run import page_of_a_run
from workbench.apps._run_facts import opened_by
from workbench.apps._worth import Bars, Curves, shares
from workbench.display import Dashboard, Text, alert, beside, built
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.selection import parsed, parsed_units, within
from workbench.training.run import Run

log = logging.getLogger(__name__)

CHOICE = ("moments", "chosen_units")
STATE = ("region", "phase", "event", "modality", "window", *CHOICE)     # what the address remembers
ALL, CHOSEN, UNITS = "all", "chosen moments", "chosen units"
PHASE = 0.4                                                             # s after an event that are a phase
AROUND = -0.2, 1.0, 0.1                                                 # s, of an event: from, until, step of the curve
GRADIENTS = 16                                                          # windows that gradients are taken of


class Attribution(Dashboard):
    """Contributions of a model's conditions to its forecasts of one session.

    model: an object, a `Run`, or the folder of a run or of weights. session: a Session, its catalog name, path or id in
    the run; None: the run's first. modalities: name → conditions, by default each condition and "spikes". intervals
    [n, 2]: where forecasts lie, by default the test part of the run's split. phases: name → (column of trials, from,
    until), s; by default the first 0.4 s after each event. most: windows at most, spread evenly. moments, chosen_units:
    chosen in another dashboard, a phase and a region of their own. WorkbenchError for a model without conditions, and
    for unknown names.
    """

    region = param.Selector(default=ALL, objects=[ALL], doc="Whose spikes are forecast")
    phase = param.Selector(default=ALL, objects=[ALL], doc="Which part of trials the bars are of")
    event = param.Selector(default="", objects=[""], doc="The event that time in the trial is counted from")
    modality = param.Selector(default="", objects=[""], doc="What is withheld from the window that is drawn")
    window = param.Integer(default=0, bounds=(0, None), doc="Which of the windows is drawn")
    moments = param.String(constant=True, doc="Stretches of time chosen elsewhere, from:until,… s: a phase")
    chosen_units = param.String(constant=True, doc="Ids of units chosen elsewhere: a region")

    def __init__(self, model, session=None, *, modalities: Mapping[str, Sequence[str]] | None = None, intervals=None,
                 phases: Mapping[str, tuple[str, float, float]] | None = None, most: int = 64, region: str = "",
                 phase: str = "", event: str = "", modality: str = "", window: int | None = None, moments: str = "",
                 chosen_units: str = "", **params):
        super().__init__(moments=moments, chosen_units=chosen_units, **params)
        from workbench.analysis import attribution  # torch, which the hub should not wait for
        from workbench.analysis.latents import opened

        if find_spec("captum"):
            import_module("captum.attr")                                # in the background others would see half of it
        self._of, self._folder = attribution, getattr(model, "path", model if isinstance(model, str | Path) else None)
        how = _split(model)
        self.model, (self.session,) = opened(model, session)
        self.opens = session if isinstance(session, str) else self.session.id           # in an address, or a cell
        self.modalities = attribution.modalities_of(self.model, modalities)
        self._asked, events = modalities, attribution.events_of(self.session)
        self.phases = dict(phases or {f"{PHASE:g} s from {name}": (name, 0.0, PHASE) for name in events})
        intervals = _held_out(self.session, how) if intervals is None else intervals
        self.origins = attribution.origins(self.model, self.session, intervals, most=most)
        self.gains, self.gradients, self._drawn, self._told, self._closed = None, {}, None, (0, 0), False
        self._alerts, self._worth, self._pictures = (pn.Column(sizing_mode="stretch_width") for _ in range(3))
        self._chosen_rows = parsed_units(self.session, chosen_units)
        held = self._chosen_windows(moments)
        phase, region = phase or (CHOSEN if len(held) else ALL), region or (UNITS if len(self._chosen_rows) else ALL)
        window = window if window is not None else held[0] if len(held) else 0
        for name, value, known in (("region", region, [ALL, *[UNITS] * bool(len(self._chosen_rows)),
                                                       *self.session.units["region"].unique()]),
                                   ("phase", phase, [ALL, *self.phases]), ("event", event, events or [""]),
                                   ("modality", modality, list(self.modalities))):
            self.param[name].objects = known
            if (value or known[0]) not in known:
                raise UnknownName(name, value, known, where=f"session {self.session.id!r}")
            with param.parameterized.discard_events(self):
                setattr(self, name, value or known[0])
        self.param.window.bounds = (0, len(self.origins) - 1)
        with param.parameterized.discard_events(self):
            self.window = min(max(int(window), 0), len(self.origins) - 1)
        self._bars, self._lags, self._trial = Bars(self.modalities), *(Curves(self.modalities, label) for label in (
            "time from the origin (s)", "time from the event (s)"))
        self._ledger, self._doing = (Text(sizing_mode="stretch_width", margin=(2, 10)) for _ in range(2))
        self._beside = Beside(self.session)
        self._pool, self._background, self._jobs = ThreadPoolExecutor(1), Background(self._look), {}
        self._submit("measure", lambda: attribution.measure(
            self.model, self.session, intervals, modalities=modalities, most=most, progress=self._progress))
        self._forecast()
        self._ascribe()

    # What a notebook asks for.

    def wait(self, timeout: float = 600) -> Attribution:
        """Wait for what is being computed."""
        self._background.wait(timeout)
        return self

    def table(self, by: str | Sequence[str] = ()) -> pd.DataFrame:
        """`contributions` of the chosen region and phase, by more if asked. Once `wait` is over."""
        by = (by,) if isinstance(by, str) else tuple(by)
        if self.phase == ALL:
            return self._of.contributions(self._own, by)
        return self._of.contributions(self._own, ("phase", *by), {self.phase: self.phases[self.phase]})

    @property
    def _own(self):
        """The gains of the chosen region."""
        return self.gains if self.region == ALL else self.gains.of(self._units)

    @property
    def _units(self) -> np.ndarray:
        if self.region == UNITS:
            return self._chosen_rows
        region = self.session.units["region"].to_numpy()
        return np.flatnonzero(np.full(len(region), self.region == ALL) | (region == self.region))

    def _chosen_windows(self, moments: str) -> np.ndarray:
        """The windows whose horizons hold some of the chosen moments, a phase of their own then; said where none is."""
        stretches, bin_ = parsed(moments), self.model.bin_size
        times = self.origins[:, None] + (np.arange(round(self.model.horizon / bin_)) + 0.5) * bin_
        held = np.flatnonzero(within(times, stretches).any(1))
        if len(held):
            self.phases[CHOSEN] = stretches
        elif len(stretches):
            self._alerts.append(alert(
                f"none of the {len(self.origins)} windows of held-out time lies in the chosen moments, "
                f"{stretches[0, 0]:,.2f} to {stretches[-1, 1]:,.2f} s: choose some of the test part of the split"))
        return held

    def code(self) -> str:
        """The cell that makes this view."""
        what = "model, session" if self._folder is None else f"{str(self._folder)!r}, {self.opens!r}"
        of = f"# a {type(self.model).__name__} and {self.opens!r}\n" if self._folder is None else ""
        grouped = "" if self._asked is None else f"            modalities={dict(self._asked)!r},\n"
        chosen = "".join(f",\n            {name}={getattr(self, name)!r}" for name in CHOICE if getattr(self, name))
        return (f"from workbench.apps.attribution import Attribution\n\n{of}Attribution({what},\n{grouped}"
                f"            region={self.region!r}, phase={self.phase!r}, event={self.event!r}, "
                f"modality={self.modality!r}, window={self.window}{chosen})")

    def close(self) -> None:
        """End what goes on in the background."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    # The background: one thread, so that the model does one thing at a time.

    def _submit(self, what: str, work: Callable) -> None:
        """Do it in the background; what was asked before under that name is left undone."""
        if what in self._jobs:
            self._jobs[what].cancel()
        self._jobs[what] = self._pool.submit(work)
        self._background.start()

    def _progress(self, done: int, of: int) -> None:
        if self._closed:
            raise CancelledError
        self._told = done, of

    def _look(self) -> bool:
        """Take in what was done; True while more is under way."""
        for what in [name for name, job in self._jobs.items() if job.done()]:
            job: Future = self._jobs.pop(what)
            if job.cancelled():
                continue
            if error := job.exception():
                if not isinstance(error, WorkbenchError):
                    log.error("attribution failed", exc_info=error)
                self._alerts.append(alert(error))
            else:
                getattr(self, f"_took_{what}")(job.result())
        done, of = self._told
        doing = {"measure": f"<b>Forecasting</b> with and without: {done} of {of or '…'}",
                 "gradients": f"<b>Integrated gradients</b> of {html.escape(self.region)}", "draw": "a window"}
        self._doing.object = " · ".join(doing[name] for name in self._jobs) + " …" * bool(self._jobs)
        return bool(self._jobs)

    def _took_measure(self, gains) -> None:
        self.gains = gains
        self._summarise()
        self._title()
        # Bokeh fails on axes that change unseen, so now
        self._worth[:] = [beside(self._bars, self._ledger), beside(self._lags, self._trial)]

    @param.depends("region", "phase", "event", watch=True)
    def _summarise(self) -> None:
        """Bars and curves of the chosen region and phase."""
        if self.gains is None:
            return
        whose = "all regions" if self.region == ALL else self.region
        when = "" if self.phase == ALL else f", {self.phase}"
        total = self.table()
        spikes = int(total["spikes"].iloc[0]) if len(total) else 0
        bits = f": {total['bits'].iloc[0]:+.3f} bits per spike with everything" if spikes else ": not a spike"
        self._bars.show(total, f"{whose}{when}, {spikes:,} spikes{bits}")
        self._lags.show(self.table("lag"), "lag", f"over the horizon, {whose}{when}")
        if not self.event:
            return self._trial.show(pd.DataFrame(), "phase", "this recording has no events in trials")
        stretches = self._of.since(self.event, *AROUND[:2], max(AROUND[2], self.model.bin_size))
        table = self._of.contributions(self._own, "phase", stretches)
        self._trial.show(table, "phase", f"in the trial, {whose}: time from {self.event}")

    @param.depends("region", watch=True)
    def _ascribe(self) -> None:
        """Integrated gradients of the chosen region, once."""
        if self.region in self.gradients:
            return self._account()
        region, target, self._ledger.object = self.region, (self._units, slice(None)), ""
        at = self.origins[np.unique(np.linspace(0, len(self.origins) - 1, GRADIENTS).round().astype(int))]
        self._submit("gradients", lambda: (region, self._of.integrated_gradients(
            self.model, self._of.windows(self.model, self.session, at), target=target, steps=32)))

    def _took_gradients(self, found: tuple) -> None:
        self.gradients[found[0]] = found[1]
        if self.region in self.gradients:
            self._account()

    def _account(self) -> None:
        found = self.gradients[self.region]
        shown = {name: names for name, names in self.modalities.items() if set(names) <= set(found.attributions)}
        self._ledger.object = shares(self._of.ledger(found, shown), len(found.spikes), found.error)

    # One window.

    @param.depends("window", "modality", watch=True)
    def _forecast(self) -> None:
        at, names = self.origins[self.window], self.modalities[self.modality]
        self._submit("draw", lambda: (at, self._of.side_by_side(self.model, self.session, at, names)))

    def _took_draw(self, found: tuple) -> None:
        at, self._drawn = found
        self._beside.show(self._drawn, at, self.model.horizon)
        self._title()
        if not len(self._pictures):
            self._pictures.append(self._beside)

    def _title(self) -> None:
        """How many spikes the window has, and how well they are forecast, which is known once all are measured."""
        if self._drawn is None:
            return
        spikes, said = int(self._drawn.counts.sum()), ["", ""]
        if self.gains is not None and spikes:
            said = [f": {gain[self.window].sum() / spikes:+.3f} bits per spike"
                    for gain in (self.gains.shown, self.gains.without[self.modality])]
        self._beside.title([f"{spikes:,} spikes", f"shown everything{said[0]}", f"without {self.modality}{said[1]}"])

    def __panel__(self) -> pn.viewable.Viewable:
        of, wide, widgets = self.param, {"sizing_mode": "stretch_width"}, pn.widgets
        simulated = " <b>SIMULATED</b>" * self.session.simulated
        head = Text(f"<b>{type(self.model).__name__}</b> on {html.escape(self.session.id)}{simulated} · "
                    f"{len(self.session.units):,} units · {len(self.origins)} windows, {self.model.horizon:g} s ahead "
                    f"of {self.model.history:g} s each · bins of {1e3 * self.model.bin_size:g} ms", margin=(0, 10))
        groups = pn.FlexBox(widgets.Select.from_param(of.region, label="Region", width=150),
                            widgets.Select.from_param(of.phase, label="Phase", width=230),
                            widgets.Select.from_param(of.event, label="Time in the trial from", width=210))
        last = len(self.origins) - 1
        step = lambda by: lambda _: setattr(self, "window", int(np.clip(self.window + by, 0, last)))
        one = pn.FlexBox(widgets.Select.from_param(of.modality, label="Withheld", width=230),
                         widgets.IntSlider.from_param(of.window, label="Window", end=last, throttled=True, width=260,
                                                      margin=(10, 18)),
                         *(widgets.Button(label=label, on_click=step(by)) for label, by in (
                             ("◀ Earlier", -1), ("Later ▶", 1))))
        view = pn.Column(head, groups, self._doing, self._alerts, self._worth, one, self._pictures,
                         self.as_code(*STATE), **wide)
        self._background.shown(view)
        return view


def _split(model) -> dict:
    """How the run of a model divides its recordings; the default for a model of no run."""
    if isinstance(model, str | Path) and not (Path(model).expanduser() / "config.json").is_file():
        model = Run(model)
    return model.recipe.split.model_dump() if isinstance(model, Run) else {}


def _held_out(session, how: dict) -> np.ndarray:
    from workbench.splits import split

    try:
        return split(session, **how)["test"]
    except BadRecording:
        return session.intervals                                        # too short to be divided


def app() -> pn.viewable.Viewable:
    """The served page: the run that `?run=FOLDER` names, or a choice of the runs in `?folder=` (else in `runs`)."""
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    folder = Path(asked.get("folder", "runs"))
    known = opened_by("attribution", folder)
    says = excused("trained model with conditions", folder, known, asked.get("run"))
    return page_of_a_run("Attribution", _build, [*known, EXAMPLE], STATE, ["modalities"], says)


def _build(run: str, session: str | None, tell: Callable[[str], None], **asked: str) -> Attribution:
    asked = dict(asked)
    if "window" in asked:
        if not asked["window"].isdigit():
            raise WorkbenchError(f"the address says window={asked['window']!r}; write a whole number, as window=3")
        asked["window"] = int(asked["window"])
    if "modalities" in asked:
        asked["modalities"] = _grouped(asked["modalities"])
    if run != EXAMPLE:
        return Attribution(run, session, **asked)
    from workbench.analysis.driven import MODALITIES

    return Attribution(*example(tell), **{"modalities": MODALITIES} | asked)


def _grouped(text: str) -> dict[str, list[str]]:
    """'plan=trials.go_cue_time+trials.target_on_time;movement=hand_vel' as modalities."""
    parts = [part.partition("=") for part in text.split(";") if part]
    if not parts or not all(names for _, _, names in parts):
        raise WorkbenchError(f"the address says modalities={text!r}; write name=condition+condition;name=condition")
    return {name: names.split("+") for name, _, names in parts}


if pn.state.served:
    built("Attribution", app).servable(title="Attribution · spike workbench")
