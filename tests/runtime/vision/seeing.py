"""A model that sees pictures, without a tower or weights: rows are drawn from the pixels, and runs are counted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np

from edge.runtime.arrays import Hidden
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import STOP_IDS, TEMPLATE, Script, ScriptedEngine, noise, tokenizer_json
from edge.runtime.errors import PictureError
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.vision.geometry import grid_of, num_rows
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.progress import OnPicture, PictureProgress
from edge.runtime.vision.spec import TowerKind, VisionSpec
from tests.runtime.vision.towers import spec_of

OWN = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>")
BEGIN_ID, IMAGE_ID, END_ID = 261, 262, 263
PARTS_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for item in message.content %}"
    "{% if item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>{% else %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def spec_with_ids(kind: TowerKind, **changes: Any) -> VisionSpec:
    """The record of a tiny tower; GLM-4V's placeholder is a token that ends answers."""
    placeholder = 260 if kind == "eva" else IMAGE_ID
    ids: dict[str, Any] = {"begin_id": BEGIN_ID, "placeholder_id": placeholder, "end_id": END_ID, "out_size": 8}
    return replace(spec_of(kind), **{**ids, "max_pictures": 1 if kind == "eva" else 0, **changes})


class FakePictures:
    """Rows without a tower."""

    def __init__(self, spec: VisionSpec) -> None:
        self.spec = spec
        self.runs: list[Picture] = []
        self.memory: dict[str, Hidden] = {}
        self.keeps = True
        self.closed = False

    def open(self, part: ImagePart) -> Picture:
        """A picture of 16 x 24 pixels for each content of a file."""
        data = part.data if part.path is None else part.path.read_bytes()
        if data == b"broken":
            raise PictureError("this is no picture")
        assert data is not None
        seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "little")
        return Picture.of(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8))

    def key(self, picture: Picture) -> bytes:
        return hashlib.sha256(b"tower " + picture.sha256.encode()).digest()

    def kept(self, picture: Picture) -> Hidden | None:
        return self.memory.get(picture.sha256)

    def rows(self, picture: Picture, on_progress: OnPicture | None = None) -> Hidden:
        if (found := self.kept(picture)) is not None:
            return found
        self.runs.append(picture)
        if on_progress is not None:
            for done in range(self.spec.num_layers + 1):
                on_progress(PictureProgress(done, self.spec.num_layers, None))
        count = num_rows(grid_of(picture.width, picture.height, self.spec), self.spec)
        rows = np.random.default_rng(int(picture.sha256[:8], 16)).standard_normal(
            (count, self.spec.out_size), np.float32
        )
        if self.keeps:
            self.memory[picture.sha256] = rows
        return rows

    def close(self) -> None:
        self.closed = True


def tokenizer_with_pictures() -> Tokenizer:
    content = json.loads(tokenizer_json())
    model = content["added_tokens"][-1]
    content["added_tokens"] += [model | {"id": BEGIN_ID + i, "content": token} for i, token in enumerate(OWN)]
    return Tokenizer.from_text(json.dumps(content))


def seeing_llm(
    pictures: FakePictures, script: Script | None = None, template: str | None = None, **changes: Any
) -> LLM:
    """A scripted model with these pictures; its template takes parts unless the tower is GLM-4V's."""
    tokenizer = tokenizer_with_pictures()
    text_alone = pictures.spec.kind == "eva"
    source = template if template is not None else TEMPLATE if text_alone else PARTS_TEMPLATE
    rows = 1 if text_alone else 3
    return LLM.from_engine(
        ScriptedEngine(
            script or noise(vocab_size=tokenizer.num_tokens),
            tokenizer.num_tokens,
            **{"embedding_size": pictures.spec.out_size, "position_rows": rows, **changes},
        ),
        tokenizer,
        template=ChatTemplate(source, tokenizer.markup),
        stop_ids=STOP_IDS,
        pictures=pictures,
    )
