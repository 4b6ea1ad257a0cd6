"""The commands around one recogniser: plan, adapt, evaluate, transcribe, merge."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ssvd.errors import StoppedError, UserError
from ssvd_cli.options import (
    BatchSize,
    Beams,
    Budget,
    Device,
    Fallback,
    Language,
    Normaliser,
    Seed,
    SkipBad,
    Where,
    Window,
)
from ssvd_cli.terminal import Bars, console, errors, in_bytes, list_skipped, quiet_lightning


def plan(
    model: Annotated[str, typer.Argument(help="Checkpoint: folder, config.json or hub name; no weights are read.")],
    budget: Budget = "p=0.4",
    tokens: Annotated[int, typer.Option(min=1, help="Of a training step in each layer, for the operations.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What each method would train of a model at a budget, and what that would cost."""
    from ssvd.plan import plan_methods

    planned = plan_methods(model, budget, tokens)
    if as_json:
        print(json.dumps(planned.as_dict(), indent=2))
        return
    title = f"{planned.model}: {planned.parameters:,} parameters, {planned.layers} layers to adapt; budget {budget}"
    table = Table(
        "method", "setting", "trained", "share", "file", "optimiser", "operations", title=title, box=box.SIMPLE
    )
    for row in planned.methods:
        if row.reason is not None:
            continue
        cells = f"{row.trainable_parameters:,}", f"{row.trainable_share:.2%}", in_bytes(row.adapter_bytes)
        table.add_row(row.method, row.setting, *cells, in_bytes(row.optimiser_bytes), f"{row.operations:.2f}")
    console.print(table)
    console.print(
        f"Operations: multiplications of a training step of {tokens:,} tokens in the adapted layers, as a ratio to the "
        "frozen layers. File and optimiser in float32.",
        style="dim",
    )
    for row in planned.methods:
        if row.reason is not None:
            console.print(f"Left out: {escape(row.reason)}", highlight=False)


def adapt(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Checkpoint folder or hub name; not needed with --resume.")
    ] = None,
    train: Annotated[list[str], typer.Option(help="Corpus to train on: a table, Kaldi folder or Lhotse cuts.")] = [],
    dev: Annotated[
        list[str], typer.Option(help="Corpus to choose the epoch by; default: other speakers of train.")
    ] = [],
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("run"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    method: Annotated[str, typer.Option(help="As `ssvd plan` lists them: ssvd, 'ssvd strict', lora, ...")] = "ssvd",
    budget: Budget = "p=0.4",
    token_stride: Annotated[
        int, typer.Option(help="Estimate the gradient of SSVD from every so many tokens: faster, noisier.")
    ] = 1,
    also_train: Annotated[list[str], typer.Option(help="Further modules to train whole, by name: 'layer_norm'.")] = [],
    where: Where = [],
    skip_bad: SkipBad = False,
    window: Window = None,
    language: Language = None,
    text_style: Annotated[str, typer.Option(help="Of labels: auto, keep, lower, upper or sentence.")] = "auto",
    normaliser: Normaliser = None,
    epochs: Annotated[int, typer.Option(help="At most.")] = 10,
    updates_per_epoch: Annotated[int | None, typer.Option(help="Default: one pass through the data.")] = None,
    batch_size: BatchSize = 16,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Seconds of input a batch, padding included, instead of --batch-size.")
    ] = None,
    accumulation: Annotated[int, typer.Option(help="Batches an update.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default by the method.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of all updates.")] = 0.1,
    decay: Annotated[str, typer.Option(help="After warm-up: linear, cosine, inverse-sqrt or none.")] = "linear",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 5.0,
    label_smoothing: Annotated[
        float | None,
        typer.Option(help="Share of probability spread over all tokens; default: none, or what OWSM's config says."),
    ] = None,
    augment: Annotated[
        list[str],
        typer.Option(
            help="Change training audio: speed=0.9:1.1, vtlp=0.8:1.2, volume=-6:6 (dB), noise=FOLDER:5:20 (dB), "
            "reverb=FOLDER; with @0.5 behind, half of it. May be repeated."
        ),
    ] = [],
    spec_augment: Annotated[bool, typer.Option(help="Mask bands and stretches of the features in training.")] = False,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better dev WER.")] = 4,
    dev_limit: Annotated[int, typer.Option(help="Dev utterances decoded after each epoch, at most.")] = 500,
    beams: Beams = 1,
    fallback: Fallback = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read audio; 0 reads in this one.")] = 0,
    prefetch: Annotated[int, typer.Option(help="Batches that each of them reads ahead.")] = 2,
    device: Device = "auto",
) -> None:
    """Fine-tune a recogniser on a corpus; the best adapter by dev WER stands in OUT/adapter."""
    if model is None and not resume:
        raise UserError("Name the model to adapt: ssvd adapt MODEL --train CORPUS --out RUN.")
    if not train and not resume:
        raise UserError("Name the corpus to train on with --train.")
    from ssvd.adapt import adapt as fine_tune
    from ssvd.training.options import checked_options
    from ssvd.training.run_folder import read_config

    given = {
        name: value
        for name, value in context.params.items()
        if name not in ("out", "resume") and getattr(context.get_parameter_source(name), "name", None) != "DEFAULT"
    }
    options = checked_options((read_config(out) if resume else {}) | given)
    quiet_lightning()
    with Bars(errors) as progress:
        try:
            result = fine_tune(options, out, resume=resume, progress=progress)
        except StoppedError as error:
            raise UserError(f"{error}: ssvd adapt --resume --out {out}") from error
    table = Table(show_header=False)
    table.add_row("method", result.method)
    table.add_row("trained parameters", f"{result.trainable_parameters:,} ({result.trainable_share:.2%})")
    table.add_row("dev WER before", f"{result.zero_shot_dev_wer:.1%}")
    table.add_row("dev WER after", f"{result.best_dev_wer:.1%} (epoch {result.best_epoch}, chosen on dev)")
    table.add_row("training", f"{result.training_seconds:.0f} s")
    table.add_row("adapter", f"{result.adapter_bytes / 1e6:.2f} MB in {out}")
    console.print(table)


def evaluate(
    model: Annotated[str, typer.Argument(help="Base checkpoint: folder or hub name.")],
    corpora: Annotated[list[str], typer.Argument(help="Corpora to decode and score.")],
    adapter: Annotated[list[Path], typer.Option(help="Run folder, beside the base model; may be repeated.")] = [],
    where: Where = [],
    by: Annotated[list[str], typer.Option(help="Field to break down by: 'gender', 'age:6-10,11-15'.")] = [],
    normaliser: Normaliser = None,
    window: Window = None,
    language: Language = None,
    beams: Beams = 1,
    fallback: Fallback = True,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the hypotheses.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Word and character error rates of a model and of adapters on it, with 95 % bootstrap intervals."""
    from ssvd.evaluate import evaluate as decode_and_score

    with Bars(errors) as progress:
        evaluations, skipped = decode_and_score(
            model,
            corpora,
            adapters=adapter,
            where=where,
            by=by,
            normaliser=normaliser,
            window=window,
            language=language,
            decoding=_decoding(beams, fallback, seed),
            batch_size=batch_size,
            skip_bad=skip_bad,
            device=device,
            out=out,
            progress=progress,
        )
    if as_json:
        print(json.dumps([evaluation.as_dict() for evaluation in evaluations], indent=2, ensure_ascii=False))
    else:
        console.print(_scores(evaluations))
    list_skipped(skipped)


def transcribe(
    model: Annotated[str, typer.Argument(help="Base checkpoint: folder or hub name.")],
    files: Annotated[list[Path], typer.Argument(help="Audio files of any length.")],
    adapter: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    window: Window = None,
    language: Language = None,
    beams: Beams = 1,
    fallback: Fallback = True,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
) -> None:
    """Print the text of audio files."""
    from ssvd.transcribe import transcribe_files

    failed = False
    decoding = _decoding(beams, fallback, seed)
    for path, text, error in transcribe_files(
        model, files, adapter, window=window, language=language, decoding=decoding, batch_size=batch_size, device=device
    ):
        if error is not None:
            errors.print(f"[red]Error:[/] {escape(error)}", highlight=False)
            failed = failed or not skip_bad
        elif as_json:
            print(json.dumps({"path": str(path), "text": text}, ensure_ascii=False), flush=True)
        else:
            print(text if len(files) == 1 else f"{path}\t{text}", flush=True)
    if failed:
        raise typer.Exit(2)


def merge(
    model: Annotated[str, typer.Argument(help="Base checkpoint: folder or hub name.")],
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
) -> None:
    """Write the adapted model as a plain checkpoint of Transformers or ESPnet that needs nothing of this package."""
    from ssvd.merge import merge as write_merged

    write_merged(model, run, out)
    console.print(f"{out} holds the merged model; load it with transformers' from_pretrained.")


def _decoding(beams: int, fallback: bool, seed: int) -> Any:
    from ssvd.recognisers.decoding import Decoding
    from ssvd.recognisers.decoding import Fallback as Rules

    return Decoding(beams, fallback=Rules(seed=seed) if fallback else None)


def _scores(evaluations: list[Any]) -> Table:
    from ssvd.corpora.sources import short_names
    from ssvd.evaluate import BASE

    columns = (
        "corpus",
        "system",
        "utt.",
        "words",
        "WER",
        "95 %",
        "no fallback",
        "sub/del/ins",
        "CER",
        "change, 95 %, p",
    )
    table = Table(*columns, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    runs = list(dict.fromkeys(evaluation.system for evaluation in evaluations if evaluation.system != BASE))
    names = {BASE: BASE} | dict(zip(runs, short_names(runs, "adapters"), strict=True))
    for evaluation in evaluations:
        system = names[evaluation.system]
        rows = [(evaluation.corpus, system, evaluation.score, evaluation.without_fallback, evaluation.comparison)]
        for field, parts in evaluation.groups.items():
            rows += [(f"  {field.partition(':')[0]}={value}", "", part, None, None) for value, part in parts.items()]
        for corpus, system, score, first, comparison in rows:
            table.add_row(
                corpus,
                system,
                str(score.utterances),
                str(score.words),
                f"{score.wer:.1%}",
                _interval(score.wer_interval),
                "" if first is None or first.wer is None else f"{first.wer:.1%}",
                f"{score.substitutions}/{score.deletions}/{score.insertions}",
                f"{score.cer:.1%}",
                ""
                if comparison is None
                else f"{comparison.difference:+.1%} {_interval(comparison.interval)} p {comparison.p_value:.3f}"
                if comparison.p_value is not None
                else f"{comparison.difference:+.1%}",
            )
    return table


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} .. {100 * interval[1]:.1f}"
