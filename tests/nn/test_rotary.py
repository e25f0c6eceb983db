"""Rotary time sees differences of times, and nothing else."""

import math

import pytest
import torch

from workbench.nn.rotary import RotaryTime, _turned, rotate_, unrotate


def turned(x, times, rotary):
    return rotate_(x.clone(), rotary(times))


def test_products_depend_on_time_differences_alone():
    torch.manual_seed(0)
    rotary, q, k = RotaryTime(8, 1e-3, 2.0), torch.randn(5, 32), torch.randn(5, 32)
    s, t = torch.rand(5).double(), torch.rand(5).double()
    here = (turned(q, s, rotary) * turned(k, t, rotary)).sum(-1)
    later = (turned(q, s + 17.3, rotary) * turned(k, t + 17.3, rotary)).sum(-1)
    torch.testing.assert_close(here, later, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(here, (turned(q, s, rotary) * turned(k, t + 0.1, rotary)).sum(-1), atol=1e-2)


def test_a_pair_turns_by_its_own_angle_and_the_rest_stands_still():
    rotary, x = RotaryTime(2, 0.5, 2.0), torch.tensor([[1.0, 0.0, 0.0, 1.0, 5.0, 6.0]])
    out = turned(x, torch.tensor([0.25]), rotary)                       # half a turn, and an eighth of one
    half = math.sqrt(0.5)
    torch.testing.assert_close(out, torch.tensor([[-1.0, 0.0, -half, half, 5.0, 6.0]]), atol=1e-6, rtol=0)


def test_turning_back_undoes_turning_and_gradients_follow():
    torch.manual_seed(0)
    rotary, times = RotaryTime(4, 0.01, 2.0), torch.rand(7)
    x = torch.randn(7, 16, requires_grad=True)
    back = unrotate(rotate_(x * 1.0, rotary(times)), rotary(times))
    torch.testing.assert_close(back, x, atol=1e-6, rtol=1e-6)
    weight = torch.randn(7, 16)
    (rotate_(x * 1.0, rotary(times)) * weight).sum().backward()
    torch.testing.assert_close(x.grad, unrotate(weight, rotary(times)), atol=1e-6, rtol=1e-6)


def test_periods_must_rise():
    with pytest.raises(ValueError, match="give 0 < t_min < t_max"):
        RotaryTime(4, 2.0, 1.0)


def test_float32_turns_as_complex_numbers_do_to_the_bit_and_in_place():
    torch.manual_seed(0)
    x, turn = torch.randn(3, 7, 16), RotaryTime(4, 0.01, 2.0)(torch.rand(7))
    known = x.clone()
    torch.view_as_complex(known[..., :8].unflatten(-1, (4, 2))).mul_(turn)
    out = rotate_(x, turn)
    assert out is x and torch.equal(out, known)


@pytest.mark.parametrize("way", [rotate_, _turned])
def test_bf16_turns_as_float32_and_is_rounded_once(way):
    torch.manual_seed(0)
    rotary, times = RotaryTime(4, 0.01, 2.0), torch.rand(7)
    x = torch.randn(7, 16).bfloat16()
    exact = rotate_(x.float(), rotary(times))
    out = way(x.clone(), rotary(times))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, exact.bfloat16(), atol=0, rtol=2 ** -8)
    leaf, weight = x.clone().requires_grad_(), torch.randn(7, 16).bfloat16()
    (way(leaf * 1, rotary(times)) * weight).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(leaf.grad.float(), unrotate(weight.float(), rotary(times)), atol=0.03, rtol=0.03)


def test_compilers_are_given_the_same_turn():
    torch.manual_seed(0)
    x, turn = torch.randn(3, 7, 16), RotaryTime(4, 0.01, 2.0)(torch.rand(7))
    torch.testing.assert_close(_turned(x, turn), rotate_(x.clone(), turn), atol=1e-6, rtol=1e-6)
