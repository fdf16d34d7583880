"""One part of an ONNX graph: its session, and the memory that its inputs and outputs are bound to.

In: a file; arrays that others own, or shapes for memory of its own. Out: what a run leaves in that memory. Knows
nothing about sequences, or what the arrays mean.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.runtime.arrays import Array
from edge.runtime.errors import DeviceError, telling_line
from edge.runtime.terminal_text import on_one_line

# A thread that waits for work of the pool's others spins before it sleeps. By default it does so for a millisecond or
# more: where another program runs on the same cores, it then spins through its share of them and is put off when there
# is work. Beside one busy process, a short wait and pieces that are taken as threads get to them make a token of
# GLM-4-9B's shapes take 1.4 times as long instead of 1.8 (docs/findings.md). onnxruntime before 1.26 spins as ever.
_SPIN_US = 100
_PIECES = 8  # of what is left and is any thread's, for each thread; results do not depend on it


class SessionPart:
    """One session and the memory bound to it. An array that this part does not use is not bound."""

    def __init__(self, path: Path, threads: int) -> None:
        self.session = _open(path, threads)
        self._inputs: dict[str, str] = {value.name: value.type for value in self.session.get_inputs()}
        self._outputs = {value.name for value in self.session.get_outputs()}
        self._binding = self.session.io_binding()
        self._flat: dict[str, Array] = {}  # memory for small inputs and for outputs
        self._own: dict[str, Array] = {}  # the part of it that is bound

    def reads(self, name: str) -> str:
        """The type of an input, such as "tensor(float)"; "" where this part has none of that name."""
        return self._inputs.get(name, "")

    def bind(self, arrays: dict[str, Array]) -> None:
        """Bind inputs and outputs to memory that the caller keeps alive."""
        for name, array in arrays.items():
            place = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            if name in self._inputs:
                self._binding.bind_input(name, *place)
            elif name in self._outputs:
                self._binding.bind_output(name, *place)

    def give(self, name: str, values: Array) -> None:
        """Set an input, in place if its shape is that of the last call. values: of the same type in each call."""
        self._keep(name, values.shape, values.dtype.type)[...] = values

    def take(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the array that a float32 output will be written to; the same memory as long as its shape stays."""
        return self._keep(name, shape, np.float32)

    def run(self, options: Any) -> None:  # Any: onnxruntime has no types
        self.session.run_with_iobinding(self._binding, options)

    def forget(self) -> None:
        """Bind own inputs and outputs again when they are next needed."""
        self._own.clear()

    def _keep(self, name: str, shape: tuple[int, ...], kind: type[np.generic]) -> Array:
        """Return an array in memory that only grows, since single steps, batches and prompts take turns."""
        if name not in self._own or self._own[name].shape != shape:
            self._own.pop(name, None)  # not ours until it is bound
            size = math.prod(shape)
            if name not in self._flat or self._flat[name].size < size:
                self._flat[name] = np.empty(size, kind)
            array = self._flat[name][:size].reshape(shape)
            self.bind({name: array})
            self._own[name] = array
        return self._own[name]


def session_options(threads: int) -> Any:  # Any: onnxruntime has no types
    """Return options of sessions that take turns on the same cores, which other programs may use, too.

    threads: 0 is onnxruntime's choice.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures are raised, and reported in our words
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the next session needs the cores
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    options.add_session_config_entry("session.dynamic_block_base", str(_PIECES))
    return options


def _open(path: Path, threads: int) -> Any:
    options = session_options(threads)
    try:
        return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # pybind's exceptions share no base class
        said = on_one_line(telling_line(error))
        if "External data path" in said:  # some versions accept it only in the graph's own folder
            advice = "put the file itself there instead of a link, or use --engine openvino"
        else:
            advice = "run edge verify, export the bundle again, or update onnxruntime"
        raise DeviceError(f"onnxruntime {ort.__version__} cannot open {path}: {said}; {advice}") from error
