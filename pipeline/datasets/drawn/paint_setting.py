"""What a street is set in, painted: the sky, the skyline at its end, the ground, and the houses along both sides."""

from collections.abc import Sequence

import numpy as np

from pipeline.datasets.drawn.canvas import BUILDING, PAVEMENT, ROAD, SIGN, VEGETATION, Canvas, part
from pipeline.datasets.drawn.colours import GLASS
from pipeline.datasets.drawn.noise import stretched
from pipeline.datasets.drawn.setting import Block, Ground, Houses, Sky


def paint_sky(canvas: Canvas, sky: Sky) -> None:
    """A gradient to the haze at the horizon, and clouds from none to all over."""
    H, W = min(int(canvas.horizon) + 2, len(canvas.labels_HW)), canvas.labels_HW.shape[1]  # the ground covers the rest
    height_H1 = np.clip(np.arange(H, dtype=np.float32) / np.float32(canvas.horizon), 0, 1)[:, None]
    clear_H13 = sky.zenith + (canvas.street.haze - sky.zenith) * height_H1[..., None]
    clouds_HW = stretched(sky.large, H, W) + 0.5 * stretched(sky.small, H, W)
    cover_HW1 = np.clip(3 * (clouds_HW + sky.cover), 0, 0.9)[..., None]
    canvas.image_HW3[:H] = clear_H13 + (np.float32(0.88) - clear_H13) * cover_HW1


def paint_skyline(canvas: Canvas, skyline: Sequence[Block]) -> None:
    """Blocks and trees at the end of the street, where the ground begins."""
    for block in skyline:
        patch = canvas.patch(block.x, block.z, block.half, block.top)
        if block.tree:
            crown = (patch.u / block.half) ** 2 + (patch.v / (block.top * 0.6)) ** 2 < 1
            canvas.paint(patch, crown, block.colour, VEGETATION, block.half)
        else:
            windows = (part(patch.u / 3) > 0.5) & (part(patch.v / 3) > 0.45)
            wall = np.where(windows[..., None], 0.6 * block.colour, block.colour)
            canvas.paint(patch, np.abs(patch.u) + 0 * patch.v < block.half, wall, BUILDING)


def paint_ground(canvas: Canvas, ground: Ground) -> None:
    """Road with markings and patches, pavements with slabs and kerbs, grass behind them, and the shadow of one side."""
    street = canvas.street
    H, W = canvas.labels_HW.shape
    start = min(int(canvas.horizon) + 1, H - 1)
    rows = np.arange(start, H, dtype=np.float32)[:, None] + 0.5
    z_h1 = np.float32(canvas.focal * street.eye) / (rows - np.float32(canvas.horizon))
    right_W = (np.arange(W, dtype=np.float32) + np.float32(0.5 - canvas.centre)) / np.float32(canvas.focal)
    x_hW = right_W * z_h1 + np.float32(street.lane)
    across_hW = np.abs(x_hW)
    worn_hW = 1 + np.float32(0.10) * stretched(ground.wear, H - start, W)
    on_road, on_walk = across_hW < street.road, across_hW < street.road + street.walk
    grey_hW = np.where(on_road, np.float32(ground.asphalt), np.float32(ground.slab)) * worn_hW
    near = int(np.searchsorted(-z_h1[:, 0], -15))  # rows from here on are near enough for slabs to be seen
    joints = (part(x_hW[near:] / np.float32(0.8)) < 0.06) | (part(z_h1[near:] / np.float32(0.8)) < 0.10)
    grey_hW[near:][joints & ~on_road[near:]] *= np.float32(0.8)
    grey_hW[(across_hW < street.road + 0.18) & ~on_road] = 0.66  # the kerb
    markings = ((across_hW < 0.09) & (part(z_h1 / 7) < 0.5)) | (np.abs(across_hW - np.float32(street.road - 0.35)) < 0.06)
    if ground.crossing is not None:
        markings |= (z_h1 > ground.crossing) & (z_h1 < ground.crossing + 3) & (part(x_hW) < 0.5) & (across_hW < street.road - 0.4)
    grey_hW[markings & (worn_hW > 0.94)] = 0.8
    colour_hW3 = grey_hW[..., None] * np.array((1, 0.99, 0.97), np.float32)
    np.copyto(colour_hW3, ground.grass * worn_hW[..., None], where=~on_walk[..., None])
    if ground.shadow is not None:  # of one side's buildings
        colour_hW3[np.sign(street.sun) * x_hW > ground.shadow] *= np.float32(0.6)
    canvas.image_HW3[start:] = canvas.hazed(colour_hW3, z_h1[..., None])
    canvas.labels_HW[start:] = np.where(on_road, np.uint8(ROAD), np.where(on_walk, np.uint8(PAVEMENT), np.uint8(VEGETATION)))


def paint_houses(canvas: Canvas, row: Houses) -> None:
    """The row of houses along one side: walls with windows, shop signs at the ground floor, and gaps."""
    street = canvas.street
    H, W = canvas.labels_HW.shape
    out_W = row.side * (np.arange(W, dtype=np.float32) + np.float32(0.5 - canvas.centre))
    far = np.float32(canvas.focal * (street.road + street.walk - row.side * street.lane))  # depth times columns from the centre
    columns = np.flatnonzero(out_W > far / 140)
    if not len(columns):
        return
    columns = slice(columns[0], columns[-1] + 1)
    z_w = far / out_W[columns]
    house_w = np.searchsorted(row.ends, z_w)
    top_w, shop_w = row.tops[house_w], row.shops[house_w]
    rise_w = z_w / np.float32(canvas.focal)  # metres per row
    first = max(0, int(canvas.horizon - ((top_w - np.float32(street.eye)) / rise_w).max()) - 1)
    last = min(H, int(canvas.horizon + street.eye / rise_w.min()) + 2)
    v_hw = (np.float32(canvas.horizon - 0.5) - np.arange(first, last, dtype=np.float32)[:, None]) * rise_w + np.float32(street.eye)
    along_w, up_hw = z_w / np.float32(row.pitch), (v_hw - np.float32(3.4)) / np.float32(row.floor)
    storey_hw, pane_w = np.floor(up_hw), np.floor(along_w)
    up_hw -= storey_hw
    window_hw = (np.abs(along_w - pane_w - 0.6) < 0.25) & (np.abs(up_hw - 0.55) < 0.25) & (v_hw > 3.4) & (v_hw < top_w - 0.6)
    window_hw |= shop_w & (v_hw > 0.4) & (v_hw < 2.5) & (part(along_w / 2) > 0.12)
    light = np.float32(1 - row.side * street.sun)
    colour_hw3 = np.repeat((row.walls[house_w] * light)[None], last - first, 0)
    colour_hw3[(part(v_hw * 4) < 0.2) & (z_w < 16) & (house_w % 2 == 0)] *= np.float32(0.88)  # courses of bricks
    rows, places = np.nonzero(window_hw)
    colour_hw3[rows, places] = GLASS * row.panes[(pane_w[places] * 7 + storey_hw[rows, places] * 13).astype(int) % 64, None]
    sign_hw = shop_w & (np.abs(v_hw - 2.9) < 0.3) & (part(along_w / 4) < 0.75)
    np.copyto(colour_hw3, row.brands[house_w] * light, where=sign_hw[..., None])
    mask_hw = (v_hw >= 0) & (v_hw < top_w)
    np.copyto(canvas.image_HW3[first:last, columns], canvas.hazed(colour_hw3, z_w[None, :, None]), where=mask_hw[..., None])
    np.copyto(canvas.labels_HW[first:last, columns], np.where(sign_hw, np.uint8(SIGN), np.uint8(BUILDING)), where=mask_hw)
