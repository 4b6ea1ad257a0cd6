"""What is said of an error in one sentence, in place of a traceback."""

import sys

# Distributions of the extras, by the name that they are imported by. `ssvd[speech]` is what all commands need.
_EXTRAS = {
    "speech": "filelock jinja2 jiwer lhotse lightning matplotlib num2words numpy plotly pydantic yaml rich scipy "
    "soundfile tensorboard typer urllib3 whisper_normalizer",
    "demo": "espeakng_loader",
    "ctranslate2": "ctranslate2",
    "vad": "onnxruntime silero_vad",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "hf": "datasets",
    "ray": "ray",
    "espnet": "editdistance einops espnet_tts_frontend h5py humanfriendly hydra jamo kaldiio langcodes librosa loralib "
    "opt_einsum sentencepiece six torch_complex typeguard",
}
EXTRA_OF = {package: extra for extra, packages in _EXTRAS.items() for package in packages.split()}

_NO_HOME = "Could not determine home directory."  # Python's words; libraries ask for it when they are imported


class CommandError(Exception):
    """A combination of arguments and options that makes no sense: one sentence that says what to write instead."""


def in_a_sentence(error: Exception) -> str | None:
    """Return the sentence to print for an error that the user can act on; None for a fault of the program."""
    if isinstance(error, CommandError) or _is_user_error(error):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if isinstance(error, RuntimeError) and str(error) == _NO_HOME:
        return "This user has no home folder, where caches are kept: set the environment variable HOME to a folder."
    if isinstance(error, UnicodeEncodeError):
        return f"A name or text holds bytes that are not UTF-8 ({error.reason}); rename the file or correct the text."
    if _was_interrupted(error):
        return "Interrupted."
    if isinstance(error, OSError) and error.strerror is not None:  # a file that the user named, or a full disk
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    files = sys.modules.get("ssvd.files")
    if files is not None and files.is_disk_error(error):  # as safetensors and libsndfile tell of it
        return f"A file cannot be written ({error}): free some space, and give the command again."
    return None


def _is_user_error(error: Exception) -> bool:
    """Return whether this is a `ssvd.errors.UserError`; none can have been raised where that is not imported."""
    module = sys.modules.get("ssvd.errors")
    return module is not None and isinstance(error, module.UserError)


def _was_interrupted(error: Exception) -> bool:
    """Return whether this came of Ctrl-C, which some libraries stumble over."""
    module = sys.modules.get("ssvd.processes")
    return module is not None and module.was_interrupted(error)


def _missing_package(error: ModuleNotFoundError) -> str | None:
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF:
        return None
    return f"This needs the package {package}, which is not installed: run pip install 'ssvd[{EXTRA_OF[package]}]'."
