"""Rotary code of continuous time: attention that sees time differences, in seconds, and no absolute time.

Su et al. 2021, arXiv 2104.09864; over continuous time as in POYO, Azabou et al. 2023, arXiv 2310.16046.

Only the pairs that turn are stored (`pairs` frequencies; the rest of a head stands still), as unit complex numbers
[..., pairs] that multiply queries and keys in place. Angles are reduced to one turn in float64 before the float32
trigonometry: at a period of 0.1 ms a second is 10,000 turns, of which float32 would keep three digits.
"""

import math

import torch
from torch import Tensor, nn


class RotaryTime(nn.Module):
    """times [...] seconds → unit complex numbers [..., pairs]; periods log-spaced from t_min to t_max, both used."""

    def __init__(self, pairs: int, t_min: float, t_max: float):
        super().__init__()
        if not 0 < t_min < t_max:
            raise ValueError(f"rotary periods run from t_min {t_min} to t_max {t_max} s; give 0 < t_min < t_max")
        steps = torch.linspace(0, 1, pairs)
        periods = torch.exp(math.log(t_min) + math.log(t_max / t_min) * steps)
        self.register_buffer("omega", 2 * math.pi / periods)                # radians a second

    @torch.no_grad()
    def forward(self, times: Tensor) -> Tensor:
        turns = times.double()[..., None] * (self.omega.double() / (2 * math.pi))
        angle = turns.frac_().mul_(2 * math.pi).float()
        return torch.complex(angle.cos(), angle.sin())                  # three times as fast as torch.polar


def rotate_(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the first pairs of every head of x [..., head] by `turn` [..., pairs] (broadcast), in place.

    x must be the fresh result of an operation that does not need it for its gradient (a projection, a gather).
    """
    return _turned(x, turn) if torch.compiler.is_compiling() else _Rotate.apply(x, turn)


def unrotate(x: Tensor, turn: Tensor) -> Tensor:
    """Attention's answer x [..., head] turned back by `turn`. A copy where a gradient will want x itself."""
    x = x.clone(memory_format=torch.contiguous_format) if x.requires_grad else x.contiguous()
    return rotate_(x, turn.conj())


def whole(x: Tensor) -> Tensor:
    """x as it is, bf16 as float32: there are no complex numbers of bf16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _turn(x: Tensor, turn: Tensor) -> Tensor:
    pairs = turn.shape[-1]
    moving = x[..., :2 * pairs].unflatten(-1, (pairs, 2))
    turned = whole(moving)
    torch.view_as_complex(turned).mul_(turn)
    if turned is not moving:
        moving.copy_(turned)
    return x


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """The same in real numbers and not in place, for compilers, which cannot follow a view as complex numbers."""
    pairs = turn.shape[-1]
    one, two = x[..., :2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
    moved = torch.stack([one * turn.real - two * turn.imag, one * turn.imag + two * turn.real], dim=-1)
    return torch.cat([moved.flatten(-2).to(x.dtype), x[..., 2 * pairs:]], dim=-1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(turn)
        ctx.mark_dirty(x)
        return _turn(x, turn)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _turn(grad.clone(memory_format=torch.contiguous_format), ctx.saved_tensors[0].conj()), None
