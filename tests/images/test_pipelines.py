"""From a recording in a public dataset's layout to pictures, with everything that has to stand beside them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.sources import allen_layout as layout
from tests.sources.test_allen import file, whole  # noqa: F401
from tests.sources.test_tvsd import table, trials
from workbench import models
from workbench.errors import BadRecording, WorkbenchError
from workbench.images.diffusion import TinyDiffusion
from workbench.images.reconstruct import reconstruct
from workbench.images.report import scores, summary
from workbench.images.report import table as score_table
from workbench.sources import allen, pictures, tvsd
from workbench.sources.vision_sim import vision_sim
from workbench.windows import split

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SMALL = dict(dim=16, width=16, depth=1, heads=2, latents=1, bin_size=0.05)


def divided(session):
    """The first split by picture that leaves two pictures to train on, one to choose by and one to test."""
    for seed in range(200):
        try:
            parts = split(session, test=0.3, valid=0.3, by="picture", seed=seed)
            models.build("neurobridge_pictures", [session.within(parts["train"])], target="pictures:tiny", window=0.2,
                         step=0.1, readout=False, encoder=SMALL)
            return {name: [part] for name, part in parts.items()}
        except BadRecording:
            continue
    raise AssertionError("no split was found")


def painted(session):
    parts = divided(session)
    model = models.build("neurobridge_pictures", [session.within(parts["train"][0])], target="pictures:tiny",
                         window=0.2, step=0.1, encoder=SMALL)
    return reconstruct(model, [session], parts, TinyDiffusion(), seeds=(0, 1), steps=2, convolutional=4)


def check(result, pictures):
    told = scores(result)
    assert len(result.items) == len(result.shown) <= pictures and np.isfinite(told["value"]).all()
    assert {"ridge to pixels", "convolutional", "nearest training picture", "mean picture", "ridge to vector",
            "true vector"} <= {*result.made}
    assert result.made["NeuroBridgePictures"].shape[1] == 2
    assert "pixcorr" in summary(score_table(told)) and result.protocol["split"] == "by picture"


def test_allen_natural_scenes(file):  # noqa: F811
    layout.put_scenes(file.parents[1])
    session = allen.read(file, images="natural_scenes")
    check(painted(session), 4)


def test_tvsd_pseudo_events_and_a_folder_of_the_things_pictures(tmp_path):
    about = table()
    recorded = np.random.default_rng(0).normal(size=(1024, len(about), 300)).astype(np.float32)
    session = tvsd.read(trials(tmp_path, recorded=recorded), events=2.5)
    (tmp_path / "things").mkdir()
    for i in range(15):
        colours = np.random.default_rng(i).integers(0, 255, (6, 6, 3), np.uint8)
        Image.fromarray(colours).resize((48, 48)).save(tmp_path / "things" / f"{i:02d}.png")
    session = pictures.attach(session, tmp_path / "things").select(np.arange(0, 1024, 64))
    check(painted(session), 15)


def test_a_generator_of_another_space_is_refused():
    session = vision_sim(0, pictures=40, repeats=2, units=20)
    parts = {name: [part] for name, part in split(session, test=0.3, valid=0.2, by="picture").items()}
    model = models.build("neurobridge_pictures", [session.within(parts["train"][0])], target="pictures:gabor-color",
                         readout=False, encoder=SMALL)
    with pytest.raises(WorkbenchError, match="align to pictures:tiny"):
        reconstruct(model, [session], parts, TinyDiffusion())


def test_the_same_presentations_give_the_same_pictures_and_the_report_says_what_was_chosen():
    session = vision_sim(0, pictures=60, repeats=2, units=30)
    parts = {name: [part] for name, part in split(session, test=0.3, valid=0.2, by="picture").items()}
    model = models.build("neurobridge_pictures", [session.within(parts["train"][0])], target="pictures:tiny",
                         readout=False, encoder=SMALL)
    one, again = (reconstruct(model, [session], parts, TinyDiffusion(), most=4, steps=2, convolutional=0)
                  for _ in range(2))
    assert all(np.array_equal(one.made[name], again.made[name]) for name in one.made)
    assert one.protocol["simulated"] and "drawn by seed 0" in one.protocol["selection"]
    assert one.protocol["conditioned_by"]["ridge to vector"] == "tiny" and "category" in one.items
    order = np.random.default_rng(0).permutation(len(session.stimuli))  # a table need not be in the order of time
    mixed = replace(session, stimuli=session.stimuli.iloc[order].reset_index(drop=True))
    told = reconstruct(model, [mixed], parts, TinyDiffusion(), most=4, steps=2, convolutional=0).items
    assert told["category"].tolist() == one.items["category"].tolist()
    other = replace(session, id="other")
    assert reconstruct(model, [session], parts, TinyDiffusion(), most=4, steps=2, convolutional=0, seed=1,
                       data={other.id: "somewhere"}).protocol["data"] == {"other": "somewhere"}
