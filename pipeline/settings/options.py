"""A part's options against its constructor's signature, which is their schema."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline.ground.errors import UserError
from pipeline.settings.schema import Part
from pipeline.settings.strict import suggestion


def check_options(table: Mapping[str, Callable[..., object]], part: Part, where: str, what: str) -> None:
    """Refuse a name that is not in the table, and options that its constructor's keyword-only signature does not take."""
    if part.name not in table:
        raise UserError(f"{where}: {part.name!r} is no {what}{suggestion(part.name, table)}")
    constructor = table[part.name]
    known = {entry.name: entry for entry in inspect.signature(constructor).parameters.values() if entry.kind is entry.KEYWORD_ONLY}
    for key in part.options:
        if key not in known:
            raise UserError(f"{where}.{key} is unknown: {what} {part.name} has no such option{suggestion(key, known)}")
    for key, entry in known.items():
        if entry.default is entry.empty and key not in part.options:
            raise UserError(f"{where}.{key} is missing: {what} {part.name} needs it")
    hints = get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    for key, value in part.options.items():
        try:
            read = TypeAdapter(hints.get(key, Any)).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{where}.{key}: {error.errors()[0]['msg']}, not {value!r}") from None
        if not faithful(value, read):  # the constructor gets the value as it stands
            raise UserError(f"{where}.{key}: must be {read!r} as YAML writes it, not {value!r}")


def faithful(given: Any, read: Any) -> bool:
    """Whether a value was taken as it stands: "false" is no boolean and 3.0 no integer, but 3 is a real number and a list a tuple."""
    if isinstance(given, list) and isinstance(read, list | tuple):
        return len(given) == len(read) and all(map(faithful, given, read))
    if isinstance(given, Mapping) and isinstance(read, Mapping):
        return given.keys() == read.keys() and all(faithful(given[key], read[key]) for key in given)
    return type(given) is type(read) or (type(given) is int and type(read) is float)
