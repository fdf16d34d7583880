"""llama.cpp's programs for accuracy, and the file of log-probabilities that they exchange.

In: the folder of the programs, models, a text, logits. Out: quantized models; a base file; llama-perplexity's figures.
Knows nothing about our bundles. Facts are taken from tools/perplexity/perplexity.cpp of ggml-org/llama.cpp as in
llama-cpp-python 0.3.36 (`perplexity`, `kl_divergence`, `log_softmax`, `process_logits`).
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

WINDOW = 512  # tokens; llama-perplexity's default
CLIPPED = 16.0  # nats below the best log-probability: nothing lower is kept; and nothing below -16 itself is counted
MAGIC = b"_logits_"

# One line of the table that llama-perplexity prints, one for each window; columns are means up to that window.
_LINE = re.compile(r"^ *(\d+) +(?:\S+ ± +\S+) +(\S+) ± +\S+ +(\S+) ± +\S+ +\S+ ± +\S+ % +\S+ ± +\S+ %$", re.M)
_TOP = re.compile(r"^Same top p: +(\S+) ±", re.M)


@dataclass(frozen=True, slots=True)
class Scores:
    """How good one model's predictions are, by window."""

    window_kld: tuple[float, ...]  # mean over the scored tokens of each window, nats/token
    window_log_ppl_ratio: tuple[float, ...]  # the same for the true token's log-probability, reference - other
    top1: float  # share of scored tokens whose best next token is the reference's


class Tools:
    """llama.cpp's programs. Raises OSError if one is missing or fails, with the end of its output."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        for name in ("llama-quantize", "llama-imatrix", "llama-perplexity"):
            if not (folder / name).is_file():
                raise OSError(f"{folder} has no {name}; build it in llama.cpp: cmake --build build --target {name}")

    def importance(self, model: Path, text: Path, out: Path) -> None:
        """Mean squares of the inputs of every matrix, from windows of the text."""
        self._run("llama-imatrix", "-m", model, "-f", text, "-o", out, "-c", WINDOW, "--no-ppl", "-t", self.threads)

    def quantize(self, model: Path, importance: Path, out: Path, form: str) -> None:
        eight_bits = ("--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0")
        self._run("llama-quantize", "--imatrix", importance, *eight_bits, model, out, form, self.threads)

    def score(self, model: Path, base: Path, *settings: str) -> Scores:
        """Compare a model with the log-probabilities in `base`."""
        against = ("--kl-divergence", "--kl-divergence-base", base)
        said = self._run(
            "llama-perplexity", "-m", model, *against, "-c", WINDOW, "-b", WINDOW, "-t", self.threads, *settings
        )
        return parse_scores(said)

    def version(self) -> str:
        """The programs' version without the commit, which is that of any repository they were built inside."""
        found = re.search(r"version: (\S+)", self._run("llama-perplexity", "--version"))
        return found[1] if found else "unknown"

    def _run(self, program: str, *arguments: object) -> str:
        command = [str(self.folder / program), *map(str, arguments)]
        done = subprocess.run(
            command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if done.returncode:
            raise OSError(f"{program} failed with code {done.returncode}: {' '.join(command)}\n{done.stdout[-2000:]}")
        return done.stdout


def parse_scores(said: str) -> Scores:
    """Turn the running means that llama-perplexity prints into the windows' own. Raises OSError without a table."""
    lines, top = _LINE.findall(said), _TOP.search(said)
    if not lines or top is None:
        raise OSError(f"llama-perplexity printed no table of divergences:\n{said[-2000:]}")
    means = np.array([[float(ratio), float(kld)] for _, ratio, kld in lines])
    sums = means * np.arange(1, len(means) + 1)[:, None]
    ratios, klds = np.diff(sums, axis=0, prepend=0).T.tolist()
    return Scores(tuple(klds), tuple(ratios), float(top[1]) / 100)


def scored_rows(length: int) -> npt.NDArray[np.int64]:
    """Positions of a window whose predictions llama-perplexity scores: the last token predicts nothing."""
    return np.arange(length // 2, length - 1)


def write_base(path: Path, ids: npt.NDArray[np.int64], vocab: int, logits: Iterable[npt.NDArray[np.float32]]) -> None:
    """A file for --kl-divergence-base: magic, sizes, ids, then a row for each scored token.

    A row is a float32 scale, a float32 minimum, and 16 bits for each log-probability (over scale, above minimum).
    """
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        count, length = ids.shape
        file.write(MAGIC + struct.pack("<iii", length, vocab, count) + ids.astype("<i4").tobytes())
        for of_window in logits:
            file.write(stored_rows(of_window).tobytes())
    new.replace(path)


def stored_rows(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """(n, vocab) logits as rows of a base file: (n, 4 + vocab, rounded up to even)."""
    top = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), top - CLIPPED)
    log_sum = np.log(np.exp((logits - top).astype(np.float64)).sum(axis=1, keepdims=True))
    scale = ((top - low) / 65535).astype(np.float32)
    steps = np.divide(logits - low, scale, out=np.zeros_like(logits), where=scale > 0)
    rows = np.zeros((logits.shape[0], row_width(logits.shape[1])), np.uint16)
    rows[:, :4] = np.concatenate([scale, (low - top - log_sum).astype(np.float32)], axis=1).view(np.uint16)
    rows[:, 4 : 4 + logits.shape[1]] = np.rint(np.maximum(steps, 0))
    return rows


def row_width(vocab: int) -> int:
    """Values of 16 bits in a row of a base file."""
    return 4 + 2 * ((vocab + 1) // 2)


def read_base(path: Path) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Ids of each window (n,), and log-probabilities of its scored rows (rows, vocab)."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise OSError(f"{path} is not a file of llama-perplexity's log-probabilities")
        length, vocab, count = struct.unpack("<iii", file.read(12))
        ids = np.fromfile(file, "<i4", count * length).reshape(count, length).astype(np.int64)
        for of_window in ids:
            rows = np.fromfile(file, np.uint16, (size := len(scored_rows(length))) * row_width(vocab))
            rows = rows.reshape(size, -1)
            scale, low = np.ascontiguousarray(rows[:, :4]).view(np.float32).T[:, :, None]
            yield of_window, scale * rows[:, 4 : 4 + vocab] + low
