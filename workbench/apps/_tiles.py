"""The parts of the gallery: orders of items, pictures as HTML that can be clicked, and the spikes of a presentation.

    reconstructions, scores → `Shown`: numbers by metric and method, orders that can be stated, filters, tiles
    tiles → PNGs in the page itself → `grid`, a row an item, in `Tiles` · `large`, all there is of one item
    `report.table` → `scored`         session, onset → `Spikes`, from before it until after
"""

from __future__ import annotations

import base64
import html
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import panel as pn
import param
from bokeh.models import ColumnDataSource, Span

from workbench.apps._background import Background
from workbench.catalog import open_recording
from workbench.display import Text, address, alert
from workbench.errors import UnknownName, WorkbenchError
from workbench.grids import Grid
from workbench.images.report import CHANCE, KINDS, SCORES, Reconstructions
from workbench.session import Session

log = logging.getLogger(__name__)

TILE, LARGE = 104, 176                                                  # pixels that a picture should have on the page
NONE = "none"
WRITTEN = {"methods": '["one","another"]', "where": '{"session":"one"}'}                # how an address says it
VALUES, SESSIONS = 24, 100                                              # that a filter offers, at most
ROOM = 1100                                                             # pixels, for all columns
SENT = 128                                                              # pixels of a tile that are sent, at most
BEFORE, AFTER = 0.1, 0.4                                                # s of spikes, from the onset
NOWHERE = ("No spikes: nobody says where the recording is. Give Gallery(…, sessions=[…]), or reconstructions whose "
           "protocol says data={session id: catalog name or path}.")
SIGNS = ("mean, and its 95 % interval over pictures · ▲ wins · ≈ not told apart from the best · ∅ not above chance · "
         "† the same encoder conditioned the method")
SPIKE, SHOWN, READ = "#1b1b1b", "#e69f00", "#0072b2"

TABLE = """
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 2px 18px 2px 0; font-weight: 400; white-space: nowrap; }
th { opacity: .75; vertical-align: bottom; }
td { vertical-align: top; }
.wide { overflow-x: auto; }
.faint { opacity: .75; font-size: 11px; }
p, summary { font-size: 12.5px; margin: 5px 0; line-height: 1.45; }
summary { cursor: pointer; }
"""
CSS = """
:host { --line: color-mix(in srgb, currentColor 30%, transparent); }
.line { display: grid; gap: 0 8px; align-items: start; padding: 6px; min-width: max-content; }
.heads { align-items: end; border-bottom: 1px solid var(--line); font-size: 12px; line-height: 1.25; }
.heads, .about { overflow-wrap: anywhere; }
.row { border-radius: 6px; border: 2px solid transparent; cursor: pointer; }
.row:hover, .row:focus-visible { border-color: var(--line); outline: none; }
.row.chosen { border-color: #0072b2; background: color-mix(in srgb, #0072b2 12%, transparent); }
.about { font-size: 11px; line-height: 1.4; opacity: .8; }
.tile { font-size: 11px; line-height: 1.35; font-variant-numeric: tabular-nums; text-align: center; }
.tile img { display: block; width: 100%; image-rendering: pixelated; margin-bottom: 3px; }
.ghost img { outline: 1px dashed currentColor; outline-offset: 1px; }
.many { display: flex; flex-wrap: wrap; gap: 14px; margin: 10px 0; }
.some { display: flex; gap: 6px; }
.group { font-size: 12px; line-height: 1.35; }
button { font: inherit; font-size: 12px; color: inherit; background: transparent; border: 1px solid var(--line);
         border-radius: 4px; padding: 3px 10px; margin: 0 6px 0 0; cursor: pointer; }
button:disabled { opacity: .4; cursor: default; }
""" + TABLE


class Tile(NamedTuple):
    """picture: uint8 [H, W, 3]; says: the text under it; hint: what it is, for who cannot see it or points at it."""

    picture: np.ndarray
    says: str
    hint: str
    ghost: bool = False                                                 # stands beside for comparison


class Shown:
    """values: metric → method → [items, samples], NaN for none. filters: column of items → its few values, as text.

    methods: those that are to be compared first; beside: the one to compare them with; most: samples of a method.
    known: what a gallery offers, by the name of its parameter.
    """

    def __init__(self, result: Reconstructions, scores: pd.DataFrame, sorts: Sequence[str]):
        self.result, self.items, number = result, result.items, len(result.items)
        if missing := [name for name in SCORES if name not in scores]:
            raise WorkbenchError(f"scores without {', '.join(missing)}; give those of report.scores(reconstructions)")
        unknown = {*scores["method"][scores["kind"] != "chance"]} - {*result.made}
        if unknown or not len(scores) or not scores["item"].between(0, number - 1).all():
            raise WorkbenchError(f"scores of other reconstructions: of {len(scores['item'].unique())} items, and of "
                                 f"{', '.join(scores['method'].unique())}; compute them anew with report.scores")
        self.values: dict[str, dict[str, np.ndarray]] = {}
        for (metric, method), part in scores.groupby(["metric", "method"], sort=False):
            table = np.full((number, part["seed"].max() + 1), np.nan)
            table[part["item"], part["seed"]] = part["value"]
            self.values.setdefault(metric, {})[method] = table
        self.methods = [method for kind in KINDS for method in result.made if result.kinds[method] == kind]
        self.most = max(map(self.samples, self.methods))
        others = [m for m in self.methods if result.kinds[m] == "baseline"] or self.methods[1:] or self.methods
        self.beside = next((m for m in others if "nearest" in m), others[0])
        self.known = {"methods": self.methods, "metric": list(self.values), "of": self.methods, "over": self.methods,
                      "spread": [NONE, *self.methods], "sort": list(sorts)}
        words = {name: self.items[name].astype(str) for name in self.items if name not in ("picture", "start")
                 and self.items[name].dtype.kind != "f"}
        self.filters = {name: sorted(each.unique()) for name, each in words.items()
                        if 2 <= each.nunique() <= (SESSIONS if name == "session" else VALUES)}

    def checked(self, state: Mapping) -> dict:
        """What was asked of a gallery, or a sentence that says what is wrong with it."""
        last = len(self.items) - 1
        bounds = {"seed": (0, 2**32), "sample": (0, self.most - 1), "page": (1, last + 1), "item": (0, last)}
        for key, value in state.items():
            several = value if key == "methods" and isinstance(value, list | tuple) else [value]
            for one in several:
                if key in self.known and one not in self.known[key]:
                    kind = "method" if key in ("methods", "of", "over", "spread") else key
                    raise UnknownName(kind, one, self.known[key], where="these reconstructions")
            least, most = bounds.get(key, (0, 0))
            if key in bounds and (key, value) != ("item", None) and not (
                    isinstance(value, int) and least <= value <= most):
                raise WorkbenchError(f"{key}={value!r}; give a whole number from {least} to {most}")
        if not isinstance(where := state.get("where", {}), Mapping):
            raise WorkbenchError(f"where={where!r}; give columns of items and values, as {WRITTEN['where']}")
        for column, value in where.items():
            if column not in self.filters:
                raise UnknownName("column to filter by", column, self.filters, where="the items")
            if value not in self.filters[column]:
                raise UnknownName(column, value, self.filters[column], where="the items")
        shown = {"methods": [method for method in self.methods if method in state.get("methods", self.methods)]}
        return {**state, **shown}

    def samples(self, method: str) -> int:
        """How many pictures the method made of each item."""
        return self.result.made[method].shape[1]

    def picture(self, method: str, item: int, sample: int) -> np.ndarray:
        return self.result.made[method][item, min(sample, self.samples(method) - 1)]

    def score(self, metric: str, method: str, sample: int) -> np.ndarray:
        """Of that sample of every item, or of the last one there is [items]."""
        values = self.values[metric].get(method)
        return np.full(len(self.items), np.nan) if values is None else values[:, min(sample, values.shape[1] - 1)]

    def rank(self, metric: str) -> str:
        """The retrieval rank of the metric's own extractor, or else of one that conditioned no method; "": none."""
        conditioned = {*(self.result.protocol.get("conditioned_by") or {}).values()}
        ranks = [name for name in self.values if name.startswith("rank[")]
        return min(ranks, key=lambda name: (not metric.endswith(name[4:]), name[5:-1] in conditioned), default="")

    def median(self, metric: str, method: str, rows: np.ndarray) -> float:
        """Over those items and all samples."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)             # of nothing: NaN
            return float(np.nanmedian(self.values[metric].get(method, np.full((len(self.items), 1), np.nan))[rows]))

    def order(self, sort: str, metric: str, of: str, over: str, sample: int, seed: int,
              where: Mapping[str, str]) -> np.ndarray:
        """Rows of the items that pass the filters, first one first. What is not told apart is in random order."""
        order = np.random.default_rng(seed).permutation(len(self.items))
        keep = np.ones(len(order), bool)
        for column, value in where.items():
            keep &= (self.items[column].astype(str) == value).to_numpy()
        if sort == "different":
            key = np.array([np.square(self.picture(of, i, sample).astype(float) - self.picture(over, i, sample)).mean()
                            for i in range(len(order))])
        else:
            own, other = (self.score(metric, each, sample) for each in (of, over))
            key = {"best": own, "worst": -own, "gain": own - other, "random": 0 * own}[sort]
            key = -key if metric.startswith("rank[") else key
        order = order[np.argsort(-np.where(np.isfinite(key), key, -np.inf)[order], kind="stable")]
        return order[keep[order]]

    def target(self, item: int) -> Tile:
        which = int(self.items["picture"].iloc[item])
        return Tile(self.result.shown[which], f"picture {which}", f"item {item}: picture {which}, which was shown")

    def tile(self, metric: str, method: str, item: int, sample: int) -> Tile:
        """The picture, its score, and the rank of the picture that was shown among all test pictures."""
        says, by, kind = short(self.score(metric, method, sample)[item]), self.rank(metric), self.result.kinds[method]
        hint = f"item {item}, {method} ({kind}), sample {sample}: {metric} {says}"
        if by and np.isfinite(rank := self.score(by, method, sample)[item]):
            place = f"{rank:g} of {len(self.result.shown)}"
            says = place if by == metric else f'{says} <span class="faint">· {place}</span>'
            hint += f", {by} {place}"
        return Tile(self.picture(method, item, sample), says, hint, kind != "method")

    def about(self, item: int) -> list[str]:
        """What is known of an item, as HTML."""
        row = self.items.iloc[item]
        more = [html.escape(str(row[column])) for column in self.filters if column != "session"]
        return [f"<b>item {item}</b>", html.escape(str(row["session"])), f"{row['start']:,.2f} s", *more]

    def whole(self, item: int, metric: str, before: int, after: int) -> str:
        """Everything of an item, and buttons to the items before and after; −1: there is none."""
        groups, rows = [("<b>shown</b>", [self.target(item)])], {}
        for method in self.methods:
            samples = range(self.samples(method))
            groups.append((f"<b>{html.escape(method)}</b> <span class='faint'>{self.result.kinds[method]}</span>",
                           [self.tile(metric, method, item, sample) for sample in samples]))
            rows |= {method + f", sample {s}" * (len(samples) > 1): {
                name: self.score(name, method, s)[item] for name in self.values} for s in samples}
        rows[f"{CHANCE}, mean"] = {name: float(of[CHANCE][item].mean()) for name, of in self.values.items()
                                   if CHANCE in of}
        return large(" · ".join(self.about(item)), groups, numbers(rows, [*self.values]), before, after)


class Tiles(pn.custom.JSComponent):
    """HTML of which whatever has `data-item` can be clicked: its number is then `chosen`, which marks its row."""

    content = param.String(doc="HTML, everything in it escaped")
    chosen = param.Integer(default=-1, doc="The item that was clicked last; −1: none")
    comes = param.Boolean(default=False, doc="Whether the page scrolls here when another item is chosen")

    _esm = """
export function render({model}) {
  const box = document.createElement("div")
  box.style.width = "100%"
  const mark = () => box.querySelectorAll(".row").forEach(
    row => row.classList.toggle("chosen", Number(row.dataset.item) === model.chosen))
  const draw = () => { box.innerHTML = model.content; mark() }
  const choose = event => {
    const found = event.target.closest("[data-item]")
    if (found && !found.disabled) model.chosen = Number(found.dataset.item)
  }
  box.addEventListener("click", choose)
  box.addEventListener("keydown", event => {
    if (["Enter", " "].includes(event.key) && event.target.matches(".row")) {
      choose(event)
      event.preventDefault()
    }
  })
  let last = model.chosen
  model.on("content", () => {
    draw()
    if (model.comes && model.chosen >= 0 && model.chosen !== last) {
      box.scrollIntoView({block: "start", behavior: "smooth"})
    }
    last = model.chosen
  })
  model.on("chosen", mark)
  draw()
  return box
}
"""

    def __init__(self, **params):
        super().__init__(stylesheets=[CSS], sizing_mode="stretch_width", margin=(2, 10), **params)


def png(picture: np.ndarray, most: int | None = None) -> str:
    """The address of a picture uint8 [H, W, 3] that holds it whole, reduced to `most` pixels."""
    from PIL import Image

    image, file = Image.fromarray(np.ascontiguousarray(picture)), io.BytesIO()
    if most and max(image.size) > most:
        image.thumbnail((most, most))
    image.save(file, "png", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def width_of(picture: np.ndarray, wanted: int) -> int:
    """Pixels on the page: about as many as wanted, a whole number for every one of a small picture."""
    side = picture.shape[1]
    return wanted if side > wanted else side * max(round(wanted / side), 1)


def grid(heads: Sequence[str], rows: Sequence[tuple[int, str, Sequence[Tile]]]) -> str:
    """A row an item, (its number, HTML about it, its tiles); heads: HTML above every column of tiles."""
    side = min(width_of(rows[0][2][0].picture, TILE), max(ROOM // len(heads) - 8, 56))      # many are made to fit
    columns = f'style="grid-template-columns:92px repeat({len(heads)},{side}px)"'
    first = f'<div class="line heads" {columns}><div></div>{"".join(f"<div>{head}</div>" for head in heads)}</div>'
    lines = [f'<div class="line row" {columns} role="button" tabindex="0" data-item="{number}" aria-label="item '
             f'{number}: show it large"><div class="about">{about}</div>{"".join(_tile(t, SENT) for t in tiles)}</div>'
             for number, about, tiles in rows]
    return f'<div class="wide">{first}{"".join(lines)}</div>'


def large(title: str, groups: Sequence[tuple[str, Sequence[Tile]]], table: str, before: int, after: int) -> str:
    """One item: groups of (HTML above, tiles), the HTML of its scores, and buttons to the items before and after."""
    button = lambda item, says: (f'<button data-item="{item}"{" disabled" * (item < 0)}>{says}</button>')
    buttons = (button(before, "◀ The one before") + button(after, "The next ▶") +
               '<button data-item="-1">Close ✕</button>')
    size = f'style="width:{width_of(groups[0][1][0].picture, LARGE)}px"'
    shown = "".join(f'<div class="group">{says}<div class="some">'
                    f'{"".join(f"<div {size}>{_tile(each._replace(ghost=False))}</div>" for each in tiles)}</div></div>'
                    for says, tiles in groups)
    return (f'<div style="border-top:1px solid var(--line);padding-top:10px"><div style="margin-bottom:6px">{title}'
            f'</div>{buttons}<div class="many">{shown}</div><div class="wide">{table}</div></div>')


def _tile(tile: Tile, most: int | None = None) -> str:
    hint = html.escape(tile.hint)
    return (f'<div class="tile{" ghost" * tile.ghost}"><img src="{png(tile.picture, most)}" alt="{hint}" '
            f'title="{hint}">{tile.says}</div>')


def numbers(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> str:
    """Row → column → number as an HTML table, – where there is none."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *columns))
    body = "".join(f"<tr><td>{html.escape(name)}</td>" + "".join(
        f"<td>{short(row.get(column, np.nan))}</td>" for column in columns) + "</tr>" for name, row in rows.items())
    return f"<table><tr>{head}</tr>{body}</table>"


def short(value: float) -> str:
    return "–" if value != value else f"{value:.3f}" if abs(value) < 0.9995 else f"{value:.3g}"


def scored(table: pd.DataFrame, methods: Sequence[str], metric: str, verdicts: Mapping[str, str]) -> str:
    """`report.table` with a row a method and a column a metric, what its signs mean, and `report.summary` in words."""
    metrics, rows = list(dict.fromkeys(table["metric"])), []
    told = {(row.method, row.metric): row for row in table.itertuples()}
    kinds = dict(zip(table["method"], table["kind"], strict=True))
    for method in [*methods, *(m for m in kinds if m not in methods)]:
        cells = []
        for row in (told.get((method, each)) for each in metrics):
            if row is None:
                cells.append("<td>–</td>")
                continue
            signs = {"wins": " ▲", "not told apart": " ≈"}.get(row.verdict, "") + " †" * bool(row.same_encoder)
            signs += " ∅" * (row.above_chance in (False,) and row.kind in ("method", "baseline"))
            number = f"<b>{short(row.mean)}</b>" if row.verdict == "wins" else short(row.mean)
            span = f"{short(row.low)} to {short(row.high)}" if row.low == row.low else ""
            cells.append(f'<td>{number}{signs}<div class="faint">{span}</div></td>')
        rows.append(f'<tr><td>{html.escape(method)}<div class="faint">{kinds.get(method, "")}</div></td>'
                    f'{"".join(cells)}</tr>')
    head = "".join(f"<th>{f'<b>{html.escape(each)}</b>' if each == metric else html.escape(each)}"
                   f"{'<br>lower is better' * each.startswith('rank[')}</th>" for each in metrics)
    line = lambda names: "".join(f"<p>{html.escape(verdicts[each])}</p>" for each in names)
    table = f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
    return (f'<div class="wide">{table}</div><p class="faint">{SIGNS}</p>'
            f"{line([metric])}<details><summary>The other scores in words</summary>"
            f"{line(each for each in metrics if each != metric)}</details>")


class Spikes(pn.viewable.Viewer):
    """Ticks of all units, sorted by region, around the onset of a picture; what is on and what is read, as boxes.

    sessions: Session objects, names or paths, or {session id: either}; they are opened in the background as they are
    asked for. windows: region → (from, until), s after the onset, where its spikes are read.
    """

    def __init__(self, sessions: Sequence | Mapping, windows: Mapping[str, Sequence[float]], **params):
        super().__init__(**params)
        several = [sessions] if isinstance(sessions, str | Path | Session) else sessions
        named = several if isinstance(several, Mapping) else {s.id: s for s in several if isinstance(s, Session)}
        self._named, self._windows = dict(named), windows
        self._unnamed = [] if named is several else [one for one in several if not isinstance(one, Session)]
        self._opened: dict[str, tuple[Session, str]] = {}
        self._pool, self._job, self._of, self._grid, self.plot = ThreadPoolExecutor(1), None, None, None, None
        self.spikes, self.boxes, self._background = ColumnDataSource(), ColumnDataSource(), Background(self._look)
        self.says = Text(margin=(2, 10), sizing_mode="stretch_width", styles={"font-size": "13px"})
        self._alerts, self._body = (pn.Column(sizing_mode="stretch_width") for _ in range(2))

    def clear(self) -> None:
        self._job, self.says.object = None, ""
        self._alerts.clear()
        self._body.clear()

    def show(self, session: str, onset: float) -> None:
        """Those of that session, once it is open."""
        self._alerts.clear()
        if not self._named and not self._unnamed:
            self.says.object = NOWHERE
            return
        self.says.object = f"opening {html.escape(session)} …"
        self._job = self._pool.submit(self._open, session), onset
        self._background.start()

    def _open(self, session: str) -> tuple[Session, str]:
        """A recording, and what opens it again; "" for an object."""
        for what in [self._named[session]] if session in self._named else [*self._unnamed]:
            if session not in self._opened:
                one = what if isinstance(what, Session) else open_recording(what)
                self._opened[session if session in self._named else one.id] = one, "" if one is what else str(what)
        if session not in self._opened:
            raise UnknownName("session", session, self._opened.keys() | self._named.keys(), "those that were given")
        return self._opened[session]

    def _look(self) -> bool:
        """Draw what was opened; True while it is being opened."""
        if self._job is None or not self._job[0].done():
            return self._job is not None
        (job, onset), self._job = self._job, None
        try:
            self._show(*job.result(), onset)
        except Exception as error:                                      # of whatever file there is
            if not isinstance(error, WorkbenchError):
                log.exception("the spikes cannot be shown")
            self.says.object, self._alerts[:] = "", [alert(error)]
            self._body.clear()
        return False

    def _show(self, session: Session, name: str, onset: float) -> None:
        if self._of is not session:
            self._of, self._grid = session, Grid(session, height=300)
            self._draw()
        order, regions, until = self._grid.order, self._grid.names, _until(session, onset)
        first, last = np.searchsorted(session.spike_times, (onset - BEFORE, onset + AFTER))
        self.spikes.data = {"time": session.spike_times[first:last] - onset,
                            "row": np.argsort(order)[session.spike_units[first:last]]}
        rows = {region: np.flatnonzero(regions == region) for region in self._windows}
        boxes = [(*self._windows[region], at[0] - 0.5, at[-1] + 0.5) for region, at in rows.items() if len(at)]
        self.boxes.data = dict(zip(("left", "right", "top", "bottom"), np.reshape(boxes, (-1, 4)).T, strict=True))
        self._gone.update(location=until or 0.0, visible=until is not None)
        self.plot.title.text = f"{last - first:,} spikes of {len(order):,} units of {session.id}"
        window = f"{onset - BEFORE:.3f},{onset + AFTER:.3f}"
        link = f"<code>Raster(session, window=({window}))</code> shows them at length"
        if name and "app" in (pn.state.session_args or {}):             # served by the hub, where the raster is, too
            link = (f'<a style="color:#0072b2" href="{html.escape(address(app="raster", data=name, window=window))}">'
                    "Open in the raster</a>")
        self.says.object = " · ".join([
            "<b>Spikes</b> of this presentation",
            "orange lines: the picture comes on" + " and goes" * (until is not None),
            *["blue boxes: what is read of each region"] * bool(len(boxes)), link])
        if not len(self._body):
            self._body[:] = [pn.pane.Bokeh(self.plot, sizing_mode="stretch_width")]

    def _draw(self) -> None:
        """A plot of its own for every session: its rows are other units."""
        self.spikes, self.boxes = ColumnDataSource(), ColumnDataSource()
        self.plot = plot = self._grid.picture(labelled=True)
        plot.xaxis.axis_label = "time from the onset of the picture (s)"
        plot.update(min_border_top=30, min_border_bottom=44, height=400)
        plot.quad("left", "right", "top", "bottom", fill_color=READ, fill_alpha=0.12, line_color=READ, line_alpha=0.5,
                  source=self.boxes)
        self._gone = Span(dimension="height", line_color=SHOWN, line_width=2, line_dash="dashed")
        for span in (Span(location=0, dimension="height", line_color=SHOWN, line_width=2), self._gone):
            plot.add_layout(span)
        self._grid.hover(plot, [self._grid.ticks(plot, SPIKE, self.spikes)])
        self._grid.show(-BEFORE, AFTER)
        self._body.clear()

    def wait(self, timeout: float) -> None:
        self._background.wait(timeout)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __panel__(self) -> pn.viewable.Viewable:
        view = pn.Column(self._alerts, self.says, self._body, sizing_mode="stretch_width")
        self._background.shown(view)
        return view


def _until(session: Session, onset: float) -> float | None:
    """How long the picture that came on then stayed, s; None where the session does not say."""
    if not len(session.stimuli):
        return None
    start, stop = (session.stimuli[name].to_numpy(float) for name in ("start", "stop"))
    at = int(np.abs(start - onset).argmin())
    return float(stop[at] - start[at]) if abs(start[at] - onset) < 1e-3 else None
