"""The start of EVA (arXiv 2410.07170): LoRA's A from the directions in which the inputs of each layer vary most."""

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

from ssvd.corpora.cut import Cut
from ssvd.recognisers.decoding import evaluation_mode
from ssvd.recognisers.loading import Recogniser
from ssvd.training.placement import ALONE
from ssvd.training.process_group import ProcessGroup

UTTERANCES = 128  # whose inputs are looked at


class PrincipalDirections:
    """Finds the principal directions of vectors that come in parts of any size, in the memory of a few of them.

    Args:
        count: Number of directions.
        width: Numbers in a vector, at least `count`.
    """

    def __init__(self, count: int, width: int) -> None:
        kept = min(2 * count, width)  # from one part to the next: what is cut off there cannot come back
        is_randomised = 2 * kept <= width
        self._analysis = IncrementalPCA(kept, lowrank=is_randomised, lowrank_seed=0 if is_randomised else None)
        self._count, self._enough = count, 2 * kept if is_randomised else kept
        self._waiting: list[Tensor] = []

    def add(self, vectors: Tensor) -> None:
        """Take further vectors into account, of shape (number, width)."""
        self._waiting.append(vectors.float())
        if sum(map(len, self._waiting)) >= self._enough:
            self._analysis.partial_fit(torch.cat(self._waiting))
            self._waiting.clear()

    def found(self) -> Tensor | None:
        """Return the directions, (count, width), of unit length and the most varied first; None for too few vectors."""
        kept: Tensor | None = getattr(self._analysis, "components_", None)
        return None if kept is None else kept[: self._count].float()


def input_directions(network: nn.Module, passes: Iterable[None]) -> dict[str, Tensor]:
    """Return the principal directions of the inputs of all layers with a LoRA, as many as its rank.

    Layers that saw fewer inputs than four times their rank may be left out.

    Args:
        network: A model with a LoRA, called "default".
        passes: Sends inputs through the network as it is iterated over.

    Returns:
        By the name of the layer, (rank, in), or (in, in) where the rank is above that; on the CPU.
    """
    directions, hooks = dict[str, PrincipalDirections](), []
    for name, layer in network.named_modules():
        if isinstance(layer, LoraLayer):
            rank, width = layer.lora_A["default"].weight.shape
            seen = directions[name] = PrincipalDirections(min(rank, width), width)
            hooks.append(layer.register_forward_pre_hook(partial(_see, seen)))
    try:
        for _ in passes:
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.cpu() for name, seen in directions.items() if (found := seen.found()) is not None}


def _see(directions: PrincipalDirections, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    directions.add(inputs[0].flatten(0, -2))


def start_from_inputs(speech: Recogniser, cuts: Sequence[Cut], seed: int, group: ProcessGroup | None = None) -> None:
    """Set A of each layer's LoRA to the principal directions of the layer's inputs; B stays zero.

    The inputs are those of up to `UTTERANCES` utterances, drawn with `seed`, each read by itself: padding to the
    longest of a batch would count too. Unlike the paper's, all ranks stay as they are, so that layers train as many
    parameters as with LoRA. A layer that these utterances give too few inputs keeps LoRA's random start.

    Args:
        speech: The recogniser, whose network has the LoRA.
        cuts: The training utterances.
        seed: Random seed.
        group: The processes of the training; the first finds the directions for all of them.
    """
    chosen = random.Random(seed).sample(cuts, min(UTTERANCES, len(cuts)))

    def passes() -> Iterator[None]:
        for cut in chosen:
            speech.loss(speech.collate([cut]))
            yield

    with evaluation_mode(speech.module):
        group = group or ProcessGroup(ALONE)
        for name, rows in group.from_first(lambda: input_directions(speech.module, passes())).items():
            layer = speech.module.get_submodule(name)
            assert isinstance(layer, LoraLayer)
            layer.lora_A["default"].weight[: len(rows)] = rows
