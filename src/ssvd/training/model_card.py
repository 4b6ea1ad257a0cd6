"""The model card of an adapter."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from peft import PeftModel

from ssvd.methods import trainable_parameters
from ssvd.recognisers.loading import Recogniser
from ssvd.recognisers.vocabulary import VOCABULARY
from ssvd.training.results import Epoch
from ssvd_options import AdaptOptions

# Absolute paths, also within names such as lhotse:RECIPE:/folder?option=/folder; the group is the last part.
_PATHS = re.compile(r"(?<![^:=])(?:~|\.{0,2})/(?:[^?&]*/)?([^/?&]+)/?")


def model_card(
    speech: Recogniser,
    options: AdaptOptions,
    *,
    series: Sequence[Epoch],
    best: Epoch,
    learning_rate: float,
    normaliser: str,
    dev_utterances: int,
) -> str:
    """Return the card of an adapter in Markdown: its training, its error rates, and how to load it.

    Args:
        speech: The recogniser, whose module is a `PeftModel`.
        options: Options of the run.
        series: Rows of all epochs so far.
        best: The epoch whose adapter this is.
        learning_rate: Peak learning rate.
        normaliser: Text normaliser of the error rates.
        dev_utterances: Number of utterances that the epoch was chosen on.
    """
    network = speech.module
    assert isinstance(network, PeftModel)
    from_this_package = type(network.peft_config["default"]).__module__.startswith("ssvd.")
    registration = (
        "import ssvd  # registers the method with PEFT; without it the adapter does not load\n"
        if from_this_package
        else ""
    )
    model, corpora = public_name(options.model), ", ".join(map(public_name, options.train))
    conditions = f" where {' and '.join(options.where)}" if options.where else ""
    return f"""---
base_model: {model}
library_name: peft
tags: [automatic-speech-recognition, {options.method}]
---

# {options.method} adapter of {model}

Trained on {corpora}{conditions} with ssvd {version("ssvd")}:
method {options.method}, {trainable_parameters(network):,} trained parameters, learning rate
{learning_rate:g}, epoch {best.epoch} of at most {options.epochs}.

| | WER on its dev utterances ({dev_utterances}, normaliser {normaliser}) |
|---|---|
| before | {series[0].dev_wer:.1%} |
| after | {best.dev_wer:.1%} |

The epoch was chosen on these utterances, so the second figure is optimistic; measure it on others with
`ssvd evaluate`.

```python
{registration}from peft import PeftModel
{_loading_code(speech, model, options.quantise)}
model = PeftModel.from_pretrained(model, "adapter")
```
"""


def _loading_code(speech: Recogniser, model: str, quantise: str | None) -> str:
    if quantise is not None and speech.vocabulary is None:
        return f'from ssvd import load_model\n\nmodel = load_model("{model}", quantise="{quantise}").module'
    if speech.vocabulary is None:
        return speech.loading_code(model)
    quantised = "" if quantise is None else f', quantise="{quantise}"'
    return f'''from ssvd import load_model
from ssvd.recognisers.vocabulary import Vocabulary

vocabulary = Vocabulary.read("adapter/{VOCABULARY}")  # of a new head, which the adapter brings
model = load_model("{model}", vocabulary=vocabulary{quantised}).module'''


def public_name(name: str) -> str:
    """Return the name of a model or corpus for others: files and folders without their paths on this machine."""
    if Path(name).exists():
        return Path(name).resolve().name
    return _PATHS.sub(r"\1", name)
