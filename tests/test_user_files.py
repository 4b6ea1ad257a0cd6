"""No command destroys a file of the user's: not its source, no stranger in its folder, no work of another process."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from ssvd.adapt import adapt
from ssvd.benchmark.records import record_path, restore_study, store_study
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.errors import UserError
from ssvd.merge import merge
from ssvd.preparation.prepare import prepare_source
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.whisper import Whisper
from ssvd.reports.html import Column, Table, to_csv
from ssvd.spectral import cache
from ssvd.training.trainer import _WholeFiles
from ssvd_options import AdaptOptions, SourceOptions
from test_data_corpus import tone
from test_report import write
from test_statistics import made, spoken


@pytest.fixture
def table(tmp_path) -> Path:
    """A table of 12 utterances by 6 speakers, on one recording each."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = ["path,text,speaker,age"]
    for number in range(12):
        tone(folder / f"{number}.wav", seconds=0.3, hertz=200 + 20 * number)
        rows.append(f"{number}.wav,sentence {number},s{number % 6},{6 + number % 6}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return folder / "t.csv"


@pytest.fixture
def cuts(table) -> Path:
    """The utterances as Lhotse cuts, under a name that every command gives to a part of its own."""
    path = table.parent.with_name("data") / "train.jsonl.gz"
    write_cuts(read_corpus(table).cuts, path)
    return path


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Sources


@pytest.mark.parametrize("command", [["prepare"], ["prepare", "--skip-bad"], ["data", "split"]], ids=" ".join)
@pytest.mark.parametrize("place", ["same", "detour", "symbolic", "hard"])
def test_a_division_never_overwrites_its_source(refused, cuts, command, place):
    folder = cuts.parent
    source, out = cuts, folder
    if place == "detour":
        (folder / "x").mkdir()
        out = folder / "x" / ".."
    elif place != "same":  # the source lies elsewhere; its name in the folder leads to it
        source = folder.parent / "elsewhere.jsonl.gz"
        cuts.rename(source)
        cuts.symlink_to(source) if place == "symbolic" else os.link(source, cuts)
    before = state(folder.parent)
    assert "train.jsonl.gz is read by this command, which would overwrite it" in refused(*command, source, out)
    assert state(folder.parent) == before


@pytest.mark.parametrize(
    "options", [["select", "--where", "age>8"], ["sample", "--utterances", 2]], ids=lambda options: options[0]
)
def test_a_choice_never_overwrites_its_source(refused, cuts, options):
    command, *rest = options
    link = cuts.parent / "link.jsonl.gz"
    link.symlink_to(cuts)
    before = state(cuts.parent)
    for out in (cuts, link, cuts.parent / ".." / "data" / cuts.name):
        assert "is read by this command" in refused("data", command, cuts, out, *rest)
    # A folder with one file of cuts is read from that file.
    assert "is read by this command" in refused("data", command, cuts.parent, cuts, *rest)
    assert state(cuts.parent) == before


def test_a_list_of_utterances_is_a_source_too(refused, tmp_path):
    for number in range(3):
        session = tmp_path / "myst" / "data" / "train" / f"00210{number}" / "s"
        session.mkdir(parents=True)
        tone(session / f"myst_{number}.flac", seconds=0.5)
        (session / f"myst_{number}.trn").write_text("what a fine day\n")
    listed = tmp_path / "out" / "ids" / "train.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("myst_0\nmyst_1\nmyst_2\n")
    message = refused("prepare", "myst", tmp_path / "myst", tmp_path / "out", "--ids", f"train={listed}")
    assert f"{listed} is read by this command" in message and listed.read_text().count("myst") == 3


# Strangers in a folder


@pytest.mark.parametrize("command", [["prepare"], ["data", "split"]], ids=" ".join)
@pytest.mark.parametrize("name", ["train.jsonl.gz", "test.jsonl.gz"])
def test_a_division_leaves_what_others_wrote(refused, table, tmp_path, command, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    for split in ("80/10/10", "90/10/0"):
        message = refused(*command, table, out, "--split", split)
        assert f"{name} exists already and is not what this command wrote; give another folder" in message
    assert state(out) == {name: b"mine"}


def test_another_preparation_does_not_replace_that_of_a_split(ssvd, refused, table, tmp_path):
    assert ssvd("data", "split", table, tmp_path / "out")[0] == 0
    before = state(tmp_path / "out")
    assert "is not what this command wrote" in refused("prepare", table, tmp_path / "out")
    assert state(tmp_path / "out") == before


def test_a_division_replaces_its_own_and_removes_its_own_stale_parts(ssvd, table, tmp_path):
    out = tmp_path / "out"
    for command, ids in ((["data", "split"], []), (["prepare"], ["ids"])):
        assert ssvd(*command, table, out, "--split", "50/25/25")[0] == 0
        (out / "prepared.json").unlink(missing_ok=True)  # as the message for other options says
        assert ssvd(*command, table, out, "--split", "50/50/0")[0] == 0
        assert not (out / "test.jsonl.gz").exists() and len(read_corpus(out / "dev.jsonl.gz").cuts) == 6
        assert all(not (out / name / "test.txt").exists() for name in ids)
        shutil.rmtree(out)


def test_a_full_disk_keeps_the_division_of_before(table, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare_source(str(table), out, SourceOptions(split="50/25/25"))
    (out / "left_out.jsonl").unlink()
    (out / "prepared.json").unlink()
    before = state(out)

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("ssvd.preparation.prepared_folder.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_source(str(table), out, SourceOptions(split="50/50/0"))
    assert state(out) | before == state(out) and set(state(out)) - set(before) == {"headers.partial.jsonl"}


def test_a_page_replaces_only_a_page(ssvd, refused, table, tmp_path):
    audio = table.parent / "3.wav"
    link = tmp_path / "link.html"
    link.symlink_to(table)
    notes = tmp_path / "notes.html"
    notes.write_text("<!doctype html><p>mine")
    before = state(tmp_path)
    for out in (table, audio, link, notes):
        assert "exists already and is no page of ssvd" in refused("data", "stats", table, "--html", out)
    assert state(tmp_path) == before
    for _ in range(2):
        assert ssvd("data", "stats", table, "--html", tmp_path / "page.html")[0] == 0
    result, texts = made("frozen", spoken(["a b c"] * 4))
    write(tmp_path / "results", result, texts)
    cell = record_path(tmp_path / "results", type(result), result.id)
    assert "is no page of ssvd" in refused("report", tmp_path / "results", "--html", cell)
    assert ssvd("report", tmp_path / "results", "--html", tmp_path / "page.html")[0] == 0
    assert json.loads(cell.read_text())["id"] == result.id


def test_a_check_leaves_the_findings_of_others(ssvd, refused, table, tmp_path):
    (tmp_path / "findings.jsonl").write_text("mine")
    assert "findings.jsonl exists already" in refused("data", "check", table, "--out", tmp_path)
    assert (tmp_path / "findings.jsonl").read_text() == "mine" and not (tmp_path / "check.sqlite").exists()
    for _ in range(2):
        ssvd("data", "check", table, "--out", tmp_path / "check", "--workers", 1)
    assert (tmp_path / "check" / "summary.json").is_file()


def test_shards_leave_what_others_wrote_beside_them(refused, table, tmp_path):
    for name in ("notes.txt", "photos/a.jpg"):
        path = tmp_path / "shards.partial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        assert "is in the way" in refused("data", "shards", table, tmp_path / "shards")
        assert path.read_text() == "mine"
        shutil.rmtree(tmp_path / "shards.partial")


def test_an_evaluation_leaves_the_result_of_a_run(refused, table, embedded, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"best_dev_wer": 0.2}')
    message = refused("evaluate", embedded, table, "--out", tmp_path / "run")
    assert "result.json is not the result of an evaluation" in message
    assert (tmp_path / "run" / "result.json").read_text() == '{"best_dev_wer": 0.2}'


def test_a_benchmark_leaves_the_grid_of_its_user(refused, tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "# my comments\nmodels: {tiny: embedded}\ncorpora: {c: {synthetic: child}}\nmethods: [ssvd]\nbudgets: [p=0.4]\n"
        "title: ''\nlearning_rates: {}\nextensions: 2\nseeds: [0]\ntraining: {}\nskip_bad: false\n"
    )
    before = grid.read_bytes()
    assert "is not what a benchmark wrote" in refused("benchmark", grid, "--out", tmp_path)
    assert grid.read_bytes() == before


def test_a_stored_study_writes_nothing_outside_of_its_folder(tmp_path):
    result, texts = made("frozen", spoken(["a b c"] * 4))
    write(tmp_path / "results", result, texts)
    (tmp_path / "results" / "grid.yaml").write_text("title: made up\n")
    store_study(tmp_path / "results", tmp_path / "stored")
    records = tmp_path / "stored" / "records.jsonl"
    for escape in ("../../escaped", "/tmp/escaped", "a/b", ".hidden", "a\\u0000b"):
        text = records.read_text().replace(f'"id": "{result.id}"', f'"id": "{escape}"')
        (tmp_path / "evil").mkdir()
        shutil.copytree(tmp_path / "stored", tmp_path / "evil" / "stored")
        (tmp_path / "evil" / "stored" / "records.jsonl").write_text(text)
        with pytest.raises(UserError, match="restore the folder"):
            restore_study(tmp_path / "evil" / "stored", tmp_path / "evil" / "a" / "b")
        assert not (tmp_path / "evil" / "a").exists()
        shutil.rmtree(tmp_path / "evil")


def test_making_room_for_bases_deletes_no_other_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SSVD_CACHE_GB", "0")
    names = ["model.safetensors", "download.partial", f"{'a' * 64}.safetensors", f"{'b' * 64}x.partial"]
    for name in names:
        (tmp_path / name).write_text("x")
    cache._make_room(tmp_path, keep=tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[:2])


# Runs and models


def test_a_second_run_in_the_same_folder_is_refused(embedded, tmp_path):
    run = tmp_path / "run"
    options = AdaptOptions(model=str(embedded), train=[str(tmp_path / "none.csv")])
    run.mkdir()
    with FileLock(run / "run.lock"):
        for resume in (False, True):
            (run / "config.yaml").unlink(missing_ok=True)
            if resume:
                (run / "config.yaml").write_text(options.model_dump_json())
            with pytest.raises(UserError, match=r"Another process works in .*run: wait for it"):
                adapt(options, run, resume=resume)
    shutil.rmtree(run)
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        adapt(options, run)
    assert not run.exists(), "an empty run folder is removed again"


def test_a_state_that_is_damaged_is_refused_and_kept(tmp_path):
    state_file = tmp_path / "last.ckpt"
    for content in (b"", b"PK\x03\x04", b"\x80\x04\x95junk", os.urandom(500)):
        state_file.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged .*; remove it, and resume"):
            _WholeFiles().load_checkpoint(state_file, weights_only=True)
        assert state_file.read_bytes() == content


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_no_half_merge(embedded, tmp_path, monkeypatch, exists):
    monkeypatch.setattr("ssvd.merge.load_adapted", lambda *_, **__: load_model(embedded))
    save, out = Whisper.save, tmp_path / "merged"
    if exists:
        out.mkdir()

    def full(self: Whisper, folder: Path) -> None:
        save(self, folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Whisper, "save", full)
        with pytest.raises(UserError, match=r"merged cannot be written .*; free some space, and merge again"):
            merge(embedded, tmp_path / "run", out)
    assert out.exists() == exists and not (exists and any(out.iterdir()))
    merge(embedded, tmp_path / "run", out)
    assert (out / "config.json").is_file() and (out / "model.safetensors").is_file()
    assert all(not path.name.startswith(".") for path in out.iterdir())


# What goes out


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1"])
def test_no_cell_of_a_table_is_a_formula(text):
    table = Table((Column(text), Column("n")), ((text, -1.5), ("plain - text", -2)))
    lines = to_csv(table).replace("\r=", " =").splitlines()
    assert len(lines) == 3 and all(line.lstrip('"')[0] == "'" for line in lines[:2])
    assert lines[1].endswith(",-1.5") and lines[2] == "plain - text,-2"
