"""Outside bytes as they come when something has gone wrong: for test_faults.py, which reads them."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 8))
"""Inputs for each reader: a few always, 100,000 where one has the hours."""


def harmed(*whole: bytes) -> st.SearchStrategy[bytes]:
    """One of these files with bytes changed, lost, doubled or added, or cut off; or nothing but noise."""

    @st.composite
    def strategy(draw: Callable[..., Any]) -> bytes:
        data = bytearray(draw(st.sampled_from(whole)))
        for _ in range(draw(st.integers(1, 3))):
            where, how = draw(st.integers(0, len(data))), draw(st.integers(0, 4))
            what = draw(st.binary(max_size=8))
            length = draw(st.sampled_from([0, 1, 4, 1000])) if how == 1 else len(what)
            if how == 4:
                del data[where:]
            elif how == 3:
                data[where:where] = data[where : where + 1000]
            elif how == 2:
                data[where:where] = what
            else:
                data[where : where + length] = what
        return bytes(data)

    return st.one_of(strategy(), strategy(), strategy(), st.binary(max_size=200))


def fuzz(inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Calls a test with `EXAMPLES` inputs, which are always the same few where they are few."""
    few = EXAMPLES < 1000
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            max_examples=EXAMPLES, deadline=None, derandomize=few, database=None, suppress_health_check=checks
        )
        return limits(given(inputs)(test))

    return decorate
