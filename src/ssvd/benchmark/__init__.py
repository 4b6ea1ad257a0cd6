"""Comparing methods fairly: a grid of cells, each one JSON, and the page that shows them."""
