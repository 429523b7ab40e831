"""The exceptions of driftgate. A denial is a value; an exception means that something could not be done.

    DriftgateError
    ├── MalformedReview      the request is no AdmissionReview that we can read: HTTP 400
    ├── CannotJudge          what the decision needs could not be had: `review.py` applies the fail mode
    │   ├── UndecodableFields    a managedFields entry is no FieldsV1
    │   ├── ParentUnknown        a scale, and the object that is scaled can't be read
    │   └── ClusterUnavailable   the API server did not answer, or refused us
    ├── ConfigError          the configuration is refused: says where and what to do
    ├── CertificateError     a key pair is missing, half written, or does not fit
    ├── RecordsError         an outbox or ledger can't be read or written
    └── TrackerError         an issue could not be filed: try again later

The text of each is a sentence for the person who has to act on it; no stack trace is ever shown.
"""


class DriftgateError(Exception):
    """Anything that driftgate raises on purpose."""


class MalformedReview(DriftgateError):
    """The request is no AdmissionReview that can be read."""


class CannotJudge(DriftgateError):
    """What the decision needs could not be had."""


class UndecodableFields(CannotJudge):
    """A managedFields entry is there, but is no FieldsV1."""


class ParentUnknown(CannotJudge):
    """A scale can't be judged without the object that is scaled."""


class ClusterUnavailable(CannotJudge):
    """The API server did not answer in time, or refused us."""


class ConfigError(DriftgateError):
    """The configuration is refused."""


class CertificateError(DriftgateError):
    """A key pair is missing, half written, or does not fit."""


class RecordsError(DriftgateError):
    """An outbox or a ledger can't be read or written."""


class TrackerError(DriftgateError):
    """An issue could not be filed, found or changed."""
