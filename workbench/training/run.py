"""A run is a folder, on a disk or in an object store (a URL). Whoever can see it can watch, stop and resume the run.

Reading it imports no torch.

    recipe.yaml  resolved.json  status.json  metrics.jsonl  log.txt  checkpoints/  model/  baselines/  result.json
    lock: held by the process that trains · STOP: asks it to save and leave · process.json: what launch started

The states: queued (started, not training yet), running, finished, stopped, failed, and lost: it says running, but
nobody holds the lock, so it was killed without a word. Stopped, failed and lost runs resume from their checkpoint.
"""

from __future__ import annotations

import html
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
from filelock import FileLock, Timeout

from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.launching import launch, start
from workbench.training.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from workbench.apps.runs import RunMonitor

__all__ = ["NoRun", "Run", "RunFailed", "launch", "runs"]

ENDED = ("finished", "stopped", "failed", "lost")
SILENT = 60                                                             # seconds without a beat; where locks fail
FRESH = 15                                                              # seconds since a beat; on a cluster


class NoRun(WorkbenchError, FileNotFoundError):
    """There is no run in that folder, or it has not come so far."""


class RunFailed(WorkbenchError, RuntimeError):
    """A run ended without a result."""


class Run:
    """A training run, from anywhere. `path`: its folder. Raises NoRun where there is none.

    A folder of several runs (a comparison, a sweep) is a run too, a `workbench.training.group.Group`.
    """

    HOLDS = "recipe.yaml"                                               # the file that makes a folder a run

    def __new__(cls, path: str | Path) -> Run:
        from workbench.training.group import Group
        several = (storage.place(path) / Group.HOLDS).is_file()
        return super().__new__(Group if several else cls)

    def __getnewargs__(self) -> tuple[Path]:
        return (self.path,)                                             # so that copies and pickles know which they are

    def __init__(self, path: str | Path):
        self.path = storage.place(path)
        if not (self.path / self.HOLDS).is_file():
            raise NoRun(f"there is no run at {path} (no {self.HOLDS} in it); workbench.runs(folder) lists the runs in "
                        "a folder")

    @property
    def recipe(self) -> Recipe:
        return Recipe.load(self.path / "recipe.yaml")

    @property
    def status(self) -> dict[str, Any]:
        """What the run said of itself last: state, stage, step, steps, valid, valid_name, spikes_per_s, time,
        error. `valid`: the best score so far on the validation part; `valid_name`: "R²" or "loss"."""
        return storage.read_json(self.path / "status.json") or {"state": "queued"}

    @property
    def state(self) -> str:
        """queued, running, finished, stopped, failed or lost."""
        said = self.status["state"]
        if said not in ("queued", "running") or self.alive:
            return self.status["state"]
        said = self.status["state"]                                     # it may have ended between the two looks
        return {"running": "lost", "queued": "failed"}.get(said, said)

    @property
    def alive(self) -> bool:
        """Whether a process trains here, or was started and is on its way."""
        state = self.status["state"]
        if "job" in self.sent() or not storage.local(self.path):
            return self._beats(state)
        between = state == "running" and self.sent().get("workers", 1) > 1   # two attempts: no lock
        return self._locked() or (state == "queued" and self._started()) or (between and self._process() is not None)

    @property
    def started(self) -> datetime | None:
        """When it was started first."""
        at = self.status.get("started")
        return at and datetime.fromtimestamp(at).replace(microsecond=0)

    @property
    def error(self) -> str:
        """Why the run failed, in a sentence; empty where it did not."""
        state, status = self.state, self.status
        if state == "lost":
            at = f" at step {status['step']}" if "step" in status else ""
            return f"{self.path} was killed without a word{at}; run.resume() goes on from its newest checkpoint"
        if state != "failed":
            return ""
        if status["state"] == "queued" and "job" in self.sent():
            return (f"the job of {self.path} ended on {self.sent()['on']} before the run began: "
                    f"{self.log(12).strip() or self._told()[1]}")
        if status["state"] == "queued":
            return f"{self.path} did not start; the end of its log says: {self.log(12).strip() or 'nothing'}"
        there = f"on {status['host']}: " if "job" in self.sent() and status.get("host") else ""
        return there + status.get("error", "")

    def metrics(self) -> pd.DataFrame:
        """One row a step: loss, lr, grad_norm, spikes_per_s, data_wait (share of the time), memory_gb (resident, or the
        most that was taken of a GPU), and now and then valid.

        `valid` is the score on the validation part, whose name is status["valid_name"]; `valid_sessions` the same of
        each session, where there are several.
        Rows that a resumed run went over again count once.
        """
        return newest_rows(storage.rows(self.path / "metrics.jsonl"))

    def log(self, tail: int = 50) -> str:
        """The last lines of log.txt; of a job on a cluster that has written none, what it printed there."""
        try:
            text = storage.content(self.path / "log.txt").decode("utf-8", errors="replace")
        except FileNotFoundError:
            text, sent = "", self.sent()
            if Path(sent.get("log", "")).is_file():                     # of a run whose folder is in a store
                text = Path(sent["log"]).read_text(encoding="utf-8", errors="replace")
            if "job" in sent:
                from workbench.training import on_ray
                text = on_ray.log(sent["on"], sent["job"])
        return "\n".join(text.splitlines()[-tail:])

    def result(self) -> dict[str, Any]:
        """The final scores on held-out time, those of the baselines, and the protocol. NoRun before the end."""
        result = storage.read_json(self.path / "result.json")
        if result is None:
            raise NoRun(f"{self.path} has no result yet: it is {self.state}; {self._way_out()}")
        return result

    def scores(self) -> pd.DataFrame:
        """The held-out scores of the run's model and of each baseline, one row a model.

        r2, r2_causal, both per dimension, where there is a target; of models that decode nothing what else was
        measured: loss (never to be compared between models), bits per spike. Of models that read pictures: how well
        they tell which it was, and ridge regression into the same space.
        """
        result, rows, own = self.result(), {}, self.recipe.model.name
        own = f"{own} (this run)" if own in result["baselines"] else own
        for name, scores in {own: result["scores"], **result["baselines"]}.items():
            if "error" in scores:                                       # a baseline that could not be trained
                continue
            score = scores.get(result["protocol"]["target"], {})
            rows[name] = {key: score[key] for key in ("r2", "r2_causal") if key in score}
            rows[name] |= {f"{key}_{i}": value for key in ("r2", "r2_causal")
                           for i, value in enumerate(score.get(f"{key}_per_dim", ()))}
            rows[name] |= {k: v for k, v in scores.get("spikes", {}).items() if isinstance(v, float)}
            if "two_way" in score:                                      # which picture was it, and ridge asked the same
                rows[name] |= {k: v for k, v in score.items() if isinstance(v, float)}
                rows["ridge"] = {k: v for k, v in score["ridge"].items() if isinstance(v, float)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")

    def model(self) -> nn.Module:
        """The trained model with its best weights. NoRun before the end of its training."""
        if not (self.path / "model").is_dir():
            raise NoRun(f"{self.path} has no final weights yet: it is {self.state}; {self._way_out()}")
        from workbench import models
        if storage.local(self.path):
            return models.load(self.path / "model")
        with tempfile.TemporaryDirectory() as here:
            for file in (self.path / "model").iterdir():
                Path(here, file.name).write_bytes(storage.content(file))
            return models.load(here)

    def _way_out(self) -> str:
        return "run.wait() for it" if self.state in ("queued", "running") else "run.resume() goes on with it"

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until the run has ended. Interrupting the wait leaves the run alone.

        Raises RunFailed if it failed or was lost, TimeoutError after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (state := self.state) not in ENDED:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"{self.path} is still {state} after {timeout:g} s")
            time.sleep(0.1)
        if state in ("failed", "lost"):
            raise RunFailed(self.error)
        return self

    def stop(self) -> Run:
        """Ask the run to save a checkpoint and leave; it does so at its next step. `resume` goes on from there."""
        if self.state in ("queued", "running"):
            storage.write(self.path / "STOP", b"")
        return self

    def checkpoint(self) -> Run:
        """Ask the run for a checkpoint after its next step, and to go on."""
        if self.state in ("queued", "running"):
            storage.write(self.path / "SAVE", b"")
        return self

    def train(self, on_step: Callable[[dict], None] | None = None, **where: Any) -> str:
        """Train in this process, silently, until the end or a STOP; returns the state. See `resume`.

        `where`: as one of several processes, and what else stops it; see `workbench.training.trainer.train`.
        """
        from workbench.training.trainer import train
        return train(self.recipe, self.path, on_step=on_step, **where)

    def resume(self, on: str | None = None, workers: int | None = None, **cluster: Any) -> Run:
        """Go on from the newest checkpoint, as if the run had never stopped. A finished run stays as it is.

        on: where, see `launch`; workers: processes that train together; on a cluster also gpus, code. None: as the
        last time.
        """
        return self if self.state == "finished" else start(self, on, workers, **cluster)

    def kill(self) -> Run:
        """End the run's process, or its job, at once. Its newest checkpoint stays whole."""
        process, sent = self._process(), self.sent()
        if "job" in sent and self.alive:
            from workbench.training import on_ray
            on_ray.end(sent["on"], sent["job"])
            self._until_dead(FRESH + 10)
        elif process and self.alive:
            others = process.children(recursive=True) if self.sent().get("workers", 1) > 1 else []
            for each in (process, *others):                             # who would start the others again comes first
                with suppress(psutil.Error):
                    each.kill()
            self._until_dead(10)
        return self

    def _until_dead(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.alive and time.monotonic() < until:
            time.sleep(0.02)

    def watch(self) -> RunMonitor:
        """The live monitor: curves, progress, throughput, a Stop button. The same in a cell and served."""
        from workbench.apps.runs import RunMonitor
        return RunMonitor(run=self.path)

    def _locked(self) -> bool:
        if not (self.path / "lock").exists():
            return False
        for _ in range(3):                                              # another reader holds it for an instant only
            try:
                with FileLock(self.path / "lock", blocking=False):
                    return False
            except Timeout:
                time.sleep(0.005)
            except OSError:                                             # a folder to look at, or a disk without locks
                return time.time() - self.status.get("time", 0) < SILENT
        return True

    def _process(self) -> psutil.Process | None:
        """The process that trains or was started to, if it lives on this machine."""
        said = self.status if self.status.get("pid") else storage.read_json(self.path / "process.json") or {}
        if said.get("host") != socket.gethostname() or not said.get("pid"):
            return None
        try:
            process = psutil.Process(said["pid"])
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.Error:
            return None

    def sent(self) -> dict[str, Any]:
        """How the run was started the last time: workers; on a cluster also on, gpus, job, versions."""
        return storage.read_json(self.path / "process.json") or {}

    def _told(self) -> tuple[str, str]:
        """What the cluster says of the run's job."""
        from workbench.training import on_ray
        sent = self.sent()
        try:
            return on_ray.told(sent["on"], sent["job"])
        except on_ray.NoCluster as error:                               # a cluster's jobs end with it
            return "FAILED", str(error)

    def _beats(self, state: str) -> bool:
        """Whoever sees the folder trusts its heartbeat; between two beats too far apart the cluster is asked."""
        if state not in ("queued", "running"):
            return False
        if "job" not in self.sent():
            gone = self.status.get("host") == socket.gethostname() and self._process() is None
            late = time.time() - self.status.get("time", 0) > FRESH
            return self._started() if state == "queued" else not (gone or late)
        beats = state == "running" and time.time() - self.status.get("time", 0) < FRESH
        return beats or self._told()[0] in ("PENDING", "RUNNING")

    def _started(self) -> bool:
        known = self.sent()
        young = time.time() - self.status.get("time", 0) < 5            # launch has not written process.json yet
        return self._process() is not None if known and known["host"] == socket.gethostname() else young

    def _facts(self) -> dict[str, Any]:
        recipe, status, state = self.recipe, self.status, self.state
        result = storage.read_json(self.path / "result.json")
        target = result["protocol"]["target"] if result else recipe.target
        scores = result["scores"] if result else {}
        data = recipe.data if isinstance(recipe.data, list) else [recipe.data]
        return {"state": state, "recipe": recipe.name, "model": recipe.model.name,
                "data": ", ".join(Path(d).name for d in data), "target": target, "step": status.get("step"),
                "steps": status.get("steps"), "valid": status.get("valid"),
                "valid_name": status.get("valid_name"), "test_r2": scores.get(target, {}).get("r2"),
                "test_bits": scores.get("spikes", {}).get("bits_per_spike"),
                "test_two_way": scores.get(target, {}).get("two_way"), "started": self.started}

    def __repr__(self) -> str:
        facts = self._facts()
        step = f", step {facts['step']:,} of {facts['steps']:,}" if facts["step"] and facts["steps"] else ""
        named = {f"validation {facts['valid_name']}": facts["valid"], "held-out R²": facts["test_r2"],
                 "held-out bits per spike": facts["test_bits"], "held-out two-way": facts["test_two_way"]}
        score = "".join(f", {name} {value:.3f}" for name, value in named.items() if value is not None)
        why = f": {self.error}" if facts["state"] in ("failed", "lost") else ""
        return f"Run {str(self.path)!r} is {facts['state']}: {facts['model']} on {facts['data']}{step}{score}{why}"

    def _repr_html_(self) -> str:
        facts = {"run": self.path, **self._facts(), "error": self.error}
        shown = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in facts.items() if v is not None and v != ""}
        rows = "".join(f"<tr><th style='text-align:left'>{html.escape(str(k))}</th><td style='text-align:left'>"
                       f"{html.escape(str(v))}</td></tr>" for k, v in shown.items())
        return f"<table>{rows}</table>"


def newest_rows(rows: list[dict]) -> pd.DataFrame:
    """Metrics rows as a table by step; where a resumed run goes back, its rows replace those from there on."""
    rows = [row for row in rows if isinstance(row.get("step"), int)]
    if not rows:
        return pd.DataFrame({"step": np.empty(0, int), "loss": np.empty(0)})
    steps = np.array([row["step"] for row in rows])
    later = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.iinfo(steps.dtype).max)
    return pd.DataFrame([row for row, keep in zip(rows, steps < later, strict=True) if keep])


def runs(folder: str | Path = "runs") -> pd.DataFrame:
    """The runs in a folder, newest first: one row a run, its path as the index. `Run(path)` opens one.

    A comparison or a sweep is one row; `runs` of its folder lists the runs in it.
    """
    found = {str(p.parent): _facts_or_why_not(p.parent)
             for name in ("recipe.yaml", "plan.json") for p in storage.place(folder).glob(f"*/{name}")}
    columns = ["state", "recipe", "model", "data", "target", "step", "steps", "valid", "valid_name", "test_r2",
               "test_bits", "started", "error"]
    table = pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("run")
    table = table.astype({"step": "Int64", "steps": "Int64", "started": "datetime64[s]"})
    return table.sort_values("started", ascending=False)


def _facts_or_why_not(folder: Path) -> dict[str, Any]:
    try:
        return Run(folder)._facts()
    except WorkbenchError as error:                                     # one bad folder must not hide the others
        return {"state": "unreadable", "error": f"{folder}: {error}"}
