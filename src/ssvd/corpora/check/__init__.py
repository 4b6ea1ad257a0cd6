"""Checks of corpora: what is wrong with audio, texts and divisions."""

from ssvd.corpora.check.corpus_check import Check, CheckedCorpus
from ssvd.corpora.check.kinds import KINDS, Finding, Kind
from ssvd.corpora.check.limits import Limits

__all__ = ["KINDS", "Check", "CheckedCorpus", "Finding", "Kind", "Limits"]
