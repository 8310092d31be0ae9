"""Reads the configuration: TOML file, then `TOLLGATE_SECTION__NAME`, then overrides.

The only file that reads the environment. A wrong value is one line that names its path."""

import base64
import os
import re
import secrets as random_secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.config import Config, Section
from services.backends.config_check import check

_PREFIX: Final = "TOLLGATE_"
_AT: Final = re.compile(r"^(?P<what>.*?)(?: - at `\$?\.?(?P<path>.*)`)?$", re.DOTALL)
_SECRET_FILE: Final = "secret.key"  # noqa: S105 - a file name
_SECRET_BYTES: Final = 32


class ConfigError(Exception):
    """One line for the operator: what is wrong and where."""


def load(config_file: Path | None, environ: Mapping[str, str], **overrides: Any) -> Config:
    """The configuration, with `data_dir` made absolute.

    `overrides` are `section__name=value` or a top-level name; None is no override. Raises
    `ConfigError`."""
    raw = _read_toml(config_file) if config_file is not None else {}
    for name, text in environ.items():
        if name == f"{_PREFIX}DATA_DIR":
            raw["data_dir"] = text
        elif name.startswith(_PREFIX) and "__" in name:
            section, _, field = name.removeprefix(_PREFIX).lower().partition("__")
            _put(raw, section, field, text, origin=name)
    for name, value in overrides.items():
        if value is None:
            continue
        section, _, field = name.partition("__")
        if field:
            _put(raw, section, field, value, origin=name)
        else:
            raw[name] = value
    config = _convert(raw, config_file)
    try:
        check(config)
    except ValueError as ex:
        raise ConfigError(str(ex)) from ex
    config.data_dir = str(Path(config.data_dir).expanduser().resolve())
    return config


def environment(name: str) -> str:
    """One variable of the environment, empty when unset."""
    return os.environ.get(name, "")


def process_environment() -> dict[str, str]:
    """The environment of this process, for `load` and for the processes it starts."""
    return dict(os.environ)


def set_environment(name: str, value: str) -> None:
    """For libraries that can be set up only through the environment."""
    os.environ[name] = value


def host_in_url(host: str) -> str:
    """A host as a URL has it; one that listens everywhere is reached on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not a binding
    return f"[{host}]" if ":" in host else host


def under(config: Config, relative: str) -> Path:
    """`relative` inside the data folder; an absolute path stays as it is."""
    return Path(config.data_dir) / relative


def resolve_secret(reference: str) -> str:
    """The secret behind `env:NAME` or `file:PATH`; empty for an empty reference.

    Raises `ConfigError` when it is not there, or when a secret was written in clear text."""
    kind, _, name = reference.partition(":")
    if not reference:
        return ""
    if kind == "env":
        value = environment(name)
        if not value:
            raise ConfigError(f"the environment variable {name} is not set")
        return _one_line(value, f"the secret in the environment variable {name}")
    if kind == "file":
        try:
            value = Path(name).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as ex:
            raise ConfigError(f"cannot read the secret in {name}: {ex}") from ex
        return _one_line(value, f"the secret in {name}")
    raise ConfigError("a secret is written env:NAME or file:PATH, never in clear text")


def _one_line(secret: str, what: str) -> str:
    """It is sent in a header."""
    if not secret:
        raise ConfigError(f"{what} is empty")
    if not (secret.isascii() and secret.isprintable()):
        raise ConfigError(f"{what} is not one line of ASCII characters")
    return secret


def has_secret(data_dir: Path | str) -> bool:
    """Whether `secret.key` is there already."""
    return (Path(data_dir) / _SECRET_FILE).exists()


def load_secret(data_dir: Path | str) -> bytes:
    """The 32 bytes of `secret.key` in the data folder, made (mode 0600) when it is not there.

    Raises `ConfigError` when the file cannot be made or does not hold 32 bytes in base64."""
    path = Path(data_dir) / _SECRET_FILE
    try:
        if not path.exists():
            _make_secret(path)
        secret = base64.b64decode(path.read_bytes(), validate=False)
    except (OSError, ValueError) as ex:
        raise ConfigError(f"cannot read {path}: {ex}") from ex
    if len(secret) != _SECRET_BYTES:
        raise ConfigError(f"{path} does not hold {_SECRET_BYTES} bytes in base64")
    return secret


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(base64.b64encode(random_secrets.token_bytes(_SECRET_BYTES)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)  # fails when another process was first: then its secret counts
    except FileExistsError:
        pass
    finally:
        fresh.unlink()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as ex:
        raise ConfigError(f"cannot read {path}: {ex.strerror}") from ex
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as ex:
        raise ConfigError(f"{path} is not TOML: {ex}") from ex


def _put(raw: dict[str, Any], section: str, field: str, value: Any, *, origin: str) -> None:
    shape = _sections().get(section)
    if shape is None:
        raise ConfigError(f"{origin}: there is no section `{section}`")
    types = {info.name: info.type for info in msgspec.structs.fields(shape)}
    if field not in types:
        raise ConfigError(f"{origin}: there is no `{section}.{field}`")
    if isinstance(value, str) and _is_list(types[field]):
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        converted = msgspec.convert(value, types[field], strict=False)
    except msgspec.ValidationError as ex:
        raise ConfigError(f"{origin} ({section}.{field}): {_first_lower(str(ex))}") from ex
    table = raw.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section}: expected a table")
    table[field] = converted


def _convert(raw: dict[str, Any], config_file: Path | None) -> Config:
    try:
        return msgspec.convert(raw, Config)
    except msgspec.ValidationError as ex:
        match = _AT.match(str(ex))
        what, path = (match["what"], match["path"]) if match else (str(ex), None)
        where = f"{config_file}: " if config_file is not None else ""
        raise ConfigError(f"{where}{path or 'the file'}: {_first_lower(what)}") from ex


def _sections() -> dict[str, type[Section]]:
    return {
        info.name: info.type
        for info in msgspec.structs.fields(Config)
        if isinstance(info.type, type) and issubclass(info.type, Section)
    }


def _is_list(shape: Any) -> bool:
    return isinstance(msgspec.inspect.type_info(shape), msgspec.inspect.ListType)


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:].replace("`", "'")
