"""Positional codes of bins: fixed waves or a learned row for each. Vaswani et al. 2017, arXiv 1706.03762."""

import torch
from torch import Tensor, nn

from workbench.errors import UnknownName, WorkbenchError


class Position(nn.Module):
    """Adds a row of its own to each of at most `length` tokens, fixed ("sinusoidal") or "learned", from N(0, std²)."""

    def __init__(self, kind: str, length: int, dim: int, std: float = 1.0):
        super().__init__()
        if kind not in ("sinusoidal", "learned"):
            raise UnknownName("position", kind, ("sinusoidal", "learned"), where="the positional codes")
        if kind == "learned":
            self.rows = nn.Parameter(torch.randn(length, dim) * std)
        else:
            self.register_buffer("rows", sinusoid(length, dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., L, dim] → the same plus its positions. WorkbenchError where there are more tokens than rows."""
        if x.shape[-2] > len(self.rows):
            raise WorkbenchError(f"a window of {x.shape[-2]} bins is longer than the {len(self.rows)} bins that the "
                                 "model was built for; build it with a longer window=, or cut shorter windows")
        return x + self.rows[:x.shape[-2]]


def sinusoid(length: int, dim: int) -> Tensor:
    """Sines in the even columns and cosines in the odd ones [length, dim], wavelengths from 2π to nearly 20,000π."""
    angle = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]
