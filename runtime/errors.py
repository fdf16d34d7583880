"""Every error that edgeglm raises on purpose, in one tree.

    EdgeError                    anything below; the command line prints it as one line and exits with 1 or 2
    ├── CheckpointError          the source could not be read as a supported checkpoint
    │   ├── ConfigError          a config value is missing, mistyped or unsupported
    │   └── TensorError          a tensor is missing, unexpected, misshapen or truncated
    ├── RecipeError              an unknown recipe, or one that cannot be applied
    ├── CalibrationError         text to calibrate or to measure with that cannot be used
    ├── ProfileError             a profile that cannot be read, or two that cannot be compared
    ├── OutputError              the output folder exists, cannot be written, or the disk is full
    ├── BundleError              a bundle is incomplete, altered, or of another schema
    │   └── VerificationError    a bundle opens, but computes something other than it should
    │       └── SelfTestError    likewise, found when it was loaded: a device, driver or engine computes wrongly
    ├── UpdateError              a release that may not be installed, or cannot be fetched
    ├── MissingPackageError      a package that one of the extras installs is missing
    ├── DeviceError              an engine or device that is missing or cannot run the model
    │   └── LintError            a bundle that a device is known to crash on, or to compute wrongly
    ├── MemoryLimitError         more memory is needed than there is, or than may be taken
    ├── ClusterError             a Ray cluster that cannot be joined, or that lacks what a command needs
    ├── ToolError                a tool that cannot be offered here, or whose program does not start
    ├── ClosedError              a model that is used after it was closed
    ├── TokenizerError           a tokenizer or chat template that cannot be used
    ├── CacheError               a KV cache used against its rules
    │   └── SnapshotError        a prefix file that is damaged, or made for something else
    ├── DraftStoreError          a draft store that is damaged, or another tokenizer's
    └── GenerationError          a request that cannot be run
        ├── SettingsError        a setting of the wrong type or outside its range
        ├── PromptError          an empty prompt, or messages that the template refuses
        │   ├── DocumentError    a file that is not a document, or one without text
        │   └── PictureError     a picture that cannot be read, or a model that cannot see it
        ├── ContextLengthError   prompt and answer can never fit into the context
        └── CacheFullError       the KV cache has no room now; other requests hold it

A message says what was given, what was expected, and what to do about it.
"""

from __future__ import annotations

import copy
import re

EXPORT_AGAIN = "export the bundle again"  # advice for a bundle with unexpected content
COPY_AGAIN = "copy the bundle again or export it again"  # advice for one that was changed or is incomplete
_SHOWN = 80  # characters of a value that a message quotes
_NAME = 100  # characters of a name from a file
_WORDS = 200  # characters of a message from another program or a template
# Lines of a library's message that say where it was raised, but not what is wrong.
_POSITIONS = ("Exception from", "Check ")
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : ")


class EdgeError(Exception):
    """Base of every error raised on purpose."""


class CheckpointError(EdgeError):
    """The source could not be read as a supported checkpoint."""


class ConfigError(CheckpointError):
    """A config value is missing, has the wrong type, or is not supported."""


class TensorError(CheckpointError):
    """A tensor is missing, unexpected, misshapen or truncated."""


class RecipeError(EdgeError):
    """The recipe is unknown or cannot be applied."""


class CalibrationError(EdgeError):
    """Text to calibrate or to measure with is unreadable, too short, or the same for both."""


class ProfileError(EdgeError):
    """A profile cannot be read, or the measurements of two cannot be compared."""


class OutputError(EdgeError):
    """The output folder exists, cannot be written, or the disk is full."""


class BundleError(EdgeError):
    """A bundle is incomplete, altered, or written with another schema."""


class VerificationError(BundleError):
    """A bundle opens, but its engine computes something other than it should."""


class SelfTestError(VerificationError):
    """An engine or its device computes something other than the export recorded, as was found when it was loaded."""


class UpdateError(EdgeError):
    """A release of a bundle is unsigned, earlier than what is here, failed before, or cannot be fetched."""


class MissingPackageError(EdgeError):
    """A package that one of the extras installs is missing."""


class DeviceError(EdgeError):
    """The engine or device is missing, or cannot run this model."""


class LintError(DeviceError):
    """A rule with a source says that the device would crash on this bundle, or compute garbage without a word."""


class MemoryLimitError(EdgeError):
    """A model, or an export, needs more memory than there is, or than it may take."""


class ClusterError(EdgeError):
    """A Ray cluster cannot be joined or started, or lacks what is needed of it."""


class ToolError(EdgeError):
    """A tool cannot be offered on this machine, or the program that it runs does not start."""


class ClosedError(EdgeError):
    """The model was closed and cannot be used any more."""


class TokenizerError(EdgeError):
    """A tokenizer or chat template that cannot be used."""


class CacheError(EdgeError):
    """The KV cache was used against its rules, or a prefix file cannot be used."""


class SnapshotError(CacheError):
    """A prefix file is truncated, altered, or was made by another model, engine or setting."""


class DraftStoreError(EdgeError):
    """A draft store is truncated, altered, or belongs to another tokenizer."""


class GenerationError(EdgeError):
    """A request that cannot be run.

    param: the path of the wrong value in the request, like "messages[1].content"; None if it is not known.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class SettingsError(GenerationError):
    """A setting has the wrong type or is outside its range."""


class PromptError(GenerationError):
    """The prompt is empty, or the chat template refused the messages."""


class DocumentError(PromptError):
    """A document is unreadable, damaged, encrypted, without text, or of an unknown format."""


class PictureError(PromptError):
    """A picture cannot be read, or the model cannot see it."""


class ContextLengthError(GenerationError):
    """Prompt and answer can never fit into the context; waiting does not help."""


class CacheFullError(GenerationError):
    """The KV cache has no room now: other requests hold it. The same request can run later."""


def shown(value: object) -> str:
    """Return a value as a message quotes it: on one line, short, and printable."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except Exception:  # from any __repr__; an int of over 4,300 digits raises ValueError
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split()) if "\n" in text else text
    return (text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…").encode("utf-8", "backslashreplace").decode()


def telling_line(said: BaseException | str, *, last: bool = False) -> str:
    """Return the one line of a library's error, or of a process's output, that says what is wrong.

    That is the first line, or one marked "error: ", as compilers write it. last: prefer the last line, for a traceback
    and for libraries that lead up to the point. For an exception without a message, it is the name of its class.
    """
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    marked = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if marked and not last:
        return marked[0]
    lines = [line for line in lines if not line.startswith(_POSITIONS)] or lines
    if not lines:
        return type(said).__name__ if isinstance(said, BaseException) else "no reason given"
    return _CODE.sub("", lines[-1 if last else 0])


def in_words(said: object, most: int = _WORDS) -> str:
    """Return the words of another program as part of a message: on one line, short, and printable."""
    text = str(said)[: 10 * most]
    words = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text).split())
    return words if len(words) <= most else f"{words[: most - 1]}…"


def not_expected(path: str, value: object, expected: str) -> PromptError:
    """Return the error for a wrong value in a request, at a path like "messages[1].content"."""
    return PromptError(f"{path} is {shown(value)}, expected {expected}", param=path)


def own_error(error: BaseException) -> EdgeError:
    """Return an error for the request that met it: a copy of one of ours, or a GenerationError about any other."""
    if isinstance(error, EdgeError):
        return copy.copy(error)
    found = GenerationError(f"this answer failed: {type(error).__name__}: {plain(telling_line(error), _SHOWN)}")
    found.__cause__ = error
    return found


def plain(text: str, most: int = _NAME) -> str:
    """Return a name or line from elsewhere for a message: unchanged, unless it is long or not printable."""
    return text if text.isprintable() and len(text) <= most else shown(text)
