"""Transcribe audio files, with or without an adapter."""

import math
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssvd.corpora.audio import load_audio, read_recording
from ssvd.errors import StoppedError, UserError
from ssvd.hardware import pick_device, threads_each
from ssvd.processes import ProcessPool
from ssvd.recognisers.decoding import DEFAULT_DECODING, Decoding
from ssvd.recognisers.loading import Recogniser, load_model
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
    jobs: int = 1,
    progress: Progress = SILENT,
) -> Generator[Transcription, None, None]:
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
        jobs: Number of processes that share the files, on GPUs one for each GPU. Texts come in the order of the files;
            a script that calls this needs the usual `if __name__ == "__main__":`.
        progress: What is told how many seconds of a file are done, or with several processes how many files.

    Raises:
        UserError: The model or the adapter cannot be used, there are fewer GPUs than jobs, or a process was killed.
        ModuleNotFoundError: The package of the detector is not installed.
    """
    if not files:
        return
    check_silence(silence)
    work = _Work(model, adapter, words, scale, window, language, decoding, silence, batch_size, pick_device(device))
    if (processes := min(jobs, len(files))) > 1:
        _check_devices(work.device, processes)
        yield from _shared(work, files, processes, progress)
        return
    speech = work.load()
    for path in files:
        yield work.transcribe(speech, path, progress)


@dataclass(frozen=True)
class _Work:
    """What `transcribe_files` is given, but for the files."""

    model: str
    adapter: str | Path | None
    words: bool
    scale: float | None
    window: float | None
    language: str | None
    decoding: Decoding
    silence: Silence
    batch_size: int
    device: torch.device

    def load(self) -> Recogniser:
        """Return the recogniser, on its device."""
        options: dict[str, Any] = {"window": self.window, "language": self.language}
        if self.adapter is None:
            speech = load_model(self.model, **options)
        else:
            speech = load_adapted(self.model, self.adapter, scale=self.scale, **options)
        speech.module.to(self.device)
        return speech

    def transcribe(self, speech: Recogniser, path: Path, progress: Progress) -> Transcription:
        """Return what is said in a file, or why it cannot be read."""
        try:
            samples = load_audio(read_recording(path, path.stem).to_cut(), speech.sampling_rate)
        except (UserError, ValueError) as error:
            return Transcription(path, [], str(error))
        segments: list[Segment] = []
        seconds = math.ceil(len(samples) / speech.sampling_rate)
        for segment in speech.transcribe_segments(
            samples, self.decoding, batch_size=self.batch_size, words=self.words, silence=self.silence
        ):
            segments.append(segment)
            progress.advance(path.name, math.ceil(segment.end), seconds)
        if not segments or math.ceil(segments[-1].end) < seconds:  # silence at the end was left out
            progress.advance(path.name, seconds, seconds)
        return Transcription(path, segments, None)


def _check_devices(device: torch.device, processes: int) -> None:
    if device.type != "cpu" and processes > (there := torch.cuda.device_count() if device.type == "cuda" else 1):
        raise UserError(
            f"This machine has {there} device{'s' * (there != 1)} of the kind {device.type}, and each takes one "
            f"process: give at most {there} jobs, or the device cpu."
        )


def _shared(work: _Work, files: Sequence[Path], processes: int, progress: Progress) -> Iterator[Transcription]:
    """Yield the texts of files in their order from several processes."""
    numbers = get_context("spawn").Value("i", 0)
    pool = ProcessPool(processes, _begin_process, (work, numbers, threads_each(processes)))
    running: deque[Future[Transcription]] = deque()
    waiting = iter(files)
    try:
        for done in range(1, len(files) + 1):
            while len(running) < 2 * processes and (path := next(waiting, None)) is not None:
                running.append(pool.submit(_transcribe, path))
            transcription = running.popleft().result()
            yield transcription
            progress.advance("recordings", done, len(files))
    except BrokenProcessPool as error:
        raise StoppedError(
            "A process that transcribes was killed, perhaps because memory ran out", "give fewer jobs"
        ) from error
    finally:
        pool.end()


_work_of_process: _Work


def _begin_process(work: _Work, numbers: Any, threads: int) -> None:
    """Set up a process that transcribes for another one: on a GPU of its own, or with its share of the cores."""
    global _work_of_process
    warnings.filterwarnings("ignore", category=FutureWarning)  # such warnings of libraries are for programmers
    torch.set_num_threads(threads)
    device = work.device
    if device.type == "cuda":
        with numbers.get_lock():
            device = torch.device("cuda", numbers.value % torch.cuda.device_count())
            numbers.value += 1
    _work_of_process = replace(work, device=device)


@cache
def _speech_of_process() -> Recogniser:
    return _work_of_process.load()


def _transcribe(path: Path) -> Transcription:
    return _work_of_process.transcribe(_speech_of_process(), path, SILENT)
