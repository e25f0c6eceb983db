"""What every model promises, whichever it is."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.models.small import SMALL
from workbench import models
from workbench.analysis.decoding import decode, score
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError
from workbench.models import base
from workbench.session import Series, Session
from workbench.windows import RandomWindows, split


def tuned(name: str = "tuned", seed: int = 0, seconds: float = 60.0, lag: float = 0.0) -> Session:
    """Simulated units whose rates follow a slow two-dimensional velocity."""
    random = np.random.default_rng(seed)
    clock = np.arange(0, seconds, 0.05) + 0.025
    phase = random.uniform(0, 2 * np.pi, (2, 4))
    velocity = sum(np.sin(2 * np.pi * clock[:, None] / (2.0 + 1.3 * i) + phase[:, i]) for i in range(4)) / 2
    direction = random.uniform(0, 2 * np.pi, 20)
    rates = 15 * np.exp(0.8 * (velocity @ np.stack([np.cos(direction), np.sin(direction)])))
    spikes = random.poisson(rates * 0.05)
    bins, units = np.nonzero(spikes)
    repeat = spikes[bins, units]
    times = np.repeat(clock[bins] - 0.025, repeat) + random.random(repeat.sum()) * 0.05
    order = np.argsort(times)
    return Session(id=name, spike_times=times[order], spike_units=np.repeat(units, repeat)[order], simulated=True,
                   units=pd.DataFrame({"id": [f"u{i}" for i in range(20)]}), intervals=[[0, seconds]],
                   series={"vel": Series(clock + lag, velocity, "m/s")})


def test_a_model_is_built_for_sessions_or_for_one_and_says_what_it_lacks():
    one = models.build("gru", tuned(), target="vel", dim=8)
    assert one.state_dict().keys() == models.build("gru", [tuned()], target="vel", dim=8).state_dict().keys()
    with pytest.raises(WorkbenchError, match="'gru' needs target=; there are the series vel in 'tuned'"):
        models.build("gru", [tuned()])
    for nothing in ([], "day2.nwb", ["day2.nwb"]):
        with pytest.raises(WorkbenchError, match=r"'gru' is built for Sessions, not for \[.*\]; open them first"):
            models.build("gru", nothing, target="vel")


def test_a_saved_model_is_found_by_its_folder_its_run_or_its_page(tmp_path, monkeypatch):
    gru = models.build("gru", [tuned()], target="vel", dim=8)
    gru.save_pretrained(tmp_path / "run" / "model")
    same = lambda other: all(torch.equal(value, other.state_dict()[key]) for key, value in gru.state_dict().items())
    assert same(models.load(tmp_path / "run")) and same(models.GRU.from_pretrained(tmp_path / "run" / "model"))
    asked = []
    monkeypatch.setattr(base, "snapshot_download", lambda page, **how: asked.append((page, how.get("revision"))) or
                        str(tmp_path / "run" / "model"))
    assert same(models.load("some/page", revision="v1")) and asked == [("some/page", "v1")]


def test_what_is_no_model_of_that_kind_is_one_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "gru"
    models.build("gru", [tuned()], target="vel", dim=8).save_pretrained(folder)
    with pytest.raises(WorkbenchError, match="gru holds a 'gru' model, not a 'poyo'; give the folder of one"):
        models.POYO.from_pretrained(folder)
    monkeypatch.setattr(base, "snapshot_download", lambda *_, **__: pytest.fail("asked the network for a folder"))
    for missing in (tmp_path, tmp_path / "none", f"{tmp_path.name}/none/model"):
        with pytest.raises(WorkbenchError, match=r"no model at .*; give the folder"):
            models.load(missing)

    def unreachable(*_, **__):
        raise OSError("no route\nto host")
    monkeypatch.setattr(base, "snapshot_download", unreachable)
    with pytest.raises(WorkbenchError, match=r"no model 'some/page': .* \(no route to host\)"):
        models.load("some/page")
    monkeypatch.undo()
    with pytest.raises(WorkbenchError, match=r"no model 'a..b/c': .* the hub gave no such page"):
        models.load("a..b/c")
    (tmp_path / "page").mkdir()
    monkeypatch.setattr(base, "snapshot_download", lambda *_, **__: str(tmp_path / "page"))
    for read in (models.load, models.GRU.from_pretrained):
        with pytest.raises(WorkbenchError, match=r"the page 'some/page' of the hub holds no config\.json"):
            read("some/page")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dim": 16}))
    with pytest.raises(WorkbenchError, match=r"'gru' in .* cannot be read: .* size mismatch"):
        models.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    with pytest.raises(WorkbenchError, match=r"'gru' in .* cannot be read"):
        models.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WorkbenchError, match=r"config.json does not say which model it is of"):
        models.load(folder)


def trained(name: str, sessions: list[Session], steps: int):
    parts = [split(s) for s in sessions]
    train, valid = ([p[part] for p in parts] for part in ("train", "valid"))
    torch.manual_seed(0)
    model = models.build(name, [s.within(p) for s, p in zip(sessions, train, strict=True)], target="vel", **SMALL[name])
    if hasattr(model, "fit"):
        model.fit(sessions, train, valid)
        return model, parts
    windows = RandomWindows(sessions, train, duration=model.window, batch_size=8, targets=("vel",),
                            align="vel" if model.bin_size else None)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for k in range(steps):
        adam.zero_grad()
        model.loss(windows.batch(k))["loss"].backward()
        adam.step()
    return model.eval(), parts


@pytest.mark.parametrize("name", ["poyo", "gru", "mlp", "ridge"])
def test_a_model_decodes_held_out_time_far_above_chance(name):
    session = tuned()
    model, (parts,) = trained(name, [session], steps=250 if name == "poyo" else 100)
    found = score(model, [session], [parts["test"]], "vel")
    assert found["r2"] > 0.6 and found["r2_causal"] > 0.5
    shuffled = score(model, [tuned(seed=9)], [parts["test"]], "vel")    # another animal under the same name
    assert shuffled["r2"] < 0.2


@pytest.mark.parametrize("name", ["poyo", "gru", "ridge"])
def test_a_model_of_two_sessions_decodes_both(name):
    sessions = [tuned("a", 1), tuned("b", 2)]
    model, parts = trained(name, sessions, steps=100)
    found = score(model, sessions, [p["test"] for p in parts], "vel")
    assert min(found["sessions"].values()) > 0.4


@pytest.mark.parametrize("name", ["ridge", "mlp", "gru"])
def test_binned_decoders_do_not_see_later_bins(name):
    session = tuned()
    model, _ = trained(name, [session], steps=2)
    batch = Reader([session], ("vel",)).read([0], [10.0], model.window)
    cut = batch.drop(batch.times > model.window / 2)
    early = batch.targets["vel"].times < model.window / 2 - 0.05
    assert torch.equal(model(batch).behavior[early], model(cut).behavior[early])
    assert not torch.equal(model(batch).behavior[~early], model(cut).behavior[~early])


@pytest.mark.parametrize("name", ["poyo", "gru"])
def test_sessions_weigh_the_same_however_often_they_are_sampled(name):
    slow, fast = tuned("slow", 1), tuned("fast", 2)
    vel = fast.series["vel"]
    fast.series["vel"] = Series(np.repeat(vel.times, 9) + np.tile(np.arange(9) * 0.005, len(vel.times)),
                                np.repeat(vel.values, 9, axis=0), "m/s")
    torch.manual_seed(0)
    model = models.build(name, [slow, fast], target="vel", **SMALL[name]).eval()
    read = lambda index: Reader([slow, fast], ("vel",)).read(index, [3.0] * len(index), model.window)
    alone = [model.loss(read([i]))["loss"] for i in (0, 1)]
    torch.testing.assert_close(model.loss(read([0, 1]))["loss"], sum(alone) / 2)


@pytest.mark.parametrize("name", ["poyo", "gru"])
def test_a_batch_without_a_sample_teaches_nothing_and_breaks_nothing(name):
    session = tuned()
    model = models.build(name, [session], target="vel", **SMALL[name])
    vel = session.series["vel"]
    session.series["vel"] = vel._replace(values=np.where(vel.times[:, None] < 30, vel.values, np.nan))
    loss = model.loss(Reader([session], ("vel",)).read([0, 0], [40.0, 50.0], model.window))["loss"]
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_ridge_knows_units_by_name():
    session = tuned()
    model, (parts,) = trained("ridge", [session], 0)
    order = np.random.default_rng(0).permutation(20)
    mixed = replace(session, units=session.units.iloc[order].reset_index(drop=True),
                    spike_units=np.argsort(order)[session.spike_units])
    some = session.select(range(5, 20))
    silent = replace(session, spike_times=session.spike_times[session.spike_units >= 5],
                     spike_units=session.spike_units[session.spike_units >= 5])
    of = {name: decode(model, each, parts["test"], "vel").averaged for name, each in (
        ("own", session), ("mixed", mixed), ("some", some), ("silent", silent))}
    np.testing.assert_allclose(of["mixed"], of["own"], atol=1e-5)
    np.testing.assert_allclose(of["some"], of["silent"], atol=1e-5)     # who is not there is silent
    other = replace(session, units=session.units.assign(id=[f"x{i}" for i in range(20)]))
    with pytest.raises(WorkbenchError, match="none of the 20 units that ridge was fitted to is in 'tuned'"):
        decode(model, other, parts["test"], "vel")


def test_ridge_agrees_with_scikit_learn_with_many_features_and_with_few():
    from sklearn.linear_model import Ridge as Reference

    from workbench.models.ridge import solve
    random = np.random.default_rng(0)
    for samples, features in ((200, 30), (30, 200)):
        x, y = random.poisson(2.0, (samples, features)).astype(np.float32), random.normal(size=(samples, 2)) + 3
        for penalty, found in zip((1.0, 100.0), solve(x, y, (1.0, 100.0)), strict=True):
            want = Reference(alpha=penalty).fit(x, y)
            np.testing.assert_allclose(x @ found[:-1] + found[-1], want.predict(x), atol=1e-4)


def test_unknown_models_and_settings_are_refused():
    with pytest.raises(UnknownName, match="no model 'poya'; did you mean poyo"):
        models.build("poya", [tuned()], target="vel")
    with pytest.raises(WorkbenchError, match=r"no setting 'depht' in model 'gru'"):
        models.build("gru", [tuned()], target="vel", depht=3)
    with pytest.raises(WorkbenchError, match=r"latents of model 'poyo' is 7\.5; give a whole number"):
        models.build("poyo", [tuned()], target="vel", latents=7.5)
    with pytest.raises(WorkbenchError, match=r"dropout of model 'gru' is 'much'; give a number"):
        models.build("gru", [tuned()], target="vel", dropout="much")
    for key in ("bin_size", "window"):
        with pytest.raises(WorkbenchError, match=f"{key} of model 'ndt1' is 0; give seconds above 0"):
            models.build("ndt1", [tuned()], **{key: 0})
    with pytest.raises(UnknownName, match="no series 'speed' in session 'tuned'; there are vel"):
        models.build("poyo", [tuned()], target="speed")
    with pytest.raises(UnknownName, match=r"no size '2M' in the published sizes of POYO; there are 1\.3M"):
        models.build("poyo", [tuned()], target="vel", size="2M")
    with pytest.raises(WorkbenchError, match=r"windows of 0\.4 s leave nothing after a warm-up of 0\.5 s"):
        models.build("gru", [tuned()], target="vel", window=0.4)


@pytest.mark.parametrize("name", ["ridge", "gru"])
def test_a_session_that_a_model_was_not_built_for_is_refused(name):
    model, _ = trained(name, [tuned()], steps=1)
    with pytest.raises(UnknownName, match=r"no (session 'other'|unit 'other/u0')"):
        model(Reader([tuned("other")], ("vel",)).read([0], [0.0], model.window))


def test_a_model_of_ones_own_is_known_by_its_name(monkeypatch):
    from workbench.models.gru import GRU

    monkeypatch.setattr(models, "_OWN", {})

    @models.register
    class Mine(GRU):
        name = "mine"

    assert models.get("mine") is Mine and models.available()["mine"] == ["decodes"]
    assert isinstance(models.build("mine", [tuned()], target="vel", dim=8), Mine)
    with pytest.raises(WorkbenchError, match="Taken has the name 'gru'"):
        models.register(type("Taken", (GRU,), {"name": "gru"}))


def test_the_workbench_alone_leads_to_its_models():
    import subprocess
    import sys
    code = "import workbench as w; print(*w.models.available(), sorted(set(w.__all__) - set(dir(w))))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "poyo" in said and said[-1] == "[]"
