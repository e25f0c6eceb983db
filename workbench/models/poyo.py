"""POYO, a Perceiver over single spikes that decodes behaviour at any time asked for.

Azabou et al. 2023, arXiv 2310.16046; structure as in torch_brain 0.2.1 (Apache-2.0), whose weights load here.

    spikes [S] → unit + type embedding, rotary time ─┐ (two more tokens a unit: window start and end)
    latents [L], `latents` of them every `step` s ───┴→ cross-attention → `depth` × self-attention → latents [B, L, D]
    session embedding at each target time [Q] ─→ cross-attention to the latents → linear → behavior [Q, outputs]

Exactly the same sums as the padded original, in fewer steps: spikes stay packed; a key and a value are projected once
a unit and gathered a spike; only the pairs that turn are turned; the first queries are the same for every window and
are projected once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch, Target
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, sampling_interval, scaling, unit_names
from workbench.nn.perceiver import CrossAttention, FeedForward, SelfAttention, Tokens, in_pieces
from workbench.nn.rotary import RotaryTime
from workbench.nn.vocabulary import Vocabulary
from workbench.session import Session

SPIKE, START, END, TYPES = 0, 1, 2, 4                                   # the fourth type is torch_brain's, unused


class POYO(SpikeModel):
    """units and sessions are names ('<session id>/<unit id>'); outputs of `target`, whose mean and scale undo the
    standardisation; window, step, t_min and t_max in seconds. Defaults are the paper's code's; `SIZES` its two models.
    """

    name = "poyo"
    decodes = embeds = True
    takes = "spikes"
    SIZES: ClassVar = {
        "1.3M": dict(dim=64, depth=6, latents=16, cross_heads=2, attention_dropout=0.2),
        "11.8M": dict(dim=128, depth=24, latents=32, cross_heads=4, attention_dropout=0.2),
    }

    def __init__(self, *, units: Sequence[str], sessions: Sequence[str], target: str, outputs: int,
                 mean: Sequence[float] | None = None, scale: Sequence[float] | None = None,
                 window: float = 1.0, step: float = 0.125, latents: int = 64, dim: int = 512, depth: int = 2,
                 head_dim: int = 64, cross_heads: int = 1, self_heads: int = 8, dropout: float = 0.4,
                 ffn_dropout: float = 0.2, attention_dropout: float = 0.0, t_min: float = 1e-4, t_max: float = 2.0627):
        super().__init__()
        self.target, self.window, self.step = target, window, step
        self.units, self.sessions = Vocabulary("unit", units, dim), Vocabulary("session", sessions, dim)
        self.types = nn.Parameter(torch.randn(TYPES, dim) * 0.02)
        self.latents = nn.Parameter(torch.randn(latents, dim) * 0.02)
        self.rotary = RotaryTime(head_dim // 4, t_min, t_max)           # half of every head turns, in pairs
        times = torch.arange(0, window, step, dtype=torch.float64) + step / 2
        self.register_buffer("latent_times", times.repeat_interleave(latents), persistent=False)

        heads = dict(head_dim=head_dim, dropout=attention_dropout)
        self.encoder = CrossAttention(dim, cross_heads, **heads)
        self.encoder_ffn = FeedForward(dim, ffn_dropout)
        block = lambda: nn.ModuleList([SelfAttention(dim, self_heads, **heads), FeedForward(dim, ffn_dropout)])
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.decoder = CrossAttention(dim, cross_heads, **heads)
        self.decoder_ffn = FeedForward(dim, ffn_dropout)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(dim, outputs)
        self.register_buffer("mean", torch.tensor(mean if mean is not None else [0.0] * outputs))
        self.register_buffer("scale", torch.tensor(scale if scale is not None else [1.0] * outputs))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, size: str | None = None, **settings) -> POYO:
        """A decoder of the series `target`."""
        mean, scale = scaling(sessions, target)
        return cls(units=unit_names(sessions), sessions=[s.id for s in sessions], target=target, outputs=len(mean),
                   mean=mean, scale=scale, **cls.suited(sessions, target, size) | settings)

    @classmethod
    def suited(cls, sessions: Sequence[Session], series: str, size: str | None) -> dict:
        """Settings of a published size, if any. Rotary periods start at twice the sampling interval of `series`: faster
        codes cannot be told apart by it, and a code of every spike's 0.1 ms has to be unlearned first (ten times slower
        on real data).
        """
        if size is not None and size not in cls.SIZES:
            raise UnknownName("size", size, cls.SIZES, where=f"the published sizes of {cls.__name__}")
        fastest = 2 * max(sampling_interval(sessions, series), *(s.resolution for s in sessions))
        return dict(t_min=min(max(fastest, 1e-3), 0.2)) | (cls.SIZES[size] if size else {})

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, packed as in the batch, and the latents [B, L, D]."""
        latents, turn = self.compress(batch)
        found = self.readout(self.ask(self.session_queries(batch), batch.targets[self.target], latents, turn))
        return Output(behavior=found * self.scale + self.mean, latents=latents)

    def compress(self, batch: SpikeBatch) -> tuple[Tensor, Tensor]:
        """All that is known of the windows: latents [B, L, D], and how far each is turned [L, pairs]."""
        if abs(batch.duration - self.window) > 1e-6:
            raise WorkbenchError(f"{type(self).__name__} was built for windows of {self.window:g} s and was given "
                                 f"{batch.duration:g} s; build it with window=, or cut windows of its own length")
        latents, turn = self.encode(batch), self.rotary(self.latent_times)
        return in_pieces(lambda x: self.process(x, turn), latents), turn

    def encode(self, batch: SpikeBatch) -> Tensor:
        """Tokens compressed into latents [B, L, D], before the blocks."""
        table, spikes, edges, group = self.tokens(batch)
        start = self.latents.repeat(len(self.latent_times) // len(self.latents), 1)
        latents = start + self.encoder.packed(start, self.rotary(self.latent_times), table, spikes, edges, group,
                                              self.rotary)
        return in_pieces(lambda x: x + self.encoder_ffn(x), latents)

    def process(self, latents: Tensor, turn: Tensor) -> Tensor:
        """Latents [B, L, D] after the blocks."""
        for attention, ffn in self.blocks:
            latents = latents + self.dropout(attention(latents, turn))
            latents = latents + self.dropout(ffn(latents))
        return latents

    def tokens(self, batch: SpikeBatch) -> tuple[Tensor, Tokens, Tokens, list[int]]:
        """Table [3 × units, D], spikes a window, starts and ends once for all windows of the same units, group [B]."""
        spikes, uo = batch.spikes(), batch.unit_offsets.tolist()
        distinct, unit = self.units.of_units(batch)
        table = (self.units(distinct)[:, None] + self.types[:END + 1]).flatten(0, 1)
        lists, group = [], []
        for units in unit.split([last - first for first, last in pairwise(uo)]):
            group.append(next((i for i, known in enumerate(lists) if torch.equal(units, known)), len(lists)))
            lists += [units] if group[-1] == len(lists) else []
        rows = [torch.cat([3 * units + START, 3 * units + END]) for units in lists]
        times = [batch.times.new_tensor([0, batch.duration]).repeat_interleave(len(units)) for units in lists]
        return (table, Tokens(3 * unit[spikes.units] + SPIKE, batch.times, batch.offsets.diff().tolist()),
                Tokens(torch.cat(rows), torch.cat(times), [len(r) for r in rows]), group)

    def session_queries(self, batch: SpikeBatch) -> Tensor:
        """What is asked of each window [B, D]: its session's embedding."""
        return self.sessions(self.sessions.session_rows(batch))

    def ask(self, queries: Tensor, target: Target, latents: Tensor, turn: Tensor) -> Tensor:
        """The answers [Q, D] to each window's query [B, D] at the target's times, before a read-out."""
        size = target.offsets.diff()
        window = torch.repeat_interleave(size)
        column = torch.arange(len(window), device=window.device) - target.offsets[window]
        times = target.times.new_zeros(len(size), int(size.max()))      # queries are padded: they do not see each other
        times[window, column] = target.times
        found = self.decoder(queries, self.rotary(times), latents, turn)[window, column]
        found = queries[window] + found
        return found + self.decoder_ffn(found)

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour."""
        return {"loss": window_mse(self(batch).behavior, batch.targets[self.target], self.scale)}

    @classmethod
    def from_torch_brain(cls, weights: Mapping[str, Tensor] | str | Path, *, window: float = 1.0, step: float = 0.125,
                         target: str = "behavior", **settings) -> POYO:
        """A model with torch_brain's weights: its state dict, or a checkpoint of its trainer (read as plain tensors).

        Sizes are read off the tensors; `window` and `step` from the checkpoint's settings where it has them. Outputs
        come as torch_brain's do, in the scale it was trained in.
        """
        if isinstance(weights, (str, Path)):
            weights = torch.load(weights, map_location="cpu", weights_only=True)
        if "state_dict" in weights:
            hyper = weights.get("hyper_parameters", {}).get("model", {})
            window, step = hyper.get("sequence_length", window), hyper.get("latent_step", step)
            weights = {key.removeprefix("model."): value for key, value in weights["state_dict"].items()}
        missing = [key for key in ("readout.weight", "unit_emb.vocab", "enc_atn.to_q.weight") if key not in weights]
        if missing:
            raise WorkbenchError(f"these are no weights of torch_brain's POYO: {', '.join(missing)} not among their "
                                 f"{len(weights)} names")
        words = lambda key: [word for word, row in sorted(weights[key].items(), key=lambda item: item[1])][1:]
        outputs, dim = weights["readout.weight"].shape
        head_dim = 2 * len(weights["rotary_emb.omega"])
        blocks = {int(key.split(".")[1]) for key in weights if key.startswith("proc_layers.")}
        model = cls(units=words("unit_emb.vocab"), sessions=words("session_emb.vocab"), target=target, outputs=outputs,
                    window=window, step=step, latents=len(weights["latent_emb.weight"]), dim=dim, depth=len(blocks),
                    head_dim=head_dim, cross_heads=len(weights["enc_atn.to_q.weight"]) // head_dim,
                    self_heads=len(weights["proc_layers.0.0.to_qkv.weight"]) // (3 * head_dim) if blocks else 8,
                    **settings)
        renamed = {_our_name(key): value for key, value in weights.items() if not key.endswith("vocab")}
        renamed["rotary.omega"] = renamed["rotary.omega"][:head_dim // 4]       # the others stand still
        model.load_state_dict(renamed | {"mean": model.mean, "scale": model.scale})
        return model


def _our_name(key: str) -> str:
    for theirs, ours in ((r"^unit_emb", "units"), (r"^session_emb", "sessions"), (r"^token_type_emb\.weight", "types"),
                         (r"^latent_emb\.weight", "latents"), (r"^rotary_emb", "rotary"), (r"^enc_atn", "encoder"),
                         (r"^dec_atn", "decoder"), (r"^proc_layers\.(\d+)\.0\.", r"blocks.\1.0."),
                         (r"^proc_layers\.(\d+)\.1\.", r"blocks.\1.1."), (r"^enc_ffn\.", "encoder_ffn."),
                         (r"^dec_ffn\.", "decoder_ffn.")):
        key = re.sub(theirs, ours, key)
    if key.startswith(("blocks", "encoder_ffn", "decoder_ffn")):
        key = re.sub(r"\.1\.net\.0\.", ".up.", re.sub(r"\.1\.net\.3\.", ".down.", key))
        key = re.sub(r"(ffn|blocks\.\d+\.1)\.0\.", r"\1.norm.", key)
    return key
