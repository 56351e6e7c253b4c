"""The code in an exported run's card that loads its files: it runs as it stands in the files' folder, beside street.jpg."""

from collections.abc import Set

from pipeline.release import graph, released
from pipeline.settings.schema import SuperpixelSet

PREDICT = """from pipeline.release.predictor import Predictor

predictor = Predictor.load(".")  # this folder
labels = predictor("street.jpg")  # [height, width], ids of predictor.classes"""
PIXELS = """import numpy as np
from PIL import Image, ImageOps

pixels = np.asarray(ImageOps.exif_transpose(Image.open("street.jpg")).convert("RGB"))
image = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255"""
SUPERPIXELS = """

from skimage.segmentation import slic

superpixels = {}[None].astype(np.int64)"""
RUN_ONNX = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["logits"], {{"image": image{}}})[0]
labels = logits.argmax(1)[0]"""
RUN_TORCH = """import torch

network = torch.export.load("model.pt2").module()
logits = network(torch.from_numpy(image){})
labels = logits.argmax(1)[0].numpy()"""


def loading(names: Set[str], superpixels: SuperpixelSet | None) -> str:
    """How each file is loaded, as code that runs as it stands beside an image."""
    ways = []
    if released.WEIGHTS in names:
        ways.append(("With this project's code on the path, an image of any size:", PREDICT))
    if names & {graph.ONNX, graph.TORCH}:
        more = "" if superpixels is None else SUPERPIXELS.format(slic(superpixels))
        ways.append(("Without it, an image for the graphs:", PIXELS + more))
    if graph.ONNX in names:
        ways.append(("`model.onnx` with onnxruntime:", RUN_ONNX.format("" if superpixels is None else ', "superpixels": superpixels')))
    if graph.TORCH in names:
        ways.append(("`model.pt2` with torch:", RUN_TORCH.format("" if superpixels is None else ", torch.from_numpy(superpixels)")))
    return "\n".join(f"{title}\n\n```python\n{lines}\n```\n" for title, lines in ways)


def slic(settings: SuperpixelSet) -> str:
    """The call that makes the superpixels of `image`, as in pipeline/superpixels/slic.py."""
    zero = ", slic_zero=True" if settings.algorithm == "slico" else ""
    numbers = f"n_segments={settings.segments}, compactness={settings.compactness:g}, sigma={settings.sigma:g}"
    return f"slic(pixels, {numbers}, start_label=0{zero})"
