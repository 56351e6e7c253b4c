"""A process ends with the program that started it, through whatever shell."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.ground import lifeline

CHILD = (
    "import time; from pipeline.ground.lifeline import die_with_starter; die_with_starter('STAGE'); "
    "print('ready', flush=True); time.sleep(60)"
)
STARTER = """
import os, subprocess, sys
subprocess.run([{shell!r}, "-c", sys.argv[1]], env={{**os.environ, "STAGE": "it"}})
"""
SHELLS = [shell for shell in ("/bin/sh", "/bin/bash", "/bin/dash", "/bin/zsh") if Path(shell).exists()]


@pytest.mark.parametrize("tail", ["", "; true"], ids=["command", "list"])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_between_does_not_make_an_orphan(shell: str, tail: str) -> None:
    """With a list the shell always stays, with one command it depends on the shell."""
    command = f'{sys.executable} -c "{CHILD}"{tail}'
    with subprocess.Popen([sys.executable, "-c", STARTER.format(shell=shell), command], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
        time.sleep(1.2)  # two looks of the watch
        assert starter.poll() is None
        starter.send_signal(signal.SIGKILL)
        started = time.monotonic()
        assert starter.stdout.read() == ""  # its end: nobody holds the pipe any more
    assert time.monotonic() - started < 20  # it would have slept for a minute


def test_a_process_that_ended_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as ended:
        limit = time.monotonic() + 20
        while lifeline.alive(ended.pid):  # it becomes a zombie, since nobody waits for it yet
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert not lifeline.alive(ended.pid)
    assert lifeline.alive(os.getpid())
    assert lifeline.alive(1)
