"""What a figure is: its paper, how to read it, and which runs it can be made of. Each file of a paper ends with its own."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.figures.canvas import Sheet
from pipeline.figures.material import Run, Sample, Shot
from pipeline.settings.schema import Config


@dataclass(frozen=True)
class Figure:
    """One figure. It is made for each chosen image (`of_image`), or once over many (`of_sample`).

    fits: whether a run has what is shown; needs: the same in words. beside: whether a run can be its baseline; None: it has none.
    """

    source: str
    caption: str
    fits: Callable[[Config], bool]
    needs: str
    of_image: Callable[[Run, Run | None, Shot], Sheet] | None = None
    of_sample: Callable[[Run, Run | None, Sample], Sheet] | None = None
    beside: Callable[[Config], bool] | None = None


def is_plain(config: Config) -> bool:
    """A run without a crf, with cross-entropy alone: what methods are compared with."""
    return config.crf.name == "unary" and config.loss.name == "cross_entropy"
