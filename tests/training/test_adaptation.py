"""A trained model on a session that it has not met: what moves, what stays to the bit, and what it is worth."""

import math

import numpy as np
import pytest
import torch

import workbench
from tests.models.test_models import SMALL, tuned
from workbench import models
from workbench.analysis.decoding import score
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.base import unit_names
from workbench.nn.factors import spread_windows
from workbench.training.adaptation import CannotAdapt, adapt
from workbench.training.rows import alike
from workbench.windows import RandomWindows, split

KNOWN, NEW = tuned("known", 1), tuned("new", 2)
PARTS = split(NEW)


def trained():
    """A small perceptron that decodes the known session."""
    model = fresh("mlp")
    windows = RandomWindows([KNOWN], [KNOWN.intervals], duration=model.window, batch_size=4, targets=("vel",),
                            align="vel")
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for k in range(60):
        adam.zero_grad()
        model.loss(windows.batch(k))["loss"].backward()
        adam.step()
    return model


def fresh(name: str):
    torch.manual_seed(0)
    return models.build(name, [KNOWN], target="vel", **SMALL[name])


@pytest.fixture(params=["gru", "poyo"])
def model(request):
    return fresh(request.param)


def tables(model) -> dict[str, int]:
    """The names of the tables of units and sessions, and how many rows they had."""
    return {f"{name}.weight": len(m.weight) for name, m in model.named_modules() if hasattr(m, "extend")
            and hasattr(m, "words")}


def test_a_session_may_be_named_and_what_is_no_model_is_told(tmp_path):
    model = fresh("gru")
    assert adapt(model, NEW.save(tmp_path / "new.h5"), steps=1, batch_size=4).session == "new"
    with pytest.raises(UnknownName, match="no dataset 'nobody'"):
        adapt(model, "nobody", steps=1)
    with pytest.raises(CannotAdapt, match=r"is no model; give the model itself .*run.model\(\)"):
        adapt(tmp_path, NEW)


def test_steps_are_told_and_what_is_raised_then_ends_it(model):
    told, learn = [], [name for name, p in model.named_parameters() if p.requires_grad]

    def stop(status):
        told.append(status["step"])
        if status["step"] == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        adapt(model, NEW, steps=9, batch_size=4, on_step=stop)
    assert told == [1, 2, 3] and not model.training
    assert [name for name, p in model.named_parameters() if p.requires_grad] == learn
    adapt(model, NEW, steps=2, batch_size=4, on_step=lambda status: told.append(status["steps"]))
    assert told == [1, 2, 3, 2, 2]


def test_new_rows_alone_make_a_trained_model_decode_a_new_session():
    model = trained()
    adapt(model, NEW, intervals=PARTS["train"], steps=0)
    assert score(model, [NEW], [PARTS["test"]], "vel")["r2"] < 0.1
    adapt(model, NEW, intervals=PARTS["train"], steps=60, lr=2e-2, batch_size=4)
    assert score(model, [NEW], [PARTS["test"]], "vel")["r2"] > 0.4


def test_only_new_rows_move_in_identification(model):
    before, rows = {k: v.clone() for k, v in model.state_dict().items()}, tables(model)
    found = adapt(model, NEW, "identify", steps=9)
    for name, now in model.state_dict().items():
        assert torch.equal(now[:rows[name]] if name in rows else now, before[name]), name
    assert all(now.shape != before[name].shape for name, now in model.state_dict().items() if name in rows)
    widths = [p.shape[1] for n, p in model.named_parameters() if n in rows and p.requires_grad]
    units, session = widths                                             # one table of each kind, both as wide
    assert found.parameters == 20 * units + session and found.steps == 9 and found.seconds > 0
    assert all(p.requires_grad for n, p in model.named_parameters() if "rates" not in n)


def test_rows_of_units_that_fire_alike_move_alike_where_a_model_asks_for_it():
    common = alike(spread_windows(NEW.within(PARTS["train"]), 1.0, 1000).counts(0.05))         # [20, 2]
    assert models.get("neurobridge").rows_alike and not models.get("poyo").rows_alike

    def shared(trust: bool, how: str = "identify") -> float:
        """How much of how rows move lies in what units have in common, as a share of all."""
        torch.manual_seed(0)
        model = models.build("neurobridge", [KNOWN], **SMALL["neurobridge"])
        model.rows_alike, before = trust, None
        for steps in (0, 10):                                           # first it is recognised alone
            adapt(model, NEW, how, intervals=PARTS["train"], steps=steps, batch_size=4)
            rows = model.units.weight[model.units.rows(unit_names([NEW]))].detach().clone()
            before = rows if before is None else before
        return ((common.T @ (rows - before)).norm() / (rows - before).norm()).item()

    one, other = shared(False), shared(True)
    assert one < 0.7 and other > 0.9, (one, other)
    assert shared(True, "finetune") == shared(False, "finetune")       # the rest of the network learns what is shared


def test_fine_tuning_moves_everything_but_the_rows_of_other_sessions(model):
    before, rows = {k: v.clone() for k, v in model.state_dict().items()}, tables(model)
    found = adapt(model, NEW, "finetune", intervals=PARTS["train"], steps=9)
    learnt = [name for name, p in model.named_parameters() if p.requires_grad]
    for name in learnt:
        now = model.state_dict()[name]
        assert torch.equal(now[:rows[name]], before[name]) if name in rows else not torch.equal(now, before[name]), name
    assert found.parameters > sum(p.numel() for n, p in model.named_parameters() if n not in rows)


def test_the_first_third_of_fine_tuning_is_identification(model):
    before, rows = {k: v.clone() for k, v in model.state_dict().items()}, tables(model)
    seen, loss = [], model.loss

    def look(batch):
        seen.append(all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k not in rows))
        return loss(batch)

    model.loss = look
    adapt(model, NEW, "finetune", steps=6)
    assert seen == [True, True, True, False, False, False]


def test_rows_of_units_with_the_same_name_are_lent_without_a_step(model):
    adapt(model, NEW, like="known", steps=0)
    table = next(m for n, m in model.named_modules() if f"{n}.weight" in tables(model) and m.kind == "unit"
                 and m.weight.requires_grad)
    rows = lambda session: table.weight[table.rows([f"{session}/u{i}" for i in range(20)])]
    assert torch.equal(rows("new"), rows("known"))


def test_rows_are_lent_by_electrode_in_whatever_order(model):
    order = np.random.default_rng(0).permutation(20)
    KNOWN.units["electrode"], moved = np.arange(20), tuned("moved", 1)
    moved = moved.select(np.arange(20))
    moved.units["electrode"] = moved.units["id"].str[1:].astype(int)[order].to_numpy()
    adapt(model, moved, like=KNOWN, by="electrode", steps=0)
    table = next(m for n, m in model.named_modules() if f"{n}.weight" in tables(model) and m.kind == "unit"
                 and m.weight.requires_grad)
    for here, there in enumerate(order):
        one, other = table.rows([f"moved/u{here}", f"known/u{there}"])
        assert torch.equal(table.weight[one], table.weight[other])


def test_an_adapted_model_is_saved_with_its_new_rows(model, tmp_path):
    adapt(model, NEW, steps=2)
    model.save_pretrained(tmp_path / "model")
    again = models.load(tmp_path / "model").eval()
    batch = Reader([NEW], ("vel",)).read([0], [5.0], model.window)
    assert torch.equal(model(batch).behavior, again(batch).behavior)


def test_the_same_seed_adapts_to_the_same_weights_and_leaves_the_random_numbers_alone():
    def once():
        model = fresh("gru")
        torch.manual_seed(5)
        adapt(model, NEW, steps=3)
        return model.state_dict(), torch.rand(1)
    (one, drawn), (two, again) = once(), once()
    torch.manual_seed(5)
    assert torch.equal(drawn, again) and torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_stitcher_is_refitted_alone_and_a_model_without_one_is_refused():
    model = fresh("gru")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    adapt(model, NEW, "stitcher", steps=3)
    now = model.state_dict()
    moved = {k for k in before if now[k].shape != before[k].shape}
    assert moved == {"read_in.units.weight", "read_in.bias.weight", "standard.rates.weight"}
    assert all(torch.equal(now[k][:len(before[k])], before[k]) for k in before if before[k].ndim)
    with pytest.raises(CannotAdapt, match="'poyo' keeps no maps of its own for every session"):
        adapt(fresh("poyo"), NEW, "stitcher")


@pytest.mark.parametrize("name", ["lfads", "ldns"])
def test_what_a_frozen_model_counts_and_averages_stays(name):
    torch.manual_seed(0)
    model = models.build(name, [KNOWN], **SMALL[name])
    before = {key: value.clone() for key, value in model.named_buffers()}
    assert before
    adapt(model, NEW, "stitcher", steps=2, batch_size=2)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    adapt(model, NEW, "finetune", steps=2, batch_size=2)
    assert not all(torch.equal(value, before[key]) for key, value in model.named_buffers())


def test_an_identity_is_read_off_without_labels_or_gradients():
    class Reads(torch.nn.Module):
        name, decodes, seen = "reads", True, None

        def identify(self, session, intervals):
            self.seen = session.id, intervals

    model = Reads()
    with pytest.raises(CannotAdapt, match=r"keeps no rows of units and sessions.*choose how='identity'"):
        adapt(model, NEW)
    found = workbench.adapt(model, NEW, "identity", intervals=[[0, 10]])
    assert model.seen[0] == "new" and model.seen[1].tolist() == [[0, 10]]
    assert found.steps == found.parameters == 0 and math.isnan(found.loss)


def test_a_model_without_rows_is_fine_tuned_as_a_whole():
    model = models.build("spint", [KNOWN], target="vel", **SMALL["spint"])
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    found = adapt(model, NEW, "finetune", steps=2, batch_size=2)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert found.parameters == sum(p.numel() for p in before.values())


def test_the_series_may_be_called_otherwise():
    renamed = tuned("renamed", 2)
    renamed.series["velocity"] = renamed.series.pop("vel")
    with pytest.raises(UnknownName, match="no series 'vel'"):
        adapt(fresh("gru"), renamed, steps=1)
    assert adapt(fresh("gru"), renamed, steps=1, target="velocity").loss > 0


def test_what_cannot_be_done_is_refused_in_a_sentence():
    with pytest.raises(UnknownName, match="no way to adapt 'identfy'; did you mean identify"):
        adapt(fresh("gru"), NEW, "identfy")
    with pytest.raises(WorkbenchError, match="'ridge' is solved at once"):
        adapt(models.build("ridge", [KNOWN], target="vel"), NEW)
    with pytest.raises(CannotAdapt, match="'gru' does not read who a unit is"):
        adapt(fresh("gru"), NEW, "identity")
    with pytest.raises(CannotAdapt, match="no unit of 'new' agrees in 'id' with a unit of 'knwon'"):
        adapt(fresh("gru"), NEW, like="knwon", steps=0)
    with pytest.raises(UnknownName, match="no column 'electrode'"):
        adapt(fresh("gru"), NEW, like=tuned("known"), by="electrode", steps=0)
