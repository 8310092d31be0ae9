"""The bonus ladder of top-ups: the configuration's, else the built-in one."""

import tomllib
from decimal import Decimal, InvalidOperation
from pathlib import Path

import msgspec

import schemas
from schemas.config import Bonus, Config
from services.backends.settings import ConfigError
from services.core.bonus import PPM, Step
from services.core.money import parse_usd


def load(config: Config) -> tuple[Step, ...]:
    """Its steps, lowest first. Raises ConfigError, naming the wrong field."""
    steps = config.bonus
    if not steps:
        text = (Path(schemas.__path__[0]) / "bonus.toml").read_text("utf-8")
        steps = msgspec.convert(tomllib.loads(text)["bonus"], list[Bonus])
    return tuple(sorted(_step(f"bonus[{at}]", step) for at, step in enumerate(steps)))


def _step(path: str, step: Bonus) -> Step:
    try:
        from_nano = parse_usd(step.from_usd)
    except ValueError as ex:
        raise ConfigError(f"{path}.from_usd: {ex}") from ex
    try:
        ppm = Decimal(step.percent) * (PPM // 100)
        whole = int(ppm) if ppm.is_finite() else -1
    except (InvalidOperation, ValueError, OverflowError) as ex:
        raise ConfigError(f"{path}.percent: not a number") from ex
    if whole != ppm or not 0 <= whole <= PPM:
        raise ConfigError(f"{path}.percent: write 0 to 100, with at most four decimals")
    return Step(from_nano, whole)
