"""Greedy decoding of one sequence in fixed memory, so that on a GPU every block can be replayed as a CUDA graph.

There is one graph for each (block, k) that was ever asked for, captured when it first is; a plan is the order in which
they are replayed. So the plan may change with every request, and nothing is compiled for each of its settings. Without
a GPU the same functions are called directly.

Shapes: H key heads, W head width, C capacity, S prompt positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from .generate import BlockTopK
from .model import Molmoe


class _FixedCache(Cache):
    """Keys and values [1, H, C, W] of every block; a step writes at a position that lies on the device."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], position: Tensor) -> None:
        super().__init__(layers=[])
        self.keys, self.values, self.position = keys, values, position

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        return keys.index_copy_(2, self.position, key_states), values.index_copy_(2, self.position, value_states)


class StepDecoder:
    """Decodes one answer after another; its memory and graphs are made once."""

    def __init__(self, model: Molmoe, capacity: int, *, use_graphs: bool | None = None) -> None:
        """Args:

        capacity: prompt and answer positions together.
        use_graphs: None for a GPU.
        """
        self.model, self.capacity = model, capacity
        self.use_graphs = model.device.type == "cuda" if use_graphs is None else use_graphs
        config, device, dtype = model.config, model.device, model.dtype
        with torch.inference_mode():
            shape = (1, config.num_kv_heads, capacity, config.head_width)
            keys, values = (
                [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_blocks)] for _ in range(2)
            )
            self._position_1 = torch.zeros(1, dtype=torch.long, device=device)
            self._token_11 = torch.zeros(1, 1, dtype=torch.long, device=device)
            self._hidden_11D = torch.zeros(1, 1, config.d_model, dtype=dtype, device=device)
            self._rotary = tuple(part.clone() for part in model.position_embeddings(self._token_11))
            self._mask_111C = torch.zeros(1, 1, 1, capacity, dtype=dtype, device=device)
            self._slot_C = torch.arange(capacity, device=device)
        self._cache = _FixedCache(keys, values, self._position_1)
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """How many graphs have been captured: at most blocks x values of k, and two more."""
        return len(self._graphs)

    @torch.inference_mode()
    def load_prompt(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        """Copies a prompt's keys and values [1, H, S, W] of the blocks that ran it, by block."""
        for block, prompt in keys.items():
            self._cache.keys[block][:, :, : prompt.shape[2]] = prompt
            self._cache.values[block][:, :, : prompt.shape[2]] = values[block]

    @torch.inference_mode()
    def start(self, length: int, token: int) -> None:
        """Makes `token`, the first of the answer, the input of the next step, at position `length`, the prompt's."""
        self._position_1.fill_(length)
        self._token_11.fill_(token)

    @torch.inference_mode()
    def step(self, plan: BlockTopK) -> Tensor:
        """Runs the current token through the plan's blocks. Returns the next token [1, 1], still on the device.

        The tensor is the decoder's own and changes with the next step.
        """
        self._run("embed", self._embed)
        for index, top_k in enumerate(plan):
            if top_k is not None:
                self._run((index, top_k), partial(self._block, index, top_k))
        self._run("next", self._next)
        return self._token_11

    def decode(
        self, plan: BlockTopK, *, length: int, first_token: int, max_new_tokens: int, end_id: int | None
    ) -> list[int]:
        """Returns the answer's tokens, `first_token` and the end token included.

        Args:
            length: prompt positions. Their keys and values must have been loaded.

        Raises:
            ValueError: the answer might not fit.
        """
        if length + max_new_tokens > self.capacity:
            raise ValueError(f"{length} + {max_new_tokens} positions do not fit the decoder's {self.capacity}")
        tokens = [first_token]
        self.start(length, first_token)
        while len(tokens) < max_new_tokens and tokens[-1] != end_id:
            tokens.append(int(self.step(plan)))
        return tokens

    def _embed(self) -> None:
        self._hidden_11D.copy_(self.model.word_embeddings(self._token_11))
        for kept, new in zip(self._rotary, self.model.position_embeddings(self._position_1.view(1, 1)), strict=True):
            kept.copy_(new)
        self._mask_111C.zero_().masked_fill_(self._slot_C > self._position_1, torch.finfo(self._mask_111C.dtype).min)

    def _block(self, index: int, top_k: int) -> None:
        cos, sin = self._rotary
        hidden = self.model.run_block(
            index,
            self._hidden_11D,
            top_k=top_k,
            position_embeddings=(cos, sin),
            attention_mask=self._mask_111C,
            cache=self._cache,
        )
        self._hidden_11D.copy_(hidden)

    def _next(self) -> None:
        self._token_11.copy_(self.model.logits(self._hidden_11D).argmax(dim=-1))
        self._position_1.add_(1)

    def _run(self, name: Hashable, function: Callable[[], None]) -> None:
        """Calls `function`, or replays its graph."""
        if not self.use_graphs:
            function()
            return
        if name not in self._graphs:
            self._graphs[name] = self._capture(function)
        self._graphs[name].replay()

    def _capture(self, function: Callable[[], None]) -> Any:
        """Records `function` without effect on the decoder's state.

        It runs first, because libraries allocate on first use; what that changed is put back. Keys and values need not
        be: the replay writes the same place again.
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
