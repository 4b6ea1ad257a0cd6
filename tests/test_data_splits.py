"""Selecting and dividing utterances. The cuts here have no audio: none is needed."""

import operator
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from ssvd.corpora.selection import field_value, select
from ssvd.corpora.splits import split_by_speaker, text_overlap
from ssvd.errors import UserError


def cut(name: str, duration: float = 1.0, speaker: str | None = None, text: str = "hello", gender=None, **custom):
    recording = Recording(
        id=name, sources=[], sampling_rate=1000, num_samples=round(duration * 1000), duration=duration
    )
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=duration,
        text=text,
        speaker=speaker,
        gender=gender,
        custom=custom or None,
    )
    return MonoCut(id=name, start=0.0, duration=duration, channel=0, recording=recording, supervisions=[supervision])


CUTS = CutSet.from_cuts(
    [
        cut("a", 2.0, "0005", gender="f", age=6, accent="en-us"),
        cut("b", 8.0, "0006", gender="m", age=15, accent="nl"),
        cut("c", 9.5, "5", gender="f", age=40),
        cut("d", 1.0, None, age="unknown"),
    ]
)


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        ([], "abcd"),
        (["age<=15"], "ab"),
        (["age < 15"], "a"),
        (["age>=15"], "bc"),
        (["age>15.0"], "c"),
        (["age=15"], "b"),
        (["age==15.0"], "b"),
        (["age=unknown"], "d"),
        (["age!=6"], "bcd"),
        (["gender=f"], "ac"),
        (["accent!=en-us"], "b"),  # c and d have no accent
        (["speaker=0005"], "a"),
        (["speaker=5"], "c"),
        (["duration<8"], "ad"),
        (["id=b"], "b"),
        (["gender=f", "age<=15"], "a"),
        (["age>=6", "age<=15", "duration>=8"], "b"),
    ],
)
def test_select(conditions, ids):
    assert "".join(cut.id for cut in select(CUTS, conditions)) == ids


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (
            ["dialect=x"],
            r"'dialect=x' names an unknown field; there are accent, age, duration, gender, id, speaker, text",
        ),
        (["age<=ten"], r"'age<=ten' needs a number and a field of numbers"),
        (["gender<3"], r"'gender<3' needs a number and a field of numbers; gender is f, m"),
        (["gender=F"], r"No utterance is left after the condition 'gender=F'; gender is f, m\."),
        (["duration<1"], r"No utterance is left .* duration goes from 1\.0 to 9\.5"),
        (["age=unknown", "accent=nl"], r"after the condition 'accent=nl'; none that is left has accent"),
        (["age"], "must be a field, one of = != < <= > >=, and a value: age<=15"),
        (["age=>15"], "must be a field"),
        (["=15"], "must be a field"),
        (["age="], "must be a field"),
    ],
)
def test_select_bad_condition(conditions, reason):
    with pytest.raises(UserError, match=reason):
        select(CUTS, conditions)


OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


@given(st.lists(st.integers(0, 20), min_size=1), st.sampled_from(sorted(OPERATORS)), st.integers(0, 20))
@settings(deadline=None)
def test_select_is_a_comparison(ages, symbol, limit):
    cuts = CutSet.from_cuts(cut(str(number), age=age) for number, age in enumerate(ages))
    expected = [str(number) for number, age in enumerate(ages) if OPERATORS[symbol](age, limit)]
    if expected:
        assert [cut.id for cut in select(cuts, [f"age{symbol}{limit}"])] == expected
    else:
        with pytest.raises(UserError, match="No utterance is left"):
            select(cuts, [f"age{symbol}{limit}"])


# Splits

UTTERANCES = st.lists(st.tuples(st.integers(0, 25), st.floats(0.5, 20)), min_size=3, max_size=60).filter(
    lambda rows: len({speaker for speaker, _ in rows}) >= 3
)


def corpus(rows):
    return CutSet.from_cuts(cut(f"u{n}", round(d, 3), f"s{s}", age=s % 7) for n, (s, d) in enumerate(rows))


def ids(parts):
    return {part: {cut.id for cut in cuts} for part, cuts in parts.items()}


def speakers(cuts):
    return {field_value(cut, "speaker") for cut in cuts}


@given(UTTERANCES, st.integers(0, 5), st.sampled_from([None, "age"]), st.randoms())
@settings(max_examples=80, deadline=None)
def test_split_invariants(rows, seed, balance, rng):
    cuts = corpus(rows)
    parts = split_by_speaker(cuts, seed=seed, balance=balance)
    assert list(parts) == ["train", "dev", "test"]
    assert all(len(part) for part in parts.values())
    assert sorted(cut.id for part in parts.values() for cut in part) == sorted(cut.id for cut in cuts)
    assert sum(len(speakers(part)) for part in parts.values()) == len(speakers(cuts))
    shuffled = list(cuts)
    rng.shuffle(shuffled)
    assert ids(split_by_speaker(CutSet.from_cuts(shuffled), seed=seed, balance=balance)) == ids(parts)


@pytest.mark.parametrize("seed", range(5))
def test_split_is_near_the_portions(seed):
    rng = random.Random(seed)
    cuts = corpus([(speaker, rng.uniform(1, 10)) for speaker in range(60) for _ in range(10)])
    total = sum(cut.duration for cut in cuts)
    for portions in ({"train": 0.8, "dev": 0.1, "test": 0.1}, {"a": 50, "b": 30, "c": 20}):
        parts = split_by_speaker(cuts, portions, seed=seed)
        for name, portion in portions.items():
            share = sum(cut.duration for cut in parts[name]) / total
            assert share == pytest.approx(portion / sum(portions.values()), abs=0.03)


def test_split_depends_on_the_seed():
    cuts = corpus([(speaker, 1.0) for speaker in range(20)])
    assert len({frozenset(ids(split_by_speaker(cuts, seed=seed))["test"]) for seed in range(10)}) > 5


def test_split_balanced_by_a_field():
    cuts = CutSet.from_cuts(
        cut(f"{band}{n}", 1.0, f"{band}{n}", band=band)
        for band, count in (("young", 40), ("old", 20))
        for n in range(count)
    )
    parts = split_by_speaker(cuts, {"train": 0.5, "dev": 0.25, "test": 0.25}, balance="band")
    young = {name: sum(field_value(cut, "band") == "young" for cut in part) for name, part in parts.items()}
    old = {name: len(parts[name]) - young[name] for name in parts}
    assert all(abs(young[name] - expected) <= 1 for name, expected in {"train": 20, "dev": 10, "test": 10}.items())
    assert all(abs(old[name] - expected) <= 1 for name, expected in {"train": 10, "dev": 5, "test": 5}.items())


def test_split_is_the_same_in_every_process():
    # Written down once: Python's hash seed, which differs from run to run, must not matter.
    cuts = corpus([(speaker, 1.0 + speaker % 3) for speaker in range(12)])
    assert ids(split_by_speaker(cuts, seed=1))["test"] == {"u6", "u7"}


@pytest.mark.parametrize(
    ("cuts", "options", "reason"),
    [
        (CUTS, {}, "Utterance d has no speaker"),
        (corpus([(1, 1.0), (2, 1.0), (1, 1.0)]), {}, "2 speakers cannot be divided into 3 parts"),
        (corpus([(1, 1.0), (2, 1.0)]), {"portions": {"train": 1.0, "test": 0.0}}, "needs a portion above 0"),
        (corpus([(n, 1.0) for n in range(5)]), {"balance": "accent"}, "Cannot balance by 'accent'; the fields are age"),
    ],
)
def test_split_refused(cuts, options, reason):
    with pytest.raises(UserError, match=reason):
        split_by_speaker(cuts, **options)


def test_text_overlap():
    parts = {
        "train": CutSet.from_cuts([cut("a", text="One two"), cut("b", text="three")]),
        "dev": CutSet.from_cuts([cut("c", text="ONE TWO"), cut("d", text="two")]),
        "test": CutSet.from_cuts([cut("e", text="four")]),
    }
    assert text_overlap(parts) == {"dev": 0.5, "test": 0.0}
