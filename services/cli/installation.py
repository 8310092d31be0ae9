"""What follows from a configuration alone: channels, ports, and whether it was applied already.

Imports no database library, so that a second start is quick."""

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from schemas import config as shape
from schemas.config import Config
from services import backends
from services.backends import price_files, settings
from services.backends.settings import under

_APPLIED: Final = "run/applied"
_SIM_DIALECTS: Final = {
    "anthropic": ("anthropic", "simulated"),
    "chat": ("openai", "google", "deepseek", "moonshot", "zhipu", "minimax", "simulated"),
    "responses": ("openai", "simulated"),
}
_SIM_MEDIA: Final = (  # provider, path, vendors, kinds
    ("openai", "/v1", ("openai", "volcengine", "simulated"), ("image", "speech", "transcription")),
    ("openai-videos", "/v1", ("openai", "volcengine", "simulated"), ("video",)),
    ("openai-embeddings", "/v1", ("openai", "simulated"), ("embedding",)),
    ("rerank", "/v1", ("simulated",), ("rerank",)),
    ("veo", "/v1beta", ("google",), ("video",)),
    ("imagen", "/v1beta", ("google",), ("image",)),
)


def channels(config: Config) -> Sequence[shape.Channel]:
    """The configured channels, else the simulated provider's, with every model of the price
    list."""
    if config.channels:
        return config.channels
    models = price_files.load()
    groups = ["default", *(group.name for group in config.groups if group.name != "default")]
    text = [
        shape.Channel(
            name=f"sim-{dialect}",
            dialect=dialect,  # type: ignore[arg-type]
            base_url=sim_url(config),
            models=[
                name
                for name, model in models.items()
                if model.vendor in vendors and model.kind == "text"
            ],
            groups=groups,
        )
        for dialect, vendors in _SIM_DIALECTS.items()
    ]
    media = [
        shape.Channel(
            name=f"sim-{provider}",
            provider=provider,
            base_url=sim_url(config) + path,
            models=[
                name
                for name, model in models.items()
                if model.vendor in vendors and model.kind in kinds
            ],
            groups=groups,
        )
        for provider, path, vendors, kinds in _SIM_MEDIA
    ]
    return [*text, *media]


def wants_sim(config: Config) -> bool:
    """Whether a channel points at the simulated provider that `up` would start."""
    ours = sim_url(config) + "/"
    return not config.channels or any(
        f"{channel.base_url}/".startswith(ours) for channel in config.channels
    )


def sim_url(config: Config) -> str:
    """The base URL of the simulated provider."""
    return f"http://{settings.host_in_url(config.sim.host)}:{config.sim.port}"


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_embedded(config: Config) -> bool:
    """Whether the SQL database is a file of this machine."""
    return config.database.url.startswith("sqlite")


def is_applied(config: Config, mark: str) -> bool:
    """Whether an embedded database was brought to the state that `mark` tells, so that `apply`
    would change nothing."""
    file = under(config, _APPLIED)
    if not is_embedded(config) or not embedded_file(config).exists() or not file.exists():
        return False
    return file.read_text("utf-8") == mark


def set_applied(config: Config, mark: str) -> None:
    """Remembers that `apply` brought the database to the state of `mark`."""
    under(config, _APPLIED).write_text(mark, "utf-8")


def mark_of(config: Config) -> str:
    """A hash of all that `apply` reads: channels, groups, price data, migrations."""
    digest = hashlib.sha256(config.database.url.encode())
    digest.update(msgspec.json.encode([list(channels(config)), config.groups]))
    for each in channels(config):
        digest.update(hashlib.sha256(settings.resolve_secret(each.credential).encode()).digest())
    migrations = Path(backends.__path__[0]) / "sql" / "migrations"
    for file in sorted([*price_files.built_in_folder().glob("*.toml"), *migrations.rglob("*.py")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def embedded_file(config: Config) -> Path:
    """The file of an embedded database."""
    return under(config, config.database.url.removeprefix("sqlite:///"))
