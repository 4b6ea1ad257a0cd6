"""The page of `ssvd data statistics`: what corpora hold."""

from collections.abc import Callable, Sequence

from ssvd.corpora.statistics import Holdings, Statistics, bin_width, binned
from ssvd.reports.html import (
    Chart,
    Column,
    Point,
    Series,
    Table,
    Value,
    View,
    bullets,
    chart_section,
    file_name,
    html_page,
    styles,
    to_html,
)

_COLUMNS = (
    Column("Corpus"),
    Column("Part"),
    Column("Utterances", ",d"),
    Column("Hours", ",.2f"),
    Column("Speakers", ",d"),
    Column("Words", ",d"),
    Column("Different words", ",d"),
    Column("Median (s)", ".1f"),
    Column("Longest (s)", ".1f"),
    Column("Characters a second", ".1f"),
)
WHOLE = "all"  # stands for a whole corpus where a row of a part names a field and its value


def statistics_page(corpora: Sequence[Statistics]) -> str:
    """Return the page as HTML: a table and charts that compare corpora."""
    charts = [
        _distribution("lengths", "Lengths", "seconds", corpora),
        _distribution("rates", "Speech rates", "characters a second", corpora),
    ]
    for by in dict.fromkeys(by for corpus in corpora for by in corpus.groups):
        charts.append(_by_field(by, corpora))
    parts = [
        bullets(_sentences(corpora)),
        to_html(statistics_table(corpora), file_name("statistics", *(corpus.name for corpus in corpora))),
        *(chart_section(number, chart, ("statistics",)) for number, chart in enumerate(charts)),
    ]
    title = "Corpora: " + ", ".join(corpus.name for corpus in corpora)
    return html_page(title, parts, charts, styles(corpus.name for corpus in corpora))


def statistics_table(corpora: Sequence[Statistics]) -> Table:
    """Return a table with a row for each corpus, and for each value of the fields that it is broken down by."""
    rows: list[tuple[Value, ...]] = []
    for corpus in corpora:
        rows.append(_row(corpus.name, WHOLE, corpus.total))
        for by, parts in corpus.groups.items():
            rows += [_row(corpus.name, f"{by.partition(':')[0]} = {value}", part) for value, part in parts.items()]
    return Table(_COLUMNS, tuple(rows))


def _row(name: str, part: str, holdings: Holdings) -> tuple[Value, ...]:
    facts = holdings.as_dict()
    return (
        name,
        part,
        holdings.utterances,
        holdings.seconds / 3600,
        len(holdings.speakers) or None,
        holdings.words,
        len(holdings.vocabulary),
        facts["median_seconds"],
        facts["longest_seconds"],
        facts["characters_a_second"],
    )


def _sentences(corpora: Sequence[Statistics]) -> list[str]:
    sentences = []
    for corpus in corpora:
        low, high = corpus.total.length(0.05), corpus.total.length(0.95)
        speakers = len(corpus.total.speakers) or "no known"
        sentences.append(
            f"{corpus.name}: {corpus.total.seconds / 3600:.2f} hours, {corpus.total.utterances:,} utterances, "
            f"{speakers} speakers; nine of ten utterances last {low:.1f} to {high:.1f} s."
        )
        if corpus.unusable:
            sentences.append(f"{len(corpus.unusable):,} rows of {corpus.name} cannot be used and are not counted.")
    return sentences


def _distribution(name: str, title: str, unit: str, corpora: Sequence[Statistics]) -> Chart:
    """Return the chart of utterances by length or rate, as counts and as shares of each corpus."""
    counts = {corpus.name: getattr(corpus.total, name) for corpus in corpora}
    width = max(map(bin_width, counts.values()))
    views = []
    for label, shares in (("Utterances", False), ("Shares", True)):
        series = []
        for corpus_name, count in counts.items():
            points = tuple(
                Point(
                    start + width / 2,
                    100 * n / count.total() if shares else n,
                    name=corpus_name,
                    lines=(f"{start:g} to {start + width:g} {unit}", f"{n:,} utterances ({n / count.total():.1%})"),
                )
                for start, n in binned(count, width).items()
            )
            series.append(Series(corpus_name, corpus_name, points))
        y_title = "utterances (%)" if shares else "utterances"
        views.append(View(label, unit, y_title, tuple(series), bars=True, names="Corpus"))
    return Chart(name, title, f"In steps of {width:g}.", tuple(views))


def _by_field(by: str, corpora: Sequence[Statistics]) -> Chart:
    field = by.partition(":")[0]
    values = tuple(dict.fromkeys(value for corpus in corpora for value in corpus.groups.get(by, {})))
    measures: tuple[tuple[str, Callable[[Holdings], float]], ...] = (
        ("Hours", lambda part: part.seconds / 3600),
        ("Utterances", lambda part: part.utterances),
        ("Speakers", lambda part: len(part.speakers)),
        ("Median length (s)", lambda part: part.length(0.5)),
    )
    views = []
    for label, measure in measures:
        series = [
            Series(
                corpus.name,
                corpus.name,
                tuple(
                    Point(value, measure(part), name=corpus.name, lines=(f"{field} {value}", f"{measure(part):,.4g}"))
                    for value, part in corpus.groups.get(by, {}).items()
                ),
            )
            for corpus in corpora
        ]
        views.append(View(label, field, label.lower(), tuple(series), categories=values, bars=True, names="Corpus"))
    return Chart(file_name(by), f"By {field}", "", tuple(views))
