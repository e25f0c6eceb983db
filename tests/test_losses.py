"""Losses against torch, scipy and hand computation; what they must not feel; gradients that stay finite."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from workbench import losses


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_both_forms_of_poisson_are_torchs_and_one():
    log_rates, counts = torch.randn(3, 4, 5), torch.poisson(torch.rand(3, 4, 5) * 3)
    one, two = losses.poisson_nll(log_rates, counts), losses.poisson_nll_rate(log_rates.exp(), counts)
    torch.testing.assert_close(one, functional.poisson_nll_loss(log_rates, counts))
    torch.testing.assert_close(one, two)


def test_negative_binomial_is_scipys_and_poissons_where_sizes_are_large():
    log_rates, counts = torch.randn(3, 4, 5).double(), torch.poisson(torch.rand(3, 4, 5) * 3).double()
    log_sizes = torch.randn(3, 4, 1).double()
    sizes = log_sizes.exp().expand_as(counts).numpy()
    known = -stats.nbinom.logpmf(counts, sizes, sizes / (sizes + log_rates.exp().numpy())).mean()
    found = losses.negative_binomial_nll(log_rates, log_sizes, counts)
    assert found.item() + torch.lgamma(counts + 1).mean().item() == pytest.approx(known)
    assert losses.negative_binomial_nll(log_rates, torch.tensor(14.0).double(), counts).item() == pytest.approx(
        losses.poisson_nll(log_rates, counts).item(), abs=1e-4)


def test_negative_binomial_of_large_sizes_keeps_its_digits_in_float32():
    log_rates, counts = torch.randn(300), torch.poisson(torch.rand(300) * 3)
    for size in (4.0, 8.0, 12.0, 16.0):
        found = []
        for kind in (torch.float32, torch.float64):
            log_size = torch.tensor(size, dtype=kind, requires_grad=True)
            loss = losses.negative_binomial_nll(log_rates.to(kind), log_size, counts.to(kind))
            loss.backward()
            found.append((loss.item(), log_size.grad.item()))
        assert found[0] == pytest.approx(found[1], abs=1e-6), size


def test_a_rate_of_zero_is_dear_only_where_a_spike_came():
    rates = torch.zeros(2, requires_grad=True)
    quiet, spike = losses.poisson_nll_rate(rates[:1], torch.zeros(1)), losses.poisson_nll_rate(rates[1:], torch.ones(1))
    (quiet + spike).backward()
    assert quiet == 0 and 10 < spike < 20 and torch.isfinite(rates.grad).all()


@pytest.mark.parametrize("loss, logits", [(losses.poisson_nll, (3, 4)), (losses.poisson_nll_rate, (3, 4)),
                                          (losses.softened_cross_entropy, (3, 4, 6)), (losses.ordinal, (3, 4, 6))])
def test_only_entries_that_count_are_felt(loss, logits):
    made, counts, where = torch.rand(logits) + 0.1, torch.randint(6, (3, 4)), torch.rand(3, 4) < 0.5
    made.requires_grad_()
    masked = loss(made, counts, where)
    masked.backward()
    torch.testing.assert_close(masked, loss(made[where], counts[where]))
    assert not made.grad[~where].any() and made.grad[where].any()
    assert loss(made, counts, torch.zeros_like(where)) == 0


def test_a_mask_of_one_column_for_all_weighs_like_the_whole_mask():
    values, where = torch.rand(3, 4, 5), torch.rand(3, 4, 1) < 0.5
    torch.testing.assert_close(losses.mean_where(values, where), values[where.expand(3, 4, 5)].mean())


def test_softened_targets_are_whole_poisson_rows():
    table = losses.poisson_table(21).numpy()
    for k in (1, 7, 20):
        pmf = stats.poisson.pmf(np.arange(21), k)
        np.testing.assert_allclose(table[k], pmf / pmf.sum(), rtol=1e-9)
    np.testing.assert_array_equal(table[0], np.eye(21)[0])
    np.testing.assert_allclose(table.sum(1), 1)


def test_softened_cross_entropy_is_torchs_with_soft_targets():
    logits, counts = torch.randn(5, 9), torch.tensor([0, 3, 8, 12, 1])
    rows = losses.poisson_table(9).float()[counts.clamp(max=8)]
    torch.testing.assert_close(losses.softened_cross_entropy(logits, counts), functional.cross_entropy(logits, rows))


def test_the_highest_count_teaches():
    logits = torch.zeros(1, 21, requires_grad=True)
    losses.softened_cross_entropy(logits, torch.tensor([20.0])).backward()
    assert logits.grad[0, 20] < -0.1


def test_ordinal_grows_with_the_distance_and_is_zero_where_sure_and_right():
    logits = 200 * torch.eye(5)[2]
    far = [losses.ordinal(logits, torch.tensor(k)).item() for k in range(5)]
    np.testing.assert_allclose(far, [0.4, 0.2, 0, 0.2, 0.4], atol=1e-6)         # steps between the classes, over 5


def test_nt_xent_by_hand():
    a, b, tau = torch.randn(3, 4), torch.randn(3, 4), 0.5
    views = torch.cat([a, b]).double().numpy()
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    each = []
    for i in range(6):
        towards = np.exp(views @ views[i] / tau)
        each.append(-np.log(towards[(i + 3) % 6] / (towards.sum() - towards[i])))
    assert losses.nt_xent(a, b, tau).item() == pytest.approx(np.mean(each), rel=1e-5)


def test_contrasts_by_hand_and_their_symmetry():
    a, b, tau = torch.randn(4, 5), torch.randn(4, 5), 0.3
    cosine = functional.cosine_similarity(a[:, None], b[None], dim=-1) / tau
    one = -(cosine.diag() - cosine.logsumexp(1)).mean()
    other = -(cosine.diag() - cosine.logsumexp(0)).mean()
    torch.testing.assert_close(losses.info_nce(a, b, tau), one)
    torch.testing.assert_close(losses.clip_loss(a, b, tau), (one + other) / 2)
    torch.testing.assert_close(losses.clip_loss(a, b, tau), losses.clip_loss(b, a, tau))
    assert losses.info_nce(a, b, tau) != losses.info_nce(b, a, tau)


@pytest.mark.parametrize("loss", [losses.nt_xent, losses.info_nce, losses.clip_loss])
def test_contrasts_feel_neither_length_nor_order_and_have_gradients(loss):
    a, b, order = torch.randn(6, 4), torch.randn(6, 4), torch.randperm(6)
    a.requires_grad_()
    plain = loss(a, b, 0.2)
    torch.testing.assert_close(plain, loss(7 * a, 0.1 * b, 0.2))
    torch.testing.assert_close(plain, loss(a[order], b[order], 0.2))
    assert loss(b, b, 0.01) < 0.01 < plain                                      # twins alike: nothing left to learn
    plain.backward()
    assert torch.isfinite(a.grad).all() and a.grad.any()


def test_more_keys_than_queries_are_more_negatives():
    queries, keys = torch.randn(3, 4), torch.randn(8, 4)
    assert losses.info_nce(queries, keys, 1.0) > losses.info_nce(queries, keys[:3], 1.0)


def test_ctc_sums_every_path_by_hand():
    logits = torch.randn(1, 2, 3)
    p = logits[0].softmax(-1)
    paths = p[0, 0] * p[1, 2] + p[0, 2] * p[1, 0] + p[0, 2] * p[1, 2]           # blank–label, label–blank, label–label
    found = losses.ctc(logits, torch.tensor([2]), torch.tensor([2]), torch.tensor([1]))
    torch.testing.assert_close(found, -paths.log())


def test_ctc_of_what_cannot_fit_is_nothing():
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = losses.ctc(logits, torch.tensor([1, 2, 1]), torch.tensor([2]), torch.tensor([3]))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_kl_is_torchs_and_zero_only_at_the_prior():
    mean, logvar, other, prior = torch.randn(4, 4, 3)
    normal = lambda m, v: torch.distributions.Normal(m, (v / 2).exp())
    want = torch.distributions.kl_divergence(normal(mean, logvar), normal(other, prior)).sum(-1)
    torch.testing.assert_close(losses.gaussian_kl(mean, logvar, other, prior), want)
    zero = torch.zeros(4, 3)
    torch.testing.assert_close(losses.gaussian_kl(mean, logvar),
                               torch.distributions.kl_divergence(normal(mean, logvar), normal(zero, zero)).sum(-1))
    assert not losses.gaussian_kl(mean, logvar, mean, logvar).any() and (want > 0).all()


def test_ddpm_asks_for_the_noise_that_was_added():
    clean, kept = torch.randn(512, 3, 2), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)

    def knows_the_clean(noisy, step):
        share = kept[step].view(-1, 1, 1)
        return (noisy - share.sqrt() * clean) / (1 - share).sqrt()
    assert losses.ddpm_loss(knows_the_clean, clean, kept) < 1e-4
    silent = lambda noisy, step: torch.zeros_like(noisy)
    assert losses.ddpm_loss(silent, clean, kept).item() == pytest.approx(1, abs=0.1)
    smooth = lambda a, b: functional.smooth_l1_loss(a, b, beta=0.04)
    mean_size = math.sqrt(2 / math.pi)                                          # of noise; less half of beta
    assert losses.ddpm_loss(silent, clean, kept, smooth).item() == pytest.approx(mean_size - 0.02, abs=0.05)


def test_ddpm_draws_every_step():
    seen = []
    losses.ddpm_loss(lambda noisy, step: seen.append(step) or noisy, torch.zeros(2000, 1), torch.linspace(0.9, 0.1, 10))
    assert sorted(seen[0].unique().tolist()) == list(range(10))


def test_keys_that_show_the_same_are_not_held_against_each_other():
    queries, keys = torch.randn(6, 8), torch.randn(6, 8)
    twice, groups = torch.cat([keys, keys[:1]]), torch.tensor([0, 1, 2, 3, 4, 5, 0])
    torch.testing.assert_close(losses.info_nce(queries[:1], twice, 0.1, groups),
                               losses.info_nce(queries[:1], keys, 0.1))
    assert losses.info_nce(queries, twice, 0.1, groups) < losses.info_nce(queries, twice, 0.1)
    both = torch.tensor([0, 0, 1, 2, 3, 4])
    assert losses.clip_loss(queries, keys, 0.1, both) < losses.clip_loss(queries, keys, 0.1)
    torch.testing.assert_close(losses.clip_loss(queries, keys, 0.1, torch.arange(6)),
                               losses.clip_loss(queries, keys, 0.1))


def test_under_autocast_losses_are_float32s_of_what_they_are_given():
    log_rates, counts = torch.randn(3, 4, 5).bfloat16(), torch.poisson(torch.rand(3, 4, 5) * 3)
    a, b = torch.randn(6, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.poisson_nll(log_rates, counts), losses.nt_xent(a, b, temperature=0.1)
        assert torch.is_autocast_enabled("cpu")
    known = losses.poisson_nll(log_rates.float(), counts), losses.nt_xent(a.float(), b.float(), 0.1)
    assert all(torch.equal(one, two) and one.dtype == torch.float32 for one, two in zip(found, known, strict=True))
