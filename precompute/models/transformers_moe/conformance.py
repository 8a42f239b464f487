"""Checks on a model's own behaviour that decide whether it is accepted: on its real weights, with an image, in seconds.

Every check compares the block-by-block execution with the model itself, or with the same blocks run in another way.

Shapes: S prompt positions, N steps, V logits, D d_model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig

from ....data.errors import CheckpointError
from ....data.plans import BlockPlan, native_plan
from ..checks import Check, ModelRefused
from .block_runner import BlockRunner, TextPrompt
from .layer_states import LayerState

STEPS = 3  # tokens decoded after the prompt
# Largest difference of two values, as a share of the largest of all values compared.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
# What a model or a layer may raise when it is called in a way that it does not support.
_FOREIGN_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    CheckpointError,
)


class _Failed(Exception):
    """Why a check failed."""


@torch.inference_mode()
def check_model(
    runner: BlockRunner, inputs: Mapping[str, Any], *, text_ids: Sequence[int], name: str
) -> tuple[Check, ...]:
    """Runs all checks and returns their results.

    Args:
        inputs: the model's arguments for a prompt with an image.
        text_ids: some tokens of plain text, at least one.

    Raises:
        ModelRefused: a check failed. The message names the check and the block.
    """
    checks: list[Check] = []
    trial = _Trial(runner, inputs, text_ids)
    for title, meaning, run in trial.checks():
        started = time.perf_counter()
        try:
            detail, passed = run(), True
        except _Failed as failure:
            detail, passed = str(failure), False
        except _FOREIGN_ERRORS as error:
            where = "" if trial.block is None else f"block {trial.block}: "
            detail, passed = f"{where}{type(error).__name__}: {error}", False
        checks.append(Check(title, meaning, passed, detail, time.perf_counter() - started))
        if not passed:
            raise ModelRefused(
                f"{name} is refused, because the check `{title}` ({meaning}) failed: {detail}. Its answers under a "
                "block plan would be wrong.",
                tuple(checks),
            )
    return tuple(checks)


class _Trial:
    """One prompt of one model, and what its checks share."""

    def __init__(self, runner: BlockRunner, inputs: Mapping[str, Any], text_ids: Sequence[int]) -> None:
        self.runner, self.inputs = runner, inputs
        # What follows the prompt where no answer is compared: an answer might contain an image token.
        self.text_ids = [text_ids[step % len(text_ids)] for step in range(STEPS - 1)]
        self.native: BlockPlan = native_plan(runner.native_top_k)
        self.routed = [block for block, native in enumerate(runner.native_top_k) if native is not None]
        self.block: int | None = None  # that a check is about
        self.tokens: list[int] = []  # of the model's own answer
        self.before: list[Tensor] = []  # the input of each block under the native plan, and the last output
        self.worst = 0.0  # largest difference of the check that runs, as a share

    def checks(self) -> Iterator[tuple[str, str, Callable[[], str]]]:
        yield "native plan", "all blocks with their own top-k give what the model gives", self.native_plan
        yield "lower top-k", "a lower top-k changes what each block returns", self.lower_top_k
        yield "rows", "rows with different top-k give what each gives alone", self.rows
        yield "skipped block", "without a block, decoding with states gives what one pass gives", self.skipped_block
        yield "resume", "blocks resumed after others ran give what they give in one go", self.resume
        yield "probe", "a probe is read as a further position and leaves the prompt unchanged", self.probe
        yield "no trace", "afterwards the model itself gives the same as before", self.no_trace

    def native_plan(self) -> str:
        runner = self.runner
        self.plain_1NV, self.tokens = plain_answer(runner, self.inputs)
        self.prompt = runner.embed(self.inputs)
        hidden, states = self.prefill(self.prompt, self.native, keep=self.before)
        logits = [runner.logits(hidden[:, -1:])]
        for step, token in enumerate(self.tokens[:-1]):
            logits.append(runner.logits(self.step(self.prompt, self.native, states, token, step)))
        ours_1NV = torch.cat(logits, dim=1)
        self.compare(ours_1NV, self.plain_1NV, "its logits differ")
        best_N2 = self.plain_1NV[0].float().topk(2).values
        is_clear_N = best_N2[:, 0] - best_N2[:, 1] > 2 * self.tolerance * float(self.plain_1NV.abs().max())
        same_N = ours_1NV[0].argmax(dim=-1) == self.plain_1NV[0].argmax(dim=-1)
        if not bool((same_N | ~is_clear_N).all()):
            raise _Failed("its greedy tokens differ")
        return self.shown()

    def lower_top_k(self) -> str:
        for block in self.routed:
            self.block = block
            native = self.native[block]
            if native == 1:
                raise _Failed(f"block {block} uses one expert per token, so there is no lower top-k")
            for top_k in range(1, native):
                if torch.equal(self.run(block, self.before[block], top_k), self.before[block + 1]):
                    raise _Failed(f"block {block} returns the same with top-k {top_k} as with {native}")
        return f"{len(self.routed)} blocks"

    def rows(self) -> str:
        for block in self.routed:
            self.block = block
            native, before = self.native[block], self.before[block]
            rows = torch.tensor([native, 1, max(1, native // 2)])
            together = self.run(block, before.expand(len(rows), -1, -1), rows)
            for row, top_k in enumerate(rows.tolist()):
                alone = self.run(block, before, top_k)
                self.compare(together[row : row + 1], alone, f"block {block} with top-k {top_k} in a batch differs")
        return self.shown()

    def skipped_block(self) -> str:
        extended = self.runner.embed(extended_inputs(self.inputs, self.text_ids))
        skippable = [block for block in range(len(self.native)) if block not in self.runner.always_run]
        for skipped in [None, *skippable]:
            self.block = skipped
            plan = tuple(0 if block == skipped else top_k for block, top_k in enumerate(self.native))
            wanted, _ = self.prefill(extended, plan)
            if skipped is not None:  # whatever it leaves behind must not reach the other blocks
                self.run(skipped, self.before[skipped], self.native[skipped])
            hidden, states = self.prefill(self.prompt, plan)
            found = [hidden[:, -1:]]
            for step, token in enumerate(self.text_ids):
                found.append(self.step(self.prompt, plan, states, token, step))
            without = "with all blocks" if skipped is None else f"without block {skipped}"
            self.compare(torch.cat(found, dim=1), wanted[:, -STEPS:], f"{without} the states are wrong")
        return self.shown()

    def resume(self) -> str:
        for block, top_k in enumerate(self.native):
            self.block, before = block, self.before[block]
            self.run(block, before, 1)
            self.same(
                self.run(block, before, top_k),
                self.before[block + 1],
                f"block {block} gives another result after it ran under another plan",
            )
        return self.shown()

    def probe(self) -> str:
        runner, length = self.runner, self.prompt.length
        generator = torch.Generator().manual_seed(0)
        probe_MD = torch.randn(3, runner.d_model, generator=generator).to(self.prompt.hidden_1SD)
        probe_MD *= self.prompt.hidden_1SD[0].norm(dim=-1).median() / probe_MD.norm(dim=-1, keepdim=True)
        longer = runner.embed(extended_inputs(self.inputs, self.text_ids[:1]))
        appended = torch.cat([longer.hidden_1SD[:, :length], probe_MD[None, 1:2]], dim=1)
        alone = self.prompt.hidden_1SD
        both = torch.cat([alone, probe_MD[None]], dim=1)
        places, with_probes = runner.positions(self.prompt, 0, length), runner.positions(self.prompt, 0, length, 3)
        for block, top_k in enumerate(self.native):
            self.block = block
            state, watched = runner.new_state(block), runner.new_state(block)
            alone = runner.run_block(block, alone, top_k=top_k, positions=places, state=state)
            both = runner.run_block(block, both, top_k=top_k, positions=with_probes, state=watched)
            appended = self.run(block, appended, top_k, longer)
            self.same(both[:, :length], alone, f"in block {block} a probe changes the prompt's output")
            for kept, kept_beside in zip(_tensors(state), _tensors(watched), strict=True):
                self.same(kept_beside, kept, f"in block {block} a probe changes the prompt's state")
            found, wanted = both[:, length + 1 : length + 2], appended[:, -1:]
            self.compare(found, wanted, f"in block {block} a probe differs from an appended position")
        return self.shown()

    def no_trace(self) -> str:
        again_1NV, tokens = plain_answer(self.runner, self.inputs)
        self.same(again_1NV, self.plain_1NV, "the model's own logits have changed")
        if self.runner.device.type == "cpu" and tokens != self.tokens:
            raise _Failed("the model's own tokens have changed")
        return self.shown()

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.runner.dtype]

    def compare(self, found: Tensor, wanted: Tensor, problem: str) -> None:
        """Raises _Failed with the problem and the difference if two tensors differ by more than the tolerance."""
        scale = float(wanted.float().abs().max()) or 1.0
        share = float((found.float() - wanted.float()).abs().max()) / scale
        self.worst = max(self.worst, share)
        if not share <= self.tolerance:  # also if it is not a number
            raise _Failed(f"{problem} by {share:.1e} of the largest value, more than {self.tolerance:.0e}")

    def same(self, found: Tensor, wanted: Tensor, problem: str) -> None:
        """Like `compare`, without any tolerance on the CPU; a GPU may sum in another order each time."""
        if self.runner.device.type == "cpu" and not torch.equal(found, wanted):
            raise _Failed(f"{problem}, by {float((found.float() - wanted.float()).abs().max()):.1e}")
        self.compare(found, wanted, problem)

    def shown(self) -> str:
        worst, self.worst = self.worst, 0.0
        return f"largest difference {worst:.0e}" if worst else "bit-equal"

    def run(self, block: int, hidden: Tensor, top_k: int | Tensor, prompt: TextPrompt | None = None) -> Tensor:
        """Runs one block of a whole prompt, by default the trial's."""
        prompt = self.prompt if prompt is None else prompt
        positions = self.runner.positions(prompt, 0, prompt.length)
        return self.runner.run_block(block, hidden, top_k=top_k, positions=positions)

    def prefill(
        self, prompt: TextPrompt, plan: BlockPlan, keep: list[Tensor] | None = None
    ) -> tuple[Tensor, dict[int, LayerState]]:
        """Runs a plan on a whole prompt; returns the last hidden states and the states of the blocks that ran.

        Args:
            keep: gets a copy of the input of each block, and of the last output.
        """
        hidden, states = prompt.hidden_1SD, {}
        positions = self.runner.positions(prompt, 0, prompt.length)
        for block, top_k in enumerate(plan):
            if keep is not None:
                keep.append(hidden.clone())
            if top_k:
                states[block] = self.runner.new_state(block)
                hidden = self.runner.run_block(block, hidden, top_k=top_k, positions=positions, state=states[block])
            else:
                hidden = self.runner.after(block, hidden, positions)
        if keep is not None:
            keep.append(hidden.clone())
        return hidden, states

    def step(
        self, prompt: TextPrompt, plan: BlockPlan, states: Mapping[int, LayerState], token: int, step: int
    ) -> Tensor:
        """Runs one token after the prompt."""
        hidden = self.runner.word_embeddings(torch.tensor([[token]], device=self.runner.device))
        positions = self.runner.positions(prompt, prompt.length + step, 1)
        for block, state in states.items():
            hidden = self.runner.run_block(block, hidden, top_k=plan[block], positions=positions, state=state)
        return hidden


def plain_answer(runner: BlockRunner, inputs: Mapping[str, Any]) -> tuple[Tensor, list[int]]:
    """Returns logits [1, N, V] and tokens of the model's own greedy decoding, end tokens ignored."""
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=STEPS,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    made: Any = cast(Any, runner.model).generate(**inputs, generation_config=greedy)
    return torch.stack(list(made.logits), dim=1), made.sequences[0, -STEPS:].tolist()


def extended_inputs(inputs: Mapping[str, Any], tokens: list[int]) -> dict[str, Any]:
    """Returns the arguments of the same prompt followed by text tokens."""
    extended = dict(inputs)
    ids = inputs["input_ids"]
    extended["input_ids"] = torch.cat([ids, ids.new_tensor([tokens])], dim=1)
    for name, value in inputs.items():
        if name != "input_ids" and isinstance(value, Tensor) and value.shape == ids.shape:
            fill = 1 if name == "attention_mask" else 0
            extended[name] = torch.cat([value, value.new_full((1, len(tokens)), fill)], dim=1)
    return extended


def _tensors(state: LayerState) -> list[Tensor]:
    """Returns the tensors of a state."""
    found: list[Tensor] = []
    for value in vars(state.layer).values():
        found += [one for one in (value.values() if isinstance(value, dict) else [value]) if isinstance(one, Tensor)]
    return found
