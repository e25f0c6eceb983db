"""Attention that is local before it has learned to be: without it, latents of chunks learn nothing for long.

ALiBi, Press et al. 2021, arXiv 2108.12409, over continuous time.
"""

import torch
from torch import Tensor

PACES = 2.0, 100.0                                                      # a second: of the furthest and the nearest head


def paces(heads: int) -> Tensor:
    """How fast each head's scores fall off with distance, a second [heads]."""
    return PACES[0] * (PACES[1] / PACES[0]) ** torch.linspace(0, 1, heads)


def near(pace: Tensor, queries: Tensor, times: Tensor) -> Tensor:
    """What attention scores lose with distance in time [(B,) heads, Q, M], each head at its own pace [heads].

    queries [(B,) Q] and times [(B,) M] in seconds.
    """
    return -pace[:, None, None] * (queries[..., None, :, None] - times[..., None, None, :]).abs()
