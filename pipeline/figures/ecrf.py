"""E-CRF's figures: the similarity of adjacent classes' weights, and the messages that one pixel gets.

Zhu et al.: E-CRF (ICLR 2023). Fig. 1(a): for each class k its partner l, with which it shares most 4-neighbour pixel pairs, and the
cosine of their classifier weights. Fig. 4: of a pixel k, with tokens and features of models/crf/embedded.py,

    appearance (W_I I_k) . (W_I I_j)      position (W_p PE_k) . (W_p PE_j)      message mu(j) (appearance + position)

for all pixels j of the feature map. The paper's maps run over the whole image, as these do; the module itself adds up the messages of its
window (3 x 3, dilation 2), which is marked. Differently from the paper, the centre belongs to the window, as in the released code.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from models.crf.embedded import Embedded, MessagePassing
from models.parts.layers import resize, size_of
from pipeline.evaluation.tally import neighbours
from pipeline.figures import canvas, panels
from pipeline.figures.figure import Figure, is_plain
from pipeline.figures.material import Run, Sample, Seen, Shot, described, look
from pipeline.settings.schema import Config


def sends_messages(config: Config) -> bool:
    """Whether a run has E-CRF's pairwise half."""
    return config.crf.name == "embedded" and config.crf.options.get("pairwise_weight", 1) != 0


@dataclass(frozen=True)
class Partners:
    """Classes with the class that each touches most, most pixel pairs first: P of them. `cosines` are of each one's two weights."""

    classes_P: NDArray[np.int64]
    partners_P: NDArray[np.int64]
    pairs_P: NDArray[np.int64]

    @classmethod
    def of(cls, neighbours_KK: NDArray[np.int64]) -> "Partners":
        """From the counts of 4-neighbour pairs; a class that touches none is left out."""
        partners_K, most_K = neighbours_KK.argmax(1), neighbours_KK.max(1)
        order_P = np.argsort(-most_K, kind="stable")[: np.count_nonzero(most_K)]
        return cls(order_P, partners_K[order_P], most_K[order_P])

    def cosines(self, weights_KC: Tensor) -> NDArray[np.float64]:
        """The cosine between the weights of each class and its partner: P."""
        unit_KC = normalize(weights_KC.detach().double().cpu(), dim=1).numpy()
        return (unit_KC[self.classes_P] * unit_KC[self.partners_P]).sum(1)


def count_neighbours(sample: Sample, classes: int) -> NDArray[np.int64]:
    """How many 4-neighbour pixel pairs of the sample have the labels (k, l): K x K."""
    total_KK = np.zeros((classes, classes), np.int64)
    for shot in sample.shots():
        total_KK += neighbours(shot.labels_HW, classes)
    return total_KK


def class_weights(run: Run, baseline: Run | None, sample: Sample) -> canvas.Sheet:
    """Fig. 1(a). ValueError: no class touches another."""
    classes = run.prepared.classes
    partners = Partners.of(count_neighbours(sample, len(classes)))
    if not len(partners.classes_P):
        raise ValueError(f"no two classes touch in {sample.title}")
    names = canvas.named(classes)
    labels = [f"{names[one]} / {names[other]}" for one, other in zip(partners.classes_P, partners.partners_P, strict=True)]
    points = panels.name_size(len(labels))
    room = 0.3 + canvas.widest(labels, points)
    size = (max(4.2, len(labels) * (0.3 if len(labels) <= 30 else 0.115)), 1.7)
    title = ("Similarity of adjacent classes' weights", described([baseline, run], sample))
    sheet = canvas.sheet(2, 1, title, size=size, margins=canvas.Margins(left=0.75, below=0.08, right=0.15))
    canvas.grow(sheet, room)
    (lines,), (counts,) = sheet.panels
    for other, colour, sign in ((baseline, canvas.BLUE, "o"), (run, canvas.ORANGE, "s")):
        if other is not None:
            cosines_P = partners.cosines(other.model.crf.classifier.weight.flatten(1))
            name = f"{canvas.short(other.config.name)} (mean {cosines_P.mean():.3f})"
            lines.plot(cosines_P, color=colour, marker=sign, markersize=3.5, linewidth=1.2, label=name)
    lines.axhline(0, color="black", linewidth=0.5)
    lines.set_ylabel("cosine of the weights")
    lines.set_xticks(range(len(labels)), [""] * len(labels))
    lines.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
    counts.plot(partners.pairs_P, color="#555555", marker="o", markersize=3, linewidth=1)
    counts.set_yscale("log")
    counts.set_ylabel("adjacent pixel pairs")
    for axis in (counts.yaxis.set_major_formatter, counts.yaxis.set_minor_formatter):
        axis(lambda value, place: f"{value:,.0f}" if f"{value:.0e}"[0] in "125" else "")
    counts.set_xticks(range(len(labels)), labels, rotation=90, fontsize=points)
    counts.set_xlabel("class / the class that it touches most")
    for panel in (lines, counts):
        panel.set_xlim(-0.6, len(labels) - 0.4)
    return sheet


@dataclass(frozen=True)
class Messages:
    """What pixel k of the feature map has to do with every pixel j of it (h, w); `window` is where the module adds messages up.

    F*_k = F_k + superpixel share + pairwise_weight * (sum over j in the window of message_j F_j), normalisation included.
    """

    appearance_hw: NDArray[np.float32]
    position_hw: NDArray[np.float32]
    message_hw: NDArray[np.float32]
    window_hw: NDArray[np.bool_]


@torch.no_grad()
def messages_of(module: MessagePassing, seen: Seen, place: tuple[int, int]) -> Messages:
    """The maps of the pixel at `place` (row, column) of the feature map, from what went into `crf.messages`."""
    features_1Chw, image_13HW, _ = seen.inputs["crf.messages"]
    row, column = place
    size = size_of(features_1Chw)

    def products(tokens_1Ehw: Tensor) -> Tensor:
        return (tokens_1Ehw[0] * tokens_1Ehw[0, :, row, column, None, None]).sum(0)

    appearance_hw = products(module.image_conv(resize(image_13HW, size)))
    position_hw = products(module.places(features_1Chw))
    scores_Ohw = torch.nn.functional.conv2d(features_1Chw, module.compatibility_conv.weight.view(-1, features_1Chw.shape[1], 1, 1))[0]
    if module.compatibility == "pair":
        scores_Ohw = scores_Ohw[:1, row, column, None, None] + scores_Ohw[1:]
    message_hw = scores_Ohw[0].sigmoid() * (appearance_hw + position_hw)
    window_hw = window(module, size, place)
    if module.normalization == "count":
        message_hw = message_hw / (module.window[0] ** 2 - (not module.centre))
    elif module.normalization == "absolute":
        message_hw = message_hw / message_hw[window_hw].abs().sum()
    appearance, position, message = (values_hw.float().cpu().numpy() for values_hw in (appearance_hw, position_hw, message_hw))
    return Messages(appearance, position, message, window_hw.cpu().numpy())


def window(module: MessagePassing, size: tuple[int, int], place: tuple[int, int]) -> Tensor:
    """The pixels of a map of (height, width) whose messages the one at `place` adds up."""
    kernel, dilation = module.window
    inside_hw = torch.zeros(size, dtype=torch.bool)
    steps = range(-(kernel // 2) * dilation, kernel // 2 * dilation + 1, dilation)
    for row in (place[0] + step for step in steps):
        for column in (place[1] + step for step in steps):
            if 0 <= row < size[0] and 0 <= column < size[1] and (module.centre or (row, column) != place):
                inside_hw[row, column] = True
    return inside_hw


def messages(run: Run, baseline: Run | None, shot: Shot) -> canvas.Sheet:
    """Fig. 4, with the window's messages by themselves and the superpixel that is averaged over."""
    assert isinstance(run.model.crf, Embedded)
    module = run.model.crf.messages
    seen = look(run, shot, ["crf.messages"])
    features_1Chw = seen.inputs["crf.messages"][0]
    size = size_of(features_1Chw)
    place = shot.at(size)
    maps = messages_of(module, seen, place)
    sheet = canvas.sheet(2, 3, ("Messages of one pixel", described([run], shot)), shape=shot.shape, scales=(0, 1, 2))
    (first, appearance, position), (message, taps, region) = sheet.panels
    panels.photograph(first, shot.array(), f"(a) pixel k, of {name_at(run, shot)}")
    panels.heat(sheet, appearance, maps.appearance_hw, "(b) appearance", size=shot.size, label="product of tokens")
    panels.heat(sheet, position, maps.position_hw, "(c) position", size=shot.size, label="product of tokens")
    panels.heat(sheet, message, maps.message_hw, f"(d) message: {formula(module)}", size=shot.size, label="weight")
    canvas.outline(message, stretched(maps.window_hw, shot.size), around="black")
    for panel in (first, appearance, position, message):
        panels.mark(panel, shot.pixel)
    panels.numbers(sheet, taps, taps_of(module, maps, place), "(e) the messages that k adds up", "weight")
    if run.maps is None or not module.superpixel_weight:
        canvas.note(region, "(f) no superpixels in this run")
    else:
        superpixels_HW = run.maps.open(shot.pair)
        own_HW = superpixels_HW == superpixels_HW[shot.pixel]
        panels.photograph(region, shot.array(), f"(f) k's superpixel, {np.count_nonzero(own_HW)} pixels")
        canvas.outline(region, superpixels_HW, "white", 0.3)
        canvas.outline(region, own_HW, canvas.MARK, 1.4)
    return sheet


def formula(module: MessagePassing) -> str:
    """A message as the module's options make it, of the panels' letters."""
    divided = {"none": "", "count": " / number", "absolute": " / sum"}[module.normalization]
    return f"μ({'k, j' if module.compatibility == 'pair' else 'j'}) ((b) + (c)){divided}"


def name_at(run: Run, shot: Shot) -> str:
    """The class of the marked pixel."""
    label = int(shot.labels_HW[shot.pixel])
    return canvas.named(run.prepared.classes)[label] if label < len(run.prepared.classes) else "no class"


def stretched(map_hw: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A map at the image's size."""
    rows, columns = (np.arange(goal) * own // goal for goal, own in zip(size, map_hw.shape, strict=True))
    return map_hw[np.ix_(rows, columns)]


def taps_of(module: MessagePassing, maps: Messages, place: tuple[int, int]) -> NDArray[np.float32]:
    """The messages of the window as a square, NaN outside the map and where nothing is added."""
    kernel, dilation = module.window
    reach = kernel // 2 * dilation
    padded_hw = np.pad(np.where(maps.window_hw, maps.message_hw, np.nan), reach, constant_values=np.nan)
    return padded_hw[place[0] : place[0] + 2 * reach + 1 : dilation, place[1] : place[1] + 2 * reach + 1 : dilation]


CLASS_WEIGHTS = Figure(
    source="Zhu et al., E-CRF (ICLR 2023), Fig. 1(a)",
    caption="For each class the class that it touches most (over the labels; pairs with most adjacent pixels first), and the "
    "cosine between the weights that the classifier has for the two. Lower is better told apart: E-CRF is to lower it for classes "
    "that touch often, at the left. Below are the numbers of adjacent pixel pairs, on a logarithmic scale.",
    fits=lambda config: config.crf.name == "embedded",
    needs="crf embedded",
    of_sample=class_weights,
    beside=is_plain,
)

MESSAGES = Figure(
    source="Zhu et al., E-CRF (ICLR 2023), Fig. 4",
    caption="What a pixel k (ring) has to do with every other pixel j: (b) the products of the learned colour tokens, (c) of the "
    "learned position tokens, (d) the weight of each pixel's message, which is their sum times the compatibility μ. Each map has "
    "its own scale. The module adds up the messages of the pixels outlined in (d), shown alone in (e), with k itself in the "
    "middle and nothing beyond the image's border; (f) is the superpixel whose mean is added as well.",
    fits=sends_messages,
    needs="crf embedded with a pairwise_weight",
    of_image=messages,
)
