"""Runs as folders: launched, watched, stopped, killed and resumed from outside."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from filelock import FileLock

from workbench.errors import CannotWrite, UnknownName, WorkbenchError
from workbench.training import storage
from workbench.training.launching import CannotStart, new_folder
from workbench.training.run import NoRun, Run, RunFailed, launch, runs
from workbench.training.sweep import sweep

LAUNCHER = """
import sys, time
from workbench.training.run import launch
print(launch(sys.argv[1], run=sys.argv[2]).state, flush=True)
time.sleep(600)
"""


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
def test_a_detached_run_outlives_its_launcher_and_can_be_stopped_and_resumed_and_killed(tiny, tmp_path):
    folder, recipe = tmp_path / "run", tiny.with_(budget={"steps": 10**6})
    recipe.save(tmp_path / "long.yaml")
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path / "long.yaml"), str(folder)], text=True,
                                stdout=subprocess.PIPE, start_new_session=True)
    assert launcher.stdout.readline().strip() in ("queued", "running")
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    run = Run(folder)
    try:
        until(lambda: len(run.metrics()) > 10)
        assert run.state == "running" and "running" in repr(run)
        assert psutil.Process(run.status["pid"]).ppid() != launcher.pid
        with pytest.raises(CannotStart, match="running already"):
            launch(Run(folder).recipe, run=folder)

        run.stop().wait(20)
        assert run.state == "stopped"
        before = run.status["step"]
        assert (folder / "checkpoints" / f"step-{before:09d}.pt").exists()

        run.resume()
        assert run.state in ("queued", "running")
        until(lambda: run.status.get("step", 0) > before and run.state == "running")
        assert f"resumed from the checkpoint of step {before}" in run.log()
    finally:
        run.kill()
    assert run.state == "lost"
    with pytest.raises(RunFailed, match=r"run.resume\(\)"):
        run.wait()


def test_a_detached_run_finishes_with_a_result_and_a_model(tiny, tmp_path):
    run = launch(tiny, run=tmp_path / "run").wait(100)
    assert run.state == "finished"
    assert set(run.result()["scores"]["hand_vel"]) >= {"r2", "r2_causal", "r2_per_dim"}
    assert run.metrics()["step"].tolist() == list(range(1, 41))
    assert run.model().window == 1.0
    assert launch(tiny, run=tmp_path / "run").state == "finished"
    table = runs(tmp_path)
    assert table.loc[str(run.path), "state"] == "finished" and table.loc[str(run.path), "test_r2"] <= 1
    assert "finished" in run._repr_html_()


def test_a_run_that_fails_tells_why(tiny, tmp_path):
    run = launch(tiny.with_(data=str(tmp_path / "gone.h5")), run=tmp_path / "run")
    with pytest.raises(RunFailed, match=r"gone\.h5"):
        run.wait(100)
    assert run.state == "failed"


def test_reading_and_watching_a_run_imports_no_torch(tiny, tmp_path, python):
    launch(tiny.with_(baselines=["ridge"], budget={"steps": 20}), on="here", run=tmp_path / "run")
    out = python("""
import sys, workbench
run = workbench.Run(sys.argv[1])
len(run.metrics()), run.state, run.result(), run.log(), workbench.runs(run.path.parent), repr(run), run._repr_html_()
run.recipe, run.wait(), run.stop()
view = run.watch()
view.__panel__()
shown = [len(view._curves.loss.data["step"]), len(view._curves.valid.data["step"])]
print(*shown, sorted(view._curves.dashed), "simulated" in view._head.object)
print("torch" in sys.modules)
""", tmp_path / "run")
    assert out.splitlines() == ["20 2 ['ridge', 'this run'] True", "False"]


def test_the_monitor_follows_a_run_and_asks_it_to_stop(tiny, tmp_path):
    run = queued(tmp_path, tiny)
    view = run.watch()
    storage.append(run.path / "metrics.jsonl", {"step": 1, "loss": 2.0})
    storage.append(run.path / "metrics.jsonl", {"step": 2, "loss": 1.0, "valid": 0.5})
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 3, "l')
    view.refresh()
    assert list(view._curves.loss.data["step"]) == [1, 2] and list(view._curves.valid.data["valid"]) == [0.5]
    with FileLock(run.path / "lock"):
        storage.write_json(run.path / "status.json", {"state": "running", "step": 2, "stage": "training"})
        view.refresh()
        assert view._stop.visible and "running" in view._head.object
        assert view._save.visible
        view._act("checkpoint")
        view._act("stop")
    assert (run.path / "STOP").exists() and (run.path / "SAVE").exists()
    if view._ticking:
        view._ticking.stop()


def queued(tmp_path, recipe) -> Run:
    recipe.save(tmp_path / "run" / "recipe.yaml")
    return Run(tmp_path / "run")


def test_a_start_that_dies_before_its_first_word_shows_the_end_of_the_log(tiny, tmp_path):
    run = queued(tmp_path, tiny)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    storage.write_json(run.path / "status.json", {"state": "queued", "time": time.time()})
    storage.write_json(run.path / "process.json", {"pid": dead.pid, "host": socket.gethostname()})
    (run.path / "log.txt").write_text("ImportError: no module named torch\n")
    assert run.state == "failed"
    with pytest.raises(RunFailed, match="no module named torch"):
        run.wait()


def test_running_without_a_held_lock_is_lost(tiny, tmp_path):
    run = queued(tmp_path, tiny)
    storage.write_json(run.path / "status.json", {"state": "running", "step": 3, "time": time.time()})
    with FileLock(run.path / "lock"):
        assert run.state == "running"
        with pytest.raises(TimeoutError):
            run.wait(0.2)
    assert run.state == "lost"


def test_a_folder_with_another_recipe_is_refused_and_says_what_differs(tiny, tmp_path):
    queued(tmp_path, tiny)
    with pytest.raises(CannotStart, match="seed is 0 there and 5 here"):
        launch(tiny.with_(seed=5), run=tmp_path / "run", on="here")
    assert Run(tmp_path / "run").recipe.seed == 0


def test_a_folder_where_a_mistaken_recipe_failed_takes_the_corrected_one(tiny, tmp_path):
    with pytest.raises(WorkbenchError, match="no series 'hand_velo'"):
        launch(tiny.with_(target="hand_velo"), run=tmp_path / "run", on="here")
    assert Run(tmp_path / "run").state == "failed"
    assert launch(tiny.with_(target="hand_vel"), run=tmp_path / "run", on="here").state == "finished"


def test_one_unreadable_run_does_not_hide_the_others(tiny, tmp_path):
    queued(tmp_path, tiny)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "recipe.yaml").write_text("model: gru\ndata: a\nold_setting: 3\n")
    table = runs(tmp_path)
    assert sorted(table["state"]) == ["failed", "unreadable"]
    assert "old_setting" in table.loc[table["state"] == "unreadable", "error"].item()


def test_a_folder_of_other_things_is_not_written_into(tiny, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CannotStart, match="holds no run"):
        launch(tiny, run=tmp_path, on="here")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("changes, says", [
    ({"model": "poyoo"}, "poyo"), ({"model": {"dimm": 8}}, r"'dimm'.*dim"), ({"data": "reach-sum"}, "reach-sim"),
    ({"baselines": {"gru": {"model": {"layerz": 2}}}}, "'layerz'")])
@pytest.mark.parametrize("on", ["local", "here"])
def test_a_name_that_nobody_knows_fails_before_anything_starts(tiny, tmp_path, changes, says, on):
    with pytest.raises(UnknownName, match=says):
        launch(tiny.with_(**changes), on=on, run=tmp_path / "run")
    with pytest.raises(UnknownName, match=says):
        sweep(tiny.with_(**changes), {"seed": [0, 1]}, on=on, folder=tmp_path / "sweep")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place, says", [
    ("gpu", r"'local'.*'here'.*'http://head:8265'"),
    ("ray://head:10001", r"ends with their kernel.*on='http://head:8265'"),
    ("http://head:8265", r"a folder that the cluster sees too.*shared=True")])
def test_places_where_nothing_can_start_are_refused_with_those_that_can(tiny, tmp_path, place, says):
    with pytest.raises(CannotStart, match=says):
        launch(tiny, on=place, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=r"cannot write .* \(Not a directory\); check that the folder"):
        launch(tiny, run=tmp_path / "file" / "run")


def test_what_is_not_there_is_told_in_a_sentence(tiny, tmp_path):
    with pytest.raises(NoRun, match="there is no run"):
        Run(tmp_path)
    run = queued(tmp_path, tiny)
    for look in (run.result, run.model):
        with pytest.raises(WorkbenchError, match=r"run\."):
            look()
    assert run.log() == "" and len(run.metrics()) == 0


def test_new_folders_are_numbered_and_never_shared(tmp_path):
    names = [new_folder("demo", tmp_path).name for _ in range(3)]
    assert names == ["demo-001", "demo-002", "demo-003"]


def test_a_folder_without_runs_is_an_empty_table(tmp_path):
    assert len(runs(tmp_path)) == 0 and len(runs(tmp_path / "nowhere")) == 0


def test_status_and_result_are_plain_json(tiny, tmp_path):
    launch(tiny.with_(budget={"steps": 2}), on="here", run=tmp_path / "run")
    for name in ("status", "result", "resolved"):
        text = (tmp_path / "run" / f"{name}.json").read_text()
        assert "NaN" not in text and json.loads(text)
