"""Points in tiles of neighbours, and the pairs of tiles that are near enough to matter.

A k-d split of the features orders the points: every tile is halved across its widest dimension until it is small. Tiles whose boxes
are farther apart than `reach` are left out; the pairs that remain are found by halving pairs of tiles along with the tiles.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 192  # the most points of a tile
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

    def gather(self, values_BVN: Tensor) -> Tensor:
        """Values of the points as TVn, 0 in unused places."""
        tiles, _, size = self.offsets_TDn.shape
        batch, channels, _ = values_BVN.shape
        values_BVM = values_BVN.gather(2, self.source_BM[:, None].expand(-1, channels, -1)) * self.used_BM[:, None]
        return values_BVM.view(batch, channels, tiles // max(batch, 1), size).transpose(1, 2).reshape(tiles, channels, size)

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
    levels = math.ceil(math.log2(count / TILE)) if count > TILE else 0
    tiles, size = 2**levels, math.ceil(count / 2**levels)
    # Repeated points lie beside their originals, so that they widen no tile.
    source_M = torch.arange(tiles * size, device=features_BDN.device) * count // max(tiles * size, 1)
    used_M = source_M.diff(prepend=source_M.new_tensor([-1])) > 0
    points_BMD = features_BDN.mT.index_select(1, source_M)
    source_BM, used_BM = source_M.repeat(batch, 1), used_M.repeat(batch, 1)
    for level in range(levels):
        halves = batch * 2**level, tiles * size // 2**level
        order_SM = _across_the_widest(points_BMD.reshape(*halves, depth))
        points_BMD = points_BMD.reshape(*halves, depth).gather(1, order_SM[..., None].expand(-1, -1, depth))
        source_BM, used_BM = (map_BM.view(halves).gather(1, order_SM) for map_BM in (source_BM, used_BM))
    points_TDn = points_BMD.reshape(batch * tiles, size, depth).mT
    low_TD, high_TD = (points_TDn.amin(2), points_TDn.amax(2)) if count else (points_TDn.sum(2),) * 2
    centres_TD = (low_TD + high_TD) / 2
    source_BM, used_BM = source_BM.view(batch, tiles * size), used_BM.view(batch, tiles * size)
    # Where each point is; what the repeated ones say goes to a column that is cut off.
    place_BN = source_BM.new_empty(batch, count + 1)
    places_BM = torch.arange(tiles * size, device=features_BDN.device).expand(batch, -1)
    place_BN.scatter_(1, source_BM.masked_fill(~used_BM, count), places_BM)
    groups = _groups(low_TD, high_TD, levels, reach)
    offsets_TDn = (points_TDn - centres_TD[..., None]).contiguous()
    return Tiles(offsets_TDn, centres_TD, source_BM, used_BM.to(features_BDN.dtype), place_BN[:, :count], groups)


def _across_the_widest(points_SMD: Tensor) -> Tensor:
    """The order SM of each set's points along the dimension in which the set is widest."""
    widest_S = (points_SMD.amax(1) - points_SMD.amin(1)).argmax(1)
    along_SM = points_SMD.gather(2, widest_S[:, None, None].expand(-1, points_SMD.shape[1], 1))[..., 0]
    return along_SM.argsort(dim=1, stable=True)


def _groups(low_TD: Tensor, high_TD: Tensor, levels: int, reach: float) -> tuple[Group, ...]:
    """The near pairs (i, j), i < j, narrow and wide, and every tile with itself."""
    first_P, second_P = _near_pairs(low_TD, high_TD, levels, reach)
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


def _near_pairs(low_TD: Tensor, high_TD: Tensor, levels: int, reach: float) -> tuple[Tensor, Tensor]:
    """The pairs i <= j of one image whose boxes are at most `reach` apart, from the pairs of their parents."""
    boxes = [(low_TD, high_TD)]
    for _ in range(levels):
        low_SD, high_SD = boxes[-1]
        boxes.append((low_SD.unflatten(0, (-1, 2)).amin(1), high_SD.unflatten(0, (-1, 2)).amax(1)))
    first_P = second_P = torch.arange(len(boxes[-1][0]), device=low_TD.device)
    for low_SD, high_SD in reversed(boxes[:-1]):
        first_P, second_P = (
            torch.cat([2 * first_P, 2 * first_P, 2 * first_P + 1, 2 * first_P + 1]),
            torch.cat([2 * second_P, 2 * second_P + 1, 2 * second_P, 2 * second_P + 1]),
        )
        gaps_PD = torch.maximum(low_SD[first_P] - high_SD[second_P], low_SD[second_P] - high_SD[first_P]).clamp_(min=0)
        near_P = (first_P <= second_P) & (gaps_PD.square().sum(1) <= reach**2)
        first_P, second_P = first_P[near_P], second_P[near_P]
    order_P = (first_P * len(low_TD) + second_P).argsort()  # neighbours in the list share tiles, which are then at hand
    return first_P[order_P], second_P[order_P]
