"""A Ray cluster of two nodes on this machine: runs are sent to it over HTTP, recover there, stop and resume.

Run by `make test-cluster`. Skips where Ray is not installed, or does not start within its own limits of time.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch

from workbench.sources.simulated import reach_sim
from workbench.training import checkpoint
from workbench.training.launching import CannotStart, launch
from workbench.training.on_ray import NoCluster
from workbench.training.run import Run, RunFailed
from workbench.training.sweep import load, sweep

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(sys.platform != "linux", reason="Ray clusters are for Linux")]
STARTS, LONGEST = 2, 150                                                # tries, and seconds of each


def needs_ray():
    for package in ("ray", "aiohttp_cors", "pyarrow"):                  # Ray alone is not the extra `cluster`
        pytest.importorskip(package)


def free_ports(n: int) -> list[int]:
    """Of which Ray's workers, from 30,000 on, take none."""
    held = []
    while len(held) < n:
        one = socket.socket()
        one.bind(("", 0))
        held.append(one)
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def node(folder: Path, address: str, *more: str) -> tuple[psutil.Process, Path]:
    log = folder / f"{address}.log"
    listen, grpc, export = free_ports(3)
    with open(log, "wb") as out:
        started = psutil.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}",
             "--num-cpus=2", "--object-store-memory=100000000", f"--dashboard-agent-listen-port={listen}",
             f"--dashboard-agent-grpc-port={grpc}", f"--metrics-export-port={export}", "--disable-usage-stats", *more],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    return started, log


def ended(*nodes: psutil.Process) -> None:
    """By pid: `ray stop` would end everybody's."""
    family = [p for each in nodes if each.is_running() for p in (each, *each.children(recursive=True))]
    for p in family:
        try:
            p.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(family, timeout=20)


def up(one: psutil.Process, log: Path) -> bool:
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and one.poll() is None:
        if "Ray runtime started" in log.read_text(errors="replace"):
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def cluster():
    """The address of a head at 127.0.0.2 and a second node at 127.0.0.3."""
    needs_ray()
    before = dict(os.environ)
    os.environ |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{before['PATH']}",   # jobs say python
                   "GLOO_SOCKET_IFNAME": "lo", "RAY_AUTH_MODE": "disabled",
                   "RAY_raylet_start_wait_time_s": str(LONGEST)}
    for _ in range(STARTS):
        place = Path(tempfile.mkdtemp(prefix="ray-"))                   # short: sockets live there
        gcs, dashboard, clients = free_ports(3)
        nodes = [node(place, "127.0.0.2", "--head", f"--port={gcs}", f"--temp-dir={place}",
                      "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                      f"--ray-client-server-port={clients}", "--min-worker-port=30000", "--max-worker-port=30999")]
        if up(*nodes[0]):
            nodes.append(node(place, "127.0.0.3", f"--address=127.0.0.2:{gcs}", "--min-worker-port=31000",
                              "--max-worker-port=31999"))
        began = len(nodes) == 2 and up(*nodes[1])
        if began:
            yield f"http://127.0.0.1:{dashboard}"
        said = "\n".join(log.read_text(errors="replace")[-800:] for _, log in nodes)
        ended(*(one for one, _ in nodes))
        shutil.rmtree(place, ignore_errors=True)
        if began:
            break
    os.environ.clear()
    os.environ.update(before)
    if not began:
        pytest.skip(f"Ray did not start within {LONGEST} s here: {said}")


@pytest.fixture(scope="module")
def longer(tiny):
    return tiny.with_(budget={"steps": 300, "eval_every": 50, "checkpoint_every": 20})


@pytest.fixture(scope="module")
def here(longer, tmp_path_factory) -> Run:
    """The same run by two processes of torch.distributed.run, uninterrupted."""
    return launch(longer, run=tmp_path_factory.mktemp("here") / "run", workers=2).wait(300)


def same(run: Run, other: Run) -> None:
    a, b = run.metrics(), other.metrics()
    assert a["step"].tolist() == b["step"].tolist() == list(range(1, 301))
    for column in ("loss", "grad_norm", "lr"):
        assert a[column].tolist() == b[column].tolist()
    a, b = (checkpoint.newest(each.path / "checkpoints") for each in (run, other))
    for kind in ("model", "ema"):
        assert all(torch.equal(a[kind][name], value) for name, value in b[kind].items())


def until_step(run: Run, step: int) -> None:
    end = time.monotonic() + 300
    while not len(run.metrics()) or run.metrics()["step"].iloc[-1] < step:
        assert time.monotonic() < end and run.state in ("queued", "running"), run.error or run.log()
        time.sleep(0.1)


def test_sent_from_another_process_it_ends_as_two_processes_do_here(cluster, longer, here, tmp_path, python):
    longer.save(tmp_path / "recipe.yaml")
    began = time.monotonic()
    python("import sys; from workbench import launch; launch(sys.argv[1], on=sys.argv[2], run=sys.argv[3], workers=2, "
           "shared=True)", tmp_path / "recipe.yaml", cluster, tmp_path / "run")
    run = Run(tmp_path / "run")
    until_step(run, 1)
    first = time.monotonic() - began
    assert run.wait(300).state == "finished" and run.result()["protocol"]["processes"] == 2
    same(run, here)
    print(f"\nfirst row after {first:.1f} s, all after {time.monotonic() - began:.1f} s")


def test_a_killed_worker_is_started_again_a_stopped_run_resumes_there(cluster, longer, here, tmp_path):
    run = launch(longer, on=cluster, run=tmp_path / "run", workers=2, shared=True)
    until_step(run, 70)
    others = [p for p in psutil.process_iter() if p.pid != run.status["pid"]]
    next(p for p in others if "RayTrainWorker" in " ".join(p.cmdline())).kill()
    killed, at = time.monotonic(), run.status["pid"]
    while run.status["pid"] == at or run.state != "running" or run.status["stage"] != "training":
        assert time.monotonic() < killed + 200, run.log()
        time.sleep(0.1)
    again = time.monotonic() - killed
    until_step(run, 120)
    assert run.stop().wait(60).state == "stopped"
    assert checkpoint.newest(run.path / "checkpoints")["step"] == run.metrics()["step"].iloc[-1]
    assert run.resume().sent()["on"] == cluster                         # where it was before
    assert run.wait(300).state == "finished"
    same(run, here)
    print(f"\ntraining again {again:.1f} s after the kill")


def test_what_fails_there_says_so_and_where_and_is_not_tried_again(cluster, longer, tmp_path):
    path = tmp_path / "gone.h5"
    reach_sim(seconds=40, units=12).save(path)
    recipe = longer.with_(data=str(path)).anchored()
    path.unlink()
    run = launch(recipe, on=cluster, run=tmp_path / "run", workers=2, shared=True)
    with pytest.raises(RunFailed, match=rf"on {socket.gethostname()}: .*gone\.h5"):
        run.wait(300)
    assert run.log().count("gone.h5") == 1


def test_a_killed_job_is_lost_and_one_that_never_began_says_why(cluster, longer, tmp_path):
    run = launch(longer.with_(budget={"steps": 100_000}), on=cluster, run=tmp_path / "run", workers=1, shared=True)
    until_step(run, 5)
    with pytest.raises(CannotStart, match="running already"):
        run.resume()
    assert run.kill().state == "lost"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "workbench").mkdir()
    (tmp_path / "modules" / "workbench" / "__init__.py").write_text("raise ImportError('of another day')")
    other = launch(longer, on=cluster, run=tmp_path / "other", shared=True, code=tmp_path / "modules")
    with pytest.raises(RunFailed, match=r"before the run began(.|\n)*of another day"):
        other.wait(200)


def test_a_sweep_trains_as_many_at_once_as_there_is_room_for(cluster, longer, tmp_path):
    """Two runs of one process on four cores: neither waits for the other's end."""
    folder = tmp_path / "sweep"
    table = sweep(longer.with_(budget={"steps": 2000}), {"seed": [0, 1]}, folder=folder, on=cluster, shared=True)
    assert set(table["state"]) == {"queued"}
    assert Run(folder).wait(420).state == "finished"
    table = load(folder)
    assert table["state"].tolist() == ["finished"] * 2 and table["hand_vel.r2"].nunique() == 2
    said = [run.status for run in Run(folder).runs.values()]
    assert max(one["started"] for one in said) < min(one["time"] for one in said)


def test_no_cluster_there_is_one_sentence_and_nothing_is_left(longer, tmp_path):
    needs_ray()
    port, = free_ports(1)
    with pytest.raises(NoCluster, match=r"no Ray cluster answers at .*as in http://head:8265"):
        launch(longer, on=f"http://127.0.0.1:{port}", run=tmp_path / "run", shared=True)
    assert not (tmp_path / "run").exists()
