"""Certificates: what is made is trusted by a TLS client, and what does not fit is named."""

import ipaddress
import os
import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from webhook.certs import (
    Pair,
    check_pair,
    make_ca,
    make_seal_key,
    make_serving_pair,
    names_in,
    read_ca,
    write_pair,
)
from webhook.errors import CertificateError

NOW = datetime.now(UTC).replace(microsecond=0)
SERVICE = "driftgate.driftgate.svc"
NAMES = (SERVICE, "localhost", "127.0.0.1", "::1")
SCRIPT = Path(__file__).parent.parent / "certs" / "make.sh"
README = SCRIPT.with_name("README.md")

CA = make_ca("driftgate CA", 3650, now=NOW)
PAIR = make_serving_pair(CA, NAMES, 365, now=NOW)
OTHER_CA = make_ca("driftgate CA", 3650, now=NOW)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on PATH")


def parsed(pem):
    """Return the first certificate in a PEM."""
    return x509.load_pem_x509_certificates(pem)[0]


@pytest.fixture
def folder(tmp_path):
    """A folder with a good pair."""
    path = tmp_path / "certificates"
    write_pair(path, PAIR, CA)
    return path


def handshake(directory, name, trusted=None):
    """Do a TLS handshake in memory with what is in a folder; return the protocol. Raises ssl.SSLError."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    calling = ssl.create_default_context(cafile=trusted or directory / "ca.crt")
    calling.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = calling.wrap_bio(down, up, server_hostname=name)
    server = serving.wrap_bio(up, down, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            return client.version()
    raise AssertionError("the handshake does not end")


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_trusts_the_ca_trusts_the_pair(folder, name):
    """By every name, with the strictest checks that OpenSSL has."""
    assert handshake(folder, name) == "TLSv1.3"


def test_a_client_refuses_another_name_or_ca(folder, tmp_path):
    """The pair is good for its names and its CA only."""
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(folder, "driftgate.other.svc")
    (tmp_path / "other.crt").write_bytes(OTHER_CA.certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(folder, SERVICE, tmp_path / "other.crt")


def test_a_ca_can_do_nothing_but_sign():
    """P-256, SHA-256, no CA below it."""
    ca = parsed(CA.certificate)

    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)
    assert ca.public_key().curve.name == "secp256r1"
    assert isinstance(ca.signature_hash_algorithm, hashes.SHA256)
    assert ca.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert ca.not_valid_after_utc == NOW + timedelta(days=3650)


def test_a_serving_certificate_can_do_nothing_but_serve():
    """It names DNS names and addresses as what they are, and ends when it should."""
    leaf = parsed(PAIR.certificate)

    def value(kind):
        return leaf.extensions.get_extension_for_class(kind).value

    assert not value(x509.BasicConstraints).ca
    assert (value(x509.KeyUsage).digital_signature, value(x509.KeyUsage).key_cert_sign) == (True, False)
    assert list(value(x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]
    alternatives = value(x509.SubjectAlternativeName)
    assert alternatives.get_values_for_type(x509.DNSName) == [SERVICE, "localhost"]
    assert alternatives.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(name) for name in NAMES[2:]]
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert leaf.not_valid_after_utc == NOW + timedelta(days=365)
    assert leaf.serial_number.bit_length() > 100
    assert leaf.serial_number != parsed(make_serving_pair(CA, NAMES, 365, now=NOW).certificate).serial_number


def test_a_certificate_does_not_outlive_its_ca():
    """Nobody would trust it any longer."""
    leaf = parsed(make_serving_pair(make_ca("short", 10, now=NOW), NAMES, 365, now=NOW).certificate)

    assert leaf.not_valid_after_utc == NOW + timedelta(days=10)


@pytest.mark.parametrize("names", [["x" * 63 + ".svc"], [f"{'long.' * 20}svc"], ["*.driftgate.svc"], ["a_b.svc"]])
def test_unusual_names_are_taken(names, tmp_path):
    """Also those too long for a common name."""
    write_pair(tmp_path, make_serving_pair(CA, names, 1, now=NOW), CA)

    assert check_pair(tmp_path, now=NOW).names == tuple(names)


@pytest.mark.parametrize(
    "name", ["", "a b", "a..b", "-a", "*", "a.*.b", "https://a", "a:443", "ä.example", "x" * 64, "a" + ".a" * 127]
)
def test_what_is_no_name_is_refused(name):
    """Before anything is made."""
    with pytest.raises(CertificateError, match="is neither a DNS name nor an IP address"):
        make_serving_pair(CA, [SERVICE, name], 1, now=NOW)


def test_a_certificate_without_a_name_is_refused():
    """No client would take it; and a CA has a name that fits."""
    with pytest.raises(CertificateError, match="needs a name"):
        make_serving_pair(CA, [], 1, now=NOW)
    with pytest.raises(CertificateError, match="1 to 64 characters"):
        make_ca("x" * 65, 1, now=NOW)


def own_ca(key, *, ca=True, days=10):
    """Return a CA as somebody else would make it: without key identifiers."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=20))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def test_a_ca_from_elsewhere_signs(tmp_path):
    """One with an RSA key, for example."""
    ca = own_ca(rsa.generate_private_key(65537, 2048))
    write_pair(tmp_path, make_serving_pair(ca, NAMES, 365, now=NOW), ca)

    assert check_pair(tmp_path, NAMES, now=NOW).not_after == NOW + timedelta(days=10)


@pytest.mark.parametrize(
    ("ca", "why"),
    [
        (own_ca(ec.generate_private_key(ec.SECP256R1()), ca=False), "ca.crt is no CA's certificate"),
        (own_ca(ec.generate_private_key(ec.SECP256R1()), days=-1), "the CA expired on .*: remove ca.crt and ca.key"),
        (own_ca(ed25519.Ed25519PrivateKey.generate()), "ca.key is neither an EC nor an RSA key"),
        (Pair(certificate=CA.certificate, key=OTHER_CA.key), "ca.key is not the key of ca.crt"),
        (Pair(certificate=b"", key=CA.key), "ca.crt holds no PEM certificate"),
        (Pair(certificate=CA.certificate, key=b"x"), "ca.key holds no PEM private key"),
    ],
)
def test_a_ca_that_cannot_sign_is_refused(ca, why):
    """With what is wrong with it."""
    with pytest.raises(CertificateError, match=why):
        make_serving_pair(ca, NAMES, 1, now=NOW)


def test_keys_are_readable_by_their_owner_only(folder):
    """Whatever the umask is, and nothing else is left in the folder."""
    old = os.umask(0)
    try:
        write_pair(folder, PAIR, CA)
    finally:
        os.umask(old)

    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "tls.crt": 0o644, "tls.key": 0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_key_is_in_place_before_its_certificate(folder, monkeypatch):
    """A reader sees whole files, and a pair that does not fit for a moment only."""
    replaced = []
    real = Path.replace

    def noted(path, target):
        replaced.append(target.name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", noted)

    write_pair(folder, PAIR, CA)

    assert replaced == ["ca.key", "ca.crt", "tls.key", "tls.crt"]


def test_a_failure_half_way_leaves_no_litter(folder, monkeypatch):
    """The old pair still serves."""

    def failing(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(CertificateError, match=f"nothing can be written to {folder}: no space left on device"):
        write_pair(folder, make_serving_pair(CA, NAMES, 1, now=NOW))

    assert len(list(folder.iterdir())) == 4
    assert check_pair(folder, NAMES, now=NOW).not_after == NOW + timedelta(days=365)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    """With what to do."""
    (tmp_path / "file").write_text("")

    with pytest.raises(CertificateError, match="name another folder"):
        write_pair(tmp_path / "file" / "folder", PAIR)
    with pytest.raises(CertificateError, match="name another folder"):
        make_seal_key(tmp_path / "file" / "key")


def test_a_ca_is_read_as_a_whole_or_not_at_all(folder, tmp_path):
    """Half of one is for a person to look at."""
    assert read_ca(folder) == CA
    assert read_ca(tmp_path / "nowhere") is None
    (folder / "ca.key").unlink()
    with pytest.raises(CertificateError, match=r"ca\.crt is there without ca\.key"):
        read_ca(folder)


def test_a_good_pair_tells_its_names_and_its_end(folder):
    """The names are compared as TLS compares them."""
    checked = check_pair(folder, ["DriftGate.driftgate.svc.", "0:0:0:0:0:0:0:1"], now=NOW)

    assert checked.names == NAMES
    assert checked.not_before == NOW - timedelta(minutes=5)
    assert checked.not_after == NOW + timedelta(days=365)
    assert names_in(folder) == NAMES
    assert names_in(folder / "nowhere") == ()


def swap_in(**files):
    """Return a change of a folder: files by their name with _ for a dot; None removes one."""

    def change(folder):
        for name, content in files.items():
            path = folder / name.replace("_", ".")
            path.unlink() if content is None else path.write_bytes(content)

    return change


DAY = timedelta(days=1)
FOREIGN = make_serving_pair(OTHER_CA, NAMES, 365, now=NOW)
CLIENT_KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("change", "when", "says"),
    [
        (swap_in(tls_crt=None), NOW, r"there is no .*tls\.crt: make a pair: driftgate certs --directory"),
        (swap_in(tls_key=None), NOW, r"there is no .*tls\.key"),
        (swap_in(ca_crt=None), NOW, r"there is no .*ca\.crt"),
        (swap_in(tls_crt=PAIR.certificate[:200]), NOW, r"tls\.crt holds no PEM certificate, or half of one"),
        (swap_in(tls_key=PAIR.key[:100]), NOW, r"tls\.key holds no PEM private key, or half of one"),
        (swap_in(tls_key=FOREIGN.key), NOW, r"tls\.key is not the key of .*tls\.crt: half written, or mixed up"),
        (swap_in(ca_crt=OTHER_CA.certificate), NOW, r"was not signed by a CA in .*ca\.crt: put that CA there"),
        (swap_in(ca_crt=PAIR.certificate), NOW, "was not signed by a CA"),
        (swap_in(), NOW + 365 * DAY, r"tls\.crt expired at .*: renew it: driftgate certs --directory .* --renew"),
        (swap_in(), NOW - DAY, r"tls\.crt is not valid before .*: look at the clock"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused(folder, change, when, says):
    """The sentence names the file, and what to do."""
    change(folder)

    with pytest.raises(CertificateError, match=says):
        check_pair(folder, NAMES, now=when)


def test_a_missing_name_is_told_with_the_command(folder):
    """Which keeps the names that are there."""
    with pytest.raises(CertificateError, match=r"not valid for a\.example, 10\.0\.0\.1, only for") as caught:
        check_pair(folder, [SERVICE, "a.example", "10.0.0.1"], now=NOW)

    assert str(caught.value).endswith(f"{' '.join(f'--name {name}' for name in (*NAMES, 'a.example', '10.0.0.1'))}")


@pytest.mark.parametrize(
    ("name", "good"),
    [("a.shop.svc", True), ("b.shop.svc", True), ("shop.svc", False), ("a.b.shop.svc", False), ("ashop.svc", False)],
)
def test_a_star_stands_for_one_label(tmp_path, name, good):
    """As in TLS."""
    write_pair(tmp_path, make_serving_pair(CA, ["*.shop.svc"], 1, now=NOW), CA)

    try:
        check_pair(tmp_path, [name], now=NOW)
    except CertificateError:
        assert not good
    else:
        assert good


def test_several_cas_may_be_trusted(folder):
    """While one follows another, both are in ca.crt."""
    (folder / "ca.crt").write_bytes(OTHER_CA.certificate + CA.certificate)

    assert check_pair(folder, NAMES, now=NOW).names == NAMES


def signed(issuer, key, name, *extensions):
    """Return a certificate in PEM, signed by a CA."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(parsed(issuer.certificate).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + 5 * DAY)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    signing = serialization.load_pem_private_key(issuer.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    return builder.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem_of(key):
    """Return a private key in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def test_a_chain_may_go_through_an_intermediate(tmp_path):
    """As a company's CA, or cert-manager, has it; it ends with the first of them."""
    root = own_ca(ec.generate_private_key(ec.SECP256R1()))
    key = ec.generate_private_key(ec.SECP256R1())
    between = Pair(
        certificate=signed(root, key, "between", x509.BasicConstraints(ca=True, path_length=0)), key=pem_of(key)
    )
    leaf = make_serving_pair(between, NAMES, 3, now=NOW)
    chained = Pair(certificate=leaf.certificate + between.certificate, key=leaf.key)
    write_pair(tmp_path, chained, root)
    assert check_pair(tmp_path, NAMES, now=NOW).not_after == NOW + 3 * DAY

    write_pair(tmp_path, leaf, root)
    with pytest.raises(CertificateError, match="was not signed by a CA"):
        check_pair(tmp_path, NAMES, now=NOW)


def test_a_certificate_for_clients_is_refused(tmp_path):
    """It would be loaded and served, and every client would refuse it."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    write_pair(tmp_path, Pair(certificate=signed(CA, CLIENT_KEY, "x", usage), key=pem_of(CLIENT_KEY)), CA)

    with pytest.raises(CertificateError, match="is not for servers"):
        check_pair(tmp_path, now=NOW)


def test_a_certificate_without_names_is_refused(tmp_path):
    """Its common name does not count."""
    write_pair(tmp_path, Pair(certificate=signed(CA, CLIENT_KEY, SERVICE), key=pem_of(CLIENT_KEY)), CA)

    with pytest.raises(CertificateError, match="only for no name at all"):
        check_pair(tmp_path, [SERVICE], now=NOW)


def test_a_key_with_a_password_is_refused(folder):
    """There is nobody to type it."""
    locked = CLIENT_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (folder / "tls.key").write_bytes(locked)

    with pytest.raises(CertificateError, match="has a password: write the key there without one"):
        check_pair(folder, now=NOW)


def test_a_seal_key_is_made_once(tmp_path):
    """A second one would make every stamp in the cluster worthless."""
    path = tmp_path / "seal" / "key"

    assert make_seal_key(path)
    key = path.read_bytes()
    assert not make_seal_key(path)

    assert (len(key), path.read_bytes(), path.stat().st_mode & 0o777) == (32, key, 0o600)
    path.write_bytes(b"short")
    with pytest.raises(CertificateError, match="shorter than 32 bytes"):
        make_seal_key(path)


def make_with_openssl(*arguments, **environment):
    """Run the script and return what it did."""
    return subprocess.run(
        ["sh", SCRIPT, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


@needs_openssl
def test_the_script_makes_the_same_with_openssl_alone(tmp_path):
    """The same files, the same rules, and a client trusts them."""
    folder = tmp_path / "made"
    assert make_with_openssl(folder, *NAMES, DAYS="30").returncode == 0
    now = datetime.now(UTC)

    checked = check_pair(folder, NAMES, now=now)
    assert checked.names == NAMES
    assert timedelta(days=29) < checked.not_after - now < timedelta(days=31)
    assert handshake(folder, SERVICE) == "TLSv1.3"
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "tls.crt": 0o644,
        "tls.key": 0o600,
    }
    for name, ours in (("ca.crt", CA), ("tls.crt", PAIR)):
        made = [(e.oid, e.critical) for e in parsed((folder / name).read_bytes()).extensions]
        assert sorted(made, key=str) == sorted(
            ((e.oid, e.critical) for e in parsed(ours.certificate).extensions), key=str
        )


@needs_openssl
def test_the_script_keeps_what_is_there(tmp_path):
    """The CA signs again, and a certificate is replaced only when that was asked for."""
    make_with_openssl(tmp_path, SERVICE)
    first = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "tls.crt").read_bytes()

    again = make_with_openssl(tmp_path, "other.example")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)
    assert ((tmp_path / "ca.crt").read_bytes(), (tmp_path / "tls.crt").read_bytes()) == first
    assert make_with_openssl("--renew", tmp_path, "other.example").returncode == 0
    assert (tmp_path / "ca.crt").read_bytes() == first[0]
    assert check_pair(tmp_path, now=datetime.now(UTC)).names == ("other.example",)


@needs_openssl
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "certs/make.sh [--renew] DIRECTORY NAME..."),
        (["made"], 2, "NAME"),
        (["made", "a\nb"], 2, "is neither a DNS"),
    ],
)
def test_the_script_says_what_it_takes(tmp_path, monkeypatch, arguments, code, says):
    """Nothing is made of a name that is none."""
    monkeypatch.chdir(tmp_path)
    done = make_with_openssl(*arguments)

    assert (done.returncode, says in done.stderr) == (code, True)
    assert list(tmp_path.iterdir()) == []


@needs_openssl
def test_the_steps_by_hand_work_as_they_are_written(tmp_path):
    """The README's own lines, one after the other."""
    by_hand = README.read_text(encoding="utf-8").split("each step on its own:")[1].split("```")[1].removeprefix("sh\n")
    subprocess.run(["sh", "-euc", by_hand], cwd=tmp_path, check=True, capture_output=True, timeout=30)

    assert check_pair(tmp_path, [SERVICE, "localhost"], now=datetime.now(UTC)).names == (SERVICE, "localhost")
    assert handshake(tmp_path, SERVICE)


def test_no_key_is_kept_in_the_repository():
    """Not even one for development."""
    kept = [file for file in SCRIPT.parent.iterdir() if file.is_file() and b"PRIVATE KEY" in file.read_bytes()]

    assert kept == []
