"""Reading a corpus of whatever kind into checked Lhotse cuts."""

from pathlib import Path

from ..errors import UserError
from .kaldi import read_kaldi
from .manifests import is_manifest, read_manifest
from .tables import jsonl_rows, read_csv, read_jsonl
from .utterances import Corpus, collect, cuts_of

_TABLES = (".csv", ".tsv", ".jsonl", ".jsonl.gz")
_KINDS = "a table (.csv, .tsv or .jsonl with the columns path and text), Lhotse cuts (.jsonl or .jsonl.gz)"


def read_corpus(path: Path | str, *, skip_bad: bool = False) -> Corpus:
    """Read the utterances of a table, of a Kaldi or ESPnet folder, or of Lhotse cuts.

    - A table (CSV, TSV, JSON Lines; UTF-8) has the columns path and text and, if known, id, speaker, language, gender,
      start and duration (seconds). Audio paths are relative to the table's folder. Every other column becomes a custom
      field of the supervision, under its name in lower case; numbers become numbers.
    - A Kaldi or ESPnet folder has `text` and `wav.scp`; see `kaldi.read_kaldi`.
    - Lhotse cuts are a JSONL file, gzipped or not, or a folder with one such file; see `manifests.read_manifest`.

    Audio is WAV, FLAC, MP3 or Ogg of any sampling rate; several channels are mixed to one when loaded (`load_audio`).
    Each header is read once and checked. Runs of blanks in texts become one blank.

    Args:
        skip_bad: leave out utterances that cannot be used, and list them in `Corpus.skipped`.

    Raises:
        UserError: `path` is missing or of no known kind; a column is missing; an utterance is bad and `skip_bad` is
            false, with the first one's file and row and their number; no utterance remains.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_dir():
        if (path / "text").is_file() and (path / "wav.scp").is_file():
            return collect(cuts_of(read_kaldi(path)), path, skip_bad=skip_bad)
        path = _only_manifest(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = jsonl_rows(path)
        if not rows:
            raise UserError(f"{path} is empty.")
        if is_manifest(rows):
            return collect(read_manifest(path.parent, rows), path, skip_bad=skip_bad)
        return collect(cuts_of(read_jsonl(path, rows)), path, skip_bad=skip_bad)
    if path.suffix.lower() in (".csv", ".tsv"):
        return collect(cuts_of(read_csv(path)), path, skip_bad=skip_bad)
    raise UserError(f"{path} is of no known kind. Give {_KINDS}, or a Kaldi folder.")


def _only_manifest(folder: Path) -> Path:
    """The one file of Lhotse cuts in a folder."""
    manifests = [path for path in sorted(folder.glob("*.jsonl*")) if path.name.endswith((".jsonl", ".jsonl.gz"))]
    cuts = [path for path in manifests if is_manifest(jsonl_rows(path))]
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
