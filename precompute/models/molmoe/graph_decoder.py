"""Decoding of one MolmoE request with CUDA graphs, in memory allocated once.

Every block is a graph: one for each (block, k), captured on first use; a plan determines the order in which graphs are
replayed. So every request may have a different plan, and nothing is compiled per setting. Measured by
`benchmarks/molmoe.py`; requests are timed without graphs, as they are run.

Shapes: H key/value heads, W head width, C capacity in positions, S prompt positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....data.plans import BlockPlan
from .kv_state import KeyValueState
from .model import Molmoe, Rotary


class GraphState(KeyValueState):
    """Keys and values written at a position on the device.

    A call returns the whole memory and needs a mask: addresses and shapes stay the same, as a graph requires.
    """

    def __init__(self, keys: Tensor, values: Tensor, position_1: Tensor) -> None:
        super().__init__(keys, values)
        self._position_1 = position_1

    def update(self, keys: Tensor, values: Tensor, block_index: int = 0) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        assert self.keys is not None
        assert self.values is not None
        return self.keys.index_copy_(2, self._position_1, keys), self.values.index_copy_(2, self._position_1, values)


class GraphDecoder:
    """Decodes one answer after another: `load_prompt`, then `decode`, or `start` and `step` token by token."""

    def __init__(self, model: Molmoe, capacity: int) -> None:
        """
        Args:
            capacity: number of prompt and answer positions.
        """
        self.model, self.capacity = model, capacity
        config, device, dtype = model.config, model.device, model.dtype
        shape = (1, config.num_kv_heads, capacity, config.head_width)
        with torch.inference_mode():
            self._position_1 = torch.zeros(1, dtype=torch.long, device=device)
            self._token_11 = torch.zeros(1, 1, dtype=torch.long, device=device)
            self._hidden_11D = torch.zeros(1, 1, config.d_model, dtype=dtype, device=device)
            self._rotary: Rotary = model.position_embeddings(self._token_11)
            self._mask_111C = torch.zeros(1, 1, 1, capacity, dtype=dtype, device=device)
            self._slot_C = torch.arange(capacity, device=device)
            memory = torch.zeros(config.num_blocks, 2, *shape, dtype=dtype, device=device)
            self._states = [GraphState(keys, values, self._position_1) for keys, values in memory]
        self._graphs: dict[Hashable, Any] = {}
        self._pool: Any = None

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far: at most blocks x values of k, and two more."""
        return len(self._graphs)

    @torch.inference_mode()
    def load_prompt(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        """Copies a prompt's keys and values [1, H, S, W], by block, for every block that ran."""
        for block, prompt in keys.items():
            state = self._states[block]
            for memory, given in ((state.keys, prompt), (state.values, values[block])):
                assert memory is not None
                memory[:, :, : given.shape[2]] = given

    @torch.inference_mode()
    def start(self, length: int, token: int) -> None:
        """Makes `token`, the first of the answer, the input of the next step, after `length` prompt positions."""
        self._position_1.fill_(length)
        self._token_11.fill_(token)

    @torch.inference_mode()
    def step(self, plan: BlockPlan) -> Tensor:
        """Runs the current token through the plan's blocks.

        Returns:
            The next token [1, 1], on the device; the tensor changes with the next step.
        """
        self._run("embed", self._embed)
        for block, top_k in enumerate(plan):
            if top_k:
                self._run((block, top_k), self._run_block, block, top_k)
        self._run("next", self._next)
        return self._token_11

    def decode(
        self, plan: BlockPlan, *, length: int, first_token: int, max_new_tokens: int, end_id: int | None
    ) -> tuple[int, ...]:
        """Returns the answer's tokens, `first_token` and the end token included.

        Args:
            length: prompt positions, S.
            end_id: ends the answer; None decodes `max_new_tokens` tokens.

        Raises:
            ValueError: the answer might not fit.
        """
        if length + max_new_tokens > self.capacity:
            raise ValueError(f"{length} + {max_new_tokens} positions do not fit the decoder's {self.capacity}")
        tokens = [first_token]
        self.start(length, first_token)
        while len(tokens) < max_new_tokens and tokens[-1] != end_id:
            tokens.append(int(self.step(plan)))
        return tuple(tokens)

    def _embed(self) -> None:
        self._hidden_11D.copy_(self.model.word_embeddings(self._token_11))
        for old, new in zip(self._rotary, self.model.position_embeddings(self._position_1.view(1, 1)), strict=True):
            old.copy_(new)
        lowest = torch.finfo(self._mask_111C.dtype).min
        self._mask_111C.zero_().masked_fill_(self._slot_C > self._position_1, lowest)

    def _run_block(self, block: int, top_k: int) -> None:
        moved_11D = self.model.run_block(
            block,
            self._hidden_11D,
            top_k=top_k,
            position_embeddings=self._rotary,
            attention_mask=self._mask_111C,
            cache=self._states[block],
        )
        self._hidden_11D.copy_(moved_11D)

    def _next(self) -> None:
        self._token_11.copy_(self.model.logits(self._hidden_11D).argmax(dim=-1))
        self._position_1.add_(1)

    def _run(self, name: Hashable, function: Callable[..., None], *args: int) -> None:
        """Replays the function's graph."""
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
