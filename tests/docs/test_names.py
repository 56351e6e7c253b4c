"""The names that docs/names.md promises to other code are there."""

import importlib
import re
from pathlib import Path

import pytest

ROWS = re.findall(r"^\| (`[^|]*) \|", (Path(__file__).parents[2] / "docs/names.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", ROWS)
def test_what_the_table_names_is_there(row: str) -> None:
    names = re.findall(r"`([\w.]+)`", row)
    module = importlib.import_module(names[0].rpartition(".")[0])
    assert all(hasattr(module, name.rpartition(".")[2]) for name in names)
