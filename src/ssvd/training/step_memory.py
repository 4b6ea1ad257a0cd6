"""The memory of a training step, found by going through it with tensors that have a shape and no content."""

import warnings
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PreTrainedModel

from ssvd.spectral import Basis

TOKENS_PER_SECOND = 4  # of text


class _Held(TorchDispatchMode):
    """Counts the bytes that operations hold, beyond tensors that were there before; `peak` is the most at a time."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._before = [tensor.untyped_storage() for tensor in known]  # kept, or another one could get its address
        self._seen: dict[int, Any] = dict.fromkeys(storage._cdata for storage in self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:  # a view
            return

        def drop(_: object) -> None:
            del self._seen[key]
            self.held -= size

        self._seen[key] = weakref.ref(storage, drop)
        self.held += size
        self.peak = max(self.peak, self.held)


def step_inputs(outline: nn.Module, batch_size: int, seconds: float) -> Callable[[], dict[str, Tensor]] | None:
    """Return what makes the inputs of a network for a batch of so many utterances of so many seconds.

    None where it is not known how, which is so for all but Whisper and models that read samples. The outline of Whisper
    is changed to a window of these seconds.
    """
    if not isinstance(outline, PreTrainedModel):
        return None
    config, tokens = outline.config, max(1, round(TOKENS_PER_SECOND * seconds))
    if config.model_type == "whisper":
        encoder = outline.get_encoder()
        positions = min(round(50 * seconds), config.max_source_positions)
        if positions < config.max_source_positions:
            encoder.embed_positions = nn.Embedding(positions, config.d_model, device="meta").requires_grad_(False)
            config.max_source_positions = positions
        length = min(tokens, config.max_target_positions)
        return lambda: {
            "input_features": torch.empty(batch_size, config.num_mel_bins, 2 * positions),
            "decoder_input_ids": torch.zeros(batch_size, length, dtype=torch.long),
        }
    if outline.main_input_name == "input_values":
        samples = 80 * round(200 * seconds)  # whole frames of Moonshine streaming
        if config.is_encoder_decoder:
            return lambda: {
                "input_values": torch.empty(batch_size, samples),
                "decoder_input_ids": torch.zeros(batch_size, tokens, dtype=torch.long),
            }
        return lambda: {"input_values": torch.empty(batch_size, samples)}
    return None


_rand = torch.rand


def _undropped(*size: Any, **options: Any) -> Any:
    """Return 1 for the chance by which LayerDrop leaves out a layer, and else what `torch.rand` returns."""
    return 1.0 if size == ([],) else _rand(*size, **options)


def without_layer_drop() -> AbstractContextManager[Any]:
    """Return a context in which LayerDrop leaves out no layer: the memory of a step is that of all of them."""
    return patch.object(torch, "rand", _undropped)


def step_memory(network: nn.Module, inputs: Callable[[], dict[str, Tensor]], *, autocast: bool = False) -> int | None:
    """Return the most bytes that a training step holds at a time, beyond weights, buffers and the optimiser's moments.

    These are activations, the weights that some methods form, and gradients, in float32 or the dtype of autocast, as on
    a CPU, whose attention does not keep its weights. Layers are not dropped, and features not masked. None where what
    the network computes depends on values.

    Args:
        network: A network on the meta device, ready for training; it is changed.
        inputs: Makes its inputs.
        autocast: Whether it computes in mixed precision, bfloat16.
    """
    # A basis without content cannot be compared with its weight.
    fits = patch.object(Basis, "fits", lambda basis, weight: basis.U.dtype == torch.float32)
    with fits, without_layer_drop(), warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        network.to_empty(device="cpu").train()
        config: Any = network.get_base_model().config if isinstance(network, PeftModel) else network.config
        config.apply_spec_augment = False  # of wav2vec 2.0; others ignore it
        values = inputs()

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = network(**values, **({"use_cache": False} if "decoder_input_ids" in values else {}))
            logits = output.logits.float()
            if "decoder_input_ids" in values:
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), values["decoder_input_ids"].flatten())
            else:
                loss = logits.log_softmax(-1).sum()
            loss.backward()
            network.zero_grad()

        try:
            step()  # layers that read the same input know of each other from the second step on
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None
        held = _Held([*network.parameters(), *network.buffers(), *values.values()])
        with held:
            step()
    return held.peak
