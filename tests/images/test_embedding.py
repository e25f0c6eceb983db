"""What a picture is to an image model: by a formula, by the shipped encoder, by any CLIP or DINOv2 in a folder."""

import socket

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from tests.images import folders
from tests.models.test_neurobridge_pictures import A
from workbench.errors import BadRecording, WorkbenchError
from workbench.images import embedding
from workbench.images.embedding import (
    GaborColor,
    ModelNotHere,
    Transformers,
    embed,
    of_session,
    open_embedder,
    pixels_of,
)
from workbench.sources import drawn


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    embedding._vectors.cache_clear()
    return tmp_path / "cache" / "embeddings"


def test_energies_follow_the_turn_of_stripes_and_colours_their_colour():
    x = torch.arange(64) / 64
    stripes = 0.5 + 0.5 * torch.sin(2 * torch.pi * 6 * x)
    across, along = (each[None, None].expand(1, 3, 64, 64) for each in (stripes[None, :].expand(64, 64),
                                                                      stripes[:, None].expand(64, 64)))
    one, other = GaborColor().embed(across)[0], GaborColor().embed(along)[0]
    turns = slice(96, 96 + 96)                                          # six cycles a picture, six turns, 16 places
    assert one.shape == (GaborColor.dim,)
    assert one[turns].reshape(6, 16).mean(1).argmax() == 0 and other[turns].reshape(6, 16).mean(1).argmax() == 3
    red = torch.zeros(1, 3, 64, 64)
    red[:, 0] = 1
    colours = GaborColor().embed(red)[0, -192:].reshape(3, 64)
    assert (colours[1] > 2.9).all() and (colours[2] < -1.4).all()


def test_the_shipped_encoder_tells_categories_apart_without_a_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("asked the network"))
    images, about = drawn.pictures(156, 501), drawn.descriptions(156, 501)
    vectors = Transformers(embedding.SHIPPED / "encoder").embed(pixels_of(images))
    for column, least in (("category", 0.75), ("color", 0.9)):          # chance 0.08 and 0.13
        linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(vectors[:117], about[column][:117])
        assert linear.score(vectors[117:], about[column][117:]) > least


@pytest.mark.parametrize("says_twice", [True, False])
def test_a_folder_of_clip_is_read_as_transformers_reads_it(tmp_path, says_twice):
    folders.clip(tmp_path / "clip", 24, says_twice=says_twice)
    one = open_embedder(str(tmp_path / "clip"))
    assert one.dim == 24 and one.embed(torch.rand(3, 3, 40, 56)).shape == (3, 24)


def test_a_folder_of_dinov2_gives_its_class_token(tmp_path):
    folders.dinov2(tmp_path / "dino")
    one = open_embedder(str(tmp_path / "dino"))
    assert one.embed(torch.rand(2, 3, 32, 32)).shape == (2, one.dim)


def test_a_model_that_is_not_here_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("asked the network"))
    with pytest.raises(ModelNotHere, match=r"3.9 GB.*hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K.*'tiny'"):
        open_embedder("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    with pytest.raises(ModelNotHere, match=r"give a folder that holds config\.json"):
        open_embedder("/no/such/folder")


def test_vectors_are_computed_once_and_kept(kept):
    class Counting(GaborColor):
        calls = 0

        def embed(self, pixels):
            Counting.calls += 1
            return super().embed(pixels)

    images = drawn.pictures(13, 502)
    one, again = embed(images, Counting()), embed(images, Counting())
    assert Counting.calls == 1 and np.array_equal(one, again)
    [file] = kept.iterdir()
    file.write_bytes(file.read_bytes()[:100])                           # damaged: made anew
    assert np.array_equal(embed(images, Counting()), one) and Counting.calls == 2
    assert not np.array_equal(embed(255 - images, Counting()), one)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 8, 8, 1), np.uint8),
                                    np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8), np.uint8)])
def test_what_are_no_pictures_is_refused(images):
    with pytest.raises(WorkbenchError, match=r"pictures of shape .* give uint8 \[n, height, width\]"):
        embed(images, GaborColor())


def test_pictures_of_a_session_are_a_series_under_their_name(kept):
    found = A.get_series("pictures:gabor-color")
    whole = embed(A.images, "gabor-color")
    assert np.array_equal(found.times, A.stimuli["start"])
    assert np.allclose(found.values, whole[A.stimuli["image"].to_numpy()])
    from dataclasses import replace
    with pytest.raises(BadRecording, match="holds no pictures to embed"):
        of_session(replace(A, load_images=None), "gabor-color")
