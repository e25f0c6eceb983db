"""A run in an object store: no locks, no appending, no names that change in one step, and nothing lost."""

import time

import fsspec
import pytest
import torch

from workbench.training import checkpoint, storage
from workbench.training.run import FRESH, NoRun, Run, launch, runs
from workbench.training.storage import NoPlace
from workbench.training.trainer import FolderInUse


@pytest.fixture
def memory(request):
    """A folder of fsspec's store in memory, which other processes do not see."""
    yield f"memory://{request.node.name}"
    fsspec.filesystem("memory").store.clear()


def the_same(run: Run, other: Run) -> None:
    assert run.metrics()["loss"].tolist() == other.metrics()["loss"].tolist()
    a, b = (checkpoint.newest(each.path / "checkpoints") for each in (run, other))
    assert all(torch.equal(a["ema"][name], value) for name, value in b["ema"].items())
    assert run.result()["scores"] == other.result()["scores"]


def test_a_run_in_a_store_ends_as_one_on_a_disk(tiny, tmp_path, memory):
    there = launch(tiny, run=f"{memory}/run", on="here")
    assert there.state == "finished" and str(there.path) == f"{memory}/run"
    here = launch(tiny, run=tmp_path / "run", on="here")
    the_same(there, here)
    for name, value in here.model().state_dict().items():
        assert torch.equal(there.model().state_dict()[name], value)
    assert runs(memory)["state"].tolist() == ["finished"]
    with pytest.raises(NoRun, match="there is no run at memory://"):
        Run(f"{memory}/other")


def test_stopped_between_two_writes_of_the_rows_it_resumes_exactly(tiny, tmp_path, memory, monkeypatch):
    monkeypatch.setattr(storage, "SELDOM", 1e9)                         # only a checkpoint has the rows written
    tiny.save(storage.place(f"{memory}/run") / "recipe.yaml")
    run = Run(f"{memory}/run")

    def at_step_17(status):
        if status.get("step") == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(on_step=at_step_17)
    assert run.metrics()["step"].max() == 15                            # those of 16 and 17 were not there yet
    run.resume(on="here")
    the_same(run, launch(tiny, run=tmp_path / "run", on="here"))


def test_a_file_that_asks_to_stop_is_seen(tiny, memory):
    tiny.with_(budget={"steps": 100_000}).save(storage.place(f"{memory}/run") / "recipe.yaml")
    run, began = Run(f"{memory}/run"), time.monotonic()
    run.train(on_step=lambda status: run.stop() if status.get("step") == 3 else None)
    assert run.state == "stopped" and time.monotonic() - began < 60
    assert checkpoint.newest(run.path / "checkpoints")["step"] == run.metrics()["step"].max() > 3


def test_only_a_heart_tells_who_is_alive_there(tiny, memory):
    place = storage.place(f"{memory}/run")
    tiny.save(place / "recipe.yaml")
    beats = {"state": "running", "host": "elsewhere", "pid": 1, "step": 7}
    storage.write_json(place / "status.json", {**beats, "time": time.time()})
    run = Run(place)
    assert run.state == "running"
    with pytest.raises(FolderInUse, match="another process is training in memory://"):
        run.train()
    storage.write_json(place / "status.json", {**beats, "time": time.time() - FRESH - 1})
    assert run.state == "lost" and "at step 7" in run.error
    assert run.train() == "finished"


def test_a_url_of_a_disk_is_a_path(tmp_path):
    assert storage.place(f"file://{tmp_path}") == storage.place(f"local://{tmp_path}") == tmp_path


def test_a_store_that_cannot_be_reached_is_one_sentence(tiny):
    with pytest.raises(NoPlace, match=r"nowhere://lab/run cannot be reached.*pip install"):
        launch(tiny, run="nowhere://lab/run", on="here")
