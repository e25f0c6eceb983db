"""What a model knows at every moment of a recording, as a cloud of points, and of every unit.

    model, sessions → windows that slide over the valid time → Output.latents [B, L, D], L equal parts of each window
        → Cloud: values [P, D], one point a part, at most `most` of them, evenly chosen in time
    model, session  → vectors [N, D], the rows that the model learned for its units

A cloud is computed once for the same weights, recordings and number of points, and kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from workbench import __version__, models
from workbench.analysis.raster import unit_columns
from workbench.batch import Reader, SpikeBatch
from workbench.catalog import open_recording, open_recordings
from workbench.errors import CannotWrite, UnknownName, WorkbenchError
from workbench.files import replacing
from workbench.nn.vocabulary import Vocabulary
from workbench.places import cache_folder
from workbench.session import Session
from workbench.training.run import Run
from workbench.windows import sliding

MOST = 20_000                                                           # points that a page can draw and a UMAP lay out
WIDE = 4_096                                                            # dimensions that several latents may make


class Cloud(NamedTuple):
    """Latents of moments: values [P, D] float32; times [P] s, the middle of each part, on the clock of its session."""

    values: np.ndarray
    times: np.ndarray
    session: np.ndarray                                                 # [P] number of the session
    width: float                                                        # seconds of a part
    window: float                                                       # seconds that the model sees at once
    total: int                                                          # parts there are; P of them were chosen
    key: str                                                            # of weights, recordings and number of points

    @property
    def every(self) -> int:
        """One point was taken of so many parts."""
        return max(round(self.total / max(len(self.times), 1)), 1)

    @property
    def points(self) -> str:
        """In words, how many points of how many."""
        part = f"{1e3 * self.width:.4g} ms"
        if self.every == 1:
            return f"{len(self.times):,} points, one every {part}"
        return f"{len(self.times):,} of {self.total:,} points, evenly chosen: one of every {self.every} bins of {part}"


def moments(model: nn.Module, sessions: Sequence[Session], *, most: int = MOST,
            progress: Callable[[int, int], None] | None = None) -> Cloud:
    """The latents of every part of the valid time, or of every k-th where there are more than `most`.

    progress: called with (windows done, windows there are). WorkbenchError for a model without latents of moments.
    """
    key = fingerprint(model, sessions, most)
    kept = cache_folder("latents") / f"{key}.npz"
    try:
        with np.load(kept) as found:
            return Cloud(*(found[name] for name in ("values", "times", "session")),
                         *(found[name].item() for name in ("width", "window", "total")), key)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):         # not there, or damaged: made anew
        pass
    training = model.training
    try:
        cloud = _cloud(model.eval(), sessions, most, progress or (lambda done, of: None), key)
    finally:
        model.train(training)
    try:
        with replacing(kept, durable=False) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: value for name, value in cloud._asdict().items() if name != "key"})
    except CannotWrite:                                                 # costs only time
        pass
    return cloud


@torch.no_grad()
def _cloud(model: nn.Module, sessions: Sequence[Session], most: int, progress: Callable, key: str) -> Cloud:
    reader = Reader(sessions, also=_series(model))
    step = model.window - model.warmup
    starts = [sliding(s.intervals, model.window, step) for s in sessions]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def read(session: int, at: np.ndarray) -> SpikeBatch:
        return reader.read(np.full(len(at), session), at, model.window).to(device)

    parts = _parts(model, read(0, starts[0][:1]))
    width = model.window / parts
    middles = (np.arange(parts) + 0.5) * width
    middles = middles[middles >= model.warmup]
    chosen = [_fresh(at[:, None] + middles, width) for at in starts]
    every = -(-sum(int(c.sum()) for c in chosen) // most)
    values, times, owner, seen, windows = [], [], [], 0, sum(len(at) for at in starts)
    total = sum(int(c.sum()) for c in chosen)
    for number, (at, fresh) in enumerate(zip(starts, chosen, strict=True)):
        take = np.zeros(fresh.shape, bool)
        take.reshape(-1)[np.flatnonzero(fresh)[::every]] = True
        needed = np.flatnonzero(take.any(1))
        for rows in np.array_split(needed, -(-len(needed) // 32)):
            latents = _said(model, read(number, at[rows]))[:, -len(middles):]
            values.append(latents.float().cpu().numpy()[take[rows]])
            times.append((at[rows, None] + middles)[take[rows]])
            owner.append(np.full(len(times[-1]), number))
            progress(seen + int(rows[-1]) + 1, windows)
        seen += len(at)
    values = np.concatenate(values)
    if not np.isfinite(values).all():
        raise WorkbenchError(f"{type(model).__name__} gives latents that are no numbers; its training went astray")
    return Cloud(values, np.concatenate(times), np.concatenate(owner), width, model.window, total, key)


def _series(model: nn.Module) -> list[str]:
    """Series that batches have to carry for the forward pass, where the session has them."""
    named = [*getattr(model, "reads", ()), getattr(model, "target", None)]
    return list(dict.fromkeys(name for name in named if isinstance(name, str)))


def _parts(model: nn.Module, batch: SpikeBatch) -> int:
    """Of how many moments of a window there are latents."""
    name, latents = type(model).__name__, _said(model, batch)
    if latents is None or latents.ndim != 3:
        raise WorkbenchError(f"{name} gives no latents of moments to look at; choose a model that embeds "
                             "(workbench.models.available())")
    units = len(batch.window_units)
    if latents.shape[1] == units > 1 and not (model.bin_size and units == batch.bins(model.bin_size)):
        fewer = _said(model, batch.keep_units(torch.arange(units, device=batch.device) > 0))
        if fewer.shape[1] < units:
            raise WorkbenchError(f"the latents of {name} are one vector a unit, not one a moment: there is no cloud of "
                                 "moments to look at; choose another model")
    return latents.shape[1]


def _said(model: nn.Module, batch: SpikeBatch) -> torch.Tensor | None:
    """Latents [B, L, D], one vector a moment: several of one time (POYO) are laid side by side, or where that would be
    wider than `WIDE`, averaged."""
    latents, times = model(batch).latents, getattr(model, "latent_times", None)
    if latents is None or not isinstance(times, torch.Tensor) or len(times) != latents.shape[1]:
        return latents
    latents = latents.unflatten(1, (len(times.unique()), -1))
    return latents.flatten(2) if latents.shape[2:].numel() <= WIDE else latents.mean(2)


def _fresh(times: np.ndarray, width: float) -> np.ndarray:
    """Which parts [W, L] no window before has covered: the last window of an interval overlaps the one before it."""
    flat = times.reshape(-1)
    latest = np.maximum.accumulate(np.append(-np.inf, flat))[:-1]
    return (flat > latest + 0.5 * width).reshape(times.shape)


def fingerprint(model: nn.Module, sessions: Sequence[Session], *more) -> str:
    """A name for what these weights say of these recordings."""
    digest = hashlib.blake2b(digest_size=12)
    config = getattr(model, "_hub_mixin_config", None) or {}
    about = [__version__, type(model).__name__, config, model.window, model.warmup, *more]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for s in sessions:
        digest.update(json.dumps([s.id, list(s.units["id"])]).encode())
        read = []
        for name in _series(model):
            with suppress(UnknownName):                                 # as batches go without it
                read += s.get_series(name)[:2]
        for array in (s.spike_times, s.spike_units, s.intervals, *read):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@torch.no_grad()
def unit_vectors(model: nn.Module, session: Session) -> tuple[str, np.ndarray]:
    """(where the model keeps or makes them, a row a unit of the session [N, D]): what its method `unit_vectors` says,
    else the first table that holds vectors.

    UnknownName for units that the model has never seen, WorkbenchError for a model that keeps no vectors of units.
    """
    if hasattr(model, "unit_vectors"):
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        batch = Reader([session], also=_series(model)).read([0], [session.start], model.window).to(device)
        return "unit_vectors", model.unit_vectors(batch)[0].float().cpu().numpy()
    tables = {name: m for name, m in model.named_modules() if isinstance(m, Vocabulary) and m.kind == "unit"}
    tables = {name: m for name, m in tables.items() if m.weight.shape[1] > 2}
    if not tables:
        raise WorkbenchError(f"{type(model).__name__} keeps no vector of its own for a unit")
    name, table = next(iter(tables.items()))
    words = [(f"{session.id}/{unit}", unit) for unit in session.units["id"]]
    rows = table.rows([word if word in table.row or unit not in table.row else unit for word, unit in words])
    return name, table(rows).detach().float().cpu().numpy()


def units_of(model: nn.Module, sessions: Sequence[Session]) -> tuple[pd.DataFrame, np.ndarray | None, str]:
    """The units of all sessions, their vectors [N, D], and the model's name of those; or None, and why."""
    units = pd.concat([pd.DataFrame({"session": s.id, "id": s.units["id"], **unit_columns(s)}) for s in sessions],
                      ignore_index=True)
    try:
        found = [unit_vectors(model, s) for s in sessions]
    except WorkbenchError as error:
        return units, None, str(error)
    return units, np.concatenate([vectors for _, vectors in found]), found[0][0]


def opened(model, session=None) -> tuple[nn.Module, list[Session]]:
    """A model, given as it is, as a `Run` or as the folder of a run or of weights, and the sessions that are meant:
    each as it is, by its id among the run's recordings, or by what `open_recording` takes; None: the run's first."""
    if isinstance(model, str | Path) and not (Path(model).expanduser() / "config.json").is_file():
        model = Run(model)
    own = {s.id: s for s in open_recordings(model.recipe.data)} if isinstance(model, Run) else {}
    several = list(session) if isinstance(session, list | tuple) else [session] if session is not None else []
    several = several or list(own.values())[:1]
    if not several:
        raise WorkbenchError("no session was named to look at; give one, as Latents(model, session) or session=NAME in "
                             "the address")
    if isinstance(model, Run):
        model = model.model()
    elif isinstance(model, str | Path):
        model = models.load(Path(model).expanduser())
    return model, [s if isinstance(s, Session) else own[s] if s in own else open_recording(s) for s in several]
