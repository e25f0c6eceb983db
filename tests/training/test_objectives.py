"""Runs of models that decode nothing: chosen by their own loss, scored by what they do."""

import json

import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_models import tuned
from workbench import models
from workbench.__main__ import main
from workbench.analysis import probe
from workbench.analysis.decoding import score
from workbench.models.base import Output
from workbench.training import objectives
from workbench.training.run import Run, runs
from workbench.training.trainer import CannotTrain, train
from workbench.windows import split

SESSION = tuned(seconds=40)
PARTS = split(SESSION)


@pytest.fixture(scope="module")
def masked(tiny):
    """A masked transformer that needs no target."""
    return tiny.with_(name="masked", model={"name": "ndt1", **SMALL["ndt1"]}, target=None)


@pytest.fixture(scope="module")
def whole(masked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(masked, folder) == "finished"
    return Run(folder)


def test_without_a_target_the_best_weights_are_those_of_the_lowest_validation_loss(whole):
    metrics, protocol = whole.metrics(), whole.result()["protocol"]
    assert (whole.status["valid_name"], protocol["valid_name"], protocol["target"]) == ("loss", "loss", None)
    assert protocol["best_step"] == metrics.loc[metrics["valid"].idxmin(), "step"]
    assert protocol["valid"] == whole.status["valid"] == metrics["valid"].min()
    assert metrics["valid"].count() == 4 and metrics["valid"].max() > metrics["valid"].min()


def test_a_reconstructing_model_gets_its_held_out_loss_and_bits_per_spike_and_no_r2(whole):
    scores = whole.result()["scores"]
    assert list(scores) == ["spikes"] and {"loss", "bits_per_spike", "running_mean_bits"} <= set(scores["spikes"])
    assert "bits per spike" in whole.result()["protocol"]["scoring"]
    table = runs(whole.path.parent).loc[str(whole.path)]
    assert table["test_bits"] == scores["spikes"]["bits_per_spike"] and table["test_r2"] is None
    assert "validation loss" in repr(whole) and "R²" not in repr(whole)
    assert "loss" in whole.scores() and "r2" not in whole.scores()


def test_a_forecaster_is_scored_bin_by_bin_ahead_and_its_rates_are_probed_for_nothing():
    model = models.build("neurohorizon", [SESSION.within(PARTS["train"])], **SMALL["neurohorizon"])
    parts = [[PARTS[name]] for name in ("train", "valid", "test")]
    scores, protocol = objectives.held_out(model, [SESSION], *parts, "vel")
    told = scores["spikes"]
    assert list(scores) == ["spikes"] and list(told["forecast"]) == [f"{50 * k}" for k in range(1, 11)]
    assert told["forecast"].keys() == told["forecast_running_mean"].keys() and "bits per spike" in protocol


def test_a_stopped_run_without_a_target_resumes_to_the_same_weights(masked, whole, tmp_path):
    def stop(status):
        if status.get("step") == 13:
            (tmp_path / "STOP").touch()

    assert train(masked, tmp_path, on_step=stop) == "stopped"
    (tmp_path / "STOP").unlink()
    assert train(masked, tmp_path) == "finished"
    weights = "model/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (whole.path / weights).read_bytes()
    assert Run(tmp_path).result()["scores"] == whole.result()["scores"]


def test_where_a_target_is_named_a_probe_reads_it_off_the_rates(masked, tmp_path, capsys):
    masked.with_(target="hand_vel", budget={"steps": 10}).save(tmp_path / "r.yaml")
    assert main(["train", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")]) == 0
    result = Run(tmp_path / "run").result()
    assert set(result["scores"]) == {"hand_vel", "spikes"} and result["protocol"]["valid_name"] == "loss"
    assert set(result["scores"]["hand_vel"]) >= {"r2", "r2_causal", "r2_per_dim", "samples"}
    assert "ridge from rates" in result["protocol"]["scoring"]
    told = capsys.readouterr().out
    assert f"{result['scores']['hand_vel']['r2']:.3f}" in told and "bits per spike" in told


def test_the_monitor_names_a_loss_a_loss(whole):
    view = whole.watch()
    assert view._curves.score.title.text == "validation loss" and "best validation loss" in view._head.object
    assert list(view._curves.valid.data["valid"]) == whole.metrics()["valid"].dropna().tolist()
    low, high = view._curves.score.y_range.start, view._curves.score.y_range.end
    assert all(low < value < high for value in view._curves.valid.data["valid"])


def test_a_model_that_needs_a_target_still_says_so(tiny, tmp_path):
    with pytest.raises(CannotTrain, match="say target=NAME"):
        train(tiny.with_(target=None), tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


class Toy(torch.nn.Module):
    """A loss that is random, and latents that follow the target linearly, bin by bin."""

    decodes = reconstructs = locked = False
    window, warmup, bin_size, reads, history = 1.0, 0.0, 0.05, (), 0.0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.mix = torch.randn(2, 5)

    def forward(self, batch):
        values = batch.targets["vel"].values.view(len(batch), -1, 2)
        return Output(latents=values @ self.mix + 3)

    def loss(self, batch):
        return {"loss": self.weight.sum() * torch.rand(1).item() + batch.starts.sum()}


def test_the_loss_is_that_of_the_same_windows_and_random_numbers_at_every_call():
    model = Toy()
    torch.manual_seed(1)
    one = objectives.own_loss(model, [SESSION], [PARTS["valid"]])
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert objectives.own_loss(model, [SESSION], [PARTS["valid"]]) == one
    assert objectives.own_loss(model, [SESSION], [PARTS["test"]]) != one
    assert model.training


def test_every_session_has_a_loss_of_its_own_and_the_whole_stays_what_it_was():
    sessions = [SESSION, tuned("other", seed=1, seconds=60), tuned("third", seed=2, seconds=50)]
    parts = [split(s)["test"] for s in sessions]
    model, each = Toy(), {}
    assert objectives.own_loss(model, sessions, parts, each=each) == objectives.own_loss(model, sessions, parts)
    assert objectives.valid(model, sessions, parts, None) == {"valid": objectives.own_loss(model, sessions, parts),
                                                              "valid_sessions": each}
    model.loss = lambda batch: {"loss": batch.starts.mean()}
    objectives.own_loss(model, sessions, parts, each=each)
    for session, part in zip(sessions, parts, strict=True):             # which its windows of 1 s alone have
        assert each[session.id] == pytest.approx(objectives.own_loss(model, [session], [part]))
    assert list(objectives.valid(model, sessions[:1], parts[:1], None)) == ["valid"]


def test_every_session_has_an_r2_of_its_own():
    sessions = [SESSION, tuned("other", seed=1, seconds=40)]
    parts = [split(s)["valid"] for s in sessions]
    told = objectives.valid(models.build("gru", sessions, target="vel", **SMALL["gru"]), sessions, parts, "vel")
    assert list(told["valid_sessions"]) == ["tuned", "other"]
    assert sum(told["valid_sessions"].values()) / 2 == pytest.approx(told["valid"])


def test_a_probe_finds_what_is_linear_in_the_latents_and_nothing_where_it_is_not_bin_by_bin():
    model = Toy()
    parts = [[PARTS[name]] for name in ("train", "valid", "test")]
    found = probe.fit(model, [SESSION], *parts[:2], "vel")
    assert found.source == "latents" and score(found, [SESSION], parts[2], "vel")["r2"] > 0.999
    model.forward = lambda batch: Output(latents=torch.zeros(len(batch), 7, 3))
    assert probe.fit(model, [SESSION], *parts[:2], "vel") is None


def test_a_probe_of_noise_is_worth_nothing():
    model = Toy()
    model.forward = lambda batch: Output(latents=torch.randn(len(batch), 20, 5))
    found = probe.fit(model, [SESSION], [PARTS["train"]], [PARTS["valid"]], "vel")
    assert abs(score(found, [SESSION], [PARTS["test"]], "vel")["r2"]) < 0.1
    assert all(torch.isfinite(weight).all() for weight in found.maps.values())
