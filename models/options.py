"""The options of a head, crf, loss or dataset, read from where each stands once: in its constructor.

This file imports no torch, for preparing data reads options too.
"""

import inspect
from collections.abc import Callable
from typing import Any


def options(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Types and defaults by name: keyword-only parameters, and the fields of the keyword-only dataclass that its `more_options` names."""
    more = getattr(constructor, "more_options", None)
    sources = [constructor] if more is None else [constructor, more]
    parameters = [parameter for source in sources for parameter in inspect.signature(source, eval_str=True).parameters.values()]
    return {parameter.name: parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
