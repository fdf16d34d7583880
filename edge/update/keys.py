"""Ed25519 keys in PEM files, as OpenSSL writes and reads them.

In: paths of keys. Out: new pairs, signatures, and whether one is that of a key. Knows nothing about what is signed.
Keys of `openssl genpkey -algorithm ed25519` are the same; a private key may have a passphrase, which is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge.runtime.errors import OutputError, UpdateError, telling_line
from edge.runtime.files import read_file, shown_path

PUBLIC = ".pub"  # after the name of the private key
_MAX_BYTES = 10_000  # a key has 120
_MAKE = "make a pair with `edge update key`"


def make_pair(private: Path) -> Path:
    """Write a private key that its owner alone may read, and its public key beside it; return that one's path.

    Raises OutputError, also where one of the files is there already.
    """
    key = Ed25519PrivateKey.generate()
    _check_free(private)  # first: a folder like `.` has no name that something can be put behind
    public = private.with_name(private.name + PUBLIC)
    _check_free(public)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _create(private, secret, 0o600)
    _create(public, _pem(key.public_key()), 0o644)
    return public


def sign(content: bytes, private: Path) -> bytes:
    """Return the signature of these bytes. Raises UpdateError."""
    return _private(private).sign(content)


def read_public(path: Path) -> Ed25519PublicKey:
    """Raises UpdateError for what is no public key of Ed25519."""
    content = read_file(path, UpdateError, _MAKE, max_bytes=_MAX_BYTES)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "it is a private key, which stays with whoever signs" if b"PRIVATE KEY" in content else _MAKE
        raise UpdateError(f"{shown_path(path)} is not a public key in PEM; {hint}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UpdateError(f"{shown_path(path)} is a key of another kind than Ed25519; {_MAKE}")
    return key


def is_signed(content: bytes, signatures: Iterable[bytes], keys: Iterable[Ed25519PublicKey]) -> bool:
    """Whether one of the signatures is that of one of the keys."""
    signatures = tuple(signatures)
    for key in keys:
        for signature in signatures:
            try:
                key.verify(signature, content)
            except InvalidSignature:
                continue
            return True
    return False


def _private(path: Path) -> Ed25519PrivateKey:
    content = read_file(path, UpdateError, _MAKE, max_bytes=_MAX_BYTES)
    asked = _passphrase(path) if b"ENCRYPTED PRIVATE KEY" in content else None
    try:
        key = serialization.load_pem_private_key(content, asked)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = "its passphrase is another one" if asked is not None else _MAKE
        if b"BEGIN PUBLIC KEY" in content:
            raise UpdateError(f"{shown_path(path)} is a public key; sign with the private one of the pair") from error
        raise UpdateError(
            f"{shown_path(path)} cannot be used as a private key ({telling_line(error)}); {why}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UpdateError(f"{shown_path(path)} is a key of another kind than Ed25519; {_MAKE}")
    return key


def _passphrase(path: Path) -> bytes:
    from getpass import getpass

    if not sys.stdin.isatty():
        raise UpdateError(f"{shown_path(path)} has a passphrase, and nobody can be asked here; sign at a terminal")
    return getpass(f"passphrase of {shown_path(path)}: ").encode()


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise OutputError(f"{shown_path(path)} exists, and a key is never replaced; name another file")


def _create(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{shown_path(path)} cannot be written ({error.strerror or error}); name another") from error
