"""The project's own small diffusion model: from a vector of the tiny encoder to a drawn picture, without a network.

    vector [128] → sketch [32, 8, 8], tokens [4, 64] and itself, standardised ─┐
    noise [32, 8, 8] ──────────────────────────────────────────────────────────┴→ UNet, DDIM steps with guidance
        → latents [32, 8, 8] → patches → picture [3, 64, 64]

The UNet and the scheduler are `diffusers`' own (Song et al. 2021, arXiv 2010.02502, for DDIM); `workbench.images.tiny`
trains and writes the folder. It draws what it was trained on, simple things in eight colours, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from workbench.images.decoders import refuse
from workbench.images.embedding import SHIPPED, ModelNotHere

PATCH, CHANNELS = 8, 32


class PatchCodec(nn.Module):
    """Pictures as principal components of their 8 × 8 patches: about 31 dB, and nothing to train.

    Components are scaled by the root of their spread: whitened, most of the loss would lie in noise; as they are,
    all of it in the mean colour.
    """

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.zeros(3 * PATCH ** 2))
        self.register_buffer("components", torch.zeros(channels, 3 * PATCH ** 2))
        self.register_buffer("scale", torch.ones(channels))

    @classmethod
    def fit(cls, pixels: Tensor, channels: int = CHANNELS) -> PatchCodec:
        codec, patches = cls(channels), _patches(pixels).flatten(0, 2)
        codec.mean.copy_(patches.mean(0))
        values, vectors = torch.linalg.eigh((patches - codec.mean).T.cov().double())
        codec.components.copy_(vectors.T.flip(0)[:channels])
        spread = values.flip(0)[:channels].clamp(min=1e-9).sqrt()
        scale = spread.sqrt()
        codec.scale.copy_(scale * (spread / scale).square().mean().sqrt())   # so that the mean variance is 1
        return codec

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, 64, 64] from 0 to 1 → latents [B, channels, 8, 8]."""
        return ((_patches(pixels) - self.mean) @ self.components.T / self.scale).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents → pictures, cut to 0 … 1."""
        patches = (latents.permute(0, 2, 3, 1) * self.scale) @ self.components + self.mean
        rows, columns = patches.shape[1:3]
        pixels = patches.unflatten(-1, (3, PATCH, PATCH)).permute(0, 3, 1, 4, 2, 5)
        return pixels.reshape(len(latents), 3, rows * PATCH, columns * PATCH).clamp(0, 1)


def _patches(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] → [B, H / 8, W / 8, 192]."""
    cut = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3)


class Given(NamedTuple):
    """What the UNet is told: sketch [B, channels, 8, 8], tokens [B, n, width], the standardised vector [B, dim]."""

    sketch: Tensor
    tokens: Tensor
    vector: Tensor


class Condition(nn.Module):
    """A vector as a UNet is told of it; where it is left out, learned tokens, an empty sketch and a vector of zeros."""

    def __init__(self, dim: int, channels: int, width: int, tokens: int = 4, hidden: int = 512):
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.sketch = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
                                    nn.Linear(hidden, channels * 64))
        self.to_tokens = nn.Linear(dim, tokens * width)
        self.nothing = nn.Parameter(torch.randn(tokens, width) * 0.02)

    def measure_(self, vectors: Tensor) -> None:
        """Take over the mean and spread of the vectors of pictures [n, dim]."""
        self.mean.copy_(vectors.mean(0))
        self.spread.copy_(vectors.std(0).clamp(min=1e-6))

    def sketch_of(self, vectors: Tensor) -> Tensor:
        """The mean picture that a vector means [B, channels, 8, 8]."""
        return self.sketch((vectors - self.mean) / self.spread).unflatten(1, (self.channels, 8, 8))

    def forward(self, vectors: Tensor, left_out: Tensor) -> Given:
        """vectors [B, dim]; left_out [B]: which are not told."""
        standard, out = (vectors - self.mean) / self.spread, left_out[:, None]
        tokens = self.to_tokens(standard).unflatten(1, self.nothing.shape)
        return Given(self.sketch_of(vectors).masked_fill(out[..., None, None], 0.0),
                     torch.where(out[..., None], self.nothing, tokens), standard.masked_fill(out, 0.0))


class TinyDiffusion:
    """A `decoders.Decoder` of vectors of the embedder "tiny", from `folder`, by default the shipped one."""

    embedder, dim, side = "tiny", 128, 64

    def __init__(self, folder: str | Path | None = None):
        from diffusers import DDIMScheduler, UNet2DConditionModel

        folder = SHIPPED / "diffusion" if folder is None else Path(folder).expanduser()
        if not (folder / "condition.safetensors").is_file():
            raise ModelNotHere(f"there is no small diffusion model in {folder}; leave folder= out for the shipped one, "
                               "or make one with: python -m workbench.images.tiny FOLDER")
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True,
                                                         low_cpu_mem_usage=False).float().eval()
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        kept = {name: value.float() for name, value in load_file(folder / "condition.safetensors").items()}
        part = lambda name: {k.removeprefix(f"{name}."): v for k, v in kept.items() if k.startswith(f"{name}.")}
        self.codec = PatchCodec(len(kept["codec.scale"]))
        self.codec.load_state_dict(part("codec"))
        tokens, width = kept["condition.nothing"].shape
        self.condition = Condition(self.dim, self.codec.channels, width, tokens, len(kept["condition.sketch.0.bias"]))
        self.condition.load_state_dict(part("condition"))

    @torch.inference_mode()
    def decode(self, embedding: Tensor, *, low_level: Tensor | None = None, strength: float = 0.6, steps: int = 20,
               guidance: float = 1.5, seeds: Sequence[int] = ()) -> Tensor:
        """Vectors [B, 128], of the scale that the encoder gives → pictures [B, 3, 64, 64] from 0 to 1.

        seeds: one a picture (their numbers where none are given), so that a picture does not depend on the others of
        its batch. low_level: pictures [B, 3, H, W] to start from, noised for the last `strength` of the steps.
        """
        embedding = torch.as_tensor(embedding, dtype=torch.float32)
        seeds = list(seeds) or list(range(len(embedding)))
        refuse(self, embedding, low_level, strength, steps, guidance, seeds)
        if not len(embedding):
            return torch.empty(0, 3, self.side, self.side)
        shape = (self.codec.channels, self.side // PATCH, self.side // PATCH)
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
        self.scheduler.set_timesteps(steps)
        times = self.scheduler.timesteps
        if low_level is not None:
            times = times[min(int(steps * (1 - strength)), steps - 1):]
            start = interpolate(low_level.float(), (self.side, self.side), mode="bilinear", antialias=True,
                                align_corners=False)
            x = self.scheduler.add_noise(self.codec.encode(start), x, times[:1].expand(len(x)))
        told = self.condition(embedding, torch.zeros(len(x), dtype=torch.bool))
        blind = self.condition(embedding, torch.ones(len(x), dtype=torch.bool))
        given = Given(*(torch.cat(pair) for pair in zip(told, blind, strict=True))) if guidance != 1 else told
        for time in times:
            both = torch.cat([x, x]) if guidance != 1 else x
            made = given.sketch + self.unet(torch.cat([both, given.sketch], 1), time, given.tokens,
                                            class_labels=given.vector).sample
            if guidance != 1:
                with_, without = made.chunk(2)
                made = without + guidance * (with_ - without)
            x = self.scheduler.step(made, time, x).prev_sample
        return self.codec.decode(x)
