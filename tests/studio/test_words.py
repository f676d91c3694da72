"""What differs between prompts."""

import pytest

from ie_jax.studio.words import differing


@pytest.mark.parametrize(
    ("source", "target", "shown"),
    [
        ("a blue cat", "a red cat", "a <del>blue</del> <mark>red</mark> cat"),
        ("a cat", "a big cat", "a <mark>big</mark> cat"),
        ("a big cat", "a cat", "a <del>big</del> cat"),
        ("a cat", "a cat", "a cat"),
        ("", "a cat", "<mark>a cat</mark>"),
        ("a <b>", "a <i>&", "a <del>&lt;b&gt;</del> <mark>&lt;i&gt;&amp;</mark>"),
    ],
)
def test_words_that_differ_are_marked(source: str, target: str, shown: str) -> None:
    assert differing(source, target) == shown
