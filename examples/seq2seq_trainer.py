"""Adapt Whisper with transformers' Seq2SeqTrainer and an SSVD or SVFT adapter: nothing of `ssvd` but its configuration.

    python examples/seq2seq_trainer.py --method svft --out adapter

Takes the embedded recogniser and synthetic child-like speech, so that it runs anywhere; with a checkpoint and a data
set of your own, replace `--model` and `utterances`. PEFT's task_type stays None: Whisper takes `input_features`.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import typer
from peft import PeftModel, get_peft_model
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperForConditionalGeneration, WhisperProcessor

import ssvd
from ssvd.corpora.audio import load_audio
from ssvd.corpora.corpus import read_corpus
from ssvd.demo.demonstration import EMBEDDED
from ssvd.demo.synthetic import write_corpus

CONFIGS = {"ssvd": ssvd.SSVDConfig(portion=0.4), "svft": ssvd.SVFTConfig(off_diagonals=8)}
# K and dS of SSVD are in units that suit one rate; M of SVFT is not, see its page in docs/methods.
RATES = {"ssvd": 2e-3, "svft": 2e-2}


def utterances(folder: Path, count: int, seed: int, processor: WhisperProcessor, prompt: list[int]) -> list[dict]:
    """Features and labels of child-like utterances; the labels begin with the prompt that decoding gives."""
    end = processor.tokenizer.eos_token_id
    rows = []
    for cut in read_corpus(write_corpus(folder, "child", count, max(2, count // 20), seed)).cuts:
        samples = load_audio(cut, processor.feature_extractor.sampling_rate)
        features = processor.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features[0]
        text = processor.tokenizer.encode(cut.supervisions[0].text, add_special_tokens=False)
        rows.append({"input_features": features, "labels": torch.tensor([*prompt, *text, end])})
    return rows


def collate(rows: list[dict]) -> dict[str, Any]:
    """Padded batch; the model makes its inputs from the labels, so the first token, the start, is left out of them."""
    labels = [row["labels"][1:] for row in rows]
    return {
        "input_features": torch.stack([row["input_features"] for row in rows]),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def main(
    model: str = str(EMBEDDED), method: str = "ssvd", count: int = 240, epochs: float = 2, out: Path = Path("adapter")
) -> None:
    """Train, save the adapter, load it again, and print the loss on other speakers before and after."""
    base = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    processor = WhisperProcessor.from_pretrained(model)
    prompt = [base.config.decoder_start_token_id, processor.tokenizer.convert_tokens_to_ids("<|notimestamps|>")]
    adapted = get_peft_model(base, CONFIGS[method])
    adapted.print_trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        train = utterances(Path(folder) / "train", count, 1, processor, prompt)
        dev = utterances(Path(folder) / "dev", 40, 2, processor, prompt)
        arguments = Seq2SeqTrainingArguments(
            output_dir=f"{folder}/trainer",
            learning_rate=RATES[method],
            per_device_train_batch_size=16,
            per_device_eval_batch_size=40,
            num_train_epochs=epochs,
            warmup_steps=3,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            label_names=["labels"],  # a PeftModel hides them from the trainer
            remove_unused_columns=False,
        )
        trainer = Seq2SeqTrainer(adapted, arguments, train_dataset=train, eval_dataset=dev, data_collator=collate)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
    adapted.save_pretrained(out)
    again = PeftModel.from_pretrained(
        WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32), str(out)
    )
    with torch.no_grad():
        reloaded = float(again.eval()(**collate(dev)).loss)
    print(f"loss on other speakers, synthetic: {before:.3f} before, {after:.3f} after, {reloaded:.3f} reloaded")


if __name__ == "__main__":
    typer.run(main)
