"""Publish an adapted model on the Hugging Face hub, with a model card and nothing private."""

import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is, at run time
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from ssvd.documents import read_json
from ssvd.errors import UserError
from ssvd.evaluate import BASE
from ssvd.files import write_json
from ssvd.merge import merge
from ssvd.recognisers.vocabulary import VOCABULARY
from ssvd.training.interpolation import scale_of
from ssvd.training.run_folder import adapter_folder, has_own_model, stated_options

_TASK = "automatic-speech-recognition"
# Of httpx, by whichever name the hub's client imports it.
_HTTPError = cast("type[Exception]", HfHubHTTPError.__mro__[1])
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,4})?")


class Publication(NamedTuple):
    """What goes to the hub.

    Attributes:
        name: Name of the repository.
        files: Size of each file in bytes.
        card: The model card, in Markdown with metadata.
        address: Where it is on the hub; None if it was not sent.
    """

    name: str
    files: dict[str, int]
    card: str
    address: str | None


class About(NamedTuple):
    """What the publisher states.

    Attributes:
        licence: Licence of the adapted model, in the hub's notation, such as "apache-2.0".
        base_model: Name of the base model on the hub.
        language: Code of the language, or None.
    """

    licence: str
    base_model: str
    language: str | None = None


def push(
    model: str,
    run: str | Path,
    name: str,
    about: About,
    *,
    results: Path | None = None,
    merged: bool = False,
    public: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Send the adapter of a run, or the merged model, to a repository on the hub.

    Only the adapter or the checkpoint goes there, and a card that is made anew: no options, no texts, no paths.

    Args:
        model: The base checkpoint.
        run: The run folder, or a PEFT adapter.
        name: Name of the repository, such as "somebody/whisper-children"; it is created if need be.
        about: What the card states beside the figures.
        results: `result.json` of an evaluation of the run, whose error rates the card shows.
        merged: Whether to send a whole checkpoint instead of the adapter.
        public: Whether everybody may see a new repository.
        dry_run: Whether to make everything, and send nothing.

    Raises:
        UserError: The name is not possible, there is no token, the results are not of this run, a file would show a
            path of this machine, or the hub does not take it.
    """
    _check(name, about, dry_run)
    merged = merged or has_own_model(run)
    if not merged and scale_of(run) != 1:
        raise UserError(f"{run} chose a scale, which an adapter file does not hold: send the merged model.")
    rows = [] if results is None else _rows_of(results, run)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        if merged:
            merge(model, run, folder)
        else:
            _copy_adapter(adapter_folder(run), folder, about.base_model)
        card = _card(name, about, stated_options(run), rows, merged=merged)
        card.save(folder / "README.md")
        _check_private(folder, [model, str(run)])
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))}
        address = None if dry_run else _send(folder, name, public)
    return Publication(name, files, str(card), address)


def _check(name: str, about: About, dry_run: bool) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(
            f"{name!r} cannot be the name of a repository: write it as somebody/whisper-children."
        ) from None
    if Path(about.base_model).exists():
        raise UserError(f"The base model {about.base_model} is a folder of this machine: name it as it is on the hub.")
    if about.language is not None and not _LANGUAGE.fullmatch(about.language):
        raise UserError(f"The hub knows no language {about.language!r}: give its ISO 639 code, such as en or nl.")
    if not dry_run and get_token() is None:
        raise UserError("There is no token for the hub: run `hf auth login`, or set the environment variable HF_TOKEN.")


def _rows_of(results: Path, run: str | Path) -> list[Mapping[str, Any]]:
    """Return the results of a run and of the base model on the same corpora."""
    try:
        rows: list[Mapping[str, Any]] = [dict(row) for row in read_json(results)["results"]]
        own = {str(run), str(Path(run).resolve())}
        found = [row for row in rows if row["system"] in own or str(Path(row["system"]).resolve()) in own]
        before = {row["corpus"]: row["wer"] for row in rows if row["system"] == BASE}
        rows = [{**row, "before": before[row["corpus"]], "wer": float(row["wer"])} for row in found]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{results} does not hold the results of an evaluation; `ssvd evaluate` writes them.") from None
    if not rows:
        raise UserError(f"{results} holds no results of {run}: evaluate it, or name other results.")
    return rows


def _copy_adapter(adapter: Path, folder: Path, base_model: str) -> None:
    folder.mkdir()
    for name in (SAFETENSORS_WEIGHTS_NAME, VOCABULARY):
        if (adapter / name).is_file():
            shutil.copy(adapter / name, folder)
    write_json(folder / CONFIG_NAME, read_json(adapter / CONFIG_NAME) | {"base_model_name_or_path": base_model})


def _card(
    name: str, about: About, options: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, merged: bool
) -> ModelCard:
    """Return the card, whose metadata the hub understands."""
    method = options.get("method", "peft")
    data = ModelCardData(
        base_model=about.base_model,
        language=about.language,
        license=about.licence,
        library_name="transformers" if merged else "peft",
        pipeline_tag=_TASK,
        tags=[_TASK, "ssvd", method.split()[0]],
        datasets=_hub_datasets(options.get("train", [])) or None,
        metrics=["wer"] if rows else None,
        model_name=name,
        eval_results=[_eval_result(row) for row in rows] or None,
    )
    what = "The weights" if merged else f"An adapter of the method {method}"
    use = f"transcribe {name}" if merged else f"transcribe --run {name}"
    window = options.get("window")
    if window and not merged:
        use += f" --window {window:g}"
    text = f"""---
{data.to_yaml()}
---

# {name}

{what} of {about.base_model}, adapted with [ssvd](https://arxiv.org/abs/2509.02830) {version("ssvd")}.

{_table(rows)}
```sh
pip install 'ssvd[speech]'
ssvd {use} recording.wav
```
"""
    return ModelCard(text)


def _eval_result(row: Mapping[str, Any]) -> EvalResult:
    return EvalResult(
        task_type=_TASK,
        dataset_type=re.sub(r"[^A-Za-z0-9_.-]+", "-", row["corpus"]),
        dataset_name=row["corpus"],
        metric_type="wer",
        metric_name="WER in percent",
        metric_value=round(100 * row["wer"], 2),
        metric_args={"normaliser": row["normaliser"], "interval_95": _in_percent(row)},
    )


def _in_percent(row: Mapping[str, Any]) -> list[float] | None:
    interval = row.get("wer_interval")
    return None if interval is None else [round(100 * end, 2) for end in interval]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["| corpus | utterances | WER before | WER after (95 %) |", "|---|---|---|---|"]
    for row in rows:
        interval = _in_percent(row)
        after = f"{100 * row['wer']:.1f} %" + (f" ({interval[0]:.1f} .. {interval[1]:.1f})" if interval else "")
        lines.append(f"| {row['corpus']} | {row['utterances']} | {100 * row['before']:.1f} % | {after} |")
    return "\n".join([*lines, ""])


def _hub_datasets(corpora: Sequence[str]) -> list[str]:
    """Return the names of those corpora that are on the hub; the others are nobody else's business."""
    names = [corpus.removeprefix("hf:").partition("?")[0] for corpus in corpora if corpus.startswith("hf:")]
    return [name for name in names if not Path(name).exists()]


def _check_private(folder: Path, names: Sequence[str]) -> None:
    """Refuse to send a file that shows a path of this machine."""
    paths = {str(Path.home()), *(str(Path(name).resolve()) for name in names if Path(name).exists())} - {"/"}
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".md", ".yaml", ".txt"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if shown := next((path for path in paths if path in text), None):
                raise UserError(f"{file.name} would show the path {shown} of this machine: it was not sent.")


def _send(folder: Path, name: str, public: bool) -> str:
    """Create the repository if need be, send all files in one commit, and return its address."""
    hub = HfApi(library_name="ssvd", library_version=version("ssvd"))
    try:
        address = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Upload with ssvd")
    except OfflineModeIsEnabled:
        raise UserError("The hub is switched off by the environment variable HF_HUB_OFFLINE: unset it.") from None
    except (_HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The hub did not take {name} ({reason}).") from error
    return str(address)
