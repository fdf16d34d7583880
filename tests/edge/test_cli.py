"""The command line as a user has it: real processes, exit codes, one line for what went wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.commands import demo
from edge.export.compress.recipes import DEFAULT
from edge.runtime.extras import install_command

EDGE = [sys.executable, "-m", "edge"]


def edge(*arguments: str | Path, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EDGE, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


def fails(*arguments: str | Path, stdin: str = "", code: int = 1) -> str:
    """Run something that must fail; returns its one line. code: 2 for what is wrong with the command line itself."""
    done = edge(*arguments, stdin=stdin)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize("arguments", [[], ["fly"], ["run"], ["run", "x", "y", "--temperature", "warm"]], ids=str)
def test_usage_errors(arguments: list[str]) -> None:
    done = edge(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_an_empty_path_is_no_folder() -> None:
    """Path makes "." of it, and messages spoke of that."""
    done = edge("run", "", "hi")
    assert done.returncode == 2
    assert done.stderr.startswith("edge run: argument BUNDLE: it is empty; ")


def test_messages_name_options_of_the_verb(tiny_bundle: Path) -> None:
    small = ("--max-context", "200", "--kv-cache-gb", "0.00001")
    assert "lower --max-context, raise --kv-cache-gb, or set --kv-precision" in fails(
        "run", tiny_bundle, "hi", *small, code=2
    )
    assert "--threads is 65, expected a whole number from 1 to 64" in fails(
        "run", tiny_bundle, "hi", "--threads", "65", code=2
    )


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_context is 5, expected 1 to 4", "--max-context is 5, expected 1 to 4"),
        ("top_k is 5", "--top-k is 5"),
        ("engine is 5", "--engine is 5"),
        ("the engine is gone; lower max_context or top_k", "the engine is gone; lower --max-context or --top-k"),
        ("engine of max_contexts at /x/max_context/y", "engine of max_contexts at /x/max_context/y"),
        ("load with draft_store=FILE", "load with --draft-store=FILE"),
        ("logit_bias is 5", "logit_bias is 5"),
    ],
)
def test_settings_are_told_as_options(message: str, shown: str) -> None:
    from edge.cli import _options, _with_options, build_parser

    assert _with_options(message, _options(build_parser(), "run")) == shown


def test_inspect_asks_no_hub(tmp_path: Path) -> None:
    """Neither for a mistyped path nor for the name of a model; and help says so."""
    script = f"""
import os, socket, sys
def refuse(*args, **kwargs):
    print("asked", args)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
os.environ["HF_HOME"] = {str(tmp_path / "cache")!r}
from edge.commands import demo
from edge.export.compress.recipes import DEFAULT
from edge.cli import main
os.chdir({str(tmp_path)!r})
os.mkdir("build")
print([main(["inspect", source]) for source in ("build/demo-bundel", "no-org/no-model", "hf:no-org/no-model")])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[1, 1, 1]\n", done
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "build/demo-bundel: no such path. build is here, so no hub was asked" in lines[0]
    assert "nothing is downloaded to look at it" in lines[1]
    assert "no hub is asked" in " ".join(edge("inspect", "--help").stdout.split())


def test_export_then_run_verify_inspect(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = edge("export", tiny_checkpoint, out, "--recipe", "int4-asym-g128", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "6 weights at int4-asym-g64: width 64 has no groups of 128" in done.stdout
    assert "bits per weight" in done.stdout
    assert len(done.stderr.splitlines()) == 1, "no progress bar where stderr is no terminal"
    assert edge("run", out, "Hello", "--max-new-tokens", "4").returncode == 0
    verified = edge("verify", out)
    assert verified.returncode == 0
    assert f"{out}: verified" in verified.stdout
    shown = json.loads(edge("inspect", out, "--json").stdout)
    assert (shown["kind"], shown["recipe"]) == ("bundle", "int4-asym-g128")
    said = edge("inspect", out).stdout
    assert "int4-asym-g64" in said
    assert shown["read_bytes_per_token"].keys() <= {"openvino", "onnx"}
    assert "weights that a CPU reads for each token: " in said
    source = json.loads(edge("inspect", tiny_checkpoint, "--json").stdout)
    assert source["kind"] == "checkpoint"
    assert source["spec"] == shown["spec"]
    assert source["weight_bytes"]["int4-asym-g128"] == shown["weight_bytes"]


def test_lost_rotary_base_is_a_warning_and_a_record(tmp_path: Path) -> None:
    """Shapes that tell the published glm-4-9b-chat-hf, as small as they can be."""
    from tests.tiny import Tiny, make

    published = Tiny("chat-hf", hidden_size=32, vocab_size=151552, max_position_embeddings=131072)
    make(published, tmp_path / "checkpoint")
    arguments = ("export", tmp_path / "checkpoint", tmp_path / "out", "--recipe", "int8-asym", "--format", "onnx")
    done = edge(*arguments)
    assert done.returncode == 0
    assert "edge: warning: rope_theta is 10000 for a context of 131072" in done.stderr
    assert "warning: rope_theta is 10000" in edge("inspect", tmp_path / "out").stdout
    assert "warning: rope_theta is 10000" in edge("inspect", tmp_path / "checkpoint").stdout
    decided = edge(*arguments, "--rope-theta", "5000000", "--force")
    assert "rope_theta" not in decided.stderr
    shown = json.loads(edge("inspect", tmp_path / "out", "--json").stdout)
    assert shown["spec"]["rope_theta"] == 5e6
    assert not any("rope_theta" in warning for warning in shown["warnings"])
    assert shown["decisions"] == ["rope_theta 5,000,000; the checkpoint says 10,000"]


def test_run_prints_the_answer(demo_bundle: Path) -> None:
    done = edge("run", demo_bundle, "What is the capital of France?", "--max-new-tokens", "32")
    assert done.returncode == 0
    assert "Paris" in done.stdout
    assert done.stderr == ""


def test_run_json_is_one_object(demo_bundle: Path) -> None:
    done = edge("run", demo_bundle, "-", "--json", "--max-new-tokens", "8", stdin="What is the capital of France?")
    answer = json.loads(done.stdout)
    assert answer["new_tokens"] == len(answer["token_ids"]) <= 8
    assert answer["finish_reason"] in ("stop", "length")
    assert {"text", "engine", "prompt_tokens", "ttft_ms", "tokens_per_second", "load_s"} <= answer.keys()


def test_run_options_reach_the_generator(demo_bundle: Path) -> None:
    def ask(*options: str) -> str:
        return str(
            json.loads(
                edge("run", demo_bundle, "Tell me a story.", "--json", "--max-new-tokens", "24", *options).stdout
            )["text"]
        )

    greedy = ask()
    assert ask("--temperature", "0") == greedy
    hot = ("--temperature", "1.5", "--top-p", "0.95", "--top-k", "200", "--min-p", "0.01", "--seed")
    assert ask(*hot, "1") == ask(*hot, "1") != ask(*hot, "2")
    assert ask("--system", "Answer in French.") != greedy
    assert ask("--raw") != greedy
    cut = greedy[5:9]
    assert ask("--stop", cut, "--stop", "never") == greedy[: greedy.index(cut)]


def test_raw_text_is_streamed_as_it_is(demo_bundle: Path) -> None:
    """A continuation begins with a space, which an answer would lose."""
    options = ("Once upon", "--raw", "--max-new-tokens", "6")
    whole = json.loads(edge("run", demo_bundle, *options, "--json").stdout)["text"]
    assert whole.startswith(" ")
    assert edge("run", demo_bundle, *options).stdout == whole + "\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["", "--raw"], 2, "PROMPT is empty; give the user message"),
        (["-"], 1, "PROMPT is empty: nothing came from standard input; give the user message"),
        ([], 1, "PROMPT is empty: nothing came from standard input; give the user message"),
        (["hi", "--max-new-tokens", "0"], 2, "--max-new-tokens is 0, expected a whole number, 1 or more"),
        (["hi", "--temperature", "-1"], 2, "--temperature is -1.0, expected a number from 0 up"),
        (["word " * 9000], 1, "and the context holds 8192"),
        (["hi", "--max-context", "9999999"], 2, "--max-context is 9999999"),
        (["hi", "--device", "TOASTER"], 1, "devices here: CPU"),
        (["hi", "--raw", "--system", "x"], 2, "--system needs the chat template"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_requests(demo_bundle: Path, options: list[str], code: int, message: str) -> None:
    assert message in fails("run", demo_bundle, *options, code=code)


def test_bad_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    assert "no such path" in fails("run", tmp_path / "nothing", "hi")
    assert "is not a bundle" in fails("run", tmp_path, "hi")
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with (copy / "openvino_model.bin").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" if file.read(1) != b"\xff" else b"\0")
    assert "openvino_model.bin is altered" in edge("verify", copy).stderr
    (copy / "openvino_model.xml").unlink()
    assert "openvino_model.xml is missing" in fails("run", copy, "hi")


def test_bad_exports(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no such path" in fails("export", tmp_path / "nothing", out)
    expected = f"expected a name like {DEFAULT}; `edge recipes --all`"
    assert expected in fails("export", tiny_checkpoint, out, "--recipe", "int3", code=2)
    assert "not a checkpoint" in fails("export", tmp_path, out)
    out.mkdir()
    (out / "file").touch()
    assert "holds 'file' and is not a bundle, so it is not replaced" in fails("export", tiny_checkpoint, out)
    assert "edge: --max-kld is -1.0, expected a number of nats" in fails(
        "export", tiny_checkpoint, out, "--max-kld", "-1", code=2
    )
    assert "edge: --rope-theta is nan, expected" in fails("export", tiny_checkpoint, out, "--rope-theta", "nan", code=2)
    assert "edge: --rotary-dim is 7, expected" in fails("export", tiny_checkpoint, out, "--rotary-dim", "7", code=2)
    assert "cannot be a folder (Not a directory)" in fails("export", tiny_checkpoint, out / "file" / "below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_base_model_has_no_chat(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    assert edge("export", base, tmp_path / "bundle", "--recipe", "int8-sym").returncode == 0
    assert "no chat template (a base model?)" in fails("run", tmp_path / "bundle", "hi")
    assert edge("run", tmp_path / "bundle", "hi", "--raw", "--max-new-tokens", "3").returncode == 0
    (tmp_path / "bundle" / "openvino_model.bin").write_bytes(b"")  # a chat does not get as far as that
    assert "has no chat template (a base model?); give one with --chat-template" in fails("chat", tmp_path / "bundle")


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_prefix(tiny_bundle: Path, tmp_path: Path, engine: str) -> None:
    """Built by one process, used by others; the file brings its system message, engine and precision along."""
    out, text = tmp_path / "kiosk", "You are a guide in the museum of Ghent and speak of paintings only. " * 2
    built = edge("prefix", "build", tiny_bundle, out, "--system", text, "--engine", engine, "--json")
    tokens = json.loads(built.stdout)["tokens"]
    shown = json.loads(edge("prefix", "show", out, "--json").stdout)
    assert (shown["tokens"], shown["system"], shown["layout"]["engine"]) == (tokens, text, engine)
    question = ("run", tiny_bundle, "Who are you?", "--json", "--max-new-tokens", "16")
    warm = json.loads(edge(*question, "--prefix", out).stdout)
    cold = json.loads(edge(*question, "--system", text, "--engine", engine).stdout)
    assert (warm["engine"], warm["token_ids"]) == (engine, cold["token_ids"])
    assert (cold["cached_tokens"], warm["cached_tokens"] >= tokens > 80) == (0, True)
    assert edge("chat", tiny_bundle, "--prefix", out, "--max-new-tokens", "8", stdin="hi\n").returncode == 0
    useless = edge("run", tiny_bundle, "hi", "--raw", "--prefix", out, "--max-new-tokens", "2")
    assert useless.returncode == 0
    assert f"the prompt has 0 of the {tokens} tokens of {out} in common" in useless.stderr


def test_bad_prefixes(demo_bundle: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "prefix"
    assert edge("prefix", "build", tiny_bundle, out, "--raw", "Once upon a time").returncode == 0
    assert "made for something else: model has sha256" in fails("run", demo_bundle, "hi", "--prefix", out)
    assert "no such file" in fails("chat", demo_bundle, "--prefix", tmp_path / "none")
    assert "computed without --reproducible" in fails("run", tiny_bundle, "hi", "--prefix", out, "--speculate", code=2)
    out.write_bytes(out.read_bytes()[:-1])
    assert "is damaged" in fails("run", tiny_bundle, "hi", "--prefix", out)
    assert "no such folder" in fails("prefix", "build", tiny_bundle, tmp_path / "a" / "b", "--raw", "x")


def test_speculation_and_its_store(demo_bundle: Path, tmp_path: Path) -> None:
    """The second time, the answer is drafted from the first; its ids are the same."""
    options = ("--json", "--speculate", "--draft-store", tmp_path / "drafts", "--max-new-tokens", "40")
    first, second = (json.loads(edge("run", demo_bundle, "Name five animals.", *options).stdout) for _ in range(2))
    assert first["token_ids"] == second["token_ids"]
    assert second["accepted_tokens"] > len(second["token_ids"]) / 2 > first["accepted_tokens"]
    document = tmp_path / "document.txt"
    document.write_text(first["text"] + " And more of it.")
    drafted = ("--json", "--speculate", "--draft-store", tmp_path / "other", "--draft-from", document, *options[-2:])
    third = json.loads(edge("run", demo_bundle, "Name five animals.", *drafted).stdout)
    assert third["token_ids"] == first["token_ids"]
    assert third["accepted_tokens"] > first["accepted_tokens"]
    assert "load with --draft-store" in fails("run", demo_bundle, "hi", "--speculate", "--draft-from", document, code=2)
    assert "give --speculate too" in fails("run", demo_bundle, "hi", "--draft-store", tmp_path / "drafts", code=2)


def test_answers_in_a_shape(demo_bundle: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}'
    )
    shape = ("--json-schema", schema, "--max-new-tokens", "30")
    assert isinstance(json.loads(edge("run", demo_bundle, "A number?", *shape).stdout)["n"], int)
    schema.write_text('{"type": "objekt"}')
    assert "constraint is refused" in fails("run", demo_bundle, "A number?", *shape, code=2)
    assert "cannot be read (No such file" in fails("run", demo_bundle, "hi", "--grammar", tmp_path / "none")
    done = edge("run", demo_bundle, "Yes or no?", "--regex", "(yes|no)")
    assert done.stdout.strip() in ("yes", "no")


def test_bench(tiny_bundle: Path) -> None:
    done = edge("bench", tiny_bundle, "--prompt-tokens", "8,32", "--new-tokens", "4", "--json")
    results = json.loads(done.stdout)["results"]
    assert [r["prompt_tokens"] for r in results] == [8, 32]
    assert all(r["decode_tokens_per_second"] > 0 and r["ttft_ms"] > 0 for r in results)
    for found in results:
        for figure, samples, distance in (
            ("ttft_ms", "ttft_ms_samples", "ttft_ms_spread"),
            ("decode_tokens_per_second", "decode_samples", "decode_spread"),
        ):
            assert len(found[samples]) == 5
            assert found[figure] == statistics.median(found[samples])
            assert found[distance] == max(abs(sample - found[figure]) for sample in found[samples])
        line = found["roofline"]
        read = line["weight_bytes"] + line["cache_bytes"]
        assert line["read_gbs"] == pytest.approx(read * found["decode_tokens_per_second"] / 1e9, abs=0.005)
        assert line["most_tokens_per_second"] == pytest.approx(line["machine_gbs"] * 1e9 / read, abs=0.005)
    options = ("--prompt-tokens", "8", "--new-tokens", "2", "--repeat")
    shown = edge("bench", tiny_bundle, *options, "2").stdout
    assert re.search(r"(onnx|openvino): a token reads .* of keys and values, at [\d.]+ of the [\d.]+ GB/s", shown)
    assert "prefill tok/s" in shown
    assert re.search(r"(?:onnx|openvino) +8 +2 +\d+ +\d+ ± \d+ +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+\n", shown)
    assert "median ± distance of the farthest repeat, of 2" in shown
    shown = edge("bench", tiny_bundle, *options, "1", "--roofline").stdout
    assert "one repeat has no spread" in shown
    assert re.search(r"share +decode tok/s +at most tok/s", shown)
    assert "leave out --clients" in fails("bench", tiny_bundle, "--clients", "1", "--roofline", code=2)
    done = edge("bench", tiny_bundle, "--repeat", "0")
    assert (done.returncode, done.stderr) == (2, "edge: --repeat is 0, expected a whole number from 1 to 1000\n")
    assert edge("bench", tiny_bundle, "--prompt-tokens", "0").returncode == 2
    assert "context holds 256" in fails("bench", tiny_bundle, "--prompt-tokens", "300")
    assert "context holds 100" in fails("bench", tiny_bundle, "--prompt-tokens", "9,100", "--max-context", "100")
    assert "context holds 256" in fails("bench", tiny_bundle, "--prompt-tokens", "999999999")
    assert "--new-tokens is 0, expected" in fails("bench", tiny_bundle, "--new-tokens", "0", code=2)


@pytest.mark.slow
def test_bench_of_all_engines(tiny_bundle: Path) -> None:
    options = ("--engine", "all", "--prompt-tokens", "8,32", "--new-tokens", "4")
    report = json.loads(edge("bench", tiny_bundle, *options, "--json").stdout)
    assert {one["engine"] for one in report["engines"]} == {"openvino", "onnx"}
    assert report["auto"] == {"8": "openvino", "32": "openvino"}  # weights have 8 bits
    assert set(report["fastest"]) == {"8", "32"}
    shown = edge("bench", tiny_bundle, *options).stdout
    assert "prompt of 32: auto takes openvino" in shown
    assert "context holds 256" in fails("bench", tiny_bundle, "--engine", "all", "--prompt-tokens", "300")


@pytest.mark.slow
def test_bench_of_servers(int4_bundle: Path) -> None:
    options = ("--prompt-tokens", "8", "--new-tokens", "4", "--clients")
    report = json.loads(edge("bench", int4_bundle, *options, "3,1,3", "--json").stdout)
    assert [server["engine"] for server in report["servers"]] == ["openvino", "onnx"]
    for server in report["servers"]:
        assert server["ready_s"] > 0
        assert [(found["clients"], found["tokens"]) for found in server["results"]] == [(1, 8), (3, 24)]
        assert [len(found["repeats"]) for found in server["results"]] == [3, 3]
    for verdict, clients in zip(report["verdicts"], (1, 3), strict=True):
        speeds = {server["engine"]: server["results"][clients // 3] for server in report["servers"]}
        assert verdict["clients"] == clients
        assert verdict["fastest"] == max(speeds, key=lambda name: speeds[name]["tokens_per_second"])
    shown = edge("bench", int4_bundle, *options, "2", "--engine", "onnx", "--reproducible").stdout
    assert "engine onnx: ready after" in shown
    assert "auto takes" not in shown  # nothing to choose from
    assert "context holds 100" in fails(
        "bench", int4_bundle, *options, "1", "--max-context", "100", "--new-tokens", "93"
    )
    for wrong in ("0", "1,x", "65", "", "-1"):
        done = edge("bench", int4_bundle, "--clients", wrong)
        assert done.returncode == 2
        assert "numbers from 1 to 64" in done.stderr


def test_first_answers_are_compared_with_what_an_engine_puts_off() -> None:
    """By hand: OpenVINO repacks its weights at the first inference, whichever prompt that is."""
    from edge.commands.bench import _answer_s

    def result(cold_ttft_ms: float, ttft_ms: float) -> dict[str, float]:
        return {"cold_ttft_ms": cold_ttft_ms, "ttft_ms": ttft_ms, "new_tokens": 11, "decode_tokens_per_second": 5.0}

    report = {"load_s": 4.0, "results": [result(34_000, 1000), result(20_000, 19_000)]}
    assert _answer_s(report, 0) == pytest.approx(4 + 34 + 2)
    assert _answer_s(report, 1) == pytest.approx(4 + 33 + 20 + 2)


def test_export_says_the_formats(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert (
        edge("export", tiny_checkpoint, tmp_path / "out", "--format", "onnx", "--recipe", "int8-asym").returncode == 0
    )
    assert not list((tmp_path / "out").glob("openvino*"))
    assert "holds no OpenVINO graph" in fails("run", tmp_path / "out", "hi", "--engine", "openvino")
    assert edge("run", tmp_path / "out", "hi", "--engine", "onnx", "--max-new-tokens", "2").returncode == 0
    assert edge("export", tiny_checkpoint, tmp_path / "out", "--format", "tflite").returncode == 2
    frontend = ("--frontend", "optimum", "--format", "both")
    assert "OpenVINO graphs only" in fails("export", tiny_checkpoint, tmp_path / "other", *frontend, code=2)


def test_devices() -> None:
    names = [d["name"] for d in json.loads(edge("devices", "--json").stdout)["devices"]]
    assert "CPU" in names
    assert "CPU" in edge("devices").stdout


def said(error: str) -> list[str]:
    """The lines of stderr, without what is said of answers that --max-new-tokens cut."""
    return [line for line in error.splitlines() if not line.startswith("(cut at ")]


def test_chat_over_a_pipe(demo_bundle: Path) -> None:
    lines = [
        "/stats",
        "What is the capital of France?",
        "/stats",
        "And of Italy?",
        "/stats",
        "/dance",
        "/reset",
        "/stats",
        "/exit",
        "never read",
    ]
    done = edge("chat", demo_bundle, "--max-new-tokens", "40", stdin="\n".join(lines))
    assert done.returncode == 1, "one line was not a command"
    assert "Paris" in done.stdout
    figures = [line for line in done.stdout.splitlines() if "from the cache" in line]
    assert len(figures) == 2
    cached, prompt = int(figures[1].split("(")[1].split()[0]), int(figures[1].split()[0])
    conversation = int(figures[0].rsplit(",", 1)[1].split()[0])
    assert cached >= conversation - 1, "the first turn was prefilled again"
    assert prompt - cached < 25
    assert done.stdout.count("no answer yet") == 2
    assert "/dance is not a command" in done.stderr


def test_chat_goes_on_after_a_refused_message(tiny_bundle: Path) -> None:
    done = edge("chat", tiny_bundle, "--max-new-tokens", "3", stdin="x" * 400 + "\nhi\n/stats\n")
    assert done.returncode == 1
    assert "the context holds 256" in done.stderr
    assert "from the cache" in done.stdout


def test_a_line_that_begins_with_a_slash_is_a_message(tiny_bundle: Path) -> None:
    """Commands stand alone; a word that looks like one is not sent, and what sends it is said."""
    few = ("--max-new-tokens", "3")
    lines = ["/etc/hosts has which format?", "/stats of my team", "/RESET", "/^a+$/", "/", " /resett"]
    done = edge("chat", tiny_bundle, *few, "--max-context", "256", stdin="\n".join(lines))
    assert done.returncode == 0
    assert said(done.stderr) == []
    as_messages = edge("chat", tiny_bundle, *few, stdin="\n".join(f"  {line}  " for line in lines))
    assert done.stdout == as_messages.stdout != ""
    done = edge("chat", tiny_bundle, *few, stdin="/resett\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert said(done.stderr) == [
        "edge: /resett is not a command, did you mean /reset?; /help lists them; "
        "a space before it sends it as a message"
    ]


def test_several_lines_over_a_pipe_are_one_message(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    lines = ['"""', "def f():", "    return 1", '"""', '/system """Be brief.', 'And kind."""', "hi"]
    done = edge("chat", tiny_bundle, "--max-new-tokens", "3", "--save", path, stdin="\n".join(lines))
    assert done.returncode == 0
    contents = [message["content"] for message in json.loads(path.read_text(encoding="utf-8"))]
    assert contents[:2] == ["Be brief.\nAnd kind.", "def f():\n    return 1"]
    assert contents[3] == "hi"
    again = edge("chat", tiny_bundle, "--load", path, "--save", path, "--max-new-tokens", "3", stdin="so?\n")
    assert again.returncode == 0
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 7
    assert "is a saved conversation; continue it with --load" in fails("chat", tiny_bundle, "--save", path)
    done = edge("chat", tiny_bundle, stdin='"""\nhi\n')
    assert (done.returncode, done.stdout) == (1, "")
    assert said(done.stderr) == ['edge: the input ended inside a block; end it with """']


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_chat_goes_on_when_the_context_is_full(tiny_bundle: Path, engine: str) -> None:
    options = ("--max-new-tokens", "6", "--max-context", "96", "--engine", engine)
    message = "word word word\n"
    done = edge("chat", tiny_bundle, *options, stdin=message * 9 + "/stats\n")
    assert done.returncode == 0
    assert {line.partition(" the oldest ")[0] for line in said(done.stderr)} == {"edge: the context was full:"}
    tokens = int(done.stdout.splitlines()[-1].rsplit(",", 1)[1].split()[0])
    assert 0 < tokens <= 96
    strict = edge("chat", tiny_bundle, *options, "--context-policy", "error", stdin=message * 5 + "/reset\n" + message)
    assert strict.returncode == 1
    refused = [line for line in said(strict.stderr) if not line.startswith("(")]
    assert refused
    assert all(line.endswith("; or /reset or /undo, or --context-policy drop-oldest") for line in refused)
    assert strict.stdout.count("\n") >= 6 - len(refused)


def test_a_line_without_an_end_ends_a_chat(tiny_bundle: Path) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        done = subprocess.run(
            [*EDGE, "chat", tiny_bundle], stdin=zeros, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "edge: a line of 10,000,000 bytes or more is not a message; send shorter ones\n"


def test_chat_without_readline(tiny_bundle: Path) -> None:
    """On a terminal where Python has no line editing, as on Windows."""
    script = (
        "import sys; sys.modules['readline'] = sys.modules['prompt_toolkit'] = None; from edge.cli import main; "
        f"sys.exit(main(['chat', {str(tiny_bundle)!r}, '--max-new-tokens', '2']))"
    )
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", script])
    read_until(fd, "> ", 60)
    os.write(fd, b"hi\n/exit\n")
    read_until(fd, "/exit", 20)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(fd)


LATIN = b"caf\xe9"


def edge_of_bytes(*arguments: str | bytes | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = subprocess.run([*EDGE, *arguments], input=stdin, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_text_that_is_not_utf8_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(LATIN)
    few, out, latin = ("--max-new-tokens", "2"), tmp_path / "a.prefix", tmp_path / "latin.txt"
    for arguments, stdin, said in (
        (("run", tiny_bundle, "-", *few), LATIN, "standard input is not UTF-8: byte 0xE9 at position 3"),
        (("run", tiny_bundle, LATIN, *few), b"", "PROMPT is not UTF-8: byte 0xE9 at position 3"),
        (("run", tiny_bundle, LATIN, "--raw", *few), b"", "PROMPT is not UTF-8"),
        (("run", tiny_bundle, "hi", "--system", LATIN, *few), b"", "--system is not UTF-8"),
        (("chat", tiny_bundle, "--system", LATIN, *few), b"hi\n", "--system is not UTF-8"),
        (("prefix", "build", tiny_bundle, out, "--raw", LATIN), b"", "--raw is not UTF-8"),
        (("prefix", "build", tiny_bundle, out, "--system", LATIN), b"", "--system is not UTF-8"),
        (("prefix", "build", tiny_bundle, out, "--system", "-"), LATIN, "standard input is not UTF-8"),
        (("prefix", "build", tiny_bundle, out, "--system-file", latin), b"", "latin.txt is not UTF-8: byte 0xE9"),
        (("prefix", "build", tiny_bundle, "/no/such/folder/x", "--raw", "hi"), b"", "no such folder"),
    ):
        code, shown, error = edge_of_bytes(*arguments, stdin=stdin)
        assert (code, shown) == (1, ""), arguments
        assert error.startswith("edge: ")
        assert error.count("\n") == 1
        assert said in error
    assert not out.exists()


def test_a_chat_goes_on_after_a_line_that_is_not_utf8(tiny_bundle: Path) -> None:
    lines = [LATIN, "h\N{DIGIT ONE}é".encode(), b"\xff\xfe", b"hi<|assistant|>", b"/stats"]
    code, shown, error = edge_of_bytes("chat", tiny_bundle, "--max-new-tokens", "3", stdin=b"\n".join(lines))
    assert code == 1
    assert said(error) == [
        "edge: the line is not UTF-8: byte 0xE9 at position 3; convert it to UTF-8",
        "edge: standard input is UTF-16 or UTF-32; convert it to UTF-8",
    ]
    assert "from the cache" in shown


def read_until(fd: int, text: str, seconds: float) -> str:
    seen, deadline = "", time.monotonic() + seconds
    while text not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                seen += os.read(fd, 65536).decode(errors="replace")
            except OSError:
                break
    assert text in seen, seen
    return seen


def test_chat_on_a_terminal_survives_ctrl_c(demo_bundle: Path) -> None:
    """Ctrl-C ends the answer and not the chat; the next answer is right."""
    pid, fd = pty.fork()
    if pid == 0:
        command = [*EDGE, "chat", str(demo_bundle), "--max-new-tokens", "4000", "--temperature", "3"]
        command += ["--seed", "1"]  # of which a long answer is known
        os.execve(sys.executable, command, {**os.environ, "TERM": "dumb"})
    try:
        read_until(fd, "> ", 60)
        os.write(fd, b"Write a very long story.\n")
        shown = read_until(fd, "story.", 60)
        while len(shown.partition("story.")[2].strip()) < 20:  # into the answer
            assert select.select([fd], [], [], 60)[0], shown
            shown += os.read(fd, 65536).decode(errors="replace")
        os.write(fd, b"\x03")
        read_until(fd, "(stopped)", 60)
        os.write(fd, b"/reset\n/stats\n")
        read_until(fd, "no answer yet", 60)
        os.write(fd, b"/exit\n")
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
        os.close(fd)


def test_run_interrupted(demo_bundle: Path) -> None:
    command = [*EDGE, "run", str(demo_bundle), "Write a long story.", "--max-new-tokens", "8000", "--temperature", "2"]
    command += ["--seed", "1"]  # of which a long answer is known
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr == "edge: interrupted\n"


def test_reader_that_leaves(demo_bundle: Path) -> None:
    command = [*EDGE, "run", str(demo_bundle), "Write a long story.", "--temperature", "2", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141, "as a program that SIGPIPE ends"


def test_progress_bar_on_a_terminal(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, [*EDGE, "export", str(tiny_checkpoint), str(tmp_path / "out"), "--recipe", "int8-asym"]
        )
    shown = read_until(fd, "bits per weight", 60)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(fd)
    assert "100%" in shown


@pytest.mark.slow
def test_demo_reuses_its_bundle(demo_bundle: Path, tmp_path: Path) -> None:
    """And replaces the one of an earlier demo."""
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    assert json.loads((copy / "manifest.json").read_text())["recipe"] == demo.EARLIER
    assert edge("demo", copy).returncode == 0
    assert json.loads((copy / "manifest.json").read_text())["recipe"] == DEFAULT
    made = (copy / "manifest.json").stat().st_mtime_ns
    done = edge("demo", copy)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    figures = done.stdout.splitlines()[-1]
    for part in ("export reused", "load", "TTFT", "tok/s", "weights", "bits per weight", "peak RSS"):
        assert part in figures
    assert (copy / "manifest.json").stat().st_mtime_ns == made


def test_demo_replaces_no_bundle_but_its_own(demo_gguf: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "glm4-int8"))
    (copy / "kiosk.prefix").write_text("my prefix")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    said = fails("demo", copy)
    assert "is a bundle of 'checkpoint' with recipe 'int8-asym', which the demo does not replace" in said
    assert f"edge run {copy}" in said
    refused = edge("demo", tmp_path / "notes")
    assert refused.returncode == 1
    assert "is not a bundle" in refused.stderr.splitlines()[-1]
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        ["kiosk.prefix", *(path.name for path in tiny_bundle.iterdir())]
    )
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "replaced"),
    [({}, True), ({"recipe": "int8-asym"}, False), ({"adapter": "lora"}, False), ({"source": "glm-4-9b"}, False)],
)
def test_whose_bundle_a_demo_takes_for_its_own(
    changes: dict[str, str], replaced: bool, demo_gguf: Path, tmp_path: Path
) -> None:
    from edge.runtime.errors import OutputError

    manifest = {"source": demo_gguf.name, "recipe": demo.EARLIER, "schema_version": 1, "source_sha256": "", "files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | changes))
    if replaced:
        assert demo._is_of_a_demo(tmp_path, demo_gguf)
    else:
        with pytest.raises(OutputError, match="which the demo does not replace"):
            demo._is_of_a_demo(tmp_path, demo_gguf)


def test_demo_says_how_to_get_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.cli import main
    from edge.export.checkpoint import default

    monkeypatch.setattr(default, "find_spec", lambda name: None)
    assert main(["demo", str(tmp_path / "out")]) == 1


@pytest.mark.parametrize("module", ["nncf", "openvino"])
def test_missing_extra_gives_the_install_line(tiny_checkpoint: Path, tmp_path: Path, module: str) -> None:
    script = (
        f"import sys; sys.modules[{module!r}] = None; from edge.cli import main; "
        f"sys.exit(main(['export', {str(tiny_checkpoint)!r}, {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"edge: {module} is not installed; {install_command('export')}\n"
    assert list(tmp_path.iterdir()) == []


def test_missing_engine_gives_the_install_line(tiny_bundle: Path) -> None:
    script = (
        "import sys; sys.modules['openvino'] = None; from edge.cli import main; "
        f"sys.exit(main(['run', {str(tiny_bundle)!r}, 'hi', '--engine', 'openvino']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == f"edge: openvino is not installed; {install_command('openvino')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "x", "y", "--temp", "1"],
        ["export", "x", "y", "--max-b", "5GB"],
        ["prefix", "build", "x", "y", "--sys", "z"],
        ["--log", "info", "devices"],
    ],
    ids=" ".join,
)
def test_options_are_not_abbreviated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A prefix that is unique today is not when another option is added."""
    from edge.cli import build_parser

    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(" --help\n")


@pytest.mark.parametrize("arguments", [["--log-level", "info", "x"], ["x", "--log-level", "info"]], ids=" ".join)
def test_log_level_shows_what_the_library_logs(arguments: list[str]) -> None:
    """Before the verb or behind it; without it nothing is shown."""
    script = """
import argparse, logging, sys
from types import ModuleType
from edge import cli

def run(args):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger("edge.runtime.x"), level)("said at %s", level)
    logging.getLogger("another").warning("none of ours")
    return 0

verb = ModuleType("edge.commands.x", "A verb.")
verb.add_arguments, verb.run = lambda parser: None, run
sys.modules["edge.commands.x"] = verb
cli.VERBS = ("x",)
sys.exit(cli.main())
"""
    told = [subprocess.run([sys.executable, "-c", script, *line], capture_output=True, text=True, check=True).stderr
            for line in (["x"], arguments)]  # fmt: skip
    assert told[0] == "none of ours\n"
    lines = told[1].splitlines()
    assert [line.partition(" edge.runtime.x: ")[2] for line in lines] == ["said at info", "said at warning", ""]
    assert lines[0].split()[2] == "INFO"
