"""Write a synthetic checkpoint of a family member's exact shapes, in its publisher's layout; all weights are noise.

    python benchmarks/make_checkpoint.py glm-4-9b-chat-hf OUT [--layers N] [--seed S] [--dtype bfloat16]
                                                   [--names]

It is for measuring exports and speed without the real weights. A 9B model takes 18.8 GB and the 32B one 65 GB; delete
them afterwards. No two tensors or rows are equal, because OpenVINO stores equal constants once, and disks may too. What
a tensor holds depends only on the seed and its name: a checkpoint with fewer layers has the same first layers.

Each weight is the normal quantile of 16 random bits, looked up in a table: deviation 0.02 around 0, norms around 1.
That is an exact normal distribution in 65,536 steps, up to 4.3 deviations, at a fifth of the cost of a normal
generator, so that the disk is the limit. Weights are written as they are made, so memory stays below 100 MB.

config.json has the keys and values of the published one, with two differences: it has no auto_map (as it comes without
remote code), and eos and pad are ids of the byte-level tokenizer written next to it. Ids around pictures stay as
published, and the tokenizer and a short chat template of models that see have their tokens. With --names every id
beyond the bytes has a name, <300> for instance, so that whatever noise chooses is a text: a server sends no empty ones.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt
from members import LAYOUTS, MEMBERS, PIXELS_41V, Config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {  # config name -> safetensors name, stored type
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype("<f2")),
    "float32": ("F32", np.dtype("<f4")),
}
DEVIATION = 0.02
CHUNK = 1 << 20  # weights made at once
INDEX = "model.safetensors.index.json"
PICTURES = {  # keys of a config.json, and the tokens that they number
    "boi_token_id": "<|begin_of_image|>",
    "eoi_token_id": "<|end_of_image|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_token_id": "<|image|>",
    "image_end_token_id": "<|end_of_image|>",
}
# What each kind's own template takes: parts, or a text alone. Other roles have no tokens here.
TEMPLATES = {
    "glm4v": """{% for m in messages %}<|user|>
{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}
{%- if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}{% endfor %}""",
    "chatglm": "{% for m in messages %}<|user|>\n{{ m['content'] }}{% endfor %}",
}
SPECIAL = ("<|endoftext|>", "<|user|>", "<|observation|>")  # ids 256 to 258, after the bytes; each ends an answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("member", choices=MEMBERS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="write only the first layers, also of a vision tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--names", action="store_true", help="a name for every id of the vocabulary")
    args = parser.parse_args()
    config = with_layers(MEMBERS[args.member], args.layers) if args.layers is not None else MEMBERS[args.member]
    try:
        size = write_checkpoint(args.out, {**config, "torch_dtype": args.dtype}, args.seed, names=args.names)
    except OSError as error:
        print(f"{args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {args.member}, {size:,} bytes of weights")
    return 0


def with_layers(config: Config, layers: int) -> Config:
    """The config with at most this many layers, under each key that counts them."""
    counts = {key: min(layers, config[key]) for key in ("num_layers", "num_hidden_layers", "depth") if key in config}
    inner = {key: with_layers(config[key], layers) for key in ("text_config", "vision_config") if key in config}
    return {**config, **counts, **inner}


def write_checkpoint(
    folder: Path, config: Config, seed: int = 0, shard_bytes: int | None = None, *, names: bool = False
) -> int:
    """Write config, tokenizer and weights into a new folder; returns bytes of weights. On OSError nothing is left."""
    layout = LAYOUTS[config["model_type"]]
    itemsize = DTYPES[config["torch_dtype"]][1].itemsize
    files = split(dict(layout.tensors(config)), itemsize, shard_bytes or layout.shard_bytes)
    size = sum(itemsize * math.prod(shape) for shapes in files.values() for shape in shapes.values())
    folder.mkdir(parents=True)
    try:
        if (free := shutil.disk_usage(folder).free) < size:
            raise OSError(f"{size:,} bytes needed, {free:,} are free")
        ids = {"eos_token_id": [256 + i for i in range(len(SPECIAL))], "pad_token_id": 256}
        inner = {"text_config": config["text_config"] | ids} if "text_config" in config else {}
        write_json(folder / "config.json", {**config, **ids, **inner})
        pictures = {config[key]: token for key, token in PICTURES.items() if key in config}
        rows = config.get("text_config", config)
        named = rows.get("vocab_size", rows.get("padded_vocab_size", 0)) if names or pictures else 0
        write_tokenizer(folder, named, pictures)
        if pictures:
            (folder / "chat_template.jinja").write_text(TEMPLATES[config["model_type"]])
        if config["model_type"] == "glm4v":
            write_json(folder / "preprocessor_config.json", PIXELS_41V)
        for name, shapes in files.items():
            write_shard(folder / name, shapes, config["torch_dtype"], seed)
        if len(files) > 1:
            weight_map = {tensor: name for name, shapes in files.items() for tensor in shapes}
            write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    except BaseException:  # an interrupt too
        shutil.rmtree(folder)
        raise
    return size


def split(shapes: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """File name -> its tensors, in order; a new file begins where the next tensor does not fit, as in transformers."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = itemsize * math.prod(shape)
        if shards[-1] and used + size > shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str, seed: int) -> None:
    kind, stored = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    offset = 0
    for name, shape in shapes.items():
        size = stored.itemsize * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the weights to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            if name.endswith("inv_freq"):
                steps = np.arange(shape[0]) / shape[0]
                file.write((10000.0**-steps).astype(stored).tobytes())
            else:
                write_normal(file, name, math.prod(shape), dtype, seed)


def write_normal(file: BinaryIO, name: str, count: int, dtype: str, seed: int) -> None:
    is_norm = "norm" in name and name.endswith(".weight")
    table = normal_table(1.0 if is_norm else 0.0, dtype)
    random = np.random.PCG64([seed, *name.encode()])
    values = np.empty(min(count, CHUNK), table.dtype)
    for start in range(0, count, CHUNK):
        part = values[: count - start]
        bits = random.random_raw(-(-part.size // 4)).view(np.uint16)[: part.size]
        np.take(table, bits, out=part, mode="clip")  # never out of bounds; "raise" would copy `out` first
        file.write(part.data)


@cache
def normal_table(mean: float, dtype: str) -> npt.NDArray[Any]:
    """The 65,536 equally likely weights, as raw integers: copying those is faster than copying bfloat16."""
    normal = NormalDist(mean, DEVIATION)
    quantiles = np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)])
    stored = quantiles.astype(DTYPES[dtype][1])
    return stored.view(f"<u{stored.itemsize}")


def write_tokenizer(folder: Path, named: int = 0, more: Mapping[int, str] | None = None) -> None:
    """A byte-level tokenizer, so that a bundle made from this can be run.

    named: ids below this have a text. more: special tokens of these ids, which are below that.
    """
    known, more = (*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL), more or {}
    others = (more.get(i, f"<{i}>") for i in range(len(known), named))
    names = (*known, *others) if named else known[: -len(SPECIAL)]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (*SPECIAL, *(more[i] for i in sorted(more) if i < named))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
