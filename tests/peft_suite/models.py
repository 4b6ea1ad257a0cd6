"""Stand-ins for the tiny random models that PEFT's tests fetch from the Hub: the same architectures, made here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

_REVISION = "0" * 40  # of every stand-in; a real one would be the hash of a commit

# Sizes under the names that most configurations share, and the names of those that have their own.
_SIZES = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_GPT = {"vocab_size": 1024, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 0}
_GPT["eos_token_id"] = 0
_LLAMA = {**_SIZES, "num_key_value_heads": 4}
_BART = {"vocab_size": 1024, "d_model": 32, "max_position_embeddings": 128}
for _side in ("encoder", "decoder"):
    _BART |= {f"{_side}_layers": 2, f"{_side}_attention_heads": 4, f"{_side}_ffn_dim": 64}
_T5 = {"vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_T5["decoder_start_token_id"] = 0

# Repository on the Hub: architecture, configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("BartForConditionalGeneration", _BART),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("BertForSequenceClassification", _SIZES),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", _SIZES),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", _SIZES),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", _SIZES),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", _GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("GPTJForCausalLM", {**_GPT, "rotary_dim": 4}),
    "peft-internal-testing/tiny-random-OPTForCausalLM": (
        "OPTForCausalLM",
        {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        _SIZES,
    ),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", _SIZES),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("T5ForConditionalGeneration", _T5),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", _LLAMA),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", _LLAMA),
}

# Tests that PEFT skips for other methods by the name of GPT-2, whose layers are Conv1D, run under another name.
ALIASES = {"peft-internal-testing/tiny-random-GPT2LMHeadModel": "local/tiny-random-GPT-2"}
MODELS |= {alias: MODELS[repository] for repository, alias in ALIASES.items()}
_ADAPTER = "peft-internal-testing/tiny-opt-lora-revision"


def fill_hub_cache(cache: Path) -> None:
    """Lay the stand-ins out as if they had been downloaded, so that offline loading needs no patch of transformers."""
    for repository, (architecture, sizes) in MODELS.items():
        model_class = getattr(transformers, architecture)
        torch.manual_seed(0)
        _put(cache, repository, "main", lambda c=model_class, sizes=sizes: c(c.config_class(**sizes)))
    _put(cache, _ADAPTER, "test", peft.LoraConfig)


def _put(cache: Path, repository: str, branch: str, make: Callable[[], Any]) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / branch
    if not reference.exists():
        make().save_pretrained(folder / "snapshots" / _REVISION)
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(_REVISION)
