"""The demonstration, its synthetic speech and the embedded recogniser."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "embedded"
