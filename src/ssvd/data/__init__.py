"""Corpora as checked Lhotse cuts, one utterance each: reading, choosing, dividing, writing, and their audio."""

from .audio import load_audio, read_recording
from .corpus import read_corpora, read_corpus
from .manifests import write_cuts
from .selection import common_language, field_names, field_value, select
from .sources import short_names
from .splits import split_by_speaker, text_overlap
from .utterances import Corpus, Skipped

__all__ = [
    "Corpus",
    "Skipped",
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
    "text_overlap",
    "write_cuts",
]
