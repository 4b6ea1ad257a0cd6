"""Registration of a method with PEFT from outside PEFT."""

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def register(name: str, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Register a method with PEFT under a lower-case name; doing so twice is harmless.

    Raises:
        RuntimeError: Another package, or PEFT itself, has a method of that name.
    """
    peft_type = peft_type_of(name)
    registered = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    if registered is config_class:
        return
    if registered is not None:
        raise RuntimeError(
            f"PEFT already has a method {name!r}, {registered.__module__}.{registered.__qualname__}: "
            f"uninstall the package that registered it, or import it instead of {config_class.__module__}"
        )
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class)


def peft_type_of(name: str) -> PeftType:
    """Return the member of PEFT's enumeration of methods with this name, which is added if it is missing."""
    key = name.upper()
    if key in PeftType.__members__:
        return PeftType[key]
    member = str.__new__(PeftType, key)
    member._name_, member._value_, member.__objclass__ = key, key, PeftType
    member._sort_order_ = len(PeftType)
    PeftType._member_names_.append(key)
    PeftType._member_map_[key] = member
    PeftType._value2member_map_[key] = member
    type.__setattr__(PeftType, key, member)  # Python 3.12 and later look members up as class attributes
    return member
