"""`tollgate demo`: the demo account and key, and examples that run by paste."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from schemas.config import Config
from services.backends.admin_key import AdminKey
from services.backends.settings import host_in_url, under
from services.cli.context import Cli, Command
from services.cli.ground import is_up
from services.core.money import NANO_PER_USD

if TYPE_CHECKING:
    from services.cli.bootstrap import Books

NAME: Final = "demo"
FILE: Final = "demo.json"
_CREDIT_NANO: Final = 10 * NANO_PER_USD
_QUESTION: Final = (
    "SELECT model, count() AS requests, sum(cost_usd) AS usd FROM usage GROUP BY model"
)
_MESSAGES: Final = [{"role": "user", "content": "Say hello"}]
_BROKEN: Final = """
A failure costs nothing: the stream breaks after some text, the row below shows the reason
    {}
"""


class Demo(NamedTuple):
    """What the examples need. `api_key` is the secret in clear text."""

    base_url: str
    api_key: str


def prepare(config: Config, url: str) -> Demo:
    """The demo account with its first $10 and a live key, made at the first call. Writes
    `demo.json` (mode 0600) into the data folder; `url` is where clients reach the edge."""
    # Late: a second start prints it when all runs.
    from services.backends.sql.catalog_ground import NotInCatalog
    from services.cli.bootstrap import open_books

    books = open_books(config)
    try:
        account = books.catalog.account(NAME)
    except NotInCatalog:
        account = books.catalog.create_account(NAME)
    books.wallets.move(account.id, "topup", _CREDIT_NANO, "demo", "the demo's first credit")
    made = Demo(url, _live_secret(books, account.id))
    admin_key = AdminKey(config.data_dir).secret()
    body = {**made._asdict(), "admin_key": admin_key, "console_url": None}
    _write_private(under(config, FILE), body)
    return made


def is_prepared(config: Config) -> bool:
    """Whether `demo.json` is there and names this address."""
    return _told_url(config) == base_url(config)


def tell_admin_key(config: Config, secret: str) -> None:
    """Puts a new admin key into `demo.json`, when there is one."""
    path = under(config, FILE)
    if path.exists():
        _write_private(path, {**json.loads(path.read_text("utf-8")), "admin_key": secret})


def base_url(config: Config) -> str:
    """Where a client on this machine reaches the edge of this configuration."""
    return f"http://{host_in_url(config.edge.host)}:{config.edge.port}"


def edge_url(config: Config) -> str:
    """Where a client on this machine reaches the edge: as a running `tollgate up` says, which may
    have been given another port, else `base_url`."""
    return (is_up(Path(config.data_dir)) and _told_url(config)) or base_url(config)


def _told_url(config: Config) -> str:
    """The address in `demo.json`; empty without one."""
    try:
        body = json.loads(under(config, FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return str(body.get("base_url") or "") if isinstance(body, dict) else ""


def _live_secret(books: "Books", account_id: str) -> str:
    for found in books.catalog.keys(account_id):
        if found.name == NAME and found.status == "active" and found.expires_at is None:
            return books.catalog.reveal_key(found.id)
    return books.catalog.create_key(account_id, NAME)[1]


def _write_private(path: Path, body: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(body, indent=2) + "\n")
    fresh.replace(path)


def examples(demo: Demo, where: list[str], *, simulated: bool) -> str:
    """The block that is printed when all is ready. Every command runs as it stands."""
    url, key = demo

    def command(*words: str) -> str:
        return shlex.join([_command(), *words, *where])

    codex = f'{{name="Tollgate",base_url="{url}/v1",env_key="TOLLGATE_KEY",wire_api="responses"}}'

    def curl(**body: Any) -> str:
        text = json.dumps({**body, "max_tokens": 64, "messages": _MESSAGES}, separators=(",", ":"))
        headers = (
            f"x-api-key: {key}",
            "anthropic-version: 2023-06-01",
            "content-type: application/json",
        )
        flags = [part for header in headers for part in ("-H", header)]
        return shlex.join(["curl", "-s", f"{url}/v1/messages", *flags, "-d", text])

    broken = _BROKEN.format(curl(model="sim-cut-mid-stream", stream=True)) if simulated else ""
    provider = "the simulated provider answers" if simulated else "your channels answer"
    return f"""
Tollgate is ready on {url} ({provider}). Key of the demo account ($10):
    {key}

curl
    {curl(model="claude-haiku-4-5")}
{broken}
Claude Code
    ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN={key} claude -p 'Say hello'

Codex
    TOLLGATE_KEY={key} codex exec --skip-git-repo-check -c model_provider=tollgate -c 'model_providers.tollgate={codex}' 'Say hello'

The bill, to the nano-dollar, and your own question about it
    curl -s '{url}/v1/usage?limit=5' -H 'x-api-key: {key}'
    {command("usage")}
    {command("sql", _QUESTION)}

The proof: outbox, log, ledger and analytics tell the same
    {command("reconcile")}

A real provider
    printf '[[channels]]\\nname = "anthropic"\\ndialect = "anthropic"\\nbase_url = "https://api.anthropic.com"\\ncredential = "env:ANTHROPIC_KEY"\\nmodels = ["claude-haiku-4-5", "claude-sonnet-4-6"]\\n' > tollgate.toml
    ANTHROPIC_KEY=sk-ant-... scripts/run --config tollgate.toml

Ctrl-C drains and stops everything. Requests appear below as they are booked.
"""  # noqa: E501 - lines that run by paste are not broken


def _command() -> str:
    """How this installation's command is called from the present folder."""
    path = Path(sys.executable).parent / "tollgate"
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@click.command(cls=Command)
@click.pass_obj
def demo(cli: Cli) -> None:
    """Makes the demo account and key when they are not there, and prints the examples."""
    config = cli.config()
    made = prepare(config, edge_url(config))
    cli.show(made._asdict(), examples(made, cli.where(), simulated=not config.channels))
