"""The losses of the field, each with its source. No state. (Plain cross-entropy is torch's own.)"""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, ctc_loss, mse_loss, normalize

from workbench.batch import Target

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def in_float32(loss: Loss) -> Loss:
    """The loss out of autocast's reach: rates are exponentials and losses are long sums, for which bf16 is too coarse.
    """
    @wraps(loss)
    def exact(*given, **named) -> Tensor:
        kind = given[0].device.type
        if not torch.is_autocast_enabled(kind):
            return loss(*given, **named)
        whole = lambda x: x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x
        with torch.autocast(kind, enabled=False):
            return loss(*map(whole, given), **{name: whole(value) for name, value in named.items()})
    return exact


@in_float32
def window_mse(predicted: Tensor, target: Target, scale: Tensor, *, since: float = 0.0) -> Tensor:
    """Mean squared error in units of `scale` [D]: the mean of each window's samples, then of the windows that have any.

    predicted [Q, D], packed as the target is. Samples before `since` seconds of their window do not count. Windows
    weigh the same however often their session was sampled, and a batch without a sample has a loss of 0.
    """
    counts = (target.times >= since).to(predicted.dtype)
    window = torch.repeat_interleave(target.offsets.diff())
    squared = ((predicted - target.values) / scale).square().mean(1) * counts
    size = counts.new_zeros(len(target.offsets) - 1).index_add(0, window, counts)
    total = squared.new_zeros(len(size)).index_add(0, window, squared)
    return (total / size.clamp(min=1)).sum() / (size > 0).sum().clamp(min=1)


@in_float32
def poisson_nll(log_rates: Tensor, counts: Tensor, where: Tensor | None = None) -> Tensor:
    """Poisson negative log-likelihood, exp(η) − y η, without the term that no model can change; the mean of entries.

    log_rates, counts, and where (true: it counts) of one shape. 0 where nothing counts.
    """
    each = log_rates.exp() - counts * log_rates
    return each.mean() if where is None else mean_where(each, where)


@in_float32
def poisson_nll_rate(rates: Tensor, counts: Tensor, where: Tensor | None = None) -> Tensor:
    """The same of rates instead of log-rates, r − y log r (LDNS, Kapoor et al. 2024, arXiv 2407.08751)."""
    each = rates - counts * (rates + 1e-8).log()
    return each.mean() if where is None else mean_where(each, where)


@in_float32
def negative_binomial_nll(log_rates: Tensor, log_sizes: Tensor, counts: Tensor, where: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of counts that vary more than Poisson's: variance μ + μ²/r, for sizes r; mean of entries.

    log_rates, counts, and where (true: it counts) of one shape, log_sizes broadcast to it. Hilbe 2011, "Negative
    Binomial Regression"; without the term that no model can change, so that it nears `poisson_nll` as r grows.
    """
    kind = log_rates.dtype                                              # terms of large sizes agree in all its digits
    log_rates, log_sizes, counts = log_rates.double(), log_sizes.double(), counts.double()
    sizes = log_sizes.exp()
    each = (counts + sizes) * torch.log1p((log_rates - log_sizes).exp()) - counts * (log_rates - log_sizes)
    each = (each - torch.lgamma(counts + sizes) + torch.lgamma(sizes)).to(kind)
    return each.mean() if where is None else mean_where(each, where)


@in_float32
def softened_cross_entropy(logits: Tensor, counts: Tensor, where: Tensor | None = None) -> Tensor:
    """Cross-entropy of counts as classes, each softened into a Poisson over all of them; the mean of entries, in nats.

    logits [..., K] of the counts 0 to K − 1; counts and where [...]; higher counts are taken as K − 1. A perfect
    answer has the entropy of the soft target left, not 0. NDT3 (Ye et al. 2025), whose table has an empty last row, so
    that its highest count teaches nothing; here every row is whole.
    """
    table = poisson_table(logits.shape[-1], logits.device).to(logits.dtype)
    each = -(table[counts.long().clamp(max=len(table) - 1)] * logits.log_softmax(-1)).sum(-1)
    return each.mean() if where is None else mean_where(each, where)


def poisson_table(classes: int, device: torch.device | None = None) -> Tensor:
    """Row k: the Poisson probabilities, with a mean of k, of the counts 0 to classes − 1, rescaled to sum to 1."""
    k = torch.arange(classes, dtype=torch.float64, device=device)
    return (torch.xlogy(k, k[:, None]) - torch.lgamma(k + 1)).softmax(-1)


@in_float32
def ordinal(logits: Tensor, classes: Tensor, where: Tensor | None = None) -> Tensor:
    """Squared difference of the cumulative distributions over ordered classes: the further off, the worse.

    logits [..., K]; classes and where [...]; the mean over classes, then over entries. The "Mallows distance" of POYO+
    (Azabou et al. 2025, ICLR), after Hou et al. 2016, arXiv 1611.05916.
    """
    true = torch.arange(logits.shape[-1], device=logits.device) >= classes[..., None]
    each = (logits.softmax(-1).cumsum(-1) - true.to(logits)).square().mean(-1)
    return each.mean() if where is None else mean_where(each, where)


@in_float32
def nt_xent(a: Tensor, b: Tensor, temperature: float | Tensor) -> Tensor:
    """Contrast of two views a, b [M, D] of M things: each view must find its twin among all 2 M − 1 others, in nats.

    By cosine; no view is compared with itself. SimCLR (Chen et al. 2020, arXiv 2002.05709).
    """
    views = normalize(torch.cat([a, b]), dim=-1)
    similarity = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(similarity, torch.arange(len(views), device=a.device).roll(len(a)))


@in_float32
def info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor, groups: Tensor | None = None) -> Tensor:
    """Query i [M, D] must find key i among all keys [M or more, D], by cosine, in nats. One way.

    groups: what each key shows [as many as keys]; other keys of the same group are right too, and are left out of the
    contrast: a picture that a batch holds twice would else be punished for being found. van den Oord et al. 2018,
    arXiv 1807.03748.
    """
    similarity, own = normalize(queries, dim=-1) @ normalize(keys, dim=-1).T / temperature, len(queries)
    if groups is not None:
        also_right = groups[:own, None] == groups
        similarity = similarity.masked_fill(also_right.fill_diagonal_(False), -torch.inf)
    return cross_entropy(similarity, torch.arange(own, device=queries.device))


def clip_loss(a: Tensor, b: Tensor, temperature: float | Tensor, groups: Tensor | None = None) -> Tensor:
    """`info_nce` both ways, from a to b and from b to a, averaged. CLIP (Radford et al. 2021, arXiv 2103.00020)."""
    return (info_nce(a, b, temperature, groups) + info_nce(b, a, temperature, groups)) / 2


@in_float32
def ctc(logits: Tensor, labels: Tensor, lengths: Tensor, label_lengths: Tensor) -> Tensor:
    """Negative log-likelihood of label sequences without their timing, in nats a label, the mean of sequences.

    logits [B, T, K], class 0 the blank; labels packed [sum of label_lengths], 1 to K − 1; lengths [B] of the logits,
    label_lengths [B]. A sequence too long for its bins counts as 0. Graves et al. 2006, ICML.
    """
    return ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, lengths, label_lengths, zero_infinity=True)


@in_float32
def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor | float = 0.0,
                prior_logvar: Tensor | float = 0.0) -> Tensor:
    """KL divergence [...] of a diagonal Gaussian [..., D] from a prior, the standard one if none is given, in nats.

    The part of the evidence lower bound that is no likelihood. Kingma & Welling 2014, arXiv 1312.6114.
    """
    prior_logvar = torch.as_tensor(prior_logvar, dtype=mean.dtype, device=mean.device)
    ratio = logvar - prior_logvar
    return (ratio.exp() + (mean - prior_mean).square() * (-prior_logvar).exp() - 1 - ratio).sum(-1) / 2


def ddpm_loss(denoise: Callable[[Tensor, Tensor], Tensor], clean: Tensor, kept: Tensor,
              distance: Callable[[Tensor, Tensor], Tensor] = mse_loss) -> Tensor:
    """How far `denoise(noisy, step [B])` is from the noise in `noisy`, at a random step of diffusion for each sample.

    clean [B, ...]; kept [steps]: the share of the variance that is still signal after each step, the running product
    of 1 − β. Ho et al. 2020, arXiv 2006.11239.
    """
    step = torch.randint(len(kept), (len(clean),), device=clean.device)
    share = kept.to(clean)[step].view(-1, *[1] * (clean.ndim - 1))
    noise = torch.randn_like(clean)
    return distance(denoise(share.sqrt() * clean + (1 - share).sqrt() * noise, step), noise)


@in_float32
def decoupled_contrast(one: Tensor, two: Tensor, there: Tensor, temperature: float) -> Tensor:
    """Two views of one unit attract, those of different units of a window repel, decoupled: the mean of units.

    (1 − s⁺) / τ + log mean exp(s⁻ / τ), with s⁺ the similarity of a unit's two views and s⁻ those of its one view to
    both views of all other units, averaged over both views. one, two [B, N, D] of unit norm, there [B, N] which of
    them count. 0 where no window has two units. Yeh et al. 2022, arXiv 2110.06848, as NuCLR uses it, arXiv 2512.01199.
    """
    n = there.sum(1)
    both = torch.cat([one, two], dim=1)
    others = there[:, None] & ~torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
    others = others.repeat(1, 2, 2)                                     # of a unit in one view: all others in both
    repel = (both @ both.mT / temperature).masked_fill(~others, -1e9).logsumexp(2).unflatten(1, (2, -1)).mean(1)
    repel = repel - (2 * (n - 1)).clamp(min=1).log()[:, None]
    attract = (1 - (one * two).sum(2)) / temperature
    return mean_where(attract + repel, there & (n > 1)[:, None])


@in_float32
def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values where `where` is true, 0 where it never is; values elsewhere may be anything finite."""
    return (values * where).sum() / where.expand_as(values).sum().clamp(min=1)
