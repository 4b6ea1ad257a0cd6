"""The families of checkpoints: which are supported, how each was tested, and which are refused and why.

A row for each `model_type` of Transformers' config.json. `docs/reference/families.md` is made from these rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Literal, Protocol, cast

from torch import nn

from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser
from ssvd.recognisers.layers import LayerGroups

Kind = Literal["encoder and decoder", "CTC", "language-model decoder", "transducer"]
"""How a family of models finds the text."""

COMMANDS = "plan, data check, adapt, evaluate, transcribe, merge"
"""What the tests run of a family that is tested from end to end."""


class Loader(Protocol):
    """What the class of a family of Transformers checkpoints offers, beside being a `Recogniser`."""

    def from_pretrained(self, name: str, *, window: float | None, language: str | None, task: str) -> Recogniser:
        """Load a checkpoint with its weights; see `ssvd.recognisers.loading.load_model`."""

    def without_weights(self, name: str, *, window: float | None, language: str | None) -> Recogniser:
        """Load what `check` needs of a checkpoint; see `ssvd.recognisers.loading.load_check`."""

    def outline(self, name: str) -> tuple[nn.Module, LayerGroups]:
        """Return the network without its weights, on the meta device, and its layers."""


@dataclass(frozen=True)
class Family:
    """A family of checkpoints that is supported.

    Attributes:
        name: What people call it.
        kind: How it finds the text.
        location: Module in `ssvd.recognisers` and class, "module:Class".
        checkpoints: Published checkpoints of the family.
        adapted: What `layers` chooses among.
        random_weights: What the tests do with a tiny checkpoint of random weights; "" for none.
        real_weights: Published weights that it was run with; "" for none.
        notes: What else a user should know.
    """

    name: str
    kind: Kind
    location: str
    checkpoints: str
    adapted: str
    random_weights: str
    real_weights: str = ""
    notes: str = ""

    def loader(self) -> Loader:
        """Import and return the class of the family."""
        module, _, name = self.location.partition(":")
        return cast(Loader, getattr(import_module(f"ssvd.recognisers.{module}"), name))


@dataclass(frozen=True)
class Refused:
    """A family of checkpoints that is refused.

    Attributes:
        name: What people call it.
        kind: How it finds the text.
        reason: Why it is refused, as a clause that follows a colon.
        sibling: The `model_type` of the nearest supported family.
    """

    name: str
    kind: Kind
    reason: str
    sibling: str


FAMILIES: Mapping[str, Family] = {
    "whisper": Family(
        "Whisper",
        "encoder and decoder",
        "whisper:Whisper",
        "OpenAI's Whisper and models fine-tuned or distilled from it",
        "encoder, decoder; front-end: two convolutions",
        COMMANDS,
        "OpenAI's tiny.en and base",
        "`--window 8` speeds up training on short utterances",
    ),
    "wav2vec2": Family(
        "wav2vec 2.0",
        "CTC",
        "ctc:Ctc",
        "facebook/wav2vec2-base-960h, XLSR and XLS-R with a CTC head",
        "encoder; front-end: convolutions",
        COMMANDS,
        notes="MMS, which has an adapter for each language, is refused",
    ),
    "hubert": Family(
        "HuBERT",
        "CTC",
        "ctc:Ctc",
        "facebook/hubert-large-ls960-ft and others with a CTC head",
        "encoder; front-end: convolutions",
        COMMANDS,
    ),
}
"""The supported families of Transformers by `model_type`."""

_TRANSDUCER = (
    "training through the transducer of Transformers is not supported; take the CTC checkpoint of the same encoder"
)

REFUSED: Mapping[str, Refused] = {
    "parakeet_tdt": Refused("Parakeet-TDT", "transducer", _TRANSDUCER, "parakeet_ctc"),
    "parakeet_rnnt": Refused("Parakeet-RNNT", "transducer", _TRANSDUCER, "parakeet_ctc"),
}
"""The families of Transformers that are known and refused, by `model_type`."""


def find_family(checkpoint: str, model_type: str) -> Family:
    """Return the family of a `model_type`.

    Args:
        checkpoint: Name of the checkpoint, for the message of an error.
        model_type: As in its config.json.

    Raises:
        UserError: The family is refused, with the reason, or unknown; the message names the nearest supported one.
    """
    if (family := FAMILIES.get(model_type)) is not None:
        return family
    if (refused := REFUSED.get(model_type)) is not None:
        nearest = f" (the nearest supported family is {refused.sibling})" if refused.sibling in FAMILIES else ""
        raise UserError(f"{checkpoint} is a checkpoint of {refused.name}, which is refused: {refused.reason}{nearest}.")
    close = get_close_matches(model_type, FAMILIES, n=1)
    hint = f" (the nearest is {close[0]})" if close else ""
    raise UserError(
        f"The checkpoint {checkpoint} is of the family {model_type!r}; supported: {', '.join(FAMILIES)}{hint}."
    )
