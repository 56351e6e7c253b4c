"""`uv run python -m benchmarks.methods`: every method against a literal implementation of its released algorithm.

Same inputs, forward and backward, variants in turn; medians, ratios and peak memory. `--only ecrf caa` chooses, `--device cuda` moves.
"""

import argparse
import importlib
import multiprocessing
import os
import platform
from collections.abc import Sequence

import torch

from benchmarks.measure import Case, Measured, measure

FILES = ("ecrf", "caa", "ksac", "conv_crf", "filters", "car", "boundary")
HEADER = "| what | variant | median | spread | of ours | memory | of ours | target |\n|---|---|--:|--:|--:|--:|--:|---|"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=(__doc__ or "").partition("\n")[2])
    parser.add_argument("--only", nargs="+", choices=FILES, default=FILES, metavar="NAME", help=f"of {', '.join(FILES)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7, help="runs of each variant")
    parser.add_argument("--seconds", type=float, default=60, help="of each case, after which no further round begins")
    parser.add_argument("--threads", type=int, default=None, help="of torch; all cores unless given")
    options = parser.parse_args()
    threads = options.threads or torch.get_num_threads()
    where = torch.cuda.get_device_name() if options.device == "cuda" else processor()
    print(f"{where}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}\n\n{HEADER}", flush=True)
    context = multiprocessing.get_context("spawn")  # a process for each case: one's memory is not another's
    for file in options.only:
        for index, case in enumerate(cases(file)):
            if options.device in case.devices:
                arguments = (file, index, options.device, options.rounds, options.seconds, threads)
                process = context.Process(target=show, args=arguments)
                process.start()
                process.join()
                if process.exitcode:
                    print(f"| {case.name} | failed with status {process.exitcode} | | | | | | {case.target} |", flush=True)


def cases(file: str) -> Sequence[Case]:
    """The cases of one file."""
    return importlib.import_module(f"benchmarks.cases.{file}").CASES


def show(file: str, index: int, device: str, rounds: int, seconds: float, threads: int) -> None:
    """Measure a case in this process and print its lines."""
    torch.set_num_threads(threads)
    case = cases(file)[index]
    print("\n".join(lines(case, measure(case, torch.device(device), rounds, seconds))), flush=True)


def lines(case: Case, measured: dict[str, Measured]) -> list[str]:
    """The case's lines of the table: ours first, the others with their ratios to ours."""
    ours = next(iter(measured.values()))
    found = []
    for name, entry in measured.items():
        first = entry is ours
        times = "" if first else f"{entry.median / ours.median:.2f}"
        memory = "" if entry.memory is None else f"{entry.memory / 2**20:.0f} MiB"
        share = "" if first or entry.memory is None or not ours.memory else f"{entry.memory / ours.memory:.2f}"
        spread = f"{1000 * entry.low:.1f}-{1000 * entry.high:.1f}"
        cells = (
            case.name if first else "",
            name,
            f"{1000 * entry.median:.1f} ms",
            spread,
            times,
            memory,
            share,
            case.target if first else "",
        )
        found.append("| " + " | ".join(cells) + " |")
    return found


def processor() -> str:
    """The processor's name and its cores."""
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


if __name__ == "__main__":
    main()
