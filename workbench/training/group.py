"""Several runs as one: a folder of runs is a run itself, watched, stopped and resumed like any other.

    plan.json: what every run is, and the conditions that all share ─► folder/<label>/ each, one after another here,
             on a cluster as many at once as there is room for
             ─► rows/<label>.json, what its kind measures of a finished run ─► the table
    status.json  log.txt  lock  STOP  process.json  result.json: as of any run

The kinds are modules with `row`(run, plan, on_step) → dict and `load`(folder) → table. A run that fails is told in its
row and the others go on; the whole has failed then, and resuming it tries that one again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.launching import admit, start
from workbench.training.recipe import Recipe
from workbench.training.reporter import relay
from workbench.training.run import NoRun, Run

KINDS = {"comparison": "workbench.analysis.comparison", "sweep": "workbench.training.sweep"}


Done = tuple[str, Exception | None]                                     # a label, and why its run failed
Each = Callable[["Group", list[str], Any, tuple[Path, ...]], Iterator[Done]]


class OtherRuns(WorkbenchError, ValueError):
    """Runs that cannot join those of a folder."""


class SomeFailed(WorkbenchError, RuntimeError):
    """Not every run of a folder came to its end."""


class Stopped(WorkbenchError):
    """Several runs were interrupted; what they have done is kept."""


class Group(Run):
    """A folder of runs. `scores` is its table as far as it has come, `runs` are those in it that have started."""

    HOLDS = "plan.json"

    @property
    def plan(self) -> dict[str, Any]:
        """{"kind", "conditions", "runs": {label: {"recipe": settings, …} or {"run": folder of a finished run}}}."""
        return storage.read_json(self.path / "plan.json")

    @property
    def runs(self) -> dict[str, Run]:
        """label → Run, of those that have started."""
        places = {label: Path(what.get("run", self.path / label)) for label, what in self.plan["runs"].items()}
        return {label: Run(place) for label, place in places.items() if (place / "recipe.yaml").is_file()}

    @property
    def left(self) -> list[str]:
        """The labels of those that have no row yet."""
        return [label for label in self.plan["runs"] if not (self.path / "rows" / f"{label}.json").is_file()]

    @property
    def state(self) -> str:
        """As of any run; stopped also where runs have joined since it finished."""
        state = super().state
        return "stopped" if state == "finished" and self.left else state

    def rows(self) -> dict[str, dict[str, Any]]:
        """label → what was measured, or {"error": why not}; {} of those that are still to come."""
        read = lambda name: storage.read_json(self.path / "rows" / name)
        return {label: read(f"{label}.json") or read(f"{label}.failed.json") or {} for label in self.plan["runs"]}

    def scores(self) -> pd.DataFrame:
        """The table, one row a run, as far as it has come."""
        return self._kind().load(self.path)

    def metrics(self) -> pd.DataFrame:
        """The metrics of all runs below one another; `run` says whose."""
        each = {label: run.metrics() for label, run in self.runs.items()}
        return pd.concat(each, names=["run"]).reset_index("run") if each else pd.DataFrame({"run": [], "step": []})

    @property
    def recipe(self) -> NoReturn:
        raise NoRun(f"{self.path} holds several runs, each with a recipe of its own: run.runs[label].recipe")

    def model(self) -> NoReturn:
        raise NoRun(f"{self.path} holds several runs, each with a model of its own: run.runs[label].model()")

    def train(self, on_step: Callable[[dict], None] | None = None, stop_files: tuple[Path, ...] = (),
              each: Each | None = None) -> str:
        """Train and measure what is left, in this process; returns the state. SomeFailed, once the others are done.

        each: trains the runs of the labels and yields every label as it is done, with its error; None: in turn, here.
        """
        from workbench.training.trainer import keep
        return keep(self.path, partial(self._train, each or in_turn), on_step=on_step, stop_files=stop_files)

    def _train(self, each: Each, folder: Path, report: Any, stop_files: tuple[Path, ...]) -> dict[str, Any]:
        from workbench.training.loop import Stopped as Stop
        plan, kind, failed, left = self.plan, self._kind(), [], self.left
        stopping = storage.seldom(folder, lambda: any(file.exists() for file in stop_files))

        def look(label: str, status: dict) -> None:                     # measuring may take as long as training
            if stopping():
                raise Stop
            relay(f"measuring {label}", report)(status)

        for label in left:
            (folder / label / "STOP").unlink(missing_ok=True)           # of the time before
        report(done=len(plan["runs"]) - len(left), runs=len(plan["runs"]))
        for label, error in each(self, left, report, stop_files):
            told = folder / "rows" / f"{label}.failed.json"
            try:
                if error is not None:
                    raise error
                report(stage=f"measuring {label}")
                storage.write_json(folder / "rows" / f"{label}.json",
                                   kind.row(self.runs[label], plan, partial(look, label)))
                told.unlink(missing_ok=True)
            except Stop:
                raise
            except Exception as why:                                    # told, and tried again next time
                known = isinstance(why, WorkbenchError)
                report.log(f"{label} failed: {why if known else traceback.format_exc()}")
                storage.write_json(told, {"error": str(why) if known else f"{type(why).__name__}: {why}"})
                failed.append(label)
            report(done=len(plan["runs"]) - len(self.left), runs=len(plan["runs"]))
        if failed:
            why = storage.read_json(folder / "rows" / f"{failed[0]}.failed.json")["error"]
            raise SomeFailed(f"{len(failed)} of {len(plan['runs'])} runs in {folder} failed, the first, {failed[0]}, "
                             f"because: {why}; resuming tries them again")
        return {**plan, "rows": self.rows()}

    def _kind(self) -> Any:
        return import_module(KINDS[self.plan["kind"]])

    def _facts(self) -> dict[str, Any]:
        plan = self.plan
        recipes = [Recipe(**what["recipe"]) for what in plan["runs"].values() if "recipe" in what]
        recipes += [run.recipe for label, run in self.runs.items() if "run" in plan["runs"][label]]
        data = [Path(name).name for r in recipes for name in (r.data if isinstance(r.data, list) else [r.data])]
        listed = lambda names: ", ".join(dict.fromkeys(names))
        return {"state": self.state, "recipe": plan["kind"], "model": listed(r.model.name for r in recipes),
                "data": listed(data),
                "step": len(plan["runs"]) - len(self.left), "steps": len(plan["runs"]), "started": self.started}

    def __repr__(self) -> str:
        facts, error = self._facts(), self.error
        return (f"Run {str(self.path)!r} is {facts['state']}: {facts['recipe']} of {facts['steps']} runs, "
                f"{facts['step']} done{f': {error}' if error else ''}")


def in_turn(group: Group, labels: list[str], report: Any, stop_files: tuple[Path, ...]) -> Iterator[Done]:
    """The runs one after another in this process."""
    from workbench.training.loop import Stopped as Stop
    from workbench.training.trainer import FolderInUse, train
    plan = group.plan["runs"]
    for label in labels:
        if any(file.exists() for file in stop_files):
            raise Stop
        error = None
        try:
            if "recipe" in plan[label] and train(Recipe(**plan[label]["recipe"]), group.path / label,
                                                 stop_files=stop_files, on_step=relay(label, report)) == "stopped":
                raise Stop
        except (Stop, FolderInUse):
            raise
        except Exception as why:
            error = why
        yield label, error


def join(folder: Path, kind: str, runs: Mapping[str, dict[str, Any]],
         conditions: Mapping[str, Any] | None = None) -> Group:
    """Add runs to those of a folder, which is begun where there is none; the same runs again change nothing.

    `runs`: label → {"recipe": settings} or {"run": folder}. Raises OtherRuns for a folder of another kind or other
    conditions, or a label that is another run there, and CannotStart where a recipe's folder holds something else.
    """
    new = storage.as_json({"kind": kind, "conditions": dict(conditions or {}), "runs": dict(runs)})
    if (folder / "recipe.yaml").is_file():
        raise OtherRuns(f"{folder} holds a single run; choose another folder")
    plan = storage.read_json(folder / "plan.json") or {**new, "runs": {}}
    if plan["kind"] != kind:
        raise OtherRuns(f"{folder} holds a {plan['kind']}, and this is a {kind}; choose another folder")
    there, here = plan["conditions"], new["conditions"]
    for key in (key for key in {**there, **here} if there.get(key) != here.get(key)):
        raise OtherRuns(f"{folder} holds a {kind} under other conditions ({key} is {there.get(key)!r} there and "
                        f"{here.get(key)!r} here); choose another folder")
    for label, what in new["runs"].items():
        old = plan["runs"].get(label, what)
        if (folder / "rows" / f"{label}.json").is_file() and old.get("run") != what.get("run"):
            raise OtherRuns(f"{folder} has a row {label!r} of another run ({old.get('run', folder / label)}); give "
                            "this one another name")
        if "recipe" in what:
            admit(Recipe(**what["recipe"]), folder / label)
    if {**plan["runs"], **new["runs"]} != plan["runs"]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").unlink(missing_ok=True)
        storage.write_json(folder / "plan.json", {**plan, "runs": {**plan["runs"], **new["runs"]}})
    return Group(folder)


def carry_out(group: Group) -> None:
    """Train and measure in this process what is left. Raises Stopped after an interrupt; failures are in the rows."""
    if not group.left:
        return
    with suppress(SomeFailed):
        start(group, "here")
    if group.state == "stopped":
        done, of = len(group.plan["runs"]) - len(group.left), len(group.plan["runs"])
        raise Stopped(f"stopped after {done} of {of} runs; the same call with folder={str(group.path)!r} goes on from "
                      "there")
