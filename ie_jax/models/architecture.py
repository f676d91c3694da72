"""The architecture of each network, read strictly from the upstream `config.json` of its folder.

Keys that this code does not implement may only hold the value that SD1.x and SDXL have there;
anything else is an error that names the key. Nothing is ignored silently but the keys in NOTES,
which describe the file and not the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ie_jax.errors import UserError

NOTES = {
    "architectures",
    "bos_token_id",
    "dtype",
    "force_upcast",
    "initializer_factor",
    "initializer_range",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
}


@dataclass(frozen=True)
class UNetConfig:
    """`UNet2DConditionModel` of SD1.x or SDXL shape, any width, depth and number of blocks."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    down_attention: tuple[bool, ...]
    """Which down blocks carry transformers; the up blocks mirror it."""
    layers_per_block: int
    heads: tuple[int, ...]
    """Attention heads per down block (the upstream key `attention_head_dim` is misnamed)."""
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_cond_proj_dim: int | None = None
    """Features of the guidance embedding; None: the network takes no guidance scale."""
    sample_size: int = 64
    transformer_layers: tuple[int, ...] = ()
    """Transformer blocks after each ResNet of a level; those of the last level also in the middle
    block."""
    linear_projection: bool = False
    """Whether the layers around transformers are dense and not pointwise convolutions."""
    size_features: int = 0
    """Features of each of the six numbers that SDXL is told of an image's size and crop; 0: the
    network is told nothing beside the text."""
    pooled_features: int = 0
    """Width of the embedding of the whole text, which it is told with them."""

    def __post_init__(self) -> None:
        if not self.transformer_layers:
            object.__setattr__(self, "transformer_layers", (1,) * len(self.block_out_channels))

    @property
    def time_embedding_dim(self) -> int:
        return 4 * self.block_out_channels[0]


@dataclass(frozen=True)
class VAEConfig:
    """`AutoencoderKL` of SD1.x or SDXL shape."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    scaling_factor: float = 0.18215
    sample_size: int = 512
    patch_size: int = 1
    """Squares of so many pixels a side are the channels of one (space to depth) before the first
    and after the last convolution; our own key. `in_channels` counts them: 3 patch_size²."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(h, w, c) of the latent of an image of so many pixels."""
        return height // self.factor, width // self.factor, self.latent_channels

    @property
    def factor(self) -> int:
        """Pixels per latent, in each direction."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """`CLIPTextModel`, or `CLIPTextModelWithProjection` where it has a projection."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None
    """Width of the embedding of the whole text; None: there is none."""
    eos_token_id: int = 49407
    """The token at the end of a text, whose state becomes that embedding. As upstream has it, 2
    stands for the largest token that a text has."""


class Reader:
    """Takes keys out of an upstream config one by one and reports all that is wrong at once."""

    def __init__(self, where: str, config: Mapping[str, Any]) -> None:
        self.where = where
        self.left = {k: v for k, v in config.items() if not k.startswith("_") and k not in NOTES}
        self.problems: list[str] = []

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, which must be of `kind`; without a default it must be there."""
        value = self.left.pop(key, default)
        if value is None:
            self.problems.append(f"{key} is missing")
            return kind()
        wanted: Any = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (kind is not bool and isinstance(value, bool)):
            self.problems.append(f"{key} = {value!r} is not of type {kind.__name__}")
            return kind()
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        value: int = self.take(key, int, default)
        if value < 1:
            self.problems.append(f"{key} = {value!r} is not positive")
            return 1
        return value

    def widths(self, key: str) -> tuple[int, ...]:
        value = self.take(key, list)
        if not value or not all(type(n) is int and n > 0 for n in value):
            self.problems.append(f"{key} = {value!r} is not a list of positive integers")
            return (1,)
        return tuple(value)

    def by_level(self, key: str, default: int, levels: int) -> tuple[int, ...]:
        """One positive integer for each level, or one for all."""
        given = self.left.pop(key, default)
        value = given if isinstance(given, list) else [given] * levels
        if len(value) != levels or not all(type(n) is int and n > 0 for n in value):
            self.problems.append(f"{key} = {given!r} is not a positive integer for each level")
            return (default,) * levels
        return tuple(value)

    def names(self, key: str) -> list[str]:
        value: list[Any] = self.take(key, list)
        if not all(isinstance(name, str) for name in value):
            self.problems.append(f"{key} = {value!r} is not a list of names")
            return []
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """`key` may be absent or hold one of `allowed`."""
        value = self.left.pop(key, allowed[0])
        if value not in allowed:
            self.problems.append(f"{key} = {value!r} is not supported (only {allowed[0]!r})")

    def require(self, true: bool, problem: str) -> None:
        if not true:
            self.problems.append(problem)

    def finish(self) -> None:
        """Raise UserError naming every unsupported key and value."""
        self.problems += [f"unknown key {k} = {v!r}" for k, v in self.left.items()]
        if self.problems:
            raise UserError(
                f"{self.where}: {'; '.join(self.problems)}. Only networks of SD1.x and SDXL are "
                "supported."
            )


UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type_num_heads": (64,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upcast_attention": (False, None),
}
DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


SIZES = 6
"""Numbers that SDXL's UNet is told of an image: original size, crop, wanted size."""


def added_features(read: Reader) -> tuple[int, int]:
    """Features of each number that the network is told of an image's size, and of the pooled text;
    0 and 0 for a network that is told of neither."""
    keys = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
    if read.left.get("addition_embed_type") != "text_time":
        for key in ("addition_embed_type", *keys):
            read.only(key, None)
        return 0, 0
    del read.left["addition_embed_type"]
    sizes, both = (read.left.pop(key, None) for key in keys)
    sound = type(sizes) is int and type(both) is int and sizes > 0 and both > SIZES * sizes
    read.require(
        sound,
        f"projection_class_embeddings_input_dim = {both!r} is not above {SIZES} "
        f"addition_time_embed_dim = {sizes!r}",
    )
    return (sizes, both - SIZES * sizes) if sound else (0, 0)


def heads_by_level(read: Reader, widths: Sequence[int]) -> tuple[int, ...]:
    """Upstream reads the heads from num_attention_heads, or where that is null from the misnamed
    attention_head_dim."""
    misnamed = read.left.pop("attention_head_dim", 8)
    given = read.left.pop("num_attention_heads", None) or misnamed
    heads = given if isinstance(given, list) else [given] * len(widths)
    sound = (
        len(heads) == len(widths)
        and all(type(h) is int and h > 0 for h in heads)
        and not any(w % h for h, w in zip(heads, widths, strict=True))
    )
    read.require(
        sound, f"attention heads {given!r} do not divide block_out_channels {list(widths)}"
    )
    return tuple(heads) if sound else ()


def unet_config(config: Mapping[str, Any], where: str = "unet/config.json") -> UNetConfig:
    """The architecture that an upstream UNet config describes.

    Raises:
        UserError: a missing key, or a key or value that is not supported, all in one line.
    """
    read = Reader(where, config)
    widths = read.widths("block_out_channels")
    groups = read.positive("norm_num_groups", 32)
    down, up = read.names("down_block_types"), read.names("up_block_types")
    for key, kinds, known in (
        ("down_block_types", down, DOWN_BLOCKS),
        ("up_block_types", up, UP_BLOCKS),
    ):
        unknown = [k for k in kinds if k not in known]
        read.require(not unknown, f"{key} holds {unknown}, only {list(known)} are supported")
        read.require(
            len(kinds) == len(widths), f"{key} and block_out_channels differ in their length"
        )
    down_attention = tuple(DOWN_BLOCKS.get(k, False) for k in down)
    up_attention = tuple(UP_BLOCKS.get(k, False) for k in up)
    read.require(
        up_attention == down_attention[::-1], "up_block_types do not mirror down_block_types"
    )
    heads = heads_by_level(read, widths)
    read.require(
        all(w % groups == 0 for w in widths),
        f"norm_num_groups {groups} does not divide block_out_channels {list(widths)}",
    )
    for key, allowed in UNET_FIXED.items():
        read.only(key, *allowed)
    size_features, pooled_features = added_features(read)
    result = UNetConfig(
        in_channels=read.positive("in_channels", 4),
        out_channels=read.positive("out_channels", 4),
        block_out_channels=widths,
        down_attention=down_attention,
        layers_per_block=read.positive("layers_per_block", 2),
        heads=heads,
        cross_attention_dim=read.positive("cross_attention_dim"),
        norm_num_groups=groups,
        norm_eps=float(read.take("norm_eps", float, 1e-5)),
        flip_sin_to_cos=read.take("flip_sin_to_cos", bool, True),
        freq_shift=float(read.take("freq_shift", float, 0)),
        time_cond_proj_dim=read.left.pop("time_cond_proj_dim", None),
        sample_size=read.positive("sample_size", 64),
        transformer_layers=read.by_level("transformer_layers_per_block", 1, len(widths)),
        linear_projection=read.take("use_linear_projection", bool, False),
        size_features=size_features,
        pooled_features=pooled_features,
    )
    read.require(
        result.time_cond_proj_dim is None or type(result.time_cond_proj_dim) is int,
        f"time_cond_proj_dim = {result.time_cond_proj_dim!r} is not an integer",
    )
    read.finish()
    return result


def vae_config(config: Mapping[str, Any], where: str = "vae/config.json") -> VAEConfig:
    """The architecture that an upstream autoencoder config describes.

    Raises:
        UserError: as `unet_config`.
    """
    read = Reader(where, config)
    widths = read.widths("block_out_channels")
    groups = read.positive("norm_num_groups", 32)
    for key, block in (
        ("down_block_types", "DownEncoderBlock2D"),
        ("up_block_types", "UpDecoderBlock2D"),
    ):
        read.require(
            read.left.pop(key, None) == [block] * len(widths),
            f"{key} is not {block!r} for each of block_out_channels",
        )
    read.require(
        all(w % groups == 0 for w in widths),
        f"norm_num_groups {groups} does not divide block_out_channels {list(widths)}",
    )
    for key, allowed in {
        "act_fn": ("silu",),
        "latents_mean": (None,),
        "latents_std": (None,),
        "mid_block_add_attention": (True,),
        "shift_factor": (None,),
        "use_post_quant_conv": (True,),
        "use_quant_conv": (True,),
    }.items():
        read.only(key, *allowed)
    result = VAEConfig(
        in_channels=read.positive("in_channels", 3),
        out_channels=read.positive("out_channels", 3),
        latent_channels=read.positive("latent_channels", 4),
        block_out_channels=widths,
        layers_per_block=read.positive("layers_per_block", 2),
        norm_num_groups=groups,
        scaling_factor=float(read.take("scaling_factor", float, 0.18215)),
        sample_size=read.positive("sample_size", 512),
        patch_size=read.positive("patch_size", 1),
    )
    if result.patch_size > 1:
        read.require(
            result.in_channels == result.out_channels == 3 * result.patch_size**2,
            f"in_channels and out_channels are not 3 patch_size², {3 * result.patch_size**2}",
        )
    read.finish()
    return result


def text_config(config: Mapping[str, Any], where: str = "text_encoder/config.json") -> TextConfig:
    """The architecture that an upstream CLIP text config describes.

    Raises:
        UserError: as `unet_config`.
    """
    read = Reader(where, config)
    projected = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
    projection = read.positive("projection_dim", 512) if projected else None
    read.left.pop("projection_dim", None)
    read.only("attention_dropout", 0.0)
    read.only("dropout", 0.0)
    act = read.take("hidden_act", str, "quick_gelu")
    read.require(act in ("quick_gelu", "gelu"), f"hidden_act = {act!r} is not supported")
    result = TextConfig(
        vocab_size=read.positive("vocab_size"),
        hidden_size=read.positive("hidden_size"),
        intermediate_size=read.positive("intermediate_size"),
        num_hidden_layers=read.positive("num_hidden_layers"),
        num_attention_heads=read.positive("num_attention_heads"),
        max_position_embeddings=read.positive("max_position_embeddings", 77),
        hidden_act=act,
        layer_norm_eps=float(read.take("layer_norm_eps", float, 1e-5)),
        projection_dim=projection,
        eos_token_id=read.take("eos_token_id", int, 49407),
    )
    read.require(
        result.hidden_size % result.num_attention_heads == 0,
        f"num_attention_heads {result.num_attention_heads} does not divide hidden_size",
    )
    read.finish()
    return result
