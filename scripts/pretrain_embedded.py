"""Pretrain the embedded recogniser (src/ssvd/demo/embedded) on synthetic adult speech, from random weights.

    python scripts/pretrain_embedded.py --out src/ssvd/demo/embedded

A Whisper of 3.2 M parameters with a byte vocabulary and a window of 4 s, trained with cross-entropy and, on a
throw-away head of the encoder, CTC: without it the decoder's attention is slow to align. Seven tenths of the steps
take utterances of like length, cut to the longest of the batch; the rest sees the whole window with its silence.
"""

import json
import math
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import jiwer
import numpy as np
import torch
import transformers
import typer
from torch import nn
from torch.nn import functional as F
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ssvd.demo.synthetic import KINDS, SAMPLING_RATE, Kind, utterances

WINDOW = 4  # seconds
FRAMES = WINDOW * 100  # log-mel frames; the encoder halves them
END, START, NO_TIMESTAMPS = 256, 257, 258
CTC_WEIGHT = 0.4


def byte_processor() -> WhisperProcessor:
    """Return Whisper's byte-level tokenizer without merges, and its feature extractor with a window of 4 s."""
    vocabulary = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    special = {"<|endoftext|>": END, "<|startoftranscript|>": START, "<|notimestamps|>": NO_TIMESTAMPS}
    tokenizer = WhisperTokenizer(vocab=vocabulary | special, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)[1:]})
    return WhisperProcessor(WhisperFeatureExtractor(chunk_length=WINDOW), tokenizer)


def new_model() -> WhisperForConditionalGeneration:
    """Return the network with random weights."""
    config = WhisperConfig(
        vocab_size=NO_TIMESTAMPS + 1,
        d_model=192,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_source_positions=FRAMES // 2,
        max_target_positions=96,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        begin_suppress_tokens=None,
        suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    generation = model.generation_config
    generation.update(
        no_timestamps_token_id=NO_TIMESTAMPS, is_multilingual=False, max_length=96, return_timestamps=False
    )
    return model


def set_window(model: WhisperForConditionalGeneration, positions: torch.Tensor) -> None:
    """Give the encoder these position embeddings (positions, d_model), and so the length of its window."""
    model.model.encoder.embed_positions = nn.Embedding.from_pretrained(positions)
    model.config.max_source_positions = len(positions)


class Features:
    """Log-mel features (fp16, in a memory map) and byte labels of synthetic utterances."""

    def __init__(self, folder: Path, kind: Kind, count: int, speakers: int, seed: int) -> None:
        path = folder / f"{kind}-{count}-{speakers}-{seed}.npy"
        if not path.exists():
            self._write(path, kind, count, speakers, seed)
        self.mel = np.load(path, mmap_mode="r")
        self.frames, self.texts = json.loads(path.with_suffix(".json").read_text())

    @staticmethod
    def _write(path: Path, kind: Kind, count: int, speakers: int, seed: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        extract = WhisperFeatureExtractor(chunk_length=WINDOW)
        partial = path.with_suffix(".partial")
        mel = np.lib.format.open_memmap(partial, "w+", np.float16, (count, extract.feature_size, FRAMES))
        frames, texts = [], []
        for index, (_, text, samples) in enumerate(utterances(kind, count, speakers, seed)):
            mel[index] = extract(samples, sampling_rate=SAMPLING_RATE, return_tensors="np").input_features[0]
            frames.append(min(FRAMES, math.ceil(len(samples) / SAMPLING_RATE * 100)))
            texts.append(text)
        mel.flush()
        path.with_suffix(".json").write_text(json.dumps([frames, texts]))
        partial.rename(path)

    def labels(self, rows: np.ndarray) -> torch.Tensor:
        """Return byte labels with prompt and end: (rows, length), -100 where padded."""
        coded = [torch.tensor([START, NO_TIMESTAMPS, *self.texts[row].encode(), END]) for row in rows]
        return nn.utils.rnn.pad_sequence(coded, batch_first=True, padding_value=-100)


def batches(data: Features, batch: int, rng: np.random.Generator, alike: bool) -> Iterator[tuple[np.ndarray, int]]:
    """Yield rows and frames of batches without end: of similar length cut to the longest, or of any length uncut."""
    lengths = np.array(data.frames)
    while True:
        order = rng.permutation(len(lengths))
        if alike:
            order = order[np.argsort(lengths[order] + rng.uniform(0, 20, len(order)), kind="stable")]
        chunks = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
        for index in rng.permutation(len(chunks)):
            rows = chunks[index]
            longest = -(-int(lengths[rows].max()) // 20) * 20
            yield rows, min(FRAMES, longest + 20) if alike else FRAMES


def mask(mel: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Set a band of at most 12 mels and a stretch of at most 20 frames of each utterance to its mean."""
    for row in mel:
        height, width = rng.integers(0, 13), rng.integers(0, 21)
        low, left = rng.integers(0, mel.shape[1] - height), rng.integers(0, mel.shape[2] - width)
        row[low : low + height] = row.mean()
        row[:, left : left + width] = row.mean()
    return mel


@torch.no_grad()
def word_error_rate(model: WhisperForConditionalGeneration, data: Features) -> float:
    """Return the WER of greedy decoding."""
    model.eval()
    hypotheses = []
    for start in range(0, len(data.texts), 50):
        mel = torch.from_numpy(np.array(data.mel[start : start + 50], dtype=np.float32))
        prompt = torch.tensor([[START, NO_TIMESTAMPS]]).expand(len(mel), -1)
        tokens = model.generate(mel, decoder_input_ids=prompt, max_new_tokens=80, do_sample=False)
        hypotheses += [bytes(t for t in row if t < END).decode(errors="replace") for row in tokens.tolist()]
    model.train()
    return jiwer.wer(data.texts, hypotheses)


def main(
    out: Path = Path("src/ssvd/demo/embedded"),
    work: Path = Path("runs/pretrain"),
    steps: int = 6000,
    batch: int = 24,
    learning_rate: float = 1.5e-3,
    count: int = 40_000,
    threads: int = 1,
    device: str = "cpu",
) -> None:
    """Make the speech, train in bf16 autocast, and write the checkpoint (fp16) and a record of the training."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    started = time.monotonic()
    data = Features(work, "adult", count, speakers=400, seed=1)
    held_out = {kind: Features(work, kind, 300, speakers=30, seed=99) for kind in KINDS}
    print(f"speech made in {time.monotonic() - started:.0f} s", flush=True)

    model = new_model().to(device)
    head = nn.Linear(192, NO_TIMESTAMPS + 1).to(device)  # the CTC blank is END
    positions = model.model.encoder.embed_positions.weight.data.clone()
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    alike, whole = batches(data, batch, rng, True), batches(data, batch, rng, False)
    losses: list[list[float]] = []
    last = work / "last.pt"
    first = 0
    if last.exists():
        state = torch.load(last, weights_only=True)
        set_window(model, positions)
        for part, values in zip((model, head, optimizer, schedule), state["parts"], strict=True):
            part.load_state_dict(values)
        first = state["step"]
        print(f"continuing at step {first}", flush=True)

    started = time.monotonic()
    model.train()
    for step in range(first, steps):
        rows, frames = next(alike if step < 0.7 * steps else whole)
        set_window(model, positions[: frames // 2])
        mel = mask(torch.from_numpy(np.array(data.mel[rows, :, :frames], dtype=np.float32)), rng).to(device)
        labels = data.labels(rows).to(device)
        with torch.autocast(device, torch.bfloat16):
            output = model(
                mel, decoder_input_ids=labels[:, :-1].clamp(min=0) + (labels[:, :-1] < 0) * END, use_cache=False
            )
            alignment = head(output.encoder_last_hidden_state)
        targets = labels[:, 1:].clone()
        targets[:, 0] = -100  # the prompt is given
        attention = F.cross_entropy(output.logits.float().flatten(0, 1), targets.flatten())
        letters = [row[(row >= 0) & (row < END)] for row in targets]
        ctc = F.ctc_loss(
            alignment.float().log_softmax(-1).transpose(0, 1),
            torch.cat(letters),
            torch.full((len(rows),), frames // 2),
            torch.tensor([len(row) for row in letters]),
            blank=END,
            zero_infinity=True,
        )
        (attention + CTC_WEIGHT * ctc).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append([attention.item(), ctc.item()])
        if (step + 1) % 50 == 0:
            mean = np.mean(losses[-50:], axis=0).round(3).tolist()
            print(f"step {step + 1}: loss {mean[0]}, ctc {mean[1]}, {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % 500 == 0:
            set_window(model, positions)
            parts = [part.state_dict() for part in (model, head, optimizer, schedule)]
            torch.save({"parts": parts, "step": step + 1}, last)

    set_window(model, positions)
    model.cpu().half().save_pretrained(out)
    byte_processor().save_pretrained(out)
    model = WhisperForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    record = {
        "script": "scripts/pretrain_embedded.py",
        "data": f"{count} synthetic adult utterances by eSpeak NG, 400 speakers",
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "training_seconds": round(time.monotonic() - started),
        "wer_held_out": {kind: round(word_error_rate(model, part), 4) for kind, part in held_out.items()},
        "hardware": f"{platform.processor() or platform.machine()}, {threads} thread(s), {device}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    typer.run(main)
