"""Where runs start: in this process, or in one of their own that outlives the kernel, the terminal and the cell.

    recipe → its folder (a new one, or the same recipe's) → a starter, by the kind of place → Run

Every starter does the same: `train(recipe, folder)` somewhere. No function is pickled; the folder says it all.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.recipe import Recipe

if TYPE_CHECKING:
    from workbench.training.run import Run


RESTARTS = 3                                                            # of several processes, where one dies


class CannotStart(WorkbenchError, RuntimeError):
    """A run that cannot start there."""


def launch(recipe: Recipe | str | Path, on: str = "local", run: str | Path | None = None, *, workers: int | None = None,
           gpus: int | None = None, shared: bool = False, code: str | Path | None = None) -> Run:
    """Start a recipe (or the shipped one of that name, or a YAML file) and return its Run.

    on    "local": a process of its own on this machine, which survives this one; returns at once. "here": this
          process, which waits for the end; interrupting it saves a checkpoint. "http://HEAD:8265": the Ray cluster
          with that dashboard, as a job there, see `workbench.training.on_ray`
    run   the folder, or a URL as in "s3://lab/runs/one"; None: a new one under runs/. One that holds the
          same recipe is resumed
    workers   processes that train together, each a share of every batch, on a GPU of its own where there are GPUs
    gpus      the same with a GPU each; a sentence where there are not so many here
    shared    on a cluster: the folder is on a disk that the cluster sees under the same name
    code      on a cluster: the folder of modules that travels along; None: the checkout of the workbench, if it is one

    Raises CannotStart for another place, a folder with another recipe, one where a run is alive, one that the cluster
    does not see, or a batch that cannot be shared.
    """
    from workbench.training.run import Run
    recipe = (recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)).anchored()
    check_place(on, shared or "://" in str(run))
    check_names(recipe, on)
    workers = processes(recipe, on, workers, gpus)
    folder = storage.place(run) if run is not None else new_folder(recipe.name)
    admit(recipe, folder)
    if not (folder / "recipe.yaml").is_file():
        recipe.save(folder / "recipe.yaml")
    return Run(folder).resume(on, workers, gpus=gpus is not None, code=code)


def check_place(on: str, shared: bool = True) -> None:
    """Whether runs can start there; shared: whether what is at `on` sees the folders of here."""
    if on.startswith(("http://", "https://")):
        if not shared:
            raise CannotStart("a run on a cluster lives in a folder that the cluster sees too: give run= a folder on a "
                              "disk that its machines mount under the same name, and say shared=True; or the URL of "
                              "one, as in run='s3://lab/runs/one'")
        from workbench.training import on_ray
        on_ray.answers(on)                                              # before anything is written
    elif on.startswith("ray://"):
        head = on.removeprefix("ray://").partition(":")[0] or "head"
        raise CannotStart(f"{on} is for clients whose work ends with their kernel; give the address of the cluster's "
                          f"dashboard, as in on='http://{head}:8265', to which the run is sent as a job")
    elif on not in _PLACES:
        raise CannotStart(f"cannot launch on {on!r}; say 'local' (a process of its own on this machine), 'here' (this "
                          "process) or the address of a Ray cluster's dashboard, as in 'http://head:8265'")


def check_names(recipe: Recipe, on: str) -> None:
    """Refuse a model, a setting of it or a dataset that nobody knows before anything starts, with near names."""
    from workbench import models
    from workbench.catalog import check
    for one in (recipe, *(recipe.baseline(name) for name in recipe.baselines)):
        models.check(one.model.name, one.model.settings)
    if on in _PLACES:                                                   # a cluster may know others
        check(recipe.data)


def processes(recipe: Recipe, on: str, workers: int | None, gpus: int | None) -> int | None:
    """How many processes are asked for, if that can be."""
    if gpus is not None:
        import torch
        there = torch.cuda.device_count() if on in _PLACES else math.inf
        if not 1 <= gpus <= there:
            raise CannotStart(f"gpus={gpus}, and this machine has {there}; say workers={max(gpus, 1)} for processes on "
                              "its CPU, or gpus= at most so many")
        if workers not in (None, gpus):
            raise CannotStart(f"workers={workers} and gpus={gpus}: a GPU has one process; say one of both")
        workers = gpus
    if workers is None:
        return None
    if workers < 1 or recipe.batch.size % (workers * recipe.batch.pieces):
        pieces = f" in {recipe.batch.pieces} pieces" * (recipe.batch.pieces > 1)
        raise CannotStart(f"{workers} processes cannot share batches of {recipe.batch.size} windows evenly{pieces}; "
                          "choose workers= that divides batch.size, or another batch.size")
    if workers > 1 and on == "here":
        raise CannotStart(f"on='here' is one process and workers={workers} were asked for; say on='local'")
    return workers


def admit(recipe: Recipe, folder: Path) -> None:
    """Make sure that a run of the recipe can live in the folder: a new one, an empty one, or the same recipe's."""
    from workbench.training.run import Run
    if (folder / "recipe.yaml").is_file():
        other = Recipe.load(folder / "recipe.yaml").diff(recipe)
        if other and _untouched(Run(folder)):                           # a mistake in the recipe, corrected
            for leftover in ("resolved.json", "status.json", "process.json", "metrics.jsonl"):
                (folder / leftover).unlink(missing_ok=True)
            recipe.save(folder / "recipe.yaml")
        elif other:
            listed = ", ".join(f"{k} is {old!r} there and {new!r} here" for k, (old, new) in list(other.items())[:3])
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            raise CannotStart(f"{folder} holds a run of another recipe ({listed}{more}); choose another folder")
    elif storage.local(folder) and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CannotStart(f"{folder} is there and holds no run; choose an empty or a new folder")


def _untouched(run: Run) -> bool:
    """Whether the run failed before it had learnt anything that could be lost."""
    learnt = any((run.path / name).exists() for name in ("model", "scores.json", "result.json", "baselines"))
    return run.status["state"] == "failed" and not (learnt or any(run.path.glob("checkpoints/*.pt")))


def start(run: Run, on: str | None = None, workers: int | None = None, *, gpus: bool | None = None,
          code: str | Path | None = None) -> Run:
    """Start the run in `run.path`, from its newest checkpoint if it has one; what is None is as the last time."""
    before = run.sent()
    on = on or before.get("on", "local")
    check_place(on)
    workers = before.get("workers", 1) if workers is None and on != "here" else workers or 1
    if run.alive:
        raise CannotStart(f"{run.path} is {run.state} already; run.watch() shows it, run.stop() ends it")
    for old in run.path.glob("STOP*"):
        old.unlink(missing_ok=True)
    if on in _PLACES:
        _PLACES[on](run, workers)
    else:
        code = code if code is not None else before.get("code")
        _cluster(run, on, workers, bool(before.get("gpus") if gpus is None else gpus), code)
    return run


def new_folder(name: str, under: str | Path = "runs") -> Path:
    """A new, empty folder runs/<name>-<number>."""
    number = 1
    while True:
        try:
            folder = Path(under) / f"{name}-{number:03d}"
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _here(run: Run, workers: int) -> None:
    """In this process, under a progress bar."""
    storage.write_json(run.path / "process.json", {"pid": os.getpid(), "host": socket.gethostname()})
    notebook = "ipykernel" in sys.modules
    shown = _bar if sys.stderr.isatty() or notebook else _lines
    if not notebook and run.state != "finished":
        print(f"training in {run.path}: Ctrl-C saves a checkpoint, the same command goes on", file=sys.stderr)
    with interrupt_stops(run), shown() as show:
        run.train(on_step=show)


# The process in the middle leaves at once, so that the run is nobody's child: kernels end their children with them.
_MIDDLE = """
import subprocess, sys
log, flags, *command = sys.argv[1:]
detached = {"creationflags": int(flags)} if sys.platform == "win32" else {"start_new_session": True}
with open(log, "ab") as out:
    print(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **detached).pid)
"""


def _detached(run: Run, workers: int) -> None:
    """In a process of its own: a new session, and no descendant of this one."""
    status = run.status
    (run.path / "process.json").unlink(missing_ok=True)
    storage.write_json(run.path / "status.json", {**status, "state": "queued", "stage": "starting", "pid": None,
                                                  "error": "", "time": time.time()})
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    command = ["-m", "workbench.training", str(run.path)]
    if workers > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
                   f"--max-restarts={RESTARTS}", *command]
    log = run.path / "log.txt" if storage.local(run.path) else \
        Path(tempfile.gettempdir(), f"workbench-{uuid.uuid4().hex[:12]}.log")
    middle = subprocess.run([sys.executable, "-S", "-c", _MIDDLE, str(log), str(flags), sys.executable, *command],
                            stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            env={**os.environ, "PYTHONUNBUFFERED": "1"})
    if middle.returncode:
        raise CannotStart(f"{run.path} did not start: {middle.stderr.strip().splitlines()[-1]}")
    storage.write_json(run.path / "process.json", {"pid": int(middle.stdout), "host": socket.gethostname(),
                                                   "workers": workers, "log": str(log)})


def _cluster(run: Run, address: str, workers: int, gpus: bool, code: str | Path | None) -> None:
    """As a job of the Ray cluster whose dashboard is at the address."""
    from workbench.training import on_ray
    sent = {"on": address, "job": on_ray.new_job(), "workers": workers, "gpus": gpus, "host": socket.gethostname(),
            "code": None if code is None else str(Path(code).expanduser().resolve()), "versions": on_ray.versions()}
    storage.write_json(run.path / "process.json", sent)                 # the job reads it
    storage.write_json(run.path / "status.json", {**run.status, "state": "queued", "stage": "waiting for the cluster",
                                                  "pid": None, "host": None, "error": "", "time": time.time()})
    on_ray.submit(sent["job"], run.path, address, workers, gpus, sent["code"])


# Places on this machine, by name.
_PLACES = {"local": _detached, "here": _here}


@contextmanager
def interrupt_stops(run: Run, file: str = "STOP") -> Iterator[Path]:
    """The first Ctrl-C (or SIGTERM) asks for a checkpoint, by this file in the run; the second ends the process."""
    asked = run.path / file
    if threading.current_thread() is not threading.main_thread():       # only the main thread may set handlers
        yield asked
        return

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler or signal.SIG_DFL)

    def ask(signum: int, frame: Any) -> None:
        restore()
        print("\nstopping with a checkpoint at the next step (once more to end at once)", file=sys.stderr)
        storage.write(asked, b"")

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        restore()


@contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar, for a terminal or a cell."""
    from tqdm.auto import tqdm
    with tqdm(unit="step", mininterval=0.2, dynamic_ncols=True) as bar:
        def show(status: dict[str, Any]) -> None:
            stage, step, steps = _progress(status)
            if bar.desc != f"{stage}: ":
                bar.set_description(stage)
                bar.reset(total=steps)
            bar.total = steps
            if step is not None:
                bar.set_postfix_str(_scores(status).removeprefix(", "), refresh=False)
                bar.update(step - bar.n)
        yield show


@contextmanager
def _lines() -> Iterator[Any]:
    """A line now and then, where stderr is a file."""
    last: dict[str, Any] = {"stage": "", "time": 0.0}

    def show(status: dict[str, Any]) -> None:
        stage, step, steps = _progress(status)
        if stage != last["stage"] or time.monotonic() - last["time"] > 20:
            last.update(stage=stage, time=time.monotonic())
            at = f", step {step:,} of {steps:,}{_scores(status)}" if step and steps else ""
            print(f"{stage}{at}", file=sys.stderr, flush=True)
    yield show


def _progress(status: dict[str, Any]) -> tuple[str, int | None, int | None]:
    stage = status.get("stage", "")
    kind = "part_" if ": " in stage else ""                             # of a baseline, or of one run of several
    return stage, status.get(f"{kind}step"), status.get(f"{kind}steps")


def _scores(status: dict[str, Any]) -> str:
    if ": " in status.get("stage", ""):                                 # the loss is not that part's
        return ""
    shown = {"loss": status.get("loss"), f"validation {status.get('valid_name')}": status.get("valid")}
    return "".join(f", {name} {value:.3g}" for name, value in shown.items() if value is not None)
