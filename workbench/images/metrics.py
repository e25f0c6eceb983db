"""Scores of reconstructed pictures, each with its source. No state, no weights: features come from elsewhere.

    pictures    pixcorr · ssim                                  a value a picture
    embeddings  similarity → ranks · hits → retrieval; two_way  which picture was it?
    sets        frechet · kid · inception_score                 of features of an extractor that the caller names
    certainty   bootstrap · paired                              intervals over pictures, never over draws of candidates

Pictures are [n, height, width] or [n, height, width, 3], uint8 0..255 or float 0..1; embeddings [n, D]. Where several
presentations share a picture, `which` [n] is the row of each one's right picture. Whoever always gives the same answer
scores chance or less: what is tied has not been told apart.
"""

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from scipy.stats import norm, t

from workbench.errors import WorkbenchError

SAME = 1e-10                                        # similarities closer than this are ties: rounding decides nothing


def pixcorr(true: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Pearson correlation of all values of each picture with the one it should be [n]. Ozcelik & VanRullen 2023.

    true, made: pictures of one shape. 1 is perfect; 0 for a picture of one value. Chance is above 0, since pictures
    resemble each other: score shuffled pairs beside it.
    """
    true, made = _pairs(true, made)
    values = lambda picture: _standard(_unit(picture).ravel())
    return np.array([values(a) @ values(b) for a, b in zip(true, made, strict=True)])


def ssim(true: np.ndarray, made: np.ndarray, side: int | None = None) -> np.ndarray:
    """Structural similarity of each picture with the one it should be [n]: Wang et al. 2004, by scikit-image, in grey.

    true, made: pictures of one shape. side: what the shorter side is resized to first; 425 in MindEye2 (Scotti et al.
    2024). Chance is far above 0 and moves with size and library: score shuffled pairs, too, and give `ssim_protocol`.
    """
    from skimage import color, metrics, transform
    true, made = _pairs(true, made)
    scale = 1 if side is None else side / min(true.shape[1:3])
    size = tuple(round(length * scale) for length in true.shape[1:3])
    if min(size) < 11:
        raise WorkbenchError(f"SSIM looks at 11 × 11 pixels, and the pictures have {size[0]} × {size[1]}; give side=")
    grey = lambda p: p if p.ndim == 2 else color.rgb2gray(p)
    sized = lambda p: p if side is None else transform.resize(p, size, order=1, mode="edge", anti_aliasing=scale < 1)
    seen = lambda p: sized(grey(_unit(p)))
    how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return np.array([metrics.structural_similarity(seen(a), seen(b), **how) for a, b in zip(true, made, strict=True)])


def ssim_protocol(side: int | None = None) -> str:
    """What has to be said with an SSIM: the library's version alone has moved published ones by as much as 0.14."""
    size = "at the size given" if side is None else f"the shorter side resized to {side}, bilinear"
    return (f"scikit-image {version('scikit-image')}, grey (0.2125 R + 0.7154 G + 0.0721 B), Gaussian window of sigma "
            f"1.5, data range 1, population covariance, {size}")


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of every row of a [n, D] with every row of b [m, D]: [n, m]. A row of zeros is similar to nothing."""
    a, b = _features(a, b)
    return _length_one(a) @ _length_one(b).T


def ranks(table: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
    """The rank of each query's right key among all m keys [n]: 1 is best, (m + 1) / 2 chance; ties take the middle.

    table [n, m]: similarity of queries with keys. which [n]: column of the right key, by default the query's number.
    """
    better, tied = _ahead(table, which)
    return 1 + better + tied / 2


def hits(table: np.ndarray, which: np.ndarray | None = None, k: int = 1, pool: int | None = None) -> np.ndarray:
    """The probability that each query's right key is among its k most similar [n]. Chance: k / pool.

    table, which: as in `ranks`. pool: the right key and pool − 1 others, drawn without replacement; None: all keys. Not
    a mean over some draws but their expectation: the number drawn of the better keys is hypergeometric.
    """
    from scipy.stats import hypergeom
    better, tied = _ahead(table, which)
    pool, keys = np.shape(table)[1] if pool is None else pool, np.shape(table)[1]
    if not 1 <= pool <= keys:
        raise WorkbenchError(f"a pool of {pool} candidates out of {keys}; give one between 1 and {keys}")
    found = hypergeom.cdf(k - 1, keys - 1, np.arange(keys), pool - 1) if keys > 1 else np.ones(1)
    total = np.concatenate([[0], np.cumsum(found)])                     # found[b]: of a key with b better ones
    return (total[better + tied + 1] - total[better]) / (tied + 1)


def retrieval(queries: np.ndarray, keys: np.ndarray, which: np.ndarray | None = None, k: Sequence[int] = (1, 5),
              pool: int | None = None) -> dict[str, dict[str, float]]:
    """Which picture was it? By cosine, in both directions, each by its name.

    queries [n, D] neural embeddings; keys [pictures, D] of the pictures; which [n]: each query's row of keys, by
    default its own number. pool: candidates, as in `hits`; MindEye draws 300, the same for queries and keys.

        neural_to_image  for each query, where its picture stands among the pictures
        image_to_neural  for each picture that was asked for, where its query stands among the queries. Only where no
                         picture has several: right answers would compete with each other, and their average is
                         another, easier test. Average first yourself, and say so.

    Of each: top{k}, chance_top{k}, pool; median_rank among all candidates. MindEye's code has neural_to_image under
    the name "bwd" and image_to_neural under "fwd", although its comments say the reverse.
    """
    table = similarity(queries, keys)
    which = np.arange(len(table)) if which is None else np.asarray(which)

    def told(table: np.ndarray, which: np.ndarray) -> dict[str, float]:
        size = table.shape[1] if pool is None else pool
        return {**{f"top{n}": float(hits(table, which, n, size).mean()) for n in k}, "pool": size,
                **{f"chance_top{n}": min(n / size, 1.0) for n in k}, "candidates": table.shape[1],
                "median_rank": float(np.median(ranks(table, which)))}

    found = {"neural_to_image": told(table, which)}
    if len(np.unique(which)) == len(which):
        found["image_to_neural"] = told(table.T[which], np.arange(len(table)))
    return found


def two_way(true_features: np.ndarray, made_features: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
    """Two-way identification [n]: the share of other targets that correlate less with what was made than its own does.

    true_features [pictures, D]; made_features [n, D]; which [n]: the row of each one's own target. Pearson, strictly
    less, as in MindEye2 (Scotti et al. 2024). Chance 0.5. It saturates early: give a rank beside it.
    """
    true, made = _features(true_features, made_features)
    if len(true) < 2:
        raise WorkbenchError("two-way identification needs another picture to choose from; give at least 2 targets")
    better, tied = _ahead(_standard(made) @ _standard(true).T, which)
    return 1 - (better + tied) / (len(true) - 1)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features, as Gaussians: |μa − μb|² + tr(Sa + Sb − 2 (Sa Sb)^½). 0 is best.

    a [n, D], b [m, D]. Heusel et al. 2017, arXiv 1706.08500, whose name belongs to Inception's features alone: call
    this frechet[extractor]. Refuses sets of D samples or fewer, whose covariance has no full rank. Small sets score too
    high even so: give the distance of true pictures from other true ones, the floor, beside it.
    """
    a, b = _features(a, b)
    if min(len(a), len(b)) <= a.shape[1]:
        raise WorkbenchError(f"a Fréchet distance over {a.shape[1]} features wants more samples than {len(a)} and "
                             f"{len(b)}, one more than features at least; take fewer features, or the kernel distance")
    first, second = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) for x in (a, b))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    middle = np.linalg.eigvalsh(root @ second @ root)                   # those of Sa Sb, and symmetric
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * np.sqrt(middle.clip(0)).sum()
    return float(max(distance, 0))


def kid(a: np.ndarray, b: np.ndarray, subsets: int = 10, seed: int = 0) -> tuple[float, float]:
    """Kernel distance of two sets of features and its standard error. 0 is best; unbiased, and so below 0 at times.

    a [n, D], b [m, D]. Squared maximum mean discrepancy under (x·y / D + 1)³: Bińkowski et al. 2018, arXiv 1801.01401.
    The value is of all samples; its error is that of the mean of disjoint random parts, if anything too large.
    """
    a, b = _features(a, b)
    if min(len(a), len(b)) < 2 * subsets or subsets < 2:
        raise WorkbenchError(f"{len(a)} and {len(b)} samples in {subsets} parts; give 2 parts, or more, of 2 or more")
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))                # a sample is no pair
    mmd2 = lambda x, y: float(within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean())
    random = np.random.default_rng(seed)
    parts = [np.array_split(random.permutation(len(x)), subsets) for x in (a, b)]
    each = [mmd2(a[i], b[j]) for i, j in zip(*parts, strict=True)]
    return mmd2(a, b), float(np.std(each, ddof=1) / np.sqrt(subsets))


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean over pictures of KL(p(class | picture) ‖ p(class)): 1 is worst, the number of classes best.

    probabilities [n, classes] of a named classifier. Salimans et al. 2016, arXiv 1606.03498. Wrong pictures score high.
    """
    from scipy.special import rel_entr
    given = np.asarray(probabilities, np.float64)
    if given.ndim != 2 or not len(given) or (given < 0).any() or not np.allclose(given.sum(1), 1, atol=1e-3):
        raise WorkbenchError(f"rows of {given.shape} that do not sum to 1; give probabilities [pictures, classes]")
    return float(np.exp(rel_entr(given, given.mean(0)).sum(1).mean()))


def bootstrap(values: np.ndarray, pictures: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple:
    """(mean, low, high): the mean of values [n] and its 95 % interval over pictures [n].

    All presentations of a picture are drawn together: percentiles of the mean over resampled pictures (Efron 1979),
    wider the fewer the pictures, by the t distribution (Hesterberg 2015); NaN for fewer than 2 pictures. Of values
    [n, K] each is [K], and the same pictures are drawn for all of them.
    """
    values, pictures = np.asarray(values, np.float64), np.asarray(pictures)
    if not len(values) or values.shape[:1] != pictures.shape:
        raise WorkbenchError(f"values {values.shape} of pictures {pictures.shape}; give the picture of every value")
    _, row, size = np.unique(pictures, return_inverse=True, return_counts=True)
    np.add.at(total := np.zeros((len(size), values[0].size)), row, values.reshape(len(values), -1))
    chosen = np.random.default_rng(seed).integers(len(size), size=(draws, len(size)))
    times = np.stack([np.bincount(each, minlength=len(size)) for each in chosen])
    means = times @ total / (times @ size)[:, None] * (1 if len(size) > 1 else np.nan)
    k = len(size)
    tail = norm.cdf(t.ppf(0.025, k - 1) * np.sqrt(k / (k - 1))) if k > 1 else 0.025
    return values.mean(0), *np.quantile(means, [tail, 1 - tail], axis=0).reshape(2, *values.shape[1:])


def paired(a: np.ndarray, b: np.ndarray, pictures: np.ndarray, draws: int = 2000, seed: int = 0) -> tuple:
    """The same of the difference a − b of two methods on the same items [n]: far narrower than either's own."""
    return bootstrap(np.asarray(a, np.float64) - np.asarray(b, np.float64), pictures, draws, seed)


def _pairs(true: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    true, made = np.asarray(true), np.asarray(made)
    if true.shape != made.shape or true.ndim not in (3, 4) or true.shape[3:] not in ((), (3,)):
        raise WorkbenchError(f"pictures of shapes {true.shape} and {made.shape}; give both as [n, height, width(, 3)]")
    return true, made


def _unit(picture: np.ndarray) -> np.ndarray:
    """One picture as 0..1."""
    if picture.dtype == np.uint8:
        return picture / 255
    if picture.dtype.kind != "f" or not (picture.min() >= -1e-6 and picture.max() <= 1 + 1e-6):
        raise WorkbenchError(f"a picture of {picture.dtype} between {picture.min():g} and {picture.max():g}; give "
                             "uint8 0..255 or floats clipped to 0..1")
    return picture.astype(np.float64)


def _features(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (len(a) and len(b)):
        raise WorkbenchError(f"features of shapes {a.shape} and {b.shape}; give [items, D] of one extractor for both")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise WorkbenchError("features that are not finite; look at the pictures or the extractor that gave them")
    return a, b


def _length_one(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 1e-12, length, np.inf)


def _standard(x: np.ndarray) -> np.ndarray:
    """Mean 0 and length 1 over the last axis: the product of two is Pearson's correlation."""
    return _length_one(x - x.mean(-1, keepdims=True))


def _ahead(table: np.ndarray, which: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates are more similar than the right one [n], and how many others are as similar [n]."""
    table = np.asarray(table)
    which = np.arange(len(table)) if which is None else np.asarray(which)
    if which.shape != table.shape[:1] or table.ndim != 2 or not ((which >= 0) & (which < table.shape[1])).all():
        raise WorkbenchError(f"right answers of shape {which.shape} for a table of shape {table.shape}; say of every "
                             "query which candidate is its own: which=, a number from 0 on")
    gap = table - np.take_along_axis(table, which[:, None], 1)
    return (gap > SAME).sum(1), (np.abs(gap) <= SAME).sum(1) - 1
