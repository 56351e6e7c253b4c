"""Put the evaluated methods side by side: `uv run python -m stages.report`.

Reads the results that params.yaml's evaluations name and writes report/index.html, one page that opens from the disk, and
report/index.md with its pictures; prints the table.
"""

import argparse

from pipeline.settings import config
from stages.command import run


def main() -> None:
    """The command."""
    argparse.ArgumentParser(
        prog="uv run python -m stages.report", description="Write report/index.html and index.md from the results."
    ).parse_args()
    params = config.load()

    from pipeline.report import write
    from pipeline.report.sections import terminal

    entries = write.write(params)
    compared = f"; +- is the difference to {entries[0].name}" if len(entries) > 1 else ""
    print(f"\n{params.data.dataset}: percent{compared}\n\n{terminal(entries)}\n")
    print(f"The report, to open in a browser: {write.FOLDER / 'index.html'}; the same as text: {write.FOLDER / 'index.md'}")


if __name__ == "__main__":
    raise SystemExit(run(main))
