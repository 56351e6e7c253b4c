"""The typed sections of params.yaml: frozen dataclasses, each number with its meaning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from pipeline.settings.profiles import Launch
from pipeline.settings.strict import Fraction, Pair, Positive, PositiveReal, Whole

# What the section `figures` may name; pipeline/figures/table.py says what each is. Here, for reading settings needs no torch.
FIGURES = (
    "class-weights", "messages", "rates", "attention", "relations", "dependencies", "body-edge", "flow", "crfs", "compatibility",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """A head, crf or loss: its name in the table and its options; in YAML one flat mapping `{name: ..., option: ...}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def part_of(raw: Any) -> Any:
    """The nested form of a part's flat mapping."""
    if isinstance(raw, Mapping) and "name" in raw and set(raw) != {"name", "options"}:
        return {"name": raw["name"], "options": {key: value for key, value in raw.items() if key != "name"}}
    return raw


FlatPart = Annotated[Part, BeforeValidator(part_of), PlainSerializer(lambda part: {"name": part.name} | dict(part.options))]


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Photometric jitter: each factor is drawn from [1 - x, 1 + x] (hue: a shift from [-x, x] of the circle)."""

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained on and how it is augmented. `options` are the dataset's own keys, flat in YAML."""

    dataset: str
    root: Path  # what DVC watches for the download: the user's folder or CSV, else the dataset's Python file
    crop: Pair  # height, width in pixels
    scale: tuple[PositiveReal, PositiveReal]  # the range from which an image's scale is drawn, uniformly
    ratio_base: Pair | None = None  # width, height that an image is first fitted into, ratio kept; null: its own size
    jitter: Jitter | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SuperpixelSet:
    """SLIC's parameters. `segments` is asked for, the count given differs."""

    algorithm: Literal["slic", "slico"]
    segments: Annotated[int, Field(gt=0, le=65000)]
    compactness: PositiveReal = 10.0
    sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A timm model by name. `pretrained`: true (timm's weights), false, or a path to a file of weights."""

    name: str
    output_stride: Literal[8, 16, 32]
    pretrained: bool | Path = False


@dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """A small FCN branch on a backbone stage that adds `weight` times its cross-entropy."""

    stage: int = -2  # index of the backbone's outputs
    width: Positive = 256
    kernel: Literal[1, 3] = 3
    weight: PositiveReal = 0.4


@dataclass(frozen=True, kw_only=True)
class Train:
    """One training. `batch_size` is that of an optimizer step over all processes; `accumulate` splits it."""

    iterations: Positive
    batch_size: Positive
    accumulate: Positive = 1
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    optimizer: Literal["sgd", "adamw"]
    lr: PositiveReal
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.9
    min_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # what the poly decay ends at
    warmup: Whole = 0  # iterations of linear warm-up
    multipliers: Mapping[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = field(default_factory=dict)  # part: factor on lr
    clip: PositiveReal | None = None  # the gradient's largest norm
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the averaged weights that are published
    deterministic: bool = False


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """What a run starts from, and how it goes on. `source` is `from` in YAML: a folder with seed-<s>.pt, or one file for all seeds.

    alternate: end-to-end training of a crf as in ConvCRF. Steps number 0, 2, 4, ... train the unary alone: the loss takes the
    classifier's logits for the crf's, and the crf's own parameters stand still, their momentum too. Steps number 1, 3, 5, ... train
    everything on the loss of the crf's logits and, with the loss's `unary_weight`, of the unary's. The paper first trains the unary
    by itself for two fifths of the time: that is the run named in `from`; and it fits the crf on held-out images after every
    epoch: here once, by another finetune with `freeze` and `images`.
    """

    source: Path
    freeze: tuple[str, ...] = ()
    images: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # names: the only training images that are used; null: all
    alternate: bool = False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a result depends on besides its settings: hashes of manifests and code, versions, the parent's hash."""

    manifests: Mapping[str, str]
    code: Mapping[str, str]
    versions: Mapping[str, str]
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run of one seed, resolved: a method or a finetune with the global sections and its overrides merged."""

    name: str
    seed: int
    data: Data
    superpixels: str  # the set's name
    superpixel_set: SuperpixelSet | None
    backbone: Backbone
    auxiliary: Auxiliary | None
    train: Train
    head: FlatPart
    crf: FlatPart
    loss: FlatPart
    projection: Literal["end", "linear"] = "end"
    finetune: Finetune | None = None
    launch: Launch
    inputs: Inputs | None = None  # set at submission by `fingerprint.stamp`

    @property
    def folder(self) -> Path:
        """Where the run leaves what it makes."""
        return Path("runs") / self.name


@dataclass(frozen=True, kw_only=True)
class DenseCRF:
    """The options of `evaluation.dense_crf.dense_crf`. `preset` names those that were not given; they are filled in when it is read."""

    preset: str | None = None
    iterations: Whole = 10
    smoothness: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    theta_gamma: PositiveReal = 1.0
    appearance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    theta_alpha: PositiveReal = 67.0
    theta_beta: PositiveReal = 3.0
    filtering: Literal["auto", "exact", "permutohedral"] = "auto"
    normalization: Literal["rows", "symmetric", "none"] = "symmetric"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a run is evaluated. Lengths are pixels; scales are relative to the (short_side-fitted) image."""

    name: str
    of: str  # the method or finetune
    split: str
    match: str | None = None  # a pattern of image names, such as "0001TP*"; null: all
    mode: Literal["whole", "slide"]
    window: Pair | None = None  # height, width; slide only
    stride: Pair | None = None
    short_side: Positive | None = None
    scales: Annotated[tuple[PositiveReal, ...], Field(min_length=1)] = (1.0,)
    flip: bool = True
    radii: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 3, 5, 9, 12)
    dense_crf: DenseCRF | None = None  # mean field on the probabilities at the image's size; null: none
    launch: Launch


def several(raw: Any) -> Any:
    """One name as a list of one."""
    return [raw] if isinstance(raw, str) else raw


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the papers' figures are made of. Null: the first run that fits, the evaluations' split, a telling pixel, the first seed."""

    images: Positive | Annotated[tuple[str, ...], Field(min_length=1)] = 2  # a number of them, evenly spread, or their names
    pixel: tuple[Whole, Whole] | None = None  # row, column; null: the midst of the smallest object that is not a speck
    runs: Mapping[str, Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(several)]] = field(default_factory=dict)  # by figure
    baseline: str | None = None  # the run beside others; null: of those without crf the one that differs least
    split: str | None = None
    seed: Whole | None = None
    sample: Positive | None = 100  # images that class centres and adjacent pixels are counted over; null: all of the split


@dataclass(frozen=True, kw_only=True)
class Params:
    """All of params.yaml. A run's config carries its first seed; `Config.train.seeds` has all."""

    path: Path
    data: Data
    superpixels: Mapping[str, SuperpixelSet | None]
    methods: Mapping[str, Config]
    finetunes: Mapping[str, Config]
    evaluations: Mapping[str, Evaluation]
    figures: Figures
    tune: Mapping[str, Any]  # as it stands: `pipeline.search.space` reads it
    launch: Launch
