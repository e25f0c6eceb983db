"""Resuming and scoring. Weights are compared, not losses: a forgotten average of the weights leaves losses equal."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch

from tests.models.test_zoo import build, sampler
from workbench import models
from workbench.nn.vocabulary import Vocabulary
from workbench.sources.simulated import reach_sim
from workbench.training import checkpoint, loop
from workbench.training.loop import Diverged, learning_rate
from workbench.training.recipe import Optim
from workbench.training.run import Run
from workbench.training.trainer import FolderInUse, train


def die_at(recipe, folder, step, stage):
    def look(status):
        if status["stage"] == stage and status.get("part_step" if "baseline" in stage else "step") == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(recipe, folder, on_step=look)


@pytest.fixture(scope="module")
def kill_at():
    """Train in a process of its own that dies without a word at `step`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["workbench.training.trainer"])      # torch is imported once, not once a kill

    def run(recipe, folder, step, stage="training"):
        process = context.Process(target=die_at, args=(recipe, folder, step, stage))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    return run


def equal(a, b) -> bool:
    """Whether two checkpoints hold the same numbers, all the way down."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or (a != a and b != b)


def final(folder) -> dict:
    state = checkpoint.newest(folder / "checkpoints")
    return {k: v for k, v in state.items() if k != "seconds"}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The uninterrupted run that the killed ones are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(tiny, folder) == "finished"
    return folder


SOME = sorted(random.Random().sample(range(1, 41), k=20))               # one that was saved does not come again


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("steps", [(3,), (random.Random().randint(6, 39), 40),
                                   pytest.param(SOME, marks=pytest.mark.slow, id="twenty")])
def test_a_killed_run_resumes_to_the_weights_it_would_have_had(kill_at, tiny, whole, tmp_path, steps):
    for step in steps:
        kill_at(tiny, tmp_path, step)
        assert Run(tmp_path).state == "lost"
        for path in checkpoint.listed(tmp_path / "checkpoints"):
            assert torch.load(path, weights_only=True)["step"] % 5 == 0
    assert train(tiny, tmp_path) == "finished"
    assert equal(final(tmp_path), final(whole)), f"killed at {steps}"
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (whole / weights).read_bytes()
    assert Run(tmp_path).result()["scores"] == Run(whole).result()["scores"]
    assert Run(tmp_path).metrics()["loss"].tolist() == Run(whole).metrics()["loss"].tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_run_killed_in_a_baseline_resumes_there(kill_at, tiny, tmp_path):
    recipe = tiny.with_(baselines={"ridge": {}, "gru": {"model": {"name": "gru", "dim": 16, "window": 1.0},
                                                        "budget": {"steps": 20, "eval_every": 10}}})
    kill_at(recipe, tmp_path, 12, stage="baseline gru: training")
    done = [tmp_path / "scores.json", tmp_path / "baselines/ridge/result.json"]
    before = [path.stat().st_mtime_ns for path in done]
    assert train(recipe, tmp_path) == "finished"
    assert [path.stat().st_mtime_ns for path in done] == before
    result = Run(tmp_path).result()
    assert set(result["baselines"]) == {"ridge", "gru"}
    for scores in (result["scores"], *result["baselines"].values()):
        assert len(scores["hand_vel"]["r2_per_dim"]) == 2
        assert scores["hand_vel"]["r2"] <= 1


@pytest.mark.parametrize(("left_out", "same_losses", "same_weights"), [
    ("nothing", True, True),
    ("the step", False, False),
    ("the moments of Adam", False, False),
    ("the average of the weights", True, False),                        # which losses alone would not show
    ("the random numbers of torch", False, False),
    ("the random numbers of numpy and python", True, True),             # nothing draws from them
])
def test_what_a_checkpoint_has_to_hold(tiny, whole, tmp_path, left_out, same_losses, same_weights):
    """Stopped at step 23 and gone on with, one thing left out, against a run that was never stopped."""
    def stop(status):
        if status.get("step") == 23:
            (tmp_path / "STOP").touch()

    assert train(tiny, tmp_path, on_step=stop) == "stopped"
    (tmp_path / "STOP").unlink()
    state, path = checkpoint.newest(tmp_path / "checkpoints"), checkpoint.listed(tmp_path / "checkpoints")[-1]
    rng = state["random"][0]
    if left_out == "the step":
        state["step"] = 22
    elif left_out == "the moments of Adam":
        state["optimizer"]["state"] = {}
    elif left_out == "the average of the weights":
        state["ema"] = {name: value.clone() for name, value in state["model"].items()}
    elif left_out == "the random numbers of torch":
        rng["torch"] = torch.Generator().manual_seed(5).get_state()
    elif left_out == "the random numbers of numpy and python":
        rng["numpy"][1] = rng["numpy"][1].roll(1)
        rng["python"] = random.Random(5).getstate()
    torch.save(state, path)
    assert train(tiny, tmp_path) == "finished"
    losses = [Run(each).metrics().set_index("step")["loss"].to_dict() for each in (tmp_path, whole)]
    assert (losses[0] == losses[1]) == same_losses
    ours, theirs = final(tmp_path), final(whole)
    assert (equal(ours["model"], theirs["model"]) and equal(ours["ema"], theirs["ema"])) == same_weights


def test_stop_saves_a_checkpoint_and_the_resumed_run_ends_with_the_same_weights(tiny, whole, tmp_path):
    def stop(status):
        if status.get("step") == 17:
            (tmp_path / "STOP").touch()

    assert train(tiny, tmp_path, on_step=stop) == "stopped"
    assert checkpoint.newest(tmp_path / "checkpoints")["step"] == 17
    assert Run(tmp_path).state == "stopped"
    (tmp_path / "STOP").unlink()
    assert train(tiny, tmp_path) == "finished"
    assert equal(final(tmp_path), final(whole))


def test_the_result_says_what_it_was_measured_on(whole):
    result = json.loads((whole / "result.json").read_text())
    protocol = result["protocol"]
    assert protocol["simulated"] is True and protocol["recordings"][0]["id"] == "reach-sim-0-0"
    parts = protocol["split"]["reach-sim-0-0"]
    assert parts["train"][-1][1] <= parts["valid"][0][0] and parts["valid"][-1][1] <= parts["test"][0][0]
    assert protocol["seed"] == 0 and protocol["steps"] == 40 and protocol["best_step"] in (10, 20, 30, 40)
    assert protocol["parameters"] > 0 and protocol["wall_s"] > 0 and protocol["machine"]["threads"] == 1


def test_the_final_weights_are_the_best_on_the_validation_part(whole):
    metrics = Run(whole).metrics()
    best = metrics.loc[metrics["valid"].idxmax()]
    state = final(whole)
    assert state["best"]["step"] == best["step"] and state["best"]["valid"] == best["valid"]
    model = Run(whole).model()
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["best"]["weights"][name]), name


def test_a_checkpoint_is_written_when_it_is_asked_for_and_changes_nothing(tiny, whole, tmp_path):
    there = {}

    def ask(status):
        if status.get("step") == 12:
            (tmp_path / "SAVE").touch()
        there[status.get("step")] = [path.stem for path in checkpoint.listed(tmp_path / "checkpoints")]

    assert train(tiny, tmp_path, on_step=ask) == "finished"
    assert "step-000000013" in there[13] and not (tmp_path / "SAVE").exists()
    assert equal(final(tmp_path), final(whole))


def test_rows_say_the_memory_and_where_there_are_several_sessions_the_score_of_each(tiny, recording, whole, tmp_path):
    other = tmp_path / "other.h5"
    reach_sim(1, seconds=40, units=12).save(other)
    recipe = tiny.with_(data=[str(recording), str(other)], budget={"steps": 6, "eval_every": 3})
    assert train(recipe, tmp_path / "run") == "finished"
    metrics = Run(tmp_path / "run").metrics()
    assert 0.01 < metrics["memory_gb"].min() < 100
    for _, row in metrics.dropna(subset="valid").iterrows():
        assert np.mean(list(row["valid_sessions"].values())) == pytest.approx(row["valid"])
    assert metrics["valid_sessions"].notna().tolist() == [False, False, True] * 2
    assert "valid_sessions" not in Run(whole).metrics()


def test_only_two_checkpoints_are_kept_and_they_hold_plain_data_only(whole):
    paths = checkpoint.listed(whole / "checkpoints")
    assert [torch.load(p, weights_only=True)["step"] for p in paths] == [35, 40]
    assert {"model", "ema", "best", "optimizer", "random", "step"} <= set(torch.load(paths[-1], weights_only=True))


def test_a_damaged_newest_checkpoint_is_passed_over(whole, tmp_path):
    for path in checkpoint.listed(whole / "checkpoints"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    newest = checkpoint.listed(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    said = []
    assert checkpoint.newest(tmp_path, said.append)["step"] == 35
    assert newest.name in said[0]


def small_disk(recipe, folder):
    """Train where, from step 12 on, no file can grow as large as a checkpoint."""
    import resource

    def look(status):
        if status.get("step") == 12:
            size = checkpoint.listed(folder / "checkpoints")[-1].stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    try:
        train(recipe, folder, on_step=look)
    except checkpoint.CannotSave:
        os._exit(7)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX")
def test_a_full_disk_is_told_in_a_sentence_and_the_last_whole_checkpoint_stays(tiny, whole, tmp_path):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=small_disk, args=(tiny, tmp_path))
    process.start()
    process.join(120)
    assert process.exitcode == 7
    run = Run(tmp_path)
    assert run.state == "failed" and "checkpoint of step 15 could not be written" in run.error
    assert "run.resume() goes on from step 10" in run.error
    assert sorted(path.stem for path in (tmp_path / "checkpoints").iterdir()) == ["step-000000005", "step-000000010"]
    assert train(tiny, tmp_path) == "finished"
    assert equal(final(tmp_path), final(whole))


def test_all_random_generators_come_back(tmp_path):
    checkpoint.save(tmp_path, {"step": 1, "random": [checkpoint.random_state()]})
    drawn = torch.rand(3), np.random.rand(3), random.random()
    checkpoint.restore_random(checkpoint.newest(tmp_path)["random"])
    again = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(drawn[0], again[0]) and (drawn[1] == again[1]).all() and drawn[2] == again[2]


def test_looking_for_the_fastest_threads_changes_neither_weights_nor_random_numbers(tiny, tmp_path):
    train(tiny.with_(threads=None), tmp_path / "chosen")
    chosen = json.loads((tmp_path / "chosen" / "resolved.json").read_text())["threads"]
    assert 1 <= chosen <= torch.get_num_threads()
    train(tiny.with_(threads=chosen), tmp_path / "told")
    one, two = (models.load(tmp_path / name / "model").state_dict() for name in ("chosen", "told"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_looking_for_the_fastest_threads_counts_nothing_for_the_model():
    """LFADS counts steps, LDNS averages what it has seen."""
    for name in ("lfads", "ldns"):
        model = build(name)
        model.train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        loop.fastest_threads(model, sampler(model).batch, model.loss)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), name


def test_a_checkpoint_is_kept_beside_later_ones_that_cannot_be_read(tmp_path):
    for step in (200, 300):
        (tmp_path / f"step-{step:09d}.pt").write_bytes(b"damaged")
    for step in (100, 110, 120):
        checkpoint.save(tmp_path, {"step": step})
    assert checkpoint.newest(tmp_path)["step"] == 120
    assert [path.name for path in checkpoint.listed(tmp_path)][:2] == ["step-000000110.pt", "step-000000120.pt"]


def test_training_here_leaves_the_kernels_threads_and_random_numbers_alone(tiny, tmp_path):
    torch.manual_seed(1)
    threads, expected = torch.get_num_threads(), torch.rand(1)
    torch.manual_seed(1)
    train(tiny.with_(budget={"steps": 2}), tmp_path)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(1), expected)


def test_norms_biases_and_levels_of_units_do_not_decay():
    vectors, levels = Vocabulary("unit", "abc", 5), Vocabulary("unit", "abc", 1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), vectors, levels)
    groups = loop.optimizer(model, Optim(weight_decay=0.1)).param_groups
    shapes = [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups]
    assert shapes == [(0.1, [(4, 3), (4, 5)]), (0.0, [(4,), (4,), (4,), (4, 1)])]


def test_the_learning_rate_rises_and_then_falls_to_its_floor():
    optim = Optim(lr=1.0, warmup=10, floor=0.1)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0) == max(rates)
    assert (np.diff(rates[:10]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert 0.1 < rates[-1] < 0.11


def test_a_loss_that_is_no_number_ends_the_run_in_one_sentence(tiny, tmp_path):
    with pytest.raises(Diverged, match=r"optim\.lr"):
        train(tiny.with_(optim={"lr": 1e30, "warmup": 0, "clip": 0}), tmp_path)
    run = Run(tmp_path)
    assert run.state == "failed" and "optim.lr" in run.error and "Traceback" not in run.log()


def test_a_series_that_is_not_there_is_told_with_those_that_are(tiny, tmp_path):
    with pytest.raises(LookupError, match="hand_vel"):
        train(tiny.with_(target="hand_velo"), tmp_path)
    assert "hand_vel" in Run(tmp_path).error


def test_without_a_target_the_series_are_listed(tiny, tmp_path):
    with pytest.raises(ValueError, match="hand_pos, hand_vel"):
        train(tiny.with_(target=None), tmp_path)


def test_a_run_goes_on_only_with_the_recording_it_began_with(tiny, tmp_path):
    from workbench.sources.simulated import reach_sim
    path = tmp_path / "a.h5"
    reach_sim(seconds=30, units=12).save(path)
    recipe = tiny.with_(data=str(path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "STOP").touch()
    assert train(recipe, tmp_path / "run") == "stopped"
    (tmp_path / "run" / "STOP").unlink()
    reach_sim(seconds=30, units=13).save(path)
    with pytest.raises(ValueError, match="recordings"):
        train(recipe, tmp_path / "run")


def test_a_folder_has_one_writer(tiny, tmp_path):
    from filelock import FileLock
    with FileLock(tmp_path / "lock"), pytest.raises(FolderInUse, match="another process"):
        started = time.monotonic()
        train(tiny, tmp_path)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "status.json").exists()
