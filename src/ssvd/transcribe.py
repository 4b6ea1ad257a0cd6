"""The text of audio files, with or without an adapter."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.errors import UserError
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding
from ssvd.recognisers.loading import load_model
from ssvd.training.run_folder import load_adapted


def transcribe_files(
    model: str,
    files: Sequence[Path],
    adapter: Path | None = None,
    *,
    window: float | None = None,
    language: str | None = None,
    decoding: Decoding = DEFAULT_DECODING,
    batch_size: int = 8,
    device: str = "auto",
) -> Iterator[tuple[Path, str, str | None]]:
    """(file, text, None) for each file in turn, or (file, "", why it cannot be read).

    Args:
        model: The base checkpoint.
        adapter: A run folder.
        window, language, decoding, batch_size: See `Recogniser.transcribe_audio`.

    Raises:
        UserError: The model or the run folder cannot be used.
    """
    if adapter is None:
        speech = load_model(model, window=window, language=language)
    else:
        speech, _ = load_adapted(model, adapter, window=window, language=language)
    speech.module.to(pick_device(device))
    for path in files:
        try:
            samples = load_audio(read_recording(path, path.stem).to_cut(), speech.sampling_rate)
        except (UserError, ValueError) as error:
            yield path, "", str(error)
            continue
        yield path, speech.transcribe_audio(samples, decoding, batch_size=batch_size), None
