"""driftgate: a Kubernetes admission webhook that stops drift from Git when it is written."""

__version__ = "0.1.0"
