"""What a search tries next."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from makers.searches import WIDE, known

from pipeline.search import suggestions
from pipeline.search.space import Range, Search


def bowl(values: dict[str, Any]) -> float | None:
    """A score that has its best at b = 30 and small a, early ends and failures among them."""
    return None if values["c"] == "none" else 0.5 - abs(values["b"] - 30) / 60 - values["a"] / 4


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_equal_seeds_choose_equally_and_a_search_that_goes_on_chooses_as_one_that_ran_through(algorithm: Any) -> None:
    search = replace(WIDE, algorithm=algorithm)
    whole = known(search, 25, bowl)
    assert [outcome.values for outcome in known(search, 25, bowl)] == [outcome.values for outcome in whole]
    assert len({json.dumps(outcome.values) for outcome in whole}) == 25
    assert suggestions.suggest(search, whole) is None
    assert suggestions.suggest(replace(search, trials=26), whole) is not None
    assert suggestions.suggest(search, whole[:20]) == whole[20].values
    assert [outcome.values for outcome in known(replace(search, seed=1), 25, bowl)] != [outcome.values for outcome in whole]
    for outcome in whole:
        assert 0.001 <= outcome.values["a"] <= 1  # type: ignore[operator]
        assert type(outcome.values["b"]) is int
        assert 10 <= outcome.values["b"] <= 60
        assert any(outcome.values["c"] is value for value in WIDE.space["c"].values or [])


def test_tpe_learns_and_random_does_not() -> None:
    def late(algorithm: Any) -> float:
        made = known(replace(WIDE, algorithm=algorithm, trials=40), 40, lambda values: -abs(values["b"] - 30) / 60 - values["a"])
        return sum(outcome.miou or 0 for outcome in made[20:]) / 20

    assert late("tpe") > late("random") + 0.1


def test_a_grid_is_every_combination_and_a_small_space_ends() -> None:
    space = {"a": Range(low=1.0, high=100.0, log=True), "b": Range(values=[1, 2]), "c": Range(low=1, high=3, whole=True)}
    search = Search(run="ecrf", space=space, algorithm="grid", points=3, trials=1)
    values = [tuple(outcome.values.values()) for outcome in known(search, 99, lambda values: 0.1)]
    assert values == list(itertools.product([1.0, pytest.approx(10.0), 100.0], [1, 2], [1, 2, 3]))
    assert suggestions.size(search) == 18
    few = Search(run="ecrf", space={"b": Range(values=["x", "y", "z"])}, trials=20)
    assert sorted(str(outcome.values["b"]) for outcome in known(few, 99, lambda values: 0.1)) == ["x", "y", "z"]
