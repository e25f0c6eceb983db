"""A trained model on a session that it has not met: what of it learns, from what, and what that costs.

    identify   the new units' and session's own rows; all else is frozen: unit identification (Azabou et al. 2023, POYO)
    finetune   the same for the first third of the steps, then everything: the staged schedule of the same paper. A
               model without such rows learns as a whole from the start
    stitcher   the new session's linear maps alone (nn/stitcher.py), in front of and behind a frozen model
    identity   nothing: the model reads the units' identity off their activity, without labels (Le et al. 2025, SPINT)

In every way the rows of other sessions stay as they were, to the bit. A model that decodes learns from the session's
own target; one that does not, from its spikes. Nothing is held back to choose by: what is scored lies outside
`intervals`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from workbench.catalog import open_recording
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.base import unit_names
from workbench.nn.factors import spread_windows
from workbench.nn.stitcher import ReadIn, ReadOut, SessionMap
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session
from workbench.training.loop import Diverged, learning_rate
from workbench.training.recipe import Optim
from workbench.training.rows import RowAdam, alike
from workbench.windows import RandomWindows, locked

WAYS = ("identify", "finetune", "stitcher", "identity")


class CannotAdapt(WorkbenchError, ValueError):
    """A way to adapt that this model has not."""


class Adaptation(NamedTuple):
    """What an adaptation cost. parameters: how many numbers were free to move; loss: of the last step, NaN without."""

    how: str
    session: str
    seconds: float
    steps: int
    parameters: int
    loss: float


def adapt(model: nn.Module, session: Session | str | Path, how: str = "identify", *,
          intervals: np.ndarray | None = None, target: str | None = None, like: Session | str | None = None,
          by: str = "id", steps: int = 400, batch_size: int = 16, lr: float | None = None, rest_lr: float = 5e-4,
          seed: int = 0, on_step: Callable[[dict], None] | None = None) -> Adaptation:
    """Adapt `model`, in place, to a session, or to the one of a name or path; returns what it cost.

    intervals   [n, 2] seconds of the session that the model may learn from; None: all of it
    target      the series to learn from, where this session calls it otherwise than the model does
    like        a session that the model knows (or its id): new rows begin as those of its units that agree in the
                column `by` of both unit tables (an id alone: by unit id), and with `steps=0` stay so, without labels
    lr          peak learning rate of the rows, None: the model's `rows_lr`; rest_lr of everything else. A short rise
                and a cosine to 0; `training.rows.RowAdam` where rows are many, else AdamW
    on_step     gets {step, steps, loss} after every step; what it raises ends the adaptation where it is

    Rows that are recognised (NeuroBridge) begin at random and end in one of many places: two copies, adapted with two
    seeds for half the steps each and asked together by `analysis.masked.evaluate([one, other], …)`, often say more.

    A session that the model knows is learnt anew, from where its rows are. CannotAdapt where the model has not what
    `how` trains; UnknownName for another `how`, or a session without the target.
    """
    if how not in WAYS:
        raise UnknownName("way to adapt", how, WAYS)
    if not isinstance(model, nn.Module):
        raise CannotAdapt(f"{model!r} is no model; give the model itself (of a finished run that is run.model())")
    session = session if isinstance(session, Session) else open_recording(session)
    intervals = np.asarray(session.intervals if intervals is None else intervals, float).reshape(-1, 2)
    began = time.perf_counter()
    if hasattr(model, "fit"):
        raise CannotAdapt(f"model {model.name!r} is solved at once, not trained in steps; build it for {session.id!r}")
    if how == "identity":
        if not hasattr(model, "identify"):
            raise CannotAdapt(f"model {model.name!r} does not read who a unit is off its activity; choose "
                              "how='identify', or a model that does (spint)")
        model.identify(session, intervals)
        return Adaptation(how, session.id, time.perf_counter() - began, 0, 0, math.nan)
    if target is not None and target != getattr(model, "target", target):
        session = replace(session, series={**session.series, model.target: session.get_series(target)}, checked=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tables = _tables(model, session, how, intervals)
        if like is not None:
            _copy_rows(tables, session, like, by)
        loss, free = _learn(model, session, intervals, tables, how == "finetune", steps=steps, batch_size=batch_size,
                            lr=model.rows_lr if lr is None else lr, rest_lr=rest_lr, seed=seed, on_step=on_step)
    return Adaptation(how, session.id, time.perf_counter() - began, steps, free, loss)


def _tables(model: nn.Module, session: Session, how: str, intervals: np.ndarray) -> list[Vocabulary]:
    """The tables whose rows of this session are free, after the model has met it."""
    stitchers = [m for m in model.modules() if isinstance(m, ReadIn | ReadOut | SessionMap)]
    within = nn.ModuleList(stitchers) if how == "stitcher" else model
    tables = [m for m in within.modules() if isinstance(m, Vocabulary) and m.kind in ("unit", "session")
              and m.weight.requires_grad]
    if how == "finetune" and not tables:
        if hasattr(model, "identify"):
            model.identify(session, intervals)
        return []
    if not tables:
        rows = "maps of its own for every session" if how == "stitcher" else "rows of units and sessions"
        way = "how='identity'" if hasattr(model, "identify") else "a model that does, or build it for this session"
        raise CannotAdapt(f"model {model.name!r} keeps no {rows}, so {how!r} has nothing to train; choose {way}")
    model.extend([session.within(intervals)])
    return tables


def _rows(table: Vocabulary, session: Session) -> torch.Tensor:
    return table.rows(unit_names([session]) if table.kind == "unit" else [session.id])


def _copy_rows(tables: Sequence[Vocabulary], session: Session, like: Session | str, by: str) -> None:
    """Give the session's units, and the session, the rows of those that they are like."""
    if not tables:
        raise CannotAdapt("this model keeps no rows of units that could be lent; leave like= out")
    known = next((t for t in tables if t.kind == "unit"), None)
    if known is None:
        raise CannotAdapt("this model keeps rows of sessions alone, none of units that could be lent; leave like= out")
    if isinstance(like, str):
        ids = [word.removeprefix(f"{like}/") for word in known.words if word.startswith(f"{like}/")]
        there, here, like_id = ids, session.units["id"], like
    else:
        for one in (like, session):
            if by not in one.units:
                raise UnknownName("column", by, one.units.columns, where=f"the units of {one.id!r}")
        ids, there, here, like_id = list(like.units["id"]), like.units[by], session.units[by], like.id
    of = dict(zip(there, ids, strict=True))
    pairs = [(f"{session.id}/{new}", f"{like_id}/{of[value]}")
             for new, value in zip(session.units["id"], here, strict=True) if f"{like_id}/{of.get(value)}" in known.row]
    if not pairs:
        raise CannotAdapt(f"no unit of {session.id!r} agrees in {by!r} with a unit of {like_id!r} that the model "
                          "knows; choose another column, or leave like= out")
    with torch.no_grad():
        for table in tables:
            new, old = zip(*(pairs if table.kind == "unit" else [(session.id, like_id)]), strict=True)
            table.weight[table.rows(new)] = table.weight[table.rows(old)]


def _learn(model: nn.Module, session: Session, intervals: np.ndarray, tables: Sequence[Vocabulary], staged: bool, *,
           steps: int, batch_size: int, lr: float, rest_lr: float, seed: int,
           on_step: Callable[[dict], None] | None) -> tuple[float, int]:
    """Train the session's rows, and from a third of the steps on the rest where `staged`; last loss, free numbers."""
    targets = (model.target,) if getattr(model, "target", None) else ()
    where = locked(intervals, session.get_series(model.target).times, model.window) if model.locked else intervals
    windows = RandomWindows([session], [where], duration=model.window, batch_size=batch_size, seed=seed,
                            targets=targets, also=model.reads,
                            align=targets[0] if targets and model.bin_size else None)
    rows = [table.weight for table in tables]
    rest = [p for p in model.parameters() if p.requires_grad and not any(p is row for row in rows)]
    free = sum(len(_rows(table, session)) * table.weight.shape[1] for table in tables)
    free += staged * sum(p.numel() for p in rest)
    many = {table: of for table in tables if 4 * len(of := _rows(table, session)) >= table.weight.shape[1]}
    # Where the rest learns too, it learns what units share.
    shared = many and model.rows_alike and not staged
    seen = spread_windows(session.within(intervals), model.window, 1000) if shared else None
    common = None if seen is None else alike(seen.counts(model.window / max(round(model.window / 0.05), 1)))    # 50 ms
    # Rows do not decay: AdamW would shrink those without a gradient, which are other sessions'.
    few = {"params": [table.weight for table in tables if table not in many], "weight_decay": 0.0, "peak": lr}
    groups = [group for group in (few, {"params": rest, "weight_decay": 0.01, "peak": rest_lr}) if group["params"]]
    steppers = [torch.optim.AdamW(groups)] * bool(groups) + [
        RowAdam([{"params": [table.weight], "rows": of, "alike": common if table.kind == "unit" else None, "peak": lr}])
        for table, of in many.items()]
    released, loss, device = steps // 3 if rows else 0, math.nan, next(model.parameters()).device
    with _only_rows_of(session, tables), _frozen(rest) as release, _evaluated(model, keeps=not staged):
        model.train(staged or model.rows_dropout)
        for step in range(steps):
            if staged and step == released:
                release()
            for group in (group for stepper in steppers for group in stepper.param_groups):
                group["lr"] = learning_rate(Optim(lr=group["peak"], warmup=max(steps // 20, 1), floor=0.0), step, steps)
            batch = windows.batch(step).to(device)
            found = model.loss(batch)["loss"]
            for stepper in steppers:
                stepper.zero_grad(set_to_none=True)
            found.backward()
            norm, loss = nn.utils.clip_grad_norm_([*rows, *rest], 1.0).item(), found.item()
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise Diverged(f"the loss became {loss}, its gradient {norm}, at step {step + 1} of adapting to "
                               f"{session.id!r}; give a lower lr=")
            for stepper in steppers:
                stepper.step()
            if on_step:
                on_step({"step": step + 1, "steps": steps, "loss": loss})
    return loss, free


@contextmanager
def _evaluated(model: nn.Module, *, keeps: bool) -> Iterator[None]:
    """In evaluation mode afterwards; one that `keeps` what it was, frozen, also keeps what it averaged or counted."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if keeps else []
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        model.eval()


@contextmanager
def _only_rows_of(session: Session, tables: Sequence[Vocabulary]) -> Iterator[None]:
    """Gradients of all other rows are 0, so that neither they nor AdamW's averages of them ever move."""
    def hook(table: Vocabulary):
        others = torch.ones(len(table.weight), 1, dtype=torch.bool, device=table.weight.device)
        others[_rows(table, session)] = False
        return table.weight.register_hook(lambda grad: grad.masked_fill(others, 0.0))

    hooks = [hook(table) for table in tables]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator:
    """These do not learn, until the function that this gives is called."""
    def release() -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)

    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield release
    finally:
        release()
