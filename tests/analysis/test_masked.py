"""Scores of what masks hide: the truth beats the fills, nothing hidden reaches a fill, intervals hold what they say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from workbench import models
from workbench.align import spikes_before
from workbench.analysis import masked, masked_fills
from workbench.analysis.masked import MODES, bootstrap, evaluate, table
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.masking import Mask, draw
from workbench.metrics import bits_per_spike
from workbench.models.base import Output
from workbench.session import Session
from workbench.windows import split

BIN, WINDOW = 0.05, 1.0


def population(seconds: float = 160.0, units: int = 24, trials: bool = False) -> tuple[Session, np.ndarray]:
    """Poisson units of two regions whose log rates share three slow factors, and their expected counts [T, N]."""
    random = np.random.default_rng(0)
    bins = round(seconds / BIN)
    smooth = np.exp(-np.arange(40) / 5.0)
    factors = np.stack([np.convolve(random.normal(size=bins), smooth, "same") for _ in range(3)], axis=1)
    rates = 15 * BIN * np.exp(0.8 * factors / factors.std(0) @ random.normal(size=(3, units)) / 3 ** 0.5)
    counts = random.poisson(rates)
    at, unit = np.nonzero(counts)
    at, unit = (np.repeat(each, counts[at, unit]) for each in (at, unit))
    times = (at + 0.02 + 0.96 * random.random(len(at))) * BIN
    order = np.argsort(times)
    table = pd.DataFrame({"id": [f"u{i}" for i in range(units)], "region": ["M1", "PMd"] * (units // 2)})
    starts = np.arange(0, seconds, WINDOW)
    events = {"trials": pd.DataFrame({"start": starts, "stop": starts + WINDOW - 1e-4})} if trials else {}
    return Session(id="low-rank", spike_times=times[order], spike_units=unit[order], units=table, simulated=True,
                   intervals=[[0, seconds]], **events), rates


SESSION, RATES = population()
PARTS = split(SESSION)


class Says(nn.Module):
    """A model that says `rates` [T, N] of the whole session, or each unit's mean; remembers what it was shown."""

    name, reconstructs, window, bin_size = "says", True, WINDOW, BIN

    def __init__(self, rates):
        super().__init__()
        self.rates, self.shown, self.weight = rates, [], nn.Parameter(torch.zeros(1))

    def draw(self, batch, mode):
        return draw("time" if mode == "temporal" else mode, batch.unit_mask, batch.bins(BIN), 0.5)

    def reconstruct(self, batch, mask, mode=None):
        self.shown.append((batch, mask))
        first = (batch.starts / BIN).round().long()[:, None] + torch.arange(batch.bins(BIN))
        return Output(log_rates=torch.from_numpy(self.rates)[first].log().transpose(1, 2))


def trained_mean() -> np.ndarray:
    return np.broadcast_to(SESSION.within(PARTS["train"]).rates() * BIN, RATES.shape).copy()


def scored(mode: str, rates=RATES, session=SESSION, **options) -> dict:
    return evaluate(Says(rates), session, PARTS["train"], PARTS["test"], mode, least=6, **options)


@pytest.mark.parametrize("mode", MODES)
def test_the_true_rates_beat_every_fill(mode):
    found = scored(mode)
    there = {name for name, each in found["fills"].items() if each}
    assert there == ({"mean", "running_mean", "neighbours"} if mode in ("temporal", "causal") else
                     {"mean", "running_mean", "glm"})
    for name in there:
        fill = found["fills"][name]
        assert fill["difference"] == pytest.approx(found["bits"] - fill["bits"])
        assert 0 < fill["difference_interval"][0] < fill["difference"] < fill["difference_interval"][1]
    best = found["fills"]["neighbours"] or found["fills"]["glm"]
    assert best["interval"][0] > 0                                      # the better fill says something too
    assert found["windows"] == 32 and mode in found["protocol"]
    if mode.endswith("region"):
        assert set(found["regions"]) == {"M1", "PMd"}
        assert sum(each["spikes"] for each in found["regions"].values()) == found["spikes"]


def test_the_mean_rate_of_training_scores_nothing_and_bits_are_those_of_the_field():
    found = scored("inter_region", trained_mean())
    assert found["bits"] == pytest.approx(0, abs=1e-6) and found["fills"]["mean"]["bits"] == 0
    true = scored("inter_region")                                       # both regions in turn: every entry once
    bins = slice(round(PARTS["test"][0, 0] / BIN), round(PARTS["test"][0, 0] / BIN) + 32 * 20)
    batch = Reader([SESSION]).read([0], PARTS["test"][:, 0], 32.0)
    counts = batch.counts(BIN)[0].T.numpy()
    assert true["entries"] == counts.size and true["spikes"] == counts.sum()
    assert true["bits"] == pytest.approx(bits_per_spike(RATES[bins], counts, trained_mean()[bins]), rel=1e-4)


def test_of_several_models_the_log_rates_are_averaged():
    loud, faint = Says(2 * RATES), Says(RATES / 2)
    both = [evaluate(each, SESSION, PARTS["train"], PARTS["test"], "neuron", fills=False)["bits"]
            for each in ([loud, faint], Says(RATES), loud)]
    assert both[0] == pytest.approx(both[1], rel=1e-6) and both[2] < both[1]
    assert loud.training and table([loud, faint], [SESSION], [PARTS], ["causal"], fills=False)["bits"][0] > 0
    other = Says(RATES)
    other.window = 2 * WINDOW
    for wrong, many in (([loud, other], 2), ([], 0)):
        with pytest.raises(WorkbenchError, match=f"{many} models have no one window and bin size"):
            evaluate(wrong, SESSION, PARTS["train"], PARTS["test"], "neuron")


@pytest.mark.parametrize("mode", ["neuron", "intra_region", "inter_region"])
def test_spikes_of_hidden_units_change_no_fill_but_the_running_mean(mode, monkeypatch):
    name, (units, found) = next(iter(caught(mode, SESSION, monkeypatch).items()))
    gone = (SESSION.spike_times >= PARTS["test"][0, 0]) & np.isin(SESSION.spike_units, units)
    quiet = replace(SESSION, spike_times=SESSION.spike_times[~gone], spike_units=SESSION.spike_units[~gone])
    after = caught(mode, quiet, monkeypatch)[name][1]
    np.testing.assert_array_equal(after["glm"], found["glm"])
    # The first window's history is the same, and its own hidden spikes are not in it.
    np.testing.assert_array_equal(after["running_mean"][0], found["running_mean"][0])
    assert not np.allclose(after["running_mean"][-1], found["running_mean"][-1])


def caught(mode: str, session: Session, monkeypatch) -> dict:
    """The units and fills of every task that `evaluate` goes through."""
    found, fills = {}, masked._fills

    def keep(parts, task, *rest):
        found[task.name] = task.units, fills(parts, task, *rest)
        return found[task.name][1]
    monkeypatch.setattr(masked, "_fills", keep)
    scored(mode, session=session, draws=1)
    monkeypatch.undo()
    return found


def seen_of(random, windows: int = 30, units: int = 5, bins: int = 12) -> masked_fills.Seen:
    hidden = random.random((windows, units, bins)) < 0.5
    return masked_fills.Seen(random.poisson(0.7, hidden.shape).astype(np.float32), hidden, hidden,
                             random.poisson(9.0, (windows, units)), np.full(windows, 10.0))


def test_hidden_bins_change_no_fill():
    random, mean = np.random.default_rng(1), np.full((5, 1), 0.7)
    train, test = seen_of(random), seen_of(random)
    other = random.poisson(3.0, test.hidden.shape).astype(np.float32)
    changed = test._replace(counts=np.where(test.hidden, other, test.counts))
    shown = test._replace(counts=np.where(test.hidden, test.counts, test.counts + 1))
    for fill in (masked_fills.running_mean, masked_fills.neighbours):
        np.testing.assert_array_equal(fill(train, test, mean), fill(train, changed, mean))
        assert not np.allclose(fill(train, test, mean), fill(train, shown, mean))
    all_hidden = test._replace(hidden=np.ones_like(test.hidden))
    assert masked_fills.neighbours(train, all_hidden, mean) is None


def test_the_regression_finds_the_weights_of_its_own_model():
    random = np.random.default_rng(2)
    x = random.normal(size=(400, 20, 4)).astype(np.float32)
    weights, bias = random.normal(size=(4, 6)) * 0.4, np.log([0.1, 0.3, 0.5, 1, 1, 2])
    y = random.poisson(np.exp(x @ weights + bias)).astype(np.float32)
    mean = y.mean((0, 1))[:, None].astype(float)
    found, b = masked_fills._regressions(x, y, mean, 0.05, (1e-4,), steps=30)[1e-4]
    np.testing.assert_allclose(found, weights, atol=0.12)
    np.testing.assert_allclose(b, bias, atol=0.12)
    flat, target = x.reshape(-1, 4), y.reshape(-1, 6)                   # the gradient is nought where it ends
    np.testing.assert_allclose(flat.T @ (np.exp(flat @ found + b) - target) / len(flat), 0, atol=3e-3)


def test_time_in_the_trial_helps_where_windows_start_with_trials(monkeypatch):
    told = []
    glm = masked_fills.glm
    monkeypatch.setattr(masked_fills, "glm", lambda *given, psth: told.append(psth) or glm(*given, psth=psth))
    locked = population(seconds=60.0, trials=True)[0]
    for session in (locked, replace(locked, trials=locked.trials.iloc[:0])):
        evaluate(Says(RATES), session, [[0, 40]], [[40, 60]], "neuron", draws=1)
    assert told == [True, False]
    random = np.random.default_rng(3)
    wave = np.exp(np.sin(np.arange(20) / 3))                            # the same in every window, in hidden units only
    hidden = random.poisson(0.5 * wave, (80, 3, 20)).astype(np.float32)
    seen = {name: random.poisson(0.5, (80, 25, 20)).astype(np.float32) for name in ("train", "test")}
    mean = hidden.mean((0, 2))[:, None]
    with_psth, without = (masked_fills.glm(seen, hidden, mean, BIN, psth=psth).mean(0) for psth in (True, False))
    assert np.corrcoef(with_psth[0], wave)[0, 1] > 0.9 > np.corrcoef(without[0], wave)[0, 1]


def test_intervals_cover_what_they_should():
    random, covered = np.random.default_rng(4), 0
    for _ in range(200):
        spikes = random.poisson(40, 64)
        gain = spikes * 0.1 + np.repeat(random.normal(0, 4, 8), 8) + random.normal(0, 2, 64)    # blocks that differ
        low, high = bootstrap(gain, spikes, np.repeat(np.arange(8), 8), drawn=1000)
        covered += low < 0.1 < high
    assert 180 <= covered <= 199
    assert np.isnan(bootstrap(np.ones(4), np.ones(4), np.zeros(4, int))).all()


def test_blocks_are_trials_or_stretches_of_twenty_seconds():
    short = masked._blocks(np.array([[0.0, 0.4], [3.0, 3.8], [9.0, 9.4]]), np.array([0.0, 3.0, 3.4, 9.0]))
    assert short.tolist() == [0, 1, 1, 2]
    assert masked._blocks(np.array([[10.0, 60.0]]), 10.0 + np.arange(50)).tolist() == [0] * 20 + [1] * 20 + [2] * 10


def test_time_before_a_window_is_valid_time():
    times = np.array([1.0, 2.0, 50.0, 99.0, 101.0, 102.0])
    session = Session(id="gap", spike_times=times, spike_units=np.array([0, 1, 0, 0, 0, 0]),
                      units=SESSION.units.iloc[:2], intervals=[[0, 10], [100, 130]])
    spikes, seconds = spikes_before(session, np.array([0.0, 5.0, 100.0, 101.5, 121.5]), 30.0)
    np.testing.assert_allclose(seconds, [0, 5, 10, 11.5, 30])
    assert spikes.tolist() == [[0, 0], [1, 1], [1, 1], [2, 1], [2, 1]]  # 50 and 99 s are in no valid interval


def test_masks_are_the_same_for_every_model_and_only_the_model_is_shown_them():
    one, two = Says(RATES), Says(trained_mean())
    for model in (one, two):
        evaluate(model, SESSION, PARTS["train"], PARTS["test"], "temporal", seed=3, batch_size=7)
    for (batch, mask), (_, other) in zip(one.shown, two.shown, strict=True):
        assert isinstance(mask, Mask) and len(mask.hidden) == len(batch) <= 7
        assert torch.equal(mask.hidden, other.hidden) and torch.equal(mask.scored, other.scored)
    assert scored("temporal", seed=4)["entries"] != scored("temporal", seed=3)["entries"]


def test_a_table_has_a_row_a_session_and_mode_and_the_real_model_fits_in():
    torch.manual_seed(0)
    model = models.build("neurobridge", [SESSION], dim=16, width=32, depth=1, heads=2, latents=2, bin_size=BIN)
    alone = replace(SESSION, units=SESSION.units.assign(region="M1"))
    found = table(model, [SESSION, alone], [PARTS, PARTS], modes=["temporal", "inter_region"], least=6)
    assert found[["session", "mode"]].values.tolist() == [["low-rank", m] for m in ("temporal", "inter_region",
                                                                                   "temporal")]
    np.testing.assert_allclose(found["difference"], found["bits"] - found[["mean", "running_mean", "neighbours", "glm"]]
                               .max(axis=1), atol=1e-9)
    assert found["glm"].isna().tolist() == [True, False, True]


def test_impossible_requests_are_told_in_one_sentence():
    with pytest.raises(UnknownName, match="no mode 'entry'"):
        scored("entry")
    with pytest.raises(BadRecording, match="low-rank: 1 units, and some have to be hidden and some seen"):
        evaluate(Says(RATES[:, :1]), SESSION.select([0]), PARTS["train"], PARTS["test"], "neuron")
    with pytest.raises(BadRecording, match="low-rank: masks by inter_region need two known regions, one of them of 20"):
        evaluate(Says(RATES), SESSION, PARTS["train"], PARTS["test"], "inter_region")
    with pytest.raises(WorkbenchError, match="model 'cebra' predicts no firing rates"):
        evaluate(models.get("cebra"), SESSION, PARTS["train"], PARTS["test"], "neuron")
