"""The page of what corpora hold."""

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
    Column("Of it"),
    Column("Utterances", ",d"),
    Column("Hours", ",.2f"),
    Column("Speakers", ",d"),
    Column("Words", ",d"),
    Column("Different words", ",d"),
    Column("Median (s)", ".1f"),
    Column("Longest (s)", ".1f"),
    Column("Characters a second", ".1f"),
)
WHOLE = "all"  # instead of a value of a field


def statistics_page(found: Sequence[Statistics]) -> str:
    """The page as HTML: a table and charts of corpora, beside each other."""
    charts = [
        _distribution("lengths", "Lengths", "seconds", found),
        _distribution("rates", "Speech rates", "characters a second", found),
    ]
    for by in dict.fromkeys(by for one in found for by in one.groups):
        charts.append(_by_field(by, found))
    parts = [
        bullets(_sentences(found)),
        to_html(statistics_table(found), file_name("statistics", *(one.name for one in found))),
        *(chart_section(number, chart, ("statistics",)) for number, chart in enumerate(charts)),
    ]
    title = "Corpora: " + ", ".join(one.name for one in found)
    return html_page(title, parts, charts, styles(one.name for one in found))


def statistics_table(found: Sequence[Statistics]) -> Table:
    """A row for each corpus and for each value of the fields that it is broken down by."""
    rows: list[tuple[Value, ...]] = []
    for one in found:
        rows.append(_row(one.name, WHOLE, one.total))
        for by, parts in one.groups.items():
            rows += [_row(one.name, f"{by.partition(':')[0]} = {value}", part) for value, part in parts.items()]
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


def _sentences(found: Sequence[Statistics]) -> list[str]:
    sentences = []
    for one in found:
        low, high = one.total.length(0.05), one.total.length(0.95)
        sentences.append(
            f"{one.name}: {one.total.seconds / 3600:.2f} hours, {one.total.utterances:,} utterances, "
            f"{len(one.total.speakers) or 'no known'} speakers; nine of ten utterances last {low:.1f} to {high:.1f} s."
        )
        if one.unusable:
            sentences.append(f"{len(one.unusable):,} rows of {one.name} cannot be used and are not counted.")
    return sentences


def _distribution(name: str, title: str, unit: str, found: Sequence[Statistics]) -> Chart:
    """Utterances by length or rate, as numbers and as shares, which compare corpora of different sizes."""
    counts = {one.name: getattr(one.total, name) for one in found}
    width = max(map(bin_width, counts.values()))
    views = []
    for label, shares in (("Utterances", False), ("Shares", True)):
        series = []
        for corpus, count in counts.items():
            points = tuple(
                Point(
                    start + width / 2,
                    100 * n / count.total() if shares else n,
                    name=corpus,
                    lines=(f"{start:g} to {start + width:g} {unit}", f"{n:,} utterances ({n / count.total():.1%})"),
                )
                for start, n in binned(count, width).items()
            )
            series.append(Series(corpus, corpus, points))
        y_title = "utterances (%)" if shares else "utterances"
        views.append(View(label, unit, y_title, tuple(series), bars=True, names="Corpus"))
    return Chart(name, title, f"In steps of {width:g}.", tuple(views))


def _by_field(by: str, found: Sequence[Statistics]) -> Chart:
    field = by.partition(":")[0]
    values = tuple(dict.fromkeys(value for one in found for value in one.groups.get(by, {})))
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
                one.name,
                one.name,
                tuple(
                    Point(value, measure(part), name=one.name, lines=(f"{field} {value}", f"{measure(part):,.4g}"))
                    for value, part in one.groups.get(by, {}).items()
                ),
            )
            for one in found
        ]
        views.append(View(label, field, label.lower(), tuple(series), categories=values, bars=True, names="Corpus"))
    return Chart(file_name(by), f"By {field}", "", tuple(views))
