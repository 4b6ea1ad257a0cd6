"""Texts that repeat themselves or were guessed are searched for again: Whisper's fallback."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssvd.corpora.corpus import read_corpus
from ssvd.recognisers.decoding import Attempt, Decoding, Fallback
from ssvd.recognisers.loading import load_model
from ssvd.scoring import score

GREEDY = Decoding(fallback=None)
LOOP = "Five join I zero. " * 12


def test_a_text_that_repeats_itself_is_rejected_and_a_plain_one_is_not():
    rules = Fallback()
    assert not rules.accepts(Attempt(LOOP, -0.1, 0.0))
    assert rules.accepts(Attempt("Five, three, nine, zero.", -0.1, 0.0))
    assert not rules.accepts(Attempt("Five, three, nine, zero.", -1.5, 0.0))


def test_an_unlikely_text_where_nobody_speaks_is_silence():
    rules = Fallback()
    assert rules.accepts(Attempt("Thank you.", -1.5, 0.9)) and rules.choose([Attempt("Thank you.", -1.5, 0.9)]) == ""
    assert rules.choose([Attempt("Thank you.", -0.2, 0.9)]) == "Thank you."  # the model is sure of it


def test_where_every_search_is_rejected_the_likeliest_without_a_loop_is_taken():
    rules = Fallback()
    attempts = [Attempt(LOOP, -0.1, 0.0), Attempt("five join", -1.4, 0.0), Attempt("nonsense", -2.0, 0.0)]
    assert rules.choose(attempts) == "five join"
    assert rules.choose(attempts[:1]) == LOOP  # nothing else is there


@given(st.text(max_size=40), st.integers(0, 5), st.sampled_from([0.2, 1.0]))
def test_the_random_numbers_of_a_search_follow_from_seed_piece_and_temperature(piece, seed, temperature):
    def drawn(rules, name, warmth):
        return rules.generator(name, warmth).initial_seed()

    own = drawn(Fallback(seed=seed), piece, temperature)
    assert own == drawn(Fallback(seed=seed), piece, temperature)
    assert own != drawn(Fallback(seed=seed + 1), piece, temperature)
    assert own != drawn(Fallback(seed=seed), piece + "x", temperature)
    assert own != drawn(Fallback(seed=seed), piece, temperature + 0.1)


@pytest.fixture(scope="module")
def tiny_en(recordings):
    return load_model(recordings / "whisper-tiny.en", window=8)


@pytest.fixture(scope="module")
def children(recordings):
    """Recorded children: on the first, OpenAI's Whisper tiny.en repeats itself without end."""
    cuts = {cut.supervisions[0].text: cut for cut in read_corpus(recordings / "speechocean762" / "train").cuts}
    texts = ["FIVE THREE NINE ZERO", "JIM LIKE THE OLD SOCKS", "I TURN HIM SEEN IT"]
    others = [cut for text, cut in cuts.items() if text not in texts and cut.duration < 4]
    return [*(cuts[text] for text in texts), *others[:3]]


def test_openais_whisper_stops_repeating_itself_on_children(tiny_en, children):
    batch = tiny_en.collate(children, text=False)
    found = tiny_en.decode(batch)
    greedy = tiny_en.transcribe(batch, GREEDY)
    assert [transcript.first for transcript in found] == greedy
    references = [cut.supervisions[0].text for cut in children]
    before, after = (
        score(references, texts, normaliser="english") for texts in (greedy, [transcript.text for transcript in found])
    )
    assert before.insertions > 4 * after.insertions
    assert sum(transcript.text == transcript.first for transcript in found) >= 3  # what was good is left alone


def test_a_sampled_text_depends_on_the_seed_and_not_on_the_batch(tiny_en, children):
    eager = Fallback(temperatures=(1.0,), mean_log_probability=0.0)  # rejects everything
    children = children[:2]
    together = tiny_en.decode(tiny_en.collate(children, text=False), Decoding(fallback=eager))
    assert any(transcript.text != transcript.first for transcript in together)
    alone = [tiny_en.decode(tiny_en.collate([cut], text=False), Decoding(fallback=eager))[0] for cut in children]
    assert alone == together
    other = Decoding(fallback=Fallback(temperatures=(1.0,), mean_log_probability=0.0, seed=1))
    assert tiny_en.decode(tiny_en.collate(children, text=False), other) != together


def test_evaluate_says_the_error_rate_with_and_without_the_fallback(recordings, children, tmp_path, ssvd):
    table = tmp_path / "children.csv"
    rows = [f"{cut.recording.sources[0].source},{cut.supervisions[0].text}" for cut in children[:3]]
    table.write_text("path,text\n" + "\n".join(rows) + "\n")
    model = recordings / "whisper-tiny.en"
    results = {}
    for option in ("--fallback", "--no-fallback"):
        code, _, told = ssvd("evaluate", model, table, "--window", 8, option, "--out", tmp_path / option)
        assert code == 0, told
        results[option] = json.loads((tmp_path / option / "result.json").read_text())
    on, off = results["--fallback"], results["--no-fallback"]
    assert on["decoding"]["fallback"]["compression_ratio"] == 2.4 and off["decoding"]["fallback"] is None
    assert on["results"][0]["without_fallback"]["wer"] == off["results"][0]["wer"] > on["results"][0]["wer"]
    assert off["results"][0]["without_fallback"] is None
    (texts,) = (tmp_path / "--fallback" / "hypotheses").iterdir()
    assert any("without_fallback" in json.loads(line) for line in texts.read_text().splitlines())
