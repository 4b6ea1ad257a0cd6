"""Writing of utterances as Lhotse Shar, which `ssvd.corpora.readers.shards` reads."""

import random
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from lhotse.shar import SharWriter

from ssvd.corpora.audio import decode
from ssvd.corpora.cut import Cut
from ssvd.corpora.readers.shards import with_audio
from ssvd.corpora.readers.tables import JsonLines, json_object
from ssvd.errors import UserError
from ssvd.processes import thread_pool

# What a stopped call leaves.
_OWN = re.compile(r"(cuts\.\d{6}\.jsonl\.gz|recording\.\d{6}\.tar|tmp\w{3,8})")


def write_shar(
    cuts: Iterable[Cut],
    folder: Path,
    *,
    size: int = 500,
    seed: int = 0,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write utterances into shards in random order, and return the number of shards.

    The segments are written as 16-bit FLAC, with their sampling rate and channels. The folder appears when everything
    is written; until then FOLDER.partial holds the shards that are done, and the same call continues from there.

    Args:
        cuts: The utterances.
        folder: The folder to make.
        size: Number of utterances per shard.
        seed: Random seed of their order.
        workers: Number of threads.
        on_progress: Called with the number of shards written and the number of all shards.

    Raises:
        UserError: The folder exists already, FOLDER.partial holds something else, or an utterance cannot be decoded.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; give another folder.")
    chosen = sorted(cuts, key=lambda cut: cut.id)
    random.Random(seed).shuffle(chosen)
    shards = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for path in list(partial.iterdir()):
        if not _OWN.fullmatch(path.name):
            raise UserError(f"{path} is in the way, as shards are written to its folder first; move it away.")
        if path.is_dir():  # a shard in which a call was killed
            shutil.rmtree(path)
    names = [f"{number:06d}" for number in range(len(shards))]
    with thread_pool(workers) as pool:  # libsndfile, which does the work, releases the GIL
        for done, _ in enumerate(pool.map(_write_shard, shards, [partial] * len(shards), names), start=1):
            if on_progress is not None:
                on_progress(done, len(shards))
    for path in partial.iterdir():
        if path.name.split(".")[1] not in names:  # from a stopped call with smaller shards
            path.unlink()
    partial.rename(folder)
    return len(shards)


def _write_shard(cuts: list[Cut], folder: Path, name: str) -> None:
    done = folder / f"cuts.{name}.jsonl.gz"
    if done.exists() and _ids(done) == [cut.id for cut in cuts]:
        return
    with TemporaryDirectory(dir=folder) as temporary:
        with SharWriter(temporary, {"recording": "flac"}, shard_size=None, shard_suffix=f".{name}") as writer:
            for cut in cuts:
                try:
                    writer.write(with_audio(cut))
                except Exception:
                    decode(cut)  # raises an error that says what is wrong with the audio
                    raise
        for path in sorted(Path(temporary).iterdir(), reverse=True):  # the cuts come last: they mark the shard as done
            path.rename(folder / path.name)


def _ids(cuts: Path) -> list[str]:
    return [row["id"] for _, line in JsonLines(cuts) if isinstance(row := json_object(line), dict)]
