"""Neuroformer: nobody sees later spikes, token by token equals at once, what is drawn looks like what was learnt."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_zoo import SESSIONS
from workbench import models
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.models.neuroformer import _draw
from workbench.session import Series, Session
from workbench.training.objectives import held_out
from workbench.windows import RandomWindows


def filmed(session: Session) -> Session:
    """With a film of 30 frames a second."""
    clock = np.arange(0, 20, 1 / 30)
    film = np.random.default_rng(0).random((len(clock), 12 * 16))
    return replace(session, series={**session.series, "film": Series(clock, film)})


FILMED = [filmed(session) for session in SESSIONS]
FILM = dict(frames="film", frame_size=[12, 16], behavior=["vel"])


def build(sessions=FILMED, **settings):
    torch.manual_seed(0)
    model = models.build("neuroformer", sessions, **SMALL["neuroformer"] | settings)
    for place in (*model.blank, model.start, model.units.weight):       # as far apart as after training
        torch.nn.init.normal_(place)
    return model.eval()


def read(model, session, starts, sessions=FILMED):
    return Reader(sessions, also=model.reads).read(session, starts, model.window)


def same(one, other, upto):
    """Whether the latents of two batches agree bin by bin [T], up to a bin and not after."""
    gap = (one - other).abs().amax((0, 2))
    return bool((gap[:upto] < 1e-5).all()) and bool((gap[upto:] > 1e-4).any())


def test_no_bin_feels_later_spikes():
    model = build()
    batch = read(model, [0, 1], [1.0, 3.0])
    later = batch.drop(batch.times > 0.26)                              # in the sixth bin
    assert same(model(batch).latents, model(later).latents, 5)


def test_no_spike_feels_later_spikes_of_its_bin():
    model = build()
    batch = read(model, [1], [3.0])
    spikes, bins = model.spikes(batch), torch.tensor([4])
    own = model.cut(spikes, batch, bins, 0, model.steps)
    assert own.there.sum() >= 4
    other = own._replace(x=torch.cat([own.x[:, :3], torch.randn_like(own.x[:, 3:])], 1))
    contexts = model.contexts(spikes, batch, bins)
    one, two = (model.features(each, contexts)[0][0] for each in (own, other))
    torch.testing.assert_close(one[:4], two[:4], atol=1e-6, rtol=1e-5)
    assert ((one - two)[4:].abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("name", ["vel", "film"])
def test_frames_and_behaviour_are_seen_and_never_before_their_time(name):
    model = build(**FILM)
    batch = read(model, [0, 1], [1.0, 3.0])
    series = batch.targets[name]
    values = torch.where(series.times[:, None] > 0.26, series.values + 1.0, series.values)
    changed = replace(batch, targets={**batch.targets, name: series._replace(values=values)})
    assert same(model(batch).latents, model(changed).latents, 5)


def test_frames_reach_back_as_far_as_the_past():
    model = build(**FILM)
    batch = read(model, [0], [1.0])
    film = batch.targets["film"]
    contexts = model.contexts(model.spikes(batch), batch, torch.arange(8))
    assert [context.there.shape[0] for context in contexts] == [8, 8, 8]
    patches = len(model.pictures.place)
    assert patches == 2 * 3 and contexts[1].there[7].sum() == 1 + patches * 2     # 0.2 s of film are two threes
    assert contexts[1].there.sum(1).max() <= 1 + patches * 3 and len(film.times) == 12


def test_a_past_is_as_long_as_it_says():
    model = build()
    batch = read(model, [0], [1.0])
    longer = batch.drop(batch.times < 0.099)                            # bin 5 starts at 0.25, its past at 0.10
    gap = (model(batch).latents - model(longer).latents).abs().amax((0, 2))
    assert (gap[5:] < 1e-6).all() and gap[4] > 1e-4


def test_a_session_may_lack_frames_and_a_bin_spikes():
    model = build([FILMED[0], SESSIONS[1]], **FILM)
    batch = read(model, [0, 1], [1.0, 3.0], [FILMED[0], SESSIONS[1]])
    assert torch.isfinite(model(batch).latents).all() and torch.isfinite(model.loss(batch)["loss"])
    silent = batch.drop(torch.ones(len(batch.times), dtype=torch.bool))
    assert torch.isfinite(model(silent).latents).all() and torch.isfinite(model.loss(silent)["loss"])


def test_the_losses_are_the_cross_entropies_of_the_next_unit_and_its_time():
    """By hand, spike by spike, from the scores of one bin."""
    model = build(window=0.2)
    batch = read(model, [0], [1.0])
    own = model.cut(model.spikes(batch), batch, torch.tensor([3]), 0, model.steps)
    features, _ = model.features(own, model.contexts(model.spikes(batch), batch, torch.tensor([3])))
    which, when = model.scores(features, torch.nn.functional.pad(own.steps, (1, 0)), batch)
    last = batch.times >= 0.15
    units, steps = batch.units[last].tolist(), ((batch.times[last] - 0.15) / 0.01).long().tolist()
    unit = [-which[0, i].log_softmax(0)[u] for i, u in enumerate([*units, 8])]
    step = [-when[0, i].log_softmax(0)[s] for i, s in enumerate(steps)]
    told = model.loss(batch)
    torch.testing.assert_close(told["unit"], torch.stack(unit).mean())
    torch.testing.assert_close(told["when"], torch.stack(step).mean())
    torch.testing.assert_close(told["loss"], 0.6 * told["unit"] + 0.4 * told["when"])


def test_gradients_reach_frames_behaviour_and_contrast():
    model = build(**FILM, contrast=0.5, contrast_dim=16).train()
    loss = model.loss(read(model, [0, 1, 0], [1.0, 3.0, 7.0]))
    loss["loss"].backward()
    torch.testing.assert_close(loss["loss"], 0.6 * loss["unit"] + 0.4 * loss["when"] + 0.5 * loss["contrast"])
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_bins_without_frames_are_not_contrasted():
    model = build([FILMED[0], SESSIONS[1]], **FILM, contrast=0.5, contrast_dim=16)
    sessions = [FILMED[0], SESSIONS[1]]
    contrast = lambda which, starts: model.loss(read(model, which, starts, sessions))["contrast"]
    with torch.no_grad():
        torch.testing.assert_close(contrast([0, 1, 1], [1.0, 3.0, 5.0]), contrast([0], [1.0]))
        assert contrast([1, 1], [3.0, 5.0]) == 0


def test_token_by_token_says_what_all_at_once_says():
    """Drawing the very spikes of a bin, each from its scores, meets the scores that the loss sees."""
    model = build(**FILM, depth=2)
    batch = read(model, [0, 1], [1.0, 3.0])
    spikes, bins = model.spikes(batch), torch.tensor([6])
    own = model.cut(spikes, batch, bins, 0, model.steps)
    features, _ = model.features(own, model.contexts(spikes, batch, bins))
    which, when = model.scores(features, torch.nn.functional.pad(own.steps, (1, 0)), batch)
    nobody = which.shape[2] - 1
    unit = model.cut(spikes._replace(x=batch.units), batch, bins, 0, model.steps).x.masked_fill(~own.there, nobody)
    true, seen = [unit, own.steps], []

    def follow(scores):
        seen.append(scores[:, 0])
        k, kind = divmod(len(seen) - 1, 2)
        return true[kind][:, k] if k < unit.shape[1] else torch.full((2,), nobody * (1 - kind))

    begun = batch.drop(batch.spike_bins(model.bin_size) >= 6)
    with torch.no_grad():
        again = model._draw_bin(begun, 6, follow, most=100)
    for k in range(unit.shape[1]):
        for row in range(2):
            if k <= own.there[row].sum():
                torch.testing.assert_close(seen[2 * k][row], which[row, k], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(seen[2 * k + 1][row], when[row, k], atol=1e-5, rtol=1e-4)
    kept = batch.drop(batch.spike_bins(model.bin_size) > 6)
    assert torch.equal(again.offsets, kept.offsets) and torch.equal(again.units, kept.units)
    assert torch.equal(again.spike_bins(0.01), kept.spike_bins(0.01))


def test_what_is_drawn_is_a_batch_that_keeps_what_was_given():
    model = build()
    batch = read(model, [0, 1, 0], [1.0, 3.0, 8.0])
    drawn = model.generate(batch, since=0.2)
    given, kept = batch.drop(batch.times >= 0.2), drawn.drop(drawn.times >= 0.2)
    assert torch.equal(given.times, kept.times) and torch.equal(given.units, kept.units)
    assert (drawn.offsets[1:] > given.offsets[1:]).all() and drawn.offsets[-1] == len(drawn.times) == len(drawn.units)
    for b in range(3):
        times = drawn.times[drawn.offsets[b]:drawn.offsets[b + 1]]
        assert (times.diff() >= 0).all() and times.min() >= 0 and times.max() < model.window
    assert (drawn.units < drawn.unit_offsets.diff()[drawn.windows]).all()
    assert drawn.counts(0.05).shape == batch.counts(0.05).shape


def test_drawing_sees_no_true_spike_after_its_start_and_repeats_with_its_seed():
    model = build()
    batch = read(model, [0, 1], [1.0, 3.0])
    drawn = []
    for given in (batch, batch.drop(batch.times >= 0.2)):
        torch.manual_seed(4)
        drawn.append(model.generate(given, since=0.2))
    assert torch.equal(drawn[0].times, drawn[1].times) and torch.equal(drawn[0].units, drawn[1].units)
    assert not model.generate(batch, since=0.2).times.equal(drawn[0].times)


def test_new_models_fire_at_the_rates_of_the_recording():
    model = build()
    torch.nn.init.zeros_(model.next_unit.units.weight[:, :-1])
    torch.nn.init.zeros_(model.no_unit.weight), torch.nn.init.zeros_(model.no_unit.bias)
    batch = read(model, [0] * 24, np.arange(24) * 0.8)
    drawn = model.generate(batch)
    count = lambda b: b.counts(0.05)[:, :8, 3:].sum((0, 2))
    assert 0.7 < count(drawn).sum() / count(batch).sum() < 1.4


def test_only_probable_choices_are_drawn():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(400, 1)
    assert set(_draw(scores, None, 1.0).tolist()) == {0, 1, 2, 3}
    assert set(_draw(scores, 2, 1.0).tolist()) == {0, 1}
    assert set(_draw(scores, None, 0.7).tolist()) == {0, 1} and set(_draw(scores, None, 0.5).tolist()) == {0}


def chain() -> Session:
    """Four units that always fire one after the other, 12 ms apart."""
    times = np.arange(0.005, 20, 0.012)
    return Session(id="chain", spike_times=times, spike_units=np.arange(len(times)) % 4, intervals=[[0, 20.0]],
                   units=pd.DataFrame({"id": list("abcd")}))


def test_training_moves_what_is_drawn_to_the_order_of_the_recording():
    session = chain()
    torch.manual_seed(0)
    model = models.build("neuroformer", [session], **SMALL["neuroformer"])
    windows = RandomWindows([session], [session.intervals], duration=model.window, batch_size=8)

    def in_order():
        torch.manual_seed(1)
        drawn = model.generate(Reader([session]).read([0] * 8, np.arange(8.0), model.window), since=0.2)
        new = (drawn.windows[1:] == drawn.windows[:-1]) & (drawn.times[1:] > 0.21)
        return ((drawn.units[1:] - drawn.units[:-1]) % 4 == 1)[new].float().mean().item()

    before = in_order()
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for k in range(60):
        adam.zero_grad()
        model.loss(windows.batch(k))["loss"].backward()
        adam.step()
    assert before < 0.4 and in_order() > 0.65


def test_behaviour_that_is_shown_is_not_read_out():
    parts = [np.array([[a, a + 6.0]]) for a in (0.0, 6.0, 12.0)]
    for behavior, scored in (([], ["vel", "spikes"]), (["vel"], ["spikes"])):
        scores, protocol = held_out(build(FILMED[:1], behavior=behavior), FILMED[:1], *([p] for p in parts), "vel")
        assert list(scores) == scored and ("no probe of vel: the model is shown it" in protocol) == bool(behavior)


@pytest.mark.parametrize(("settings", "error", "message"), [
    (dict(resolution=0.03), WorkbenchError, "no whole numbers of 0.03 s"),
    (dict(window=0.15), WorkbenchError, "holds no bin of 0.05 s after a past of 0.15 s"),
    (dict(contrast=1.0), WorkbenchError, "nothing to contrast spikes with"),
    (dict(frames="film", frame_size=[4, 48]), WorkbenchError, "no patches of 8 × 8"),
    (dict(frames="movie", frame_size=[12, 16]), UnknownName, "no series 'movie'"),
    (dict(behavior=["velocity"]), UnknownName, "no series 'velocity'")])
def test_settings_that_cannot_be_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        build(**settings)


def test_frames_of_another_size_are_refused():
    model = build(frames="film", frame_size=[16, 16])
    with pytest.raises(BadRecording, match="'film' has 192 pixels, not 16 × 16"):
        model(read(model, [0], [1.0]))
