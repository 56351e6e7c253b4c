from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.folder import Folder
from pipeline.ground.errors import UserError

IDS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
COLOURS = {"road": [128, 64, 128], "sky": "#4682b4", "tree": [107, 142, 35]}
COLOURED = np.array([(128, 64, 128), (0x46, 0x82, 0xB4), (107, 142, 35)], np.uint8)[IDS]


def put(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 3), np.uint8) if array is None else array).save(path)
    return path


def label(path: Path, classes=("road", "sky", "tree"), **options) -> list:
    classes = classes if isinstance(classes, dict) else list(classes)
    return Folder(path.parent, classes=classes, **options).label(path).tolist()


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def names(dataset: Folder) -> dict[str, set[str]]:
    result: dict[str, set[str]] = {}
    for source in dataset.sources(Path("unused")):
        assert source.image.is_file()
        assert source.label.is_file()
        result.setdefault(source.split, set()).add(source.name)
    return result


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16", "I"])
def test_ids_in_every_kind_of_mask(tmp_path: Path, mode: str):
    path = tmp_path / ("m.tif" if mode == "I" else "m.png")
    if mode == "P":
        image = Image.frombytes("P", (3, 2), IDS.tobytes())
        image.putpalette([250, 1, 2, 3, 250, 5, 6, 7, 250])
    elif mode in ("I;16", "I"):
        image = Image.fromarray(IDS.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.fromarray(IDS).convert(mode)
    image.save(path)
    assert mode_of(path) == mode
    assert label(path) == IDS.tolist()


def test_one_bit_masks_carry_the_ids_0_and_1(tmp_path: Path):
    path = tmp_path / "m.png"
    Image.fromarray(IDS > 0).save(path)
    assert mode_of(path) == "1"
    assert label(path, ["background", "thing"]) == (IDS > 0).astype(int).tolist()


def test_sparse_ids_and_16_bit_ids(tmp_path: Path):
    path = put(tmp_path / "m.png", np.array([[7, 23, 1000]], np.uint16))
    assert label(path, {"road": 7, "sky": 1000}, ignore=23) == [[0, 255, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_in_every_kind_of_mask(tmp_path: Path, mode: str):
    path = tmp_path / "m.png"
    image = Image.fromarray(COLOURED)
    (image.quantize(8) if mode == "P" else image.convert(mode)).save(path)
    assert mode_of(path) == mode
    assert label(path, COLOURS) == IDS.tolist()


def test_black_and_white_as_ids_and_as_colours(tmp_path: Path):
    grey = put(tmp_path / "grey.png", np.array([[0, 255]], np.uint8))
    assert label(grey, {"background": 0, "thing": 255}) == [[0, 1]]
    assert label(grey, {"background": "#000000", "thing": "#ffffff"}) == [[0, 1]]
    assert label(grey, ["background", "thing"], ignore=255) == [[0, 255]]
    with pytest.raises(UserError, match=r"255 \(1 pixels\).*background: 0, thing: 255.*ignore: 255"):
        label(grey, ["background", "thing"])


@pytest.mark.parametrize("ignore", ["#010203", [1, 2, 3]])
def test_an_ignored_colour(tmp_path: Path, ignore):
    path = put(tmp_path / "m.png", np.array([[(1, 2, 3), (128, 64, 128)]], np.uint8))
    assert label(path, COLOURS, ignore=ignore) == [[255, 0]]


def test_a_transparent_palette_raises_no_warning(tmp_path: Path):
    image = Image.fromarray(COLOURED).quantize(8)
    image.save(tmp_path / "m.png", transparency=b"\x00\xff\xff")
    assert label(tmp_path / "m.png", COLOURS) == IDS.tolist()


def test_a_turned_mask_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turn by 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(IDS))).save(tmp_path / "m.png", exif=exif)
    assert label(tmp_path / "m.png") == IDS.tolist()


@pytest.mark.parametrize(
    ("array", "classes", "options", "message"),
    [
        (IDS, ["a", "b"], {}, r"ids that are no class's: 2 \(2 pixels\): the classes have 0, 1"),
        (COLOURED, ["a", "b", "c"], {}, "is a coloured mask"),
        (COLOURED, {"road": [128, 64, 128], "sky": "#4682b4"}, {}, r"#6b8e23 \(2 pixels\)"),
        (IDS, COLOURS, {}, r"#000000 .* the mask is grey, so data.classes should list names"),
        (IDS.astype(np.float32), ["a", "b", "c"], {}, "mode F, which carries no ids"),
        (IDS.astype(np.uint16), COLOURS, {}, "carries no colours"),
    ],
)
def test_masks_that_do_not_fit_the_classes(tmp_path: Path, array, classes, options, message):
    path = put(tmp_path / ("m.tif" if array.dtype == np.float32 else "m.png"), array)
    with pytest.raises(UserError, match=message):
        label(path, classes, **options)


def test_a_blurred_mask_says_so(tmp_path: Path):
    noisy = np.random.default_rng(0).integers(0, 3, (32, 32)).astype(np.uint8) * 100
    with pytest.raises(UserError, match=r"\.jpg blurs masks, save them as PNG"):
        label(put(tmp_path / "m.jpg", noisy), {"a": 0, "b": 100, "c": 200})


@pytest.mark.parametrize(
    ("classes", "ignore", "message"),
    [
        ([], None, "must name 1 to 255 classes"),
        (["a", "a"], None, "has a name twice: a"),
        ([True, "b"], None, 'True is no name: YAML reads yes, on and true as .*: write it in quotes, as in "yes"'),
        ({False: 0, "b": 1}, None, 'False is no name: YAML reads no, off and false as .*: write it in quotes, as in "no"'),
        ([1, "b"], None, '1 is no name: write it in quotes, as in "1"'),
        ({"a": 1, "b": "#ffffff"}, None, "not both"),
        ({"a": 1, "b": 1}, None, "a and b are both id 1"),
        ({"a": "#FFffff", "b": [255, 255, 255]}, None, "a and b are both colour #ffffff"),
        ({"a": None}, None, "data.classes.a must be .* needs quotes"),
        ({"a": "#12"}, None, "data.classes.a must be"),
        ({"a": [1, 2, 256]}, None, "data.classes.a must be"),
        ({"a": -1}, None, "data.classes.a must be"),
        (["a", "b"], "#ffffff", "data.ignore must be an id"),
        ({"a": "#ffffff"}, 255, "data.ignore must be a colour"),
        (["a", "b"], 1, "data.ignore: id 1 is the class b"),
        ([str(i) for i in range(256)], None, "must name 1 to 255 classes"),
    ],
)
def test_options_that_mean_nothing(classes, ignore, message):
    with pytest.raises(UserError, match=message):
        Folder(Path("x"), classes=classes, ignore=ignore)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2.0])
def test_val_share_is_a_share(share):
    with pytest.raises(UserError, match="val_share"):
        Folder(Path("x"), classes=["a"], val_share=share)


def test_palettes():
    assert Folder(Path("x"), classes=COLOURS).palette == ((128, 64, 128), (0x46, 0x82, 0xB4), (107, 142, 35))
    palette = Folder(Path("x"), classes=[str(i) for i in range(255)]).palette
    assert len(set(palette)) == 255
    assert (0, 0, 0) not in palette


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("imgs", "labels"), ("Images", "annotations")])
def test_one_folder_of_images_is_split_by_name(tmp_path: Path, images: str, masks: str):
    for place in range(20):
        put(tmp_path / images / f"{place}.jpg")
        put(tmp_path / masks / f"{place}.png")
    dataset = Folder(tmp_path, classes=["a"])
    assert dataset.splits == ("train", "val")
    found = names(dataset)
    assert (len(found["train"]), len(found["val"])) == (16, 4)
    assert found == names(Folder(tmp_path, classes=["b"], ignore=3))
    assert len(names(Folder(tmp_path, classes=["a"], val_share=0.5))["val"]) == 10


@pytest.mark.parametrize("layout", ["{kind}/{split}/{name}", "{split}/{kind}/{name}"])
def test_splits_as_folders(tmp_path: Path, layout: str):
    for split, name in (("train", "a"), ("train", "deep/b"), ("Validation", "c"), ("test", "d")):
        put(tmp_path / layout.format(kind="images", split=split, name=f"{name}.jpg"))
        put(tmp_path / layout.format(kind="masks", split=split, name=f"{name}.png"))
    dataset = Folder(tmp_path, classes=["a"])
    assert dataset.splits == ("train", "val", "test")
    assert names(dataset) == {"train": {"a", "deep_b"}, "val": {"c"}, "test": {"d"}}


def test_a_test_folder_without_masks_is_left_out_with_a_warning(tmp_path: Path, capsys):
    for split in ("train", "val", "test"):
        put(tmp_path / split / "images" / "a.png")
        if split != "test":
            put(tmp_path / split / "masks" / "a.png")
    dataset = Folder(tmp_path, classes=["a"])
    assert dataset.splits == ("train", "val")
    assert capsys.readouterr().err == "", "every stage reads the splits; prepare alone the sources"
    assert set(names(dataset)) == {"train", "val"}
    assert capsys.readouterr().err == f"warning: {tmp_path / 'test'} has no masks: its images are left out\n"


def test_masks_may_end_in_mask(tmp_path: Path):
    masks = {"a": "a_mask.png", "b": "b.png", "b_mask": "b_mask_mask.png"}
    for name, mask in masks.items():
        put(tmp_path / "images" / f"{name}.jpg")
        put(tmp_path / "masks" / mask)
    assert {source.name: source.label.name for source in Folder(tmp_path, classes=["a"]).sources(tmp_path)} == masks


def test_every_file_without_a_partner_is_named(tmp_path: Path, capsys):
    for name in ("both", "image1", "image2", "twice"):
        put(tmp_path / "images" / f"{name}.jpg")
    put(tmp_path / "images" / "both.png")
    for name in ("both", "mask1", "twice", "twice_mask"):
        put(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "masks" / ".hidden.png").write_bytes(b"")
    (tmp_path / "masks" / "notes.txt").write_text("ignored")
    with pytest.raises(UserError, match="5 files"):
        Folder(tmp_path, classes=["a"]).sources(tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert [Path(line.split(": ")[0]).name for line in lines] == ["both.png", "mask1.png", "twice_mask.png", "image1.jpg", "image2.jpg"]


def test_folders_that_are_no_dataset(tmp_path: Path):
    dataset = Folder(tmp_path / "absent", classes=["a"])
    with pytest.raises(UserError, match=r"absent does not exist.*images and masks"):
        dataset.sources(tmp_path)
    assert dataset.splits == ("train", "val", "test")
    with pytest.raises(UserError, match="cannot be read as a dataset"):
        Folder(tmp_path, classes=["a"]).sources(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="has no folder of masks"):
        Folder(tmp_path, classes=["a"]).sources(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        Folder(tmp_path, classes=["a"]).sources(tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match="labels and masks: which"):
        Folder(tmp_path, classes=["a"]).sources(tmp_path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_with_and_without_splits(tmp_path: Path, separator: str):
    for name in ("a", "b", "c"):
        put(tmp_path / "pictures" / f"{name}.jpg")
        put(tmp_path / "gt" / f"{name}.png")
    splits = {"a": "Train", "b": "val", "c": "test"}
    rows = [("image", "mask", "split"), *((f"pictures/{name}.jpg", f"gt/{name}.png", split) for name, split in splits.items())]
    (tmp_path / "pairs.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    dataset = Folder(tmp_path / "pairs.csv", classes=["a"])
    assert dataset.splits == ("train", "val", "test")
    assert names(dataset) == {"train": {"pictures_a"}, "val": {"pictures_b"}, "test": {"pictures_c"}}
    (tmp_path / "pairs.csv").write_text("\n".join(separator.join(row[:2]) for row in rows))
    dataset = Folder(tmp_path / "pairs.csv", classes=["a"])
    assert dataset.splits == ("train", "val")
    assert {split: len(found) for split, found in names(dataset).items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with a line of column names"),
        (b"picture,mask\na,b\n", "must begin with a line of column names"),
        (b"image,mask,split\na.jpg,a.png,later\nb.jpg,,train\nc.jpg\n", "3 lines"),
        (b"image,mask\n", "holds no images"),
        (b"\xff\xfe\x00", "cannot be read as a CSV"),
    ],
)
def test_csv_files_that_cannot_be_used(tmp_path: Path, capsys, content: bytes, message: str):
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Folder(tmp_path / "pairs.csv", classes=["a"]).sources(tmp_path)
    if message == "3 lines":
        assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == ["line 2", "line 3", "line 4"]


def test_a_root_of_another_dataset_is_refused():
    with pytest.raises(UserError, match=r"data\.root"):
        Folder(Path(__file__), classes=["a"]).sources(Path("unused"))
