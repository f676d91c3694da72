"""Models that nothing was trained for: tokenizers over bytes and lists of words, and a tiny random
model, in which every part is there and runs in seconds."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ie_jax.errors import UserError
from ie_jax.files import folder_appearing_whole
from ie_jax.models.lora import lora_shapes
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.models.tokenizer import END, START, WORD_END, Tokenizer
from ie_jax.weights.download import home
from ie_jax.weights.facts import NOTHING, Facts
from ie_jax.weights.folder import Pipeline, Weights, architecture

PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
# CLIP's tokenizer stands for unprintable bytes by the characters from 256 up.
HIDDEN = tuple(b for b in range(256) if b not in PRINTABLE)
LETTERS = {b: chr(b) for b in PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(HIDDEN)}

Pair = tuple[str, str]


def spelled(word: str) -> list[str]:
    """A word as the tokens of its bytes."""
    letters = [LETTERS[b] for b in word.encode()]
    return [*letters[:-1], letters[-1] + WORD_END]


def joined(tokens: Sequence[str], pair: Pair) -> list[str]:
    """Tokens with each occurrence of a pair made one, from the left."""
    result: list[str] = []
    for token in tokens:
        if result and (result[-1], token) == pair:
            result[-1] += token
        else:
            result.append(token)
    return result


def byte_pairs(words: Iterable[str]) -> list[Pair]:
    """Byte-pair merges, in order, after which each word is one token: the most frequent pair of
    neighbours first, until there is none. Since the words are merged as the tokenizer will do it,
    no merge for one word can get in the way of another's."""
    texts = [spelled(word) for word in sorted(set(words))]
    merges: list[Pair] = []
    while counts := Counter(pair for tokens in texts for pair in pairwise(tokens)):
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        texts = [joined(tokens, merges[-1]) for tokens in texts]
    return merges


def vocabulary(merges: Iterable[Pair]) -> dict[str, int]:
    """A CLIP vocabulary: each byte inside a word, each at its end, what merges make, start and end
    of the text."""
    letters = LETTERS.values()
    merged = (first + second for first, second in merges)
    tokens = [*letters, *(f"{c}{WORD_END}" for c in letters), *merged, START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def byte_vocabulary() -> dict[str, int]:
    """The vocabulary without merges."""
    return vocabulary(())


def write_byte_tokenizer(folder: Path) -> None:
    """An upstream `tokenizer/` folder over `byte_vocabulary`."""
    write_word_tokenizer(folder, ())


def write_word_tokenizer(folder: Path, words: Sequence[str], model_max_length: int = 77) -> int:
    """Write an upstream `tokenizer/` folder that has each of these words as one token and spells
    all others out of their parts, bytes at the least. It appears whole or not at all.

    Args:
        words: lower case, as CLIP's tokenizer makes all text.
        model_max_length: tokens of a prompt, start and end among them.

    Returns:
        The size of the vocabulary, `vocab_size` of the text encoder.

    Raises:
        UserError: a word cannot be one token, such as one with a space or digits in it.
    """
    if "" in words:
        raise UserError("the list of words holds an empty one")
    merges = byte_pairs(words)
    tokens = vocabulary(merges)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": model_max_length}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    with folder_appearing_whole(folder) as new:
        (new / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
        (new / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
        (new / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (new / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
        if words:
            # The same in one file, which is read without transformers.
            Tokenizer(new).clip.save(str(new / "tokenizer.json"), pretty=False)
            check(new, words, tokens)
    return len(tokens)


def check(folder: Path, words: Sequence[str], tokens: dict[str, int]) -> None:
    """Raise UserError unless the tokenizer makes each word the one token that stands for it."""
    encode = Tokenizer(folder)
    ids = [tokens["".join(spelled(word))] for word in words]
    longest = max(len(spelled(word)) for word in words)
    found = encode(words, longest + 2)[:, 1:3].tolist()
    wrong = [w for w, i, pair in zip(words, ids, found, strict=True) if pair != [i, tokens[END]]]
    if wrong:
        raise UserError(
            f"CLIP's tokenizer cannot have these as one token each, only words: {wrong}"
        )


# --- The random model -----------------------------------------------------------------------------

RANK = 4
UNTRAINED = Facts(data=NOTHING)
RANDOM_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "sample_size": 16,
        "time_cond_proj_dim": 64,
    },
    "vae": {
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
    "text_encoder": {
        "vocab_size": 514,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


def random_pipeline(seed: int = 0) -> Pipeline:
    """The tiny model. Latents 16x16 of 64 px images; rank 4."""
    arch = architecture(RANDOM_CONFIGS, "the random model")
    base = unet_shapes(arch.unet)
    weights = Weights(
        unet=draw(base, seed),
        forward=draw(lora_shapes(base, RANK), seed + 1),
        backward=draw(lora_shapes(base, RANK), seed + 2),
        vae=draw(vae_shapes(arch.vae), seed + 3),
        text_encoder=draw(text_encoder_shapes(arch.text), seed + 4),
    )
    tokenizer = home() / "random" / "tokenizer"
    if not tokenizer.is_dir():
        write_byte_tokenizer(tokenizer)
    return Pipeline(arch, weights, tokenizer, UNTRAINED)
