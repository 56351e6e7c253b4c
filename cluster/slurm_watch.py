"""Waiting for a Slurm job: its state and rank 0's log go to stderr, and how it ended becomes an exception with Slurm's reason."""

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cluster import slurm_queue
from cluster.slurm_queue import HELD, HOPELESS, Status
from pipeline.ground.errors import UserError

LOOK = 0.5  # seconds between two looks at the log
RARELY = 10.0  # the most seconds between two questions to Slurm
SURE = 2.0  # seconds for which an end must stand: a job that is queued again passes through states that look like one
RELEASES = 3  # how often a job is released that a node could not start
TAIL = 15  # lines of the log in a message
SHARED = 15.0  # seconds in which a file that another machine wrote appears
NOISE = ("submitit ",)  # how lines of submitit's own begin
ENDS = {
    "OUT_OF_MEMORY": "ran out of memory: raise slurm.memory, or lower `workers` in the launch profile",
    "TIMEOUT": "reached its time limit before it could save and queue again: raise slurm.warning (or slurm.time)",
    "NODE_FAIL": "lost a node, and Slurm did not queue it again: run the same command, and it goes on from the last checkpoint",
    "PREEMPTED": "was preempted, and Slurm did not queue it again: run the same command, and it goes on from the last checkpoint",
    "CANCELLED": "was cancelled: run the same command, and it goes on from the last checkpoint",
    "GONE": "is unknown to Slurm and its accounts: run the same command",
}


class Watch:
    """One job that is followed to its end. `command` is what attaches to it again, `others` tells the jobs of the same run."""

    def __init__(
        self, title: str, job: str, log: Path, words: Path, command: str, *, new: bool, others: Callable[[], list[str]] = list
    ) -> None:
        self.others = others
        self.title, self.job, self.log, self.words, self.command = title, job, log, words, command
        self.new, self.said, self.part = new, "", b""
        self.position = 0 if new or not log.is_file() else max(0, log.stat().st_size - 2000)
        self.skip = self.position > 0  # the rest of a line
        self.releases = 0

    def follow(self) -> None:
        """Return when the job has completed; UserError when it ended in another way."""
        begun = "submitted" if self.new else "is there already: attached"
        self.say(f"{begun}; log {self.log}")
        try:
            status = self.until_ended()
        except KeyboardInterrupt:
            self.interrupted()
            raise
        self.show_log()
        if status.state != "COMPLETED":
            raise UserError(self.why(status))

    def until_ended(self) -> Status:
        """Show what happens until the end is certain."""
        pause, ask_at, ended = 0.5, 0.0, None
        while True:
            self.show_log()
            now = time.monotonic()
            if now >= ask_at:
                status = slurm_queue.status(self.job)
                pause = 0.5 if self.show(status) else min(RARELY, 1.5 * pause)
                ask_at = now + pause
                if status.state == "COMPLETED":
                    return status
                ended = (ended or now) if status.ended else None
                if ended is not None:
                    ask_at = now + LOOK
                    if now - ended >= SURE:
                        return status
            time.sleep(LOOK)

    def show(self, status: Status) -> bool:
        """Say a state that was not said before; UserError for a job that can never start."""
        line = status.state
        if status.state == "PENDING":
            if status.reason in HOPELESS and not status.restarts:
                slurm_queue.cancel(self.job.split("_")[0])  # an array's other elements want the same
                raise UserError(f"{self.title}: Slurm would never start it ({status.reason}): {HOPELESS[status.reason]}; cancelled")
            line += f" ({status.reason})" if status.reason else ""
            self.release(status)
        elif status.nodes:
            line += f" on {status.nodes}"
        if status.state == "UNKNOWN":
            line = f"Slurm does not answer, still waiting ({status.reason[:120]})"
        if status.restarts:
            line += f", start {status.restarts + 1}"
        if line == self.said:
            return False
        self.said = line
        self.say(line)
        return True

    def release(self, status: Status) -> None:
        """Let a job go on that Slurm holds because a node could not start it; UserError when that has not helped."""
        if status.reason != HELD:
            return
        if self.releases == RELEASES:
            way = f"`scontrol show job {self.job}` names the node; `scontrol release {self.job}` tries again, and the same command attaches"
            raise UserError(f"{self.title}: Slurm job {self.job} cannot be started and is held, also after {RELEASES} releases: {way}")
        self.releases += 1
        self.say(f"could not be started on its node and was held: released ({self.releases} of {RELEASES})")
        slurm_queue.release(self.job)

    def say(self, text: str) -> None:
        """A line for people."""
        print(f"{self.title}: Slurm job {self.job} {text}", file=sys.stderr, flush=True)

    def show_log(self) -> None:
        """Pass on what rank 0 has written since the last look, in whole lines."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.position)
                fresh = file.read()
        except FileNotFoundError:
            return
        self.position += len(fresh)
        *lines, self.part = (self.part + fresh).split(b"\n")
        if self.skip and lines:
            lines, self.skip = lines[1:], False
        for line in lines:
            text = line.decode(errors="replace")
            if not text.startswith(NOISE):
                print(text, file=sys.stderr, flush=True)

    def interrupted(self) -> None:
        """Ctrl-C: ask at a terminal whether the run's jobs shall be cancelled; elsewhere leave them."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        jobs = [self.job, *self.others()]
        if sys.stdin.isatty() and sys.stderr.isatty():
            there = f"jobs {', '.join(jobs)} run on. Cancel them?" if jobs[1:] else f"job {self.job} runs on. Cancel it?"
            try:
                print(f"\nSlurm {there} [y/N] ", end="", file=sys.stderr, flush=True)
                answer = sys.stdin.readline()
            except KeyboardInterrupt:
                answer = ""
            if answer.strip().lower() in ("y", "yes"):
                for job in jobs:
                    slurm_queue.cancel(job)
                print(f"{self.title}: cancelled Slurm job {', '.join(jobs)}", file=sys.stderr, flush=True)
                return
        attach = f"; to attach to it: {self.command}" if self.command else ""
        self.say(f"is left in the queue{attach}; to cancel {'them' if jobs[1:] else 'it'}: scancel {' '.join(jobs)}")

    def why(self, status: Status) -> str:
        """Why the job ended: a rank's own words, or Slurm's state and reason with the end of the log."""
        from cluster.slurm_job import BROKEN, LOST, TOLD, read_words

        words = read_words(str(self.words), self.job) if status.state == "FAILED" else None
        if words and words["kind"] == TOLD:
            return words["line"]
        how = ENDS.get(status.state, "ended badly")
        if status.state == "FAILED":
            code, number = (int(part or 0) for part in f"{status.exit}:".split(":")[:2])
            how = f"failed with exit status {code}"
            if number := number or max(0, code - 128):  # srun adds 128
                how = f"failed: a rank was killed by signal {number} (9: out of memory?): run it again and it goes on"
            if words and words["kind"] == LOST:
                how = f"failed: rank {words['rank']} lost the others: {words['line']}"
            if words and words["kind"] == BROKEN:
                how = f"failed: rank {words['rank']} met a fault of the code: {words['line']}"
        reason = f", {status.reason}" if status.reason else ""
        return f"{self.title}: Slurm job {self.job} {how} ({status.state}{reason}); the end of {self.log}:\n{self.tail()}"

    def tail(self) -> str:
        """The log's last lines, indented."""
        try:
            lines = self.log.read_bytes()[-20000:].decode(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line for line in lines if not line.startswith(NOISE)][-TAIL:]
        return "\n".join(f"  {line}" for line in said or ["(nothing was written)"])


def appears(what: Callable[[], bool]) -> bool:
    """Whether something on the shared disk is there, or comes within the time that such a disk takes."""
    limit = time.monotonic() + SHARED
    while not (there := what()) and time.monotonic() < limit:
        time.sleep(LOOK)
    return there


def seconds(text: str) -> int:
    """Slurm's notation of a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]."""
    days, dash, rest = text.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if dash or len(numbers) == 3:
        hours, minutes, left = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, left) = 0, [*numbers, 0][:2]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + left
