"""Reading a corpus of any kind into checked Lhotse cuts."""

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lhotse import CutSet

from ssvd.corpora.readers.hugging_face import HuggingFaceRows
from ssvd.corpora.readers.kaldi import read_kaldi
from ssvd.corpora.readers.lhotse_recipes import read_recipe
from ssvd.corpora.readers.manifests import SharRows, is_manifest, is_shar, read_manifest
from ssvd.corpora.readers.tables import JsonLines, Line, read_csv, read_jsonl
from ssvd.corpora.sources import Source
from ssvd.corpora.utterances import Corpus, LocatedCut, Skipped, Utterance, collect, cuts_of
from ssvd.errors import UserError

Row = Utterance | Skipped | Line
"""What describes an utterance of a corpus, before its audio is read."""

MakeCuts = Callable[[Iterable[Any]], Iterable[LocatedCut | Skipped]]
"""Makes the cuts of some consecutive rows, or says what is wrong with them. Each takes the rows of its own corpus."""

_TABLES = (".csv", ".tsv", ".jsonl", ".jsonl.gz")
_KINDS = "a table (.csv, .tsv or .jsonl with the columns path and text), Lhotse cuts (.jsonl or .jsonl.gz)"


@dataclass(frozen=True)
class OpenCorpus:
    """A corpus whose utterances are made from rows, a few at a time, so that a large one is never held in memory.

    Attributes:
        name: The name under which it was opened.
        rows: What describes the utterances, in their order; each iteration yields the same.
        cuts: Makes the cuts of some consecutive rows; it reads the headers of audio files, and can be sent to another
            process.
        notes: The assumptions that were made, as sentences.
    """

    name: str
    rows: Iterable[Row]
    cuts: MakeCuts
    notes: tuple[str, ...] = ()

    @property
    def length(self) -> int | None:
        """Return the number of rows; None if it is not known beforehand."""
        return len(self.rows) if isinstance(self.rows, Sized) else None


def read_corpus(
    path: Path | str,
    *,
    skip_bad: bool = False,
    headers: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Read the utterances of a table, a Kaldi or ESPnet folder, Lhotse cuts, a Hugging Face dataset or a Lhotse recipe.

    - A table (CSV, TSV, JSON Lines; UTF-8) has the columns path and text and, if known, id, speaker, language, gender,
      and start with end or duration, in seconds; see `segment_columns.SegmentColumns`. Audio paths are relative to the
      folder of the table. Every other column becomes a custom field of the supervision, under its name in lower case;
      numbers are parsed.
    - A Kaldi or ESPnet folder has `text` and `wav.scp`; see `kaldi.read_kaldi`.
    - Lhotse cuts are a JSONL file, gzipped or not, or a folder with one such file; see `manifests.read_manifest`.
    - Lhotse Shar is a folder with cuts.*.jsonl.gz and recording.*.tar.
    - `hf:NAME?split=train`: see `hugging_face.HuggingFaceRows`.
    - `lhotse:RECIPE:/folder`: see `lhotse_recipes.read_recipe`.

    Audio is WAV, FLAC, MP3 or Ogg at any sampling rate; several channels are mixed to one when it is loaded (see
    `load_audio`). Each file is read once, to find its length, and checked. Runs of blanks in texts become one blank.

    Args:
        path: The corpus, as described above.
        skip_bad: Leave out utterances that cannot be used, and list them in `Corpus.skipped`.
        headers: A file that keeps the headers read so far, so that an interrupted call can continue.
        on_progress: Called with the number of headers read and the number of all headers, where headers are read.

    Raises:
        UserError: `path` is missing or of an unknown kind; a column is missing; an utterance is bad and `skip_bad` is
            false (the message gives the file and row of the first, and their number); no utterance remains.
    """
    corpus = open_corpus(path)
    cuts: MakeCuts = partial(cuts_of, cache=headers, on_progress=on_progress) if corpus.cuts is cuts_of else corpus.cuts
    return collect(cuts(corpus.rows), corpus.name, corpus.notes, skip_bad=skip_bad)


def read_corpora(paths: Sequence[Path | str], *, skip_bad: bool = False) -> Corpus:
    """Read the utterances of several corpora as one corpus; see `read_corpus`.

    Raises:
        UserError: As `read_corpus`, or two of the corpora have an utterance with the same id.
    """
    corpora = [read_corpus(path, skip_bad=skip_bad) for path in paths]
    origin: dict[str, Path | str] = {}
    for path, corpus in zip(paths, corpora, strict=True):
        for cut in corpus.cuts:
            if cut.id in origin:
                raise UserError(
                    f"{origin[cut.id]} and {path} both have an utterance {cut.id}: give each a unique id, in a "
                    "table by a column id, or name each corpus only once."
                )
            origin[cut.id] = path
    return Corpus(
        CutSet.from_cuts(cut for corpus in corpora for cut in corpus.cuts),
        [item for corpus in corpora for item in corpus.skipped],
        tuple(note for corpus in corpora for note in corpus.notes),
    )


def open_corpus(path: Path | str) -> OpenCorpus:
    """Open a corpus that `read_corpus` can read, without reading its utterances.

    Lhotse cuts and Hugging Face datasets are read row by row, whatever their size; the text of tables and Kaldi folders
    is held in memory.

    Raises:
        UserError: As `read_corpus`, except for bad utterances.
    """
    name = str(path)
    source = Source.parse(name)
    if source is not None and source.kind == "hf":
        rows = HuggingFaceRows(source)
        return OpenCorpus(name, rows, cuts_of, rows.notes)
    if source is not None:
        lines, notes = read_recipe(source)
        return OpenCorpus(name, lines, partial(read_manifest, Path.cwd()), notes)
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_dir():
        if (path / "text").is_file() and (path / "wav.scp").is_file():
            return OpenCorpus(name, read_kaldi(path), cuts_of)
        if is_shar(path):
            return OpenCorpus(name, SharRows(path), partial(read_manifest, path))
        path = _only_manifest(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows_of_file = JsonLines(path)
        if next(iter(rows_of_file), None) is None:
            raise UserError(f"{path} is empty.")
        if is_manifest(rows_of_file):
            return OpenCorpus(name, rows_of_file, partial(read_manifest, path.parent))
        return OpenCorpus(name, read_jsonl(rows_of_file), cuts_of)
    if path.suffix.lower() in (".csv", ".tsv"):
        return OpenCorpus(name, read_csv(path), cuts_of)
    raise UserError(
        f"{path} is of an unknown kind. Give {_KINDS}, a Kaldi folder, hf:DATASET, or lhotse:RECIPE:FOLDER."
    )


def _only_manifest(folder: Path) -> Path:
    """Return the only file of Lhotse cuts in a folder."""
    manifests = [path for path in sorted(folder.glob("*.jsonl*")) if path.name.endswith((".jsonl", ".jsonl.gz"))]
    cuts = [path for path in manifests if is_manifest(JsonLines(path))]
    if len(cuts) == 1:
        return cuts[0]
    if cuts:
        names = ", ".join(path.name for path in cuts)
        raise UserError(f"{folder} holds several files of Lhotse cuts ({names}); give one of them.")
    for present, missing in (("text", "wav.scp"), ("wav.scp", "text")):
        if (folder / present).is_file():
            raise UserError(f"{folder} has {present} but no {missing}; a Kaldi folder needs both.")
    tables = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(_TABLES))
    hint = f" It holds {', '.join(tables)}: give that file." if tables else ""
    raise UserError(f"{folder} is neither a Kaldi folder (text and wav.scp) nor does it hold Lhotse cuts.{hint}")
