"""Keys are those of OpenSSL, are never replaced, and sign what they signed."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.runtime.errors import OutputError, UpdateError
from edge.update.keys import is_signed, make_pair, read_public, sign

OPENSSL = shutil.which("openssl")


def openssl(*words: str, cwd: Path) -> str:
    assert OPENSSL is not None
    return subprocess.run([OPENSSL, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_a_pair_signs_and_recognises(tmp_path: Path) -> None:
    public = make_pair(tmp_path / "a")
    other = make_pair(tmp_path / "b")
    signature = sign(b"content", tmp_path / "a")
    assert is_signed(b"content", [b"", signature], [read_public(other), read_public(public)])
    assert not is_signed(b"content!", [signature], [read_public(public)])
    assert not is_signed(b"content", [signature], [read_public(other)])
    assert not is_signed(b"content", [], [read_public(public)])
    assert not is_signed(b"content", [signature], [])


def test_only_the_owner_reads_the_private_key(tmp_path: Path) -> None:
    public = make_pair(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) & 0o077 == 0o044


@pytest.mark.parametrize("name", ["key", "key.pub"])
def test_files_of_others_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(OutputError, match="exists, and a key is never replaced"):
        make_pair(tmp_path / "key")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody's"]


@pytest.mark.parametrize("name", [".", "..", "/", "", "folder/.."])
def test_a_folder_is_no_file_for_a_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="exists, and a key is never replaced; name another file"):
        make_pair(Path(name))


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not here")
def test_keys_are_those_of_openssl(tmp_path: Path) -> None:
    openssl("genpkey", "-algorithm", "ed25519", "-out", "theirs", cwd=tmp_path)
    openssl("pkey", "-in", "theirs", "-pubout", "-out", "theirs.pub", cwd=tmp_path)
    assert is_signed(b"x", [sign(b"x", tmp_path / "theirs")], [read_public(tmp_path / "theirs.pub")])
    make_pair(tmp_path / "ours")
    (tmp_path / "text").write_bytes(b"x")
    (tmp_path / "sig").write_bytes(sign(b"x", tmp_path / "ours"))
    words = ("-verify", "-pubin", "-inkey", "ours.pub", "-rawin", "-in", "text", "-sigfile", "sig")
    assert "Verified Successfully" in openssl("pkeyutl", *words, cwd=tmp_path)


def test_what_is_no_key_is_told(tmp_path: Path) -> None:
    make_pair(tmp_path / "key")
    other = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (tmp_path / "curve.pub").write_bytes(other.public_key().public_bytes(serialization.Encoding.PEM, form))
    secret = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    (tmp_path / "curve").write_bytes(other.private_bytes(pem, secret, serialization.NoEncryption()))
    (tmp_path / "locked").write_bytes(
        other.private_bytes(pem, secret, serialization.BestAvailableEncryption(b"secret"))
    )
    (tmp_path / "text").write_text("no key")
    for name, words in (
        ("key", "it is a private key, which stays with whoever signs"),
        ("text", "is not a public key"),
        ("curve.pub", "another kind than Ed25519"),
        ("missing", "cannot be read"),
    ):
        with pytest.raises(UpdateError, match=words):
            read_public(tmp_path / name)
    for name, words in (
        ("key.pub", "is a public key; sign with the private one of the pair"),
        ("curve", "another kind than Ed25519"),
        ("locked", "nobody can be asked here"),
    ):
        with pytest.raises(UpdateError, match=words):
            sign(b"x", tmp_path / name)


def test_a_passphrase_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pair(tmp_path / "key")
    key = serialization.load_pem_private_key((tmp_path / "key").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"secret")
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "locked").write_bytes(key.private_bytes(pem, form, locked))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _: "secret")
    assert is_signed(b"x", [sign(b"x", tmp_path / "locked")], [read_public(tmp_path / "key.pub")])
    monkeypatch.setattr("getpass.getpass", lambda _: "another")
    with pytest.raises(UpdateError, match="its passphrase is another one"):
        sign(b"x", tmp_path / "locked")
