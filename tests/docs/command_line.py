"""The page docs/command-line.md, made from the parser itself.

    python -m tests.docs.command_line

In: `edge.cli.build_parser`. Out: the page, the same under every Python and on every terminal: it is made from the
parser's arguments and not from its printed help, which each Python lays out in its own way.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from edge.cli import build_parser

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
WIDTH = 120
HEAD = """\
<!-- Made by `python -m tests.docs.command_line`; a test holds it to the parser. Change the help texts, not this. -->

# Command line

`edge --help` and `edge COMMAND --help` print the same. Every command takes `--log-level` and `--no-config`, before or
after its name. What a command exits with, and what it prints when it fails, is in [errors](errors.md#exit-codes).

`edge completion bash`, `zsh` or `fish` prints what lets that shell complete all this; `eval "$(edge completion bash)"`
in `~/.bashrc` switches it on. Where `edge` is on the PATH, `man edge` shows it as a manual page.
"""


def page() -> str:
    """The whole page."""
    parser = build_parser()
    lines = [HEAD, *_options(parser), "## Commands", "", *_commands(parser)]
    for name, help_text, sub in _subparsers(parser):
        lines += _section(sub, f"edge {name}", help_text, 2)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _section(parser: argparse.ArgumentParser, name: str, help_text: str, level: int) -> list[str]:
    subs = list(_subparsers(parser))
    usage = f"{name} ACTION ..." if subs else " ".join([name, *_usage(parser)])
    wrapped = textwrap.fill(usage, 100, subsequent_indent=" " * 4, break_long_words=False, break_on_hyphens=False)
    lines = ["", f"{'#' * level} {name}", "", *_description(parser.description or help_text)]
    lines += [
        "",
        "```text",
        wrapped,
        "```",
        "",
        *([] if subs else _options(parser)),
        *_description(parser.epilog or ""),
    ]
    for action, action_help, sub in subs:
        lines += _section(sub, f"{name} {action}", action_help, level + 1)
    return lines


def _commands(parser: argparse.ArgumentParser) -> list[str]:
    return [_item(f"[`edge {name}`](#edge-{name})", help_text) for name, help_text, _ in _subparsers(parser)]


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, one line of help and parser of each command, in their order."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, sub in action.choices.items():
                if name in helps:  # an alias has no help of its own
                    yield name, helps[name], sub


def _shown(action: argparse.Action) -> bool:
    hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return not hidden and action.help != argparse.SUPPRESS


def _is_of(parser: argparse.ArgumentParser, action: argparse.Action) -> bool:
    """Whether an argument is told of here: what every command takes stands once, at the top."""
    return action.dest not in ("log_level", "no_config") or " " not in parser.prog


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    """Arguments, and the options that are required; "[options]" for the rest."""
    shown = [action for action in parser._actions if _shown(action)]
    needed = [_name(action) for action in shown if action.option_strings and action.required]
    for group in parser._mutually_exclusive_groups:
        if group.required:
            needed.append(f"({' | '.join(_name(action) for action in group._group_actions)})")
    positionals = [_value(action) for action in shown if not action.option_strings]
    rest = [action for action in shown if action.option_strings and _is_of(parser, action)]
    return [*positionals, *needed, *(["[options]"] if rest else [])]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Every group under its title."""
    lines: list[str] = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _shown(action)]
        actions = [action for action in actions if _is_of(parser, action)]
        if not actions:
            continue
        title = {"positional arguments": "arguments", "optional arguments": "options"}.get(
            group.title or "", group.title
        )
        lines += ["", f"**{(title or 'options').capitalize()}**", ""]
        if group.description:
            lines += [*_description(group.description), ""]
        lines += [_item(f"`{_name(action)}`", _help(parser, action)) for action in actions]
    return [*lines, ""]


def _name(action: argparse.Action) -> str:
    """`--stop TEXT`, `--engine, --engines {auto,onnx}`, `[OUT]`."""
    value = _value(action)
    if not action.option_strings:
        return value
    return f"{', '.join(action.option_strings)}{f' {value}' if value else ''}"


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices is not None else None
    metavar = action.metavar or choices or (action.dest.upper() if action.option_strings else action.dest)
    if isinstance(metavar, tuple):
        return " ".join(metavar)
    if not action.option_strings and action.nargs is None and not action.required:
        return f"[{metavar}]"
    return {"?": f"[{metavar}]", "*": f"[{metavar} ...]", "+": f"{metavar} [...]"}.get(str(action.nargs), metavar)


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    if not action.help:
        return ""
    values = {name: value for name, value in vars(action).items() if value is not argparse.SUPPRESS}
    return action.help % {**values, "prog": parser.prog}


def _description(text: str) -> list[str]:
    """Paragraphs as they are; what is indented becomes a block of code."""
    lines: list[str] = []
    for indented, part in _parts(textwrap.dedent(text).strip("\n")):
        if indented:
            language = "sh" if re.search(r"^ *edge ", part, re.M) else "text"
            lines += ["", f"```{language}", textwrap.dedent(part), "```", ""]
        elif part.endswith(":") and "\n" not in part:  # what an example or a list stands under
            lines += [f"**{part[:-1].capitalize()}**", ""]
        else:
            lines += [_wrapped(_escaped(part)), ""]
    return lines


def _parts(text: str) -> Iterator[tuple[bool, str]]:
    """Runs of lines that are indented, or are not; a blank line ends a run of those that are not."""
    run: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        indented = line.startswith(" ") if line.strip() else False
        if run and (not line.strip() or indented != inside):
            yield inside, "\n".join(run)
            run = []
        if line.strip():
            run.append(line)
            inside = indented


def _item(name: str, help_text: str) -> str:
    text = f"- {name}" + (f": {_escaped(' '.join(help_text.split()))}" if help_text else "")
    return _wrapped(text, "  ")


def _wrapped(text: str, indent: str = "") -> str:
    """At most WIDTH wide; code in backticks is not cut, and no line begins like an item of a list."""
    code = re.sub(r"`[^`\n]*`", lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.fill(code, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return lines.replace("\0", " ")


def _escaped(text: str) -> str:
    """Outside of backticks, what Markdown would take for markup; a lone hyphen is a word."""
    parts = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(parts), 2):
        plain = re.sub(r"([*_<\[\]|])", r"\\\1", parts[index])
        parts[index] = re.sub(r"(?<!\S)-(?!\S)", "`-`", plain)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
