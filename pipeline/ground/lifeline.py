"""Processes that end when the one that started them ends, however that ends: an orphan that trains on was seen."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; where there is no such kernel call, watch for it."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between the two calls
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        die_with(parent)


def die_with_starter(mark: str) -> None:
    """End with the program that started this one with the variable `mark` in its environment.

    That program is not always the parent: it may have started a shell, and dash waits for its command where bash
    becomes it. The shell was given the variable too, so the nearest ancestor without it is the one.
    """
    die_with_parent()
    starter = os.getppid()
    while starter > 1 and marked(starter, mark):
        starter = parent_of(starter)
    if starter not in (1, os.getppid()):
        die_with(starter)


def marked(process: int, mark: str) -> bool:
    """Whether a process was started with a variable in its environment; False where that cannot be read."""
    try:
        return f"\0{mark}=".encode() in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
    except OSError:  # another user's, one that ended, or a system without /proc
        return False


def parent_of(process: int) -> int:
    """The parent of a process; 1 for one that has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 1


def die_with(process: int) -> None:
    """Kill this process within a second of the end of an ancestor of it."""
    threading.Thread(target=watch, args=(process,), daemon=True).start()


def watch(process: int) -> None:
    """Wait for the end of another process, then end this one at once."""
    while alive(process):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def alive(process: int) -> bool:
    """Whether a process runs (one that has ended and was not waited for does not)."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # no /proc here, or it has just ended: the next look tells
        return True
