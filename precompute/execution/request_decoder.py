"""Greedy decoding of one request at a time, in memory allocated once where the model's family allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...data.plans import BlockPlan
from ..models.backbone import Backbone, BlockState, EmbeddedPrompt

# Called with what has just ended: a block's number, or the name of a stage.
Mark = Callable[[str | int], None]
OnToken = Callable[[int], None]
STEP = "step"  # the stage of one further token: embedding, blocks, head


def ignore_mark(name: str | int) -> None:
    """A mark that does nothing."""


class RequestDecoder:
    """Decodes one answer after another. A prefill extends the states of `new_prompt`; then `decode` continues them."""

    def __init__(self, model: Backbone, capacity: int) -> None:
        """
        Args:
            capacity: number of prompt and answer positions, plus those of a prefill's probes.
        """
        self.model, self.capacity = model, capacity
        with torch.inference_mode():
            self._states = [model.new_state(block, capacity) for block in range(model.geometry.n_blocks)]

    def new_prompt(self) -> Sequence[BlockState]:
        """Returns every block's state, emptied for a new prompt."""
        for state in self._states:
            state.clear()
        return self._states

    def step(self, prompt: EmbeddedPrompt, position: int, token_11: Tensor, plan: BlockPlan, mark: Mark) -> Tensor:
        """Runs one token at `position` through the plan's blocks and returns the next token [1, 1], on the device."""
        hidden_11D = self.model.word_embeddings(token_11)
        positions = self.model.positions(prompt, position, 1)
        for block, top_k in enumerate(plan):
            if top_k:
                hidden_11D = self.model.run_block(
                    block, hidden_11D, top_k=top_k, positions=positions, state=self._states[block]
                )
                mark(block)
        return self.model.logits(hidden_11D).argmax(dim=-1)

    @torch.inference_mode()
    def decode(
        self,
        prompt: EmbeddedPrompt,
        plan: BlockPlan,
        *,
        first_token: int,
        max_new_tokens: int,
        ends: bool = True,
        mark: Mark = ignore_mark,
        on_token: OnToken | None = None,
    ) -> tuple[int, ...]:
        """Returns the answer's tokens, `first_token` and the end token included.

        Args:
            prompt: whose prefill under `plan` the states hold.
            ends: whether one of the model's end tokens ends the answer; otherwise it has `max_new_tokens` tokens.
            mark: called after every further token with the numbers of its blocks and `STEP`.
            on_token: receives each token as soon as it is known, the first one included.

        Raises:
            ValueError: the answer might not fit.
        """
        if prompt.length + max_new_tokens > self.capacity:
            raise ValueError(f"{prompt.length} + {max_new_tokens} positions do not fit the decoder's {self.capacity}")
        tokens = [first_token]
        if on_token is not None:
            on_token(first_token)
        token_11 = torch.full((1, 1), first_token, device=self.model.device)
        while len(tokens) < max_new_tokens and not (ends and tokens[-1] in self.model.end_ids):
            token_11 = self.step(prompt, prompt.length + len(tokens) - 1, token_11, plan, mark)
            tokens.append(int(token_11))
            if on_token is not None:
                on_token(tokens[-1])
            mark(STEP)
        return tuple(tokens)
