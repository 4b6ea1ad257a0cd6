"""The command line: whatever the user gives, results or one sentence and exit code 2."""

import inspect
import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from safetensors.torch import save_file

from ssvd.training.run_folder import read_config
from ssvd_cli.adapt import adapt
from ssvd_cli.benchmark import shipped_grids
from ssvd_options import AdaptOptions


@pytest.fixture
def table(tmp_path):
    """A table of 8 one-second noises by 4 speakers, aged 6 to 9, and the rows given."""
    rng = np.random.default_rng(0)
    for number in range(8):
        soundfile.write(tmp_path / f"{number}.wav", rng.uniform(-0.1, 0.1, 16000), 16000)
    soundfile.write(tmp_path / "long.wav", rng.uniform(-0.1, 0.1, 5 * 16000), 16000)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    (tmp_path / "text.wav").write_text("this is no audio")

    def write(*rows):
        good = [f"{number}.wav,hello there,s{number % 4},{6 + number % 4}" for number in range(8)]
        path = tmp_path / "table.csv"
        path.write_text("\n".join(["path,text,speaker,age", *good, *rows]) + "\n")
        return path

    return write


BAD_ROWS = {
    "missing.wav,hello,s0,7": "there is no audio file .*missing.wav",
    "text.wav,hello,s0,7": "text.wav cannot be read",
    "none.wav,hello,s0,7": "none.wav holds no samples",
    "1.wav,,s0,7": "has no text",
    "long.wav,hello,s0,7": "Utterance long cannot be trained on .*5.00 s and the window is 4 s: cut it",
    f"1.wav,{'word ' * 500},s0,7": "id 1 is already taken",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_row_is_told_and_names_the_option_that_leaves_it_out(refused, table, embedded, tmp_path, row):
    sentence = refused("adapt", embedded, "--train", table(row), "--dev", table(row), "--out", tmp_path / "run")

    assert re.search(BAD_ROWS[row], sentence) and re.search("skip.bad", sentence)
    assert not (tmp_path / "run").exists(), "the corrected command can be given again as it is"


def test_skip_bad_leaves_out_counts_and_lists(ssvd, table, embedded, tmp_path):
    path = table("missing.wav,hello,s0,7", "long.wav,hello,s0,7")
    with path.open("a") as file:
        file.write("0.wav,hello,s0,7\n")  # its id is taken
    dev = tmp_path / "dev.csv"
    dev.write_text("path,text\n0.wav,hello there\n")
    command = ["adapt", embedded, "--train", path, "--dev", dev, "--out", tmp_path / "run", "--skip-bad"]
    code, _, err = ssvd(*command, "--epochs", 1, "--updates-per-epoch", 1, "--batch-size", 2, "--device", "cpu")
    assert code == 0, err
    assert "3 utterances are left out" in err and "skipped.jsonl" in err
    rows = [json.loads(line) for line in (tmp_path / "run" / "data" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(row["where"].rsplit("/")[-1] for row in rows) == ["long", "table.csv:10", "table.csv:12"]


def test_label_longer_than_the_decoder_is_told(refused, table, embedded, tmp_path):
    path = table()
    path.write_text(path.read_text().replace("hello there", "word " * 500, 1))
    sentence = refused("adapt", embedded, "--train", path, "--dev", path, "--out", tmp_path / "run")
    assert "Utterance 0 cannot be trained on (1 of 8 cannot). Its text takes" in sentence


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "magic"], "There is no method 'magic'; choose one of ssvd, ssvd strict, "),
        (["--method", "frozen"], "The method 'frozen' trains nothing: evaluate the model instead."),
        (["--budget", "p=1.5"], "The portion 1.5 must lie above 0 and be at most 1."),
        (["--budget", "much"], "The budget 'much' cannot be read: write p=0.4 "),
        (["--method", "lora", "--budget", "rank=5000"], "rank=5000 is not possible for 'lora': it must lie between 1"),
        (
            ["--method", "vera"],
            "The method 'vera' cannot train about 128,744 parameters of these layers: the nearest is",
        ),
        (["--also-train", "nothing"], "no module 'nothing' to train"),
        (["--augment", "echo=1:2"], "There is no augmentation 'echo=1:2'; write one as in speed=0.9:1.1, "),
        (["--augment", "noise=/nowhere:5:20"], "/nowhere does not exist."),
        (["--batch-seconds", "0"], "batch_seconds must be above 0 or auto, but is '0'."),
        (["--beams", "0"], "beams must be at least 1, but is 0."),
        (["--prefetch", "0"], "prefetch must be at least 1, but is 0."),
        (["--epochs", "0"], "epochs must be at least 1, but is 0."),
        (["--learning-rate", "-1"], "learning_rate must be above 0, but is -1.0."),
        (["--token-stride", "0"], "token_stride must be at least 1, but is 0."),
        (["--device", "tpu"], "device must be auto, cpu, cuda or mps, but is 'tpu'."),
        (["--where", "height<3"], "'height<3' names an unknown field; there are age, "),
        (["--where", "age<3"], "No utterance is left after the condition 'age<3'; age goes from 6 to 9."),
        (["--window", "60"], "A window of 60 s is not possible"),
        (["--normaliser", "klingon"], "There is no normaliser 'klingon'"),
    ],
)
def test_bad_option_of_adapt_is_named(refused, table, embedded, tmp_path, options, told):
    path = table()
    run = tmp_path / "run"
    assert told in refused("adapt", embedded, "--train", path, "--dev", path, "--out", run, *options)
    assert not run.exists()


def test_missing_things_are_told_by_name(refused, table, embedded, tmp_path):
    path, missing, empty = table(), tmp_path / "missing", tmp_path / "empty.csv"
    empty.touch()
    run = ["--out", tmp_path / "run"]
    assert f"{missing} does not exist" in refused("adapt", embedded, "--train", missing, *run)
    assert f"{empty} is empty" in refused("adapt", embedded, "--train", empty, *run)
    assert str(missing) in refused("adapt", missing, "--train", path, *run)
    assert "Name the model" in refused("adapt", "--train", path, *run)
    assert "with --train" in refused("adapt", embedded, *run)
    assert f"{tmp_path} is not empty" in refused("adapt", embedded, "--train", path, "--out", tmp_path)
    assert f"{missing} is not a run folder" in refused("adapt", "--resume", "--out", missing)
    assert f"{missing} is not a run folder" in refused("evaluate", embedded, path, "--adapter", missing)
    assert f"{tmp_path} is not empty" in refused("merge", embedded, missing, tmp_path)
    assert "must be three shares" in refused("prepare", path, missing, "--split", "80/30")
    assert str(path) in refused("prepare", path, path)  # a file where a folder must be made


@pytest.mark.parametrize(
    "command",
    [
        ["adapt", "--epochs", "many"],
        ["adapt", "--colour", "red"],
        ["evaluate"],
        ["sing"],
        ["transcribe", "a.wav", "--run", "r", "--beams", "0"],
    ],
)
def test_misuse_exits_with_2_and_no_traceback(ssvd, command):
    code, _, err = ssvd(*command)
    assert code == 2 and "Usage: ssvd" in err and "Traceback" not in err


def test_version_is_that_of_the_package(ssvd):
    assert ssvd("--version") == (0, f"ssvd {version('ssvd')}\n", "")


def test_help_states_the_defaults_that_hold():
    parameters = inspect.signature(adapt).parameters
    for name, field in AdaptOptions.model_fields.items():
        if not field.is_required():
            assert parameters[name].default == field.default, name


def test_help_of_adapt_is_that_of_the_options(ssvd):
    code, out, _ = ssvd("adapt", "--help")
    help_text = " ".join(out.split()).replace("- ", "-")
    assert code == 0
    for name, field in AdaptOptions.model_fields.items():
        assert name == "model" or f"--{name.replace('_', '-')} " in help_text, name
        assert field.description.removesuffix(".").replace("- ", "-") in help_text, name


@pytest.fixture
def config(tmp_path):
    """Writes options to a YAML file."""

    def write(text):
        path = tmp_path / "options.yaml"
        path.write_text(text)
        return path

    return write


def test_options_from_a_file_and_over_it(ssvd, table, embedded, config, tmp_path):
    path, run = table(), tmp_path / "run"
    file = config(
        f"model: {embedded}\ntrain: [{path}]\ndev: [{path}]\nepochs: 9\nupdates_per_epoch: 1\nskip_bad: true\n"
        "method: lora\nbudget: rank=4\ndevice: cpu\n"
    )
    code, _, err = ssvd("adapt", "--config", file, "--epochs", 1, "--no-skip-bad", "--seed", 0, "--out", run)
    assert code == 0, err
    options = read_config(run)
    assert (options["epochs"], options["skip_bad"], options["method"]) == (1, False, "lora")
    assert options["model"] == str(embedded) and options["batch_size"] == 16
    assert ssvd("adapt", "--config", run / "config.yaml", "--out", tmp_path / "again")[0] == 0
    assert read_config(tmp_path / "again") == options


def test_all_mistakes_of_a_file_are_told_at_once(refused, config, tmp_path):
    file = config("model: m\nepochs: 0\nmethods: ssvd\nbudget: much\ndecay: fast\n")
    sentence = refused("adapt", "--config", file, "--out", tmp_path / "run", "--seed", "-1")
    assert sentence.startswith(f"Error: {file}: 6 options are wrong: (1) ")
    for mistake in (
        "train is missing",
        "epochs must be at least 1, but is 0",
        "there is no option 'methods' (did you mean 'method'?)",
        "The budget 'much' cannot be read",
        "decay must be linear, ",
        "seed must be at least 0, but is -1",
    ):
        assert mistake in sentence, mistake


def test_what_is_no_file_of_options_is_told(refused, config, tmp_path):
    assert "is not YAML" in refused("adapt", "--config", config("epochs: [1"))
    assert "does not hold options by name" in refused("adapt", "--config", config("- epochs\n"))
    assert "none.yaml: No such file" in refused("adapt", "--config", tmp_path / "none.yaml")
    assert "leave out --config" in refused("adapt", "--resume", "--config", config("epochs: 1"))


def test_whole_path_through_the_commands(ssvd, corpora, embedded, tmp_path):
    parts, run = tmp_path / "parts", tmp_path / "run"
    code, out, err = ssvd("prepare", corpora["child"], parts, "--split", "50/25/25", "--seed", 3)
    assert code == 0, err
    assert all((parts / f"{name}.jsonl.gz").is_file() and name in out for name in ("train", "dev", "test"))
    command = ["adapt", embedded, "--train", parts / "train.jsonl.gz", "--dev", parts / "dev.jsonl.gz", "--out", run]
    code, out, err = ssvd(*command, "--epochs", 2, "--batch-size", 4, "--method", "lora", "--device", "cpu")
    assert code == 0, err
    assert "before training  dev WER" in err and "epoch 2/2  loss" in err and "dev WER after" in out
    assert "Warning" not in err

    # What is given with --resume is compared, not ignored.
    assert ssvd("adapt", "--resume", "--out", run)[0] == 0
    assert ssvd(*command, "--epochs", 2, "--resume")[0] == 0
    code, _, err = ssvd("adapt", "--resume", "--out", run, "--epochs", 9)
    assert code == 2 and "begun with other options (epochs was 2)" in err

    test = parts / "test.jsonl.gz"
    code, out, err = ssvd("evaluate", embedded, test, "--adapter", run, "--by", "speaker", "--json")
    assert code == 0, err
    base, adapted = json.loads(out)
    assert base["system"] == "base" and adapted["system"] == str(run) and base["words"] == adapted["words"] > 0
    assert base["word_errors"]["words"] and base["word_errors"]["substitutions"][0]["count"] >= 1
    code, out, err = ssvd("evaluate", embedded, test, "--adapter", run, "--by", "speaker", "--errors", 3)
    assert (
        code == 0 and "Word errors of base on test" in out and f"{base['wer']:.1%}" in out and "speaker=child-" in out
    )

    # A run names its base model.
    code, out, err = ssvd("evaluate", test, "--run", run, "--json")
    assert code == 0, err
    assert [row["wer"] for row in json.loads(out)] == [base["wer"], adapted["wer"]]
    assert [row["system"] for row in json.loads(out)] == ["base", str(run)]

    files = sorted(corpora["adult"].parent.glob("*.flac"))[:2]
    _, by_run, err = ssvd("transcribe", "--run", run, *files)
    assert by_run and by_run == ssvd("transcribe", embedded, *files, "--adapter", run)[1], err
    for arguments in ([run, tmp_path / "by-run"], [embedded, run, tmp_path / "by-model"]):
        code, out, err = ssvd("merge", *arguments)
        assert code == 0 and "holds the merged model" in out, err
    by_run, by_model = (tmp_path / name / "model.safetensors" for name in ("by-run", "by-model"))
    assert by_run.read_bytes() == by_model.read_bytes()

    code, out, err = ssvd("transcribe", embedded, "--adapter", run, *files)
    assert code == 0 and [line.split("\t")[0] for line in out.splitlines()] == [str(path) for path in files]
    code, out, err = ssvd("transcribe", embedded, files[0], tmp_path / "missing.wav", "--json")
    assert code == 2 and json.loads(out)["path"] == str(files[0]) and "there is no audio file" in err
    assert ssvd("transcribe", embedded, files[0], tmp_path / "missing.wav", "--skip-bad")[0] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_audio_that_breaks_while_it_is_decoded_is_told_in_a_sentence(refused_late, table, embedded, tmp_path, workers):
    sentence = refused_late(workers)
    assert "the audio of" in sentence and "7.wav" in sentence


@pytest.fixture
def refused_late(ssvd, table, embedded, tmp_path, monkeypatch):
    """Runs a training whose file 7.wav vanishes once its header is read; the last line that is said."""

    def run(workers):
        path, dev = table(), tmp_path / "dev.csv"
        dev.write_text("path,text\n0.wav,hello there\n")
        from ssvd.adapt import Adaptation

        vanish = lambda self: (tmp_path / "7.wav").unlink(missing_ok=True)  # noqa: E731
        monkeypatch.setattr(Adaptation, "on_train_start", vanish)
        command = ["adapt", embedded, "--train", path, "--dev", dev, "--out", tmp_path / "run", "--device", "cpu"]
        code, _, err = ssvd(*command, "--batch-size", 8, "--workers", workers)
        assert code == 2 and "Traceback" not in err, err
        return err.splitlines()[-1]

    return run


def test_fresh_process_refuses_with_the_same_sentence_and_code(tmp_path):
    command = [sys.executable, "-m", "ssvd", "prepare", str(tmp_path / "missing.csv"), str(tmp_path / "out")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr == f"Error: {tmp_path / 'missing.csv'} does not exist.\n"


@pytest.fixture
def run_of(tmp_path):
    """Makes what names a base model: a run folder with its options, or the configuration of a PEFT adapter."""

    def make(name, model, *, peft=False):
        folder = tmp_path / name
        folder.mkdir()
        if peft:
            (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": model}))
            save_file({}, folder / "adapter_model.safetensors")
        else:
            (folder / "config.yaml").write_text(json.dumps({"model": model, "train": ["t"]}))
        return folder

    return make


def test_runs_of_different_models_are_not_compared(refused, run_of, table):
    one, two = run_of("one", "org/small"), run_of("two", "org/large", peft=True)
    sentence = refused("evaluate", table(), "--run", one, "--run", two)
    assert "The runs have different base models" in sentence
    assert f"{one} is on org/small, {two} is on org/large" in sentence


def test_base_model_that_is_missing_is_told(refused, run_of, table, tmp_path):
    run = run_of("run", str(tmp_path / "gone"), peft=True)
    assert str(tmp_path / "gone") in refused("transcribe", "a.wav", "--run", run)
    assert str(tmp_path / "gone") in refused("merge", run, tmp_path / "out")
    assert "does not name its base model" in refused("merge", run_of("nameless", "", peft=True), tmp_path / "out")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["evaluate", "m", "c", "--run", "r", "--adapter", "r"], "Give either --run"),
        (["evaluate", "c"], "Name a model and a corpus, or a corpus and --run RUN"),
        (["transcribe", "a.wav"], "Name a model and an audio file, or an audio file and --run RUN"),
        (["merge", "r"], "Write ssvd merge RUN OUT"),
        (["merge", "m", "r", "o", "x"], "Write ssvd merge RUN OUT"),
        (["benchmark"], "Name a grid"),
        (["benchmark", "none"], "There is no grid 'none'; the package has convergence, families, "),
        (["benchmark", "--copy", "none"], "There is no grid 'none'"),
        (["benchmark", "main", "other.yaml"], "other.yaml has no meaning without --copy"),
        (["benchmark", "none.yaml"], "none.yaml does not exist."),
    ],
)
def test_arguments_that_make_no_sense_are_told(refused, command, told):
    assert told in refused(*command)


# the grids of the package


def test_shipped_grids_are_listed_with_their_titles(ssvd):
    code, out, _ = ssvd("benchmark", "--list")
    assert code == 0
    for name, file in shipped_grids().items():
        title = yaml.safe_load(file.read_text())["title"]
        assert title and re.search(rf"{re.escape(name)} +{re.escape(title)}", out)


def test_a_shipped_grid_is_copied_and_never_over_a_file(ssvd, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = shipped_grids()["main"].read_text()
    (tmp_path / "folder").mkdir()
    for arguments, file in (
        (["--copy", "main"], "main.yaml"),
        (["--copy", "main", "my.yaml"], "my.yaml"),
        (["main", "folder", "--copy"], "folder/main.yaml"),
    ):
        code, out, _ = ssvd("benchmark", *arguments)
        assert code == 0 and file in out
        assert (tmp_path / file).read_text() == expected
    assert "main.yaml exists already" in refused("benchmark", "--copy", "main")


def test_a_grid_is_run_by_its_name_unless_a_file_has_it(ssvd, tmp_path, monkeypatch):
    read = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssvd.benchmark.grid.read_grid", lambda path, small: read.append((path, small)))
    monkeypatch.setattr("ssvd.benchmark.scheduler.run_benchmark", lambda *_, **__: None)
    assert ssvd("benchmark", "main", "--small")[0] == 0
    (tmp_path / "main").touch()
    assert ssvd("benchmark", "main")[0] == 0
    assert read == [(shipped_grids()["main"], True), (Path("main"), False)]
