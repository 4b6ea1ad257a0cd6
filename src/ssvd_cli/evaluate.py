"""`ssvd evaluate`."""

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from ssvd_cli.base_model import model_and_rest
from ssvd_cli.decoding import decoding_from
from ssvd_cli.options import (
    Adapter,
    BatchSize,
    Beams,
    By,
    DecodingSeed,
    Device,
    Fallback,
    Json,
    Language,
    Normaliser,
    Run,
    Scale,
    SkipBad,
    Where,
    Window,
)
from ssvd_cli.terminal import Bars, console, errors, list_skipped

if TYPE_CHECKING:
    from ssvd.evaluate import Evaluation
    from ssvd.scoring import Comparison, Score


def evaluate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] CORPUS...",
            help="Base checkpoint (a folder or hub name; not with --run), and the corpora to decode and score.",
        ),
    ],
    run: Run = [],
    adapter: Adapter = [],
    scale: Scale = None,
    where: Where = [],
    by: By = [],
    normaliser: Normaliser = None,
    window: Window = None,
    language: Language = None,
    beams: Beams = 1,
    fallback: Fallback = True,
    seed: DecodingSeed = 0,
    batch_size: BatchSize = 16,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    show_errors: Annotated[
        int,
        typer.Option("--errors", min=0, help="Number of the most frequent word errors of each kind to show."),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the hypotheses.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Page with the errors word by word, and the worst utterances to hear.")
    ] = None,
    audio: Annotated[bool, typer.Option(help="Embed the sound of these utterances in the page.")] = True,
    as_json: Json = False,
) -> None:
    """Measure the error rates of a model and of its adapters.

    Word and character error rates have 95 % bootstrap intervals, and each adapter is compared with the base model.
    """
    model, corpora, adapters = model_and_rest(names, run, adapter, "a corpus", scale)
    from ssvd.evaluate import evaluate as decode_and_score

    with Bars(errors) as progress:
        evaluations, skipped = decode_and_score(
            model,
            corpora,
            adapters=adapters,
            scale=scale,
            where=where,
            by=by,
            normaliser=normaliser,
            window=window,
            language=language,
            decoding=decoding_from(beams, fallback, seed),
            batch_size=batch_size,
            skip_bad=skip_bad,
            device=device,
            out=out,
            page=html,
            audio=audio,
            progress=progress,
        )
    if as_json:
        print(json.dumps([evaluation.as_dict() for evaluation in evaluations], indent=2, ensure_ascii=False))
    else:
        console.print(_scores(evaluations))
        for evaluation in evaluations if show_errors else []:
            console.print(_word_errors(evaluation, show_errors))
    list_skipped(skipped)


_COLUMNS = "corpus", "system", "utt.", "words", "WER", "95 %", "no fallback", "sub/del/ins", "CER"


def _scores(evaluations: "list[Evaluation]") -> Table:
    from ssvd.corpora.sources import short_names
    from ssvd.evaluate import BASE

    has_phones = any(evaluation.score.per is not None for evaluation in evaluations)
    columns = [*_COLUMNS, *(["PER"] if has_phones else []), "change, 95 %, p"]
    table = Table(*columns, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    runs = list(dict.fromkeys(evaluation.system for evaluation in evaluations if evaluation.system != BASE))
    names = {BASE: BASE} | dict(zip(runs, short_names(runs, "adapters"), strict=True))
    for evaluation in evaluations:
        first = evaluation.without_fallback
        without_fallback = "" if first is None or first.wer is None else f"{first.wer:.1%}"
        cells = _cells(evaluation.score, without_fallback, _change(evaluation.comparison))
        name = names[evaluation.system]
        if evaluation.system != BASE and evaluation.scale != 1:
            name += f" at {evaluation.scale:g}"
        table.add_row(evaluation.corpus, name, *cells)
        for field, scores in evaluation.groups.items():
            for value, score in scores.items():
                table.add_row(f"  {field.partition(':')[0]}={value}", "", *_cells(score, "", ""))
    return table


def _word_errors(evaluation: "Evaluation", limit: int) -> Table:
    """Return the most frequent word errors of a system side by side, with their counts."""
    title = escape(f"Word errors of {evaluation.system} on {evaluation.corpus}")
    table = Table("said, recognised", "left out", "put in", "missed", box=box.SIMPLE, title=title)
    found = evaluation.word_errors.as_dict(limit)
    columns = [
        [f"{row['said']}, {row['recognised']}  {row['count']}" for row in found["substitutions"]],
        [f"{row['said']}  {row['count']}" for row in found["deletions"]],
        [f"{row['recognised']}  {row['count']}" for row in found["insertions"]],
        [f"{row['said']}  {row['missed']} of {row['of']}" for row in found["words"]],
    ]
    for cells in zip_longest(*columns, fillvalue=""):
        table.add_row(*map(escape, cells))
    return table


def _cells(score: "Score", without_fallback: str, change: str) -> tuple[str, ...]:
    return (
        str(score.utterances),
        str(score.words),
        f"{score.wer:.1%}",
        _interval(score.wer_interval),
        without_fallback,
        f"{score.substitutions}/{score.deletions}/{score.insertions}",
        f"{score.cer:.1%}",
        *([] if score.per is None else [f"{score.per:.1%}"]),
        change,
    )


def _change(comparison: "Comparison | None") -> str:
    if comparison is None:
        return ""
    if comparison.p_value is None:
        return f"{comparison.difference:+.1%}"
    return f"{comparison.difference:+.1%} {_interval(comparison.interval)} p {comparison.p_value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} .. {100 * interval[1]:.1f}"
