"""Steps for the rows of a table: Adam whose scale is one matrix for all rows, not a number for each of theirs.

    gradient of the rows [n, dim] → of length 1 → its running mean × (running mean of gᵀg / n)^-½
    → and eight times as much of what units that fire alike have in common → step

Every batch counts alike: where masks ask little of few units, as those of a region do, the gradient is longest and
knows least. A frozen network asks every row the same, so that what a direction of the rows does to the loss is known
from all of them after a few batches, long before each number is: about half the steps of AdamW do. One side of Shampoo
(Gupta, Koren & Singer 2018, arXiv 1802.09568) with the running means of Adam (Kingma & Ba 2015, arXiv 1412.6980).

One unit's gradient is mostly noise, that of many is not. Units that fire together need much the same turn, so that what
they ask for in common is trusted more: as a Gaussian process over units would, whose covariance is how alike they fire.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from workbench.nn.factors import loadings

COMMON = 8.0                                                            # how much more is made of what is shared


class RowAdam(torch.optim.Optimizer):
    """Groups have "params", one table's weight [·, dim], and "rows" [n], those of it that learn; no other row moves.
    Optional: "alike" [n, k], orthonormal, what the units of those rows have in common (see `alike`).
    """

    def __init__(self, groups: Iterable[dict], lr: float = 1e-2, betas: tuple[float, float] = (0.8, 0.99)):
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            (weight,), rows, (fast, slow) = group["params"], group["rows"], group["betas"]
            if weight.grad is None:
                continue
            state, gradient = self.state[weight], nn.functional.normalize(weight.grad[rows], dim=(0, 1), eps=1e-30)
            if not state:
                square = gradient.new_zeros(weight.shape[1], weight.shape[1])
                state.update(step=0, mean=torch.zeros_like(gradient), square=square)
            state["step"] += 1
            state["mean"].lerp_(gradient, 1 - fast)
            state["square"].lerp_(gradient.T @ gradient / len(rows), 1 - slow)
            # Looked at in every step: one by an old matrix goes far where that one has seen nothing yet.
            scale, axes = torch.linalg.eigh(state["square"] / (1 - slow ** state["step"]))
            even = axes * scale.clamp(min=1e-4 * scale[-1].item() + 1e-30).rsqrt() @ axes.T
            move = state["mean"] @ even
            if group.get("alike") is not None:
                common = group["alike"].to(move)
                move = move + COMMON * common @ (common.T @ move)
            weight[rows] -= group["lr"] / (1 - fast ** state["step"]) * move


def alike(counts: Tensor) -> Tensor:
    """What units [n] that fire alike have in common, from counts [W, n, T]: the smoothest functions of units [n, k], a
    tenth as many as they are and 100 at most, orthonormal, by a kernel of the angle between their loadings on factors.
    """
    found = nn.functional.normalize(loadings(counts, 32), dim=1)
    return torch.svd_lowrank((4 * (found @ found.T - 1)).exp(), min(len(found) // 10, 100), niter=3)[0]
