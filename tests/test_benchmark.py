"""The benchmark: grids and what is wrong with them, the search for learning rates, killed and resumed runs."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ssvd.benchmark.grid import Group, checked_grid, read_grid
from ssvd.benchmark.records import (
    Failure,
    read_hypotheses,
    read_records,
    read_results,
    restore_study,
    store_study,
)
from ssvd.benchmark.scheduler import group_state, run_benchmark
from ssvd.benchmark.search import best_rate, rates_to_try
from ssvd.benchmark.tasks import Task
from ssvd.errors import StoppedError, UserError
from ssvd.methods import METHODS
from ssvd.training.progress import Log
from ssvd_cli.benchmark import shipped_grids
from ssvd_cli.main import app

GRIDS = sorted(shipped_grids().values())


@pytest.fixture
def values(corpora):
    """A grid of one seed and one search, a few seconds a cell."""
    child, adult = str(corpora["child"]), str(corpora["adult"])
    return {
        "models": {"tiny": "embedded"},
        "corpora": {
            "child": {"train": child, "dev": adult, "test": child, "by": ["accent"], "sources": {"adult": adult}}
        },
        "methods": ["lora", {"ssvd": "portion=0.2"}],
        "budgets": ["p=0.3"],
        "learning_rates": {"lora": [1e-3], "ssvd": [1e-3, 3e-3]},
        "extensions": 0,
        "seeds": [3],
        "training": {"epochs": 1, "updates_per_epoch": 1, "batch_size": 4, "fallback": False},
    }


@pytest.fixture
def two_seeds(values):
    """The same with two seeds, the fallback of decoding, and a scale."""
    training = {name: value for name, value in values["training"].items() if name != "fallback"}
    return values | {"seeds": [3, 4], "scales": [0.5], "training": training}


def ids(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for kind in ("cells", "trials") for path in (folder / kind).glob("*.json")}


EXPECTED = {
    "cells/tiny_child_frozen_seed=3.json",
    "trials/tiny_child_lora_p=0.3_lr=0.001_seed=3.json",
    "trials/tiny_child_lora_p=0.3_lr=0.001_seed=4.json",
    "cells/tiny_child_lora_p=0.3_seed=3.json",
    "cells/tiny_child_lora_p=0.3_seed=4.json",
    "trials/tiny_child_ssvd_portion=0.2_lr=0.001_seed=3.json",
    "trials/tiny_child_ssvd_portion=0.2_lr=0.003_seed=3.json",
    "cells/tiny_child_ssvd_portion=0.2_seed=3.json",
    "cells/tiny_child_ssvd_portion=0.2_seed=4.json",
}


def without_chosen(found: set[str]) -> set[str]:
    """Without the training of the second seed of SSVD, whose rate is chosen on dev."""
    chosen = {name for name in found if "ssvd_portion=0.2_lr" in name and name.endswith("seed=4.json")}
    assert len(chosen) == 1
    return found - chosen


def test_every_cell_is_computed_once_and_says_how(two_seeds, tmp_path):
    out, log = tmp_path / "results", Log((tmp_path / "log").open("w"))
    grid = checked_grid(two_seeds, "grid")
    run_benchmark(grid, out, device="cpu", progress=log)
    assert without_chosen(ids(out)) == EXPECTED
    results, skipped = read_results(out)
    assert not skipped and not read_records(out, Failure)[0]
    for result in results:
        assert result.test.utterances == 16 and result.sources["adult"].utterances == 8
        assert sum(part.utterances for part in result.test.groups["accent"].values()) == 16
        texts = read_hypotheses(out, result)
        assert len(texts) == 16 and all(text.speaker and text.reference for text in texts)
        assert all((out / file).is_file() or Path(file).is_file() for file in result.audio.values())
        assert result.model_parameters == 3_229_248
    frozen, lora, _, ssvd, ssvd2 = results
    assert (frozen.cell.method, frozen.trainable_parameters, frozen.learning_rate) == ("frozen", 0, None)
    assert lora.trainable_parameters == METHODS["lora"].count(*_shapes_and(lora.setting))
    assert ssvd.setting == 0.2 and ssvd.options["method"] == "ssvd" and ssvd.options["seed"] == 3
    assert ssvd.options["train"] == ["data/child/train.jsonl.gz"]  # of no machine
    assert list(ssvd.search) == ["0.001", "0.003"]
    assert ssvd.learning_rate == ssvd2.learning_rate == float(min(ssvd.search, key=ssvd.search.get))
    assert ssvd.best_dev_wer == min(ssvd.search.values())
    assert [row.epoch for row in ssvd.series] == [0, 1]
    assert not frozen.scales and [scaled.scale for scaled in ssvd.scales] == [0.5]
    assert 0 <= lora.scales[0].test_wer <= 1 and list(lora.scales[0].source_wers) == ["adult"]
    assert not any((out / "runs").iterdir())  # adapters of finished groups are not kept
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    run_benchmark(grid, out, device="cpu", progress=log)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.json")} == times
    app(["report", str(out), "--html", str(tmp_path / "report.html")], standalone_mode=False)
    assert "tiny on child" in (tmp_path / "report.html").read_text(encoding="utf-8")
    # A further method and seed are computed in addition; another schedule would not be comparable.
    more = checked_grid(two_seeds | {"methods": [*two_seeds["methods"], {"pissa": "rank=2"}], "seeds": [3]}, "grid")
    run_benchmark(more, out, device="cpu", progress=log)
    assert "cells/tiny_child_pissa_rank=2_seed=3.json" in ids(out)
    for field, change in (
        ("training", {"training": {"epochs": 2}}),
        ("corpora: child", {"corpora": {"child": {"synthetic": "child"}}}),
    ):
        with pytest.raises(UserError, match=f"begun with another {field}"):
            run_benchmark(checked_grid(two_seeds | change, "grid"), out, device="cpu", progress=log)


def _shapes_and(setting):
    from ssvd.benchmark.grid import EMBEDDED
    from ssvd.benchmark.tasks import _outline

    return _outline(str(EMBEDDED))[0], setting


def test_what_fails_is_named_and_the_rest_goes_on(values, tmp_path, monkeypatch):
    from ssvd.benchmark import tasks as cells

    train = cells.adapt

    def adapt(options, *arguments, **keywords):
        if options.method == "ssvd" and options.learning_rate == 3e-3:
            raise UserError("The loss became nan.")
        return train(options, *arguments, **keywords)

    monkeypatch.setattr(cells, "adapt", adapt)
    grid = checked_grid(values | {"methods": [{"vera": "2000000"}, *values["methods"]]}, "grid")
    with (tmp_path / "log").open("w") as file:
        run_benchmark(grid, tmp_path / "results", device="cpu", progress=Log(file))
    assert "vera_2000000 is left out: The method 'vera' cannot train about 2,000,000" in (tmp_path / "log").read_text()
    failures, _ = read_records(tmp_path / "results", Failure)
    reasons = {failure.id: failure.reason for failure in failures}
    assert "the nearest is 20,352, with rank=192" in reasons["tiny_child_vera_2000000"]
    assert reasons["tiny_child_ssvd_portion=0.2_lr=0.003_seed=3"] == "The loss became nan."
    results = {result.cell.method: result for result in read_results(tmp_path / "results")[0]}
    assert results.keys() == {"frozen", "lora", "ssvd"}
    assert results["ssvd"].search["0.003"] is None and results["ssvd"].learning_rate == 1e-3


def test_a_damaged_record_is_named_and_the_rest_goes_on(values, tmp_path):
    out = tmp_path / "results"
    grid = checked_grid(values | {"methods": ["lora"]}, "grid")
    log = Log((tmp_path / "log").open("w"))
    run_benchmark(grid, out, device="cpu", progress=log)
    trial = next((out / "trials").glob("*.json"))
    (out / "cells" / "tiny_child_lora_p=0.3_seed=3.json").unlink()
    trial.write_text(trial.read_text()[:200])
    run_benchmark(grid, out, device="cpu", progress=log)
    assert f"is skipped: {trial} is damaged: delete it" in (tmp_path / "log").read_text()
    other = json.loads((out / "cells" / "tiny_child_frozen_seed=3.json").read_text())
    other["origin"]["ssvd_schema"] = 99
    (out / "cells" / "tiny_child_frozen_seed=3.json").write_text(json.dumps(other))
    results, skipped = read_results(out)
    assert not results and "has version 99, but this program reads 1" in skipped[0].reason


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({}, [1e-3, 3e-3, 1e-2]),
        ({1e-3: 0.4}, [3e-3, 1e-2]),
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.35}, []),
        ({1e-3: 0.3, 3e-3: 0.35, 1e-2: None}, [3.3e-4]),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3}, [3e-2]),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3, 3e-2: 0.31}, []),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3, 3e-2: 0.2}, [9e-2]),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3, 3e-2: 0.2, 9e-2: 0.1}, []),
        ({1e-3: None, 3e-3: None, 1e-2: None}, [3.3e-4]),
    ],
)
def test_the_search_goes_on_while_the_best_rate_lies_on_the_edge(outcomes, expected):
    assert rates_to_try([1e-3, 3e-3, 1e-2], 2, False, outcomes) == expected


def test_one_rate_is_no_search():
    assert rates_to_try([1e-3], 2, True, {}) == [1e-3]
    assert rates_to_try([1e-3], 2, True, {1e-3: 0.2}) == []


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({1e-3: 0.4, 3e-3: 0.3}, [1e-2]),
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.35}, [1.5e-3, 6e-3]),
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.35, 1.5e-3: 0.2}, [6e-3]),
        ({1e-3: 0.4, 3e-3: 0.3, 1e-2: 0.35, 1.5e-3: 0.2, 6e-3: 0.4}, []),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3}, [3e-2]),
        ({1e-3: 0.5, 3e-3: 0.4, 1e-2: 0.3, 3e-2: 0.31}, [5e-3, 2e-2]),
        ({1e-3: None, 3e-3: None, 1e-2: None, 3.3e-4: None}, []),
    ],
)
def test_half_and_twice_the_best_rate_are_tried_at_the_end(outcomes, expected):
    assert rates_to_try([1e-3, 3e-3, 1e-2], 1, True, outcomes) == expected


def test_of_equal_rates_the_lower_is_chosen():
    assert best_rate({1e-3: 0.2, 3e-4: 0.2, 1e-4: None}) == 3e-4
    assert best_rate({1e-3: None}) is None


def test_a_method_may_adapt_a_further_group_of_layers(values):
    grid = checked_grid(values | {"methods": ["ssvd", "ssvd + front-end", "lora+ + front-end", "full"]}, "grid")
    groups = {group.method: group for group in grid.groups()}
    assert [(g.adaptation.name, g.further_layers) for g in groups.values()] == [
        ("frozen", []),
        ("ssvd", []),
        ("ssvd", ["front-end"]),
        ("lora+", ["front-end"]),
        ("full", []),
    ]
    assert len({group.id for group in groups.values()}) == len(groups)
    assert groups["ssvd + front-end"].id == "tiny_child_ssvd+front-end_p=0.3"
    with pytest.raises(UserError, match="no method 'lore'"):
        checked_grid(values | {"methods": ["lore + front-end"]}, "grid")


def test_a_further_group_of_layers_is_trained_and_shown_as_a_row_of_its_own(values, tmp_path):
    grid = checked_grid(values | {"methods": ["ssvd + front-end"], "learning_rates": {"ssvd": [2e-3]}}, "grid")
    run_benchmark(grid, tmp_path, device="cpu")
    (row,) = (result for result in read_results(tmp_path)[0] if result.cell.method == "ssvd + front-end")
    assert row.options["layers"] == ["encoder", "projector", "decoder", "front-end"]
    assert row.trainable_parameters > METHODS["ssvd"].count(*_shapes_and(row.setting))
    assert row.test.wer is not None


def test_tests_wait_for_their_training(two_seeds, tmp_path):
    group = Group("tiny", "child", "lora", "p=0.3")
    state = group_state(checked_grid(two_seeds, "grid"), tmp_path, group)
    assert state.ready == [Task(group, 3, 1e-3)] and (state.done, state.total) == (0, 4)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("small", [False, True])
def test_shipped_grids_can_be_read(path, small):
    if small and not yaml.safe_load(path.read_text()).get("small"):
        with pytest.raises(UserError, match="no field small"):
            read_grid(path, small=True)
        return
    grid = read_grid(path, small=small)
    assert {method for method, _ in grid.compared()} >= {"frozen", "ssvd"}
    if small:
        assert all(name == "embedded" or name.startswith("random:") for name in grid.models.values())
        assert all(parts.synthetic for parts in grid.corpora.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["lore"]}, "grid: There is no method 'lore'; choose one of ssvd"),
        ({"methods": [{"lora": "lots"}]}, "grid: The budget 'lots' cannot be read"),
        ({"budgets": ["p=0"]}, "'p=0' trains nothing"),
        ({"methods": []}, "methods: List should have at least 1 item"),
        ({"method": ["lora"]}, "method: Extra inputs are not permitted"),
        ({"models": {"a b": "embedded"}}, "models: the name of a model or corpus may hold letters"),
        ({"corpora": {"child": {"train": "x.csv"}}}, "corpora.child: give train, dev and test, or synthetic"),
        ({"corpora": {"child": {"synthetic": "elf"}}}, "corpora.child.synthetic: Input should be 'child' or 'accent'"),
        ({"seeds": [1, 1]}, "seeds: seeds must be different"),
        ({"learning_rates": {"lora": []}}, "learning_rates of lora must be above 0"),
        ({"training": {"epochs": 0}}, "training: epochs must be at least 1"),
        ({"training": {"epoch": 1}}, "training: there is no option 'epoch'"),
        ({"training": {"method": "lora"}}, "training: method is set by the grid"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(values, changes, message):
    with pytest.raises(UserError) as error:
        checked_grid(values | changes, "grid")
    assert message in str(error.value)


def test_an_empty_corpus_and_a_foreign_folder_are_refused(values, tmp_path):
    values["corpora"]["child"]["by"] = ["age:6-10"]
    with pytest.raises(
        UserError, match="No utterance of the test set of child has the field 'age'; the fields are: acc"
    ):
        run_benchmark(checked_grid(values, "grid"), tmp_path / "results", device="cpu")
    values["corpora"]["child"]["by"] = []
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        values["corpora"]["child"]["test"] = str(tmp_path / "none.csv")
        run_benchmark(checked_grid(values, "grid"), tmp_path / "results", device="cpu")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no results"):
        run_benchmark(checked_grid(values, "grid"), tmp_path / "mine", device="cpu")
    with pytest.raises(UserError, match=r"grid\.yaml does not exist"):
        read_grid(tmp_path / "grid.yaml")
    (tmp_path / "grid.yaml").write_text("methods: [")
    with pytest.raises(UserError, match="is not YAML"):
        read_grid(tmp_path / "grid.yaml")


def test_a_failed_test_is_tried_again_and_a_lost_run_is_trained_again(values, tmp_path, monkeypatch):
    from ssvd.benchmark import tasks as cells

    out, log = tmp_path / "results", Log((tmp_path / "log").open("w"))
    grid = checked_grid(values | {"methods": ["lora"]}, "grid")
    cell = out / "cells" / "tiny_child_lora_p=0.3_seed=3.json"
    trial = out / "trials" / "tiny_child_lora_p=0.3_lr=0.001_seed=3.json"

    def lost(*arguments, **keywords):
        raise RuntimeError(f"out of memory in {out}/runs")

    with monkeypatch.context() as broken:
        broken.setattr(cells, "load_adapted", lost)
        run_benchmark(grid, out, device="cpu", progress=log)
    (failed,) = read_records(out, Failure)[0]
    assert failed.reason == "RuntimeError: out of memory in runs" and not cell.exists()
    before = trial.stat().st_mtime_ns
    run_benchmark(grid, out, device="cpu", progress=log, retry=True)
    assert cell.exists() and trial.stat().st_mtime_ns == before  # its run was kept
    scored = json.loads(cell.read_text())["test"]
    cell.unlink()
    run_benchmark(grid, out, device="cpu", progress=log)
    assert json.loads(cell.read_text())["test"] == scored and trial.stat().st_mtime_ns > before
    assert not read_records(out, Failure)[0]


def test_another_learning_rate_replaces_the_cells_of_the_former(values, tmp_path):
    out, log = tmp_path / "results", Log((tmp_path / "log").open("w"))
    for rate in (1e-3, 4e-3, 1e-3):
        changed = {"methods": ["lora"], "learning_rates": {"lora": [rate]}}
        run_benchmark(checked_grid(values | changed, "grid"), out, device="cpu", progress=log)
        rates = {result.learning_rate for result in read_results(out)[0] if result.cell.method == "lora"}
        assert rates == {rate}


def test_a_run_that_was_begun_otherwise_is_begun_anew(values, tmp_path):
    out, log = tmp_path / "results", Log((tmp_path / "log").open("w"))
    grid = checked_grid(values | {"methods": ["lora"]}, "grid")
    run = out / "runs" / "tiny_child_lora_p=0.3_lr=0.001_seed=3"
    run_benchmark(grid, out, device="cpu", progress=log, keep_runs=True)
    for path in [*(out / "cells").glob("*lora*"), *(out / "trials").glob("*lora*")]:
        path.unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "result.json").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": "/moved/embedded"}))
    run_benchmark(grid, out, device="cpu", progress=log)
    assert not read_records(out, Failure)[0] and (out / "cells" / "tiny_child_lora_p=0.3_seed=3.json").exists()


def test_a_full_disk_stops_the_benchmark_and_is_no_failure_of_a_cell(values, tmp_path, monkeypatch):
    from ssvd.benchmark import tasks as cells

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    grid, out = checked_grid(values, "grid"), tmp_path / "results"
    monkeypatch.setattr(cells, "write_hypotheses", full)
    with pytest.raises(StoppedError, match=r"No space left.*the same command goes on with tiny_child_frozen"):
        run_benchmark(grid, out, device="cpu", progress=Log((tmp_path / "log").open("w")))
    assert not read_records(out, Failure)[0]
    stopped = pickle.loads(pickle.dumps(StoppedError("It stopped", "go on.")))  # as between processes
    assert (str(stopped), stopped.reason) == ("It stopped; go on.", "It stopped")


def test_equal_ids_in_two_parts_of_a_corpus_are_refused(values, tmp_path, corpora, ssvd, embedded):
    copy = tmp_path / "copy" / "metadata.csv"
    shutil.copytree(corpora["child"].parent, copy.parent)
    values["corpora"]["child"]["train"] = [str(corpora["child"]), str(copy)]
    grid = checked_grid(values | {"skip_bad": True}, "grid")
    with pytest.raises(UserError, match=r"both have an utterance child-7-00000: give each a unique id"):
        run_benchmark(grid, tmp_path / "results", device="cpu")
    code, _, told = ssvd("adapt", embedded, "--train", corpora["child"], "--train", copy, "--out", tmp_path / "run")
    assert code == 2 and "both have an utterance child-7-00000" in " ".join(told.split())


def test_a_grid_of_the_user_is_not_taken_for_the_record_of_a_benchmark(values, tmp_path):
    own = tmp_path / "grid.yaml"
    own.write_text(yaml.safe_dump(values))
    for content in (own.read_text(), "methods: ["):
        own.write_text(content)
        with pytest.raises(UserError, match=r"grid\.yaml is not what a benchmark wrote"):
            run_benchmark(checked_grid(values, "grid"), tmp_path, device="cpu")
        assert own.read_text() == content


def test_a_restored_study_is_gone_on_with_though_its_grid_was_given_a_comment(values, tmp_path):
    grid, stored, restored = checked_grid(values | {"methods": ["frozen"]}, "grid"), tmp_path / "b", tmp_path / "c"
    run_benchmark(grid, tmp_path / "a", device="cpu")
    store_study(tmp_path / "a", stored)
    with (stored / "grid.yaml").open("a") as file:
        file.write("# with the first seed only\n")
    restore_study(stored, restored)
    (cell,) = (restored / "cells").iterdir()
    before = cell.stat().st_mtime_ns
    run_benchmark(grid, restored, device="cpu")
    assert cell.stat().st_mtime_ns == before


def test_results_from_before_a_field_of_grids_was_added_are_continued(values, tmp_path):
    grid = checked_grid(values | {"methods": ["frozen"]}, "grid")
    run_benchmark(grid, tmp_path, device="cpu")
    stored = yaml.safe_load((tmp_path / "grid.yaml").read_text())
    assert {"refine", "scales"} <= stored.keys()
    stored = {name: value for name, value in stored.items() if name not in ("refine", "scales")}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(stored, sort_keys=False))
    run_benchmark(grid, tmp_path, device="cpu")
    assert yaml.safe_load((tmp_path / "grid.yaml").read_text()) == stored | {"refine": False, "scales": grid.scales}


@pytest.mark.slow
def test_killed_ten_times_and_resumed_by_two_processes_nothing_is_missing_or_done_twice(two_seeds, tmp_path):
    grid, out = tmp_path / "grid.yaml", tmp_path / "results"
    grid.write_text(yaml.safe_dump(two_seeds))
    command = [sys.executable, "-m", "ssvd", "benchmark", str(grid), "--out", str(out), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    chance, first_seen = random.Random(0), {}

    def note() -> None:
        for path in [*out.glob("cells/*.json"), *out.glob("trials/*.json")]:
            written = path.stat().st_mtime_ns
            assert first_seen.setdefault(path.name, written) == written, f"{path} was computed twice"

    for _ in range(10):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
        time.sleep(chance.uniform(6, 20))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        note()
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    note()
    assert without_chosen(ids(out)) == EXPECTED
    done = [line.split()[1] for text in said for line in text.splitlines() if " WER " in line]
    assert len(done) == len(set(done))
    for result in read_results(out)[0]:
        assert len(read_hypotheses(out, result)) == 16
    fresh = tmp_path / "fresh"
    assert subprocess.run([*command[:-3], str(fresh), "--device", "cpu"], env=environment, timeout=400).returncode == 0
    for result in read_results(fresh)[0]:
        other = next(r for r in read_results(out)[0] if r.id == result.id)
        assert other.test == result.test and other.search == result.search
    shutil.rmtree(out)
