"""Prompts to token ids, as the published code makes them."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers.normalizers import BertNormalizer

from ie_jax.errors import UserError
from ie_jax.files import need_file

MOST = 20_000_000
"""Bytes of a tokenizer's file."""


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
            from transformers import CLIPTokenizer  # seconds to import: only where text is read

            self.clip = CLIPTokenizer.from_pretrained(str(folder))
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
        for prompt in cleaned:
            self.warn_if_cut(prompt, length)
        encoded = self.clip(
            cleaned, padding="max_length", max_length=length, truncation=True, return_tensors="np"
        )
        return np.asarray(encoded["input_ids"], np.int32)

    def warn_if_cut(self, prompt: str, length: int) -> None:
        """Say where a prompt ends for the text encoder, if that is before its end."""
        encoded = self.clip(prompt, return_offsets_mapping=True, verbose=False)
        count = len(encoded["input_ids"])
        if count > length:
            end = encoded["offset_mapping"][length - 2][1]  # the last place is the end token's
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
