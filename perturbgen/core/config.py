"""Run configuration (frozen, from TOML) and the run directory that keeps it."""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from perturbgen.core.errors import ConfigError, suggest
from perturbgen.core.files import disk_errors, require_file, require_writable


class Settings(BaseModel):
    """The base of every configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


_S = TypeVar("S", bound=Settings)


def load_settings(
    kind: type[_S],
    path: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    fix: str = "--dry-run prints the resolved configuration",
) -> _S:
    """Settings from ``base``, then a TOML file, then ``a.b=value`` overrides; the later ones win."""
    values = merge(dict(base or {}), read_toml(path) if path else {})
    for override in overrides:
        values = merge(values, parse_override(override))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        where = " with ".join([*([str(path)] if path else []), *(["--set"] if overrides else [])])
        raise _explain(error, kind, where, fix) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as a dictionary."""
    path = require_file(path, "configuration")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}", fix='strings need quotes: name = "kang"'
        ) from None


def merge(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries joined, the right one winning."""
    nested = {
        k: merge(left[k], v)
        for k, v in right.items()
        if isinstance(v, Mapping) and isinstance(left.get(k), Mapping)
    }
    return {**left, **right, **nested}


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=3`` as ``{"a": {"b": 3}}``; what is not valid TOML is taken as a string."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set {text!r} has no value", expected="a.b=value", fix="--set cells.per_well=100"
        )
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
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
            lines.append(
                f"unknown key '{key}': {suggest(str(problem['loc'][-1]), _known_keys(kind, problem['loc'][:-1]))}"
            )
        else:
            whole = isinstance(
                problem["input"], Mapping
            )  # a check of several keys says itself what it found
            found = "" if whole else f", found {problem['input']!r}"
            lines.append(
                f"{repr(key) + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}{found}"
            )
    return ConfigError("; ".join(lines) + (f" (in {path})" if path else ""), fix=fix)


def _known_keys(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys allowed at a place in the configuration."""
    here: Any = kind
    for part in location:
        if _is_model(here):
            field = here.model_fields.get(str(part))
            here = None if field is None else _without_none(field.annotation)
        else:  # a mapping: the part is one of its keys
            here = next(reversed(get_args(here)), None)
    return list(here.model_fields) if _is_model(here) else []


def _is_model(annotation: Any) -> bool:
    """Whether an annotation is a configuration of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _without_none(annotation: Any) -> Any:
    """The annotation itself, or the one that is optional."""
    parts = get_args(annotation)
    return parts[0] if len(parts) == 2 and parts[1] is type(None) else annotation


def to_toml(settings: Settings) -> str:
    """The resolved configuration as TOML (keys without a value are left out)."""
    import tomli_w

    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def create_run(
    root: str | Path,
    name: str,
    settings: Settings,
    *,
    seed: int,
    data: Mapping[str, str] | None = None,
) -> Path:
    """A new numbered run directory ``root/0007-name-s1`` holding ``config.toml`` and ``env.json``.

    ``data`` names what was read, each with its hash (see :func:`file_hash`).
    """
    root = Path(root)
    require_writable(root / name)
    root.mkdir(parents=True, exist_ok=True)
    with disk_errors(root), TemporaryDirectory(prefix=".new-", dir=root) as made:
        part = Path(made) / "run"
        part.mkdir()
        (part / "config.toml").write_text(to_toml(settings), encoding="utf-8")
        (part / "env.json").write_text(json.dumps(environment(seed, data), indent=1))
        return _claim(part, root, f"{slug(name)}-s{seed}")


def _claim(part: Path, root: Path, name: str) -> Path:
    """Move a new run to the next free number; another run that takes the same name meanwhile is never replaced."""
    while True:
        numbers = [int(m[0]) for p in root.iterdir() if (m := re.match(r"\d{4}", p.name))]
        run = root / f"{max(numbers, default=0) + 1:04d}-{name}"
        try:
            return part.rename(run)  # fails on a folder that holds something, as every run does
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def environment(seed: int, data: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a reader needs to repeat a run: versions, git revision, seed, data hashes, command."""
    names = ("perturbgen", "numpy", "scipy", "pandas", "anndata", "torch", "scikit-learn")
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: package_version(name) for name in names},
        "git": git_revision(),
        "seed": seed,
        "data": dict(data or {}),
    }


def package_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """The commit of the source tree, with ``+changes`` when it is not clean; None outside a repository."""
    try:
        where = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
        revision = subprocess.run(["git", "rev-parse", "HEAD"], **where).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **where).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+changes" if dirty else "")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, as ``sha256:...``."""
    with open(path, "rb") as handle:
        return "sha256:" + hashlib.file_digest(handle, "sha256").hexdigest()


def content_hash(path: str | Path, what: str = "file") -> str:
    """SHA-256 of a file, or of the files of a folder and their names."""
    path = Path(path)
    if not path.is_dir():
        return file_hash(require_file(path, what))
    parts = [
        f"{part.relative_to(path)} {file_hash(part)}"
        for part in sorted(path.rglob("*"))
        if part.is_file()
    ]
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


def slug(text: str) -> str:
    """Text fit for a file name, however long it is and whatever script it is in."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:80].strip("-") or "run"
