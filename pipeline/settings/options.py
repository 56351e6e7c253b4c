"""A part's options in params.yaml, tried against the types that its constructor gives them."""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from models.options import options
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Part
from pipeline.settings.strict import suggestion


def check_options(table: Mapping[str, Callable[..., object]], part: Part, where: str, what: str) -> None:
    """Refuse a name that is not in the table, and options that its constructor does not take, or takes with other values."""
    if part.name not in table:
        raise UserError(f"{where}: {part.name!r} is no {what}{suggestion(part.name, table)}")
    known = options(table[part.name])
    for key in part.options:
        if key not in known:
            raise UserError(f"{where}.{key} is unknown: {what} {part.name} has no such option{suggestion(key, known)}")
    for key, entry in known.items():
        if entry.default is entry.empty and key not in part.options:
            raise UserError(f"{where}.{key} is missing: {what} {part.name} needs it")
    for key, value in part.options.items():
        try:
            read = TypeAdapter(written(known[key].annotation)).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}.{key}: {error.errors()[0]['msg']}, not {value!r}") from None
        if not faithful(value, read):  # the constructor gets the value as it stands
            raise UserError(f"{where}.{key}: must be {read!r} as YAML writes it, not {value!r}")


def written(annotation: Any) -> Any:
    """The type of what YAML may hold: no Tensor, which in code may stand for a number that learns; anything where none is given."""
    if annotation is inspect.Parameter.empty:
        return Any
    if get_origin(annotation) is not UnionType:
        return annotation
    members = (kind for kind in get_args(annotation) if getattr(kind, "__name__", "") != "Tensor")  # by its name: no torch here
    return functools.reduce(operator.or_, members)


def faithful(given: Any, read: Any) -> bool:
    """Whether a value was taken as it stands: "false" is no boolean and 3.0 no integer, but 3 is a real number and a list a tuple."""
    if isinstance(given, list) and isinstance(read, list | tuple):
        return len(given) == len(read) and all(map(faithful, given, read))
    if isinstance(given, Mapping) and isinstance(read, Mapping):
        return given.keys() == read.keys() and all(faithful(given[key], read[key]) for key in given)
    return type(given) is type(read) or (type(given) is int and type(read) is float)
