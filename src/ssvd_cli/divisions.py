"""Utterances as files, and what they hold as a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ssvd_cli.terminal import console


def write_parts(
    parts: Mapping[Path, Any], overlap: Mapping[Path, float] | None = None, folder: Path | None = None
) -> None:
    """Write the cuts of each part to its file, and print what they hold.

    Args:
        parts: The cuts, by file.
        overlap: Share of the utterances of a part whose text is also in train.
        folder: Folder to write to now, if the files are moved to their place later.
    """
    from ssvd.corpora.readers.manifests import write_cuts

    columns = ["part", "utterances", "speakers", "minutes", *(["texts also in train"] if overlap else []), "file"]
    table = Table(*columns)
    for path, cuts in parts.items():
        write_cuts(cuts, path if folder is None else folder / path.name)
        speakers = len({cut.supervisions[0].speaker for cut in cuts} - {None})
        minutes = sum(cut.duration for cut in cuts) / 60
        shared = [f"{overlap[path]:.0%}" if path in overlap else ""] if overlap else []
        table.add_row(path.name.split(".")[0], str(len(cuts)), str(speakers), f"{minutes:.1f}", *shared, str(path))
    console.print(table)
