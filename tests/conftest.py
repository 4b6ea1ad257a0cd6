"""Fixtures that several tests share."""

import copy
import functools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import ssvd as package

os.environ["SSVD_CACHE"] = "off"  # tests leave nothing in the home folder; those of the cache turn it on

RECORDINGS = Path(__file__).parents[2] / "shared" / "speech"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Folder of recorded speech and of Whisper weights; absent on a user's machine, never absent in CI."""
    if not RECORDINGS.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the recordings: {RECORDINGS}")
        pytest.skip(f"needs recordings that are not part of the project: {RECORDINGS}")
    return RECORDINGS


@pytest.fixture
def ssvd(monkeypatch, capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    from ssvd_cli import main as cli

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ssvd", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The recogniser that comes with the package: a window of 4 s, a byte vocabulary."""
    return Path(package.__file__).parent / "demo" / "embedded"


@pytest.fixture(scope="session")
def adapter(embedded, tmp_path_factory):
    """Make a PEFT adapter with random parameters, of the embedded recogniser or of another; return its folder."""

    def make(config, seed=0, *, model=embedded, std=0.05):
        import torch
        from peft import get_peft_model

        network = get_peft_model(package.load_model(model).module, config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=std, generator=generator)
        folder = tmp_path_factory.mktemp("adapter")
        network.save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> dict[str, Path]:
    """Tables of synthetic speech by kind: 16 child-like utterances by 4 speakers, 8 adult ones by 4."""
    from ssvd.demo.synthetic import write_corpus  # here, as most tests need none of this

    folder = tmp_path_factory.mktemp("speech")
    return {
        kind: write_corpus(folder / kind, kind, count, speakers=4, seed=7)
        for kind, count in (("child", 16), ("adult", 8))
    }


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Makes a checkpoint of random weights of a family of `tiny_checkpoints`, once; return its folder."""
    from tiny_checkpoints import write_checkpoint

    root = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda family: write_checkpoint(root / family, family))


@pytest.fixture(scope="session")
def fresh(tiny_checkpoint):
    """Makes a copy of the recogniser of a tiny checkpoint, which is loaded once."""
    from ssvd.recognisers.loading import load_model

    loaded = functools.cache(lambda family: load_model(tiny_checkpoint(family)))
    return lambda family: copy.deepcopy(loaded(family))


@pytest.fixture(scope="session")
def options(embedded, corpora):
    """Makes the options of a run of 2 epochs of 2 updates; keywords change them."""

    from ssvd.adapt import AdaptOptions

    def make(**changes: Any) -> AdaptOptions:
        values = {"model": str(embedded), "train": [str(corpora["child"])], "dev": [str(corpora["adult"])]}
        small = {"epochs": 2, "updates_per_epoch": 2, "batch_size": 4, "device": "cpu"}
        return AdaptOptions(**(values | small | changes))

    return make


@pytest.fixture
def refused(ssvd):
    """Runs a command that must fail, and returns the one sentence that it says."""

    def run(*arguments):
        code, out, err = ssvd(*arguments)
        assert code == 2, err
        assert out == ""
        (sentence,) = err.splitlines()
        assert sentence.startswith("Error: ") and sentence.endswith(".")
        return sentence

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, or one process waits for the other at the end."""
    longest = ("test_benchmark", "test_tutorial", "test_demo", "test_resume", "test_espnet", "test_fallback")
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))
