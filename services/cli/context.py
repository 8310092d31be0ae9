"""What every command shares: the options, the configuration, the two forms of output."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from schemas.config import Config
from services.backends import settings
from services.core.texts import one_line


class Cli:
    """The object of a click context. Options count at any level; the innermost wins."""

    def __init__(self) -> None:
        self.config_file: Path | None = None
        self.data_dir: str | None = None
        self.as_json = False

    def config(self, **overrides: Any) -> Config:
        """The configuration, `section__name=value` over file and environment.

        Raises `ConfigError`."""
        environ = settings.process_environment()
        return settings.load(self.config_file, environ, data_dir=self.data_dir, **overrides)

    def show(self, value: Any, text: str) -> None:
        """Prints `value` as JSON with --json, else `text`."""
        click.echo(json.dumps(value, indent=2, default=str) if self.as_json else text)

    def where(self) -> list[str]:
        """The options that make another command of ours find the same installation."""
        found: list[str] = []
        if self.config_file is not None:
            found += ["--config", str(self.config_file)]
        if self.data_dir is not None:
            found += ["--data-dir", self.data_dir]
        return found


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under their headers; numbers to the right."""
    cells = [[one_line(str(value)) if value is not None else "-" for value in row] for row in rows]
    if not cells:
        return "(none)"
    widths = [
        max(len(header), *(len(row[at]) for row in cells)) for at, header in enumerate(headers)
    ]
    right = [all(_number(row[at]) for row in cells) for at in range(len(headers))]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(headers)), *(line(row) for row in cells)])


def iso(time_us: int) -> str:
    """A time (microseconds, UTC) as people and programs read it."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")


def _number(text: str) -> bool:
    return text.lstrip("-$").replace(".", "", 1).replace(",", "").isdigit() or text == "-"


def _remember(name: str) -> Any:
    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        cli = context.ensure_object(Cli)
        if value is not None and value is not False:
            setattr(cli, name, value)
        return value

    return callback


def _options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path),
            help="Configuration file (TOML).",
            expose_value=False,
            callback=_remember("config_file"),
        ),
        click.Option(
            ["--data-dir"],
            help="Data folder (default ./data).",
            expose_value=False,
            callback=_remember("data_dir"),
        ),
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="Print JSON.",
            expose_value=False,
            callback=_remember("as_json"),
        ),
    ]


class Command(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_options())


class Group(click.Group):
    command_class = Command
    group_class = type  # its sub-groups are of this class too

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(_options())
