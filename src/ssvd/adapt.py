"""Fine-tune a pretrained recogniser on a corpus by one of the methods, into a run folder."""

import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from ssvd.errors import StoppedError, UserError
from ssvd.files import exclusive, is_disk_error, is_new, write_json, write_whole
from ssvd.hardware import forget_peak_memory, hardware, peak_memory, pick_device
from ssvd.methods import (
    Budget,
    apply_method,
    check_layers,
    find_method,
    linear_shapes,
    parameters,
    trainable_parameters,
)
from ssvd.methods.rank_allocation import pruned_parameters
from ssvd.processes import was_interrupted
from ssvd.recognisers.layers import DECODER, ENCODER, USUAL_GROUPS
from ssvd.recognisers.loading import Recogniser, load_model
from ssvd.recognisers.spec_augment import SpecAugment
from ssvd.recognisers.vocabulary import VOCABULARY, Vocabulary
from ssvd.training.augmentation import Augmenter
from ssvd.training.base_fingerprint import base_fingerprint
from ssvd.training.batch_search import ROOM, check_searchable, find_batch_seconds
from ssvd.training.data import TrainingData, list_skipped, read_data, store_data, stored_data
from ssvd.training.input_start import start_from_inputs
from ssvd.training.launch import PeerError, launch
from ssvd.training.memory import DTYPES, check_quantisable, check_savings, checkpoint_activations, round_frozen
from ssvd.training.module import Adaptation
from ssvd.training.options import CHANGEABLE, changed_options, checked_options
from ssvd.training.placement import Placement, find_placement
from ssvd.training.process_group import ProcessGroup
from ssvd.training.progress import SILENT, Progress
from ssvd.training.results import Epoch, RunResult
from ssvd.training.run_folder import BASE, read_config, vocabulary_of
from ssvd.training.scale_choice import choose_scale, read_kept
from ssvd.training.trainer import build_trainer, prepare_process
from ssvd_options import AdaptOptions

__all__ = ["AdaptOptions", "Epoch", "RunResult", "adapt"]

_LOCK = "run.lock"  # of the operating system, which drops it with the process

# 4 ||K||^2 of the approximate form: at 0.1 the rotated directions are stretched by up to 5 %.
ORTHOGONALITY_LIMIT = 0.1


def adapt(options: AdaptOptions | None, run: Path, *, resume: bool = False, progress: Progress = SILENT) -> RunResult:
    """Fine-tune a recogniser, and return the result of the run.

    An *epoch* is one pass through the data, or `updates_per_epoch` updates. After each, the dev utterances are decoded,
    the best adapter is kept, and the state is written, from which `resume` continues to the same result.

    With several devices, each has a process: those that torchrun or SLURM have started, all of which call this, or new
    ones, for which the script that calls this needs the usual `if __name__ == "__main__":`. The first process alone
    writes, reports, and returns a chosen scale.

    Args:
        options: Options of the run; None to take those of the run that is resumed.
        run: The run folder, which must be new or empty unless `resume`.
        resume: Whether to continue an interrupted run.
        progress: What the run reports to.

    Raises:
        UserError: Options or data are bad, the loss became infinite or undefined, disk or memory are full, the run was
            interrupted, or another process computes it. What was computed before is kept in `run`.
    """
    options = _options_of_run(options, run, resume)
    check_searchable(options)
    placement = find_placement(options)
    if placement.size == 1 or placement.starter != "nobody":
        return _take_part(placement, progress, options, run, resume)
    if placement.rank == 0 and not resume:
        _check_new(run)
    with _interrupts_in_words(run):
        result: RunResult = launch(
            partial(_begin_process, options=options, run=run, resume=resume), placement, progress
        )
    return result


def _begin_process(
    placement: Placement, progress: Progress, options: AdaptOptions, run: Path, resume: bool
) -> RunResult:
    """Take part in a training in a process that is there for nothing else."""
    prepare_process()
    warnings.filterwarnings("ignore", category=FutureWarning)  # such warnings of libraries are for programmers
    return _take_part(placement, progress, options, run, resume)


def _take_part(placement: Placement, progress: Progress, options: AdaptOptions, run: Path, resume: bool) -> RunResult:
    """Take part in a training as one of its processes, or as the only one."""
    progress = progress if placement.rank == 0 else SILENT
    with _ends_of_others_in_words(), ExitStack() as held:
        trainer = build_trainer(options, run, progress, placement)
        group = ProcessGroup(placement, trainer.strategy)
        _check_alike(group, options, f"{trainer.strategy.root_device.type}, {trainer.precision}")
        device = pick_device(options.device)
        forget_peak_memory(device)

        def begin() -> RunResult | None:
            if resume and (run / "result.json").is_file():
                return RunResult.read(run / "result.json")
            if not resume:
                _check_new(run)
            held.enter_context(exclusive(run, _LOCK))
            if not resume:
                _check_new(run)  # another process may have finished a run in it
            return None

        if (finished := group.from_first(begin)) is not None:
            progress.say(f"{run} is complete already.")
            return finished
        if group.size > 1:
            threads = torch.get_num_threads()
            each = f"{threads} thread{'s' * (threads > 1)} each" if device.type == "cpu" else "a GPU each"
            progress.say(f"{group.size} processes share each batch, with {each}.")
        return _fine_tune(options, run, progress, trainer, group)


def _fine_tune(
    options: AdaptOptions, run: Path, progress: Progress, trainer: lightning.Trainer, group: ProcessGroup
) -> RunResult:
    """Fine-tune a recogniser in a folder that no other run uses, from its last state where there is one."""
    last = run / "checkpoints" / "last.ckpt"
    vocabulary = vocabulary_of(run) or (Vocabulary.read(options.vocabulary) if options.vocabulary else None)
    check_quantisable(options)
    speech = load_model(
        options.model,
        window=options.window,
        language=options.language,
        vocabulary=vocabulary,
        quantise=options.quantise,
    )
    layers = speech.adaptable_layers(options.layers)
    _check_budget(speech, layers, options)
    _check_statistics(speech, options, group)
    check_savings(options, speech.module)
    augmenter = Augmenter(options.augment, sampling_rate=speech.sampling_rate, window=speech.window, seed=options.seed)
    data = group.from_first(lambda: stored_data(run) if last.is_file() else read_data(options, speech, progress))
    begins = group.from_first(lambda: not last.is_file())
    kept = read_kept(options) if group.is_first else []
    base = base_fingerprint(speech.module) if group.is_first else {}
    group.first_on_each_machine(lambda: _make_trainable(speech, layers, options))  # others find its bases in the cache
    learning_rate = options.learning_rate or find_method(options.method).learning_rate
    found = None
    if options.batch_seconds == "auto":
        found = find_batch_seconds(speech, options, data, augmenter, trainer, group)
        options = options.model_copy(update={"batch_seconds": found})
    training = Adaptation(speech, options, data, augmenter, run, progress, learning_rate, group)
    if found is not None:
        progress.say(
            f"batch_seconds is {found:.10g}, the most that fits into memory with {ROOM:.0%} left free: up to "
            f"{training.updates:,} updates in {options.epochs} epochs."
        )
    with _interrupts_in_words(run), _stops_in_words(run):
        if begins:
            group.from_first(lambda: _begin_folder(run, options, base, data, progress, vocabulary))
            trainer.validate(training, verbose=False)
            training.write_texts_in_style()
            if find_method(options.method).starts_from_inputs:
                speech.module.to(trainer.strategy.root_device)
                with trainer.precision_plugin.forward_context():
                    start_from_inputs(speech, data.train, options.seed, group)
            group.from_first(lambda: store_data(run, data))
        trainer.fit(training, ckpt_path=None if begins else str(last), weights_only=True)
        peak = max(group.gathered(peak_memory(pick_device(options.device))))
        result = group.from_first(lambda: _result(training, peak, group.size))
        if not group.is_first:
            return result
        if options.choose_scale or kept:
            scale = choose_scale(options, run, data.dev, kept, training.decoding, progress)
            result = result.model_copy(update={"scale": scale})
        _warn(training, result, progress)
        result.write(run / "result.json")
    return result


def _begin_folder(
    run: Path,
    options: AdaptOptions,
    base: dict[str, Any],
    data: TrainingData,
    progress: Progress,
    vocabulary: Vocabulary | None,
) -> None:
    (run / "data").mkdir(parents=True, exist_ok=True)
    write_whole(run / "config.yaml", yaml.safe_dump(options.model_dump(), sort_keys=False))
    write_json(run / BASE, base)
    if vocabulary is not None:
        vocabulary.write(run / VOCABULARY)
    list_skipped(run, data.skipped, progress)


def _options_of_run(options: AdaptOptions | None, run: Path, resume: bool) -> AdaptOptions:
    """Return the options, checked, and those of the run itself where it is resumed."""
    if options is None and not resume:
        raise ValueError("a new run needs options")
    stored = checked_options(read_config(run), f"{run}/config.yaml: ") if resume else None
    if options is None:
        assert stored is not None
        return stored
    options = checked_options(options.model_dump())
    if stored is not None and stored.batch_seconds and options.batch_seconds == "auto":  # it was found at the start
        options = options.model_copy(update={"batch_seconds": stored.batch_seconds})
    if stored is not None and (names := changed_options(options, stored)):
        former = ", ".join(f"{name} was {getattr(stored, name)!r}" for name in names)
        raise UserError(f"{run} was begun with other options ({former}): resume it with those, or start a new run.")
    return options


def _check_new(run: Path) -> None:
    if not is_new(run, re.escape(_LOCK)):
        raise UserError(f"{run} is not empty: resume the run in it, or give another folder.")


def _check_budget(speech: Recogniser, layers: list[str], options: AdaptOptions) -> None:
    """Refuse layers or a budget that the method cannot have, before any corpus is read."""
    method = find_method(options.method)
    usual = USUAL_GROUPS, (ENCODER, DECODER)  # the latter in runs of former versions
    if method.config is None and tuple(options.layers) not in usual:
        raise UserError(f"The method {options.method!r} has no layers to choose: leave layers out, or use an adapter.")
    if not method.can_merge and (options.choose_scale or options.keep):
        raise UserError(
            f"The method {options.method!r} cannot be merged, so it has no scale: leave choose_scale and keep out."
        )
    check_layers(method, speech.module, layers)
    method.setting(linear_shapes(speech.module, layers), Budget.parse(options.budget), parameters(speech.module))


def _check_alike(group: ProcessGroup, options: AdaptOptions, device: str) -> None:
    """Refuse processes that would not compute the same."""
    devices = group.gathered(device)
    if len({*devices}) > 1:
        raise UserError(
            f"The processes would compute on different devices ({'; '.join(sorted({*devices}))}): name one kind with "
            "the option device, or leave out the machines that differ."
        )
    if len({*group.gathered(options.model_dump_json(exclude=CHANGEABLE))}) > 1:
        raise UserError("The processes were started with different options: give all of them the same.")


def _check_statistics(speech: Recogniser, options: AdaptOptions, group: ProcessGroup) -> None:
    """Refuse what would not be learnt as by one process."""
    layers = (layer for layer in speech.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    is_alone = group.size == 1 or pick_device(options.device).type == "cuda"
    if find_method(options.method).config is None and not is_alone and any(layers):
        raise UserError(
            f"The method {options.method!r} trains batch normalisation, whose statistics several processes on a CPU "
            "cannot share: use one process, GPUs, or an adapter."
        )


def _make_trainable(speech: Recogniser, layers: list[str], options: AdaptOptions) -> None:
    """Add the method's adapter to the recogniser's network; the seed determines its random start."""
    torch.manual_seed(options.seed)
    speech.module = apply_method(
        speech.module,
        options.method,
        layers,
        Budget.parse(options.budget),
        [*options.also_train, *speech.untrained],
        options.token_stride,
        # The weights that are decomposed may be rounded a little differently elsewhere.
        options={"basis": "stored"} if options.quantise and options.method.startswith(("ssvd", "svft")) else None,
    )
    round_frozen(speech.module, DTYPES[options.base_dtype])
    if options.checkpointing:
        checkpoint_activations(speech.module)
    speech.spec_augment = SpecAugment() if options.spec_augment else None


@contextmanager
def _interrupts_in_words(run: Path) -> Iterator[None]:
    """Turn Ctrl-C, and what it causes, into a sentence on how to continue."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # Lightning exits on Ctrl-C and on the termination signal, or fails to clean up what is only half set up.
        if not (isinstance(error, SystemExit) or was_interrupted(error)):
            raise
        raise StoppedError("Interrupted", f"resume the run in {run} to continue") from None
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:  # Lightning ignores Ctrl-C from then on
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _ends_of_others_in_words() -> Iterator[None]:
    """Turn the error of a process that waits in vain for another one into a sentence."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        is_lost = isinstance(error, torch.distributed.DistError) or "by peer" in words or "gloo" in words
        if not is_lost:
            raise
        raise PeerError("Another process of the training has ended", "resume the run to continue") from error


@contextmanager
def _stops_in_words(run: Path) -> Iterator[None]:
    """Turn what else stops a run from outside into a sentence on how to continue."""
    try:
        yield
    except UserError as error:  # one from a worker process has its traceback in front
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("ssvd.errors.UserError: ")) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if str(error).startswith("DataLoader worker"):
            raise StoppedError(
                "A process that reads audio was killed, most often for lack of memory",
                f"resume the run in {run} with fewer workers, or with none, to continue",
            ) from error
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise StoppedError(
                "The memory is too small for a batch",
                f"resume the run in {run} on more devices to continue, or start again with a smaller batch_size and "
                "more accumulation",
            ) from error
        if not is_disk_error(error):
            raise
        raise StoppedError(
            f"Could not write to {run} ({error}), whose last complete state is kept",
            "free some space and resume the run to continue",
        ) from error


def _result(training: Adaptation, peak: int, processes: int) -> RunResult:
    """Return the result of a finished training, whose processes held `peak` bytes at most."""
    options, network, best = training.options, training.network, training.best
    device = pick_device(options.device)  # Lightning has taken the network off it
    trained, total, is_adapter = trainable_parameters(network), parameters(network), isinstance(network, PeftModel)
    kept_files = [path for path in training.kept_folder.rglob("*") if path.suffix in (".safetensors", ".pth")]
    result = RunResult(
        model=options.model,
        method=options.method,
        trainable_parameters=trained,
        trainable_share=trained / (total - trained - pruned_parameters(network) if is_adapter else total),
        zero_shot_dev_wer=training.series[0].dev_wer,
        best_epoch=best.epoch,
        best_dev_wer=best.dev_wer,
        normaliser=training.normaliser,
        decoding=training.decoding.as_dict(has_fallback=training.speech.has_fallback),
        text_style=training.text_style,
        learning_rate=training.learning_rate,
        training_seconds=round(training.seconds, 2),
        peak_memory_bytes=peak,
        adapter_bytes=sum(path.stat().st_size for path in kept_files),
        series=training.series,
        hardware=f"{processes} x {hardware(device)}" if processes > 1 else hardware(device),
        versions={name: version(name) for name in ("ssvd", "torch", "transformers", "peft", "lightning")},
    )
    least = training.least_orthogonal()
    return result if least is None else result.model_copy(update={"orthogonality_error": least[1]})


def _warn(training: Adaptation, result: RunResult, progress: Progress) -> None:
    """Report what makes a result doubtful."""
    least = training.least_orthogonal()
    if least and result.method not in ("ssvd strict", "ssvd none") and least[1] > ORTHOGONALITY_LIMIT:
        progress.say(
            f"The inner transformation is not a rotation any more: ||G^T G - I|| is {least[1]:.2f} in {least[0]}. "
            "Lower the learning_rate, or use the method 'ssvd strict'.",
            warning=True,
        )
    allocation, epoch = training.allocation, training.best
    if allocation is not None and result.best_epoch > 0 and epoch.update < allocation.end:
        progress.say(
            f"The best epoch ended at update {epoch.update}, before the ranks were pruned to the budget at update "
            f"{allocation.end}: the adapter has more parameters than those {result.trainable_parameters:,}.",
            warning=True,
        )
    if result.scale == 0:
        progress.say(
            "No scale of the adapter keeps the bounds of keep and improves the dev utterances, so the run is used at "
            "the scale 0, which is the base model. Allow more points, or try a lower learning_rate.",
            warning=True,
        )
    elif result.best_epoch == 0:
        progress.say(
            "No epoch was better on the dev utterances than the model before training, so the adapter that is kept "
            "changes nothing. Try a lower learning_rate or more data.",
            warning=True,
        )
