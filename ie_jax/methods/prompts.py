"""How the words of two prompts belong to each other, for Prompt-to-Prompt and its kin.

All of it is worked out on the host, with numpy, from token ids and texts. The results are arrays of
one size (the text encoder's, 77 tokens), so that another prompt recompiles nothing. The rules are
those of the published code, slips included, since its results depend on them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ie_jax.errors import UserError

LENGTH = 77
Decode = Callable[[int], str]
"""Token id to its text, without the mark of a word's end."""
Encode = Callable[[str], Sequence[int]]
"""A text to its token ids, start and end among them, without padding."""


class Alignment(NamedTuple):
    """Which source token each target token takes its attention from.

    The target's map becomes (A_source @ matrix) + A_target * own, token by token.
    """

    matrix: np.ndarray
    """float32 (length, length): from source to target tokens."""
    own: np.ndarray
    """float32 (length): 1 for target tokens that have no source token."""


def global_alignment(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """For each target token the number of its source token, or -1: Needleman-Wunsch with gap 0,
    match 1 and mismatch -1. On ties a target token goes without, then a source token."""
    rows, columns = len(source) + 1, len(target) + 1
    score = np.zeros((rows, columns), int)
    way = np.zeros((rows, columns), int)
    left, up, diagonal = 1, 2, 3
    way[0, 1:], way[1:, 0] = left, up
    for i in range(1, rows):
        for j in range(1, columns):
            match = score[i - 1, j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            options = (score[i, j - 1], score[i - 1, j], match)
            score[i, j] = max(options)
            way[i, j] = (left, up, diagonal)[options.index(score[i, j])]
    found = [-1] * len(target)
    i, j = rows - 1, columns - 1
    while i or j:
        if way[i, j] == diagonal:
            i, j = i - 1, j - 1
            found[j] = i
        elif way[i, j] == left:
            j -= 1
        else:
            i -= 1
    return found


def refine_mapper(
    source: Sequence[int], target: Sequence[int], length: int = LENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """For each target position its source position (-1: none, then the weight is 0), and the
    weights. Beyond the target's tokens each position is its own."""
    mapper, weights = np.arange(length), np.ones(length, np.float32)
    found = np.array(global_alignment(source, target))
    mapper[: len(found)] = found
    weights[: len(found)] = found != -1
    return mapper.astype(np.int32), weights


def refine(mapper: np.ndarray, weights: np.ndarray) -> Alignment:
    """The alignment of a `refine_mapper`."""
    matrix = np.zeros((len(mapper), len(mapper)), np.float32)
    matrix[mapper, np.arange(len(mapper))] = weights  # -1 is the last token, with weight 0
    return Alignment(matrix, 1 - weights)


def words_tokens(text: str, words: Sequence[int], encode: Encode, decode: Decode) -> list[int]:
    """The positions of the tokens of the words of these numbers, split at single spaces."""
    pieces = text.split(" ")
    tokens = [decode(i).strip().strip("#") for i in encode(text)][1:-1]
    found, length, word = [], 0, 0
    for i, token in enumerate(tokens):
        length += len(token)
        if word in words:
            found.append(i + 1)
        if word < len(pieces) and length >= len(pieces[word]):
            word, length = word + 1, 0
    return found


def tokens_of(text: str, word: str, encode: Encode, decode: Decode) -> list[int]:
    """The positions of all tokens of a word, wherever it stands in a text."""
    numbers = [i for i, other in enumerate(text.split(" ")) if other == word]
    return words_tokens(text, numbers, encode, decode)


def replace(
    source: str, target: str, encode: Encode, decode: Decode, length: int = LENGTH
) -> Alignment:
    """Word for word: prompts of equally many words.

    Raises:
        UserError: they have not.
    """
    words, others = source.split(" "), target.split(" ")
    if len(words) != len(others):
        raise UserError(
            f"replace needs prompts of equally many words: {source!r} has {len(words)}, "
            f"{target!r} has {len(others)}"
        )
    numbers = [i for i in range(len(others)) if others[i] != words[i]]
    pairs = [
        tuple(words_tokens(text, [i], encode, decode) for text in (source, target)) for i in numbers
    ]
    matrix = np.zeros((length, length), np.float32)
    i = j = done = 0
    while i < length and j < length:
        if done < len(pairs) and pairs[done][0][0] == i:
            ours, theirs = pairs[done]
            if len(ours) == len(theirs):
                matrix[ours, theirs] = 1
            else:
                matrix[np.ix_(ours, theirs)] = 1 / len(theirs)
            done += 1
            i, j = i + len(ours), j + len(theirs)
        elif done < len(pairs):
            matrix[i, j] = 1
            i, j = i + 1, j + 1
        else:  # after the last word that differs, by the target's number alone
            matrix[j, j] = 1
            i, j = i + 1, j + 1
    return Alignment(matrix, np.zeros(length, np.float32))


def equalizer(
    text: str,
    factors: Mapping[str, float],
    encode: Encode,
    decode: Decode,
    length: int = LENGTH,
) -> np.ndarray:
    """Factors of all tokens: those of the words named, in the target prompt; 1 elsewhere."""
    values = np.ones(length, np.float32)
    for word, factor in factors.items():
        values[tokens_of(text, word, encode, decode)] = factor
    return values


def word_mask(
    text: str, words: Sequence[str], encode: Encode, decode: Decode, length: int = LENGTH
) -> np.ndarray:
    """1 for the tokens of these words, 0 elsewhere: float32 (length)."""
    mask = np.zeros(length, np.float32)
    for word in words:
        mask[tokens_of(text, word, encode, decode)] = 1
    return mask


def phrase_mask(text: Sequence[int], phrase: Sequence[int], length: int = LENGTH) -> np.ndarray:
    """1 for the tokens of a phrase in a text, each matched once and in order: float32 (length).

    Args:
        text, phrase: token ids, start and end among them.
    """
    mask, wanted = np.zeros(length, np.float32), list(phrase[1:-1])
    for i, token in enumerate(text):
        if wanted and token == wanted[0]:
            mask[i] = 1
            wanted.pop(0)
    return mask


def time_table(
    steps: int,
    default: float | tuple[float, float],
    words: Mapping[str, float | tuple[float, float]],
    text: str,
    encode: Encode,
    decode: Decode,
    length: int = LENGTH,
) -> np.ndarray:
    """In which steps a token takes the source's attention: 1 or 0, float32 (steps + 1, length).

    Args:
        default: the share of steps, from the start or from one share to another.
        words: shares of single words of the target prompt, in place of the default.
    """
    table = np.zeros((steps + 1, length), np.float32)

    def fill(share: float | tuple[float, float], columns: Sequence[int] | slice) -> None:
        first, last = share if isinstance(share, tuple) else (0.0, share)
        first, last = int(first * len(table)), int(last * len(table))
        table[:first, columns] = 0
        table[first:last, columns] = 1
        table[last:, columns] = 0

    fill(default, slice(None))
    for word, share in words.items():
        if columns := tokens_of(text, word, encode, decode):
            fill(share, columns)
    return table
