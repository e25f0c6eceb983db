"""Which picture was it, by counts: the discriminant of the training part, in closed form.

    tuning    a unit's count at time t ≈ ⟨W, vector of the picture⟩, ridge, its penalty by pictures left out one by one
    row       noise covariance⁻¹ W: a spike speaks for the pictures that drive its unit, as far as other units do not
              say the same (the linear discriminant between any two pictures, Fisher 1936)
"""

import numpy as np
from sklearn.covariance import ledoit_wolf

PENALTIES = 10.0 ** np.arange(-2, 2.5, 0.5)                             # in mean squares of the vectors' components


def votes(counts: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Rows [F, D] such that Σ counts × rows points to the picture: noise covariance⁻¹ × tuning.

    counts [n, F] of presentations; vectors [n, D] of what they showed, less their mean. Scaled so that sums have a
    length of about 1.
    """
    shown, which = np.unique(vectors, axis=0, return_inverse=True)
    spread = counts.std(0)
    spread = np.where(spread > 0, spread, np.inf)                       # what never varies has no vote
    standard = (counts - counts.mean(0)) / spread
    number = np.bincount(which).astype(float)
    means = np.zeros((len(shown), counts.shape[1]))
    np.add.at(means, which, standard)
    means /= number[:, None]
    left, values, right = np.linalg.svd(shown, full_matrices=False)
    errors = []
    for penalty in PENALTIES * (values ** 2).mean():
        gone = _left_out(left, values, means, penalty)
        errors.append(((means - gone) ** 2 * number[:, None]).sum())
    penalty = PENALTIES[int(np.argmin(errors))] * (values ** 2).mean()
    tuning = right.T @ ((values / (values ** 2 + penalty))[:, None] * (left.T @ means))              # [D, F]
    noise = ledoit_wolf(standard - _left_out(left, values, means, penalty)[which])[0]
    rows = np.linalg.solve(noise, tuning.T) / spread[:, None]
    length = np.linalg.norm((counts - counts.mean(0)) @ rows, axis=1).mean()
    return rows / max(length, 1e-12)


def _left_out(left: np.ndarray, values: np.ndarray, means: np.ndarray, penalty: float) -> np.ndarray:
    """What a ridge fitted to all other pictures says of each [P, F], in closed form."""
    shrink = values ** 2 / (values ** 2 + penalty)
    said = left @ (shrink[:, None] * (left.T @ means))
    own = (left ** 2 @ shrink)[:, None].clip(max=1 - 1e-6)
    return means - (means - said) / (1 - own)
