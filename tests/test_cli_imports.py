"""What the command line imports: help, the version and completion need no torch; what is missing is told."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires

import pytest

from ssvd_cli.data import app as data
from ssvd_cli.errors import EXTRA_OF
from ssvd_cli.main import app
from ssvd_cli.prepare import app as prepare

HEAVY = "torch", "transformers", "peft", "lhotse", "lightning", "numpy", "ssvd", "ssvd.tuners"
TABLES = {"": app.info.cls.table, "data": data.info.cls.table, "prepare": prepare.info.cls.table}
COMMANDS = [[*group.split(), name] for group, table in TABLES.items() for name in table]
# Packages of the extras that the core needs as well.
CORE = {"filelock", "numpy", "pydantic", "rich", "typer", "yaml"}


def run(*arguments, absent=(), **environment):
    """Runs a command in a process of its own, without some packages: (the process, heavy modules that it imported)."""
    code = f"""
import sys
for name in {list(absent)!r}:
    sys.modules[name] = None
sys.argv = ["ssvd", *{[str(argument) for argument in arguments]!r}]
from ssvd_cli.main import main
try:
    main()
finally:
    print("imported:", *(name for name in {HEAVY!r} if sys.modules.get(name)), file=sys.stderr)
"""
    command = [sys.executable, "-c", code]
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment | {"HF_HUB_OFFLINE": "1"}
    )
    *lines, last = process.stderr.splitlines()
    process.stderr = "\n".join(lines)
    assert last.startswith("imported:"), process.stderr
    return process, last.split()[1:]


def without_heavy_modules(*arguments, **environment):
    """The standard output of a command, which must end well and import none of the heavy modules."""
    process, imported = run(*arguments, **environment)
    assert process.returncode == 0 and imported == [], (imported, process.stderr)
    return process.stdout


@pytest.mark.parametrize("command", [[], ["prepare", "table.csv"], *COMMANDS], ids=" ".join)
def test_help_needs_no_torch(command):
    out = without_heavy_modules(*command, "--help", COLUMNS="80")
    assert out.startswith("Usage: ssvd") and max(map(len, out.splitlines())) <= 80


def test_version_and_list_of_grids_need_no_torch():
    assert re.fullmatch(r"ssvd \d.*\n", without_heavy_modules("--version"))
    assert "Methods at matched budgets" in without_heavy_modules("benchmark", "--list")


def test_mistakes_in_the_arguments_need_no_torch():
    for arguments in (["adapt"], ["evaluate", "c"], ["merge", "r"], ["data", "select", "c", "o.csv"], ["sing"]):
        process, imported = run(*arguments)
        assert process.returncode == 2 and imported == [] and "Error: " in process.stderr


@pytest.mark.parametrize("table", TABLES.values(), ids=["ssvd", "data", "prepare"])
def test_lines_of_a_list_of_commands_are_those_of_the_commands(table):
    from ssvd_cli.lazy import load

    for name, entry in table.items():
        first = load(name, entry.target).help.split("\n\n")[0].replace("\n", " ")
        assert table is TABLES["prepare"] or first.startswith(entry.help.removesuffix(".")), name


# shell completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    assert "_SSVD_COMPLETE=complete_" + shell in without_heavy_modules(_SSVD_COMPLETE=f"source_{shell}")


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("ssvd ev", ["evaluate"]),
        ("ssvd data s", ["stats", "split", "select", "sample", "shards"]),
        ("ssvd adapt --le", ["--learning-rate"]),
        ("ssvd data check --sh", ["--shortest", "--show"]),
    ],
)
def test_commands_and_options_are_completed(words, completions):
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    out = without_heavy_modules(_SSVD_COMPLETE="complete_bash", **environment)
    assert out.split() == completions


# packages that are not installed


def test_extras_are_those_of_the_package():
    """Whatever the extras require is named with its extra, and nothing else."""
    imports = {"pyyaml": "yaml", "mlflow-skinny": "mlflow", "hydra-core": "hydra"}
    required = {}
    for requirement in requires("ssvd"):
        match = re.match(
            r"([\w-]+)[^;]*;.*\bextra == .(speech|ctranslate2|vad|wandb|mlflow|demo|hf|ray|espnet).", requirement
        )
        if match and match[1] not in ("ssvd", "packaging", "espnet"):  # of ESPnet another sentence tells
            required[imports.get(match[1].lower(), match[1].replace("-", "_"))] = match[2]
    assert required == EXTRA_OF


NEED_SPEECH = """
prepare {table} {new}
prepare myst {new} {new}
prepare cgn {new} {new}
prepare speechocean762 {new} {new}
data check {table}
data stats {table}
data split {table} {new}
data select {table} {new}.jsonl
data sample {table} {new}.jsonl
data shards {table} {new}
plan {model}
adapt {model} --train {table} --out {new}
evaluate {model} {table}
transcribe {model} {table}
average {new} {new}
merge {new} {new}
push {new} name --license mit
benchmark main --small --out {new}
report {new}
demo --out {new}
""".strip().splitlines()


def refusals(commands, absent):
    """What each command says without some packages, all in one process, as each would import torch anew."""
    code = f"""
import sys
for name in {sorted(absent)!r}:
    sys.modules[name] = None
from ssvd_cli.main import main
for arguments in {[[str(argument) for argument in command] for command in commands]!r}:
    sys.argv = ["ssvd", *arguments]
    try:
        main()
    except SystemExit as error:
        assert error.code == 2, sys.argv
    else:
        raise AssertionError(sys.argv)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    sentences = process.stderr.splitlines()
    assert process.returncode == 0 and process.stdout == "" and len(sentences) == len(commands), process.stderr
    return sentences


def test_core_install_says_what_to_install(embedded, tmp_path):
    (tmp_path / "table.csv").write_text("path,text\n")
    names = {"table": tmp_path / "table.csv", "new": tmp_path / "new", "model": embedded}
    commands = [line.format(**names).split() for line in NEED_SPEECH]
    for line, sentence in zip(NEED_SPEECH, refusals(commands, EXTRA_OF.keys() - CORE), strict=True):
        assert re.fullmatch(
            r"Error: This needs the package \w+, which is not installed: run pip install 'ssvd\[speech\]'\.", sentence
        ), (line, sentence)


def test_each_missing_extra_is_named(tmp_path):
    commands = {
        "ssvd[hf]": ["data", "stats", "hf:some/data?split=train"],
        "ssvd[ray]": ["benchmark", "main", "--small", "--ray", "local", "--out", tmp_path / "ray"],
    }
    for extra, sentence in zip(commands, refusals(commands.values(), ["datasets", "ray"]), strict=True):
        assert f"pip install '{extra}'" in sentence
