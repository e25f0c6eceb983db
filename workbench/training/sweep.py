"""Many runs of one recipe, some of its settings varied, as one: a sweep.

    recipe, grid {setting: values} ─► a recipe for every combination ─► folder/<what differs>/, a Run each
           ─► a row each: the settings that differ, state, held-out scores, parameters, seconds

The folder is a run of several (`workbench.training.group`): called again with it, `sweep` trains only what is not
finished, and a larger grid joins. An experiment is a sweep in a YAML file, which `python -m workbench sweep NAME` runs:

    recipe: gru                                     a shipped recipe, or the path of one
    set: {budget.steps: 500}                        changes for every run
    grid: {model.dim: [16, 32], seed: [0, 1, 2]}    every combination; or a list of {setting: value}, a run each
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import UnknownName, WorkbenchError
from workbench.training import group
from workbench.training.launching import CannotStart, check_names, check_place, new_folder, processes
from workbench.training.recipe import SHIPPED, Recipe, read_yaml
from workbench.training.run import Run

Grid = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]


class BadSweep(WorkbenchError, ValueError):
    """A grid, or an experiment, that names no runs."""


def sweep(recipe: Recipe | str | Path, grid: Grid, *, folder: str | Path | None = None, on: str = "here",
          workers: int | None = None, gpus: int | None = None, shared: bool = False,
          code: str | Path | None = None) -> pd.DataFrame:
    """Train the recipe with every combination of settings; a row each, as far as it has come, see `load`.

    recipe   a Recipe, the name of a shipped one, or a YAML file
    grid     {setting: values}: every combination; or [{setting: value, …}, …]: these. Settings are dotted, as in
             "optim.lr"; a value that is a mapping replaces the one in the recipe
    folder   None: a new one under runs/. Given again, what is finished there stays, and what is not goes on
    on       "here": one after another in this process. "local": the same in a process of its own; returns at once.
             "http://HEAD:8265": on a Ray cluster, as many at once as there is room for; returns at once.
             `workbench.Run(folder)` watches, stops and resumes all of them as one
    workers, gpus, shared, code   of every run, on a cluster; see `launch`

    A run that fails is told in its row. Raises BadSweep, BadRecipe, OtherRuns, CannotStart before anything starts, and
    Stopped after an interrupt.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    check_place(on, shared)
    if on in ("here", "local") and (workers or gpus or 1) > 1:
        raise CannotStart(f"the runs of a sweep train one after another {on}, in one process each; leave workers and "
                          "gpus out, or say on='http://HEAD:8265'")
    chosen = combinations(grid)
    keys = dict.fromkeys(key for settings in chosen for key in settings)
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: key if last.count(name) > 1 else name for key, name in zip(keys, last, strict=True)}
    runs: dict[str, dict] = {}
    for settings in chosen:
        label = _label({short[key]: value for key, value in settings.items()}) or recipe.name
        if label in runs:
            raise BadSweep(f"two runs of the sweep would be called {label!r}; vary something that tells them apart")
        one = recipe.vary(settings).anchored()
        processes(one, on, workers, gpus)
        check_names(one, on)
        runs[label] = {"recipe": one.model_dump(mode="json"), "varied": list(settings)}
    place = Path(folder).expanduser() if folder is not None else new_folder(f"{recipe.name}-sweep")
    joined = group.join(place, "sweep", runs)
    if on == "here":
        group.carry_out(joined)
    elif joined.left:
        joined.resume(on, workers or gpus, gpus=gpus is not None, code=code)
    return load(place)


def load(folder: str | Path) -> pd.DataFrame:
    """The table of a sweep as far as it has come, one row a run, in the order of the grid.

    The settings that were varied (mappings and lists as text); state; the held-out scores, as in "hand_vel.r2" and
    "spikes.bits_per_spike"; parameters; data_s: seconds of training data, of all sessions; seconds: of the run.
    """
    found = group.Group(folder)
    plan, rows, started = found.plan["runs"], found.rows(), found.runs
    keys = dict.fromkeys(key for what in plan.values() for key in what["varied"])
    told = {}
    for label, what in plan.items():
        state = started[label].state if label in started else "queued"
        state = "failed" if "error" in rows[label] and state != "running" else state
        values = {key: _at(what["recipe"], key) for key in keys}
        values = {key: _said(value) if isinstance(value, Mapping | list) else value for key, value in values.items()}
        told[label] = values | {"state": state} | rows[label]
    table = pd.DataFrame.from_dict(told, orient="index").rename_axis("run")
    last = [c for c in ("parameters", "sessions", "data_s", "seconds", "error") if c in table]
    table = table[[c for c in table if c not in last] + last]
    table.attrs["folder"] = str(folder)
    return table


def row(run: Run, plan: Mapping[str, Any], on_step: Callable[[dict], None]) -> dict[str, Any]:
    """What one run's row says once it is finished."""
    result = run.result()
    protocol = result["protocol"]
    seconds = sum(stop - start for part in protocol["split"].values() for start, stop in part["train"])
    return {**_numbers(result["scores"]), "parameters": protocol["parameters"],
            "sessions": len(protocol["recordings"]), "data_s": seconds, "seconds": protocol["wall_s"]}


def available() -> list[str]:
    """The names of the shipped experiments."""
    return sorted(path.stem for path in SHIPPED.glob("experiments/*.yaml"))


def experiment(name: str | Path, assignments: Iterable[str] = ()) -> tuple[Recipe, list[dict[str, Any]]]:
    """The recipe and the combinations of an experiment: a shipped one by name, or a YAML file.

    `assignments`: "key=value" texts. One of a setting that the experiment varies fixes it there.
    """
    path = Path(name) if Path(name).is_file() else SHIPPED / "experiments" / f"{name}.yaml"
    if not path.is_file():
        raise UnknownName("experiment", str(name), available(), hint="or give the path of a YAML file")
    told = read_yaml(path)
    if "recipe" not in told or "grid" not in told or set(told) > {"recipe", "set", "grid"}:
        raise BadSweep(f"{path} is no experiment; it holds recipe: and grid:, and may hold set:")
    assignments = list(assignments)
    recipe = Recipe.load(told["recipe"]).vary(told.get("set") or {}).override(assignments)
    fixed = {text.partition("=")[0].strip() for text in assignments}
    values = recipe.model_dump(mode="json")
    chosen = [{key: _at(values, key) if key in fixed else value for key, value in settings.items()}
              for settings in combinations(told["grid"])]
    return recipe, combinations(chosen)


def combinations(grid: Grid) -> list[dict[str, Any]]:
    """The settings of each run; what is asked for twice is there once."""
    listed = grid
    if isinstance(grid, Mapping):
        for key in (key for key, values in grid.items() if not isinstance(values, Sequence) or isinstance(values, str)):
            raise BadSweep(f"the values of {key!r} are {grid[key]!r}; give a list of them")
        listed = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    chosen = [dict(settings) for i, settings in enumerate(listed) if settings not in listed[:i]]
    if not chosen or not grid:                                          # of no settings there is one combination
        raise BadSweep("the grid is empty; give at least one value of every setting in it")
    return chosen


def _label(settings: Mapping[str, Any]) -> str:
    """What differs, as the name of a folder."""
    text = ",".join(f"{key}={_said(value)}" for key, value in settings.items())
    text = re.sub(r"[^\w.,=+~-]", "_", text)
    return text if len(text) <= 120 else f"{text[:100]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _said(value: Any) -> str:
    """A value in a word: the name of a file, the keys of a mapping whose values are all the same."""
    if isinstance(value, Mapping):
        same = len({repr(v) for v in value.values()}) == 1
        return "+".join(str(key) if same else f"{key}~{_said(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return "+".join(map(_said, value))
    if isinstance(value, str | Path) and Path(value).is_file():
        return Path(value).stem
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return settings


def _numbers(scores: Any, key: str = "") -> dict[str, float]:
    """{"hand_vel": {"r2": 0.8}} → {"hand_vel.r2": 0.8}, without how it was measured."""
    if isinstance(scores, Mapping):
        return {k: v for name, part in scores.items() if name not in ("window", "step")
                for k, v in _numbers(part, f"{key}.{name}").items()}
    return {key.removeprefix("."): scores} if isinstance(scores, float) else {}             # counts of samples are int
