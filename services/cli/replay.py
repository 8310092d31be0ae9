"""`tollgate replay`: the log once more through the sinks."""

import click
import msgspec

from services.cli.context import Cli, Command
from services.cli.moment import moment_us
from services.meter.bootstrap import open_bus
from services.meter.replay import replay as send_again


@click.command(cls=Command)
@click.option("--from", "from_us", callback=moment_us, metavar="TIME", help="First log time.")
@click.option("--to", "to_us", callback=moment_us, metavar="TIME", help="Log time to end before.")
@click.pass_obj
def replay(cli: Cli, from_us: int | None, to_us: int | None) -> None:
    """Appends every event of the log to it once more. No total changes: that is the proof."""
    bus = open_bus(cli.config())
    try:
        sent = send_again(bus, from_us, to_us)
    finally:
        bus.close()
    cli.show(
        msgspec.to_builtins(sent),
        f"sent {sent.events} events again ({sent.bytes} bytes, {len(sent.partitions)} partitions)",
    )
