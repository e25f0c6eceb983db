"""Layouts: PCA as it is defined and at once; UMAP in a process of its own that can be watched, ended and missing."""

import sys
import time

import numpy as np
import pytest

from workbench.analysis import projection
from workbench.analysis.projection import Umap, pca
from workbench.errors import WorkbenchError

STANDIN = '''
import os, time
class UMAP:
    def __init__(self, n_neighbors, min_dist, random_state, n_jobs, verbose, tqdm_kwds):
        self.settings = n_neighbors, min_dist
    def fit_transform(self, values):
        if len(values) == 13:
            raise ValueError("thirteen points")
        print("Construct fuzzy simplicial set", flush=True)
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.02)
        print("\\tcompleted  40  /  200 epochs", flush=True)
        time.sleep(0.3)
        return values[:, :2] * self.settings[0]
'''


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """In place of umap-learn, something quick that waits to be told to go on: the path of a file to create."""
    (tmp_path / "umap.py").write_text(STANDIN)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(projection, "find_spec", lambda name: name)
    return tmp_path / "go"


@pytest.fixture
def umap():
    made = Umap()
    yield made
    made.cancel()


def values(points=50, columns=4):
    return np.random.default_rng(0).normal(size=(points, columns)).astype(np.float32)


def until(umap, said, seconds=60):
    end = time.monotonic() + seconds
    while umap.poll() and said not in umap.said:
        assert time.monotonic() < end, umap.said
        time.sleep(0.02)
    return umap.running


@pytest.mark.parametrize("columns", [3, 80, 700])
def test_pca_is_what_a_singular_value_decomposition_says(columns):
    x = values(400, columns) * np.arange(1, columns + 1) ** -0.5 * 9
    at, share = pca(x + 7.0)
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    for i in range(2):
        assert abs(np.corrcoef(at[:, i], u[:, i])[0, 1]) > 0.999
    assert np.allclose(share, (s**2 / (s**2).sum())[:2], rtol=0.02)


def test_pca_of_one_dimension_or_of_no_spread_is_still_a_picture():
    assert pca(values(20, 1))[0].shape == (20, 2)
    at, share = pca(np.ones((20, 3)))
    assert np.allclose(at, 0) and np.allclose(share, 0)


def test_pca_of_twenty_thousand_points_is_there_at_once():
    x = np.random.default_rng(0).standard_normal((20_000, 256), np.float32)
    pca(x[:500])
    begun = time.process_time()
    pca(x)
    assert time.process_time() - begun < 0.5                            # 0.05 s on an idle core


def test_a_layout_is_watched_kept_and_not_made_twice(standin, umap):
    umap.start(values(), "key", neighbors=3)
    assert until(umap, "finding neighbours") and "compiles" in umap.said
    standin.touch()
    assert until(umap, "laying out, 20 %")
    assert np.allclose(np.abs(umap.wait()), np.abs(3 * pca(values())[0]), atol=1e-5)
    again = Umap()
    again.start(values(), "key", neighbors=3)
    assert not again.running and np.array_equal(again.positions, umap.positions)


def test_the_process_is_kept_for_other_parameters_and_compiles_no_more(standin, umap):
    standin.touch()
    umap.start(values(), "key", neighbors=3)
    umap.wait()
    process = umap._process
    umap.start(values(), "key", neighbors=5)
    until(umap, "laying out")
    assert umap._process is process and "compiles" not in umap.said
    assert np.allclose(np.abs(umap.wait()), np.abs(5 * pca(values())[0]), atol=1e-5)


def test_a_layout_can_be_ended_and_another_begun(standin, umap):
    umap.start(values(), "key")
    until(umap, "finding")
    process, begun = umap._process, time.monotonic()
    umap.cancel()
    assert time.monotonic() - begun < 2 and process.poll() is not None and not umap.poll()
    with pytest.raises(WorkbenchError, match="cancelled"):
        umap.wait()
    standin.touch()
    umap.start(values(), "key")
    assert umap.wait().shape == (50, 2)


def test_what_went_wrong_in_the_process_is_said(standin, umap):
    umap.start(values(13), "key")
    with pytest.raises(WorkbenchError, match="thirteen points"):
        umap.wait()
    umap.start(values(), "other")
    until(umap, "finding")
    umap._process.kill()
    with pytest.raises(WorkbenchError, match="ended without a result"):
        umap.wait()


def test_without_the_package_or_the_points_a_sentence_says_what_to_do(monkeypatch, tmp_path, umap):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(projection, "find_spec", lambda name: name)
    with pytest.raises(WorkbenchError, match="choose a longer recording"):
        umap.start(values(5), "key")
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match=r"pip install 'spike-workbench\[umap\]'"):
        umap.start(values(), "key")


@pytest.mark.slow
def test_umap_itself_keeps_two_clouds_apart(monkeypatch, tmp_path, umap):
    pytest.importorskip("umap")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    x = values(300, 10)
    x[150:] += 8
    umap.start(x, "key")
    at = umap.wait()
    middle = at[:150].mean(0), at[150:].mean(0)
    assert (np.linalg.norm(at[:150] - middle[0], axis=1) < np.linalg.norm(at[:150] - middle[1], axis=1)).all()
