"""The tokenizer as OpenVINO models, which is what openvino_genai reads.

In: a folder with a tokenizer.json. Out: openvino_{tokenizer,detokenizer}.{xml,bin} in it, or one line that says why
they were not made. Text gets the ids that runtime/tokenizer.py gives it. Knows nothing about weights and chat
templates.

openvino_tokenizers converts, and reads a tokenizer through transformers, which the exporting process must not import.
So a separate process does it, started first and waited for last: GLM-4's vocabulary takes 7 s on one core. Its script
imports the two packages and passes them to `convert`; so this package imports neither, and all but the script is
type-checked like the rest of it.

What openvino_genai (2026.4) does with the files, and what follows from that:

- It renders the chat template and encodes the text with add_special_tokens=False, but raw text with True. GLM-4's
  post-processor would put [gMASK]<sop> before raw text, while our runtime adds nothing to any text. The post-processor
  is left out, so that both agree: a template brings its own special tokens, and raw text is what its author wrote.
  (Converting with add_special_tokens=False instead makes a model that openvino_genai refuses to open.)
- It takes the template from the tokenizer's rt_info, else chat_template.jinja, else tokenizer_config.json. None is put
  into rt_info: chat_template.jinja is what our runtime reads, so the template can be changed in one place.
- It takes the ids that end an answer from generation_config.json. The one here is for padding and get_eos_token_id().

openvino_tokenizers (2026.4) departs from the tokenizers package in two ways that change ids, and `convert` corrects
both: see `_look_up_whole_words` and `_SINGLE_DIGITS`. A third one remains: only its regular expressions take U+180E,
the Mongolian vowel separator, for white space.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
import openvino as ov
import tokenizers

from edge.runtime.errors import OutputError, telling_line

FILES = tuple(f"openvino_{name}.{suffix}" for name in ("tokenizer", "detokenizer") for suffix in ("xml", "bin"))

NOT_WRITTEN = 3  # exit code where the system did not let it write, which is not the tokenizer's fault

# sys.argv: where the package is, tokenizer.json, folder, eos id. Its standard input ends when the exporting process
# does, for whatever reason, and then it ends too. It leaves without the interpreter's clean-up, which unloads
# openvino_tokenizers before the last of its nodes is gone, and crashes.
_SCRIPT = r"""
import os, socket, sys, threading
socket.has_ipv6 = False  # urllib3 finds out by a socket of its own when it is imported
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.path.append(sys.argv[1])
import edge.export.interop.openvino_tokenizer as ours
sys.modules.update(dict.fromkeys(["torch", "tensorflow", "jax", "flax"]))  # transformers loads what it finds of them
try:
    import openvino_tokenizers, transformers
except ImportError as error:
    cause, *_ = str(error).split("\n")
    sys.exit(f"{cause}; pip install openvino-tokenizers transformers")
try:
    ours.convert(openvino_tokenizers, transformers, *sys.argv[2:])
except Exception as error:  # transformers has an OSError of its own, the tokenizers package none
    if getattr(error, "errno", None) is None and "(os error " not in str(error):
        raise
    os.write(2, str(error).encode(errors="replace"))
    os._exit(ours.NOT_WRITTEN)
os._exit(0)
"""
# A fixed hash seed makes the order of sets, and with it the files, the same each time.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONHASHSEED": "0",
}
# Single digits, and ByteLevel's expression on what is between them, as one expression: white space ends before a digit
# as it does at the end of text. openvino_tokenizers merges the two as well, but cuts the last space off.
_SINGLE_DIGITS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?![^\s\p{N}])|\s+"
)
# openvino_tokenizers notes the versions of these where they are installed, and the files would depend on them.
_NO_PART_IN_IT = ("tiktoken", "sentencepiece")
_MARK = "\U0010ffff"  # before a word that is looked up whole; it is not a character, so no text has it


def start(folder: Path, eos_token_id: int | None) -> Conversion:
    """Begin to convert the tokenizer.json of `folder`. Raises OSError when the folder cannot be written."""
    return Conversion(folder, eos_token_id)


class Conversion:
    """A conversion in progress. As a context manager: cancelled when the body raises, otherwise waited for."""

    def __init__(self, folder: Path, eos_token_id: int | None) -> None:
        self._folder = folder
        self._reason: str | None = None
        # Everything it writes goes here first, including the temporary files of the two packages.
        self._scratch = Path(tempfile.mkdtemp(prefix=".openvino_tokenizer.", dir=folder)).absolute()
        root = Path(__file__).absolute().parents[__name__.count(".")]  # that `edge` is in
        arguments = [root, folder / "tokenizer.json", self._scratch]
        eos = "" if eos_token_id is None else str(eos_token_id)
        try:
            with (self._scratch / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _SCRIPT, *map(str, arguments), eos],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    env=os.environ | _ENVIRONMENT | {"TMPDIR": str(self._scratch)},
                )
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    def finish(self) -> str | None:
        """Wait for it. None when the models are in the folder, else one line that says why they are not.

        Raises OutputError where they could not be written: a bundle is not made without them for that.
        """
        if self._scratch.is_dir():
            code = self._process.wait()
            self._close_input()
            if code == 0:
                for name in FILES:
                    (self._scratch / name).replace(self._folder / name)
            else:
                self._reason = self._last_words()
            shutil.rmtree(self._scratch, ignore_errors=True)
            if code == NOT_WRITTEN:
                raise OutputError(
                    f"{self._folder}: the tokenizer's models could not be written ({self._reason}), the disk may be "
                    "full; free some space"
                )
        return self._reason

    def cancel(self) -> None:
        """End it, and remove everything it wrote."""
        self._process.kill()
        self._process.wait()
        self._close_input()
        shutil.rmtree(self._scratch, ignore_errors=True)
        for name in FILES:
            (self._folder / name).unlink(missing_ok=True)
        self._reason = "the conversion was cancelled"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.cancel()

    def _close_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _last_words(self) -> str:
        said = (self._scratch / "stderr").read_text(encoding="utf-8", errors="replace")
        ended = f"the conversion ended with exit code {self._process.returncode}"
        return telling_line(said, last=True) if said.strip() else ended


def convert(
    openvino_tokenizers: ModuleType, transformers: ModuleType, tokenizer_json: str, folder: str, eos_token_id: str
) -> None:
    """Write the models of a tokenizer.json. Runs in the process that may import the two packages. Raises OSError."""
    source = tokenizers.Tokenizer.from_str(_for_conversion(Path(tokenizer_json).read_text(encoding="utf-8")))
    # A batch is padded on the left, where generation needs it.
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=source, padding_side="left")
    tokenizer, detokenizer = openvino_tokenizers.convert_tokenizer(
        fast, with_detokenizer=True, clean_up_tokenization_spaces=False
    )
    _look_up_whole_words(tokenizer, source, openvino_tokenizers._get_factory())
    for model, name in ((tokenizer, "tokenizer"), (detokenizer, "detokenizer")):
        if eos_token_id:
            model.set_rt_info(int(eos_token_id), "eos_token_id")
            model.set_rt_info(int(eos_token_id), "pad_token_id")
        noted = model.get_rt_info()
        for key in [f"{package}_version" for package in _NO_PART_IN_IT if f"{package}_version" in noted]:
            del noted[key]
        try:
            ov.save_model(model, Path(folder) / f"openvino_{name}.xml")
        except RuntimeError as error:
            raise OSError(errno.EIO, telling_line(error)) from error


def _for_conversion(tokenizer_json: str) -> str:
    """The tokenizer without its post-processor, and with steps by which openvino_tokenizers splits text correctly."""
    data = json.loads(tokenizer_json)
    data["post_processor"] = None
    steps = (data.get("pre_tokenizer") or {}).get("pretokenizers", [])
    match steps:
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]:
            split = {"type": "Split", "pattern": {"Regex": _SINGLE_DIGITS}, "behavior": "Isolated", "invert": False}
            steps[:] = [split, steps[1] | {"use_regex": False}]
    return json.dumps(data)


def _look_up_whole_words(model: ov.Model, tokenizer: Any, operations: Any) -> None:
    """Make BPETokenizer treat tokens that no merge makes as the tokenizers package does.

    With ignore_merges such a token encodes a word that equals it, and nothing else; GLM-4's vocabulary has 893 of them,
    " árbol" among them. BPETokenizer lacks this lookup, and uses a token without merges wherever its bytes occur. So
    these tokens get a mark before their bytes in its vocabulary, and a word that equals one of them gets the mark too.
    """
    whole_words, unmerged = bool(tokenizer.model.ignore_merges), _unmerged_ids(tokenizer)
    if not unmerged:
        return
    bpe = next((node for node in model.get_ordered_ops() if node.get_type_name() == "BPETokenizer"), None)
    if bpe is None or bpe.get_input_size() not in (14, 18):  # left and right halves of the merges apart
        raise TypeError("expected one BPETokenizer with merges as pairs")
    tokens, left, right = (_read_strings(bpe, first) for first in (5, 8, 11))
    gone = {tokens[i] for i in unmerged}
    merges = [(a, b) for a, b in zip(left, right, strict=True) if gone.isdisjoint((a, b, a + b))]
    _write_strings(bpe, 5, [_MARK.encode() + token if i in unmerged else token for i, token in enumerate(tokens)])
    _write_strings(bpe, 8, [a for a, _ in merges])
    _write_strings(bpe, 11, [b for _, b in merges])
    words = sorted(token.decode() for token in gone if token and _is_text(token))
    if whole_words and words:
        pattern = rf"\A({'|'.join(map(re.escape, words))})\z"
        texts = [_constant(np.frombuffer(text.encode(), np.uint8)) for text in (pattern, _MARK + "$1")]
        pieces = [bpe.input_value(i) for i in (2, 3, 4)]
        marked = operations.create("RegexNormalization", [*pieces, *texts], {"global_replace": False})
        for i in range(3):
            bpe.input(2 + i).replace_source_output(marked.output(i))
    model.validate_nodes_and_infer_types()


def _unmerged_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that merging their own bytes does not give, without added tokens, which are split off first."""
    bpe = tokenizer.model
    bpe.ignore_merges = False
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    return {i for token, i in vocab.items() if len(bpe.tokenize(token)) != 1} - set(
        tokenizer.get_added_tokens_decoder()
    )


def _read_strings(node: ov.Node, first: int) -> list[bytes]:
    """Strings as openvino_tokenizers packs them into three inputs: begins, ends, bytes."""
    begins, ends, joined = (node.input_value(first + i).get_node().data for i in range(3))
    raw = joined.tobytes()
    return [raw[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]


def _write_strings(node: ov.Node, first: int, strings: list[bytes]) -> None:
    lengths = np.array([len(string) for string in strings], np.int32)
    ends = lengths.cumsum(dtype=np.int32)
    for i, values in enumerate((ends - lengths, ends, np.frombuffer(b"".join(strings), np.uint8))):
        node.input(first + i).replace_source_output(_constant(values))


def _constant(values: np.ndarray) -> ov.Output:
    return ov.op.Constant(np.array(values)).output(0)


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
