"""Maps of sessions: whether they are looked up once for a batch or once a window, the sums are the same."""

import pytest
import torch

from tests.models import test_zoo
from tests.models.test_models import tuned
from workbench.batch import Reader
from workbench.nn import stitcher
from workbench.nn.stitcher import ReadIn, ReadOut, shared_weights, unit_weights, window_weights

SESSIONS = [tuned("a", 1, seconds=10), tuned("b", 2, seconds=10)]
NAMES = [f"{s.id}/{u}" for s in SESSIONS for u in s.units["id"]]
ALIKE = Reader(SESSIONS).read([1, 1, 1], [0.0, 2.0, 5.0], 1.0)


def layers() -> tuple[ReadIn, ReadOut, ReadIn]:
    torch.manual_seed(0)
    return ReadIn(NAMES, ["a", "b"], 6), ReadOut(NAMES, 6), ReadIn(NAMES, ["a", "b"], 6, lags=3)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_lookup_for_all_windows_gives_the_values_and_gradients_of_one_a_window(which, monkeypatch):
    def found():
        layer = layers()[which]
        torch.manual_seed(1)
        y = layer(torch.randn(3, 8, 6) if which == 1 else torch.randn(3, 20, 8), ALIKE)
        (y * torch.randn(y.shape)).sum().backward()
        return y, [p.grad for p in layer.parameters()]

    assert shared_weights(ALIKE, layers()[which].units) is not None
    (y, grads) = found()
    monkeypatch.setattr(stitcher, "shared_weights", lambda *_: None)
    (want, wanted) = found()
    torch.testing.assert_close(y, want, atol=1e-5, rtol=1e-5)
    for have, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(have, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["ndt1", "stndt", "mtm", "neds"])
def test_new_sessions_start_at_their_mean_and_leave_the_biases_of_known_units_alone(name):
    model, new = test_zoo.build(name), test_zoo.toy("c", 4, 5)
    biases = lambda names: model.read_out.units.weight[model.read_out.units.rows(names), -1].detach()
    before = biases(["a/u0", "b/u3"])
    model.extend([test_zoo.SESSIONS[0].between(0, 3), new])
    assert torch.equal(biases(["a/u0", "b/u3"]), before)
    torch.testing.assert_close(biases(["c/u2"]).exp() / model.bin_size, torch.tensor(new.rates()[[2]]).float())


def test_lags_are_maps_of_the_bins_before():
    layer, activity = layers()[2], torch.randn(3, 20, 8)
    found = layer(activity, ALIKE)
    maps = layer.units.weight[21:41].unflatten(1, (3, 6))               # of session b, the longest ago first
    for t in (0, 1, 5):
        want = sum(activity[1, :, t - ago] @ maps[:, 2 - ago] for ago in range(min(t + 1, 3)))
        torch.testing.assert_close(found[1, t], want, atol=1e-5, rtol=1e-5)


def test_windows_of_other_sessions_or_other_units_have_each_their_own():
    table = layers()[0].units
    mixed = Reader(SESSIONS).read([0, 1], [0.0, 2.0], 1.0)
    assert shared_weights(mixed, table) is None
    keep = torch.ones(len(ALIKE.window_units), dtype=torch.bool)
    keep[[3, 24, 47]] = False                                           # another unit of each window
    assert shared_weights(ALIKE.keep_units(keep), table) is None
    keep[:] = torch.tensor([True] * 19 + [False]).repeat(3)             # the same unit of each
    assert torch.equal(shared_weights(ALIKE.keep_units(keep), table), table.weight[21:40])


def test_what_is_made_of_rows_once_a_unit_is_what_is_made_of_them_window_by_window():
    """In values and gradients, whichever units the windows hold; and padding holds zeros, not what is made of zeros."""
    whole = Reader(SESSIONS).read([0, 1, 0], [0.0, 2.0, 5.0], 1.0)
    for batch in (whole, whole.keep_units(torch.arange(len(whole.window_units)) % 3 > 0), ALIKE):
        torch.manual_seed(0)
        table, made = layers()[0].units, torch.nn.Linear(6, 4)
        aims = torch.randn(*batch.unit_mask.shape, 4)
        found, grads = [], []
        for which in ("once", "by window", "scattered"):
            table.zero_grad(), made.zero_grad()
            if which == "once":
                y = window_weights(batch, table, made)
            elif which == "by window":
                y = made(unit_weights(batch, table)) * batch.unit_mask[..., None]
            else:
                rows = made(table(table.unit_rows(batch)))
                y = torch.zeros_like(aims).masked_scatter(batch.unit_mask[..., None], rows)
            (y * aims).sum().backward()
            found.append(y.expand(len(batch), -1, -1))
            grads.append([table.weight.grad.clone(), made.weight.grad.clone(), made.bias.grad.clone()])
        for y, grad in zip(found[1:], grads[1:], strict=True):
            torch.testing.assert_close(y, found[0])
            torch.testing.assert_close(grad, grads[0], atol=1e-4, rtol=1e-4)
