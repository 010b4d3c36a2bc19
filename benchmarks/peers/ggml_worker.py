"""ggml's flash attention, called through the C interface of the libraries that llama-cpp-python builds.

K and V are stored by head. llama.cpp stores them by token, which makes the same kernel up to three times slower;
passing a group's query heads as rows of one head makes no difference.
"""

import ctypes
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from inputs import Array, attention_inputs
from worker import seconds, serve

F32, F16, Q8_0 = 0, 1, 8
TYPES = {"f16": F16, "q8_0": Q8_0}
BLOCK, BLOCK_BYTES = 32, 34
NODE_BYTES = 4096
"""Upper bound for a graph node and its inputs, without their data."""

os.environ["GGML_NO_BACKTRACE"] = "1"  # so that the last printed line says why it ended
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def function(library: ctypes.CDLL, name: str, result: object, *arguments: object) -> Callable[..., Any]:
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found


P, N, E, F, S = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float, ctypes.c_size_t
base = ctypes.CDLL(str(LIBRARIES / "libggml-base.so"))
cpu = ctypes.CDLL(str(LIBRARIES / "libggml-cpu.so"))
ggml_version = function(base, "ggml_version", ctypes.c_char_p)
ggml_init = function(base, "ggml_init", P, InitParams)
ggml_free = function(base, "ggml_free", None, P)
ggml_new_tensor_4d = function(base, "ggml_new_tensor_4d", P, P, E, N, N, N, N)
ggml_get_data = function(base, "ggml_get_data", P, P)
ggml_flash_attn_ext = function(base, "ggml_flash_attn_ext", P, P, P, P, P, P, F, F, F)
ggml_graph_overhead_custom = function(base, "ggml_graph_overhead_custom", S, S, ctypes.c_bool)
ggml_new_graph_custom = function(base, "ggml_new_graph_custom", P, P, S, ctypes.c_bool)
ggml_build_forward_expand = function(base, "ggml_build_forward_expand", None, P, P)
ggml_quantize_chunk = function(base, "ggml_quantize_chunk", S, E, P, P, N, N, N, P)
ggml_backend_graph_compute = function(base, "ggml_backend_graph_compute", E, P, P)
ggml_backend_cpu_init = function(cpu, "ggml_backend_cpu_init", P)
ggml_backend_cpu_set_n_threads = function(cpu, "ggml_backend_cpu_set_n_threads", None, P, E)


def stored(x: Array, kind: int) -> Array:
    """float32 x converted to ggml's format."""
    if kind == F16:
        return x.astype(np.float16).reshape(-1).view(np.uint8)
    x = np.ascontiguousarray(x)
    out = np.empty(x.size // BLOCK * BLOCK_BYTES, np.uint8)
    ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, x.size // x.shape[-1], x.shape[-1], None)
    return out


class Graph:
    """One attention per cache, one after another, in one graph."""

    def __init__(self, q: Array, k: Array, v: Array, kind: int, copies: int) -> None:
        batch, heads, dim = q.shape
        context, kv_heads, _ = k.shape
        parts = [np.tile(stored(x.swapaxes(0, 1), kind), batch) for x in (k, v)]
        self.bytes = copies * sum(part.nbytes for part in parts)
        nodes = copies * len(("q", "k", "v"))  # a graph reserves the same number of leaves as of nodes
        size = self.bytes + copies * (2 * q.nbytes + NODE_BYTES) + ggml_graph_overhead_custom(nodes, False)
        self._context = ggml_init(InitParams(size, None, False))
        self.graph = ggml_new_graph_custom(self._context, nodes, False)
        for _ in range(copies):
            operands = []
            # ggml lists the fastest dimension first.
            for data, *sizes in ((q, F32, dim, 1, heads), *((part, kind, dim, context, kv_heads) for part in parts)):
                operands.append(ggml_new_tensor_4d(self._context, *sizes, batch))
                ctypes.memmove(ggml_get_data(operands[-1]), data.ctypes.data, data.nbytes)
            self._last = ggml_flash_attn_ext(self._context, *operands, None, dim**-0.5, 0.0, 0.0)
            ggml_build_forward_expand(self.graph, self._last)
        self._shape = q.shape

    def output(self) -> Array:
        """The output for the last cache, [batch, Hq, D]."""
        return np.ctypeslib.as_array(ctypes.cast(ggml_get_data(self._last), ctypes.POINTER(F)), self._shape)

    def free(self) -> None:
        ggml_free(self._context)


class Worker:
    """`prepare` builds a graph, `run` computes it once."""

    def __init__(self) -> None:
        self._backend = ggml_backend_cpu_init()
        self._graph: Graph | None = None

    def version(self) -> str:
        return f"ggml {ggml_version().decode()} of llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"

    def prepare(
        self, kind: str, shape: tuple[int, int, int], context: int, batch: int, copies: int, threads: int
    ) -> int:
        """The bytes of the caches."""
        if self._graph is not None:
            self._graph.free()
        ggml_backend_cpu_set_n_threads(self._backend, threads)
        self._graph = Graph(*attention_inputs(shape, context, batch), TYPES[kind], copies)
        return self._graph.bytes

    def run(self) -> float:
        return seconds(lambda: ggml_backend_graph_compute(self._backend, self._graph.graph))

    def output(self) -> list[float]:
        self.run()
        return self._graph.output()[0].ravel().tolist()


if __name__ == "__main__":
    worker = Worker()
    serve({"version": worker.version, "prepare": worker.prepare, "run": worker.run, "output": worker.output})
