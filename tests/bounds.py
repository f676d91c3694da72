"""What any reader must keep to, whatever a file holds."""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from ie_jax.errors import UserError

SECONDS = 2.0
MEGABYTES = 200


def bounded(call: Callable[[], Any]) -> Any:
    """What a call returns, or the one line of its UserError, within the bounds."""
    start, before = time.monotonic(), peak()
    try:
        result = call()
    except UserError as error:
        result = str(error)
        assert "\n" not in " ".join(result.split())
    assert time.monotonic() - start < SECONDS, "takes too long"
    assert peak() - before < MEGABYTES, "takes too much memory"
    return result


def refused(call: Callable[[], Any], told: str | None = None) -> None:
    """A call ends in one line that says this, within the bounds."""

    def refusal() -> str:
        with pytest.raises(UserError, match=told) as caught:
            call()
        return str(caught.value)

    bounded(refusal)


def peak() -> float:
    """The most memory that this process has had so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)
