"""Where the labels of a chart's points go, so that none covers another."""

import math
from collections.abc import Sequence

LETTER, LINE = 6.4, 13  # pixels that a letter and a line of a label take
Place = tuple[float, float, str]  # x and y in pixels, and which end of the text is there: left, right, center
Box = tuple[float, float, float, float]  # left, top, right, bottom


def placed(points: Sequence[tuple[float, float, str]], size: tuple[float, float]) -> list[Place]:
    """The place of each point's label: the first beside it that hits no other label, point or border; points are (x, y, label).

    `size` is the chart's width and height in pixels.
    """
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    found = []
    for x, y, text in points:
        length = LETTER * len(text)
        choices = []
        for step in (0, 14, -14, 28, -28, 42, -42, 56, -56):
            choices += [(x + 10, y + step, "left"), (x - 10, y + step, "right"), (x, y + step + math.copysign(14, step), "center")]
        boxes = [box(choice, length) for choice in choices]
        free = [index for index, own in enumerate(boxes) if inside(own, size) and not any(overlap(own, other) for other in taken)]
        best = free[0] if free else 0
        taken.append(boxes[best])
        found.append(choices[best])
    return found


def box(place: Place, length: float) -> Box:
    """The rectangle that a label covers."""
    x, y, align = place
    left = {"left": x, "right": x - length, "center": x - length / 2}[align]
    return left, y - LINE / 2, left + length, y + LINE / 2


def inside(own: Box, size: tuple[float, float]) -> bool:
    """Whether a label is within the chart."""
    return own[0] >= 0 and own[2] <= size[0] and own[1] >= 0 and own[3] <= size[1]


def overlap(one: Box, other: Box) -> bool:
    """Whether two rectangles touch."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
