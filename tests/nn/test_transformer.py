"""The transformer of binned models: rotary codes tell differences, bands tell bins apart, T-Fixup shrinks."""

import pytest
import torch

from workbench.nn.rotary import RotaryTime
from workbench.nn.transformer import Transformer, band


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_turned_attention_knows_differences_of_time_alone(norm):
    torch.manual_seed(0)
    stack = Transformer(16, 2, 2, 32, dropout=0.0, norm=norm).eval()
    x, turn = torch.randn(3, 10, 16), RotaryTime(3, 1.0, 50.0)          # 6 of a head's 8 numbers turn
    times = torch.rand(10) * 10
    here, later, other = (stack(x, turn=turn(t)) for t in (times, times + 7, times * 2))
    torch.testing.assert_close(here, later, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(here, other, atol=1e-3)


def test_without_codes_and_masks_the_order_of_tokens_is_nothing():
    torch.manual_seed(0)
    stack, x, order = Transformer(16, 2, 2, 32, dropout=0.0).eval(), torch.randn(3, 10, 16), torch.randperm(10)
    torch.testing.assert_close(stack(x)[:, order], stack(x[:, order]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("ahead", "back"), [(0, None), (None, 0), (1, 2), (9, 9)])
def test_a_band_reaches_as_far_as_it_says(ahead, back):
    seen = band(6, ahead, back)
    want = [[(ahead is None or key - query <= ahead) and (back is None or query - key <= back) for key in range(6)]
            for query in range(6)]
    assert seen.tolist() == want
    assert band(6, None, None) is None


def test_tfixup_shrinks_values_answers_and_feed_forward_and_nothing_else():
    torch.manual_seed(0)
    stack = Transformer(16, 3, 2, 32, dropout=0.0)
    before = {name: value.clone() for name, value in stack.named_parameters()}
    stack.tfixup_()
    gain = 0.67 * 3 ** -0.25
    for name, value in stack.named_parameters():
        want = before[name].clone()
        if name.endswith("to_kv.weight"):
            want[16:] *= gain * 2 ** 0.5                                # keys stay, values shrink
        elif name.endswith(("to_out.weight", "up.weight", "down.weight")):
            want *= gain
        torch.testing.assert_close(value.detach(), want)
    values = lambda weights: weights["blocks.0.attention.to_kv.weight"][16:]
    assert values(dict(stack.named_parameters())).norm() < values(before).norm()
