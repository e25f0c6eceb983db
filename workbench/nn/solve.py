"""Unit vectors solved for, without a gradient: by which a network, as it is, says best what the units fired.

    log rate of unit n in bin t = its log mean + ⟨n's vector, what the bin is like⟩ + ⟨n's vector, its counts around t⟩
    → linear in the vector, once a norm has made it of mean 0 and variance 1 → least squares, a unit each [N, dim, dim]
"""

import torch
from torch import Tensor, nn

from workbench.nn.grid import Factorised, OwnActivity


class Equations:
    """What counts say of the vectors of `many` units: one step of a Poisson regression from what a unit without a
    vector would fire, with a prior of variance 1. Gathered over any number of masks.
    """

    def __init__(self, decoder: Factorised, own: OwnActivity, many: int):
        weight, norm, scale = decoder.direction.weight, decoder.unit_norm, decoder.direction.out_features ** -0.5
        of_mean = lambda weight: weight - weight.mean(1, keepdim=True)                      # a norm takes no mean
        self.of_times, self.of_own = of_mean(weight * scale * norm.weight), of_mean(own.weigh.weight * own.norm.weight)
        self.all_times = scale * (weight @ norm.bias + decoder.direction.bias)
        self.all_own = own.weigh.weight @ own.norm.bias + own.weigh.bias
        dim = weight.shape[1]
        self.gram, self.said, self.sums = (weight.new_zeros(many, *each) for each in ((dim, dim), (dim,), (dim,)))
        self.due, self.over = weight.new_zeros(2, many)

    def add(self, times: Tensor, counts: Tensor, units: Tensor, ratios: Tensor | None = None) -> None:
        """Counts [M, n] of `units` (true for n of [N]) in bins that are like times [M, width]; ratios [M, n, widths]:
        of what is seen of each unit's own counts around, see `OwnActivity.ratios`.
        """
        heard, would = times @ self.of_times, (times @ self.all_times).exp()                # [M, dim], [M]
        mean, weighed = counts.sum(0) / would.sum(), heard * would[:, None]
        gram, sums = (weighed.T @ heard)[None], weighed.sum(0)[None]
        if ratios is None:
            over = counts - mean * would[:, None]
            said = over.T @ heard
        else:
            expected = would[:, None] * (ratios @ self.all_own).exp()
            over = counts - expected * counts.sum(0) / expected.sum(0)
            said = over.T @ heard + torch.einsum("mn,mnk->nk", over, ratios) @ self.of_own
            both = torch.einsum("md,mnk->ndk", weighed, ratios) @ self.of_own
            # In a burst exp grows far faster than a line: such bins weigh as the mean of exp on the way there.
            burst = ratios.mean(2).clamp(min=1e-3)
            often = would[:, None] * burst.expm1() / burst
            alone = self.of_own.T @ torch.einsum("mn,mnk,mnl->nkl", often, ratios, ratios) @ self.of_own
            gram = gram + both + both.transpose(1, 2) + alone
            sums = sums + torch.einsum("m,mnk->nk", would, ratios) @ self.of_own
        self.gram[units] += gram * mean[:, None, None]
        self.sums[units] += sums * mean[:, None]
        self.said[units] += said
        self.due[units] += mean * would.sum()
        self.over[units] += over.sum(0)

    def solve(self) -> Tensor:
        """Vectors [N, dim] of mean 0 and variance 1. What length one lacks it is given, at random, where counts say
        least of all units: a norm would else make much of what is hardly known.
        """
        due, dim = self.due.clamp(min=1e-6)[:, None], self.gram.shape[1]
        gram = self.gram - self.sums[:, :, None] * self.sums[:, None] / due[..., None]      # beside a level of its own
        said = self.said - self.sums * self.over[:, None] / due
        prior = 1 + 1e-6 * gram.diagonal(dim1=1, dim2=2).amax(1)        # and what keeps rounding from a negative root
        low = torch.linalg.cholesky(gram + prior[:, None, None] * torch.eye(dim, device=gram.device))
        found = torch.cholesky_solve(said[..., None], low)[..., 0]
        axes = torch.linalg.eigh(gram.mean(0))[1][:, 1:1 + max(dim // 4, 1)]                # the first is the mean
        idle = nn.functional.normalize(torch.randn(len(found), axes.shape[1], device=axes.device) @ axes.T, dim=1)
        lack = (dim - found.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        return nn.functional.layer_norm(found + lack * idle, found.shape[1:])
