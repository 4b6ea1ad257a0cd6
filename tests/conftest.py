"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

RECORDINGS = Path(__file__).parents[2] / "shared" / "speech"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Folder of recorded speech and of Whisper weights; absent on a user's machine, never absent in CI."""
    if not RECORDINGS.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the recordings: {RECORDINGS}")
        pytest.skip(f"needs recordings that are not part of the project: {RECORDINGS}")
    return RECORDINGS
