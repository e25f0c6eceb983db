"""Checkpoints: one whole file a step, holding all that training needs to go on exactly as if it had never stopped.

    {step, seconds, model, ema, best, optimizer, random} → checkpoints/step-000000100.pt → the newest that can be read

Tensors and plain data only, so that `torch.load(weights_only=True)` reads them. The learning rate and the batches are
functions of the step, so neither has a state of its own.
"""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.errors import WorkbenchError
from workbench.training import storage

KEPT = 2


class CannotSave(WorkbenchError, OSError):
    """The disk did not take a checkpoint."""


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write the state of training in one step, then drop all but the last two. CannotSave: those before stay whole.

    Of a later step there are only those that `newest` could not read; they stay, and count for nothing.
    """
    path = folder / f"step-{state['step']:09d}.pt"
    try:
        storage.write(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:                            # of torch's writer, where the disk is full
        before = [int(old.stem.split("-")[1]) for old in listed(folder)]
        why = getattr(error.__cause__, "strerror", None) or str(error).splitlines()[0]
        at = f"step {before[-1]}" if before else "the start"
        raise CannotSave(f"the checkpoint of step {state['step']} could not be written to {folder} ({why}); make room "
                         f"there, and run.resume() goes on from {at}") from error
    for old in [old for old in listed(folder) if old.name <= path.name][:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def listed(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def newest(folder: Path, log=lambda message: None) -> dict[str, Any] | None:
    """The state in the newest checkpoint that can be read, on the CPU; None where there is none."""
    for leftover in folder.glob("*.tmp*"):
        leftover.unlink(missing_ok=True)
    for path in reversed(listed(folder)):
        try:
            held = path if storage.local(path) else BytesIO(storage.content(path))
            return torch.load(held, map_location="cpu", weights_only=True)
        except Exception as error:                                      # a damaged disk: the one before may be whole
            log(f"{path} cannot be read ({type(error).__name__}: {error}); going back to the checkpoint before it")
    return None


def random_state() -> dict[str, Any]:
    """Of every random generator of this process."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss]}


def restore_random(states: list[dict[str, Any]] | dict[str, Any], rank: int = 0) -> None:
    """Set every random generator of this rank back; call it last, after whatever else may draw numbers.

    A rank that was not there when the checkpoint was written keeps its own.
    """
    states = [states] if isinstance(states, dict) else states           # of before there were ranks
    if rank >= len(states):
        return
    state = states[rank]
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
