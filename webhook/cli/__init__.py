"""The command `driftgate`: one small file a subcommand, imported when it is called."""

import importlib
import sys

import click

from webhook import __version__
from webhook.errors import DriftgateError

SUBCOMMANDS = {
    "webhook": "Serve /mutate and /validate over TLS.",
    "controller": "Look after break-glass windows, issues and the ledger.",
    "serve": "Webhook and controller on one machine.",
    "manifests": "Print the webhook registration, generated from the configuration.",
    "certs": "Make the CA, the serving certificate and the seal key.",
    "explain": "Decide recorded AdmissionReviews offline and show why.",
    "audit": "List, show and verify records.",
    "demo": "Show it all: a real control plane, or recorded reviews over HTTPS.",
}


class _Lazy(click.Group):
    """A group that imports a subcommand's module, and all it needs, only when that subcommand is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(f"webhook.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(SUBCOMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="driftgate")
def driftgate() -> None:
    """Stop drift from Git when it is written: a Kubernetes admission webhook."""


def main() -> None:
    """Run the command. What goes wrong is one sentence on standard error and exit code 1, never a stack trace."""
    try:
        driftgate(prog_name="driftgate")
    except DriftgateError as error:
        click.echo(f"driftgate: {error}", err=True)
        sys.exit(1)
