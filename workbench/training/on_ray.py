"""Runs on a cluster: a job sent over HTTP to Ray, whose workers train as `torch.distributed.run` has them do here.

    launch(recipe, on="http://head:8265", workers=2) ─HTTP─► Ray job: python -m workbench.training.on_ray FOLDER 2 0
        ─► Ray Train's TorchTrainer ─► on every worker: Run(FOLDER).train(ranks=…)
    several runs as one (a sweep): the same job starts a trainer for each, as many at once as there is room for

What is asked of the cluster: it sees the run's folder and the recordings under the same names, and has the packages of
the workbench. A worker that dies is started again by Ray, from the newest checkpoint. Metrics come from the folder and
never from Ray's logs, which repeat and lose lines. `ray://` is no place to train: it ends with the kernel.
"""

from __future__ import annotations

import logging
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.launching import CannotStart

if TYPE_CHECKING:
    from workbench.training.group import Done, Each, Group

RESTARTS = 3                                                            # of the workers, where one dies
COMPARED = ("torch", "numpy")                                           # whose other versions give other last digits
LEFT_BEHIND = ["/data", "/runs", "/.venv", "/.git", "/notebooks/runs", "**/*.nwb", "**/*.h5", "**/*.pt", "**/*.npz",
               "**/__pycache__"]                                        # when code travels


class NoCluster(CannotStart, ConnectionError):
    """The cluster cannot be asked, or did not take the job."""


def versions() -> dict[str, str]:
    """What has to be alike here and there; the workbench itself must be."""
    import workbench
    return {"workbench": workbench.__version__, "python": ".".join(map(str, sys.version_info[:2])),
            **{name: version(name).split("+")[0] for name in COMPARED}}


def answers(address: str) -> None:
    """Make sure that a cluster is there. NoCluster says what to do where none is, or where Ray is missing here."""
    _client(address)


def new_job() -> str:
    """A name that no other job has."""
    return f"workbench-{uuid.uuid4().hex[:12]}"


def submit(job: str, folder: Path, address: str, workers: int, gpus: bool, code: str | Path | None = None) -> None:
    """Send the run as a job of that name to the cluster whose dashboard is at `address`.

    code: the folder that travels, whose modules are found first there; None: the checkout that this workbench is
    imported from, and nothing where it was installed. Recordings, runs and what git ignores stay behind.
    """
    source = Path(code).expanduser().resolve() if code is not None else _checkout()
    if source is not None and not source.is_dir():
        raise NoCluster(f"code={str(code)!r} is no folder; give the folder whose modules the run needs")
    travels = {"working_dir": str(source), "excludes": LEFT_BEHIND} if source is not None else {}
    client = _client(address)
    command = f"python -m workbench.training.on_ray {shlex.quote(str(folder))} {workers} {int(gpus)}"
    try:
        with _quiet():
            client.submit_job(submission_id=job, entrypoint=command, runtime_env=travels)
    except (RuntimeError, ValueError, OSError) as error:
        raise NoCluster(f"{address} did not take the job ({_first_line(error)}); the dashboard there tells more") \
            from error


def told(address: str, job: str) -> tuple[str, str]:
    """How the job stands (PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED) and what Ray says of it."""
    try:
        info = _client(address).get_job_info(job)
    except (RuntimeError, OSError) as error:
        raise NoCluster(f"{address} knows nothing of job {job} ({_first_line(error)})") from error
    return str(info.status.value if hasattr(info.status, "value") else info.status), info.message or ""


def log(address: str, job: str) -> str:
    """What the job printed, as far as Ray kept it; empty where it cannot be asked."""
    with suppress(WorkbenchError, RuntimeError, OSError):
        return _client(address).get_job_logs(job)
    return ""


def end(address: str, job: str) -> None:
    """End the job at once."""
    with suppress(RuntimeError):                                        # of one that has ended
        _client(address).stop_job(job)


def _client(address: str) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient
    except (ImportError, RuntimeError):                                 # Ray alone, without what talks to a dashboard
        raise NoCluster("runs on a cluster need Ray here too: pip install 'spike-workbench[cluster]'") from None
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        unknown = "401" in str(error) or "token" in str(error).lower()
        way = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token" if unknown else \
            "give the address of Ray's dashboard, as in http://head:8265, and check that it can be reached from here"
        raise NoCluster(f"no Ray cluster answers at {address} ({_first_line(error)}); {way}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a line for every file that stays behind."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _checkout() -> Path | None:
    import workbench
    root = Path(workbench.__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() else None


# ---- on the cluster ------------------------------------------------------------------------------------------------

def fit(folder: Path, workers: int, gpus: bool, stop_files: tuple[Path, ...] = ()) -> None:
    """Train the run in `folder` with Ray Train, to its end or a STOP."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    TorchTrainer(
        _work, train_loop_config={"run": str(folder), "stop_files": [str(file) for file in stop_files]},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(name="ray", storage_path=str(folder), failure_config=FailureConfig(max_failures=RESTARTS)),
    ).fit()


def _work(config: Mapping[str, Any]) -> None:
    """One worker. Returns where the run has failed for good, so that Ray does not try again what would fail again."""
    from torch import distributed

    from workbench.training.ranks import ALONE, RankLost, Ranks, leave
    from workbench.training.run import Run
    run = Run(config["run"])
    together = distributed.is_initialized()
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size()) if together else ALONE
    if run.status["state"] == "failed":
        return
    try:
        run.train(ranks=ranks, stop_files=tuple(map(Path, config["stop_files"])))
    except RankLost:
        if run.status["state"] != "failed":
            raise
    except Exception:                                                   # told in status.json and log.txt
        if run.status["state"] != "failed":
            raise
    finally:
        leave()


def _at_once(workers: int, gpus: bool) -> Each:
    """The runs of a group, all asked for; those for which there is no room wait in Ray's queue."""
    def each(group: Group, labels: list[str], report: Any, stop_files: tuple[Path, ...]) -> Iterator[Done]:
        import ray

        from workbench.training.loop import Stopped
        from workbench.training.recipe import Recipe
        from workbench.training.run import Run, RunFailed
        one = ray.remote(num_cpus=0, max_retries=0)(fit)                # its workers are what takes room
        going = {}
        for label in labels:
            place, what = group.path / label, group.plan["runs"][label]
            if "recipe" not in what:
                yield label, None
                continue
            if not (place / "recipe.yaml").is_file():
                Recipe(**what["recipe"]).save(place / "recipe.yaml")
            storage.write_json(place / "process.json", group.sent())
            storage.write_json(place / "status.json", {**Run(place).status, "state": "queued", "error": ""})
            going[one.remote(place, workers, gpus, stop_files)] = label
        stopped = False
        while going:
            done, _ = ray.wait(list(going), num_returns=1)
            label = going.pop(done[0])
            try:
                ray.get(done[0])
            except ray.exceptions.RayError as error:
                yield label, RunFailed(_first_line(error))
                continue
            run = Run(group.path / label)
            stopped |= run.state == "stopped"
            if run.state != "stopped":
                yield label, None if run.state == "finished" else RunFailed(run.error)
        if stopped:
            raise Stopped
    return each


def main(folder: str, workers: str, gpus: str) -> None:
    import socket

    from workbench.training.group import Group, SomeFailed
    from workbench.training.run import NoRun, Run
    try:
        run = Run(folder)
    except NoRun:
        sys.exit(f"{socket.gethostname()} does not see the run's folder {folder}; it has to be on a disk that this "
                 "machine and the cluster share, under the same name")
    sent, here = run.sent()["versions"], versions()
    other = {name: f"{sent[name]} there and {here[name]} on {socket.gethostname()}" for name in sent
             if sent[name] != here[name]}
    if "workbench" in other:
        sys.exit(f"the workbench is {other['workbench']}; install the same version there, or launch with "
                 "code=")
    for name, differs in other.items():
        storage.log(run.path / "log.txt", f"{name} is {differs}: the last digits may differ")
    how = int(workers), bool(int(gpus))
    if isinstance(run, Group):
        with suppress(SomeFailed):                                      # told in status.json and in the rows
            run.train(each=_at_once(*how))
    else:
        fit(run.path, *how)
    if run.state not in ("finished", "stopped"):
        sys.exit(run.error or f"the run is {run.state}")


if __name__ == "__main__":
    main(*sys.argv[1:])
