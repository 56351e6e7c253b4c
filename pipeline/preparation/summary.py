"""What a person should see of a prepared dataset: sizes, each class's share of pixels, and what is rarely meant so."""

from collections import Counter
from collections.abc import Iterator, Mapping

from pipeline.data.prepared import Prepared
from pipeline.datasets import IGNORED


def lines(published: Prepared, pixels: Mapping[str, Counter[int]]) -> list[str]:
    """Lines for a person: pairs and sizes of each split, and each class's share of pixels, where a wrong mask mapping shows."""
    found = []
    for split, pairs in published.splits.items():
        sizes = Counter((pair.height, pair.width) for pair in pairs).most_common()
        shown = ", ".join(f"{height} x {width}" for (height, width), _ in sizes[:3])
        more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
        found.append(f"{split}: {len(pairs)} pairs of {shown}{more} (height x width)")
    width = max(map(len, (*published.classes, "share of pixels")))
    found.append(f"{'share of pixels':{width}} {' '.join(f'{split:>8}' for split in published.splits)}")
    for place, name in [*enumerate(published.classes), (IGNORED, "ignored")]:
        shares = (f"{100 * counts[place] / counts.total():7.2f}%" for counts in pixels.values())
        found.append(f"{name:{width}} {' '.join(shares)}")
    return found


def doubts(published: Prepared, pixels: Mapping[str, Counter[int]]) -> Iterator[str]:
    """What may be meant so, but rarely is."""
    for split, counts in pixels.items():
        if absent := [name for place, name in enumerate(published.classes) if not counts[place]]:
            yield f"no pixel of {split} has the class {', '.join(absent)}"
        if counts[IGNORED] > counts.total() / 2:
            yield f"{100 * counts[IGNORED] / counts.total():.0f} % of the pixels of {split} have no class: is data.ignore right?"
    split_of: dict[str, str] = {}
    shared = {pair.name for split, pairs in published.splits.items() for pair in pairs if split_of.setdefault(pair.image, split) != split}
    if shared:
        yield f"{len(shared)} images are in two splits, such as {min(shared)}: scores on them mean little"
