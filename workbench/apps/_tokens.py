"""The tokens that a model, or a view of the spikes, makes of what the raster shows, drawn over it.

    Reading → Tokens in view → lines at the edges of bins, rows of one patch in one colour, marks on single spikes
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.apps._marks import Drawn
from workbench.colors import CATEGORIES
from workbench.errors import WorkbenchError
from workbench.session import Session
from workbench.training.run import Run

if TYPE_CHECKING:                                                       # torch, which the hub should not wait for
    from workbench.analysis.tokens import Reading

CHOICES = ("none", "bins", "patches", "spikes", "neurons", "events")
COLUMNS = 200                                                           # columns of tokens that can be told apart
SPIKES = {"spikes": 4000, "events": 400}                                # marks that can be; a line joins events
EDGES = 400                                                             # of windows and of steps
TINTS = CATEGORIES[:6]                                                  # of patches, in turn
LINE, STEP = "#00000060", "#882255c0"


class Layers:
    """The layer of the moment, which the picture and the line above it ask for; and the model whose tokens they are."""

    def __init__(self, session: Session):
        self.session, self._run, self._model, self._last = session, "", None, ("", None)

    def open(self, run: str) -> dict:
        """Another run, or the folder of a saved model; "" for none. Returns how it was split, {} where it is not said.

        The model itself is read when its tokens are asked for. WorkbenchError where there is no run.
        """
        saved = not run or (Path(run).expanduser() / "config.json").is_file()
        how = {} if saved else Run(run).recipe.split.model_dump()
        self._run, self._model, self._last = run, None, ("", None)
        return how

    def reading(self, name: str) -> tuple[Reading | None, str]:
        """What is meant by one of CHOICES or "model", and who reads so. WorkbenchError for a model that reads none."""
        if name == "none":
            return None, ""
        from workbench import models
        from workbench.analysis.tokens import Reading, reading_of

        if name != "model":
            return Reading(name), ""
        if self._model is None:
            folder = Path(self._run).expanduser()
            try:
                saved = (folder / "config.json").is_file()
                self._model = models.load(folder) if saved else Run(self._run).model()
            except RuntimeError as error:                               # weights of another version of the model
                raise WorkbenchError(f"the model at {self._run} cannot be loaded: {error}") from error
        return reading_of(self._model), type(self._model).__name__

    def at(self, name: str, start: float, stop: float, order: np.ndarray) -> Layer | None:
        """The layer of these seconds; None for no tokens. Computed once while nothing changes."""
        key = name, start, stop, order.tobytes()
        if self._last[0] != key:
            reading, reader = self.reading(name)
            self._last = key, reading and Layer(self.session, reading, start, stop, order, reader)
        return self._last[1]


class Layer:
    """The tokens of one reading in one stretch. order [N]: rows of the unit table, first row of the raster first.

    tokens: None where there are too many to tell apart, and then `says` tells how far to zoom in.
    """

    def __init__(self, session: Session, reading: Reading, start: float, stop: float, order: np.ndarray,
                 reader: str = ""):
        from workbench.analysis.tokens import tokens_in

        self.session, self.reading, self.order = session, reading, order
        self.view, self.tokens = (start, stop), None
        longest = self._longest()
        if stop - start <= longest:
            self.tokens = tokens_in(session, reading, start, stop)
        self.says = self._said(longest, reader)

    def _longest(self) -> float:
        """The most seconds in which tokens can be told apart, at the rate of spikes in view."""
        if self.reading.step:
            return COLUMNS * self.reading.step * (1 + 1e-6)
        start, stop = self.view
        spikes = int(np.diff(np.searchsorted(self.session.spike_times, self.view))[0])
        return (stop - start) * SPIKES[self.reading.view] / max(spikes, 1)

    def _said(self, longest: float, reader: str) -> str:
        reading, told = self.reading, []
        if reader:
            told.append(f"{reader} reads windows of {reading.window:g} s"
                        + f", in steps of {1e3 * reading.chunk:g} ms" * bool(reading.chunk))
        if self.tokens is None:
            told.append(f"zoom in to {_round_down(longest):g} s to see tokens")
        else:
            told.append(f"<b>{len(self.tokens):,} tokens</b> in view")
        told.append(f"a token holds {reading.holds}")
        if self.tokens is not None and self._scattered():
            several = int(self.tokens.rows.max()) >= len(TINTS)
            told.append("patches go by the order of the unit table, not of the rows: those of one colour are "
                        + (f"every {len(TINTS)}th patch" if several else "one patch"))
        return " · ".join(told)

    def _scattered(self) -> bool:
        return self.reading.view == "patches" and len(self._runs()) > len(np.unique(self.tokens.rows))

    def _runs(self) -> list[tuple[int, int, int]]:
        """(first row, last row + 1, patch) of neighbouring rows of the raster that are in one patch."""
        patch = self.tokens.rows[self.order]
        cuts = [0, *(np.flatnonzero(np.diff(patch)) + 1).tolist(), len(patch)] if len(patch) else []
        return [(a, b, int(patch[a])) for a, b in pairwise(cuts)]

    def draw(self, rows: float) -> Drawn:
        """rows: of the raster that are in view."""
        if self.tokens is None:
            return Drawn()
        (start, stop), n, tokens = self.view, len(self.order), self.tokens
        lines = [(t, -0.5, t, n - 0.5, color, width) for times, color, width in (
            (np.union1d(tokens.starts.round(9), tokens.stops.round(9)), LINE, 0.8),
            (self._edges(self.reading.chunk), STEP, 1.2), (self._edges(self.reading.window), "#000000", 2.0))
            for t in times]
        if self.reading.view == "neurons" and rows <= 50:                # else lines would hide the spikes
            lines += [(start, row - 0.5, stop, row - 0.5, LINE, 0.7) for row in range(n + 1)]
        points = tokens.times, np.argsort(self.order)[tokens.units]
        return Drawn(under=self._patches(rows), lines=lines, points=points, path=self.reading.view == "events")

    def _patches(self, rows: float) -> list[tuple]:
        """Every run of rows that are in one patch, in its colour; lines between them, where they leave room."""
        from workbench.analysis.tokens import pieces

        if self.reading.view != "patches":
            return []
        runs = self._runs()
        line = LINE if not self._scattered() or (rows <= 100 and len(runs) <= 60) else "#ffffff00"
        times = pieces(self.session.intervals, *self.view, self.reading.step)
        return [(a, first - 0.5, b, last - 0.5, f"{TINTS[patch % len(TINTS)]}33", line)
                for a, b in times for first, last, patch in runs]

    def _edges(self, step: float) -> np.ndarray:
        """Of windows or steps of `step` s side by side; none where there are too many."""
        from workbench.analysis.tokens import pieces

        if not step or (self.view[1] - self.view[0]) / step > EDGES:
            return np.empty(0)
        found = pieces(self.session.intervals, *self.view, step)
        return np.concatenate([np.empty(0), *(a + step * np.arange(round((b - a) / step) + 1) for a, b in found)])


def _round_down(seconds: float) -> float:
    """To one digit, so that it is easily met."""
    unit = 10.0 ** np.floor(np.log10(max(seconds, 1e-3)))
    return float(np.floor(seconds / unit + 1e-6) * unit)
