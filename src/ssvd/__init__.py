"""SSVD."""
