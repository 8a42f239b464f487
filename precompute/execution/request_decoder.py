"""Greedy decoding of one request at a time, in memory allocated once.

On the CPU a step reads the keys and values written so far. On a GPU every block can be a CUDA graph: one for
each (block, k), captured on first use; a plan determines the order in which graphs are replayed. So every
request may have a different plan, and nothing is compiled per setting.

Shapes: H key/value heads, W head width, C capacity in positions, S prompt positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...data.plans import BlockPlan
from ..models.molmoe.model import Molmoe, Rotary
from .kv_cache import KeyValueCache

# Called with what has just ended: a block's number, or the name of a stage.
Mark = Callable[[str | int], None]
STEP = "step"  # the stage of one further token: embedding, blocks, head


def ignore_mark(name: str | int) -> None:
    """A mark that does nothing."""


class RequestDecoder:
    """Decodes one answer after another.

    A prompt's keys and values come from a prefill that is given `prompt_cache()`, or from `load_prompt`; then `decode`
    returns the answer, or `start` and `step` give it token by token.
    """

    def __init__(self, model: Molmoe, capacity: int, *, use_graphs: bool | None = None) -> None:
        """
        Args:
            capacity: number of prompt and answer positions, plus those of a prefill's probes.
            use_graphs: whether to replay CUDA graphs; None for a model on a GPU.
        """
        self.model, self.capacity = model, capacity
        self.use_graphs = model.device.type == "cuda" if use_graphs is None else use_graphs
        config, device, dtype = model.config, model.device, model.dtype
        with torch.inference_mode():
            shape = (1, config.num_kv_heads, capacity, config.head_width)
            keys, values = (
                {block: torch.zeros(shape, dtype=dtype, device=device) for block in range(config.num_blocks)}
                for _ in range(2)
            )
            self._position_1 = torch.zeros(1, dtype=torch.long, device=device)
            self._token_11 = torch.zeros(1, 1, dtype=torch.long, device=device)
            self._hidden_11D = torch.zeros(1, 1, config.d_model, dtype=dtype, device=device)
            self._rotary: Rotary = model.position_embeddings(self._token_11)
            self._mask_111C: Tensor | None = None
            if self.use_graphs:
                self._mask_111C = torch.zeros(1, 1, 1, capacity, dtype=dtype, device=device)
                self._slot_C = torch.arange(capacity, device=device)
        self._cache = KeyValueCache(keys, values, position_1=self._position_1 if self.use_graphs else None)
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far: at most blocks x values of k, and two more."""
        return len(self._graphs)

    def prompt_cache(self) -> KeyValueCache:
        """Returns the cache for a new prompt's prefill.

        Positions that a prefill appends to the prompt, such as a probe's, are overwritten by the answer.
        """
        self._cache.length = 0
        return self._cache

    @torch.inference_mode()
    def load_prompt(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        """Copies a prompt's keys and values [1, H, S, W], by block, for every block that ran."""
        for block, prompt in keys.items():
            self._cache.keys[block][:, :, : prompt.shape[2]] = prompt
            self._cache.values[block][:, :, : prompt.shape[2]] = values[block]

    @torch.inference_mode()
    def start(self, length: int, token: int) -> None:
        """Makes `token`, the first of the answer, the input of the next step, after `length` prompt positions."""
        self._cache.length = length
        self._position_1.fill_(length)
        self._token_11.fill_(token)

    @torch.inference_mode()
    def step(self, plan: BlockPlan, mark: Mark = ignore_mark) -> Tensor:
        """Runs the current token through the plan's blocks.

        Args:
            mark: called with the number of each block that ran.

        Returns:
            The next token [1, 1], on the device; the tensor may change with the next step.
        """
        self._run("embed", self._embed)
        for block, top_k in enumerate(plan):
            if top_k:
                self._run((block, top_k), self._run_block, block, top_k)
                mark(block)
        self._run("next", self._next)
        self._cache.length += 1
        return self._token_11

    def decode(
        self,
        plan: BlockPlan,
        *,
        length: int,
        first_token: int,
        max_new_tokens: int,
        end_id: int | None,
        mark: Mark = ignore_mark,
    ) -> tuple[int, ...]:
        """Returns the answer's tokens, `first_token` and the end token included.

        Args:
            length: prompt positions, S.
            end_id: ends the answer; None decodes `max_new_tokens` tokens.
            mark: called after every further token with the numbers of its blocks and `STEP`.

        Raises:
            ValueError: the answer might not fit.
        """
        if length + max_new_tokens > self.capacity:
            raise ValueError(f"{length} + {max_new_tokens} positions do not fit the decoder's {self.capacity}")
        tokens = [first_token]
        self.start(length, first_token)
        while len(tokens) < max_new_tokens and tokens[-1] != end_id:
            tokens.append(int(self.step(plan, mark)))
            mark(STEP)
        return tuple(tokens)

    def _embed(self) -> None:
        self._hidden_11D = self._kept(self._hidden_11D, self.model.word_embeddings(self._token_11))
        cos, sin = self.model.position_embeddings(self._position_1.view(1, 1))
        self._rotary = self._kept(self._rotary[0], cos), self._kept(self._rotary[1], sin)
        if self._mask_111C is not None:
            lowest = torch.finfo(self._mask_111C.dtype).min
            self._mask_111C.zero_().masked_fill_(self._slot_C > self._position_1, lowest)

    def _run_block(self, block: int, top_k: int) -> None:
        hidden = self.model.run_block(
            block,
            self._hidden_11D,
            top_k=top_k,
            position_embeddings=self._rotary,
            attention_mask=self._mask_111C,
            cache=self._cache,
        )
        self._hidden_11D = self._kept(self._hidden_11D, hidden)

    def _next(self) -> None:
        self._token_11 = self._kept(self._token_11, self.model.logits(self._hidden_11D).argmax(dim=-1))
        self._position_1.add_(1)

    def _kept(self, old: Tensor, new: Tensor) -> Tensor:
        """Returns `new`, with graphs copied to `old`: a graph reads and writes fixed addresses."""
        return old.copy_(new) if self.use_graphs else new

    def _run(self, name: Hashable, function: Callable[..., None], *args: int) -> None:
        """Calls the function, or replays its graph."""
        if not self.use_graphs:
            function(*args)
            return
        if name not in self._graphs:
            self._graphs[name] = self._capture(partial(function, *args))
        self._graphs[name].replay()

    def _capture(self, function: Callable[[], None]) -> Any:
        """Records `function` as a graph and leaves the decoder's state unchanged.

        It is called once first, because libraries allocate on first use; its changes are undone. Keys and values need
        no restoring: the replay writes the same places again.
        """
        state = (self._hidden_11D, self._token_11, self._position_1)
        before = [tensor.clone() for tensor in state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(aside)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        # One pool for all: each graph leaves its result in the decoder's own buffers, so no memory outlives a replay.
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        self._pool = self._pool or graph.pool()
        return graph
