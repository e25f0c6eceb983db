import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UnknownName, WorkbenchError
from workbench.training.recipe import BadRecipe, Recipe

BASE = {"name": "mine", "model": "gru", "data": "reach-sim"}


def refusal(call) -> str:
    with pytest.raises(WorkbenchError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", Recipe.available())
def test_every_shipped_recipe_is_the_same_after_a_trip_through_yaml(name, tmp_path):
    recipe = Recipe.preset(name)
    assert Recipe.load(recipe.save(tmp_path / "recipe.yaml")) == recipe
    assert Recipe.load(name) == recipe


@given(lr=st.floats(1e-9, 10), wd=st.floats(0, 1), steps=st.integers(1, 10**7), seed=st.integers(0, 2**40))
def test_numbers_survive_yaml_exactly(lr, wd, steps, seed, tmp_path_factory):
    recipe = Recipe(**BASE, seed=seed).with_(optim={"lr": lr, "weight_decay": wd}, budget={"steps": steps})
    assert Recipe.load(recipe.save(tmp_path_factory.getbasetemp() / "recipe.yaml")) == recipe


def test_1e_3_is_a_number_in_a_file_and_on_the_command_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: gru\ndata: reach-sim\noptim: {lr: 1e-3}\n")
    assert Recipe.load(path).optim.lr == 0.001
    assert Recipe(**BASE).override(["optim.lr=3e-4", "model.noise=1e-1"]).optim.lr == 3e-4
    assert Recipe(**BASE).override(["model.noise=1e-1"]).model.settings == {"noise": 0.1}


def test_an_unknown_setting_is_refused_by_its_dotted_key_with_near_names():
    sentence = refusal(lambda: Recipe(**BASE, optim={"lrr": 3}))
    assert "'optim.lrr'" in sentence and "optim.lr" in sentence and "'mine'" in sentence
    assert "optim.lr" in refusal(lambda: Recipe(**BASE).override(["lr=3"]))
    assert "budget.steps" in refusal(lambda: Recipe(**BASE).override(["budget.stepss=3"]))


def test_a_wrong_value_is_refused_with_its_key_and_itself():
    sentence = refusal(lambda: Recipe(**BASE).override(["optim.lr=fast"]))
    assert "optim.lr is 'fast'" in sentence
    assert "optim.lr is -1" in refusal(lambda: Recipe(**BASE).with_(optim={"lr": -1}))
    assert "optim.lr is inf" in refusal(lambda: Recipe(**BASE).with_(optim={"lr": float("inf")}))
    assert "budget.steps" in refusal(lambda: Recipe(**BASE).with_(budget={"steps": 0}))


def test_a_typo_in_a_cell_is_refused_and_nothing_changes_in_place():
    recipe = Recipe(**BASE)
    assert "did you mean optim" in refusal(lambda: setattr(recipe, "optimm", 3))
    assert "with_" in refusal(lambda: setattr(recipe.optim, "lr", 3))
    assert recipe == Recipe(**BASE)


def test_an_unknown_recipe_is_refused_with_near_names():
    with pytest.raises(UnknownName, match="poyo-reach"):
        Recipe.preset("poyo-reech")
    assert "nowhere.yaml" in refusal(lambda: Recipe.load("nowhere.yaml"))


def test_a_file_that_holds_no_recipe_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    for text in ("a: [1", "just words", ""):
        path.write_text(text)
        assert "r.yaml" in refusal(lambda: Recipe.load(path))


def test_a_text_without_equals_sign_is_refused():
    assert "key=value" in refusal(lambda: Recipe(**BASE).override(["optim.lr"]))


def test_names_that_look_like_numbers_stay_names():
    recipe = Recipe(**BASE).override(["data=000140"])
    assert recipe.data == "000140"
    assert Recipe(**BASE).override(["data=[a, b]"]).data == ["a", "b"]


def test_with_changes_only_what_it_names():
    recipe = Recipe(**BASE, optim={"lr": 1e-3, "clip": 2.0})
    assert recipe.with_(optim={"lr": 3e-4}).diff(recipe) == {"optim.lr": (3e-4, 1e-3)}
    assert recipe.optim.lr == 1e-3


def test_another_model_does_not_inherit_the_settings_of_the_first():
    recipe = Recipe(**{**BASE, "model": {"name": "poyo", "depth": 3}})
    assert recipe.with_(model="gru").model.settings == {}
    assert recipe.override(["model.name=gru"]).model.settings == {}
    assert recipe.override(["model.dim=8"]).model.settings == {"depth": 3, "dim": 8}


def test_baselines_run_on_the_same_data_target_split_and_seed():
    recipe = Recipe(**BASE, target="hand_vel", seed=7, split={"test": 0.3},
                    baselines={"gru": {"budget": {"steps": 5}}, "ridge": {}})
    gru = recipe.baseline("gru")
    assert (gru.data, gru.target, gru.seed, gru.split.test, gru.budget.steps) == ("reach-sim", "hand_vel", 7, 0.3, 5)
    assert gru.baselines == {}
    assert list(Recipe(**BASE, baselines=["ridge", "gru"]).baselines) == ["ridge", "gru"]


def test_an_impossible_baseline_is_refused_when_the_recipe_is_made():
    assert "ridge" in refusal(lambda: Recipe(**BASE, baselines=["rigde"]))
    assert "budget.steps" in refusal(lambda: Recipe(**BASE, baselines={"gru": {"budget": {"step": 5}}}))


def test_a_relative_path_of_a_recording_is_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "a.nwb").touch()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(**{**BASE, "data": ["a.nwb", "reach-sim"]}).anchored()
    assert recipe.data == [str(tmp_path / "a.nwb"), "reach-sim"]


def test_bad_recipe_is_a_value_error_too():
    with pytest.raises(ValueError):
        Recipe(model="gru")
    assert issubclass(BadRecipe, WorkbenchError)
