"""Attribution: a model that knows how spikes were made is found to use what made them, by as much as theory says."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from workbench import Series, Session
from workbench.analysis import attribution
from workbench.analysis.attribution import ablation, contributions, influence, integrated_gradients, measure
from workbench.analysis.contributions import _resampled
from workbench.analysis.masked import bootstrap
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.metrics import bits_per_spike
from workbench.models.base import Output
from workbench.models.neurohorizon import Forecast

BIN, HISTORY, HORIZON = 0.05, 0.5, 0.5
REGIONS = ("A", "B", "C")                                               # driven by x, by y, by neither
WEIGHT = 0.8                                                            # log rate per standard deviation


def recording(seconds: float = 240.0, seed: int = 0, **changes) -> Session:
    """Four units a region; x drives those of A, y those of B; a trial every 2 s, of two kinds, with an event inside."""
    rng, bins = np.random.default_rng(seed), round(seconds / BIN)
    x, y = rng.normal(size=(2, bins))
    drive = WEIGHT * np.stack([x] * 4 + [y] * 4 + [0 * x] * 4) - WEIGHT ** 2 / 2 * np.repeat([1, 1, 0], 4)[:, None]
    counts = rng.poisson(0.5 * np.exp(drive))
    units, at = np.repeat(np.arange(12), counts.sum(1)), np.concatenate([np.repeat(np.arange(bins), c) for c in counts])
    times = (at + rng.random(len(at))) * BIN
    order = np.argsort(times)
    start = np.arange(0.0, seconds - 2, 2)
    middles = (np.arange(bins) + 0.5) * BIN
    whole = dict(id="known", spike_times=times[order], spike_units=units[order], intervals=[[0, seconds]],
                 units=pd.DataFrame({"id": [f"u{i}" for i in range(12)], "region": np.repeat(REGIONS, 4)}),
                 series={"x": Series(middles, x[:, None]), "y": Series(middles, y[:, None])},
                 trials=pd.DataFrame({"start": start, "stop": start + 2, "go": start + 1.0,
                                      "side": np.where(np.arange(len(start)) % 2, "left", "right")}))
    return Session(**whole | changes)


class Known(nn.Module):
    """Forecasts by the very numbers that `recording` was made with; shown less, by the mean of what it cannot see.

    coupling [N, N]: what a spike in the history of one unit (column) adds to the log rate of another (row).
    """

    name, forecasts = "known", True
    bin_size, history, horizon, ahead, window = BIN, HISTORY, HORIZON, 0.0, HISTORY + HORIZON
    reads = ("x", "y")

    def __init__(self, coupling=None):
        super().__init__()
        self.conditions = {"x": "all", "y": "all"}
        weights = torch.zeros(12, 2)
        weights[:4, 0] = weights[4:8, 1] = WEIGHT
        self.weights = nn.Parameter(weights)
        self.coupling = torch.zeros(12, 12) if coupling is None else coupling

    def tokens(self, batch):
        bins = batch.bins(BIN)
        return {name: batch.targets[name].values.view(len(batch), bins, 1) for name in self.conditions}

    def forward(self, batch, given=None, tokens=None):
        tokens = self.tokens(batch) if tokens is None else tokens
        shown = list(self.conditions) if given is None else list(given)
        seen = torch.cat([tokens[n] if n in shown else torch.zeros_like(tokens[n]) for n in self.conditions], -1)
        known = torch.tensor([n in shown for n in self.conditions], dtype=torch.float)
        drive = seen[:, round(HISTORY / BIN):] @ self.weights.T - (self.weights ** 2 / 2) @ known
        past = batch.counts(BIN)[..., :round(HISTORY / BIN)].sum(2)
        return Output(log_rates=(drive + (past @ self.coupling.T)[:, None] + np.log(0.5)).transpose(1, 2))

    def forecast(self, batch, *, samples=8, feedback="sampled", given=None, seed=0):
        rates = self(batch, given).log_rates.exp()
        return Forecast(rates, rates.new_empty(0, *rates.shape))


class Looking(Known):
    """Says that it looks at x alone, the more the later."""

    def attention(self, batch):
        later = torch.linspace(0, 0.9, 10).expand(len(batch), -1)
        return {"x": later, "y": torch.zeros_like(later)}


def windows(session: Session, number: int = 8):
    return Reader([session], also=("x", "y")).read(np.zeros(number, int), 3.0 * np.arange(number), HISTORY + HORIZON)


@pytest.fixture(scope="module")
def measured():
    return measure(Known(), recording(), [[0, 240]])


def cell(table: pd.DataFrame, **where):
    rows = table[np.logical_and.reduce([table[name] == value for name, value in where.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_modality_is_worth_what_theory_says_to_those_it_drives_and_nothing_to_others(measured):
    table = contributions(measured)
    theory = WEIGHT ** 2 / 2 / np.log(2)                                # bits per spike, of λ over its mean
    for name, region in (("x", "A"), ("y", "B")):
        row = cell(table, modality=name, region=region)
        assert row.contribution == pytest.approx(theory, rel=0.1)
        assert row.interval[0] < theory < row.interval[1] and row.interval[1] - row.interval[0] < 0.1
        assert row.contribution == pytest.approx(row.bits - row.without)
        assert row.over_shuffled == pytest.approx(2 * theory, rel=0.15) and row.over_shuffled > row.contribution
        assert row.over_shuffled_interval[0] > 0
    for name, region in (("x", "B"), ("x", "C"), ("y", "A"), ("y", "C")):
        row = cell(table, modality=name, region=region)
        assert row.contribution == row.over_shuffled == 0 and row.interval == [0, 0]
    assert set(table["modality"]) == {"x", "y", "spikes"}
    assert (table[table["modality"] == "spikes"]["contribution"] == 0).all()                # Known uses no history


def test_bits_are_the_likelihood_above_each_units_mean_over_the_same_bins(measured):
    starts = measured.origins - HISTORY
    batch = Reader([measured.session], also=("x", "y")).read(np.zeros(len(starts), int), starts, HISTORY + HORIZON)
    rates, counts = Known()(batch).log_rates.exp().detach().transpose(1, 2), batch.counts(BIN)[..., 10:].transpose(1, 2)
    found = contributions(measured, ()).iloc[0]
    assert found["bits"] == pytest.approx(bits_per_spike(rates.numpy(), counts.numpy()), abs=1e-5)
    assert found["spikes"] == counts.sum()


def test_conditions_can_be_one_modality_together():
    table = ablation(Known(), recording(), [[0, 60]], modalities={"both": ["x", "y"], "x": "x"}, by=())
    both, x = cell(table, modality="both"), cell(table, modality="x")
    parts = [cell(ablation(Known(), recording(), [[0, 60]], by=()), modality=name) for name in ("x", "y")]
    assert both.contribution == pytest.approx(sum(part.contribution for part in parts), rel=1e-4)
    assert x.contribution == pytest.approx(parts[0].contribution)


@pytest.mark.parametrize("by", ["region", "lag", "trials.side", "id", ("region", "lag")])
def test_groups_that_divide_the_bins_add_up_to_the_whole(by):
    measured = measure(Known(), recording(), [[0, 60]])
    table, whole = contributions(measured, by), contributions(measured, ())
    for name in ("x", "y"):
        parts, one = table[table["modality"] == name], cell(whole, modality=name)
        assert parts["spikes"].sum() == one.spikes
        for column in ("bits", "contribution", "over_shuffled"):
            assert np.average(parts[column], weights=parts["spikes"]) == pytest.approx(one[column], abs=1e-6)


def test_a_drive_that_acts_in_one_phase_is_found_in_that_phase():
    session = recording()
    early = (session.series["x"].times % 2) < 1.0
    x = session.series["x"]._replace(values=np.where(early[:, None], session.series["x"].values, 0))
    session = recording(series=dict(session.series) | {"x": x})         # where x is its mean it says nothing
    table = ablation(Known(), session, [[0, 240]], by=("region", "phase"), modalities={"x": "x"}, shuffles=0,
                     phases={"start": ("start", 0.0, 1.0), "go": ("go", 0.0, 1.0), "never": ("go", 500.0, 501.0)})
    start, go = (cell(table, region="A", phase=name).contribution for name in ("start", "go"))
    assert start > 0.4 and go < 0 and set(table["phase"]) == {"start", "go"} and "shuffled" not in table


def test_lags_are_seconds_to_the_end_of_a_bin_and_stretches_follow_an_event(measured):
    lags = contributions(measured, "lag")["lag"].unique()
    assert np.allclose(lags, BIN * np.arange(1, 11))
    stretches = attribution.since("go", 0.0, 1.0, 0.25)
    assert list(stretches) == [0.125, 0.375, 0.625, 0.875]
    table = contributions(measured, "phase", stretches)
    spikes = cell(contributions(measured, ()), modality="x").spikes
    inside = table[table["modality"] == "x"]["spikes"]
    assert inside.sum() == pytest.approx(spikes / 2, rel=0.05) and len(inside) == 4


def test_what_a_stimulus_says_groups_the_bins_it_lies_in(measured):
    stimuli = pd.DataFrame({"start": [100.0, 101.0, 110.0], "stop": [101.0, 102.0, 111.0], "kind": ["a", "b", "a"]})
    session = recording(stimuli=stimuli)
    table = ablation(Known(), session, [[0, 240]], by="stimuli.kind", modalities={"x": "x"})
    counted = lambda start, stop: int(((session.spike_times >= start) & (session.spike_times < stop)).sum())
    assert cell(table, **{"stimuli.kind": "a"}).spikes == counted(100, 101) + counted(110, 111)
    assert cell(table, **{"stimuli.kind": "b"}).spikes == counted(101, 102)


def test_intervals_draw_trials_where_there_are_any():
    assert len(np.unique(measure(Known(), recording(), [[0, 60]], shuffles=0).blocks)) == 30
    alone = recording(trials=pd.DataFrame({"start": [], "stop": []}))
    assert len(np.unique(measure(Known(), alone, [[0, 60]], shuffles=0).blocks)) == 119


def test_of_one_block_no_interval_is_told():
    at_once = recording(trials=pd.DataFrame({"start": [0.0], "stop": [240.0]}))
    table = ablation(Known(), at_once, [[0, 1.5]], by=("region", "lag"))    # two windows, more groups than that
    assert len(table) > 2 and np.isnan(table["interval"].tolist()).all() and np.isfinite(table["contribution"]).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    gain = np.random.default_rng(0).normal(0.3, 1.0, (40, 400))
    low, high = _resampled(np.ones((40, 400)), np.arange(40))(gain[None]).T
    assert 0.92 < ((low < 0.3) & (high > 0.3)).mean() < 0.98


def test_intervals_of_several_trainings_hold_what_trainings_are_worth_on_average_and_those_of_one_do_not():
    rng = np.random.default_rng(0)
    luck, trials = rng.normal(size=(3, 1, 400)), rng.normal(size=(40, 400))
    several, intervals = 0.3 + 0.3 * luck + trials, _resampled(np.ones((40, 400)), np.arange(40))
    held = lambda found: ((found[:, 0] < 0.3) & (found[:, 1] > 0.3)).mean()
    assert 0.93 < held(intervals(several)) < 0.99 and held(intervals(several[:1])) < 0.7
    same = np.repeat(several[:1], 3, 0)                                 # with no luck in it nothing changes
    assert np.allclose(intervals(same), intervals(several[:1]))


def test_several_models_are_told_as_their_mean_and_an_interval_as_wide_as_they_differ():
    session, models = recording(), [Known() for _ in range(3)]
    for model, luck in zip(models, (0.1, 1.0, 1.5), strict=True):
        model.weights.data *= luck
    options = dict(intervals=[[0, 60]], modalities={"x": ["x"]})
    table = ablation(models, session, **options)
    alone = [ablation(model, session, **options) for model in models]
    for column in ("bits", "without", "contribution", "shuffled", "over_shuffled"):
        assert np.allclose(table[column], np.mean([each[column] for each in alone], 0))
    width = lambda table: np.ptp(cell(table, region="A").interval)
    assert width(table) > 1.5 * width(alone[1])
    assert cell(table, region="C").interval == [0.0, 0.0]               # of which no training makes anything


def test_many_intervals_at_once_are_those_of_one_bootstrap():
    rng = np.random.default_rng(0)
    gain, spikes, blocks = rng.normal(size=(50, 3)), rng.poisson(3, (50, 3)), np.arange(50) // 5
    one_by_one = [bootstrap(gain[:, i], spikes[:, i], blocks) for i in range(3)]
    assert np.allclose(_resampled(spikes, blocks)(gain[None]), one_by_one)


def test_horizons_lie_inside_the_intervals_and_windows_in_valid_recording():
    session = recording(intervals=[[0, 20], [30, 240]])
    at = attribution.origins(Known(), session, [[10, 40]])
    assert ((at >= 10) & (at + HORIZON <= 40)).all() and at[0] == 10                   # the history may lie before
    assert not ((at + HORIZON > 20) & (at - HISTORY < 30)).any() and (at < 20).any() and (at > 30).any()
    assert np.allclose(np.diff(attribution.origins(Known(), session, [[50, 100]], stride=0.25)), 0.25)
    assert len(attribution.origins(Known(), session, [[50, 100]], most=7)) == 7
    with pytest.raises(BadRecording, match="most=1 leaves one window"):
        attribution.origins(Known(), session, [[50, 100]], most=1)


def test_another_windows_values_are_never_its_own():
    partner = attribution._partners(50, [0, 1])
    assert (partner != np.arange(50)).all() and np.array_equal(np.sort(partner), np.arange(50))
    assert not np.array_equal(partner, attribution._partners(50, [0, 2]))


def test_history_is_withheld_and_swapped_before_the_origin_only():
    session = recording()
    batch, other = windows(session), windows(recording(seed=1))
    without, given = attribution._withheld(Known(), batch, ["spikes"])
    assert given == ("x", "y") and without.counts(BIN)[..., :10].sum() == 0
    assert torch.equal(without.counts(BIN)[..., 10:], batch.counts(BIN)[..., 10:])
    swapped = attribution._swapped(batch, other, ["spikes", "x"], HISTORY)
    assert torch.equal(swapped.counts(BIN)[..., 10:], batch.counts(BIN)[..., 10:])
    assert torch.equal(swapped.counts(BIN)[..., :10], other.counts(BIN)[..., :10])
    assert torch.equal(swapped.targets["y"].values, batch.targets["y"].values)
    assert torch.equal(swapped.targets["x"].values, other.targets["x"].values)


def test_progress_and_the_models_mode_are_kept():
    said, model = [], Known().train()
    measure(model, recording(), [[0, 60]], shuffles=2, batch_size=64, progress=lambda done, of: said.append((done, of)))
    assert said[-1] == (2 * (1 + 3 * 3),) * 2 and [done for done, _ in said] == list(range(1, 21)) and model.training


def test_influence_finds_who_drives_whom():
    coupling = torch.zeros(12, 12)
    coupling[8, 0], coupling[9, 9] = 0.2, -0.1                          # u0 excites u8; u9 quiets itself
    session = recording()
    table = influence(Known(coupling), windows(session))
    expected = np.zeros((12, 12), bool)
    expected[0, 8] = expected[9, 9] = True
    assert np.array_equal(table.to_numpy() > 1e-3, expected) and np.allclose(table.to_numpy()[~expected], 0, atol=1e-6)
    regions = influence(Known(coupling), windows(session), by=session.units["region"])
    assert regions.loc["A", "C"] > 1e-3 and regions.loc["A", "B"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(BadRecording, match="one a unit"):
        influence(Known(), windows(session), by=["A", "B"])
    two = Reader([session, recording(id="other")], also=("x", "y")).read([0, 1], [3.0, 3.0], 1.0)
    with pytest.raises(BadRecording, match="windows of one"):
        influence(Known(), two)


def test_integrated_gradients_are_complete_and_say_the_same_as_ablation():
    session = recording()
    found = integrated_gradients(Known(), windows(session, 40), steps=32)
    assert found.error < 0.01
    total = sum(each.sum() for each in found.attributions.values())
    assert float(total) == pytest.approx(float(found.difference.sum()), rel=0.01) and float(total) > 0
    of_a = integrated_gradients(Known(), windows(session, 40), target=([0, 1, 2, 3], slice(None)), steps=32)
    shares = attribution.ledger(of_a).set_index("modality")
    assert shares.loc["x", "share"] > 0.999 and shares.loc["x", "bits"] > 0.1 and shares.loc["x", "interval"][0] > 0
    assert of_a.error < 0.01 and of_a.spikes.sum() < found.spikes.sum()


def test_integrated_gradients_stay_where_their_target_can_look():
    found = integrated_gradients(Known(), windows(recording()), target=(slice(None), [3]), steps=8)
    there = torch.zeros(20, dtype=torch.bool)
    there[10 + 3] = True                                                # Known answers at once
    x = found.attributions["x"][..., 0]
    assert (x[:, ~there] == 0).all() and (x[:, there] != 0).all()


def test_attention_is_told_by_models_that_say_where_they_look():
    table = attribution.attention(Looking(), windows(recording()), {"x": ["x"], "all": ["x", "y"]})
    assert table.loc["x"].to_numpy() == pytest.approx(np.linspace(0, 0.9, 10)) and list(table.index) == ["x", "all"]
    assert np.allclose(table.columns, BIN * np.arange(1, 11)) and np.allclose(table.loc["all"], table.loc["x"])
    with pytest.raises(WorkbenchError, match="where it looks"):
        attribution.attention(Known(), windows(recording()))


def test_recovery_counts_what_was_found():
    truth = {"drive": np.array([[0.4, 0.0], [0.2, 0.1], [0.0, 0.3]]), "drive_names": ["A", "B", "C"],
             "drive_modalities": ("movement", "plan")}
    rows = [("x", "A", 0.3, [0.2, 0.4]), ("x", "B", 0.2, [0.1, 0.3]), ("x", "C", 0.02, [0.01, 0.03]),
            ("y", "A", 0.0, [-0.1, 0.1]), ("y", "B", 0.25, [0.2, 0.3]), ("y", "C", 0.2, [0.1, 0.3])]
    table = pd.DataFrame(rows, columns=["modality", "region", "contribution", "interval"])
    found = attribution.recovery([table, table], [truth, truth], {"movement": "x", "plan": "y"})
    assert found["right"] == pytest.approx(2 / 3)                       # B's is measured the wrong way round
    assert (found["nulls"], found["null_contains_zero"]) == (4, 0.5)    # x in C is clearly measured, wrongly
    assert found["spearman"]["movement"] == pytest.approx(1.0) and found["spearman"]["plan"] == pytest.approx(0.5)
    assert len(found["table"]) == 12


def test_what_cannot_be_done_is_told_in_a_sentence():
    session, model = recording(), Known()
    with pytest.raises(UnknownName, match="no condition 'z'"):
        measure(model, session, [[0, 60]], modalities={"z": ["z"]})
    with pytest.raises(UnknownName, match="no series 'y'"):
        measure(model, recording(series={"x": session.series["x"]}), [[0, 60]])
    with pytest.raises(BadRecording, match="1 windows"):
        measure(model, session, [[10, 10.6]])
    with pytest.raises(WorkbenchError, match="built with conditions="):
        silent = Known()
        silent.conditions = {}
        measure(silent, session, [[0, 60]])
    gains = measure(model, session, [[0, 20]], shuffles=0)
    for by, says in (("area", "no grouping 'area'"), ("stimuli.kind", "no column 'kind'"), ("phase", "give phases=")):
        with pytest.raises(WorkbenchError, match=says):
            contributions(gains, by)
    with pytest.raises(UnknownName, match="no event 'come'"):
        contributions(gains, "phase", {"late": ("come", 0, 1)})
    with pytest.raises(WorkbenchError, match="other windows"):
        contributions([gains, measure(model, session, [[0, 30]], shuffles=0)])
    with pytest.raises(WorkbenchError, match="other modalities"):
        contributions([gains, measure(model, session, [[0, 20]])])
    with pytest.raises(WorkbenchError, match="no gains"):
        contributions([])
