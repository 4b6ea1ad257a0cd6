"""The options of a fine-tuning run."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Decay = Literal["linear", "cosine", "inverse-sqrt", "none"]
LARGEST_SEED = 2**32 - 1  # of numpy
_LARGEST = 1_000_000_000  # count: within it nothing overflows
_Count = Annotated[int, Field(ge=1, le=_LARGEST)]


class AdaptOptions(BaseModel):
    """Options of a fine-tuning run, as they stand in its `config.yaml`.

    The model checks types and bounds. `ssvd.training.options.checked_options` also checks what a value means, and
    reports all mistakes at once.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(description="Checkpoint to adapt: a folder or a name on the Hugging Face hub.")
    train: list[str] = Field(
        description="Corpus to train on: a table, a Kaldi folder, Lhotse cuts or a Hugging Face dataset; "
        "several are joined."
    )
    dev: list[str] = Field(
        [],
        description="Corpus that decides which epoch is best; by default, a tenth of the training speakers is held "
        "out for it.",
    )
    where: list[str] = Field(
        [], description="Condition on the fields of an utterance, such as 'age<=15'; utterances must meet all of them."
    )
    skip_bad: bool = Field(False, description="Leave out unusable utterances and list them, instead of stopping.")
    method: str = Field(
        "ssvd", description="Fine-tuning method, such as ssvd, 'ssvd strict' or lora; `ssvd plan` lists all."
    )
    budget: str = Field(
        "p=0.4",
        description="Number of parameters to train: p=0.4 (as many as SSVD trains at that portion), 2% (of the model), "
        "750000, or the method's own setting (portion=, rank=, band=, block= or width=).",
    )
    layers: list[str] = Field(
        ["encoder", "projector", "decoder"],
        description="Layers to adapt: encoder, decoder, projector (from an encoder into a language model or a "
        "joint network), front-end (the convolutions that read the features or the audio), all, or a regular "
        "expression of full names.",
    )
    token_stride: _Count = Field(
        1,
        description="Estimate the gradient of SSVD or SVFT from every n-th token: faster, but noisier.",
    )
    also_train: list[str] = Field(
        [], description="Name of further modules to train in full beside the adapter, such as 'layer_norm'."
    )
    vocabulary: str | None = Field(
        None,
        description="File of other symbols to write, such as phones, one a line: a new CTC head is trained beside the "
        "adapter.",
    )
    window: float | None = Field(
        None, description="Length of the model's input in seconds; by default, the model's own (30 for Whisper)."
    )
    language: str | None = Field(
        None, description="Language of utterances that do not state theirs, as a code or a name: 'nl' or 'Dutch'."
    )
    text_style: Literal["auto", "keep", "lower", "upper", "sentence"] = Field(
        "auto",
        description="Letter case and punctuation of the training texts; auto follows the model where the texts are "
        "all in one case.",
    )
    normaliser: str | None = Field(
        None,
        description="Text normaliser for scoring: none, basic, english or dutch; by default, the usual one of the "
        "language.",
    )
    epochs: _Count = Field(10, description="Maximum number of epochs.")
    updates_per_epoch: int | None = Field(
        None,
        ge=1,
        le=_LARGEST,
        description="Optimiser updates per epoch; by default, one pass through the training data.",
    )
    batch_size: _Count = Field(16, description="Number of utterances per batch, of all devices together.")
    batch_seconds: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        None,
        description="Seconds of input per batch, of all devices together, padding included; replaces the batch size. "
        "auto finds the largest batch that fits into the memory of a CUDA GPU.",
    )
    accumulation: _Count = Field(1, description="Number of batches whose gradients are added up for each update.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; by default, one that suits the method."
    )
    warmup: float = Field(0.1, ge=0, le=1, description="Share of all updates in which the learning rate rises.")
    decay: Decay = Field("linear", description="Decay of the learning rate after the warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of AdamW.")
    clip: float = Field(5.0, gt=0, description="Maximum norm of the gradient.")
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the probability that is spread over all tokens; by default, none, or what the "
        "configuration of an OWSM model states.",
    )
    augment: list[str] = Field(
        [],
        description="Augmentation of the training audio: speed=0.9:1.1, vtlp=0.8:1.2, volume=-6:6 (dB), "
        "noise=FOLDER:5:20 (dB) or reverb=FOLDER; a trailing @0.5 applies it to half of the utterances.",
    )
    spec_augment: bool = Field(False, description="Mask frequency bands and time spans of the features in training.")
    patience: _Count = Field(4, description="Number of epochs without a lower dev WER after which training stops.")
    dev_limit: _Count = Field(500, description="Maximum number of dev utterances that are decoded after each epoch.")
    choose_scale: bool = Field(
        False,
        description="After training, choose by dev WER how far to go from the base model to the adapted one: the scale "
        "at which the run is used from then on.",
    )
    keep: list[str] = Field(
        [],
        description="Corpus on which WER may rise by so many points at most, such as 'adults.csv:1.0'; the scale is "
        "chosen under this bound.",
    )
    beams: _Count = Field(1, description="Width of the beam search; 1 is greedy search.")
    fallback: bool = Field(
        True, description="Decode repetitive Whisper output again at higher temperatures, as OpenAI's decoder does."
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="Random seed.")
    workers: int | None = Field(
        None,
        ge=0,
        le=_LARGEST,
        description="Number of processes that read audio for each device; 0 reads it in the main process, which is the "
        "default on a CPU; on a GPU, up to 4.",
    )
    prefetch: _Count = Field(2, description="Number of batches that each of these processes reads ahead.")
    log: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        ["tensorboard"],
        description="Tracker that shows the curves of the run: tensorboard, wandb or mlflow (pip install "
        "'ssvd[wandb]', 'ssvd[mlflow]').",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Device to compute on; auto takes a GPU where there is one."
    )
    devices: int | None = Field(
        None,
        ge=1,
        le=_LARGEST,
        description="Number of devices of each machine, or of processes on its CPU; by default, one, or as many as "
        "torchrun or SLURM have started processes for.",
    )
    nodes: int | None = Field(
        None,
        ge=1,
        le=_LARGEST,
        description="Number of machines; by default, one, or as many as torchrun or SLURM have started processes on.",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="How several devices share the work; ddp gives each the whole model and a part of the batch."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Arithmetic of training and of the decoding after each epoch: auto is mixed precision on a GPU and "
        "float32 on a CPU; bfloat16 is mixed precision, which is faster on some CPUs and slower on others.",
    )
    base_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type of the frozen weights and bases in training; what is trained stays in float32."
    )
    quantise: Literal["8bit", "4bit"] | None = Field(
        None,
        description="Hold the frozen linear layers in 8 or 4 bits, in training and whenever the adapter is used; needs "
        "the extra quantise.",
    )
    checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass instead of keeping them: less memory, slower.",
    )
