"""One training run, from a recipe to held-out scores. It resumes itself: call it again on the same folder.

    recipe → recordings, split in time → model → fit → model/ (weights) → scores on the test part → scores.json
           → every baseline, the same way in baselines/<name>/ → result.json

A folder has one writer at a time, the holder of its `lock`. Files appear whole; `status.json` beats every second, and
every five where a step, or what comes before and after the steps, takes longer.
"""

from __future__ import annotations

import os
import platform
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import workbench
from workbench import models
from workbench.catalog import open_recordings
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.base import parameters
from workbench.session import Session, inside
from workbench.training import loop, objectives, precision, storage
from workbench.training.ranks import ALONE, RankLost, Ranks, leave
from workbench.training.recipe import Recipe
from workbench.training.reporter import Reporter, Silent, relay
from workbench.windows import RandomWindows, locked, split

if TYPE_CHECKING:
    from upath import UPath


class CannotTrain(WorkbenchError, ValueError):
    """A recipe that does not fit the recordings."""


class FolderInUse(WorkbenchError, RuntimeError):
    """Another process writes to this run."""


def train(recipe: Recipe, folder: str | Path, *, on_step: Callable[[dict], None] | None = None,
          stop_files: tuple[Path, ...] = (), ranks: Ranks = ALONE) -> str:
    """Train, or go on training, the recipe in `folder`; returns 'finished' or 'stopped'.

    It stops, with a checkpoint, as soon as a file STOP is in the folder (or one of `stop_files` is there).
    `on_step` gets the content of status.json at every step. ranks: this process is one of several that do so together;
    all but the first write nothing, and are done when the training itself is. Raises FolderInUse, and whatever training
    raises.
    """
    if not ranks.first:
        return _follow(recipe, storage.place(folder), ranks)
    return keep(folder, partial(_run, recipe, ranks=ranks), on_step=on_step, stop_files=stop_files,
                pid=ranks.agent)


def _follow(recipe: Recipe, folder: Path, ranks: Ranks) -> str:
    """What the ranks beside the first do of a run."""
    try:
        if ranks.agree(None):
            _learn(recipe, folder, Silent(), lambda: False, ranks)
        return "finished"
    except loop.Stopped:
        return "stopped"
    finally:
        leave()


def keep(folder: str | Path, work: Callable[[Path, Reporter, tuple[Path, ...]], dict], *,
         on_step: Callable[[dict], None] | None = None, stop_files: tuple[Path, ...] = (),
         pid: int | None = None) -> str:
    """Do a run's `work`(folder, report, stop_files) as the folder's one writer; what it returns is the result.json.

    pid: of the process that has to end for the run to end, where that is not this one.
    """
    folder = storage.place(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stop_files = (*stop_files, folder / "STOP")
    lock = _alone(folder)
    try:
        report = Reporter(folder, on_step, pid)
        try:
            with report.beating():
                result = work(folder, report, stop_files)
            storage.write_json(folder / "result.json", result)
            report.log("finished")
            report(state="finished", stage="finished")
            return "finished"
        except loop.Stopped:
            report(state="stopped", stage="stopped")
            return "stopped"
        except RankLost as error:                                       # still running: who started them tries again
            report.log(f"another process of this run died ({error}); what came after the newest checkpoint is lost")
            raise
        except KeyboardInterrupt:
            report.log("interrupted; what came after the newest checkpoint is lost")
            report(state="stopped", stage="interrupted")
            raise
        except Exception as error:
            known = isinstance(error, WorkbenchError)
            with suppress(OSError):                                     # where the disk takes nothing
                report.log(str(error) if known else traceback.format_exc())
                report(state="failed", error=str(error) if known else f"{type(error).__name__}: {error}")
            raise
    finally:
        if lock:
            lock.release()


def _alone(folder: Path | UPath) -> FileLock | None:
    """The lock of a folder that nobody else trains in; in a store, which has none, a heart that does not beat."""
    held = f"another process is training in {folder}; wait for it, stop it, or choose another folder"
    if not storage.local(folder):
        from workbench.training.run import FRESH
        said = storage.read_json(folder / "status.json") or {}
        if said.get("state") == "running" and time.time() - said["time"] < FRESH:
            raise FolderInUse(held)
        return None
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=3)                                         # a reader that looks holds it for an instant
    except Timeout:
        raise FolderInUse(held) from None
    return lock


def _run(recipe: Recipe, folder: Path, report: Reporter, stop_files: tuple[Path, ...],
         ranks: Ranks = ALONE) -> dict[str, Any]:
    if not (folder / "recipe.yaml").exists():
        recipe.save(folder / "recipe.yaml")
    own = storage.read_json(folder / "scores.json")
    if ranks.agree(own is None):
        own = _learn(recipe, folder, report, lambda: any(f.exists() for f in stop_files), ranks)
        storage.write_json(folder / "scores.json", own)
    baselines = {}
    for name in recipe.baselines:
        place = folder / "baselines" / name
        try:
            done = (place / "result.json").exists() or train(
                recipe.baseline(name), place, on_step=relay(f"baseline {name}", report),
                stop_files=stop_files) == "finished"
        except FolderInUse:
            raise
        except WorkbenchError as error:                                 # the model's own result stands without it
            report.log(f"baseline {name} failed: {error}")
            baselines[name] = {"error": str(error)}
            continue
        if not done:
            raise loop.Stopped
        baselines[name] = storage.read_json(place / "result.json")["scores"]
    return {"scores": own["scores"], "baselines": baselines, "protocol": own["protocol"]}


def _learn(recipe: Recipe, folder: Path, report: Reporter | Silent, stopping: Callable[[], bool],
           ranks: Ranks = ALONE) -> dict[str, Any]:
    """Fit one model and score it on held-out time: {scores, protocol}. Ranks beside the first: only fit it."""
    opened = time.perf_counter()
    sessions = open_recordings(recipe.data)
    twice = next((s.id for i, s in enumerate(sessions) if s.id in [other.id for other in sessions[:i]]), None)
    if twice:
        raise CannotTrain(f"two of the recordings are called {twice!r}, and a model could not tell their units apart; "
                          "give them names of their own in a catalog")
    kind = models.get(recipe.model.name)
    target = _target(recipe, sessions, needed=objectives.needs_target(kind))
    parts = [split(s, **recipe.split.model_dump()) for s in sessions]
    for session, part in zip(sessions, parts, strict=True):
        _check_session(session, target, part, kind.spikes)
    train_parts, valid_parts, test_parts = ([p[name] for p in parts] for name in ("train", "valid", "test"))

    settled = ranks.agree(storage.read_json(folder / "resolved.json") or {})
    threads = recipe.threads or settled.get("threads") or (max((os.cpu_count() or 1) // ranks.size, 1)
                                                           if ranks.size > 1 else None)
    device = recipe.device or settled.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CannotTrain(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); say device=cpu, or "
                          "device=null for the best there is") from None
    precision.check(recipe, torch.device(device), solved=hasattr(kind, "fit"))
    with _machine(threads, recipe.seed):
        # Whatever a model takes from the recording (rates, the scale of the target), it takes from the training part.
        given = {"target": target} if target is not None and objectives.takes_target(kind) else {}
        model = models.build(recipe.model.name, [s.within(part) for s, part in zip(sessions, train_parts, strict=True)],
                             **given, **recipe.model.settings)
        solved = hasattr(model, "fit")
        if model.locked:
            train_parts, valid_parts, test_parts = (
                [locked(part, s.get_series(target).times, model.window) for s, part in zip(sessions, each, strict=True)]
                for each in (train_parts, valid_parts, test_parts))
        if not solved:
            windows = RandomWindows(sessions, train_parts, duration=model.window, seed=recipe.seed,
                                    targets=tuple(given.values()), also=model.reads,
                                    align=target if model.bin_size else None,
                                    batch_size=recipe.batch.size, **recipe.batch.model_dump(exclude={"size", "pieces"}))
        if threads is None:
            choose = not solved and device == "cpu"
            with precision.told(model, recipe):
                threads = loop.fastest_threads(model, windows.batch, precision.losses(model, recipe)) \
                    if choose else torch.get_num_threads()
        torch.set_num_threads(threads)
        resolved = {
            "target": target, "window": model.window, "threads": threads, "device": device,
            "model": {"name": recipe.model.name, **_settings(model)},
            "recordings": [{"id": s.id, "dataset": s.dataset, "simulated": s.simulated, "units": len(s.units),
                            "spikes": len(s.spike_times)} for s in sessions],
            "split": {s.id: {k: v.round(6) for k, v in p.items()} for s, p in zip(sessions, parts, strict=True)},
            "versions": {"workbench": workbench.__version__, "torch": torch.__version__, "numpy": np.__version__,
                         "python": platform.python_version()},
        }
        if ranks.first:
            _settle(folder, resolved, settled, report)
        else:
            torch.manual_seed(recipe.seed + 1_000_003 * ranks.rank)     # dropout of its own, on the same weights

        began = time.perf_counter()
        if solved and not ranks.first:
            return {}
        if solved:
            report(stage="solving")
            chosen = model.fit(sessions, train_parts, valid_parts)
            found = {"chosen": chosen, "seconds": time.perf_counter() - began}
        else:
            report(stage="training", valid_name=objectives.valid_name(model))
            model = model.to(device)
            with precision.training(model, recipe):
                found = loop.fit(model, windows.batch, recipe, folder, stopping=stopping, report=report, log=report.log,
                                 evaluate=lambda m: objectives.valid(m, sessions, valid_parts, target),
                                 higher=model.decodes, ranks=ranks)
            leave()                                                     # what follows is for the first alone
            if not ranks.first:
                return {}
        trained = time.perf_counter()
        report(stage="scoring held-out time")
        _save_model(model, folder / "model")
        scores, scoring = objectives.held_out(model, sessions, train_parts, valid_parts, test_parts, target)

    # Training counts over all attempts; reading and scoring once.
    wall = (began - opened) + found["seconds"] + (time.perf_counter() - trained)
    protocol = {
        "recordings": resolved["recordings"], "simulated": any(s.simulated for s in sessions), "target": target,
        "split": resolved["split"],
        "windows": {"duration": model.window, "batch_size": None if solved else recipe.batch.size},
        **({"processes": ranks.size} if ranks.size > 1 else {}),
        **({"precision": recipe.precision} if recipe.precision != "float32" else {}),
        "scoring": scoring, "seed": recipe.seed, "steps": None if solved else recipe.budget.steps,
        "best_step": found.get("best_step"), "valid": found.get("valid"),
        "valid_name": None if solved else objectives.valid_name(model), "chosen": found.get("chosen"),
        "parameters": parameters(model), "wall_s": round(wall, 2),
        "machine": {"threads": threads, "device": device, "cores": os.cpu_count(), "system": platform.platform()},
        "versions": resolved["versions"],
    }
    return {"scores": scores, "protocol": protocol}


def _settings(model: torch.nn.Module) -> dict[str, Any]:
    """The settings that a model ended up with. Its lists of names are with its weights, in model/config.json."""
    config = getattr(model, "_hub_mixin_config", None) or {}
    return {k: v for k, v in config.items() if not (isinstance(v, list | tuple) and any(isinstance(i, str) for i in v))}


def _check_session(session: Session, target: str | None, parts: dict[str, np.ndarray], spikes: bool) -> None:
    """Spikes to learn from, and in every part a behaviour that varies: without them a score means nothing."""
    if spikes and not len(session.spike_times):
        raise CannotTrain(f"{session.id} has no spikes to learn from; choose a recording of spikes")
    if target is None:
        return
    series = session.get_series(target)
    for name, part in parts.items():
        values = series.values[inside(series.times, part)]
        values = values[np.isfinite(values).all(1)]
        if len(values) < 2 or not values.std(0).any():
            raise CannotTrain(f"{target!r} of {session.id} has {len(values):,} finite samples in the {name} part "
                              f"({part[0, 0]:,.1f} to {part[-1, 1]:,.1f} s)"
                              f"{' and never changes there' if len(values) > 1 else ''}, so nothing can be learnt or "
                              "scored there; choose another target or other shares (split.test=, split.valid=)")


def _target(recipe: Recipe, sessions: list[Session], needed: bool) -> str | None:
    """The series to decode, or to probe for where a model needs none; every session has to have it."""
    if recipe.target is None and not needed:
        return None
    there = set.intersection(*(set(s.series) for s in sessions))
    if recipe.target and recipe.target.startswith(("pictures:", "trials.", "stimuli.")):
        for session in sessions:
            session.get_series(recipe.target)                           # which says what is missing
        return recipe.target
    if not any(s.series for s in sessions):
        names = ", ".join(s.id for s in sessions)
        raise CannotTrain(f"{names} has no behaviour to decode: there is no series beside the spikes" +
                          ("" if needed else "; say target=null to learn from spikes alone"))
    if recipe.target is None:
        if len(there) == 1:
            return there.pop()
        listed = ", ".join(sorted(there)) or "none"
        raise CannotTrain(f"the recipe names no target and the recordings share {len(there)} series ({listed}); say "
                             "target=NAME")
    for session in sessions:
        if recipe.target not in session.series:
            raise UnknownName("series", recipe.target, session.series, where=f"session {session.id!r}",
                              hint="say target=NAME")
    return recipe.target


def _settle(folder: Path, resolved: dict, settled: dict, report: Reporter) -> None:
    """Write down what was taken from the recording; on a resume, refuse to go on with something else."""
    resolved = storage.as_json(resolved)
    if settled:
        changed = [k for k in resolved if k != "versions" and resolved[k] != settled.get(k)]
        if changed:
            raise CannotTrain(f"{folder} was started with another {', '.join(changed)} (see its resolved.json), so "
                                 "it cannot go on; start a new run in another folder")
        if resolved["versions"] != settled["versions"]:
            report.log(f"resumed with other versions ({resolved['versions']}): the last digits may differ")
    else:
        storage.write_json(folder / "resolved.json", resolved)


def _save_model(model: torch.nn.Module, folder: Path) -> None:
    """The final weights appear as a whole folder; in a store file by file, what names them last."""
    if not storage.local(folder):
        with tempfile.TemporaryDirectory() as there:
            model.save_pretrained(there)
            for file in sorted(Path(there).iterdir(), key=lambda file: file.name == "config.json"):
                storage.write(folder / file.name, file.read_bytes())
        return
    unfinished = folder.with_name(f"{folder.name}.tmp")
    for place in (unfinished, folder):                                  # left by a kill while scoring
        shutil.rmtree(place, ignore_errors=True)
    model.save_pretrained(unfinished)
    os.replace(unfinished, folder)


@contextmanager
def _machine(threads: int | None, seed: int) -> Iterator[None]:
    """The threads and random generators of a run, and then those of the kernel again where it runs in one."""
    before = torch.get_num_threads(), torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        if threads:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_rng_state(before[1])
        np.random.set_state(before[2])
        random.setstate(before[3])
