"""`ssvd data shards`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from ssvd_cli.data.corpus import CorpusName, read
from ssvd_cli.options import LARGEST, SkipBad, Where
from ssvd_cli.terminal import console, progress


def shards(
    corpus: CorpusName,
    out: Annotated[Path, typer.Argument(help="Folder to write, which `ssvd` and Lhotse read as a corpus.")],
    size: Annotated[int, typer.Option(min=1, max=LARGEST, help="Number of utterances per file.")] = 500,
    where: Where = [],
    seed: Annotated[int, typer.Option(help="Random seed of the order of the utterances.")] = 0,
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Number of threads.", show_default="number of cores")
    ] = os.cpu_count() or 1,
    skip_bad: SkipBad = False,
) -> None:
    """Write the audio of a corpus into a few large files.

    This suits storage that is slow with many small files: training reads each file (in the format Lhotse Shar) from
    start to end. If the command is interrupted, give it again to continue.
    """
    from ssvd.corpora.selection import select as choose
    from ssvd.corpora.shar_writing import write_shar

    cuts = choose(read(corpus, skip_bad).cuts, where)
    with progress("Writing shards") as report:
        written = write_shar(cuts, out, size=size, seed=seed, workers=workers, on_progress=report)
    megabytes = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    console.print(f"{out}: {len(cuts):,} utterances in {written} shards, {megabytes:,.1f} MB.", highlight=False)
