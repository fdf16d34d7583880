"""Every place in the package that removes or replaces a file, and that none of them takes a stranger's.

The places are found in the source, so that a new one fails here until it names a test that puts a file of somebody else
there. Where the place is in a work folder, that is a test of the folder: it is never one that others put something in.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import edge

PACKAGE, TESTS = Path(edge.__file__).parent, Path(__file__).parent
OF_PATHS = {"unlink", "rmdir", "rename", "write_text", "write_bytes", "symlink_to", "hardlink_to"}
OF_MODULES = {  # functions that are only meant as these modules' own; others have methods of the same names
    "os": {"remove", "unlink", "rmdir", "removedirs", "rename", "renames", "replace", "truncate", "link", "symlink"},
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copytree"},
    "np": {"save", "savez", "savez_compressed", "memmap"},
    "ov": {"save_model", "serialize"},
    "tempfile": {"mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile"},
}
OURS = {"write_atomically", "write_durably", "remove_bundle", "remove_work"}  # whoever calls them names a path

# Why each place takes nothing of anybody else's: a test that tries it with a stranger's file there.
WORK = "export/test_output.py::test_something_else_in_place_of_the_work_folder_stays"  # all in it is ours
MOVES = "export/test_output.py::test_an_interrupt_at_any_move"  # with a stranger's file beside them
NAMED = "export/test_output.py::test_files_that_the_manifest_does_not_name_stay"
APPEARS = "export/test_output.py::test_what_appears_meanwhile_stays"
APPEARS_IN = "export/test_output.py::test_what_appears_in_an_empty_folder_stays"
BESIDE = "runtime/test_atomic.py::test_files_of_others_beside_it_stay"
LOCK = "runtime/test_locks.py::test_a_file_with_something_in_it_is_not_removed"
NEEDLE = "profiles/test_needle.py::test_files_of_others_stay"
REPORT = "profiles/test_report.py::test_files_of_others_stay"
SWEEP = "profiles/test_sweep.py::test_folders_of_others_are_refused"
BUNDLES = "profiles/test_sweep.py::test_only_bundles_of_sweeps_are_removed"
REFERENCE = "profiles/test_reference.py::test_files_of_others_stay"
REFERENCE_WORK = "profiles/test_reference.py::test_something_else_in_place_of_the_work_folder_stays"
PREFIX = "runtime/test_snapshot.py::test_files_of_others_stay"
KNOWN = "runtime/test_known_files.py::test_a_file_of_others_stays"
STORE_ASIDE = "runtime/test_draft_saver.py::test_files_of_others_stay"
STORE = "runtime/test_draft_store.py::test_files_of_others_stay"
HISTORY = "edge/chat/test_history.py::test_a_file_of_others_stays"
SAVED = "edge/chat/test_chat.py::test_files_of_others_stay"
BATCH = "edge/batch/test_batch.py::test_files_of_others_stay"
BATCH_OUT = "edge/batch/test_batch.py::test_an_output_that_appears_meanwhile_stays"
KIOSK = "edge/kiosk/test_folder.py::test_files_of_others_stay"
KIOSK_LATER = "edge/kiosk/test_folder.py::test_what_appears_meanwhile_stays"
KIOSK_LAST = "edge/kiosk/test_folder.py::test_what_appears_at_the_last_moment_stays"
SOCKET = "edge/server/test_serve_command.py::test_a_file_where_the_socket_should_be_stays"
SOCKET_AFTER = "edge/server/test_serve_command.py::test_what_takes_the_place_of_the_socket_stays"
FETCHED = "edge/server/ray/test_bundles.py::test_a_file_of_others_in_the_bundles_place_stays"
UPLOADED = "edge/server/test_answering.py::test_a_document_is_read_as_on_the_command_line"  # in a folder of its own
RECENT = "edge/models/test_recent.py::test_a_file_of_others_stays"
REMOVED = "edge/models/test_removal.py::test_files_of_others_stay"
COMPILED = "runtime/test_compiled.py::test_files_of_others_stay"
COMPILED_REMOVED = "runtime/test_compiled.py::test_those_of_a_bundle_are_removed_with_it"
DEVICE_REPORT = "runtime/test_device_report.py::test_a_file_of_others_stays"
KEPT_ROWS = "runtime/vision/test_kept_rows.py::test_files_of_others_stay"
UPDATE_WORK = "edge/update/test_install.py::test_what_is_in_the_work_folder_is_ours"
UPDATE = "edge/update/test_install.py::test_what_is_in_our_place_stays"
UPDATE_SLOT = "edge/update/test_install.py::test_files_of_others_stay"
UPDATE_LATER = "edge/update/test_install.py::test_what_appears_in_place_of_a_slot_stays"
UPDATE_LINK = "edge/update/test_install.py::test_a_file_in_place_of_the_new_link_stays"
UPDATE_STATE = "edge/update/test_install.py::test_a_file_in_the_place_of_what_is_remembered_is_told"
KEYS = "edge/update/test_keys.py::test_files_of_others_stay"
RELEASE = "edge/update/test_release.py::test_files_of_others_stay"
PLACES = {
    "update/fetch.py:_fetch_file:open": UPDATE_WORK,
    "update/fetch.py:_fetch_file:replace": UPDATE_WORK,
    "update/fetch.py:_linked:copyfile": UPDATE_WORK,
    "update/fetch.py:_linked:link": UPDATE_WORK,
    "update/fetch.py:_linked:open": UPDATE_WORK,
    "update/fetch.py:_linked:replace": UPDATE_WORK,
    "update/fetch.py:_linked:unlink": UPDATE_WORK,
    "update/fetch.py:_remove_others:rmtree": UPDATE_WORK,
    "update/fetch.py:_remove_others:unlink": UPDATE_WORK,
    "update/fetch.py:fetch:unlink": UPDATE_WORK,
    "update/fetch.py:fetch:write_durably": UPDATE_WORK,
    "update/keys.py:_create:open": KEYS,
    "update/release.py:sign_bundle:write_atomically": RELEASE,
    "update/slots.py:Slots.empty_other:rename": UPDATE_SLOT,
    "update/slots.py:Slots.fill_other:rename": UPDATE_LATER,
    "update/slots.py:Slots.switch:replace": UPDATE,
    "update/slots.py:Slots.switch:symlink_to": UPDATE_LINK,
    "update/slots.py:Slots.switch:unlink": UPDATE_LINK,
    "update/slots.py:Slots.write_state:write_atomically": UPDATE_STATE,
    "runtime/compiled.py:keep:write_atomically": COMPILED,
    "runtime/compiled.py:remove_of:unlink": COMPILED_REMOVED,
    "runtime/device_report.py:write_report.write:write_atomically": DEVICE_REPORT,
    "models/recent.py:remember:write_atomically": RECENT,
    "models/removal.py:remove:remove_bundle": REMOVED,
    "models/removal.py:remove:rmdir": REMOVED,
    "batch/batch.py:Batch.run:write_atomically": BATCH_OUT,
    "batch/journal.py:Journal.__init__:open": BATCH,
    "batch/journal.py:Journal.remove:unlink": BATCH,
    "export/checkpoint/gguf.py:GGUFCheckpoint.write_tokenizer:write_bytes": WORK,
    "export/checkpoint/safetensors.py:SafetensorsCheckpoint.write_tokenizer:write_bytes": WORK,
    "export/interop/sidecars.py:write_sidecars:write_bytes": WORK,
    "server/endpoints.py:_read:TemporaryDirectory": UPLOADED,
    "server/endpoints.py:_read:write_bytes": UPLOADED,
    "server/ray/bundles.py:BundleSource._fetched:rename": FETCHED,
    "server/run.py:_own_path:unlink": SOCKET_AFTER,
    "server/run.py:_remove_unused:unlink": SOCKET,
    "runtime/cache_lines.py:CacheLines.add:write_atomically": KNOWN,
    "commands/streams.py:_Guard.end:open": BESIDE,  # the null device
    "commands/streams.py:_fill_closed:open": BESIDE,
    "commands/streams.py:guarded:open": BESIDE,
    "export/destination.py:Destination.repair:remove_bundle": MOVES,
    "export/destination.py:Destination.take:rename": APPEARS,
    "export/destination.py:Destination.take:rmdir": APPEARS,
    "export/destination.py:_fill:remove_bundle": NAMED,
    "export/destination.py:_fill:rename": NAMED,
    "export/destination.py:_move_unless_there:link": APPEARS_IN,
    "export/destination.py:_move_unless_there:rename": APPEARS_IN,
    "export/destination.py:_move_unless_there:unlink": APPEARS_IN,
    "export/destination.py:_restore:rename": MOVES,
    "export/destination.py:_restore:rmdir": MOVES,
    "export/destination.py:_restore:unlink": MOVES,
    "export/destination.py:remove_bundle:rmdir": BUNDLES,
    "export/destination.py:remove_bundle:unlink": BUNDLES,
    "export/destination.py:remove_work:rmdir": WORK,
    "export/destination.py:remove_work:rmtree": WORK,
    "export/destination.py:remove_work:unlink": WORK,
    "export/graph/openvino/files.py:write_ir:serialize": WORK,
    "export/graph/onnx/files.py:_write:write_bytes": WORK,
    "export/graph/onnx/files.py:write_onnx:unlink": WORK,
    "export/journal.py:Journal._write:write_durably": WORK,
    "export/journal.py:Journal.clear:rmtree": WORK,
    "export/npz.py:put_array:open": WORK,
    "export/vision/golden.py:GoldenPicture.write:ZipFile": WORK,
    "export/vision/segments.py:_write_onnx:write_bytes": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.__init__:mkdtemp": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.__init__:open": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.__init__:rmtree": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.cancel:rmtree": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.cancel:unlink": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.finish:replace": WORK,
    "export/interop/openvino_tokenizer.py:Conversion.finish:rmtree": WORK,
    "export/interop/openvino_tokenizer.py:convert:save_model": WORK,
    "export/frontend_optimum/export.py:_compress:save_model": WORK,
    "export/frontend_optimum/export.py:_compress:serialize": WORK,
    "export/frontend_optimum/export.py:export_with_optimum:TemporaryDirectory": WORK,
    "export/frontend_optimum/export.py:export_with_optimum:write_text": WORK,
    "export/output.py:Work.clear:rmtree": WORK,
    "export/output.py:Work.clear:unlink": WORK,
    "export/output.py:_guarded:remove_work": WORK,
    "export/output.py:_guarded:rmtree": WORK,
    "export/output.py:_open_work:remove_work": "edge/test_export_told.py::test_strangers_in_a_work_folder_stay",
    "export/output.py:_open_work:rename": WORK,
    "export/output.py:_open_work:rmtree": WORK,
    "export/output.py:_sync:open": WORK,  # and nothing is written
    "export/journal.py:keep:write_durably": WORK,
    "export/pipeline.py:export_with:write_text": WORK,
    "export/interop/sidecars.py:_write_json:write_text": WORK,
    "export/interop/sidecars.py:write_server_graph:write_text": WORK,
    "export/walk.py:Walk.finish:unlink": WORK,
    "export/walk.py:_write:open": WORK,
    "export/weights/store.py:WeightStore.__init__:open": WORK,
    "export/emulation.py:write_golden_rows:ZipFile": WORK,
    "export/proof.py:Golden.write:ZipFile": WORK,
    "profiles/reference.py:_Runner.run_head:ZipFile": REFERENCE_WORK,  # in memory
    "profiles/reference.py:_Runner.run_head:write_durably": REFERENCE_WORK,
    "profiles/reference_file.py:assemble:ZipFile": REFERENCE_WORK,
    "profiles/reference_file.py:assemble:open": REFERENCE_WORK,
    "profiles/reference.py:build:remove_work": REFERENCE_WORK,
    "profiles/reference.py:build:replace": REFERENCE,
    "profiles/report.py:write_report:unlink": REPORT,
    "profiles/report.py:write_report:write_atomically": REPORT,
    "profiles/cluster/nodes.py:cluster_executor:unlink": SWEEP,
    "profiles/cluster/nodes.py:cluster_executor:write_text": SWEEP,
    "profiles/cluster/task.py:_unfit:unlink": SWEEP,
    "profiles/sweep.py:_Sweep._leave:remove_bundle": BUNDLES,
    "profiles/sweep.py:_Sweep._write_profile:write_atomically": SWEEP,
    "profiles/sweep_results.py:remove_bundles:remove_bundle": BUNDLES,
    "profiles/sweep_results.py:remove_bundles:remove_work": BUNDLES,
    "profiles/sweep_results.py:remove_bundles:rmdir": BUNDLES,
    "profiles/sweep_results.py:write_exported:write_atomically": SWEEP,
    "profiles/sweep_results.py:write_row:write_atomically": SWEEP,
    "profiles/worker.py:write_windows:ZipFile": SWEEP,
    "profiles/sweep_plan.py:_tokenizer:TemporaryDirectory": WORK,  # where temporary files are
    "runtime/atomic.py:_open_beside:open": BESIDE,
    "runtime/atomic.py:_remove_abandoned:unlink": BESIDE,
    "runtime/atomic.py:write_atomically:replace": BESIDE,
    "runtime/atomic.py:write_atomically:unlink": BESIDE,
    "runtime/atomic.py:write_durably:open": WORK,
    "runtime/atomic.py:write_durably:replace": WORK,
    "runtime/vision/kept_rows.py:KeptRows._remove_oldest:unlink": KEPT_ROWS,
    "runtime/vision/kept_rows.py:KeptRows._write:write_atomically": KEPT_ROWS,
    "runtime/kv/snapshot.py:save_snapshot:write_atomically": PREFIX,
    "runtime/locks.py:_hold_named:open": LOCK,
    "runtime/locks.py:_let_go:unlink": LOCK,
    "runtime/locks.py:hold:open": LOCK,
    "runtime/speculation/store.py:DraftStore.merge:write_atomically": STORE,
    "runtime/speculation/store.py:DraftStore.open:write_atomically": STORE,
    "runtime/speculation/opening.py:_set_aside:unlink": STORE_ASIDE,  # of no bytes
    "runtime/speculation/opening.py:_set_aside:replace": STORE_ASIDE,
    "kiosk/folder.py:_fill:link": KIOSK_LAST,
    "kiosk/folder.py:_fill:unlink": KIOSK_LAST,
    "kiosk/folder.py:_work_folder:mkdtemp": KIOSK,
    "kiosk/folder.py:_work_folder:rmtree": KIOSK_LATER,  # what was made, which others do not know of
    "kiosk/folder.py:write_folder:rename": KIOSK_LATER,
    "kiosk/folder.py:write_folder:write_atomically": KIOSK,  # in the folder that was made
    "commands/needle.py:run:write_atomically": NEEDLE,
    "terminal/conversation_file.py:write_conversation:write_atomically": SAVED,
    "terminal/history.py:History._append:open": HISTORY,
    "terminal/history.py:History._open:write_atomically": HISTORY,
}


def calls(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Each call with the function that it stands in."""
    for node in ast.iter_child_nodes(tree):
        name = prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}.{node.name}".lstrip(".")
        if isinstance(node, ast.Call):
            yield prefix, node
        yield from calls(node, name)


def kind_of(call: ast.Call) -> str | None:
    """The name of a function that creates, writes, removes or moves a file; None for any other."""
    if isinstance(call.func, ast.Name):
        name, on = call.func.id, ""
    elif isinstance(call.func, ast.Attribute):
        name, on = call.func.attr, ast.unparse(call.func.value)
    else:
        return None
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name in ("open", "ZipFile", "fdopen", "memmap"):
        return name if name != "fdopen" and any(map(_writes, arguments)) else None
    if name in OURS or (on and name in OF_PATHS) or name in OF_MODULES.get(on, ()):
        return name
    of_a_path = on and name == "replace" and len(call.args) == 1 and not call.keywords  # a text's takes two
    return name if of_a_path else None


def _writes(argument: ast.expr) -> bool:
    """Whether a mode, or flags, let a file be written."""
    for node in ast.walk(argument):
        if isinstance(node, ast.Attribute) and node.attr in ("O_WRONLY", "O_RDWR", "O_CREAT"):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            mode = node.value
            if mode and len(mode) <= 3 and set(mode) <= set("rwaxbt+") and set(mode) & set("wax+"):
                return True
    return False


def files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():  # through links: export, profiles and runtime are some
        if path.is_dir():
            yield from files(path)
        elif path.suffix == ".py":
            yield path


def places() -> set[str]:
    return {
        f"{file.relative_to(PACKAGE).as_posix()}:{name}:{kind}"
        for file in files(PACKAGE)
        for name, call in calls(ast.parse(file.read_text(encoding="utf-8")))
        if (kind := kind_of(call)) is not None
    }


def test_every_place_that_removes_or_replaces_is_known() -> None:
    """Add a new place to PLACES with a test that puts a stranger's file there."""
    found = places()
    assert sorted(found - PLACES.keys()) == []
    assert sorted(PLACES.keys() - found) == []


@pytest.mark.parametrize("test", sorted(set(PLACES.values())))
def test_every_place_has_a_test(test: str) -> None:
    file, name = test.split("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_search_finds_what_it_looks_for() -> None:
    source = """
def removes(path, text):
    path.unlink(); os.remove(path); shutil.rmtree(path); path.replace(path); os.replace(path, path)
    path.open("wb"); open(path, mode="a"); path.write_text("x"); path.rename(path); ZipFile(path, "x")
    path.open("r+b" if text else "w+b"); os.open(path, os.O_CREAT)
def keeps(path, text):
    text.replace("a", "b"); waiting.remove(path); array.copy(); replace(settings, a=1); path.open("rb"); open(path)
    path.read_text(); ZipFile(path); print("wax")
"""
    found = Counter(name for name, call in calls(ast.parse(source)) if kind_of(call) is not None)
    assert found == {"removes": 12}
