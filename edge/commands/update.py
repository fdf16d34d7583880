"""Sign bundles, and install them on machines that nobody stands beside.

A release is a bundle with a signed number. It is installed into a folder of two slots, `a` and `b`; the link `current`
leads to the one that is used, and servers open that link. The next release goes into the other slot, file by file, is
tested there, and is used from one moment on. A power cut at any time leaves one whole bundle that answers.

examples:
  edge update key release.key
  edge update sign glm4-int4 --key release.key
  edge update install /srv/kiosk/glm4 https://updates.example.org/glm4 --key release.key.pub
  edge update status /srv/kiosk/glm4
  edge update rollback /srv/kiosk/glm4
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands import kinds, options
from edge.commands.help import sections, told

if TYPE_CHECKING:
    from edge.update.source import Source

KEY = """Make a pair of keys: FILE, which signs and stays secret, and FILE.pub, which every machine gets.

The keys are of Ed25519, in PEM, as `openssl genpkey -algorithm ed25519` makes them.

examples:
  edge update key release.key
"""
SIGN = """Check every file of a bundle, and write its release.json.

Then copy the folder to a web server or a stick.

examples:
  edge update sign glm4-int4 --key release.key
  edge update sign glm4-int4 --key old.key --key new.key --sequence 42
"""
INSTALL = """Install the release of a folder or a web server, if it is a later one.

Only files that are not here already are fetched, and an interrupted download goes on where it ended. Before the switch,
`edge verify` tests the release on this machine. One that fails, and one whose --then fails, is not tried again by
itself.

examples:
  edge update install /srv/kiosk/glm4 https://updates.example.org/glm4 --key release.key.pub
  edge update install /srv/kiosk/glm4 /media/stick/glm4 --key release.key.pub
  edge update install glm4 ./glm4-int4 --key release.key.pub --then "systemctl restart edge-kiosk.service"
"""
STATUS = """Show which release is used, which one is there to go back to, and which one was refused.

examples:
  edge update status /srv/kiosk/glm4
"""
ROLLBACK = """Use the bundle before the present one again.

The present one is not installed again by itself, but a later one is.

examples:
  edge update rollback /srv/kiosk/glm4
  edge update rollback /srv/kiosk/glm4 --then "systemctl restart edge-kiosk.service"
"""
DIR_HELP = "the folder with the two slots and the link `current`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    key = actions.add_parser("key", help="make a pair of keys", **sections(KEY))
    key.add_argument("file", metavar="FILE", help="the private key to write; the public one gets .pub behind its name")
    sign = actions.add_parser("sign", help="make a bundle a release", **sections(SIGN))
    options.add_bundle(sign)
    _add_key(sign, "a private key to sign with; repeatable, for machines that know one of them")
    sign.add_argument(
        "--sequence",
        type=kinds.whole_number,
        metavar="N",
        help=told("number of the release, higher than that of every earlier one", "the time, like 20261130034309"),
    )
    options.add_json(sign)
    install = actions.add_parser("install", help="install a release", **sections(INSTALL))
    install.add_argument("dir", metavar="DIR", help=f"{DIR_HELP}; it is made where it is missing")
    install.add_argument("source", metavar="SOURCE", help="where the release is: a folder, or an URL of http or https")
    _add_key(install, "a public key whose releases are trusted; repeatable")
    install.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        dest="allow_hosts",
        help="another host that the server may send this machine on to; repeatable",
    )
    _add_then(install)
    options.add_device(install)
    install.add_argument("--retry", action="store_true", help="try a release again that was refused here before")
    options.add_json(install)
    status = actions.add_parser("status", help="show what is installed", **sections(STATUS))
    status.add_argument("dir", metavar="DIR", help=DIR_HELP)
    options.add_json(status)
    rollback = actions.add_parser("rollback", help="use the bundle before again", **sections(ROLLBACK))
    rollback.add_argument("dir", metavar="DIR", help=DIR_HELP)
    _add_then(rollback)
    options.add_json(rollback)


def _add_key(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--key", action="append", required=True, type=kinds.path, metavar="FILE", dest="keys", help=text
    )


def _add_then(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--then",
        metavar="COMMAND",
        help="a command that makes the server use the new bundle; if it fails, the one before is used again",
    )


def run(args: argparse.Namespace) -> int:
    actions = {"key": _key, "sign": _sign, "install": _install, "status": _status, "rollback": _rollback}
    return actions[args.action](args)


def _key(args: argparse.Namespace) -> int:
    from edge.update.keys import make_pair

    public = make_pair(Path(args.file))
    print(f"{args.file}: signs releases; keep it secret, and keep a copy")
    print(f"{public}: for every machine that is to trust them")
    return 0


def _sign(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.update.release import FILE, sequence_now, sign_bundle

    sequence = sequence_now() if args.sequence is None else args.sequence
    release = sign_bundle(Path(args.bundle), [Path(key) for key in args.keys], sequence)
    if args.json:
        print_json({"sequence": release.sequence, "manifest_sha256": release.manifest_sha256})
    else:
        print(f"{Path(args.bundle) / FILE}: release {release.sequence}, signed; every file is as it was exported")
    return 0


class _Watched:
    """A source with a bar on the terminal for the file that is on its way."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __str__(self) -> str:
        return str(self._source)

    def read(self, name: str, max_bytes: int) -> bytes:
        return self._source.read(name, max_bytes)

    def parts(self, name: str, start: int, size: int) -> Iterator[bytes]:
        from edge.commands.console import counting_bar

        with counting_bar(f"fetching {name}") as show:
            for part in self._source.parts(name, start, size):
                start += len(part)
                show(start, size)
                yield part


def _install(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.update.install import Steps, install
    from edge.update.keys import read_public
    from edge.update.processes import self_test
    from edge.update.source import open_source

    def told_file(name: str, size: int, how: str) -> None:
        if not args.json:
            print(f"  {name:<24} {human_bytes(size):>10}  {how}", flush=True)

    def tested(bundle: Path) -> None:
        if not args.json:
            print("  self-test: every sha256, and the golden logits on every engine of this machine", flush=True)
        self_test(bundle, args.device)

    source = _Watched(open_source(args.source, tuple(args.allow_hosts)))
    keys = [read_public(Path(key)) for key in args.keys]
    steps = Steps(tested, _then(args))
    done = install(Path(args.dir), source, keys, steps, retry=args.retry, told=told_file)
    if args.json:
        print_json(
            {
                "sequence": done.sequence,
                "changed": done.changed,
                "fetched_bytes": done.fetched_bytes,
                "here_bytes": done.here_bytes,
            }
        )
    elif done.changed:
        print(
            f"{args.dir}: release {done.sequence} is used now; {human_bytes(done.fetched_bytes)} were fetched, "
            f"{human_bytes(done.here_bytes)} were here already"
        )
    else:
        print(f"{args.dir}: release {done.sequence} is used already")
    return 0


def _status(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.update.status import status_of

    status = status_of(Path(args.dir))
    if args.json:
        print_json(status.to_json())
        return 0
    for line in status.lines():
        print(line)
    return 0


def _rollback(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json
    from edge.update.install import roll_back

    sequence = roll_back(Path(args.dir), _then(args))
    if args.json:
        print_json({"sequence": sequence})
    else:
        print(f"{args.dir}: release {sequence} is used again")
    return 0


def _then(args: argparse.Namespace) -> Any:  # Any: a function without arguments, or None
    from edge.update.processes import tell, words_of

    if args.then is None:
        return None
    words = words_of(args.then)
    return lambda: tell(words)
