"""Latents: what a model knows at every moment, as a cloud; draw around points and see their spikes, trials and times.

    model, session → Cloud → PCA at once, UMAP from a process of its own → colours, a table of how far to believe them
    lasso or box → `selected`, a table of moments; on the second cloud, the units: `selected_units`

The last line of a cell is `Latents(model, session)`, the model an object, a run or its folder; served,
`?run=FOLDER&session=NAME` opens it, and the hub (`main.py`) as `?app=latents`.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import panel as pn
import param

from workbench.analysis import trust
from workbench.analysis.labels import label_names, labels, stretches, told, trials_of
from workbench.analysis.projection import Umap, pca
from workbench.apps._background import Background
from workbench.apps._chosen import Chosen
from workbench.apps._example import EXAMPLE, example, excused
from workbench.apps._of_a_run import page_of_a_run
from workbench.apps._run_facts import opened_by
from workbench.apps._scatter import Scatter, believed, components
from workbench.apps._shown_in import shown_in
from workbench.display import Dashboard, Text, beside, built
from workbench.errors import UnknownName, WorkbenchError
from workbench.selection import parsed, parsed_units, reached, written, written_units

CHOICE = ("moments", "chosen_units", "chosen_in")
STATE = ("color", "units_color", "projection", "neighbors", "min_dist", *CHOICE)     # what the address remembers


class Latents(Dashboard):
    """A cloud of moments and a cloud of units, of any model that embeds.

    model: an object, a `Run`, or the folder of a run or of weights. session: a Session, its catalog name, path or id in
    the run, or a list of these; None: the first recording of the run. color: "time", "session", "trials.<column>",
    "<series>.<column>" or "<series>.speed". units_color: a column of the units' table. most: points at most. progress:
    called with (windows done, windows there are). moments, chosen_units: what is chosen from the start, of the session
    whose id is `chosen_in` (else the first); a lasso changes all three. WorkbenchError for a model without latents and
    for unknown names.
    """

    color = param.Selector(default="time", objects=["time"], doc="What the colour of a moment says")
    units_color = param.Selector(default="region", objects=["region"], doc="What the colour of a unit says")
    projection = param.Selector(default="PCA", objects=["PCA", "UMAP"], doc="How the cloud is laid out")
    neighbors = param.Integer(default=30, bounds=(2, 200), doc="Points that UMAP keeps together")
    min_dist = param.Number(default=0.1, bounds=(0, 1), doc="How close UMAP packs points")
    moments = param.String(doc="Chosen stretches of time, from:until,… s, for other dashboards")
    chosen_units = param.String(doc="Ids of the chosen units")
    chosen_in = param.String(doc="The id of the session that both are of")
    run = param.String(doc="What an address calls the model: the folder of the run, or the example")

    def __init__(self, model, session=None, *, color: str | None = None, units_color: str = "region",
                 most: int = 20_000, progress=None, moments: str = "", chosen_units: str = "", chosen_in: str = "",
                 **params):
        super().__init__(**params)
        from workbench.analysis.latents import moments as cloud_of  # torch, which the hub should not wait for
        from workbench.analysis.latents import opened, units_of

        self._folder = getattr(model, "path", model if isinstance(model, str | Path) else None)         # of a Run
        self.run = self.run or str(self._folder or "")
        self.model, self.sessions = opened(model, session)
        asked = session if isinstance(session, list | tuple) else [session]
        self.names = [a if isinstance(a, str) else s.id for a, s in zip(asked, self.sessions, strict=True)]
        self.opens = ",".join(self.names)                               # in an address
        names = label_names(self.sessions)
        color = color or next((name for name in names if name.endswith(".speed")), "time")
        self.units, self._vectors, self._of = units_of(self.model, self.sessions)
        for kind, name, known in [("color", color, names), ("units_color", units_color, list(self.units))]:
            if name not in known:
                raise UnknownName("label to colour by", name, known, where=f"session {self.sessions[0].id!r}")
            self.param[kind].objects = known
        with param.parameterized.discard_events(self):
            self.color, self.units_color = color, units_color
        self.cloud = cloud_of(self.model, self.sessions, most=most, progress=progress)
        self._trial = trials_of(self.cloud, self.sessions)
        at, share = pca(self.cloud.values)
        self._laid, self._axes = {"PCA": at}, {"PCA": components(share), "UMAP": ["UMAP 1", "UMAP 2"]}
        self._umap, self._pool, self._scoring = Umap(), ThreadPoolExecutor(1), None
        self._background, self._chosen = Background(self._look), Chosen()
        self._moments = Scatter({"s": self.cloud.times.round(3), "trial": self._trial}, self._choose, size=4)
        self._units = Scatter({"unit": self.units["id"]}, self._choose, size=7)
        if self._vectors is not None:
            at, share = pca(self._vectors)
            self._units.place(at, f"{len(at)} units, PCA of {self._of} [{self._vectors.shape[1]}]", components(share))
        self._doing, self._honest, self._links = (Text(sizing_mode="stretch_width", margin=(2, 10)) for _ in range(3))
        self._stop = pn.widgets.Button(label="Cancel", color="warning", width=90, visible=False)
        self._stop.on_click(lambda _: self.cancel())
        self._show("PCA")
        self._paint()
        self._paint_units()
        self._take(moments, chosen_units, chosen_in)
        self._lay_out()

    # What a notebook asks for.

    @property
    def selected(self) -> pd.DataFrame:
        """The chosen moments, one row each: session, time (s), trial (its row; −1 for none), x, y, and the label."""
        rows, names = self._moments.chosen, np.array([s.id for s in self.sessions], object)
        at = self._moments.at[rows]
        return pd.DataFrame({"session": names[self.cloud.session[rows]], "time": self.cloud.times[rows],
                             "trial": self._trial[rows], "x": at[:, 0], "y": at[:, 1],
                             self.color: self._label.to_numpy()[rows]}, index=rows)

    @property
    def selected_units(self) -> pd.DataFrame:
        """The chosen units: session, id, region, rate (spikes/s) and the other columns of their tables."""
        return self.units.iloc[self._units.chosen]

    def select(self, rows) -> None:
        """Choose moments: row numbers of `cloud`, or a truth value a point."""
        self._moments.chosen = np.arange(len(self.cloud.times))[rows]

    def _take(self, moments: str, units: str, session: str) -> None:
        """Choose what an address, or another dashboard, says was chosen in a session."""
        ids = [s.id for s in self.sessions]
        if session and session not in ids:
            raise UnknownName("session", session, ids, where="this view")
        which = ids.index(session) if session else 0
        half = max(self.cloud.width * self.cloud.every / 2 - 0.0015, 0.0)   # an address is rounded to milliseconds
        hit = reached(self.cloud.times - half, self.cloud.times + half, parsed(moments))
        self._moments.chosen = np.flatnonzero((self.cloud.session == which) & hit)
        first = sum(len(s.units) for s in self.sessions[:which])
        self._units.chosen = first + parsed_units(self.sessions[which], units)

    def wait(self, timeout: float = 600) -> Latents:
        """Wait for the UMAP and the scores that are on their way."""
        self._background.wait(timeout)
        return self

    def code(self) -> str:
        """The cell that makes this view."""
        names = self.names if len(self.names) > 1 else self.names[0]
        what = "model, session" if self._folder is None else f"{str(self._folder)!r}, {names!r}"
        of = f"# a {type(self.model).__name__} and {names!r}\n" if self._folder is None else ""
        chosen = "".join(f",\n        {name}={getattr(self, name)!r}" for name in CHOICE if getattr(self, name))
        return (f"from workbench.apps.latents import Latents\n\n{of}Latents({what}, color={self.color!r}, "
                f"units_color={self.units_color!r},\n        projection={self.projection!r}, "
                f"neighbors={self.neighbors}, min_dist={self.min_dist:g}{chosen})")

    def __panel__(self) -> pn.viewable.Viewable:
        widgets, cloud = pn.widgets, self.cloud
        simulated = " <b>SIMULATED</b>" if any(s.simulated for s in self.sessions) else ""
        head = Text(f"<b>{type(self.model).__name__}</b> on {html.escape(', '.join(s.id for s in self.sessions))}"
                    f"{simulated} · {cloud.points} · {cloud.values.shape[1]} dimensions · windows of "
                    f"{cloud.window:g} s", margin=(0, 10))
        has_units = self._vectors is not None
        choose = pn.FlexBox(
            widgets.Select.from_param(self.param.color, label="Colour moments by", width=210),
            widgets.Select.from_param(self.param.projection, label="Layout", width=110),
            widgets.IntInput.from_param(self.param.neighbors, label="UMAP neighbours", width=130),
            widgets.FloatInput.from_param(self.param.min_dist, label="UMAP distance", width=130, step=0.05),
            *[widgets.Select.from_param(self.param.units_color, label="Colour units by", width=170)] * has_units)
        why = Text(f"No cloud of units: {html.escape(self._of)}.", margin=(2, 10), visible=not has_units)
        clouds = beside(self._moments, *[self._units] * has_units)
        view = pn.Column(head, choose, pn.Row(self._doing, self._stop), clouds, why, self._chosen, self._links,
                         self._honest, self.as_code(*STATE), sizing_mode="stretch_width")
        self._background.shown(view)
        self._link()
        return view

    # Colours, and what they are worth.

    @param.depends("color", watch=True)
    def _paint(self) -> None:
        self._label = labels(self.cloud, self.sessions, self.color)
        self._moments.paint(self._label, self.color)
        self._choose()
        self._judge()

    @param.depends("units_color", watch=True)
    def _paint_units(self) -> None:
        if self._vectors is not None:
            self._units.paint(self.units[self.units_color], self.units_color)

    def _judge(self) -> None:
        """Score the label in the background."""
        trial = self._trial if self.color.startswith("trials.") else None
        fold = trust.folds(self.cloud.times, self.cloud.session, self.cloud.window, trial)
        if self._scoring is not None:
            self._scoring.cancel()                                      # of another colour
        self._scoring = self._pool.submit(trust.judge, self.cloud.values, dict(self._laid), self._label, fold,
                                          drifts=self.color in ("time", "session"))
        self._honest.object = "<b>How far to believe it</b>: being computed …"
        self._background.start()

    # The layout.

    @param.depends("projection", "neighbors", "min_dist", watch=True)
    def _lay_out(self) -> None:
        """PCA now, UMAP when its process is done."""
        if self.projection == "PCA":
            return self.cancel()
        try:
            self._umap.start(self.cloud.values, self.cloud.key, neighbors=self.neighbors, min_dist=self.min_dist)
        except WorkbenchError as error:
            return self.cancel(str(error))
        self._laid.pop("UMAP", None)                                    # of other parameters
        self._background.start() if self._umap.running else self._laid_out()            # else it was in the cache

    def cancel(self, why: str = "") -> None:
        """Show PCA, end a UMAP that is on its way, and say why."""
        if self._umap.running:
            self._umap.cancel()
        self._show("PCA")
        self.projection = "PCA"
        self._stop.visible, self._doing.object = False, html.escape(why)

    def _laid_out(self) -> None:
        if self._umap.positions is None:
            return self.cancel(self._umap.error)
        self._laid["UMAP"], self._doing.object = self._umap.positions, ""
        self._show("UMAP")
        self._judge()

    def _show(self, name: str) -> None:
        self._moments.place(self._laid[name], f"moments, {name}", self._axes[name])

    def _look(self) -> bool:
        """Take in what was done; True while more is under way."""
        if self._umap.running and not self._umap.poll():
            self._laid_out()
        if self._umap.running:
            self._doing.object = (f"<b>UMAP</b>: {self._umap.said} ({self._umap.seconds:.0f} s so far); the page "
                                  "stays as it is until then.")
        self._stop.visible = self._umap.running
        if self._scoring is not None and self._scoring.done():
            done, self._scoring = self._scoring, None
            self._honest.object = believed(done.result(), self.color, self.cloud.window)
        return self._umap.running or self._scoring is not None

    def close(self) -> None:
        """End what goes on in the background."""
        self._umap.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _choose(self) -> None:
        """Show the spikes, trials and times of what is chosen in either cloud."""
        rows, units = self._moments.chosen, self._units.chosen
        if not len(rows) and not len(units):
            self.param.update(**dict.fromkeys(CHOICE, ""))
            self._link()
            return self._chosen.clear()
        of_units = pd.factorize(self.units["session"])[0][units]
        which = int(np.bincount(self.cloud.session[rows] if len(rows) else of_units).argmax())
        own, session = rows[self.cloud.session[rows] == which], self.sessions[which]
        own_units = units[of_units == which] - sum(len(s.units) for s in self.sessions[:which])
        said = [told(session, self.cloud, own, self._trial[own], self._label, rows)] if len(rows) else []
        said += [f"<b>{len(units)} of {len(self.units)} units</b>"] if len(units) else []
        width = self.cloud.width * self.cloud.every
        self._chosen.show(session, self.cloud.times[own], width, own_units, " · ".join(said))
        moments = written(stretches(self.cloud.times[own], width))
        self.param.update(moments=moments, chosen_units=written_units(session, own_units), chosen_in=session.id)
        self._link()

    def _link(self) -> None:
        """Lead to the other dashboards, where a page of the hub, and not a thread that builds it, shows this one."""
        ids = [s.id for s in self.sessions]
        data = self.names[ids.index(self.chosen_in)] if self.chosen_in else ""
        self._links.object = shown_in("latents", data, self.chosen_in, self.moments, self.chosen_units, self.run)


def app() -> pn.viewable.Viewable:
    """The served page: the run that `?run=FOLDER` names, or a choice of the runs in `?folder=` (else in `runs`)."""
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    folder = Path(asked.get("folder", "runs"))
    known = opened_by("latents", folder)
    says = excused("trained model that embeds", folder, known, asked.get("run"))

    def build(run: str, session: str | None, tell: Callable[[str], None], **wanted: str) -> Latents:
        said = lambda done, of: tell(f"Embedding: {done:,} of {of:,} windows")
        what = (*example(tell), run) if run == EXAMPLE else (run, session.split(",") if session else None)
        model, sessions, name = (*what, "")[:3]
        return Latents(model, sessions, progress=said, run=name, **_parsed(wanted))

    return page_of_a_run("Latents", build, [*known, EXAMPLE], STATE, says=says)


def _parsed(asked: dict[str, str]) -> dict:
    """What the address says about the view."""
    kinds = {"neighbors": int, "min_dist": float}
    try:
        return {name: kinds.get(name, str)(text) for name, text in asked.items()}
    except ValueError as error:
        raise WorkbenchError(f"the address lacks a number ({error}); write neighbors=30&min_dist=0.1") from None


if pn.state.served:
    built("Latents", app).servable(title="Latents · spike workbench")
