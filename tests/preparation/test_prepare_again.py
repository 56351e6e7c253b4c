"""Preparing again: what was checked is not opened, what was lost or damaged comes back, and a kill or a full disk loses nothing."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from makers.own_pairs import ROOT, prepare
from PIL import Image

from pipeline.data import images, prepared
from pipeline.ground import files, store
from pipeline.ground.errors import UserError


def counted(monkeypatch) -> list[Path]:
    """The images that are opened from now on."""
    opened, open_ = [], images.rgb
    monkeypatch.setattr(images, "rgb", lambda path: (opened.append(path), open_(path))[1])
    return opened


def test_checked_pairs_are_not_opened_again(own: Path, monkeypatch):
    first = prepare()
    opened = counted(monkeypatch)
    assert prepare() == first
    assert opened == []
    os.utime(own / "images" / "3.png", ns=(1, 1))
    assert prepare() == first
    assert opened == [Path("own/images/3.png")]
    Image.fromarray(np.ones((8, 12), np.uint8)).save(own / "masks" / "4.png")
    changed = prepare()
    assert opened[1:] == [Path("own/images/4.png")]
    assert changed != first
    prepare(ignore=9)
    assert len(opened) == 8, "another mask rule checks everything again"


def test_a_damaged_cache_costs_time_alone(own: Path, monkeypatch):
    first = prepare()
    (cache,) = (store.root() / "checked").iterdir()
    cache.write_bytes(cache.read_bytes()[:100])
    opened = counted(monkeypatch)
    assert prepare() == first
    assert len(opened) == 6


def test_a_killed_run_goes_on_where_it_was(own: Path, monkeypatch):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom pipeline.preparation import pairs as preparation\n"
        "from pipeline.datasets.folder import Folder\n"
        "preparation.SAVE_SECONDS = 0\nlabel = Folder.label\n"
        "def deadly(self, path):\n    if path.name == '4.png':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return label(self, path)\n"
        "Folder.label = deadly\npreparation.prepare(Folder(Path('own'), classes=['a', 'b']), 'folder', Path('unused'))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    assert not store.PREPARED.exists()
    opened = counted(monkeypatch)
    prepare()
    assert sorted(path.name for path in opened) == ["4.png", "5.png"]


def test_a_lost_or_shortened_store_file_comes_back(own: Path):
    published = prepare()
    first, second, third = published.splits["train"][:3]
    paths = [store.path("images", first.image), store.path("labels", second.label), store.path("images", third.image)]
    content = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].unlink()
    paths[2].write_bytes(content[2][:50])
    for open_, pair in ((prepared.open_image, first), (prepared.open_label, second)):
        with pytest.raises(UserError, match=r"is missing from the store: `uv run python -m stages.prepare` gets it back"):
            open_(pair)
    with pytest.raises(UserError, match=r"does not decode.*run `uv run python -m stages.prepare"):
        prepared.open_image(third)
    assert prepare() == published
    assert [path.read_bytes() for path in paths] == content
    shutil.rmtree("data/store")
    assert prepare() == published
    assert [path.read_bytes() for path in paths] == content


def test_a_full_disk_leaves_nothing_half_written(own: Path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        prepare()
    monkeypatch.undo()
    os.chdir(own.parent)
    assert not store.PREPARED.exists()
    assert [path for path in store.root().rglob("*") if path.is_file() and path.name != "prepare.lock"] == []
    prepare()


def test_what_the_cache_names_was_flushed_before(own: Path, monkeypatch):
    flushed, sync = [], files.sync

    def recorded(path: Path) -> None:
        flushed.append(path)
        sync(path)

    monkeypatch.setattr(files, "sync", recorded)
    published = prepare()
    (cache,) = (store.root() / "checked").iterdir()
    before = flushed[: flushed.index(cache.parent)]  # the folder is flushed when the cache has been renamed into it
    for pair in (*published.splits["train"], *published.splits["val"]):
        for path in (store.path("images", pair.image), store.path("labels", pair.label)):
            assert before.index(path) < before.index(path.parent)


def test_a_store_file_damaged_in_place_is_replaced_where_it_is_looked_at_again(own: Path):
    pair = prepare().splits["train"][0]
    path = store.path("images", pair.image)
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes(9))
    os.utime(own / "images" / f"{pair.name}.png", ns=(1, 1))
    prepare()
    assert path.read_bytes() == content


def test_a_second_prepare_waits_for_the_first(own: Path):
    code = "from makers.own_pairs import prepare; prepare()"
    with files.locked(store.root() / "prepare.lock", "the store"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        second = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
        said = second.stderr.readline()
        published = store.PREPARED.exists()
    second.communicate(timeout=60)
    assert f"already being written by process {os.getpid()}" in said
    assert not published
    assert second.returncode == 0
    assert store.PREPARED.exists()
