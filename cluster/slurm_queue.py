"""What Slurm says about a job, and what may be asked of it: scontrol while it remembers the job, then the accounts (sacct)."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from pipeline.ground.errors import UserError

ENDED = frozenset(
    ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "REVOKED", "GONE"]
)
# Slurm keeps such a job in its queue for ever.
HOPELESS = {
    "PartitionNodeLimit": "it wants more nodes than the partition has or allows",
    "PartitionTimeLimit": "its slurm.time is longer than the partition allows",
    "PartitionConfig": "the partition has fewer nodes, or none with as many processors or as much memory",
    "BadConstraints": "no node has what it wants",
    "InvalidAccount": "slurm.account is not valid",
    "InvalidQOS": "slurm.qos is not valid",
}
HELD = "launch_failed_requeued_held"  # a node could not start the job, and Slurm waits for somebody to release it
WAIT = 60  # seconds for an answer


@dataclass(frozen=True)
class Status:
    """A job as Slurm tells it. `state` GONE: neither Slurm nor its accounts know the job any more; UNKNOWN: Slurm does not answer."""

    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    exit: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ENDED


def require() -> None:
    """Refuse a machine without Slurm."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("backend slurm: there is no sbatch here: run this on a login node of the cluster, or elsewhere with LAUNCH=local")


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; a command that is absent or takes too long has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT, env=environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def environment() -> dict[str, str]:
    """The environment without what changes the form of Slurm's answers."""
    form = ("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")
    return {name: value for name, value in os.environ.items() if not name.startswith(form)}


def status(job: str) -> Status:
    """What Slurm knows about a job now."""
    answer = ask("scontrol", "show", "job", "-o", job)
    if answer.returncode == 0 and "JobState=" in answer.stdout:
        return parse(answer.stdout.splitlines()[0])
    if "Invalid job id" not in answer.stderr:
        return Status("UNKNOWN", answer.stderr.strip())
    accounts = ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,Reason,NodeList,ExitCode")
    lines = accounts.stdout.splitlines() if accounts.returncode == 0 else []
    if not lines:
        return Status("GONE")
    state, reason, nodes, code = lines[-1].split("|")
    return Status(state.split()[0], "" if reason == "None" else reason, nodes, 0, code)  # "CANCELLED by 1000"


def parse(line: str) -> Status:
    """One line of `scontrol show job -o`."""

    def value(name: str) -> str:
        found = re.search(rf"(?:^| ){name}=(\S*)", line)
        return "" if found is None or found[1] in ("None", "(null)") else found[1]

    return Status(value("JobState"), value("Reason"), value("NodeList"), int(value("Restarts") or 0), value("ExitCode"))


def cancel(job: str) -> None:
    """Cancel a job."""
    ask("scancel", job)


def release(job: str) -> None:
    """Let a job that Slurm holds wait for its turn."""
    ask("scontrol", "release", job)


def find(comment: str) -> str | None:
    """My job (or array) with this comment that is in the queue."""
    for line in ask("squeue", "--me", "-h", "-o", "%F %k").stdout.splitlines():
        job, _, said = line.partition(" ")
        if said.strip() == comment:
            return job
    return None
