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
from ssvd.recognisers.quantisation import Quantisation
from ssvd.recognisers.vocabulary import Vocabulary

Kind = Literal["encoder and decoder", "CTC", "language-model decoder", "transducer"]
"""How a family of models finds the text."""

COMMANDS = "plan, data check, adapt, evaluate, transcribe, merge"
"""What the tests run of a family that is tested from end to end."""
INTERFACE = "losses, texts, training, merging"
"""What the tests run of a family whose commands are those of a sibling that is tested from end to end."""


class Loader(Protocol):
    """What the class of a family of Transformers checkpoints offers, beside being a `Recogniser`."""

    def from_pretrained(
        self,
        name: str,
        *,
        window: float | None,
        language: str | None,
        task: str,
        quantisation: Quantisation | None = None,
    ) -> Recogniser:
        """Load a checkpoint with its weights; see `ssvd.recognisers.loading.load_model`."""

    def without_weights(self, name: str, *, window: float | None, language: str | None) -> Recogniser:
        """Load what `check` needs of a checkpoint; see `ssvd.recognisers.loading.load_check`."""

    def with_vocabulary(
        self,
        name: str,
        vocabulary: Vocabulary,
        *,
        window: float | None,
        language: str | None,
        has_weights: bool = True,
        quantisation: Quantisation | None = None,
    ) -> Recogniser:
        """Load a checkpoint with a new head; see `Recogniser.with_vocabulary`."""

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


_STATISTICS = "the statistics of its batch normalisation stay those of the checkpoint"
_ALONE = "each utterance is decoded alone, since its padding would change the text"


def _ctc(
    name: str,
    checkpoints: str,
    notes: str = "",
    front_end: str = "; front-end: convolutions",
    random_weights: str = INTERFACE,
) -> Family:
    return Family(name, "CTC", "ctc:Ctc", checkpoints, f"encoder{front_end}", random_weights, notes=notes)


def _writes(
    name: str, kind: Kind, checkpoints: str, front_end: str, notes: str, adapted: str = "encoder, decoder"
) -> Family:
    location = "seq2seq:Seq2Seq" if kind == "encoder and decoder" else "language_models:SpeechLanguageModel"
    adapted += f"; front-end: {front_end}" if front_end else ""
    return Family(name, kind, location, checkpoints, adapted, COMMANDS, notes=notes)


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
    "wav2vec2": _ctc(
        "wav2vec 2.0",
        "facebook/wav2vec2-base-960h, XLSR and XLS-R with a CTC head",
        "MMS, which has an adapter for each language, is refused",
        random_weights=COMMANDS,
    ),
    "hubert": _ctc("HuBERT", "facebook/hubert-large-ls960-ft and others with a CTC head"),
    "wavlm": _ctc(
        "WavLM",
        "microsoft/wavlm-base, -base-plus and -large, fine-tuned with a CTC head",
        "its attention reads weights past their layers, so it is computed by the layers here, the same up to rounding "
        "(the gate of its position bias, 8 numbers a head, is not adapted); "
        "with PEFT alone, call `ssvd.recognisers.wavlm.call_projections` on the network first",
        random_weights=COMMANDS,
    ),
    "wav2vec2-bert": _ctc(
        "wav2vec2-BERT",
        "facebook/w2v-bert-2.0, fine-tuned with a CTC head",
        "reads log-mel features",
        front_end="",
        random_weights=COMMANDS,
    ),
    "parakeet_ctc": _ctc(
        "Parakeet-CTC",
        "nvidia/parakeet-ctc-0.6b and -1.1b",
        "reads log-mel features; writes pieces of words; layers are not dropped in training, whatever its config "
        "says; the statistics of its batch normalisation stay those of the checkpoint",
        random_weights=COMMANDS,
    ),
    "wav2vec2-conformer": _ctc(
        "wav2vec2-conformer",
        "facebook/wav2vec2-conformer-rel-pos-large-960h-ft, -rope-large-960h-ft",
        f"{_ALONE}; the statistics of its batch normalisation stay those of the checkpoint",
    ),
    "unispeech": _ctc("UniSpeech", "microsoft/unispeech-1350-en-90-it-ft-1h and others with a CTC head"),
    "unispeech-sat": _ctc("UniSpeech-SAT", "microsoft/unispeech-sat-base-100h-libri-ft and others with a CTC head"),
    "data2vec-audio": _ctc("data2vec audio", "facebook/data2vec-audio-base-960h, -large-960h", _ALONE),
    "sew": _ctc("SEW", "asapp/sew-tiny-100k-ft-ls100h and others with a CTC head", _ALONE),
    "sew-d": _ctc("SEW-D", "asapp/sew-d-tiny-100k-ft-ls100h and others with a CTC head", _ALONE),
    "lasr_ctc": _ctc(
        "LASR",
        "google/medasr",
        f"reads log-mel features; {_ALONE}; the statistics of its batch normalisation stay those of the checkpoint",
        front_end="",
    ),
    "parakeet_tdt": Family(
        "Parakeet-TDT",
        "transducer",
        "transducer:Transducer",
        "nvidia/parakeet-tdt-0.6b-v3 and others in the layout of Transformers",
        "encoder; projector: of the encoder into the joint network; decoder: of the prediction network into it; "
        "front-end: convolutions",
        COMMANDS,
        notes="reads log-mel features; writes pieces of words; LSTM and embedding of the prediction network, and the "
        "output of the joint network, are not adapted; layers are not dropped in training, whatever its config says; "
        f"{_STATISTICS}",
    ),
    "qwen3_asr": _writes(
        "Qwen3-ASR",
        "language-model decoder",
        "Qwen/Qwen3-ASR-0.6B-hf, Qwen/Qwen3-ASR-1.7B-hf",
        "three convolutions",
        "training needs the language of each utterance; decoding finds it where none is stated",
        "encoder, projector, decoder",
    ),
    "glmasr": _writes(
        "GLM-ASR",
        "language-model decoder",
        "zai-org/GLM-ASR-Nano-2512",
        "two convolutions",
        "reads audio in windows of 30 s",
        "encoder, projector, decoder",
    ),
    "qwen2_audio": _writes(
        "Qwen2-Audio",
        "language-model decoder",
        "Qwen/Qwen2-Audio-7B, Qwen/Qwen2-Audio-7B-Instruct",
        "two convolutions",
        "reads audio in windows of 30 s",
        "encoder, projector, decoder",
    ),
    "moonshine": _writes(
        "Moonshine",
        "encoder and decoder",
        "UsefulSensors/moonshine-tiny, UsefulSensors/moonshine-base",
        "three convolutions",
        f"reads samples, so there are no features to mask; {_ALONE}",
    ),
    "moonshine_streaming": _writes(
        "Moonshine streaming",
        "encoder and decoder",
        "UsefulSensors/moonshine-streaming-tiny, -small and -medium",
        "",
        f"reads samples, so there are no features to mask; {_ALONE}",
    ),
    "canary": _writes(
        "Canary",
        "encoder and decoder",
        "nvidia/canary-1b-v2",
        "convolutions",
        f"needs the language of each utterance; {_STATISTICS}",
    ),
    "cohere_asr": _writes(
        "Cohere ASR",
        "encoder and decoder",
        "Cohere's transcription models",
        "convolutions",
        f"needs the language of each utterance; {_STATISTICS}",
    ),
    "speech_to_text": _writes(
        "Speech2Text",
        "encoder and decoder",
        "facebook/s2t-small-librispeech-asr, -medium and -large",
        "two convolutions",
        f"needs the package sentencepiece; models that translate are refused; {_ALONE}",
    ),
}
"""The supported families of Transformers by `model_type`."""

_UNTRIED = "nobody has tried it here; ask for it"
_TRANSLATES = "it is made to translate, with a vocabulary of many languages and a part that speaks"

REFUSED: Mapping[str, Refused] = {
    "parakeet_rnnt": Refused(
        "Parakeet-RNNT",
        "transducer",
        "its loss needs torchaudio, which this package does without; take the checkpoint of the same encoder that is a "
        "TDT transducer or has a CTC head",
        "parakeet_tdt",
    ),
    "nemotron_asr_streaming": Refused(
        "Nemotron ASR streaming", "transducer", "Transformers has no loss for it", "parakeet_tdt"
    ),
    "nemotron3_5_asr": Refused("Nemotron 3.5 ASR", "transducer", "Transformers has no loss for it", "parakeet_tdt"),
    "granite_speech5_ctc": Refused(
        "Granite Speech 5",
        "CTC",
        "its features need torchaudio, which this package does without",
        "parakeet_ctc",
    ),
    "granite_speech": Refused(
        "Granite Speech",
        "language-model decoder",
        "its features need torchaudio, which this package does without",
        "qwen3_asr",
    ),
    "granite_speech_plus": Refused(
        "Granite Speech Plus",
        "language-model decoder",
        "its features need torchaudio, which this package does without",
        "qwen3_asr",
    ),
    "voxtral": Refused(
        "Voxtral",
        "language-model decoder",
        "its prompt needs mistral-common, which this package does without",
        "qwen3_asr",
    ),
    "voxtral_realtime": Refused(
        "Voxtral Realtime",
        "language-model decoder",
        "it writes while it listens, so text and audio must be aligned to be trained on",
        "qwen3_asr",
    ),
    "kyutai_speech_to_text": Refused(
        "Kyutai speech-to-text",
        "language-model decoder",
        "it writes while it listens, so text and audio must be aligned to be trained on",
        "qwen3_asr",
    ),
    "fun_asr_nano": Refused(
        "Fun-ASR-Nano",
        "language-model decoder",
        "its features need torchaudio, which this package does without",
        "qwen3_asr",
    ),
    "audioflamingo3": Refused("Audio Flamingo 3", "language-model decoder", _UNTRIED, "qwen2_audio"),
    "moss_transcribe_diarize": Refused("MOSS Transcribe", "language-model decoder", _UNTRIED, "qwen3_asr"),
    "phi4_multimodal": Refused("Phi-4 multimodal", "language-model decoder", _UNTRIED, "qwen2_audio"),
    "vibevoice_asr": Refused(
        "VibeVoice-ASR",
        "language-model decoder",
        "it writes who speaks when beside the words, which corpora of utterances do not state",
        "qwen3_asr",
    ),
    "seamless_m4t": Refused("SeamlessM4T", "encoder and decoder", _TRANSLATES, "canary"),
    "seamless_m4t_v2": Refused("SeamlessM4T v2", "encoder and decoder", _TRANSLATES, "canary"),
    "speecht5": Refused("SpeechT5", "encoder and decoder", _UNTRIED, "speech_to_text"),
    "speech-encoder-decoder": Refused(
        "an encoder and a decoder of any two families", "encoder and decoder", _UNTRIED, "speech_to_text"
    ),
    "dia": Refused("Dia", "encoder and decoder", "it speaks and does not listen", "whisper"),
    "vibevoice": Refused("VibeVoice", "language-model decoder", "it speaks and does not listen", "qwen3_asr"),
    "pop2piano": Refused("Pop2Piano", "encoder and decoder", "it writes notes, not words", "whisper"),
}
"""The families of Transformers that are known and refused, by `model_type`."""


ESPNET_FAMILIES = (
    Family(
        "OWSM",
        "encoder and decoder",
        "owsm:Owsm",
        "espnet/owsm_v3.1_ebf and others with an E-Branchformer or Transformer encoder and a decoder",
        "encoder, decoder with its output; front-end: convolutions",
        COMMANDS,
        notes="needs ESPnet; trained by both of its losses, CTC and attention",
    ),
    Family(
        "OWSM-CTC",
        "CTC",
        "owsm:OwsmCtc",
        "espnet/owsm_ctc_v3.1_1B and others",
        "encoder; front-end: convolutions",
        COMMANDS,
        notes="needs ESPnet",
    ),
)
"""The families of ESPnet, whose checkpoints say themselves which they are."""


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
