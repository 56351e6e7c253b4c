"""Codes of masks become class ids as a dictionary would have it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ground.errors import UserError
from pipeline.labels.masks import looked_up, replaced

CODES = st.one_of(st.integers(-2, 20), st.integers(65530, 65540), st.integers(2**24 - 3, 2**24 - 1))
TABLES = st.dictionaries(CODES, st.integers(0, 255), min_size=1)


@given(TABLES, st.lists(CODES, min_size=1, max_size=12))
def test_codes_are_replaced_one_by_one(table: dict[int, int], codes: list[int]):
    for chosen in (codes, [code for code in codes if 0 <= code < 65536], [code for code in codes if code in table]):
        if chosen:
            found, strange = replaced(np.array([chosen]), table)
            assert found.dtype == np.uint8
            assert strange.tolist() == [[code not in table for code in chosen]]
            assert found[~strange].tolist() == [table[code] for code in chosen if code in table]


@pytest.mark.parametrize("strange", [-1, 3, 70_000])
def test_the_first_strange_id_is_named(strange: int):
    with pytest.raises(UserError, match=f"has the id {strange} at row 1, column 0"):
        looked_up(np.array([[0, 1], [strange, 9]]), {0: 255, 1: 0})
