"""What every reconstruction has to be shown beside: pictures made from spike counts without a generator.

    ridge            counts → pixels, by regression: what spikes say of each pixel, blurred where they do not
    convolutional    counts → laid out over the picture, each unit where it looks → convolutions → pixels
    nearest          the training picture whose vector is nearest to the one that was read
    mean             the mean training picture, whatever was shown

The convolutional decoder follows MonkeySee's idea that space is kept (Le et al. 2024, NeurIPS): neural images over
receptive fields, then a network that keeps places. Departs from it: fields are estimated from the training pictures
(theirs were mapped), each unit weighs in several channels, one resolution, and the loss is of pixels and of energies
and colours (theirs: VGG's features and an adversary).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from workbench.images.embedding import GaborColor

GRID = 8                                                                # places a side, of receptive fields


def nearest(found: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Which of vectors [P, D] points most nearly where each of found [n, D] does [n]."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return (unit(np.asarray(found, np.float64)) @ unit(np.asarray(vectors, np.float64)).T).argmax(1)


def fields(counts: np.ndarray, pixels: Tensor) -> np.ndarray:
    """Where each count's unit looks: weights [F, GRID²] that sum to 1, from how counts [n, F] go with the contrast and
    the colour of pictures [n, 3, H, W] at each place.
    """
    cells = pixels.unfold(2, pixels.shape[2] // GRID, pixels.shape[2] // GRID).unfold(
        3, pixels.shape[3] // GRID, pixels.shape[3] // GRID)
    seen = torch.cat([cells.mean((4, 5)), cells.std((4, 5))], 1).flatten(2).numpy()         # [n, 6, GRID²]
    standard = lambda x: (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    goes_with = np.einsum("nf,ncp->fcp", standard(counts), standard(seen)) / len(counts)
    strength = (goes_with ** 2).sum(1)
    strength = np.maximum(strength - np.median(strength, axis=1, keepdims=True), 0) + 1e-6
    return strength / strength.sum(1, keepdims=True)


class Convolutional(nn.Module):
    """counts, standardised [n, F] → pictures [n, 3, side, side]; side: 64, or another power of 2 times GRID."""

    def __init__(self, where: np.ndarray, side: int, channels: int = 32, width: int = 48):
        super().__init__()
        self.register_buffer("where", torch.from_numpy(where).float())
        self.channel = nn.Parameter(torch.randn(len(where), channels) / len(where) ** 0.5)
        layers, edge = [nn.Conv2d(channels, width, 3, padding=1), nn.GELU()], GRID
        while edge < side:
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Upsample(scale_factor=2, mode="bilinear"),
                       nn.Conv2d(width, max(width // 2, 16), 3, padding=1), nn.GELU()]
            width, edge = max(width // 2, 16), 2 * edge
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, counts: Tensor) -> Tensor:
        neural = torch.einsum("nf,fc,fp->ncp", counts, self.channel, self.where) * len(self.where) ** 0.5
        return self.layers(neural.unflatten(2, (GRID, GRID))).sigmoid()


def fit_convolutional(counts: np.ndarray, pixels: Tensor, counts_valid: np.ndarray, pixels_valid: Tensor, *,
                      steps: int = 600, seed: int = 0,
                      progress: Callable[[int, int], None] | None = None) -> Callable[[np.ndarray], Tensor]:
    """Train on presentations (counts [n, F], what they showed [n, 3, side, side]); the weights that make the validation
    pictures best are kept. Returns counts → pictures.
    """
    mean, spread = counts.mean(0), np.where(counts.std(0) > 0, counts.std(0), np.inf)
    standard = lambda each: torch.from_numpy((each - mean) / spread).float()
    x, x_valid, look = standard(counts), standard(counts_valid), GaborColor()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, best = Convolutional(fields(counts, pixels), pixels.shape[-1]), (np.inf, None)
        adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
        plan = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps)
        for step in range(steps):
            at = torch.randint(len(x), (32,))
            made = model(x[at] + 0.3 * torch.randn_like(x[at]))
            loss = mse_loss(made, pixels[at]) + 0.05 * mse_loss(look.embed(made), look.embed(pixels[at]))
            adam.zero_grad()
            loss.backward()
            adam.step()
            plan.step()
            if step % 50 == 49 or step == steps - 1:
                with torch.no_grad():
                    error = mse_loss(torch.cat([model(part) for part in x_valid.split(64)]), pixels_valid).item()
                if error < best[0]:
                    best = error, {name: value.clone() for name, value in model.state_dict().items()}
                if progress:
                    progress(step + 1, steps)
    model.load_state_dict(best[1])

    @torch.no_grad()
    def decode(counts: np.ndarray) -> Tensor:
        return torch.cat([model.eval()(part) for part in standard(counts).split(64)])

    return decode


def sized(pixels: Tensor, side: int) -> Tensor:
    """Pictures [n, 3, H, W] at side × side."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    return interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
