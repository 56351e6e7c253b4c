"""Published constants of dense CRFs, by the names that `dense_crf: {preset: ...}` has for them: a score depends on them."""

from collections.abc import Mapping
from typing import Any


def preset(iterations: int, spatial: tuple[float, float], bilateral: tuple[float, float, float], **more: str) -> Mapping[str, Any]:
    """Options from (smoothness, theta_gamma) and (appearance, theta_alpha, theta_beta)."""
    (smoothness, gamma), (appearance, alpha, beta) = spatial, bilateral
    kernels = {"smoothness": smoothness, "theta_gamma": gamma, "appearance": appearance, "theta_alpha": alpha, "theta_beta": beta}
    return {"iterations": iterations, **kernels, **more}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "pydensecrf": preset(5, (3.0, 3.0), (10.0, 80.0, 13.0)),  # its README
    "deeplab_v1": preset(10, (3.0, 3.0), (4.0, 49.0, 5.0)),  # LargeFOV on VGG16: run_densecrf.sh
    "deeplab_v2_vgg16": preset(10, (2.0, 2.0), (4.0, 65.0, 3.0)),  # a third party's note
    "deeplab_v2_r101": preset(10, (3.0, 1.0), (4.0, 67.0, 3.0)),  # kazuto1011/deeplab-pytorch: the default
    "crf_rnn": preset(10, (3.0, 3.0), (5.0, 160.0, 3.0), normalization="rows"),  # before its training
    "conv_crf": preset(5, (3.0, 3.0), (10.0, 80.0, 13.0)),  # its defaults, on a dense field
}
