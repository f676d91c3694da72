"""ImageReward v1.0: how well people would like a picture for a text (Xu et al. 2023)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.networks import (
    filled,
    need_libraries,
    number,
    prepared,
    renamed,
    run,
    to_numpy,
)
from ie_jax.weights.formats import read_json, read_tensors

MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
HEADS = 16
"""Of the published vision network; no file tells."""
LAYERS = (0, 2, 4, 6, 7)
"""Linear layers of the last network; between them are dropouts and nothing else."""
VISION, TEXT, LAST = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
NAMES = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", r"encoder.layers.\1.mlp.\2"),
    (r"norm\.(.*)", r"post_layernorm.\1"),
)
"""Of the vision network in the published file, and in transformers."""


class ImageReward:
    """The reward of BLIP's features."""

    def __init__(self, folder: Path, vocabulary: Path, heads: int = HEADS) -> None:
        """Read `ImageReward.pt` and `med_config.json` from one folder, BERT's `vocab.txt` from
        another.

        Args:
            heads: of the vision network.

        Raises:
            UserError: they do not hold them, or torch is not installed.
        """
        need_libraries("ImageReward")
        import transformers

        file = folder / "ImageReward.pt"
        tensors = read_tensors(file)
        config = read_json(folder / "med_config.json")
        try:
            vision, width = vision_config(tensors, heads)
            text = text_config(tensors, config, folder / "med_config.json", width)
        except KeyError as error:
            raise UserError(f"{file} does not hold ImageReward: {error} is missing") from error
        self.vision = filled(
            transformers.BlipVisionModel(vision), renamed(tensors, VISION, NAMES), file
        )
        self.text = filled(
            transformers.BlipTextModel(text, add_pooling_layer=False),
            renamed(tensors, TEXT, ((r"embeddings\.position_ids", ""),)),
            file,
        )
        self.last = [
            tuple(tensors[f"{LAST}{n}.{part}"].astype(np.float32) for part in ("weight", "bias"))
            for n in LAYERS
        ]
        try:
            self.tokenizer = transformers.BertTokenizer.from_pretrained(
                str(vocabulary), local_files_only=True
            )
        except Exception as error:  # the library raises a different type per broken file
            raise UserError(f"{vocabulary} holds no readable BERT tokenizer: {error}") from error

    def tokens(self, text: str) -> Mapping[str, np.ndarray]:
        """`input_ids` and `attention_mask`, (1, 35), padded or cut."""
        found: Mapping[str, np.ndarray] = self.tokenizer(
            text, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np"
        )
        return found

    def seen(self, pixels: np.ndarray) -> np.ndarray:
        """The features of a picture's parts, float32 (1, 1 + patches, width).

        Args:
            pixels: see `prepared`.
        """
        return to_numpy(run(self.vision, pixel_values=pixels[None]).last_hidden_state)

    def read(self, seen: np.ndarray, tokens: Mapping[str, np.ndarray]) -> np.ndarray:
        """The class token of a text, read beside a picture's features: float32 (1, width)."""

        def read(**inputs: Any) -> Any:
            # The config's decoder makes the layers that look at pictures; the text is read both
            # ways nevertheless.
            return self.text(**inputs, is_decoder=False).last_hidden_state[:, 0]

        return to_numpy(
            run(
                read,
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                encoder_hidden_states=seen,
                encoder_attention_mask=np.ones(seen.shape[:2], np.int64),
            )
        )

    def judged(self, read: np.ndarray) -> float:
        """The reward of what `read` gave."""
        x = read
        for weight, bias in self.last:
            x = x @ weight.T + bias
        return float((x.item() - MEAN) / STD)

    def reward(self, picture: np.ndarray, text: str) -> float:
        """Of a picture, uint8 (h, w, 3); about normal with deviation 1, higher is better."""
        return self.judged(self.read(self.seen(prepared(picture, rounded=True)), self.tokens(text)))


def vision_config(tensors: Mapping[str, np.ndarray], heads: int) -> tuple[Any, int]:
    """The vision network as its tensors tell it, and its width."""
    from transformers import BlipVisionConfig

    width, _, patch, _ = tensors[f"{VISION}patch_embed.proj.weight"].shape
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(tensors[f"{VISION}blocks.0.mlp.fc1.bias"]),
        num_hidden_layers=depth(tensors, rf"{re.escape(VISION)}blocks\.(\d+)\..*"),
        num_attention_heads=heads,
        image_size=round((tensors[f"{VISION}pos_embed"].shape[1] - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    return config, width


def text_config(
    tensors: Mapping[str, np.ndarray], config: dict[str, Any], path: Path, width: int
) -> Any:
    """The text network as its tensors and its config tell it; the config's width of what it looks
    at is wrong in the published file, where the vision network's counts."""
    from transformers import BlipTextConfig

    words = tensors[f"{TEXT}embeddings.word_embeddings.weight"]
    return BlipTextConfig(
        vocab_size=len(words),
        hidden_size=words.shape[1],
        encoder_hidden_size=width,
        intermediate_size=number(path, config, "intermediate_size"),
        num_hidden_layers=number(path, config, "num_hidden_layers"),
        num_attention_heads=number(path, config, "num_attention_heads"),
        max_position_embeddings=number(path, config, "max_position_embeddings"),
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,
        bos_token_id=None,
        sep_token_id=None,
    )


def depth(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many layers there are, whose numbers the pattern has."""
    found = (re.fullmatch(pattern, name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
