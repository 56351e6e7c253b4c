"""Marks of the tests that start Ray, and how long one of them may take."""

import os

import pytest

WANTED = os.environ.get("REQUIRE_RAY") == "1"
MARKS = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not WANTED, reason="it starts Ray, for minutes: REQUIRE_RAY=1 runs it"),
    pytest.mark.filterwarnings("ignore:`use_\\w+` is deprecated:DeprecationWarning"),
]
BOUND = 900  # seconds for one test, whatever hangs
