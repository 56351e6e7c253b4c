"""params.yaml, read once, strictly: a mistake is one line that names file, key and what is known.

Reading needs neither torch nor the datasets' code; `stages.check` goes on from here and tries what the names stand for.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.ground.errors import UserError
from pipeline.settings import schema
from pipeline.settings.presets import PRESETS
from pipeline.settings.profiles import Launch, load_profile, profile_name
from pipeline.settings.schema import Config, DenseCRF, Evaluation, Params
from pipeline.settings.strict import Section, adapter, names, parse, read_yaml, suggestion

T = TypeVar("T")
PARAMS = Path("params.yaml")
SECTIONS = (
    "data", "superpixels", "backbone", "auxiliary", "train", "methods", "finetunes", "evaluate", "evaluations", "figures", "tune", "launch",
)  # fmt: skip
RUN_KEYS = ("head", "crf", "loss", "superpixels", "projection", "backbone", "auxiliary", "train")
FINETUNE_KEYS = ("from", "freeze", "images", "alternate")


def load(file: Path = PARAMS, launch: Launch | None = None) -> Params:
    """Read params.yaml and the launch profile that it, or `LAUNCH`, names, unless one is given."""
    return resolved(read_yaml(file), launch)


def resolved(top: Section, launch: Launch | None = None) -> Params:
    """The content of params.yaml as its sections' types; `load` reads it from the file."""
    file = top.only(SECTIONS).file
    launch = launch or load_profile(profile_name(top))
    data = read_data(top.part("data"))
    sets = read_superpixels(top.part("superpixels"))
    tune = Section(top.raw.get("tune") or {}, file, "tune").raw
    shared = {"data": data, "launch": launch}
    methods = {name: read_run(top, "methods", name, sets, shared) for name in top.part("methods").raw}
    finetunes = {name: read_run(top, "finetunes", name, sets, shared) for name in top.part("finetunes").raw}
    if twice := methods.keys() & finetunes.keys():
        raise UserError(f"{file}: {min(twice)} is both a method and a finetune; rename one, for they share runs/{min(twice)}")
    if not methods and not finetunes:
        raise UserError(f"{file}: methods is empty: there is nothing to train")
    if not top.part("evaluations").raw:
        raise UserError(f"{file}: evaluations is empty: there would be nothing to report; add one, as in fcn: {{of: fcn}}")
    evaluations = {name: read_evaluation(top, name, {**methods, **finetunes}, launch) for name in top.part("evaluations").raw}
    figures = read_figures(top, {**methods, **finetunes})
    made = {"methods": methods, "finetunes": finetunes, "evaluations": evaluations, "figures": figures}
    return Params(path=file, data=data, superpixels=sets, **made, tune=tune, launch=launch)


def read_data(section: Section) -> schema.Data:
    """The data section; the keys that are not everyone's are the dataset's own, checked against its signature later."""
    common = set(names(schema.Data)) - {"options"}
    options = {key: value for key, value in section.raw.items() if key not in common}
    if isinstance(section.raw.get("jitter"), Mapping):
        section.part("jitter").only(names(schema.Jitter))
    data = parse(
        schema.Data, {key: section.raw[key] for key in section.raw if key in common} | {"options": options}, section.file, section.place
    )
    if data.scale[0] > data.scale[1]:
        raise UserError(f"{section.file}: data.scale must be [low, high], not {list(data.scale)}")
    return data


def read_superpixels(section: Section) -> dict[str, schema.SuperpixelSet | None]:
    """The named sets; an empty one (`none: {}`) means no superpixels."""
    sets: dict[str, schema.SuperpixelSet | None] = {}
    for name in section.raw:
        part = section.part(name)
        check_name(part, name)
        sets[name] = part.parse(schema.SuperpixelSet) if part.raw else None
    return sets


def merged(top: Section, key: str, override: Section) -> Section | None:
    """A global section with an entry's overrides laid over it; null where the result is switched off."""
    base, own = top.raw.get(key), override.raw.get(key)
    if key in override.raw and own is None:
        return None
    if key not in override.raw:
        return None if base is None else top.part(key)
    own = Section(own, override.file, override.at(key))
    return Section({**({} if base is None else top.part(key).raw), **own.raw}, own.file, own.place)


def required(section: Section | None, top: Section, key: str) -> Section:
    """A section that an entry cannot do without."""
    if section is None:
        raise UserError(f"{top.file}: {key} is missing")
    return section


def read_run(top: Section, kind: str, name: str, sets: Mapping[str, schema.SuperpixelSet | None], shared: Mapping[str, Any]) -> Config:
    """One method or finetune, resolved."""
    entry = top.part(kind).part(name).only(RUN_KEYS + (FINETUNE_KEYS if kind == "finetunes" else ()))
    check_name(entry, name)
    chosen = entry.raw.get("superpixels", "none")
    if not isinstance(chosen, str) or chosen not in sets:
        raise UserError(f"{top.file}: {entry.at('superpixels')}: {chosen!r} is no superpixel set{suggestion(str(chosen), sets)}")
    finetune = None
    if kind == "finetunes":
        own = {key: entry.raw[key] for key in FINETUNE_KEYS if key in entry.raw}
        if "from" not in own:
            raise UserError(f"{top.file}: {entry.at('from')} is missing")
        finetune = parse(schema.Finetune, {"source": own.pop("from"), **own}, entry.file, entry.place)
    auxiliary = merged(top, "auxiliary", entry)
    train = required(merged(top, "train", entry), top, "train").parse(schema.Train)
    if len(set(train.seeds)) < len(train.seeds):
        raise UserError(f"{top.file}: train.seeds names a seed twice: {list(train.seeds)}")
    parts = {key: entry.part(key).raw for key in ("head", "crf", "loss")}
    for key, raw in parts.items():
        if not isinstance(raw.get("name"), str):
            raise UserError(f"{top.file}: {entry.at(key)} needs a name, as in {{name: ...}}")
    rest = {"projection": entry.raw["projection"]} if "projection" in entry.raw else {}
    config = parse(
        Config,
        {
            **shared,
            **parts,
            **rest,
            "name": name,
            "seed": train.seeds[0],
            "train": train,
            "finetune": finetune,
            "superpixels": chosen,
            "superpixel_set": sets[chosen],
            "backbone": required(merged(top, "backbone", entry), top, "backbone").parse(schema.Backbone),
            "auxiliary": auxiliary and auxiliary.parse(schema.Auxiliary),
        },
        top.file,
        entry.place,
    )
    check_train(config, top.file, entry.place)
    return config


def check_name(entry: Section, name: str) -> None:
    """Names become folders and DVC stages."""
    if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii() or name.startswith("-"):
        raise UserError(f"{entry.file}: {entry.place}: a name has letters, digits, - and _ only, since it becomes a folder")


def check_train(config: Config, file: Path, place: str) -> None:
    """The global batch must be the same on every process and in every accumulated part, and the rate must decay downwards."""
    if config.train.min_lr > config.train.lr:
        raise UserError(f"{file}: {place}: train.min_lr {config.train.min_lr} is larger than train.lr {config.train.lr}")
    if config.train.batch_size % (config.launch.world * config.train.accumulate):
        raise UserError(
            f"{file}: {place}: train.batch_size {config.train.batch_size} does not divide by {config.launch.world} processes "
            f"(launch profile {config.launch.name}) x {config.train.accumulate} accumulated parts"
        )


def read_evaluation(top: Section, name: str, runs: Mapping[str, Config], launch: Launch) -> Evaluation:
    """One evaluation: the section `evaluate` with its overrides."""
    entry = top.part("evaluations").part(name)
    check_name(entry, name)
    of = entry.raw.get("of")
    if not isinstance(of, str) or of not in runs:
        raise UserError(f"{top.file}: {entry.at('of')}: {of!r} is no method or finetune{suggestion(str(of), runs)}")
    both = Section({**top.part("evaluate").raw, **entry.raw}, top.file, entry.place)
    if both.raw.get("dense_crf") is not None:
        both.raw["dense_crf"] = read_dense_crf(both.part("dense_crf"))
    evaluation = both.parse(Evaluation, name=name, launch=launch)
    if evaluation.mode == "slide" and not (evaluation.window and evaluation.stride):
        raise UserError(f"{top.file}: {entry.place}: mode slide needs window and stride, each [height, width]")
    if evaluation.window and evaluation.stride and any(s > w for s, w in zip(evaluation.stride, evaluation.window, strict=True)):
        sizes = f"stride {list(evaluation.stride)} is larger than window {list(evaluation.window)}"
        raise UserError(f"{top.file}: {entry.place}: {sizes}: pixels would be left out")
    return evaluation


def read_figures(top: Section, runs: Mapping[str, Config]) -> schema.Figures:
    """What the papers' figures are made of; the section may be left out."""
    section = Section(top.raw.get("figures") or {}, top.file, "figures")
    figures = section.parse(schema.Figures)
    for figure, chosen in figures.runs.items():
        if figure not in schema.FIGURES:
            raise UserError(f"{top.file}: figures.runs: {figure!r} is no figure{suggestion(figure, schema.FIGURES)}")
        for name in chosen:
            find(runs, name, f"figures.runs.{figure}: methods and finetunes", top.file)
    if figures.baseline is not None:
        find(runs, figures.baseline, "figures.baseline: methods and finetunes", top.file)
    return figures


def read_dense_crf(section: Section) -> DenseCRF:
    """The CRF of an evaluation: its own options over its preset's over the defaults."""
    preset = section.raw.get("preset")
    if preset is None:
        return section.parse(DenseCRF)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(f"{section.file}: {section.at('preset')}: {preset!r} is no preset{suggestion(str(preset), PRESETS)}")
    return Section({**PRESETS[preset], **section.raw}, section.file, section.place).parse(DenseCRF)


def find(table: Mapping[str, T], name: str, what: str, file: Path) -> T:
    """`table[name]`, or a UserError that names what is known."""
    if name not in table:
        raise UserError(f"{file}: {what} has no {name!r}{suggestion(name, table)}")
    return table[name]


def with_seed(config: Config, seed: int) -> Config:
    """The same run with another seed."""
    return replace(config, seed=seed)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values (for checkpoints, weights and hashes); `from_dict` is its inverse."""
    return adapter(Config).dump_python(config, mode="json")


def from_dict(values: Mapping[str, Any]) -> Config:
    """The config that a weights file carries."""
    return adapter(Config).validate_python(dict(values))
