"""The commands of `ssvd`: they parse, call, and print."""

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .errors import UserError

app = typer.Typer(
    help="Adapt speech recognisers to children, dialects and accents with a few percent of their parameters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()
if not console.is_terminal:
    console.width = 160  # no terminal sets a limit, and tables fold at 80
errors = Console(stderr=True, soft_wrap=True)

Where = Annotated[list[str], typer.Option(help="Only utterances that fulfil this, as 'age<=15'; may be repeated.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out bad utterances and list them.")]
Window = Annotated[float | None, typer.Option(help="Seconds of input, where shorter than the model's own (30).")]
Language = Annotated[str | None, typer.Option(help="Of utterances that do not state theirs: 'nl', 'Dutch'.")]
Beams = Annotated[int, typer.Option(min=1, help="Width of beam search; 1 is greedy.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Utterances at once.")]
Budget = Annotated[
    str,
    typer.Option(
        help="p=0.4 (as many parameters as SSVD at that portion), 2% (of the model), 750000, or what the method is "
        "set by: portion=, rank=, band=, block=."
    ),
]
Normaliser = Annotated[
    str | None, typer.Option(help="Of texts before scoring: none, basic or english; default by the model's language.")
]


def run() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries speaking to programmers
    try:
        app(prog_name="ssvd")
    except UserError as error:
        errors.print(f"[red]Error:[/] {_escape(str(error))}", highlight=False)
        sys.exit(2)
    except OSError as error:  # of a file or folder that the user named
        if error.filename is None:
            raise
        errors.print(f"[red]Error:[/] {_escape(f'{error.filename}: {error.strerror}.')}")
        sys.exit(2)
    except SystemExit as error:
        if error.code == 130:  # Typer's answer to Ctrl-C
            errors.print("Interrupted.")
            sys.exit(2)
        raise


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-results"),
    seed: Annotated[int, typer.Option(help="Of the speech and of the training.")] = 0,
) -> None:
    """Adapt the embedded recogniser to synthetic child-like speech, by SSVD and by LoRA, and show what it gained."""
    from .demo import run_demo

    run_demo(out, seed, console)


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A table (CSV, TSV, JSONL), a Kaldi or ESPnet folder, Lhotse cuts.")],
    out: Annotated[Path, typer.Argument(help="Folder for train, dev and test (Lhotse cuts).")],
    where: Where = [],
    split: Annotated[str, typer.Option(help="Shares of train, dev and test, split by speaker.")] = "80/10/10",
    balance: Annotated[str | None, typer.Option(help="A field, such as age, to spread evenly over the parts.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Check a corpus, choose utterances, and split them by speaker, the same way each time."""
    from .data import read_corpus, select, split_by_speaker, text_overlap, write_cuts

    portions = _portions(split)
    corpus = read_corpus(source, skip_bad=skip_bad)
    parts = split_by_speaker(select(corpus.cuts, where), portions, seed, balance=balance)
    overlap = text_overlap(parts) if "train" in parts else {}
    table = Table("part", "utterances", "speakers", "minutes", "texts also in train", "file")
    for name, cuts in parts.items():
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{name}.jsonl.gz"
        write_cuts(cuts, path)
        speakers = len({cut.supervisions[0].speaker for cut in cuts})
        minutes = sum(cut.duration for cut in cuts) / 60
        shared = f"{overlap[name]:.0%}" if name in overlap else ""
        table.add_row(name, str(len(cuts)), str(speakers), f"{minutes:.1f}", shared, str(path))
    console.print(table)
    _list_skipped(corpus.skipped)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="Checkpoint: folder, config.json or hub name; no weights are read.")],
    budget: Budget = "p=0.4",
    tokens: Annotated[int, typer.Option(min=1, help="Of a training step in each layer, for the operations.")] = 8000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What each method would train of a model at a budget, and what that would cost."""
    from .plan import plan_methods

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
        cells = f"{row.trainable_parameters:,}", f"{row.trainable_share:.2%}", _size(row.adapter_bytes)
        table.add_row(row.method, row.setting, *cells, _size(row.optimiser_bytes), f"{row.operations:.2f}")
    console.print(table)
    console.print(
        f"Operations: multiplications of a training step of {tokens:,} tokens in the adapted layers, as a ratio to the "
        "frozen layers. File and optimiser in float32.",
        style="dim",
    )
    for row in planned.methods:
        if row.reason is not None:
            console.print(f"Left out: {_escape(row.reason)}", highlight=False)


@app.command()
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
    accumulation: Annotated[int, typer.Option(help="Batches an update.")] = 1,
    learning_rate: Annotated[float | None, typer.Option(help="Peak; default by the method.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of all updates.")] = 0.1,
    decay: Annotated[str, typer.Option(help="After warm-up: linear, cosine, inverse-sqrt or none.")] = "linear",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = 5.0,
    label_smoothing: Annotated[float, typer.Option(help="Share of probability spread over all tokens.")] = 0.0,
    spec_augment: Annotated[bool, typer.Option(help="Mask bands and stretches of the features in training.")] = False,
    patience: Annotated[int, typer.Option(help="Stop after so many epochs without a better dev WER.")] = 4,
    dev_limit: Annotated[int, typer.Option(help="Dev utterances decoded after each epoch, at most.")] = 500,
    beams: Beams = 1,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read audio; 0 reads in this one.")] = 0,
    device: Device = "auto",
) -> None:
    """Fine-tune a recogniser on a corpus; the best adapter by dev WER stands in OUT/adapter."""
    if model is None and not resume:
        raise UserError("Name the model to adapt: ssvd adapt MODEL --train CORPUS --out RUN.")
    if not train and not resume:
        raise UserError("Name the corpus to train on with --train.")
    from .adapt import AdaptOptions
    from .adapt import adapt as fine_tune
    from .runs import read_config

    given = {
        name: value
        for name, value in context.params.items()
        if name not in ("out", "resume") and getattr(context.get_parameter_source(name), "name", None) != "DEFAULT"
    }
    options = AdaptOptions.checked((read_config(out) if resume else {}) | given)
    result = fine_tune(options, out, resume=resume, console=errors)
    table = Table(show_header=False)
    table.add_row("method", str(result["method"]))
    table.add_row("trained parameters", f"{result['trainable_parameters']:,} ({result['trainable_share']:.2%})")
    table.add_row("dev WER before", f"{result['zero_shot_dev_wer']:.1%}")
    table.add_row("dev WER after", f"{result['best_dev_wer']:.1%} (epoch {result['best_epoch']}, chosen on dev)")
    table.add_row("training", f"{result['training_seconds']:.0f} s")
    table.add_row("adapter", f"{result['adapter_bytes'] / 1e6:.2f} MB in {out}")
    console.print(table)


@app.command()
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
    batch_size: BatchSize = 16,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the hypotheses.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Word and character error rates of a model and of adapters on it, with 95 % bootstrap intervals."""
    from .evaluate import evaluate as decode_and_score

    with errors.status("Reading") as status:
        evaluations, skipped = decode_and_score(
            model,
            corpora,
            adapters=adapter,
            where=where,
            by=by,
            normaliser=normaliser,
            window=window,
            language=language,
            beams=beams,
            batch_size=batch_size,
            skip_bad=skip_bad,
            device=device,
            out=out,
            on_progress=lambda system, corpus, done, of: status.update(f"{system} on {corpus}: {done} of {of}"),
        )
    if as_json:
        print(json.dumps([evaluation.as_dict() for evaluation in evaluations], indent=2, ensure_ascii=False))
    else:
        console.print(_scores(evaluations))
    _list_skipped(skipped)


@app.command()
def transcribe(
    model: Annotated[str, typer.Argument(help="Base checkpoint: folder or hub name.")],
    files: Annotated[list[Path], typer.Argument(help="Audio files of any length.")],
    adapter: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    window: Window = None,
    language: Language = None,
    beams: Beams = 1,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
) -> None:
    """Print the text of audio files."""
    from .transcribe import transcribe_files

    failed = False
    for path, text, error in transcribe_files(
        model, files, adapter, window=window, language=language, beams=beams, batch_size=batch_size, device=device
    ):
        if error is not None:
            errors.print(f"[red]Error:[/] {_escape(error)}", highlight=False)
            failed = failed or not skip_bad
        elif as_json:
            print(json.dumps({"path": str(path), "text": text}, ensure_ascii=False), flush=True)
        else:
            print(text if len(files) == 1 else f"{path}\t{text}", flush=True)
    if failed:
        raise typer.Exit(2)


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="Base checkpoint: folder or hub name.")],
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
) -> None:
    """Write the adapted model as a plain Transformers checkpoint that needs nothing of this package."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; give a new folder.")
    from peft import PeftModel

    from .runs import load_adapted

    # At the model's own window: the adapter changes weights, not the length of the input.
    speech, _ = load_adapted(model, run, window=None, language=None)
    if isinstance(speech.module, PeftModel):
        speech.module = speech.module.merge_and_unload(safe_merge=True)
    speech.save(out)
    console.print(f"{out} holds the merged model; load it with transformers' from_pretrained.")


@app.command()
def benchmark(
    grid: Annotated[Path, typer.Argument(help="What to compare, as YAML; see grids/.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; one that was begun is continued.")] = Path(
        "benchmark-results"
    ),
    small: Annotated[bool, typer.Option("--small", help="On the embedded recogniser and synthetic speech.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    keep_runs: Annotated[bool, typer.Option("--keep-runs", help="Keep the adapters of finished cells.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Compute on Ray: 'local', or the address of a cluster that shares OUT.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="With --ray: share of a GPU for each cell.")] = 0,
    cpus: Annotated[float, typer.Option(min=0, help="With --ray: cores for each cell.")] = 1,
    device: Device = "auto",
) -> None:
    """Compare methods: learning rates chosen on dev, then every seed trained and tested once."""
    from .benchmark.grid import read_grid
    from .benchmark.run import run_benchmark

    read = read_grid(grid, small=small)
    execute = None
    if ray is not None:
        from .benchmark.on_ray import on_ray

        execute = on_ray(ray, gpus, cpus)
    run_benchmark(read, out, device=device, keep_runs=keep_runs, retry=retry, console=console, execute=execute)


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="Folder of `ssvd benchmark`, finished or not.")],
    html: Annotated[Path, typer.Option(help="The page; it opens from disk and asks no network for anything.")] = Path(
        "report.html"
    ),
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG and PDF.")] = None,
    audio: Annotated[bool, typer.Option(help="Put the sound of some utterances into the page.")] = True,
    csv: Annotated[bool, typer.Option("--csv", help="Print the main table as CSV instead.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the main table as LaTeX instead.")] = False,
) -> None:
    """Show the results of a benchmark: one page, and figures for papers."""
    from .benchmark import report as reports

    if csv or latex:
        print(reports.results_csv(results) if csv else reports.results_latex(results))
        return
    reports.write_report(results, html, audio=audio)
    console.print(f"{html} is the page; open it in a browser.", highlight=False)
    if figures is not None:
        written = reports.write_figures(results, figures)
        console.print(f"{figures} holds {len(written)} figures.", highlight=False)


def _portions(split: str) -> dict[str, float]:
    try:
        shares = [float(part) for part in split.split("/")]
    except ValueError:
        shares = []
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 100) > 0.01:
        raise UserError(f"--split {split} is not three shares that add up to 100, as 80/10/10.")
    return {name: share / 100 for name, share in zip(("train", "dev", "test"), shares, strict=True) if share}


def _scores(evaluations: list[Any]) -> Table:
    columns = ("corpus", "system", "utt.", "words", "WER", "95 %", "sub/del/ins", "CER", "change, 95 %, p")
    table = Table(*columns, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for evaluation in evaluations:
        system = Path(evaluation.system).resolve().name
        rows = [(evaluation.corpus, system, evaluation.score, evaluation.comparison)]
        for field, parts in evaluation.groups.items():
            rows += [(f"  {field.partition(':')[0]}={value}", "", part, None) for value, part in parts.items()]
        for corpus, system, score, comparison in rows:
            table.add_row(
                corpus,
                system,
                str(score.utterances),
                str(score.words),
                f"{score.wer:.1%}",
                _interval(score.wer_interval),
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


def _list_skipped(skipped: list[Any]) -> None:
    for item in skipped:
        errors.print(f"left out: {_escape(item.where)}: {_escape(item.reason)}", highlight=False)
    if skipped:
        errors.print(f"{len(skipped)} utterances were left out.")


def _size(size: int | None) -> str:
    """Bytes in words."""
    if not size:
        return ""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
