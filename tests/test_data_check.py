"""Checks of corpora: awkward cases are found and named; a stopped check goes on; workers change nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ssvd.corpora.check import Check, Limits
from ssvd.corpora.check.doubtful_text import doubt
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.errors import StoppedError, UserError
from ssvd.recognisers.loading import load_check, load_model


def noise(path: Path, seconds: float = 1.0, rate: int = 16000, seed: int = 0, scale: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, scale, round(seconds * rate)).clip(-1, 1)
    soundfile.write(path, samples, rate)
    return path


def table(folder: Path, *rows: tuple, name: str = "table.csv", header: str = "id,path,text,speaker") -> str:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


def check(
    *corpora: str, workers: int = 1, out: Path | None = None, **options
) -> list[tuple[str, str, str | None, str]]:
    """(kind, row, id, detail) of each finding."""
    with Check(corpora, out, **options) as checking:
        checking.run(workers)
        return [(one.kind, one.where.rpartition(":")[2], one.id, one.detail) for one in checking.findings()]


def kinds(found) -> list[tuple[str, str | None]]:
    return [(kind, id) for kind, _, id, _ in found]


def test_a_good_corpus(tmp_path):
    for number in range(3):
        noise(tmp_path / f"{number}.wav", seed=number)
    corpus = table(tmp_path, *((n, f"{n}.wav", f"sentence {n}", "s") for n in range(3)))
    assert check(corpus) == []


def test_audio(tmp_path):
    good = noise(tmp_path / "good.wav").read_bytes()
    noise(tmp_path / "cut.flac", seconds=3, seed=1)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.wav").write_bytes(b"no audio at all")
    soundfile.write(tmp_path / "silence één.wav", np.full(16000, 0.25), 16000)  # an offset is no sound
    noise(tmp_path / "loud.wav", scale=1.5, seed=2)
    noise(tmp_path / "telephone.wav", rate=8000, seed=3)
    (tmp_path / "other.wav").write_bytes(good[:44] + good[1044:] + good[44:1044])
    names = [
        "good.wav",
        "cut.flac",
        "text.wav",
        "silence één.wav",
        "loud.wav",
        "telephone.wav",
        "other.wav",
        "none.wav",
    ]
    found = check(
        table(tmp_path, *((name[:4], name, "one two", "s") for name in names)), limits=Limits(sampling_rate=16000)
    )
    assert [(kind, row, id) for kind, row, id, _ in found] == [
        ("unusable", "3", "cut."),
        ("unusable", "4", "text"),
        ("unusable", "9", "none"),
        ("silent", "5", "sile"),
        *[("repeated sentence", row, id) for row, id in (("5", "sile"), ("6", "loud"), ("7", "tele"), ("8", "othe"))],
        ("clipped", "6", "loud"),
        ("low sampling rate", "7", "tele"),
        ("other sampling rate", "7", "tele"),
    ]
    details = {kind: detail for kind, _, _, detail in found}
    assert "none.wav" in details["unusable"] and "cut.flac is cut off" in found[0][3]
    assert details["other sampling rate"] == f"8000 Hz, most of {tmp_path / 'table.csv'} has 16000 Hz"


def test_audio_that_a_manifest_promises_but_the_file_lacks(tmp_path):
    """Headers in a manifest are believed when it is read; the check decodes to the end."""
    noise(tmp_path / "a.flac", seconds=3)
    noise(tmp_path / "b.mp3", seconds=3)
    write_cuts(
        read_corpus(table(tmp_path, ("a", "a.flac", "one", "s"), ("b", "b.mp3", "two", "s"))).cuts,
        tmp_path / "cuts.jsonl.gz",
    )
    for name in ("a.flac", "b.mp3"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    manifest = str(tmp_path / "cuts.jsonl.gz")
    found = check(manifest)
    assert [(kind, row, id) for kind, row, id, _ in found] == [("unreadable", "1", "a"), ("unreadable", "2", "b")]
    assert "a.flac cannot be decoded" in found[0][3]
    assert check(manifest, limits=Limits(audio=False)) == []


def test_texts_and_lengths(tmp_path):
    for number in range(5):
        noise(tmp_path / f"{number}.wav", seed=number)
    noise(tmp_path / "short.wav", seconds=0.1, seed=9)
    noise(tmp_path / "long.wav", seconds=4, seed=8)
    rows = [
        ("a", "0.wav", "", "s"),
        ("b", "1.wav", "the <noise> cat", "s"),
        ("c", "2.wav", "a sentence that nobody on earth can say within one second", "s"),
        ("d", "3.wav", "cafÃ©", "s"),
        ("e", "4.wav", "het café's één-na-laatste; “ja”…", "s"),
        ("f", "short.wav", "a", "s"),
        ("g", "long.wav", "long enough", "s"),
    ]
    found = check(table(tmp_path, *rows), limits=Limits(longest=3.0))
    assert kinds(found) == [
        ("no text", "a"),
        ("impossible rate", "c"),
        ("doubtful text", "b"),
        ("doubtful text", "d"),
        ("short", "f"),
        ("long", "g"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("...", "no letter or digit"),
        ("a <unk> b", "the mark '<unk>'"),
        ("so [laughter] yes", "the mark '[laughter]'"),
        ("((mumbled))", "the mark '((mumbled))'"),
        ("he wen* home", "the symbol '*'"),
        ("under_score", "the symbol '_'"),
        ("itâ€™s", "UTF-8 read as another encoding: 'â€™'"),
        ("AntÃ³nio", "UTF-8 read as another encoding"),
        ("lost \ufffd here", r"U\+FFFD"),
        ("bell\x07", r"the invisible character U\+0007"),
        ("zero\u200bwidth", r"U\+200B"),
        ("сат is cat", None),  # a word all in Cyrillic
        ("c\u0430t", r"two scripts in one word: 'cаt' \(cyrillic and latin\)"),
        ("Ik zag zo'n één-twee, “café”… 5 % à € 3 (echt)!", None),
        ("naïve Ångström façade ßÜÇÑ Êtes-vous prêts", None),
        ("日本語のテキスト", None),
        ("नमस्ते दुनिया", None),
        ("می\u200cخواهم", None),
    ],
)
def test_doubtful_texts(text, reason):
    if reason is None:
        assert doubt(text) is None
    else:
        found = doubt(text)
        assert found is not None
        plain = reason.replace("\\", "")
        assert plain in found


def test_unusual_rates_stand_out_from_their_language(tmp_path):
    noise(tmp_path / "a.wav", seconds=2)
    rows = [(f"en{n:02}", "a.wav", "x" * (24 + n % 9), f"s{n}", "en") for n in range(60)]
    rows += [(f"zh{n:02}", "a.wav", "字" * (6 + n % 4), f"t{n}", "zh") for n in range(60)]
    rows[30] = ("en-slow", "a.wav", "x" * 7, "s30", "en")  # usual in Chinese
    rows[90] = ("zh-fast", "a.wav", "字" * 30, "t30", "zh")  # usual in English
    header = "id,path,text,speaker,language"
    found = check(table(tmp_path, *rows, header=header), limits=Limits(audio=False))
    unusual = [row for row in found if row[0] == "unusual rate"]
    assert [(row, id) for _, row, id, _ in unusual] == [("32", "en-slow"), ("92", "zh-fast")]
    assert unusual[0][3] == "3.5 characters a second, where the median is 14.0"
    few = table(tmp_path, *rows[20:40], name="few.csv", header=header)
    assert not [row for row in check(few, limits=Limits(audio=False)) if row[0] == "unusual rate"]


def test_what_two_corpora_share(tmp_path):
    samples = np.random.default_rng(5).integers(-9000, 9000, 16000, dtype=np.int16)
    for folder, suffix in (("train", "wav"), ("test", "flac")):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / f"same.{suffix}", samples, 16000)
    for number in range(4):
        noise(tmp_path / "train" / f"{number}.wav", seed=10 + number)
        noise(tmp_path / "test" / f"{number}.wav", seed=20 + number)
    train = table(
        tmp_path / "train",
        ("u0", "same.wav", "under one roof", "anna"),
        ("u1", "0.wav", "we said this", "bért"),
        ("u2", "1.wav", "we said more", "bért"),
        ("u3", "2.wav", "alone", "carl"),
    )
    test = table(
        tmp_path / "test",
        ("v0", "same.flac", "quite another text", "dora"),
        ("v1", "0.wav", "We  said THIS", "bért"),
        ("u3", "1.wav", "alone", "emil"),
        ("v3", "2.wav", "without a speaker", ""),
    )
    found = check(train, test)
    assert [(kind, row, id) for kind, row, id, _ in found] == [
        ("shared speaker", "3", "v1"),
        ("shared audio", "2", "v0"),
        ("shared id", "4", "u3"),
        ("shared sentence", "3", "v1"),
    ]
    details = {kind: detail for kind, _, _, detail in found}
    assert details["shared speaker"] == f"bért is in {train} (2 utterances) and {test} (1 utterances)"
    assert details["shared audio"] == f"as u0 at {train}:2"
    # Within one corpus the same is less grave, but for ids.
    both = table(tmp_path, ("a", "train/same.wav", "x one", "s"), ("a", "test/same.flac", "y two", "t"))
    assert kinds(check(both)) == [("repeated id", "a"), ("repeated audio", "a")]


def test_segments_of_one_recording_are_different_audio(tmp_path):
    noise(tmp_path / "a.wav", seconds=3)
    rows = [("a", "a.wav", "one", "s", 0, 1), ("b", "a.wav", "two", "s", 1, 1), ("c", "a.wav", "three", "s", 1, 1)]
    corpus = table(tmp_path, *rows, header="id,path,text,speaker,start,duration")
    for audio in (True, False):
        assert kinds(check(corpus, limits=Limits(audio=audio))) == [("repeated audio", "c")]


def test_what_a_model_cannot_be_trained_on(tmp_path, embedded):
    noise(tmp_path / "a.wav", seconds=2)
    noise(tmp_path / "b.wav", seconds=5, seed=1)
    noise(tmp_path / "c.wav", seconds=2, seed=2)
    rows = [("a", "a.wav", "fine", "s"), ("b", "b.wav", "too long", "s"), ("c", "c.wav", "ja <|endoftext|> nee", "s")]
    corpus = table(tmp_path, *rows)
    found = check(corpus, load_fault=partial(load_check, embedded))
    untrainable = [(id, detail) for kind, _, id, detail in found if kind == "untrainable"]
    assert [id for id, _ in untrainable] == ["b", "c"]
    assert "the window is 4 s" in untrainable[0][1] and "a mark for models" in untrainable[1][1]
    assert not [row for row in check(corpus, load_fault=partial(load_check, embedded)) if row[2] == "a"]
    narrow = check(corpus, load_fault=partial(load_check, embedded, window=1.0))
    assert [id for kind, _, id, _ in narrow if kind == "untrainable"] == ["a", "b", "c"]
    # It judges as the whole model does.
    speech = load_model(embedded)
    assert [speech.check(cut) for cut in read_corpus(corpus).cuts] == [None, *(detail for _, detail in untrainable)]


# Large corpora


@pytest.fixture
def manifest(tmp_path) -> str:
    """300 cuts of 3 files: five chunks; the last but one has no text."""
    for number in range(3):
        noise(tmp_path / f"{number}.wav", seconds=0.5, seed=number)
    rows = [(f"u{n}", f"{n % 3}.wav", f"number {n}", f"s{n % 7}") for n in range(300)]
    cuts = list(read_corpus(table(tmp_path, *rows)).cuts)
    cuts[298].supervisions[0].text = ""
    write_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    return str(tmp_path / "cuts.jsonl.gz")


def test_workers_change_nothing(manifest, tmp_path):
    noise(tmp_path / "other.wav", seed=9)
    second = table(tmp_path, ("x", "other.wav", "number 4", "s4"), ("u5", "gone.wav", "x", "y"), name="second.csv")
    alone = check(manifest, second)
    assert check(manifest, second, workers=2) == alone
    assert ("no text", "299", "u298", "") in alone and len([row for row in alone if row[0] == "repeated audio"]) == 297


def test_a_stopped_check_goes_on(manifest, tmp_path):
    whole = check(manifest)
    out = tmp_path / "checked"

    def stop(done: int, of: int | None) -> None:
        assert of == 300
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Check([manifest], out) as checking:
        checking.run(1, stop)
    assert not (out / "findings.jsonl").exists()
    seen: list[int] = []
    with Check([manifest], out) as checking:
        checking.run(1, lambda done, of: seen.append(done))
        assert [(one.kind, one.where.rpartition(":")[2], one.id, one.detail) for one in checking.findings()] == whole
    assert seen == [128, 192, 256, 300], "what was done before is not done again"
    rows = [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["id"]) for row in rows] == kinds(whole)
    assert {row["severity"] for row in rows} == {"error", "warning"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["corpora"][0]["utterances"] == 300 and summary["corpora"][0]["sampling_rates"] == {"16000": 300}
    with Check([manifest], out) as checking:  # a third time there is nothing to do
        seen.clear()
        checking.run(1, lambda done, of: seen.append(done))
        assert seen == [300]
        assert checking.counts() == dict(Counter(row["kind"] for row in rows))


def test_a_killed_check_goes_on(tmp_path):
    for number in range(8):
        noise(tmp_path / f"{number}.flac", seconds=8, seed=number)
    rows = [(f"u{n}", f"{n % 8}.flac", f"number {n}", f"s{n}") for n in range(1500)]
    corpus, out = table(tmp_path, *rows), tmp_path / "checked"
    command = [sys.executable, "-m", "ssvd", "data", "check", corpus, "--out", str(out), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out / "check.sqlite-wal").exists() or (out / "check.sqlite-wal").stat().st_size < 100_000:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    seen: list[int] = []
    with Check([corpus], out) as checking:
        checking.run(1, lambda done, of: seen.append(done))
        assert checking.counts() == {"repeated audio": 1492}
    assert 0 < seen[0] < 1500 and seen[-1] == 1500


def test_a_check_is_not_continued_with_something_else(manifest, tmp_path):
    out = tmp_path / "checked"
    check(manifest, out=out)
    with pytest.raises(UserError, match="holds a check of other corpora, of other versions of them or with other opt"):
        check(manifest, out=out, limits=Limits(longest=9.0))
    with pytest.raises(UserError, match="give another folder"):
        check(manifest, out=out, load_fault=lambda: lambda cut: None, fault_name="model")
    os.utime(manifest, (0, 0))
    with pytest.raises(UserError, match="give another folder"):
        check(manifest, out=out)
    with pytest.raises(UserError, match="given twice"):
        check(manifest, manifest)


def test_two_checks_in_one_folder(manifest, tmp_path):
    with Check([manifest], tmp_path / "out"), pytest.raises(UserError, match="in use by another check"):
        Check([manifest], tmp_path / "out")


def test_a_killed_process_is_one_sentence(manifest, tmp_path):
    message = r"A process of the check was killed.*run it again to continue"
    die = partial(signal.raise_signal, signal.SIGKILL)  # as a process does when memory runs out
    with Check([manifest], tmp_path / "out", load_fault=die) as checking, pytest.raises(StoppedError, match=message):
        checking.run(2)


def test_a_damaged_manifest_is_one_sentence(manifest):
    Path(manifest).write_bytes(Path(manifest).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cuts\.jsonl\.gz cannot be read"):
        check(manifest)


def test_recorded_children(recordings):
    """Real recordings: nothing worse than two that are read very slowly."""
    found = check(str(recordings / "speechocean762" / "train"))
    assert kinds(found) == [("unusual rate", "001310148"), ("unusual rate", "060100124")]
