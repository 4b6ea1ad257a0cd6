"""CTranslate2, the engine of faster-whisper."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

from ssvd.errors import UserError
from ssvd.recognisers.base import Recogniser

Quantization = Literal["float32", "float16", "bfloat16", "int8", "int8_float16"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)


def save_ctranslate2(speech: Recogniser, folder: Path, quantization: Quantization | None = None) -> None:
    """Write a recogniser, its adapter merged, for CTranslate2, with the files that faster-whisper reads.

    CTranslate2's own converter does the work.

    Args:
        speech: The recogniser.
        folder: Where to write, a folder that exists and is empty.
        quantization: Type of the stored weights; None for that of the checkpoint.

    Raises:
        UserError: CTranslate2 does not know the kind of checkpoint.
        ModuleNotFoundError: CTranslate2 is not installed.
    """
    from ctranslate2.converters import TransformersConverter

    if speech.checkpoint_format != "transformers":
        raise UserError(f"CTranslate2 does not know checkpoints of {speech.checkpoint_format}: merge to those instead.")
    with TemporaryDirectory() as temporary:
        speech.save(temporary)
        copied = [name for name in ("tokenizer.json", "vocab.json") if (Path(temporary) / name).is_file()]
        try:
            converter = TransformersConverter(temporary, copy_files=copied)
            converter.convert(str(folder), quantization=quantization, force=True)
        except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"CTranslate2 does not convert checkpoints of this kind ({reason}).") from error
        # faster-whisper reads the number of mel bands here, where Transformers no longer writes it.
        features = json.loads((Path(temporary) / "processor_config.json").read_text(encoding="utf-8"))
    features = features.get("feature_extractor", features)
    (folder / "preprocessor_config.json").write_text(json.dumps(features, indent=2) + "\n", encoding="utf-8")
