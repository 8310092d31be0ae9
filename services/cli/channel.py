"""`tollgate channel`: upstreams."""

import time
from typing import Any, Final

import click
import requests

from schemas import config as shape
from services.backends import settings
from services.cli.context import Cli, Group, table
from services.cli.installation import channels

_PATHS: Final = {
    "anthropic": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
}
_SHOWN_BYTES: Final = 300


@click.group(cls=Group)
def channel() -> None:
    """Channels: one upstream account each, from the configuration."""


@channel.command("list")
@click.pass_obj
def list_(cli: Cli) -> None:
    """Lists the configured channels."""
    rows: list[dict[str, Any]] = [
        {
            "name": found.name,
            "dialect": found.dialect or None,
            "provider": found.provider or None,
            "base_url": found.base_url,
            "credential": found.credential or None,
            "models": sorted(found.models),
            "groups": found.groups,
            "priority": found.priority,
            "weight": found.weight,
        }
        for found in channels(cli.config())
    ]
    names = ("name", "dialect", "provider", "base_url", "models", "groups", "priority", "weight")
    cells = [
        [len(row["models"]) if name == "models" else _joined(row[name]) for name in names]
        for row in rows
    ]
    cli.show(rows, table(names, cells))


@channel.command("test")
@click.argument("name")
@click.option("--model", help="One of the channel's models; the first without it.")
@click.pass_obj
def test(cli: Cli, name: str, model: str | None) -> None:
    """Sends one short request straight to a channel's upstream. Nobody is billed by us."""
    config = cli.config()
    found = next((each for each in channels(config) if each.name == name), None)
    if found is None:
        raise click.UsageError(f"there is no channel {name!r}")
    if found.provider:
        raise click.UsageError(f"{name} makes media: try it with `tollgate job submit`")
    upstream_model = _upstream_model(found, model)
    secret = settings.resolve_secret(found.credential)
    started = time.monotonic()
    try:
        answer = requests.post(
            found.base_url.rstrip("/").removesuffix("/v1") + _PATHS[found.dialect],
            json=_body(found.dialect, upstream_model),
            headers=_headers(found.dialect, secret),
            timeout=(found.connect_timeout_s, found.first_byte_timeout_s),
            allow_redirects=False,
        )
    except requests.RequestException as ex:
        raise click.ClickException(f"{name}: no answer: {type(ex).__name__}") from ex
    took_ms = round((time.monotonic() - started) * 1000)
    ok = 200 <= answer.status_code < 300
    said = "" if ok else answer.text[:_SHOWN_BYTES].replace(secret or "\0", "***")
    cli.show(
        {"channel": name, "model": upstream_model, "status": answer.status_code, "ms": took_ms,
         "ok": ok, "said": said},
        f"{name}: {upstream_model} answered {answer.status_code} in {took_ms} ms {said}".rstrip(),
    )  # fmt: skip
    if not ok:
        raise click.exceptions.Exit(1)


def _upstream_model(found: shape.Channel, model: str | None) -> str:
    names = (
        found.models if isinstance(found.models, dict) else {each: each for each in found.models}
    )
    chosen = model or next(iter(names))
    if chosen not in names:
        raise click.UsageError(f"{found.name} has no model {chosen!r}")
    return names[chosen]


def _body(dialect: str, model: str) -> dict[str, Any]:
    if dialect == "responses":
        return {"model": model, "input": "ping", "max_output_tokens": 16}
    limit = "max_completion_tokens" if dialect == "chat" else "max_tokens"
    return {"model": model, "messages": [{"role": "user", "content": "ping"}], limit: 16}


def _headers(dialect: str, secret: str) -> dict[str, str]:
    if dialect == "anthropic":
        return {"anthropic-version": "2023-06-01", **({"x-api-key": secret} if secret else {})}
    return {"authorization": f"Bearer {secret}"} if secret else {}


def _joined(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) else value
