"""Large images are predicted by windows, blocks and rows, in little memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers.predictions import CLASSES, images
from PIL import Image

from pipeline.evaluation import inference
from pipeline.release import predictor
from pipeline.release.predictor import Predictor
from pipeline.superpixels.slic import label_map


def test_a_large_image_goes_by_windows_and_its_superpixels_by_blocks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "LEAST", 512)
    made = Predictor.load("ecrf")
    seen: list[tuple[int, ...]] = []
    made.network.model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 900, 3), np.uint8))
    monkeypatch.setattr(predictor, "WHOLE", 900 * 70)
    assert made(picture).shape == (70, 900)
    assert seen == [(1, 3, 70, 900)]
    monkeypatch.setattr(predictor, "WHOLE", 900 * 70 - 1)
    assert made(picture).shape == (70, 900)
    assert seen[1:] == [(1, 3, 512, 512)] * 2  # at 0 and 388
    monkeypatch.setattr(predictor, "BLOCK", 400)
    assert made.superpixels is not None
    labels_HW = predictor.superpixels_of(picture, made.superpixels)
    with monkeypatch.context() as whole:  # as the stage makes them, where the network takes the image at once
        whole.setattr(predictor, "WHOLE", 900 * 70)
        np.testing.assert_array_equal(predictor.superpixels_of(picture, made.superpixels), label_map(np.asarray(picture), made.superpixels))
    first = label_map(np.asarray(picture)[:, :300], made.superpixels)
    np.testing.assert_array_equal(labels_HW[:, :300], first)
    assert labels_HW[:, 300:].min() == first.max() + 1
    assert len(np.unique(labels_HW)) == labels_HW.max() + 1


def test_images_beyond_pillows_limit_open_from_python_too(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 50)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert Predictor.load("fcn")(tmp_path / "x.png").shape == (50, 40)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("protocol", [{}, {"scales": (0.75, 1.0), "flip": True}, {"short_side": 50, "flip": True}])
def test_rows_give_what_the_whole_map_gives(protocol: dict[str, Any], project: Path) -> None:
    """Strips of all views at once against one view after the other, with superpixels and probabilities."""
    made = Predictor.load("ecrf", window=(32, 40), **protocol)
    picture = made.image(next(iter(images().values())))
    assert made.superpixels is not None
    superpixels_HW = predictor.superpixels_of(picture, made.superpixels)
    kept: list[list[tuple[int, torch.Tensor]]] = [[], []]
    wanted = inference.predict(
        made.network, picture, superpixels_HW, made.protocol, CLASSES, lambda start, part: kept[0].append((start, part.clone()))
    )
    windows: list[tuple[str, int, int]] = []
    found_HW = made(picture, lambda start, part: kept[1].append((start, part.clone())), lambda *told: windows.append(told))
    np.testing.assert_array_equal(found_HW, wanted.multi_HW)
    assert [start for start, _ in kept[0]] == [start for start, _ in kept[1]]
    for (_, one), (_, other) in zip(*kept, strict=True):
        torch.testing.assert_close(one, other)
    done = [count for what, count, _ in windows if what == "windows"]
    assert done == list(range(1, windows[-1][2] + 1))


def test_memory_of_a_large_image_does_not_grow_with_its_classes(tmp_path: Path) -> None:
    """60 classes at 2000 x 3000, four views: a map of all would take 1.4 GB; the process grows by less than a third of that."""
    import subprocess
    import sys

    script = """
import resource, numpy, torch
from PIL import Image
from models.parts.layers import Output
from pipeline.evaluation.inference import Network
from pipeline.settings.profiles import Launch
from pipeline.settings.schema import Evaluation
from pipeline.release.streaming import predict_by_rows

class Quick(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 60, 1, stride=4)
    def forward(self, image, superpixels=None):
        return Output(self.conv(image), image, {})

torch.set_num_threads(1)
picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (2000, 3000, 3), numpy.uint8))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
protocol = Evaluation(name="x", of="x", split="", mode="slide", window=(512, 512), stride=(448, 448), scales=(0.5, 1.0), flip=True,
                      launch=Launch(name="x", backend="local"))
before = peak()
rows = []
predict_by_rows(Network(Quick().eval(), (0.5, 0.5, 0.5)), picture, None, protocol, 60, lambda start, part: rows.append(part.shape[1]))
assert sum(rows) == 2000
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout) < 450
