"""Profiles as YAML files: find, extend, override, validate, save.

A profile names what it changes; `extends: base` (or a list, later wins) merges others under it, and `--set a.b=value`
merges one value over it. Camera priors and patch laws that several profiles share lie in `configs/parts/`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from threedgp.config.retired import modernize
from threedgp.config.rules import resolve
from threedgp.config.schema import Profile
from threedgp.errors import ConfigError
from threedgp.files import atomic_open


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML alone reads 1e-4 as a string. A key given twice is an error, not a silent override."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key given twice: {', '.join(twice)}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def configs_folder() -> Path:
    """Where the shipped profiles lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def profile_names() -> list[str]:
    """Names of all shipped profiles, sorted."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def load_profile(name: str, overrides: Iterable[str] = ()) -> Profile:
    """Load, extend, override, validate and resolve a profile.

    Args:
        name: a shipped profile's name, or the path of a YAML file (ends in .yaml or .yml).
        overrides: `key.path=value` strings; values are read as YAML.

    Returns:
        The profile with every derived value filled in.

    Raises:
        ConfigError: unknown profile or key (with the nearest valid name), wrong type, impossible combination.
    """
    tree = _load_tree(name, seen=())
    for override in overrides:
        tree = merge(tree, parse_override(override))
    tree["name"] = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    return resolve(validate(tree))


def load_profile_file(path: Path | str, overrides: Iterable[str] = ()) -> Profile:
    """Load a resolved profile that `save_profile` wrote (a run's config.yaml); its name is the one stored."""
    path = Path(path)
    tree = _read_yaml(path)
    for override in overrides:
        tree = merge(tree, parse_override(override))
    tree.setdefault("name", path.stem)
    return resolve(validate(tree, where=str(path)))


def override_profile(profile: Profile, overrides: Iterable[str]) -> Profile:
    """A copy of `profile` with `key.path=value` strings applied, validated and resolved again."""
    tree = profile.model_dump()
    for override in overrides:
        tree = merge(tree, parse_override(override))
    return resolve(validate(tree))


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
    if not separator or not all(parts):
        raise ConfigError(f"--set {text}: write it as key.path=value, for example training.batch_size=32.")
    try:
        tree: Any = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {text}: '{value}' is not a value (number, true/false, null, text or [list])."
        ) from None
    for part in reversed(parts):
        tree = {part: tree}
    return tree


def validate(tree: Mapping[str, Any], where: str = "") -> Profile:
    """Check types and keys; every problem is named with its full path and, for unknown keys, the nearest valid one.

    Sections are merged over the schema's defaults key by key: setting camera.fov.max keeps the default camera.fov.min.
    """
    try:
        return Profile.model_validate(merge(_DEFAULTS, modernize(tree)))
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors(include_url=False)]
        raise ConfigError(" ".join(([f"{where}:"] if where else []) + problems[:6])) from None


_DEFAULTS = Profile(name="").model_dump(exclude={"name"})


def _load_tree(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ConfigError(f"Profiles extend each other in a circle: {' -> '.join((*seen, name))}.")
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = configs_folder() / f"{name}.yaml"
        if not path.is_file():
            near = difflib.get_close_matches(name, profile_names(), n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ConfigError(f"There is no profile '{name}'.{hint} See them all with: 3dgp profiles list")
    tree = _read_yaml(path)
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends takes a profile name or a list of names.")
    result: dict[str, Any] = {}
    for parent in parents:
        inherited = _load_tree(parent, (*seen, name))
        inherited.pop("name", None)
        result = merge(result, inherited)
    return merge(result, tree)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"There is no profile file {path}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{path} must hold settings as 'key: value' lines.")
    return tree


def _describe(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path, all_keys(), n=1, cutoff=0.0)
        same_name = [key for key in all_keys() if key.split(".")[-1] == location[-1]]
        hint = same_name[0] if len(same_name) == 1 else near[0] if near else None
        return f"Unknown key '{path}'." + (f" Did you mean '{hint}'?" if hint else "")
    return f"{path}: {problem['msg'].lower()}, but it is {problem.get('input')!r}."


def all_keys(section: type[BaseModel] = Profile, prefix: str = "") -> list[str]:
    """Every key path of the schema, in its order, such as 'training.batch_size'."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def flatten(profile: Profile) -> dict[str, Any]:
    """All values by key path, for tables and differences."""

    def walk(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(profile.model_dump(), ""))
