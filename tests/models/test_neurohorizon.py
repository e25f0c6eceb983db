"""NeuroHorizon: what lies after the origin is never seen, bin by bin and at once are one, units have no order."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_spint import shuffled
from tests.models.test_zoo import SESSIONS, toy
from workbench import models
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.nn.rollout import Rollout
from workbench.session import Series, Session
from workbench.training.objectives import own_loss
from workbench.windows import RandomWindows

COUNTS = ("poisson", "negative_binomial", "categorical")


def build(sessions=SESSIONS, **settings):
    torch.manual_seed(0)
    model = models.build("neurohorizon", sessions, **SMALL["neurohorizon"] | settings).eval()
    with torch.no_grad():                                               # conditions start next to silent
        for one in model.given.each:
            one.to_out.weight.normal_(std=0.3)
    return model


def read(model, session=SESSIONS[1], starts=(1.0, 8.0)):
    return Reader([session], also=model.reads).read([0] * len(starts), starts, model.window)


@pytest.mark.parametrize("counts", COUNTS)
@torch.no_grad()
def test_bin_by_bin_is_what_all_bins_at_once_are(counts):
    model = build(counts=counts)
    batch = read(model)
    who, _, plan, state = model._open(batch, model._shown(batch, None))
    truth = model._true(batch)
    one_by_one = model.rollout.roll(who, plan, state, "mean", truth)[0]
    torch.testing.assert_close(one_by_one, model(batch).log_rates.exp(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("counts", COUNTS)
@torch.no_grad()
def test_no_bin_knows_itself_or_a_later_one(counts):
    """Truth after the origin changes later bins alone when it is fed back, and nothing when it is not."""
    model = build(counts=counts)
    batch, since = read(model), 1.3
    more = batch.add(torch.zeros(40, dtype=torch.long), torch.randint(12, (40,)), since + 0.2 * torch.rand(40))
    bin_ = round((since - model.history) / model.bin_size)
    one, other = model(batch).log_rates, model(more).log_rates
    assert torch.equal(one[:, :, :bin_ + 1], other[:, :, :bin_ + 1]) and not torch.equal(one[0], other[0])
    for feedback in ("sampled", "mean"):
        assert torch.equal(*(model.forecast(each, feedback=feedback, samples=2).rates for each in (batch, more)))


@torch.no_grad()
def test_all_of_the_history_is_heard():
    model = build()
    batch = read(model)
    for at in (0.1, 0.9):                                               # before and in what the encoder reads
        more = batch.add(torch.tensor([0]), torch.tensor([3]), torch.tensor([at]))
        assert not torch.equal(model(batch).log_rates, model(more).log_rates)


@torch.no_grad()
def test_conditions_are_known_up_to_the_origin_or_in_the_whole_window_and_can_be_withheld():
    session = SESSIONS[1]
    later = {}
    for name, since in (("same", 99.0), ("after", 2.1), ("before", 1.9)):
        clock, values = session.series["vel"].times, session.series["vel"].values
        changed = np.where((clock > since)[:, None], values + 1, values)
        later[name] = replace(session, series={"vel": Series(clock, changed, "m/s")})
    for known, after_tells in (("all", True), ("past", False)):
        model = build(conditions={"vel": known})
        found = {name: model.forecast(read(model, each), feedback="mean").rates[0] for name, each in later.items()}
        assert torch.equal(found["same"], found["after"]) != after_tells
        assert not torch.equal(found["same"], found["before"])
        withheld = [model.forecast(read(model, each), feedback="mean", given=[]).rates for each in later.values()]
        assert torch.equal(withheld[0], withheld[2]) and not torch.equal(withheld[0][0], found["same"])
    with pytest.raises(UnknownName, match=r"no condition 'pupil'"):
        model.forecast(read(model), given=["pupil"])


@torch.no_grad()
def test_several_conditions_come_back_from_a_folder_as_they_were(tmp_path):
    session = SESSIONS[1]
    session = replace(session, series=dict(session.series) | {"a": Series(np.arange(0.5, 20, 0.7), np.ones((28, 2)))})
    model = build([session], conditions={"vel": "all", "a": "past"})
    model.save_pretrained(tmp_path / "model")
    again = models.load(tmp_path / "model").eval()
    assert torch.equal(*(each(read(each, session)).log_rates for each in (model, again)))


def test_what_attention_to_conditions_and_their_tokens_say():
    model = build()
    batch = read(model)
    asked, tokens = model.attention(batch)["vel"], model.tokens(batch)
    assert asked.shape == (2, 10) and (asked > 0).all() and (asked < 1).all()
    with torch.no_grad():
        assert torch.equal(model(batch).log_rates, model(batch, tokens=tokens).log_rates)
    tokens = {name: value.requires_grad_() for name, value in tokens.items()}
    model(batch, tokens=tokens).log_rates.sum().backward()
    assert tokens["vel"].grad.any()


@pytest.mark.parametrize(("identity", "spread"), [("inferred", 0.0), ("inferred", 0.3), ("embedding", 0.0)])
@torch.no_grad()
def test_permuting_units_permutes_predictions(identity, spread):
    session, order = SESSIONS[1], np.random.default_rng(0).permutation(12)
    model, other = build([session], identity=identity), shuffled(session, order)
    if spread:
        model.identify(session, session.intervals, spread)
    here = model.forecast(read(model, session), feedback="mean").rates
    if identity == "inferred":
        model.identify(other, other.intervals, spread)
    there = model.forecast(read(model, other), feedback="mean").rates
    torch.testing.assert_close(there, here[:, order], atol=1e-5, rtol=0)
    assert not torch.allclose(here, here[:, order], atol=1e-3)


@torch.no_grad()
def test_a_new_session_of_any_size_is_forecast_after_a_look_at_its_activity():
    model, new = build(), toy("c", 30, 7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnknownName, match=r"no session 'c'.*model\.identify\(session, intervals\)"):
        model(read(model, new))
    model.identify(replace(new, series={}), np.array([[0.0, 10.0]]))
    rates = model.forecast(read(model, new), samples=2).rates
    assert rates.shape == (2, 30, 10) and torch.isfinite(rates).all()
    assert all(torch.equal(value, model.state_dict()[name][:len(value)]) for name, value in before.items())
    with pytest.raises(WorkbenchError, match="looks up who units are"):
        build(identity="embedding").identify(new, new.intervals)


@torch.no_grad()
def test_what_is_inferred_of_units_is_corrected_by_what_they_fired():
    model, new = build(), replace(toy("c", 30, 7, 60.0), series={})     # no behaviour is asked for
    train, batch = np.array([[0.0, 40.0]]), Reader([toy("c", 30, 7, 60.0)], model.reads).read(
        [0] * 20, np.arange(40.0, 58.0, 0.9)[:20], model.window)

    def missed(spread):
        model.identify(new, train, spread)
        rates = model.forecast(batch, feedback="true", given=()).rates
        truth = model._true(batch)
        return (rates - truth * rates.log()).mean().item(), rates

    inferred, corrected, again = missed(0.0), missed(0.3), missed(0.0)
    assert corrected[0] < inferred[0] - 0.01 and torch.equal(inferred[1], again[1])
    torch.testing.assert_close(missed(1e-4)[1], inferred[1], rtol=1e-3, atol=1e-5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.identify(new, train, 0.3)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    rows = (model.state_dict()["beside.weight"] != before["beside.weight"]).any(1).nonzero()[:, 0]
    assert changed == {"beside.weight"} and set(rows.tolist()) == set(model.beside.rows(
        [f"c/u{i}" for i in range(30)]).tolist())
    with pytest.raises(BadRecording, match=r"c: units are corrected in windows of 1\.5 s"):
        build(reference_bins=20).identify(new, np.array([[0.0, 1.4]]), 0.3)
    with pytest.raises(WorkbenchError, match="tells counts by class"):
        build(counts="categorical").identify(new, train, 0.3)


@torch.no_grad()
def test_a_regression_finds_who_fired_what():
    torch.manual_seed(0)
    rollout = Rollout(8, 16, 0.05, counts="poisson", classes=8, dropout=0.0)
    rollout.direction.weight.mul_(20)
    true, plan = torch.randn(6, 8), torch.randn(40, 50, 16)
    mask, level = torch.ones(40, 6, dtype=torch.bool), torch.full((40, 6), -1.0)
    who = lambda vectors: rollout.who(mask, level, vectors.repeat(40, 1))
    state = lambda seen: rollout.start(torch.zeros(40, 6, 10), torch.zeros(40, 10, 16), torch.zeros(0).long(),
                                       torch.zeros(0), 0.5, seen)
    heard = torch.nn.Linear(8, 16, bias=False)
    rollout.heard.weight.copy_(0.1 * heard.weight)
    counts = rollout.roll(who(true), plan, state(who(true)), "sampled", torch.full((40, 6, 50), torch.nan))[1]
    prior = true + 0.3 * torch.randn(6, 8)
    found = rollout.solve(who(prior), plan, state(who(prior)), counts, prior, 0.3)
    assert (found - true).square().mean() < 0.4 * (prior - true).square().mean()


@torch.no_grad()
def test_units_may_be_known_by_the_first_seconds_alone():
    session = replace(SESSIONS[0], intervals=[[0.0, 3.0], [5.0, 20.0]])
    model, other = (build([each], reference_seconds=6.0, reference_bins=20)
                    for each in (session, session.within(np.array([[0.0, 3.0], [5.0, 8.0]]))))
    assert torch.equal(model.units.weight, other.units.weight)
    whole = build([session], reference_bins=20)
    assert not torch.equal(model.units.weight, whole.units.weight)


@pytest.mark.parametrize("counts", COUNTS)
@torch.no_grad()
def test_samples_have_the_mean_that_is_expected_and_a_seed(counts):
    model = build(counts=counts)
    batch = read(model)
    found = model.forecast(batch, samples=200, seed=1)
    assert found.counts.shape == (200, 2, 12, 10)
    np.testing.assert_allclose(found.counts.mean((0, 1, 3)), found.rates.mean((0, 2)), rtol=0.12)
    again, other = (model.forecast(batch, samples=2, seed=seed).counts for seed in (1, 2))
    assert torch.equal(again, found.counts[:2]) and not torch.equal(again, other)


@torch.no_grad()
def test_a_rollout_may_go_on_for_as_long_as_one_likes_and_stays_bounded():
    model = build(horizon=0.5)
    model.rollout.weigh.bias.fill_(3.0)                                 # units that excite themselves
    model.horizon, model.window = 10.0, model.history + 10.0
    rates = model.forecast(read(model, starts=[1.0]), samples=1).rates
    assert rates.shape == (1, 12, 200) and (rates <= 1000 * model.bin_size * 1.001).all()


def test_units_that_follow_others_are_forecast_better_than_by_their_means():
    """Unit 1 repeats what unit 0 did half a second ago; a mean, or its own past, cannot know when."""
    random = np.random.default_rng(0)
    bursts = np.sort(random.uniform(0, 300, 150))
    lead = np.concatenate([at + random.uniform(0, 0.1, 8) for at in bursts])
    times, units = np.concatenate([lead, lead + 0.4]), np.repeat([0, 1], len(lead))
    order = np.argsort(times)
    session = Session(id="echo", spike_times=times[order], spike_units=units[order], simulated=True,
                      units=pd.DataFrame({"id": ["a", "b"]}), intervals=[[0, 301]])
    model = build([session], identity="embedding", conditions={}).train()
    windows = RandomWindows([session], [np.array([[0.0, 240.0]])], duration=model.window, batch_size=8)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for k in range(120):
        adam.zero_grad()
        model.loss(windows.batch(k))["loss"].backward()
        adam.step()
    model.eval()
    batch = Reader([session]).read([0] * 60, np.linspace(240, 300 - model.window, 60), model.window)
    with torch.no_grad():
        rates, truth = model.forecast(batch, feedback="mean").rates[:, 1], model._true(batch)[:, 1]
    mean = truth.mean()
    gain = (truth * (rates / mean).log() - rates + mean).sum() / truth.sum() / np.log(2)
    assert gain > 0.5


@torch.no_grad()
def test_a_history_may_come_from_before_the_time_that_is_scored():
    model = build()
    scored = own_loss(model, [SESSIONS[0]], [np.array([[10.0, 10.5]])])            # shorter than a window
    batch = read(model, SESSIONS[0], [9.0])
    torch.manual_seed(0)
    assert scored == pytest.approx(model.loss(batch)["loss"].item())


def test_settings_that_do_not_fit_get_a_sentence():
    for wrong, told in ((dict(history=0.97), "whole number"), (dict(recent=2.0), "no recent 2 s"),
                        (dict(counts="binomial"), "no counts 'binomial'"), (dict(identity="guessed"), "no identity"),
                        (dict(conditions={"vel": "soon"}), "no time 'soon'"), (dict(conditions=["pupil"]), "'pupil'")):
        with pytest.raises(WorkbenchError, match=told):
            build(**wrong)
    with pytest.raises(UnknownName, match="no feedback 'none'"):
        model = build()
        model.forecast(read(model), feedback="none")


@torch.no_grad()
def test_a_batch_without_one_sample_of_a_condition_is_as_if_it_were_withheld():
    model = build(conditions={"vel": "all"})
    bare = replace(SESSIONS[1], series={})
    batch, told = read(model, bare), read(model)
    torch.testing.assert_close(model(batch).log_rates, model(told, given=()).log_rates)
    with pytest.raises(UnknownName, match=r"no series 'vel' in this batch.*targets="):
        model(Reader([bare]).read([0], [1.0], model.window))
