"""The recipe of the shipped image models: an encoder and a diffusion model small enough for a laptop without a network.

    python -m workbench.images.tiny FOLDER          about an hour and a half on one core; writes encoder/ and diffusion/

    drawn pictures, 64 × 64 → encoder: a ViT in CLIP's layout → vector [128]
        trained to find its caption among others (13 categories, 8 colours, place, size, turn, as attributes), and to
        say each attribute and a 16 × 16 thumbnail, so that the vector keeps the layout as well as the kind; the heads
        are thrown away
    pictures → 8 × 8 patches, 32 principal components each → latents [32, 8, 8]
    vector + noise → sketch: the mean picture that it means, by an MLP → latents
    noisy latents, sketch, vector → UNet of `diffusers` → what the clean latents have beside the sketch; noise could not
        pass through so few channels. Weighted by 1 + signal / noise, 5 at most (after Hang et al. 2023, 2303.09556)

The pictures come from `workbench.sources.drawn` with seeds from 7000 on: those of the simulated recordings, whose seeds
are small numbers, were never seen. In one of ten pictures the condition is left out, for classifier-free guidance (Ho &
Salimans 2022, arXiv 2207.12598). Noise on the vector is there because vectors read from spikes are never exact.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from workbench.errors import WorkbenchError
from workbench.images.diffusion import Condition, PatchCodec
from workbench.images.embedding import pixels_of
from workbench.losses import clip_loss
from workbench.sources import drawn

SEED = 7000                                                             # of the pictures; users' are below
DIM, SIDE = 128, drawn.SIDE
ENCODER = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, patch_size=8,
               image_size=SIDE, projection_dim=DIM)
UNET = dict(sample_size=8, block_out_channels=(48, 96), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64,
            class_embed_type="projection", projection_class_embeddings_input_dim=DIM,
            resnet_time_scale_shift="scale_shift")
SCHEDULER = dict(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="sample",
                 clip_sample=False, set_alpha_to_one=True, rescale_betas_zero_snr=True, timestep_spacing="trailing")
TURNS_BY = {"grating": 1 / 2, "checks": 1 / 4, "square": 1 / 4, "cross": 1 / 4, "triangle": 1 / 3, "star": 1 / 5}
SAID = (2, 1, 0.5, 0.5, 0.5, 1)                                         # what each attribute counts in the loss
LEFT_OUT, BLURRED = 0.1, 0.5                                            # of conditions; most noise on one, in its sd


def attributes(about: pd.DataFrame) -> np.ndarray:
    """What a caption would say of each picture, as numbers [n, attributes]: category, colour, thirds of place and size
    (a fourth number for what fills the picture), sixths of the turn (a seventh for what looks the same in each).
    """
    whole = about["kind"].isin(["grating", "texture"]).to_numpy()
    thirds = lambda name, low, high: np.where(
        whole, 3, np.clip((about[name] - low) / (high - low) * 3, 0, 2)).astype(int)
    again = about["category"].map(TURNS_BY) * 2 * np.pi                 # the turn after which a thing looks as before
    parts = [about["category"].map(list(drawn.CATEGORIES).index), about["color"].map(list(drawn.COLORS).index),
             thirds("x", -0.4, 0.4), thirds("y", -0.4, 0.4), thirds("size", 0.3, 0.6),
             (about["turn"] % again / again * 6).fillna(6).astype(int)]
    return np.stack(parts, axis=1)


class CaptionTower(nn.Module):
    """Attributes → vector: one embedding each, joined by an MLP. Thrown away after training."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 48) for size in sizes)
        self.join = nn.Sequential(nn.Linear(48 * len(sizes), 256), nn.GELU(), nn.Linear(256, DIM))

    def forward(self, captions: Tensor) -> Tensor:
        return self.join(torch.cat([table(column) for table, column in zip(self.tables, captions.T, strict=True)], 1))


def train_encoder(images: np.ndarray, captions: np.ndarray, folder: Path, steps: int, say: Callable[[str], None]):
    """A CLIPVisionModelWithProjection, saved in `folder`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**ENCODER))
    sizes = (captions.max(0) + 1).tolist()
    tower, words = CaptionTower(sizes), nn.Linear(DIM, sum(sizes))
    thumbnail = nn.Sequential(nn.Linear(DIM, 256), nn.GELU(), nn.Linear(256, 3 * 16 * 16))
    scale = nn.Parameter(torch.tensor(2.0))
    weights = [*model.parameters(), *tower.parameters(), *words.parameters(), *thumbnail.parameters(), scale]
    captions, sized = torch.from_numpy(captions), len(images)
    for step, adam in _steps(weights, steps, lr=1.5e-3, decay=0.05):
        at = torch.randint(sized, (64,))
        pixels = pixels_of(images[at.numpy()])
        vectors, told = model(pixel_values=(pixels - 0.5) / 0.5).image_embeds, captions[at]
        same = told.unique(dim=0, return_inverse=True)[1]               # two pictures may have one caption
        contrast = clip_loss(vectors, tower(told), (-scale).exp().clamp(min=0.01), same)
        blurred = vectors + 0.1 * vectors.detach().std() * torch.randn_like(vectors)
        # Contrast is won by colour and place, which few captions of a batch share: shapes need a word of their own.
        named = sum(weight * cross_entropy(said, column) for weight, said, column
                    in zip(SAID, words(blurred).split(sizes, 1), told.T, strict=True))
        look = mse_loss(thumbnail(blurred), interpolate(pixels, (16, 16), mode="area").flatten(1))
        (0.5 * contrast + 0.5 * named + 60 * look).backward()
        adam.step()
        if step % 100 == 99 or step == steps - 1:
            say(f"encoder {step + 1}/{steps}: contrast {contrast.item():.3f}, words {named.item():.3f}, thumbnail "
                f"{look.item():.4f}")
    with torch.no_grad():                                               # a spread of 1, norms of about 12
        model.eval().visual_projection.weight.div_(embedded(model, images[:2600]).std(0).mean())
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "crop_size": SIDE, "size": SIDE,
         "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, indent=2))
    return model


def train_diffusion(images: np.ndarray, vectors: Tensor, folder: Path, steps: int, say: Callable[[str], None],
                    keep_every: int = 1000) -> None:
    """Codec, condition, UNet and scheduler, saved in `folder`, anew every `keep_every` steps."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel

    codec = PatchCodec.fit(pixels_of(images[:4000]))
    latents = torch.cat([codec.encode(pixels_of(part)) for part in np.array_split(images, -(-len(images) // 500))])
    condition = Condition(DIM, codec.channels, UNET["cross_attention_dim"])
    condition.measure_(vectors)
    for step, adam in _steps(list(condition.sketch.parameters()), max(steps // 3, 1), lr=1e-3, decay=0.01):
        at = torch.randint(len(latents), (256,))
        loss = mse_loss(condition.sketch_of(_blurred(condition, vectors[at])), latents[at])
        loss.backward()
        adam.step()
        if step % 500 == 499:
            say(f"sketch {step + 1}: {loss.item():.4f} of variance {latents.var().item():.4f}")
    condition.sketch.requires_grad_(False)
    unet = UNet2DConditionModel(in_channels=2 * codec.channels, out_channels=codec.channels, **UNET)
    scheduler = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k != "set_alpha_to_one"})
    parts = nn.ModuleDict({"unet": unet, "condition": condition})
    averages = torch.optim.swa_utils
    averaged = averages.AveragedModel(parts, multi_avg_fn=averages.get_ema_multi_avg_fn(0.998))
    running = None
    for step, adam in _steps([p for p in parts.parameters() if p.requires_grad], steps, lr=8e-4, decay=0.01):
        at = torch.randint(len(latents), (32,))
        clean, noise, when = latents[at], torch.randn(32, *latents.shape[1:]), torch.randint(1000, (32,))
        noisy = scheduler.add_noise(clean, noise, when)
        given = condition(_blurred(condition, vectors[at]), torch.rand(32) < LEFT_OUT)
        made = given.sketch + unet(torch.cat([noisy, given.sketch], 1), when, given.tokens,
                                   class_labels=given.vector).sample
        weight = (1 / (1 - scheduler.alphas_cumprod[when])).clamp(max=5.0)
        loss = (weight * (made - clean).square().mean((1, 2, 3))).mean()
        loss.backward()
        adam.step()
        averaged.update_parameters(parts)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 99:
            say(f"diffusion {step + 1}/{steps}: loss {running:.4f}")
        if step % keep_every == keep_every - 1 or step == steps - 1:
            best = deepcopy(averaged.module)
            best["unet"].half().save_pretrained(folder / "unet")
            DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
            save_file({f"condition.{k}": v.half().contiguous() for k, v in best["condition"].state_dict().items()} |
                      {f"codec.{k}": v.contiguous() for k, v in codec.state_dict().items()},
                      folder / "condition.safetensors")


def _blurred(condition: Condition, vectors: Tensor) -> Tensor:
    """Vectors with noise, of another size for each picture."""
    return vectors + BLURRED * torch.rand(len(vectors), 1) * condition.spread * torch.randn_like(vectors)


def _steps(weights: list[nn.Parameter], steps: int, *, lr: float, decay: float):
    """Steps of AdamW: gradients are cleared before each, the rate rises for a twentieth, then falls along a cosine."""
    adam = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=decay)
    rise = max(steps // 20, 1)
    plan = torch.optim.lr_scheduler.SequentialLR(adam, [
        torch.optim.lr_scheduler.LinearLR(adam, 0.01, 1.0, rise),
        torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps - rise, 1), lr / 50)], [rise])
    for step in range(steps):
        adam.zero_grad(set_to_none=True)
        yield step, adam
        plan.step()


def make(folder: Path, *, pictures: int = 26_000, encoder_steps: int = 3500, diffusion_steps: int = 8000,
         seed: int = 0, say: Callable[[str], None] = print) -> None:
    """Draw the pictures, train both models, write encoder/, diffusion/ and model_card.md into `folder`.

    An encoder that is already there is kept.
    """
    from transformers import CLIPVisionModelWithProjection

    if pictures < 100:
        raise WorkbenchError(f"{pictures} pictures teach nothing; give 100 or more")
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    images, about = drawn.pictures(pictures, SEED), drawn.descriptions(pictures, SEED)
    if (folder / "encoder" / "model.safetensors").is_file():            # pictures' vectors are what others align to
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "encoder", local_files_only=True).eval()
        say("the encoder in the folder is kept")
    else:
        encoder = train_encoder(images, attributes(about), folder / "encoder", encoder_steps, say)
    vectors = embedded(encoder, images)
    train_diffusion(images, vectors, folder / "diffusion", diffusion_steps, say)
    files = sorted(path for path in folder.rglob("*.safetensors"))
    (folder / "model_card.md").write_text("\n".join([
        "# The tiny image models", "",
        f"Trained on {pictures:,} drawn pictures (`workbench.sources.drawn`, seed {SEED}) and on nothing else, by:", "",
        f"    python -m workbench.images.tiny FOLDER --pictures {pictures} --encoder-steps {encoder_steps} "
        f"--diffusion-steps {diffusion_steps} --seed {seed}", "",
        f"{(time.process_time() - began) / 60:.0f} CPU minutes, torch {torch.__version__}, Python "
        f"{platform.python_version()}. Licence: Apache-2.0, as the code that draws the pictures and trains.", "",
        *(f"- `{path.relative_to(folder)}`: {path.stat().st_size:,} bytes, sha256 "
          f"{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files), ""]))


@torch.no_grad()
def embedded(encoder, images: np.ndarray) -> Tensor:
    """The encoder's vectors [n, DIM]."""
    return torch.cat([encoder(pixel_values=(pixels_of(part) - 0.5) / 0.5).image_embeds
                      for part in np.array_split(images, -(-len(images) // 200))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the shipped image models anew.")
    parser.add_argument("folder", type=Path)
    for name, default in (("pictures", 26_000), ("encoder-steps", 3500), ("diffusion-steps", 8000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    make(**vars(parser.parse_args()), say=lambda text: print(text, flush=True))
