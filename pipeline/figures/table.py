"""The figures that there are: of which paper, what they show, how to read them, and which runs they can be made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.figures import caa, car, conv_crf, crf_rnn, decoupled, ecrf, ksac
from pipeline.figures.canvas import Sheet
from pipeline.figures.material import Run, Sample, Shot
from pipeline.schema import Config


@dataclass(frozen=True)
class Figure:
    """One figure. It is made for each chosen image (`of_image`), or once over many (`of_sample`).

    fits: whether a run has what is shown; needs: the same in words. beside: whether a run can be its baseline; None: it has none.
    """

    source: str
    caption: str
    fits: Callable[[Config], bool]
    needs: str
    of_image: Callable[[Run, Run | None, Shot], Sheet] | None = None
    of_sample: Callable[[Run, Run | None, Sample], Sheet] | None = None
    beside: Callable[[Config], bool] | None = None


def is_plain(config: Config) -> bool:
    """A run without a crf, with cross-entropy alone: what methods are compared with."""
    return config.crf.name == "unary" and config.loss.name == "cross_entropy"


FIGURES: Mapping[str, Figure] = {
    "class-weights": Figure(
        source="Zhu et al., E-CRF (ICLR 2023), Fig. 1(a)",
        caption="For each class the class that it touches most (over the labels; pairs with most adjacent pixels first), and the "
        "cosine between the weights that the classifier has for the two. Lower is better told apart: E-CRF is to lower it for classes "
        "that touch often, at the left. Below are the numbers of adjacent pixel pairs, on a logarithmic scale.",
        fits=lambda config: config.crf.name == "embedded", needs="crf embedded",
        of_sample=ecrf.class_weights, beside=is_plain,
    ),
    "messages": Figure(
        source="Zhu et al., E-CRF (ICLR 2023), Fig. 4",
        caption="What a pixel k (ring) has to do with every other: (b) the products of the learned colour tokens, (c) of the learned "
        "position tokens, (d) the weight of each pixel's message, which is their sum times the sender's compatibility. Each map "
        "has its own scale. The module adds up the messages of the pixels outlined in (d), shown alone in (e), with k itself in "
        "the middle; (f) is the superpixel whose mean is added as well.",
        fits=ecrf.sends_messages, needs="crf embedded with a pairwise_weight",
        of_image=ecrf.messages,
    ),
    "rates": Figure(
        source="Huang et al., KSAC (Neurocomputing 2021); Huang, thesis (UTS 2022), Fig. 2.4",
        caption="Feature maps after each atrous rate's batch norm and ReLU: 25 channels, and one of them enlarged, each from its own "
        "least (dark) to its own largest value (light). With KSAC's shared kernel a place in the square is the same channel at "
        "every rate; separate kernels have nothing to do with one another. The channels are those that vary most over the "
        "image.",
        fits=ksac.shares_kernels, needs="head ksac",
        of_image=ksac.rates, beside=ksac.has_rates,
    ),
    "attention": Figure(
        source="Huang et al., CAA (AAAI 2022); Huang, thesis (UTS 2022), Fig. 3.3",
        caption="Above: what the trained network predicts with spatial attention alone (gates replaced by their mean), with channel "
        "attention alone (each pixel attends to itself, gates as they are), and with both. Below: how much the marked pixel "
        "takes from each other one; how far the gates turn each pixel's representation (1 - cosine); the errors.",
        fits=caa.has_attention, needs="head caa with gates",
        of_image=caa.attention,
    ),
    "relations": Figure(
        source="Huang et al., CAR (ECCV 2022); Huang, thesis (UTS 2022), Fig. 4.4",
        caption="The dot products of the marked pixel's features with those of every pixel, without CAR and with it, and what each "
        "predicts. Light is similar; each map has its own scale. With CAR the light is to stay within the pixel's own class.",
        fits=car.is_regularised, needs="loss car",
        of_image=car.relations, beside=is_plain,
    ),
    "dependencies": Figure(
        source="Huang et al., CAR (ECCV 2022); Huang, thesis (UTS 2022), Fig. 4.5",
        caption="For each class (row) the softmax over all classes (columns) of the scaled dot products of their mean features "
        "(equation 4.4). A light diagonal is a class that depends on itself alone; light beside it is dependency on others, "
        "whose mean over the classes stands above. Classes without pixels in the sample are left white.",
        fits=car.is_regularised, needs="loss car",
        of_sample=car.dependencies, beside=is_plain,
    ),
    "body-edge": Figure(
        source="Li et al., Decoupled Body and Edge Supervision (ECCV 2020), Fig. 5",
        caption="The first three principal components of (a) the body, (b) the rest, (c) both merged with the low-level features, as "
        "red, green and blue; components are each map's own, so only likeness within a map has a meaning. The titles have their "
        "share of the variance. (d) is the edge prior: where the predicted probability of an edge exceeds 0.8.",
        fits=decoupled.is_decoupled, needs="head decoupled",
        of_image=decoupled.body_edge,
    ),
    "flow": Figure(
        source="Li et al., Decoupled Body and Edge Supervision (ECCV 2020), Fig. 6",
        caption="The learned flow: an arrow points from a pixel to where its body feature is taken from. Lengths are in pixels of the "
        "image; the thin lines are the borders of the labels. Towards the inside of objects is what the paper finds for FCN; "
        "with ASPP it finds flow at borders alone.",
        fits=decoupled.is_decoupled, needs="head decoupled",
        of_image=decoupled.flow,
    ),
    "crfs": Figure(
        source="Teichmann and Cipolla, ConvCRF (BMVC 2019), Fig. 1",
        caption="The classifier's logits alone (unary), a dense CRF with the paper's constants on them (FullCRF), and the trained "
        "ConvCRF. Below: how sure the unary is, what ConvCRF changed, and the errors. The paper's figure is of its synthetic "
        "task, which `uv run python -m stages.denoise` runs.",
        fits=conv_crf.has_conv_crf, needs="crf conv",
        of_image=conv_crf.crfs,
    ),
    "compatibility": Figure(
        source="Zheng et al., CRF-RNN (ICCV 2015), Fig. 5",
        caption="The penalty for a label (row) where a similar pixel has another (column), as learned, and its change from Potts' "
        "model, with which training starts (-1 on the diagonal, else 0). A negative penalty is a reward. Classes that appear "
        "together are to get low ones.",
        fits=crf_rnn.learns_compatibility, needs="crf mean_field, or crf conv with compatibility",
        of_sample=crf_rnn.compatibility,
    ),
}  # fmt: skip
