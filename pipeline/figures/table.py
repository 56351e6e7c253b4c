"""The figures that there are, by the names that params.yaml and the command line have for them."""

from collections.abc import Mapping

from pipeline.figures import caa, car, conv_crf, crf_rnn, decoupled, ecrf, ksac
from pipeline.figures.figure import Figure

FIGURES: Mapping[str, Figure] = {
    "class-weights": ecrf.CLASS_WEIGHTS,
    "messages": ecrf.MESSAGES,
    "rates": ksac.RATES,
    "attention": caa.ATTENTIONS,
    "relations": car.RELATIONS,
    "dependencies": car.DEPENDENCIES,
    "body-edge": decoupled.BODY_EDGE,
    "flow": decoupled.FLOW,
    "crfs": conv_crf.CRFS,
    "compatibility": crf_rnn.COMPATIBILITY,
}
