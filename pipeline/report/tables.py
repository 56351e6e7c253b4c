"""Tables of text: in Markdown, whatever the cells' words, and aligned for a terminal; numbers for people."""

import html
import re
from collections.abc import Sequence

NOTHING = "–"  # noqa: RUF001
Row = Sequence[str]


def markdown(header: Row, rows: Sequence[Row], words: int = 1) -> str:
    """A Markdown table; the first columns are `words`, the others numbers. Cells are Markdown already."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def escaped(text: str) -> str:
    """Any text as the content of a Markdown table's cell: one line, no markup, no HTML."""
    one_line = " ".join(text.split()) or NOTHING
    marked = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(one_line, quote=False))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", marked)  # within a word, _ is no markup


def code(text: str) -> str:
    """Text without back ticks as Markdown's code."""
    return f"`{' '.join(text.split())}`".replace("|", "\\|")


def plain(header: Row, rows: Sequence[Row], width: int = 100) -> str:
    """Columns aligned with spaces, the first to the left; cut to `width` by shortening the first column alone."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - gap * (len(widths) - 1)))
    lines = []
    for row in (header, ["-" * size for size in widths], *rows):
        first = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 2] + ".."
        others = [cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True)]
        lines.append((" " * gap).join([first.ljust(widths[0]), *others]))
    return "\n".join(line.rstrip() for line in lines)


def percent(share: float | None) -> str:
    """A share as percent with two decimals."""
    return NOTHING if share is None else f"{100 * share:.2f}"


def difference(share: float | None, other: float | None) -> str:
    """How many percent points a share lies above another, with its sign."""
    return "" if share is None or other is None else f"{round(100 * (share - other), 2) + 0.0:+.2f}"  # no -0.00


def scaled(value: float | None, unit: float, decimals: int) -> str:
    """A number in units, such as millions."""
    return NOTHING if value is None else f"{value / unit:,.{decimals}f}"


def size(count: float | None) -> str:
    """Bytes in MiB, or in GiB from one GiB on."""
    if count is None:
        return NOTHING
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """A time in its two largest units."""
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def best_of(values: Sequence[float | None]) -> float | None:
    """The largest of several values as it is printed (two decimals of percent), so that equal cells are equally bold."""
    known = [value for value in values if value is not None]
    return round(max(known), 4) if len(known) > 1 else None


def bold(text: str, value: float | None, best: float | None) -> str:
    """The text in bold where its value is the best one."""
    return f"**{text}**" if value is not None and best is not None and round(value, 4) == best else text
