"""Wrong types and odd bytes in a user's files and options are told in one sentence that names the place."""

import io
import json
import os
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import soundfile

from ssvd.benchmark.grid import read_grid
from ssvd.benchmark.records import read_study
from ssvd.corpora.check import Check
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.selection import field_value, select
from ssvd.corpora.splits import split_by_speaker
from ssvd.corpora.statistics import corpus_statistics
from ssvd.corpora.utterances import number_or_text
from ssvd.errors import UserError
from ssvd.methods import Budget
from ssvd.preparation.textgrid import parse_textgrid
from ssvd.training.options import checked_options
from ssvd.training.placement import ALONE
from ssvd.training.process_group import ProcessGroup
from ssvd.training.run_folder import read_config, stated_options
from test_report import write
from test_statistics import epoch, made, spoken


def noise(path: Path, samples: int = 3200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    soundfile.write(data, np.random.default_rng(0).uniform(-0.5, 0.5, samples), 16000, format=path.suffix[1:])
    path.write_bytes(data.getvalue())
    return path


# Lhotse cuts


@pytest.fixture
def cuts(tmp_path) -> Path:
    """Three cuts of Lhotse, by three speakers."""
    rows = ["path,text,speaker,age", *(f"{noise(tmp_path / f'{n}.wav').name},hello {n},s{n},{6 + n}" for n in range(3))]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    write_cuts(read_corpus(tmp_path / "t.csv").cuts, tmp_path / "cuts.jsonl")
    return tmp_path / "cuts.jsonl"


def change(cuts: Path, place: str, value: Any) -> None:
    """Change a field of the second cut, such as "supervisions.0.start"."""
    lines = [json.loads(line) for line in cuts.read_text().splitlines()]
    holder: Any = lines[1]
    *way, last = place.split(".")
    for part in way:
        holder = holder[int(part) if part.isdigit() else part]
    holder[int(last) if last.isdigit() else last] = value
    cuts.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("start", "0.0", r"start: must be a valid number, but is '0\.0'"),
        ("start", float("nan"), "start: must be a finite number"),
        ("start", True, "start: must be a valid number, but is True"),
        ("duration", 10**400, "duration: must be a valid number, but is 1000"),
        ("duration", 1e300, "duration: must be less than or equal to 1000000000"),
        ("duration", 1e-300, "is empty or outside its recording"),
        ("duration", 2e-5, "is empty or outside its recording"),  # less than half a sample
        ("duration", None, "duration: must be a valid number"),
        ("id", ["a"], r"id: must be a valid string, but is \['a'\]"),
        ("channel", "left", "channel.*"),
        ("supervisions", {"0": 1}, "supervisions: must be a valid list"),
        ("supervisions.0", 7, r"supervisions\.0: must hold fields by name"),
        ("supervisions.0.speaker", 3, r"supervisions\.0\.speaker: must be a valid string, but is 3"),
        ("supervisions.0.text", {"nl": "hoi"}, r"supervisions\.0\.text: must be a valid string"),
        ("supervisions.0.language", ["nl"], r"supervisions\.0\.language: must be a valid string"),
        ("supervisions.0.duration", 1e-9, "is empty or outside its cut"),
        ("supervisions.0.duration", float("inf"), r"supervisions\.0\.duration: must be a finite number"),
        ("supervisions.0.custom", "age", r"supervisions\.0\.custom: must be a valid dictionary"),
        ("recording", "a.wav", "recording: must hold fields by name"),
        ("recording.sampling_rate", 0, r"recording\.sampling_rate: must be greater than 0"),
        ("recording.sampling_rate", "16k", r"recording\.sampling_rate: must be a valid integer"),
        ("recording.num_samples", 10**30, r"recording\.num_samples: must be less than"),
        ("recording.sources", None, r"recording\.sources: must be a valid list"),
        ("recording.sources.0.source", 3, r"recording\.sources\.0\.source: must be a valid string"),
        ("recording.transforms", [3], r"recording\.transforms\.0: must be a valid dictionary"),
        ("type", ["MonoCut"], "Unexpected cut type"),
    ],
)
def test_a_cut_of_wrong_types_is_one_bad_utterance(cuts, place, value, reason):
    change(cuts, place, value)
    with pytest.raises(UserError, match=rf"cuts\.jsonl:2: .*{reason}.* \(1 bad utterance of 3\)") as error:
        read_corpus(cuts)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert len(read_corpus(cuts, skip_bad=True).cuts) == 2
    (statistics,) = corpus_statistics([str(cuts)])
    assert statistics.total.utterances == 2 and len(statistics.unusable) == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "is a list"),
        ({"years": 8}, "is a dict"),
        (10**400, "is a number beyond all bounds"),
    ],
)
def test_a_field_that_is_used_must_be_text_or_a_number(cuts, value, reason):
    change(cuts, "supervisions.0.custom", {"age": value, "other": {"kept": [1]}})
    corpus = read_corpus(cuts).cuts
    for use in (
        lambda: split_by_speaker(corpus, balance="age"),
        lambda: select(corpus, ["age<=8"]),
        lambda: corpus_statistics([str(cuts)], ["age"]),
    ):
        with pytest.raises(UserError, match=f"Utterance 1: the field 'age' {reason}"):
            use()
    write_cuts(corpus, cuts.with_name("again.jsonl"))
    again = list(read_corpus(cuts.with_name("again.jsonl")).cuts)[1]
    assert again.supervisions[0].custom["other"] == {"kept": [1]}, "what is not used is kept as it was"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_field_that_is_no_finite_number_counts_as_missing(cuts, value):
    change(cuts, "supervisions.0.custom", {"age": value})
    assert [field_value(cut, "age") for cut in read_corpus(cuts).cuts] == [6, None, 8]


@pytest.mark.parametrize("text", ["1e400", "-1e999", "9" * 400])
def test_numbers_in_tables_that_overflow_stay_text(text):
    assert number_or_text(text) == text


@pytest.mark.parametrize("seconds", ["1e-12", "0.00002", "5e-324"])
def test_a_segment_of_a_table_that_holds_no_sample_is_refused(tmp_path, seconds):
    noise(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text(f"path,text,start,duration\na.wav,hello,0,{seconds}\n")
    with pytest.raises(UserError, match=r"t\.csv:2: its segment from 0 s on holds no samples"):
        read_corpus(tmp_path / "t.csv")


def test_a_line_that_is_a_json_text_is_no_utterance(tmp_path):
    noise(tmp_path / "a.wav")
    (tmp_path / "t.jsonl").write_text('{"path": "a.wav", "text": "hello"}\n"path and text"\n')
    with pytest.raises(UserError, match=r"t\.jsonl:2: the line is not a JSON object"):
        read_corpus(tmp_path / "t.jsonl")


# Names that are not UTF-8


def odd(name: bytes) -> str:
    return os.fsdecode(name)


def test_audio_whose_name_is_not_utf8_is_named_and_left_out(ssvd, tmp_path):
    name = odd(b"caf\xe9.wav")
    (tmp_path / "kaldi").mkdir()
    for file in (name, "b.wav"):
        noise(tmp_path / "kaldi" / file)
    (tmp_path / "kaldi" / "text").write_bytes(b"a hello there\nb hello again\nc\xe9 hello\n")
    (tmp_path / "kaldi" / "wav.scp").write_bytes(b"a caf\xe9.wav\nb b.wav\nc\xe9 b.wav\n")
    code, out, _ = ssvd("data", "check", tmp_path / "kaldi", "--workers", 1, "--out", tmp_path / "check")
    assert code == 1 and "the line is not UTF-8" in out
    code, _, err = ssvd("prepare", tmp_path / "kaldi", tmp_path / "out", "--skip-bad", "--split", "100/0/0")
    assert code == 2 and "has no speaker" in err
    code, _, err = ssvd("data", "select", tmp_path / "kaldi", tmp_path / "out.jsonl", "--skip-bad")
    assert code == 0 and "2 utterances were left out" in err
    assert [cut.id for cut in read_corpus(tmp_path / "out.jsonl").cuts] == ["b"]


@pytest.mark.parametrize("command", [["data", "stats"], ["data", "check", "--workers", 1], ["data", "select"]])
def test_a_corpus_in_a_folder_that_is_not_utf8_can_be_told_of(ssvd, tmp_path, command):
    folder = tmp_path / odd(b"spr\xe4k")
    noise(folder / "a.wav")
    (folder / "t.csv").write_text("path,text\na.wav,hello\n")
    code, out, err = ssvd(*command, folder / "t.csv", *([tmp_path / "o.jsonl"] if "select" in command else []))
    assert code in (1, 2) and "is not UTF-8; rename the file or folder" in out + err
    noise(tmp_path / "a.wav")
    (folder / "t.csv").write_text(f"path,text\n{tmp_path / 'a.wav'},hello\n,no path\n")
    code, out, _ = ssvd(
        *command, folder / "t.csv", *([tmp_path / "o.jsonl", "--skip-bad"] if "select" in command else [])
    )
    assert code in (0, 1)
    out.encode()


def test_files_of_myst_whose_names_are_not_utf8_are_listed(ssvd, tmp_path):
    session = tmp_path / "myst" / "data" / "train" / "002100" / "s"
    for name in (b"myst_1", b"myst_\xb7", b"myst_\xb8"):
        noise(session / odd(name + b".flac"))
    for name in (b"myst_1", b"myst_\xb8"):
        (session / odd(name + b".trn")).write_text("what a fine day\n")
    code, _, err = ssvd("prepare", "myst", tmp_path / "myst", tmp_path / "out", "--skip-bad")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out" / "left_out.jsonl").open()]
    assert len(rows) == 2 and all("\\udcb" in row["where"] for row in rows)


# Annotations, tables and lists of other corpora


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
@pytest.mark.parametrize("place", [4, 5, 8, 11, 12])
def test_a_textgrid_with_a_number_beyond_all_bounds_is_damaged(number, place):
    lines = ['File type = "ooTextFile"', '"TextGrid"', "", "0", "1", "<exists>", "1", '"IntervalTier"', '"N00001"']
    lines += ["0", "1", "1", "0", "1", '"ja"']
    assert parse_textgrid("\n".join(lines))
    numbers = [index for index, line in enumerate(lines) if line in ("0", "1")]
    lines[numbers[place % len(numbers)]] = number
    with pytest.raises(ValueError, match=r"a number beyond all bounds|is cut off"):
        parse_textgrid("\n".join(lines))


@pytest.mark.parametrize(
    "scores", ['{"a": 3}', '{"a": {"accuracy": "good"}}', '{"a": {"total": 1e999}}', "[[1]]", "[" * 9999, '{"a": [8]}']
)
def test_scores_of_wrong_types_are_refused(refused, tmp_path, scores):
    (tmp_path / "c" / "train").mkdir(parents=True)
    noise(tmp_path / "c" / "train" / "a.wav")
    for name, line in (("text", "a HELLO"), ("wav.scp", "a a.wav"), ("utt2spk", "a 1"), ("spk2age", "1 8")):
        (tmp_path / "c" / "train" / name).write_text(line + "\n")
    (tmp_path / "c" / "scores.json").write_text(scores)
    message = refused("prepare", "speechocean762", tmp_path / "c", tmp_path / "out")
    assert "scores.json does not hold scores by utterance" in message


# What this package wrote


@pytest.mark.parametrize(
    "damage",
    [
        {"parts": {"train": {"utterances": 3}}},
        {"parts": []},
        {"options": None},
        {"left_out": {"bad": "many"}},
        {"parts": {"train": {"utterances": "many", "speakers": 1, "hours": 1.0, "texts_also_in_train": None}}},
    ],
)
def test_a_record_of_a_preparation_that_is_damaged_is_refused(ssvd, refused, cuts, tmp_path, damage):
    assert ssvd("prepare", cuts, tmp_path / "out", "--split", "50/25/25")[0] == 0
    path = tmp_path / "out" / "prepared.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    message = refused("prepare", cuts, tmp_path / "out", "--split", "50/25/25")
    assert f"prepared.json cannot be read ({next(iter(damage))}" in message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("id", "../../escaped"),
        ("search", {"fast": 0.3}),
        ("search", {"nan": 0.3}),
        ("model_parameters", 0),
        ("trainable_parameters", 10**400),
        ("best_dev_wer", float("nan")),
        ("training_seconds", float("inf")),
        ("series", [{"epoch": -1}]),
        ("sources", {"a/b": None}),
        ("test", []),
        ("origin", {"ssvd_schema": [1]}),
    ],
)
def test_a_damaged_record_is_skipped_and_listed(tmp_path, place, value):
    for seed in (0, 1):
        result, texts = made("ssvd", spoken(["a b c"]), budget="p=0.4", seed=seed, series=[epoch(0, 0.5, 0.0)])
        write(tmp_path, result, texts)
    path = tmp_path / "cells" / f"{result.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {place: value}))
    study = read_study(tmp_path)
    assert [result.cell.seed for result in study.results] == [0]
    (skipped,) = study.skipped
    assert str(path) in skipped.where + skipped.reason and "\n" not in skipped.reason


def test_the_findings_of_a_damaged_check_are_refused(cuts, tmp_path):
    with Check([str(cuts)], tmp_path / "check") as check:
        check.run()
    path = tmp_path / "check" / "check.sqlite"
    whole = path.read_bytes()
    for damaged in (whole[:5000], b"SQLite format 3\x00" + os.urandom(5000), whole[:-4096] + b"\xff" * 4096):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"check\.sqlite is in use by another check, damaged") as error:
            Check([str(cuts)], tmp_path / "check")
        assert "\n" not in str(error.value)


def test_a_database_of_something_else_is_left_as_it_is(cuts, tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "check.sqlite") as sql:
        sql.execute("CREATE TABLE photos (name TEXT)")
    sql.close()
    before = (tmp_path / "check.sqlite").read_bytes()
    with pytest.raises(UserError, match="it has other tables"):
        Check([str(cuts)], tmp_path)
    assert (tmp_path / "check.sqlite").read_bytes() == before


# YAML and options

# Two to the power of 25 texts, in a few lines.
BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        ("models: 2024-13-45", "line 1: '2024-13-45' is no timestamp"),
        ("models: {t: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [lora]\n1: 2", "Keys should be strings"),
        ("small: 3", "models: Field required"),
        ("models: {tiny: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [ssvd]\nseeds: [1.5]", "seeds.0"),
        ("models: {tiny: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [ssvd]\nseeds: [4294967296]", "seeds"),
        ("models: {t: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [lora: 1e400]", "methods|budget"),
        (
            "models: {t: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [lora]\nlearning_rates: {lora: [.nan]}",
            "learning_rates",
        ),
        (
            "models: {t: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [lora]\ntraining: {epochs: .inf}",
            "epochs must be a",
        ),
        (BOMB + "models: *m", "models"),
        ("&a [*a]", "does not hold the fields of a grid"),
        ("models: &a {tiny: *a}", "models"),
    ],
)
def test_a_grid_of_wrong_values_is_refused_in_a_sentence(tmp_path, grid, reason):
    (tmp_path / "g.yaml").write_text(grid)
    with pytest.raises(UserError, match=rf"g\.yaml.*({reason})") as error:
        read_grid(tmp_path / "g.yaml")
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("window", "nan", "a finite number"),
        ("window", "-inf", "a finite number"),
        ("learning_rate", "1e400", "a finite number"),
        ("weight_decay", "inf", "a finite number"),
        ("clip", "nan", "a finite number"),
        ("seed", 2**32, "at most 4294967295"),
        ("seed", -1, "at least 0"),
        ("epochs", 10**12, "at most 1000000000"),
        ("workers", 16**5000, "a whole number|at most 1000000000"),
        ("batch_seconds", float("nan"), "a finite number or auto"),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, int) or value < 2**64 else "huge",
)
def test_options_beyond_all_bounds_are_refused(option, value, wanted):
    with pytest.raises(UserError, match=f"{option} must be ({wanted}), but is ") as error:
        checked_options({"model": "m", "train": ["t"], option: value})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "split", "t.csv", "out", "--split", "nan/10/10"],
        ["data", "split", "t.csv", "out", "--split", "inf/0/0"],
        ["data", "sample", "t.csv", "o.jsonl", "--hours", "nan"],
        ["data", "check", "t.csv", "--shortest", "nan"],
        ["data", "check", "t.csv", "--longest", "inf"],
        ["data", "check", "t.csv", "--window", "1e400"],
        ["data", "check", "t.csv", "--show", "9" * 400],
        ["data", "check", "t.csv", "--workers", "9" * 400],
        ["data", "sample", "t.csv", "o.jsonl", "--utterances", "9" * 400],
        ["evaluate", "m", "t.csv", "--window", "nan"],
        ["transcribe", "m", "a.wav", "--window", "inf"],
        ["plan", "m", "--budget", "1e400"],
        ["plan", "m", "--budget", "9" * 400],
        ["demo", "--seed", "99999999999"],
        ["prepare", "t.csv", "out", "--split", "nan/50/50"],
        ["prepare", "speechocean762", "c", "out", "--dev", "nan"],
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)
def test_numbers_on_the_command_line_are_finite(ssvd, tmp_path, monkeypatch, embedded, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("path,text\n")
    code, out, err = ssvd(*[embedded if argument == "m" else argument for argument in arguments])
    assert code == 2 and out == "" and "Traceback" not in err and ("Error: " in err or "Invalid value" in err)


@pytest.mark.parametrize("budget", ["1e400", "p=1e400", "rank=1e400", "1e999%", "9" * 4000])
def test_a_budget_beyond_all_bounds_is_refused(budget):
    with pytest.raises(UserError, match="beyond all bounds") as error:
        Budget.parse(budget)
    assert len(str(error.value)) < 400


def test_the_largest_seed_seeds_every_epoch(monkeypatch):
    from ssvd.training.module import Adaptation

    class Stub:
        options = checked_options({"model": "m", "train": ["t"], "seed": 2**32 - 1})
        current_epoch = 10
        network = lightning.LightningModule()
        _group = ProcessGroup(ALONE)
        _losses: list[float] = []  # noqa: RUF012

    Adaptation.on_train_epoch_start(Stub())  # type: ignore[arg-type]
    largest = np.random.random()
    Stub.current_epoch = 11
    Adaptation.on_train_epoch_start(Stub())  # type: ignore[arg-type]
    assert np.random.random() != largest


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("window: .nan", "window: must be a finite number"),
        ("window: -3", "window: must be greater than 0"),
        ("window: [4]", r"window: must be a valid number, but is \[4\]"),
        ("language: {nl: 1}", "language: must be a valid string"),
    ],
)
def test_what_decoding_takes_over_from_a_run_is_checked(tmp_path, line, reason):
    (tmp_path / "config.yaml").write_text(f"model: m\n{line}\n")
    with pytest.raises(UserError, match=rf"config\.yaml: {reason}"):
        stated_options(tmp_path)


@pytest.mark.parametrize("text", ["model: 2024-13-45", "model: !!bool maybe", "[" * 1000, "model: " + "9" * 5000])
def test_the_options_of_a_run_that_python_chokes_on_are_told_in_a_sentence(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is not YAML \(.*\); correct it, or start a new run") as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)
