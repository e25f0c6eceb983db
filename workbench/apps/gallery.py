"""The gallery: pictures that were shown, beside what each method made of the spikes, and beside what needs none.

    reconstructions, scores → an order that is stated, at random unless asked otherwise → rows of tiles, page by page
    a tile clicked → the item large, all its pictures and scores → the spikes of that presentation

The last line of a cell is `Gallery(reconstructions)`, or `Gallery(FOLDER)` of a saved report; served, `?folder=FOLDER`
opens one, and the hub (`main.py`) as `?app=gallery`. Without a saved report there is an example, made on the spot of a
simulated recording.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import panel as pn
import param

from workbench.apps._presentation import Spikes
from workbench.apps._run_facts import reports
from workbench.apps._slow_view import SlowView
from workbench.apps._tiles import NONE, TABLE, WRITTEN, Shown, Tiles, grid, scored, short
from workbench.display import Dashboard, Text, address, built, home, page
from workbench.errors import WorkbenchError
from workbench.images import report
from workbench.images.report import CHANCE, Reconstructions
from workbench.selection import parsed, within
from workbench.session import Session

ORDER = ("metric", "sort", "of", "over", "where", "seed", "sample")     # what the order of items depends on
CHOICE = ("moments", "chosen_in")
STATE = ("methods", "spread", *ORDER, "page", "item", *CHOICE)          # what the address remembers
SORTS = {"random": "at random", "best": "best first", "worst": "worst first", "gain": "greatest gain first",
         "different": "most different first"}
EACH = 12                                                               # items a page
ALL, EXAMPLE = "all", "example"
safe = lambda text: html.escape(str(text))


class Gallery(Dashboard):
    """Targets, reconstructions and baselines, a row an item; click one to see it large, with its spikes.

    reconstructions: an object, or a folder that `save` wrote. scores: of `report.scores`; None: those of the folder, or
    computed. sessions: Session objects, names or paths, or {session id: either}; None: what the protocol's `data` says.
    sort: random; best or worst of the method `of`, or gain of it over the method `over`, in `metric`; different: `of`
    and `over` differ most over pixels. where: {column of items: value}. sample: which of the pictures of each method;
    spread: the method of which all are shown. page counts from 1; item is a row of items. moments, chosen_in: chosen in
    another dashboard, what was shown then is marked. WorkbenchError for what cannot be shown.
    """

    methods = param.ListSelector(default=[], objects=[], doc="Those that are shown")
    spread = param.Selector(default=NONE, objects=[NONE], doc="The method of which all samples are shown")
    metric = param.Selector(default="", objects=[""], doc="The score under each picture, and that is sorted by")
    sort = param.Selector(default="random", objects=list(SORTS), doc="The order of items")
    of = param.Selector(default="", objects=[""], doc="The method that decides the order")
    over = param.Selector(default="", objects=[""], doc="The method that it is compared with")
    where = param.Dict(default={}, doc="Only items with these values: {column: value}")
    seed = param.Integer(default=0, bounds=(0, None), doc="Of the random order")
    sample = param.Integer(default=0, bounds=(0, None), doc="Which of the pictures that a method made of an item")
    page = param.Integer(default=1, bounds=(1, None), doc="Of the tiles")
    item = param.Integer(default=None, allow_None=True, bounds=(0, None), doc="What is shown large")
    moments = param.String(constant=True, doc="Chosen elsewhere, from:until,… s: what was shown then is marked")
    chosen_in = param.String(constant=True, doc="The id of the session that the moments are of; empty: all")

    def __init__(self, reconstructions: Reconstructions | str | Path, scores: pd.DataFrame | None = None,
                 sessions: Sequence | Mapping | None = None, **state):
        super().__init__(**{key: state.pop(key) for key in [*state] if key not in STATE})
        self.folder = "" if isinstance(reconstructions, Reconstructions) else str(reconstructions)
        self.result = result = Reconstructions.load(self.folder) if self.folder else reconstructions
        if scores is None:
            kept = self.folder and (Path(self.folder).expanduser() / "scores.csv").is_file()
            scores = report.load_scores(self.folder) if kept else report.scores(result)
        self.scores = scores
        moments, own = parsed(state.get("moments", "")), state.get("chosen_in", "")
        chosen = within(result.items["start"].to_numpy(float), moments)
        chosen &= np.full(len(chosen), not own) | (result.items["session"].astype(str) == own).to_numpy()
        self.shown, self.table = Shown(result, self.scores, SORTS, chosen), report.table(self.scores)
        self._lit = "" if not len(moments) else (
            f"<b>{chosen.sum():,} of {len(chosen):,} items</b> were shown in the {len(moments):,} chosen moments"
            f"{f' of {safe(own)}' if own else ''}; they are marked.<br>")
        self._verdicts = {metric: report.summary(part) for metric, part in self.table.groupby("metric", sort=False)}
        with param.parameterized.discard_events(self), param.edit_constant(self):
            for key, known in self.shown.known.items():
                self.param[key].objects = known
                if key not in ("methods", "sort"):
                    setattr(self, key, known[0])
            self.param.update(methods=self.shown.methods, over=self.shown.beside)
            self._usual = {key: getattr(self, key) for key in STATE}
            self.param.update(**self.shown.checked(state))
        self._given, told, self._with_spikes = sessions, result.protocol, None
        self._spikes = Spikes(told.get("data") or {} if sessions is None else sessions, told.get("windows") or {})
        self._head, self._told, self._of_page = (Text(margin=(2, 10), sizing_mode="stretch_width", stylesheets=[TABLE])
                                                for _ in range(3))
        self._of_page.align = "center"
        self._tiles, self._large = Tiles(), Tiles(comes=True)
        self._tiles.param.watch(lambda event: self._go(event.new), "chosen")
        self._large.param.watch(lambda event: self._go(event.new), "chosen")
        self._sort()
        if self.page > self.pages:
            raise WorkbenchError(f"page={self.page}; there are {self.pages}")
        self._draw()
        self._show()

    # What a notebook asks for.

    @property
    def state(self) -> dict:
        """What is not as in a new gallery."""
        return {key: getattr(self, key) for key in STATE if getattr(self, key) != self._usual[key]}

    @property
    def medians(self) -> dict[str, float]:
        """Of every shown method and of chance, in the metric, over the items that pass the filters and all samples."""
        return {method: self.shown.median(self.metric, method, self.order) for method in [*self.methods, CHANCE]}

    def code(self) -> str:
        """The cell that makes this view."""
        given = self._given.values() if isinstance(self._given, Mapping) else self._given or ()
        objects = any(isinstance(each, Session) for each in given)
        what = [repr(self.folder)] if self.folder else ["reconstructions", "scores"]
        what += [f"sessions={'sessions' if objects else repr(self._given)}"] * (self._given is not None)
        what += [f"{key}={value!r}" for key, value in self.state.items()]
        of = "" if self.folder else "# Reconstructions, and their scores\n"
        return f"from workbench.apps.gallery import Gallery\n\n{of}Gallery({', '.join(what)})"

    def wait(self, timeout: float = 600) -> Gallery:
        """Wait for the spikes that are on their way."""
        self._spikes.wait(timeout)
        return self

    def close(self) -> None:
        """End what goes on in the background."""
        self._spikes.close()

    # The order, and a page of it.

    @property
    def pages(self) -> int:
        return max(-(-len(self.order) // EACH), 1)

    def _sort(self) -> None:
        self.order = self.shown.order(**{key: getattr(self, key) for key in ORDER})

    @param.depends(*ORDER, watch=True)
    def _again(self) -> None:
        self._sort()
        if self.page > 1:
            self.page = 1                                               # which draws
        else:
            self._draw()
        self._show()

    @param.depends("methods", "spread", "page", watch=True)
    def _draw(self) -> None:
        """A page of tiles, and what is to be said above it."""
        self._say()
        self._of_page.object = f"page {self.page} of {self.pages}"
        rows, medians = self.order[(self.page - 1) * EACH:self.page * EACH].tolist(), self.medians
        if not rows or not self.methods:
            why = "No method is shown: choose some above." if rows else "No item has all of these values: choose fewer."
            self._tiles.content = f'<p style="padding:20px">{why}</p>'
            return
        columns = [(m, sample) for m in self.methods for sample in (
            range(self.shown.samples(m)) if m == self.spread else [min(self.sample, self.shown.samples(m) - 1)])]
        heads = ["<b>shown</b>"] + [
            f"<b>{safe(method)}</b>{f' {sample}' * (method == self.spread)}<br><span class='faint'>"
            f"{self.result.kinds[method]}<br>median {short(medians[method])}</span>" for method, sample in columns]
        self._tiles.content = grid(heads, [(item, "<br>".join(self.shown.about(item)), [self.shown.target(item), *(
            self.shown.tile(self.metric, method, item, sample) for method, sample in columns)]) for item in rows])

    def _say(self) -> None:
        """The header: which items these are and by what rule, what is usual for them, what chance is, and the notes."""
        told, medians, metric, number = self.result.protocol, self.medians, safe(self.metric), len(self.order)
        filters = f" where {' and '.join(f'{safe(c)} is {safe(v)}' for c, v in self.where.items())}" * bool(self.where)
        of, over = f"<b>{safe(self.of)}</b>", f"<b>{safe(self.over)}</b>"
        by = {"best": f"<b>best first</b> by {metric} of {of}", "worst": f"<b>worst first</b> by {metric} of {of}",
              "gain": f"<b>greatest gain first</b>, of {of} over {over} in {metric}",
              "different": f"<b>most different first</b>, {of} and {over} over pixels"}.get(self.sort, "")
        rule = (f"{by}. What comes first is <b>chosen by how it came out</b> and not typical: read the medians." if by
                else f"random order, seed {self.seed}: nothing is chosen by how it came out.")
        drawn = f" Items: {safe(told.get('selection'))}." * bool(told.get("selection"))
        rank = self.shown.rank(self.metric)
        under = f" Under each picture: {metric}{f', and its {safe(rank)}' * bool(rank and rank != self.metric)}" + (
            f"; sample {self.sample} of each method." if self.shown.most > 1 else ".")
        usual = " · ".join(f"{safe(m)} <b>{short(medians[m])}</b>" for m in self.methods)
        chance = f"chance ({CHANCE}) <b>{short(medians[CHANCE])}</b>"
        self._head.object = (
            f"<div style='line-height:1.55'>{self._lit}{'<b>SIMULATED</b> · ' * bool(told.get('simulated'))}"
            f"<b>{number:,} of {len(self.result.items):,} items</b>{filters} · {len(self.result.shown):,} pictures<br>"
            f"<b>Selection rule</b>: {rule}{drawn}{under}<br>"
            f"<b>Median {metric}</b>{' (lower is better)' * metric.startswith('rank[')} "
            f"of these {number:,} items, all samples: {usual} · {chance}<br><span style='opacity:.75'>"
            f"{' '.join(map(safe, report.notes(self.result)))}</span></div>")
        self._told.object = scored(self.table, self.shown.methods, self.metric, self._verdicts)

    # One item.

    def _go(self, item: int) -> None:
        """Show that item, −1: none, and the page that it is on."""
        if item == (-1 if self.item is None else self.item):            # told to the tiles, and not by them
            return
        at = np.flatnonzero(self.order == item)
        self.param.update(item=None if item < 0 else item, **{"page": int(at[0]) // EACH + 1} if len(at) else {})

    @param.depends("item", watch=True)
    def _show(self) -> None:
        """The item large, at once, and its spikes, once the recording is open."""
        item = self.item
        self._tiles.chosen = self._large.chosen = -1 if item is None else item
        if item is None:
            self._large.content, self._with_spikes = "", None
            return self._spikes.clear()
        at = [int(i) for i in np.flatnonzero(self.order == item)]
        near = [-1, *map(int, self.order), -1][at[0]:at[0] + 3:2] if at else [-1, -1]   # before it, and after
        self._large.content = self.shown.whole(item, self.metric, *near)
        if item != self._with_spikes:
            self._with_spikes, row = item, self.result.items.iloc[item]
            self._spikes.show(str(row["session"]), float(row["start"]))

    def __panel__(self) -> pn.viewable.Viewable:
        of, wide, widgets, several = self.param, {"sizing_mode": "stretch_width"}, pn.widgets, self.shown.most > 1
        when = lambda *sorts: pn.bind(lambda sort: sort in sorts, of.sort)
        select = lambda key, label, **more: widgets.Select.from_param(of[key], label=label, width=190, **more)
        filters = {column: widgets.Select(label=column, options=[ALL, *values], value=self.where.get(column, ALL),
                                          width=150) for column, values in self.shown.filters.items()}
        asked = lambda _: setattr(self, "where", {c: f.value for c, f in filters.items() if f.value != ALL})
        for one in filters.values():
            one.param.watch(asked, "value")
        self.param.watch(lambda _: [f.param.update(value=self.where.get(c, ALL)) for c, f in filters.items()], "where")
        choose = pn.FlexBox(
            select("metric", "Score"), select("sort", "Order", options={says: key for key, says in SORTS.items()}),
            select("of", "Sorted by", visible=when("best", "worst", "gain", "different")),
            select("over", "Beside", visible=when("gain", "different")),
            widgets.IntInput.from_param(of.seed, label="Seed of the order", width=130),
            *[widgets.IntInput.from_param(of.sample, label="Sample", end=self.shown.most - 1, width=90),
              select("spread", "All samples of")] * several, *filters.values())
        shown = widgets.MultiChoice.from_param(of.methods, label="Methods", solid=False, **wide)
        turn = lambda by: lambda _: setattr(self, "page", int(np.clip(self.page + by, 1, self.pages)))
        pages = pn.Row(widgets.Button(label="◀ Back", on_click=turn(-1)),
                       widgets.Button(label="Forward ▶", on_click=turn(1)), self._of_page, align="center")
        table = pn.Card(self._told, title="Every score, with 95 % intervals, of all items", margin=(8, 10), **wide)
        return pn.Column(self._head, table, choose, shown, self._large, self._spikes, pages, self._tiles,
                         self.as_code(*STATE), **wide)


def app() -> pn.viewable.Viewable:
    """The served page: the report that `?folder=` names, or a choice of those in it (else in `runs`), or an example."""
    location = pn.state.location
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    folder = asked.get("folder", "runs")
    nowhere = "folder" in asked and folder != EXAMPLE and not Path(folder).expanduser().is_dir()
    known = _saved(folder) or [folder] * nowhere                        # which the view will say
    says = "" if known else "This is an example, of a simulated recording, made here." if folder == EXAMPLE else (
        f"There are no saved reconstructions in {safe(Path(folder).resolve())}: this is an example, of a simulated "
        "recording, made here.")
    choice = pn.widgets.Select(label="Saved reconstructions", options=[*known, EXAMPLE],
                               sizing_mode="stretch_width", max_width=440)

    def show(wanted: dict[str, str]) -> None:
        what = choice.value
        view.show(lambda tell, wanted: _ready(what, lambda text: tell(safe(text)))(**_parsed(wanted)), wanted)

    def remember(view: Gallery) -> None:
        state = {key: value if isinstance(value, str) else json.dumps(value) for key, value in view.state.items()}
        location.search = address(**{"app": asked["app"]} if "app" in asked else {}, folder=choice.value, **state)

    view = SlowView(remember, STATE)
    choice.param.watch(lambda _: show({}), "value")
    pn.state.onload(lambda: show({key: asked[key] for key in STATE if key in asked}))
    return page("Gallery", home(), Text(says, visible=bool(says), margin=(0, 10)), choice, view)


def _saved(folder: str) -> list[str]:
    """The folder, where it is a saved report or half of one, with those beside it; else the reports in it."""
    path = Path(folder).expanduser()
    if any((path / file).is_file() for file in ("report.json", "pictures.npz")):
        return list(dict.fromkeys([folder, *_saved(str(path.parent))]))
    return [str(each) for each in reports(path)]


def _ready(what: str, tell: Callable[[str], None]) -> Callable[..., Gallery]:
    """The gallery of a folder, or of the example once that is made; it lacks only its state."""
    if what != EXAMPLE:
        return partial(Gallery, what)
    if EXAMPLE not in pn.state.cache:                                   # for all visitors
        from workbench.images.reconstruct import example

        pn.state.cache[EXAMPLE] = example(progress=tell)
    return partial(Gallery, *pn.state.cache[EXAMPLE])


def _parsed(asked: dict[str, str]) -> dict:
    """What the address says about the view."""
    state = {}
    for key, text in asked.items():
        try:
            state[key] = text if key in ("metric", "sort", "of", "over", "spread", *CHOICE) else json.loads(text)
        except ValueError:
            raise WorkbenchError(f"the address says {key}={text!r}; write {key}={WRITTEN.get(key, 3)}") from None
    return state


if pn.state.served:
    built("Gallery", app).servable(title="Gallery · spike workbench")
