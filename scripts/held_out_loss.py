"""Compare methods by the loss of held-out speakers after a short training, which chance moves less than a WER.

    python scripts/held_out_loss.py data/whisper-tiny.en data/children/train.jsonl.gz data/children/dev.jsonl.gz \
        "ssvd 4e-3" "lora 1e-3" "lora + front-end 1e-3" --window 8 --out results/recorded-children/held_out_loss.jsonl

A row is a method, as in a grid of `ssvd benchmark`, and its peak learning rate. Training is that of `ssvd adapt` with
the default schedule over all epochs, in mixed precision; the loss is computed in float32. Rows that the file has
already are left out.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from ssvd.corpora.corpus import read_corpus
from ssvd.hardware import hardware
from ssvd.methods import Budget, RankAllocation, apply_method, find_method, trainable_parameters
from ssvd.recognisers.base import Recogniser
from ssvd.recognisers.layers import USUAL_GROUPS
from ssvd.recognisers.loading import load_model
from ssvd.training.batches import ByCount, EpochBatches, consecutive
from ssvd.training.input_start import start_from_inputs
from ssvd.training.schedule import rate_factor
from ssvd.training.text_style import write_in


def main(
    model: Annotated[str, typer.Argument(help="The checkpoint.")],
    train: Annotated[Path, typer.Argument(help="Corpus to train on.")],
    dev: Annotated[Path, typer.Argument(help="Corpus of other speakers.")],
    rows: Annotated[list[str], typer.Argument(help="Methods with their learning rates: 'ssvd 4e-3'.")],
    budget: Annotated[str, typer.Option(help="Budget, as in a grid.")] = "p=0.4",
    window: Annotated[float | None, typer.Option(help="Length of the model's input in seconds.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes through the training corpus.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Utterances per batch.")] = 16,
    style: Annotated[str, typer.Option(help="Style of the texts: keep, lower, upper or sentence.")] = "sentence",
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path, typer.Option(help="File of rows in JSON, which are added to it.")] = Path("loss.jsonl"),
) -> None:
    """Train each row, and print and store its loss on the held-out utterances."""
    cuts = [list(read_corpus(path, skip_bad=True).cuts) for path in (train, dev)]
    for cut in (cut for part in cuts for cut in part):
        for supervision in cut.supervisions:
            supervision.text = write_in(style, supervision.text or "")
    done = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for row in rows:
        named, _, rate = row.rpartition(" ")
        name, *further = (part.strip() for part in named.split(" + "))
        entry = {"method": named, "learning_rate": float(rate), "budget": budget, "seed": seed, "epochs": epochs}
        if any(entry.items() <= other.items() for other in done):
            continue
        speech = load_model(model, window=window)
        usable = [[cut for cut in part if speech.check(cut) is None] for part in cuts]
        torch.manual_seed(seed)
        layers = speech.adaptable_layers([*USUAL_GROUPS, *further])
        speech.module = apply_method(speech.module, name, layers, Budget.parse(budget))
        if find_method(name).starts_from_inputs:
            start_from_inputs(speech, usable[0], seed)
        started = time.monotonic()
        losses = training_losses(speech, name, float(rate), usable[0], epochs, batch_size, seed)
        entry |= {
            "trainable_parameters": trainable_parameters(speech.module),
            "training_losses": losses,
            "held_out_loss": held_out_loss(speech, usable[1], 2 * batch_size),
            "seconds": round(time.monotonic() - started),
            "hardware": hardware(torch.device("cpu")),
        }
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(f"{row}, seed {seed}: {entry['held_out_loss']:.4f}", flush=True)


def training_losses(
    speech: Recogniser, method: str, rate: float, cuts: Sequence, epochs: int, batch_size: int, seed: int
) -> list[float]:
    """Train, and return the mean loss of each epoch."""
    batching = ByCount(len(cuts), batch_size)
    updates = len(batching) * epochs
    groups = find_method(method).rate_groups(speech.module, rate)
    allocation = RankAllocation(speech.module, updates) if find_method(method).allocates_ranks else None
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, weight_decay=0)
    factor: Callable[[int], float] = partial(rate_factor, updates=updates, warmup=0.1, decay="linear")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    trained = [parameter for parameter in speech.module.parameters() if parameter.requires_grad]
    speech.module.train()
    means = []
    for epoch in range(epochs):
        torch.manual_seed(seed * 10_007 + epoch)
        losses = []
        for number, indices in enumerate(EpochBatches(batching, len(batching), seed, epoch), 1):
            batch = speech.collate([cuts[index] for index in indices])
            with torch.autocast("cpu", torch.bfloat16):
                loss = speech.loss(batch)
            (loss if allocation is None else loss + allocation.penalty()).backward()
            torch.nn.utils.clip_grad_norm_(trained, 5.0)
            optimiser.step()
            if allocation is not None:
                allocation.after_update(epoch * len(batching) + number)
            optimiser.zero_grad()
            schedule.step()
            losses.append(float(loss.detach()))
        means.append(sum(losses) / len(losses))
    return means


@torch.no_grad()
def held_out_loss(speech: Recogniser, cuts: Sequence, batch_size: int) -> float:
    """Return the mean loss of utterances, each counted by its tokens or as the model's family counts."""
    speech.module.eval()
    total = weights = 0.0
    for indices in consecutive([speech.input_seconds(cut.duration) for cut in cuts], batch_size, None):
        batch = speech.collate([cuts[index] for index in indices])
        total += float(speech.loss(batch)) * speech.loss_weight(batch)
        weights += speech.loss_weight(batch)
    return total / weights


if __name__ == "__main__":
    typer.run(main)
