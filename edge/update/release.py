"""A release: a bundle's manifest with a number, signed. One small file in the bundle's folder.

In: a bundle and private keys; or the file's bytes and public keys. Out: the signed file; or what it says, after its
signature was found right. Knows nothing about where a release comes from and where it is installed.

The file is a DSSE envelope (github.com/secure-systems-lab/dsse, protocol.md and envelope.md at v1.0.0): payload,
payload type and signatures over both in JSON. The manifest has the sha256 of every other file, and a release has that
of the manifest, so that one signature is over all of a bundle.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.errors import BundleError, UpdateError
from edge.runtime.files import read_file
from edge.runtime.json_object import ObjectReader
from edge.runtime.json_reader import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FILE = "release.json"
MAX_BYTES = 64_000
MAX_SEQUENCE = 2**53  # what every reader of JSON holds exactly
MOST_SIGNATURES = 16
_TYPE = "application/vnd.edgeglm.release.v1+json"
_SIGN = "sign the bundle again with `edge update sign`"
_MEND = "remove this slot unless it is the one that `current` leads to, or install into another folder"
_NOT_OURS = "it is no release, so it is not replaced; move it away"
_BASE64 = re.compile("[A-Za-z0-9+/_=-]*")


@dataclass(frozen=True, slots=True)
class Release:
    """What is signed."""

    sequence: int  # a later release has a higher one
    manifest_sha256: str  # of the file's bytes

    def payload(self) -> bytes:
        """Stable text: same release, same bytes."""
        return json.dumps({"manifest_sha256": self.manifest_sha256, "sequence": self.sequence}).encode()


def sequence_now() -> int:
    """The time as a number that people can read: 20261130034309, in UTC."""
    return int(datetime.now(UTC).strftime("%Y%m%d%H%M%S"))


def sign_bundle(folder: Path, private: Sequence[Path], sequence: int) -> Release:
    """Check every file of a bundle, and write its release. Raises BundleError, OutputError and UpdateError."""
    from edge.update import keys

    if os.path.lexists(folder / FILE):
        _opened(read_file(folder / FILE, UpdateError, _NOT_OURS, max_bytes=MAX_BYTES), str(folder / FILE), _NOT_OURS)
    open_bundle(folder).check_hashes()
    raw = read_file(folder / MANIFEST, BundleError, _SIGN)
    release = Release(sequence, hashlib.sha256(raw).hexdigest())
    payload = release.payload()
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _TYPE,
        "signatures": [{"sig": base64.b64encode(keys.sign(_signed(payload), key)).decode()} for key in private],
    }
    write_atomically(folder / FILE, [json.dumps(envelope, indent=1).encode() + b"\n"], private=False)
    return release


def check_release(raw: bytes, trusted: Sequence[Ed25519PublicKey], where: str) -> Release:
    """Return what a file says if one of these keys has signed it. Raises UpdateError.

    where: its place, for messages.
    """
    from edge.update import keys

    payload, signatures = _opened(raw, where)
    if not keys.is_signed(_signed(payload), signatures, trusted):
        raise UpdateError(
            f"{where} is not signed by a key that is trusted here, so nothing of it is used; {_SIGN}, or name the "
            "public key of whoever signed it"
        )
    return _said(payload, where)


def read_release(folder: Path) -> Release:
    """Return what the release of a bundle says that was checked when it was installed. Raises UpdateError."""
    payload, _ = _opened(read_file(folder / FILE, UpdateError, _MEND, max_bytes=MAX_BYTES), str(folder / FILE), _MEND)
    return _said(payload, str(folder / FILE), _MEND)


def _opened(raw: bytes, where: str, advice: str = _SIGN) -> tuple[bytes, list[bytes]]:
    """The payload of an envelope, and its signatures; nothing of what is in the payload is looked at."""
    read = ObjectReader(parse_json(raw, where, UpdateError, advice, unique_keys=True), where, UpdateError, advice)
    read.word("payloadType", re.escape(_TYPE), f"{_TYPE}; an edgeglm of another version may have made it")
    signatures = [_decoded(text, where, advice) for text in read.listed("signatures", lambda one: one.text("sig"))]
    if not 1 <= len(signatures) <= MOST_SIGNATURES:
        raise UpdateError(f"{where} has {len(signatures)} signatures, expected 1 to {MOST_SIGNATURES}; {advice}")
    return _decoded(read.text("payload"), where, advice), signatures


def _said(payload: bytes, where: str, advice: str = _SIGN) -> Release:
    read = ObjectReader(parse_json(payload, where, UpdateError, advice, unique_keys=True), where, UpdateError, advice)
    read.has_only({"manifest_sha256", "sequence"})
    return Release(
        read.whole("sequence", 0, MAX_SEQUENCE),
        read.word("manifest_sha256", "[0-9a-f]{64}", "64 hexadecimal digits"),
    )


def _signed(payload: bytes) -> bytes:
    """What the signatures are over: DSSE's pre-authentication encoding (protocol.md)."""
    kind = _TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _decoded(text: str, where: str, advice: str) -> bytes:
    """Base64 in either alphabet, as DSSE wants readers to take it."""
    try:
        if _BASE64.fullmatch(text) is None:
            raise ValueError("no base64")
        return base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
    except (ValueError, binascii.Error) as error:
        raise UpdateError(f"{where} holds what is not base64; {advice}") from error
