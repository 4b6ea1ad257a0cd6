"""The fields of Lhotse's manifests that this package relies on, as pydantic models: Lhotse itself trusts its files."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# Bounds that no corpus reaches, and within which nothing overflows.
_LONGEST = 1e9  # seconds
_Seconds = Annotated[float, Field(ge=0, le=_LONGEST)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class SourceFields(_Fields):
    """A file, or part of one, that holds channels of a recording."""

    type: str
    channels: list[int]
    source: str


class RecordingFields(_Fields):
    """A recording: its files and its length."""

    model_config = ConfigDict(extra="forbid")

    id: str
    sources: list[SourceFields]
    sampling_rate: int = Field(gt=0, le=10_000_000)
    num_samples: int = Field(ge=0, le=2**53)
    duration: _Seconds
    channel_ids: list[int] | None = None
    transforms: list[dict[str, Any]] | None = None


class SupervisionFields(_Fields):
    """What is said in a segment, and by whom; times are relative to the start of the cut."""

    id: str
    recording_id: str
    start: float = Field(ge=-_LONGEST, le=_LONGEST)
    duration: _Seconds
    channel: int | list[int] = 0
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    gender: str | None = None
    custom: dict[str, Any] | None = None


class CutFields(_Fields):
    """A segment of a recording."""

    id: str
    start: float = Field(ge=-_LONGEST, le=_LONGEST)
    duration: float = Field(ge=-_LONGEST, le=_LONGEST)
    channel: int | list[int]
    supervisions: list[SupervisionFields] = []
    recording: RecordingFields | None = None
    custom: dict[str, Any] | None = None
