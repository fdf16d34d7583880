"""Pictures in the bodies of requests, as parts of the runtime's messages.

In: parts of messages as OpenAI's two protocols have them, or a base64 text. Out: `ImagePart`s with the bytes of a file
each, and where each came from. Knows nothing about decoding: what the bytes are, whatever their media type says, the
runtime finds out.

A picture comes inside the body. Links are refused, for a server that fetches what a client names would look into
networks that the client cannot see; so are paths, which would name files of the server. The runtime's own parts, which
may have a path, cannot be sent: of mappings that claim to be pictures, nothing but the protocols' forms is taken.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from edge.runtime.errors import MissingPackageError, PictureError, in_words, shown
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart
from edge.wire.answers import JsonBody
from edge.wire.errors import Code, RequestError

MAX_PICTURES = 64  # in one request, whatever the model takes
_TEXTS = ("text", "input_text", "output_text", "refusal")
_OTHERS = ("image", "audio", "input_audio", "video", "video_url", "file", "input_file")
_KINDS = ("image_url", "input_image")
_WITHOUT_EFFECT = ("type", "cache_control", "detail", "id", "uuid")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DATA = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
_ADVICE = "send the picture itself, as a URL like data:image/png;base64,..."


@dataclass(frozen=True, slots=True)
class AnthropicPicture:
    """A block of Anthropic's protocol inside the content of a chat, for which JSON has no form."""

    source: object


@dataclass(frozen=True, slots=True)
class WirePicture:
    """A picture of a request."""

    part: ImagePart
    path: str  # of its data in the body, for errors

    def open(self, llm: LLM) -> None:
        """Decode it, for later use. Raises RequestError for what is not a picture that the model can see."""
        assert llm.pictures is not None, "no picture is found for a model that sees none"
        try:
            llm.pictures.open(self.part)
        except PictureError as error:
            raise RequestError(f"{self.path}: {error}", code="invalid_value", param=self.path) from error
        except MissingPackageError as error:
            raise RequestError(str(error), code="unsupported_content", param=self.path) from error

    def is_kept(self, llm: LLM) -> bool:
        """Whether the model has looked at it already."""
        return llm.pictures is not None and llm.pictures.kept(llm.pictures.open(self.part)) is not None


def with_pictures(messages: Sequence[Any], *, sees: bool) -> tuple[list[Any], tuple[WirePicture, ...]]:  # Any: JSON
    """Return messages with `ImagePart`s in them, and these. sees: whether the model takes any. Raises RequestError."""
    found: list[WirePicture] = []
    taken: list[Any] = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            parts = [_part(part, f"messages[{i}].content[{j}]", found, sees=sees) for j, part in enumerate(content)]
            message = {**message, "content": parts}  # noqa: PLW2901  # the client's own stays as it is
        taken.append(message)
    return taken, tuple(found)


def from_base64(data: object, path: str) -> ImagePart:
    """Return a picture from the base64 of a file. Raises RequestError."""
    if not isinstance(data, str):
        code: Code = "missing_required_parameter" if data is None else "invalid_type"
        raise RequestError(f"{path} is {shown(data)}, expected the base64 of a picture", code=code, param=path)
    try:
        raw = base64.b64decode(data.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        why = "a character that it does not have" if isinstance(error, UnicodeEncodeError) else in_words(error)
        raise RequestError(
            f"{path} is not base64 ({why}); encode the file's bytes and send them without line ends",
            code="invalid_value",
            param=path,
        ) from error
    if not raw:
        raise RequestError(f"{path} is empty, expected the base64 of a picture", code="invalid_value", param=path)
    return ImagePart(data=raw)


def _part(part: Any, path: str, found: list[WirePicture], *, sees: bool) -> Any:  # Any: JSON
    if isinstance(part, AnthropicPicture):
        if not sees:
            raise _unseen("image", path, sees=sees)
        return _added(*_from_source(part.source, path), found)
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind in _TEXTS:
        return part  # the runtime says what is wrong, if anything is: without a type nothing is a picture
    if kind in _OTHERS or (kind in _KINDS and not sees):
        raise _unseen(kind, path, sees=sees)
    if kind not in _KINDS:
        raise RequestError(
            f"{path}.type is {shown(kind)}, expected 'text'{' or image_url' * sees}",
            code="invalid_value",
            param=f"{path}.type",
        )
    return _added(*_from_url(part, kind, path), found)


def _unseen(kind: str, path: str, *, sees: bool) -> RequestError:
    told = "this model reads text and pictures" if sees else "this model reads text and nothing else"
    if sees and kind == "image":
        told = f"a picture is of type 'image_url' here; {_ADVICE}"
    return RequestError(f"{path} is of type {kind!r}; {told}", code="unsupported_content", param=path)


def _added(part: ImagePart, path: str, found: list[WirePicture]) -> ImagePart:
    if len(found) == MAX_PICTURES:
        raise RequestError(
            f"{path} is picture {MAX_PICTURES + 1}, and a request may have {MAX_PICTURES}; send fewer",
            code="invalid_value",
            param=path,
        )
    found.append(WirePicture(part, path))
    return part


def _from_url(part: JsonBody, kind: str, path: str) -> tuple[ImagePart, str]:
    """Return a part as the runtime's, and the path of its URL."""
    if part.get("file_id") is not None:
        raise RequestError(
            f"{path}.file_id names a stored file, and nothing is stored here; {_ADVICE}",
            code="unsupported_content",
            param=f"{path}.file_id",
        )
    _check_keys(part, "image_url", path)
    given, path = part.get("image_url"), f"{path}.image_url"
    if kind == "image_url" and isinstance(given, Mapping):
        _check_keys(given, "url", path)
        given, path = given.get("url"), f"{path}.url"
    if given is None:
        raise RequestError(f"{path} is missing; {_ADVICE}", code="missing_required_parameter", param=path)
    if not isinstance(given, str):
        raise RequestError(f"{path} is {shown(given)}, expected a URL; {_ADVICE}", code="invalid_type", param=path)
    return from_base64(_base64_of(given, path), path), path


def _base64_of(url: str, path: str) -> str:
    """Return what a data URL holds. Raises RequestError for any other."""
    if begin := _DATA.match(url):
        data = url[begin.end() :]
        return unquote_to_bytes(data).decode("latin-1") if "%" in data else data
    scheme = _SCHEME.match(url)
    name = scheme[1].lower() if scheme else ""
    if name in ("http", "https"):
        why = "is a link, and this server fetches nothing from other hosts"
    elif name == "data":
        raise RequestError(
            f"{path} is {shown(url)}, a data URL without base64; {_ADVICE}", code="invalid_value", param=path
        )
    elif url:
        why = f"is {shown(url)}, and no file of the server can be sent"
    else:
        raise RequestError(f"{path} is empty; {_ADVICE}", code="invalid_value", param=path)
    raise RequestError(f"{path} {why}; {_ADVICE}", code="unsupported_content", param=path)


def _check_keys(given: Mapping[str, Any], key: str, path: str) -> None:  # Any: JSON
    for name, value in given.items():
        if value is not None and name != key and name not in _WITHOUT_EFFECT:
            raise _unknown_key(name, path, f"{key}, detail")


def _unknown_key(name: str, path: str, known: str) -> RequestError:
    return RequestError(
        f"{path} has an unknown key {shown(name)}; expected {known}",
        code="unknown_parameter",
        param=f"{path}.{in_words(name, 100)}",
    )


def _from_source(source: object, path: str) -> tuple[ImagePart, str]:
    """Return a block of Anthropic's as the runtime's part, and the path of its data."""
    path = f"{path}.source"
    if not isinstance(source, Mapping):
        code: Code = "missing_required_parameter" if source is None else "invalid_type"
        raise RequestError(f"{path} is {shown(source)}, expected an object", code=code, param=path)
    kind = source.get("type")
    if kind != "base64":
        why = "a URL, and this server fetches nothing from other hosts" if kind == "url" else shown(kind)
        raise RequestError(
            f"{path}.type is {why}; send the picture itself, with type 'base64'",
            code="missing_required_parameter" if kind is None else "unsupported_content",
            param=f"{path}.type",
        )
    for name, value in source.items():
        if value is not None and name not in ("type", "media_type", "data"):
            raise _unknown_key(name, path, "type, media_type, data")
    return from_base64(source.get("data"), f"{path}.data"), f"{path}.data"
