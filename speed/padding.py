"""How much of a batch is padding: batches of so many utterances, and batches of so many seconds.

    python speed/padding.py CORPUS

No audio is read and no model runs: this is about models that pad to the longest of a batch, which Whisper is not.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ssvd.corpora.corpus import read_corpus
from ssvd.training.batches import Batching, ByCount, BySeconds, EpochBatches


def main(
    corpus: Path,
    batch_size: Annotated[int, typer.Option(help="Utterances a batch.")] = 16,
    batch_seconds: Annotated[str, typer.Option(help="Seconds a batch, by comma.")] = "60,120,240",
) -> None:
    """Print the share of padding and the seconds that batches hold."""
    durations = np.array([cut.duration for cut in read_corpus(corpus).cuts])
    title = f"{len(durations)} utterances, {durations.min():.1f} to {durations.max():.1f} s"
    table = Table("batches of", "a pass", "padding", "seconds, median", "5 to 95 %", "most", title=title)
    ways: dict[str, Batching] = {f"{batch_size} utterances": ByCount(len(durations), batch_size)}
    ways |= {f"{seconds} s": BySeconds(durations.tolist(), float(seconds)) for seconds in batch_seconds.split(",")}
    for name, way in ways.items():
        batches = [durations[batch] for batch in EpochBatches(way, len(way), seed=0, number=0)]
        padded = np.array([len(batch) * batch.max() for batch in batches])
        share = 1 - sum(batch.sum() for batch in batches) / padded.sum()
        low, middle, high = np.percentile(padded, [5, 50, 95])
        row = str(len(batches)), f"{share:.1%}", f"{middle:.0f}", f"{low:.0f} to {high:.0f}", f"{padded.max():.0f}"
        table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
