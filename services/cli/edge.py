"""`tollgate edge`: serves clients."""

import click

from services.backends import lifecycle, telemetry
from services.cli.context import Cli, Command


@click.command(cls=Command)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="Port to listen on.")
@click.option("--workers", type=int, help="Worker processes.")
@click.pass_obj
def edge(cli: Cli, host: str | None, port: int | None, workers: int | None) -> None:
    """Serves clients until SIGTERM, then drains."""
    config = cli.config(edge__host=host, edge__port=port, edge__workers=workers)
    telemetry.configure("edge", config)
    lifecycle.set_title("edge")
    from services.edge.server import serve

    serve(config)
