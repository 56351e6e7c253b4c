"""Searches that params.yaml declares, or that are known without training."""

from collections.abc import Callable
from typing import Any

from makers.project import Project

from pipeline.search import space as search
from pipeline.search import suggestions
from pipeline.search.space import Range, Search
from pipeline.search.trials import Outcome
from pipeline.settings import config as configs

SPACE: dict[str, Any] = {"superpixels.slic.segments": {"low": 10, "high": 60, "whole": True}}
WIDE = Search(
    run="ecrf",
    trials=25,
    space={
        "a": Range(low=0.001, high=1.0, log=True),
        "b": Range(low=10, high=60, whole=True),
        "c": Range(values=["none", True, 1, [1, 2]]),
    },
)


def declared(project: Project, **tune: Any) -> search.Search:
    project.params["tune"] = {"run": "ecrf", "space": SPACE} | tune
    project.write()
    return search.read(configs.load())


def known(search: Search, count: int, scored: Callable[[dict[str, Any]], float | None]) -> list[Outcome]:
    """Outcomes of a search whose trials score at once."""
    made: list[Outcome] = []
    while len(made) < count and (values := suggestions.suggest(search, made)) is not None:
        score = scored(values)
        state = "failed" if score is None else "early" if score < 0 else "finished"
        made.append(Outcome(number=len(made), values=values, state=state, scores=() if score is None else ((10, score),)))
    return made
