"""From a run to the dashboards that open its model: those that can, and no others."""

import html
import re
from urllib.parse import quote_plus

import panel as pn
import pytest

from tests.apps.test_runs import folder_of_a_run
from tests.models.small import SMALL
from tests.models.test_models import tuned
from workbench import models
from workbench.analysis import latents
from workbench.analysis.filling import Filler
from workbench.apps import runs
from workbench.apps._run_facts import FILLS, MOMENTS, openers
from workbench.apps.runs import RunMonitor
from workbench.batch import Reader
from workbench.errors import WorkbenchError
from workbench.training.objectives import takes_target
from workbench.training.recipe import Recipe
from workbench.windows import split


def opened_by(path, **model) -> dict:
    Recipe.preset("demo").with_(model=model).save(path / "recipe.yaml")
    return openers(runs.Run(path))


def test_a_checkpoint_is_opened_by_the_dashboards_that_can_and_not_before_there_is_one(tmp_path):
    path = folder_of_a_run(tmp_path / "a run", rows=3)
    assert opened_by(path, name="ndt1") == {} and RunMonitor(path)._opens.object == ""
    (path / "model").mkdir()
    told = {"run": str(path)}
    assert opened_by(path, name="ridge") == {}
    assert opened_by(path, name="neurohorizon", conditions=["hand_vel"]) == {"latents": told, "attribution": told}
    assert opened_by(path, name="poyo") == {"latents": told}
    (path / "pictures").mkdir()
    for name in ("pictures.npz", "report.json"):
        (path / "pictures" / name).touch()
    assert opened_by(path, name="ndt1") == {"latents": told, "masking": told, "gallery": {"folder": str(path)}}
    shown = RunMonitor(path)._opens.object                              # in a cell there is no page to go to
    assert "<a" not in shown and f"Latents({str(path)!r})" in html.unescape(shown)
    for line in re.search("<pre[^>]*>(.*)</pre>", shown, re.DOTALL)[1].splitlines():
        compile(html.unescape(line), "cell", "exec")


@pytest.mark.parametrize(("query", "starts"), [({"app": [b"runs"]}, "?app=latents&amp;run="), ({}, "latents?run=")])
def test_links_lead_to_the_hub_or_to_the_page_beside(tmp_path, monkeypatch, query, starts):
    path = folder_of_a_run(tmp_path / "a run", rows=3)
    (path / "model").mkdir()
    monkeypatch.setattr(type(pn.state), "session_args", {**query, "run": [str(path).encode()]})
    text = "".join(pane.object for part in runs.app().main for pane in part.select(pn.pane.HTML))
    assert f'href="{starts}{quote_plus(str(path))}"' in text


# What the dashboards ask of a model, asked of every model that can be made of spikes and a velocity.
SESSION = tuned(seconds=40)
APART = {"cebra", "capoyo", "neurobridge_pictures"}                     # of another package, of other recordings


@pytest.mark.parametrize("name", sorted(set(SMALL) - APART))
def test_the_dashboards_that_are_offered_can_open_the_model(name):
    settings = {**SMALL[name], **({"patches": 3} if name in ("ndt2", "ndt3") else {})}
    given = {"target": "vel"} if takes_target(models.get(name)) else {}
    model = models.build(name, [SESSION.within(split(SESSION)["train"])], **given, **settings).eval()

    def works(look) -> bool:
        try:
            return look() is not None
        except WorkbenchError:
            return False

    reader = Reader([SESSION], also=latents._series(model))
    assert works(lambda: latents._parts(model, reader.read([0], [5.0], model.window))) == (name in MOMENTS)
    assert works(lambda: Filler(SESSION, model)) == (name in FILLS)


def test_every_model_was_asked_or_says_what_it_does():
    assert models._MODELS.keys() == set(SMALL) | APART and models._MODELS.keys() >= MOMENTS | FILLS
    for name in APART & set(models.available()):
        assert (models.get(name).embeds, models.get(name).reconstructs) == (name in MOMENTS, name in FILLS)
