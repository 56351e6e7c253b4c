"""A network as a graph that runs without this project: traced once, written as ONNX and as torch.export's .pt2, and checked.

Both come from one trace of models/portable. A check runs the written file, as others would, and compares it with the network itself.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.parts.layers import size_of
from models.portable import Portable
from models.segmenter import Segmenter
from pipeline.ground import files
from pipeline.ground.errors import UserError

ONNX, TORCH = "model.onnx", "model.pt2"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
CLOSE = 1e-3  # the largest difference of logits, as a share of the largest logit
EQUAL = 0.999  # the least share of pixels with the same label
Inputs = tuple[Tensor, ...]  # an image B3HW in [0, 1] and, where the method has them, superpixels BHW int64
Runner = Callable[[Inputs], NDArray[np.float32]]


@dataclass(frozen=True)
class Traced:
    """The graph, and whether height and width are free, or those that it was traced with."""

    program: Any
    free: bool
    names: tuple[str, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Check:
    """A written file against the network: over all inputs, the largest difference, the largest logit, the share of equal labels."""

    inputs: int
    sizes: tuple[tuple[int, int], ...]
    difference: float
    largest: float
    equal: float

    @property
    def passed(self) -> bool:
        """Whether the file may be used in the network's place."""
        return self.difference <= CLOSE * max(1.0, self.largest) and self.equal >= EQUAL


def missing_libraries() -> list[str]:
    """What is not installed of that which writes and runs ONNX."""
    return [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def trace(model: Segmenter, example: Inputs, *, free: bool = True) -> Traced:
    """The graph with a free batch and `free` height and width, or the example's.

    UserError: the reason why there is none. The example has a batch of at least 2, or its 1 would be taken for a constant.
    """
    try:
        portable = Portable(model)
    except ValueError as error:
        raise UserError(f"it has no form for other programs: {error}") from None
    names = ("image", "superpixels")[: len(example)]
    try:
        return Traced(_traced(portable, example, names, free=free), free, names, size_of(example[0]))
    except Exception as error:  # of many kinds
        raise UserError(f"torch.export cannot trace it: {told(error)}") from None


def _traced(portable: Portable, example: Inputs, names: Sequence[str], *, free: bool) -> Any:
    # Sizes of 1 and 0 are not told apart from others: small maps, whose sides may be 1, are no cases of their own.
    import torch.fx.experimental._config as flags

    settings: Any = flags

    axes = {name: {0: torch.export.Dim.DYNAMIC} for name in names}
    if free:
        for name in names:
            first = 2 if name == "image" else 1
            axes[name] |= {first: torch.export.Dim.DYNAMIC, first + 1: torch.export.Dim.DYNAMIC}
    with quiet(), torch.no_grad(), settings.patch(backed_size_oblivious=True):
        portable.settle(*example)
        program = torch.export.export(portable, example, dynamic_shapes=axes, strict=False)
    if ours := sorted({str(node.target) for node in program.graph.nodes if str(node.target).startswith("segmentation.")}):
        raise RuntimeError(f"its graph has operations of this project: {', '.join(ours)}")
    return program


def told(error: Exception) -> str:
    """The first line of an error of torch's, whose others are whole graphs."""
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Torch prints whole graphs where a trace fails, and advice where it does not; what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_torch(traced: Traced, path: Path) -> None:
    """Write model.pt2, which `torch.export.load(path).module()` runs, whole or not at all."""
    buffer = io.BytesIO()
    with quiet():
        try:
            torch.export.save(traced.program, buffer)
        except Exception as error:
            raise UserError(f"torch.export cannot write it: {told(error)}") from None
    files.write_bytes(path, buffer.getvalue())


def write_onnx(traced: Traced, path: Path, metadata: Mapping[str, str]) -> None:
    """Write model.onnx with input names, free axes by name and `metadata`, whole or not at all. UserError: an operation ONNX lacks."""
    axes = ("batch", "height", "width")
    with quiet():
        try:
            made = torch.onnx.export(
                traced.program, (), dynamo=True, verbose=False, input_names=list(traced.names), output_names=["logits"], optimize=True
            )
        except Exception as error:
            raise UserError(f"torch.onnx cannot write it: {told(error)}") from None
        assert made is not None
        model = made.model_proto
    free = axes if traced.free else axes[:1]
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        for axis, side in zip(("batch", "height", "width"), [sides[0], *sides[-2:]], strict=True):
            if axis in free:
                side.dim_param = axis
    for key, text in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    files.write_bytes(path, model.SerializeToString())


def torch_runner(path: Path) -> Runner:
    """The written .pt2 as a function from inputs to logits."""
    with quiet():
        module = torch.export.load(path).module()

    def run(inputs: Inputs) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(*inputs).numpy()

    return run


def onnx_runner(path: Path) -> Runner:
    """The written .onnx as a function from inputs to logits, by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> NDArray[np.float32]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return np.asarray(session.run(None, given)[0], np.float32)

    return run


def original(model: Segmenter) -> Runner:
    """The network itself, its logits brought to the image's size."""

    def run(inputs: Inputs) -> NDArray[np.float32]:
        with torch.inference_mode():
            output = model(*inputs)
            resized = F.interpolate(output.logits_BKhw, size_of(inputs[0]), mode="bilinear", align_corners=output.align_corners)
            return resized.float().numpy()

    return run


def check(runner: Runner, reference: Runner, inputs: Sequence[Inputs]) -> Check:
    """Compare what two give for each of the inputs. UserError: the runner's graph does not run, or gives another shape."""
    difference = largest = 0.0
    equal = pixels = 0
    for each in inputs:
        wanted_BKHW = reference(each)
        try:
            found_BKHW = runner(each)
        except Exception as error:  # of many kinds
            raise UserError(f"the exported file does not run on {tuple(each[0].shape)}: {told(error)}") from None
        if found_BKHW.shape != wanted_BKHW.shape:
            raise UserError(f"the exported file gives {found_BKHW.shape}, the network {wanted_BKHW.shape}")
        gap = np.abs(found_BKHW - wanted_BKHW).max()
        difference = max(difference, float(gap) if np.isfinite(gap) else np.inf)
        largest = max(largest, float(np.abs(wanted_BKHW).max()))
        equal += int((found_BKHW.argmax(1) == wanted_BKHW.argmax(1)).sum())
        pixels += found_BKHW[:, 0].size
    return Check(len(inputs), tuple(dict.fromkeys(size_of(each[0]) for each in inputs)), difference, largest, equal / pixels)
