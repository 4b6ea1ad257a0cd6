"""A pytest plugin that runs PEFT's own tests on other methods: every row of LoRA becomes rows of those methods.

Tests that use LoRA as the example of a method find the configuration of another method under its name.
"""

import functools
import json
import re
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from peft import LoraConfig, PeftConfig

import ssvd
from peft_suite.models import ALIASES, fill_hub_cache

# Name: configuration, and for each kind of adapter what it sets beyond what the row of LoRA does.
METHODS: dict[str, tuple[type[PeftConfig], dict[str, dict[str, Any]]]] = {
    "lora": (LoraConfig, {"": {}}),
    "ssvd": (
        ssvd.SSVDConfig,
        {
            "": {},
            "strict": {"rotation": "strict", "portion": 0.5},
            "none": {"rotation": "none", "svd": "randomized"},
            "stored": {"basis": "stored"},
        },
    ),
    "svft": (ssvd.SVFTConfig, {"": {}, "plain": {"pattern": "plain"}, "stored": {"basis": "stored"}}),
}

# Of what LoRA's rows set: what every method has, what sizes LoRA only, and layers that are not linear ones.
_COMMON = {"task_type", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"}
_LORA_SIZE = {"r", "lora_alpha", "lora_dropout"}
_NOT_LINEAR = {"emb", "embed_tokens", "conv2d", "conv3d", "mha", "convolution", "l2"}

# Tests without a parameter for the method that hold for any method.
_GENERIC = re.compile(
    r"test_mapping\.py::TestGetPeftModel|"
    r"test_other\.py::(test_modules_to_save|test_load_multiple|TestModulesToSave(Attribute|Kwargs|Unload|Name)|"
    r"TestTargetingAuxiliaryTrainingWrapper::test_(nested_ignores_modules|targeting_module_to|modules_to_save))|"
    r"test_low_level_api\.py::(TestPeftStateDict::test_(get|trained)|TestGetBaseModelStateDict)|"
    r"test_tuners_utils\.py::(TestTargetedModuleNames::test_(one|two|layers)|"
    r"TestExcludedModuleNames::(?!test_realistic)|TestFindMinimalTargetModules::test_get_peft_modules|"
    r"TestModelAndLayerStatus::test_(?!module_type|adapter_model|peft_types|nb_params)(\w+_small|with_modules_to_save)|"
    r"TestTunerStateDictKeyPrefixes::test_prefixes_(module_named|auxiliary))|"
    r"test_custom_models\.py::TestPeftCustomModel::test_(delete_adapter_(multiple_adapters_with_modules|with)|weight_bias_attributes|"
    r"multiple_adapters_no_needless|existing_model_card|non_existing_model_card|save_embedding_layers_excludes)"
)
# Tests with rows of LoRA that cannot run on another method, or here.
_EXCLUDED = re.compile(
    "test_base_model_module_named_like_peft_prefix|"  # a table with the prefixes of LoRA and LoKr alone
    "test_add_weighted_adapter_cat_with_rank_pattern|"  # makes LoRA whatever the method
    "test_from_pretrained_cache_dir"  # downloads from the Hub into a folder of its own
)
_OUTCOMES = pytest.StashKey[dict[str, tuple[str, str]]]()


class _Stub(ModuleType):
    """A package that PEFT's tests import at the top, and that none of the tests that are run uses."""

    __version__ = "0"

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Known(dict):
    """Makes PEFT's tests take every repository for one that was fetched already, so that they stay offline."""

    def __contains__(self, repository: object) -> bool:
        return True

    def __missing__(self, repository: str) -> int:
        return 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method", action="append", choices=list(METHODS), help="method to run; default: all")
    parser.addoption("--outcomes", type=Path, help="JSON file to write what became of each test to")


def pytest_configure(config: pytest.Config) -> None:
    fill_hub_cache(Path(HF_HUB_CACHE))
    config.stash[_OUTCOMES] = {}
    for name in ("datasets", "diffusers"):
        sys.modules[name] = _Stub(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Put rows of the methods in place of all rows, before pytest reads the marks."""
    if _EXCLUDED.search(metafunc.definition.nodeid):
        return
    methods = metafunc.config.getoption("method") or list(METHODS)
    marks = metafunc.definition.own_markers
    converted = False
    for i, mark in enumerate(marks):
        if mark.name != "parametrize":
            continue
        if rows := _rows(mark.args[1], methods):
            converted = True
            marks[i] = pytest.mark.parametrize(mark.args[0], rows).mark
        elif mark.args[0] == "model_id":
            models = [*mark.args[1], *(ALIASES[model] for model in mark.args[1] if model in ALIASES)]
            marks[i] = pytest.mark.parametrize("model_id", models).mark
    if not converted and _GENERIC.search(metafunc.definition.nodeid):
        metafunc.parametrize("stand_in", [pytest.param(method, id=f"@{method}:") for method in methods], indirect=True)


@pytest.fixture(autouse=True)
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration of another method in place of LoRA's, in the module of a generic test."""
    config_class, _ = METHODS[getattr(request, "param", "lora")]
    if config_class is not LoraConfig:
        monkeypatch.setattr(request.module, "LoraConfig", lambda **fields: config_class(**_kwargs(fields)))


def _rows(argvalues: Iterable[Any], methods: list[str]) -> list[Any]:
    """A row for each method and kind of adapter, called "number@method:kind", for each row of LoRA that applies."""
    rows = []
    for number, row in enumerate(argvalues):
        values = row.values if isinstance(row, type(pytest.param())) else row
        values = values if isinstance(values, tuple) else (values,)
        if not _applies(values):
            continue
        for method in methods:
            for kind, extra in METHODS[method][1].items():
                new = [_convert(value, method, extra) for value in values]
                if not kind or new != [_convert(value, method, {}) for value in values]:
                    rows.append(pytest.param(*new, id=f"{number}@{method}:{kind}"))
    return rows


def _applies(values: tuple[Any, ...]) -> bool:
    """Whether a row is one of LoRA, without options that only LoRA has, and on linear layers."""
    if not any(value is LoraConfig or isinstance(value, LoraConfig) for value in values) or "Conv1d" in values:
        return False
    for fields in filter(None, map(_fields, values)):
        targets = fields.get("target_modules") or []
        named = set(re.findall(r"\w+", targets)) if isinstance(targets, str) else set(targets)
        own = fields.keys() - _COMMON - _LORA_SIZE - {"bias", "init_lora_weights"}
        plain = fields.get("bias", "none") == "none" and isinstance(fields.get("init_lora_weights", True), bool)
        if own or not plain or named & _NOT_LINEAR:
            return False
    return True


def _convert(value: Any, method: str, extra: dict[str, Any]) -> Any:
    """What stands in the row of a method where this value stands in that of LoRA."""
    config_class, _ = METHODS[method]
    if config_class is LoraConfig:
        return value
    if value is LoraConfig:
        return config_class
    if value == "lora":
        return method
    if not (fields := _fields(value)):
        return value
    kwargs = _kwargs(fields) | extra
    return config_class(**kwargs) if isinstance(value, LoraConfig) else kwargs


def _fields(value: Any) -> dict[str, Any] | None:
    """What a configuration of LoRA, or keyword arguments of one, set."""
    if isinstance(value, LoraConfig):
        plain = vars(LoraConfig())
        return {name: set_to for name, set_to in vars(value).items() if name not in plain or set_to != plain[name]}
    return value if isinstance(value, dict) else None


def _kwargs(fields: dict[str, Any]) -> dict[str, Any]:
    """What another method takes of it."""
    kwargs = {name: fields[name] for name in fields.keys() & _COMMON}
    if "init_lora_weights" in fields:
        kwargs["init_weights"] = fields["init_lora_weights"]
    return kwargs


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the rows of the methods, and prepare the modules of the tests that were imported."""
    config.hook.pytest_deselected(items=[item for item in items if "@" not in item.name])
    items[:] = [item for item in items if "@" in item.name]
    if utils := sys.modules.get("tests.testing_utils"):
        utils._HUB_MODEL_ACCESSES = _Known()
    if custom := sys.modules.get("tests.test_custom_models"):
        custom.DeepMLP.__init__ = _seeded(custom.DeepMLP.__init__)


def _seeded(init: Any) -> Any:
    """Random weights that are the same each time: tests load adapters onto a model that they build anew, which SSVD
    and SVFT refuse where the weights are others."""

    @functools.wraps(init)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            init(*args, **kwargs)

    return wrapped


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        item.config.stash[_OUTCOMES][item.nodeid] = report.outcome, reason
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if path := session.config.getoption("outcomes"):
        path.write_text(json.dumps(session.config.stash[_OUTCOMES], indent=1))
