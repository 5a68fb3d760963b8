"""A field of the configuration that is one of several dataclasses, chosen by its `name`."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from timm_arat.config.options import Option, build, default_of, options
from timm_arat.config.settings import Setting
from timm_arat.names import nearest

Variants = Mapping[str, Mapping[str, type]]


@dataclass(frozen=True)
class Variant:
    """`field` of the root is an instance of one of `classes`, or None where `optional`. `default` may be `MISSING`."""

    field: str
    classes: Mapping[str, type]
    default: Any
    optional: bool

    @property
    def name_key(self) -> str:
        return f"{self.field}.name"

    @property
    def default_name(self) -> str | None:
        return None if self.default in (None, MISSING) else self.name_of(self.default)

    def choose(self, settings: Sequence[Setting]) -> str | None:
        """The name that the last of `settings` gives, or else the default's. ValueError if that is none."""
        name = self.default_name
        given = [setting for setting in settings if setting.key in (self.field, self.name_key)]
        for setting in given:
            if setting.value is None and setting.source is None:
                raise ValueError(f"{setting.where}: no value; wanted one of {', '.join(self.classes)}")
            name = None if setting.value in (None, "null") else str(setting.value)
            if name is None and not self.optional:
                raise ValueError(f"{setting.where}: null; wanted one of {', '.join(self.classes)}")
            if name is not None and name not in self.classes:
                raise ValueError(f"{setting.where}: no {self.field} called {name!r}; {nearest(name, self.classes)}")
        if name is None and not self.optional:
            raise ValueError(f"{self.name_key}: missing; choose from {', '.join(self.classes)}")
        return name

    def name_of(self, chosen: Any) -> str:
        """The name that `chosen`'s class goes by."""
        return next(name for name, cls in self.classes.items() if type(chosen) is cls)

    def options(self, name: str | None) -> dict[str, Option]:
        """The options of the class called `name`; its values are the root's default where that has the class."""
        if name is None:
            return {}
        cls = self.classes[name]
        return options(cls, f"{self.field}.", self.default if type(self.default) is cls else MISSING)

    def build(self, name: str | None, values: Mapping[str, Any]) -> Any:
        return None if name is None else build(self.classes[name], values, f"{self.field}.")


def variants_of(root: type, variants: Variants) -> list[Variant]:
    """The variant fields of `root`, in its order."""
    hints = get_type_hints(root)
    found = []
    for field in fields(root):
        if field.name in variants:
            hint = hints[field.name]
            allows_none = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
            default = default_of(field)
            found.append(Variant(field.name, variants[field.name], default, allows_none or default is None))
    assert len(found) == len(variants), f"{root.__name__} has not all of {list(variants)}"
    return found
