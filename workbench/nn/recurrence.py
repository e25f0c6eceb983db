"""Recurrent cores: a whole sequence at once for training, or one step at a time with a state that never grows.

    forward(x [B, L, inputs]) → [B, L, width]                       from a state of silence
    start(n) → state;  step(x [n, inputs], state) → [n, width], state    the same numbers, one by one

    gru     gated recurrent unit. Cho et al. 2014, arXiv 1406.1078
    s4d     diagonal linear state space: a long convolution or a recurrence. Gu et al. 2022, arXiv 2206.11893
    mamba   state space whose input, output and time step depend on the input. Gu & Dao 2023, arXiv 2312.00752

Plain torch: Mamba's scan is a loop over time of small operations, all else of it is done for all times at once.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, glu, pad, silu, softplus

from workbench.nn.rotary import whole


class GRUCore(nn.Module):
    """`depth` layers of `width` gated units."""

    def __init__(self, inputs: int, width: int, depth: int, dropout: float):
        super().__init__()
        self.gru = nn.GRU(inputs, width, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]

    def start(self, n: int) -> list[tuple[Tensor, list[Tensor]]]:
        """Each layer's hidden state [n, width], and its weights: to look them up takes as long as a small layer."""
        rest = self.gru.weight_hh_l0.new_zeros(n, self.gru.hidden_size)
        return [(rest, weights) for weights in self.gru.all_weights]

    def step(self, x: Tensor, state: list) -> tuple[Tensor, list]:
        now = []
        for hidden, weights in state:
            x = torch.gru_cell(x, hidden, *weights)
            now.append((x, weights))
        return x, now


class _Stack(nn.Module):
    """Linear read-in, then `depth` blocks, each added to its input."""

    def __init__(self, blocks: list[nn.Module], inputs: int, width: int):
        super().__init__()
        self.read_in, self.blocks = nn.Linear(inputs, width), nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read_in(x)
        for block in self.blocks:
            x = x + block(x)
        return x

    def start(self, n: int) -> list:
        return [block.start(n) for block in self.blocks]

    def step(self, x: Tensor, state: list) -> tuple[Tensor, list]:
        x, now = self.read_in(x), []
        for block, old in zip(self.blocks, state, strict=True):
            change, new = block.step(x, old)
            x = x + change
            now.append(new)
        return x, now


class S4DCore(_Stack):
    """`depth` blocks: norm → S4D → GELU → gated linear."""

    def __init__(self, inputs: int, width: int, depth: int, dropout: float):
        super().__init__([_S4DBlock(width, dropout) for _ in range(depth)], inputs, width)


class MambaCore(_Stack):
    """`depth` blocks: norm → Mamba."""

    def __init__(self, inputs: int, width: int, depth: int, dropout: float):
        super().__init__([_MambaBlock(width, dropout) for _ in range(depth)], inputs, width)


CORES = {"gru": GRUCore, "s4d": S4DCore, "mamba": MambaCore}


class S4D(nn.Module):
    """One linear filter a channel: `states` damped oscillators (half of them stored: they come in conjugate pairs).

    h' = a h + x with a = −½ + iπn at the start (S4D-Lin), y = Re(c h) + skip x, over steps of a learned length, drawn
    log-uniformly from 0.001 to 0.1: memories of 20 to 2,000 bins.
    """

    def __init__(self, channels: int, states: int = 64):
        super().__init__()
        half = states // 2
        # Flat, since an optimiser decays matrices, and another decay or frequency is another filter, not a smaller one.
        self.log_step = nn.Parameter(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_decay = nn.Parameter(torch.full((channels * half,), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(half).float().repeat(channels))
        self.gain = nn.Parameter(torch.randn(channels, half, 2) * 0.5 ** 0.5)
        self.skip = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, channels] → [B, L, channels], by FFT; a later x reaches earlier y by rounding (1e-7) only."""
        return filtered(x, self.spectrum(x.shape[1]))

    def spectrum(self, length: int) -> Tensor:
        """The filter over `length` steps, padded to twice that, in frequencies [length + 1, channels]."""
        turn, gain = self._discrete()
        powers = (turn[..., None] * torch.arange(length, device=turn.device)).exp()
        kernel = torch.einsum("cn,cnl->lc", gain, powers).real
        return torch.fft.rfft(kernel, 2 * length, dim=0) + self.skip

    def start(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """The oscillators at rest [n, channels, half], their turn a step, and their gains."""
        turn, gain = self._discrete()
        return turn.new_zeros(n, *turn.shape), turn.exp(), gain

    def step(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """x [n, channels] → y [n, channels] and the state after it."""
        hidden, turn, gain = state
        hidden = hidden * turn + x[..., None]
        return (hidden * gain).sum(-1).real + self.skip * x, (hidden, turn, gain)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """log of what a step multiplies a state by, and 2 c b, [channels, half], x held during a step."""
        rate = torch.complex(-self.log_decay.exp(), self.frequency).unflatten(0, self.gain.shape[:2])
        turn = rate * self.log_step.exp()[:, None]
        return turn, 2 * torch.view_as_complex(self.gain) * (turn.exp() - 1) / rate


def filtered(x: Tensor, spectrum: Tensor) -> Tensor:
    """x [B, L, channels] convolved with filters of that spectrum [L + 1, channels]; nothing wraps around."""
    length = x.shape[1]
    return torch.fft.irfft(torch.fft.rfft(whole(x), 2 * length, dim=1) * spectrum, 2 * length, dim=1)[:, :length]


class _S4DBlock(nn.Module):
    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.filter = nn.LayerNorm(width), S4D(width)
        self.mix, self.dropout = nn.Linear(width, 2 * width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self._mixed(self.filter(self.norm(x)))

    def start(self, n: int):
        return self.filter.start(n)

    def step(self, x: Tensor, state):
        x, state = self.filter.step(self.norm(x), state)
        return self._mixed(x), state

    def _mixed(self, x: Tensor) -> Tensor:
        return self.dropout(glu(self.mix(self.dropout(gelu(x)))))


class _MambaBlock(nn.Module):
    """norm → up → short convolution → selective scan, gated → down."""

    def __init__(self, width: int, dropout: float, expand: int = 2, states: int = 16, taps: int = 4):
        super().__init__()
        inner, self.rank, self.states = expand * width, math.ceil(width / 16), states
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 2 * inner, bias=False)
        self.short = nn.Conv1d(inner, inner, taps, groups=inner)
        self.select = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.to_step = nn.Linear(self.rank, inner)
        self.log_decay = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(inner))      # flat: not decayed
        self.skip = nn.Parameter(torch.ones(inner))
        self.down, self.dropout = nn.Linear(inner, width, bias=False), nn.Dropout(dropout)
        with torch.no_grad():                                           # time steps from 0.001 to 0.1, log-uniformly
            step = torch.empty(inner).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.to_step.bias.copy_(step + torch.log(-torch.expm1(-step)))
            self.to_step.weight.uniform_(-self.rank ** -0.5, self.rank ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        past = self.short.kernel_size[0] - 1
        x = silu(self.short(pad(x.transpose(1, 2), (past, 0))).transpose(1, 2))
        keep, drive, out = self._selected(x)
        hidden, seen = torch.zeros_like(keep[:, 0]), []
        for k, d, c in zip(keep.unbind(1), drive.unbind(1), out.unbind(1), strict=True):
            hidden = torch.addcmul(d, k, hidden)
            seen.append((hidden @ c[..., None]).squeeze(-1))
        return self._finish(torch.stack(seen, 1), x, gate)

    def start(self, n: int) -> tuple[Tensor, Tensor]:
        inner, taps = len(self.skip), self.short.kernel_size[0]
        return self.skip.new_zeros(n, inner, taps - 1), self.skip.new_zeros(n, inner, self.states)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        past, hidden = state
        window = torch.cat([past, x[..., None]], dim=-1)
        x = silu((window * self.short.weight[:, 0]).sum(-1) + self.short.bias)
        keep, drive, out = self._selected(x)
        hidden = torch.addcmul(drive, keep, hidden)
        return self._finish((hidden @ out[..., None]).squeeze(-1), x, gate), (window[..., 1:], hidden)

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., inner] → what a step keeps of its states, what it adds [..., inner, states], its reading of them."""
        step, b, c = self.select(x).split([self.rank, self.states, self.states], dim=-1)
        step = softplus(self.to_step(step))
        decay = -self.log_decay.exp().view(-1, self.states)
        return (step[..., None] * decay).exp(), (step * x)[..., None] * b[..., None, :], c

    def _finish(self, seen: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        return self.dropout(self.down((seen + self.skip * x) * silu(gate)))
