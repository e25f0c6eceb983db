"""The optimisation: AdamW steps over random windows, the best weights on the validation part kept.

    newest checkpoint → batch k → loss → gradient, of all pieces and ranks, clipped → AdamW → EMA → metrics row
        → evaluation → checkpoint

Batch k and the learning rate are pure functions of the step, and a checkpoint holds the rest, so a run that was killed
at any instant ends with the very weights that it would have had. Bit for bit on a CPU at the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from workbench.batch import SpikeBatch
from workbench.errors import WorkbenchError
from workbench.nn.vocabulary import Vocabulary
from workbench.training import checkpoint, precision, storage
from workbench.training.ranks import ALONE, Ranks
from workbench.training.recipe import Optim, Recipe

Weights = dict[str, torch.Tensor]


class Stopped(Exception):
    """Somebody asked the run to stop; its checkpoint is written."""


class Diverged(WorkbenchError, ArithmeticError):
    """The loss or its gradient is no longer a number."""


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps - 1: a linear rise, then a cosine down to `floor` of the peak."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    done = (step - optim.warmup) / max(steps - optim.warmup, 1)
    return optim.lr * (optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def optimizer(model: nn.Module, optim: Optim) -> torch.optim.AdamW:
    """AdamW that decays matrices only: a norm's gain, a bias or a unit's level pulled to zero is another model, not a
    smaller one.
    """
    groups, slower = {}, getattr(model, "slower", {})
    levels = {m.weight for m in model.modules() if isinstance(m, Vocabulary) and m.weight.shape[1] == 1}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            share = next((share for start, share in slower.items() if name.startswith(start)), 1.0)
            groups.setdefault((-share, weight.ndim < 2 or weight in levels), []).append(weight)
    return torch.optim.AdamW([{"params": params, "share": -share, "weight_decay": 0.0 if flat else optim.weight_decay}
                              for (share, flat), params in sorted(groups.items(), key=lambda group: group[0])],
                             lr=optim.lr, betas=tuple(optim.betas), fused=True)


@contextmanager
def using(model: nn.Module, weights: Weights | None) -> Iterator[nn.Module]:
    """The model in evaluation mode, with other weights for a while where some are given."""
    own = copy(model) if weights else None
    was_training = model.training
    try:
        if weights:
            model.load_state_dict(weights)
        yield model.eval()
    finally:
        model.train(was_training)
        if own:
            model.load_state_dict(own)


def copy(model: nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def fit(model: nn.Module, batches: Callable[[int], Any], recipe: Recipe, folder: Path, *,
        evaluate: Callable[[nn.Module], dict[str, Any]], higher: bool, report: Callable[..., None],
        log: Callable[[str], None], stopping: Callable[[], bool], ranks: Ranks = ALONE) -> dict[str, Any]:
    """Train `model` in place and leave it with its best weights (on rank 0, where there are several processes).

    batches(k) → the SpikeBatch of step k; evaluate(model) → what its metrics row says of the validation part, with
    `valid`, the score of which `higher` (or lower) is better; report(**fields) is called every step; stopping() says
    whether to save and raise Stopped. A file SAVE in the folder asks for a checkpoint after the next step.
    Returns {best_step, valid, seconds}; raises Diverged.
    """
    optim, budget = recipe.optim, recipe.budget
    device = next(model.parameters()).device
    adam = optimizer(model, optim)
    ema: Weights | None = copy(model) if optim.ema else None
    best: dict[str, Any] | None = None
    step, seconds, places = 0, 0.0, folder / "checkpoints"
    rows, asked = storage.Rows(folder / "metrics.jsonl") if ranks.first else None, folder / "SAVE"
    asking = storage.seldom(folder, lambda: stopping() or asked.exists())
    memory = _memory(device)

    state = checkpoint.newest(places, log)
    if state:
        step, seconds, best = state["step"], state["seconds"], state["best"]
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["optimizer"])
        ema = {k: v.to(device) for k, v in state["ema"].items()} if optim.ema else None
        checkpoint.restore_random(state["random"], ranks.rank)
        log(f"resumed from the checkpoint of step {step}")
    began = time.perf_counter() - seconds
    losses_of = precision.losses(model, recipe)

    def save() -> None:
        random = ranks.gather(checkpoint.random_state())
        if ranks.first:
            rows.flush()
            checkpoint.save(places, {"step": step, "seconds": time.perf_counter() - began, "model": model.state_dict(),
                                     "ema": ema, "best": best, "optimizer": adam.state_dict(), "random": random})

    model.train()
    while step < budget.steps:
        stop, wanted = ranks.agree((stopping(), asked.exists()) if ranks.first and asking() else (False, False))
        if stop:
            save()
            log(f"stopped at step {step}")
            raise Stopped
        start = time.perf_counter()
        batch = batches(step)
        spikes = len(batch.times)
        batch = ranks.share(batch).to(device)
        waited = time.perf_counter() - start

        lr = learning_rate(optim, step, budget.steps)
        for group in adam.param_groups:
            group["lr"] = lr * group.get("share", 1.0)        # a checkpoint of before shares has none
        adam.zero_grad(set_to_none=True)
        with precision.told(model, recipe):
            losses = _gradient(losses_of, batch, recipe.batch.pieces)
        ranks.average_gradients_(model)
        norm = nn.utils.clip_grad_norm_(model.parameters(), optim.clip or math.inf)
        row = ranks.average(losses) | {"grad_norm": norm.item()}
        if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
            raise Diverged(f"the loss became {row['loss']} (gradient norm {row['grad_norm']}) at step {step + 1} with "
                           f"learning rate {lr:.3g}; start a new run with a lower optim.lr or optim.clip")
        adam.step()
        if ema:
            _average(ema, model, min(optim.ema, (1 + step) / (10 + step)))

        step += 1
        taken = time.perf_counter() - start
        row = {"step": step, **row, "lr": lr, "spikes_per_s": spikes / taken, "data_wait": waited / taken,
               "memory_gb": memory()}
        if ranks.first and (step % budget.eval_every == 0 or step == budget.steps):
            with using(model, ema) as averaged:
                row |= evaluate(averaged)
                if best is None or math.isnan(best["valid"]) or \
                        (row["valid"] > best["valid"] if higher else row["valid"] < best["valid"]):
                    best = {"step": step, "valid": row["valid"], "weights": copy(averaged)}
        # The row before the checkpoint: a kill between the two then costs a repeated row, never a missing one.
        if ranks.first:
            rows.append({**row, "seconds": time.perf_counter() - began})
        if wanted or step % budget.checkpoint_every == 0 or step == budget.steps:
            save()
            if ranks.first:
                asked.unlink(missing_ok=True)
        report(step=step, steps=budget.steps, loss=row["loss"], spikes_per_s=row["spikes_per_s"],
               valid=best["valid"] if best else None)

    if not ranks.first:
        return {}
    model.load_state_dict(best["weights"])
    model.eval()
    return {"best_step": best["step"], "valid": best["valid"], "seconds": time.perf_counter() - began}


def _gradient(losses_of: precision.LossOf, batch: SpikeBatch, pieces: int) -> precision.Losses:
    """The losses of a batch, whose gradient is left in the weights; in `pieces`, one after the other: of each loss the
    mean over the pieces that have it.
    """
    told: dict[str, list[torch.Tensor]] = {}
    for piece in range(pieces):
        which = torch.arange(piece, len(batch), pieces, device=batch.device)
        losses = losses_of(batch if pieces == 1 else batch.take(which))
        (losses["loss"] / pieces).backward()
        for name, value in losses.items():
            told.setdefault(name, []).append(value.detach())
    return {name: torch.stack(values).mean() for name, values in told.items()}


def _memory(device: torch.device) -> Callable[[], float]:
    """What asks for the memory in use, in GB: the most so far on a GPU, else the process's resident memory now."""
    if device.type == "cuda":
        return lambda: round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    process = psutil.Process()                                          # made once: asking takes microseconds
    return lambda: round(process.memory_info().rss / 1e9, 3)


def fastest_threads(model: nn.Module, batches: Callable[[int], Any], losses_of: precision.LossOf) -> int:
    """How many threads train this model fastest on this machine now; the model and random numbers stay as they are.

    Threads wait for each other at every operation, so on a machine that is busy with something else two of them can be
    ten times slower than one.
    """
    most, state, spent = torch.get_num_threads(), torch.get_rng_state(), {}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]  # what a model counts or averages in training
    tried = sorted({most, *(n for n in (1, 2, 4, 8) if n < most)})
    for threads in tried if most > 1 else ():
        torch.set_num_threads(threads)
        for k in range(4):                                              # the first call warms up
            start = time.perf_counter()
            losses_of(batches(k))["loss"].backward()
            spent.setdefault(threads, []).append(time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)
    torch.set_rng_state(state)
    torch.set_num_threads(most)
    return min(spent, key=lambda n: sorted(spent[n][1:])[1]) if spent else most


@torch.no_grad()
def _average(ema: Weights, model: nn.Module, decay: float) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, 1 - decay)
        else:
            ema[name].copy_(value)
