"""Preparation of corpora: each is checked, selected and divided into train, dev and test once."""
