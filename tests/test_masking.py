"""Masks hide what they say, as often as they say, and the same of counts and of spikes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_batch import SESSIONS, read
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.masking import MODES, corrupt, draw

BLIND = ("time", "shared_time", "neuron", "entry")
SIZES = torch.tensor([30, 12, 21, 30])
UNITS = torch.arange(30) < SIZES[:, None]
REGIONS = torch.where(UNITS, torch.arange(30) % 3, -1)


def many(mode: str, ratio: float, *, span: int = 1, bins: int = 40, times: int = 150):
    """Hidden entries [times, B, N, T] of many draws."""
    torch.manual_seed(0)
    regions = REGIONS if mode.endswith("region") else None
    return torch.stack([draw(mode, UNITS, bins, ratio, span=span, regions=regions).hidden for _ in range(times)])


@pytest.mark.parametrize("mode", BLIND)
@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_the_share_hidden_is_the_ratio(mode, ratio):
    assert many(mode, ratio)[:, UNITS].float().mean() == pytest.approx(ratio, abs=0.02)


@pytest.mark.parametrize("mode", ["time", "shared_time", "entry"])
@pytest.mark.parametrize("span", [2, 5])
def test_spans_overlap_and_hide_slightly_less_and_every_bin_alike(mode, span):
    hidden = many(mode, 0.3, span=span, times=1000)[:, :, 0].float().mean((0, 1))
    want = 1 - (1 - 0.3 / span) ** span
    assert want < 0.3 and hidden.mean() == pytest.approx(want, abs=0.01)
    assert hidden[:3].mean() == pytest.approx(want, abs=0.04)           # a span may have begun before the window


def test_a_span_hides_that_many_bins_at_a_stretch():
    hidden = many("entry", 0.1, span=4)[:, UNITS].flatten(0, 1)
    edges = torch.diff(hidden.int(), dim=1)
    begins = (edges[:, :-4] == 1).nonzero()
    assert len(begins) > 100
    for row, at in begins[:300].tolist():
        assert hidden[row, at + 1:at + 5].all()


def test_each_mode_hides_in_its_own_shape():
    time, shared = many("time", 0.4), many("shared_time", 0.4)
    neuron, entry = many("neuron", 0.4), many("entry", 0.4)
    for hidden in (time, shared):                                       # whole bins, of all units
        assert all(torch.equal(h.any(0), h.all(0)) for h in (hidden[0, b, :size] for b, size in enumerate(SIZES)))
    assert torch.equal(shared[:, 0, 0], shared[:, 3, 0]) and not torch.equal(time[:, 0, 0], time[:, 3, 0])
    assert torch.equal(neuron.any(-1), neuron.all(-1)) and not torch.equal(neuron[:, 0], neuron[:, 3])
    assert not torch.equal(entry[:, 0].any(-1), entry[:, 0].all(-1))


@pytest.mark.parametrize("mode", MODES)
def test_padding_is_neither_hidden_nor_scored(mode):
    mask = draw(mode, UNITS, 10, 1.0, regions=REGIONS if mode.endswith("region") else None)
    assert mask.hidden.shape == mask.scored.shape == (4, 30, 10)
    assert not mask.hidden[~UNITS].any() and not mask.scored[~UNITS].any()
    assert not (mask.scored & ~mask.hidden).any()


def test_a_mask_between_regions_hides_one_whole_region():
    chosen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        mask = draw("inter_region", UNITS, 5, 0.5, regions=REGIONS)
        for window, regions in zip(mask.hidden, REGIONS, strict=True):
            hidden = window.all(1)
            assert torch.equal(hidden, window.any(1))
            (region,) = regions[hidden].unique().tolist()
            assert torch.equal(hidden, regions == region)
            chosen.add(region)
        assert torch.equal(mask.hidden, mask.scored)
    assert chosen == {0, 1, 2}


def test_a_mask_within_a_region_hides_all_others_and_scores_a_share_of_it():
    torch.manual_seed(0)
    share = []
    for _ in range(100):
        mask = draw("intra_region", UNITS, 5, 0.3, regions=REGIONS)
        hidden, scored = mask.hidden.all(2), mask.scored.all(2)
        for b in range(4):
            (region,) = set(range(3)) - set(REGIONS[b][UNITS[b] & hidden[b] & ~scored[b]].tolist())
            inside = REGIONS[b] == region
            assert torch.equal(hidden[b] & inside, scored[b]) and hidden[b][UNITS[b] & ~inside].all()
            share.append(scored[b][inside].float().mean())
    assert sum(share) / len(share) == pytest.approx(0.3, abs=0.03)


def test_units_of_no_region_are_hidden_with_the_others_and_never_scored():
    torch.manual_seed(0)
    regions = REGIONS.clone()
    regions[:, 5] = -1
    between, within = (draw(mode, UNITS, 5, 0.5, regions=regions) for mode in ("inter_region", "intra_region"))
    assert not between.hidden[:, 5].any() and not within.scored[:, 5].any() and within.hidden[:, 5].all()


@pytest.mark.parametrize("mode", BLIND)
def test_hidden_spikes_and_hidden_counts_are_the_same(mode):
    torch.manual_seed(0)
    batch = read([0, 1, 2, 1], [0.5, 3.25, 1.0, 8.9])
    for bin_size in (0.05, 0.02, 0.001):
        mask = draw(mode, batch.unit_mask, batch.bins(bin_size), 0.5)
        seen = mask.of_counts(batch.counts(bin_size))
        assert 0 < seen.sum() < len(batch.times)
        assert torch.equal(mask.of_spikes(batch).counts(bin_size), seen)


def test_spikes_on_the_edge_of_a_bin_are_hidden_with_the_bin_that_counts_them():
    for seconds, bin_size in ((1.0, 0.001), (10.0, 0.005), (300.0, 0.05)):
        edges = np.arange(1, round(seconds / bin_size)) * bin_size
        times = np.sort(np.concatenate([edges, edges - 5e-5 * bin_size]))
        session = replace(SESSIONS[0], spike_times=times, spike_units=np.zeros(len(times), int), series={},
                          intervals=[[0, seconds]])
        batch = Reader([session]).read([0], [0.0], seconds)
        mask = draw("time", batch.unit_mask, batch.bins(bin_size), 0.5)
        assert torch.equal(mask.of_spikes(batch).counts(bin_size), mask.of_counts(batch.counts(bin_size)))


def test_draws_follow_torch_s_seed():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(draw("entry", UNITS, 20, 0.5).hidden)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_corrupted_counts_change_where_hidden_and_as_asked():
    torch.manual_seed(0)
    counts = torch.full((4, 30, 400), 3.0)
    counts[0, 0, 0] = 7
    hidden = torch.rand(counts.shape) < 0.5
    assert torch.equal(corrupt(counts, hidden), counts.masked_fill(hidden, 0))
    assert torch.equal(corrupt(counts, hidden, silent=0.0), counts)
    changed = corrupt(counts, hidden, silent=0.4, random=0.5)
    assert torch.equal(changed[~hidden], counts[~hidden])
    share = torch.bincount(changed[hidden].long(), minlength=8) / hidden.sum()
    each = 0.6 * 0.5 / 8                                                # drawn evenly from 0 to the highest, 7
    assert share.tolist() == pytest.approx([0.4 + each, each, each, 0.3 + each, each, each, each, each], abs=0.02)


@pytest.mark.parametrize(("error", "message", "arguments"), [
    (UnknownName, "no mask 'neurons'; did you mean neuron", ("neurons", UNITS, 10, 0.5)),
    (WorkbenchError, r"a mask of ratio 0 and span 1 .* give a ratio in \(0, 1\]", ("time", UNITS, 10, 0.0)),
    (WorkbenchError, "a mask of ratio 1.5", ("time", UNITS, 10, 1.5)),
    (WorkbenchError, "needs the units' regions, and this model has none", ("inter_region", UNITS, 10, 0.5)),
])
def test_impossible_masks_are_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        draw(*arguments)


def test_masks_by_region_need_a_window_with_two_regions_and_leave_the_others_whole():
    for mode in ("inter_region", "intra_region"):
        for regions in (torch.where(UNITS, 0, -1), torch.full_like(REGIONS, -1)):
            with pytest.raises(WorkbenchError, match=f"a mask by {mode} needs a window with two regions"):
                draw(mode, UNITS, 10, 0.5, regions=regions)
        regions = REGIONS.clone()
        regions[0] = 0
        mask = draw(mode, UNITS, 10, 0.5, regions=regions)
        assert not mask.hidden[0].any() and mask.hidden[1:].flatten(1).any(1).all()
