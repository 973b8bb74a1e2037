"""Knobs for numbers in the model's modules: `PATTERN:ATTRIBUTE`, and all dropouts together as `dropout`.

    register_module_knobs(knobs, model)

    transformer.h.*.attn.attn_dropout:p     the dropouts of all attentions
    model.layers.0.*:attention_dropout      a number that a module keeps for itself

Only public floats in a module's own `__dict__` count: parameters, buffers, modules, whole numbers and flags are
structure, and what a module was built from no longer asks its attributes.
"""

import logging
from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import nn

from control_plane.core.model.errors import Conflict, Invalid
from ray_jobs.steering.knobs import Knob, Knobs

log = logging.getLogger(__name__)

MAX_MODULES = 4096
"""Largest number of modules in one change: each is read back on every rank and reported in the outcome."""

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
DROPOUT = "dropout"


def register_module_knobs(knobs: Knobs, model: nn.Module) -> None:
    """Register the numbers of `model`'s modules, and `dropout` if all of its dropouts have one value."""
    modules = ModuleKnobs(model)
    knobs.add_source(modules.find)
    dropout = modules.dropout()
    if dropout is None or dropout.reason_against(dropout.get()):
        return
    try:
        knobs.register(dropout)
    except Conflict as refusal:  # the script has one of its own
        log.warning("all dropouts together cannot be set: %s", refusal.reason)


class ModuleKnobs:
    """Lookup of numbers in one model's modules, by the names of the unwrapped model's `named_modules`."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())

    def find(self, name: str) -> list[Knob]:
        """Return the knobs that match `PATTERN:ATTRIBUTE`. Raises `Invalid` if they are too many."""
        pattern, _, attribute = name.rpartition(":")
        if pattern in self._modules and (one := self._knob(pattern, attribute)) is not None:
            return [one]  # a name may hold what means something in a pattern
        knobs = list(self._matching(pattern, attribute))
        if len(knobs) > MAX_MODULES:
            raise Invalid(f"{name} matches {len(knobs)} modules; one change may reach {MAX_MODULES} of them")
        return knobs

    def dropout(self) -> Knob | None:
        """Return one knob for all dropouts; None if there are none, or if they differ."""
        dropouts = [module for module in self._modules.values() if isinstance(module, DROPOUTS)]
        names = tuple(f"{name}:p" for name, module in self._modules.items() if isinstance(module, DROPOUTS))

        def read() -> float | None:
            values = {float(module.p) for module in dropouts}
            return values.pop() if len(values) == 1 else None

        def write(value: float) -> None:
            for module in dropouts:
                module.p = value

        if read() is None:
            return None
        return Knob(
            DROPOUT,
            get=read,
            set=write,
            least=0.0,
            below=1.0,
            description=f"The probability of all {len(dropouts)} dropouts of the model.",
            covers=names,
        )

    def _matching(self, pattern: str, attribute: str) -> Iterator[Knob]:
        for name in self._modules:
            if fnmatchcase(name, pattern) and (knob := self._knob(name, attribute)) is not None:
                yield knob

    def _knob(self, name: str, attribute: str) -> Knob | None:
        """Return the knob for one attribute of one module; None if that is no settable number."""
        module = self._modules[name]
        own, is_dropout = vars(module), isinstance(module, DROPOUTS) and attribute == "p"
        value = own.get(attribute)
        a_float = isinstance(value, float) or (is_dropout and value in (0, 1) and not isinstance(value, bool))
        if attribute.startswith("_") or not a_float:
            return None

        def write(value: float) -> None:
            setattr(module, attribute, value)

        return Knob(
            f"{name}:{attribute}",
            get=lambda: float(own[attribute]),
            set=write,
            least=0.0 if is_dropout else None,
            below=1.0 if is_dropout else None,
            description=f"{attribute} of {name}",
            limited_as=(DROPOUT,) if is_dropout else (),
        )
