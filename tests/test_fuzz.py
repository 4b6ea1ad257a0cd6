"""Whatever is in a file, reading it gives a result or one sentence: 2,000 damaged files of every format that is read.

`python -m pytest tests/test_fuzz.py -m slow -k cuts` runs one format; a failure names the file by its number.
"""

import json
import random
import shutil
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

from mutation import damaged
from ssvd.adapt import adapt
from ssvd.benchmark.grid import read_grid
from ssvd.benchmark.records import Failure, Trial, read_study, restore_study, store_study
from ssvd.corpora.audio import load_audio
from ssvd.corpora.check import Check
from ssvd.corpora.corpus import read_corpus
from ssvd.corpora.readers.manifests import write_cuts
from ssvd.corpora.sampling import sample
from ssvd.corpora.selection import select
from ssvd.corpora.shar_writing import write_shar
from ssvd.corpora.splits import split_by_speaker
from ssvd.corpora.statistics import corpus_statistics
from ssvd.demo import EMBEDDED
from ssvd.errors import UserError
from ssvd.plan import plan_methods
from ssvd.preparation.listings import Listings
from ssvd.preparation.prepare import prepare_cgn, prepare_myst, prepare_source, prepare_speechocean762
from ssvd.recognisers.loading import load_model
from ssvd.reports.page import read_benchmark, render
from ssvd.training.options import checked_options
from ssvd.training.results import RunResult
from ssvd.training.run_folder import base_model_of, load_adapted, read_config, stated_options
from ssvd.training.trainer import _WholeFiles
from ssvd_options import AdaptOptions, CgnOptions, MystOptions, SourceOptions, Speechocean762Options
from test_report import recognised, write
from test_statistics import ORIGIN, epoch, made

pytestmark = pytest.mark.slow
SEED = 16


class Format(NamedTuple):
    """A folder to make once, the files of it to damage, what reads it, and how many damaged files are read."""

    make: Callable[[Path], None]
    damage: str  # glob
    read: Callable[[Path], object]
    files: int


# What is read


def noise(path: Path, seconds: float = 0.3, **kind: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, int(16000 * seconds))
    soundfile.write(path, samples, 16000, **kind)
    return path


def rows(folder: Path) -> list[dict[str, Any]]:
    speech = [noise(folder / f"{n}.wav").name for n in range(2)]
    return [
        {"id": f"u{n}", "path": speech[n % 2], "text": f"zeg eens é {n}", "speaker": f"s{n % 4}", "age": 6 + n,
         "gender": "fm"[n % 2], "start": 0.01 * n, "duration": 0.1}
        for n in range(8)
    ]  # fmt: skip


def make_table(folder: Path, name: str, separator: str) -> None:
    table = rows(folder)
    lines = [separator.join(map(str, row.values())) for row in table]
    (folder / name).write_text("\n".join([separator.join(table[0]), *lines]) + "\n", encoding="utf-8")


def make_json_lines(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(folder)), encoding="utf-8")


def make_cuts(folder: Path, name: str) -> None:
    make_table(folder, "t.csv", ",")
    write_cuts(read_corpus(folder / "t.csv").cuts, folder / name)
    (folder / "t.csv").unlink()


def make_shards(folder: Path) -> None:
    make_table(folder, "t.csv", ",")
    write_shar(read_corpus(folder / "t.csv").cuts, folder / "corpus", size=4)


def make_kaldi(folder: Path) -> None:
    table = rows(folder)
    files = {
        "text": [f"{row['id']} {row['text']}" for row in table],
        "segments": [f"{row['id']} {row['path'][0]} {row['start']} {row['start'] + 0.1}" for row in table],
        "wav.scp": ["0 0.wav", "1 1.wav"],
        "utt2spk": [f"{row['id']} {row['speaker']}" for row in table],
        "spk2age": [f"s{n} {6 + n}" for n in range(4)],
        "utt2lang": [f"{row['id']} nl" for row in table],
    }
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_audio(folder: Path, suffix: str, **kind: Any) -> None:
    noise(folder / f"a.{suffix}", **kind)
    (folder / "corpus.csv").write_text(f"path,text\na.{suffix},hello\n")


def make_cgn(folder: Path) -> None:
    for kind in ("annot/text/ort", "audio/wav"):
        (folder / "data" / kind / "comp-a" / "nl").mkdir(parents=True)
    for n in range(3):
        noise(folder / f"data/audio/wav/comp-a/nl/fn00000{n}.wav", 0.5)
        tiers = "\n".join(
            f'"IntervalTier"\n"N000{n}{tier}"\n0\n0.5\n2\n0\n0.2\n"ja*d hoor"\n0.2\n0.5\n"nee ""dus"" é"'
            for tier in range(2)
        )
        grid = f'File type = "ooTextFile short"\n"TextGrid"\n\n0\n0.5\n<exists>\n2\n{tiers}\n'
        (folder / f"data/annot/text/ort/comp-a/nl/fn00000{n}.ort").write_text(grid, encoding="latin-1")
    (folder / "data/meta/text").mkdir(parents=True)
    lines = [
        "ID\tsex\tbirthYear\tbirthRegion",
        *(f"N000{n}{tier}\tsex1\t1960\tregN" for n in range(3) for tier in "01"),
    ]
    (folder / "data/meta/text/speakers.txt").write_text("\n".join(lines) + "\n")


def make_myst(folder: Path) -> None:
    for student in range(4):
        session = folder / f"data/train/00210{student}/myst_00210{student}_2014-10-08_13-40-51_LS_1.1"
        for n in range(2):
            noise(session / f"{session.name}_00{n}.flac")
            (session / f"{session.name}_00{n}.trn").write_text("THE <UH> CAT {SAT} ON 21 MATS\n")


def make_speechocean762(folder: Path) -> None:
    (folder / "train").mkdir()
    make_kaldi(folder / "train")
    scores = {f"u{n}": {"accuracy": 8, "fluency": 7.5, "words": [{"text": "a"}]} for n in range(8)}
    (folder / "scores.json").write_text(json.dumps(scores))


def make_prepared(folder: Path) -> None:
    make_table(folder, "t.csv", ",")
    prepare_source(str(folder / "t.csv"), folder / "out", SourceOptions(split="50/25/25"))
    (folder / "out" / "test.jsonl.gz").unlink()  # so that it is prepared again
    with pytest.raises(UserError):
        (folder / "bad.csv").write_text((folder / "t.csv").read_text() + "x\n")
        prepare_source(str(folder / "bad.csv"), folder / "begun")


def make_check(folder: Path) -> None:
    make_table(folder, "t.csv", ",")
    read_check(folder)


GRID = """title: ages
models: {tiny: embedded}
corpora:
  child: {train: a.csv, dev: [b.csv], test: c.csv, sources: {adults: d.csv}, by: [gender, 'age:6-10,11-15']}
  made: {synthetic: child, utterances: 32}
methods: [ssvd, {lora: [rank=8, 2%]}]
budgets: [p=0.4]
learning_rates: {ssvd: [0.001, 0.002]}
seeds: [0, 1]
training: {epochs: 2, batch_seconds: 20.0, augment: ['speed=0.9:1.1@0.5']}
small: {seeds: [0], training: {epochs: 1}}
"""


def make_study(folder: Path) -> None:
    for method, budget in (("frozen", ""), ("ssvd", "p=0.4"), ("lora", "p=0.4")):
        dev = [epoch(n, 0.4 - 0.1 * n, 2.0 * n) for n in range(3)]
        result, texts = made(
            method, recognised(0.2, method)[:12], budget=budget, series=dev, by=("age:6-7,8-11", "gender"),
            sources={"adults": recognised(0.1, method, "adult")[:12]}, normaliser="english",
        )  # fmt: skip
        write(folder / "study", result, texts)
        trial = Trial(**result.model_dump(include=set(Trial.model_fields)))
        write(folder / "study", trial, {})
    failure = Failure(id="f", cell=result.cell, learning_rate=0.1, reason="the loss became infinite", origin=ORIGIN)
    write(folder / "study", failure, {})
    (folder / "study" / "grid.yaml").write_text("title: made up\n")


def make_stored_study(folder: Path) -> None:
    make_study(folder)
    store_study(folder / "study", folder / "stored")
    shutil.rmtree(folder / "study")


# Reading


def use_corpus(name: str, folder: Path) -> None:
    """Read a corpus as the commands do: its statistics, all of it, its audio, and every kind of part."""
    corpus = str(folder / name)
    try:
        json.dumps([found.as_dict() for found in corpus_statistics([corpus], ["age:6-9,10-15", "gender"])])
    except UserError as error:
        assert "\n" not in str(error)
    cuts = read_corpus(corpus, skip_bad=True).cuts
    write_cuts(cuts, folder / "again.jsonl.gz")
    assert len(read_corpus(folder / "again.jsonl.gz").cuts) == len(cuts)
    for attempt in (
        lambda: [load_audio(cut, 16000) for cut in cuts],
        lambda: select(cuts, ["age<=9", "gender!=x"]),
        lambda: sample(cuts, utterances=1, by="age:6-9"),
        lambda: split_by_speaker(cuts, seed=1, balance="age"),
    ):
        try:
            attempt()
        except UserError as error:
            assert "\n" not in str(error)


def read_check(folder: Path) -> None:
    with Check([str(folder / "t.csv")], folder / "check") as check:
        check.run()
        check.as_dict()


def read_audio(folder: Path) -> None:
    with Check([str(folder / "corpus.csv")]) as check:
        check.run()
    use_corpus("corpus.csv", folder)


def read_prepared(folder: Path) -> None:
    for source, out in (("bad.csv", "begun"), ("t.csv", "out")):
        try:
            prepare_source(str(folder / source), folder / out, SourceOptions(split="50/25/25", skip_bad=out == "begun"))
        except UserError as error:
            assert "\n" not in str(error)


def read_results(name: str, folder: Path) -> None:
    render(read_benchmark(folder / name, resamples=20), resamples=20)
    if name == "stored":
        restore_study(folder / name, folder / "restored")
        read_study(folder / "restored")


def read_listing(folder: Path) -> None:
    listings = Listings([f"train={folder / 'train.txt'}", str(folder / "all.txt")])
    listings.part_of("a", "")
    listings.missing(["a"])


def make_run(folder: Path) -> None:
    """A run of one update; the model is that of the package."""
    for part in ("train", "dev"):
        (folder / part).mkdir()
        make_table(folder / part, "t.csv", ",")
    chosen = AdaptOptions(
        model=str(EMBEDDED), train=[str(folder / "train/t.csv")], dev=[str(folder / "dev/t.csv")], budget="p=0.1",
        epochs=1, updates_per_epoch=1, batch_size=2, device="cpu",
    )  # fmt: skip
    adapt(chosen, folder / "run")


def read_run(folder: Path) -> None:
    run = folder / "run"
    readers: list[Callable[[], object]] = [
        lambda: stated_options(run),
        lambda: base_model_of(run),
        lambda: checked_options(read_config(run)),
        lambda: RunResult.read(run / "result.json"),
        lambda: read_corpus(run / "data" / "train.jsonl.gz"),
        lambda: _WholeFiles().load_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True),
        lambda: load_adapted(EMBEDDED, run),
    ]
    for read in readers:
        try:
            read()
        except UserError as error:
            assert "\n" not in str(error)


def make_checkpoint(folder: Path) -> None:
    shutil.copytree(EMBEDDED, folder / "model")


def read_checkpoint(folder: Path) -> None:
    load_model(str(folder / "model"))


def make_listing(folder: Path) -> None:
    (folder / "train.txt").write_text("a\nb extra\nfolder/c.flac\n")
    (folder / "all.txt").write_text("a\nd\n")


FORMATS = {
    "csv": Format(
        partial(make_table, name="corpus.csv", separator=","), "corpus.csv", partial(use_corpus, "corpus.csv"), 150
    ),
    "tsv": Format(
        partial(make_table, name="corpus.tsv", separator="\t"), "corpus.tsv", partial(use_corpus, "corpus.tsv"), 60
    ),
    "json-lines": Format(make_json_lines, "corpus.jsonl", partial(use_corpus, "corpus.jsonl"), 150),
    "cuts": Format(partial(make_cuts, name="corpus.jsonl"), "corpus.jsonl", partial(use_corpus, "corpus.jsonl"), 300),
    "gzipped-cuts": Format(partial(make_cuts, name="c.jsonl.gz"), "c.jsonl.gz", partial(use_corpus, "c.jsonl.gz"), 60),
    "shards": Format(make_shards, "corpus/*", partial(use_corpus, "corpus"), 100),
    "kaldi": Format(make_kaldi, "[!01]*", partial(use_corpus, "."), 120),
    "wav": Format(partial(make_audio, suffix="wav"), "a.wav", read_audio, 60),
    "flac": Format(partial(make_audio, suffix="flac"), "a.flac", read_audio, 60),
    "mp3": Format(partial(make_audio, suffix="mp3"), "a.mp3", read_audio, 60),
    "ogg": Format(partial(make_audio, suffix="ogg"), "a.ogg", read_audio, 60),
    "cgn": Format(make_cgn, "data/*/text/**/*.*", lambda f: prepare_cgn(f, f / "o", CgnOptions(skip_bad=True)), 100),
    "myst": Format(make_myst, "data/**/*.trn", lambda f: prepare_myst(f, f / "o", MystOptions(skip_bad=True)), 40),
    "speechocean762": Format(
        make_speechocean762,
        "scores.json",
        lambda f: prepare_speechocean762(f, f / "o", Speechocean762Options(dev=50)),
        40,
    ),
    "listing": Format(make_listing, "*.txt", read_listing, 20),
    "prepared": Format(make_prepared, "*/*.*json*", read_prepared, 100),
    "check": Format(make_check, "check/check.sqlite", read_check, 40),
    "grid": Format(
        lambda folder: (folder / "g.yaml").write_text(GRID),
        "g.yaml",
        lambda f: read_grid(f / "g.yaml", small=True),
        150,
    ),
    "run": Format(make_run, "run/**/*.*[nstlz]", read_run, 50),
    "adapter": Format(make_run, "run/adapter/*[ns]", read_run, 60),
    "checkpoint": Format(make_checkpoint, "model/*", read_checkpoint, 60),
    "plan": Format(make_checkpoint, "model/config.json", lambda f: plan_methods(str(f / "model"), "p=0.4"), 20),
    "study": Format(make_study, "study/**/*.json*", partial(read_results, "study"), 100),
    "stored-study": Format(make_stored_study, "stored/*", partial(read_results, "stored"), 40),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(name, tmp_path):
    kind, folder, whole = FORMATS[name], tmp_path / "files", tmp_path / "whole"
    folder.mkdir()
    kind.make(folder)
    shutil.copytree(folder, whole)
    kind.read(folder)  # what is not damaged can be read
    faults = []
    for number in range(kind.files):
        rng = random.Random(f"{SEED} {name} {number}")
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)  # to the same place: some files name others by their path
        file = rng.choice(sorted(path for path in folder.glob(kind.damage) if path.is_file()))
        file.write_bytes(damaged(file.read_bytes(), rng))
        try:
            kind.read(folder)
        except UserError as error:
            if "\n" in str(error) or len(str(error)) > 5000:
                faults.append(f"{number} {file.name}: not a sentence: {error}"[:1000])
        except Exception:
            faults.append(f"{number} {file.name}: {traceback.format_exc(limit=-4)}")
    assert not faults, "\n".join([f"{len(faults)} of {kind.files}", *faults])


def test_all_formats_together_are_two_thousand_files():
    assert sum(kind.files for kind in FORMATS.values()) == 2000
