"""Options that several subcommands share."""

from pathlib import Path

import click

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file; by default what $DRIFTGATE_CONFIG names, else all defaults.",
)
