"""POYO: the published sizes, torch_brain's numbers, and what its structure promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_batch import SESSIONS, read, recording
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.models.poyo import POYO


def small(sessions=tuple(SESSIONS), **settings) -> POYO:
    torch.manual_seed(0)
    settings = dict(dim=32, depth=2, latents=4, head_dim=16, cross_heads=2, self_heads=2, t_min=0.01) | settings
    return POYO.for_sessions(list(sessions), target="vel", **settings).eval()


def without_tables(model) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("units", "sessions")))


@pytest.mark.parametrize(("size", "parameters"), [("1.3M", 1_254_018), ("11.8M", 11_717_378)])
def test_published_sizes_have_exactly_the_published_parameters(size, parameters):
    assert without_tables(POYO(units=[], sessions=[], target="vel", outputs=2, **POYO.SIZES[size])) == parameters


@pytest.mark.parametrize("size", [dict(dim=64, depth=6, num_latents_per_step=16, cross_heads=2, atn_dropout=0.2),
                                  dict(dim=128, depth=3, num_latents_per_step=32, cross_heads=4)])
def test_torch_brain_weights_give_torch_brain_outputs_and_gradients_on_mixed_sessions(size):
    models = pytest.importorskip("torch_brain.models")
    from benchmarks.torch_brain_inputs import PaddedInputs
    torch.manual_seed(1)
    theirs = models.POYO(sequence_length=1.0, latent_step=0.125, dim_out=2, **size).eval()
    names = [[f"{s.id}/{u}" for u in s.units["id"]] for s in SESSIONS]
    theirs.unit_emb.initialize_vocab([name for part in names for name in part])
    theirs.session_emb.initialize_vocab([s.id for s in SESSIONS])
    weights = theirs.state_dict()
    ours = POYO.from_torch_brain(weights, target="vel").eval()
    assert "unit_emb.vocab" in weights                                  # what was given is left as it was

    index, starts = np.array([0, 1, 1, 2, 0]), np.array([0.3, 4.0, 8.7, 1.0, 6.6])
    batch = read(index, starts)
    inputs = PaddedInputs(SESSIONS, [theirs.unit_emb.tokenizer(part) for part in names],
                          theirs.session_emb.tokenizer([s.id for s in SESSIONS]),
                          latents=size["num_latents_per_step"])(index, starts)
    inputs["input_timestamps"] = inputs["input_timestamps"].float().double()    # batches hold float32 times
    target = batch.targets["vel"]
    there = torch.arange(int(target.offsets.diff().max())) < target.offsets.diff()[:, None]
    asked = torch.zeros(there.shape, dtype=torch.float64)
    asked[there] = target.times.double()

    want, have = theirs(**inputs, output_timestamps=asked)[there], ours(batch).behavior
    assert (want - have).abs().max() < 1e-5
    weight = torch.randn_like(want)
    (want * weight).mean().backward(), (have * weight).mean().backward()
    from workbench.models.poyo import _our_name
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert (parameter.grad - mine[_our_name(name)].grad).abs().max() < 1e-5, name


def test_checkpoints_of_torch_brain_load_as_plain_tensors(tmp_path):
    models = pytest.importorskip("torch_brain.models")
    theirs = models.POYO(sequence_length=2.0, latent_step=0.25, dim_out=3, dim=64, num_latents_per_step=8)
    theirs.unit_emb.initialize_vocab(["a/u0", "a/u1"])
    theirs.session_emb.initialize_vocab(["a"])
    torch.save({"state_dict": {f"model.{k}": v for k, v in theirs.state_dict().items()},
                "hyper_parameters": {"model": {"sequence_length": 2.0, "latent_step": 0.25}}}, tmp_path / "last.ckpt")
    ours = POYO.from_torch_brain(tmp_path / "last.ckpt")
    assert ours.window == 2.0 and len(ours.latent_times) == 8 * 8 and ours.units.words == ["a/u0", "a/u1"]
    assert torch.equal(ours.readout.weight, theirs.readout.weight)
    with pytest.raises(WorkbenchError, match="no weights of torch_brain's POYO"):
        POYO.from_torch_brain({"weight": torch.zeros(2)})


def test_permuting_units_with_their_spikes_changes_nothing():
    session = recording("a", 6, 500)
    order = np.random.default_rng(0).permutation(6)
    shuffled = replace(session, units=session.units.iloc[order], spike_units=np.argsort(order)[session.spike_units])
    model = small([session])
    here, there = (model(Reader([s], ("vel",)).read([0, 0], [1.0, 5.0], 1.0)).behavior for s in (session, shuffled))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)


def test_windows_of_a_batch_do_not_see_each_other():
    model, batch = small(), read([0, 1, 2], [1.0, 2.0, 3.0])
    together = model(batch).behavior
    alone = torch.cat([model(read([s], [t])).behavior for s, t in ((0, 1.0), (1, 2.0), (2, 3.0))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_silent_unit_is_seen_and_a_missing_one_is_not():
    model, batch = small(), read([1], [2.0])
    silent = torch.zeros(12, dtype=torch.bool)
    silent[4] = True
    spikes_gone = batch.drop(silent[batch.units])
    never_there = batch.keep_units(~silent)
    assert not torch.allclose(model(spikes_gone).behavior, model(never_there).behavior, atol=1e-6)


def test_an_empty_window_still_gets_an_answer():
    model, batch = small(), read([2, 0], [0.5, 1.0])
    nobody = batch.keep_units(torch.zeros(len(batch.window_units), dtype=torch.bool))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert torch.isfinite(model(batch).behavior).all() and torch.isfinite(model(nobody).behavior).all()


def test_the_ways_with_and_without_gradients_agree():
    """With them spikes and edges are one sequence; without, their attentions are merged, and edges shared."""
    model, batch = small(), read([0, 1, 1, 2, 0, 1], [1.0, 2.0, 7.5, 0.5, 3.0, 4.0])
    some = batch.keep_units(torch.arange(len(batch.window_units)) % 7 > 0)
    for windows in (batch, some, some.drop(some.windows == 1)):
        learning = model(windows)
        with torch.no_grad():
            told = model(windows)
        torch.testing.assert_close(told.behavior, learning.behavior, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(told.latents, learning.latents, atol=1e-6, rtol=1e-5)


def test_a_unit_never_seen_is_refused_by_name():
    with pytest.raises(UnknownName, match="no unit 'b/u0' in the model's vocabulary"):
        small([SESSIONS[0]])(read([1], [0.0]))


def test_another_window_length_is_refused():
    with pytest.raises(WorkbenchError, match="built for windows of 1 s and was given 2 s"):
        small()(read([0], [0.0], duration=2.0))


def test_predictions_come_in_the_units_of_the_behaviour():
    session = recording("a", 5, 400)
    session.series["vel"] = session.series["vel"]._replace(values=session.series["vel"].values * [100, 1] + [5, -3])
    model = small([session])
    behavior = model(Reader([session], ("vel",)).read([0], [0.0], 1.0)).behavior
    assert 50 < model.scale[0] < 200 and (behavior - model.mean).abs()[:, 1].max() < 5


def test_a_saved_model_comes_back_the_same(tmp_path):
    from workbench import models
    model, batch = small(), read([0, 1], [1.0, 2.0])
    model.save_pretrained(tmp_path / "model")
    again = models.load(tmp_path / "model").eval()
    assert torch.equal(model(batch).behavior, again(batch).behavior)
