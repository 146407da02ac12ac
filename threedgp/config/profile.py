"""Profiles as YAML files: find, extend, override, validate, save.

A profile names what it changes; `extends: base` (or a list, later wins) merges others under it, and `--set a.b=value`
merges one value over it. Camera priors and patch laws that several profiles share lie in `configs/parts/`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from threedgp.config.retired import current_name, modernize, underive
from threedgp.config.rules import problems
from threedgp.config.schema import Profile
from threedgp.errors import ConfigError, DataError
from threedgp.files import atomic_open, read_bytes

MAX_BYTES = 1 << 20
SHOWN_PROBLEMS = 6
MAX_DEPTH = 20  # levels of a profile file, and profiles that extend one another
TEXT_KEYS = ("name", "description", "dataset", "embedder")  # their values are text, whatever they look like


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types: `no`, `1:30` and `2020-01-01` are text, `010` is ten and `1e-4` a number.

    Refused are keys given twice, which would silently override, keys that are not text, tags, and aliases, with which
    a few lines grow without bound.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            raise self._error("aliases (*name) and tags (!name) are not understood", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error("too many levels", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error("a key must be text", key)
            key.tag = "tag:yaml.org,2002:str"
            if key.value in seen:
                raise self._error(f"key given twice: {key.value}", key)
            seen.add(key.value)
            if key.value in TEXT_KEYS:
                as_text(value)
        return super().construct_mapping(node, deep)

    @staticmethod
    def _error(text: str, where: Any) -> yaml.YAMLError:
        return yaml.constructor.ConstructorError(None, None, text, where.start_mark)


def as_text(node: Any) -> None:
    """Let a YAML scalar be the text that stands there, unless it is null."""
    if isinstance(node, yaml.ScalarNode) and not node.tag.endswith(":null"):
        node.tag = "tag:yaml.org,2002:str"


for _type, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]{1,30}$", list("-+0123456789")),
    ("float", r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?$", list("-+0123456789.")),
    ("float", r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def configs_folder() -> Path:
    """Where the shipped profiles lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def profile_names() -> list[str]:
    """Names of all shipped profiles, sorted."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def load_profile(name: str, overrides: Iterable[str] = (), *, dataset: str | None = None) -> Profile:
    """Load, extend, override and validate a profile.

    Args:
        name: a shipped profile's name, or the path of a YAML file (ends in .yaml or .yml).
        overrides: `key.path=value` strings; values are read as YAML.
        dataset: a data set's name, which wins over both.

    Raises:
        ConfigError: unknown profile or key (with the nearest valid name), wrong type, impossible combination.
    """
    tree = _override(_load_tree(name, (), {}), overrides)
    if dataset is not None:
        tree = merge(tree, {"data": {"dataset": dataset}})
    tree["name"] = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    return validate(tree)


def load_profile_file(path: Path | str) -> Profile:
    """Load a profile that `save_profile` wrote (a run's config.yaml); its name is the one stored.

    Raises:
        ConfigError: it is missing, empty, damaged, or its values cannot work; names the file.
    """
    tree = _read_yaml(Path(path))
    if "name" not in tree:
        raise ConfigError(f"{path} is damaged: it holds no whole profile. Bring it back, or start a new run.")
    return validate(underive(tree), where=str(path), note=False)


def override_profile(profile: Profile, overrides: Iterable[str]) -> Profile:
    """A copy of `profile` with `key.path=value` strings applied, validated again."""
    return validate(_override(profile.model_dump(), overrides))


def save_profile(profile: Profile, path: Path | str) -> None:
    """Write the profile as YAML by atomic rename; `load_profile_file` reads it back unchanged."""
    with atomic_open(path, "w", encoding="utf-8") as file:
        file.write(profile_yaml(profile))


def profile_yaml(profile: Profile) -> str:
    """The profile as YAML text, keys in the schema's order."""
    return yaml.safe_dump(profile.model_dump(), sort_keys=False, allow_unicode=True)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of settings: sections are merged key by key, everything else is replaced."""
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=1e-3` -> {"a": {"b": 0.001}}; the value is read as YAML (true, null, [1, 2] work).

    Raises:
        ConfigError: no `=` or an empty key.
    """
    key, separator, value = text.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or len(parts) > MAX_DEPTH:
        raise ConfigError(f"--set {_shorten(text)}: write it as key.path=value, for example training.batch_size=32.")
    tree = _parse_yaml(value, f"--set {_shorten(text)}", text_wanted=parts[-1] in TEXT_KEYS)
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def validate(tree: Mapping[str, Any], where: str = "", *, note: bool = True) -> Profile:
    """The profile that a tree of settings describes, every default filled in.

    Sections are merged over the schema's defaults key by key: setting camera.fov.max keeps the default camera.fov.min.

    Args:
        tree: settings by section.
        where: the file they come from, for messages.
        note: say which settings of earlier versions were renamed or are ignored.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type, a value out of range, or a combination
            that cannot work; every problem is named with its full path.
    """
    try:
        profile = Profile.model_validate(merge(_DEFAULTS, modernize(tree, note=note)))
        found = problems(profile)
    except ValidationError as error:
        found = [_describe(problem) for problem in error.errors(include_url=False)[:SHOWN_PROBLEMS]]
    if found:
        raise ConfigError(" ".join(([f"{where}:"] if where else []) + found[:SHOWN_PROBLEMS]))
    return profile


_DEFAULTS = Profile(name="").model_dump(exclude={"name"})


def _override(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    for override in overrides:
        tree = merge(tree, parse_override(override))
    return dict(tree)


def _load_tree(name: str, seen: tuple[str, ...], known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A profile's settings over those it extends; `known` holds what was loaded before, each file once."""
    if name in known:
        return known[name]
    if name in seen or len(seen) >= MAX_DEPTH:
        kind = "in a circle" if name in seen else f"over more than {MAX_DEPTH} steps"
        raise ConfigError(f"Profiles extend each other {kind}: {_shorten(' -> '.join((*seen, name)))}.")
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = configs_folder() / f"{name}.yaml"
        if not os.path.isfile(path):  # false, not an error, for names that no file can have
            near = difflib.get_close_matches(name[:100], profile_names(), n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"There is no profile '{_shorten(name)}'.{hint} See them all with: 3dgp profiles list")
    tree = _read_yaml(path)
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends takes a profile name or a list of names.")
    result: dict[str, Any] = {}
    for parent in parents:
        result = merge(result, _load_tree(parent, (*seen, name), known))
    known[name] = merge(result, tree) | {"name": name}
    return known[name]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_bytes(path, limit=MAX_BYTES).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"There is no profile file {path}.") from None
    except (DataError, ValueError, OSError) as error:
        raise ConfigError(f"{_shorten(str(path))} cannot be read as a profile: {error}") from None
    tree = _parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold settings as 'key: value' lines.")
    return tree


def _parse_yaml(text: str, where: str, *, text_wanted: bool = False) -> Any:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if text_wanted:
            as_text(node)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {_shorten(' '.join(str(error).split()), 300)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _describe(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    path = _shorten(".".join(location))
    if problem["type"] == "extra_forbidden":
        return _unknown(path)
    return f"{path}: {problem['msg'].lower()}, but it is {_shorten(repr(problem.get('input')))}."


def _unknown(path: str) -> str:
    keys = all_keys()
    same_name = [key for key in keys if key.split(".")[-1] == path.split(".")[-1]]
    near = same_name if len(same_name) == 1 else difflib.get_close_matches(path, keys, n=1, cutoff=0.0)
    return f"Unknown key '{path}'." + (f" Did you mean '{near[0]}'?" if near else "")


def all_keys(section: type[BaseModel] = Profile, prefix: str = "") -> list[str]:
    """Every key path of the schema, in its order, such as 'training.batch_size'."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
    return keys


class Setting(NamedTuple):
    """One setting of the schema: what it is, the values it takes, and what it is if nobody chooses."""

    key: str
    meaning: str
    values: str
    default: Any


def explain(key: str) -> list[Setting]:
    """The setting of this key path, or all settings of this section.

    Raises:
        ConfigError: there is no such key; names the nearest one, or the one of today for an earlier version's.
    """
    key = current_name(key)
    wanted = [name for name in all_keys() if name == key or name.startswith(f"{key}.")]
    if not wanted:
        raise ConfigError(_unknown(key))
    defaults = flatten(load_profile("base"))
    return [_setting(name, defaults[name]) for name in wanted if name in defaults]


def _setting(key: str, default: Any) -> Setting:
    *sections, last = key.split(".")
    owner: Any = Profile
    for section in sections:
        owner = owner.model_fields[section].annotation
    field = owner.model_json_schema()["properties"][last]
    values = [_values(kind) for kind in field.get("anyOf", [field])]
    return Setting(key, field.get("description", ""), " or ".join(values), default)


def _values(kind: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "enum" in kind:
        return ", ".join(map(str, kind["enum"]))
    if kind["type"] == "array":
        return f"list of: {_values(kind['items'])}"
    name = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text"}
    text = name.get(kind["type"], kind["type"])
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {kind[bound]:.10g}" for bound, word in bounds.items() if bound in kind]
    return f"{text} {' and '.join(limits)}".rstrip()


def flatten(profile: Profile) -> dict[str, Any]:
    """All values by key path, for tables and differences."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(profile.model_dump(), ""))


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
