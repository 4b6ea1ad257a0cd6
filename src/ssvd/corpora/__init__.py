"""Corpora as checked Lhotse cuts, one utterance each: reading, choosing, dividing, writing, and their audio."""
