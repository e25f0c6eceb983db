"""The shipped image models: they load without a network, tell pictures apart, and draw what a vector says."""

import json

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from workbench.errors import WorkbenchError
from workbench.images import tiny
from workbench.images.diffusion import PatchCodec, TinyDiffusion
from workbench.images.embedding import SHIPPED, ModelNotHere, Transformers, open_embedder, pixels_of
from workbench.sources import drawn

UNSEEN = 7001                                                           # a set that neither model was trained on


@pytest.fixture(scope="module")
def pictures():
    return drawn.pictures(520, UNSEEN)


@pytest.fixture(scope="module")
def vectors(pictures):
    return torch.cat([open_embedder("tiny").embed(pixels_of(part)) for part in np.array_split(pictures, 8)])


@pytest.fixture(scope="module")
def decoder():
    return TinyDiffusion()


@pytest.fixture(scope="module")
def decoded(decoder, vectors):
    """The first 16 pictures, from their own vectors."""
    return decoder.decode(vectors[:16], steps=20, seeds=range(16))


def test_the_shipped_weights_are_small_and_say_where_they_come_from():
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size < 15e6
    card = (SHIPPED / "model_card.md").read_text()
    assert "drawn pictures" in card and "python -m workbench.images.tiny" in card


def test_a_vector_tells_category_and_colour_of_a_picture_never_seen(vectors):
    about = drawn.descriptions(len(vectors), UNSEEN)
    linear = lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    right = {name: linear().fit(vectors[:390], about[name][:390]).score(vectors[390:], about[name][390:])
             for name in ("category", "color")}
    assert right["category"] > 0.85, right                              # chance is 1 in 13
    assert right["color"] > 0.95, right                                 # and 1 in 8


def test_a_vector_is_not_of_unit_length_and_keeps_where_things_are(vectors):
    assert vectors.norm(dim=1).std() > 0.01
    about = drawn.descriptions(len(vectors), UNSEEN)
    placed = (~about["kind"].isin(["grating", "texture"])).to_numpy()
    told = torch.cat([vectors, torch.ones(len(vectors), 1)], 1)[torch.from_numpy(placed.copy())].double()
    for name in ("x", "y"):
        true = torch.tensor(about[name][placed].to_numpy())
        half = len(true) // 2
        weights = torch.linalg.lstsq(told[:half], true[:half], driver="gelsd").solution
        assert np.corrcoef(told[half:] @ weights, true[half:])[0, 1] > 0.8, name


def test_decoding_is_the_same_twice_and_in_any_batch(decoder, vectors):
    whole = decoder.decode(vectors[:5], steps=4, guidance=2.0, seeds=[3, 1, 4, 1, 5])
    assert whole.shape == (5, 3, 64, 64) and whole.min() >= 0 and whole.max() <= 1
    assert torch.equal(whole, decoder.decode(vectors[:5], steps=4, guidance=2.0, seeds=[3, 1, 4, 1, 5]))
    cut = torch.cat([decoder.decode(vectors[:2], steps=4, guidance=2.0, seeds=[3, 1]),
                     decoder.decode(vectors[2:5], steps=4, guidance=2.0, seeds=[4, 1, 5])])
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=0)


def test_decoding_leaves_the_global_generator_alone(decoder, vectors):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    decoder.decode(vectors[:1], steps=2, seeds=[0])
    assert torch.equal(torch.rand(3), expected)


def test_a_picture_follows_its_vector(decoded, pictures):
    """Two-way identification by the correlation of pixels: of two pictures, the true one is the nearer."""
    between = np.corrcoef(decoded.flatten(1), pixels_of(pictures[:16]).flatten(1))[:16, 16:]
    assert (between < between.diagonal()[:, None]).sum() / (16 * 15) > 0.9
    assert between.diagonal().mean() > 0.5


def test_a_low_level_picture_pulls_towards_itself_the_more_the_lower_the_strength(decoder, vectors, pictures):
    other = pixels_of(pictures[100:108])                                # not what the vectors say
    away = [torch.nn.functional.mse_loss(decoder.decode(vectors[:8], steps=10, seeds=range(8), **given), other).item()
            for given in ({"low_level": other, "strength": 0.2}, {"low_level": other, "strength": 0.6}, {})]
    assert away[0] < away[1] < away[2], away


def test_a_low_level_picture_may_have_another_size(decoder, vectors):
    made = decoder.decode(vectors[:2], steps=2, seeds=[0, 1], low_level=torch.rand(2, 3, 16, 16), strength=0.5)
    assert made.shape == (2, 3, 64, 64)


def test_a_vector_of_another_model_is_refused_with_both_widths(decoder):
    with pytest.raises(WorkbenchError, match=r"128.*768"):
        decoder.decode(torch.zeros(2, 768), seeds=[0, 1])
    for wrong, says in (({"steps": 0}, "steps=0"), ({"low_level": torch.zeros(2, 3, 8, 8)}, "low_level= of shape"),
                        ({"low_level": torch.zeros(3, 3, 8, 8), "strength": 3}, "strength=3")):
        with pytest.raises(WorkbenchError, match=says):
            decoder.decode(torch.zeros(3, 128), **wrong)
    assert decoder.decode(torch.zeros(0, 128)).shape == (0, 3, 64, 64)
    with pytest.raises(WorkbenchError, match="2 seeds for 3 pictures"):
        decoder.decode(torch.zeros(3, 128), seeds=[0, 1])


def test_a_folder_without_a_model_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelNotHere, match=r"python -m workbench\.images\.tiny"):
        TinyDiffusion(tmp_path)


def test_the_codec_loses_little(decoder, pictures):
    pixels = pixels_of(pictures[:64])
    back = decoder.codec.decode(decoder.codec.encode(pixels))
    assert -10 * torch.log10((back - pixels).square().mean()) > 28      # decibels
    whole = PatchCodec.fit(pixels, channels=192)
    torch.testing.assert_close(whole.decode(whole.encode(pixels)), pixels, atol=1e-3, rtol=0)


def test_the_scheduler_says_what_the_network_was_trained_for(decoder):
    assert decoder.scheduler.config.prediction_type == tiny.SCHEDULER["prediction_type"] == "sample"
    assert decoder.scheduler.alphas_cumprod[-1] == 0                    # the first step starts from noise alone


def test_the_recipe_writes_folders_that_load(tmp_path):
    tiny.make(tmp_path, pictures=130, encoder_steps=3, diffusion_steps=3, say=lambda text: None)
    encoder = Transformers(tmp_path / "encoder", name="tiny")
    made = TinyDiffusion(tmp_path / "diffusion").decode(encoder.embed(torch.rand(2, 3, 64, 64)), steps=2, seeds=[0, 1])
    assert made.shape == (2, 3, 64, 64) and made.isfinite().all()
    assert json.loads((tmp_path / "diffusion/scheduler/scheduler_config.json").read_text())["rescale_betas_zero_snr"]
    assert "--pictures 130 --encoder-steps 3 --diffusion-steps 3 --seed 0" in (tmp_path / "model_card.md").read_text()


def test_the_recipe_keeps_an_encoder_that_is_there(tmp_path):
    """Others align spikes to its vectors: a new diffusion model must not move them."""
    tiny.make(tmp_path, pictures=130, encoder_steps=1, diffusion_steps=1, say=lambda text: None)
    before = (tmp_path / "encoder/model.safetensors").read_bytes()
    tiny.make(tmp_path, pictures=130, encoder_steps=1, diffusion_steps=1, seed=1, say=lambda text: None)
    assert (tmp_path / "encoder/model.safetensors").read_bytes() == before


def test_the_recipe_asks_for_pictures_enough(tmp_path):
    with pytest.raises(WorkbenchError, match="100 or more"):
        tiny.make(tmp_path, pictures=99)
