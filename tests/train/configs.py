"""Run configurations with other values, by the names of flags."""

import dataclasses
from typing import Any, TypeVar

Config = TypeVar("Config")


def replaced(config: Config, **changes: Any) -> Config:
    """A config with other values, however deep their fields lie."""
    left = dict(changes)
    config = _replaced(config, left)
    assert not left, f"no such settings: {list(left)}"
    return config


def _replaced(config: Any, left: dict[str, Any]) -> Any:
    now = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config)
    }
    parts = {name for name, value in now.items() if dataclasses.is_dataclass(value)}
    # A part may have the name of one of its own fields.
    own = {
        name: left.pop(name)
        for name in now
        if name in left and (name not in parts or dataclasses.is_dataclass(left[name]))
    }
    parts = {name: _replaced(now[name], left) for name in parts - own.keys()}
    return dataclasses.replace(config, **parts, **own)
