"""Which runs, images and pixels the figures are made of: params.yaml's section `figures` against what there is."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pipeline.data import prepared
from pipeline.data.prepared import Pair, Prepared, pairs
from pipeline.evaluation.metrics import VOID
from pipeline.figures.figure import Figure, is_plain
from pipeline.figures.material import Sample, Shot, load_shot, spread
from pipeline.figures.table import FIGURES
from pipeline.ground.errors import UserError
from pipeline.settings.schema import Config, Figures, Params
from pipeline.settings.strict import suggestion


@dataclass(frozen=True)
class Choice:
    """A figure of one run; `baseline` is the run beside it, where the figure has one."""

    name: str
    run: Config
    baseline: Config | None

    @property
    def figure(self) -> Figure:
        """The table's entry."""
        return FIGURES[self.name]


def choices(params: Params, only: Collection[str] = ()) -> tuple[list[Choice], list[str]]:
    """The figures to make, and of those that cannot be made why; only: these names alone. UserError: a wrong name in the settings."""
    runs = {**params.methods, **params.finetunes}
    made, left_out = [], []
    for name, figure in FIGURES.items():
        if only and name not in only:
            continue
        chosen = runs_of(name, figure, params.figures, runs, str(params.path))
        if not chosen:
            left_out.append(f"{name}: no run has {figure.needs}")
        made += [Choice(name, run, baseline_of(run, figure, params, runs)) for run in chosen]
    return made, left_out


def runs_of(name: str, figure: Figure, settings: Figures, runs: Mapping[str, Config], file: str) -> list[Config]:
    """Those that `figures.runs` names, else the first that fits."""
    if name not in settings.runs:
        return [config for config in runs.values() if figure.fits(config)][:1]
    for run in settings.runs[name]:
        if not figure.fits(runs[run]):
            fitting = [other for other, config in runs.items() if figure.fits(config)]
            raise UserError(
                f"{file}: figures.runs.{name}: {run} does not have {figure.needs}; runs that do: {', '.join(fitting) or 'none'}"
            )
    return [runs[run] for run in settings.runs[name]]


def baseline_of(run: Config, figure: Figure, params: Params, runs: Mapping[str, Config]) -> Config | None:
    """The run that is put beside `run`: `figures.baseline`, else the one that differs least of those that the figure can have."""
    beside = figure.beside
    if beside is None:
        return None
    if (named := params.figures.baseline) is not None and named != run.name and beside(runs[named]):
        return runs[named]
    others = [config for config in runs.values() if config.name != run.name and beside(config)]

    def likeness(config: Config) -> tuple[bool, ...]:
        same_head = config.head == run.head, config.head.name == run.head.name
        return (*same_head, is_plain(config), config.projection == run.projection)

    return max(others, key=likeness, default=None)


def dataset(params: Params) -> Prepared:
    """What is prepared, which must be what params.yaml says."""
    found = prepared.read()
    if found.dataset != params.data.dataset:
        again = f"run `{prepared.REMEDY}`"
        raise UserError(f"data/prepared.json is of {found.dataset}, but {params.path} says {params.data.dataset}: {again}")
    return found


def split_of(params: Params) -> str:
    """The split that is drawn."""
    return params.figures.split or next(iter(params.evaluations.values())).split


def sample(params: Params, manifest: Prepared) -> Sample:
    """The images that figures of the whole dataset count over."""
    found = pairs(manifest, split_of(params))
    if not found:
        raise UserError(f"{params.path}: figures: split {split_of(params)} of {manifest.dataset} has no images")
    indices = range(len(found)) if params.figures.sample is None else spread(len(found), params.figures.sample)
    return Sample(split_of(params), [found[index] for index in indices], short_side(params))


def shots(params: Params, manifest: Prepared) -> list[Shot]:
    """The images that figures are made of, each with its pixel. UserError: none of them has labels."""
    settings, found = params.figures, pairs(manifest, split_of(params))
    if isinstance(settings.images, int):
        chosen = [found[index] for index in spread(len(found), settings.images)]
    else:
        chosen = [named_pair(name, found, f"{params.path}: figures.images") for name in settings.images]
    loaded = [load_shot(pair, settings.pixel, short_side(params)) for pair in chosen]
    if all((shot.labels_HW == VOID).all() for shot in loaded):
        names = ", ".join(shot.pair.name for shot in loaded[:3])
        raise UserError(f"{params.path}: figures: the chosen images of split {split_of(params)} have no labels ({names}): choose others")
    return loaded


def named_pair(name: str, found: Sequence[Pair], place: str) -> Pair:
    """The image of a name."""
    by_name = {pair.name: pair for pair in found}
    if name not in by_name:
        few = by_name if len(by_name) <= 12 else get_close_matches(name, by_name, 3, 0) or list(by_name)[:3]
        more = "" if len(by_name) <= 12 else f" ... {len(by_name)} in all"
        raise UserError(f"{place}: the split has no image {name!r}{suggestion(name, few)}{more}")
    return by_name[name]


def short_side(params: Params) -> int | None:
    """What images are fitted to: as in the evaluations."""
    return next(iter(params.evaluations.values())).short_side
