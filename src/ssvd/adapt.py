"""One fine-tuning run: a pretrained recogniser, a corpus and a method give a run folder."""

import csv
import json
import logging
import math
import random
import shutil
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import yaml
from lhotse import CutSet
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader

from ssvd.corpora.corpus import read_corpora, read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import common_language, field_value, select
from ssvd.corpora.sources import Source
from ssvd.corpora.splits import split_by_speaker
from ssvd.corpora.utterances import Skipped
from ssvd.errors import StoppedError, UserError
from ssvd.files import is_disk_error, whole_file, write_json, write_json_lines, write_whole
from ssvd.hardware import forget_peak_memory, hardware, peak_memory, pick_device
from ssvd.methods.table import apply_method, find_method, trainable_parameters
from ssvd.recognisers.decoding import Decoding, Fallback
from ssvd.recognisers.loading import Recogniser, load_model
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.scoring import normaliser, score, usual_normaliser
from ssvd.training.augmentation import Augmentation, Augmenter
from ssvd.training.batches import ByCount, BySeconds, InGroups, Pass, RoundBatches, by_length, consecutive
from ssvd.training.loading import Loading
from ssvd.training.run_folder import read_config, sample_weights
from ssvd.training.sequential import ShardedBatches, shard_groups
from ssvd.training.text_style import text_style, write_in
from ssvd.tuners import SSVDModel

# Options that change how fast a run is, and what it computes by rounding at most: a continued run may change them.
FREE = {"workers", "prefetch", "device"}
# 4 ||K||^2 of the approximate form: at 0.1 the rotated directions are stretched by up to 5 %.
ORTHOGONALITY_LIMIT = 0.1


class AdaptOptions(BaseModel):
    """Options of a run; each is written to `config.yaml`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    train: list[str]
    dev: list[str] = []
    where: list[str] = []
    skip_bad: bool = False
    method: str = "ssvd"
    budget: str = "p=0.4"
    token_stride: int = Field(1, ge=1)
    also_train: list[str] = []
    window: float | None = None
    language: str | None = None
    text_style: Literal["auto", "keep", "lower", "upper", "sentence"] = "auto"
    normaliser: str | None = None
    epochs: int = Field(10, ge=1)
    updates_per_epoch: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    batch_seconds: float | None = Field(None, gt=0)
    accumulation: int = Field(1, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    warmup: float = Field(0.1, ge=0, le=1)
    decay: Literal["linear", "cosine", "inverse-sqrt", "none"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(5.0, gt=0)
    label_smoothing: float | None = Field(None, ge=0, lt=1)
    augment: list[str] = []
    spec_augment: bool = False
    patience: int = Field(4, ge=1)
    dev_limit: int = Field(500, ge=1)
    beams: int = Field(1, ge=1)
    fallback: bool = True
    seed: int = Field(0, ge=0)
    workers: int = Field(0, ge=0)
    prefetch: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"

    @classmethod
    def checked(cls, values: dict[str, Any], source: str = "") -> "AdaptOptions":
        """Options by name.

        Raises:
            UserError: One is unknown, missing or out of range; the message begins with `source`.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = "--" + str(first["loc"][0]).replace("_", "-")
            found = "" if first["type"] == "missing" else f", but it is {first['input']!r}"
            raise UserError(f"{source}{name}: {first['msg']}{found}.") from None

    @field_validator("train", "dev")
    @classmethod
    def _absolute(cls, paths: list[str]) -> list[str]:
        # A run may be resumed from elsewhere.
        return [path if Source.parse(path) else str(Path(path).resolve()) for path in paths]

    @field_validator("augment")
    @classmethod
    def _readable(cls, augmentations: list[str]) -> list[str]:
        return [str(Augmentation.parse(text)) for text in augmentations]

    @field_validator("model")
    @classmethod
    def _absolute_folder(cls, model: str) -> str:
        return str(Path(model).resolve()) if Path(model).exists() else model


def adapt(
    options: AdaptOptions | None, run: Path, *, resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Fine-tune, and return what `result.json` holds.

    An *epoch* is one pass through the data, or `updates_per_epoch` updates. After each the dev utterances are decoded,
    the best adapter is kept, and the state is written, from which `resume` continues to the same result.

    Args:
        options: None, to take those of the run that is resumed.
        run: The run folder; new or empty unless `resume`.
        resume: Continue an interrupted run.
        console: Where progress is told; standard error by default.

    Raises:
        UserError: Bad options or data; the loss became infinite or undefined; the disk is full; the run was
            interrupted. What was computed before is kept in `run`.
    """
    console = console or Console(stderr=True)
    _quiet()
    options = _checked_options(options, run, resume)
    forget_peak_memory(pick_device(options.device))  # which refuses one that is not there
    if (run / "result.json").is_file():
        console.print(f"{run} is complete already.")
        return json.loads((run / "result.json").read_text(encoding="utf-8"))
    last = run / "checkpoints" / "last.ckpt"
    speech = load_model(options.model, window=options.window, language=options.language)
    method = find_method(options.method)
    if method.name == "frozen":
        raise UserError("The method frozen trains nothing: score the untouched model with `ssvd evaluate`.")
    augmenter = Augmenter(options.augment, sampling_rate=speech.sampling_rate, window=speech.window, seed=options.seed)
    train, dev, skipped = _stored_data(run) if last.is_file() else _read_data(options, speech, console)
    layers = speech.adaptable_layers()
    base = sample_weights(speech.module, layers)
    torch.manual_seed(options.seed)
    speech.module = apply_method(
        speech.module, options.method, layers, options.budget, options.also_train, options.token_stride
    )
    speech.spec_augment = SpecAugment() if options.spec_augment else None
    rate = options.learning_rate or method.learning_rate
    training = Adaptation(speech, options, train, dev, augmenter, run, console, rate)
    trainer = _trainer(options, run, _ProgressBar(console))
    try:
        if not last.is_file():
            (run / "data").mkdir(parents=True, exist_ok=True)
            write_whole(run / "config.yaml", yaml.safe_dump(options.model_dump(), sort_keys=False))
            write_json(run / "base.json", base)
            if skipped:
                rows = ({"where": item.where, "reason": item.reason} for item in skipped)
                write_json_lines(run / "data" / "skipped.jsonl", rows)
                console.print(f"[yellow]{len(skipped)} utterances are left out; {run}/data/skipped.jsonl says why.")
            trainer.validate(training, verbose=False)
            training.choose_text_style()
            for name, cuts in (("train", train), ("dev", dev)):
                write_cuts(CutSet.from_cuts(cuts), run / "data" / f"{name}.jsonl.gz")
        trainer.fit(training, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
        return training.finish()
    except SystemExit:  # Lightning's answer to Ctrl-C and to the termination signal
        raise StoppedError("Interrupted", f"continue with: ssvd adapt --resume --out {run}") from None
    except UserError as error:  # one from a worker process has its traceback in front
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("ssvd.errors.UserError: ")) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if str(error).startswith("DataLoader worker"):
            raise StoppedError(
                "A process that reads audio was killed, most often for lack of memory",
                f"continue with fewer --workers: ssvd adapt --resume --workers 0 --out {run}",
            ) from error
        if not is_disk_error(error):
            raise
        raise StoppedError(
            f"Could not write to {run} ({error})",
            f"free some space and continue with: ssvd adapt --resume --out {run}; the last complete state is kept.",
        ) from error


class Adaptation(lightning.LightningModule):
    """Training of whatever `requires_grad` in a recogniser, and decoding of dev utterances after each epoch.

    Checkpoints hold what is trained and nothing of the frozen model.
    """

    def __init__(
        self,
        speech: Recogniser,
        options: AdaptOptions,
        train: list[Any],
        dev: list[Any],
        augmenter: Augmenter,
        run: Path,
        console: Console,
        learning_rate: float,
    ) -> None:
        super().__init__()
        self.network: nn.Module = speech.module
        self.speech, self.options, self.run_folder, self.console = speech, options, run, console
        self.train_cuts, self.dev_cuts, self.learning_rate = train, dev, learning_rate
        language = common_language(CutSet.from_cuts(dev)) or speech.language
        self._decoding = Decoding(options.beams, fallback=Fallback() if options.fallback else None)
        self.normaliser = options.normaliser or usual_normaliser(language)
        normaliser(self.normaliser)  # refuses an unknown one before any work
        self.text_style = options.text_style
        self.series: list[dict[str, Any]] = []
        self.seconds = 0.0  # of training, decoding left out
        self._losses: list[torch.Tensor] = []
        self._hypotheses: list[tuple[str, str]] = []
        self._groups = shard_groups(train)
        self._pass = InGroups([self._pass_through([train[n] for n in group]) for group in self._groups], self._groups)
        self._augmenter = augmenter
        pinned = pick_device(options.device).type == "cuda"
        self._loading = Loading(options.workers, options.prefetch, pin_memory=pinned)
        self.updates = len(self._round(0)) // options.accumulation * options.epochs

    # -- data and schedule

    def _pass_through(self, cuts: list[Any]) -> Pass:
        if self.options.batch_seconds is None:
            return ByCount(len(cuts), self.options.batch_size)
        return BySeconds([self.speech.input_seconds(cut.duration) for cut in cuts], self.options.batch_seconds)

    def _round(self, number: int) -> RoundBatches:
        options = self.options
        updates = options.updates_per_epoch or math.ceil(len(self._pass) / options.accumulation)
        return RoundBatches(self._pass, updates * options.accumulation, options.seed, number)

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = self.current_epoch
        change = partial(self._augmenter, epoch=epoch)
        batches = ShardedBatches(self.train_cuts, self._groups, self._round(epoch))
        return self._loading.batches(batches, self.speech.collate, change)

    def val_dataloader(self) -> DataLoader[Any]:
        size, seconds = self.options.batch_size, self.options.batch_seconds
        read = [self.speech.input_seconds(cut.duration) for cut in self.dev_cuts]
        numbers = consecutive(read, 2 * size, 2 * seconds if seconds else None)  # decoding keeps no activations
        batches = [[self.dev_cuts[number] for number in batch] for batch in numbers]
        return self._loading.batches(batches, partial(self.speech.collate, text=False))

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, self.learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=self.options.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, update: int) -> float:
        """Share of the peak learning rate."""
        warmup = max(1, round(self.options.warmup * self.updates))
        if update < warmup:
            return (update + 1) / warmup
        done = (update - warmup) / max(1, self.updates - warmup)
        match self.options.decay:
            case "linear":
                return max(0.0, 1 - done)
            case "cosine":
                return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            case "inverse-sqrt":
                return math.sqrt(warmup / (update + 1))
        return 1.0

    # -- training

    def on_train_start(self) -> None:
        self.trainer.should_stop = self._is_out_of_patience()  # a run may be killed after its last epoch

    def on_train_epoch_start(self) -> None:
        # All chance of an epoch follows from its number, so a continued run draws what an uninterrupted one draws.
        lightning.seed_everything(self.options.seed * 10_007 + self.current_epoch, verbose=False)
        self.network.train()  # Lightning leaves networks as they were loaded, which is for decoding
        if isinstance(self.network, PeftModel):
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # its statistics are in no adapter
                    layer.eval()
        self._losses.clear()
        self._started = time.monotonic()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.speech.loss(batch, label_smoothing=self.options.label_smoothing)
        if not torch.isfinite(loss):
            raise UserError(
                f"The loss became {loss.item()} in epoch {self.current_epoch + 1}; the best adapter until then "
                f"({self._best_in_words()}) is kept in {self.run_folder}. Start again with a lower --learning-rate "
                f"than {self.learning_rate:g}."
            )
        self._losses.append(loss.detach())
        self.log("loss", loss, batch_size=len(batch.ids))
        return loss

    def recent_loss(self) -> float:
        """Mean over the last batches of the epoch."""
        return float(torch.stack(self._losses[-20:]).mean())

    # -- validation

    @property
    def _fitting(self) -> bool:
        return self.trainer.state.fn == "fit"

    def on_validation_epoch_start(self) -> None:
        if self._fitting:
            self.seconds += time.monotonic() - self._started
        self._hypotheses.clear()

    def validation_step(self, batch: Any, index: int) -> None:
        texts = self.speech.transcribe(batch, self._decoding)
        self._hypotheses += zip(batch.ids, texts, strict=True)

    def on_validation_epoch_end(self) -> None:
        references = [field_value(cut, "text") for cut in self.dev_cuts]
        hypotheses = [text for _, text in self._hypotheses]
        result = score(references, hypotheses, normaliser=self.normaliser, resamples=2)
        trained = self._fitting
        row = {
            "epoch": self.current_epoch + 1 if trained else 0,
            "update": self.trainer.global_step,
            "seconds": round(self.seconds, 2),
            "loss": float(torch.stack(self._losses).mean()) if self._losses else None,
            "dev_wer": result.wer,
            "dev_cer": result.cer,
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"] if trained else None,
        }
        if worst := self._least_orthogonal():
            row["orthogonality_error"] = worst[1]
            self.log("orthogonality_error", worst[1])
        best = all(row["dev_wer"] < earlier["dev_wer"] for earlier in self.series)
        self.series.append(row)
        self.log("dev_wer", result.wer)
        if best:
            self._keep_best(references)
        self._write_metrics()
        epoch = f"epoch {row['epoch']}/{self.options.epochs}  loss {row['loss']:.3f}" if trained else "before training"
        self.console.print(
            f"{epoch}  dev WER {result.wer:.1%}{'  (best)' if best and trained else ''}", highlight=False
        )
        if trained:
            self.trainer.should_stop = self._is_out_of_patience()

    def _keep_best(self, references: list[str]) -> None:
        """Put the present adapter, or the whole model, in the place of the best one so far."""
        target = self.run_folder / ("adapter" if isinstance(self.network, PeftModel) else "model")
        partial, old = target.with_name(target.name + ".partial"), target.with_name(target.name + ".old")
        for leftover in (partial, old):  # of a run that was killed here
            shutil.rmtree(leftover, ignore_errors=True)
        if isinstance(self.network, PeftModel):
            self.network.save_pretrained(str(partial))
            (partial / "README.md").write_text(self._card(), encoding="utf-8")
        else:
            self.speech.save(partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        rows = (
            {"id": name, "reference": reference, "hypothesis": text}
            for reference, (name, text) in zip(references, self._hypotheses, strict=True)
        )
        write_json_lines(self.run_folder / "hypotheses" / "dev.jsonl", rows)

    def _write_metrics(self) -> None:
        with (self.run_folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, list(self.series[-1]))
            rows.writeheader()
            rows.writerows(self.series)

    def _least_orthogonal(self) -> tuple[str, float] | None:
        """The layer whose G of SSVD is farthest from a rotation, and `||G^T G - I||`."""
        if not (isinstance(self.network, PeftModel) and isinstance(self.network.base_model, SSVDModel)):
            return None
        return max(self.network.base_model.orthogonality_errors().items(), key=lambda error: error[1])

    def _best(self) -> dict[str, Any]:
        return min(self.series, key=lambda row: row["dev_wer"])

    def _is_out_of_patience(self) -> bool:
        errors = [row["dev_wer"] for row in self.series if row["epoch"] > 0]
        return bool(errors) and len(errors) - 1 - errors.index(min(errors)) >= self.options.patience

    def _best_in_words(self) -> str:
        best = self._best()
        return f"epoch {best['epoch']}, dev WER {best['dev_wer']:.1%}"

    # -- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(self.network, PeftModel):
            return get_peft_model_state_dict(self.network, save_embedding_layers=False)
        return self.network.state_dict()

    def load_state_dict(self, state_dict: Any, strict: bool = False, assign: bool = False) -> Any:
        if isinstance(self.network, PeftModel):
            return set_peft_model_state_dict(self.network, dict(state_dict))
        return self.network.load_state_dict(state_dict)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["progress"] = {"series": self.series, "seconds": self.seconds, "text_style": self.text_style}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, value in checkpoint["progress"].items():
            setattr(self, name, value)

    # -- before and after

    def choose_text_style(self) -> None:
        """Where labels are all in one case, and the untouched model wrote in another, take the model's."""
        labels = text_style(field_value(cut, "text") for cut in self.train_cuts)
        own = text_style(text for _, text in self._hypotheses)
        if self.text_style == "auto":
            other = labels in ("lower", "upper") and own not in (labels, "keep")
            self.text_style = own if other else "keep"  # type: ignore[assignment]
            if other:
                self.console.print(
                    f"The labels are all in {labels} case, and the model writes {own} case: it learns them so "
                    "(--text-style keep leaves them)."
                )
        for cut in self.train_cuts:
            cut.supervisions[0].text = write_in(self.text_style, cut.supervisions[0].text)

    def finish(self) -> dict[str, Any]:
        """Write `result.json`."""
        options, best = self.options, self._best()
        device = pick_device(options.device)  # Lightning has taken the network off it
        trained = trainable_parameters(self.network)
        total = sum(p.numel() for p in self.network.parameters())
        kept = self.run_folder / ("adapter" if isinstance(self.network, PeftModel) else "model")
        result: dict[str, Any] = {
            "model": options.model,
            "method": options.method,
            "trainable_parameters": trained,
            "trainable_share": trained / (total - trained if isinstance(self.network, PeftModel) else total),
            "zero_shot_dev_wer": self.series[0]["dev_wer"],
            "best_epoch": best["epoch"],
            "best_dev_wer": best["dev_wer"],
            "normaliser": self.normaliser,
            "decoding": self._decoding.as_dict(has_fallback=self.speech.has_fallback),
            "text_style": self.text_style,
            "learning_rate": self.learning_rate,
            "training_seconds": round(self.seconds, 2),
            "peak_memory_bytes": peak_memory(device),
            "adapter_bytes": sum(p.stat().st_size for p in kept.rglob("*") if p.suffix in (".safetensors", ".pth")),
            "series": self.series,
            "hardware": hardware(device),
            "versions": {name: version(name) for name in ("ssvd", "torch", "transformers", "peft", "lightning")},
        }
        if worst := self._least_orthogonal():
            layer, error = worst
            result["orthogonality_error"] = error
            if options.method not in ("ssvd strict", "ssvd none") and error > ORTHOGONALITY_LIMIT:
                self.console.print(
                    f"[yellow]The inner transformation is no rotation any more: ||G^T G - I|| is {error:.2f} "
                    f"in {layer}. Lower --learning-rate, or use --method 'ssvd strict'."
                )
        if best["epoch"] == 0:
            self.console.print(
                "[yellow]No epoch was better on the dev utterances than the model before training, so what is kept "
                "changes nothing. Try a lower --learning-rate or more data."
            )
        write_json(self.run_folder / "result.json", result)
        return result

    def _card(self) -> str:
        options, best = self.options, self._best()
        data = ", ".join(options.train)
        assert isinstance(self.network, PeftModel)
        ours = type(self.network.peft_config["default"]).__module__.startswith("ssvd.")
        needed = "import ssvd  # registers the method with PEFT; without it the adapter does not load\n" if ours else ""
        return f"""---
base_model: {options.model}
library_name: peft
tags: [automatic-speech-recognition, {options.method}]
---

# {options.method} adapter of {options.model}

Trained on {data}{" where " + " and ".join(options.where) if options.where else ""} with ssvd {version("ssvd")}:
method {options.method}, {trainable_parameters(self.network):,} trained parameters, learning rate
{self.learning_rate:g}, epoch {best["epoch"]} of at most {options.epochs}.

| | WER on its dev utterances ({len(self.dev_cuts)}, normaliser {self.normaliser}) |
|---|---|
| before | {self.series[0]["dev_wer"]:.1%} |
| after | {best["dev_wer"]:.1%} |

The epoch was chosen on these utterances, so the second figure flatters; measure it with `ssvd evaluate`.

```python
{needed}from peft import PeftModel
{self.speech.loading_code(options.model)}
model = PeftModel.from_pretrained(model, "adapter")
```
"""


def _checked_options(options: AdaptOptions | None, run: Path, resume: bool) -> AdaptOptions:
    if not resume:
        if options is None:
            raise ValueError("a new run needs options")
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UserError(f"{run} is not empty: continue that run with --resume, or give another folder with --out.")
        return options
    stored = AdaptOptions.checked(read_config(run), f"{run}/config.yaml: ")
    if options is not None:
        if names := changed_options(options, stored):
            changed = ", ".join(f"{name} was {getattr(stored, name)!r}" for name in names)
            raise UserError(
                f"{run} was begun with other options ({changed}): resume it with those, or start a new run."
            )
        return options
    return stored


def changed_options(options: AdaptOptions, stored: AdaptOptions) -> list[str]:
    """Names of the options that differ and decide what is learnt: not how audio is read, nor the device."""
    fixed = [name for name in AdaptOptions.model_fields if name not in FREE]
    return [name for name in fixed if getattr(options, name) != getattr(stored, name)]


def _read_data(
    options: AdaptOptions, speech: Recogniser, console: Console
) -> tuple[list[Any], list[Any], list[Skipped]]:
    """Utterances to train on, those to decode after each epoch, and those left out."""
    skipped: list[Skipped] = []

    def read(paths: list[str]) -> CutSet:
        corpus = read_corpora(paths, skip_bad=options.skip_bad)
        skipped.extend(corpus.skipped)
        for note in corpus.notes:
            console.print(escape(note), highlight=False)
        return select(corpus.cuts, options.where)

    train = read(options.train)
    if options.dev:
        dev = read(options.dev)
    else:
        parts = split_by_speaker(train, {"train": 0.9, "dev": 0.1}, options.seed)
        train, dev = parts["train"], parts["dev"]
        console.print(f"No --dev given: {len(dev)} utterances by other speakers are kept from training for it.")
    reasons = {cut.id: reason for cut in train if (reason := speech.check(cut))}
    if reasons and not options.skip_bad:
        name, reason = next(iter(reasons.items()))
        raise UserError(
            f"Utterance {name} cannot be trained on ({len(reasons)} of {len(train)} cannot). {reason} Leave out all "
            "such with --skip-bad."
        )
    skipped += [Skipped(name, reason) for name, reason in reasons.items()]
    kept = [cut for cut in train if cut.id not in reasons]
    if not kept:
        raise UserError(
            f"No utterance of {', '.join(options.train)} can be trained on; the first: {skipped[0].reason}."
        )
    cuts = list(dev)
    if len(cuts) > options.dev_limit:
        cuts = random.Random(options.seed).sample(sorted(cuts, key=lambda cut: cut.id), options.dev_limit)
        console.print(f"{options.dev_limit} of {len(dev)} dev utterances are decoded after each epoch (--dev-limit).")
    return kept, by_length(cuts), skipped


def _stored_data(run: Path) -> tuple[list[Any], list[Any], list[Skipped]]:
    train, dev = (list(read_corpus(run / "data" / f"{name}.jsonl.gz").cuts) for name in ("train", "dev"))
    return train, dev, []


class _ProgressBar(lightning.Callback):
    """A bar over all updates, with the loss and the time that is left, and one over the dev utterances.

    It shares the console of the run, so that lines printed meanwhile stand above it.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=600,  # decoding between epochs is part of the time that is left
        )
        self._training = self._decoding = self._bars.add_task("", visible=False)

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self._bars.start()

    def teardown(self, trainer: Any, module: Any, stage: str) -> None:
        self._bars.stop()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._bars.stop()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self._training = self._bars.add_task("training", total=module.updates, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        description = f"{epoch}  loss {module.recent_loss():.3f}"
        self._bars.update(self._training, completed=trainer.global_step, description=description)

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self._decoding = self._bars.add_task("decoding dev", total=len(module.dev_cuts))

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *index: int) -> None:
        self._bars.update(self._decoding, advance=len(batch.ids))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self._bars.remove_task(self._decoding)


class _WholeFiles(TorchCheckpointIO):
    """Checkpoints that a kill leaves as they were; Lightning's own pass through the folder of temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)


def _trainer(options: AdaptOptions, run: Path, progress: _ProgressBar) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}[options.device],
        devices=1,
        precision=_precision(options.device),
        max_epochs=options.epochs,
        accumulate_grad_batches=options.accumulation,
        gradient_clip_val=options.clip,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,  # each epoch has a round of its own
        log_every_n_steps=10,
        plugins=[_WholeFiles()],
        logger=TensorBoardLogger(run, name="tensorboard", version=""),
        callbacks=[
            # After validation, so that the state knows its result.
            ModelCheckpoint(run / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False),
            progress,
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _precision(device: str) -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true"


def _quiet() -> None:
    """Leave out what a user of this command cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=PossibleUserWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*lr_scheduler.step.*|Checkpoint directory.*")
