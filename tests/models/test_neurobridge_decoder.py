"""NeuroBridge downstream: pretrained weights arrive, readouts are in their places, new units are met."""

import pytest
import torch

from tests.models.small import SMALL
from tests.models.test_neurobridge import small as pretrained
from tests.models.test_zoo import SESSIONS, toy
from workbench import models
from workbench.batch import Reader
from workbench.errors import UnknownName, WorkbenchError

ENCODER = SMALL["neurobridge_decoder"]["encoder"]


def build(sessions=SESSIONS, **settings):
    torch.manual_seed(0)
    return models.build("neurobridge_decoder", sessions, target="vel", **settings).eval()


def windows():
    return Reader(SESSIONS, ("vel",)).read([0, 1, 1], [1.0, 3.0, 8.05], 1.0)


@torch.no_grad()
@pytest.mark.parametrize("inside", ["", "model"])
def test_the_encoder_arrives_as_it_was_trained_from_a_folder_or_a_run(inside, tmp_path):
    trained = pretrained()
    for p in trained.parameters():
        p.add_(0.1 * torch.randn_like(p))
    trained.save_pretrained(tmp_path / inside)
    model = build(pretrained=str(tmp_path))
    assert torch.equal(model.encoder.encode(windows()), trained.encode(windows()))
    assert not hasattr(model.encoder, "decoder")                        # dropped downstream
    model.save_pretrained(tmp_path / "decoder")                         # stands alone
    again = models.load(tmp_path / "decoder").eval()
    assert torch.equal(again(windows()).behavior, model(windows()).behavior)


@torch.no_grad()
def test_units_that_the_pretrained_has_not_met_get_rows(tmp_path):
    trained, new = pretrained(), toy("new", 6, 5)
    trained.save_pretrained(tmp_path)
    model = build([new], pretrained=str(tmp_path))
    batch = Reader([new], ("vel",)).read([0], [1.0], 1.0)
    assert model(batch).behavior.shape == batch.targets["vel"].values.shape
    assert torch.equal(model.encoder.encode(windows()), trained.encode(windows()))


@torch.no_grad()
@pytest.mark.parametrize("readout", ["queries", "mean", "cls"])
def test_a_readout_is_where_its_sample_is(readout):
    """The last sample hears more of a spike beside it than of one far off; a CLS token is the same all over."""
    model, batch = build(encoder=ENCODER, readout=readout), windows()
    for p in model.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    said = model(batch).behavior[:20]
    assert said.shape == (20, 2) and said.isfinite().all()
    early = batch.drop((batch.windows == 0) & (batch.times < 0.1))
    moved = (model(early).behavior[:20] - said).abs().sum(1)
    if readout == "cls":
        assert (said - said[0]).abs().max() < 1e-5
    else:
        assert moved[:2].mean() > 2 * moved[-2:].mean()


def test_windows_of_different_numbers_of_samples_are_told_apart():
    model, batch = build(encoder=ENCODER), windows()
    target = batch.targets["vel"]
    some = torch.arange(len(target.times)) % 20 < torch.tensor([20, 3, 11]).repeat_interleave(20)
    kept = torch.cat([torch.zeros(1, dtype=torch.long), some.long().cumsum(0)])
    batch.targets["vel"] = type(target)(target.times[some], target.values[some], kept[target.offsets])
    with torch.no_grad():
        torch.testing.assert_close(model(batch).behavior, model(windows()).behavior[some])


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="no readout 'query' in the readouts of NeuroBridge"):
        build(encoder=ENCODER, readout="query")
    with pytest.raises(WorkbenchError, match=r"no model at .*; give the folder"):
        build(pretrained=str(tmp_path))
    with pytest.raises(WorkbenchError, match="a pretrained encoder has its own settings"):
        build(pretrained=str(tmp_path), encoder=ENCODER)
