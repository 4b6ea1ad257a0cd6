"""Corpora of the field, prepared by their own rules."""
