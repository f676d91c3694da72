"""The tokenizer, from either form of its files."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Other
from tokenizers.models import WordLevel

from ie_jax.errors import UserError
from ie_jax.models.tokenizer import PromptCut, Tokenizer
from ie_jax.weights.embedded import folder_of
from ie_jax.weights.layout import PIPELINE

FOLDER = folder_of("world") / PIPELINE / "tokenizer"
PIECES = ("red", " ", "circle", "'s", "12", "!", "猫", "e\u0301", "\t", "<|endoftext|>", "\x07")
TEXTS = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=40)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as versions before 5 of transformers write it."""
    folder = tmp_path_factory.mktemp("files") / "tokenizer"
    shutil.copytree(FOLDER, folder)
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.fixture(scope="module")
def original(pair: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(pair))


def test_one_file_and_two_give_what_transformers_gives(pair: Path, original: Any) -> None:
    both = Tokenizer(FOLDER), Tokenizer(pair)

    @given(TEXTS)
    def compare(text: str) -> None:
        cleaned = Tokenizer.clean.normalize_str(text)
        expected = original(cleaned, padding="max_length", max_length=24, truncation=True)
        for ours in both:
            with warnings.catch_warnings(action="ignore", category=PromptCut):
                assert ours([text], 24)[0].tolist() == expected["input_ids"]
            assert ours.encode(text) == original(text, verbose=False)["input_ids"]

    compare()
    for ours in both:
        texts = [ours.decode(token) for token in range(len(original))]
        assert texts == [original.decode([token]) for token in range(len(original))]


def test_the_token_that_pads_is_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for token in ("!", {"content": "!", "lstrip": False}):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": token}))
        tokenizer = Tokenizer(folder)
        assert tokenizer([""], 4)[0].tolist()[2:] == [tokenizer.clip.token_to_id("!")] * 2
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    assert Tokenizer(folder).pad == tokenizer.pad
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<pad>"}))
    with pytest.raises(UserError, match=r"tokenizer\.json lacks the token '<pad>', which pads$"):
        Tokenizer(folder)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(FOLDER, folder)
    Other(WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=re.escape(f"{folder} holds no readable CLIP tokenizer")):
        Tokenizer(folder)


@pytest.mark.parametrize("lacking", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_refused(lacking: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(FOLDER, folder)
    (folder / lacking).write_text("{")
    with pytest.raises(UserError, match="holds no readable CLIP tokenizer"):
        Tokenizer(folder)
