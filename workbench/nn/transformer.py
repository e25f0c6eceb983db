"""The transformer over bins or patches, for models of binned counts. Vaswani et al. 2017, arXiv 1706.03762."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from workbench.errors import WorkbenchError


class Attention(nn.Module):
    """Multi-head attention of x over itself or over a context; rotary codes, where given, turn queries and keys."""

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise WorkbenchError(f"{heads} heads do not divide a width of {dim}; choose heads that do")
        self.heads, self.dropout = heads, dropout
        self.to_q, self.to_kv, self.to_out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None,
                turn: Tensor | None = None) -> Tensor:
        """x [B, L, D] → [B, L, D]. mask: true where a query may look, broadcast to [B, heads, L, context].

        turn [L, pairs] unit complex numbers, for attention of x over itself.
        """
        q = self.to_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(x if context is None else context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        seen = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        return self.to_out(seen.transpose(1, 2).flatten(-2))


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """x [B, heads, L, head], its first pairs turned by turn [L, pairs]; the rest stands still."""
    pairs = turn.shape[-1]
    moving = torch.view_as_complex(x[..., :2 * pairs].unflatten(-1, (pairs, 2)).float().contiguous()) * turn
    return torch.cat([torch.view_as_real(moving).flatten(-2).to(x.dtype), x[..., 2 * pairs:]], dim=-1)


class Block(nn.Module):
    """Attention, then a feed-forward layer, each added to its input. Normed before ("pre") or after ("post")."""

    compiles = True

    def __init__(self, dim: int, heads: int, inner: int, *, dropout: float, norm: str = "pre",
                 activation: str = "gelu"):
        super().__init__()
        if norm not in ("pre", "post") or activation not in ("gelu", "relu"):
            raise ValueError(f"norm is 'pre' or 'post', activation 'gelu' or 'relu', not {norm!r} and {activation!r}")
        self.pre, self.activation = norm == "pre", gelu if activation == "gelu" else relu
        self.attention = Attention(dim, heads, dropout=dropout)
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None,
                turn: Tensor | None = None) -> Tensor:
        """x [B, L, D] → [B, L, D]; a context is looked at as it is given; mask and turn as in `Attention`."""
        look = lambda z: self.dropout(self.attention(z, context, mask=mask, turn=turn))
        think = lambda z: self.dropout(self.down(self.dropout(self.activation(self.up(z)))))
        for norm, change in zip(self.norms, (look, think), strict=True):
            x = x + change(norm(x)) if self.pre else norm(x + change(x))
        return x


class Transformer(nn.Module):
    """`depth` blocks, and a last norm where blocks are normed before."""

    def __init__(self, dim: int, depth: int, heads: int, inner: int, *, dropout: float, norm: str = "pre",
                 activation: str = "gelu"):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, inner, dropout=dropout, norm=norm, activation=activation)
                                    for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, *, mask: Tensor | None = None, turn: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask=mask, turn=turn)
        return self.norm(x)

    def tfixup_(self) -> None:
        """Values, answers and feed-forward layers times 0.67 × depth^(−1/4): they train without a long warm-up.

        Huang et al. 2020, "Improving Transformer Optimization Through Better Initialization", as NDT1 uses it.
        """
        gain = 0.67 * len(self.blocks) ** -0.25
        with torch.no_grad():
            for block in self.blocks:
                attention = block.attention
                for weight in (attention.to_out.weight, block.up.weight, block.down.weight):
                    weight.mul_(gain)
                attention.to_kv.weight[attention.to_kv.out_features // 2:].mul_(gain * 2 ** 0.5)


def band(bins: int, ahead: int | None, back: int | None, device: torch.device | None = None) -> Tensor | None:
    """Which bins a bin may look at [T, T]: at most `ahead` later ones and `back` earlier ones; None sets no limit."""
    if ahead is None and back is None:
        return None
    lag = torch.arange(bins, device=device)[:, None] - torch.arange(bins, device=device)
    return (lag >= -(bins if ahead is None else ahead)) & (lag <= (bins if back is None else back))
