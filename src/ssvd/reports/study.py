"""Statistics over the cells of a benchmark: a study for each model and corpus, a row for each method and budget.

Nothing here reads a file. Rates are fractions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, median, stdev
from typing import Literal

from ssvd.benchmark.records import Failure, Result, Texts
from ssvd.errors import UserError
from ssvd.reports.html import Interval
from ssvd.scoring import Comparison, Unit, compare, score, score_by

FROZEN, FULL, LORA = "frozen", "full", "lora"
TEST = "test"


@dataclass(frozen=True)
class Rate:
    """A mean error rate over seeds, and its 95 % bootstrap interval where the texts allow one."""

    wer: float
    interval: Interval | None


@dataclass(frozen=True)
class Row:
    """A method at a budget, its seeds pooled.

    Intervals are 95 % bootstrap intervals over the speakers of the test set, or over its utterances if speakers are not
    known, and over the seeds of training, drawn independently. With few seeds they understate the variation between
    trainings, which `spread` states.

    Attributes:
        method, budget: As in the grid; the budget is "" for the frozen model and full fine-tuning.
        results: One for each seed, in the order of the seeds.
        trainable_parameters, share: Number of trained parameters, and their share of the model's.
        setting: The method's own number at this budget.
        learning_rates: The rates chosen on dev; more than one if seeds differ.
        edge: Whether the chosen rate is the lowest or the highest of those tried, so that the method may be
            under-tuned, or the only one. None if rates on both sides were tried, and for the frozen model.
        wer, cer, dev_wer: Means over the seeds; None if no reference has words, or if dev was not decoded.
        wer_without_fallback: Mean WER of the first search; None where decoding had no fallback or it was not recorded.
        interval: Interval of `wer`; None with fewer than two units.
        resampled: The units of the intervals.
        spread: Sample standard deviation of the WER over seeds; None for one seed.
        against_frozen, against_lora, against_full: Paired differences on the test set, this row minus the frozen model,
            LoRA at the same budget, and full fine-tuning, for the seeds that both have: negative if this row has fewer
            errors. The frozen model is the same for every seed. None if there is no such row, or if it is this one.
        recovered: Gain of this row over the frozen model as a share of the gain of full fine-tuning, for the seeds that
            both have; None if full fine-tuning gained nothing.
        forgetting: Source corpus -> paired difference, this row minus the frozen model: positive if this row makes more
            errors on the domain that the model comes from.
        training_seconds: Median over the seeds.
        peak_memory_bytes, adapter_bytes, orthogonality_error: Largest over the seeds.
        pareto: Whether no other row has at most as many trained parameters and at most the same WER, with one of the
            two lower.
    """

    method: str
    budget: str
    results: tuple[Result, ...]
    trainable_parameters: int
    share: float
    setting: float | None
    learning_rates: tuple[float, ...]
    edge: Literal["lowest", "highest", "only"] | None
    wer: float | None
    wer_without_fallback: float | None
    interval: Interval | None
    resampled: Unit
    spread: float | None
    cer: float | None
    dev_wer: float | None
    against_frozen: Comparison | None
    against_lora: Comparison | None
    against_full: Comparison | None
    recovered: float | None
    forgetting: dict[str, Comparison]
    training_seconds: float
    peak_memory_bytes: int
    adapter_bytes: int
    orthogonality_error: float | None
    pareto: bool = False

    @property
    def name(self) -> str:
        """Return the method and its budget."""
        return f"{self.method} {self.budget}".strip()


@dataclass(frozen=True)
class Study:
    """All methods on one model and corpus.

    Attributes:
        model: Name of the model.
        corpus: Name of the corpus.
        rows: The frozen model, full fine-tuning, then the other methods by name and trained parameters.
        failures: Cells that were never finished, at any learning rate.
        synthetic: Whether any of the speech is synthetic.
    """

    model: str
    corpus: str
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]
    synthetic: bool

    @property
    def name(self) -> str:
        """Return the model and the corpus."""
        return f"{self.model} on {self.corpus}"

    def row(self, method: str, budget: str = "") -> Row | None:
        """Return the row of a method at a budget, if there is one."""
        return next((row for row in self.rows if (row.method, row.budget) == (method, budget)), None)

    @property
    def best(self) -> Row | None:
        """Return the adapted row with the lowest WER on dev; of equal ones, that with the fewest trained parameters.

        Rows with fewer seeds than others are not considered.
        """
        adapted = [row for row in self.rows if is_peft(row.method) and row.dev_wer is not None]
        seeds = max((len(row.results) for row in adapted), default=0)
        adapted = [row for row in adapted if len(row.results) == seeds]
        return min(adapted, key=lambda row: (row.dev_wer or 0.0, row.trainable_parameters), default=None)


def is_peft(method: str) -> bool:
    """Return whether a method trains a part of the model: neither nothing nor everything."""
    return method not in (FROZEN, FULL)


def is_ssvd(method: str) -> bool:
    """Return whether a method is SSVD or a variant of it, such as "ssvd strict"."""
    return method == "ssvd" or method.startswith("ssvd ")


def studies(
    results: Sequence[Result], texts: Texts, failures: Sequence[Failure] = (), *, resamples: int = 1000
) -> list[Study]:
    """Return the studies that results belong to, one for each model and corpus.

    Args:
        results: Finished cells, in any order.
        texts: Hypotheses of every result on the test set, and on its source corpora as far as there are any.
        failures: Cells and trials that could not be computed; those of a study without a finished cell are left out.
        resamples: Number of draws of each bootstrap.

    Raises:
        UserError: Two results are of the same cell, or those of a study normalise differently.
    """
    seen: dict[tuple[str, str, str, str, int], str] = {}
    for result in results:
        cell = result.cell
        key = (cell.model, cell.corpus, cell.method, cell.budget, cell.seed)
        if key in seen:
            raise UserError(
                f"cells/{seen[key]}.json and cells/{result.id}.json are results of the same cell: remove one of them."
            )
        seen[key] = result.id
    ordered = sorted(results, key=lambda result: (result.cell.model, result.cell.corpus))
    of_models_and_corpora = []
    for (model, corpus), members in groupby(ordered, key=lambda result: (result.cell.model, result.cell.corpus)):
        failed = [failure for failure in failures if (failure.cell.model, failure.cell.corpus) == (model, corpus)]
        of_models_and_corpora.append(_study(list(members), texts, failed, resamples))
    return of_models_and_corpora


def group_rates(row: Row, field: str, texts: Texts, *, resamples: int = 1000) -> dict[str, Rate]:
    """Return the WER for each value of a field that the results are broken down by, such as age.

    Args:
        row: The method at a budget.
        field: The field, as `ssvd.scoring.score_by` takes it.
        texts: Hypotheses of every result; if they do not have the field, there are no intervals.
        resamples: Number of draws of the bootstrap.
    """
    records = [
        {**text.fields, "reference": text.reference, "hypothesis": text.hypothesis, "speaker": text.speaker}
        | {"id": text.id}
        for result in row.results
        for text in texts[result.id, TEST]
    ]
    if any(record.get(field.partition(":")[0]) not in (None, "") for record in records):
        trainings = [result.cell.seed for result in row.results for _ in texts[result.id, TEST]]
        scores = score_by(
            records, field, trainings=trainings, normaliser=row.results[0].normaliser, resamples=resamples
        )
        return {value: Rate(s.wer, s.wer_interval) for value, s in scores.items() if not math.isnan(s.wer)}
    means: dict[str, list[float]] = {}
    for result in row.results:
        for value, part in result.test.groups.get(field, {}).items():
            means.setdefault(value, []).extend([] if part.wer is None else [part.wer])
    return {value: Rate(fmean(rates), None) for value, rates in means.items() if rates}


def _study(results: list[Result], texts: Texts, failures: list[Failure], resamples: int) -> Study:
    first = results[0]
    for result in results:
        if result.normaliser != first.normaliser:
            raise UserError(
                f"cells/{first.id}.json normalises by {first.normaliser!r} and cells/{result.id}.json by "
                f"{result.normaliser!r}: their error rates cannot be compared; compute one of them again."
            )
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda result: result.cell.seed):
        grouped.setdefault((result.cell.method, result.cell.budget), []).append(result)
    rows = [_row(grouped, key, texts, resamples) for key in grouped]
    rows = [replace(row, pareto=not any(_dominates(other, row) for other in rows)) for row in rows]
    order = {FROZEN: 0, FULL: 1}
    rows.sort(key=lambda row: (order.get(row.method, 2), row.method, row.trainable_parameters, row.budget))
    done = {(result.cell.method, result.cell.budget, result.cell.seed) for result in results}
    return Study(
        model=first.cell.model,
        corpus=first.cell.corpus,
        rows=tuple(rows),
        failures=tuple(f for f in failures if (f.cell.method, f.cell.budget, f.cell.seed) not in done),
        synthetic=any(result.synthetic for result in results),
    )


def _row(grouped: Mapping[tuple[str, str], list[Result]], key: tuple[str, str], texts: Texts, resamples: int) -> Row:
    results = grouped[key]
    method, budget = key
    frozen, full = grouped.get((FROZEN, "")), grouped.get((FULL, ""))
    lora = None if method in (FROZEN, FULL, LORA) else grouped.get((LORA, budget))
    tested = [(text, result.cell.seed) for result in results for text in texts[result.id, TEST]]
    pooled = score(
        [text.reference for text, _ in tested],
        [text.hypothesis for text, _ in tested],
        speakers=[text.speaker for text, _ in tested],
        utterances=[text.id for text, _ in tested],
        trainings=[seed for _, seed in tested],
        normaliser=results[0].normaliser,
        resamples=resamples,
    )
    rates = [result.test.wer for result in results if result.test.wer is not None]
    errors = [r.orthogonality_error for r in results if r.orthogonality_error is not None]

    def against(others: list[Result] | None, corpus: str = TEST) -> Comparison | None:
        return None if others in (None, results) else _paired(others or [], results, corpus, texts, resamples)

    sources = list(dict.fromkeys(corpus for result in results for corpus in result.sources))
    forgetting = {corpus: against(frozen, corpus) for corpus in sources}
    return Row(
        method=method,
        budget=budget,
        results=tuple(results),
        trainable_parameters=max(result.trainable_parameters for result in results),
        share=max(result.trainable_parameters / result.model_parameters for result in results),
        setting=results[0].setting,
        learning_rates=tuple(sorted({r.learning_rate for r in results if r.learning_rate is not None})),
        edge=_edge(results),
        wer=_mean([result.test.wer for result in results]),
        wer_without_fallback=_mean([result.test.wer_without_fallback for result in results]),
        interval=pooled.wer_interval,
        resampled=pooled.resampled,
        spread=stdev(rates) if len(rates) > 1 else None,
        cer=_mean([result.test.cer for result in results]),
        dev_wer=_mean([result.best_dev_wer for result in results]),
        against_frozen=against(frozen),
        against_lora=against(lora),
        against_full=against(full),
        recovered=_recovered(frozen or [], full or [], results),
        forgetting={corpus: change for corpus, change in forgetting.items() if change is not None},
        training_seconds=median(result.training_seconds for result in results),
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        adapter_bytes=max(result.adapter_bytes for result in results),
        orthogonality_error=max(errors, default=None),
    )


def _paired(first: list[Result], second: list[Result], corpus: str, texts: Texts, resamples: int) -> Comparison | None:
    """Return the error rate of the second minus that of the first, on the utterances and seeds that both have."""
    by_seed = {result.cell.seed: result for result in first}
    frozen = first[0] if first[0].cell.method == FROZEN else None
    pairs = []
    for result in second:
        partner = frozen or by_seed.get(result.cell.seed)
        if partner is not None:
            known = {text.id: text for text in texts.get((partner.id, corpus), ())}
            own = [text for text in texts.get((result.id, corpus), ()) if text.id in known]
            pairs += [(known[text.id], text, result.cell.seed) for text in own]
    if not pairs:
        return None
    comparison = compare(
        [text.reference for _, text, _ in pairs],
        [text.hypothesis for text, _, _ in pairs],
        [text.hypothesis for _, text, _ in pairs],
        speakers=[text.speaker for _, text, _ in pairs],
        utterances=[text.id for _, text, _ in pairs],
        trainings=[seed for _, _, seed in pairs],
        normaliser=second[0].normaliser,
        resamples=resamples,
    )
    return comparison if comparison.words else None


def _edge(results: list[Result]) -> Literal["lowest", "highest", "only"] | None:
    """Return on which edge of the rates tried a chosen rate lies; a rate whose loss became infinite counts as tried."""
    for result in results:
        if result.learning_rate is None:
            continue
        tried = [float(rate) for rate in result.search] or [result.learning_rate]
        below = any(rate < result.learning_rate * (1 - 1e-6) for rate in tried)
        above = any(rate > result.learning_rate * (1 + 1e-6) for rate in tried)
        if not (below and above):
            return "highest" if below else "lowest" if above else "only"
    return None


def _recovered(frozen: list[Result], full: list[Result], results: list[Result]) -> float | None:
    def mean(rows: list[Result], others: list[Result]) -> float | None:
        seeds = {other.cell.seed for other in others}
        return _mean([row.test.wer for row in rows if row.cell.method == FROZEN or row.cell.seed in seeds])

    before, best, after = mean(frozen, full), mean(full, results), mean(results, full)
    if before is None or best is None or after is None or best >= before:
        return None
    return (before - after) / (before - best)


def _dominates(other: Row, row: Row) -> bool:
    if other.wer is None or row.wer is None:
        return False
    costs, other_costs = (row.trainable_parameters, row.wer), (other.trainable_parameters, other.wer)
    return other_costs != costs and other_costs[0] <= costs[0] and other_costs[1] <= costs[1]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
