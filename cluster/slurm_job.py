"""What runs inside a Slurm job, on every rank: who it is, what it does when it is warned, and the words that it leaves behind.

Slurm warns with USR2 before the time limit and, where it is set up so, before a preemption; elsewhere a preemption begins with
TERM. A training then saves a checkpoint and rank 0 puts the job back into the queue, as often as it takes.
"""

import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from submitit.helpers import DelayedSubmission, TorchDistributedEnvironment

from cluster import slurm_queue
from pipeline.ground import files, stopping
from pipeline.ground.errors import UserError, words

TOLD, LOST, BROKEN = "told", "lost", "broken"  # how a rank failed: with its own words, because another was gone, by a fault of the code
WARNINGS = {signal.SIGUSR2, signal.SIGTERM}
GRACE = 10.0  # seconds in which the rank that is the cause may end before those that only lost it
END = 90.0  # seconds until Slurm ends a job that was put back into the queue
LATE = 60.0  # how early Slurm's warning may come


@dataclass(frozen=True, kw_only=True)
class Job:
    """What submitit stores. It is light to load, so that a warning is heard from the first second; the work is unpacked later."""

    payload: bytes  # the pickled work and its config
    words: str  # the start of the files with the ranks' words; each start of the job has its own
    resumes: bool = True  # whether the work stops at a step when it is asked to
    limit: float  # seconds that Slurm grants, less the warning
    pinned: Mapping[str, str] = field(default_factory=dict)  # files that must still have these SHA-256, or it is other work
    kept: tuple[tuple[str, str], ...] = ()  # results and where a copy of each is kept until a stage collects it

    def __call__(self) -> None:
        """Run the work on this rank."""
        self.listen()
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            self.verify()
            work, config = pickle.loads(self.payload)
            work(config)
            if rank() == 0:
                self.keep()
        except stopping.StoppedError as error:
            print(error, file=sys.stderr, flush=True)
            self.go_on_later()
        except Exception as error:
            self.leave_words(error)
            raise SystemExit(1) from None

    def checkpoint(self) -> DelayedSubmission:
        """What submitit, which knows nothing of our handler, takes for a job that may be requeued."""
        return DelayedSubmission(self)

    def listen(self) -> None:
        """Take Slurm's warnings, which every process of the job gets, also those that the work has forked."""
        began, process = time.monotonic(), os.getpid()

        def warned(number: int, frame: FrameType | None) -> None:
            if os.getpid() != process:
                if number == signal.SIGTERM:  # of the parent's death or end, or of Slurm, whom the parent answers first
                    signal.alarm(int(GRACE))
                return
            print(f"rank {rank()}: warned by {signal.Signals(number).name}", file=sys.stderr, flush=True)
            if self.resumes:
                stopping.asked.set()
            elif number == signal.SIGUSR2 and time.monotonic() - began > self.limit - LATE:
                raise UserError("it takes longer than slurm.time and cannot be resumed: raise slurm.time in the launch profile")
            else:
                self.go_on_later()

        for number in WARNINGS:
            signal.signal(number, warned)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WARNINGS)  # what came since the rank was started comes now

    def verify(self) -> None:
        """Refuse inputs that are others than those the job was submitted for."""
        if rank() == 0:
            for path, known in self.pinned.items():
                if not Path(path).is_file() or files.sha256(Path(path)) != known:
                    raise UserError(f"{path} has changed since this was submitted: run the stage again")

    def keep(self) -> None:
        """Copy the results, for DVC deletes a stage's outputs when the stage starts, which may be after this job ended."""
        for source, goal in self.kept:
            copy_tree(Path(source), Path(goal))

    def go_on_later(self) -> None:
        """Rank 0: put the job back into the queue unless it was cancelled; the others wait for the end."""
        if rank() == 0:
            now = slurm_queue.status(own_id())
            if now.state == "PENDING":
                return  # Slurm has put it back already, for a node was lost; on this one it cannot start before we have ended
            over = now.ended or now.state == "COMPLETING"  # not SIGNALING, which it is while a warning is being delivered
            if over and not (self.resumes and now.reason == "TimeLimit"):
                return  # it was cancelled, or ends anyway
            for _ in range(3):
                done = slurm_queue.ask("scontrol", "requeue", own_id())
                if done.returncode == 0:
                    break
                print(f"scontrol requeue: {done.stderr.strip()}", file=sys.stderr, flush=True)
                time.sleep(2)
            else:
                raise SystemExit(1)
        time.sleep(END)

    def leave_words(self, error: Exception) -> None:
        """Write why this rank fails to where the stage finds it, and a fault's traceback to the log."""
        from cluster.local import is_loss

        kind = LOST if is_loss(error) else TOLD if words(error) is not None else BROKEN
        line = words(error) or " ".join(f"{type(error).__name__}: {error}".split())
        if kind == BROKEN:
            traceback.print_exc()
        print(f"rank {rank()}: {line}", file=sys.stderr, flush=True)
        path = Path(f"{self.words}.{own_id()}.{os.environ.get('SLURM_RESTART_COUNT', '0')}.{rank()}.json")
        files.write_json(path, {"kind": kind, "line": line, "rank": rank()})
        if kind == LOST:
            time.sleep(GRACE)


def rank() -> int:
    """This task's number in the job."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def own_id() -> str:
    """This job's id; that of an array's element, for the number alone may name the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def read_words(start: str, job: str) -> dict[str, str] | None:
    """The words of the rank that is the cause, of the job's latest start that left any."""
    found = []
    for path in Path(start).parent.glob(f"{Path(start).name}.{job}.*.json"):
        _, restart, number, _ = path.name.rsplit(".", 3)
        found.append((-int(restart), [TOLD, BROKEN, LOST].index(json.loads(path.read_bytes())["kind"]), int(number), path))
    return json.loads(min(found)[-1].read_bytes()) if found else None


def copy_tree(source: Path, goal: Path) -> None:
    """Copy a file, or a folder's files, each whole or not at all."""
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if path.is_file():
            files.write_bytes(goal / path.relative_to(source) if path != source else goal, path.read_bytes())
