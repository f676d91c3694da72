"""Tokenizers over bytes and words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ie_jax.errors import UserError
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.untrained import (
    byte_pairs,
    byte_vocabulary,
    joined,
    spelled,
    vocabulary,
    write_byte_tokenizer,
    write_word_tokenizer,
)

LIST = """
a an the picture of photo on in front with background empty nothing plain striped spotted red
orange yellow green cyan blue purple pink circle square triangle cross ring grey navy brown beige
olive lilac
"""
WORDS = LIST.split()


def test_each_word_is_one_token(tmp_path: Path) -> None:
    size = write_word_tokenizer(tmp_path / "tokenizer", WORDS, 16)
    tokens = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    start, end = size - 2, size - 1
    assert len(tokens) == size and tokens["<|endoftext|>"] == end
    encode = Tokenizer(tmp_path / "tokenizer")
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 16
    ids = [tokens[f"{word}</w>"] for word in WORDS]
    assert encode(WORDS, 4).tolist() == [[start, i, end, end] for i in ids]
    sentence = "a striped red circle on a grey background"
    [found] = encode([sentence.title()], 16).tolist()
    names = {i: token for token, i in tokens.items()}
    assert [names[i] for i in found[1:9]] == [f"{word}</w>" for word in sentence.split()]
    assert found[9:] == [end] * 7


def test_other_words_are_spelled(tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path / "tokenizer", ["ring", "red"])
    clip = Tokenizer(tmp_path / "tokenizer").clip
    assert clip.encode("ring rings fox").tokens[1:-1] == [
        "ring</w>",
        "r",
        "in",
        "g",
        "s</w>",
        "f",
        "o",
        "x</w>",
    ]


def test_without_words_there_are_bytes(tmp_path: Path) -> None:
    write_byte_tokenizer(tmp_path / "tokenizer")
    assert json.loads((tmp_path / "tokenizer" / "vocab.json").read_text()) == byte_vocabulary()
    assert len(byte_vocabulary()) == 514
    tokens = Tokenizer(tmp_path / "tokenizer").clip.encode("Fox").tokens
    assert tokens[1:-1] == ["f", "o", "x</w>"]


@given(st.lists(st.text("abc", min_size=1, max_size=6), max_size=8))
def test_merges_in_their_order_make_one_token_of_any_word(words: list[str]) -> None:
    """Short words of few letters get into each other's way as much as words can."""
    merges = byte_pairs(words)
    tokens = vocabulary(merges)
    for word in words:
        parts = spelled(word)
        for pair in merges:
            parts = joined(parts, pair)
        assert parts == [f"{word}</w>"] and parts[0] in tokens
    assert sorted(tokens.values()) == list(range(len(tokens)))


@pytest.mark.parametrize("word", ["Red", "two words", "4x", "it's"])
def test_what_is_no_word_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match="cannot have these as one token each") as caught:
        write_word_tokenizer(tmp_path / "tokenizer", ["red", word])
    assert str([word]) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_empty_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds an empty one"):
        write_word_tokenizer(tmp_path / "tokenizer", [""])
