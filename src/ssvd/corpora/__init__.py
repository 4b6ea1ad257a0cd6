"""Corpora as checked Lhotse cuts, one per utterance: reading, selecting, dividing and writing them, and their audio."""

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.corpora.corpus import read_corpora, read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import common_language, field_names, field_value, select
from ssvd.corpora.sources import Source, short_names
from ssvd.corpora.splits import split_by_speaker
from ssvd.corpora.utterances import Corpus, Skipped

__all__ = [
    "Corpus",
    "Skipped",
    "Source",
    "common_language",
    "field_names",
    "field_value",
    "load_audio",
    "read_corpora",
    "read_corpus",
    "read_recording",
    "select",
    "short_names",
    "split_by_speaker",
    "write_cuts",
]
