"""Several processes as one run: the batches and weights of one alone, and nothing lost when one of them dies."""

import os
import time

import psutil
import pytest
import torch
from torch import distributed, nn

from workbench.nn.vocabulary import Vocabulary
from workbench.sources.simulated import reach_sim
from workbench.training import checkpoint, loop
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


def windows(k: int = 3, **settings):
    session = reach_sim(seconds=30, units=8)
    return RandomWindows([session], [split(session)["train"]], duration=1.0, batch_size=6, targets=("hand_vel",),
                         **settings).batch(k)


def shares(batch, size: int) -> list:
    return [Ranks(rank, size).share(batch) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_shares_are_the_windows_of_the_batch_whatever_the_number_of_processes(size):
    batch = windows(drop_units=0.4)
    parts = shares(batch, size)
    starts = batch.starts.tolist()
    assert len(set(starts)) == 6 and sorted(torch.cat([part.starts for part in parts]).tolist()) == sorted(starts)
    assert {len(part) for part in parts} == {6 // size}
    for part in parts:
        for i, b in enumerate(starts.index(start) for start in part.starts.tolist()):
            of = lambda packed, offsets, at: packed[offsets[at]:offsets[at + 1]]
            for name, by in (("times", "offsets"), ("units", "offsets"), ("window_units", "unit_offsets")):
                assert torch.equal(of(getattr(part, name), getattr(part, by), i),
                                   of(getattr(batch, name), getattr(batch, by), b))
            a, whole = part.targets["hand_vel"], batch.targets["hand_vel"]
            assert torch.equal(of(a.values, a.offsets, i), of(whole.values, whole.offsets, b))
    assert torch.equal(batch.take(torch.arange(6)).times, batch.times)


def test_shares_hold_about_as_many_spikes_as_each_other():
    whole = windows(drop_spikes=0.3)
    full = torch.tensor([True, False] * 3)                              # all of rank 0, dealt plainly
    batch = whole.drop((torch.arange(len(whole.times)) % 8 > 0) & ~full[whole.windows])
    spikes = lambda parts: [len(part.times) for part in parts]
    dealt = spikes(shares(batch, 2))
    plain = spikes([batch.take(torch.arange(rank, 6, 2)) for rank in range(2)])
    assert sum(dealt) == sum(plain) == len(batch.times)
    assert max(dealt) < 0.8 * max(plain) and max(dealt) < 1.6 * min(dealt)
    assert [part.starts.tolist() for part in shares(batch, 2)] == [part.starts.tolist() for part in shares(batch, 2)]


class Looked(nn.Module):
    """A table of which a step touches few rows, one of which it touches most, a small one, and a map of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.units = Vocabulary("unit", map(str, range(4095)), 16)
        self.dense = nn.Embedding(1024, 64)
        self.small = Vocabulary("session", "abc", 16)
        self.map, self.unused = nn.Linear(16, 4), nn.Parameter(torch.ones(3))

    def forward(self, rank: int, step: int) -> torch.Tensor:
        rows = torch.tensor([1, 7, 7, 40 + step]) if rank else torch.tensor([7, 3000 - step])
        use = self.dense(torch.arange(rank, 1024, 2)).square().sum() if step else self.dense(torch.tensor([rank])).sum()
        if rank:
            use = use + self.unused.sum()                               # of which rank 0 has no gradient
        return use + self.map(self.units(rows) + self.small(torch.tensor([1 + rank]))).exp().sum()


def step_together(rank: int, folder: str) -> None:
    """Two steps of AdamW with gradients averaged as `Ranks` does and, of a copy, as one dense message."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sent, reduce = [], distributed.all_reduce
    distributed.all_reduce = lambda x, *how: (sent.append(x.numel() * x.element_size()), reduce(x, *how))[1]
    found, model, dense = {}, Looked(), Looked()
    adams = [torch.optim.AdamW(each.parameters(), lr=0.1) for each in (model, dense)]
    for step in range(2):
        for each, adam in zip((model, dense), adams, strict=True):
            adam.zero_grad()
            each(rank, step).backward()
        sent.clear()
        Ranks(rank, 2).average_gradients_(model)
        found[f"sent {step}"] = sum(sent)
        for p in dense.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            reduce(p.grad)
            p.grad /= 2
        found[f"same gradients {step}"] = all(torch.equal(a.grad, b.grad) for a, b in
                                              zip(model.parameters(), dense.parameters(), strict=True))
        for adam in adams:
            adam.step()
    found["same weights"] = all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))
    found["dense"] = sum(p.numel() * p.element_size() for p in dense.parameters())
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)                                                         # not by way of what pytorch#179291 tells of


def test_of_large_tables_only_touched_rows_are_sent_and_the_step_is_the_dense_one(tmp_path):
    torch.multiprocessing.spawn(step_together, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == two
    assert one["same gradients 0"] and one["same gradients 1"] and one["same weights"]
    rest = (4 * 16 + 16 * 4 + 4 + 3) * 4                                # bytes of the small table, the map, the unused
    asked = 4096 + 1024                                                 # one a row of the large tables
    assert one["sent 0"] == rest + asked + 4 * (4 * 16 + 2 * 64)        # rows 1, 7, 40 and 3000; 0 and 1
    assert one["sent 1"] == rest + asked + 4 * (4 * 16 + 1024 * 64)     # all of what is mostly touched
    assert one["sent 0"] < one["dense"] / 50


def average_together(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    own = {"loss": 1.0 + rank, **({"speed": 3.0, "neuron": 5.0} if rank else {"temporal": 4.0})}
    found = Ranks(rank, 2).average({name: torch.tensor(value) for name, value in own.items()})
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)


def test_a_loss_that_one_rank_alone_has_is_its_mean_there(tmp_path):
    """A share may hold no sample of a task, and a mode of masking is drawn by each rank for itself."""
    torch.multiprocessing.spawn(average_together, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one == two == {"loss": 1.5, "temporal": 4.0, "speed": 3.0, "neuron": 5.0}


def test_a_loss_that_one_piece_alone_has_is_its_mean_there():
    weight, said = torch.zeros((), requires_grad=True), iter([{"neuron": 3.0}, {"temporal": 5.0}, {"neuron": 4.0}])
    found = loop._gradient(lambda batch: {"loss": weight + 1, **{k: torch.tensor(v) for k, v in next(said).items()}},
                           windows(), 3)
    assert found == {"loss": 1.0, "neuron": 3.5, "temporal": 5.0} and weight.grad == pytest.approx(1.0)


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


def more_rows(run: Run, than: int) -> None:
    until = time.monotonic() + 120
    while len(run.metrics()) <= than:
        assert time.monotonic() < until, run.log()
        time.sleep(0.05)


def test_stopped_it_goes_on_with_as_many_and_killed_none_is_left(tiny, two, tmp_path):
    long = tiny.with_(budget={"steps": 100_000, "eval_every": 50_000})
    run = launch(long, run=tmp_path / "run", workers=2)
    more_rows(run, 0)
    assert run.stop().wait(60).state == "stopped" and len(checkpoint.newest(run.path / "checkpoints")["random"]) == 2
    before = len(run.metrics())
    run.resume()
    more_rows(run, before)
    psutil.Process(run.status["pid"]).terminate()                       # as a cluster's queue ends a job
    assert run.wait(60).state == "stopped"
    before = len(run.metrics())
    assert before == checkpoint.newest(run.path / "checkpoints")["step"]
    run.resume()
    more_rows(run, before)
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
