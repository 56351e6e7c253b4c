"""An evaluation of small random networks: its numbers against a count from its own pictures, its ranks, its refusals."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from makers.ranks import run_on_ranks
from makers.stored import put, put_pair, textured
from PIL import Image

from pipeline.data import prepared
from pipeline.data.prepared import Prepared
from pipeline.evaluation import pictures
from pipeline.ground import codebase, files, store
from pipeline.ground.errors import UserError
from pipeline.settings import schema

CLASSES = ("sky", "road", "car", "never")
PALETTE = ((70, 130, 180), (128, 64, 128), (0, 0, 142), (9, 9, 9))
SIZES = ((40, 56), (33, 47), (48, 48), (40, 56), (64, 35))
LAUNCH = schema.Launch(name="local", backend="local", threads=1, bars=False, tracking=False)


def evaluation(**changes: object) -> schema.Evaluation:
    how = {"split": "val", "mode": "whole", "scales": (0.75, 1.0), "flip": True, "radii": (1, 3)}
    return schema.Evaluation(**{"name": "ecrf", "of": "ecrf", "launch": LAUNCH} | how | changes)


def labels_of(index: int, size: tuple[int, int]) -> np.ndarray:
    """Bands of three of the four classes, and a frame of void."""
    labels_HW = ((np.arange(size[0])[:, None] // 9 + np.arange(size[1]) // 13 + index) % 3).astype(np.uint8)
    labels_HW[:2] = 255
    return labels_HW


def config() -> schema.Config:
    auxiliary = schema.Auxiliary(width=8)
    train = schema.Train(iterations=1, batch_size=2, seeds=(0, 7), optimizer="sgd", lr=0.1, weight_decay=0.0)
    return schema.Config(
        name="ecrf", seed=0, data=schema.Data(dataset="scenes", root=Path("x"), crop=(32, 32), scale=(1.0, 1.0)), superpixels="slic",
        superpixel_set=schema.SuperpixelSet(algorithm="slic", segments=20), backbone=schema.Backbone(name="test_resnet", output_stride=16),
        auxiliary=auxiliary, train=train, head=schema.Part(name="fcn", options={"width": 8}), crf=schema.Part(name="embedded"),
        loss=schema.Part(name="cross_entropy"), launch=LAUNCH,
    )  # fmt: skip


@torch.no_grad()
def balance(network: torch.nn.Module) -> None:
    """Let different places get different classes, and none the last one."""
    for _ in range(20):
        network(torch.rand(2, 3, 8, 8).repeat_interleave(6, 2).repeat_interleave(6, 3), torch.zeros(2, 48, 48).long())
    pixels = torch.tensor(textured(1, 48, 48)).permute(2, 0, 1)[None] / 255
    network.crf.classifier.bias -= network.eval()(pixels, torch.zeros(1, 48, 48).long()).logits_BKhw.mean((0, 2, 3))
    network.crf.classifier.bias[3] = -1000.0


@pytest.fixture
def project(workspace: Path) -> Path:
    """A prepared split of five images, superpixels of a grid, and two published seeds of a run."""
    from models.segmenter import build
    from pipeline.settings import config as configs

    names = ("night/a b.png", "1", "2", "3", "ü")
    pairs = tuple(put_pair(name, textured(i, *size), labels_of(i, size)) for i, (name, size) in enumerate(zip(names, SIZES, strict=True)))
    prepared.write(Prepared("scenes", CLASSES, PALETTE, {"train": pairs[:1], "val": pairs, "nothing": ()}))
    maps = {}
    for pair in pairs:
        grid_HW = (np.arange(pair.height)[:, None] // 8 * 9 + np.arange(pair.width) // 8).astype(np.uint16)
        file = put("superpixels", np.unique(grid_HW, return_inverse=True)[1].reshape(grid_HW.shape).astype(np.uint16))
        maps[pair.image] = {"file": file, "sha256": files.sha256(store.path("superpixels", file)), "segments": int(grid_HW.max()) + 1}
    settings = {"algorithm": "slic", "segments": 20, "compactness": 10.0, "sigma": 0.0}
    files.write_json(store.manifest_of("slic"), {"settings": settings, "maps": maps})
    values = configs.to_dict(config())
    del values["launch"]
    superpixels = {"set": "slic", "sha256": files.sha256(store.manifest_of("slic"))}
    for seed in (0, 7):
        torch.manual_seed(seed)
        network = build(config(), len(CLASSES))
        torch.nn.init.normal_(network.crf.classifier.weight, std=0.5)
        balance(network)
        with files.replacing(Path(f"runs/ecrf/weights/seed-{seed}.pt")) as file:
            about = {"config": values, "classes": list(CLASSES), "fingerprint": f"f{seed}", "superpixels": superpixels}
            torch.save(about | {"weights": network.state_dict()}, file)
        files.write_json(Path(f"runs/ecrf/weights/seed-{seed}.json"), {"seconds": 10.0 + seed})
    return workspace


def evaluated(how: schema.Evaluation) -> dict:
    from pipeline.evaluation.evaluate import evaluate

    evaluate(how)
    return json.loads(Path(f"results/{how.name}.json").read_text())


def test_results_have_the_keys_and_equal_a_count_from_the_pictures(project: Path) -> None:
    made = evaluated(evaluation())
    assert set(made) == {
        "evaluation", "run", "dataset", "split", "images", "seeds", "single_scale", "multi_scale_flip", "per_seed", "cost",
        "adjacent_class_weight_cosine",
    }  # fmt: skip
    assert (made["dataset"], made["split"], made["images"], made["seeds"]) == ("scenes", "val", 5, [0, 7])
    measured = {"images_per_second", "peak_memory_bytes", "train_seconds"}
    assert set(made["cost"]) == {"parameters", "flops", "per_seed"} | measured
    assert made["cost"]["train_seconds"] == 13.5
    assert [set(cost) for cost in made["cost"]["per_seed"]] == [{"seed"} | measured] * 2
    assert [cost["train_seconds"] for cost in made["cost"]["per_seed"]] == [10.0, 17.0]
    speeds = [cost["images_per_second"] for cost in made["cost"]["per_seed"]]
    assert made["cost"]["images_per_second"] == pytest.approx(np.mean(speeds))
    assert -1 <= made["adjacent_class_weight_cosine"] <= 1
    first, second = made["per_seed"]
    hits, union, right, valid = np.zeros(4), np.zeros(4), 0, 0
    for pair in prepared.pairs(prepared.read(), "val"):
        with Image.open(f"results/ecrf/pictures/{pictures.safe_name(pair.name)}.prediction.png") as picture:
            predicted = np.array(picture)
        labels = prepared.open_label(pair)
        assert predicted.shape == labels.shape
        predicted, labels = predicted[labels != 255], labels[labels != 255]
        hits += [((predicted == k) & (labels == k)).sum() for k in range(4)]
        union += [((predicted == k) | (labels == k)).sum() for k in range(4)]
        right, valid = right + (predicted == labels).sum(), valid + labels.size
    protocol = first["multi_scale_flip"]
    known = union > 0
    expected = {name: pytest.approx(hits[k] / union[k]) if known[k] else None for k, name in enumerate(CLASSES)}
    assert protocol["iou"] == expected
    assert protocol["miou"] == pytest.approx((hits[known] / union[known]).mean())
    assert protocol["pixel_accuracy"] == pytest.approx(right / valid)
    assert set(protocol["boundary_f"]) == {"1", "3"}
    assert made["single_scale"]["miou"] == pytest.approx((first["single_scale"]["miou"] + second["single_scale"]["miou"]) / 2)
    assert protocol["iou"]["never"] is None
    assert 0.05 < protocol["pixel_accuracy"] < 0.95  # some of all kinds, or nothing was compared
    assert first["single_scale"] != first["multi_scale_flip"]
    assert first["single_scale"] != second["single_scale"]


def test_pictures_lie_beside_the_results(project: Path) -> None:
    made = evaluated(evaluation(scales=(1.0,), flip=False))
    assert made["single_scale"] == made["multi_scale_flip"]
    folder = Path("results/ecrf/pictures")
    names = {path.name for path in folder.iterdir()}
    assert names >= {"legend.png", "1.png", "1.prediction.png"}
    assert len(names) == 11
    for path in folder.iterdir():
        with Image.open(path) as picture:
            assert picture.mode == ("P" if path.stem.endswith(".prediction") else "RGB")
    assert [path.name for path in Path("results").rglob("*") if path.name.startswith(".")] == []


def test_the_record_of_images_sums_up_to_the_results(project: Path) -> None:
    from pipeline.evaluation import record

    made = evaluated(evaluation())
    counts = record.read(Path("results/ecrf/images.npz"), 4, "")
    assert counts is not None
    assert counts.names == tuple(pair.name for pair in prepared.pairs(prepared.read(), "val"))
    for seed, values in enumerate(made["per_seed"]):
        for protocol, name in enumerate(("single_scale", "multi_scale_flip")):
            hits, unions = counts.hits_SPNK[seed, protocol].sum(0), counts.unions_SPNK[seed, protocol].sum(0)
            expected = [None if union == 0 else pytest.approx(hit / union) for hit, union in zip(hits, unions, strict=True)]
            assert [values[name]["iou"][known] for known in CLASSES] == expected
            confusion_KK = counts.confusion_SPKK[seed, protocol]
            assert (confusion_KK.diagonal() == hits).all()
            assert (confusion_KK.sum(1) == counts.labelled_NK.sum(0)).all()
    for index, pair in enumerate(prepared.pairs(prepared.read(), "val")):
        labels, predicted = prepared.open_label(pair), counts.prediction(index)
        with Image.open(f"results/ecrf/pictures/{pictures.safe_name(pair.name)}.prediction.png") as picture:
            assert (np.array(picture) == predicted).all()
        assert (np.bincount(labels[labels != 255], minlength=4) == counts.labelled_NK[index]).all()
        assert (((labels == predicted) & (labels == 1)).sum()) == counts.hits_SPNK[0, 1, index, 1]
    assert counts.about["weights"] == {"0": "f0", "7": "f7"}
    assert counts.about["data"] == files.sha256(store.PREPARED)


def test_the_commit_is_that_of_the_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def git(*words: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(codebase, "__file__", str(tmp_path / "code" / "record.py"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "record.py").write_text("1")
    assert codebase.commit() is None
    git("init", "-q")
    (tmp_path / "other").write_text("1")
    git("add", "other")
    git("commit", "-qm", "one")
    assert codebase.commit() is None
    git("add", "code/record.py")
    git("commit", "-qm", "two")
    assert codebase.commit() == git("rev-parse", "HEAD")
    (tmp_path / "other").write_text("2")
    assert codebase.commit() == git("rev-parse", "HEAD") + "+"


def test_large_and_many_predictions_are_kept_small_and_few() -> None:
    from pipeline.evaluation import record

    size, content = record.packed(np.eye(1300, 2600, dtype=np.uint8))
    assert size == (320, 640)
    assert len(content) < 20_000
    assert len(record.kept(50_000)) == record.KEPT
    assert record.kept(7) == frozenset(range(7))


def on_rank(how: schema.Evaluation) -> str | None:
    """Evaluate; the error's words, if it is a user's."""
    from pipeline.evaluation.evaluate import evaluate

    try:
        evaluate(how)
    except UserError as error:
        return str(error)
    return None


def published() -> dict[str, bytes]:
    """The results without what is measured, and the pictures."""
    made = json.loads(Path("results/ecrf.json").read_text())
    for cost in (made["cost"], *made["cost"].get("per_seed", [])):
        del cost["images_per_second"], cost["peak_memory_bytes"]
    written = [path for path in Path("results/ecrf").rglob("*") if path.is_file()]
    return {"json": json.dumps(made).encode()} | {path.name: path.read_bytes() for path in written}


@pytest.mark.slow
def test_one_two_and_three_processes_publish_the_same(project: Path) -> None:
    evaluated(evaluation())
    alone = published()
    for processes in (2, 3):
        assert run_on_ranks(on_rank, processes, evaluation(launch=replace(LAUNCH, processes=processes))) == [None] * processes
        assert published() == alone


@pytest.mark.slow
def test_a_fault_of_one_rank_is_raised_by_all(project: Path) -> None:
    pair = prepared.pairs(prepared.read(), "val")[3]  # the second rank's
    store.path("images", pair.image).write_bytes(b"no image")
    first, second = run_on_ranks(on_rank, 2, evaluation(launch=replace(LAUNCH, processes=2)), timeout=60)
    assert first == second
    assert re.search(rf"\({pair.name}\).*does not decode", first)
    assert not Path("results").exists()


def refused(match: str, **changes: object) -> None:
    with pytest.raises(UserError, match=match):
        evaluated(evaluation(**changes))
    assert not Path("results").exists()


def test_refuses_what_is_not_there(project: Path) -> None:
    refused(r"no split 'dev'; known: (nothing, train, val|train, val, nothing)", split="dev")
    refused("split nothing of scenes has no images", split="nothing")
    refused("run other has no weights: uv run dvc repro train@other", of="other")


def test_refuses_weights_of_other_classes(project: Path) -> None:
    now = prepared.read()
    prepared.write(replace(now, classes=("sky", "road", "bus", "never")))
    refused("seed-0.pt has other classes .*car.* than scenes .*bus")


def test_refuses_other_superpixels_than_the_run_was_trained_with(project: Path) -> None:
    manifest = store.manifest_of("slic")
    manifest.write_bytes(manifest.read_bytes() + b" ")
    refused("trained with other superpixels than data/superpixels/slic.json")
    manifest.unlink()
    refused("slic.json.* does not exist: run `uv run dvc repro superpixels@slic`")


def test_names_a_missing_superpixel_map_and_a_label_beyond_the_classes(project: Path) -> None:
    now = prepared.read()
    wrong = np.full(SIZES[1], 4, np.uint8)
    pairs = list(now.splits["val"])
    prepared.write(replace(now, splits={"val": (pairs[0], replace(pairs[1], label=put("labels", wrong)))}))
    refused("1: label 4 is outside the 4 classes")
    maps = files.read_json(store.manifest_of("slic"), "")["maps"]
    store.path("superpixels", maps[pairs[0].image]["file"]).unlink()
    refused("is missing from the store: `uv run python -m stages.superpixels slic`")


def test_slides_and_counts_its_operations(project: Path) -> None:
    from pipeline.evaluation import cost
    from pipeline.evaluation.inference import Network

    network = Network(torch.nn.Sequential(), (0.5, 0.5, 0.5))
    network.model.forward = lambda image, superpixels: convolution(image)  # type: ignore[method-assign]
    convolution = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
    network.model.append(convolution)
    one = 2 * 3 * 5 * 9
    assert cost.flops(network, (40, 50), evaluation(), superpixels=False) == one * 40 * 50
    assert cost.flops(network, (40, 50), evaluation(short_side=20), superpixels=False) == one * 20 * 25
    slide = evaluation(mode="slide", window=(32, 32), stride=(16, 16))
    assert cost.flops(network, (40, 50), slide, superpixels=False) == one * 32 * 32 * 2 * 3
    assert evaluated(slide)["images"] == 5


def test_fused_attention_is_counted_on_every_device() -> None:
    from pipeline.evaluation import cost
    from pipeline.evaluation.inference import Network

    network = Network(torch.nn.Linear(1, 1), (0.5, 0.5, 0.5))

    def attend(image_B3HW: torch.Tensor, _: object) -> torch.Tensor:
        tokens_B1NC = image_B3HW.flatten(2).transpose(1, 2)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(tokens_B1NC, tokens_B1NC, tokens_B1NC)

    network.model.forward = attend  # type: ignore[method-assign]
    assert cost.flops(network, (4, 5), evaluation(), superpixels=False) == 2 * 2 * 20 * 20 * 3


def test_closest_neighbours_and_their_cosine() -> None:
    from pipeline.evaluation.tally import adjacent_cosine, neighbours

    labels_HW = np.array([[0, 0, 1], [2, 255, 1], [2, 1, 1]], np.uint8)
    counts = neighbours(labels_HW, 4)
    assert counts.tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    counts[2, 1] += 1
    weights_KC = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [5.0, 5.0]])
    half = 0.5**0.5
    assert adjacent_cosine(weights_KC, counts) == pytest.approx((half + half + half) / 3)  # 0 with 1, 1 with 0, 2 with 1


@pytest.mark.parametrize("images", [1, 5, 6, 7, 500])
def test_few_pictures_spread_over_the_split(images: int) -> None:
    chosen = pictures.chosen(images)
    assert len(set(chosen)) == len(chosen) == min(6, images)
    assert all(0 <= index < images for index in chosen)
    assert chosen == sorted(chosen)


def test_safe_names_stay_apart() -> None:
    assert pictures.safe_name("frankfurt_000-1") == "frankfurt_000-1"
    odd = ["a/b", "a b", "../a", "a.prediction", "x" * 300, "legend"]
    made = [pictures.safe_name(name) for name in odd]
    assert len(set(made)) == len(odd)
    assert all("/" not in name and not name.startswith(".") and len(name) < 120 for name in made)


def test_void_is_hatched_and_classes_have_their_colours() -> None:
    ids_HW = np.array([[0, 1, 255, 255, 255, 255, 255, 255, 255, 255]], np.uint8)
    drawn = pictures.coloured(ids_HW, PALETTE)
    assert drawn[0, 0].tolist() == list(PALETTE[0])
    assert drawn[0, 1].tolist() == list(PALETTE[1])
    assert {tuple(colour) for colour in drawn[0, 2:].tolist()} == set(pictures.HATCH)
