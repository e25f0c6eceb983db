"""Folders of image models with tiny random weights, in the layout of `diffusers` and `transformers`, for tests.

Widths are those that the tests ask for, the true ones among them; channels are as few as the layers allow. Pictures are
16 pixels a side. Random networks draw nothing, but what goes in must change what comes out.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SIDE = 16
# As the schedulers of Stable Diffusion 1.5, 2 and XL say it.
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                steps_offset=1)
SMALL = dict(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
BLOCKS = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
              up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))


def unet(width: int, pooled: int | None = None, seed: int = 0):
    """A UNet that is told by text states of this width; with pooled, as SDXL's."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    more = dict(addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
                projection_class_embeddings_input_dim=6 * 8 + pooled) if pooled else {}
    return UNet2DConditionModel(**SMALL, **BLOCKS, cross_attention_dim=width, attention_head_dim=4, **more).eval()


def vae(seed: int = 0, **settings):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, sample_size=SIDE, latent_channels=4,
                          down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                          **settings)
    model.quant_conv.weight.data[4:] = 0                                # as sure of its latents as trained ones are
    model.quant_conv.bias.data[4:] = -12
    return model.eval()


def stable_diffusion(folder: Path, width: int = 32, prediction_type: str = "epsilon") -> Path:
    """Like Stable Diffusion 1.5 (width 768, epsilon) and 2 (width 1024, epsilon or v_prediction)."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True, prediction_type=prediction_type)
    StableDiffusionPipeline(vae=vae(), unet=unet(width), scheduler=scheduler, text_encoder=None, tokenizer=None,
                            safety_checker=None, feature_extractor=None, requires_safety_checker=False
                            ).save_pretrained(folder)
    return folder


def sdxl(folder: Path, width: int = 64, pooled: int = 16) -> Path:
    """Like SDXL (width 2048, pooled text of 1280)."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    StableDiffusionXLPipeline(vae=vae(scaling_factor=0.13025), unet=unet(width, pooled), text_encoder=None,
                              text_encoder_2=None, tokenizer=None, tokenizer_2=None, add_watermarker=False,
                              scheduler=EulerDiscreteScheduler(**SCHEDULE)).save_pretrained(folder)
    return folder


def ip_adapter(file: Path, width: int = 32, dim: int = 24, pooled: int | None = None, seed: int = 0) -> Path:
    """An IP-Adapter for `unet(width, pooled)` that takes vectors of `dim` numbers."""
    model = unet(width, pooled)
    torch.manual_seed(seed)
    found = {"image_proj.proj.weight": torch.randn(4 * width, dim) / dim ** 0.5,
             "image_proj.proj.bias": torch.randn(4 * width),
             "image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    cross = [name for name in model.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        hidden = model.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
        for part in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(hidden, width) / width ** 0.5
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(found, file)
    return file


def kandinsky(folder: Path, dim: int = 24) -> Path:
    """Like the decoder of Kandinsky 2.2 (dim 1280)."""
    from diffusers import DDPMScheduler, KandinskyV22Pipeline, UNet2DConditionModel, VQModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        **SMALL, in_channels=4, out_channels=8, addition_embed_type="image", encoder_hid_dim=dim,
        encoder_hid_dim_type="image_proj", cross_attention_dim=16, attention_head_dim=4,
        resnet_time_scale_shift="scale_shift", mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"))
    model.conv_out.weight.data.mul_(0.2)                                # at random it says more than noise is
    movq = VQModel(block_out_channels=(32, 32), norm_num_groups=4, latent_channels=4, vq_embed_dim=4,
                   num_vq_embeddings=8, norm_type="spatial",
                   down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
                   up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"))
    scheduler = DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                              variance_type="learned_range")
    KandinskyV22Pipeline(unet=model.eval(), movq=movq.eval(), scheduler=scheduler).save_pretrained(folder)
    return folder


VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE,
              patch_size=8)


def clip_vision(folder: Path, dim: int = 24) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=dim)).save_pretrained(folder)
    return folder


def clip(folder: Path, dim: int = 24, says_twice: bool = True) -> Path:
    """Both towers, as the hub's own folders of CLIP hold them.

    says_twice: the config of the vision tower has the width of the vectors too, as OpenAI's do and LAION's do not.
    """
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
                max_position_embeddings=8, bos_token_id=1, eos_token_id=2)
    vision = VISION | ({"projection_dim": dim} if says_twice else {})
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)).save_pretrained(folder)
    return folder


def dinov2(folder: Path, dim: int = 24) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=dim, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8)
                ).save_pretrained(folder)
    return folder


def in_cache(cache: Path, repository: str, folder: Path) -> None:
    """The folder as the hub's cache would hold it."""
    here = cache / f"models--{repository.replace('/', '--')}"
    (here / "refs").mkdir(parents=True)
    (here / "refs" / "main").write_text("0" * 40)
    (here / "snapshots").mkdir()
    (here / "snapshots" / ("0" * 40)).symlink_to(folder, target_is_directory=True)


def change(file: Path, **values) -> None:
    """Other values in a folder's JSON."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
