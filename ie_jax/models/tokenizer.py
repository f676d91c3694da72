"""Prompts to token ids, as the published code makes them."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers.normalizers import BertNormalizer

from ie_jax.errors import UserError
from ie_jax.files import need_file

MOST = 20_000_000
"""Bytes of a tokenizer's file."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
"""Ends a token that ends a word."""


class PromptCut(UserWarning):
    """A prompt is longer than the text encoder takes."""


def is_text(x: object) -> bool:
    """Whether something is a string that UTF-8 can write. A string with half of a surrogate pair is
    not, which a command line in another encoding or broken JSON gives."""
    if not isinstance(x, str):
        return False
    try:
        x.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_clip(folder: Path) -> tuple[tokenizers.Tokenizer, int]:
    """CLIP's tokenizer, and the token that fills short prompts up.

    `tokenizer.json` holds all of it. For `vocab.json` and `merges.txt` transformers knows the rest,
    which takes a second to import.
    """
    whole = folder / "tokenizer.json"
    if not whole.is_file():
        from transformers import CLIPTokenizer

        read = CLIPTokenizer.from_pretrained(str(folder))
        return read.backend_tokenizer, read.pad_token_id
    clip = tokenizers.Tokenizer.from_file(str(whole))
    if getattr(clip.model, "end_of_word_suffix", None) != WORD_END:
        raise ValueError(f"{whole.name} is of another kind")
    clip.no_padding()
    clip.no_truncation()
    config: dict[str, Any] = {}
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        config |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    token = config.get("pad_token") or END
    pad = clip.token_to_id(token["content"] if isinstance(token, dict) else token)
    if pad is None:
        raise ValueError(f"{whole.name} lacks the token {token!r}, which pads")
    return clip, pad


def cut(ids: list[int], length: int) -> list[int]:
    """At most so many tokens: the first, and the end's."""
    return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]


class Tokenizer:
    """CLIP's byte-pair tokenizer, read from an upstream `tokenizer/` folder.

    The recorded tokens come from the slow tokenizer without ftfy, which drops control characters
    and takes each CJK character as a word; today's `CLIPTokenizer` alone does neither.
    """

    clean = BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder holds no readable CLIP tokenizer."""
        try:
            for path in (*folder.glob("*.json"), *folder.glob("*.txt")):
                need_file(path, MOST)
            self.clip, self.pad = read_clip(folder)
        except UserError:
            raise
        except Exception as error:  # the library raises a different type per broken file
            raise UserError(f"{folder} holds no readable CLIP tokenizer: {error}") from error

    def __call__(self, prompts: Sequence[str], length: int = 77) -> Int[np.ndarray, "b l"]:
        """Token ids, int32, padded with the end token or cut to `length`.

        Warns:
            PromptCut: after which word a prompt was cut.

        Raises:
            UserError: a prompt is no text.
        """
        for prompt in prompts:
            if not is_text(prompt):
                raise UserError(f"the prompt {prompt!a} is no text: write it in UTF-8")
        cleaned = [self.clean.normalize_str(prompt) for prompt in prompts]
        ids = np.full((len(prompts), length), self.pad, np.int32)
        for row, prompt in zip(ids, cleaned, strict=True):
            encoded = self.clip.encode(prompt)
            self.warn_if_cut(prompt, encoded, length)
            found = cut(encoded.ids, length)
            row[: len(found)] = found
        return ids

    def encode(self, text: str, length: int | None = None) -> list[int]:
        """Token ids of a text as it is, between start and end; at most `length` of them."""
        ids = self.clip.encode(text).ids
        return ids if length is None else cut(ids, length)

    def decode(self, token: int) -> str:
        """The text of a token."""
        text = str(self.clip.decode([token], skip_special_tokens=False))
        return text.replace(WORD_END, " ").strip()

    def warn_if_cut(self, prompt: str, encoded: tokenizers.Encoding, length: int) -> None:
        """Say where a prompt ends for the text encoder, if that is before its end."""
        count = len(encoded.ids)
        if count > length:
            end = encoded.offsets[length - 2][1]  # the last place is the end token's
            rest = prompt[end:].partition(" ")[0]
            word = (prompt[:end] + rest).split()[-1]
            place = "inside" if rest else "after"
            warnings.warn(
                f"the prompt has {count} tokens and is cut to {length}, {place} the word {word!r}",
                PromptCut,
                stacklevel=3,
            )


def tokenize_by(
    folders: Sequence[Path], length: int = 77
) -> Callable[[Sequence[str]], Int[np.ndarray, "b *k l"]]:
    """Texts to token ids of every text encoder that a model has.

    Args:
        folders: of the tokenizers.

    Returns a function that gives int32 (b, l) for one tokenizer, (b, k, l) for several.

    Raises:
        UserError: a folder holds no readable CLIP tokenizer.
    """
    tokenizers = [Tokenizer(folder) for folder in folders]

    def tokenize(texts: Sequence[str]) -> Int[np.ndarray, "b *k l"]:
        ids = [tokenizer(texts, length) for tokenizer in tokenizers]
        return ids[0] if len(ids) == 1 else np.stack(ids, axis=1)

    return tokenize
