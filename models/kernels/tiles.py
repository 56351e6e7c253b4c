"""Points in tiles of neighbours, and the pairs of tiles that are near enough to matter.

A k-d split of the features orders the points: an image's are cut into up to 31 slabs across their widest dimension, so that no tile
will be half empty, and these halved, each across its own, until they are tiles. Tiles whose boxes are farther apart than `reach` are
left out; the pairs that remain are found by halving pairs along with the tiles.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = {"cpu": 128, "cuda": 64}  # points of a tile: products of other sizes take up to five times as long
NARROW = 6.0  # half a box's diagonal up to which expanded squares keep float32's precision


@dataclass(frozen=True)
class Group:
    """Pairs of tiles by their numbers. `mirrored`: a pair stands for both of its directions; `wide`: to be computed in float64."""

    first_P: Tensor
    second_P: Tensor
    mirrored: bool
    wide: bool


@dataclass(frozen=True)
class Tiles:
    """The points of all images in T tiles of n places; an image's tiles follow one another. Some places repeat a point, unused."""

    offsets_TDn: Tensor  # features relative to the tile's centre
    centres_TD: Tensor
    source_BM: Tensor  # the point in each of an image's M = (T / B) * n places
    used_BM: Tensor  # 0 where a place repeats a point, else 1
    place_BN: Tensor  # the place of each point
    groups: tuple[Group, ...]

    @cached_property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """(starts_T, tiles_E): those near tile t, itself among them, are tiles_E[starts_T[t] : starts_T[t + 1]]; int32."""
        back = [(group.second_P, group.first_P) for group in self.groups if group.mirrored]
        pairs = [(group.first_P, group.second_P) for group in self.groups] + back
        first_E, second_E = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        order_E = (first_E * len(self.centres_TD) + second_E).argsort()
        counts_T = first_E.bincount(minlength=len(self.centres_TD))
        return F.pad(counts_T.cumsum(0), (1, 0)).int(), second_E[order_E].int()

    def gather(self, values_BVN: Tensor) -> Tensor:
        """Values of the points as TVn, 0 in unused places."""
        tiles, _, size = self.offsets_TDn.shape
        batch, channels, _ = values_BVN.shape
        values_BVM = values_BVN.gather(2, self.source_BM[:, None].expand(-1, channels, -1)) * self.used_BM[:, None]
        return values_BVM.view(batch, channels, tiles // max(batch, 1), size).transpose(1, 2).reshape(tiles, channels, size).contiguous()

    def scatter(self, values_TVn: Tensor) -> Tensor:
        """The points' values BVN from TVn."""
        batch, channels = len(self.place_BN), values_TVn.shape[1]
        tiles, _, size = self.offsets_TDn.shape
        values_BTVn = values_TVn.view(batch, tiles // max(batch, 1), channels, size)
        values_BVM = values_BTVn.transpose(1, 2).reshape(batch, channels, self.source_BM.shape[1])
        return values_BVM.gather(2, self.place_BN[:, None].expand(-1, channels, -1))


@torch.compiler.disable
@torch.no_grad()
def build(features_BDN: Tensor, reach: float) -> Tiles:
    """Tiles of the points, and all pairs of tiles of one image whose boxes are at most `reach` apart."""
    batch, depth, count = features_BDN.shape
    size = TILE.get(features_BDN.device.type, TILE["cuda"])
    wanted = max(1, math.ceil(count / size))
    levels = max(0, wanted.bit_length() - 5)
    tiles = math.ceil(wanted / 2**levels) * 2**levels
    if tiles == 1:
        size = count
    # Repeated points lie beside their originals, so that they widen no tile.
    source_M = torch.arange(tiles * size, device=features_BDN.device) * count // max(tiles * size, 1)
    used_M = source_M.diff(prepend=source_M.new_tensor([-1])) > 0
    points_BMD = features_BDN.mT.index_select(1, source_M)
    source_BM, used_BM = source_M.repeat(batch, 1), used_M.repeat(batch, 1)
    for pieces in [1, *(tiles // 2**level for level in range(levels, 0, -1))] if tiles > 1 else []:
        parts = batch * pieces, tiles * size // pieces
        order_SM = _across_the_widest(points_BMD.reshape(*parts, depth))
        points_BMD = points_BMD.reshape(*parts, depth).gather(1, order_SM[..., None].expand(-1, -1, depth))
        source_BM, used_BM = (map_BM.view(parts).gather(1, order_SM) for map_BM in (source_BM, used_BM))
    points_TDn = points_BMD.reshape(batch * tiles, size, depth).mT
    low_TD, high_TD = (points_TDn.amin(2), points_TDn.amax(2)) if count else (points_TDn.sum(2),) * 2
    centres_TD = (low_TD + high_TD) / 2
    source_BM, used_BM = source_BM.view(batch, tiles * size), used_BM.view(batch, tiles * size)
    # Where each point is; what the repeated ones say goes to a column that is cut off.
    place_BN = source_BM.new_empty(batch, count + 1)
    places_BM = torch.arange(tiles * size, device=features_BDN.device).expand(batch, -1)
    place_BN.scatter_(1, source_BM.masked_fill(~used_BM, count), places_BM)
    groups = _groups(low_TD, high_TD, batch, levels, reach)
    offsets_TDn = (points_TDn - centres_TD[..., None]).contiguous()
    return Tiles(offsets_TDn, centres_TD.contiguous(), source_BM, used_BM.to(features_BDN.dtype), place_BN[:, :count], groups)


def _across_the_widest(points_SMD: Tensor) -> Tensor:
    """The order SM of each set's points along the dimension in which the set is widest."""
    widest_S = (points_SMD.amax(1) - points_SMD.amin(1)).argmax(1)
    along_SM = points_SMD.gather(2, widest_S[:, None, None].expand(-1, points_SMD.shape[1], 1))[..., 0]
    return along_SM.argsort(dim=1, stable=True)


def _groups(low_TD: Tensor, high_TD: Tensor, batch: int, levels: int, reach: float) -> tuple[Group, ...]:
    """The near pairs (i, j), i < j, narrow and wide, and every tile with itself."""
    first_P, second_P = _near_pairs(low_TD, high_TD, batch, levels, reach)
    apart_P = first_P != second_P
    first_P, second_P = first_P[apart_P], second_P[apart_P]
    narrow_T = (high_TD - low_TD).square().sum(1) <= (2 * NARROW) ** 2
    narrow_P = narrow_T[first_P] & narrow_T[second_P]
    own_T = torch.arange(len(low_TD), device=low_TD.device)
    return (
        Group(first_P[narrow_P], second_P[narrow_P], mirrored=True, wide=False),
        Group(first_P[~narrow_P], second_P[~narrow_P], mirrored=True, wide=True),
        Group(own_T, own_T, mirrored=False, wide=True),
    )


def _near_pairs(low_TD: Tensor, high_TD: Tensor, batch: int, levels: int, reach: float) -> tuple[Tensor, Tensor]:
    """The pairs i <= j of one image whose boxes are at most `reach` apart: of the slabs, then from the pairs of their parents."""
    boxes = [(low_TD, high_TD)]
    for _ in range(levels):
        low_SD, high_SD = boxes[-1]
        boxes.append((low_SD.unflatten(0, (-1, 2)).amin(1), high_SD.unflatten(0, (-1, 2)).amax(1)))
    slabs = torch.arange(len(boxes[-1][0]), device=low_TD.device).view(batch, -1 if batch else 0)
    first_P, second_P = (slabs.repeat_interleave(slabs.shape[1], 1).flatten(), slabs.repeat(1, slabs.shape[1]).flatten())
    for level, (low_SD, high_SD) in enumerate(reversed(boxes)):
        if level:
            first_P, second_P = _halved(first_P, (0, 0, 1, 1)), _halved(second_P, (0, 1, 0, 1))
        gaps_PD = torch.maximum(low_SD[first_P] - high_SD[second_P], low_SD[second_P] - high_SD[first_P]).clamp_(min=0)
        near_P = (first_P <= second_P) & (gaps_PD.square().sum(1) <= reach**2)
        first_P, second_P = first_P[near_P], second_P[near_P]
    order_P = (first_P * len(low_TD) + second_P).argsort()  # neighbours in the list share tiles, which are then at hand
    return first_P[order_P], second_P[order_P]


def _halved(tiles_P: Tensor, halves: tuple[int, ...]) -> Tensor:
    """The numbers of the tiles' halves, each pair's four one after the other."""
    return (2 * tiles_P[:, None] + tiles_P.new_tensor(halves)).flatten()
