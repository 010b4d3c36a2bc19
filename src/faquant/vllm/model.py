"""The model that vLLM runs: faquant's decoder over vLLM's cache pages, on one rank."""

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tp_group, get_world_group
from vllm.distributed.utils import get_pp_indices
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from ..errors import UnsupportedError
from ..formats import open_checkpoint
from ..kernels.arrays import Array, contiguous
from ..kernels.backend import Pages, backend_for
from ..kernels.quantizers import tensor_of
from ..kernels.scheme import TILE, AttentionScheme
from ..model.decoder import build_embedding, build_layer, build_norm
from ..model.inspection import notes_of
from ..model.paged import PAGE_SIZE, Batch, Chunk, PagedLayers
from ..model.ranks import Heads
from ..model.rope import Rope
from .agreement import RankSettings, check_equal, identity
from .attention import LayerCache, Step
from .cores import use_cores
from .settings import check, scales_of
from .shards import Shard, with_heads

logger = init_logger("vllm.faquant")

STREAM = "residual_stream"


class FaquantModel(nn.Module):
    """One rank's layers, and on the first and last rank of a pipeline the embedding and the head.

    All arithmetic is float32, whatever dtype vLLM was given, and has the bits of faquant's own engine. On a GPU, arrays
    are tensors there; on a CPU they are NumPy's.

    Raises:
        CheckpointError: the checkpoint is damaged.
        UnsupportedError: it cannot run on so many ranks, or with a setting of vLLM's; or ranks have different ones.
        UsageError: a setting of the plugin's is invalid.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        if prefix:
            raise UnsupportedError(
                f"vLLM asks for faquant's model as {prefix!r:.80}, a part of another one, which it cannot be. Leave it "
                "out of --speculative-config."
            )
        opened = open_checkpoint(_directory(vllm_config))
        check(vllm_config, opened)
        scales = scales_of(vllm_config)
        _check_ranks(RankSettings(identity(opened), version("faquant"), scales))
        self.config = config = opened.config
        tensor_parallel, pipeline = get_tp_group(), get_pp_group()
        rank, ranks = tensor_parallel.rank_in_group, tensor_parallel.world_size

        def gather(x: Array) -> Array:
            return contiguous(self._array(tensor_parallel.all_gather(tensor_of(x), dim=-1)))

        def reduce(x: Array) -> Array:
            return self._array(tensor_parallel.all_reduce(tensor_of(x)))

        use_cores(vllm_config.parallel_config.local_world_size)
        self._on_gpu = current_platform.is_cuda()
        if not self._on_gpu:
            from .generators import guard_generators  # which imports vLLM's runner for CPUs

            guard_generators()
        self._backend = backend_for("cuda" if self._on_gpu else "cpu")
        sums = reduce if scales == "shard" else None
        shard = Shard(config, self._backend, Heads.of(config, rank, ranks), rank, ranks, gather, sums)
        first, last = get_pp_indices(config.num_layers, pipeline.rank_in_group, pipeline.world_size)

        def linear(name: str) -> Any:
            return shard.linear(name, opened.linear(name))

        has = opened.checked.__contains__
        self._layers = [build_layer(config, i, self._backend, opened.tensor, linear, has) for i in range(first, last)]
        self._embedding = build_embedding(config, self._backend, opened.tensor) if pipeline.is_first_rank else None
        self._norm = None
        if pipeline.is_last_rank:
            self._norm = build_norm("model.norm", config, self._backend, opened.tensor, has)
        self._head = linear("lm_head") if pipeline.is_last_rank else None
        self._windows = config.sliding_windows[first:last]
        self._rope = Rope(config, vllm_config.model_config.max_model_len)
        self._schemes = [
            None if scheme is None else with_heads(scheme, shard.heads) for scheme in opened.schemes[first:last]
        ]
        self._local = replace(config, num_heads=len(shard.heads.q), num_kv_heads=len(shard.heads.kv))
        context = vllm_config.compilation_config.static_forward_context
        self._caches: dict[str, LayerCache] = {}
        for number, scheme in enumerate(self._schemes, first):
            local, size = self._local, self._pages(scheme, 1, TILE).bytes_per_token
            cache = LayerCache(local.num_heads, local.num_kv_heads, local.head_dim, size)
            self._caches[f"model.layers.{number}.self_attn.attn"] = cache
        self._bound: Tensor | None = None
        self._max_length = vllm_config.model_config.max_model_len
        context.update(self._caches)
        logger.info(
            "faquant: recipe %s, kernels %s, cache of %d bytes a token and rank (--kv-cache-dtype has no effect)",
            opened.recipe_name,
            self._backend.description,
            sum(cache.bytes_per_token for cache in self._caches.values()),
        )
        for note in notes_of(opened):
            logger.info("faquant: %s", note)

    def _array(self, x: Tensor) -> Array:
        """A tensor of vLLM's as the backend takes it."""
        return x if self._on_gpu else x.numpy()

    @property
    def _paged(self) -> PagedLayers:
        """The layers over the pages that vLLM has bound last."""
        caches = list(self._caches.values())
        if self._bound is not caches[0].kv_cache:
            pages = [
                self._pages(scheme, len(cache.kv_cache), cache.kv_cache.shape[2], self._array(cache.pages))
                for scheme, cache in zip(self._schemes, caches, strict=True)
            ]
            self._over_pages = PagedLayers(self._layers, self._windows, pages, self._backend)
            self._bound = caches[0].kv_cache
        return self._over_pages

    def _pages(
        self, scheme: AttentionScheme | None, num_pages: int, page_size: int, memory: Array | None = None
    ) -> Pages:
        if scheme is not None:
            return self._backend.int8_pages(scheme, num_pages, page_size, memory)
        local = self._local
        return self._backend.float_pages(
            local.num_heads, local.num_kv_heads, local.head_dim, num_pages, page_size, memory=memory
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor | IntermediateTensors:
        """float32 hidden states [tokens, hidden] after the last norm; on the other ranks of a pipeline, the residual
        stream."""
        x = self._run(input_ids, positions, intermediate_tensors, inputs_embeds)
        if self._norm is None:
            return IntermediateTensors({STREAM: tensor_of(x)})
        return tensor_of(self._norm(x))

    def _run(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: Tensor | None,
    ) -> Array:
        metadata = get_forward_context().attn_metadata
        if metadata is None:
            return self._measured(positions)
        step: Step = next(iter(metadata.values()))  # the same for all layers
        if intermediate_tensors is not None and self._embedding is None:
            entering = intermediate_tensors[STREAM]
        elif inputs_embeds is not None:
            entering = inputs_embeds
        elif input_ids is not None:
            entering = self.embed_input_ids(input_ids[: step.tokens])
        else:
            raise ValueError("a step needs token ids, embeddings, or the residual stream of the stage before")
        x = self._array(entering[: step.tokens].float())
        chunks = [
            Chunk(np.empty(rows.stop - rows.start, np.int64), start, table, self._rope)
            for rows, start, table in step.spans.parts
        ]
        own = x.clone() if self._on_gpu else np.array(x, order="C")
        return self._paged.run(own, Batch(chunks, step.page_size, step.spans, step.slots))

    def _measured(self, positions: Tensor) -> Array:
        """A residual stream for so many tokens, with which vLLM measures the memory that the cache may take. Only on a
        GPU it measures a step: there a layer runs, because one needs as much as all."""
        tokens, hidden = len(positions), self.config.hidden_size
        if not self._on_gpu:
            return np.zeros((tokens, hidden), np.float32)
        starts = range(0, tokens, self._max_length)
        prompts = [np.zeros(min(self._max_length, tokens - start), np.int64) for start in starts]
        batch = Batch.of_prompts(prompts, [self._rope] * len(prompts))
        pages = self._pages(self._schemes[0], batch.num_pages, PAGE_SIZE)
        layer = PagedLayers(self._layers[:1], self._windows[:1], [pages], self._backend)
        return layer.run(torch.zeros(tokens, hidden, device=positions.device), batch)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """float32 logits [tokens, vocab]."""
        if self._head is None:
            return None
        return tensor_of(self._head(self._array(hidden_states)))

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """float32 rows [tokens, hidden] of the embedding.

        Raises:
            ValueError: this is not the first stage of a pipeline, which has it.
        """
        if self._embedding is None:
            raise ValueError("only the first stage of a pipeline has the embedding")
        return tensor_of(self._embedding[self._array(input_ids)])

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """What `forward` takes from the rank before, in a pipeline."""
        return IntermediateTensors({STREAM: torch.zeros(batch_size, self.config.hidden_size, device=device)})

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """vLLM calls it to replace the weights of a running model. The constructor has read the checkpoint itself.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("faquant's models cannot be given other weights while they run. Start vLLM again.")


def _directory(vllm_config: VllmConfig) -> Path:
    """The checkpoint's directory, downloaded if the model is a name on the hub."""
    model = vllm_config.model_config.model
    if Path(model).is_dir():
        return Path(model)
    return Path(
        snapshot_download(
            model,
            revision=vllm_config.model_config.revision,
            cache_dir=vllm_config.load_config.download_dir,
            allow_patterns=["*.json", "*.safetensors"],
        )
    )


def _check_ranks(own: RankSettings) -> None:
    """Nodes may have copies of their own. Raises: UnsupportedError: they differ."""
    world = get_world_group()
    found = [own] * world.world_size
    torch.distributed.all_gather_object(found, own, group=world.cpu_group)
    check_equal(found)
