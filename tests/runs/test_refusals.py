"""Settings, data and weights that cannot be trained from are refused before the first step."""

from pathlib import Path

import pytest
from makers.project import Project

from pipeline.ground.errors import UserError
from pipeline.runs import folders, trainer
from pipeline.training import checkpoint


def test_unknown_names_say_what_is_known(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert project.stage("train", "fnc") == 2
    assert "did you mean fcn" in capfd.readouterr().err


MISTAKES = {
    "head": ({"head": {"name": "fnc"}}, "methods.ecrf.head: 'fnc' is no head; did you mean fcn; known: "),
    "option": ({"head": {"name": "fcn", "widht": 3}}, "methods.ecrf.head.widht is unknown"),
    "value": ({"head": {"name": "fcn", "width": "wide"}}, "methods.ecrf.head.width"),
    "combination": ({"superpixels": "none"}, "averages over superpixels"),
    "backbone": ({"backbone": {"name": "resnet19"}}, "resnet19"),
    "part": ({"train": {"multipliers": {"haed": 10}}}, "'haed' is no part"),
    "batch of one": ({"train": {"batch_size": 1}}, "batch of 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_last_method_stops_the_first(project: Project, mistake: str, capfd: pytest.CaptureFixture[str]) -> None:
    change, words = MISTAKES[mistake]
    project.params["methods"]["ecrf"] |= change
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (project.folder / "runs").exists()


def test_one_image_of_one_pixel_cannot_be_normalised(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.params["data"]["crop"], project.params["train"]["batch_size"] = [16, 16], 1
    assert project.stage("train", "fcn") == 2
    said = "data.crop [16, 16] is one pixel at the backbone's stride 16, which a batch of 1 cannot normalise"
    assert f"methods.fcn: {said}" in capfd.readouterr().err
    del project.params["methods"]["ecrf"], project.params["evaluations"]["ecrf"]
    project.params["train"]["iterations"], project.params["train"]["warmup"] = 1, 0
    project.params["data"]["crop"] = [16, 17]
    assert project.stage("train", "fcn") == 0


def test_weights_that_are_none_are_refused(workspace: Path) -> None:
    for content in (b"", b"not weights", b"PK\x03\x04"):
        Path("x.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.pt is no weights file"):
            checkpoint.read_weights(Path("x.pt"))


def test_data_that_changed_since_the_start_is_refused(project: Project, capfd: pytest.CaptureFixture[str]) -> None:

    config = project.config("fcn")
    manifest = project.folder / "data/prepared.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(UserError, match="has changed since this was started"):
        trainer.train(config)
    assert not folders.is_finished(config)


def test_data_of_another_dataset_is_refused(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = project.folder / "data/prepared.json"
    manifest.write_text(manifest.read_text().replace('"dataset": "scenes"', '"dataset": "camvid"'))
    for stage in ("train", "evaluate"):
        assert project.stage(stage, "fcn") == 2
        assert "data.dataset is scenes, but data/prepared.json is of camvid" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": {"pretrained": "typo.pth"}}, "typo.pth does not exist"),
        ({"loss": {"name": "cross_entropy", "unary_weight": -1}}, "unary_weight"),
        ({"head": {"name": "deeplab", "decoder": "false"}}, "methods.ecrf.head.decoder: must be False as YAML writes it, not 'false'"),
        ({"head": {"name": "deeplab", "width": 16.0}}, "methods.ecrf.head.width"),
        ({"superpixels": {"algorithm": "slic"}}, "is no superpixel set"),
    ],
)
def test_values_that_the_code_would_refuse_later_are_refused_first(
    project: Project, change: dict, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    project.params["methods"]["ecrf"] |= change
    assert project.stage("train", "fcn") == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said
