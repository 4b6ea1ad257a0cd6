"""Methods of `ssvd.methods` as adapters of ESPnet's own training and decoding.

    python -m ssvd.espnet_plugin -m espnet2.bin.s2t_train --config conf/tuning/train_ssvd.yaml ...

runs a module of ESPnet with the methods registered; in a recipe, `./s2t.sh --python "python -m ssvd.espnet_plugin"`. In
Python, `import ssvd.espnet_plugin` before the model is built. The YAML then has

    use_adapter: true
    adapter: ssvd                      # or ssvd_strict, dora, pissa, vera, svft, psoft, oft, peft_lora, ...
    adapter_conf:
        base_model_file: owsm/exp/.../model.pth     # what is adapted; not `init_param`
        budget: p=0.4                  # see ssvd.methods.Budget.parse
    save_strategy: required_grad_only

The checkpoints that ESPnet saves hold the adapter and no frozen weight; decoding, like training, starts from
`base_model_file`.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from torch import nn

from ssvd.errors import UserError
from ssvd.methods import METHODS, Budget, Method, apply_method
from ssvd.recognisers.espnet_checkpoint import espnet_importable, load_weights, with_published_names

with espnet_importable():
    import espnet2.layers.augmentation  # noqa: F401  # after this, ESPnet works without torchaudio
    from espnet2.layers.create_adapter import create_adapter_fn_table

__all__ = ["register"]


def register() -> None:
    """Add every method to ESPnet's table of adapters but AdaLoRA and EVA, which take part in training.

    Blanks and hyphens in names become underscores; LoRA is called `peft_lora`, since ESPnet has a `lora` of its own.
    """
    for method in METHODS.values():
        if method.config is not None and not method.has_part_in_training:
            create_adapter_fn_table[adapter_name(method)] = _creation(method)


def adapter_name(method: Method) -> str:
    """Return the name of a method in ESPnet's YAML."""
    return "peft_lora" if method.name == "lora" else method.name.replace(" ", "_").replace("-", "_")


def _creation(method: Method) -> Any:
    def create(
        model: nn.Module,
        base_model_file: str | None = None,
        budget: str = "p=0.4",
        layers: list[str] | None = None,
        also_train: list[str] | tuple[str, ...] = (),
        token_stride: int = 1,
        **options: Any,
    ) -> None:
        """Load the base weights into a model and adapt it in place.

        Args:
            model: Model of ESPnet, whose weights may still be random.
            base_model_file: File (.pth) of the base model.
            budget: See `ssvd.methods.Budget.parse`; or the method's own setting under its name, such as `rank: 32`.
            layers: Ends of the names of the linear layers to adapt; default all but those of CTC.
            also_train: Modules to train in full; see `ssvd.methods.apply_method`.
            token_stride: See `ssvd.methods.apply_method`.
            options: Further fields of the method's PEFT configuration, such as `lora_alpha: 64`.

        Raises:
            UserError: An option is unknown or wrong, or the weights are not those of this model.
        """
        if base_model_file is None:
            raise UserError(
                f"adapter_conf of {adapter_name(method)} needs base_model_file, the .pth of the model to adapt: ESPnet "
                "reads init_param too late for an adapter."
            )
        load_weights(with_published_names(model), Path(base_model_file))
        if method.unit in options:
            budget = f"{method.unit}={options.pop(method.unit)}"
        chosen = [name for name in _linear_layers(model) if layers is None or name.endswith(tuple(layers))]
        apply_method(model, method.name, chosen, Budget.parse(budget), also_train, token_stride, options=options)
        model.register_load_state_dict_post_hook(_check_loaded)

    return create


def _linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers of encoder and decoder, including the decoder's output, as in the paper."""
    linear = (name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    return [name for name in linear if not name.startswith("ctc.")]


def _check_loaded(model: nn.Module, keys: Any) -> None:
    """Refuse a file without the adapter's parameters: ESPnet loads with strict=False and would ignore their absence."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if missing := trained & set(keys.missing_keys):
        raise UserError(
            f"The file that is loaded lacks {len(missing)} of {len(trained)} trained tensors, among them "
            f"{min(missing)}: it is of another adapter or adapter_conf; save with save_strategy: required_grad_only."
        )


register()


def main() -> None:
    """Run `-m MODULE ARGUMENTS`, as Python would, with the methods registered."""
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        print(
            "Give a module of ESPnet to run: python -m ssvd.espnet_plugin -m espnet2.bin.s2t_train ...", file=sys.stderr
        )
        sys.exit(2)
    module, sys.argv = sys.argv[2], sys.argv[2:]
    try:
        with espnet_importable(silent=False):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
