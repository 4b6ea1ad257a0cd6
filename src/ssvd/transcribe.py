"""Transcribe audio files, with or without an adapter."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.errors import UserError
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.pauses import Silence, check_silence
from ssvd.recognisers.words import Segment
from ssvd.training.progress import SILENT, Progress
from ssvd.training.run_folder import load_adapted
from ssvd.transcripts.formats import plain_text


class Transcription(NamedTuple):
    """What was said in a file.

    Attributes:
        path: The file.
        segments: Its parts, each with its text and, where they were asked for, its words; none if it cannot be read.
        error: Why it cannot be read, or None.
    """

    path: Path
    segments: list[Segment]
    error: str | None

    @property
    def text(self) -> str:
        """The text of the file on one line."""
        return plain_text(self.segments)


def transcribe_files(
    model: str,
    files: Sequence[Path],
    adapter: str | Path | None = None,
    *,
    words: bool = False,
    scale: float | None = None,
    window: float | None = None,
    language: str | None = None,
    decoding: Decoding = DEFAULT_DECODING,
    silence: Silence = "energy",
    batch_size: int = 8,
    device: str = "auto",
    progress: Progress = SILENT,
) -> Iterator[Transcription]:
    """Yield the text of each file in turn, or why it cannot be read.

    Args:
        model: The base checkpoint.
        files: Audio files of any format, sampling rate and length.
        adapter: A run folder, or a PEFT adapter: a folder or a name on the hub.
        words: Whether to find when each word was said, and how sure the model is of it.
        scale: How far to go from the base model to the adapted one; None for the run's chosen scale, or 1.
        window: Length of the model's input in seconds.
        language: Language of the speech, as a name or a code.
        decoding: How texts are searched for.
        silence: "vad" to leave out the long silences that a detector of voices finds.
        batch_size: Number of pieces of a long recording that are decoded at once.
        device: Device to compute on.
        progress: What is told how many seconds of a file are done.

    Raises:
        UserError: The model or the adapter cannot be used.
        ModuleNotFoundError: The package of the detector is not installed.
    """
    if not files:
        return
    check_silence(silence)
    if adapter is None:
        speech = load_model(model, window=window, language=language)
    else:
        speech = load_adapted(model, adapter, window=window, language=language, scale=scale)
    speech.module.to(pick_device(device))
    for path in files:
        try:
            samples = load_audio(read_recording(path, path.stem).to_cut(), speech.sampling_rate)
        except (UserError, ValueError) as error:
            yield Transcription(path, [], str(error))
            continue
        segments: list[Segment] = []
        seconds = math.ceil(len(samples) / speech.sampling_rate)
        for segment in speech.transcribe_segments(
            samples, decoding, batch_size=batch_size, words=words, silence=silence
        ):
            segments.append(segment)
            progress.advance(path.name, math.ceil(segment.end), seconds)
        if not segments or segments[-1].end < seconds - 1:  # silence at the end was left out
            progress.advance(path.name, seconds, seconds)
        yield Transcription(path, segments, None)
