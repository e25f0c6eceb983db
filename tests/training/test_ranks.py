"""Several processes as one run: the batches and weights of one alone, and nothing lost when one of them dies."""

import time

import psutil
import pytest
import torch

from workbench.sources.simulated import reach_sim
from workbench.training import checkpoint
from workbench.training.launching import CannotStart
from workbench.training.ranks import Ranks
from workbench.training.recipe import BadRecipe
from workbench.training.run import Run, launch
from workbench.windows import RandomWindows, split


def rows(run: Run) -> list[float]:
    return run.metrics()["loss"].tolist()


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory) -> Run:
    """An uninterrupted run of two processes."""
    return launch(tiny, run=tmp_path_factory.mktemp("two") / "run", workers=2).wait(240)


def test_shares_are_the_batch_window_by_window():
    session = reach_sim(seconds=30, units=8)
    batch = RandomWindows([session], [split(session)["train"]], duration=1.0, batch_size=6, targets=("hand_vel",),
                          drop_units=0.4).batch(3)
    parts = [Ranks(rank, 3).share(batch) for rank in range(3)]
    assert [part.starts.tolist() for part in parts] == [batch.starts[rank::3].tolist() for rank in range(3)]
    for rank, part in enumerate(parts):
        for i, b in enumerate(range(rank, 6, 3)):
            of = lambda packed, offsets, at: packed[offsets[at]:offsets[at + 1]]
            for name, by in (("times", "offsets"), ("units", "offsets"), ("window_units", "unit_offsets")):
                assert torch.equal(of(getattr(part, name), getattr(part, by), i),
                                   of(getattr(batch, name), getattr(batch, by), b))
            a, whole = part.targets["hand_vel"], batch.targets["hand_vel"]
            assert torch.equal(of(a.values, a.offsets, i), of(whole.values, whole.offsets, b))
    assert torch.equal(batch.take(torch.arange(6)).times, batch.times)


def test_two_processes_learn_what_one_does(tiny, tmp_path):
    """Without dropout the mean of two gradients is the gradient of both, up to the order of a sum."""
    plain = tiny.with_(model={"dropout": 0.0, "noise": 0.0})
    alone = launch(plain, run=tmp_path / "one", on="here")
    together = launch(plain, run=tmp_path / "two", workers=2).wait(240)
    assert together.result()["protocol"]["processes"] == 2
    a, b = (checkpoint.newest(run.path / "checkpoints") for run in (alone, together))
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-3, atol=1e-5)
    assert rows(together) == pytest.approx(rows(alone), rel=1e-3)
    assert together.result()["scores"]["hand_vel"]["r2"] == pytest.approx(alone.result()["scores"]["hand_vel"]["r2"],
                                                                          abs=1e-3)


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(tiny, tmp_path):
    plain = tiny.with_(model={"dropout": 0.0, "noise": 0.0}, budget={"steps": 10})
    whole = launch(plain, run=tmp_path / "whole", on="here")
    pieces = launch(plain.with_(batch={"pieces": 4}), run=tmp_path / "pieces", on="here")
    a, b = (checkpoint.newest(run.path / "checkpoints") for run in (whole, pieces))
    for name, value in a["model"].items():
        torch.testing.assert_close(b["model"][name], value, rtol=1e-4, atol=1e-6)
    assert rows(pieces) == pytest.approx(rows(whole), rel=1e-4)
    with pytest.raises(BadRecipe, match="3 pieces of a batch of 4 windows"):
        tiny.with_(batch={"pieces": 3})
    with pytest.raises(CannotStart, match="in 2 pieces"):
        launch(tiny.with_(batch={"pieces": 2}), run=tmp_path / "none", workers=4)


def test_a_killed_process_is_started_again_and_nothing_is_lost(tiny, two, tmp_path):
    run = launch(tiny.with_(name="tiny"), run=tmp_path / "run", workers=2)
    until = time.monotonic() + 120
    while not len(metrics := run.metrics()) or metrics["step"].max() < 8:
        assert time.monotonic() < until and run.state != "failed", run.log()
        time.sleep(0.02)
    family = psutil.Process(run.status["pid"]).children(recursive=True)
    second = next(p for p in family if "workbench.training" in p.cmdline() and p.environ()["RANK"] == "1")
    second.kill()
    assert run.wait(240).state == "finished"                            # and not stopped, though the first was told to
    assert rows(run) == rows(two)
    a, b = (checkpoint.newest(each.path / "checkpoints") for each in (run, two))
    assert all(torch.equal(a["ema"][name], value) for name, value in b["ema"].items())


def test_stopped_it_goes_on_with_as_many_and_killed_none_is_left(tiny, two, tmp_path):
    long = tiny.with_(budget={"steps": 100_000, "eval_every": 50_000})
    run = launch(long, run=tmp_path / "run", workers=2)
    until = time.monotonic() + 120
    while not len(run.metrics()):
        assert time.monotonic() < until, run.log()
        time.sleep(0.05)
    assert run.stop().wait(60).state == "stopped" and len(checkpoint.newest(run.path / "checkpoints")["random"]) == 2
    before = len(run.metrics())
    run.resume()
    while len(run.metrics()) <= before:
        assert time.monotonic() < until, run.log()
        time.sleep(0.05)
    psutil.Process(run.status["pid"]).terminate()                       # as a cluster's queue ends a job
    assert run.wait(60).state == "stopped"
    before = len(run.metrics())
    assert before == checkpoint.newest(run.path / "checkpoints")["step"]
    run.resume()
    while len(run.metrics()) <= before:
        assert time.monotonic() < until, run.log()
        time.sleep(0.05)
    agent = psutil.Process(run.status["pid"])
    family = [agent, *agent.children(recursive=True)]
    assert sum("workbench.training" in p.cmdline() for p in family) >= 2
    run.kill()
    assert run.state == "lost" and not [p for p in psutil.wait_procs(family, timeout=10)[1]]


def test_what_cannot_be_shared_is_refused_before_anything_starts(tiny, tmp_path):
    for settings, says in (({"workers": 3}, "batches of 4 windows evenly"), ({"gpus": 99}, "this machine has"),
                           ({"workers": 2, "on": "here"}, "one process")):
        with pytest.raises(CannotStart, match=says):
            launch(tiny, run=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()
