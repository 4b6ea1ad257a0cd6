"""MyST: its transcripts, its layouts, its filters. The corpora are built here, from its public documentation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssvd import evaluate
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.utterances import Skipped
from ssvd.errors import UserError
from ssvd.files import state_of
from ssvd.preparation.listings import Listings
from ssvd.preparation.myst import PAPER, RULES, clean, clean_as_espnet, read_myst
from ssvd.preparation.prepare import prepare_myst
from ssvd_options.preparation import MystOptions

# Transcripts: one rule each


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        ("<BREATH> THE WATER IS <SNIFF> EVAPORATING", "the water is evaporating"),
        ("<noise> it <Side Speech> goes down", "it goes down"),
        ("WE {LAUGHS} SAW [INDISCERNIBLE] MAGNETS [00:00:01]", "we saw magnets"),
        ("IT (()) GOES ((MAYBE)) ROUND (*) AND (A (B) C) ROUND", "it goes round and round"),
        ("+UM+ I THINK +BLAH BLAH+ SO", "i think so"),
        ("ONE + TWO + THREE", "one two three"),  # no pair around words
        ("THE <NOISE>WATER<COUGH>GOES+UM+DOWN((X))NOW[Y]AND{Z}THEN", "the water goes down now and then"),
        ("I DON'T KNOW <NO_SIGNAL", "i don't know"),
        ("NO_SIGNAL> YEAH", "yeah"),
        ("<'SIDE_SPEECH> IT <SIDE_S[EECH> IS <NO_ SIGNAL> HOT", "it is hot"),
        ("YEAH <SIDE SPEECH", "yeah"),
        ("20 DEGREES AND 12345 ANTS", "twenty degrees and twelve thousand three hundred and forty five ants"),
        ("50g 15ml H2O CO2", "fifty g fifteen ml h two o co two"),
        ("3.5 METERS 1,000 TIMES THE 2nd 007", "three point five meters one thousand times the second zero zero seven"),
        ("SALT & WATER/SAND", "salt and water slash sand"),
        ("A *ELECTRISITY* CIR- CIRCUIT -CUIT UH-HUH TWENTY_ONE", "a electrisity cir circuit cuit uh huh twenty one"),
        ("YOU 'RE RIGHT IT 'S MINE I 'LL GO THEY 'VE DON 'T", "you're right it's mine i'll go they've don't"),
        ("'CAUSE THE KIDS' 'THING' GOT 'EM", "cause the kids thing got em"),
        ("WELL, YES. WHY? OK! SO: A; B… C—D", "well yes why ok so a b c d"),
        ("UM IT’S UH\u00a0A\u2003LEAF\u200b", "um it's uh a leaf"),
        ("Speaker 2: the café", "speaker two the café"),
        ("+A47:A60", "a forty seven a sixty"),
        ("<BREATH> (()) +UM+ <NO_SIGNAL> ...", ""),
    ],
)
def test_default_rules(transcript, text):
    assert clean(transcript) == text
    assert clean(transcript.lower()) == text  # case is not uniform in the corpus


@pytest.mark.parametrize(
    ("transcript", "text"),
    [
        ("<BREATH> the {x} water [y] is +UM+ hot", "THE WATER IS HOT"),
        ("IT (A (B) C) IS", "IT IS"),
        ("WATER<COUGH>GOES", "WATERGOES"),  # it leaves no blank
        ("21 ANTS", "TWENTYONE ANTS"),
        ("A&B 3/4", "A AND B THREE SLASH FOUR"),
        ("UH-HUH A_B *C* D–E", "UHHUH AB C DE"),
        ("YOU 'RE GETTING 'EM 'CAUSE IT’S …", "YOU'RE GETTING EM CAUSE IT'S"),
        ("SHE 'S HERE I 'LL GO IT 'S DON 'T you 're", "SHE'S HERE I'LL GO IT 'S DON 'T YOU 'RE"),  # it knows ten
        ("A +UM B", "A B"),
        ("A, B. C? D! E; F: +G", "A B C D E F G"),
        ("café\u00a0ok", "CAFE OK"),
    ],
)
def test_rules_of_espnet(transcript, text):
    assert clean_as_espnet(transcript) == text


# A corpus


def sound(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(2 * np.pi * 300 * np.arange(round(seconds * 16000)) / 16000)
    soundfile.write(path, samples, 16000)
    return path


SESSION = "myst_{student}_2014-02-27_09-29-01_LS_1.1"


def utterance(
    data: Path, partition: str, student: str, number: int, text: bytes | str | None, seconds=1.0, session=SESSION
):
    session = session.format(student=student)
    path = data / partition / student / session / f"{session}_{number:03d}.flac"
    sound(path, seconds)
    if text is not None:
        path.with_suffix(".trn").write_bytes(text.encode() if isinstance(text, str) else text)
    return path


OLD = "myst_{student}_2010-27-09_00-00-00_ME_2.3"  # Phase I: year-day-month, which is no ISO date


@pytest.fixture
def corpus(tmp_path) -> Path:
    """As the LDC ships it, with every awkward case; 2 good utterances in train, 1 in dev, 3 in test."""
    folder = tmp_path / "myst_child_conv_speech"
    data = folder / "data"
    utterance(data, "train", "002116", 1, b"\xef\xbb\xbfTHE WATER <NOISE> GOES\r\nDOWN\r\n")
    utterance(data, "train", "002116", 2, None)
    utterance(data, "train", "002116", 3, "")
    utterance(data, "train", "002116", 4, "<NO_SIGNAL (()) \n")
    utterance(data, "train", "002116", 5, "UM YES")
    utterance(data, "train", "002116", 7, "it is the longest story", seconds=30.01)
    utterance(data, "train", "990507", 1, b"IT\x92S A\xa0CAF\xc9\x85", seconds=30.0, session=OLD)  # Windows-1252
    session = utterance(data, "train", "990507", 2, "NO AUDIO AT ALL", session=OLD)
    session.unlink()
    utterance(data, "development", "003001", 1, "I THINK SO")
    utterance(data, "development", "003001", 2, "too long for dev too", seconds=31)
    for number in (1, 2, 3):
        utterance(data, "test", "004001", number, "there is no limit here", seconds=31 if number == 1 else 1)
    session = session.parent
    (session / "notes.txt").write_text("seen by one reader")
    (session / "._hidden.trn").write_bytes(b"\x00\x05\x16\x07")
    sound(data / "development" / "003001" / SESSION.format(student="003001") / "x.wav")  # left by a recipe
    (folder / "docs").mkdir()
    (folder / "index.html").write_text("<html>")
    return folder


def ids(out: Path, part: str) -> list[str]:
    return (out / "ids" / f"{part}.txt").read_text().split()


def left_out(out: Path) -> dict[str, str]:
    """Rule by the last part of the id."""
    rows = map(json.loads, (out / "left_out.jsonl").read_text().splitlines())
    return {row["id"].replace("myst_", ""): row["rule"] for row in rows}


def test_ldc_layout_with_every_awkward_case(ssvd, corpus, tmp_path):
    out = tmp_path / "out"
    code, told, err = ssvd("prepare", "myst", corpus, out)
    assert code == 0, err
    train = read_corpus(out / "train.jsonl.gz").cuts
    first, old = train
    assert first.id == "myst_002116_2014-02-27_09-29-01_LS_1.1_001"
    assert (first.supervisions[0].text, first.supervisions[0].speaker) == ("the water goes down", "002116")
    assert first.supervisions[0].custom == {
        "transcript": "THE WATER <NOISE> GOES DOWN",
        "session": "myst_002116_2014-02-27_09-29-01_LS_1.1",
        "module": "LS",
    }
    assert (old.supervisions[0].text, old.supervisions[0].custom["module"]) == ("it's a café", "ME")
    assert old.supervisions[0].language == "en" and old.duration == 30.0
    assert [len(ids(out, part)) for part in ("train", "dev", "test")] == [2, 1, 3]

    reasons = {name.split("_LS_1.1_")[-1]: rule for name, rule in left_out(out).items() if name.startswith("002116")}
    assert reasons == {
        "002": "no transcript",
        "003": "empty transcript",
        "004": "no words",
        "005": "fewer than 3 words",
        "007": "over 30 s",
    }
    assert left_out(out)["990507_2010-27-09_00-00-00_ME_2.3_002"] == "no audio file"
    record = json.loads((out / "prepared.json").read_text())
    assert record["left_out"] == {
        "no transcript": 2,  # x.wav is the other
        "over 30 s": 2,
        "empty transcript": 1,
        "no words": 1,
        "fewer than 3 words": 1,
        "no audio file": 1,
    }
    assert (record["normaliser"], record["paper"], record["parts"]["test"]["utterances"]) == ("english", PAPER, 3)
    assert "55,703" in told and "left out: 2 no transcript" in err


def test_espnet_rules_have_other_texts_and_limits(corpus, tmp_path):
    data = corpus / "data"
    utterance(data, "test", "004001", 8, "twice too long for ESPnet", seconds=301)
    utterance(data, "train", "002116", 8, "UM YES IT")  # its normaliser deletes um: 2 words
    record = prepare_myst(corpus, tmp_path / "out", MystOptions(rules="espnet")).record
    assert record["left_out"]["over 300 s"] == 1
    assert record["left_out"]["fewer than 3 words"] == 3  # with the tag that is not closed, which they take for a word
    first, _ = read_corpus(tmp_path / "out" / "train.jsonl.gz").cuts
    assert first.supervisions[0].text == "THE WATER GOES DOWN"
    assert "espnet" in record["options"]["rules"] and "300 s" in record["rules"]


def test_a_second_run_does_nothing_and_other_options_are_refused(ssvd, corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert ssvd("prepare", "myst", corpus, out)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert not (out / "headers.partial.jsonl").exists()
    monkeypatch.setattr("ssvd.corpora.utterances.read_recording", lambda *arguments: pytest.fail("read again"))
    code, _, err = ssvd("prepare", "myst", corpus, out)
    assert code == 0 and "nothing was done" in err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    code, _, err = ssvd("prepare", "myst", corpus, out, "--rules", "espnet")
    assert code == 2 and "was prepared with other options (rules was 'default')" in err
    code, _, err = ssvd("prepare", "myst", corpus, out, "--rules", "mine")
    assert code == 2 and "rules must be default or espnet, but is 'mine'" in err


def test_a_folder_prepared_by_an_earlier_version_is_recognised(corpus, tmp_path):
    out = tmp_path / "out"
    listing = tmp_path / "kept"
    listing.write_text("myst_002116_2014-02-27_09-29-01_LS_1.1_001\n")
    chosen = MystOptions(rules="espnet", ids=[str(listing)], where=["module=LS"], balance="module", seed=3)
    record = prepare_myst(corpus, out, chosen).record
    assert record["options"] == {
        "source": str(corpus),
        "rules": "espnet",
        "ids": [[str(listing), state_of(listing)]],
        "filter_model": None,
        "filtered": [],
        "where": ["module=LS"],
        "portions": {"train": 0.8, "dev": 0.1, "test": 0.1},
        "seed": 3,
        "balance": "module",
        "skip_bad": False,
        "state": state_of(corpus),
    }
    assert prepare_myst(corpus, out, chosen).already


def test_an_interrupted_run_reads_only_the_headers_that_it_lacks(corpus, tmp_path, monkeypatch):
    from ssvd.corpora import utterances as module

    out, read = tmp_path / "out", []
    whole = prepare_myst(corpus, tmp_path / "whole").record["parts"]

    def recording(path, recording_id):
        read.append(path)
        return original(path, recording_id)

    original = module.read_recording
    monkeypatch.setattr(module, "read_recording", recording)

    def stop(doing):
        if "3 of" in doing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_myst(corpus, out, on_progress=stop)
    assert not (out / "prepared.json").exists() and not (out / "train.jsonl.gz").exists()
    kept = (out / "headers.partial.jsonl").read_bytes()
    assert kept.count(b"\n") == 3
    (out / "headers.partial.jsonl").write_bytes(kept[:-20])  # killed in the middle of a line
    read.clear()
    assert prepare_myst(corpus, out).record["parts"] == whole
    assert len(read) == 8 - 2  # 8 utterances come as far as their audio


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "is cut off"),
        (lambda data: data[:86], "is cut off"),  # the header alone
        (lambda data: b"", r"is empty \(0 bytes\)"),
        (lambda data: b"no audio", "cannot be read"),
    ],
)
def test_damaged_flac_stops_unless_it_is_skipped_and_listed(ssvd, corpus, tmp_path, damage, reason):
    path = next((corpus / "data" / "test").rglob("*_002.flac"))
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 32000), 16000)  # more than a header's worth
    path.write_bytes(damage(path.read_bytes()))
    code, _, err = ssvd("prepare", "myst", corpus, tmp_path / "out")
    assert code == 2 and re.search(reason, err) and path.name in err and "1 bad utterance of 6" in err
    assert "skip_bad" in err and not (tmp_path / "out" / "prepared.json").exists()
    code, _, err = ssvd("prepare", "myst", corpus, tmp_path / "out", "--skip-bad")
    assert code == 0 and re.search(f"left out: .*{path.name}: .*{reason}", err) and "left out: 1 bad" in err
    assert left_out(tmp_path / "out")["004001_2014-02-27_09-29-01_LS_1.1_002"] == ""
    assert len(ids(tmp_path / "out", "test")) == 2


# Other layouts


def test_v042_layout_from_the_folder_above_and_from_data(corpus, tmp_path):
    renamed = corpus.rename(corpus.with_name("myst-v0.4.2"))
    (renamed / "documents").mkdir()
    (renamed / "documents" / "word2phn.dict").write_text("WATER\tW AO T ER\n")
    for number, place in enumerate((renamed, renamed.parent, renamed / "data")):
        record = prepare_myst(place, tmp_path.with_name(f"{tmp_path.name}-{number}")).record
        assert record["parts"]["train"]["utterances"] == 2


def test_v030_layout_has_no_parts_and_is_divided_by_student(tmp_path):
    data = tmp_path / "myst-v0.3.0-171fbda" / "corpora" / "myst" / "data"
    for student in range(10):
        for number in (1, 2):
            utterance(data, "", f"{student:06d}", number, f"<noise> the ant number {student}")
    division = prepare_myst(tmp_path / "myst-v0.3.0-171fbda", tmp_path / "out")
    sizes = division.record["parts"]
    assert {part: sizes[part]["speakers"] for part in sizes} == {"train": 8, "dev": 1, "test": 1}
    assert all(sizes[part]["speakers_also_in_train"] == 0 for part in ("dev", "test"))
    again = prepare_myst(tmp_path / "myst-v0.3.0-171fbda", tmp_path / "again").record["parts"]
    assert again == sizes and ids(tmp_path / "again", "test") == ids(tmp_path / "out", "test")


def test_another_folder_is_told(corpus, tmp_path):
    with pytest.raises(UserError, match="does not hold MyST: there are no folders of students"):
        prepare_myst(corpus / "docs", tmp_path / "out")
    with pytest.raises(UserError, match="is not a folder"):
        prepare_myst(corpus / "missing", tmp_path / "out")


# Published lists


def names(corpus: Path, partition: str, *numbers: int) -> list[str]:
    stems = sorted(path.stem for path in (corpus / "data" / partition).rglob("*.flac"))
    return [stem for stem in stems if int(stem[-3:]) in numbers and "_LS_" in stem]


def test_a_list_keeps_what_it_names_whatever_its_length(ssvd, corpus, tmp_path):
    listed = [*names(corpus, "train", 1, 5, 7), *names(corpus, "test", 2), "myst_000000_2014-01-01_00-00-00_LS_1.1_001"]
    (tmp_path / "all.list").write_bytes("\r\n".join(listed).encode())
    out = tmp_path / "out"
    code, _, err = ssvd("prepare", "myst", corpus, out, "--ids", tmp_path / "all.list")
    assert code == 0, err
    assert ids(out, "train") == names(corpus, "train", 1, 5, 7) and ids(out, "test") == names(corpus, "test", 2)
    assert not (out / "dev.jsonl.gz").exists()
    assert "left out: 1 listed, not in the corpus" in err
    (row,) = (row for row in map(json.loads, (out / "left_out.jsonl").open()) if row["rule"].startswith("listed"))
    assert (row["id"], row["where"]) == (listed[-1], f"{tmp_path / 'all.list'}:5")


def test_a_list_of_a_part_decides_that_part_alone(corpus, tmp_path):
    (tmp_path / "dev.list").write_text("\n".join(names(corpus, "test", 3) + names(corpus, "development", 2)))
    prepare_myst(corpus, tmp_path / "out", MystOptions(ids=[f"dev={tmp_path / 'dev.list'}"]))
    assert set(ids(tmp_path / "out", "dev")) == {*names(corpus, "test", 3), *names(corpus, "development", 2)}
    assert len(ids(tmp_path / "out", "train")) == 2 and len(ids(tmp_path / "out", "test")) == 2
    assert left_out(tmp_path / "out")["003001_2014-02-27_09-29-01_LS_1.1_001"] == "not in the list"


def test_lists_that_contradict_or_are_missing(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("x\n")
    with pytest.raises(UserError, match=r"x is listed for train in .*a:1, and for test in .*b:1"):
        Listings([f"train={tmp_path / 'a'}", f"test={tmp_path / 'b'}"])
    (tmp_path / "a").write_text("\n")
    with pytest.raises(UserError, match=r"list .*a is empty"):
        Listings([str(tmp_path / "a")])
    with pytest.raises(UserError, match="missing"):
        Listings([str(tmp_path / "missing")])


def test_a_list_that_has_changed_is_another_option(corpus, tmp_path):
    listing = tmp_path / "test.list"
    listing.write_text(names(corpus, "test", 2)[0])
    prepare_myst(corpus, tmp_path / "out", MystOptions(ids=[str(listing)]))
    listing.write_text("\n".join(names(corpus, "test", 2, 3)))
    with pytest.raises(UserError, match="other options"):
        prepare_myst(corpus, tmp_path / "out", MystOptions(ids=[str(listing)]))


# The filter by a recogniser


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """Synthetic adults, whom the embedded recogniser knows, 4 a part; the last of each says another thing."""
    from ssvd.demo.synthetic import utterances

    data = tmp_path_factory.mktemp("myst") / "data"
    for number, (_, text, samples) in enumerate(utterances("adult", 12, speakers=3, seed=3)):
        partition, student = ("train", "development", "test")[number % 3], f"{number % 3:06d}"
        path = utterance(data, partition, student, number // 3, f"<BREATH> {text.upper()}")
        soundfile.write(path, samples, 16000)
        if number >= 9:
            path.with_suffix(".trn").write_text("NOT A WORD OF THIS WAS EVER SAID " * 3)
    return data.parent


def test_filter_drops_what_the_recogniser_hears_otherwise(ssvd, spoken, embedded, tmp_path):
    out = tmp_path / "out"
    command = ["prepare", "myst", spoken, out, "--filter-model", embedded, "--device", "cpu"]
    code, _, err = ssvd(*command)
    assert code == 0, err
    assert [len(ids(out, part)) for part in ("train", "dev", "test")] == [3, 3, 3]
    assert "left out: 3 WER over 50%" in err
    rows = [json.loads(line) for line in (out / "left_out.jsonl").open()]
    assert all(row["id"].endswith("003") and re.search(r"hears '.*', a WER of \d+%", row["reason"]) for row in rows)
    assert len((out / "hypotheses.jsonl").read_text().splitlines()) == 12

    code, _, err = ssvd(*command[:3], tmp_path / "kept", *command[4:], "--filter-parts", "train,dev")
    assert code == 0 and len(ids(tmp_path / "kept", "test")) == 4, err
    code, _, err = ssvd(*command[:3], tmp_path / "x", *command[4:], "--filter-parts", "all")
    assert code == 2 and "filter_parts must name some of train,dev,test, but is 'all'" in err


def test_a_killed_filter_goes_on_with_what_it_has_not_heard(spoken, embedded, tmp_path, monkeypatch):
    decoded: list[str] = []
    original = evaluate.decode

    def decode(speech, cuts, **options):
        decoded.extend(cut.id for cut in cuts)
        return original(speech, cuts, **options)

    monkeypatch.setattr(evaluate, "decode", decode)

    def kill(doing):
        if doing.endswith("has decoded 5 of 12"):
            raise KeyboardInterrupt

    options = MystOptions(filter_model=str(embedded), device="cpu", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        prepare_myst(spoken, tmp_path / "out", options, on_progress=kill)
    heard = [json.loads(line)["id"] for line in (tmp_path / "out" / "hypotheses.jsonl").open()]
    assert len(heard) == 5
    decoded.clear()
    record = prepare_myst(spoken, tmp_path / "out", options).record
    assert len(decoded) == 7 and not set(decoded) & set(heard)
    assert record["left_out"] == {"WER over 50%": 3}


def test_transcript_that_cannot_be_read_is_bad(corpus):
    path = next((corpus / "data" / "test").rglob("*_002.trn"))
    path.unlink()
    path.mkdir()
    items = read_myst(corpus, RULES["default"], Listings())
    (bad,) = (item for item in items if isinstance(item, Skipped) and not item.rule)
    assert "cannot be read" in bad.reason and bad.id == path.stem
