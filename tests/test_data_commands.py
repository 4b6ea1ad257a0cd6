"""The commands around a corpus: ssvd data check, stats, split, select, sample."""

import json
import random
import re
from pathlib import Path

import pytest
from lhotse import CutSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.sampling import sample
from ssvd.corpora.selection import field_value
from ssvd.corpora.statistics import corpus_statistics
from ssvd.errors import UserError
from test_data_corpus import tone


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A table of 60 utterances of 0.5 to 1.4 s by 12 speakers aged 6 to 11, one of them with a bad row."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(10):
        tone(folder / f"{number}.wav", seconds=0.5 + number / 10, hertz=200 + 20 * number)
    rows = [f"u{n},{n % 10}.wav,sentence number {n},s{n % 12:02},{6 + n % 6},{'fm'[n % 2]}" for n in range(60)]
    (folder / "good.csv").write_text("\n".join(["id,path,text,speaker,age,gender", *rows]) + "\n")
    (folder / "bad.csv").write_text(
        "\n".join(["id,path,text,speaker,age,gender", *rows[:20], "x,no.wav,a,s00,6,f"]) + "\n"
    )
    return folder


def ids(path: Path) -> list[str]:
    return [cut.id for cut in read_corpus(path).cuts]


# check


def test_check_says_what_it_found(ssvd, folder, tmp_path):
    code, out, _ = ssvd("data", "check", folder / "bad.csv", "--workers", 1, "--out", tmp_path / "out", "--show", 2)
    assert code == 1
    assert re.search(r"bad\.csv +20 +0\.01 +12 +16000 Hz \(20\)", out)
    assert "error unusable: cannot be used (1)" in out and f"{folder / 'bad.csv'}:22 x: there is no audio file" in out
    assert "warning repeated audio: the same audio again (10)" in out
    assert f"and 8 more in {tmp_path / 'out' / 'findings.jsonl'}" in out
    assert len((tmp_path / "out" / "findings.jsonl").read_text().splitlines()) == 11


def test_check_of_a_good_corpus_succeeds(ssvd, folder, embedded):
    code, out, err = ssvd("data", "check", folder / "good.csv", "--workers", 1, "--json", "--model", embedded)
    assert code == 0 and err == ""
    summary = json.loads(out)
    assert summary["corpora"][0]["utterances"] == 60 and summary["corpora"][0]["sampling_rates"] == {"16000": 60}
    assert {name: kind["severity"] for name, kind in summary["findings"].items()} == {"repeated audio": "warning"}
    assert summary["findings"]["repeated audio"]["count"] == 50


def test_check_refuses_what_is_no_corpus_or_no_model(refused, folder, tmp_path):
    assert "does not exist" in refused("data", "check", tmp_path / "none.csv")
    assert "There is no folder" in refused("data", "check", folder / "good.csv", "--model", tmp_path / "none")


# stats


def test_stats_in_the_terminal(ssvd, folder):
    code, out, err = ssvd("data", "stats", folder / "bad.csv", "--by", "age:6-7,8-11", "--by", "gender")
    assert code == 0
    assert re.search(r"bad +20 +0\.01 +12 +60 +22 +0\.9 +1\.4 ", out)
    assert (
        re.search(r"age = 6-7 +8 ", out) and re.search(r"age = 8-11 +12 ", out) and re.search(r"gender = m +10 ", out)
    )
    assert re.search(r"0\.9 to 1 +2 +█+ *\n +1 to 1\.1 +2 ", out)
    assert "no.wav" in err and "1 utterances were left out" in err


def test_stats_as_json(ssvd, folder):
    _, out, _ = ssvd("data", "stats", folder / "good.csv", "--json", "--by", "speaker")
    (found,) = json.loads(out)
    assert (found["utterances"], found["speakers"], found["words"], found["different_words"]) == (60, 12, 180, 62)
    assert found["hours"] == pytest.approx(60 * 0.95 / 3600, abs=1e-4)
    assert (found["shortest_seconds"], found["median_seconds"], found["longest_seconds"]) == (0.5, 0.9, 1.4)
    assert {part["utterances"] for part in found["groups"]["speaker"].values()} == {5}


def test_stats_as_a_page(ssvd, folder, tmp_path):
    marked = tmp_path / "a&b <i>.csv"
    marked.write_text("path,text\na.wav,hello\n")
    tone(tmp_path / "a.wav")
    out = tmp_path / "x" / "page.html"
    code, _, _ = ssvd("data", "stats", folder / "good.csv", marked, "--by", "age", "--html", out)
    assert code == 0
    page = out.read_text(encoding="utf-8")
    assert "<h3>Lengths</h3>" in page and "<h3>By age</h3>" in page and "Pareto" in page
    assert "a&amp;b &lt;i&gt;" in page and "<i>" not in page.partition("<script>")[0]
    data = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)[1])
    (lengths, _, ages) = data["charts"]
    good = lengths["views"][0]["series"][0]["points"]
    assert sum(point["y"] for point in good) == 60
    assert sum(point["y"] for point in lengths["views"][1]["series"][0]["points"]) == pytest.approx(100)
    assert ages["views"][1]["categories"] == [*map(str, range(6, 12)), "(unknown)"]
    assert str(folder) not in page, "where a corpus lies is nobody's business"


def test_stats_of_a_field_that_only_one_corpus_has(folder, tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text("path,text\na.wav,hello\n")
    good, other = corpus_statistics([str(folder / "good.csv"), str(tmp_path / "t.csv")], ["age:6-8,9-11"])
    assert list(good.groups["age:6-8,9-11"]) == ["6-8", "9-11"]
    assert list(other.groups["age:6-8,9-11"]) == ["(unknown)"]
    with pytest.raises(UserError, match="No utterance has the field 'accent'"):
        corpus_statistics([str(folder / "good.csv")], ["accent"])


# split, select, sample


def test_split_by_speaker(ssvd, folder, tmp_path):
    code, out, _ = ssvd("data", "split", folder / "good.csv", tmp_path, "--split", "50/25/25", "--balance", "age")
    assert code == 0 and "texts also in train" in out
    speakers = {
        part: {field_value(cut, "speaker") for cut in read_corpus(tmp_path / f"{part}.jsonl.gz").cuts}
        for part in ("train", "dev", "test")
    }
    assert {part: len(names) for part, names in speakers.items()} == {"train": 6, "dev": 3, "test": 3}
    assert len(set.union(*speakers.values())) == 12
    code, out, _ = ssvd("data", "split", folder / "good.csv", tmp_path, "--split", "75/25/0")
    assert not (tmp_path / "test.jsonl.gz").exists() and "of an earlier division" in " ".join(out.split())


def test_select(ssvd, refused, folder, tmp_path):
    ssvd("data", "select", folder / "good.csv", tmp_path / "old.jsonl.gz", "--where", "age>9", "--where", "gender=f")
    assert ids(tmp_path / "old.jsonl.gz") == [f"u{n}" for n in range(60) if n % 6 == 4]
    assert "NAME.jsonl.gz" in refused("data", "select", folder / "good.csv", tmp_path / "old.csv")
    assert "names an unknown field" in refused(
        "data", "select", folder / "good.csv", tmp_path / "x.jsonl", "--where", "a=1"
    )


def test_sample(ssvd, folder, tmp_path):
    ssvd("data", "sample", folder / "good.csv", tmp_path / "a.jsonl.gz", "--utterances", 20, "--seed", 3)
    ssvd("data", "sample", tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl", "--utterances", 7, "--seed", 3)
    chosen = ids(tmp_path / "a.jsonl.gz")
    assert len(chosen) == 20 and chosen == sorted(chosen, key=lambda id: int(id[1:]))
    cuts = read_corpus(folder / "good.csv").cuts
    assert [cut.id for cut in sample(cuts, utterances=7, seed=3)] == ids(tmp_path / "b.jsonl")
    shuffled = list(cuts)
    random.Random(1).shuffle(shuffled)
    assert {cut.id for cut in sample(CutSet.from_cuts(shuffled), utterances=20, seed=3)} == set(chosen)
    assert {cut.id for cut in sample(cuts, utterances=20, seed=4)} != set(chosen)


def test_sample_by_hours_and_by_field(folder):
    cuts = read_corpus(folder / "good.csv").cuts
    drawn = sample(cuts, hours=20 / 3600)
    assert 20 - 1.4 < sum(cut.duration for cut in drawn) <= 20
    ages = [field_value(cut, "age") for cut in sample(cuts, utterances=33, by="age:6-7,8-11")]
    assert (sum(age <= 7 for age in ages), sum(age > 7 for age in ages)) == (11, 22)
    ages = [field_value(cut, "age") for cut in sample(cuts, utterances=10, by="age")]
    assert len(ages) == 10 and {ages.count(age) for age in range(6, 12)} == {1, 2}
    earlier: set[str] = set()
    for count in range(1, 61):
        drawn = {cut.id for cut in sample(cuts, utterances=count, by="age:6-7,8-10,11-11")}
        assert len(drawn) == count and earlier < drawn
        earlier = drawn
    by_hours = sample(cuts, hours=28.5 / 3600, by="gender")
    for gender in "fm":
        seconds = sum(cut.duration for cut in by_hours if field_value(cut, "gender") == gender)
        whole = sum(cut.duration for cut in cuts if field_value(cut, "gender") == gender)
        assert whole / 2 - 1.4 < seconds <= whole / 2 + 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either the number of utterances or the number of hours"),
        ({"utterances": 1, "hours": 1.0}, "either the number of utterances or the number of hours"),
        ({"utterances": 61}, "A sample of 61 utterances is not possible: there are 60"),
        ({"hours": 1.0}, "A sample of 3600 seconds is not possible: there are 57"),
        ({"hours": 0.1 / 3600}, r"No utterance fits into 0\.1 seconds"),
        ({"utterances": 5, "by": "accent"}, "No utterance has the field 'accent'; there are age, duration, gender"),
        ({"utterances": 5, "by": "age:x"}, "bands of 'age:x' cannot be read"),
    ],
)
def test_samples_that_cannot_be(folder, options, message):
    with pytest.raises(UserError, match=message):
        sample(read_corpus(folder / "good.csv").cuts, **options)


def test_preparing_a_table_goes_on_where_it_was_interrupted(corpora, tmp_path, monkeypatch):
    from ssvd.corpora import utterances as module
    from ssvd.preparation.prepare import prepare_source

    read, original = [], module.read_recording

    def recording(path, recording_id):
        read.append(path)
        return original(path, recording_id)

    def stop(doing):
        if "3 of 8" in doing:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "read_recording", recording)
    with pytest.raises(KeyboardInterrupt):
        prepare_source(str(corpora["adult"]), tmp_path / "out", on_progress=stop)
    assert (tmp_path / "out" / "headers.partial.jsonl").read_bytes().count(b"\n") == 3
    read.clear()
    prepare_source(str(corpora["adult"]), tmp_path / "out")
    assert len(read) == 5 and not (tmp_path / "out" / "headers.partial.jsonl").exists()
