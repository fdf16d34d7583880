"""Write what a machine needs to answer one visitor after the other.

A kiosk is one machine with one system message, a page on its screen, and no network.

examples:
  edge kiosk init /srv/kiosk/guide --bundle glm4-int4 --system-file guide.txt
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import options
from edge.commands.help import sections, told, usual
from edge.kiosk.settings import LOOPBACK, KioskSettings
from edge.runtime.settings import EngineSettings
from edge.server.page_config import IDLE_S, WARNING_S

if TYPE_CHECKING:
    from edge.runtime.llm import LLM
    from edge.server.page_config import PageConfig

INIT = """Write a folder with everything a kiosk needs, and say how it is started.

DIR gets the computed system message, the page's words, a service of systemd for the server and one for Chromium on the
screen, and README.txt with the steps that are left. It is a new folder, or an empty one.

examples:
  edge kiosk init /srv/kiosk/guide --bundle glm4-int4 --system-file guide.txt
  edge kiosk init guide --bundle glm4-int4 --system-file guide.txt --title "Museum of Ghent" --language nl --language en
  edge kiosk init guide --bundle glm4-int4 --system-file guide.txt --suggestion "Where is the exit?" --max-context 4096
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    init = actions.add_parser("init", help="write the folder of a kiosk", **sections(INIT))
    init.add_argument("folder", metavar="DIR", help="the folder to write; new or empty")
    init.add_argument("--bundle", metavar="BUNDLE", required=True, help=options.BUNDLE_HELP)
    init.add_argument(
        "--system-file", metavar="FILE", required=True, help="a file with the system message; every visitor may read it"
    )
    options.add_template(init)
    options.add_json(init)
    _add_page(init.add_argument_group("page", "what is not given is in the page's own words"))
    _add_services(init.add_argument_group("services"))
    options.add_engine(init)


def _add_page(group: argparse._ActionsContainer) -> None:
    group.add_argument("--title", metavar="TEXT", help="name at the top of the page")
    group.add_argument("--greeting", metavar="TEXT", help="words that a visitor is met with")
    group.add_argument("--placeholder", metavar="TEXT", help="words in the empty field for questions")
    group.add_argument(
        "--suggestion",
        action="append",
        dest="suggestions",
        metavar="TEXT",
        help="a question to choose instead of typing; repeatable",
    )
    group.add_argument(
        "--language",
        action="append",
        dest="languages",
        metavar="TAG",
        help="a language of the page, like en or pt-BR; repeatable, the first one is shown first",
    )
    group.add_argument(
        "--idle-seconds",
        type=float,
        default=IDLE_S,
        metavar="SECONDS",
        help=told("forget a visitor after this long without input or answer", IDLE_S),
    )
    group.add_argument(
        "--idle-warning-seconds",
        type=float,
        default=WARNING_S,
        metavar="SECONDS",
        help=told("show a countdown for the last of them", WARNING_S),
    )
    group.add_argument(
        "--max-prompt-chars",
        type=int,
        metavar="N",
        help=told("longest question, in characters", "what fits into the context"),
    )


def _add_services(group: argparse._ActionsContainer) -> None:
    host, port = usual(KioskSettings, "host"), usual(KioskSettings, "port")
    group.add_argument("--host", choices=LOOPBACK, default=host, help=told("address that the server listens on", host))
    group.add_argument("--port", type=int, default=port, metavar="PORT", help=told("port that it listens on", port))
    group.add_argument("--user", metavar="NAME", help=told("user that the server runs as", "you"))
    browser = usual(KioskSettings, "browser_user")
    group.add_argument(
        "--browser-user",
        default=browser,
        metavar="NAME",
        help=told("user that the browser runs as, who is made later", browser),
    )


def run(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.kiosk.folder import check_place
    from edge.runtime.errors import PromptError, SettingsError

    if sys.platform == "win32":
        raise SettingsError("a kiosk is started by systemd, which this system does not have; write it on Linux")
    place = check_place(Path(args.folder))
    text = options.read_text(args.system_file)
    if not text.strip():
        raise PromptError(f"{args.system_file} is empty; write the system message into it")
    page, owner = _page(args, text), _owner(args.user)
    settings = _settings(args, place, args.user or _me())
    started = time.perf_counter()
    with load(args.bundle, **options.engine_settings(args, text), chat_template=args.chat_template) as llm:
        settings = replace(settings, engine_options=_engine_options(args, llm.engine.info.name))
        tokens = _write(llm, settings, page, text, owner)
    _tell(args, settings, tokens, time.perf_counter() - started)
    return 0


def _write(llm: LLM, settings: KioskSettings, page: PageConfig, system: str, owner: str | None) -> int:
    """Make the folder; return the number of tokens of the prefix. Raises OutputError."""
    from edge.kiosk.files import texts
    from edge.kiosk.folder import write_folder
    from edge.kiosk.settings import PREFIX
    from edge.kiosk.units import Memory
    from edge.runtime.machine import peak_rss_bytes

    prefix = llm.system_prefix(system)
    llm.prefixes.pin(prefix)  # before it is asked what that took
    taken = peak_rss_bytes()
    memory = None if taken is None else Memory(taken, llm.engine.pool.bytes)
    files = texts(settings, page, system, memory)
    write_folder(settings.folder, files, PREFIX, lambda path: _save(llm, prefix, path, system), owner)
    return len(prefix)


def _save(llm: LLM, prefix: list[int], path: Path, system: str) -> None:
    llm.prefixes.save(prefix, path, system=system)


def _tell(args: argparse.Namespace, settings: KioskSettings, tokens: int, seconds: float) -> None:
    from edge.commands.console import human_bytes, print_json
    from edge.kiosk import settings as names
    from edge.kiosk.quoting import shell_command

    size = (settings.folder / names.PREFIX).stat().st_size
    if args.json:
        print_json(
            {
                "path": str(settings.folder),
                "files": sorted(path.name for path in settings.folder.iterdir() if path.is_file()),
                "url": settings.url,
                "serve": list(settings.serve),
                "tokens": tokens,
                "bytes": size,
                "seconds": round(seconds, 3),
            }
        )
        return
    print(f"{settings.folder}: system message of {tokens} tokens, {human_bytes(size)}, computed in {seconds:.1f} s")
    print(f"To try it: {shell_command(settings.serve)}")
    print(f"Then open {settings.url}; what is left to do is in {settings.folder / names.README}")


def _engine_options(args: argparse.Namespace, engine: str) -> tuple[str, ...]:
    """The options of `edge serve` for what the prefix was computed with, and for the memory that was given."""
    found = ["--engine", engine]
    given = {
        "--device": args.device if args.device != usual(EngineSettings, "device") else None,
        "--max-context": args.max_context,
        "--kv-cache-gb": None if args.kv_cache_bytes is None else args.kv_cache_bytes / 1e9,
        "--kv-cache-share": args.kv_cache_share,
        "--max-memory": None if args.max_memory_bytes is None else f"{args.max_memory_bytes}B",
        "--kv-precision": args.kv_precision,
        "--threads": args.threads,
        "--chat-template": None if args.chat_template is None else os.path.realpath(args.chat_template),
    }
    for option, value in given.items():
        if value is not None:
            found += [option, str(value)]
    return (*found, "--reproducible") if args.reproducible else tuple(found)


def _page(args: argparse.Namespace, system: str) -> PageConfig:
    from edge.server.page_config import PageConfig

    return PageConfig(
        title=args.title,
        greeting=args.greeting,
        placeholder=args.placeholder,
        suggestions=args.suggestions,
        languages=args.languages,
        idle_seconds=args.idle_seconds,
        idle_warning_seconds=args.idle_warning_seconds,
        max_prompt_chars=args.max_prompt_chars,
        system=system,
        kiosk=True,
    )


def _settings(args: argparse.Namespace, place: Path, user: str) -> KioskSettings:
    from edge.runtime.machine import family_of

    return KioskSettings(
        bundle=_unlinked(args.bundle),
        folder=place,
        python=Path(sys.executable).absolute(),  # not where its link leads: an environment is known by the link
        user=user,
        browser_user=args.browser_user,
        host=args.host,
        port=args.port,
        needs_graphics=family_of(args.device) == "GPU",
    )


def _unlinked(bundle: str) -> Path:
    """An absolute path whose folders are no links. The bundle itself may be one, which updates replace."""
    path = Path(bundle).absolute()
    return Path(os.path.realpath(path.parent)) / path.name if path.is_symlink() else Path(os.path.realpath(path))


def _me() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _owner(user: str | None) -> str | None:
    """The user to give the files to, if that is somebody else. Raises SettingsError where that cannot be done."""
    import pwd

    from edge.runtime.errors import SettingsError, shown

    if user is None or user == _me():
        return None
    try:
        pwd.getpwnam(user)
    except (KeyError, ValueError):
        raise SettingsError(
            f"user is {shown(user)}, whom this system does not know; make one with `useradd --system NAME`",
            param="user",
        ) from None
    if os.getuid():
        raise SettingsError(
            f"user is {user}, to whom you may not give the folder; run this as {user} or as root",
            param="user",
        )
    return user
