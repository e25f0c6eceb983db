"""Generators of pictures from the vector of a picture, and which vectors each of them takes.

    "tiny"            this project's own small one (diffusion.py): drawn things, no download
    "ip-adapter"      Stable Diffusion and an IP-Adapter (Ye et al. 2023, arXiv 2308.06721): nothing to train
    "kandinsky"       the decoder of Kandinsky 2.2 (Razzhigaev et al. 2023, arXiv 2310.03502): nothing to train
    "token-adapter"   Stable Diffusion 1, 2 or XL and an adapter of one's own training (token_adapter.py)

    vector [B, dim], in its embedder's scale → noise of a seed, DDIM steps with guidance → picture [B, 3, side, side]

Choose the generator before what spikes are aligned to: it was trained on the vectors of one embedder, and those of
another mean nothing to it, even where they are as wide; `check` says so. Models are folders in the layout of
`diffusers`, or names on the hub that are in the local cache (places.py). No text encoder or image encoder is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from workbench.errors import UnknownName, WorkbenchError
from workbench.images import places
from workbench.images.token_adapter import TokenAdapter, text_widths

VIT_L, VIT_H, VIT_BIGG = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
                          "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
WIDTHS = {"tiny": 128, "gabor-color": 1152, VIT_L: 768, VIT_H: 1024, VIT_BIGG: 1280, "facebook/dinov2-base": 768}
CAPTION = 77                                                            # tokens that Stable Diffusion's captions have


class Decoder(Protocol):
    """embedder: the name of the image embedder whose vectors it takes; dim: their width; side: of a picture, pixels."""

    embedder: str
    dim: int
    side: int

    def decode(self, embedding: Tensor, *, low_level: Tensor | None = None, strength: float = 0.6, steps: int = 50,
               guidance: float = 5.0, seeds: Sequence[int] = ()) -> Tensor:
        """Vectors [B, dim] → pictures [B, 3, side, side] from 0 to 1."""


def check(decoder: Decoder, embedder: str, dim: int | None = None) -> None:
    """WorkbenchError unless the generator takes vectors of this embedder, and of this width."""
    dim = dim or WIDTHS.get(embedder)
    if decoder.embedder != embedder or dim not in (None, decoder.dim):
        wide = f" of {dim} numbers" if dim else ""
        raise WorkbenchError(f"the generator takes vectors of {decoder.embedder!r} of {decoder.dim} numbers, not of "
                             f"{embedder!r}{wide}; align spikes to the generator's embedder, or choose another "
                             "generator (one model under two names? give it to the generator as embedder=)")


class _Pipelines:
    """What the routes share: pictures are cut into batches, each with noise of its own seed, so that no cut shows."""

    guidance = 5.0                                                      # where none is given

    def __init__(self, embedder: str, dim: int, side: int, fresh, started, device: str, at_once: int):
        self.embedder, self.dim, self.side = embedder, dim, side
        self.fresh, self.started, self.device, self.at_once = fresh, started, device, at_once
        if WIDTHS.get(embedder, dim) != dim:
            raise WorkbenchError(f"{embedder!r} gives vectors of {WIDTHS[embedder]} numbers and this generator takes "
                                 f"{dim}; give the embedder that it was trained with as embedder=")
        if side % 8:
            raise WorkbenchError(f"pictures of {side} pixels a side cannot be made; give a side= that 8 divides")
        for pipeline in (fresh, started):                               # from noise, and from a low-level picture
            pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def decode(self, embedding: Tensor, *, low_level: Tensor | None = None, strength: float = 0.6, steps: int = 50,
               guidance: float | None = None, seeds: Sequence[int] = ()) -> Tensor:
        """Vectors [B, dim], of the scale that the embedder gives → pictures [B, 3, side, side] from 0 to 1, on the CPU.

        seeds: one a picture, their numbers where none are given. low_level: pictures [B, 3, H, W] from 0 to 1 to start
        from, noised for the last `strength` of the steps. guidance: 1 is none; left out, what suits the route.
        """
        embedding = torch.as_tensor(embedding, dtype=torch.float32)
        guidance = self.guidance if guidance is None else float(guidance)
        seeds = [int(seed) for seed in seeds] or list(range(len(embedding)))
        refuse(self, embedding, low_level, strength, steps, guidance, seeds)
        made = [torch.empty(0, 3, self.side, self.side)]
        for at in range(0, len(embedding), self.at_once):
            part = slice(at, at + self.at_once)
            options = dict(num_inference_steps=steps, guidance_scale=guidance,
                           generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]])
            options |= self._condition(embedding[part].to(self.device), guidance > 1)
            if low_level is not None:
                # At least one step, and half a step more, so that rounding down gives that number.
                options["strength"] = min((max(round(strength * steps), 1) + 0.5) / steps, 1.0)
                options["image"] = interpolate(low_level[part].float(), (self.side, self.side), mode="bilinear",
                                               antialias=True, align_corners=False).clamp(0, 1)
            with places.quiet():
                made.append(self._draw(**options).float().cpu())
        return torch.cat(made)

    def _condition(self, embedding: Tensor, guided: bool) -> dict:
        raise NotImplementedError

    def _draw(self, **options) -> Tensor:
        if "image" in options:
            return self.started(output_type="pt", **options).images
        return self.fresh(output_type="pt", height=self.side, width=self.side, **options).images


class IPAdapterDecoder(_Pipelines):
    """Stable Diffusion (1, 2 or XL) and an IP-Adapter's weights, which turn the vector into four tokens of their own.

    folder, adapter: folders, or names on the hub that are cached; adapter may be the safetensors file itself. The
    width is the adapter's; its "plus", "full face" and face-identity kinds want something else than one vector.

    text [77, width]: what the text encoder says of the empty caption, with which the adapter was trained. Where it is
    left out it is zeros, with which attention to text adds nothing: the picture follows from the vector alone, and no
    text encoder is needed. It is the same on both sides of guidance, which is therefore about the vector. scale: of the
    adapter's attention.
    """

    def __init__(self, folder: str | Path = places.SD_15, adapter: str | Path = places.IP_ADAPTER, *,
                 weight_name: str | None = None, embedder: str = VIT_H, text: Tensor | None = None, scale: float = 1.0,
                 side: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32, at_once: int = 8):
        fresh, started = _stable_diffusion(folder, device, dtype)
        width, self.pooled = text_widths(fresh.unet.config)
        weights = places.ip_adapter(adapter, weight_name or (
            "sdxl_models/ip-adapter_sdxl_vit-h.safetensors" if self.pooled else "models/ip-adapter_sd15.safetensors"))
        made, dim = weights["image_proj"]["proj.weight"].shape
        if made != 4 * width:
            raise WorkbenchError(f"the IP-Adapter makes tokens of {made // 4} numbers and the UNet of {folder} attends "
                                 f"to {width}; give the adapter that was made for this model")
        if text is not None and text.shape[-1] != width:
            raise WorkbenchError(f"text= of width {text.shape[-1]} for a UNet that attends to {width}")
        # As the pipeline's own load_ip_adapter does, which would add a preprocessor that is not wanted.
        with places.quiet():
            fresh.unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)
        fresh.unet.requires_grad_(False)
        for pipeline in (fresh, started):
            # diffusers 0.42 repeats the vectors of a batch once for each picture, and each picture is then told of all
            # (its issue 9813, open): they are passed on as they are.
            pipeline.prepare_ip_adapter_image_embeds = lambda image, vectors, *rest: vectors
            pipeline.set_ip_adapter_scale(scale)
        self.text = (torch.zeros(CAPTION, width) if text is None else text).to(device, dtype)
        super().__init__(embedder, dim, side or _side(fresh), fresh, started, device, at_once)

    def _condition(self, embedding: Tensor, guided: bool) -> dict:
        vectors = embedding[:, None].to(self.text.dtype)
        # What says nothing is a vector of zeros, with which the adapter was trained; it comes first.
        vectors = torch.cat([torch.zeros_like(vectors), vectors]) if guided else vectors
        pooled = self.text.new_zeros(self.pooled) if self.pooled else None
        return _told(len(embedding), self.text, self.text, pooled, pooled) | {"ip_adapter_image_embeds": [vectors]}


class KandinskyDecoder(_Pipelines):
    """The decoder of Kandinsky 2.2: UNet, MoVQ and scheduler; the vector goes straight in, the prior is not needed.

    negative [dim]: the vector that says nothing. Kandinsky's own is the embedder's vector of a picture of its mean
    colour; zeros where it is left out.
    """

    guidance = 4.0

    def __init__(self, folder: str | Path = places.KANDINSKY, *, embedder: str = VIT_BIGG,
                 negative: Tensor | None = None, side: int | None = None, device: str = "cpu",
                 dtype: torch.dtype = torch.float32, at_once: int = 8):
        import diffusers

        parts = places.load(folder, {"unet": diffusers.UNet2DConditionModel, "movq": diffusers.VQModel},
                            usual=places.KANDINSKY, device=device, dtype=dtype)
        config, self.movq = parts["unet"].config, parts["movq"]
        if config.encoder_hid_dim_type != "image_proj" or config.addition_embed_type != "image":
            raise WorkbenchError(f"the UNet of {folder} is not Kandinsky 2.2's, which is told by a picture's vector; "
                                 "give its decoder, or for Stable Diffusion use 'ip-adapter' or 'token-adapter'")
        dim, self.dtype = config.encoder_hid_dim, dtype
        self.negative = torch.zeros(dim) if negative is None else torch.as_tensor(negative).flatten().float()
        if len(self.negative) != dim:
            raise WorkbenchError(f"negative= has {len(self.negative)} numbers and the generator takes {dim}")
        fresh, started = diffusers.KandinskyV22Pipeline(**parts), diffusers.KandinskyV22Img2ImgPipeline(**parts)
        super().__init__(embedder, dim, side or config.sample_size * fresh.movq_scale_factor, fresh, started, device,
                         at_once)

    def _condition(self, embedding: Tensor, guided: bool) -> dict:
        negative = self.negative.to(self.device, self.dtype).expand(len(embedding), -1)
        return {"image_embeds": embedding.to(self.dtype), "negative_image_embeds": negative}

    def _draw(self, **options) -> Tensor:
        # One of the two pipelines gives "pt" from -1 to 1 and the other from 0 to 1: latents mean the same in both.
        pipeline = self.started if "image" in options else self.fresh
        latents = pipeline(output_type="latent", height=self.side, width=self.side, **options).images
        return (self.movq.decode(latents, force_not_quantize=True).sample.float() / 2 + 0.5).clamp(0, 1)


class TokenAdapterDecoder(_Pipelines):
    """Stable Diffusion (1, 2 or XL) and a `TokenAdapter` in place of the text encoder.

    adapter: one that is trained, or the folder of one; embedder: whose vectors it takes, as the adapter itself says
    where it does. The tokens that say nothing, for guidance, are the adapter's own.
    """

    def __init__(self, folder: str | Path = places.SD_15, adapter: TokenAdapter | str | Path = "token-adapter", *,
                 embedder: str | None = None, side: int | None = None, device: str = "cpu",
                 dtype: torch.dtype = torch.float32, at_once: int = 8):
        adapter = adapter if isinstance(adapter, TokenAdapter) else TokenAdapter.from_pretrained(adapter)
        embedder = embedder or adapter.embedder
        if not embedder or adapter.embedder not in ("", embedder):
            made_for = f"is for vectors of {adapter.embedder!r}" if embedder else "does not say whose vectors it takes"
            raise WorkbenchError(f"the adapter {made_for}, and embedder= says {embedder or 'nothing'!r}; give the name "
                                 "of the embedder that it was trained with")
        fresh, started = _stable_diffusion(folder, device, dtype)
        width, pooled = text_widths(fresh.unet.config)
        if (adapter.width, adapter.pooled) != (width, pooled):
            said = lambda one, two: f"{one} numbers{f' and pooled text of {two}' if two else ''}"
            raise WorkbenchError(f"the adapter makes tokens of {said(adapter.width, adapter.pooled)} and the UNet of "
                                 f"{folder} attends to {said(width, pooled)}; TokenAdapter.from_unet_config makes one "
                                 "that fits")
        self.adapter = adapter.to(device).eval()
        super().__init__(embedder, adapter.dim, side or _side(fresh), fresh, started, device, at_once)

    def _condition(self, embedding: Tensor, guided: bool) -> dict:
        pooled = self.adapter.pool(embedding) if self.adapter.pooled else None
        return _told(len(embedding), self.adapter(embedding), self.adapter.null, pooled, self.adapter.null_pooled)


def _told(batch: int, text: Tensor, negative: Tensor, pooled: Tensor | None, negative_pooled: Tensor | None) -> dict:
    """What pipelines of Stable Diffusion take in place of captions; what is for all of the batch is repeated."""
    each = lambda value, axes: value if value.ndim == axes else value.expand(batch, *value.shape)
    told = {"prompt_embeds": each(text, 3), "negative_prompt_embeds": each(negative, 3)}
    if pooled is not None:
        told |= {"pooled_prompt_embeds": each(pooled, 2), "negative_pooled_prompt_embeds": each(negative_pooled, 2)}
    return told


def _stable_diffusion(place: str | Path, device: str, dtype: torch.dtype):
    """Pipelines from noise and from a picture, of the same parts.

    What is not wanted is None by name: a pipeline would ask for it otherwise.
    """
    import diffusers

    parts = places.load(place, {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL},
                        usual=places.SD_15, device=device, dtype=dtype) | {"text_encoder": None, "tokenizer": None}
    with places.quiet():
        if text_widths(parts["unet"].config)[1]:
            parts |= dict(text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
            return diffusers.StableDiffusionXLPipeline(**parts), diffusers.StableDiffusionXLImg2ImgPipeline(**parts)
        parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        return diffusers.StableDiffusionPipeline(**parts), diffusers.StableDiffusionImg2ImgPipeline(**parts)


def _side(pipeline) -> int:
    size = pipeline.unet.config.sample_size
    return (size if isinstance(size, int) else size[0]) * pipeline.vae_scale_factor


def _tiny(**settings) -> Decoder:
    from workbench.images.diffusion import TinyDiffusion

    return TinyDiffusion(**settings)


DECODERS = {"tiny": _tiny, "ip-adapter": IPAdapterDecoder, "kandinsky": KandinskyDecoder,
            "token-adapter": TokenAdapterDecoder}


def open_decoder(name: str, **settings) -> Decoder:
    """The generator of that name in `DECODERS`; settings are its own: folder=, adapter=, embedder=, device=, dtype=."""
    if name not in DECODERS:
        raise UnknownName("decoder", name, DECODERS)
    return DECODERS[name](**settings)


def refuse(generator, embedding: Tensor, low_level: Tensor | None, strength: float, steps: int, guidance: float,
           seeds: Sequence[int]) -> None:
    """WorkbenchError for what a generator, with its `embedder` and `dim`, cannot make pictures of."""
    if embedding.ndim != 2 or embedding.shape[1] != generator.dim:
        raise WorkbenchError(f"the generator takes vectors of {generator.embedder!r} [B, {generator.dim}], not "
                             f"{list(embedding.shape)}; align spikes to that embedder, or choose another generator")
    if len(seeds) != len(embedding):
        raise WorkbenchError(f"{len(seeds)} seeds for {len(embedding)} pictures; give one a picture")
    if low_level is not None and (low_level.ndim != 4 or low_level.shape[:2] != (len(embedding), 3)):
        raise WorkbenchError(f"low_level= of shape {list(low_level.shape)} for {len(embedding)} pictures; give "
                             f"[{len(embedding)}, 3, H, W] from 0 to 1")
    if not (0 <= strength <= 1 and steps >= 1 and guidance >= 1):
        raise WorkbenchError(f"strength={strength}, steps={steps}, guidance={guidance} cannot be; give a strength from "
                             "0 to 1, one step or more, and a guidance of 1, which is none, or more")
