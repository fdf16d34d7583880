"""Made-up rows and profiles."""

from __future__ import annotations

from edge.profiles.accuracy import Accuracy, Part
from edge.profiles.divergence import Divergence
from edge.profiles.record import Failure, Profile, Row


def accuracy(kld: float = 0.25, windows: tuple[float, ...] | None = None) -> Accuracy:
    per_window = windows or (kld - 0.01, kld, kld + 0.01)
    return Accuracy(
        reference_key="ab" * 32,
        engine="onnx",
        chunk=16,
        tokens=3 * 511,
        windows=len(per_window),
        kld=kld,
        kld_stderr=kld / 50,
        kld_storage_stderr=0.0,
        kld_median=kld / 2,
        kld_p99=kld * 9,
        ppl=22.0,
        reference_ppl=20.0,
        ppl_ratio=1.1,
        ppl_ratio_stderr=0.01,
        top1=0.75,
        top5=0.9,
        probability_change=-0.01,
        probability_change_rms=0.1,
        languages=(Part("en", 3 * 511, kld, kld / 50, 1.1, 0.75),),
        quarters=(Part("quarter 1", 3 * 511, kld, kld / 50, 1.1, 0.75),),
        per_window_kld=per_window,
        per_window_log_ratio=per_window,
    )


def row(
    recipe: str = "int4-asym-g64",
    engine: str = "onnx",
    kld: float = 0.25,
    megabytes: float = 85.0,
    tps: float | None = 100.0,
    setting: str = "default",
    apart: float = 0.01,
) -> Row:
    return Row(
        recipe=recipe,
        engine=engine,
        setting=setting,
        bits_per_weight=5.1,
        weight_bytes=int(megabytes * 1e6),
        export_s=14.5,
        export_peak_bytes=600_000_000,
        load_s=0.5,
        peak_anonymous_bytes=300_000_000,
        peak_rss_bytes=400_000_000,
        prompt_tokens=512,
        ttft_ms=None if tps is None else 40.0,
        decode_tokens_per_second=tps,
        ttft_ms_samples=() if tps is None else (40.0, 39.0, 43.0),
        decode_samples=() if tps is None else (tps * (1 - apart / 2), tps, tps * (1 + apart)),
        kv_cache="f32",
        accuracy=accuracy(kld),
        divergence=Divergence((12, 64), 64, 38.0, 38.0, 0.5),
    )


def profile(*rows: Row) -> Profile:
    return Profile(
        source="model <&> | .gguf",
        text="some text",
        windows_sha256="cd" * 32,
        num_windows=3,
        window_tokens=512,
        num_cells=len(rows) + 1,
        machine={"processor": "a processor", "cores": 2, "memory_bytes": 24_000_000_000, "system": "Linux x86_64"},
        versions={"edgeglm": "0.1.0"},
        rows=rows,
        failures=(Failure("fp16/onnx", "no memory"),),
        notes=("Left out: something",),
    )
