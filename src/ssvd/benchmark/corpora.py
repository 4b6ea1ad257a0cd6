"""The corpora of a grid: read, checked and selected once, before any training."""

from pathlib import Path

from ssvd.benchmark.grid import CorpusParts, Grid
from ssvd.corpora.corpus import read_corpora
from ssvd.corpora.decodable import decodable
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import select
from ssvd.corpora.utterances import Skipped
from ssvd.demo.synthetic import write_corpus
from ssvd.evaluate import check_fields
from ssvd.training.progress import Progress

TEST = "test"
# Utterances, speakers and seed of the synthetic corpora.
_SYNTHETIC_SIZES = {"dev": (64, 8, 2), TEST: (200, 20, 3), "adult": (200, 20, 4)}


def prepare_corpora(grid: Grid, out: Path, progress: Progress) -> list[Skipped]:
    """Write the utterances of every corpus of a grid to OUT/data/CORPUS, unless they are there.

    Returns:
        The utterances that are left out, if the grid allows it.

    Raises:
        UserError: A corpus or a condition is bad.
    """
    skipped: list[Skipped] = []
    for name, parts in grid.corpora.items():
        folder = out / "data" / name
        if (folder / "complete").is_file():
            continue
        if parts.synthetic:
            count = parts.utterances + sum(utterances for utterances, _, _ in _SYNTHETIC_SIZES.values())
            progress.say(f"{name}: making {count} utterances of synthetic speech")
            parts = _make_speech(parts, folder)
        for part, paths in {"train": parts.train, "dev": parts.dev, TEST: parts.test, **parts.sources}.items():
            corpus = read_corpora(paths, skip_bad=grid.skip_bad)
            skipped += corpus.skipped
            cuts = corpus.cuts if part in parts.sources else select(corpus.cuts, parts.where)
            if grid.skip_bad:
                cuts, bad = decodable(cuts, f"{name}, {part}")
                skipped += bad
            if part == TEST:
                check_fields(cuts, parts.by, f"the test set of {name}")
            write_cuts(cuts, folder / f"{part}.jsonl.gz")
        (folder / "complete").touch()
    return skipped


def part_path(out: Path, corpus: str, part: str) -> Path:
    """Return the file of the utterances of a part of a corpus, which `prepare_corpora` writes."""
    return out / "data" / corpus / f"{part}.jsonl.gz"


def _make_speech(parts: CorpusParts, folder: Path) -> CorpusParts:
    """Return the parts with the paths of synthetic speech, once it is made."""
    kind = parts.synthetic
    assert kind is not None
    sizes = {"train": (parts.utterances, max(4, parts.utterances // 20), 1), **_SYNTHETIC_SIZES}
    tables = {
        part: str(write_corpus(folder / "speech" / part, "adult" if part == "adult" else kind, count, speakers, seed))
        for part, (count, speakers, seed) in sizes.items()
    }
    sources = {"adult": [tables.pop("adult")]}
    return parts.model_copy(update={part: [table] for part, table in tables.items()} | {"sources": sources})
