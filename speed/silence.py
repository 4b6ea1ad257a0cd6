"""Where long recordings are cut, and what is left out, if silence is found by energy or by a detector of voices.

    python speed/silence.py LIBRISPEECH MODEL --json speed/results/silence.json

Utterances of a speaker are joined, with silence between them whose place is known: 0.4 to 2 s (*short*), or for a
quarter of the pauses 10 to 40 s (*long*), as where a class works by itself. To these recordings babble of six other
speakers of the corpus is added, which never pauses, at so many dB below the speech. Speech is where the recording
without the babble is louder than 30 dB below its loud parts (their 95th percentile, 20 ms at a time). Measured:

- *cuts in speech*: of the ends of pieces, those with speech within 25 ms;
- *speech lost*: of the speech, the part that is in no piece;
- *audio left out*: of the whole recordings, the part that is in no piece, and need not be decoded;
- WER of the model's texts (Whisper's English normaliser), on the first recordings, and at every other level only.

LibriSpeech: openslr.org/12, a folder of speakers with folders of chapters, which hold `*.trans.txt` and audio files.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from machine import machine
from ssvd.corpora.audio import load_audio, read_recording
from ssvd.recognisers.base import Recogniser
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.pauses import Silence
from ssvd.scoring import score

RATE = 16000
FRAME = RATE // 50
NEAR = RATE // 40
BABBLERS = 6
PAUSES = {"short": 0.0, "long": 0.25}  # share of the pauses that are long
TRANSCRIBED_LEVELS = (None, 10, 0)

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Joined:
    """Utterances with silence between them: samples, where somebody speaks, and what is said."""

    samples: Samples
    is_speech: NDArray[np.bool_]
    text: str


def main(
    corpus: Annotated[Path, typer.Argument(help="Folder of LibriSpeech, such as dev-clean.")],
    model: Annotated[str, typer.Argument(help="Checkpoint for the WER, such as openai/whisper-tiny.en.")],
    seconds: Annotated[float, typer.Option(help="Of speech in a recording.")] = 120,
    transcribed: Annotated[int, typer.Option(help="Recordings for the WER.")] = 2,
    pauses: Annotated[str, typer.Option(help="Kinds of recordings, by comma.")] = "short,long",
    levels: Annotated[str, typer.Option(help="Levels of the babble in dB, by comma.")] = "none,20,10,5,0",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write the figures to.")] = None,
) -> None:
    """Compare both ways on the recordings of every speaker."""
    torch.set_num_threads(threads)
    speech = load_model(model)
    utterances = {folder.name: list(read(folder, seconds)) for folder in sorted(corpus.iterdir()) if folder.is_dir()}
    rows = []
    for kind in pauses.split(","):
        for level in (None if text == "none" else int(text) for text in levels.split(",")):
            recordings = [noisy(utterances, name, PAUSES[kind], level, seed) for seed, name in enumerate(utterances)]
            for silence in get_args(Silence):
                figures = divide(speech, recordings, silence)
                if level in TRANSCRIBED_LEVELS:
                    figures |= transcribe(speech, recordings[:transcribed], silence)
                rows.append({"pauses": kind, "babble_db": level, "silence": silence} | figures)
                print(rows[-1], flush=True)
    show(rows)
    if json_file is not None:
        document = {
            "command": f"python speed/silence.py LIBRISPEECH MODEL --pauses {pauses} --levels {levels}",
            "speakers": len(utterances),
            "seconds_of_speech_each": seconds,
            "recordings_transcribed": transcribed,
            "model": Path(model).name,
            "machine": machine(),
            "rows": rows,
        }
        json_file.write_text(json.dumps(document, indent=1) + "\n")


def read(folder: Path, seconds: float) -> Iterator[tuple[Samples, str]]:
    """Yield the first utterances of a speaker, so many seconds of them, each with its text."""
    texts = {}
    for file in sorted(folder.rglob("*.trans.txt")):
        texts |= dict(line.split(" ", 1) for line in file.read_text().splitlines())
    audio = {file.stem: file for file in folder.rglob("*") if file.suffix in (".flac", ".mp3", ".wav")}
    for name in sorted(texts.keys() & audio.keys()):
        if seconds <= 0:
            return
        samples = load_audio(read_recording(audio[name], name).to_cut(), RATE)
        seconds -= len(samples) / RATE
        yield samples, texts[name]


def noisy(
    utterances: dict[str, list[tuple[Samples, str]]], speaker: str, long_pauses: float, level: int | None, seed: int
) -> Joined:
    """Join the utterances of a speaker, and add the babble of others: the same for every level, but for its level."""
    random = np.random.default_rng(seed)
    joined = join(utterances[speaker], long_pauses, random)
    if level is None:
        return joined
    babble = np.zeros(len(joined.samples))
    others = [name for name in utterances if name != speaker]
    for other in random.choice(others, BABBLERS, replace=False):
        voice = np.concatenate([samples for samples, _ in utterances[other]])
        turned = np.resize(np.roll(voice, random.integers(len(voice))), len(babble))
        babble += turned / root_mean_square(turned)
    loudness = root_mean_square(joined.samples[joined.is_speech])
    mixed = joined.samples + babble * (loudness / root_mean_square(babble) * 10 ** (-level / 20))
    return Joined((mixed / max(1.0, np.abs(mixed).max())).astype(np.float32), joined.is_speech, joined.text)


def join(utterances: list[tuple[Samples, str]], long_pauses: float, random: np.random.Generator) -> Joined:
    """Join utterances with pauses of known lengths."""
    parts, masks = [], []
    for samples, _ in utterances:
        pause = random.uniform(10, 40) if random.uniform() < long_pauses else random.uniform(0.4, 2)
        silence = np.zeros(round(pause * RATE), np.float32)
        parts += [samples, silence]
        masks += [loud(samples), np.zeros(len(silence), bool)]
    return Joined(np.concatenate(parts), np.concatenate(masks), " ".join(text for _, text in utterances))


def loud(samples: Samples) -> NDArray[np.bool_]:
    """Where an utterance is louder than 30 dB below its loud parts, (samples,)."""
    whole = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    energy = (whole.astype(np.float64) ** 2).mean(1)
    return np.repeat(energy > np.percentile(energy, 95) / 1000, FRAME)[: len(samples)]


def root_mean_square(samples: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def divide(speech: Recogniser, recordings: list[Joined], silence: Silence) -> dict[str, Any]:
    """Where the recordings are cut, and what is left out."""
    cuts = in_speech = lost = decoded = 0
    for recording in recordings:
        starts, pieces = speech._pieces(recording.samples, silence)
        spans = [(start, start + len(piece)) for start, piece in zip(starts, pieces, strict=True)]
        places = {place for span in spans for place in span} - {0, len(recording.samples)}
        cuts += len(places)
        decoded += sum(len(piece) for piece in pieces)
        in_speech += sum(bool(recording.is_speech[place - NEAR : place + NEAR].any()) for place in places)
        left_out = recording.is_speech.copy()
        for start, end in spans:
            left_out[start:end] = False
        lost += int(left_out.sum())
    spoken = sum(int(recording.is_speech.sum()) for recording in recordings)
    audio = sum(len(recording.samples) for recording in recordings)
    return {
        "cuts": cuts,
        "cuts_in_speech": round(in_speech / cuts, 4),
        "speech_lost": round(lost / spoken, 4),
        "audio_left_out": round(1 - decoded / audio, 4),
    }


def transcribe(speech: Recogniser, recordings: list[Joined], silence: Silence) -> dict[str, Any]:
    """The errors in the model's texts of the recordings, each decoded as `ssvd transcribe` does it."""
    texts = []
    for recording in recordings:
        segments = speech.transcribe_segments(recording.samples, words=False, silence=silence)
        texts.append(" ".join(segment.timed.text for segment in segments))
    result = score([recording.text for recording in recordings], texts, normaliser="english")
    errors = {name: getattr(result, name) for name in ("words", "substitutions", "deletions", "insertions")}
    return {"wer": round(result.wer, 4)} | errors


def show(rows: list[dict[str, Any]]) -> None:
    """Print a line for each kind of recording."""
    columns = ("pauses", "babble", "cuts in speech", "speech lost", "audio left out", "WER")
    table = Table(*columns, title="by energy / by vad")
    for energy, vad in zip(rows[::2], rows[1::2], strict=True):
        level = "none" if energy["babble_db"] is None else f"{energy['babble_db']} dB"
        shares = (
            f"{energy[key]:.1%} / {vad[key]:.1%}" if key in energy else ""
            for key in ("cuts_in_speech", "speech_lost", "audio_left_out", "wer")
        )
        table.add_row(energy["pauses"], level, *shares)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
