"""Masks seen: one window of a recording, what a mask hides of it, what fills it in, and how good that is.

    session, window → Filler.hide(mode, ratio, seed) → spikes hidden and left · expected counts · gain over mean rates
                                                     → share hidden by region and over time · bits per spike

The last line of a cell is `Masking(session, model)`; served, `?data=reach-sim&run=FOLDER` names the recording and the
run, or the published model, that fills it in. The mask is the one that training draws from the same seed, or a box
drawn on the raster. Without a model the simple fills are shown, which stand beside it otherwise.
"""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import panel as pn
import param
from bokeh.events import SelectionGeometry
from bokeh.models import BoxSelectTool, ColumnDataSource, LinearColorMapper, LogColorMapper, Range1d
from bokeh.palettes import Cividis256, interp_palette

from workbench.colors import swatch
from workbench.display import Dashboard, Text, alert, bars, beside, built, served
from workbench.errors import UnknownName, WorkbenchError
from workbench.grids import Grid, plain
from workbench.session import Session
from workbench.training.run import Run

MODES, DRAWN = ("temporal", "neuron", "intra_region", "inter_region", "causal"), "drawn"
HELD_OUT = 32                                                           # windows that a score is the mean of
SEEN, HIDDEN, UNSCORED = "#1b1b1b", "#d55e00", "#56b4e9"
WORSE_BETTER = interp_palette(["#a03c00", "#e69f00", "#f7f7f7", "#56b4e9", "#00507d"], 255)
LEGEND = f"""<div style="font-size:12px">{"".join(swatch(color, width=width) + said for width, color, said in (
    (3, SEEN, "spike that is left"), (3, HIDDEN, "spike that is hidden"), (14, f"{HIDDEN}40", "hidden and scored"),
    (14, f"{UNSCORED}70", "hidden, not scored")))}</div>"""


class Masking(Dashboard):
    """A window, its mask, and what fills it in.

    model: any that says log-rates, a `Run`, or the folder of a run or of weights (`run` in an address). start, length:
    seconds of the window, by default the first of the held-out time. shown: whose fill is drawn. box: a mask drawn by
    hand, (from, until: seconds of the window; first, last: rows of the picture). WorkbenchError for what cannot be.
    """

    mode = param.Selector(default="temporal", objects=[*MODES, DRAWN], doc="What is hidden together")
    ratio = param.Number(default=0.5, bounds=(0.01, 1.0), doc="Share that is hidden, of what the mode chooses among")
    length = param.Number(default=1.0, doc="Seconds of the window")
    start = param.Number(default=0.0, doc="Where the window starts, seconds on the session's clock")
    seed = param.Integer(default=0, bounds=(0, None), doc="Of the random mask")
    shown = param.Selector(default="", objects=[""], doc="Whose fill is drawn")
    box = param.NumericTuple(default=None, length=4, allow_None=True, doc="The mask drawn by hand")
    run = param.String(doc="Folder of the run or model that fills in")
    recording = param.String(doc="The catalog name or path that opens the session, for `code`")
    status = param.String(doc="What is shown, of what time, by which model")

    def __init__(self, session: Session, model=None, *, run: str | Path = "", mode: str | None = None,
                 ratio: float = 0.5, length: float | None = None, start: float | None = None, seed: int = 0,
                 shown: str = "", box: tuple | None = None, **params):
        super().__init__(**params)
        if isinstance(model, str | Path | Run):
            model, run = None, getattr(model, "path", model)
        self.session, self._given, self._grid = session, model, Grid(session)
        self._alerts, self._over_many = pn.Column(sizing_mode="stretch_width"), []
        self._no_regions = "" if len(set(session.units["region"]) - {"unknown"}) > 1 else (
            "Masks by region are switched off: they need units in two known regions, which this session has not.")
        self._open(str(run))
        mode = mode or (MODES[0] if box is None else DRAWN)
        self._check(mode, ratio, seed, box)
        length = self.filler.whole_chunks(length or getattr(self.filler.model, "window", 1.0))
        start = self.filler.held_out(length)[0] if start is None else start
        with param.parameterized.discard_events(self):
            self.param.update(mode=mode, ratio=ratio, length=length, seed=int(seed),
                              start=self.filler.nearest(start, length), box=box, run=str(run))
        self._regions, self._meter = (Text(margin=(0, 10), sizing_mode="stretch_width") for _ in range(2))
        self._plots()
        self._refill()
        if shown not in ("", *self.rates):
            raise UnknownName("fill", shown, self.rates)
        self.shown = shown or self.shown

    def code(self) -> str:
        """The cell that makes this view."""
        model = f" {self.run!r}," if self.run else " model," if self._given is not None else ""
        what = f"box={tuple(round(v, 4) for v in self.box)}" if self.mode == DRAWN else (
            f"mode={self.mode!r}, ratio={self.ratio:g}, seed={self.seed}")
        return (f"from workbench.apps.masking import Masking\nfrom workbench.catalog import open_recording\n\n"
                f"session = open_recording({self.recording or self.session.id!r})\n"
                f"Masking(session,{model} {what}, start={self.start!r}, length={self.length!r}, "
                f"shown={self.shown!r})")

    def _open(self, run: str) -> None:
        """The model, and which time of the session it was trained on."""
        from workbench import models  # torch, which the hub should not wait for
        from workbench.analysis.filling import Filler

        model, how, self._whose = self._given, {}, "default"
        try:
            if run and (Path(run).expanduser() / "config.json").is_file():
                model = models.load(Path(run).expanduser())
            elif run:
                model, how, self._whose = Run(run).model(), Run(run).recipe.split.model_dump(), "run's"
        except RuntimeError as error:                                   # weights of another version of the model
            raise WorkbenchError(f"the model at {run} cannot be loaded: {error}") from error
        self.filler, self._shrinkage = Filler(self.session, model, **how), {}

    def _check(self, mode: str, ratio: float, seed: int, box: tuple | None) -> None:
        if mode not in self.param.mode.objects:
            raise UnknownName("mask", mode, self.param.mode.objects)
        if mode.endswith("region") and self._no_regions:
            raise WorkbenchError(f"no mask {mode} of {self.session.id}. {self._no_regions}")
        if mode == DRAWN and box is None:
            raise WorkbenchError("a mask drawn by hand needs a box: drag one on the left picture, or give box=")
        if not 0.01 <= ratio <= 1 or seed < 0:
            raise WorkbenchError(f"no mask has ratio {ratio:g} and seed {seed:g}; give 0.01 to 1, and 0 or more")

    # What is hidden, and what fills it in.

    @param.depends("run", watch=True)
    def _other_model(self) -> None:
        try:
            self._open(self.run)
        except WorkbenchError as error:
            self._alerts[:] = [alert(error)]
            return
        self._fill()
        self.shown = next(iter(self.rates))

    @param.depends("mode", "ratio", "length", "start", "seed", "box", watch=True)
    def _fill(self) -> None:
        self._alerts.clear()
        try:
            self._refill()
        except WorkbenchError as error:
            self._alerts.append(alert(error))

    def _refill(self) -> None:
        length = self.filler.whole_chunks(self.length)
        start = self.filler.nearest(self.start, length)
        if (start, length) != (self.start, self.length):                # comes here again
            self.param.update(start=start, length=length)
            return
        self._check(self.mode, self.ratio, self.seed, self.box)
        self.batch, self._over_many = self.filler.read(np.array([start]), length), []
        self.mask, self.rates, self.scores = self._scored(self.batch)
        self.param.shown.objects = list(self.rates)
        if self.shown in self.rates:
            self._draw()
        else:
            self.shown = next(iter(self.rates))                         # which draws

    def _scored(self, batch) -> tuple:
        """The mask, the expected counts of every fill, and (bits per spike of every fill, spikes)."""
        filler, mask = self.filler, self._hide(batch)
        key = self.mode, self.ratio, self.length, self.box
        if key not in self._shrinkage:
            self._shrinkage[key] = filler.shrinkage(self.length, self._hide)
        rates = filler.simple(batch, mask, self._shrinkage[key])
        if filler.model is not None:
            try:
                rates = {filler.model.name: filler.predict(batch, mask)} | rates
            except Exception as error:                                  # units it has not met, a length it cannot take
                self._alerts[:] = [alert(error)]
        return mask, rates, filler.bits(batch, mask, rates)

    def _hide(self, batch):
        if self.mode != DRAWN:
            return self.filler.hide(batch, self.mode, self.ratio, self.seed)
        start, stop, first, last = self.box
        return self.filler.box(batch, start, stop, self._grid.order[max(int(first), 0):int(last) + 1])

    def _boxed(self, event: SelectionGeometry) -> None:
        """A box dragged on the raster becomes the mask."""
        if event.final and event.geometry["type"] == "rect":
            x, y = (sorted((event.geometry[f"{axis}0"], event.geometry[f"{axis}1"])) for axis in "xy")
            rows = np.clip(np.round(y), 0, len(self._grid.order) - 1).astype(int).tolist()
            self.param.update(mode=DRAWN, box=(*(round(t - self.start, 4) for t in x), *rows))

    def _measure(self, _) -> None:
        """The meter over many windows: one alone says little."""
        try:
            starts = self.filler.held_out(self.length, HELD_OUT)
            scores = self._scored(self.filler.read(starts, self.length))[2]
            self._over_many = [(f"{len(starts)} held-out windows", scores)]
        except WorkbenchError as error:
            self._alerts[:] = [alert(error)]
        self._tell()

    def _go(self, by: float) -> None:
        """To the window before or after, or (0) to a random one of the held-out time."""
        at = self.start + by * self.length if by else np.random.choice(self.filler.held_out(self.length))
        self.start = self.filler.nearest(float(at), self.length)

    # What is drawn.

    def _plots(self) -> None:
        """Three pictures, units down and time across, and one chart beneath the first."""
        grid = self._grid
        self._sources = {name: ColumnDataSource() for name in ("seen", "hidden", "images", "shares")}
        left, middle, right = (grid.picture(labelled=i == 0) for i in range(3))
        below = plain(height=170, x_range=grid.x, y_range=Range1d(0, 1.02), x_axis_label="time (s)",
                      y_axis_label="share of units", min_border_left=grid.margin)
        self._figures = left, middle, right, below
        self._expected, self._gain = LogColorMapper(Cividis256), LinearColorMapper(WORSE_BETTER, nan_color="#e6e6e6")
        veil = LinearColorMapper(["#ffffff00", f"{UNSCORED}50", f"{HIDDEN}2c"], low=-0.5, high=2.5)
        images, count = self._sources["images"], ("spikes", "@counts")
        left.image("mask", "x", "y", "dw", "dh", color_mapper=veil, source=images)
        grid.hover(middle, grid.colored(middle, "rates", self._expected, images), ("expected", "@rates{0.0000}"), count)
        grid.hover(right, grid.colored(right, "gain", self._gain, images), ("gain", "@gain{+0.000} bits"), count)
        grid.hover(left, [grid.ticks(left, color, self._sources[name]) for name, color in (
            ("seen", SEEN), ("hidden", HIDDEN))])
        left.add_tools(box := BoxSelectTool(description="Drag a box: it becomes the mask"))
        left.toolbar.active_drag = box
        left.on_event(SelectionGeometry, self._boxed)
        for name, color in (("hidden", UNSCORED), ("scored", HIDDEN)):
            below.vbar("time", "width", name, source=self._sources["shares"], color=color, line_alpha=0)

    @param.depends("shown", watch=True)
    def _draw(self) -> None:
        order, batch, start, step = self._grid.order, self.batch, self.start, self.length / self.mask.hidden.shape[2]
        gone = self.mask.hidden[0, batch.units, batch.spike_bins(step)].numpy()
        times, rows = start + batch.times.double().numpy(), np.argsort(order)[batch.units.numpy()]
        for name, which in (("seen", ~gone), ("hidden", gone)):
            self._sources[name].data = {"time": times[which], "row": rows[which]}
        hidden, scored = (part[0].numpy()[order] for part in self.mask)
        counts, rates = batch.counts(self.filler.bin_size)[0], self.rates[self.shown][0]
        counted = self.mask.grid(counts.shape[1]).scored[0]
        gains = self.filler.gain(rates, counts).masked_fill(~counted, np.nan)
        low, most = float(np.quantile(rates, 0.01)), float(np.nanquantile(gains.abs(), 0.98)) if counted.any() else 0.0
        self._expected.update(low=max(low, 1e-6), high=max(float(rates.max()), 1.01 * low, 1e-5))
        self._gain.update(low=-(most or 1.0), high=most or 1.0)
        one = {"x": start, "y": -0.5, "dw": self.length, "dh": len(order), "mask": hidden.astype(np.uint8) + scored}
        one |= {name: values.numpy()[order] for name, values in (("rates", rates), ("gain", gains), ("counts", counts))}
        self._sources["images"].data = {name: [value] for name, value in one.items()}
        self._sources["shares"].data = {"time": start + (np.arange(hidden.shape[1]) + 0.5) * step,
                                        "width": np.full(hidden.shape[1], step), "hidden": hidden.mean(0),
                                        "scored": scored.mean(0)}
        self._grid.show(start, start + self.length)
        titles = (f"{gone.sum():,} of {len(gone):,} spikes hidden", f"{self.shown}: expected spikes in "
                  f"{1e3 * self.filler.bin_size:g} ms", "better (blue) or worse (orange) than the mean rate, bits",
                  f"hidden over time, {100 * hidden.mean():.0f} % in all")
        for plot, title in zip(self._figures, titles, strict=True):
            plot.title.text = title
        shares = self._grid.by_region(hidden, scored)
        self._regions.object = bars("Share hidden by region", ["hidden", "scored"], shares, most=1.0)
        self._tell()

    def _tell(self) -> None:
        """What is shown, in a line, and how well every fill does."""
        filler, start = self.filler, self.start
        part = filler.part_of(start, self.length) or "no one"
        by = "no model: these are the simple fills; name a run to see it fill in" if filler.model is None else (
            f"filled in by {filler.model.name}" + f" of {self.run}" * bool(self.run))
        said = (f"{len(self._grid.order):,} units", f"{start:,.2f} to {start + self.length:,.2f} s ({part} part of the "
                f"{self._whose} split)", f"scored in bins of {1e3 * filler.bin_size:g} ms", html.escape(by))
        self.status = "<b>SIMULATED</b> · " * self.session.simulated + " · ".join(said)
        columns, scores = zip(*[("this window", self.scores), *self._over_many], strict=True)
        self._meter.object = bars(
            "Leakage meter: bits per spike over the mean rate in training",
            [f"{column}, {spikes:,} spikes" for column, (_, spikes) in zip(columns, scores, strict=True)],
            {name: [bits.get(name, np.nan) for bits, _ in scores] for name in self.rates}, "{:+.3f}")

    def __panel__(self) -> pn.viewable.Viewable:
        of, wide, unit = self.param, {"sizing_mode": "stretch_width"}, self.filler

        def slider(name: str, label: str, start: float, end: float, step: float):
            return pn.widgets.FloatSlider.from_param(of[name], label=label, start=start, end=max(end, start + step),
                                                     step=step, throttled=True, width=210, margin=(10, 18))

        buttons = pn.FlexBox(*(pn.widgets.Button(label=label, on_click=act, color=color) for label, act, color in (
            ("Draw again", lambda _: self.param.update(seed=self.seed + 1), "primary"),
            ("◀ Earlier", lambda _: self._go(-1), "default"), ("Later ▶", lambda _: self._go(1), "default"),
            ("Another held-out window", lambda _: self._go(0), "default"),
            (f"Score {HELD_OUT} held-out windows", self._measure, "default"))))
        masks = pn.FlexBox(
            pn.widgets.Select.from_param(of.mode, label="Mask", width=150, disabled_options=[
                mode for mode in MODES if mode.endswith("region") and self._no_regions]),
            slider("ratio", "Share hidden", 0.05, 1.0, 0.05),
            slider("length", "Window (s)", unit.chunk, unit.whole_chunks(1e9), unit.chunk),
            slider("start", "Starts at (s)", self.session.start, self.session.stop - self.length, unit.bin_size))
        model = pn.FlexBox(pn.widgets.TextInput.from_param(of.run, label="Folder of a run or a saved model",
                                                           max_width=420, **wide),
                           pn.widgets.Select.from_param(of.shown, label="Drawn", width=190))
        said = [Text(self._no_regions, visible=bool(self._no_regions), margin=(0, 10)), model, buttons, self._alerts,
                Text(of.status, margin=(0, 10), styles={"font-size": "13px"}, **wide), Text(LEGEND, margin=(2, 10))]
        left, middle, right, below = (pn.pane.Bokeh(plot, margin=2, **wide) for plot in self._figures)
        return pn.Column(masks, *said, beside(left, middle, right),
                         beside(below, self._regions, self._meter),
                         self.as_code("status", "shown", "mode"), **wide)


def app() -> pn.viewable.Viewable:
    """The served page: a new state for every visitor."""
    return served("Masking", Masking, state=("mode", "ratio", "length", "start", "seed", "shown", "box", "run"))


if pn.state.served:
    built("Masking", app).servable(title="Masking · spike workbench")
