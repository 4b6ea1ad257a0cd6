"""Parts of a corpus as files, and what they hold as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ssvd_cli.errors import CommandError
from ssvd_cli.terminal import console


def portions(split: str) -> dict[str, float]:
    """Return the shares of train, dev and test, as fractions, that "80/10/10" says; a part with no share is left out.

    Raises:
        CommandError: These are not three shares that add up to 100.
    """
    try:
        shares = [float(part) for part in split.split("/")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 100) > 0.01:
        raise CommandError(f"--split {split} is not three shares that add up to 100, such as 80/10/10.")
    from ssvd.preparation.listings import PARTS

    return {name: share / 100 for name, share in zip(PARTS, shares, strict=True) if share}


def write_parts(parts: Mapping[Path, Any], overlap: Mapping[Path, float] | None = None) -> None:
    """Write the cuts of each part to its file, and print what they hold.

    Args:
        parts: The cuts, by file.
        overlap: Share of the utterances of a part whose text is also in train.
    """
    from ssvd.corpora.readers.manifests import write_cuts

    columns = ["part", "utterances", "speakers", "minutes", *(["texts also in train"] if overlap else []), "file"]
    table = Table(*columns)
    for path, cuts in parts.items():
        write_cuts(cuts, path)
        speakers = len({cut.supervisions[0].speaker for cut in cuts} - {None})
        minutes = sum(cut.duration for cut in cuts) / 60
        shared = [f"{overlap[path]:.0%}" if path in overlap else ""] if overlap else []
        table.add_row(path.name.split(".")[0], str(len(cuts)), str(speakers), f"{minutes:.1f}", *shared, str(path))
    console.print(table)


def write_split(cuts: Any, out: Path, split: str, balance: str | None, seed: int) -> None:
    """Split cuts by speaker into OUT/train.jsonl.gz and so on, and print what they hold."""
    from ssvd.corpora.splits import split_by_speaker, text_overlap
    from ssvd.preparation.listings import PARTS

    parts = split_by_speaker(cuts, portions(split), seed, balance=balance)
    overlap = text_overlap(parts) if "train" in parts else {}
    files = {name: out / f"{name}.jsonl.gz" for name in PARTS}
    for name in PARTS:
        if name not in parts and files[name].exists():
            files[name].unlink()
            console.print(f"Removed {files[name]}, of an earlier division, whose speakers may be in other parts now.")
    write_parts({files[name]: part for name, part in parts.items()}, {files[n]: share for n, share in overlap.items()})
