"""Pretrain a small model like OWSM (E-Branchformer, Transformer, CTC) on synthetic adult speech, from random weights.

    python scripts/pretrain_owsm.py runs/owsm-small

The folder is laid out as OWSM is published, and `ssvd` and ESPnet take it as they take OWSM. It has a window of 4 s,
knows English only, and writes lower case. Utterances of like length are trained together, cut to the longest, for the
first 85 % of the steps.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jiwer
import numpy as np
import sentencepiece
import torch
import typer
import yaml

from ssvd.corpora.corpus import read_corpus
from ssvd.demo.sentences import sentence
from ssvd.demo.synthetic import write_corpus
from ssvd.evaluate import decode
from ssvd.recognisers.espnet_checkpoint import espnet_importable
from ssvd.recognisers.loading import load_model
from ssvd.recognisers.spec_augment import SpecAugment

WINDOW = 4  # seconds
RESOLUTION = 0.02  # seconds, of timestamps
SPECIAL = ["<na>", "<nospeech>", "<nolang>"]


def write_tokens(folder: Path, texts: list[str], languages: list[str], pieces: int) -> list[str]:
    """Train data/bpe.model on texts, and return the token list of a model of OWSM's kind."""
    times = [f"<{n * RESOLUTION:.2f}>" for n in range(round(WINDOW / RESOLUTION) + 1)]
    symbols = [*SPECIAL, *(f"<{code}>" for code in languages), "<asr>", "<st_eng>", "<notimestamps>", *times]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "data" / "bpe"),
        vocab_size=pieces,
        model_type="bpe",
        character_coverage=1.0,
        user_defined_symbols=symbols,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "data" / "bpe.model"))
    learnt = [model.id_to_piece(n) for n in range(len(model))]
    others = [piece for piece in learnt if piece not in {"<unk>", "<s>", "</s>", *symbols}]
    return ["<blank>", "<unk>", *symbols, *others, "<sos>", "<eos>", "<sop>"]


def _task(ctc: bool) -> Any:
    with espnet_importable():
        if ctc:
            from espnet2.tasks.s2t_ctc import S2TTask
        else:
            from espnet2.tasks.s2t import S2TTask
    return S2TTask


def new_model(config: dict[str, Any]) -> torch.nn.Module:
    """Return the network of a config with random weights."""
    return _task("promptencoder" in config).build_model(argparse.Namespace(**config))


def config_of(
    tokens: list[str], dim: int, blocks: tuple[int, int], ctc: bool = False, heads: int | None = None
) -> dict[str, Any]:
    """Return the config of OWSM v3.1, or of OWSM-CTC, with this width and these blocks of encoder and decoder."""
    with patch.object(sys, "argv", sys.argv[:1]):  # which ESPnet would read too
        config = _task(ctc).get_default_config()
    heads = heads or max(1, dim // 48)
    encoder = {
        "output_size": dim,
        "attention_heads": heads,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "rel_pos_type": "latest",
        "cgmlp_linear_units": 4 * dim,
        "cgmlp_conv_kernel": 31,
        "use_linear_after_conv": False,
        "gate_activation": "identity",
        "num_blocks": blocks[0],
        "dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "input_layer": "conv2d",
        "linear_units": 4 * dim,
        "positionwise_layer_type": "linear",
        "use_ffn": True,
        "macaron_ffn": True,
        "merge_conv_kernel": 31,
    }
    config |= {
        "token_list": tokens,
        "token_type": "bpe",
        "bpemodel": "data/bpe.model",
        "frontend_conf": {"n_fft": 512, "win_length": 400, "hop_length": 160, "fs": 16000},
        "normalize": "utterance_mvn",
        "normalize_conf": {},
        "encoder_conf": encoder,
        "preprocessor_conf": {
            "fs": 16000,
            "speech_length": WINDOW,
            "na_symbol": "<na>",
            **({"nolang_symbol": "<nolang>"} if ctc else {}),
        },
    }
    if ctc:
        config["encoder"] = "e_branchformer_ctc"
        encoder |= {
            "input_layer": "conv2d8",
            "interctc_layer_idx": [1],
            "interctc_use_conditioning": True,
            "use_cross_attention": True,
        }
        config |= {
            "promptencoder": "transformer",
            "promptencoder_conf": {"output_size": dim // 2, "attention_heads": 1, "linear_units": dim, "num_blocks": 1},
            "model_conf": {"interctc_weight": 0.5, "ctc_asr_only": [False, False], "report_wer": False},
        }
        return config
    config["encoder"] = "e_branchformer"
    config["preprocessor_conf"] |= {
        "speech_resolution": RESOLUTION,
        "notime_symbol": "<notimestamps>",
        "first_time_symbol": "<0.00>",
        "last_time_symbol": f"<{WINDOW:.2f}>",
    }
    config |= {
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": heads, "linear_units": 4 * dim, "num_blocks": blocks[1]},
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False, "sym_na": "<na>"},
    }
    return config


def write_checkpoint(
    folder: Path,
    texts: list[str],
    *,
    dim: int,
    blocks: tuple[int, int],
    pieces: int,
    languages: list[str],
    ctc: bool = False,
) -> Path:
    """Write a checkpoint of random weights in OWSM's layout; torch's generator decides on them."""
    config = config_of(write_tokens(folder, texts, languages, pieces), dim, blocks, ctc)
    model = new_model(config)
    exp = folder / "exp" / "s2t"
    exp.mkdir(parents=True, exist_ok=True)
    (exp / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    torch.save(model.state_dict(), exp / "model.pth")
    files = {
        "files": {"s2t_model_file": "exp/s2t/model.pth"},
        "yaml_files": {"s2t_train_config": "exp/s2t/config.yaml"},
    }
    (folder / "meta.yaml").write_text(yaml.safe_dump(files), encoding="utf-8")
    return folder


def error_rates(model: Path, tables: dict[str, Path]) -> dict[str, float]:
    """Return the WER of a checkpoint on each corpus."""
    speech, rates = load_model(model), {}
    for name, table in tables.items():
        cuts = list(read_corpus(table).cuts)
        hypotheses = [transcript.text for transcript in decode(speech, cuts)]
        rates[name] = round(jiwer.wer([cut.supervisions[0].text for cut in cuts], hypotheses), 4)
    return rates


def main(
    out: Path,
    work: Path = Path("runs/pretrain-owsm"),
    steps: int = 5500,
    batch: int = 24,
    learning_rate: float = 1.5e-3,
    count: int = 12_000,
    threads: int = 1,
    seed: int = 0,
    start: Path | None = None,
    bfloat16: bool = False,
) -> None:
    """Make the speech, train, and write the checkpoint and what it cost.

    With --start, weights are those of another checkpoint that this script has written, and the rate begins a new cycle.
    Some CPUs are faster with --bfloat16.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tables = {kind: work / kind / "metadata.csv" for kind in ("train", "adult", "child", "accent")}
    for kind, table in tables.items():
        if not table.exists():
            train = kind == "train"
            write_corpus(
                table.parent,
                "adult" if train else kind,
                count if train else 300,
                400 if train else 30,
                1 if train else 99,
            )
    texts = [sentence(random.Random(seed)) for seed in range(20_000)]
    speech = load_model(start or write_checkpoint(out, texts, dim=144, blocks=(4, 2), pieces=700, languages=["eng"]))
    speech.spec_augment = SpecAugment(frequency_width=12, time_masks=2, time_share=0.08)
    cuts = list(read_corpus(tables["train"]).cuts)
    lengths = np.array([cut.duration for cut in cuts])
    optimizer = torch.optim.AdamW(speech.module.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    speech.module.train()
    started, losses = time.monotonic(), []
    chunks: list[np.ndarray] = []
    for step in range(steps):
        alike = step < 0.85 * steps
        if not chunks:
            order = rng.permutation(len(cuts))
            if alike:
                order = order[np.argsort(lengths[order] + rng.uniform(0, 0.2, len(order)), kind="stable")]
            chunks = [order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)]
            rng.shuffle(chunks)
        rows = chunks.pop()
        data = speech.collate([cuts[row] for row in rows])
        if alike:
            data = data._replace(speech=data.speech[:, : round((max(data.seconds) + 0.2) * speech.sampling_rate)])
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = speech.loss(data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(speech.module.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-50:]):.2f}, {time.monotonic() - started:.0f} s", flush=True)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            speech.save(out)
            speech.module.train()
    seconds = round(time.monotonic() - started)
    record = {
        "script": "scripts/pretrain_owsm.py",
        "data": f"{count} synthetic adult utterances by eSpeak NG, 400 speakers",
        "parameters": sum(p.numel() for p in speech.module.parameters()),
        "steps": steps,
        "batch": batch,
        "bfloat16": bfloat16,
        "learning_rate": learning_rate,
        "start": start and json.loads((start / "pretraining.json").read_text()),
        "training_seconds": seconds,
        "wer_held_out": error_rates(out, {kind: tables[kind] for kind in ("adult", "child", "accent")}),
        "hardware": f"{platform.processor() or platform.machine()}, {threads} thread(s)",
        "versions": {name: version(name) for name in ("torch", "espnet")},
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    typer.run(main)
