"""The examination of rows in this process or in several others, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from ssvd.corpora.check.examination import Examination, Examiner, Fault
from ssvd.corpora.check.limits import Limits
from ssvd.corpora.corpus import MakeCuts, OpenCorpus
from ssvd.processes import ProcessPool

LoadFault = Callable[[], Fault]


class Chunk(NamedTuple):
    """Some consecutive rows of a corpus, which is given by its position."""

    corpus: int
    rows: list[Any]


class ExaminedChunk(NamedTuple):
    """The corpus and number of some consecutive rows, and what they hold."""

    corpus: int
    rows: int
    examination: Examination


def examine_chunks(
    corpora: Sequence[OpenCorpus], chunks: Iterable[Chunk], limits: Limits, load_fault: LoadFault | None, workers: int
) -> Iterator[ExaminedChunk]:
    """Examine chunks of rows, and yield the results in the order of the chunks.

    Args:
        corpora: The corpora that the chunks belong to.
        chunks: Read as they are needed.
        limits: What is required of utterances.
        load_fault: Called once in each process; returns the `Fault` of a model.
        workers: Number of processes; 1 means this one.

    Raises:
        BrokenProcessPool: A process was killed.
    """
    if workers == 1:
        examiner = _examiner(limits, load_fault)
        for corpus, rows in chunks:
            yield ExaminedChunk(corpus, len(rows), examiner.examine_rows(corpora[corpus].cuts, rows))
        return
    pool = ProcessPool(workers, _start, (limits, load_fault))
    running: deque[tuple[Chunk, Future[Examination]]] = deque()

    def next_result() -> ExaminedChunk:
        chunk, future = running.popleft()
        return ExaminedChunk(chunk.corpus, len(chunk.rows), future.result())

    try:
        for chunk in chunks:
            running.append((chunk, pool.submit(_examine, corpora[chunk.corpus].cuts, chunk.rows)))
            if len(running) > 4 * workers:  # enough to keep all workers busy
                yield next_result()
        while running:
            yield next_result()
    finally:
        pool.shutdown(cancel_futures=True)


def _examiner(limits: Limits, load_fault: LoadFault | None) -> Examiner:
    return Examiner(limits, load_fault() if load_fault else None)


_examiner_of_process = Examiner(Limits())


def _start(limits: Limits, load_fault: LoadFault | None) -> None:
    global _examiner_of_process
    _examiner_of_process = _examiner(limits, load_fault)


def _examine(make_cuts: MakeCuts, rows: list[Any]) -> Examination:
    return _examiner_of_process.examine_rows(make_cuts, rows)
