"""The numbers of settings: what a wrong one is refused for when the file is read."""

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
Whole = Annotated[int, Field(ge=0)]
Real = Annotated[float, Field(allow_inf_nan=False)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Pair = tuple[Positive, Positive]
