"""A release says what was signed, or nothing."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import BundleError, UpdateError
from edge.update import release as releases
from edge.update.keys import is_signed, make_pair, read_public
from edge.update.release import FILE, Release, check_release, read_release, sequence_now, sign_bundle
from tests.edge.update.shop import CHANGED, Shop


def signed(shop: Shop, sequence: int = 3) -> tuple[Release, bytes]:
    made = shop.release(sequence)
    return read_release(made), (made / FILE).read_bytes()


def test_what_was_signed_is_what_is_read(shop: Shop) -> None:
    release, raw = signed(shop)
    assert release.sequence == 3
    assert check_release(raw, shop.trusted, "x") == release


def test_any_of_several_keys_is_enough(shop: Shop, tmp_path: Path) -> None:
    """So that machines which know the old key take what a new one signs as well, and the next may be the new one's."""
    made, new = shop.release(1), tmp_path / "new"
    public = read_public(make_pair(new))
    sign_bundle(made, [shop.private, new], 2)
    raw = (made / FILE).read_bytes()
    for trusted in (shop.trusted, [public], [*shop.trusted, public]):
        assert check_release(raw, trusted, "x").sequence == 2
    sign_bundle(made, [new], 3)
    with pytest.raises(UpdateError, match="not signed by a key that is trusted here"):
        check_release((made / FILE).read_bytes(), shop.trusted, "x")


def test_signatures_are_over_what_dsse_says() -> None:
    """The example of its protocol.md."""
    kind = "http://example.com/HelloWorld"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(releases, "_TYPE", kind)
        assert releases._signed(b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_base64_of_either_alphabet_is_read(shop: Shop) -> None:
    release, raw = signed(shop)
    envelope = json.loads(raw)
    for one in envelope["signatures"]:
        one["sig"] = one["sig"].replace("+", "-").replace("/", "_")
        one["keyid"] = "whatever"
    assert check_release(json.dumps(envelope).encode(), shop.trusted, "x") == release


def test_an_altered_payload_is_refused(shop: Shop) -> None:
    _, raw = signed(shop)
    envelope = json.loads(raw)
    payload = json.loads(base64.b64decode(envelope["payload"]))
    envelope["payload"] = base64.b64encode(json.dumps(payload | {"sequence": 4}).encode()).decode()
    with pytest.raises(UpdateError, match="not signed"):
        check_release(json.dumps(envelope).encode(), shop.trusted, "x")


@given(data=st.data())
def test_no_altered_byte_changes_what_is_said(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "altered"
    if not folder.exists():
        folder.mkdir()
        make_pair(folder / "key")
    trusted = [read_public(folder / "key.pub")]
    release = Release(7, "ab" * 32)
    payload = release.payload()
    from edge.update import keys

    raw = json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": releases._TYPE,
            "signatures": [{"sig": base64.b64encode(keys.sign(releases._signed(payload), folder / "key")).decode()}],
        }
    ).encode()
    at = data.draw(st.integers(0, len(raw) - 1))
    changed = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
    try:
        assert check_release(changed, trusted, "x") == release
    except UpdateError:
        assert changed != raw


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"payloadType": "application/json"}, "payloadType is"),
        ({"signatures": []}, "0 signatures, expected 1 to 16"),
        ({"signatures": [{"sig": "AA=="}] * 17}, "17 signatures"),
        ({"signatures": [{"sig": "*"}]}, "not base64"),
        ({"signatures": "x"}, "signatures is"),
        ({"payload": "A"}, "not base64"),
        ({"payload": 3}, "payload is 3"),
    ],
)
def test_what_is_no_envelope_is_told(change: dict[str, Any], words: str, shop: Shop) -> None:
    _, raw = signed(shop)
    with pytest.raises(UpdateError, match=words):
        check_release(json.dumps(json.loads(raw) | change).encode(), shop.trusted, "x")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b'{"payload": "", "payload": ""}', b"[" * 9999])
def test_what_is_no_json_is_told(raw: bytes, shop: Shop) -> None:
    with pytest.raises(UpdateError):
        check_release(raw, shop.trusted, "x")


@pytest.mark.parametrize("payload", [{"sequence": -1}, {"sequence": 2**60}, {"manifest_sha256": "../x"}, {"more": 1}])
def test_a_signed_payload_has_bounds_too(payload: dict[str, Any], shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"sequence": 1, "manifest_sha256": "ab" * 32} | payload
    monkeypatch.setattr(Release, "payload", lambda _: json.dumps(whole).encode())
    made = shop.folder / "it"
    raw = _raw_of(shop, made)
    with pytest.raises(UpdateError):
        check_release(raw, shop.trusted, "x")


def _raw_of(shop: Shop, made: Path) -> bytes:
    import shutil

    shutil.copytree(shop.bundle, made)
    sign_bundle(made, [shop.private], 1)
    return (made / FILE).read_bytes()


def test_a_damaged_bundle_is_not_signed(shop: Shop) -> None:
    made = shop.release(1)
    before = (made / FILE).read_bytes()
    (made / CHANGED).write_bytes(b'{"release": 9}')
    with pytest.raises(BundleError, match="altered"):
        sign_bundle(made, [shop.private], 2)
    assert (made / FILE).read_bytes() == before


@pytest.mark.parametrize("content", ["mine", '{"name": "mine"}'])
def test_files_of_others_stay(content: str, shop: Shop) -> None:
    made = shop.release(1)
    (made / FILE).write_text(content)
    with pytest.raises(UpdateError, match="it is no release, so it is not replaced"):
        sign_bundle(made, [shop.private], 2)
    assert (made / FILE).read_text() == content


def test_the_time_is_a_number_that_rises() -> None:
    first = sequence_now()
    assert len(str(first)) == 14
    assert first <= sequence_now() <= releases.MAX_SEQUENCE


def test_a_signature_of_something_else_is_none(shop: Shop, tmp_path: Path) -> None:
    """Whatever else a key signs, it is no release: the type is in what is signed."""
    from edge.update.keys import sign

    _, raw = signed(shop)
    payload = base64.b64decode(json.loads(raw)["payload"])
    assert not is_signed(releases._signed(payload), [sign(payload, shop.private)], shop.trusted)
