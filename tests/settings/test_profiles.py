"""Launch profiles: what a file says, and the line that a mistake gets."""

from pathlib import Path

import pytest

from pipeline.ground.errors import UserError
from pipeline.settings.profiles import PROFILES, Ray, Slurm, load_profile


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_loads_and_says_what_it_is_for(path: Path) -> None:
    launch = load_profile(path.stem)
    assert launch.name == path.stem
    assert {name for name in ("slurm", "ray") if getattr(launch, name) is not None} == {launch.backend} - {"local"}
    assert path.read_text().startswith("# ")


def test_a_backend_has_its_section_with_or_without_it_in_the_file(tmp_path: Path) -> None:
    assert load_profile(write(tmp_path, "backend: slurm\n")).slurm == Slurm()
    assert load_profile(write(tmp_path, "backend: ray\nray: {cpus: 3}\n")).ray == Ray(cpus=3)
    text = "backend: slurm\nnodes: 4\nprocesses: 8\nslurm: {partition: gpu, time: 2-00:00:00, memory: 500G, setup: [module load cuda]}\n"
    launch = load_profile(write(tmp_path, text))
    assert launch.world == 32
    assert launch.slurm == Slurm(partition="gpu", time="2-00:00:00", memory="500G", setup=("module load cuda",))
    assert load_profile(write(tmp_path, "backend: ray\nray: {elastic: [2, 4]}\n")).world == 4


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "backend: slrum\n": "backend",
        "{}\n": "backend is missing",
        "backend: local\nnodse: 2\n": "nodse is unknown; did you mean nodes",
        "backend: local\nnodes: 2\n": "backend local is one machine",
        "backend: local\nslurm: {}\n": "slurm is a section of backend slurm, and this profile's is local",
        "backend: slurm\nslurm: {partitoin: x}\n": "slurm.partitoin is unknown; did you mean partition",
        "backend: slurm\nslurm: {time: tomorrow}\n": "slurm.time",
        "backend: slurm\nslurm: {memory: 0G}\n": "slurm.memory",
        "backend: slurm\nslurm: {gpus: -1}\n": "slurm.gpus",
        "backend: slurm\nslurm: here\n": "slurm must be a mapping",
        "backend: slurm\nprocesses: 0\n": "processes",
        "backend: ray\nray: {elastic: [4, 2]}\n": "elastic must be [fewest, most]",
        "backend: ray\nray: {failures: many}\n": "ray.failures",
        "backend: local\ncheckpoints: 3\n": "checkpoints",
        "backend: local\ncheckpoints: ''\n": "checkpoints",
        "- backend\n": "must be a mapping",
    }.items(),
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_profile(write(tmp_path, text))
    assert words in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
