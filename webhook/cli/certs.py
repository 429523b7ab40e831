"""`driftgate certs`: a CA, a serving certificate, the seal key; for development, and where nothing else makes them.

Called again it changes nothing that is still good, so a script may call it every time.
"""

import base64
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

_DEFAULT_NAME = "driftgate.driftgate.svc"
_OBJECT_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


def _object_name(ctx: click.Context, param: click.Parameter, name: str) -> str:
    if _OBJECT_NAME.fullmatch(name):
        return name
    raise click.BadParameter(f"{name!r} is no name that Kubernetes takes", ctx, param)


@click.command()
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for ca.crt, ca.key, tls.crt and tls.key.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    help="A DNS name or IP address by which the webhook is called; may be repeated. By default those of the"
    f" certificate that is there, else {_DEFAULT_NAME}.",
)
@click.option("--days", type=click.IntRange(1, 36500), default=365, show_default=True, help="How long it is valid.")
@click.option("--ca-days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="The same for a new CA.")
@click.option("--renew", is_flag=True, help="Make a new serving certificate even where a valid one is there.")
@click.option("--secret", is_flag=True, help="Print a Secret with the pair, for kubectl apply -f -.")
@click.option("--secret-name", default="driftgate-certificates", show_default=True, callback=_object_name)
@click.option("--secret-namespace", default="driftgate", show_default=True, callback=_object_name)
@click.option(
    "--seal-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Make the key that seals break-glass stamps, 32 random bytes, if this file is not there.",
)
def certs(
    *,
    directory: Path | None,
    names: tuple[str, ...],
    days: int,
    ca_days: int,
    renew: bool,
    secret: bool,
    secret_name: str,
    secret_namespace: str,
    seal_key: Path | None,
) -> None:
    """Make the CA, the serving certificate and the seal key.

    A CA that is there signs again; remove ca.crt and ca.key for a new one. What is valid is only replaced with --renew.
    """
    from webhook.certs import make_seal_key
    from webhook.errors import CertificateError

    if directory is None and (seal_key is None or secret):
        raise click.UsageError("say where: --directory for certificates, --seal-key for the seal key, or both")
    try:
        if seal_key is not None:
            made = make_seal_key(seal_key)
            click.echo(f"{seal_key}: {'made' if made else 'there already, kept as it is'}", err=secret)
        if directory is not None:
            click.echo(_provide(directory, names, days, ca_days, renew=renew), err=secret)
            if secret:
                click.echo(_secret(directory, secret_name, secret_namespace), nl=False)
    except CertificateError as error:
        raise click.ClickException(str(error)) from None


def _provide(directory: Path, names: tuple[str, ...], days: int, ca_days: int, *, renew: bool) -> str:
    """See to it that there is a valid pair, and return what was done."""
    from webhook.certs import check_pair, make_ca, make_serving_pair, read_ca, write_pair
    from webhook.errors import CertificateError

    now = datetime.now(UTC)
    try:
        checked, why = check_pair(directory, names, now=now), ""
    except CertificateError as error:
        checked, why = None, str(error)
    if checked is not None and not renew:
        return (
            f"{directory}: valid for {', '.join(checked.names)}; nothing to do until {_day(checked.not_after)}"
            " (--renew makes a new one now)"
        )
    known = read_ca(directory)
    if known is None and (directory / "tls.crt").exists() and not renew:
        raise CertificateError(f"{why}. There is no CA to sign a new one; --renew makes one and replaces the pair")
    ca = known or make_ca("driftgate CA", ca_days, now=now)
    serving = make_serving_pair(ca, names or _names_in(directory, checked), days, now=now)
    replaced = f"{why}\n" if why and (directory / "tls.crt").exists() else ""
    write_pair(directory, serving, None if known else ca)
    return replaced + _done(directory, now + timedelta(days=days), new_ca=known is None)
