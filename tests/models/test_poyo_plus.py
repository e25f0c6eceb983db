"""POYO+ and CaPOYO: several questions to one set of latents; traces as tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_zoo import SESSIONS, toy
from workbench import models
from workbench.analysis.decoding import decode, score, score_classes
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.losses import window_mse
from workbench.session import Series
from workbench.training.recipe import Recipe
from workbench.training.trainer import CannotTrain, train
from workbench.windows import RandomWindows

TASKS = {"side": "classes", "speed": "ordered", "turn": "numbers"}


def asked(session, every=0.5):
    """Beside the velocity: which way it goes, its speed on a scale of three, and twice its first column."""
    clock, velocity, _, _ = session.series["vel"]
    rows = np.arange(0, len(clock), round(every / 0.05))
    speed = np.digitize(velocity[rows, :1], [-0.5, 0.5])
    return replace(session, series={**session.series, "side": Series(clock[rows], velocity[rows, :1] > 0),
                                    "speed": Series(clock[rows], speed), "turn": Series(clock, 2 * velocity[:, :1])})


ASKED = [asked(session) for session in SESSIONS]


def build(sessions=ASKED, name="poyo_plus", **settings):
    torch.manual_seed(0)
    return models.build(name, sessions, target="vel", **SMALL[name] | settings)


def read(model, session, starts, sessions=ASKED):
    return Reader(sessions, ("vel",), also=model.reads).read(session, starts, model.window)


def test_one_task_without_an_embedding_is_poyo():
    poyo, plus = build(name="poyo").eval(), build().eval()
    weights = poyo.state_dict()
    renamed = {key.replace("readout", "readout.0"): value for key, value in weights.items()}
    renamed |= {"tasks": torch.zeros_like(plus.tasks), "readout.0.mean": renamed.pop("mean"),
                "readout.0.scale": renamed.pop("scale")}
    plus.load_state_dict(renamed)
    batch = read(poyo, [0, 1, 1], [1.0, 3.0, 8.0])
    assert torch.equal(plus(batch).behavior, poyo(batch).behavior)
    torch.testing.assert_close(plus.loss(batch)["loss"], poyo.loss(batch)["loss"])
    torch.nn.init.normal_(plus.tasks)
    assert not torch.allclose(plus(batch).behavior, poyo(batch).behavior)


def test_every_task_is_answered_at_its_own_times_in_its_own_way():
    model = build(tasks=TASKS).eval()
    batch = read(model, [0, 1], [1.0, 3.0])
    said = model(batch).tasks
    assert list(said) == ["vel", "side", "speed", "turn"] == ["vel", *model.reads]
    assert {name: tuple(answer.shape) for name, answer in said.items()} == \
        {"vel": (40, 2), "side": (4, 2), "speed": (4, 3), "turn": (40, 1)}
    for name in ("side", "speed"):
        torch.testing.assert_close(said[name].sum(1), torch.ones(4))
    assert torch.equal(model(batch).behavior, said["vel"])


def test_tasks_weigh_by_the_windows_that_have_them():
    model = build(tasks={"turn": "numbers"}).eval()
    batch = read(model, [0, 1, 1], [1.0, 3.0, 8.0])
    turn = batch.targets["turn"]
    first = type(turn)(turn.times[:20], turn.values[:20], turn.offsets.clamp(max=20))   # windows 1 and 2 have none
    batch = replace(batch, targets={**batch.targets, "turn": first})
    said = model(batch).tasks
    each = [window_mse(said[name], batch.targets[name], readout.scale)
            for name, readout in zip(("vel", "turn"), model.readout, strict=True)]
    torch.testing.assert_close(model.loss(batch)["loss"], (3 * each[0] + each[1]) / 4)


def test_gradients_reach_every_task_and_losses_of_all_fall():
    model = build(tasks=TASKS)
    windows = RandomWindows(ASKED, [s.intervals for s in ASKED], duration=1.0, batch_size=8, targets=("vel",),
                            also=model.reads)
    model.loss(windows.batch(0))["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    adam, told = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for k in range(40):
        found = model.loss(windows.batch(k))
        adam.zero_grad()
        found["loss"].backward()
        adam.step()
        told.append([value.item() for value in found.values()])
    assert list(found) == ["vel", "side", "speed", "turn", "loss"]
    assert (np.mean(told[-8:], axis=0) < np.mean(told[:8], axis=0)).all()


def test_sessions_may_lack_a_task_but_not_the_target():
    model = build([ASKED[0], SESSIONS[1]], tasks={"turn": "numbers"})
    batch = read(model, [0, 1], [1.0, 3.0], [ASKED[0], SESSIONS[1]])
    assert batch.targets["turn"].offsets.tolist() == [0, 20, 20]
    assert len(model(batch).tasks["turn"]) == 20 and torch.isfinite(model.loss(batch)["loss"])
    nobody = read(model, [1], [3.0], [ASKED[0], SESSIONS[1]])
    assert list(model(nobody).tasks) == ["vel"] and torch.isfinite(model.loss(nobody)["loss"])


def test_a_class_that_was_not_there_to_build_for_teaches_nothing():
    model = build(tasks={"side": "classes"})
    batch = read(model, [0], [1.0])
    side = batch.targets["side"]
    new = replace(batch, targets={**batch.targets, "side": side._replace(values=torch.full_like(side.values, 7))})
    assert model.loss(new)["side"] == 0 and model.loss(batch)["side"] > 0


@pytest.mark.parametrize(("tasks", "error", "message"), [
    ({"side": "category"}, UnknownName, "no kind 'category' in the task 'side'"),
    ({"sides": "classes"}, UnknownName, "no series 'sides' in the sessions to train on; did you mean side"),
    ({"vel": "classes"}, WorkbenchError, "models are chosen by the R² of numbers"),
    ({"turn": "classes"}, BadRecording, "'turn' holds no classes")])
def test_tasks_that_cannot_be_are_refused(tasks, error, message):
    with pytest.raises(error, match=message):
        build(tasks=tasks)


def test_a_model_of_several_tasks_comes_back_the_same(tmp_path):
    model = build(tasks=TASKS).eval()
    model.save_pretrained(tmp_path / "model")
    again, batch = models.load(tmp_path / "model").eval(), read(model, [0], [1.0])
    assert all(torch.equal(answer, again(batch).tasks[name]) for name, answer in model(batch).tasks.items())


def test_every_task_is_scored_in_its_way():
    model = build(tasks=TASKS).eval()
    held_out = np.array([[4.0, 12.0]])
    turn, side = decode(model, ASKED[0], held_out, "turn"), decode(model, ASKED[0], held_out, "side", step=0.25)
    assert turn.averaged.shape == turn.true.shape and np.isfinite(turn.averaged).all()
    np.testing.assert_allclose(side.averaged[1:].sum(1), 1, atol=1e-5)
    assert "r2" in score(model, ASKED, [held_out] * 2, "turn")

    class Oracle(torch.nn.Module):
        window, warmup, reads = 1.0, 0.0, ("side",)

        def forward(self, batch):
            side = batch.targets["side"].values[:, 0].long()
            return models.base.Output(tasks={"side": torch.nn.functional.one_hot(side, 2).float()})

    found = score_classes(Oracle(), ASKED, [held_out] * 2, "side")
    assert found["accuracy"] == 1 and 0.4 < found["most_frequent"] < 0.9 and found["samples"] > 20
    with pytest.raises(UnknownName, match="no task 'turn'"):
        decode(Oracle(), ASKED[0], held_out, "turn")


def test_a_task_that_is_hardly_ever_sampled_is_scored_as_far_as_it_goes():
    def rare(times):
        return replace(SESSIONS[0], series={**SESSIONS[0].series, "side": Series(times, np.ones((len(times), 1)))})

    model = build([rare(np.array([5.0]))], tasks={"side": "classes"}).eval()
    found = score_classes(model, [rare(np.array([5.0]))], [np.array([[4.0, 12.0]])], "side")
    assert found["samples"] == 1 and found["most_frequent"] == 1
    with pytest.raises(BadRecording, match="'side' holds no classes in the time to train on"):
        build([rare(np.empty(0))], tasks={"side": "classes"})


# CaPOYO

def test_a_token_is_a_cell_in_a_frame_whatever_the_sizes_of_sessions():
    model = build(name="capoyo").eval()
    batch = read(model, [0, 1, 0], [1.0, 3.0, 5.0])
    table, tokens, common, _ = model.tokens(batch)
    assert tokens.sizes == [20 * 8, 20 * 12, 20 * 8] and table.shape == (560, 32) and common.sizes == [0]
    frame, cell = 7, 9
    row = 160 + 12 * frame + cell
    value = SESSIONS[1].series["dF/F"].values[60 + frame, cell]
    expected = torch.cat([model.value(torch.tensor([float(value)])), model.units.weight[1 + 8 + cell]])
    torch.testing.assert_close(table[row], expected)
    assert tokens.times[row].item() == pytest.approx(0.025 + 0.05 * frame, abs=1e-5)


def test_permuting_cells_with_their_traces_changes_nothing_and_other_traces_do():
    session = SESSIONS[0]
    model = build([session], name="capoyo").eval()
    times, values, unit, names = session.series["dF/F"]
    order = np.random.default_rng(0).permutation(8)
    traces = Series(times, values[:, order], unit, tuple(names[i] for i in order))
    shuffled = replace(session, units=session.units.iloc[order], spike_units=np.argsort(order)[session.spike_units],
                       series={**session.series, "dF/F": traces})
    moved = replace(session, series={**session.series, "dF/F": Series(times, values[:, order], unit, names)})
    here, there, other = (model(read(model, [0, 0], [1.0, 5.0], [s])).behavior for s in (session, shuffled, moved))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(here, other, atol=1e-3)


def test_spikes_are_not_looked_at_and_dropped_cells_are_not_there():
    model = build(name="capoyo").eval()
    batch = read(model, [0, 1], [1.0, 3.0])
    silent = batch.drop(torch.ones(len(batch.times), dtype=torch.bool))
    assert torch.equal(model(silent).behavior, model(batch).behavior)
    keep = torch.ones(20, dtype=torch.bool)
    keep[3] = False
    fewer = batch.keep_units(keep)
    assert model.tokens(fewer)[1].sizes == [20 * 7, 20 * 12]
    values = batch.targets["dF/F"].values.clone()
    values[:20, 3] += 5.0                                               # the dropped cell of the first window
    changed = replace(fewer, targets={**fewer.targets, "dF/F": fewer.targets["dF/F"]._replace(values=values)})
    assert torch.equal(model(changed).behavior, model(fewer).behavior)


def test_a_window_between_two_frames_still_gets_an_answer():
    model = build(name="capoyo").eval()
    batch = read(model, [0, 1], [1.0, 3.0])
    frames = batch.targets["dF/F"]
    none = frames._replace(times=frames.times[20:], values=frames.values[20:], offsets=torch.tensor([0, 0, 20]))
    batch = replace(batch, targets={**batch.targets, "dF/F": none})
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.isfinite(model(batch).behavior).all()


def test_a_run_learns_from_traces_without_spikes_and_scores_every_task(tmp_path):
    session = asked(toy("c", 4, 3, seconds=40.0))
    replace(session, spike_times=np.empty(0), spike_units=np.empty(0, int)).save(tmp_path / "c.h5")
    recipe = Recipe(model={"name": "capoyo", "tasks": {"side": "classes", "turn": "numbers"}, **SMALL["capoyo"]},
                    data=str(tmp_path / "c.h5"), target="vel", batch={"size": 4}, threads=1, device="cpu",
                    budget={"steps": 2, "eval_every": 2})
    assert train(recipe, tmp_path / "run") == "finished"
    scores = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]
    assert list(scores) == ["vel", "side", "turn"] and "r2" in scores["turn"]
    assert 0 <= scores["side"]["accuracy"] <= 1
    with pytest.raises(CannotTrain, match="c has no spikes to learn from"):
        train(recipe.with_(model={"name": "poyo"}), tmp_path / "spikes")


def test_traces_are_not_decoded_from_themselves():
    with pytest.raises(WorkbenchError, match="'dF/F' is what CaPOYO sees"):
        build(name="capoyo", tasks={"dF/F": "numbers"})


def test_traces_that_are_nobodys_are_refused():
    session = toy("c", 4, 3)
    traces = session.series["dF/F"]._replace(columns=())
    with pytest.raises(BadRecording, match="the 4 columns of 'dF/F' are not its 4 units by name"):
        build([replace(session, series={**session.series, "dF/F": traces})], name="capoyo")
    with pytest.raises(UnknownName, match="no series 'calcium' in session 'c'"):
        build([session], name="capoyo", calcium="calcium")


def test_a_cell_without_values_is_named_since_it_would_empty_every_frame():
    session = toy("c", 4, 3)
    values = session.series["dF/F"].values.copy()
    values[5:9] = np.nan                                                # some frames may have gaps
    gaps = replace(session, series={**session.series, "dF/F": session.series["dF/F"]._replace(values=values)})
    assert build([gaps], name="capoyo")
    values[:, 2] = np.nan
    with pytest.raises(BadRecording, match=r"no frame of 'dF/F' has a value of every cell \(1 of them .*: u2\)"):
        build([gaps], name="capoyo")
    assert build([gaps.select([0, 1, 3])], name="capoyo")


def test_weights_of_another_model_are_refused():
    with pytest.raises(WorkbenchError, match=r"load them with POYO\.from_torch_brain"):
        models.get("poyo_plus").from_torch_brain("weights.pt")
