"""Make the figures: figures/<figure>-<run>[-<image>].png and .svg, and figures/index.md with their captions."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from pipeline.data import prepared
from pipeline.evaluation.pictures import safe_name
from pipeline.figures import canvas, choose
from pipeline.figures.choose import Choice
from pipeline.figures.material import Run, load_run
from pipeline.figures.table import FIGURES
from pipeline.ground import files
from pipeline.ground.errors import UserError
from pipeline.ground.progress import track
from pipeline.report.tables import code, escaped
from pipeline.settings.schema import Params

FOLDER = Path("figures")
Made = tuple[Choice, str | None, str]  # what it is, the image's name, the file's name without suffix


def write(params: Params, folder: Path = FOLDER, only: Collection[str] = ()) -> tuple[list[Made], list[str]]:
    """Make the figures of params.yaml, or `only` some of them; what was made, and of the others why not.

    What else the folder has of figures is removed unless only some are made. UserError: no run is finished, a run of another dataset,
    a wrong name of a run or image, a pixel outside its image.
    """
    manifest = choose.dataset(params)
    chosen, left_out = choose.choices(params, only)
    runs, missing = load_runs(params, chosen, manifest)
    ready = [choice for choice in chosen if not unfinished(choice, missing)]
    if chosen and not ready:
        raise UserError(next(iter(missing.values())))
    left_out += [f"{choice.name}: {unfinished(choice, missing)}" for choice in chosen if choice not in ready]
    made = list(drawn(params, folder, ready, runs, manifest, left_out))
    if not only:
        remove_stale(folder, {stem for _, _, stem in made})
    files.write_bytes(folder / "index.md", index(params, made, left_out, runs).encode())
    return made, left_out


def load_runs(params: Params, chosen: list[Choice], manifest: prepared.Prepared) -> tuple[dict[str, Run], dict[str, str]]:
    """The runs that figures are made of by name, each loaded once, and the lines about those that are not finished."""
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    asked = {name for named in params.figures.runs.values() for name in named} | {params.figures.baseline}
    for config in dict.fromkeys(run.name for choice in chosen for run in (choice.run, choice.baseline) if run is not None):
        finished = any((Path("runs") / config / "weights").glob("seed-*.pt"))
        try:
            runs[config] = load_run(config, params.figures.seed, manifest, finetune=config in params.finetunes)
        except UserError as error:
            if finished or config in asked:  # damaged, of other data, without this seed, or asked for by name
                raise
            missing[config] = str(error)
    return runs, missing


def unfinished(choice: Choice, missing: dict[str, str]) -> str | None:
    """Why a figure has to wait."""
    names = [run.name for run in (choice.run, choice.baseline) if run is not None]
    return next((missing[name] for name in names if name in missing), None)


def drawn(
    params: Params, folder: Path, ready: list[Choice], runs: dict[str, Run], manifest: prepared.Prepared, left_out: list[str]
) -> Iterator[Made]:
    """Draw and write one figure after the other."""
    shots, sample = choose.shots(params, manifest), choose.sample(params, manifest)
    work = []
    for choice in ready:
        run, baseline = runs[choice.run.name], None if choice.baseline is None else runs[choice.baseline.name]
        check_settings(choice, run, baseline, params)
        if (of_sample := choice.figure.of_sample) is not None:
            work.append((choice, None, partial(of_sample, run, baseline, sample)))
        elif (of_image := choice.figure.of_image) is not None:
            work += [(choice, shot.pair.name, partial(of_image, run, baseline, shot)) for shot in shots]
    for choice, image, draw in track(work, len(work), "figures", unit="figures"):
        stem = "-".join([choice.name, choice.run.name, *([] if image is None else [safe_name(image)])])
        try:
            with canvas.style():
                canvas.save(draw(), folder / stem)
        except UserError:
            raise
        except ValueError as error:  # the network's own refusal, as of a size that a learned position does not have
            left_out.append(f"{stem}: {error}")
            continue
        yield choice, image, stem


def check_settings(choice: Choice, run: Run, baseline: Run | None, params: Params) -> None:
    """Refuse weights that were trained as another method than params.yaml now has by this name."""
    figure, name, lack = choice.figure, choice.run.name, None
    if not figure.fits(run.config):
        lack = f"without {figure.needs}"
    elif choice.baseline is not None and baseline is not None and figure.beside is not None and not figure.beside(baseline.config):
        name, lack = choice.baseline.name, f"as a method that figure {choice.name} cannot have for its baseline"
    if lack:
        stage = "finetune" if name in params.finetunes else "train"
        raise UserError(f"runs/{name}/weights was trained {lack}: run `uv run dvc repro {stage}@{name}`")


def remove_stale(folder: Path, stems: Collection[str]) -> None:
    """Delete pictures of figures that are not made any more; other files are not touched."""
    for path in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        if path.stem not in stems and path.stem.startswith(tuple(f"{name}-" for name in FIGURES)):
            path.unlink()


def index(params: Params, made: list[Made], left_out: list[str], runs: dict[str, Run]) -> str:
    """index.md: every figure with its caption, and what is not there."""
    parts = [f"# {escaped(params.data.dataset)}: the papers' figures, from trained runs\n"]
    for name, figure in FIGURES.items():
        own = [(choice, image, stem) for choice, image, stem in made if choice.name == name]
        if not own:
            continue
        parts += [f"## {name}\n", f"After {figure.source}.\n", f"{figure.caption}\n"]
        for choice, image, stem in own:
            beside = f", beside {code(choice.baseline.name)}" if choice.baseline is not None else ""
            of = f", image {escaped(image)}" if image is not None else ""
            run = runs[choice.run.name]
            words = f"Run {code(run.config.name)}, seed {run.seed}{beside}{of} ([SVG]({stem}.svg))."
            parts.append(f"![{name}, {escaped(run.config.name)}]({stem}.png)\n\n{words}\n")
    if left_out:
        parts += ["## Left out\n", "\n".join(f"- {escaped(line)}" for line in left_out) + "\n"]
    return "\n".join(parts)
