"""Counts on one scale: the mean rate that a unit was met with stays its own."""

import pytest
import torch

from tests.models.test_zoo import SESSIONS, build, read, toy


@pytest.mark.parametrize("name", ["gru", "mlp"])
def test_new_sessions_leave_the_rates_of_known_units_alone(name):
    model, new = build(name).eval(), toy("c", 4, 5)
    batch = read(model, [0, 1], [1.0, 4.0])
    with torch.no_grad():
        before = model(batch).behavior
        model.extend([SESSIONS[0].between(0, 3), new])
        assert torch.equal(model(batch).behavior, before)
    rates = model.standard.rates
    mean = rates.weight[rates.rows(["c/u0", "c/u3"]), 0]
    torch.testing.assert_close(mean / model.bin_size, torch.tensor(new.rates()[[0, 3]]).float())


def test_poisson_counts_have_unit_variance_and_no_mean():
    model = build("gru").eval()
    batch = read(model, [1, 1, 1, 1], [0.0, 4.0, 8.0, 12.0])
    z = model.standard(batch.counts(model.bin_size), batch)
    assert z.mean().abs() < 0.1 and 0.7 < z.std() < 2.0                 # rates that vary add to the variance
