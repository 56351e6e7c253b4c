"""torchvision's reference transforms for segmentation (references/segmentation/presets.py) on pairs of the store."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.data.prepared import Pair
from pipeline.ground import store

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Reference(Dataset):
    """Resized by 0.5 to 2 of `base` (the short side's pixels), flipped, cropped, normalised. `backend`: pil or tensor."""

    def __init__(self, pairs: Sequence[Pair], crop: tuple[int, int], base: int, backend: str) -> None:
        fill: Any = {tv_tensors.Mask: 255, "others": 0}
        self.pairs = pairs
        self.transforms = v2.Compose(
            [
                v2.PILToTensor() if backend == "tensor" else v2.Identity(),
                v2.RandomResize(min_size=base // 2, max_size=base * 2),
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.PILToTensor() if backend == "pil" else v2.Identity(),
                v2.ToDtype({torch.Tensor: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The augmented image and labels."""
        pair = self.pairs[index]
        with Image.open(store.path("images", pair.image)) as image, Image.open(store.path("labels", pair.label)) as label:
            return self.transforms(image.convert("RGB"), tv_tensors.Mask(v2.functional.pil_to_tensor(label)[0]))
