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
_SIM_PORT: Final = "run/sim.port"
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
    """The base URL of the simulated provider: where it is, or was at the last start."""
    port = config.sim.port or last_sim_port(config)
    return f"http://{settings.host_in_url(config.sim.host)}:{port}"


def last_sim_port(config: Config) -> int:
    """The port that `up` chose for the simulated provider; 0 before its first start."""
    try:
        return int(under(config, _SIM_PORT).read_text("ascii"))
    except (OSError, ValueError):
        return 0


def remember_sim_port(config: Config, port: int) -> None:
    """For the commands beside `up`, and for its next start."""
    under(config, _SIM_PORT).write_text(str(port), "ascii")


def free_port(host: str) -> int:
    """A port that nobody listens on at the moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def is_embedded(config: Config) -> bool:
    """Whether the SQL database is a file of this machine."""
    return config.database.url.startswith("sqlite")


def is_applied(config: Config) -> bool:
    """Whether the last `apply` to an embedded database was one of this configuration, so that
    another would change nothing."""
    file = under(config, _APPLIED)
    if not is_embedded(config) or not embedded_file(config).exists() or not file.exists():
        return False
    return file.read_text("utf-8") == mark_of(config)


def set_applied(config: Config) -> None:
    """Remembers what `apply` brought the database to."""
    file = under(config, _APPLIED)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(mark_of(config), "utf-8")


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
