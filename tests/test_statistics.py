"""Statistics over the cells of a benchmark, against numbers worked out by hand. All records here are made up."""

import re
from typing import Any

import pytest

from ssvd.benchmark.records import Cell, Epoch, Failure, Hypothesis, Origin, Result, Texts
from ssvd.errors import UserError
from ssvd.reports.study import Rate, Row, group_rates, studies
from ssvd.scoring import score, score_by

ORIGIN = Origin(
    hardware="a made-up machine",
    versions={"ssvd": "0.0", "torch": "0.0"},
    commit=None,
    started="2026-01-01T00:00:00Z",
    seconds=60.0,
)


def spoken(said: list[str], speakers: list[str | None] | None = None, reference: str = "a b c d") -> list[Hypothesis]:
    """Hypotheses u0, u1, ... for the same reference."""
    speakers = speakers or [None] * len(said)
    return [
        Hypothesis(id=f"u{n}", speaker=speaker, reference=reference, hypothesis=text)
        for n, (text, speaker) in enumerate(zip(said, speakers, strict=True))
    ]


def scored(texts: list[Hypothesis], by: tuple[str, ...] = ()) -> dict[str, Any]:
    """The score of hypotheses, as a record holds it."""
    records = [{**t.fields, **t.model_dump(include={"reference", "hypothesis", "speaker"})} for t in texts]
    total = score(
        [text.reference for text in texts],
        [text.hypothesis for text in texts],
        speakers=[text.speaker for text in texts],
        resamples=50,
    )
    groups = {f: {v: s.as_dict() for v, s in score_by(records, f, resamples=50).items()} for f in by}
    return total.as_dict() | {"groups": groups}


def made(
    method: str,
    test: list[Hypothesis],
    *,
    budget: str = "",
    seed: int = 0,
    trained: int = 100,
    sources: dict[str, list[Hypothesis]] | None = None,
    by: tuple[str, ...] = (),
    **own: Any,
) -> tuple[Result, dict[tuple[str, str], list[Hypothesis]]]:
    """A result, and its texts."""
    sources = sources or {}
    name = re.sub(r"\W+", "-", f"{method}-{budget}-{seed}")
    cell = Cell(model="tiny", corpus="children", method=method, budget=budget, seed=seed)
    frozen = method == "frozen"
    values: dict[str, Any] = {
        "origin": ORIGIN,
        "options": {"epochs": 2},
        "synthetic": False,
        "setting": None,
        "trainable_parameters": 0 if frozen else trained,
        "model_parameters": 1000,
        "learning_rate": None if frozen else 1e-3,
        "series": [],
        "best_epoch": 0,
        "best_dev_wer": None if frozen else 0.5,
        "training_seconds": 10.0,
        "peak_memory_bytes": 5_000_000,
        "adapter_bytes": 400,
        "normaliser": "none",
        "search": {} if frozen else {"0.0001": 0.7, "0.001": 0.5, "0.01": None},
    }
    result = Result(
        id=name,
        cell=cell,
        test=scored(test, by),
        sources={corpus: scored(texts) for corpus, texts in sources.items()},
        **values | own,
    )
    return result, {(name, "test"): test} | {(name, corpus): texts for corpus, texts in sources.items()}


def epoch(number: int, wer: float, seconds: float) -> Epoch:
    return Epoch(epoch=number, update=number, seconds=seconds, loss=1.0, dev_wer=wer, dev_cer=wer, learning_rate=1e-3)


def together(*parts: tuple[Result, dict[tuple[str, str], list[Hypothesis]]]) -> tuple[list[Result], Texts]:
    texts: dict[tuple[str, str], list[Hypothesis]] = {}
    for _, own in parts:
        texts.update(own)
    return [result for result, _ in parts], texts


def rows(*parts: tuple[Result, dict[tuple[str, str], list[Hypothesis]]]) -> dict[str, Row]:
    (study,) = studies(*together(*parts), resamples=200)
    return {row.name: row for row in study.rows}


RIGHT, ONE, TWO, ALL = "a b c d", "a b c x", "a b x x", "x x x x"


def test_seeds_are_pooled():
    found = rows(
        made("ssvd", spoken([RIGHT, ONE]), budget="p=0.4", seed=0, training_seconds=10.0, best_dev_wer=0.4),
        made("ssvd", spoken([ONE, TWO]), budget="p=0.4", seed=1, training_seconds=30.0, best_dev_wer=0.6),
        made(
            "ssvd", spoken([RIGHT, RIGHT]), budget="p=0.4", seed=2, training_seconds=50.0, peak_memory_bytes=7_000_000
        ),
    )["ssvd p=0.4"]
    assert [result.cell.seed for result in found.results] == [0, 1, 2]
    assert found.wer == pytest.approx((1 + 3 + 0) / 24)
    # WER of the seeds: 1/8, 3/8, 0; their mean 1/6, squares of the differences 1/576, 25/576, 16/576.
    assert found.spread == pytest.approx((42 / 576 / 2) ** 0.5)
    assert (found.training_seconds, found.peak_memory_bytes, found.share) == (30.0, 7_000_000, 0.1)
    assert found.dev_wer == pytest.approx(0.5)


def test_seeds_do_not_narrow_the_interval():
    texts = spoken([RIGHT, ALL] * 10)
    one = rows(made("ssvd", texts))["ssvd"]
    three = rows(*(made("ssvd", texts, seed=seed) for seed in range(3)))["ssvd"]
    assert one.interval == three.interval and one.resampled == three.resampled == "utterances"
    assert (one.spread, three.spread) == (None, 0.0)
    speakers = ["s", "t"] * 10  # one without an error, one with nothing else
    by_speaker = rows(*(made("ssvd", spoken([RIGHT, ALL] * 10, speakers), seed=seed) for seed in range(3)))["ssvd"]
    assert (by_speaker.interval, by_speaker.resampled) == ((0.0, 1.0), "speakers")


def test_comparison_with_lora_is_at_the_same_budget_and_of_the_same_seeds():
    found = rows(
        made("lora", spoken([TWO, TWO]), budget="p=0.1"),
        made("lora", spoken([ONE, ONE]), budget="p=0.4", seed=0),
        made("lora", spoken([ALL, ALL]), budget="p=0.4", seed=2),
        made("ssvd", spoken([RIGHT, RIGHT]), budget="p=0.4", seed=0),
        made("ssvd", spoken([TWO, TWO]), budget="p=0.4", seed=1),
        made("ssvd", spoken([RIGHT, RIGHT]), budget="p=0.9"),
    )
    against = found["ssvd p=0.4"].against_lora
    assert (against.first_wer, against.second_wer, against.difference) == (0.25, 0.0, -0.25)  # of seed 0
    assert against.interval == (-0.25, -0.25)
    assert found["ssvd p=0.9"].against_lora is None and found["lora p=0.4"].against_lora is None
    assert found["ssvd p=0.4"].against_frozen is None and found["ssvd p=0.4"].against_full is None


def test_the_frozen_model_is_the_partner_of_every_seed():
    found = rows(
        made("frozen", spoken([TWO, TWO])),
        made("ssvd", spoken([ONE, ONE]), seed=1),
        made("ssvd", spoken([RIGHT, RIGHT]), seed=2),
    )["ssvd"]
    assert (found.against_frozen.difference, found.against_frozen.utterances) == (-0.375, 4)


def test_recovered_gain():
    frozen, full = made("frozen", spoken([ALL])), made("full", spoken([TWO]))
    assert rows(frozen, full, made("ssvd", spoken([ONE])))["ssvd"].recovered == 1.5
    found = rows(frozen, full, made("ssvd", spoken([ALL])))
    assert [found[name].recovered for name in ("frozen", "full", "ssvd")] == [0.0, 1.0, 0.0]
    assert rows(frozen, made("ssvd", spoken([ONE])))["ssvd"].recovered is None
    assert rows(made("frozen", spoken([TWO])), full, made("ssvd", spoken([ONE])))["ssvd"].recovered is None


def test_gains_are_compared_over_the_seeds_that_both_have():
    frozen = made("frozen", spoken([ALL]))
    full = made("full", spoken([RIGHT]), seed=0), made("full", spoken([TWO]), seed=1)
    found = rows(frozen, *full, made("ssvd", spoken([TWO]), seed=0), made("lora", spoken([ONE]), seed=2))
    assert found["ssvd"].recovered == 0.5 and found["lora"].recovered is None and found["full"].recovered == 1.0
    both = made("lora", spoken([ONE]), seed=0, best_dev_wer=0.5), made("lora", spoken([ONE]), seed=1, best_dev_wer=0.5)
    (study,) = studies(*together(*both, made("ssvd", spoken([ONE]), seed=0, best_dev_wer=0.4)), resamples=50)
    assert study.best.method == "lora"  # the other may owe it to its one seed


def test_forgetting():
    found = rows(
        made("frozen", spoken([TWO]), sources={"adults": spoken([RIGHT, RIGHT]), "radio": spoken([ONE, ONE])}),
        made("ssvd", spoken([ONE]), sources={"adults": spoken([ONE, ONE]), "radio": spoken([RIGHT, RIGHT])}),
        made("lora", spoken([ONE])),
    )
    assert {corpus: change.difference for corpus, change in found["ssvd"].forgetting.items()} == {
        "adults": 0.25,
        "radio": -0.25,
    }
    assert found["ssvd"].forgetting["adults"].interval == (0.25, 0.25)
    assert found["lora"].forgetting == {} and found["frozen"].forgetting == {}


@pytest.mark.parametrize(
    ("rate", "tried", "edge"),
    [
        (1e-3, [1e-4, 1e-3, 1e-2], None),
        (1e-4, [1e-4, 1e-3, 1e-2], "lowest"),
        (1e-2, [1e-4, 1e-3, 1e-2], "highest"),
        (1e-3, [1e-3], "only"),
        (1e-3, [], "only"),
        (None, [], None),
    ],
)
def test_edge_of_the_learning_rates(rate, tried, edge):
    search = {f"{value:g}": 0.5 for value in tried}
    assert rows(made("ssvd", spoken([ONE]), learning_rate=rate, search=search))["ssvd"].edge == edge


def test_a_learning_rate_that_diverged_was_tried():
    search = {"0.0001": 0.5, "0.001": 0.4, "0.01": None}
    assert rows(made("ssvd", spoken([ONE]), learning_rate=1e-3, search=search))["ssvd"].edge is None


def test_pareto_front():
    found = rows(
        made("frozen", spoken([ALL])),
        made("small", spoken([TWO]), trained=10),
        made("beaten", spoken([TWO]), trained=20),
        made("large", spoken([ONE]), trained=50),
        made("twin", spoken([ONE]), trained=50),
        made("worse", spoken([TWO]), trained=50),
    )
    assert [name for name, row in found.items() if row.pareto] == ["frozen", "large", "small", "twin"]


def test_the_best_is_chosen_on_dev():
    (study,) = studies(
        *together(
            made("full", spoken([RIGHT]), best_dev_wer=0.0),
            made("ssvd", spoken([ONE]), best_dev_wer=0.2),
            made("lora", spoken([RIGHT]), best_dev_wer=0.3),
        )
    )
    assert study.best is not None and study.best.method == "ssvd"


def test_group_rates():
    texts = spoken([RIGHT, ONE, TWO, ALL], ["s", "s", "t", "u"])
    for text, age in zip(texts, [6, 9, 9, 12], strict=True):
        text.fields["age"] = age
    results, all_texts = together(*(made("ssvd", texts, seed=seed, by=("age:6-10,11-15",)) for seed in range(2)))
    (study,) = studies(results, all_texts)
    found = group_rates(study.rows[0], "age:6-10,11-15", all_texts)
    assert {value: rate.wer for value, rate in found.items()} == {"6-10": 0.25, "11-15": 1.0}
    assert found["6-10"].interval == (0.125, 0.5)  # speakers s and t; all four draws of two
    assert found["11-15"].interval is None
    for text in texts:
        text.fields.clear()
    assert group_rates(study.rows[0], "age:6-10,11-15", all_texts)["11-15"] == Rate(1.0, None)


def test_failures_of_finished_cells_are_left_out():
    done, all_texts = made("ssvd", spoken([ONE]), budget="p=0.4")
    failures = [
        Failure(id="a", cell=done.cell, learning_rate=1.0, reason="the loss became infinite", origin=ORIGIN),
        Failure(
            id="b", cell=done.cell.model_copy(update={"seed": 1}), learning_rate=None, reason="memory", origin=ORIGIN
        ),
    ]
    (study,) = studies([done], all_texts, failures)
    assert [failure.id for failure in study.failures] == ["b"]


def test_what_cannot_be_pooled_is_refused():
    done, all_texts = made("ssvd", spoken([ONE]))
    with pytest.raises(UserError, match=r"cells/ssvd-0.json and cells/ssvd-0.json are results of the same cell"):
        studies([done, done], all_texts)
    other, more = made("lora", spoken([ONE]), normaliser="basic")
    with pytest.raises(UserError, match=r"normalises by 'none' and cells/lora-0.json by 'basic'"):
        studies([done, other], {**all_texts, **more})


def test_references_without_words_have_no_rates():
    found = rows(made("frozen", spoken(["x"], reference="")), made("ssvd", spoken(["x"], reference="")))
    assert found["ssvd"].wer is None and found["ssvd"].interval is None and found["ssvd"].recovered is None
    assert found["ssvd"].against_frozen is None and not found["ssvd"].results[0].series


def test_studies_are_by_model_and_corpus():
    first, texts = made("frozen", spoken([ONE]))
    cell = first.cell.model_copy(update={"corpus": "accents"})
    second = first.model_copy(update={"id": "other", "cell": cell, "synthetic": True})
    found = studies([first, second], {**texts, ("other", "test"): texts[first.id, "test"]})
    assert [(study.name, study.synthetic) for study in found] == [
        ("tiny on accents", True),
        ("tiny on children", False),
    ]
