"""How upstream tensors are named here: one table of patterns per network.

A rule is (pattern of the whole upstream name, path here, transform). `{}` in a path takes the
pattern's groups; `.N` in a group becomes `_N`, other dots become `/`. Each upstream tensor must
match exactly one rule. A path of None drops the tensor.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ie_jax.models.lpips import DEPTHS

Transform = Callable[[np.ndarray], np.ndarray]


def same(x: np.ndarray) -> np.ndarray:
    """As it is."""
    return x


def transposed(x: np.ndarray) -> np.ndarray:
    """(out, in) to (in, out)."""
    return x.T


def oihw_to_hwio(x: np.ndarray) -> np.ndarray:
    """A convolution's kernel as JAX lays it out; a matrix, as SDXL's projections are, likewise."""
    return x.T if x.ndim == 2 else x.transpose(2, 3, 1, 0)


def pointwise_to_dense(x: np.ndarray) -> np.ndarray:
    """(out, in), or (out, in, 1, 1) as the oldest autoencoder files have it, to (in, out)."""
    return x.reshape(x.shape[:2]).T


def flat(x: np.ndarray) -> np.ndarray:
    """One number per channel, however many sides of length one it has."""
    return x.reshape(-1)


class Rule(NamedTuple):
    """One line of a table."""

    pattern: re.Pattern[str]
    path: str | None
    transform: Transform = same


def rule(pattern: str, path: str | None, transform: Transform = same) -> Rule:
    """A `Rule` from the pattern's text."""
    return Rule(re.compile(pattern), path, transform)


def local(group: str) -> str:
    """An upstream module name as a path here: `a.0.b` is `a_0/b`."""
    return re.sub(r"\.(\d+)", r"_\1", group).replace(".", "/")


CONV = (
    r"(?:.*\.)?(?:conv_in|conv_out|conv1|conv2|conv_shortcut|proj_in|proj_out|quant_conv"
    r"|post_quant_conv|(?:down|up)samplers\.\d+\.conv)"
)
DENSE = (
    r"(?:.*\.)?(?:to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2|time_emb_proj|linear_1|linear_2"
    r"|cond_proj)"
)
NORM = r"(?:.*\.)?(?:norm|norm1|norm2|norm3|group_norm|conv_norm_out)"
# The names that SD1.5's published autoencoder still has for its attention.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out_0"}

UNET: tuple[Rule, ...] = (
    rule(rf"({CONV})\.weight", "{}/kernel", oihw_to_hwio),
    rule(rf"({DENSE})\.weight", "{}/kernel", transposed),
    rule(rf"({NORM})\.weight", "{}/scale"),
    rule(rf"({CONV}|{DENSE}|{NORM})\.bias", "{}/bias"),
)

ATTENTION = r"((?:en|de)coder\.mid_block\.attentions\.0)"
VAE: tuple[Rule, ...] = (
    rule(rf"({CONV})\.weight", "{}/kernel", oihw_to_hwio),
    rule(rf"{ATTENTION}\.(to_q|to_k|to_v|to_out\.0)\.weight", "{}/{}/kernel", pointwise_to_dense),
    rule(rf"{ATTENTION}\.(to_q|to_k|to_v|to_out\.0)\.bias", "{}/{}/bias"),
    *(
        rule(rf"{ATTENTION}\.{old}\.weight", f"{{}}/{new}/kernel", pointwise_to_dense)
        for old, new in OLD_ATTENTION.items()
    ),
    *(rule(rf"{ATTENTION}\.{old}\.bias", f"{{}}/{new}/bias") for old, new in OLD_ATTENTION.items()),
    rule(rf"({NORM})\.weight", "{}/scale"),
    rule(rf"({CONV}|{NORM})\.bias", "{}/bias"),
)

# transformers >= 5 writes the names without `text_model.`
MODEL = r"(?:text_model\.)?"
TEXT_ENCODER: tuple[Rule, ...] = (
    rule(rf"{MODEL}embeddings\.(token_embedding|position_embedding)\.weight", "{}"),
    rule(rf"{MODEL}embeddings\.position_ids", None),
    rule(
        rf"{MODEL}encoder\.(layers\.\d+\.(?:self_attn|mlp)\.\w+)\.weight", "{}/kernel", transposed
    ),
    rule(rf"{MODEL}encoder\.(layers\.\d+\.layer_norm[12])\.weight", "{}/scale"),
    rule(
        rf"{MODEL}encoder\.(layers\.\d+\.(?:(?:self_attn|mlp)\.\w+|layer_norm[12]))\.bias",
        "{}/bias",
    ),
    rule(rf"{MODEL}(final_layer_norm)\.weight", "{}/scale"),
    rule(rf"{MODEL}(final_layer_norm)\.bias", "{}/bias"),
    rule(r"(text_projection)\.weight", "{}/kernel", transposed),
)

SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}


def spellings(path: str) -> Iterator[str]:
    """What upstream may call the leaf at a path here, with current names only. A table tells which
    of these it is: the last `_N` may be a module's own (`linear_1`) and not an index, and the text
    encoder's folders are left out here."""
    module, _, leaf = path.rpartition("/")
    if leaf not in SUFFIXES:  # an embedding, which has no module of its own
        module, leaf = path, "kernel"
    parents = re.sub(r"_(\d+)(?=/)", r".\1", module).replace("/", ".")
    for folder in ("", "encoder.", "embeddings."):
        for name in (parents, re.sub(r"_(\d+)$", r".\1", parents)):
            yield f"{folder}{name}{SUFFIXES[leaf]}"


# The published LoRAs have both prefixes, PEFT's own files lack the first, diffusers' the second.
PEFT = r"(?:unet\.)?(?:base_model\.model\.)?"
LORA: tuple[Rule, ...] = (
    rule(rf"{PEFT}({CONV})\.lora_A\.weight", "{}/down", oihw_to_hwio),
    rule(rf"{PEFT}({CONV})\.lora_B\.weight", "{}/up", oihw_to_hwio),
    rule(rf"{PEFT}({DENSE})\.lora_A\.weight", "{}/down", transposed),
    rule(rf"{PEFT}({DENSE})\.lora_B\.weight", "{}/up", transposed),
)


def peft(module: str, factor: str) -> str:
    """What a published LoRA calls a module's `down` or `up`: the inverse of `LORA`.

    `module` is a path here; of those with LoRA, none has a name of its own that ends in `_N`.
    """
    upstream = re.sub(r"_(\d+)(?=/|$)", r".\1", module).replace("/", ".")
    return f"unet.base_model.model.{upstream}.lora_{'A' if factor == 'down' else 'B'}.weight"


KOHYA = "lora_unet_"


def kohya(module: str, part: str) -> str:
    """What kohya's tools call a module's `down`, `up` or `alpha`: all separators are `_`."""
    name = KOHYA + module.replace("/", "_")
    return f"{name}.alpha" if part == "alpha" else f"{name}.lora_{part}.weight"


def torchvision_convolutions() -> Iterator[tuple[int, str]]:
    """Where VGG16's convolutions stand among torchvision's `features`, and their names here: each
    is followed by its ReLU, each block by a pooling."""
    index = 0
    for block, depth in enumerate(DEPTHS, start=1):
        for layer in range(1, depth + 1):
            yield index, f"conv{block}_{layer}"
            index += 2
        index += 1


HEADS: tuple[Rule, ...] = (
    rule(r"classifier\.\d+\.(?:weight|bias)", None),
    rule(r"(lin\d)\.model\.1\.weight", "{}/weight", flat),
    # our own file
    rule(r"(lin\d+)/weight", "{}/weight"),
)
"""The heads of the lpips package, and what a backbone's file holds that is not needed."""
LPIPS: tuple[Rule, ...] = (
    # torchvision's VGG16
    *(
        rule(rf"features\.{index}\.weight", f"{name}/kernel", oihw_to_hwio)
        for index, name in torchvision_convolutions()
    ),
    *(
        rule(rf"features\.{index}\.bias", f"{name}/bias")
        for index, name in torchvision_convolutions()
    ),
    # the HDF5 files of lpips-j, where kernels are laid out as here
    rule(r"(conv\d+_\d+)/weight", "{}/kernel"),
    rule(r"fc\d/(?:weight|bias)", None),
    rule(r"(lin\d)", "{}/weight", flat),
    # our own file; its biases are named as lpips-j's
    rule(r"(conv\d+_\d+)/(kernel|bias)", "{}/{}"),
    *HEADS,
)


def torchvision_layers(layers: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules for torchvision's layers, by their names there, and for our own file."""
    upstream = ((re.escape(f"features.{name}"), here) for name, here in layers.items())
    return (
        *(
            found
            for name, here in upstream
            for found in (
                rule(rf"{name}\.weight", f"{here}/kernel", oihw_to_hwio),
                rule(rf"{name}\.bias", f"{here}/bias"),
            )
        ),
        *(rule(rf"{here}/(kernel|bias)", f"{here}/{{}}") for here in layers.values()),
        *HEADS,
    )


LPIPS_ALEX = torchvision_layers(
    {str(index): f"conv{number}" for number, index in enumerate((0, 3, 6, 8, 10), 1)}
)
LPIPS_SQUEEZE = torchvision_layers(
    {"0": "conv1"}
    | {
        f"{index}.{part}": f"fire{number}/{part}"
        for number, index in enumerate((3, 4, 6, 7, 9, 10, 11, 12), 2)
        for part in ("squeeze", "expand1x1", "expand3x3")
    }
)
