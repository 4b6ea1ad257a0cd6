"""Find the largest batch that fits into the memory of a GPU, by training steps on trial."""

import math
from collections.abc import Callable

import lightning
import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_value
from ssvd.errors import UserError
from ssvd.hardware import pick_device
from ssvd.recognisers.decoding import Decoding
from ssvd.recognisers.loading import Recogniser
from ssvd.training.augmentation import Augmenter
from ssvd.training.batches import consecutive
from ssvd.training.data import TrainingData
from ssvd.training.process_group import ProcessGroup
from ssvd.training.step_memory import without_layer_drop
from ssvd_options import AdaptOptions

ROOM = 0.1  # of the memory of the device, left free: batches of many shapes leave gaps between their tensors
_BISECTIONS = 2


def check_searchable(options: AdaptOptions) -> None:
    """Refuse a search where a batch that is too large would not be refused, but end the process.

    Raises:
        UserError: The options ask for one.
    """
    if options.batch_seconds == "auto" and pick_device(options.device).type != "cuda":
        raise UserError(
            "batch_seconds can be auto on a CUDA GPU only, as elsewhere a batch that is too large ends the process: "
            "give a number of seconds; `ssvd plan MODEL --batch-size N --seconds S` shows what a batch takes."
        )


# Lightning's BatchSizeFinder tries whichever batch comes first, doubles a count, and refuses several processes.
def find_batch_seconds(
    speech: Recogniser,
    options: AdaptOptions,
    data: TrainingData,
    augmenter: Augmenter,
    trainer: lightning.Trainer,
    group: ProcessGroup,
) -> float:
    """Return the seconds of the largest batch that fits, of all processes together, and the same in all of them.

    Batches of the longest utterances are doubled until one does not fit into the memory of any device; then the gap is
    halved twice. Each is trained on without an update, with `ROOM` of the memory and what AdamW needs taken beforehand.
    The batch must also fit when dev utterances are decoded, twice as many at a time. Parameters, statistics and random
    states stay as they are; the network is moved to its device.

    Raises:
        UserError: Not even a batch of one utterance fits.
    """
    device, network = trainer.strategy.root_device, speech.module

    def length(cut: Cut) -> float:
        return speech.input_seconds(cut.duration)

    longest = sorted(data.train, key=lambda cut: (-length(cut), -len(field_value(cut, "text")), cut.id))

    def seconds(size: int) -> float:
        exact = size * group.size * length(longest[0])
        return math.ceil(round(100 * exact, 6)) / 100  # not less, or one utterance would be left out

    def train(size: int) -> None:
        network.train()
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # their statistics must stay
                layer.eval()
        batch = speech.collate([augmenter.slowest(cut) for cut in longest[:size]])
        for _ in range(2):  # as gradients are accumulated, and layers that share their input know it from the second on
            with trainer.precision_plugin.forward_context():
                loss = speech.loss(batch, label_smoothing=options.label_smoothing)
            loss.backward()

    def decode(size: int) -> None:
        network.eval()
        rows = consecutive(list(map(length, data.dev)), 1, 2 * seconds(size) / group.size)[0]
        with trainer.precision_plugin.forward_context(), torch.inference_mode():
            speech.transcribe(speech.collate([data.dev[row] for row in rows], text=False), Decoding(options.beams))

    def fits(step: Callable[[int], None], size: int) -> bool:
        fitted, held = True, list[torch.Tensor]()
        try:
            network.to(device)
            held += _taken_beforehand(network, device, group.size)
            step(size)
        except RuntimeError as error:
            if not is_oom_error(error):
                raise
            fitted = False
        # Only now, as the error held the tensors of the step.
        held.clear()
        network.zero_grad()
        garbage_collection_cuda()
        return all(group.gathered(fitted))

    modes = {module: module.training for module in network.modules()}
    with isolate_rng(), without_layer_drop():
        size = largest(lambda size: fits(train, size), math.ceil(len(longest) / group.size))
        while size and not fits(decode, size):
            size //= 2
    for module, is_training in modes.items():
        module.training = is_training
    if not size:
        raise UserError(
            f"The memory is too small for the longest utterance ({longest[0].id}, {longest[0].duration:.1f} s) alone, "
            f"with {ROOM:.0%} left free: save memory by checkpointing, base_dtype or quantise, or use a shorter window "
            "or shorter utterances."
        )
    return seconds(size)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number that fits by doubling from 1, then by halving the gap twice; 0 if none does.

    Args:
        fits: Whether a number fits; if it does, so do all below.
        most: The largest number of interest.
    """
    fitting, failing = 0, 1
    while fits(failing):
        fitting = failing
        if fitting == most:
            return most
        failing = min(2 * failing, most)
    for _ in range(_BISECTIONS):
        middle = (fitting + failing) // 2
        if middle in (fitting, failing):
            break
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return fitting


def _taken_beforehand(network: nn.Module, device: torch.device, processes: int) -> list[torch.Tensor]:
    """Return tensors as large as what a training holds beside a step, and as what stays free."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Two moments, what AdamW computes from them, and the gradients that processes exchange.
    copies = 3 + (processes > 1)
    held = [torch.empty_like(parameter) for parameter in trained for _ in range(copies)]
    if device.type == "cuda":
        room = int(ROOM * torch.cuda.mem_get_info(device)[1])
        held.append(torch.empty(room, dtype=torch.uint8, device=device))
    return held
