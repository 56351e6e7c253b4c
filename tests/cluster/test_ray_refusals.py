"""What Ray cannot be asked for is one line: an address, a storage or a release."""

import re
import sys

import pytest
from makers.project import Project
from makers.ranks import free_port
from makers.ray_marks import MARKS

pytestmark = [*MARKS, pytest.mark.usefixtures("ray_environment", "bounded")]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:{port}", r"no Ray cluster answers at 127.0.0.1:\d+: .*refused"),
        ("nowhere.invalid:6379", "no Ray cluster answers at nowhere.invalid:6379"),
        ("ray://127.0.0.1:10001", "run the command on a node of the cluster"),
        ("here", "ray.address must be auto or host:port"),
    ],
)
def test_an_address_where_nobody_answers_is_one_line(away: Project, capsys: pytest.CaptureFixture[str], address: str, words: str) -> None:
    away.profile["ray"] = {"address": address.format(port=free_port())}
    assert away.stage("train", "fcn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


@pytest.mark.parametrize("storage", ["params.yaml/here", "s4://bucket/runs", "file:///proc/here"])
def test_a_storage_that_cannot_be_written_is_one_line(away: Project, capsys: pytest.CaptureFixture[str], storage: str) -> None:
    away.profile["ray"] = {"storage": storage, "address": "127.0.0.1:9"}
    assert away.stage("train", "fcn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write ray.storage ")
    assert storage in line


def test_another_release_of_ray_is_one_line(away: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that we replace has another name there: ours would never be called."""
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

    for name in ("cluster.ray_policies", "cluster.ray_train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(ElasticScalingPolicy, "_count_possible_workers")
    assert away.stage("train", "fcn") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"^error: Ray [\d.]+ is not the one that .*ElasticScalingPolicy has no _count_possible_workers", line)
