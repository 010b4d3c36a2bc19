"""onnxruntime's GroupQueryAttention over an int8 cache, on its CPU provider.

The cache has one scale, which is faster there than a scale per channel.
"""

import numpy as np
import onnxruntime
from inputs import Array, attention_inputs
from onnx import TensorProto, helper
from worker import seconds, serve

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
IR_VERSION = 10
INPUTS = ("query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length")
SCALES = ("k_scale", "v_scale")
OMITTED = 5
"""Optional inputs between the caches and the scales."""


def attention_model(heads: int, kv_heads: int, dim: int) -> bytes:
    """One GroupQueryAttention."""
    kinds = dict.fromkeys((*INPUTS, *SCALES), TensorProto.FLOAT)
    kinds |= dict.fromkeys(("past_key", "past_value"), TensorProto.INT8)
    kinds |= dict.fromkeys(("seqlens_k", "total_sequence_length"), TensorProto.INT32)
    node = helper.make_node(
        "GroupQueryAttention",
        [*INPUTS, *[""] * OMITTED, *SCALES],
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        k_quant_type="PER_TENSOR",
        v_quant_type="PER_TENSOR",
        kv_cache_bit_width=8,
    )
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in zip(node.output, (TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT8), strict=True)
    ]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION)
    return model.SerializeToString()


class Caches:
    """Caches bound to a session as both past and present, so that nothing is copied."""

    def __init__(self, q: Array, k: Array, v: Array, copies: int, threads: int) -> None:
        batch, heads, dim = q.shape
        context, kv_heads, _ = k.shape
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(attention_model(heads, kv_heads, dim), options)
        scales = [np.abs(x).max().reshape(1) / 127 for x in (k, v)]
        stores = [
            np.broadcast_to(np.rint(x / scale).astype(np.int8).swapaxes(0, 1), (batch, kv_heads, context, dim))
            for x, scale in zip((k, v), scales, strict=True)
        ]
        # The operator appends a key and a value: the last token again.
        last = [np.broadcast_to(x[-1].reshape(1, 1, -1), (batch, 1, kv_heads * dim)) for x in (k, v)]
        fixed = dict(zip(INPUTS[:3], (q.reshape(batch, 1, -1), *last), strict=True))
        fixed |= {"seqlens_k": np.full(batch, context - 1, np.int32), "total_sequence_length": np.int32(context)}
        fixed |= dict(zip(SCALES, scales, strict=True))
        values = {name: value_of(x) for name, x in fixed.items()}
        self._output = value_of(np.zeros((batch, 1, heads * dim), np.float32))
        self.bytes = copies * sum(store.nbytes for store in stores)
        self._bindings = []
        for _ in range(copies):
            binding = self._session.io_binding()
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output("output", self._output)
            for name, store in zip(("key", "value"), stores, strict=True):
                cache = value_of(store)
                binding.bind_ortvalue_input(f"past_{name}", cache)
                binding.bind_ortvalue_output(f"present_{name}", cache)
            self._bindings.append(binding)

    def run(self) -> None:
        for binding in self._bindings:
            self._session.run_with_iobinding(binding)

    def output(self) -> Array:
        """The output for the last cache, [batch, 1, Hq · D]."""
        return self._output.numpy()


def value_of(x: Array) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x))


class Worker:
    """`prepare` fills the caches, `run` runs attention once over each."""

    def __init__(self) -> None:
        self._caches: Caches | None = None

    def version(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"

    def prepare(self, shape: tuple[int, int, int], context: int, batch: int, copies: int, threads: int) -> int:
        """The bytes of the caches."""
        self._caches = None
        self._caches = Caches(*attention_inputs(shape, context, batch), copies, threads)
        return self._caches.bytes

    def run(self) -> float:
        return seconds(self._caches.run)

    def output(self) -> list[float]:
        self.run()
        return self._caches.output()[0].ravel().tolist()


if __name__ == "__main__":
    worker = Worker()
    serve({"version": worker.version, "prepare": worker.prepare, "run": worker.run, "output": worker.output})
