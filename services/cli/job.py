"""`tollgate job`: makes images, videos and sounds through the public door, as a client would."""

import json
import sys
from pathlib import Path
from typing import Any, Final

import click
import requests

from services.cli import demo
from services.cli.bootstrap import open_books
from services.cli.context import Cli, Command, Group, table

_TIMEOUT_S: Final = 90.0
_COLUMNS: Final = ("id", "created_at", "kind", "model", "state", "charged_usd", "error")
_CHUNK: Final = 256 * 1024


class Door:
    """The edge, called with a key: the given one, else the demo account's."""

    def __init__(self, cli: Cli, key: str | None) -> None:
        config = cli.config()
        self._url = demo.edge_url(config)
        self._headers = {"x-api-key": key or _demo_key(cli)}

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Raises ClickException with the error's message."""
        headers = {**self._headers, **more.pop("headers", {})}
        url = path if path.startswith("http") else self._url + path
        try:
            reply = requests.request(method, url, headers=headers, timeout=_TIMEOUT_S, **more)
        except requests.RequestException as ex:
            raise click.ClickException(f"the edge does not answer at {self._url}: {ex}") from ex
        if reply.status_code >= 400:
            raise click.ClickException(_message(reply))
        return reply


class Job(Group):
    pass


_KEY = click.option("--key", envvar="TOLLGATE_KEY", help="API key (default: the demo account's).")


@click.group(cls=Job)
def job() -> None:
    """Submits media jobs, watches them, downloads what they made."""


@job.command(cls=Command)
@click.argument("model")
@click.argument("prompt")
@click.option("--param", "-p", "params", multiple=True, metavar="NAME=VALUE", help="Repeatable.")
@click.option("--external-id", default="", help="Your own name: submitting twice makes one job.")
@click.option("--wait/--no-wait", default=False, help="Watch it until it has ended.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for what it made.")
@_KEY
@click.pass_obj
def submit(
    cli: Cli,
    model: str,
    prompt: str,
    params: tuple[str, ...],
    external_id: str,
    wait: bool,
    output: Path | None,
    key: str | None,
) -> None:
    """Makes something with MODEL from PROMPT (for speech: the text to say)."""
    door = Door(cli, key)
    given = dict(_parameter(each) for each in params)
    known = _kind(model)
    first = {"speech": "input", "transcription": "file", "rerank": "query"}.get(known, "prompt")
    body: dict[str, Any] = {"model": model, "input": {first: prompt, **given}}
    if external_id:
        body["external_id"] = external_id
    made = door.call("POST", "/v1/jobs", json=body).json()
    if wait or output is not None:
        made = _watch(cli, door, made["id"])
    _show(cli, made)
    if output is not None:
        _download(cli, door, made, output)
    _exit(made)


@job.command(cls=Command)
@click.argument("job_id")
@_KEY
@click.pass_obj
def watch(cli: Cli, job_id: str, key: str | None) -> None:
    """Follows a job until it has ended."""
    made = _watch(cli, Door(cli, key), job_id)
    _show(cli, made)
    _exit(made)


@job.command("get", cls=Command)
@click.argument("job_id")
@_KEY
@click.pass_obj
def get(cli: Cli, job_id: str, key: str | None) -> None:
    """Shows one job."""
    _show(cli, Door(cli, key).call("GET", f"/v1/jobs/{job_id}").json())


@job.command("list", cls=Command)
@click.option("--state", help="queued, running, completed, failed, cancelled or expired.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@_KEY
@click.pass_obj
def listed(cli: Cli, state: str | None, limit: int, key: str | None) -> None:
    """Lists jobs, newest first."""
    asked = {"limit": str(limit), **({"state": state} if state else {})}
    found = Door(cli, key).call("GET", "/v1/jobs", params=asked).json()["data"]
    rows = [[_cell(each, name) for name in _COLUMNS] for each in found]
    cli.show(found, table(_COLUMNS, rows))


@job.command(cls=Command)
@click.argument("job_id")
@_KEY
@click.pass_obj
def cancel(cli: Cli, job_id: str, key: str | None) -> None:
    """Asks for the end of a job."""
    _show(cli, Door(cli, key).call("POST", f"/v1/jobs/{job_id}/cancel").json())


@job.command(cls=Command)
@click.argument("job_id")
@click.option("--output", type=click.Path(path_type=Path), default=Path(), help="Folder.")
@_KEY
@click.pass_obj
def download(cli: Cli, job_id: str, output: Path, key: str | None) -> None:
    """Writes what a job made into a folder."""
    door = Door(cli, key)
    _download(cli, door, door.call("GET", f"/v1/jobs/{job_id}").json(), output)


def _watch(cli: Cli, door: Door, job_id: str) -> dict[str, Any]:
    """The job once it has ended; a line for every event, to stderr."""
    while True:
        reply = door.call(
            "GET",
            f"/v1/jobs/{job_id}/events",
            headers={"accept": "text/event-stream"},
            stream=True,
        )
        kind = ""
        for raw in reply.iter_lines():
            line = raw.decode()
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: ") and kind in ("state", "progress"):
                _say(cli, job_id, json.loads(line[6:]))
            elif line.startswith("data: ") and kind == "done":
                found: dict[str, Any] = json.loads(line[6:])
                return found


def _say(cli: Cli, job_id: str, told: dict[str, Any]) -> None:
    if cli.as_json:
        return
    progress = told.get("progress")
    text = told.get("state") or f"{progress:.0%}"
    click.echo(f"{job_id} {text}", err=True)


def _download(cli: Cli, door: Door, made: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for each in made["output"]:
        reply = door.call("GET", f"/v1/artifacts/{each['artifact_id']}/content", stream=True)
        name = reply.headers["content-disposition"].partition('filename="')[2].rstrip('"')
        path = folder / Path(name).name
        with path.open("wb") as file:
            for chunk in reply.iter_content(_CHUNK):
                file.write(chunk)
        if not cli.as_json:
            click.echo(f"{path} ({each['mime']}, {each['bytes']} bytes)")


def _show(cli: Cli, made: dict[str, Any]) -> None:
    lines = [
        f"{made['id']} {made['model']} {made['state']}, charged ${made['cost']['charged_usd']}"
    ]
    if made["error"]:
        lines.append(f"{made['error']['code']}: {made['error']['message']}")
    lines += [f"{each['type']} {each['mime']} {each['url']}" for each in made["output"]]
    cli.show(made, "\n".join(lines))


def _exit(made: dict[str, Any]) -> None:
    if made["state"] in ("failed", "cancelled", "expired"):
        sys.exit(1)


def _cell(made: dict[str, Any], name: str) -> Any:
    if name == "charged_usd":
        return made["cost"]["charged_usd"]
    if name == "error":
        return (made["error"] or {}).get("code", "")
    return made[name]


def _parameter(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise click.ClickException(f"write NAME=VALUE, not {text!r}")
    return name, int(value) if value.isdecimal() else value


def _kind(model: str) -> str:
    from services.backends import price_files

    found = price_files.load().get(model)
    return found.kind if found is not None else ""


def _demo_key(cli: Cli) -> str:
    catalog = open_books(cli.config()).catalog
    account = catalog.account(demo.NAME)
    for key in catalog.keys(account.id):
        if key.status == "active":
            return catalog.reveal_key(key.id)
    raise click.ClickException("give --key: the demo account has no key")


def _message(reply: requests.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {reply.status_code}"
