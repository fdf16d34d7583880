"""A picture and a question, from pixels to the ids of the answer, against independent references on both engines.

GLM-4V: its tower by its definition (`tests.vision_reference`), then transformers' text model with embeddings and
positions of our own counting. GLM-4.1V: transformers' whole model, image processor included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers import Glm4vForConditionalGeneration, Glm4vImageProcessor

from edge.export.pipeline import export
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.prompt import Prompt
from edge.runtime.session import ChatSession
from edge.runtime.settings import EngineSettings
from edge.runtime.tokenizer import byte_of_character
from edge.runtime.vision.pictures import Pictures
from edge.runtime.vision.progress import PictureProgress
from tests import tiny_pictures
from tests.conftest import ENGINES, EXACT
from tests.tiny_pictures import BEGIN_ID, END_ID, IMAGE_SIZE, MEAN, PATCH, PLACEHOLDER_ID, STD, TinyTower, tower_tensors
from tests.vision_reference import eva_rows
from tests.vision_tensors import eva_spec

NEW = 10  # tokens of an answer
NUM_TOKENS = 273  # the rows of the embedding behind these have no token, and are never chosen
WORDS = "What is in this picture?"
GMASK_SOP = (271, 272)
Logits = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Oracle:
    """A bundle, and what its model computes; `logits` gives those of all rows of a prompt and of ids behind it."""

    kind: str
    bundle: Path
    ids: Callable[[tuple[Pixels, ...]], list[int]]  # of the whole prompt, one for each row
    logits: Callable[[tuple[Pixels, ...], list[int], torch.dtype], Logits]
    rows: int

    def greedy(self, pictures: tuple[Pixels, ...]) -> list[int]:
        answer: list[int] = []
        for _ in range(NEW):
            answer.append(int(self.logits(pictures, answer, torch.float64)[-1, :NUM_TOKENS].argmax()))
        return answer


def picture_of(seed: int, height: int = 70, width: int = 90) -> Pixels:
    """Colours that change slowly, so that a resized picture still shows something."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


CAT, DOG = picture_of(1), picture_of(2)
WIDE = picture_of(3, 60, 150)  # another grid, where a model has several


def asking(*pictures: Pixels, words: str = WORDS) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": words}]}]


def encoded(text: str) -> list[int]:
    """The tiny tokenizer has a token for each of GPT-2's stand-ins for bytes, in the order of these characters."""
    stand_ins = sorted(byte_of_character())
    of_byte = {byte: stand_ins.index(character) for character, byte in byte_of_character().items()}
    return [of_byte[byte] for byte in text.encode()]


def oracle_of_4v(folder: Path) -> Oracle:
    model = tiny_pictures.make_4v(folder / "4v")
    export(folder / "4v", folder / "4v-bundle", "fp32", pictures="fp32")
    tower = TinyTower()
    side = IMAGE_SIZE // PATCH
    spec = eva_spec(
        hidden_size=tower.hidden_size, num_heads=tower.num_heads, intermediate_size=tower.intermediate_size,
        num_layers=tower.num_layers, patch_size=PATCH, image_size=IMAGE_SIZE,
        out_size=model.config.hidden_size, merger_size=model.config.intermediate_size,
    )  # fmt: skip
    tensors = tower_tensors(tower, spec.out_size, spec.merger_size)
    patches = (side // 2) ** 2
    before, behind = [257, *encoded("\n")], [*encoded(WORDS), 259]

    def ids(_pictures: tuple[Pixels, ...]) -> list[int]:
        return [*before, BEGIN_ID, *[256] * patches, END_ID, *behind]

    @torch.no_grad()
    def logits(pictures: tuple[Pixels, ...], answer: list[int], dtype: torch.dtype) -> Logits:
        (picture,) = pictures
        small = Image.fromarray(picture).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        scaled = (torch.tensor(np.asarray(small)).to(dtype) / 255 - torch.tensor(MEAN, dtype=dtype)) / torch.tensor(
            STD, dtype=dtype
        )
        rows = eva_rows({name: t.to(dtype) for name, t in tensors.items()}, scaled.permute(2, 0, 1), spec)
        text = model.to(dtype)
        embedded = text.get_input_embeddings()(torch.tensor(ids(pictures) + answer))
        begin = len(before)
        embedded[begin : begin + len(rows)] = rows
        positions = [*range(begin), begin, *[begin + 1] * patches, begin + 2]
        positions += range(begin + 3, begin + 3 + len(behind) + len(answer))
        found = text(  # without a mask, it takes equal positions for several texts in one row
            inputs_embeds=embedded[None],
            position_ids=torch.tensor([positions]),
            attention_mask=torch.ones(1, len(positions), dtype=torch.int64),
        ).logits[0]
        result: Logits = found.double().numpy()
        return result

    return Oracle("eva", folder / "4v-bundle", ids, logits, patches + 2)


def oracle_of_glm4v(folder: Path) -> Oracle:
    model: Glm4vForConditionalGeneration = tiny_pictures.make_glm4v(folder / "glm4v")
    export(folder / "glm4v", folder / "glm4v-bundle", "fp32", pictures="fp32")
    processor = Glm4vImageProcessor.from_pretrained(folder / "glm4v")
    behind = [*encoded(WORDS), 259]

    def seen(pictures: tuple[Pixels, ...]) -> Any:  # of transformers
        return processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")

    def ids(pictures: tuple[Pixels, ...]) -> list[int]:
        found = [*GMASK_SOP, 257, *encoded("\n")]
        for grid in seen(pictures)["image_grid_thw"]:
            found += [BEGIN_ID, *[PLACEHOLDER_ID] * (int(grid.prod()) // 4), END_ID]
        return found + behind

    @torch.no_grad()
    def logits(pictures: tuple[Pixels, ...], answer: list[int], dtype: torch.dtype) -> Logits:
        inputs, whole = seen(pictures), model.to(dtype)
        every = torch.tensor([ids(pictures) + answer])
        found = whole(
            input_ids=every,
            attention_mask=torch.ones_like(every),
            pixel_values=inputs["pixel_values"].to(dtype),
            image_grid_thw=inputs["image_grid_thw"],
            use_cache=False,
        ).logits[0]
        result: Logits = found.double().numpy()
        return result

    rows = int(seen((CAT,))["image_grid_thw"].prod()) // 4
    return Oracle("glm4v", folder / "glm4v-bundle", ids, logits, rows)


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    folder = tmp_path_factory.mktemp("pictures")
    return {"eva": oracle_of_4v(folder), "glm4v": oracle_of_glm4v(folder)}


@pytest.fixture(params=["eva", "glm4v"])
def oracle(request: pytest.FixtureRequest, oracles: dict[str, Oracle]) -> Oracle:
    return oracles[request.param]


def settings(engine: str, folder: Path, **changes: Any) -> EngineSettings:
    own = {"self_test": "off", "kept_pictures_folder": folder, "reproducible": True}
    return replace(EXACT[engine], **{**own, **changes})


@pytest.fixture(params=ENGINES)
def llm(request: pytest.FixtureRequest, oracle: Oracle, tmp_path: Path) -> Iterator[LLM]:
    with LLM(oracle.bundle, settings(request.param, tmp_path / "kept")) as found:
        yield found


def computed(llm: LLM, prompt: Prompt) -> npt.NDArray[np.float32]:
    """The logits of all rows, in two parts of which the second begins inside the picture."""

    def run() -> npt.NDArray[np.float32]:
        sequence, count, found = CacheSequence(llm.engine.pool), len(prompt.ids), []
        for begin, end in ((0, 6), (6, count)):
            ids = np.array(prompt.ids[begin:end], np.int64)
            found.append(llm.engine.forward(ids, sequence, np.arange(ids.size), prompt.inputs(begin, end)).copy())
        sequence.free()
        return np.concatenate(found)

    return llm._runner.between_steps(run)


Expected = list[tuple[tuple[Pixels, ...], Logits, float, list[int]]]


@pytest.fixture(scope="module")
def expected(oracles: dict[str, Oracle]) -> dict[str, Expected]:
    """For some pictures: the logits of all rows of the prompt, how far float32 is from them, and the answer."""

    def of(oracle: Oracle, pictures: tuple[Pixels, ...]) -> tuple[tuple[Pixels, ...], Logits, float, list[int]]:
        logits = oracle.logits(pictures, [], torch.float64)
        rounding = float(np.abs(oracle.logits(pictures, [], torch.float32) - logits).max())
        return pictures, logits, rounding, oracle.greedy(pictures)

    asked: dict[str, list[tuple[Pixels, ...]]] = {"eva": [(CAT,), (DOG,)], "glm4v": [(CAT,), (DOG, WIDE)]}
    return {kind: [of(oracles[kind], pictures) for pictures in several] for kind, several in asked.items()}


def test_logits_and_greedy_ids_are_the_references(llm: LLM, oracle: Oracle, expected: dict[str, Expected]) -> None:
    for pictures, logits, rounding, answer in expected[oracle.kind]:
        prompt = llm._prompts.of(asking(*pictures), llm._settings({}))
        assert prompt.ids == oracle.ids(pictures) == llm.encode_chat(asking(*pictures))
        found = computed(llm, prompt)[:, : logits.shape[1]]
        bound = 8 * rounding  # ours are the same float32 operations in another order
        assert np.abs(found - logits).max() <= bound
        by_row = Prompt(prompt.ids, prompt.keys, np.arange(len(prompt.ids)), prompt.embeddings)
        wrong = computed(llm, by_row)[:, : logits.shape[1]]
        assert np.abs(wrong - logits).max() > 100 * bound, "positions counted row by row are told apart"
        options: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW, "ignore_stop_ids": True}
        assert list(llm.chat(asking(*pictures), **options).answer().token_ids) == answer


def telling(llm: LLM, picture: Pixels, **more: Any) -> tuple[Any, int]:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": NEW, "ignore_stop_ids": True, "logprobs": 5}
    answer = llm.chat(asking(picture), **options, **more).answer()
    assert answer.stats is not None
    return (answer.token_ids, answer.logprobs), answer.stats.cached_tokens


def without_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the tower runs")

    monkeypatch.setattr(Pictures, "_opened_tower", refuse)


def test_a_picture_is_looked_at_once_and_never_taken_for_another(
    llm: LLM, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog, _ = telling(llm, DOG)
    llm.clear_cache()
    news: list[PictureProgress] = []
    cat, cached = telling(llm, CAT, on_picture=news.append)
    assert cached == 0
    assert news[-1].done == news[-1].total == 3
    other, cached = telling(llm, DOG)
    assert cached < 6, "what comes before the pictures"
    assert other == dog != cat
    without_tower(monkeypatch)
    again, cached = telling(llm, CAT)
    assert again == cat
    assert cached >= oracle.rows
    llm.clear_cache()
    kept: list[PictureProgress] = []
    assert telling(llm, CAT, on_picture=kept.append) == (cat, 0)
    assert [one.kept for one in kept] == [True]


def test_a_kiosks_picture_is_read_from_its_file_without_tower_or_prefill(
    llm: LLM, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kiosk.prefix"
    begin = [{"role": "user", "content": [{"type": "image", "image": CAT}]}]
    cat, _ = telling(llm, CAT)
    dog, _ = telling(llm, DOG)
    saved = llm.prefixes.save(begin, file)
    assert saved.num_tokens > oracle.rows
    name = llm.engine.info.name
    with LLM(oracle.bundle, settings(name, tmp_path / "elsewhere")) as later:
        with monkeypatch.context() as patch:
            without_tower(patch)
            assert later.prefixes.use(file, messages=begin).note == ""
            assert telling(later, CAT) == (cat, saved.num_tokens)
        other, cached = telling(later, DOG)
        assert other == dog
        assert cached < 6


def test_a_conversation_goes_on_behind_its_picture(llm: LLM, oracle: Oracle) -> None:
    session = ChatSession(llm)
    list(session.send(asking(CAT)[0]["content"], temperature=0, max_new_tokens=4))
    count = session.num_tokens
    *_, last = session.send("Why?", temperature=0, max_new_tokens=4)
    assert last.stats is not None
    assert count > oracle.rows
    assert last.stats.cached_tokens >= oracle.rows
