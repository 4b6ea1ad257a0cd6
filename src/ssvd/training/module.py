"""Training of a recogniser as Lightning sees it: batches, loss, decoding after each epoch, and checkpoints."""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lhotse import CutSet
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.utils.data import DataLoader

from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import common_language, field_value
from ssvd.errors import UserError
from ssvd.files import write_json_lines
from ssvd.hardware import pick_device, threads_each
from ssvd.methods import RankAllocation, find_method
from ssvd.recognisers.decoding import Decoding, Fallback
from ssvd.recognisers.loading import Recogniser
from ssvd.recognisers.vocabulary import VOCABULARY
from ssvd.scoring import Score, score, usual_normaliser
from ssvd.training.adapter_file import bind_adapter
from ssvd.training.augmentation import Augmenter
from ssvd.training.batches import Batching, ByCount, BySeconds, EpochBatches, InGroups, Share, consecutive
from ssvd.training.data import TrainingData
from ssvd.training.loading import Loading
from ssvd.training.model_card import model_card, public_name
from ssvd.training.placement import ALONE
from ssvd.training.process_group import ProcessGroup
from ssvd.training.progress import Progress
from ssvd.training.results import Epoch, write_metrics
from ssvd.training.run_folder import BASE, replace_folder
from ssvd.training.schedule import rate_factor
from ssvd.training.sequential import ShardedBatches, shard_groups
from ssvd.training.text_style import choose_style, write_in
from ssvd.tuners import SSVDModel
from ssvd_options import AdaptOptions
from ssvd_options.adapt import LARGEST_SEED


class Adaptation(lightning.LightningModule):
    """Training of whatever `requires_grad` in a recogniser, and decoding of the dev utterances after each epoch.

    Checkpoints hold what is trained and nothing of the frozen model.

    Args:
        speech: The recogniser, ready for training.
        options: Options of the run.
        data: The utterances.
        augmenter: Augmentation of the training audio.
        run: The run folder.
        progress: What the run reports to.
        learning_rate: Peak learning rate.
        group: The processes of the training, which share each batch and the dev utterances.

    Attributes:
        series: Rows of the epochs so far.
        seconds: Seconds of training so far, without decoding.
        updates: Number of updates of the whole run, if it is not stopped early.
        allocation: What AdaLoRA does in training; None for other methods.
        normaliser: Name of the text normaliser for scoring.
        decoding: Settings of decoding.
        text_style: Style in which the training texts are written.
    """

    def __init__(
        self,
        speech: Recogniser,
        options: AdaptOptions,
        data: TrainingData,
        augmenter: Augmenter,
        run: Path,
        progress: Progress,
        learning_rate: float,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self._group = group or ProcessGroup(ALONE)
        self.network: nn.Module = speech.module
        self.speech, self.options, self.data, self.run_folder = speech, options, data, run
        self.progress, self.learning_rate = progress, learning_rate
        self.decoding = Decoding(options.beams, fallback=Fallback() if options.fallback else None)
        language = common_language(CutSet.from_cuts(data.dev)) or speech.language
        self.normaliser = options.normaliser or usual_normaliser(language, of_phones=speech.phones is not None)
        has_other_symbols = speech.vocabulary is not None and options.text_style == "auto"
        self.text_style: str = "keep" if has_other_symbols else options.text_style
        self.series: list[Epoch] = []
        self.seconds = 0.0
        self._losses: list[torch.Tensor] = []
        self._decoded: list[list[tuple[str, str]]] = []  # by batch, of this process
        self._hypotheses: list[tuple[str, str]] = []  # of all
        self._groups = shard_groups(data.train)
        groups = [[data.train[index] for index in group] for group in self._groups]
        self._batching = InGroups([self._batching_of(cuts) for cuts in groups], self._groups)
        self._augmenter = augmenter
        on_gpu = pick_device(options.device).type == "cuda"
        # On a CPU they would take the cores from the computation.
        usual = min(4, threads_each(self._group.placement.devices) - 1) if on_gpu else 0
        workers = usual if options.workers is None else options.workers
        self._loading = Loading(workers, options.prefetch, pin_memory=on_gpu)
        self._check_batches()
        self.updates = len(self._epoch_batches(0)) // options.accumulation * options.epochs
        allocates = find_method(options.method).allocates_ranks
        self.allocation = RankAllocation(self.network, self.updates) if allocates else None

    # -- data and schedule

    @property
    def _batch_seconds(self) -> float | None:
        seconds = self.options.batch_seconds
        assert seconds != "auto", "it is found before"
        return seconds

    def _batching_of(self, cuts: list[Cut]) -> Batching:
        if self._batch_seconds is None:
            return ByCount(len(cuts), self.options.batch_size)
        return BySeconds([self.speech.input_seconds(cut.duration) for cut in cuts], self._batch_seconds)

    def _check_batches(self) -> None:
        mean = len(self.data.train) / len(self._batching)
        if mean < self._group.size:
            raise UserError(
                f"A batch holds {mean:.1f} utterances on average, fewer than the {self._group.size} processes: give "
                "larger batches, which count all processes together, or more utterances."
            )

    def _epoch_batches(self, number: int) -> EpochBatches:
        options = self.options
        updates = options.updates_per_epoch or math.ceil(len(self._batching) / options.accumulation)
        return EpochBatches(self._batching, updates * options.accumulation, options.seed, number)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the present epoch, or the part of each that is for this process."""
        epoch = self.current_epoch
        self._share = Share(self._epoch_batches(epoch), self._group.rank, self._group.size)
        batches = ShardedBatches(self.data.train, self._groups, self._share)
        return self._loading.batches(batches, self.speech.collate, partial(self._augmenter, epoch=epoch))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the dev utterances in batches twice as large as a process trains on: decoding keeps no activations.

        Processes take turns; one that would have none decodes the last batch too.
        """
        size, seconds, processes = 2 * self.options.batch_size, self._batch_seconds, self._group.size
        lengths = [self.speech.input_seconds(cut.duration) for cut in self.data.dev]
        indices = consecutive(lengths, max(1, size // processes), 2 * seconds / processes if seconds else None)
        self._dev_batches = len(indices)
        own = indices[self._group.rank :: self._group.size] or indices[-1:]
        batches = [[self.data.dev[index] for index in batch] for batch in own]
        return self._loading.batches(batches, partial(self.speech.collate, text=False))

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and the schedule of its learning rate."""
        options = self.options
        groups = find_method(options.method).rate_groups(self.network, self.learning_rate)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, weight_decay=options.weight_decay)
        factor = partial(rate_factor, updates=self.updates, warmup=options.warmup, decay=options.decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- training

    def on_train_start(self) -> None:
        """Stop a run that was killed after its last epoch."""
        self.trainer.should_stop = self._is_out_of_patience()

    def on_train_epoch_start(self) -> None:
        """Seed all randomness by the number of the epoch, so that a resumed run draws what an uninterrupted one does.

        Also turn on training mode, since Lightning leaves networks as they were loaded, which is for decoding.
        """
        # Other processes have other utterances, and shall not drop the same of them.
        seed = self.options.seed * 10_007 + self.current_epoch + self._group.rank * 1_000_003
        lightning.seed_everything(seed % (LARGEST_SEED + 1), verbose=False)
        self.network.train()
        if isinstance(self.network, PeftModel):
            for layer in self.network.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # its statistics are in no adapter
                    layer.eval()
        self._losses.clear()
        self._started = time.monotonic()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Return the loss of a batch; of several processes, the share of this one in the loss of all.

        Raises:
            UserError: The loss is infinite or undefined, in any process.
        """
        loss = self.speech.loss(batch, label_smoothing=self.options.label_smoothing)
        weight = self.speech.loss_weight(batch) if self._share.counts[index] else 0
        loss, mean = self._group.weighted_mean(loss, weight)
        if not torch.isfinite(mean):
            best = self.best
            raise UserError(
                f"The loss became {mean.item()} in epoch {self.current_epoch + 1}; the best adapter until then (epoch "
                f"{best.epoch}, dev WER {best.dev_wer:.1%}) is kept in {self.run_folder}. Start again with a "
                f"learning_rate lower than {self.learning_rate:g}."
            )
        self._losses.append(mean)
        self.log("loss", mean, batch_size=len(batch.ids))
        return loss if self.allocation is None else loss + self.allocation.penalty()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Do an update, and prune ranks after it where the method does."""
        number = self.trainer.global_step + 1
        super().optimizer_step(*args, **kwargs)
        if self.allocation is not None:
            self.allocation.after_update(number)

    def recent_loss(self) -> float:
        """Return the mean loss over the last batches of the epoch."""
        return float(torch.stack(self._losses[-20:]).mean())

    # -- validation

    @property
    def _fitting(self) -> bool:
        return bool(self.trainer.state.fn == "fit")

    def on_validation_epoch_start(self) -> None:
        """Stop the clock of training."""
        if self._fitting:
            self.seconds += time.monotonic() - self._started
        self._decoded.clear()

    def validation_step(self, batch: Any, index: int) -> None:
        """Decode a batch of dev utterances."""
        texts = self.speech.transcribe(batch, self.decoding)
        self._decoded.append(list(zip(batch.ids, texts, strict=True)))

    def on_validation_epoch_end(self) -> None:
        """Score the dev utterances, keep the adapter if it is the best one, and report."""
        by_process, size = self._group.gathered(self._decoded), self._group.size
        batches = (by_process[number % size][number // size] for number in range(self._dev_batches))
        self._hypotheses = [row for batch in batches for row in batch]
        references = [field_value(cut, "text") for cut in self.data.dev]
        hypotheses = [text for _, text in self._hypotheses]
        epoch = self._epoch(score(references, hypotheses, normaliser=self.normaliser, resamples=2))
        is_best = all(epoch.dev_wer < earlier.dev_wer for earlier in self.series)
        self.series.append(epoch)
        self.log("dev_wer", epoch.dev_wer)
        if epoch.orthogonality_error is not None:
            self.log("orthogonality_error", epoch.orthogonality_error)
        if self._group.is_first:
            if is_best:
                self._keep_best(references)
            write_metrics(self.run_folder / "metrics.csv", self.series)
        if epoch.loss is None:
            self.progress.say(f"before training  dev WER {epoch.dev_wer:.1%}")
            return
        self.progress.say(
            f"epoch {epoch.epoch}/{self.options.epochs}  loss {epoch.loss:.3f}  dev WER {epoch.dev_wer:.1%}"
            f"{'  (best)' if is_best else ''}"
        )
        self.trainer.should_stop = self._is_out_of_patience()

    def _epoch(self, result: Score) -> Epoch:
        if result.wer is None or result.cer is None:
            raise UserError(f"The dev utterances have no words after the normaliser {self.normaliser}: give others.")
        trained = self._fitting
        values: dict[str, Any] = {
            "epoch": self.current_epoch + 1 if trained else 0,
            "update": self.trainer.global_step,
            "seconds": round(self.seconds, 2),
            "loss": float(torch.stack(self._losses).mean()) if trained else None,
            "dev_wer": result.wer,
            "dev_cer": result.cer,
            "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"] if trained else None,
        }
        if least := self.least_orthogonal():
            values["orthogonality_error"] = least[1]
        return Epoch(**values)

    def _keep_best(self, references: list[str]) -> None:
        """Put the present adapter, or the whole model, in the place of the best one so far."""
        replace_folder(self.kept_folder, self._save)
        rows = (
            {"id": name, "reference": reference, "hypothesis": text}
            for reference, (name, text) in zip(references, self._hypotheses, strict=True)
        )
        write_json_lines(self.run_folder / "hypotheses" / "dev.jsonl", rows)

    def _save(self, folder: Path) -> None:
        if not isinstance(self.network, PeftModel):
            self.speech.save(folder)
            return
        # PEFT would ask for them if the head is new.
        self.network.save_pretrained(str(folder), save_embedding_layers=False)
        if self.speech.vocabulary is not None:
            self.speech.vocabulary.write(folder / VOCABULARY)
        bind_adapter(folder, self.run_folder / BASE, public_name(self.options.model), self.options.quantise)
        card = model_card(
            self.speech,
            self.options,
            series=self.series,
            best=self.best,
            learning_rate=self.learning_rate,
            normaliser=self.normaliser,
            dev_utterances=len(self.data.dev),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")

    @property
    def kept_folder(self) -> Path:
        """Return the folder of the best adapter or, after full fine-tuning, of the best model."""
        return self.run_folder / ("adapter" if isinstance(self.network, PeftModel) else "model")

    @property
    def best(self) -> Epoch:
        """Return the first of the epochs with the lowest dev WER."""
        return min(self.series, key=lambda epoch: epoch.dev_wer)

    def least_orthogonal(self) -> tuple[str, float] | None:
        """Return the layer whose G of SSVD is farthest from a rotation, and ||G^T G - I||; None for other methods."""
        if not (isinstance(self.network, PeftModel) and isinstance(self.network.base_model, SSVDModel)):
            return None
        errors: dict[str, float] = self.network.base_model.orthogonality_errors()
        return max(errors.items(), key=lambda error: error[1])

    def _is_out_of_patience(self) -> bool:
        errors = [epoch.dev_wer for epoch in self.series if epoch.epoch > 0]
        if self.speech.untrained and min(errors, default=1.0) >= self.series[0].dev_wer:
            return False  # a new head of CTC writes nothing for a while
        return bool(errors) and len(errors) - 1 - errors.index(min(errors)) >= self.options.patience

    # -- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what is trained."""
        if isinstance(self.network, PeftModel):
            with self._whole():
                trained: dict[str, Any] = get_peft_model_state_dict(self.network, save_embedding_layers=False)
            return trained
        return self.network.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False, assign: bool = False) -> Any:
        """Load what is trained."""
        if isinstance(self.network, PeftModel):
            with self._whole():
                return set_peft_model_state_dict(self.network, dict(state_dict))
        return self.network.load_state_dict(state_dict)

    def _whole(self) -> AbstractContextManager[None]:
        return nullcontext() if self.allocation is None else self.allocation.whole()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what this module knows of the run so far."""
        series = [epoch.as_dict() for epoch in self.series]
        checkpoint["progress"] = {"series": series, "seconds": self.seconds, "text_style": self.text_style}
        if self.allocation is not None:
            checkpoint["allocation"] = self.allocation.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what the checkpoint knows of the run."""
        progress = checkpoint["progress"]
        self.series = [Epoch(**row) for row in progress["series"]]
        self.seconds, self.text_style = progress["seconds"], progress["text_style"]
        if self.allocation is not None:
            self.allocation.restore(checkpoint["allocation"])

    # -- texts

    def write_texts_in_style(self) -> None:
        """Write the training texts in the style of the base model's output, if the option text_style is auto."""
        if self.text_style == "auto":
            texts = [field_value(cut, "text") for cut in self.data.train]
            self.text_style, reason = choose_style(texts, [text for _, text in self._hypotheses])
            if reason:
                self.progress.say(reason)
        for cut in self.data.train:
            supervision = cut.supervisions[0]
            supervision.text = write_in(self.text_style, supervision.text or "")
