"""Scores of pictures against scikit-image, closed forms and drawing; and what chance gives them."""

import numpy as np
import pytest
import skimage
from scipy import linalg, stats

from workbench.errors import WorkbenchError
from workbench.images import metrics

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(256, size=(40, 16, 16, 3), dtype=np.uint8)
NEAR = np.clip(PICTURES + RANDOM.normal(0, 40, PICTURES.shape), 0, 255).astype(np.uint8)


# Pictures

def test_a_picture_correlates_with_itself_and_not_with_another():
    np.testing.assert_allclose(metrics.pixcorr(PICTURES, PICTURES), 1)
    other = metrics.pixcorr(PICTURES, np.roll(PICTURES, 1, axis=0))
    assert abs(other.mean()) < 4 * other.std() / np.sqrt(len(other)) and abs(other.mean()) < 0.02


def test_pixcorr_is_numpys_of_any_scale_and_type():
    want = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(PICTURES, NEAR, strict=True)]
    np.testing.assert_allclose(metrics.pixcorr(PICTURES, NEAR), want)
    np.testing.assert_allclose(metrics.pixcorr(PICTURES, (NEAR / 255).astype(np.float32) / 2), want, atol=1e-6)


def test_a_picture_of_one_value_correlates_with_nothing():
    flat = np.full_like(PICTURES, 77)
    assert (metrics.pixcorr(PICTURES, flat) == 0).all() and (metrics.pixcorr(flat, flat) == 0).all()


def test_ssim_is_scikit_images():
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    grey = [skimage.color.rgb2gray(pictures) for pictures in (PICTURES, NEAR)]
    want = [skimage.metrics.structural_similarity(a, b, **how) for a, b in zip(*grey, strict=True)]
    np.testing.assert_allclose(metrics.ssim(PICTURES, NEAR), want)
    np.testing.assert_allclose(metrics.ssim(*grey), want)
    np.testing.assert_allclose(metrics.ssim(PICTURES, PICTURES), 1)


def test_ssim_of_a_given_size_is_that_of_bilinear_pictures():
    """By torch's rule: between the middles of pixels, the outermost ones going on to the border."""
    middles = (np.arange(45) + 0.5) * 16 / 45 - 0.5
    larger = [p[:4] / 255 for p in (PICTURES, NEAR)]
    for axis in (1, 2):
        larger = [np.apply_along_axis(lambda x: np.interp(middles, np.arange(16), x), axis, p) for p in larger]
    np.testing.assert_allclose(metrics.ssim(PICTURES[:4], NEAR[:4], side=45), metrics.ssim(*larger), rtol=1e-9)
    assert metrics.ssim(PICTURES[:2, :12], NEAR[:2, :12], side=30).shape == (2,)        # not square


def test_the_protocol_of_ssim_tells_version_and_size():
    assert f"scikit-image {skimage.__version__}" in metrics.ssim_protocol(425) and "425" in metrics.ssim_protocol(425)
    assert "size given" in metrics.ssim_protocol()


@pytest.mark.parametrize("score", [metrics.pixcorr, metrics.ssim])
@pytest.mark.parametrize("made, says", [
    (PICTURES[:3], "give both as"), (PICTURES[..., :2], "give both as"), (PICTURES / 100, "clipped to 0..1"),
    (PICTURES.astype(int), "clipped to 0..1"), (np.full(PICTURES.shape, np.nan), "clipped to 0..1")])
def test_what_are_no_pictures_is_refused(score, made, says):
    with pytest.raises(WorkbenchError, match=says):
        score(PICTURES, made)


def test_pictures_smaller_than_its_window_have_no_ssim():
    with pytest.raises(WorkbenchError, match="8 × 8; give side="):
        metrics.ssim(PICTURES[:, :8, :8], PICTURES[:, :8, :8])


# Embeddings

def at(*degrees):
    """Vectors in the plane, whose cosines are those of the angles between them."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


def test_both_directions_by_hand():
    """Queries at 4, 14, 12 of keys at 0, 10, 30, 90. By query: key 0 is nearest; key 10 is; key 30 is third, after 10
    and 0. By key: of 0, the query at 4; of 10, first 12, then 14, so that 14 is second; of 30, first 14, then 12."""
    queries, keys = at(4, 14, 12), at(0, 10, 30, 90)
    np.testing.assert_array_equal(metrics.ranks(metrics.similarity(queries, keys)), [1, 1, 3])
    np.testing.assert_array_equal(metrics.ranks(metrics.similarity(keys[:3], queries)), [1, 2, 2])
    found = metrics.retrieval(queries, keys, k=(1, 2, 3))
    forth, back = found["neural_to_image"], found["image_to_neural"]
    assert [forth[f"top{k}"] for k in (1, 2, 3)] == pytest.approx([2 / 3, 2 / 3, 1])
    assert [back[f"top{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 1, 1])
    assert (forth["median_rank"], back["median_rank"]) == (1, 2)
    assert (forth["pool"], back["pool"]) == (4, 3) and forth["chance_top1"] == 1 / 4 and back["chance_top1"] == 1 / 3


def test_order_of_queries_does_not_matter_if_which_says_so():
    queries, keys, which = at(12, 4, 14), at(0, 10, 30, 90), np.array([2, 0, 1])
    assert metrics.retrieval(queries, keys, which) == metrics.retrieval(at(4, 14, 12), keys)


def test_of_several_presentations_a_picture_only_one_direction_is_told():
    keys = RANDOM.normal(size=(30, 8))
    which = np.repeat(np.arange(30), 4)
    found = metrics.retrieval(keys[which] + RANDOM.normal(size=(120, 8)), keys, which)
    assert set(found) == {"neural_to_image"} and found["neural_to_image"]["candidates"] == 30
    assert found["neural_to_image"]["top1"] > 5 * found["neural_to_image"]["chance_top1"]


@pytest.mark.parametrize("pool", [None, 50])
def test_retrieval_of_noise_is_chance(pool):
    found = metrics.retrieval(RANDOM.normal(size=(500, 20)), RANDOM.normal(size=(500, 20)), pool=pool)
    for direction in found.values():
        for k in (1, 5):
            chance = direction[f"chance_top{k}"]
            assert chance == k / (pool or 500)
            assert abs(direction[f"top{k}"] - chance) < 4 * np.sqrt(chance * (1 - chance) / 500)
        assert direction["median_rank"] == pytest.approx(250, abs=50)


def test_the_expectation_over_pools_is_the_mean_of_drawn_ones():
    keys = RANDOM.normal(size=(60, 12))
    table = metrics.similarity(keys + 1.5 * RANDOM.normal(size=keys.shape), keys)
    for k in (1, 3):
        drawn = []
        for _ in range(2000):
            pool = RANDOM.choice(60, 20, replace=False)
            drawn.append((metrics.ranks(table[np.ix_(pool, pool)]) <= k).mean())
        error = np.std(drawn) / np.sqrt(len(drawn))
        assert metrics.hits(table, k=k, pool=20).mean() == pytest.approx(np.mean(drawn), abs=4 * error)
    np.testing.assert_array_equal(metrics.hits(table, k=3), metrics.ranks(table) <= 3)
    np.testing.assert_array_equal(metrics.hits(table, pool=1), 1)


def test_always_the_same_answer_is_worth_chance():
    keys, same = RANDOM.normal(size=(50, 8)), np.tile(RANDOM.normal(size=8), (50, 1))
    for found in (*metrics.retrieval(same, keys).values(), *metrics.retrieval(keys, same).values()):
        assert found["top1"] == pytest.approx(1 / 50) and found["top5"] == pytest.approx(0.1)
    assert (metrics.ranks(metrics.similarity(keys, same)) == 25.5).all()
    assert metrics.hits(metrics.similarity(keys, same), k=2, pool=10) == pytest.approx(np.full(50, 0.2))
    assert metrics.two_way(keys, same).mean() == pytest.approx(0.5)
    assert metrics.two_way(same, keys).max() == 0


def test_two_way_of_the_same_features_is_1_and_of_noise_a_half():
    features = RANDOM.normal(size=(400, 30))
    assert (metrics.two_way(features, features) == 1).all()
    chance = metrics.two_way(features, RANDOM.normal(size=features.shape))
    assert abs(chance.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 400)            # a rank in the crowd is uniform


def test_two_way_is_mindeyes():
    true, made = RANDOM.normal(size=(30, 9)), RANDOM.normal(size=(30, 9))
    made += true
    r = np.corrcoef(true, made)[:30, 30:]                                   # targets down, made across
    want = (r < np.diag(r)).sum(0) / 29
    np.testing.assert_allclose(metrics.two_way(true, made), want)
    which = np.array([3, 3, 7])
    np.testing.assert_allclose(metrics.two_way(true, made[which] * 5 + 2, which), want[which])


@pytest.mark.parametrize("call, says", [
    (lambda: metrics.similarity(np.ones((3, 4)), np.ones((3, 5))), "of one extractor"),
    (lambda: metrics.similarity(np.full((3, 4), np.nan), np.ones((3, 4))), "not finite"),
    (lambda: metrics.retrieval(np.ones((5, 4)), np.ones((3, 4))), "which candidate is its own"),
    (lambda: metrics.retrieval(np.ones((2, 4)), np.ones((3, 4)), np.array([0, 3])), "which candidate is its own"),
    (lambda: metrics.retrieval(np.ones((3, 4)), np.ones((3, 4)), pool=4), "4 candidates out of 3"),
    (lambda: metrics.two_way(np.ones((1, 4)), np.ones((1, 4))), "at least 2 targets")])
def test_what_does_not_fit_is_told(call, says):
    with pytest.raises(WorkbenchError, match=says):
        call()


# Sets

def test_frechet_of_a_set_with_itself_is_0_and_of_a_moved_one_its_distance():
    features = RANDOM.normal(size=(300, 6)) @ RANDOM.normal(size=(6, 6))
    assert metrics.frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet(features, features + np.array([3, 0, 0, 4, 0, 0])) == pytest.approx(25)


def test_frechet_is_the_closed_form_of_gaussians():
    a, b = (RANDOM.normal(size=(500, 5)) @ RANDOM.normal(size=(5, 5)) + RANDOM.normal(size=5) for _ in range(2))
    first, second = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert metrics.frechet(a, b) == pytest.approx(want)
    assert metrics.frechet(a[:, :1], b[:, :1]) == pytest.approx(
        (a[:, 0].mean() - b[:, 0].mean()) ** 2 + (a[:, 0].std(ddof=1) - b[:, 0].std(ddof=1)) ** 2)


def test_frechet_of_few_samples_is_refused():
    with pytest.raises(WorkbenchError, match="20 features wants more samples"):
        metrics.frechet(RANDOM.normal(size=(20, 20)), RANDOM.normal(size=(300, 20)))


def test_kid_of_two_halves_is_0_within_its_error_and_of_others_is_not():
    found = [metrics.kid(*np.split(np.random.default_rng(k).normal(size=(200, 16)), 2)) for k in range(40)]
    values, errors = np.array(found).T
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(40) and (values < 0).any()
    assert values.std() < 1.2 * errors.mean()                               # the error is no smaller than what it tells
    away, error = metrics.kid(RANDOM.normal(size=(100, 16)), RANDOM.normal(1, 1, size=(100, 16)))
    assert away > 5 * error


def test_kid_by_hand():
    a, b = RANDOM.normal(size=(20, 3)), RANDOM.normal(size=(24, 3))
    k = lambda x, y: (x @ y / 3 + 1) ** 3
    within = lambda x: np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    assert metrics.kid(a, b)[0] == pytest.approx(within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b]))
    with pytest.raises(WorkbenchError, match="20 and 24 samples in 11 parts"):
        metrics.kid(a, b, subsets=11)


def test_inception_score_runs_from_1_to_the_number_of_classes():
    assert metrics.inception_score(np.full((10, 4), 0.25)) == pytest.approx(1)
    assert metrics.inception_score(np.tile([[1.0, 0, 0, 0]], (10, 1))) == pytest.approx(1)
    assert metrics.inception_score(np.tile(np.eye(4), (3, 1))) == pytest.approx(4)
    with pytest.raises(WorkbenchError, match="do not sum to 1"):
        metrics.inception_score(RANDOM.normal(size=(10, 4)))


# Certainty

def test_copies_of_presentations_make_nothing_more_certain():
    values = RANDOM.normal(size=60)
    mean, low, high = metrics.bootstrap(values, np.arange(60))
    copies, same = np.repeat(values, 10), np.repeat(np.arange(60), 10)
    assert metrics.bootstrap(copies, same) == pytest.approx((mean, low, high))
    naive = metrics.bootstrap(copies, np.arange(600))
    assert high - low > 2.5 * (naive[2] - naive[1])
    half = stats.sem(values) * 1.96
    assert mean == values.mean() and (mean - low, high - mean) == pytest.approx((half, half), rel=0.15)


def test_unequal_numbers_of_presentations_weigh_as_they_are():
    mean, low, high = metrics.bootstrap(np.array([0.0, 1, 1, 1]), np.array(list("abbb")))
    assert (mean, low, high) == (0.75, 0, 1)


def test_differences_are_more_certain_than_what_differs():
    pictures, hard = np.repeat(np.arange(50), 2), np.repeat(RANDOM.normal(size=50), 2)
    a, b = (hard + RANDOM.normal(0, 0.1, 100) + more for more in (0.1, 0))
    mean, low, high = metrics.paired(a, b, pictures)
    assert low > 0 and mean == pytest.approx(np.mean(a - b)) and high - low < 0.1
    assert metrics.bootstrap(a, pictures)[1] < metrics.bootstrap(b, pictures)[2]
    both = metrics.bootstrap(np.stack([a, b, a - b], 1), pictures)
    assert [bound[2] for bound in both] == pytest.approx([mean, low, high])


def test_intervals_of_few_pictures_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    bounds = [metrics.bootstrap(random.normal(size=12), np.arange(12), draws=400)[1:] for _ in range(400)]
    assert 0.92 <= np.mean([low < 0 < high for low, high in bounds]) <= 0.98


def test_one_picture_has_a_mean_and_no_interval():
    mean, low, high = metrics.bootstrap(np.arange(3.0), np.zeros(3))
    assert mean == 1 and np.isnan(low) and np.isnan(high)
    with pytest.raises(WorkbenchError, match="the picture of every value"):
        metrics.bootstrap(np.arange(3.0), np.zeros(4))
