"""The comparison of engines counts tokens as they are made."""

from __future__ import annotations

from pathlib import Path

from engine_worker import Job, open_ours, token_moments


def test_tokens_are_counted_and_not_chunks(tiny_bundle: Path) -> None:
    """A prompt of more than one chunk has chunks without tokens before the answer."""
    generate = open_ours("onnx", Job(str(tiny_bundle), [], [], new_tokens=8, threads=1))
    moments = token_moments(generate, [7, 9] * 100, 9)
    assert moments == sorted(moments)
