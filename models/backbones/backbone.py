"""timm's feature pyramids, dilated to the stride that is asked for, and MiT's."""

import difflib
import logging
import os
import re
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import mit, weights
from models.parts.layers import size_of

# timm takes seconds to import, so that each function here imports it itself.

Triple = tuple[float, float, float]


def build(name: str, output_stride: int, pretrained: bool | Path = False) -> nn.Module:
    """A module from images B3HW to the list of its stages' features, finest first; `feature_info` states channels and reductions.

    pretrained: true loads timm's weights (MiT's are the hub's), a path a file of weights (or a folder with <name>.safetensors, .pth,
    .pt, or the hub's folder <name>). What was and was not loaded is printed. Ignored on the meta device. ValueError: an unknown name, a
    stride that the backbone cannot have, weights that cannot be loaded.
    """
    _check_name(name)
    on_meta = torch.empty(0).is_meta
    create = _create_mit if name in mit.VARIANTS else _create
    network = create(name, output_stride, pretrained is True and not on_meta)
    if not isinstance(pretrained, bool) and not on_meta:
        print(weights.load(network, weights.find(Path(pretrained), name), name), flush=True)
    described: Any = network
    described.sides = (1, 1) if name in mit.VARIANTS else _sides(name, output_stride)  # MiT pads by itself
    return network


def stages(network: nn.Module, image_B3HW: Tensor) -> list[Tensor]:
    """The stages of normalised images of any size; what the backbone cannot take is padded below and right with the mean, and cut off."""
    described: Any = network
    multiple, least = described.sides
    height, width = size_of(image_B3HW)
    tall, wide = (max(-(-side // multiple) * multiple, least) for side in (height, width))
    if (tall, wide) == (height, width):
        return network(image_B3HW)
    found = network(F.pad(image_B3HW, (0, wide - width, 0, tall - height)))
    strides = shape(network)[1]
    return [x_BCHW[..., : -(-height // s), : -(-width // s)] for x_BCHW, s in zip(found, strides, strict=True)]


@cache
def describe(name: str, output_stride: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(channels, strides) of the stages, finest first, without building any weights."""
    with torch.device("meta"):
        return shape(build(name, output_stride))


@cache
def _sides(name: str, output_stride: int) -> tuple[int, int]:
    """(what an image's sides must be multiples of, the least that they must be), tried out without weights.

    ResNets take any image; ConvNeXt, VGG and others none that is smaller than their stride; HRNet and DLA only multiples of it.
    """
    with torch.device("meta"), torch.no_grad():
        network = _create(name, output_stride, False).eval()

        def takes(height: int, width: int) -> bool:
            try:
                network(torch.empty(1, 3, height, width))
            except (RuntimeError, AssertionError, ValueError):
                return False
            return True

        stride = max(shape(network)[1])
        if not takes(2 * stride, 3 * stride):  # no padding helps
            return 1, 1
        return (1 if takes(2 * stride + 1, 3 * stride + 1) else stride), (1 if takes(1, 1) else stride)


def shape(network: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(channels, strides) of a built backbone's stages."""
    stages: Any = network.feature_info
    return tuple(stages.channels()), tuple(stages.reduction())


def libraries(name: str) -> tuple[str, ...]:
    """The packages besides timm that the backbone's code comes from."""
    return ("transformers",) if name in mit.VARIANTS else ()


def normalization(name: str) -> tuple[Triple, Triple]:
    """(mean, standard deviation) per RGB channel, in [0, 1], that the backbone's weights were trained with."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import get_pretrained_cfg

    _check_name(name)
    known = None if name in mit.VARIANTS else get_pretrained_cfg(name)
    mean, deviation = (known.mean, known.std) if known else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    return (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2])


def _check_name(name: str) -> None:
    """ValueError where timm has no such model, or no such weights of it; MiT's names are known."""
    if name in mit.VARIANTS:
        return
    import timm
    from timm.models import get_pretrained_cfg

    architecture = name.partition(".")[0]
    if ":" in name or not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [*timm.list_models(), *mit.VARIANTS], n=3)
        raise ValueError(f"backbone {name!r} is not in timm" + (f"; did you mean {', '.join(near)}" if near else ""))
    try:
        known = get_pretrained_cfg(name)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise ValueError(f"backbone {name!r}: timm has no such weights of {architecture}; known: {tags}") from None
    if known and known.fixed_input_size:
        raise ValueError(f"backbone {name!r} takes images of one size only ({known.input_size[1]} x {known.input_size[2]})")


def _create(name: str, output_stride: int, pretrained: bool) -> nn.Module:
    """The model; timm's many ways to refuse a stride or a download become ValueErrors."""
    import timm

    # Stride 32 is what most have undilated: those that cannot be dilated reject the argument itself.
    stride: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        network = timm.create_model(name, features_only=True, **stride)
    except (AssertionError, TypeError, RuntimeError, NotImplementedError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "; try 32, or a dilated family such as resnet" if stride else ""
        raise ValueError(f"backbone {name!r} cannot give features at output_stride {output_stride} ({reason}){hint}") from None
    largest = max(shape(network)[1])
    if largest != output_stride:
        raise ValueError(f"backbone {name!r} has stride {largest}, not output_stride {output_stride}")
    if not pretrained:
        return _channels_first(network)
    _notice_missing_network()
    try:
        with _listening() as heard:
            network = timm.create_model(name, pretrained=True, features_only=True, **stride)
    except Exception as error:  # whatever the hub's client, the network or timm raises
        raise _not_downloaded(name, error) from None
    print(_told(network, name, heard), flush=True)
    return _channels_first(network)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What timm says of the weights that it loads; its log is the only place where it does."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("timm.models._builder")
    level, passing = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = passing
        logger.setLevel(level)


def _told(network: nn.Module, name: str, heard: list[str]) -> str:
    """The line about weights that timm loaded; what it left out of the classifier it does not say."""
    from timm.models import get_pretrained_cfg

    said = "\n".join(heard)
    origin = re.search(r"Loading pretrained weights from (.*)", said)
    lists = {kind: re.search(rf"{kind} keys \((.*?)\)", said) for kind in ("Missing", "Unexpected")}
    lost, more = ({weights.plain(key): key for key in found[1].split(", ")} if found else {} for found in lists.values())
    missing = [key for key in network.state_dict() if weights.plain(key) in lost]
    known = get_pretrained_cfg(name)
    classifier = known.classifier if known else None
    unused = [*more.values(), *([classifier] if isinstance(classifier, str) and classifier else classifier or ())]
    return weights.summary(network, name, origin[1] if origin else "timm", missing, unused)


def _channels_first(network: nn.Module) -> nn.Module:
    """The extractor, whose stages some families give as BHWC; HRNet's and EfficientNet's do not say, and give BCHW."""
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        network.register_forward_hook(_turned)
    return network


def _turned(module: nn.Module, inputs: Any, stages: list[Tensor]) -> list[Tensor]:
    """A forward hook: BHWC to BCHW."""
    return [stage_BHWC.permute(0, 3, 1, 2) for stage_BHWC in stages]


def _create_mit(name: str, output_stride: int, pretrained: bool) -> nn.Module:
    """The encoder that transformers has, perhaps with the hub's weights."""
    network = mit.build(name, output_stride)
    if not pretrained:
        return network
    _notice_missing_network()
    try:
        file = mit.download(name)
    except Exception as error:  # whatever the hub's client or the network raises
        raise _not_downloaded(name, error) from None
    print(weights.load(network, file, name), flush=True)
    return network


def _not_downloaded(name: str, error: Exception) -> ValueError:
    """What to do where weights cannot be had."""
    from timm.models import get_pretrained_cfg

    reason = textwrap.shorten(str(error), 200, placeholder=" ...")
    known = None if name in mit.VARIANTS else get_pretrained_cfg(name)
    place = mit.place(name) if name in mit.VARIANTS else known.hf_hub_id if known else None
    page = f" (as from https://huggingface.co/{place})" if place else ""
    return ValueError(
        f"backbone {name!r}: its weights could not be loaded ({reason}). Without network, set backbone.pretrained to the path "
        f"of a downloaded file of weights{page} or of a folder with such files, or to false to train from scratch"
    )


def _notice_missing_network() -> None:
    """Tell the hub's client where there is no network: it then takes its cache or fails at once, instead of trying for a minute."""
    from huggingface_hub import constants

    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return  # the proxy resolves names, we may not be able to
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
