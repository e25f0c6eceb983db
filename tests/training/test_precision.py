"""bf16 and compiled training steps: what they change, what they leave alone, and how they are refused."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from tests.training.test_trainer import equal, final
from workbench import models
from workbench.errors import WorkbenchError
from workbench.models.base import SpikeModel
from workbench.sources.simulated import reach_sim
from workbench.training import precision
from workbench.training.precision import CannotCompute
from workbench.training.run import Run
from workbench.training.trainer import train


def stopped_at(recipe, folder, step: int):
    """The run stopped at a step, and then gone on with."""
    def stop(status):
        if status.get("step") == step:
            (folder / "STOP").touch()

    assert train(recipe, folder, on_step=stop) == "stopped"
    (folder / "STOP").unlink()
    assert train(recipe, folder) == "finished"
    return final(folder)


@pytest.fixture(scope="module")
def bf16(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16")
    assert train(tiny.with_(precision="bf16"), folder) == "finished"
    return folder


def test_a_run_in_bf16_that_was_stopped_ends_with_the_weights_it_would_have_had(tiny, bf16, tmp_path):
    assert equal(stopped_at(tiny.with_(precision="bf16"), tmp_path, 17), final(bf16))


def test_in_bf16_weights_moments_averages_and_losses_stay_float32(tiny, bf16, tmp_path):
    state = final(bf16)
    moments = [each[name] for each in state["optimizer"]["state"].values() for name in ("exp_avg", "exp_avg_sq")]
    kept = [*state["model"].values(), *state["ema"].values(), *state["best"]["weights"].values(), *moments]
    assert {each.dtype for each in kept if each.is_floating_point()} == {torch.float32}
    train(tiny, tmp_path)
    one, two = (Run(folder).metrics()["loss"] for folder in (bf16, tmp_path))
    assert (one != two).any() and one.tolist() == pytest.approx(two.tolist(), rel=0.05)
    protocol = [json.loads((folder / "result.json").read_text())["protocol"] for folder in (bf16, tmp_path)]
    assert [each.get("precision") for each in protocol] == ["bf16", None]


def test_a_run_in_bf16_chooses_and_scores_its_weights_in_float32(tiny, tmp_path, monkeypatch):
    seen = []
    forward = models.get("gru").forward

    def watched(model, batch):
        said = forward(model, batch)
        seen.append((model.training, torch.is_autocast_enabled("cpu"), said.latents.dtype))
        return said
    monkeypatch.setattr(models.get("gru"), "forward", watched)
    train(tiny.with_(precision="bf16", budget={"steps": 4, "eval_every": 2}), tmp_path)
    assert {(training, cast) for training, cast, _ in seen} == {(True, True), (False, False)}
    assert {kind for training, _, kind in seen if not training} == {torch.float32}


class Looker(SpikeModel):
    """Looks at its answers with numpy, which has no bf16."""

    name, decodes, window = "looker", False, 1.0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    @classmethod
    def for_sessions(cls, sessions):
        return cls()

    def loss(self, batch):
        found = self.layer(torch.ones(4, 2))
        return {"loss": found.square().sum() / float(found.detach().numpy().max())}


def test_what_cannot_be_computed_is_refused_in_one_sentence(tiny, tmp_path, monkeypatch):
    def refusal(recipe) -> str:
        with pytest.raises(WorkbenchError) as caught:
            train(recipe, tmp_path / "run")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    ridge = tiny.with_(model="ridge")
    assert "solved at once" in refusal(ridge.with_(precision="bf16"))
    assert "compile=false" in refusal(ridge.with_(compile=True))
    monkeypatch.setitem(models._OWN, "looker", Looker)
    said = refusal(tiny.with_(model="looker", precision="bf16"))
    assert "'looker' does not train in bf16" in said and said.endswith("say precision=float32")

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(CannotCompute, match="does not compute in bf16; say precision=float32"):
        precision.check(tiny.with_(precision="bf16"), torch.device("cuda"))

    def broken(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin a list")
    monkeypatch.setattr(torch, "compile", broken)
    said = refusal(tiny.with_(compile=True))
    assert "No working C++ compiler" in said and said.endswith("say compile=false")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


POYO = {"name": "poyo", "dim": 16, "depth": 1, "latents": 2, "head_dim": 8, "cross_heads": 1, "self_heads": 1}


@pytest.mark.parametrize("settings", [POYO, {"name": "ndt1", "dim": 16, "depth": 1, "bin_size": 0.05}])
def test_only_training_steps_run_compiled_and_the_model_stays_as_it_was(settings, tiny, tmp_path, monkeypatch):
    """By a compiler that hands back the operations that it was given, which takes seconds and not minutes."""
    calls, compile_ = [], torch.compile

    def counted(function, **how):
        fast = compile_(function, backend="eager", **how)
        return lambda *given, **named: (calls.append(given[0].training and torch.is_grad_enabled()),
                                        fast(*given, **named))[1]
    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setattr(precision, "check", lambda *_, **__: None)
    recipe = tiny.with_(model=settings, budget={"steps": 10, "eval_every": 5})
    train(recipe.with_(compile=True), tmp_path / "compiled")
    assert calls and all(calls)
    count = len(calls)
    train(recipe, tmp_path / "plain")
    assert len(calls) == count
    compiled, plain = (final(tmp_path / name) for name in ("compiled", "plain"))
    assert compiled["model"].keys() == plain["model"].keys()
    for name, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, rtol=1e-3, atol=1e-5)
    models.load(tmp_path / "compiled" / "model").load_state_dict(plain["model"])


def test_a_layer_is_itself_again_after_training_even_after_a_failure(tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, recipe = models.build("poyo", [reach_sim(seconds=20, units=4)], target="hand_vel",
                                 **{k: v for k, v in POYO.items() if k != "name"}), tiny.with_(compile=True)
    with pytest.raises(CannotCompute, match=r"'poyo' fails where its training step is compiled .* say compile=false"), \
            precision.training(model, recipe), precision.told(model, recipe):
        assert any("forward" in vars(layer) for layer in model.modules())
        raise torch._dynamo.exc.InternalTorchDynamoError("no such thing")
    assert not any("forward" in vars(layer) for layer in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [POYO, {"name": "ndt1", "dim": 16, "depth": 1, "bin_size": 0.05},
                                      {"name": "gru", "dim": 16, "window": 1.0}])
def test_a_compiled_run_goes_on_to_the_same_weights_and_from_a_plain_checkpoint(settings, tiny, tmp_path):
    recipe = tiny.with_(model=settings, compile=True, budget={"steps": 12, "eval_every": 6})
    train(recipe, tmp_path / "whole")
    (tmp_path / "resumed").mkdir()
    assert equal(stopped_at(recipe, tmp_path / "resumed", 7), final(tmp_path / "whole"))
    train(recipe.with_(compile=False, budget={"steps": 6}), tmp_path / "plain")
    (tmp_path / "mixed" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "plain" / "checkpoints").glob("*.pt"):
        (tmp_path / "mixed" / "checkpoints" / path.name).write_bytes(path.read_bytes())
    assert train(recipe, tmp_path / "mixed") == "finished" and len(Run(tmp_path / "mixed").metrics()) == 6
