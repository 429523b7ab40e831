"""`driftgate manifests`: the webhook registration, as the API server takes it."""

from pathlib import Path

import click

from webhook.cli.options import config_option


@click.command()
@config_option
@click.option(
    "--ca",
    "ca_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The CA certificate that signed ours (PEM); by default ca.crt in the certificates folder.",
)
@click.option(
    "--service", default="driftgate/driftgate:443", show_default=True, help="NAMESPACE/NAME:PORT of our Service."
)
@click.option(
    "--url", default="", help="Instead of a Service: where the API server finds us, such as https://192.0.2.7:8443."
)
def manifests(config_file: Path | None, ca_file: Path | None, service: str, url: str) -> None:
    """Print the Mutating- and ValidatingWebhookConfiguration.

    Switch driftgate on:   driftgate manifests --ca ca.crt | kubectl apply -f -

    Switch driftgate off:  kubectl delete validatingwebhookconfiguration,mutatingwebhookconfiguration driftgate
    """
    import yaml

    from webhook.config import load, policy_of
    from webhook.registration import Endpoint, registration

    config = load(config_file)
    ca_file = ca_file or config.server.certificates / "ca.crt"
    try:
        ca_bundle = ca_file.read_bytes()
    except OSError as error:
        raise click.ClickException(
            f"{ca_file} can't be read ({error.strerror}): name the CA certificate with --ca"
        ) from None
    namespace, name, port = _service(service)
    endpoint = Endpoint(ca_bundle=ca_bundle, namespace=namespace, service=name, port=port, url=url)
    click.echo(yaml.safe_dump_all(registration(policy_of(config), endpoint), sort_keys=False, width=4096), nl=False)


def _service(text: str) -> tuple[str, str, int]:
    namespace, _, rest = text.partition("/")
    name, _, port = rest.partition(":")
    if not (namespace and name and (not port or (port.isdecimal() and 0 < int(port) < 65536))):
        raise click.BadParameter(f"{text!r} is not NAMESPACE/NAME or NAMESPACE/NAME:PORT", param_hint="--service")
    return namespace, name, int(port or 443)
