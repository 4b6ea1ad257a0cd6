"""Corpora named by more than a path: Hugging Face datasets and Lhotse's recipes."""

import csv
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import lhotse.recipes
import numpy as np
import pytest
import soundfile
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.selection import field_value
from ssvd.corpora.sources import Source, short_names
from ssvd.errors import UserError
from test_data_corpus import tone


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setenv("SSVD_AUDIO", str(tmp_path / "store"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # it leaves locks there


def stored(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())


def values(corpus, *names):
    return [tuple(field_value(cut, name) for name in names) for cut in corpus.cuts]


# The notation


def test_notation():
    source = Source.parse("hf:org/name?split=train+dev&text=a%26b&x=1&x=2&speaker=")
    assert (source.kind, source.name) == ("hf", "org/name")
    assert source.options == {"split": ["train+dev"], "text": ["a&b"], "x": ["1", "2"], "speaker": [""]}
    assert source.value("speaker") is None and source.value("none") is None
    with pytest.raises(UserError, match="gives x twice"):
        source.value("x")
    assert Source.parse("data/train.csv") is None and Source.parse("C:/data/train.csv") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("hf:", "names nothing after hf:"), ("lhotse:?x=1", "names nothing"), ("hf:a?split", "'split' is not OPTION=VAL")],
)
def test_bad_notation(text, message):
    with pytest.raises(UserError, match=message):
        read_corpus(text)


def test_short_names(tmp_path):
    assert short_names(["a/train.jsonl.gz", "a/test.jsonl.gz"]) == ["train", "test"]
    assert short_names(["a/train.csv", "b/train.csv"]) == ["a-train", "b-train"]
    for run in ("a/lr0.001", "a/lr0.002", "b/lr0.001"):
        (tmp_path / run).mkdir(parents=True)
    assert short_names([tmp_path / "a/lr0.001", tmp_path / "a/lr0.002"]) == ["lr0.001", "lr0.002"]
    assert short_names([tmp_path / "a/lr0.001", tmp_path / "b/lr0.001"]) == ["a-lr0.001", "b-lr0.001"]
    sources = ["hf:org/cv?name=nl&split=train", "hf:org/cv?name=nl&split=test", "lhotse:librispeech:/data/x"]
    assert short_names(sources) == ["cv-nl-train", "cv-nl-test", "librispeech"]


# Hugging Face


@pytest.fixture
def audio_folder(tmp_path) -> Path:
    """As `datasets` documents it for audio: files and a metadata.csv in each split's folder."""
    for split, count in (("train", 3), ("test", 1)):
        folder = tmp_path / "speech" / split
        for number in range(count):
            tone(folder / f"één{number}.flac", hertz=300 + 100 * number)
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "transcription", "speaker_id", "Age", "note"])
            rows.writerows([f"één{n}.flac", f"Zin {n}.", f"s{n}", 6 + n, ""] for n in range(count))
    return tmp_path / "speech"


@pytest.fixture
def table(audio_folder):
    """An Arrow table with audio inside, as datasets on the hub have it."""
    import pyarrow
    from datasets import Audio, ClassLabel, Features, Value

    files = sorted((audio_folder / "train").glob("*.flac"))
    features = Features(
        {
            "audio": Audio(),
            "sentence": Value("string"),
            "client_id": Value("string"),
            "gender": ClassLabel(names=["female", "male"]),
            "up_votes": Value("int64"),
        }
    )
    return pyarrow.table(
        {
            "audio": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
            "sentence": ["een", "twee", None],
            "client_id": ["a", "b", "b"],
            "gender": [0, 1, None],
            "up_votes": [2, 0, 1],
        },
        schema=features.arrow_schema,
    )


def parquet(table, folder: Path) -> str:
    import pyarrow.parquet

    folder.mkdir()
    pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    return f"hf:{folder}"


def test_folder_of_audio_files_is_used_in_place(audio_folder, tmp_path):
    corpus = read_corpus(f"hf:{audio_folder}?split=train")
    assert values(corpus, "id", "text", "speaker", "age", "note")[1] == ("train/één1", "Zin 1.", "s1", 7, None)
    assert next(iter(corpus.cuts)).recording.sources[0].source == str(audio_folder / "train" / "één0.flac")
    assert not stored(tmp_path)
    (note,) = corpus.notes
    assert "audio = audio, text = transcription, speaker = speaker_id" in note and "split train" in note


def test_commands_take_sources(ssvd, audio_folder, embedded, tmp_path):
    source = f"hf:{audio_folder}?split=train"
    code, _, err = ssvd("prepare", source, tmp_path / "out", "--split", "34/33/33")
    assert code == 0, err
    parts = [read_corpus(tmp_path / "out" / f"{part}.jsonl.gz") for part in ("train", "dev", "test")]
    assert sorted(row for part in parts for row in values(part, "speaker")) == [("s0",), ("s1",), ("s2",)]
    train = ("--train", source, "--dev", source, "--augment", f"noise={source}:5:20", "--device", "cpu")
    code, _, err = ssvd("adapt", embedded, *train, "--epochs", 1, "--out", tmp_path / "run")
    assert code == 0 and "text = transcription" in err, err
    code, _, err = ssvd("evaluate", embedded, source, "--device", "cpu")
    assert code == 0 and "text = transcription" in err, err
    code, out, err = ssvd("data", "check", source, "--workers", 1)
    assert code == 0 and "text = transcription" in err and re.search(r"split=train +3 ", out)


def test_audio_inside_is_written_once_under_its_content(table, tmp_path):
    name = parquet(table, tmp_path / "parquet")
    corpus = read_corpus(name, skip_bad=True)
    assert values(corpus, "id", "text", "speaker", "gender", "up_votes") == [
        ("train-1-één0", "een", "a", "female", 2),  # names within a dataset are often not unique
        ("train-2-één1", "twee", "b", "male", 0),
    ]
    (skipped,) = corpus.skipped
    assert skipped.where.endswith("parquet:train:3") and "no text" in skipped.reason
    before = [(path, path.stat().st_mtime_ns) for path in stored(tmp_path)]
    assert len(before) == 3 and all(path.suffix == ".flac" for path, _ in before)
    again = read_corpus(f"{name}?limit=2")
    assert [cut.recording.sources for cut in again.cuts] == [cut.recording.sources for cut in corpus.cuts]
    assert [(path, path.stat().st_mtime_ns) for path in stored(tmp_path)] == before


def test_a_damaged_stored_file_is_written_anew(table, tmp_path):
    name = parquet(table, tmp_path / "parquet")
    read_corpus(name, skip_bad=True)
    stored(tmp_path)[0].write_bytes(b"half a file")
    assert len(read_corpus(name, skip_bad=True).cuts) == 2


def test_saved_to_disk(table, tmp_path):
    from datasets import Dataset, DatasetDict

    Dataset(table).save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": Dataset(table), "test": Dataset(table)}).save_to_disk(str(tmp_path / "two"))
    store = tmp_path / "elsewhere"
    corpus = read_corpus(f"hf:{tmp_path / 'one'}?store={store}", skip_bad=True)
    assert len(corpus.cuts) == 2 and len(list(store.rglob("*.flac"))) == 3 and not stored(tmp_path)
    assert len(read_corpus(f"hf:{tmp_path / 'two'}?split=test", skip_bad=True).cuts) == 2
    with pytest.raises(UserError, match=r"must name a split, as split=train; there are train, test"):
        read_corpus(f"hf:{tmp_path / 'two'}")
    with pytest.raises(UserError, match=r"has no split 'dev'; there is train, test"):
        read_corpus(f"hf:{tmp_path / 'two'}?split=dev")


def test_audio_in_an_archive(audio_folder, tmp_path):
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for path in (audio_folder / "train").iterdir():
            archive.write(path, path.name)
    corpus = read_corpus(f"hf:{tmp_path / 'zipped'}?split=train")
    assert values(corpus, "id", "text")[0] == ("train-1-één0", "Zin 0.")
    assert len(stored(tmp_path)) == 3


def test_paths_are_relative_to_the_folder(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"file": ["wav/é.wav", "no.wav"], "words": ["ja", "nee"]}).save_to_disk(str(tmp_path / "saved"))
    tone(tmp_path / "saved" / "wav" / "é.wav")
    corpus = read_corpus(f"hf:{tmp_path / 'saved'}?text=words", skip_bad=True)
    assert values(corpus, "id", "text") == [("wav/é", "ja")]
    assert "there is no audio file no.wav" in corpus.skipped[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?txt=a", "unknown option 'txt'; there are name, split"),
        ("?text=words", r"no column 'words'; there are audio, sentence"),
        ("?text=", r"no column with a usual name for the text; give it as text=COLUMN"),
        ("?limit=none", "limit must be a number of rows"),
        ("?split=dev", "Bad split: dev"),
        ("?name=nl", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_one_sentence(table, tmp_path, options, message):
    name = parquet(table, tmp_path / "parquet")
    with pytest.raises(UserError, match=message) as error:
        read_corpus(name + options)
    assert "\n" not in str(error.value)


def test_a_dataset_out_of_reach(monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf:nobody/nothing\?split=train cannot be read: "):
        read_corpus("hf:nobody/nothing?split=train")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'ssvd\[hf\]'"):
        read_corpus("hf:nobody/nothing")


# Lhotse's recipes


def librispeech(folder: Path, source: Path) -> None:
    """Real utterances in LibriSpeech's layout: FLAC, a transcript file for each chapter."""
    for part, speaker in (("dev-clean", "2035"), ("dev-other", "1272")):
        (transcripts,) = list((source / "librispeech-dev-clean" / speaker).glob("*/*.trans.txt"))[:1]
        chapter = folder / part / transcripts.parent.relative_to(source / "librispeech-dev-clean")
        chapter.mkdir(parents=True)
        lines = transcripts.read_text().splitlines()[:2]
        (chapter / transcripts.name).write_text("\n".join(lines) + "\n")
        for line in lines:
            samples, rate = soundfile.read(transcripts.with_name(f"{line.split()[0]}.mp3"))
            soundfile.write(chapter / f"{line.split()[0]}.flac", samples, rate)


def test_librispeech(recordings, tmp_path):
    librispeech(tmp_path, recordings)
    corpus = read_corpus(f"lhotse:librispeech:{tmp_path}")
    found = sorted(values(corpus, "speaker", "language", "part"))
    assert found == [("1272", "English", "dev-other")] * 2 + [("2035", "English", "dev-clean")] * 2
    one = read_corpus(f"lhotse:librispeech:{tmp_path}?part=dev-other&normalize_text=lower&num_jobs=2")
    assert len(one.cuts) == 2 and all(text == text.lower() for (text,) in values(one, "text"))
    named = read_corpus(f"lhotse:librispeech?corpus_dir={tmp_path}&dataset_parts=dev-clean")
    assert {part for (part,) in values(named, "part")} == {"dev-clean"}
    with pytest.raises(UserError, match=r"no part 'train'; there is dev-"):
        read_corpus(f"lhotse:librispeech:{tmp_path}?part=train")


def test_a_recipe_that_leaves_utterances_out_says_so(recordings, tmp_path):
    librispeech(tmp_path, recordings)
    lost = next((tmp_path / "dev-clean").rglob("*.flac"))
    lost.unlink()
    corpus = read_corpus(f"lhotse:librispeech:{tmp_path}?part=dev-clean")
    assert len(corpus.cuts) == 1
    assert any("No such file" in note and lost.name in note for note in corpus.notes)
    for path in (tmp_path / "dev-clean").rglob("*.flac"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"recipe librispeech failed: .* It warned: No such file: .*\.flac \(and 1 more\)\."
    ):
        read_corpus(f"lhotse:librispeech:{tmp_path}?dataset_parts=dev-clean")


def test_cmu_kids(tmp_path):
    """LDC97S63: prompts, speakers with grade and age, NIST Sphere files."""
    root = tmp_path / "cmu_kids"
    (root / "tables").mkdir(parents=True)
    (root / "tables" / "sentence.tbl").write_text("ab1\t3\tThe cat ran.\nab2\t2\tA big dog sat.\n")
    head = "ID\tLOC\tGR/AGE\tTOT\tBIN2\n\n"
    (root / "tables" / "speaker.tbl").write_text(f"{head}fabm\tSUM95\t3/9\t100\t62\nmxyz\tFP\tNA/NA\t90\t55\n")
    (root / "tables" / "transcrp.tbl").write_text("fabmab11 THE CAT RAN\nmxyzab22 A BIG [noise] DOG SAT\n")
    for name in ("fabmab11", "mxyzab22"):
        path = root / "kids" / name[:4] / "signal" / f"{name}.sph"
        path.parent.mkdir(parents=True)
        soundfile.write(path, 0.1 * np.sin(np.arange(8000) / 5), 16000, format="NIST")
    corpus = read_corpus(f"lhotse:cmu_kids:{root}")
    assert values(corpus, "id", "text", "speaker", "gender", "speaker_age", "spoken_transcript") == [
        ("fabmab11", "The cat ran.", "fabm", "Female", 9, "THE CAT RAN"),
        ("mxyzab22", "A big dog sat.", "mxyz", "Male", None, "A BIG [noise] DOG SAT"),
    ]


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Puts a recipe into Lhotse, under the name `ours`."""

    def install(prepare):
        monkeypatch.setattr(lhotse.recipes, "prepare_ours", prepare, raising=False)
        return f"lhotse:ours:{tmp_path}"

    return install


def manifests(folder: Path) -> dict:
    """A dialogue of two channels and two speakers in one recording."""
    path = tone(folder / "dialogue.wav", seconds=3, channels=2)
    recording = Recording.from_file(path, recording_id="dialogue")
    times = (("a", 0.0, 1.0, 0), ("b", 0.5, 2.0, 1), ("c", 2.0, 1.0, 0))
    segments = [
        SupervisionSegment(id, "dialogue", start, seconds, channel, text=f"text {id}", speaker=str(channel))
        for id, start, seconds, channel in times
    ]
    return {
        "recordings": RecordingSet.from_recordings([recording]),
        "supervisions": SupervisionSet.from_segments(segments),
    }


def test_overlapping_turns_become_an_utterance_each(recipe, tmp_path):
    name = recipe(lambda corpus_dir: {"nl": {"test": manifests(tmp_path)}})
    corpus = read_corpus(name)
    assert values(corpus, "id", "text", "speaker", "part") == [
        ("a", "text a", "0", "nl/test"),
        ("b", "text b", "1", "nl/test"),
        ("c", "text c", "0", "nl/test"),
    ]
    assert [(cut.start, cut.duration) for cut in corpus.cuts] == [(0.0, 1.0), (0.5, 2.0), (2.0, 1.0)]


def test_options_get_the_types_that_a_recipe_states(recipe, tmp_path):
    seen = {}

    def prepare(corpus_dir: Path, parts: list[str], jobs: int = 1, lower: bool | None = None):
        seen.update(corpus_dir=corpus_dir, parts=parts, jobs=jobs, lower=lower)
        return manifests(tmp_path)

    name = recipe(prepare)
    assert len(read_corpus(f"{name}?parts=a&parts=b&jobs=3&lower=yes").cuts) == 3
    assert seen == {"corpus_dir": tmp_path, "parts": ["a", "b"], "jobs": 3, "lower": True}
    read_corpus(f"{name}?parts=a")
    assert seen == {"corpus_dir": tmp_path, "parts": ["a"], "jobs": 1, "lower": None}
    with pytest.raises(UserError, match="option jobs of Lhotse's recipe ours cannot be 'many'"):
        read_corpus(f"{name}?parts=a&jobs=many")
    with pytest.raises(UserError, match="needs parts: write lhotse:ours:FOLDER"):
        read_corpus(name)
    with pytest.raises(UserError, match="no option 'part_s'; there are part, corpus_dir, parts, jobs, lower"):
        read_corpus(f"{name}?part_s=a")


def test_recipes_reach_neither_network_nor_programs(recipe, tmp_path):
    def download(corpus_dir):
        socket.create_connection(("127.0.0.1", 9), timeout=1)

    def execute(corpus_dir):
        subprocess.run(["touch", str(tmp_path / "touched")], check=True)

    with pytest.raises(UserError, match="would access the network"):
        read_corpus(recipe(download))
    with pytest.raises(UserError, match="would run a program"):
        read_corpus(recipe(execute))
    assert not (tmp_path / "touched").exists()
    subprocess.run(["touch", str(tmp_path / "touched")], check=True)  # the rest of the process may


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lhotse:librispech:/data", r"no recipe 'librispech'; there is librispeech"),
        ("lhotse:librispeech:/nowhere", r"librispeech failed: AssertionError: No such directory: /nowhere"),
        ("lhotse:librispeech", "needs corpus_dir: write lhotse:librispeech:FOLDER"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_one_sentence(name, message):
    with pytest.raises(UserError, match=message):
        read_corpus(name)


def test_a_recipe_without_transcripts(recipe, tmp_path):
    found = manifests(tmp_path)
    with pytest.raises(UserError, match="ours found no utterances with a transcript"):
        read_corpus(recipe(lambda corpus_dir: {"recordings": found["recordings"]}))
