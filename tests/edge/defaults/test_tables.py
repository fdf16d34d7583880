"""Files of defaults: what they may say is what a command line may say, and every mistake is one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge import cli
from edge.commands import kinds
from edge.defaults.commands import commands
from edge.defaults.fill import chosen, fill
from edge.defaults.tables import NEVER, OF_A_BUNDLE, DefaultsFile, options_of
from edge.models.config_file import config_path
from edge.runtime.errors import SettingsError

PARSERS = commands(cli.build_parser())
Put = Callable[[str], Path]


@pytest.fixture
def config(home: Path) -> Callable[[str], Path]:
    """Writes the user's file."""

    def write(text: str) -> Path:
        path = config_path()
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def parsed(*words: str) -> argparse.Namespace:
    args = cli.build_parser().parse_args(words)
    fill(args, ("prefix", "build") if words[0] == "prefix" else (words[0],), PARSERS, kinds.is_path)
    return args


def test_values_are_those_of_the_command_line(config: Callable[[str], Path]) -> None:
    """The same text in a file and on a command line is the same value, for every option that takes one."""
    words = {
        "max-context": "8192", "kv-cache-gb": "4", "threads": "2", "engine": "onnx", "device": "GPU", "stop": "x",
        "kv-precision": "u8", "temperature": "0.7", "top-k": "5", "prompt-tokens": "1,2", "max-body-bytes": "5000",
        "concurrency": "3", "seed": "5", "context-policy": "error",
    }  # fmt: skip
    for at, parser in PARSERS.items():
        for key, action in options_of(parser).items():
            if key not in words or len(at) > 1:
                continue
            text = words[key]
            config(f"[{at[0]}]\n{key} = {text if text.isdigit() else repr(text)}\n")
            args = {"run": ["b", "p"], "batch": ["b", "f", "o"], "needle": ["b", "o"], "export": ["s"], "rm": ["b"]}
            given = cli.build_parser().parse_args([at[0], *args.get(at[0], ["b"]), f"--{key}={text}"])
            filled = parsed(at[0], *args.get(at[0], ["b"]))
            assert getattr(filled, action.dest) == getattr(given, action.dest), (at, key)


def test_who_wins(config: Callable[[str], Path], put: Put) -> None:
    bundle = put("glm4")
    (bundle / "edge.toml").write_text("max-context = 1\ntop-k = 1\n[chat]\ntop-k = 2\ntemperature = 0.2\nmin-p = 0.1\n")
    config("max-context = 3\nthreads = 3\n[chat]\nthreads = 4\ntemperature = 0.4\n")
    args = parsed("chat", str(bundle), "--threads", "5")
    assert (args.threads, args.temperature, args.max_context, args.top_k, args.min_p) == (5, 0.4, 3, 2, 0.1)
    args = parsed("run", str(bundle), "hi")
    assert (args.threads, args.temperature, args.max_context, args.top_k, args.min_p) == (3, None, 3, 1, None)
    config("")
    assert parsed("chat", str(bundle)).max_context == 1
    assert parsed("chat", "elsewhere").max_context is None


def test_what_is_excluded_gives_way(config: Callable[[str], Path], put: Put) -> None:
    bundle = put("glm4")
    (bundle / "edge.toml").write_text("kv-cache-gb = 1\n")
    config("kv-cache-share = 0.5\n[export]\nrecipe = 'fp16'\n[run]\nsystem = 'You are a guide.'\n")
    args = parsed("chat", str(bundle))
    assert (args.kv_cache_share, args.kv_cache_bytes) == (0.5, None)
    args = parsed("chat", str(bundle), "--kv-cache-gb", "2")
    assert (args.kv_cache_share, args.kv_cache_bytes) == (None, 2_000_000_000)
    assert parsed("export", "a", "b").recipe == "fp16"
    assert parsed("export", "a", "b", "--max-bytes", "5GB").recipe is None
    assert parsed("run", "a", "b").system == "You are a guide."
    assert parsed("run", "a", "b", "--raw").system is None


def test_flags(config: Callable[[str], Path]) -> None:
    config("speculate = true\nreproducible = true\n[run]\nspeculate = false\n")
    assert parsed("chat", "b").speculate is True
    assert parsed("chat", "b").reproducible is True
    assert parsed("run", "b", "p").speculate is False


def test_lists_are_replaced(config: Callable[[str], Path]) -> None:
    config("stop = ['a', 'b']\n[run]\nstop = 'c'\n")
    assert parsed("chat", "b").stop == ["a", "b"]
    assert parsed("run", "b", "p").stop == ["c"]
    assert parsed("chat", "b", "--stop", "d").stop == ["d"]


def test_paths_are_from_the_file(config: Callable[[str], Path]) -> None:
    file = config("draft-store = 'd.store'\n[serve]\napi-key-file = '~/keys'\nuds = '/run/x'\n")
    assert parsed("chat", "b").draft_store == str(file.parent / "d.store")
    args = parsed("serve", "b")
    assert args.api_key_file == str(Path.home() / "keys")
    assert args.uds == "/run/x"


def test_actions_have_tables_in_tables(config: Callable[[str], Path]) -> None:
    config("engine = 'onnx'\n[prefix]\nthreads = 1\n[prefix.build]\nengine = 'openvino'\n")
    args = parsed("prefix", "build", "b", "o", "--raw", "x")
    assert (args.engine, args.threads) == ("openvino", 1)


WRONG = [
    ("max-contxt = 1", "'max-contxt' is not the name of an option; did you mean max-context?"),
    ("max_context = 1", "'max_context' is not the name of an option; did you mean max-context?"),
    ("zzz = 1", "'zzz' is not the name of an option; `edge --help` lists them"),
    ("[chat]\nport = 1", "'port' in [chat] is not the name of an option; `edge serve` has one of that name"),
    ("[chats]\nx = 1", "the table [chats] is not the name of a command; did you mean chat?"),
    ("[chat.deep]\nx = 1", "the table [chat.deep] in [chat] is not the name of a command; `edge chat --help`"),
    ("[prefix.biuld]\nx = 1", "the table [prefix.biuld] in [prefix] is not the name of a command; did you mean build?"),
    ("[chat]\nmax-context = 'x'", "[chat]: max-context: invalid int value: 'x'"),
    ("[chat]\nmax-context = 1.5", "[chat]: max-context: invalid int value: '1.5'"),
    ("[chat]\nmax-context = true", "[chat]: max-context is True, expected a text or a number"),
    ("[chat]\nmax-context = [1]", "[chat]: max-context is [1], expected a text or a number"),
    ("[chat]\nmax-context = 2020-01-01", "[chat]: max-context is datetime.date(2020, 1, 1), expected a text"),
    ("[chat]\nkv-precision = 'u5'", "[chat]: kv-precision: invalid choice: 'u5'"),
    ("[chat]\nengine = 'ort'", "[chat]: engine: engine 'ort' is unknown"),
    ("[chat]\nkv-cache-gb = -1", "[chat]: kv-cache-gb: '-1' is not a size"),
    ("[chat]\nspeculate = 1", "[chat]: speculate is 1, expected true or false"),
    ("[chat]\nspeculate = 'yes'", "[chat]: speculate is 'yes', expected true or false"),
    ("[chat]\ndraft-store = ''", "[chat]: draft-store: it is empty"),
    ("[chat]\nkv-cache-gb = 1\nkv-cache-share = 0.5", "[chat] has kv-cache-gb and kv-cache-share, which exclude"),
    ("[export]\nforce = true", "[export]: force: --force is for a command line alone; remove it"),
    ("[rm]\nyes = true", "[rm]: yes: --yes is for a command line alone"),
    ("max-context =\n", "is not valid TOML: Invalid value (at line 1, column 14)"),
    ("a = 1\na = 2\n", "is not valid TOML: Cannot overwrite a value (at line 2"),
    ("x = " + "[" * 5000, "is not valid TOML"),
    ("x = " + "9" * 5000, "is not valid TOML"),
    ("'a\\nb' = 1", "'a\\\\nb' is not the name of an option"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text[:30] for text, _ in WRONG])
def test_every_mistake_is_one_line(
    text: str, said: str, config: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(text)
    assert cli.main(["chat", "./b"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"edge: {file}"), error
    assert said in error, error
    assert cli.main(["chat", "./b", "--no-config"]) == 1
    assert capsys.readouterr().err.startswith("edge: b: no such path")


def test_bytes_that_are_not_text(config: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = config("")
    file.write_bytes(b"# caf\xe9\n")
    assert cli.main(["devices"]) in (1, 2)
    assert "is not UTF-8 at byte 5; save it as UTF-8" in capsys.readouterr().err
    file.write_bytes(b"\xef\xbb\xbfmax-context = 5\r\nthreads = 3\r\n")  # of Windows' editor
    assert parsed("chat", "b").threads == 3


def test_an_error_of_a_value_says_where_it_is_from(
    config: Callable[[str], Path], put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config("[run]\nmax-context = 0\n")
    bundle = put("glm4")
    assert cli.main(["run", str(bundle), "hi"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("edge: --max-context is 0, expected")
    assert error.endswith(f"; --max-context is from {file} [run]\n")
    assert cli.main(["run", str(bundle), "hi", "--max-context", "-1"]) in (1, 2)
    assert "is from" not in capsys.readouterr().err


def harmful(key: str, action: argparse.Action) -> bool:
    """What names a file, a program, an address, a text for the prompt, or what is the machine's."""
    words = (
        "file", "tool", "mcp", "host", "key", "port", "uds", "docs", "save", "load", "system", "prefix", "draft",
        "path", "device", "threads", "schema", "grammar", "regex", "user", "origin", "alias", "config", "adapter",
    )  # fmt: skip
    return action.type is kinds.path or any(word in key for word in words)


def test_a_bundle_may_set_what_is_harmless_alone() -> None:
    """A new option is not among them until it is put there, and none that is there names anything of a machine's."""
    known: dict[str, argparse.Action] = {}
    for parser in PARSERS.values():
        known |= options_of(parser)
    assert known.keys() >= OF_A_BUNDLE
    assert not [key for key in OF_A_BUNDLE if harmful(key, known[key])]
    assert OF_A_BUNDLE.isdisjoint(NEVER)


@pytest.mark.parametrize(
    "text",
    ["system = 'x'", "[chat]\ntool = ['python']", "[chat]\nmcp = 'x.json'", "[serve]\nhost = '0.0.0.0'",
     "[serve]\nno-key = true", "draft-store = '/tmp/x'", "device = 'GPU'", "threads = 1000", "[chat]\nsave = '/x'",
     "[chat]\nprefix = '/x'", "[export]\nrecipe = 'fp32'", "json-schema = '/etc/passwd'"],
)  # fmt: skip
def test_a_bundle_may_not(text: str, put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = put("glm4")
    (bundle / "edge.toml").write_text(text)
    assert cli.main(["chat", str(bundle)]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith(f"edge: {bundle / 'edge.toml'}")
    assert "a bundle may not set this; remove it, or give --no-config" in error


def test_a_bundle_may_not_move_the_models(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = put("glm4")
    (bundle / "edge.toml").write_text("models = '/x'")
    assert cli.main(["chat", str(bundle)]) in (1, 2)
    assert "'models' is not the name of an option" in capsys.readouterr().err


def test_a_bundle_with_defaults_is_still_that_bundle(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = put("glm4")
    (bundle / "edge.toml").write_text("max-new-tokens = 2\nengine = 'onnx'\n")
    assert cli.main(["verify", str(bundle)]) == 0
    capsys.readouterr()
    assert cli.main(["run", "glm4", "--raw", "a", "--json"]) == 0
    assert '"finish_reason": "length"' in capsys.readouterr().out


def test_the_python_api_reads_none_of_it(config: Callable[[str], Path], put: Put) -> None:
    import edge

    config("max-context = 5\n")
    (put("glm4") / "edge.toml").write_text("max-context = 6\n")
    with edge.load("glm4", engine="onnx") as llm:
        assert llm.engine.info.max_context > 6


def test_a_layer_is_chosen_whole() -> None:
    """Two values of one file that commands would refuse together are that file's mistake, and not hidden."""
    file = DefaultsFile(Path("x"), {"kv-cache-gb": 1, "kv-cache-share": 0.5})
    with pytest.raises(SettingsError, match="kv-cache-gb and kv-cache-share"):
        file.layers(("chat",), PARSERS[("chat",)], kinds.is_path)
    assert chosen(PARSERS[("chat",)], (), []) == {}


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    import json

    capsys.readouterr()
    assert cli.main(["config", *words, "--json"]) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    return shown


def test_the_settings_are_shown(config: Callable[[str], Path], put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = put("glm4")
    assert rows(capsys)["exists"] is False
    file = config("max-context = 3\n[chat]\nthreads = 4\n")
    (bundle / "edge.toml").write_text("top-k = 2\nmax-context = 4\n")
    shown = rows(capsys)
    assert (shown["config"], shown["exists"], shown["models"]) == (str(file), True, str(bundle.parent))
    assert [(row["option"], row["for"], row["value"]) for row in shown["settings"]] == [
        ("max-context", "all", 3),
        ("threads", "chat", 4),
    ]
    of_chat = {row["option"]: row for row in rows(capsys, "chat", "--bundle", "glm4")["settings"]}
    assert of_chat["--max-context"] == {"option": "--max-context", "value": 3, "from": str(file)}
    assert of_chat["--threads"]["from"] == f"{file} [chat]"
    assert of_chat["--top-k"]["from"] == str(bundle / "edge.toml")
    assert of_chat["--engine"] == {"option": "--engine", "value": "auto", "from": "built in"}
    assert cli.main(["config", "--path"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    assert cli.main(["config", "chat"]) == 0
    assert str(file) in capsys.readouterr().out
    for words in (["nothing"], ["prefix"], ["chat", "more"]):
        assert cli.main(["config", *words]) == 2
        assert "is not a command; known are demo, " in capsys.readouterr().err
    file.write_text("x = ")
    assert cli.main(["config", "--path"]) == 0
