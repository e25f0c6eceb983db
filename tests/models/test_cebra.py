"""CEBRA behind the interface of every model; its own package does the learning."""

from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models.test_models import trained, tuned
from workbench import models
from workbench.analysis.decoding import score
from workbench.batch import Reader
from workbench.errors import BadRecording, UnknownName, WorkbenchError
from workbench.models.cebra import CEBRA
from workbench.session import Series

needs_cebra = pytest.mark.skipif(find_spec("cebra") is None, reason="the package cebra is not installed")


@needs_cebra
def test_it_decodes_held_out_time_and_only_the_session_it_was_fitted_to():
    session = tuned()
    model, (parts,) = trained("cebra", [session])
    assert score(model, [session], [parts["test"]], "vel")["r2"] > 0.5
    assert score(model, [tuned(seed=9)], [parts["test"]], "vel")["r2"] < 0.2


@needs_cebra
def test_embeddings_are_those_of_the_package():
    """Inside a window, where no edge is made up: what the package's own `transform` says of the same counts."""
    import cebra
    session = tuned()
    model = models.build("cebra", [session], target="vel", iterations=5, batch_size=64).eval()
    batch = Reader([session], ("vel",)).read([0], [10.0], 2.0)
    theirs = cebra.CEBRA(model_architecture="offset10-model", max_iterations=1, batch_size=64, output_dimension=8)
    counts = batch.counts(model.bin_size)[0].T.numpy()
    theirs.fit(counts)
    theirs.model_.load_state_dict(model.networks[0].state_dict())
    with torch.no_grad():
        ours = model(batch).latents[0].numpy()
    np.testing.assert_allclose(ours, theirs.transform(counts), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@needs_cebra
def test_what_cannot_be_fitted_is_refused_in_one_sentence():
    session = tuned()
    model = models.build("cebra", [session], target="vel")
    with pytest.raises(UnknownName, match="no architecture 'offset11-model' in the package cebra; did you mean"):
        models.build("cebra", [session], target="vel", architecture="offset11-model")
    with pytest.raises(BadRecording, match="nothing to fit CEBRA to: 8 bins"):
        model.fit([session], [np.array([[0.0, 0.4]])], [np.array([[1.0, 9.0]])])


def test_what_it_is_fitted_to_ends_with_its_part():
    """A bin near the end, between a sample of the part and one behind it, hears of the first only."""
    session, part = tuned(), np.array([[0.0, 8.0]])
    clock, values, unit, _ = session.series["vel"]
    later = replace(session, series={"vel": Series(clock, np.where(clock[:, None] < 8, values, 100.0), unit)})
    model = SimpleNamespace(target="vel", bin_size=session.series["vel"].interval / 5, window=1.0, offset=range(10))
    (x, y), (_, other) = (CEBRA._samples(model, one, part) for one in (session, later))
    assert len(x) == len(y) and np.array_equal(y, other)


@pytest.mark.skipif(find_spec("cebra") is not None, reason="the package cebra is installed")
def test_without_its_package_it_is_not_available_and_says_what_to_install():
    assert "cebra" not in models.available()
    with pytest.raises(WorkbenchError, match=r"not installed; run: pip install 'spike-workbench\[cebra\]'"):
        models.build("cebra", [tuned()], target="vel")
