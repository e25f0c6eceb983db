"""POSSM: single spikes attended to 50 ms at a time, a recurrent core over time, behaviour at any time asked for.

Ryoo, Krishna, Mao et al. 2025, arXiv 2506.05320. No code of the authors was at hand: built from the paper.

    spikes of a chunk → unit embedding, rotary time inside the chunk ─┐ (an empty chunk holds one blank token)
    one learned query a chunk ────────────────────────────────────────┴→ cross-attention → x [B, T, dim]
    x → recurrent core: gru, s4d or mamba (nn/recurrence.py) → states [B, T, width]
    session embedding at each target time ─→ cross-attention to the last `lags` states → linear → behavior [Q, outputs]

Causal at the grain of a chunk: a sample sees the chunk it lies in and those before it. `stream` decodes live, a chunk
at a time, with the same numbers. Offline, spikes stay packed: one query a chunk is a softmax over segments.

Departs from the paper: windows of 3 s whose first half second does not count, in place of 1 s: what a recurrent state
holds after long is then trained, not only used. Head counts are ours; widths and depths give the published sizes.
Parts of a trial have no weights of their own in the loss, and speech (counts first, then phonemes) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from typing import ClassVar

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from workbench.batch import SpikeBatch, UnitList
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, sampling_interval, scaling, unit_names
from workbench.nn.perceiver import CrossAttention, FeedForward
from workbench.nn.recurrence import CORES
from workbench.nn.rotary import RotaryTime, rotate_, whole
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

_SIZES = {"single": dict(dim=64, width=256, depth=1, heads=2),
          "pretrained": dict(dim=256, width=512, depth=4, heads=6)}


class POSSM(SpikeModel):
    """units and sessions are names ('<session id>/<unit id>'); outputs of `target`, whose mean and scale undo the
    standardisation; bin_size (of a chunk), window, warmup, t_min and t_max in seconds. `SIZES` are the paper's six.
    """

    name = "possm"
    decodes = embeds = True
    takes = "spikes"
    SIZES: ClassVar = {f"{core}-{size}": {"core": core, **_SIZES[size]} for core, size in product(CORES, _SIZES)}

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str, outputs: int,
                 mean: Sequence[float], scale: Sequence[float], core: str = "gru", bin_size: float = 0.05,
                 window: float = 3.0, warmup: float = 0.5, dim: int = 64, width: int = 256, depth: int = 1,
                 heads: int = 2, head_dim: int = 64, lags: int = 3, dropout: float = 0.2, t_min: float = 1e-3,
                 t_max: float = 2.0627):
        super().__init__()
        if core not in CORES:
            raise UnknownName("core", core, CORES, where="the recurrent cores of POSSM")
        if window <= warmup:
            raise WorkbenchError(f"windows of {window:g} s leave nothing after a warm-up of {warmup:g} s; give a "
                                 "longer window= or a shorter warmup=")
        self.target, self.bin_size, self.window, self.warmup, self.lags = target, bin_size, window, warmup, lags
        self.units, self.sessions = Vocabulary("unit", units, dim), Vocabulary("session", sessions, width)
        self.blank = nn.Parameter(torch.randn(1, dim) * 0.02)
        self.query = nn.Parameter(torch.randn(1, dim) * 0.02)
        self.rotary = RotaryTime(head_dim // 4, t_min, t_max)           # half of every head turns, in pairs
        self.encoder = CrossAttention(dim, heads, head_dim=head_dim, dropout=0.0)
        self.encoder_ffn = FeedForward(dim, dropout)
        self.core = CORES[core](dim, width, depth, dropout)
        self.decoder = CrossAttention(width, heads, head_dim=head_dim, dropout=0.0)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(width, outputs)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, size: str | None = None, **settings) -> POSSM:
        """A decoder of the series `target`. Rotary periods start where POYO's do: at twice the finest time there is."""
        if size is not None and size not in cls.SIZES:
            raise UnknownName("size", size, cls.SIZES, where="the published sizes of POSSM")
        mean, scale = scaling(sessions, target)
        fastest = 2 * max(sampling_interval(sessions, target), *(s.resolution for s in sessions))
        known = dict(t_min=min(max(fastest, 1e-3), 0.2)) | (cls.SIZES[size] if size else {})
        return cls(units=unit_names(sessions), sessions=[s.id for s in sessions], target=target, outputs=len(mean),
                   mean=mean, scale=scale, **known | settings)

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, packed as in the batch, and the states [B, T, width]."""
        states = self.core(self.dropout(self.encode(batch)))
        return Output(behavior=self.decode(batch, states) * self.scale + self.mean, latents=states)

    def encode(self, batch: SpikeBatch) -> Tensor:
        """The spikes of each chunk as one vector [B, T, dim]."""
        chunks, spikes = batch.bins(self.bin_size), batch.spikes()
        chunk = (spikes.times / self.bin_size + 1e-4).long().clamp_(max=chunks - 1)
        segment = spikes.windows * chunks + chunk
        empty = (torch.bincount(segment, minlength=len(batch) * chunks) == 0).nonzero()[:, 0]
        distinct, unit = self.units.of_units(batch)
        rows = torch.cat([unit[spikes.units], torch.full_like(empty, len(distinct))])
        times = torch.cat([spikes.times - chunk * self.bin_size, spikes.times.new_zeros(len(empty))])
        x = self._attend(*self.keys_and_values(distinct), rows, times, torch.cat([segment, empty]), len(batch) * chunks)
        return (x + self.encoder_ffn(x)).unflatten(0, (len(batch), chunks))

    def keys_and_values(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """What a spike of each unit brings, and in the last row the blank token: a part that turns with its time inside
        the chunk [U + 1, 2 × heads, 2 × pairs], keys and then values, and the rest, of keys and then of values.

        Keys are multiplied by the query already: it is the same in every chunk, and stands at time 0, so that it does
        not turn. The sum over the real parts of a turned key, plus the key's rest, is the spike's score.
        """
        attention, heads, turning = self.encoder, self.encoder.heads, 2 * len(self.rotary.omega)
        table = attention.norm_context(torch.cat([self.units(units), self.blank]))
        k, v = attention.to_kv(table).unflatten(-1, (2, heads, -1)).unbind(1)
        q = attention.to_q(attention.norm(self.query)).view(heads, -1) * k.shape[-1] ** -0.5
        pairs = lambda x: torch.view_as_complex(whole(x[..., :turning]).unflatten(-1, (-1, 2)).contiguous())
        key = torch.view_as_real(pairs(k) * pairs(q).conj()).flatten(-2)
        still = (k[..., turning:] * q[..., turning:]).sum(-1, keepdim=True)
        return torch.cat([key, v[..., :turning]], 1), torch.cat([still, v[..., turning:]], -1)

    def _attend(self, turning: Tensor, still: Tensor, rows: Tensor, times: Tensor, segment: Tensor,
                segments: int) -> Tensor:
        """The query's view of the spikes of every segment [segments, dim].

        The softmax of a segment is two sums over its spikes: nothing is padded.
        """
        heads = self.encoder.heads
        turned = rotate_(turning.index_select(0, rows), self.rotary(times)[:, None])
        still = still.index_select(0, rows)
        score = turned[:, :heads, ::2].sum(-1) + still[..., 0]
        with torch.no_grad():                                           # any shift will do; the highest is safe
            shift = score.new_full((segments, heads), -torch.inf)
            shift.scatter_reduce_(0, segment[:, None].expand(-1, heads), score, "amax")
        weight = (score - shift[segment]).exp()[..., None]
        total, moved, stood = (x.new_zeros(segments, *x.shape[1:]).index_add(0, segment, x)
                               for x in (weight, turned[:, heads:] * weight, still[..., 1:] * weight))
        return self.query + self.encoder.to_out((torch.cat([moved, stood], -1) / total).flatten(1))

    def decode(self, batch: SpikeBatch, states: Tensor) -> Tensor:
        """Standardised behaviour [Q, outputs]: each sample asks its own chunk's state and those before it."""
        target, (windows, chunks, width) = batch.targets[self.target], states.shape
        window = torch.repeat_interleave(target.offsets.diff())
        chunk = (target.times / self.bin_size + 1e-4).long().clamp_(max=chunks - 1)
        cell = window * chunks + chunk                                  # sorted, since samples are in time order
        size = torch.bincount(cell, minlength=windows * chunks)
        column = torch.arange(len(cell), device=cell.device) - (size.cumsum(0) - size)[cell]
        times = target.times.new_zeros(windows * chunks, int(size.max()))   # queries do not see each other
        times[cell, column] = target.times - chunk * self.bin_size

        session = self.sessions(self.sessions.session_rows(batch))
        before = states.new_zeros(windows, self.lags - 1, width)        # the states of silence, before the window
        recent = torch.cat([before, states], dim=1).unfold(1, self.lags, 1).transpose(2, 3).flatten(0, 1)
        found = self.decoder(session.repeat_interleave(chunks, 0), self.rotary(times), recent,
                             self.rotary(self.state_times()))[cell, column]
        return self.readout(self.dropout(session[window] + found))

    def state_times(self) -> Tensor:
        """When the states lie that a query sees [lags], in seconds from the start of the chunk it asks in."""
        return torch.arange(1 - self.lags, 1, device=self.mean.device) * self.bin_size

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour, after the warm-up."""
        return {"loss": window_mse(self(batch).behavior, batch.targets[self.target], self.scale, since=self.warmup)}

    def stream(self, session: Session | UnitList, at: Sequence[float] | None = None) -> Stream:
        """Live decoding of a session that the model knows, from a state of silence.

        at: the times of the predictions of a chunk, in seconds from its start; by default one, in its middle.
        """
        names = session.units["id"] if isinstance(session, Session) else session.units
        at = [self.bin_size / 2] if at is None else list(at)
        return Stream(self, session.id, [f"{session.id}/{unit}" for unit in names], at)


class Stream:
    """A model decoding live: `step` takes the spikes of one chunk and gives the behaviour in it.

    All that does not depend on the spikes is done beforehand: keys and values of every unit, and, since the queries are
    known, each state's part in every answer as one matrix. It remembers the core's state and `lags` rows of such parts.

    All but the core runs in numpy, on the CPU: a step is dozens of operations on a few numbers each, and to begin one
    takes torch several times as long. Weights are copied: a stream stays as it is when its model is trained further.
    """

    @torch.inference_mode()
    def __init__(self, model: POSSM, session: str, units: Sequence[str], at: Sequence[float]):
        self.core, self.chunk = deepcopy(model.core).to("cpu", torch.float32).eval(), model.bin_size
        self.state = self.core.start(1)
        encoder, ffn, decoder, heads = model.encoder, model.encoder_ffn, model.decoder, model.decoder.heads
        self.turns = model.rotary.omega.double().numpy(force=True) / (2 * np.pi)        # a second

        turning, still = model.keys_and_values(model.units.rows(units))
        keys, values = turning.chunk(2, dim=1)
        keys = keys * keys.new_tensor([1, -1]).repeat(len(self.turns))  # the real part of a product is a dot product
        self.table = _array(torch.cat([keys, values, still[..., 1:], still[..., :1]], dim=-1))
        self.blank = np.zeros(1, np.float32), np.array([len(units)])
        self.to_out = _Linear(encoder.to_out.weight, encoder.to_out.bias + model.query[0])
        half = 0.5 ** 0.5                                               # see `step`
        self.up = _Linear(ffn.up.weight * half, ffn.up.bias * half, ffn.norm)
        self.down = _Linear(ffn.down.weight, ffn.down.bias)

        name = model.sessions(model.sessions.rows([session]))[0]
        ago = torch.tensor(at, device=name.device) - model.state_times().flip(0)[:, None]           # newest state first
        ask = decoder.to_q(decoder.norm(name)).view(heads, -1)
        ask = rotate_(ask.repeat(*ago.shape, 1, 1), model.rotary(ago)[:, :, None]) * ask.shape[-1] ** -0.5
        to_k, to_v = decoder.to_kv.weight.view(2, heads, ask.shape[-1], -1)
        out = (model.readout.weight @ decoder.to_out.weight * model.scale[:, None]).unflatten(1, (heads, -1))
        scores = torch.einsum("lahd,hdw->lahw", ask, to_k)
        self.shape, self.split = scores.shape[:3], scores.shape[:3].numel()                     # lags, times, heads
        parts = torch.cat([scores.flatten(0, 2), torch.einsum("ohd,hdw->how", out, to_v).flatten(0, 1)])
        self.parts = _Linear(parts, parts.new_zeros(len(parts)), decoder.norm_context)
        self.recent = np.tile(self.parts.bias, (model.lags, 1))         # those of silence
        self.level = _array(model.readout(name + decoder.to_out.bias) * model.scale + model.mean)

    @torch.inference_mode()
    def step(self, times: Tensor, units: Tensor) -> Tensor:
        """The behaviour [at, outputs] of the next chunk, given its spikes: times [S] in seconds from the chunk's start,
        float32, and units [S], rows of the session's unit table.
        """
        times, units = times.numpy(force=True), units.numpy(force=True)
        if not len(times):
            times, units = self.blank
        first, last = times.min(), times.max()
        if not (first >= -1e-6 and last <= self.chunk + 1e-6):          # float32 may put it a hair outside
            raise WorkbenchError(f"the spikes of a chunk lie at {first:g} to {last:g} s; give times from the start "
                                 f"of their chunk, 0 to {self.chunk:g} s")
        x = self._attend(times, units)
        a, b = self.up(x).reshape(2, -1)
        x += self.down(a * b * (1 + erf(b)))                            # `up` gave √½ a and √½ b: this is a gelu(b)
        x, self.state = self.core.step(torch.from_numpy(x)[None], self.state)

        self.recent[1:] = self.recent[:-1]
        self.recent[0] = self.parts(x[0].numpy())
        scores = np.einsum("ll...->l...", self.recent[:, :self.split].reshape(-1, *self.shape))  # [lags, times, heads]
        values = self.recent[:, self.split:].reshape(len(scores), self.shape[2], -1)            # [lags, heads, outputs]
        return torch.from_numpy(np.einsum("lth,lho->to", _softmax(scores), values) + self.level)

    def _attend(self, times: np.ndarray, units: np.ndarray) -> np.ndarray:
        """The query's view of the spikes [dim]."""
        turns = np.multiply.outer(times.astype(np.float64), self.turns)
        angle = ((turns - np.rint(turns)) * (2 * np.pi)).astype(np.float32)
        turn = np.empty(angle.shape, np.complex64)
        turn.real, turn.imag = np.cos(angle), np.sin(angle)
        spikes = self.table.take(units, axis=0)                         # [S, heads, turning key, value, still key]
        moving = 2 * len(self.turns)
        keys, values, still = spikes[..., :moving], spikes[..., moving:-1], spikes[..., -1]
        turning = values[..., :moving].view(np.complex64)
        turning *= turn[:, None]
        weight = _softmax(np.einsum("shp,sp->sh", keys, turn.view(np.float32)) + still)
        return self.to_out(np.einsum("sh,shv->hv", weight, values).ravel())


class _Linear:
    """x [width] → weight · norm(x) + bias [outputs], in numpy; a norm's own gains and biases are part of both."""

    def __init__(self, weight: Tensor, bias: Tensor, norm: nn.LayerNorm | None = None):
        self.eps = None if norm is None else norm.eps
        if norm is not None:
            weight, bias = weight * norm.weight, weight @ norm.bias + bias
        self.weight, self.bias = _array(weight), _array(bias)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.eps is not None:
            x = x - x.sum() / len(x)
            x = x / np.sqrt(x @ x / len(x) + self.eps)
        return self.weight @ x + self.bias


def _softmax(x: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    x = np.exp(x - x.max(0))
    return x / x.sum(0)


def _array(x: Tensor) -> np.ndarray:
    """A float32 copy."""
    return np.array(x.numpy(force=True), np.float32)
