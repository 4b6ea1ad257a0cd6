"""The check of corpora: what is wrong with audio, texts and divisions."""
