"""`driftgate controller`: break-glass windows, issues, the ledger."""

from pathlib import Path

import click

from webhook.cli.options import config_option


@click.command()
@config_option
def controller(config_file: Path | None) -> None:
    """Look after break-glass windows, file issues, move records from the outbox to the ledger."""
    import signal
    import threading

    from webhook.cluster import Cluster
    from webhook.config import load, read_seal_key
    from webhook.controller import Controller
    from webhook.issues import open_tracker
    from webhook.ledger import Ledger
    from webhook.logs import log

    config = load(config_file)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    config.state_directory.mkdir(parents=True, exist_ok=True)
    with Ledger(config.ledger) as ledger:
        looking_after = Controller(
            ledger=ledger,
            outbox=config.outbox,
            cluster=Cluster(config.kubeconfig, timeout=5 * config.cluster_timeout),
            tracker=open_tracker(config),
            seal_key=read_seal_key(config.break_glass.key_file),
            cluster_name=config.cluster,
        )
        log("controller.started", ledger=str(config.ledger))
        looking_after.run(stop)
    log("controller.stopped")
