"""llama.cpp with flash attention, through its C interface in llama-cpp-python; prompts and answers are token ids."""

import ctypes
import importlib.metadata
from collections.abc import Sequence

import llama_cpp as llama
import numpy as np
from inputs import Array
from worker import seconds, serve

KINDS = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0}
BATCH = 2048
FLASH_ATTENTION_ON = 1
ERROR = 4
"""llama.cpp's log level for errors."""
ENOUGH = 256
"""Tokens of context in addition to the initial ones of a case."""


class Worker:
    """A model, and a context with some sequences at some depth."""

    def __init__(self) -> None:
        llama.llama_log_set(quiet, None)
        llama.llama_backend_init()
        self._model = self._context = self._kept = None

    def version(self) -> str:
        return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}"

    def load(self, model: str, kv: str, threads: int, huge_pages: bool = False) -> bool:
        """Load the model; returns whether logits are supported. `huge_pages`: copy the weights into memory, because a
        mapped file is not in huge pages."""
        parameters = llama.llama_model_default_params()
        parameters.use_mmap = not huge_pages
        self._model = llama.llama_model_load_from_file(model.encode(), parameters)
        if self._model is None:
            raise ValueError(f"llama.cpp cannot load {model}")
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._kv, self._threads = KINDS[kv], threads
        return True

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with special tokens recognized and none added."""
        vocabulary, data = llama.llama_model_get_vocab(self._model), text.encode()
        ids = (llama.llama_token * (len(data) + 1))()
        count = llama.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
        return list(ids[:count])

    def chat_template(self) -> str | None:
        found = llama.llama_model_chat_template(self._model, None)
        return None if found is None else found.decode()

    def prepare(self, tokens: list[int], sequences: int) -> None:
        """Fill every sequence with the tokens; sequences do not share memory."""
        self._make_context(len(tokens), sequences)
        if self._kept is None or self._kept[0] != (tokens, sequences):
            logits = self._read(tokens).copy()
            state = (ctypes.c_uint8 * llama.llama_state_seq_get_size(self._context, 0))()
            llama.llama_state_seq_get_data(self._context, state, len(state), 0)
            self._kept = (tokens, sequences), state, logits
        else:  # do not read the same prompt again; a state fits only the same number of sequences
            _, state, logits = self._kept
            if llama.llama_state_seq_set_data(self._context, state, len(state), 0) == 0:
                raise ValueError("llama.cpp cannot restore a sequence")
        memory = llama.llama_get_memory(self._context)
        for sequence in range(1, sequences):
            llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        self._depth, self._next = len(tokens), np.repeat(logits.argmax(-1), sequences)

    def decode(self, steps: int) -> float:
        """Seconds for decoding this many tokens in each sequence, which are then discarded."""
        taken = seconds(lambda: self._generate(steps))
        memory = llama.llama_get_memory(self._context)
        for sequence in range(len(self._next)):
            llama.llama_memory_seq_rm(memory, sequence, self._depth, -1)
        return taken

    def prefill(self, tokens: list[int]) -> float:
        self._make_context(len(tokens), 1)
        return seconds(lambda: self._read(tokens))

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        self.prepare(tokens, 1)
        return [int(self._next[0]), *(int(step[0]) for step in self._generate(count - 1))]

    def logits(self, tokens: list[int], file: str) -> None:
        """Write the logits of every token, float32 [tokens, vocab]."""
        self._make_context(len(tokens), 1)
        np.save(file, self._read(tokens, every=True))

    def _make_context(self, length: int, sequences: int) -> None:
        if self._context is not None:
            llama.llama_free(self._context)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = sequences * (length + ENOUGH)
        parameters.n_batch = BATCH
        parameters.n_seq_max = sequences
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = FLASH_ATTENTION_ON
        parameters.type_k = parameters.type_v = self._kv
        parameters.kv_unified = False
        self._context = llama.llama_init_from_model(self._model, parameters)
        if self._context is None:
            raise ValueError("llama.cpp cannot create a context")

    def _read(self, tokens: Sequence[int], every: bool = False) -> Array:
        """Start the first sequence with the tokens."""
        return self._decode(tokens, range(len(tokens)), [0] * len(tokens), every)

    def _generate(self, steps: int) -> list[Array]:
        tokens, every = self._next, []
        for step in range(steps):
            positions = [self._depth + step] * len(tokens)
            tokens = self._decode(tokens, positions, range(len(tokens)), every=True).argmax(-1)
            every.append(tokens)
        return every

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], every: bool = False
    ) -> Array:
        """Logits [tokens, vocab] of every token, or only of the last; valid until the next call."""
        parts = []
        for begin in range(0, len(tokens), BATCH):
            part = range(begin, min(begin + BATCH, len(tokens)))
            batch = llama.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for row, index in enumerate(part):
                batch.token[row], batch.pos[row] = tokens[index], positions[index]
                batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequences[index]
                batch.logits[row] = every or index == len(tokens) - 1
            status = llama.llama_decode(self._context, batch)
            llama.llama_batch_free(batch)
            if status != 0:
                raise ValueError(f"llama_decode returned {status}")
            rows = sum(every or index == len(tokens) - 1 for index in part)
            if rows:
                logits = np.ctypeslib.as_array(llama.llama_get_logits(self._context), (rows, self._vocabulary))
                parts.append(logits if part.stop == len(tokens) else logits.copy())
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


@llama.llama_log_callback
def quiet(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Log callback: llama.cpp logs a lot; keep only errors."""
    if level == ERROR:
        print(text.decode(errors="replace"), end="", flush=True)


if __name__ == "__main__":
    worker = Worker()
    names = ("version", "load", "tokenize", "chat_template", "prepare", "decode", "prefill", "greedy", "logits")
    serve({name: getattr(worker, name) for name in names})
