"""From `--config recipe --dotted.option value` to a frozen dataclass, and back to YAML."""

import dataclasses
import sys
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any, TypeVar

import yaml

from timm_arat.config import files
from timm_arat.config.command import is_main_process
from timm_arat.config.help import help_text
from timm_arat.config.options import Option, build, options
from timm_arat.config.settings import Setting, from_words, from_yaml
from timm_arat.config.variants import Variant, Variants, variants_of
from timm_arat.names import nearest

T = TypeVar("T")
_ITEM = Option(Any, MISSING, "")  # of a free mapping


def read(
    root: type[T],
    args: Sequence[str] | None = None,
    *,
    variants: Variants,
    belongings: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    default: str | None = None,
    default_is_of: str | None = None,
    prog: str,
    description: str,
    positional: str | None = None,
    bundled: Collection[str] = (),
) -> T:
    """Read the configuration `root`, a frozen dataclass, from a YAML file and command-line options.

    Args:
        args: Words of the command line; None takes `sys.argv[1:]`. `--config NAME` is a recipe's name or a YAML file;
            a YAML may stand on another, `base: NAME`. The rest are `--dotted.field value`, which win over the YAML.
            `--help` prints and exits.
        variants: For a field of `root`, names and the dataclass each stands for, in YAML `field: {name: ...}`.
        belongings: For an option that names something, such as `data.name`, the options (or groups of them) that belong
            to what it names. Where a YAML on its base, or the command line, names something else, what was written of
            them below is left out; so are all options of another variant. The command line prints what it leaves out.
        default: The recipe read when there is no `--config`; None starts from the defaults of `root`.
        default_is_of: An option. Where the command line gives it, there is no default recipe, which is about another.
        positional: The field that a bare first word sets.
        bundled: Names of the files that came with timm_arat and are of this `root`, for --help.

    Raises:
        ValueError: a key, option, name or value that cannot be used, with the nearest that can, and its file.
    """
    words = list(sys.argv[1:] if args is None else args)
    help_words = [word for word in words if word in ("-h", "--help")]
    given = from_words([word for word in words if word not in help_words], positional)
    if any(setting.key == default_is_of for setting in given):
        default = None
    config = next((setting.value for setting in reversed(given) if setting.key == "config"), default)
    given = [setting for setting in given if setting.key != "config"]

    groups = variants_of(root, variants)
    table = options(root, skip=variants)
    owned = {**belongings}
    defaults = {key: table[key].default for key in belongings if key in table}
    for group in groups:
        owned[group.name_key] = (group.field, *belongings.get(group.name_key, ()))
        defaults[group.name_key] = group.default_name
    settings: list[Setting] = []
    if config is not None:
        tables = [table, *(group.options(name) for group in groups for name in group.classes)]
        known = {key: each for one in tables for key, each in one.items()}
        for path, tree in files.chain(config):
            settings, _ = _stacked(settings, from_yaml(tree, str(path), known, variants), owned, defaults)
    settings, lost = _stacked(settings, given, owned, defaults)
    again = {setting.key for setting in given}
    whole = tuple(f"{key}." for key in again if key in table and table[key].free)
    lost = {key: value for key, value in leaves(lost) if key not in again and not key.startswith(whole)}
    if lost and is_main_process():
        said = ", ".join(f"{key}={value}" for key, value in lost.items())
        print(
            f"{prog}: {said} of {config} left out, as belonging to what has another name here; give it again if it "
            "holds here too",
            file=sys.stderr,
        )

    names: dict[str, str | None] = {}
    for group in groups:
        names[group.field] = name = group.choose(settings)
        table |= group.options(name)

    values = {key: option.default for key, option in table.items()}
    for setting in settings:
        if not any(setting.key in (group.field, group.name_key) for group in groups):
            _assign(values, setting, table, groups, names)
    if help_words:
        print(
            help_text(
                root,
                table,
                values,
                groups,
                names,
                prog=prog,
                description=description,
                default=default,
                positional=positional,
                bundled=bundled,
            )
        )
        raise SystemExit(0)
    return build(root, values, **{group.field: group.build(names[group.field], values) for group in groups})


def dump(config: Any, *, variants: Variants) -> str:
    """`config` as YAML that `read` takes back to an equal object; `variants` as given to `read`."""
    tree = _plain(config)
    for group in variants_of(type(config), variants):
        chosen = getattr(config, group.field)
        tree[group.field] = None if chosen is None else {"name": group.name_of(chosen), **_plain(chosen)}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings, by its dotted name; an empty mapping is a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _stacked(
    below: list[Setting], above: list[Setting], owned: Mapping[str, Sequence[str]], defaults: Mapping[str, Any]
) -> tuple[list[Setting], dict[str, Any]]:
    """Both, less what is only below and belongs to what `above` no longer names; and that, by key."""
    lost: list[Setting] = []
    for name_key, groups in owned.items():
        field = name_key.rpartition(".")[0]

        def named(settings: list[Setting], otherwise: Any, keys: tuple[str, str] = (name_key, field)) -> str:
            return str(next((each.value for each in reversed(settings) if each.key in keys), otherwise))

        before = named(below, defaults[name_key])
        if named(above, before) != before:
            prefixes = tuple(f"{group}." for group in groups)
            lost += [
                each
                for each in below
                if each.key != name_key and (each.key in groups or each.key.startswith(prefixes)) and each not in lost
            ]
    return [each for each in below if each not in lost] + above, {each.key: each.value for each in lost}


def _assign(
    values: dict[str, Any],
    setting: Setting,
    table: Mapping[str, Option],
    groups: Sequence[Variant],
    names: Mapping[str, str | None],
) -> None:
    key = setting.key
    parent = next((known for known, option in table.items() if option.free and key.startswith(f"{known}.")), None)
    try:
        if key in table:
            values[key] = _value(table[key], setting)
        elif parent is not None:
            tree = {} if values[parent] in (None, MISSING) else values[parent]
            values[parent] = _with_item(tree, key[len(parent) + 1 :].split("."), _value(_ITEM, setting))
        else:
            raise ValueError(_unknown(key, table, groups, names))
    except ValueError as error:
        raise ValueError(f"{setting.where}: {error}") from error


def _value(option: Option, setting: Setting) -> Any:
    return option.from_yaml(setting.value) if setting.source else option.from_word(setting.value)


def _with_item(tree: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of `tree` with `value` at `path`: never the default's own mapping, which others share."""
    if len(path) > 1:
        inner = tree.get(path[0])
        value = _with_item(inner if isinstance(inner, dict) else {}, path[1:], value)
    return {**tree, path[0]: value}


def _unknown(key: str, table: Mapping[str, Option], groups: Sequence[Variant], names: Mapping[str, str | None]) -> str:
    if any(known.startswith(f"{key}.") for known in table):
        return f"is a group of options; give one of them, such as {next(k for k in table if k.startswith(f'{key}.'))}"
    for group in groups:
        owners = [name for name in group.classes if key in group.options(name)]
        if owners:
            return f"belongs to {group.name_key} {' or '.join(owners)}, and that is {names[group.field] or 'null'} here"
    return f"no such option; {nearest(key, [*table, *(group.name_key for group in groups), 'config'])}"


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists, which is all that plain YAML knows."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
