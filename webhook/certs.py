"""Certificates: make a CA and a serving pair, write them, and say whether what lies in a folder can be served.

ECDSA P-256 and SHA-256 throughout. A folder holds `ca.crt`, `ca.key`, `tls.crt` and `tls.key`, all PEM. What is read
may come from elsewhere too: several CAs in `ca.crt`, intermediates behind the leaf in `tls.crt`, RSA keys.

Easy to get wrong: a server may read while we write. Every file is replaced whole, and a key before its certificate;
a reader that meets the moment in between sees a pair that does not fit, and keeps the one it has.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from webhook.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

CLOCK_SKEW = timedelta(minutes=5)
"""How long before it is made a certificate begins to be valid: clocks differ."""
SEAL_KEY_SIZE = 32  # bytes

CA_CERTIFICATE, CA_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "tls.crt", "tls.key"

_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A serving pair that fits: whom it names, and when it is valid (until its CA's end, where that comes first)."""

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime


def make_ca(common_name: str, days: int, *, now: datetime) -> Pair:
    """Return a new CA, valid for `days` from `now` on. Raises CertificateError if it can't be called so."""
    key = ec.generate_private_key(ec.SECP256R1())
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    except ValueError:
        raise CertificateError(f"a CA's name has 1 to 64 characters: choose another than {common_name!r}") from None
    builder = (
        _builder(subject, key.public_key(), now, now + timedelta(days=days))
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def make_serving_pair(ca: Pair, names: Sequence[str], days: int, *, now: datetime) -> Pair:
    """Return a serving pair for DNS names and IP addresses, valid for `days`, but not longer than its CA.

    Raises CertificateError if a name is none, or the CA can't sign.
    """
    if not names:
        raise CertificateError(
            "a serving certificate needs a name: give the service's, such as driftgate.driftgate.svc"
        )
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    authority, authority_key = _signer(ca, now)
    key = ec.generate_private_key(ec.SECP256R1())
    common_name = next((name for name in names if len(name) <= 64), "driftgate")  # for people; no client compares it
    last = min(now + timedelta(days=days), authority.not_valid_after_utc)
    builder = (
        _builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]), key.public_key(), now, last)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(_key_identifier(authority, authority_key), critical=False)
    )
    return _pair(builder.sign(authority_key, hashes.SHA256()), key)


def read_ca(directory: Path) -> Pair | None:
    """Return the CA in a folder; None if there is none. Raises CertificateError if only half of it is there."""
    certificate, key = _read_if_there(directory / CA_CERTIFICATE), _read_if_there(directory / CA_KEY)
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        there, missing = (CA_KEY, CA_CERTIFICATE) if certificate is None else (CA_CERTIFICATE, CA_KEY)
        raise CertificateError(
            f"{directory / there} is there without {missing}, so nothing can be signed: put that beside it, or remove"
            f" {there} for a new CA"
        )
    return Pair(certificate=certificate, key=key)


def write_pair(directory: Path, serving: Pair, ca: Pair | None = None) -> None:
    """Write a serving pair, and its CA where that is new, over what is there. Raises CertificateError.

    The files are written under other names first, then renamed one after the other.
    """
    files = [(KEY, serving.key, 0o600), (CERTIFICATE, serving.certificate, 0o644)]
    if ca is not None:
        files = [(CA_KEY, ca.key, 0o600), (CA_CERTIFICATE, ca.certificate, 0o644), *files]
    staged: list[tuple[Path, Path]] = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content, mode in files:
            staged.append((directory / f".{name}.{secrets.token_hex(8)}", directory / name))
            _write_new(staged[-1][0], content, mode)
        for temporary, path in staged:
            temporary.replace(path)
        _sync(directory)
    except OSError as error:
        raise _unwritable(directory, error) from error
    finally:
        for temporary, _ in staged:
            with contextlib.suppress(OSError):  # mostly renamed and gone
                temporary.unlink()


def make_seal_key(path: Path) -> bool:
    """Make the key that seals stamps, if there is none at `path`; tell whether it was made. Never overwrites.

    Raises CertificateError if what is there is too short for a key, or nothing can be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            _write_new(path, secrets.token_bytes(SEAL_KEY_SIZE), 0o600)
            _sync(path.parent)
            return True
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    if len(_read(path)) < SEAL_KEY_SIZE:
        raise CertificateError(
            f"{path} is shorter than {SEAL_KEY_SIZE} bytes, so it is no seal key: remove it, and try again"
        )
    return False


def check_pair(directory: Path, names: Iterable[str] = (), *, now: datetime) -> Checked:
    """Return what the pair in a folder is good for, if it can be served at `now` to who calls one of `names`.

    Raises CertificateError, which says what to do, if a file is missing or no PEM, key and certificate don't fit, no
    CA in `ca.crt` signed it, it is no server's, it has expired or is not valid yet, or does not have one of `names`.
    """
    path = directory / CERTIFICATE
    leaf, *others = _certificates(_read(path), path)
    if leaf.public_key() != _key(_read(directory / KEY), directory / KEY).public_key():
        raise CertificateError(
            f"{directory / KEY} is not the key of {path}: half written, or mixed up. Put both of one pair there, or"
            f" make a new pair: {_renewal(directory)}"
        )
    authorities = _certificates(_read(directory / CA_CERTIFICATE), directory / CA_CERTIFICATE)
    chain = _chain(leaf, others, authorities)
    if not chain:
        raise CertificateError(
            f"{path} was not signed by a CA in {directory / CA_CERTIFICATE}: put that CA there, or make a new pair:"
            f" {_renewal(directory)}"
        )
    for certificate in chain:
        _check_times(certificate, path if certificate is leaf else directory / CA_CERTIFICATE, now)
    _check_use(leaf, path)
    named = _names(leaf)
    if missing := [name for name in names if not any(_covers(pattern, name) for pattern in named)]:
        raise CertificateError(
            f"{path} is not valid for {', '.join(missing)}, only for {', '.join(named) or 'no name at all'}: make one"
            f" that is: {_renewal(directory)} {' '.join(f'--name {name}' for name in (*named, *missing))}"
        )
    return Checked(
        names=named, not_before=leaf.not_valid_before_utc, not_after=min(c.not_valid_after_utc for c in chain)
    )


def names_in(directory: Path) -> tuple[str, ...]:
    """Return the names in a folder's serving certificate, valid or not; none if there is no certificate to read."""
    try:
        return _names(_certificates(_read(directory / CERTIFICATE), CERTIFICATE)[0])
    except CertificateError:
        return ()


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, last: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(last)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signer(ca: Pair, now: datetime) -> tuple[x509.Certificate, SigningKey]:
    """Return the CA's certificate and key. Raises CertificateError if it can't sign at `now`."""
    authority, key = _certificates(ca.certificate, CA_CERTIFICATE)[0], _key(ca.key, CA_KEY)
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertificateError(f"{CA_KEY} is neither an EC nor an RSA key: use a CA with one of these")
    if authority.public_key() != key.public_key():
        raise CertificateError(f"{CA_KEY} is not the key of {CA_CERTIFICATE}: put both of one CA there")
    if not _is_ca(authority):
        raise CertificateError(f"{CA_CERTIFICATE} is no CA's certificate: put there the one that belongs to {CA_KEY}")
    if now >= authority.not_valid_after_utc:
        raise CertificateError(
            f"the CA expired on {authority.not_valid_after_utc:%Y-%m-%d}: remove {CA_CERTIFICATE} and {CA_KEY} for a"
            " new one, and put that into the caBundle of the webhook configurations"
        )
    return authority, key


def _key_identifier(authority: x509.Certificate, key: SigningKey) -> x509.AuthorityKeyIdentifier:
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    if len(name) <= 253 and _DNS_NAME.fullmatch(name):
        return x509.DNSName(name)
    raise CertificateError(f"{name!r} is neither a DNS name nor an IP address")


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(serialization.Encoding.PEM, pkcs8, plain),
    )


def _certificates(pem: bytes, path: Path | str) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
        _ = [(certificate.public_key(), certificate.extensions) for certificate in found]  # are decoded only here
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise CertificateError(f"{path} holds no PEM certificate, or half of one: write it again as a whole") from None
    return found


def _key(pem: bytes, path: Path | str) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise CertificateError(f"{path} has a password: write the key there without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{path} holds no PEM private key, or half of one: write it again as a whole") from None


def _chain(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Return the certificates from the leaf to the CA that vouches for it; empty if none does."""
    chain = [leaf]
    rest = list(others)
    trusted = sorted(authorities, key=lambda authority: authority.not_valid_after_utc, reverse=True)
    while True:
        if found := next((authority for authority in trusted if _signed(chain[-1], authority)), None):
            return [*chain, found]
        if not (following := next((other for other in rest if _signed(chain[-1], other)), None)):
            return []
        chain.append(following)
        rest.remove(following)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Tell whether `authority` is a CA that signed the certificate, or the certificate itself."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return _is_ca(authority) or certificate == authority


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _check_times(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < first:
        raise CertificateError(
            f"{path} is not valid before {_print(first)}, and it is {_print(now)}: look at the clock"
        )
    if now >= last:
        what = (
            f"remove it and {CA_KEY}, then make a new CA: driftgate certs --directory {path.parent}"
            if path.name == CA_CERTIFICATE
            else f"renew it: {_renewal(path.parent)}"
        )
        raise CertificateError(f"{path} expired at {_print(last)}: {what}")


def _check_use(leaf: x509.Certificate, path: Path) -> None:
    if isinstance(leaf.signature_hash_algorithm, hashes.SHA1 | hashes.MD5):
        raise CertificateError(
            f"{path} is signed with {leaf.signature_hash_algorithm.name.upper()}, which the API server refuses: make a"
            f" new pair: {_renewal(path.parent)}"
        )
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses):
        raise CertificateError(f"{path} is not for servers: make a new pair: {_renewal(path.parent)}")


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = found.get_values_for_type(x509.IPAddress)
    return (*found.get_values_for_type(x509.DNSName), *map(str, addresses))


def _covers(pattern: str, name: str) -> bool:
    """Tell whether a name in a certificate is good for `name`; `*` stands for one label, the first."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(name)) == pattern
    pattern, name = pattern.lower(), name.lower().rstrip(".")
    return pattern == name or (pattern.startswith("*.") and pattern[1:] == name[name.find(".") :])


def _renewal(directory: Path) -> str:
    return f"driftgate certs --directory {directory} --renew"


def _print(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(path: Path) -> bytes:
    content = _read_if_there(path)
    if content is None:
        raise CertificateError(f"there is no {path}: make a pair: driftgate certs --directory {path.parent}")
    return content


def _read_if_there(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CertificateError(
            f"{path} can't be read: {(error.strerror or str(error)).lower()}. Let user {os.geteuid()} read it"
        ) from error


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, down to the disk. Raises OSError, and leaves nothing half written."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask is
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        path.unlink()
        raise


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(directory: Path, error: OSError) -> CertificateError:
    return CertificateError(
        f"nothing can be written to {directory}: {(error.strerror or str(error)).lower()}. Let user {os.geteuid()}"
        " write there, or name another folder"
    )
