"""The networks that are measured, as upstream configs: SD1.5, SDXL, a small one of each kind."""

from typing import Any, NamedTuple

GUIDANCE_FEATURES = 512
"""Of the embedding of w."""

UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "center_input_sample": False,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "torch_dtype": "float32",
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


SDXL_UNET = UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
PROJECTED = {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"}


class Size(NamedTuple):
    """The upstream configs of the networks."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    text_2: dict[str, Any] | None = None
    """SDXL's second text encoder."""

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """By the names of their folders."""
        second = {"text_encoder_2": self.text_2} if self.text_2 else {}
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text} | second

    @property
    def number(self) -> str:
        """The type of numbers in all files but LoRAs: SDXL's are mostly of the float16 variant."""
        return "float16" if self.text_2 else "float32"


SIZES = {
    "sd15": Size(
        unet=UNET
        | {
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 768,
            "norm_num_groups": 32,
            "sample_size": 64,
        },
        vae=VAE
        | {
            "block_out_channels": [128, 256, 512, 512],
            "norm_num_groups": 32,
            "sample_size": 512,
        },
        text=TEXT
        | {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
            "vocab_size": 49408,
        },
    ),
    "tiny": Size(
        unet=UNET
        | {
            "block_out_channels": [16, 32, 32, 32],
            "cross_attention_dim": 32,
            "norm_num_groups": 4,
            "sample_size": 16,
        },
        vae=VAE
        | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 8, "sample_size": 128},
        text=TEXT
        | {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "projection_dim": 32,
            "vocab_size": 514,
        },
    ),
}
SIZES |= {
    "sdxl": Size(
        unet=SDXL_UNET
        | {
            "block_out_channels": [320, 640, 1280],
            "attention_head_dim": [5, 10, 20],
            "transformer_layers_per_block": [1, 2, 10],
            "cross_attention_dim": 2048,
            "norm_num_groups": 32,
            "sample_size": 128,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=SIZES["sd15"].vae | {"sample_size": 1024, "scaling_factor": 0.13025},
        text=SIZES["sd15"].text,
        text_2=TEXT
        | PROJECTED
        | {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "projection_dim": 1280,
            "vocab_size": 49408,
        },
    ),
    "sdxl-tiny": Size(
        unet=SDXL_UNET
        | {
            "block_out_channels": [16, 32, 32],
            "attention_head_dim": [2, 4, 4],
            "transformer_layers_per_block": [1, 2, 2],
            "cross_attention_dim": 64,
            "norm_num_groups": 4,
            "sample_size": 16,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
        vae=SIZES["tiny"].vae | {"scaling_factor": 0.13025},
        text=SIZES["tiny"].text,
        text_2=SIZES["tiny"].text | PROJECTED | {"projection_dim": 16},
    ),
}
