"""Attention over continuous time: only differences of times are seen, and shared tokens are exactly that."""

import pytest
import torch

from workbench.nn.perceiver import CrossAttention, SelfAttention, Tokens, attend, in_pieces, merged
from workbench.nn.rotary import RotaryTime
from workbench.nn.transformer import Attention


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("later", [0.37, 12.5])
def test_moving_all_times_changes_nothing(later):
    rotary, here = RotaryTime(4, 0.01, 2.0), torch.rand(40)
    cross, within = (layer(32, 2, head_dim=16, dropout=0.0) for layer in (CrossAttention, SelfAttention))
    queries, table, asked, x = torch.randn(6, 32), torch.randn(9, 32), torch.linspace(0, 1, 6), torch.randn(2, 6, 32)
    own, common = torch.randint(9, (40,)), torch.randint(9, (4,))

    def said(shift):
        tokens = Tokens(own, here + shift, [15, 25]), Tokens(common, torch.tensor([0.0, 0, 1, 1]) + shift, [4])
        turn = rotary(asked.double() + shift)
        return cross.packed(queries, turn, table, *tokens, [0, 0], rotary), within(x, turn), \
            cross(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), turn.expand(2, -1, -1), x, turn)
    for before, after in zip(said(0.0), said(later), strict=True):
        torch.testing.assert_close(before, after, atol=2e-4, rtol=1e-3)


def test_moving_one_token_changes_the_answer():
    rotary, cross = RotaryTime(4, 0.01, 2.0), CrossAttention(32, 2, head_dim=16, dropout=0.0)
    queries, table, times = torch.randn(6, 32), torch.randn(9, 32), torch.rand(10)
    turn, nothing = rotary(torch.linspace(0, 1, 6)), Tokens(torch.empty(0, dtype=torch.long), torch.empty(0), [0])
    said = lambda at: cross.packed(queries, turn, table, Tokens(torch.arange(10) % 9, at, [10]), nothing, [0], rotary)
    assert not torch.allclose(said(times), said(times + torch.eye(10)[0] * 0.1), atol=1e-4)


def test_rotary_bins_of_a_transformer_see_differences_only():
    attention, rotary, x = Attention(32, 2), RotaryTime(8, 2.0, 200.0), torch.randn(2, 12, 32)
    bins = torch.arange(12.0)
    here, later = (attention(x, turn=rotary(bins + shift)) for shift in (0, 31))
    torch.testing.assert_close(here, later, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(attention(x, turn=rotary(bins)), attention(x, turn=rotary(bins * 2)), atol=1e-4)


@torch.no_grad()
def test_attention_over_two_sets_is_the_merge_of_the_attention_over_each():
    q, kv = torch.randn(1, 2, 5, 16), torch.randn(30, 4, 16)
    whole = attend(q, kv)[0]
    for cut in (1, 12, 30):
        torch.testing.assert_close(merged(attend(q, kv[:cut]), attend(q, kv[cut:])), whole, atol=1e-6, rtol=1e-5)
    keys, values = kv.transpose(0, 1).split(2)
    plain = (q[0] @ keys.transpose(1, 2) / 4).softmax(-1) @ values
    torch.testing.assert_close(whole[0], plain, atol=1e-6, rtol=1e-5)


def test_pieces_are_the_whole():
    layer, x = torch.nn.Linear(3, 2), torch.randn(11, 3)
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(layer, x, 4), layer(x))
