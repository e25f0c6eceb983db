"""The scores of the field, each with its source. No state."""

import numpy as np


def r2(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Coefficient of determination of every column [D]: 1 − squared error / variance around the column's own mean.

    true, predicted [T, D]. 1 is perfect, 0 as good as the mean of `true`; NaN for a column that does not vary.
    """
    true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    spread = ((true - true.mean(0)) ** 2).sum(0)
    return 1 - ((true - predicted) ** 2).sum(0) / np.where(spread > 0, spread, np.nan)
