"""What a picture is to an image model: one vector a picture, by the name of the model.

    "gabor-color"   oriented energies at four scales and colour on a grid, by a formula; no weights     1,152
    "tiny"          this project's own image encoder, trained on drawn pictures and shipped             128
    a folder        any CLIP or DINOv2 of `transformers`, or its name on the hub where it is cached     as it says

Pictures come as float [B, 3, H, W] from 0 to 1; size, crop and mean are the embedder's own business. A vector has the
scale that the image model gives it: generators want that, and contrast by cosine does not see it.

`of_session` is a recording's pictures as a series of vectors, one a presentation, kept on disk once they are computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from workbench import conditions
from workbench.errors import BadRecording, WorkbenchError
from workbench.files import replacing
from workbench.places import cache_folder
from workbench.session import Series, Session

SHIPPED = Path(__file__).parent / "weights"
# What real decoders were trained with: bytes to fetch, licence (model cards, read in 2026).
KNOWN = {"openai/clip-vit-large-patch14": ("1.7 GB", "MIT"),
         "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ("3.9 GB", "MIT"),
         "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": ("10.2 GB", "MIT"),
         "facebook/dinov2-base": ("0.35 GB", "Apache-2.0")}


class ModelNotHere(WorkbenchError):
    """An image model that is not on this computer: where it was looked for, its size, how to get it."""


class Embedder(Protocol):
    """name: what a generator asks for; dim: of its vectors."""

    name: str
    dim: int

    def embed(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] from 0 to 1 → vectors [B, dim]."""


class GaborColor:
    """Oriented energies (log of 1 + 10 × modulus) of 3, 6, 12 and 20 cycles a picture, 6 turns, means on a grid of 4 or
    8; and luminance, red–green and blue–yellow on a grid of 8. What V1 and part of V4 answer to (Jones & Palmer 1987).
    """

    name, dim, side = "gabor-color", 6 * (16 + 16 + 64 + 64) + 3 * 64, 64
    BANDS = ((3, 4), (6, 4), (12, 8), (20, 8))                          # cycles a picture, grid

    def embed(self, pixels: Tensor) -> Tensor:
        pixels = interpolate(pixels.float(), (self.side, self.side), mode="bilinear", antialias=True,
                             align_corners=False)
        red, green, blue = pixels.unbind(1)
        grey = 0.299 * red + 0.587 * green + 0.114 * blue
        spectrum = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True))
        found = [_on_grid(torch.log1p(10 * torch.hypot(*(torch.fft.irfft2(spectrum * wave, grey.shape[1:])
                                                         for wave in waves))), grid)
                 for waves, grid in _filters(self.side, self.BANDS)]
        colours = [_on_grid(each, 8) for each in ((red + green + blue) / 3, red - green, blue - (red + green) / 2)]
        # Photographs differ about as much in each energy as in each colour then.
        return torch.cat([*found, *(3 * each for each in colours)], dim=1)


@lru_cache(maxsize=1)
def _filters(side: int, bands: tuple) -> list[tuple[tuple[Tensor, Tensor], int]]:
    """Spectra of a pair of Gabor filters 90° apart, of unit norm and zero mean, for each frequency and turn."""
    y, x = torch.meshgrid(*[torch.arange(side) - side // 2] * 2, indexing="ij")
    made = []
    for cycles, grid in bands:
        window = torch.exp(-(x ** 2 + y ** 2) / (2 * (0.5 * side / cycles) ** 2))
        for turn in torch.arange(6) * torch.pi / 6:
            along = 2 * torch.pi * cycles / side * (x * turn.cos() + y * turn.sin())
            pair = [window * torch.cos(along + phase) for phase in (0, torch.pi / 2)]
            pair = [each - each.mean() for each in pair]
            made.append((tuple(torch.fft.rfft2(torch.fft.ifftshift(each / each.norm())) for each in pair), grid))
    return made


def _on_grid(maps: Tensor, grid: int) -> Tensor:
    """Means [B, grid²] of maps [B, H, W]."""
    return torch.nn.functional.adaptive_avg_pool2d(maps[:, None], grid).flatten(1)


class Transformers:
    """A CLIP (its projected image embedding) or a DINOv2 (its class token) in the folder layout of `transformers`.

    place: a folder, or the name of a model on the hub that is in the local cache; nothing is ever downloaded. name:
    what generators know it by, the place itself where none is given.
    """

    def __init__(self, place: str | Path, name: str | None = None, device: str = "cpu"):
        from transformers import AutoConfig, CLIPVisionModelWithProjection, Dinov2Model
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()                                          # a second is not worth a bar in every cell
        self.name, where = name or str(place), str(place)
        try:
            config = AutoConfig.from_pretrained(where, local_files_only=True)
            if config.model_type not in ("clip", "clip_vision_model", "dinov2"):
                raise WorkbenchError(f"{where} is a {config.model_type!r}, which is no image embedder known here; give "
                                     "a CLIP or a DINOv2")
            kind = Dinov2Model if config.model_type == "dinov2" else CLIPVisionModelWithProjection
            if config.model_type == "clip":                             # LAION's say the width only once
                config.vision_config.projection_dim = config.projection_dim
                config = config.vision_config
            self.model = kind.from_pretrained(where, config=config, local_files_only=True)
            self.model.eval().requires_grad_(False).to(device)
        except (OSError, ValueError) as error:
            raise ModelNotHere(_not_here(where)) from error
        own = self.model.config
        self.dim = own.hidden_size if kind is Dinov2Model else own.projection_dim
        self.crop, self.side, mean, std = _preprocessing(where, own.image_size)
        self.mean, self.std = (torch.tensor(each, device=device)[:, None, None] for each in (mean, std))

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self.mean.device, torch.float32)
        shortest = min(pixels.shape[2:])
        size = [max(round(edge * self.side / shortest), self.crop) for edge in pixels.shape[2:]]
        if size != list(pixels.shape[2:]):
            pixels = interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((edge - self.crop) // 2 for edge in size)
        pixels = (pixels[:, :, top:top + self.crop, left:left + self.crop] - self.mean) / self.std
        found = self.model(pixel_values=pixels)
        return getattr(found, "image_embeds", None) if hasattr(found, "image_embeds") else found.pooler_output


def _preprocessing(place: str, image_size: int) -> tuple[int, int, list[float], list[float]]:
    """Crop, size of the shorter side, mean and deviation, as the model's own preprocessor_config.json says."""
    from transformers.utils import cached_file

    found = cached_file(place, "preprocessor_config.json", local_files_only=True,
                        _raise_exceptions_for_missing_entries=False)
    told = json.loads(Path(found).read_text()) if found else {}
    edge = lambda value: (value.get("shortest_edge") or value["height"]) if isinstance(value, dict) else value
    crop = edge(told["crop_size"]) if told.get("crop_size") and told.get("do_center_crop", True) else image_size
    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]    # of every CLIP of OpenAI's
    return (crop, max(edge(told.get("size") or crop), crop), told.get("image_mean", clip[0]),
            told.get("image_std", clip[1]))


def _not_here(place: str) -> str:
    size, licence = KNOWN.get(place, ("", ""))
    about = f" ({size}, {licence})" if size else ""
    if "/" in place and place.count("/") == 1 and not place.startswith((".", "/", "~")):
        how = f"fetch it with: hf download {place}"
    else:
        how = "give a folder that holds config.json and model.safetensors of a CLIP or a DINOv2"
    return (f"the image model {place!r}{about} is neither a folder here nor in the local cache of the hub; {how}, or "
            "use 'tiny' or 'gabor-color', which need no download")


@lru_cache(maxsize=4)
def open_embedder(name: str) -> Embedder:
    """The embedder of that name: "gabor-color", "tiny", a folder, or a cached model of the hub. ModelNotHere says how
    to get one that is not here.
    """
    if name == GaborColor.name:
        return GaborColor()
    if name == "tiny":
        return Transformers(SHIPPED / "encoder", name="tiny")
    return Transformers(Path(name).expanduser() if Path(name).expanduser().is_dir() else name, name=name)


def pixels_of(images: np.ndarray) -> Tensor:
    """uint8 [n, H, W(, 3)] → float [n, 3, H, W] from 0 to 1."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    return pixels.permute(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None].expand(-1, 3, -1, -1)


def embed(images: np.ndarray, embedder: Embedder | str, *, batch: int = 64,
          progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Vectors [n, dim] float32 of pictures [n, H, W(, 3)] uint8, kept in the cache folder under what both are."""
    embedder = open_embedder(embedder) if isinstance(embedder, str) else embedder
    images = np.ascontiguousarray(images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)) or \
            (images.ndim == 3 and images.shape[2] == 3):
        raise WorkbenchError(f"pictures of shape {images.shape} and type {images.dtype}; give uint8 [n, height, width] "
                             "or [n, height, width, 3], of one picture n = 1")
    key = hashlib.sha256(f"{_version(embedder)} {images.shape}".encode())
    key.update(images)
    kept = cache_folder("embeddings") / f"{key.hexdigest()[:24]}.npy"
    if kept.is_file():
        try:
            return np.load(kept)
        except (ValueError, EOFError, OSError):                         # damaged: it is made anew
            pass
    found = []
    for at in range(0, len(images), batch):
        found.append(embedder.embed(pixels_of(images[at:at + batch])).cpu().numpy().astype(np.float32))
        if progress:
            progress(min(at + batch, len(images)), len(images))
    vectors = np.concatenate(found) if found else np.empty((0, embedder.dim), np.float32)
    with replacing(kept) as temporary, open(temporary, "wb") as file:
        np.save(file, vectors)
    return vectors


def _version(embedder: Embedder) -> str:
    """What tells one embedder's vectors from another's: its name, and a digest of its weights where it has some."""
    model = getattr(embedder, "model", None)
    if model is None:
        return f"{embedder.name} 1"
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.double().sum().item():.10g}".encode())
    return digest.hexdigest()


def of_session(session: Session, embedder: str) -> Series:
    """The session's pictures as vectors, one sample a presentation, at its start.

    BadRecording for a session without pictures, ModelNotHere for an embedder that is not on this computer.
    """
    if session.load_images is None:
        raise BadRecording(f"{session.id} holds no pictures to embed; attach a folder of them with "
                           "workbench.sources.pictures.attach, or choose another recording")
    return conditions.shown(session, _vectors(session.load_images, embedder))


@lru_cache(maxsize=8)
def _vectors(load_images: Callable[[], np.ndarray], embedder: str) -> np.ndarray:
    # Parts of a session share the function that loads its pictures, so that these are loaded once.
    return embed(load_images(), embedder)
