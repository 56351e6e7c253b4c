"""YAML files read strictly: a mistake is one line that names file, key and what is known."""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.ground.errors import UserError

T = TypeVar("T")
# The numbers of settings: what a wrong one is refused for when the file is read.
Positive = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Real = Annotated[float, Field(allow_inf_nan=False)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Pair = tuple[Positive, Positive]


class Section:
    """A mapping of a YAML file with the place it stands in, for messages."""

    def __init__(self, raw: Any, file: Path, place: str = "") -> None:
        if not isinstance(raw, Mapping):
            raise UserError(f"{file}: {place or 'the file'} must be a mapping of keys to values, not {raw!r}")
        if wrong := [key for key in raw if not isinstance(key, str)]:
            raise UserError(f"{file}: {place or 'the file'} has the key {wrong[0]!r}, which is not a word; quote it")
        self.raw, self.file, self.place = dict(raw), file, place

    def at(self, key: str) -> str:
        """The full path of a key."""
        return f"{self.place}.{key}" if self.place else key

    def only(self, known: Collection[str]) -> "Section":
        """This section, after refusing any key that is not known."""
        for key in self.raw:
            if key not in known:
                raise UserError(f"{self.file}: {self.at(key)} is unknown{suggestion(key, known)}")
        return self

    def part(self, key: str) -> "Section":
        """The section under `key`, which must be there."""
        if key not in self.raw:
            raise UserError(f"{self.file}: {self.at(key)} is missing")
        return Section(self.raw[key], self.file, self.at(key))

    def parse(self, kind: type[T], **added: Any) -> T:
        """This section as the dataclass `kind`; `added` fields do not come from the file."""
        self.only([key for key in names(kind) if key not in added])
        return parse(kind, self.raw | added, self.file, self.place)


def names(section: type) -> list[str]:
    """The keys that a section knows."""
    return [entry.name for entry in fields(section)]


def suggestion(key: str, known: Collection[str]) -> str:
    """The end of an unknown-name message: the nearest known name and all of them."""
    near = difflib.get_close_matches(key, known, n=1)
    return f"{f'; did you mean {near[0]}' if near else ''}; known: {', '.join(sorted(known)) or 'none'}"


def parse(kind: type[T], raw: Mapping[str, Any], file: Path, place: str) -> T:
    """Validate `raw` as `kind`; the first error becomes one line."""
    try:
        return adapter(kind).validate_python(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([place, *(str(step) for step in first["loc"] if not str(step).startswith("function-"))]).strip(".")
        if first["type"] in ("missing", "missing_argument"):
            raise UserError(f"{file}: {path} is missing") from None
        raise UserError(f"{file}: {path}: {first['msg']}, not {first['input']!r}") from None


@cache
def adapter(kind: type[T]) -> TypeAdapter[T]:
    """Pydantic's validator of a dataclass, built once."""
    return TypeAdapter(kind)


def read_yaml(file: Path) -> Section:
    """A YAML file's top mapping."""
    try:
        return Section(yaml.safe_load(file.read_text()), file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
