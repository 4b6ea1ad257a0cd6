"""The base model of a command: named by the user, or by the runs."""

from collections.abc import Sequence

from ssvd_cli.errors import CommandError


def model_and_rest(
    names: Sequence[str], runs: Sequence[str], adapters: Sequence[str], rest: str, scale: float | None = None
) -> tuple[str, list[str], list[str]]:
    """Separate the base model from the other arguments of a command.

    Args:
        names: The arguments: [MODEL] and others; MODEL is there unless there are runs.
        runs: Runs that name their base model.
        adapters: Adapters on the model that is named first.
        rest: What the other arguments are, for the message: "a corpus", "an audio file".
        scale: The option --scale, which needs a run or an adapter.

    Returns:
        The base model, the other arguments, and the adapters on the model.

    Raises:
        CommandError: Both runs and adapters are given, or an argument is missing, or a scale but no adapter.
        UserError: The runs have different base models, or do not name one.
    """
    if runs and adapters:
        raise CommandError("Give either --run, which names its base model, or MODEL and --adapter.")
    if scale is not None and not runs and not adapters:
        raise CommandError("--scale is for adapters: give --run or --adapter too.")
    if runs:
        return base_of(runs), list(names), list(runs)
    model, *others = names
    if not others:
        raise CommandError(f"Name a model and {rest}, or {rest} and --run RUN, which names its base model.")
    return model, others, list(adapters)


def base_of(runs: Sequence[str]) -> str:
    """Return the base model that all these runs name.

    Raises:
        UserError: They name different ones, or one does not name any.
    """
    from ssvd.errors import UserError
    from ssvd.training.run_folder import base_model_of

    bases = {run: base_model_of(run) for run in runs}
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{run} is on {base}" for run, base in bases.items())
        raise UserError(f"The runs have different base models ({listed}): use runs of one model at a time.")
    return bases[runs[0]]
