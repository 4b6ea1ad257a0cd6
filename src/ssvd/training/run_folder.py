"""The folder of a fine-tuning run: what is in it, and the adapted model from it.

config.yaml         the options, enough to repeat the run
data/               the utterances as trained and as scored (Lhotse cuts), and skipped.jsonl
adapter/            the best adapter (a PEFT folder); model/ instead after full fine-tuning
base.json           samples of the base model's weights, to refuse another one
checkpoints/        the last state, to continue from
metrics.csv, tensorboard/
hypotheses/dev.jsonl
result.json
"""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from torch import nn

from ssvd.errors import UserError
from ssvd.recognisers.loading import Recogniser, load_model

SAMPLES = 8  # entries of each layer's weight
TOLERANCE = 5e-3  # of the largest sampled entry: bf16 rounds by up to 2e-3


def sample_weights(module: nn.Module, layers: list[str]) -> dict[str, list[float]]:
    """A few entries of the weight of each layer of a model that is not wrapped yet."""
    weights = {name: module.get_parameter(f"{name}.weight").detach().flatten() for name in layers}
    return {name: weight[_sampled(len(weight))].float().tolist() for name, weight in weights.items()}


def _sampled(length: int) -> torch.Tensor:
    return torch.linspace(0, length - 1, SAMPLES).long().clamp(max=length - 1)  # float32 rounds above 2^24


def read_config(run: Path) -> dict[str, Any]:
    """The options of a run.

    Raises:
        UserError: The folder is not that of a run.
    """
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} is not a run folder: it has no config.yaml (`ssvd adapt --out` makes one).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{run}/config.yaml is not YAML ({reason}); correct it, or start a new run.") from None
    if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
        raise UserError(f"{run}/config.yaml does not hold options by name; correct it, or start a new run.")
    return config


def holds_model(run: Path) -> bool:
    """Whether a run has an adapter, or after full fine-tuning a model, to decode with."""
    return (run / "model").is_dir() or (run / "adapter" / "adapter_config.json").is_file()


def load_adapted(
    model: str, run: Path, *, window: float | None = None, language: str | None = None
) -> tuple[Recogniser, dict[str, Any]]:
    """The base model with a run's best adapter active (after full fine-tuning, the run's own model), and its options.

    Args:
        model: The base checkpoint.
        run: The run folder.
        window, language: Override those of the run.

    Raises:
        UserError: The run has no adapter yet, or it was trained on another base model.
    """
    config = read_config(run)
    window, language = window or config.get("window"), language or config.get("language")
    if (run / "model").is_dir():
        return load_model(run / "model", window=window, language=language), config
    speech = load_model(model, window=window, language=language)
    check_run(run, speech.module, model)
    try:
        speech.module = PeftModel.from_pretrained(speech.module, str(run / "adapter"))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise UserError(f"The adapter of {run} does not load onto {model}: {str(error).splitlines()[0]}") from error
    speech.module.eval()
    return speech, config


def check_run(run: Path, module: nn.Module, model: str) -> None:
    """Check that a run has an adapter, and for this base model: by sampled weights.

    Args:
        run: The run folder.
        module: The base model, not wrapped.
        model: Its name.

    Raises:
        UserError: It has none, or one of another base model.
    """
    read_config(run)
    if (run / "model").is_dir():
        return
    if not holds_model(run):
        raise UserError(f"{run} holds no adapter: the run did not decode its dev set; continue it with --resume.")
    try:
        stored = json.loads((run / "base.json").read_text(encoding="utf-8"))
        expected = {name: torch.tensor(values).reshape(SAMPLES) for name, values in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{run}/base.json cannot be read ({error}); copy run folders whole.") from error
    known = dict(module.named_modules())
    other = UserError(
        f"The adapter of {run} was trained on another base model than {model}: "
        f"give the one that its config.yaml names ({read_config(run).get('model')}), with the weights of then."
    )
    if not expected.keys() <= known.keys():
        raise other
    found = sample_weights(module, list(expected))
    for name, values in expected.items():
        difference = torch.tensor(found[name]) - values
        if difference.abs().max() > TOLERANCE * values.abs().max():
            raise other
