from __future__ import annotations

import hashlib
import os
import ssl
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from classifier.sources import transfer
from classifier.sources.catalog import SourceFile
from tests.conftest import ROOT
from tests.loopback import closed_address, reset, send

CONTENT = bytes(range(256)) * 1000
fetch = partial(transfer.fetch, largest=1_000_000)
FILE = SourceFile("images.gz", f"md5:{hashlib.md5(CONTENT).hexdigest()}")


def good(request):
    send(request, CONTENT)


def drip(request):
    """A byte every 20 ms, for ever."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.02)


def drip_headers(request):
    while True:
        request.wfile.write(b"H")
        request.wfile.flush()
        time.sleep(0.02)


def endless(request):
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(CONTENT)


BAD_ANSWERS = {
    "wrong checksum": (lambda request: send(request, CONTENT[::-1]), "wrong checksum of 256,000 bytes"),
    "html": (lambda request: send(request, b"\n<!DOCTYPE html><p>Log in", Content_Type="text/html"), "HTML page"),
    "nothing": (lambda request: send(request, b""), "wrong checksum of 0 bytes"),
    "truncated": (lambda request: send(request, CONTENT[:-1], length=len(CONTENT)), "IncompleteRead"),
    "truncated without length": (lambda request: send(request, CONTENT[:-1], length=-1), "of 255,999 bytes"),
    "longer": (lambda request: send(request, CONTENT + b"x"), "of 256,001 bytes"),
    "endless": (endless, "it sent more than 1,000,000 bytes"),
    "reset": (reset, "reset by peer"),
    "absent": (lambda request: send(request, CONTENT, status=404), "status 404 Not Found"),
    "slow": (drip, "longer than download.deadline_s"),
    "slow headers": (drip_headers, "longer than download.deadline_s"),
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_mirror_that_fails_is_followed_by_the_next(case, serve, tmp_path, capsys):
    answer, reason = BAD_ANSWERS[case]
    bad, second = serve(answer), serve(good)
    started = time.monotonic()
    given_by = fetch(FILE, tmp_path, [bad.address, second.address], deadline_s=0.4, retries=0)
    assert time.monotonic() - started < 3
    assert given_by == second.address
    assert (bad.asked, second.asked) == (["/images.gz"], ["/images.gz"])
    assert [path.name for path in tmp_path.iterdir()] == ["images.gz"]
    assert (tmp_path / "images.gz").read_bytes() == CONTENT
    said = capsys.readouterr().err
    assert bad.address in said
    assert reason in said


def test_when_no_mirror_is_left_one_line_names_file_mirrors_reasons_and_remedy(serve, tmp_path):
    servers = {case: serve(answer).address for case, (answer, _) in BAD_ANSWERS.items()}
    dead, empty = closed_address(), tmp_path / "empty"
    out = tmp_path / "out"
    with pytest.raises(OSError, match=r"images\.gz could not be fetched") as caught:
        fetch(FILE, out, [*servers.values(), dead, str(empty)], deadline_s=0.3, retries=0)
    message = str(caught.value)
    parts = message.split("; ")
    for part, (case, address) in zip(parts, servers.items(), strict=False):
        assert address in part
        assert BAD_ANSWERS[case][1] in part
    assert f"{dead}: Connection refused" in message
    assert f"{empty}/images.gz: No such file or directory" in message
    assert "set DATA_MIRROR or download.mirror" in message
    assert "\n" not in message
    assert not list(out.iterdir())


def test_an_unknown_host_is_named(tmp_path):
    with pytest.raises(OSError, match=r"http://nowhere\.invalid: .*(not known|resol)"):
        fetch(FILE, tmp_path, ["http://nowhere.invalid"], deadline_s=20, retries=0)


def test_no_file_has_the_name_until_it_is_verified(serve, tmp_path):
    seen = []

    def watched(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(CONTENT[:200_000])
        request.wfile.flush()
        time.sleep(0.1)
        seen.extend(tmp_path.iterdir())
        request.wfile.write(CONTENT[200_000:])

    fetch(FILE, tmp_path, [serve(watched).address], deadline_s=10, retries=0)
    assert [path.suffix for path in seen] == [".tmp"]
    assert [path.name for path in tmp_path.iterdir()] == ["images.gz"]


def test_the_file_has_the_permissions_of_an_ordinary_one(serve, tmp_path):
    fetch(FILE, tmp_path / "out", [serve(good).address], deadline_s=10, retries=0)
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert (tmp_path / "out" / "images.gz").stat().st_mode == ordinary.stat().st_mode


def test_a_broken_connection_is_tried_again_as_often_as_asked(serve, tmp_path):
    def second_time_good(request):
        reset(request) if len(server.asked) == 1 else good(request)

    server = serve(second_time_good)
    with pytest.raises(OSError, match="reset by peer"):
        fetch(FILE, tmp_path, [server.address], deadline_s=10, retries=0)
    server.asked.clear()
    fetch(FILE, tmp_path, [server.address], deadline_s=10, retries=1)
    assert server.asked == ["/images.gz"] * 2


def test_a_wrong_file_is_not_asked_for_again(serve, tmp_path):
    server = serve(BAD_ANSWERS["wrong checksum"][0])
    with pytest.raises(OSError, match="wrong checksum"):
        fetch(FILE, tmp_path, [server.address], deadline_s=10, retries=3)
    assert server.asked == ["/images.gz"]


def test_retries_end_with_the_deadline(serve, tmp_path):
    server = serve(reset)
    started = time.monotonic()
    with pytest.raises(OSError, match="reset by peer"):
        fetch(FILE, tmp_path, [server.address], deadline_s=0.3, retries=10)
    assert time.monotonic() - started < 2


def test_bytes_are_kept_as_the_server_stores_them(serve, tmp_path):
    server = serve(lambda request: send(request, CONTENT, Content_Encoding="gzip"))
    fetch(FILE, tmp_path, [server.address], deadline_s=10, retries=0)
    assert (tmp_path / "images.gz").read_bytes() == CONTENT


def test_a_password_is_sent_and_not_shown(serve, tmp_path, capsys):
    secret = serve(lambda request: send(request, b"", status=403 if request.headers["Authorization"] else 401))
    other = serve(good)
    first, second = (server.address.replace("//", "//me:secret@") for server in (secret, other))
    assert fetch(FILE, tmp_path, [first, second], deadline_s=10, retries=0) == other.address
    said = capsys.readouterr().err
    assert "status 403" in said
    assert "secret" not in said


def test_a_full_disk_is_one_line_and_leaves_nothing(serve, tmp_path):
    """A limit on the size of files stands for the full disk: the same error, of the same call."""
    server = serve(good)
    script = (
        "import resource, sys; from pathlib import Path; from classifier.sources.catalog import SourceFile\n"
        "from classifier.sources.transfer import fetch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"try: fetch({FILE!r}, Path('out'), [{server.address!r}], deadline_s=10, retries=0)\n"
        "except OSError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.stdout.count("\n") == 1, ended.stderr
    assert "File too large" in ended.stdout
    assert server.asked == ["/images.gz"]
    assert list((tmp_path / "out").iterdir()) == []


def test_redirects_are_followed_except_from_https_to_http(serve, tmp_path, monkeypatch):
    plain = serve(good)
    secure_context, authority = _certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))

    def redirect(request):
        target = plain.address + "images.gz" if "plain" in request.path else "/good/images.gz"
        send(request, b"", status=302, Location=target) if "good" not in request.path else good(request)

    secure, loose = serve(redirect, tls=secure_context), serve(redirect)
    out = tmp_path / "out"
    with pytest.raises(OSError, match=f"redirects from https to {plain.address}images.gz, which is refused"):
        fetch(FILE, out, [secure.address + "plain"], deadline_s=10, retries=0)
    assert plain.asked == []
    for allowed in (secure.address, loose.address + "plain"):
        fetch(FILE, out, [allowed], deadline_s=10, retries=0)
        (out / "images.gz").unlink()
    assert plain.asked == ["/images.gz"]


def test_a_forged_certificate_is_refused(serve, tmp_path):
    context, _ = _certificate(tmp_path)
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(FILE, tmp_path, [serve(good, tls=context).address], deadline_s=10, retries=0)


def _certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A self-signed certificate of 127.0.0.1, and the file that says it is to be trusted."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file
