"""The gateway's own certificate."""

import hashlib
import ssl
import stat

import pytest

from fabric.agent.certificate import CertificateError, load_or_make


def test_it_is_made_once_and_kept_for_its_owner_alone(tmp_path):
    first = load_or_make(tmp_path)
    path = tmp_path / "gateway.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_make(tmp_path).fingerprint == first.fingerprint
    pem = path.read_text()
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") :])
    assert first.fingerprint == hashlib.sha256(der).hexdigest()


def test_another_operator_has_another(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    assert load_or_make(tmp_path / "one").fingerprint != load_or_make(tmp_path / "other").fingerprint


def test_a_key_that_others_can_read_is_refused(tmp_path):
    load_or_make(tmp_path)
    (tmp_path / "gateway.pem").chmod(0o640)
    with pytest.raises(CertificateError, match="chmod 600"):
        load_or_make(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"not PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_without_key_and_certificate_is_refused(tmp_path, content):
    path = tmp_path / "gateway.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(CertificateError, match="remove it"):
        load_or_make(tmp_path)
