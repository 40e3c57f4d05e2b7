"""Run configuration: frozen, from TOML files and overrides."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from perturbgen.core.errors import ConfigError, suggest
from perturbgen.core.files import require_file

# The kinds of numbers that settings are.
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Chance = Annotated[float, Field(ge=0, lt=1)]
# more than any machine counts to: 1e23 epochs are a slip of the pen
Count = Annotated[int, Field(ge=1, le=10**9)]


class Settings(BaseModel):
    """The base of every configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _never_guess(cls, value: Any, about: ValidationInfo) -> Any:
        # pydantic would take true for 1, and "3" for 3
        kinds = set(_leaves(cls.model_fields[str(about.field_name)].annotation))
        words = [word for kind in kinds for word in get_args(kind)]  # of a Literal
        if kinds & {int, float} and type(value) in {bool, str} - kinds and value not in words:
            if words and not isinstance(value, bool):
                raise ValueError(
                    f"a number without quotes or a word is expected ({suggest(value, words)})"
                )
            raise ValueError("a number is expected, without quotes")
        return value

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """What differs from the defaults: of hundreds of settings a reader wants to see these."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.get_default(call_default_factory=True):
                yield name, value

    def changed(self, names: Iterable[str]) -> list[str]:
        """Those of the named settings that differ from their defaults, in order of name."""
        fields = type(self).model_fields
        return [name for name in sorted(names) if getattr(self, name) != fields[name].default]

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        overrides: Sequence[str] = (),
        base: Mapping[str, Any] | None = None,
        fix: str = "--dry-run prints the resolved configuration",
    ) -> Self:
        """From ``base``, then a TOML file, then ``a.b=value`` overrides; the last one wins."""
        values = merge(base or {}, Path(path) if path else {}, *overrides)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            said = [*([str(path)] if path else []), *(["--set"] if overrides else [])]
            raise _explain(error, cls, " with ".join(said), fix) from None

    def to_toml(self) -> str:
        """The resolved configuration; TOML knows no null, so keys without a value are absent."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types of which a value may be one."""
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    elif get_origin(annotation) not in (Union, UnionType):
        yield annotation
        return
    for part in parts:
        yield from _leaves(part)


def _read_toml(path: Path) -> dict[str, Any]:
    path = require_file(path, "configuration")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}", fix='strings need quotes: name = "kang"'
        ) from None


def merge(*layers: Mapping[str, Any] | Path | str) -> dict[str, Any]:
    """Nested dictionaries, TOML files and ``a.b=value`` overrides joined, the last one winning."""
    found: dict[str, Any] = {}
    for layer in layers:
        if isinstance(layer, str):
            given: Mapping[str, Any] = _parse_override(layer)
        else:
            given = _read_toml(layer) if isinstance(layer, Path) else layer
        nested = {
            key: merge(found[key], value)
            for key, value in given.items()
            if isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        }
        found = {**found, **given, **nested}
    return found


def _parse_override(text: str) -> dict[str, Any]:
    """``a.b=3`` as ``{"a": {"b": 3}}``; what is not valid TOML is taken as a string."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set {text!r} has no value", expected="a.b=value", fix="--set cells.per_well=100"
        )
    try:
        values = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:  # quotes that the shell has eaten
        values = {"value": value}
    if len(values) > 1:  # a line break, behind which another key would be lost
        raise ConfigError(f"--set {text!r} has more than one value", fix="--set each of them")
    parsed: Any = values["value"]
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def _explain(
    error: ValidationError, kind: type[Settings], path: str | Path | None, fix: str
) -> ConfigError:
    """Pydantic's complaints as one error of ours, unknown keys with the nearest known one."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(kind, problem["loc"][:-1])
            lines.append(f"unknown key '{key}': {suggest(str(problem['loc'][-1]), known)}")
        else:
            what = problem["msg"].removeprefix("Value error, ")
            # A check of several keys says itself what it found.
            if not isinstance(problem["input"], Mapping):
                what += f", found {problem['input']!r}"
            lines.append(f"{key!r}: {what}" if key else what)
    return ConfigError("; ".join(lines) + (f" (in {path})" if path else ""), fix=fix)


def _known_keys(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys allowed at a place in the configuration."""

    def is_model(annotation: Any) -> bool:
        return isinstance(annotation, type) and issubclass(annotation, BaseModel)

    here: Any = kind
    for part in location:
        if is_model(here):
            field = here.model_fields.get(str(part))
            here = None if field is None else field.annotation
            options = get_args(here)
            if len(options) == 2 and options[1] is type(None):  # X | None
                here = options[0]
        else:  # a mapping: the part is one of its keys
            here = next(reversed(get_args(here)), None)
    return list(here.model_fields) if is_model(here) else []
