"""Parity is tested with programs as users have them."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def as_users_have_them(optimised: None) -> None:
    """All tests of this folder."""
