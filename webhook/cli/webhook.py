"""`driftgate webhook`: judge writes over HTTPS, in the foreground."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file; by default the one that $DRIFTGATE_CONFIG names.",
)
def webhook(config_file: Path | None) -> None:
    """Judge writes over HTTPS, in the foreground, until a signal says to stop."""
    from webhook.config import load
    from webhook.review import make_reviewer
    from webhook.server import serve_webhook

    serve_webhook(load(config_file), make_reviewer)
