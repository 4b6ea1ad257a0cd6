"""Transcribe audio files, with or without an adapter."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.errors import UserError
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding
from ssvd.recognisers.loading import load_model
from ssvd.training.run_folder import load_adapted


class Transcription(NamedTuple):
    """The text of a file.

    Attributes:
        path: The file.
        text: Its text; "" where it cannot be read.
        error: Why it cannot be read, or None.
    """

    path: Path
    text: str
    error: str | None


def transcribe_files(
    model: str,
    files: Sequence[Path],
    adapter: str | Path | None = None,
    *,
    scale: float | None = None,
    window: float | None = None,
    language: str | None = None,
    decoding: Decoding = DEFAULT_DECODING,
    batch_size: int = 8,
    device: str = "auto",
) -> Iterator[Transcription]:
    """Yield the text of each file in turn, or why it cannot be read.

    Args:
        model: The base checkpoint.
        files: Audio files of any format, sampling rate and length.
        adapter: A run folder, or a PEFT adapter: a folder or a name on the hub.
        scale: How far to go from the base model to the adapted one; None for the run's chosen scale, or 1.
        window: Length of the model's input in seconds.
        language: Language of the speech, as a name or a code.
        decoding: How texts are searched for.
        batch_size: Number of pieces of a long recording that are decoded at once.
        device: Device to compute on.

    Raises:
        UserError: The model or the adapter cannot be used.
    """
    if adapter is None:
        speech = load_model(model, window=window, language=language)
    else:
        speech = load_adapted(model, adapter, window=window, language=language, scale=scale)
    speech.module.to(pick_device(device))
    for path in files:
        try:
            samples = load_audio(read_recording(path, path.stem).to_cut(), speech.sampling_rate)
        except (UserError, ValueError) as error:
            yield Transcription(path, "", str(error))
            continue
        yield Transcription(path, speech.transcribe_audio(samples, decoding, batch_size=batch_size), None)
