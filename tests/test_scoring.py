"""Error rates, intervals, breakdowns and comparisons."""

import json
import math

import jiwer
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssvd.errors import UserError
from ssvd.scoring import compare, normaliser, score, score_by, usual_normaliser
from ssvd.scoring.bootstrap import resample
from ssvd.scoring.word_errors import word_errors

SENTENCE = st.lists(st.sampled_from("abcde"), max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=12)


def test_counts_of_a_case_worked_by_hand():
    result = score(["the cat sat", "a dog"], ["the hat sat down", "dog"])
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 1)
    assert (result.utterances, result.words, result.wer) == (2, 5, 3 / 5)
    # "the cat sat" of 11 characters: c to h, " down" added; "a dog" of 5: "a " lost.
    assert result.cer == pytest.approx((1 + 5 + 2) / 16)


@given(PAIRS)
@settings(max_examples=60, deadline=None)
def test_rates_are_those_of_jiwer(pairs):
    pairs = [pair for pair in pairs if pair[0]]
    assume(pairs)
    references, hypotheses = map(list, zip(*pairs, strict=True))
    result = score(references, hypotheses, resamples=10)
    expected = jiwer.process_words(references, hypotheses)
    assert result.wer == pytest.approx(expected.wer)
    assert (result.substitutions, result.deletions, result.insertions) == (
        expected.substitutions,
        expected.deletions,
        expected.insertions,
    )
    assert result.cer == pytest.approx(jiwer.cer(references, hypotheses))


def test_empty_references_are_left_out_and_counted():
    result = score(["um", "yes", "  "], ["hello there", "yes", "x"], normaliser="english")
    assert (result.utterances, result.empty_references, result.insertions, result.wer) == (1, 2, 0, 0.0)


def test_empty_hypotheses_are_deletions():
    result = score(["a b", "c"], ["", ""])
    assert (result.wer, result.deletions, result.cer) == (1.0, 3, 1.0)


def test_nothing_to_score_is_nan_and_null_in_json():
    result = score([], [])
    assert math.isnan(result.wer) and result.wer_interval is None
    assert json.loads(json.dumps(result.as_dict(), allow_nan=False))["wer"] is None


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="differ in number"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="differ in number"):
        score(["a", "b"], ["a", "b"], speakers=["s"])
    with pytest.raises(ValueError, match="differ in number"):
        score(["a", "b"], ["a", "b"], utterances=["u"])
    with pytest.raises(ValueError, match="differ in number"):
        compare(["a"], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="differ in number"):
        score(["a", "b"], ["a", "b"], trainings=[0])


DUTCH = [
    ("Goedemorgen, MENEER! Hoe gaat het?", "goedemorgen meneer hoe gaat het"),
    ("Eén vóór één, hè? De coëfficiënt van crème.", "een voor een hè de coëfficiënt van crème"),
    ("cafe\u0301", "cafe"),  # a combining accent
    ("ja (lacht) [geluid] <ruis> nee", "ja nee"),
    ("'k Weet 't, 'n beetje z'n m'n; da's voor 'm, u 'ns", "ik weet het een beetje zijn mijn dat is voor hem u eens"),
    ("‘k weet ’t", "ik weet het"),  # as word processors write it
    ("zo'n foto's d'r 's avonds Hans' ‘huis’", "zo'n foto's d'r s avonds hans huis"),
    ("zee-eend, auto-ongeluk, langetermijn, lange termijn", "zee eend auto ongeluk langetermijn lange termijn"),
    ("uh ja euhm mmm, hem en um", "ja hem en"),
    ("2 12 21 32 101 121", "twee twaalf eenentwintig tweeëndertig honderdeen honderdeenentwintig"),
    ("1001 2024 21.500", "duizend een tweeduizend vierentwintig eenentwintigduizend vijfhonderd"),
    ("in 1984 of 1100", "in negentienhonderdvierentachtig of elfhonderd"),
    ("1.000.000 2500000", "een miljoen twee miljoen vijfhonderdduizend"),
    ("tweeduizendvierentwintig duizendpoten", "tweeduizend vierentwintig duizendpoten"),
    ("3,5 en 14.30", "drie komma vijf en veertien dertig"),
    ("1e 3de 8ste 101e 5 eenden", "eerste derde achtste honderdeerste vijf eenden"),
    ("€5,50 € 3 10% Jip & Janneke 1+1", "vijf euro vijftig drie euro tien procent jip en janneke een plus een"),
    ("0475 12 '80 H2O", "nul vier zeven vijf twaalf tachtig h twee o"),
    ("1234567890123", "een twee drie vier vijf zes zeven acht negen nul een twee drie"),
]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *(("dutch", text, expected) for text, expected in DUTCH),
        ("none", " Hello,\tWORLD! ", "Hello, WORLD!"),
        ("basic", "C'est l'ÉTÉ (rire), [bruit]  là!", "c est l été là"),
        ("basic", "Één hűtő, Ж Ω 東京。", "één hűtő ж ω 東京"),
        ("basic", "हिन्दी!", "हिन्दी"),  # vowel signs are marks; Whisper's own settings drop them
        ("english", "Mr. Smith's colour: um, twenty-one", "mister smith is color 21"),
    ],
)
def test_normalisers(name, text, expected):
    assert normaliser(name)(text) == expected


@given(
    st.one_of(st.text(), st.lists(st.sampled_from(["'", "t", "k", " ", "1.0", ",5", "0", "€", "(", "é"])).map("".join))
)
def test_dutch_takes_any_text(text):
    assert not set(normaliser("dutch")(text)) & set(",.€()0123456789")


@pytest.mark.parametrize(
    ("language", "name"), [("en", "english"), ("nl", "dutch"), ("nl-BE", "dutch"), ("fr", "basic"), (None, "basic")]
)
def test_usual_normaliser(language, name):
    assert usual_normaliser(language) == name


def test_unknown_normaliser():
    with pytest.raises(UserError, match="no normaliser 'klingon'; choose one of none, basic, english, dutch"):
        score(["a"], ["a"], normaliser="klingon")


def test_interval_holds_the_rate_and_is_reproducible():
    references = ["a b c d"] * 40
    hypotheses = ["a b c d"] * 20 + ["a b x y"] * 20
    result = score(references, hypotheses, seed=3)
    low, high = result.wer_interval
    assert result.resampled == "utterances" and result.speakers is None
    assert low < result.wer < high
    assert result == score(references, hypotheses, seed=3) != score(references, hypotheses, seed=4)
    # 40 values of 0 or 1/2: the standard error of their mean is 0.0395.
    assert high - low == pytest.approx(2 * 1.96 * 0.0395, rel=0.15)


def test_speakers_are_resampled_and_widen_the_interval():
    references = ["a b c d"] * 40
    hypotheses = ["a b c d"] * 20 + ["a b x y"] * 20  # every error is of speakers 3 and 4
    speakers = [str(number // 10) for number in range(40)]
    by_utterance, by_speaker = score(references, hypotheses), score(references, hypotheses, speakers=speakers)
    assert (by_speaker.resampled, by_speaker.speakers) == ("speakers", 4)
    assert np.ptp(by_speaker.wer_interval) > 1.5 * np.ptp(by_utterance.wer_interval)


@pytest.mark.parametrize("speakers", [["s"] * 3, ["s", "t", None]])
def test_one_speaker_or_an_unknown_one_leaves_utterances(speakers):
    assert score(["a", "b", "c"], ["a", "b", "x"], speakers=speakers).resampled == "utterances"


@pytest.mark.parametrize("speakers", [None, ["s"] * 120])
def test_copies_of_an_utterance_are_drawn_together(speakers):
    references, names = ["a b c d"] * 40, [f"u{number}" for number in range(40)]
    hypotheses, other = ["a b c d"] * 20 + ["a b x y"] * 20, ["a b c y"] * 40
    once = score(references, hypotheses)
    thrice = score(references * 3, hypotheses * 3, speakers=speakers, utterances=names * 3)
    assert (thrice.wer_interval, thrice.resampled, thrice.utterances) == (once.wer_interval, "utterances", 120)
    apart = score(references * 3, hypotheses * 3)
    assert np.ptp(apart.wer_interval) < 0.7 * np.ptp(once.wer_interval)  # 1 / sqrt(3)
    records = [
        {"id": u, "reference": r, "hypothesis": h, "all": 1}
        for u, r, h in zip(names, references, hypotheses, strict=True)
    ]
    assert score_by(records * 3, "all")["1"].wer_interval == once.wer_interval
    paired = compare(references * 3, hypotheses * 3, other * 3, speakers=speakers, utterances=names * 3)
    assert paired.interval == compare(references, hypotheses, other).interval


def test_trainings_that_differ_widen_the_interval():
    """Three trainings with 0, 1 and 2 errors on every utterance: all that varies is the training."""
    references, names = ["a b c d"] * 120, [f"u{number}" for number in range(40)] * 3
    seeds = [seed for seed in range(3) for _ in range(40)]
    hypotheses = [["a b c d", "a b c x", "a b x x"][seed] for seed in seeds]
    pooled = score(references, hypotheses, utterances=names)
    assert pooled.wer_interval == (0.25, 0.25)
    drawn = score(references, hypotheses, utterances=names, trainings=seeds, resamples=5000)
    # Three draws of 0, 1 and 2 out of 4 words: the mean is 0 or 0.5 in 1 of 27 draws each.
    assert drawn.wer == pooled.wer and drawn.wer_interval == (0, 0.5)
    paired = compare(references, references, hypotheses, utterances=names, trainings=seeds, resamples=5000)
    assert paired.interval == drawn.wer_interval and paired.p_value == pytest.approx(2 / 27, abs=0.02)


@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 10))
def test_draws_of_trainings_and_speakers_have_the_variance_of_crossed_factors(trainings, speakers, seed):
    counts = np.random.default_rng(seed).normal(size=(trainings, speakers))
    row = np.repeat(np.arange(trainings), speakers), np.tile(np.arange(speakers), trainings)
    sums = resample(counts.reshape(-1, 1), row[1], row[0], 20_000, seed)[:, 0] / counts.size
    mean = counts.mean()
    of_trainings = ((counts.mean(1) - mean) ** 2).mean() / trainings
    of_speakers = ((counts.mean(0) - mean) ** 2).mean() / speakers
    interaction = (counts - counts.mean(1, keepdims=True) - counts.mean(0) + mean) ** 2
    expected = of_trainings + of_speakers + interaction.mean() / (trainings * speakers)
    assert sums.mean() == pytest.approx(mean, abs=5 * np.sqrt(expected / 20_000))
    assert sums.var() == pytest.approx(expected, rel=0.1)


def test_one_utterance_has_no_interval():
    assert score(["a"], ["b"]).wer_interval is None
    assert compare(["a"], ["b"], ["a"]).p_value is None


RECORDS = [
    {"reference": "a b", "hypothesis": "a b", "age": 7, "speaker": "x"},
    {"reference": "a b", "hypothesis": "a", "age": 10, "speaker": "y"},
    {"reference": "a b", "hypothesis": "", "age": 12, "speaker": "y"},
    {"reference": "a b", "hypothesis": "a b c", "age": 40},
    {"reference": "a b", "hypothesis": "c", "accent": "nl"},
]


def test_breakdown_by_value():
    by_age = score_by(RECORDS, "age")
    assert list(by_age) == ["7", "10", "12", "40", "(unknown)"]
    assert [result.wer for result in by_age.values()] == [0.0, 0.5, 1.0, 0.5, 1.0]
    assert {value: result.utterances for value, result in score_by(RECORDS, "speaker").items()} == {
        "x": 1,
        "y": 2,
        "(unknown)": 2,
    }


def test_breakdown_by_bands():
    by_age = score_by(RECORDS, "age:6-10,11-15")
    assert {label: result.utterances for label, result in by_age.items()} == {
        "6-10": 2,
        "11-15": 1,
        "(other)": 1,
        "(unknown)": 1,
    }
    assert by_age["6-10"].resampled == "speakers"
    with pytest.raises(UserError, match="bands of 'age:young' cannot be read"):
        score_by(RECORDS, "age:young")


def test_breakdown_by_an_unknown_field():
    with pytest.raises(UserError, match=r"field 'dialect'; the fields are: accent, age"):
        score_by(RECORDS, "dialect")


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_parts_of_a_breakdown_sum_to_the_whole(pairs):
    records = [{"reference": r, "hypothesis": h, "part": index % 3} for index, (r, h) in enumerate(pairs)]
    whole = score(*map(list, zip(*pairs, strict=True)), resamples=2)
    parts = score_by(records, "part", resamples=2).values()
    for name in ("utterances", "words", "substitutions", "deletions", "insertions", "empty_references"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)


def test_comparison_finds_a_difference_and_its_direction():
    references = ["a b c d"] * 60
    base, adapted = ["a b x y"] * 60, ["a b c d"] * 30 + ["a b c y"] * 30
    result = compare(references, base, adapted)
    assert (result.first_wer, result.second_wer, result.difference) == (0.5, 0.125, -0.375)
    assert result.interval[0] < -0.375 < result.interval[1] < 0
    assert result.p_value == pytest.approx(2 / 1001)
    back = compare(references, adapted, base)
    assert back.difference == 0.375 and back.interval == pytest.approx([-result.interval[1], -result.interval[0]])


def test_comparison_of_a_system_with_itself():
    result = compare(["a b"] * 5, ["a x"] * 5, ["a x"] * 5)
    assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_pairing_sees_what_two_intervals_hide():
    # Utterances differ far more than the systems do; the second is always one word better.
    references = [" ".join("abcdefghij")] * 30
    base = [" ".join("abcdefghij"[:keep]) for keep in [0, 4, 8] * 10]
    adapted = [" ".join("abcdefghij"[: keep + 1]) for keep in [0, 4, 8] * 10]
    first, second = score(references, base), score(references, adapted)
    assert first.wer_interval[0] < second.wer_interval[1]
    assert compare(references, base, adapted).interval == pytest.approx((-0.1, -0.1))


def test_p_values_are_uniform_where_systems_are_alike():
    rng = np.random.default_rng(0)
    references = ["a b c d e"] * 40

    def noisy() -> list[str]:
        return [
            " ".join(w if keep else "x" for w, keep in zip("abcde", rng.random(5) < 0.7, strict=True))
            for _ in references
        ]

    p_values = [compare(references, noisy(), noisy(), resamples=199).p_value for _ in range(100)]
    assert 0 <= sum(p <= 0.05 for p in p_values) <= 13  # 5 expected
    assert 30 <= sum(p <= 0.5 for p in p_values) <= 70


def test_word_errors_are_counted_word_by_word():
    said = ["the cat sat on the mat", "the cat", "a dog ran", ""]
    heard = ["the hat sat on mat", "there the hat", "a dog", "noise"]
    errors = word_errors(said, heard)
    assert errors.substitutions == {("cat", "hat"): 2}
    assert errors.deletions == {"the": 1, "ran": 1} and errors.insertions == {"there": 1}
    assert errors.said == {"the": 3, "cat": 2, "sat": 1, "on": 1, "mat": 1, "a": 1, "dog": 1, "ran": 1}
    assert errors.as_dict(2) == {
        "substitutions": [{"said": "cat", "recognised": "hat", "count": 2}],
        "deletions": [{"said": "ran", "count": 1}, {"said": "the", "count": 1}],
        "insertions": [{"recognised": "there", "count": 1}],
        "words": [{"said": "cat", "missed": 2, "of": 2}, {"said": "ran", "missed": 1, "of": 1}],
    }
    assert word_errors(["The  Cat"], ["the cat"], normaliser="english").missed() == {}
    assert word_errors([""], ["x"]).as_dict(5)["words"] == []


@given(PAIRS)
@settings(max_examples=30, deadline=None)
def test_word_errors_add_up_to_those_of_the_score(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    total, errors = score(references, hypotheses, resamples=2), word_errors(references, hypotheses)
    counts = [sum(kind.values()) for kind in (errors.substitutions, errors.deletions, errors.insertions, errors.said)]
    assert counts == [total.substitutions, total.deletions, total.insertions, total.words]
