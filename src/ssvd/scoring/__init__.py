"""Error rates, their intervals, and the normalisers of texts."""
