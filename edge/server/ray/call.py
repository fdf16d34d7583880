"""What a front and a replica say to each other about one answer.

In: nothing. Out: frozen records that can be pickled. Knows nothing about Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.runtime.chunk import Chunk
from edge.runtime.engines.engine import EngineInfo
from edge.runtime.errors import EdgeError
from edge.runtime.scheduler import SchedulerStats
from edge.runtime.settings import GenerationSettings


@dataclass(frozen=True, slots=True)
class Call:
    """A prompt to answer. The router reads `key`, `avoid` and `at`, the replica the rest."""

    ids: tuple[int, ...]  # of the prompt, and of the answer as far as it is known
    num_answered: int  # those of the answer
    settings: GenerationSettings
    model: str  # sha256 of the manifest of the bundle whose tokenizer made the ids
    key: int | None  # of the conversation: equal ones belong to one replica; None: to the one that has the least to do
    avoid: frozenset[str] = frozenset()  # names of replicas that refused it or were lost with it
    at: str = ""  # the replica that has the same prompt already
    let_in: bool = False  # its request was: a further sample of it, or one whose replica was lost; it is never refused
    is_whole: bool = False  # nothing of the answer is told before its end


@dataclass(frozen=True, slots=True)
class Accepted:
    """The first piece of an answer: it is in the replica's queue."""

    replica: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The only piece: another replica may take it."""

    replica: str
    why: Literal["full", "other model", "leaving"]
    waiting: int = 0  # requests, if it is full


@dataclass(frozen=True, slots=True)
class Failed:
    """The last piece: what the request met, and would meet anywhere."""

    error: EdgeError


Piece = Accepted | Refused | Failed | Chunk


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A replica, and how it is right now."""

    replica: str
    node: str  # address of its machine
    model: str
    info: EngineInfo
    identity: dict[str, str]  # of its engine: what decides bits
    stats: SchedulerStats
    num_blocks: int
    num_free_blocks: int
    rss_bytes: int | None
    answered: int  # answers that ended
    prompt_tokens: int  # of all answers so far
    cached_tokens: int
    new_tokens: int
