"""Preparing corpora: checked, chosen, split."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..errors import UserError
from .options import SkipBad, Where
from .terminal import console, list_skipped


def prepare(
    source: Annotated[Path, typer.Argument(help="A table (CSV, TSV, JSONL), a Kaldi or ESPnet folder, Lhotse cuts.")],
    out: Annotated[Path, typer.Argument(help="Folder for train, dev and test (Lhotse cuts).")],
    where: Where = [],
    split: Annotated[str, typer.Option(help="Shares of train, dev and test, split by speaker.")] = "80/10/10",
    balance: Annotated[str | None, typer.Option(help="A field, such as age, to spread evenly over the parts.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Check a corpus, choose utterances, and split them by speaker, the same way each time."""
    from ..data import read_corpus, select, split_by_speaker, text_overlap, write_cuts

    portions = _portions(split)
    corpus = read_corpus(source, skip_bad=skip_bad)
    parts = split_by_speaker(select(corpus.cuts, where), portions, seed, balance=balance)
    overlap = text_overlap(parts) if "train" in parts else {}
    table = Table("part", "utterances", "speakers", "minutes", "texts also in train", "file")
    for name, cuts in parts.items():
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}.jsonl.gz"
        write_cuts(cuts, path)
        speakers = len({cut.supervisions[0].speaker for cut in cuts})
        minutes = sum(cut.duration for cut in cuts) / 60
        shared = f"{overlap[name]:.0%}" if name in overlap else ""
        table.add_row(name, str(len(cuts)), str(speakers), f"{minutes:.1f}", shared, str(path))
    console.print(table)
    list_skipped(corpus.skipped)


def _portions(split: str) -> dict[str, float]:
    try:
        shares = [float(part) for part in split.split("/")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 100) > 0.01:
        raise UserError(f"--split {split} is not three shares that add up to 100, as 80/10/10.")
    return {name: share / 100 for name, share in zip(("train", "dev", "test"), shares, strict=True) if share}
