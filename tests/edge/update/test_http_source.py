"""A release from a real web server, which cuts connections, lies about sizes and sends us elsewhere."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.runtime.bundle import MANIFEST
from edge.runtime.errors import SettingsError, UpdateError
from edge.update.http_source import ATTEMPTS, HttpSource
from edge.update.release import FILE
from edge.update.source import open_source
from tests.edge.update.shop import CHANGED, FEW, Machine, Shop
from tests.edge.update.web import Answer, Handler, Web, serving

NAME = "golden.npz"


@pytest.fixture
def web(shop: Shop) -> Iterator[Web]:
    with serving(shop.release(1)) as web:
        yield web


def quick(web: Web, *hosts: str) -> HttpSource:
    return HttpSource(web.url, hosts, pause_s=0)


def whole(web: Web, source: HttpSource, start: int = 0) -> bytes:
    size = (web.folder / NAME).stat().st_size
    return b"".join(source.parts(NAME, start, size))


def test_a_release_comes_over_http(web: Web, machine: Machine) -> None:
    machine.install(web.url)
    assert machine.current() == 1
    assert sorted(name for name, _ in web.asked) == sorted([CHANGED, *FEW, MANIFEST, FILE]), "each file once"
    machine.install(web.url + "/")
    assert [name for name, _ in web.asked[len(FEW) + 3 :]] == [FILE], "nothing else is asked when there is nothing new"


def test_only_files_that_are_not_here_are_asked_for(web: Web, shop: Shop, machine: Machine) -> None:
    machine.install(web.url)
    with serving(shop.release(2)) as second:
        machine.install(second.url)
    assert machine.current() == 2
    assert [name for name, _ in second.asked] == [FILE, MANIFEST, CHANGED]


@pytest.mark.parametrize("ranges", [True, False])
def test_cut_connections_are_resumed(ranges: bool, web: Web) -> None:
    content = (web.folder / NAME).read_bytes()
    web.ranges = ranges
    web.cut_after = len(content) // 3
    if ranges:
        assert whole(web, quick(web)) == content
        starts = [int((told or "bytes=0-")[6:-1]) for told in web.asked_for(NAME)]
        assert starts == sorted(starts)
        assert 3 <= len(starts) <= 5
    else:  # each time from the beginning, as far as it comes
        with pytest.raises(UpdateError, match="the same command goes on where this one ended"):
            whole(web, quick(web))
        web.cut_after = None
        assert whole(web, quick(web), 100) == content[100:]


def test_what_came_before_a_connection_was_reset_is_kept(web: Web) -> None:
    content = (web.folder / NAME).read_bytes()

    def reset(handler: Handler, content: bytes, start: int) -> None:
        rest = content[start:]
        told = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        handler.head(206 if start else 200, len(rest), **told)
        handler.wfile.write(rest[: len(content) // 3])
        if len(rest) > len(content) // 3:
            time.sleep(0.05)  # until it has been read
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True

    web.answers[NAME] = reset
    assert whole(web, quick(web)) == content
    assert len(web.asked_for(NAME)) in (3, 4)


def test_a_whole_release_through_cut_connections(web: Web, machine: Machine) -> None:
    """With attempts that bring nothing among them."""
    web.cut_after = 1000  # of a manifest that has more
    source = quick(web)
    web.statuses = [503, 429, 500]
    with pytest.raises(UpdateError, match=f"{MANIFEST} cannot be fetched"):
        machine.install(source)  # a small file is read in one connection, or not at all
    web.cut_after = None
    web.answers[NAME] = _half
    machine.install(source)
    assert machine.current() == 1
    assert len(web.asked_for(NAME)) > 2


def _half(handler: Handler, content: bytes, start: int) -> None:
    """Half of what is left, and the rest when that is little."""
    rest = content[start:]
    handler.head(206, len(rest), Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}") if start else (
        handler.head(200, len(rest))
    )
    handler.wfile.write(rest[: len(rest) // 2] if len(rest) > 100 else rest)
    handler.cut()


def test_a_server_that_never_answers_well_is_given_up(web: Web) -> None:
    web.statuses = [503] * ATTEMPTS
    with pytest.raises(UpdateError, match=r"golden.npz cannot be fetched \(status 503\); the same command"):
        whole(web, quick(web))
    assert len(web.asked_for(NAME)) == ATTEMPTS
    assert whole(web, quick(web)) == (web.folder / NAME).read_bytes()


def test_nobody_listening_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        source = HttpSource(f"http://127.0.0.1:{taken.getsockname()[1]}/r", pause_s=0)
        with pytest.raises(UpdateError, match="cannot be fetched"):
            source.read(FILE, 100)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_is_not_there_is_not_asked_for_again(status: int, web: Web) -> None:
    web.statuses = [status]
    with pytest.raises(UpdateError, match=f"answered with status {status}"):
        whole(web, quick(web))
    assert len(web.asked) == 1


# --- Sizes


def _longer(handler: Handler, content: bytes, _: int) -> None:
    handler.head(200, len(content) + 1)
    handler.body(content + b"x")


def _endless(handler: Handler, content: bytes, _: int) -> None:
    """Without a length, as long as somebody reads."""
    handler.head(200, None, Connection="close")
    try:
        while True:
            handler.wfile.write(content)
    except OSError:
        handler.close_connection = True


def _other_range(handler: Handler, content: bytes, start: int) -> None:
    rest = content[start - 1 :]
    handler.head(206, len(rest), Content_Range=f"bytes {start - 1}-{len(content) - 1}/{len(content)}")
    handler.body(rest)


def test_no_more_than_the_manifests_bytes_are_read(web: Web) -> None:
    size = (web.folder / NAME).stat().st_size
    web.answers[NAME] = _longer
    with pytest.raises(UpdateError, match="another size than the manifest's"):
        whole(web, quick(web))
    web.answers[NAME] = _endless
    parts, read = quick(web).parts(NAME, 0, size), bytearray()
    with pytest.raises(UpdateError, match="has more than the manifest's"):
        read.extend(byte for part in parts for byte in part)
    assert len(read) <= size


def test_a_small_file_has_a_bound(web: Web) -> None:
    web.answers[FILE] = _endless
    with pytest.raises(UpdateError, match="more than 1,000 bytes"):
        quick(web).read(FILE, 1000)


def test_another_range_than_was_asked_for_is_refused(web: Web) -> None:
    web.answers[NAME] = _other_range
    with pytest.raises(UpdateError, match="of it was sent"):
        whole(web, quick(web), 100)


def test_a_server_that_changes_its_files_meanwhile_is_found_out(web: Web, machine: Machine) -> None:
    """By the sha256, whatever its lengths say."""
    (web.folder / NAME).write_bytes(bytes((web.folder / NAME).stat().st_size))
    with pytest.raises(UpdateError, match="another sha256 than the manifest says"):
        machine.install(web.url)
    assert machine.slots.current() is None


# --- Other hosts


def moved(to: str) -> dict[str, Answer]:
    def answer(name: str) -> Answer:
        return lambda handler, _content, _start: handler.head(302, 0, Location=f"{to}/{name}")

    return {name: answer(name) for name in (CHANGED, *FEW, MANIFEST, FILE)}


def test_other_hosts_are_asked_only_if_they_are_named(web: Web, shop: Shop, machine: Machine) -> None:
    with serving(shop.release(2)) as mirror:
        web.answers = moved(f"http://localhost:{mirror.port}/r")
        with pytest.raises(UpdateError, match=r"on to the host 'localhost', .* add --allow-host localhost"):
            machine.install(quick(web))
        assert mirror.asked == []
        machine.install(quick(web, "LOCALHOST"))
    assert machine.current() == 2


def test_the_same_host_may_send_us_on(web: Web, shop: Shop, machine: Machine) -> None:
    with serving(shop.release(2)) as other:
        web.answers = moved(f"http://127.0.0.1:{other.port}/r")
        machine.install(quick(web))
    assert machine.current() == 2


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "gopher:x"])
def test_what_is_no_web_address_is_not_followed(to: str, web: Web) -> None:
    web.answers[NAME] = lambda handler, _content, _start: handler.head(302, 0, Location=to)
    with pytest.raises(UpdateError, match="sent us on"):
        whole(web, quick(web))


def test_from_https_to_http_is_not_followed() -> None:
    source = HttpSource("https://127.0.0.1/r", pause_s=0)
    with pytest.raises(UpdateError, match="less safe"):
        source._moved("https://127.0.0.1/r/x", "http://127.0.0.1/r/x")
    assert source._moved("http://127.0.0.1/r/x", "https://127.0.0.1/r/x") == "https://127.0.0.1/r/x"


def test_a_circle_ends(web: Web) -> None:
    web.answers[NAME] = lambda handler, _content, _start: handler.head(302, 0, Location=NAME)
    with pytest.raises(UpdateError, match="sent us on 5 times"):
        whole(web, quick(web))


@pytest.mark.parametrize(
    "given",
    [
        "http://",
        "http://:80/x",
        "http://me:secret@127.0.0.1/x",
        "http://127.0.0.1/x?a=b",
        "https://127.0.0.1/x#y",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:no/x",
        "ftp://127.0.0.1/x",
        "s3://bucket/x",
        "file://elsewhere/x",
    ],
)
def test_what_is_no_source_is_told(given: str) -> None:
    with pytest.raises(SettingsError, match="source is"):
        open_source(given)


def test_names_with_any_letters_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a b#c?d%é").write_bytes(b"x")
    with serving(tmp_path) as web:
        assert quick(web).read("a b#c?d%é", 10) == b"x"


def test_proxies_of_the_environment_are_not_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert whole(web, quick(web)) == (web.folder / NAME).read_bytes()
