"""Mix Transformer encoders (MiT-B0 to B5), which timm does not have: transformers' layers, at stride 32 only.

Xie et al.: SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (NeurIPS 2021), table 6. Differently from
transformers' model, images smaller than the encoder's first reduced attention window are padded (with the mean) instead of refused.
Weights may have the names of transformers, of the hub's files or of the authors' release; a linear layer of keys and values, which
the release has, is split.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.layers import size_of

# transformers takes seconds to import and need not be installed, so that only `build` imports it.

STRIDES = (4, 8, 16, 32)
SMALLEST = 32  # the first stage's keys are means over 8 x 8 places of stride 4
# Depths and widths of the stages.
VARIANTS = {
    "mit_b0": ((2, 2, 2, 2), (32, 64, 160, 256)),
    "mit_b1": ((2, 2, 2, 2), (64, 128, 320, 512)),
    "mit_b2": ((3, 4, 6, 3), (64, 128, 320, 512)),
    "mit_b3": ((3, 4, 18, 3), (64, 128, 320, 512)),
    "mit_b4": ((3, 8, 27, 3), (64, 128, 320, 512)),
    "mit_b5": ((3, 6, 40, 3), (64, 128, 320, 512)),
}
# The release's stages count from 1: patch_embed1, block1, norm1.
RELEASED = {"patch_embed": "patch_embeddings", "block": "blocks", "norm": "layer_norm"}
# From the hub's and the release's names to transformers'.
RENAMED = (
    (r"^encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"^encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
    (r"\.patch_embeddings\.norm\.", ".patch_embeddings.layer_norm."),
    (r"\.(layer_norm_1|norm1)\.", ".layernorm_before."),
    (r"\.(layer_norm_2|norm2)\.", ".layernorm_after."),
    (r"\.(attention\.self|attn)\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.(attention\.self\.layer_norm|attn\.norm)\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.(attention\.output\.dense|attn\.proj)\.", ".attention.o_proj."),
    (r"\.(attention\.self|attn)\.([qkv])(uery|ey|alue)?\.", r".attention.\2_proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
)


class Pyramid(NamedTuple):
    """What timm's `feature_info` says of the stages, finest first."""

    widths: tuple[int, ...]

    def channels(self) -> list[int]:
        """The stages' channels."""
        return list(self.widths)

    def reduction(self) -> list[int]:
        """The stages' strides."""
        return list(STRIDES)


class MiT(nn.Module):
    """Four stages of overlapping patches and transformer blocks; submodules and weights are named as in SegformerModel."""

    def __init__(self, stages: nn.ModuleList, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = stages
        self.feature_info = Pyramid(widths)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """The stages' features, ceil(H / stride) x ceil(W / stride) each, finest first."""
        height, width = size_of(image_B3HW)
        x_BCHW = image_B3HW
        if min(height, width) < SMALLEST:
            x_BCHW = F.pad(image_B3HW, (0, max(SMALLEST - width, 0), 0, max(SMALLEST - height, 0)))
        found = []
        for stage, stride in zip(self.stages, STRIDES, strict=True):
            x_BCHW = stage(x_BCHW)
            found.append(x_BCHW[..., : -(-height // stride), : -(-width // stride)])
        return found


def build(name: str, output_stride: int) -> MiT:
    """The encoder `name` with drawn weights. ValueError: another stride than 32, or transformers is not installed."""
    if output_stride != STRIDES[-1]:
        raise ValueError(f"backbone {name!r} cannot give features at output_stride {output_stride}: it cannot be dilated; try 32")
    try:
        from transformers import SegformerConfig, SegformerModel
    except ImportError:
        raise ValueError(f"backbone {name!r} needs transformers, which is not installed: run `uv sync --extra segformer`") from None
    depths, widths = VARIANTS[name]
    return MiT(SegformerModel(SegformerConfig(depths=depths, hidden_sizes=widths)).stages, widths)


def download(name: str) -> Path:
    """The hub's file of ImageNet weights, out of its cache where it is there. Raises whatever the hub's client raises."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(place(name), "pytorch_model.bin"))


def place(name: str) -> str:
    """Where the hub has the weights."""
    return f"nvidia/{name.replace('_', '-')}"


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the hub's or the release's names under transformers' names; others as they are."""
    result = {}
    for key, tensor in weights.items():
        plain = re.sub(r"^(module\.|model\.|backbone\.|segformer\.)+", "", key)
        if ".attn.kv." in plain:
            for letter, half in zip("kv", tensor.chunk(2), strict=True):
                result[_replaced(plain.replace(".kv.", f".{letter}."))] = half
        else:
            result[_replaced(plain)] = tensor
    return result


def _replaced(key: str) -> str:
    """One key as transformers has it."""
    if found := re.match(r"(patch_embed|block|norm)(\d)\.", key):
        key = f"stages.{int(found[2]) - 1}.{RELEASED[found[1]]}.{key[found.end() :]}"
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key
