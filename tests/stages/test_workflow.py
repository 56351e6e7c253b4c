"""`dvc repro` as a user runs it, in a copy of the project with tiny numbers: what runs, what does not, and what a kill leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from makers.project import PROFILE, TINY

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
EVERYTHING = {
    "download", "prepare", "superpixels@none", "superpixels@slic", "train@fcn", "train@ecrf", "evaluate@fcn", "evaluate@ecrf", "report",
    "figures",
}  # fmt: skip


class Copy:
    """A copy of the project that DVC runs in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True).stdout
        for name in filter(None, names.decode().split("\0")):
            if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        self.params: dict[str, Any] = json.loads(json.dumps(TINY))
        self.write()
        (folder / "profile.yaml").write_text(yaml.safe_dump(PROFILE))
        subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start"], cwd=folder, check=True)

    def write(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("DATA_STORE", "DATA_ARCHIVES", "LAUNCH")}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        environment["SHELL"] = "/bin/sh"  # where that is dash, it stays between DVC and the stage
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def dvc(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == status, said
        return said

    def repro(self) -> tuple[set[str], str]:
        """Run everything that is stale; the stages that ran, and what was said."""
        self.write()
        said = self.dvc("repro")
        return set(re.findall(r"Running stage '([^']+)'", said)), said

    def weights(self, name: str, seed: int = 0) -> bytes:
        return (self.folder / f"runs/{name}/weights/seed-{seed}.pt").read_bytes()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """The copy after its first `dvc repro`; the tests below edit it one after the other."""
    made = Copy(tmp_path_factory.mktemp("copy"))
    ran, said = made.repro()
    assert ran == EVERYTHING
    assert "report/index.md" in said
    assert "fcn" in said
    assert "ecrf" in said
    return made


def test_the_first_run_made_everything_and_the_second_does_nothing(copy: Copy) -> None:
    for name in ("fcn", "ecrf"):
        results = json.loads((copy.folder / f"results/{name}.json").read_text())
        assert 0 <= results["single_scale"]["miou"] <= 1
        assert list((copy.folder / f"results/{name}/pictures").glob("*.png"))
    assert (copy.folder / "report/index.md").is_file()
    assert (copy.folder / "report/index.html").is_file()
    assert list((copy.folder / "figures").glob("messages-ecrf-*.svg"))
    ran, said = copy.repro()
    assert ran == set(), said
    assert subprocess.run(["git", "status", "--short"], cwd=copy.folder, capture_output=True, text=True).stdout.split() == [
        "??",
        "dvc.lock",
    ]


def test_metrics_plots_and_params_are_shown(copy: Copy) -> None:
    assert "miou" in copy.dvc("metrics", "show", "--md")
    assert "plots" in copy.dvc("plots", "show", "-o", "plots")
    copy.params["train"]["lr"] = 0.011
    copy.write()
    assert "train.lr" in copy.dvc("params", "diff")
    copy.params["train"]["lr"] = TINY["train"]["lr"]


def test_one_methods_number_retrains_that_method(copy: Copy) -> None:
    before = copy.weights("fcn"), copy.weights("ecrf")
    copy.params["methods"]["ecrf"]["head"]["rates"] = [1, 3]
    ran, said = copy.repro()
    assert ran == {"train@ecrf", "evaluate@ecrf", "report", "figures"}
    assert "ecrf, seed 0: training from step 0" in said
    assert copy.weights("fcn") == before[0]
    assert copy.weights("ecrf") != before[1]


def test_one_methods_file_retrains_that_method(copy: Copy) -> None:
    before = copy.weights("ecrf")
    path = copy.folder / "models/heads/fcn.py"
    path.write_text(path.read_text() + "# edited\n")
    ran, said = copy.repro()
    assert ran >= {"train@fcn"}
    assert ran <= {"train@fcn", "evaluate@fcn", "report", "figures"}
    assert "fcn, seed 0: training from step 0" in said
    assert "code.models/heads/fcn.py changed" in said
    assert copy.weights("ecrf") == before


def test_another_count_of_superpixels_touches_its_readers_alone(copy: Copy) -> None:
    copy.params["superpixels"]["slic"]["segments"] = 20
    ran, _ = copy.repro()
    assert ran == {"superpixels@slic", "train@ecrf", "evaluate@ecrf", "report", "figures"}


def test_another_seed_trains_that_seed(copy: Copy) -> None:
    copy.params["train"]["seeds"] = [0, 1]
    ran, said = copy.repro()
    assert ran == {"train@fcn", "train@ecrf", "evaluate@fcn", "evaluate@ecrf", "report", "figures"}
    for name in ("fcn", "ecrf"):
        assert f"{name}, seed 0: finished before" in said
        assert f"{name}, seed 1: training from step 0" in said
        assert json.loads((copy.folder / f"results/{name}.json").read_text())["seeds"] == [0, 1]


def test_deleting_all_checkpoints_retrains_nothing(copy: Copy) -> None:
    assert list(copy.folder.glob("runs/*/checkpoints"))
    for path in copy.folder.glob("runs/*/checkpoints"):
        shutil.rmtree(path)
    assert copy.repro()[0] == set()


def test_dvc_killed_in_mid_training_leaves_no_orphan_and_the_same_bits(copy: Copy) -> None:
    """kill -9 of DVC: the stage ends with it, and the next `dvc repro` goes on to the same weights."""
    copy.params["train"] |= {"seeds": [0], "iterations": 400}  # seconds of work left when the first checkpoint is seen
    copy.write()
    for path in copy.folder.glob("runs/fcn/checkpoints"):  # so that the first one seen is of this training
        shutil.rmtree(path)
    process = copy.start("repro", "train@fcn")
    limit = time.monotonic() + 120
    while not list(copy.folder.glob("runs/fcn/checkpoints/*/seed-0/step-*.pt")):
        assert time.monotonic() < limit
        time.sleep(0.005)
    job = json.loads((copy.folder / "runs/fcn/seed-0/job.json").read_text())
    process.kill()
    process.communicate()
    while Path(f"/proc/{job['process']}").exists() and "Z" not in Path(f"/proc/{job['process']}/stat").read_text().rsplit(")")[1][:4]:
        assert time.monotonic() < limit
        time.sleep(0.01)
    said = copy.dvc("repro", "train@fcn")
    assert "training from step" in said, said
    assert "training from step 0" not in said, said
    resumed = copy.weights("fcn")
    for path in [*copy.folder.glob("runs/fcn/checkpoints"), *copy.folder.glob("runs/fcn/finished")]:
        shutil.rmtree(path)
    assert "training from step 0" in copy.dvc("repro", "--force", "--no-run-cache", "--single-item", "train@fcn")
    assert copy.weights("fcn") == resumed
    assert -process.returncode == signal.SIGKILL


def test_a_mistake_is_one_line_before_anything_runs(copy: Copy) -> None:
    copy.params["methods"]["ecrf"]["head"]["name"] = "deeplap"
    copy.params["train"]["lr"] = 0.5
    copy.write()
    (copy.folder / "models/heads/deeplap.py").write_text("# DVC itself asks for the file\n")
    said = copy.dvc("repro", "train@fcn", status=255)
    assert "error: params.yaml: methods.ecrf.head: 'deeplap' is no head; did you mean deeplab" in said
    assert "Traceback" not in said
