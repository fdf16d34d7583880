"""The Python face."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import edge
from edge.export.pipeline import export
from edge.runtime import errors
from edge.runtime.errors import EdgeError, SettingsError
from edge.runtime.extras import install_command


def test_every_public_name_is_there() -> None:
    for name in edge.__all__:
        assert getattr(edge, name) is not None
    assert dir(edge) == sorted(edge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'exprot'"):
        edge.exprot  # type: ignore[attr-defined]  # noqa: B018


def test_readme_example(tiny_checkpoint: Path, tmp_path: Path) -> None:
    edge.export(tiny_checkpoint, tmp_path / "out", recipe="int8-sym")
    llm = edge.load(tmp_path / "out", device="CPU")
    messages = [{"role": "user", "content": "Hello"}]
    chunks = list(llm.chat(messages, max_new_tokens=4))
    assert all(isinstance(chunk, edge.Chunk) for chunk in chunks)
    assert llm.generate("Hello", max_new_tokens=4).text() is not None


@pytest.mark.parametrize("first", ["edge.export", "edge.export.pipeline", "edge.runtime"])
def test_export_is_callable_whatever_was_imported_first(first: str) -> None:
    script = f"import {first}, edge; from edge.export import pipeline; assert callable(edge.export); pipeline.export"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_unknown_engine_setting() -> None:
    """Said before anything is opened."""
    message = r"unknown setting 'n_threads', did you mean 'threads'\? Known are compiled_folder, device, "
    with pytest.raises(SettingsError, match=message):
        edge.load("no bundle", n_threads=2)  # type: ignore[call-arg]  # what it refuses


ERRORS = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, EdgeError)]


def test_all_errors_are_drawn_in_the_tree() -> None:
    assert len(ERRORS) > 10
    for cls in ERRORS:
        assert cls.__name__ in (errors.__doc__ or "")


def test_all_errors_are_public() -> None:
    for cls in ERRORS:
        assert cls.__name__ in edge.__all__
        assert getattr(edge, cls.__name__) is cls
    assert len(set(edge.__all__)) == len(edge.__all__)


def test_an_editor_offers_public_names_only() -> None:
    """Some list what stands in the module; an interpreter lists dir()."""
    modules = {name for name, value in vars(edge).items() if isinstance(value, ModuleType)}
    assert {name for name in vars(edge) if not name.startswith("_")} - modules <= set(edge.__all__)
    ours = {
        "api",
        "batch",
        "cli",
        "commands",
        "defaults",
        "documents",
        "export",
        "kiosk",
        "models",
        "profiles",
        "runtime",
        "server",
        "terminal",
        "tools",
        "update",
        "web",
        "wire",
    }
    assert {name for name in modules if not name.startswith("_")} <= ours


def test_version_is_that_of_the_distribution() -> None:
    assert edge.__version__ == metadata.version("edgeglm")


def test_export_has_the_signature_of_the_function() -> None:
    assert inspect.signature(edge.export) == inspect.signature(export)
    shown = pydoc.plain(pydoc.render_doc(edge.export))
    assert "edge.export - Export a checkpoint to a bundle" in shown
    for name in inspect.signature(export).parameters:
        assert re.search(rf"^ *{name} {{2,}}\S", shown, re.MULTILINE), f"{name} is explained"


@pytest.mark.parametrize("missing", ["openvino", "threadpoolctl", "nncf"])
def test_export_without_its_packages(missing: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Whether they are missing at the import of the pipeline or in the middle of it."""
    script = f"""
import sys
sys.modules[{missing!r}] = None
import edge
try:
    edge.export({str(tiny_checkpoint)!r}, {str(tmp_path / "out")!r})
except edge.EdgeError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    said = f"MissingPackageError {missing} is not installed; {install_command('export')}\n"
    assert done.stdout == said, done.stderr
    assert not list(tmp_path.iterdir())


def test_load_without_the_engine_that_is_asked_for(tiny_bundle: Path) -> None:
    script = (
        "import sys; sys.modules['openvino'] = None; import edge\n"
        f"try: edge.load({str(tiny_bundle)!r}, engine='openvino')\n"
        "except edge.EdgeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert install_command("openvino") in done.stdout, done.stderr


def test_the_library_is_silent_by_default() -> None:
    script = "import edge, logging; logging.getLogger('edge.runtime.llm').error('something')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
