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
@click.option(
    "--ca-days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="The same for a new CA."
)
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
    from webhook.certs import check_pair, make_ca, make_serving_pair, names_in, read_ca, write_pair
    from webhook.errors import CertificateError

    now = datetime.now(UTC)
    there = (directory / "tls.crt").exists()
    try:
        check_pair(directory, now=now)
    except CertificateError as error:
        why = f"{error}\n" if there else ""
    else:
        if not renew:
            checked = check_pair(directory, names, now=now)  # valid, but not for all of them: that is for a person
            until = f"{checked.not_after:%Y-%m-%d %H:%M} UTC"
            return f"{directory}: valid for {', '.join(checked.names)}; nothing to do until {until}, or with --renew"
        why = ""
    known = read_ca(directory)
    if there and known is None and not renew:
        raise CertificateError(
            f"{directory} has a tls.crt that no CA there can renew: --renew replaces it all the same"
        )
    ca = known or make_ca("driftgate CA", ca_days, now=now)
    serving = make_serving_pair(ca, names or names_in(directory) or (_DEFAULT_NAME,), days, now=now)
    write_pair(directory, serving, None if known else ca)
    return why + _done(directory, now, now + timedelta(days=days), new_ca=known is None)


def _done(directory: Path, now: datetime, wanted: datetime, *, new_ca: bool) -> str:
    from webhook.certs import check_pair

    checked = check_pair(directory, now=now)
    made = "a CA and a serving certificate" if new_ca else "a serving certificate, signed by the CA that is there"
    lines = [f"{directory}: made {made}, valid for {', '.join(checked.names)} until {checked.not_after:%Y-%m-%d}"]
    if new_ca:
        lines.append("ca.crt goes into the webhook configurations: driftgate manifests --ca ca.crt; keep ca.key safe")
    if checked.not_after < wanted - timedelta(days=1):
        lines.append("the CA ends then: remove ca.crt and ca.key ahead of it, and make a new one")
    return "\n".join(lines)


def _secret(directory: Path, name: str, namespace: str) -> str:
    """Return the manifest of a Secret that holds the pair and the CA's certificate, not its key."""
    files = {
        file: base64.b64encode((directory / file).read_bytes()).decode() for file in ("ca.crt", "tls.crt", "tls.key")
    }
    data = "".join(f"  {file}: {content}\n" for file, content in files.items())
    return (
        "apiVersion: v1\nkind: Secret\n"
        f"metadata:\n  name: {name}\n  namespace: {namespace}\n"
        f"type: kubernetes.io/tls\ndata:\n{data}"
    )
