"""The bonus ladder of top-ups: the configuration's, else the built-in one."""

import tomllib
from pathlib import Path

import msgspec

import schemas
from schemas.config import Bonus, Config
from services.backends.settings import ConfigError
from services.core.bonus import Step, steps_of


def load(config: Config) -> tuple[Step, ...]:
    """Its steps, lowest first. Raises ConfigError, naming the wrong field."""
    steps = config.bonus
    if not steps:
        text = (Path(schemas.__path__[0]) / "bonus.toml").read_text("utf-8")
        steps = msgspec.convert(tomllib.loads(text)["bonus"], list[Bonus])
    try:
        return steps_of(steps)
    except ValueError as ex:
        raise ConfigError(str(ex)) from ex
