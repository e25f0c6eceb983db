"""The parts of the gallery: orders of items, and pictures as HTML that can be clicked.

    reconstructions, scores → `Shown`: numbers by metric and method, orders that can be stated, filters, tiles
    tiles → PNGs in the page itself → `grid`, a row an item, in `Tiles` · `large`, all there is of one item
    `report.table` → `scored`
"""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import panel as pn
import param

from workbench.errors import UnknownName, WorkbenchError
from workbench.images.report import CHANCE, KINDS, SCORES, Reconstructions

TILE, LARGE = 104, 176                                                  # pixels that a picture should have on the page
NONE = "none"
WRITTEN = {"methods": '["one","another"]', "where": '{"session":"one"}'}                # how an address says it
VALUES, SESSIONS = 24, 100                                              # that a filter offers, at most
ROOM = 1100                                                             # pixels, for all columns
SENT = 128                                                              # pixels of a tile that are sent, at most
SIGNS = ("mean, and its 95 % interval over pictures · ▲ wins · ≈ not told apart from the best · ∅ not above chance · "
         "† the same encoder conditioned the method")

TABLE = """
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 2px 18px 2px 0; font-weight: 400; white-space: nowrap; }
th { opacity: .75; vertical-align: bottom; }
td { vertical-align: top; }
.wide { overflow-x: auto; }
.faint { opacity: .75; font-size: 11px; }
.lit { background: #e69f00; color: #000; border-radius: 3px; padding: 0 5px; }
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
    chosen: which items [n] were chosen elsewhere, if any were: they are marked, and can be filtered by.
    known: what a gallery offers, by the name of its parameter.
    """

    def __init__(self, result: Reconstructions, scores: pd.DataFrame, sorts: Sequence[str],
                 chosen: np.ndarray | None = None):
        self.result, self.items, number = result, result.items, len(result.items)
        self.chosen = np.zeros(number, bool) if chosen is None else chosen
        if self.chosen.any():
            self.items = self.items.assign(chosen=np.where(self.chosen, "yes", "no"))
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
        more = [html.escape(str(row[column])) for column in self.filters if column not in ("session", "chosen")]
        more += ["<span class='lit'>chosen</span>"] * bool(self.chosen[item])
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
