"""The registry of families: whole, importable, and what the page of the documentation says."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.models.auto import modeling_auto

from ssvd.benchmark.grid import checked_grid
from ssvd.demo.random_checkpoints import CTC_FAMILIES
from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser
from ssvd.recognisers.families import ESPNET_FAMILIES, FAMILIES, REFUSED
from ssvd.recognisers.loading import load_model

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", ["CTC", "SPEECH_SEQ_2_SEQ", "RNNT", "TDT"])
def test_every_recogniser_of_transformers_is_supported_or_refused_with_a_reason(kind):
    known = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")
    assert known and not known.keys() - FAMILIES.keys() - REFUSED.keys()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_has_a_class_that_loads_it(model_type):
    loader = FAMILIES[model_type].loader()
    assert issubclass(loader, Recogniser) and callable(loader.without_weights) and callable(loader.outline)


def test_every_family_with_a_ctc_head_is_tested_on_random_weights():
    assert {name for name, family in FAMILIES.items() if family.kind == "CTC"} == {*CTC_FAMILIES}


def test_the_page_of_the_documentation_has_every_row(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import families_page

    page = families_page.page()
    sys.modules.pop("families_page")
    for model_type, family in FAMILIES.items():
        (line,) = [line for line in page.splitlines() if f"| `{model_type}` | {family.checkpoints}" in line]
        assert family.notes in line and family.adapted in line and (family.real_weights or "none") in line
    for model_type, row in REFUSED.items():
        assert f"| {row.name} | `{model_type}` | {row.kind} | {row.reason} | `{row.sibling}` |" in page
    assert all(family.name in page for family in ESPNET_FAMILIES)
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "scripts/families_page.py" in yaml.safe_load(config)["hooks"] and families_page.PAGE in config


def test_a_grid_makes_its_random_checkpoints_and_makes_them_the_same(tmp_path):
    models = {"wavlm": "random:wavlm", "listening": "random:qwen3_asr", "whisper": "random:whisper"}
    grid = checked_grid({"models": models, "corpora": {"child": {"synthetic": "child"}}, "methods": ["lora"]}, "grid")
    for folder in (tmp_path / "first", tmp_path / "second"):
        grid.place(folder)
        assert [load_model(grid.checkpoint(name)).module.config.model_type for name in models] == [
            "wavlm",
            "qwen3_asr",
            "whisper",
        ]
        assert pickle.loads(pickle.dumps(grid)).checkpoint("wavlm") == str(folder / "wavlm")
    for name in ("wavlm", "qwen3_asr", "whisper"):
        first, second = (load_file(tmp_path / part / name / "model.safetensors") for part in ("first", "second"))
        assert all(torch.equal(second[key], value) for key, value in first.items())
    before = (tmp_path / "second/wavlm/model.safetensors").stat().st_mtime_ns
    grid.place(tmp_path / "second")
    assert (tmp_path / "second/wavlm/model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"no random checkpoint of the family '\.\./wavlm': choose among wav2vec2"):
        grid.model_copy(update={"models": {"x": "random:../wavlm"}}).place(tmp_path)
