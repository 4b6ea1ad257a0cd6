"""What a run reports: a row after each epoch, and its result."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ssvd.documents import read_json
from ssvd.errors import UserError
from ssvd.files import write_json, write_whole


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that were stated, ready for JSON."""
        return self.model_dump(exclude_unset=True)


class Epoch(_Report):
    """What is known after an epoch; epoch 0 is the state before training.

    Attributes:
        epoch: Number of epochs of training so far.
        update: Number of optimiser updates so far.
        seconds: Seconds of training so far, without decoding.
        loss: Mean training loss of the epoch; None before training.
        dev_wer: Word error rate on the dev utterances, a fraction.
        dev_cer: Character error rate on the dev utterances, a fraction.
        learning_rate: Learning rate after the epoch; None before training.
        orthogonality_error: Largest ||G^T G - I|| of all layers; stated for SSVD only.
    """

    epoch: int
    update: int
    seconds: float
    loss: float | None
    dev_wer: float
    dev_cer: float
    learning_rate: float | None
    orthogonality_error: float | None = None


class RunResult(_Report):
    """The result of a run, as in its `result.json`.

    Attributes:
        model: The base checkpoint.
        method: Name of the method.
        trainable_parameters: Number of trained parameters.
        trainable_share: The same as a share of the base model's parameters.
        zero_shot_dev_wer: WER on the dev utterances before training, a fraction.
        best_epoch: The epoch whose adapter was kept; 0 if none was better than the base model.
        best_dev_wer: WER on the dev utterances after that epoch, a fraction.
        normaliser: Text normaliser of the error rates.
        decoding: Settings of decoding.
        text_style: Style in which the training texts were written.
        learning_rate: Peak learning rate.
        training_seconds: Seconds of training, without decoding.
        peak_memory_bytes: Most memory held during the run.
        adapter_bytes: Size of the weights that were kept.
        series: A row for each epoch, beginning with the state before training.
        hardware: The machine in words.
        versions: Versions of the packages that matter.
        orthogonality_error: Largest ||G^T G - I|| of all layers at the end; stated for SSVD only.
        scale: The scale that was chosen for the adapter; stated where one was.
    """

    model: str
    method: str
    trainable_parameters: int
    trainable_share: float
    zero_shot_dev_wer: float
    best_epoch: int
    best_dev_wer: float
    normaliser: str
    decoding: dict[str, Any] = {}
    text_style: str = "keep"
    learning_rate: float
    training_seconds: float
    peak_memory_bytes: int
    adapter_bytes: int
    series: list[Epoch]
    hardware: str
    versions: dict[str, str]
    orthogonality_error: float | None = None
    scale: float | None = None

    @classmethod
    def read(cls, path: Path) -> "RunResult":
        """Read a result from its file.

        Raises:
            UserError: The file does not hold the result of a run.
        """
        try:
            return cls.model_validate(read_json(path))
        except ValueError:
            raise UserError(f"{path} does not hold the result of a run; delete it and resume the run.") from None

    def write(self, path: Path) -> None:
        """Write the result to its file, whole or not at all."""
        write_json(path, self.as_dict())


def write_metrics(path: Path, series: Sequence[Epoch]) -> None:
    """Write the rows of all epochs as CSV."""
    rows = [epoch.as_dict() for epoch in series]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[-1]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, table.getvalue())
