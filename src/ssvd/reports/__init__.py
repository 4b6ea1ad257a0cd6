"""Pages, tables, charts and figures of what was computed."""
