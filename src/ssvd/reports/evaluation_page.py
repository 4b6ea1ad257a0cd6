"""The page of `ssvd evaluate`: error rates, errors word by word, and the utterances with the most errors, to hear."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ssvd.corpora.audio import load_audio
from ssvd.corpora.cut import Cut
from ssvd.corpora.selection import field_value
from ssvd.reports.aligned_utterances import LEGEND, SOUNDS_LIMIT, Players, align, utterance_html
from ssvd.reports.html import Column, Table, Value, file_name, html_page, to_html
from ssvd.reports.tables import percents
from ssvd.scoring import Comparison, Score, WordErrors
from ssvd.scoring import normaliser as find_normaliser

WORDS_LIMIT = 300  # rows of a table of words
UTTERANCES_LIMIT = 30
_SAMPLING_RATE = 16_000  # Hz, of embedded recordings


@dataclass(frozen=True)
class EvaluatedSystem:
    """A system on a corpus.

    Attributes:
        name: Its short name.
        texts: What it recognised in each utterance.
        score: Its score.
        word_errors: Its errors word by word.
        comparison: Comparison with the first system; None for that itself.
    """

    name: str
    texts: Sequence[str]
    score: Score
    word_errors: WordErrors
    comparison: Comparison | None


@dataclass(frozen=True)
class EvaluatedCorpus:
    """A corpus and the systems that decoded it.

    Attributes:
        name: Its short name.
        normaliser: Normaliser of all texts.
        cuts: The utterances.
        systems: The systems, the base model first.
    """

    name: str
    normaliser: str
    cuts: Sequence[Cut]
    systems: Sequence[EvaluatedSystem]


def evaluation_page(corpora: Sequence[EvaluatedCorpus], *, audio: bool = True) -> str:
    """Return the page as HTML.

    Args:
        corpora: What was evaluated.
        audio: Whether to embed recordings; everyone who gets the page can hear them.
    """
    players = Players(SOUNDS_LIMIT if audio else 0)
    parts = [to_html(_scores(corpora), "scores")]
    for corpus in corpora:
        parts.append(f"<section><h2>{escape(corpus.name)}</h2>")
        parts.append(_words(corpus))
        parts.append(_confusions(corpus))
        parts.append(_utterances(corpus, players))
        parts.append("</section>")
    title = "Evaluation: " + ", ".join(corpus.name for corpus in corpora)
    return html_page(title, parts, [], {})


def _scores(corpora: Sequence[EvaluatedCorpus]) -> Table:
    columns = (
        Column("Corpus"),
        Column("System"),
        Column("Utterances", ",d"),
        Column("Words", ",d"),
        Column("WER (%)", ".1f"),
        Column("95 % interval", ".1f"),
        Column("Substituted", ",d"),
        Column("Left out", ",d"),
        Column("Put in", ",d"),
        Column("CER (%)", ".1f"),
        Column("Change (points)", "+.1f"),
        Column("95 % interval of the change", "+.1f"),
    )
    rows: list[tuple[Value, ...]] = []
    for corpus in corpora:
        for system in corpus.systems:
            score, change = system.score, system.comparison
            rows.append(
                (
                    corpus.name,
                    system.name,
                    score.utterances,
                    score.words,
                    100 * score.wer,
                    percents(score.wer_interval),
                    score.substitutions,
                    score.deletions,
                    score.insertions,
                    100 * score.cer,
                    None if change is None else 100 * change.difference,
                    None if change is None else percents(change.interval),
                )
            )
    return Table(columns, tuple(rows))


def _words(corpus: EvaluatedCorpus) -> str:
    """Return the words that some system missed: how often each was said, and missed by each system."""
    said = corpus.systems[0].word_errors.said
    missed = [system.word_errors.missed() for system in corpus.systems]
    words = sorted({word for counts in missed for word in counts}, key=lambda word: (-missed[-1][word], word))
    columns = [Column("Word"), Column("Said", ",d")]
    columns += [Column(f"Missed by {system.name}", ",d") for system in corpus.systems]
    rows: list[tuple[Value, ...]] = [
        (word, said[word], *(counts[word] for counts in missed)) for word in words[:WORDS_LIMIT]
    ]
    note = _note(
        "A word counts as missed where another one was recognised in its place, or none.", len(words), len(said)
    )
    return _table("Words", note, Table(tuple(columns), tuple(rows)), file_name(corpus.name, "words"))


def _confusions(corpus: EvaluatedCorpus) -> str:
    """Return the pairs of a word that was said and another that was recognised, by their number in each system."""
    counts = [system.word_errors.substitutions for system in corpus.systems]
    pairs = sorted({pair for counted in counts for pair in counted}, key=lambda pair: (-counts[-1][pair], pair))
    columns = [Column("Said"), Column("Recognised"), *(Column(system.name, ",d") for system in corpus.systems)]
    rows: list[tuple[Value, ...]] = [(*pair, *(counted[pair] for counted in counts)) for pair in pairs[:WORDS_LIMIT]]
    note = _note("How often a word was taken for another.", len(pairs), len(pairs))
    return _table("Confusions", note, Table(tuple(columns), tuple(rows)), file_name(corpus.name, "confusions"))


def _note(sentence: str, found: int, total: int) -> str:
    shown = f" The first {WORDS_LIMIT} of {found:,} are shown." if found > WORDS_LIMIT else ""
    of = f" {found:,} of {total:,} different words were missed at least once." if found < total else ""
    return sentence + of + shown


def _table(title: str, note: str, table: Table, name: str) -> str:
    body = to_html(table, name, is_long=True) if table.rows else "<p>None.</p>"
    return f'<h3>{title}</h3><p class="note">{escape(note)}</p>{body}'


def _utterances(corpus: EvaluatedCorpus, players: Players) -> str:
    """Return the utterances in which the last system has the most word errors."""
    normalise = find_normaliser(corpus.normaliser)
    aligned = []
    for number, cut in enumerate(corpus.cuts):
        if reference := normalise(field_value(cut, "text") or ""):
            texts = [normalise(system.texts[number]) for system in corpus.systems]
            aligned.append((align(cut.id, field_value(cut, "speaker"), reference, texts), cut))
    worst = sorted(aligned, key=lambda pair: (-pair[0].errors[-1], pair[0].words, pair[0].id))[:UTTERANCES_LIMIT]
    names = [system.name for system in corpus.systems]
    shown = [
        utterance_html(utterance, names, _player(cut, players)) for utterance, cut in worst if any(utterance.errors)
    ]
    return (
        f'<h3>Utterances</h3><p class="note">Those with the most word errors of {escape(names[-1])}; texts as '
        f"normalised for scoring. {LEGEND}.</p>{''.join(shown) or '<p>No errors.</p>'}"
    )


def _player(cut: Cut, players: Players) -> str:
    if players.left == 0:
        return ""
    return players.of_samples(load_audio(cut, _SAMPLING_RATE), _SAMPLING_RATE)
