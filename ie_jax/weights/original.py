"""Single-file checkpoints in Stable Diffusion's own names: all networks in one file.

Names become those of diffusers, which the tables of `names` read. In the original, blocks have one
number for all levels, `input_blocks.4.1` for `down_blocks.1.attentions.0`.
"""

import re
from collections.abc import Iterable

import numpy as np

from ie_jax.errors import UserError

Tensors = dict[str, np.ndarray]

UNET = "model.diffusion_model."
PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": (UNET,),
    "denoiser": (UNET,),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
"""Of each part in SD1.x and in SDXL."""
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE = (
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
)


OPEN_CLIP = (
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"(token_embedding\.weight)", r"text_model.embeddings.\1"),
    (r"ln_final\.(.*)", r"text_model.final_layer_norm.\1"),
    (r"transformer\.resblocks\.(\d+\.)ln_([12]\..*)", r"text_model.encoder.layers.\1layer_norm\2"),
    (r"transformer\.resblocks\.(\d+\.)mlp\.c_fc(\..*)", r"text_model.encoder.layers.\1mlp.fc1\2"),
    (r"transformer\.resblocks\.(\d+\.)mlp\.c_proj(\..*)", r"text_model.encoder.layers.\1mlp.fc2\2"),
    (
        r"transformer\.resblocks\.(\d+\.)attn\.(out_proj\..*)",
        r"text_model.encoder.layers.\1self_attn.\2",
    ),
)
FUSED = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
"""Queries, keys and values of a layer, one above the other."""


def is_checkpoint(names: Iterable[str]) -> bool:
    """Whether these are the names of a single-file checkpoint."""
    return any(name.startswith(UNET) for name in names)


def part_of(tensors: Tensors, part: str, where: str) -> Tensors:
    """The tensors of a part in diffusers' names; all as they are if this is no such checkpoint.

    Raises:
        UserError: it is one, but the part is not in it, or is of another kind.
    """
    prefixes = PREFIXES.get(part, ())
    found = {
        name.removeprefix(prefix): x
        for prefix in prefixes
        for name, x in tensors.items()
        if name.startswith(prefix)
    }
    if not found and not (prefixes and is_checkpoint(tensors)):
        return tensors
    if not found:
        kinds = sorted({".".join(name.split(".")[:2]) for name in tensors})
        raise UserError(
            f"{where}: a single-file checkpoint without {'*, '.join(prefixes)}*, the {part} of "
            f"Stable Diffusion; it has {', '.join(kinds[:6])}"
        )
    if part == "text_encoder":
        return found
    if part == "text_encoder_2":
        return open_clip_names(found)
    return vae_names(found) if part == "vae" else unet_names(found)


def unet_names(tensors: Tensors) -> Tensors:
    """The UNet's. Levels are told by the downsamplers, which stand at the ends of all but the last
    one: so the number of layers is known without a config."""
    numbers = {n: int(n.split(".")[1]) for n in tensors if n.startswith("input_blocks.")}
    ends = [i for name, i in numbers.items() if name.endswith(".op.bias")]
    layers = min(ends) - 1 if ends else max(numbers.values(), default=0)
    return {unet_name(name, layers): x for name, x in tensors.items()}


def unet_name(name: str, layers: int) -> str:
    """What diffusers calls a tensor of the UNet with so many layers in each down block."""
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    if not (match := re.fullmatch(r"(input|middle|output)_blocks?\.(\d+)\.(.*)", name)):
        return name
    side, number, rest = match[1], int(match[2]), match[3]
    if side == "middle":
        kind = "attentions.0" if number == 1 else f"resnets.{number // 2}"
        return f"mid_block.{kind}.{inside(rest)}"
    level, place = divmod(number - (side == "input"), layers + 1)
    slot, _, rest = rest.partition(".")
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    return f"{block}.{'attentions' if slot == '1' else 'resnets'}.{place}.{inside(rest)}"


def inside(rest: str) -> str:
    """A name within a ResNet; those within a transformer are diffusers' own."""
    for ours, theirs in RESNET.items():
        if rest.startswith(f"{ours}."):
            return theirs + rest.removeprefix(ours)
    return rest


def originals(module: str, layers: int) -> list[str]:
    """What the original may call diffusers' module of the UNet: the inverse of `unet_name`."""
    outside = {theirs: ours for ours, theirs in OUTSIDE.items()}
    if module in outside:
        return [outside[module]]
    match = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", module)
    if not match:
        return []
    side, level, kind, place, rest = match.groups()
    resnet = {theirs: ours for ours, theirs in RESNET.items()}
    rest = resnet.get(rest, rest)
    if side == "mid":
        return [f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{rest}"]
    first = int(level) * (layers + 1)
    if kind == "downsamplers":
        return [f"input_blocks.{first + layers + 1}.0.op"]
    if kind == "upsamplers":  # after a transformer, or where the level has none
        return [f"output_blocks.{first + layers}.{slot}.conv" for slot in (2, 1)]
    number, blocks = first + int(place), "output_blocks"
    if side == "down":
        number, blocks = number + 1, "input_blocks"
    return [f"{blocks}.{number}.{'1' if kind == 'attentions' else '0'}.{rest}"]


def open_clip_names(tensors: Tensors) -> Tensors:
    """The second text encoder's, as transformers has them."""
    found: Tensors = {}
    for name, x in tensors.items():
        if match := FUSED.fullmatch(name):
            for part, third in zip("qkv", np.split(x, 3), strict=True):
                place = f"text_model.encoder.layers.{match[1]}.self_attn.{part}_proj"
                found[f"{place}.{match[2]}"] = third
        elif name == "text_projection":  # a matrix that stands on the other side
            found["text_projection.weight"] = x.T
        elif name != "logit_scale":
            for pattern, new in OPEN_CLIP:
                name = re.sub(f"^{pattern}$", new, name)
            found[name] = x
    return found


def vae_names(tensors: Tensors) -> Tensors:
    """The autoencoder's. Its decoder counts blocks from the last one."""
    ups = [int(name.split(".")[2]) for name in tensors if name.startswith("decoder.up.")]
    last = max(ups, default=0)

    def renamed(name: str) -> str:
        name = re.sub(r"(?<=decoder\.up\.)\d+", lambda m: str(last - int(m[0])), name)
        for pattern, new in VAE:
            name = re.sub(pattern, new, name)
        return name

    return {renamed(name): x for name, x in tensors.items()}
