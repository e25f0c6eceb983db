"""RowAdam: one scale matrix for all rows of a table."""

import pytest
import torch
from torch import nn

from workbench.training.rows import RowAdam, alike

SKEWED = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0] * torch.logspace(0, -1.5, 8)
AIMS = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


def loss_of(weight: torch.Tensor, skewed: torch.Tensor = SKEWED, aims: torch.Tensor = AIMS) -> torch.Tensor:
    """How far rows are from their aims, seen through a map that all share and that shrinks most directions."""
    return ((weight[:40] - aims) @ skewed).square().sum(1).mean()


def learned(steps: int, stepper, turn: torch.Tensor | None = None) -> torch.Tensor:
    turn = torch.eye(8) if turn is None else turn
    weight = nn.Parameter(torch.zeros(50, 8))
    optimizer = stepper(weight)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / steps)
        optimizer.zero_grad()
        loss_of(weight, turn.T @ SKEWED, AIMS @ turn).backward()
        optimizer.step()
    return weight.detach()


def rows(weight: nn.Parameter) -> RowAdam:
    return RowAdam([{"params": [weight], "rows": torch.arange(40)}])


def test_rows_learn_in_a_third_of_the_steps_where_directions_differ_in_scale():
    adam = lambda weight: torch.optim.AdamW([weight], weight_decay=0.0)
    apart = lambda weight: (weight[:40] - AIMS).square().mean().item()  # from the aims, in directions seen poorly too
    assert apart(learned(40, rows)) < 0.5 * apart(learned(120, adam))


def test_a_turned_basis_gives_the_turned_rows():
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    assert torch.allclose(learned(30, rows, turn), learned(30, rows) @ turn, atol=0.02)


def test_a_batch_that_is_louder_counts_no_more():
    quiet, loud = (nn.Parameter(torch.zeros(50, 8)) for _ in range(2))
    for weight, loudness in ((quiet, 1.0), (loud, 9.0)):
        optimizer = rows(weight)
        for step in range(20):
            optimizer.zero_grad()
            (loss_of(weight) * (loudness if step % 3 else 1.0)).backward()
            optimizer.step()
    assert torch.allclose(quiet, loud, atol=1e-4) and quiet[:40].abs().min() > 0


def test_no_other_row_moves_and_a_table_without_a_gradient_stays():
    weight = nn.Parameter(torch.ones(50, 8))
    optimizer = rows(weight)
    optimizer.step()
    assert torch.equal(weight, torch.ones(50, 8))
    weight.square().sum().backward()
    optimizer.step()
    assert torch.equal(weight[40:], torch.ones(10, 8)) and (weight[:40] < 1).all()


@pytest.mark.parametrize("lr", [0.05, 0.5])
def test_few_rows_of_many_columns_learn_and_never_run_away(lr):
    weight = nn.Parameter(torch.zeros(3, 8))
    optimizer, missed = RowAdam([{"params": [weight], "rows": torch.tensor([1, 2])}]), []
    for step in range(200):
        optimizer.zero_grad()
        loss = (weight[1:] - AIMS[:2]).square().sum()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr * (1 - step / 200)
        optimizer.step()
        missed.append(loss.item())
    assert max(missed) == missed[0] and missed[-1] < 0.01 * missed[0] and not weight[0].any()


# What units that fire alike have in common


def drawn(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def firing(units: int = 60, groups: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [W, units, T] of groups that fire together, and the group of each unit [units]."""
    group = torch.arange(units) % groups
    rates = 3 * drawn(0, 50, groups, 8).exp()[:, group]
    return torch.poisson(rates, generator=torch.Generator().manual_seed(1)), group


def test_what_units_that_fire_together_share_is_kept_and_what_each_has_of_its_own_is_not():
    counts, group = firing()
    common = alike(counts)
    assert common.shape == (60, 6) and torch.allclose(common.T @ common, torch.eye(6), atol=1e-5)
    kept = lambda function: ((common.T @ function).norm() / function.norm()).item()
    assert kept(nn.functional.one_hot(group).float()) > 0.98 and kept(drawn(2, 60, 50)) < 0.5


def test_units_in_another_order_have_the_same_in_common():
    counts, _ = firing()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    one, other = alike(counts)[:, :3], alike(counts[:, order])[:, :3]
    assert torch.allclose((one @ one.T)[order][:, order], other @ other.T, atol=1e-3)


@pytest.mark.parametrize("counts", [torch.zeros(4, 30, 8), torch.ones(1, 9, 1), torch.zeros(3, 1, 8)])
def test_silent_or_few_units_have_little_in_common_and_no_error(counts):
    common = alike(counts)
    assert common.shape == (counts.shape[1], counts.shape[1] // 10) and common.isfinite().all()


def test_rows_that_need_the_same_turn_learn_it_from_noisy_gradients():
    counts, group = firing()
    aims, common = drawn(4, 3, 8)[group], alike(counts)

    def apart(**more) -> float:
        weight = nn.Parameter(torch.zeros(60, 8))
        optimizer = RowAdam([{"params": [weight], "rows": torch.arange(60), **more}])
        for step in range(30):
            weight.grad = weight.detach() - aims + 5 * drawn(100 + step, 60, 8)
            optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 30)
            optimizer.step()
        return (weight.detach() - aims).square().mean().item()

    assert apart(alike=common) < 0.5 * apart()
