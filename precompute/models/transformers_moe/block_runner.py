"""Runs a model of transformers block by block, whatever its family.

It relies on conventions of transformers 5: a text model with `layers`, each from hidden states to hidden states, and
routers that read their k when called. `conformance.py` checks on the real weights that they hold.

Shapes: S prompt positions, N positions of one call, M probes, R rows, D d_model, V logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ....data.errors import CheckpointError
from ..backbone import BlockState, EmbeddedPrompt
from ..embedding_norm import median_norm
from ..router_ties import TieWatch
from .layer_calls import LayerRecorder, TextCall
from .layer_states import LayerState, PastPositions, empty_layers, fresh, stack_states
from .routers import BlockRouters, router_classes


@dataclass(frozen=True, eq=False)
class TextPrompt(EmbeddedPrompt):
    """A prompt after vision, with the call of the text model."""

    call: TextCall
    next_position: Tensor | None  # [..., 1, 1] position ids of the position after the prompt; None: the model's own


class BlockRunner:
    """A vision-language model of transformers whose text blocks can be run one by one."""

    def __init__(self, model: PreTrainedModel) -> None:
        """
        Raises:
            CheckpointError: the model has no text model with layers, or no router.
        """
        self.model = model
        self.text = text_model(model)
        self.layers = list(cast(nn.ModuleList, self.text.layers))
        classes = router_classes(self.text)
        self.routers = [BlockRouters(layer, classes) for layer in self.layers]
        if not any(routers.modules for routers in self.routers):
            raise CheckpointError(
                f"{type(model).__name__} has no mixture of experts whose top-k can be chosen: its text layers contain "
                "no router."
            )
        if any(getattr(module, "is_kv_shared_layer", False) for module in self.text.modules()):
            raise CheckpointError(
                f"{type(model).__name__} has blocks that use the keys and values of other blocks: such models are not "
                "supported."
            )
        self._empty = empty_layers(cast(PreTrainedConfig, self.text.config))
        self._recorder = LayerRecorder(self.text, self.layers)
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._embedding = cast(nn.Embedding, model.get_input_embeddings())
        self._head = self._find_head()

    @property
    def native_top_k(self) -> tuple[int | None, ...]:
        return tuple(routers.native_top_k for routers in self.routers)

    @property
    def n_experts(self) -> int:
        return min(routers.n_experts for routers in self.routers if routers.n_experts is not None)

    @property
    def d_model(self) -> int:
        return int(self._embedding.weight.shape[1])

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have an embedding."""
        return int(self._embedding.weight.shape[0])

    @property
    def max_positions(self) -> int:
        return int(cast(Any, self.text.config).max_position_embeddings)

    @property
    def always_run(self) -> frozenset[int]:
        """The blocks before the first router: no k applies to them, and the rest depends on them most."""
        first = next(index for index, native in enumerate(self.native_top_k) if native is not None)
        return frozenset(range(first))

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.weight.dtype

    def embed(self, inputs: Mapping[str, Any]) -> TextPrompt:
        """Runs vision, once.

        Args:
            inputs: the model's arguments for one prompt.
        """
        keep = {"logits_to_keep": 1} if self._keeps_last else {}
        with _keeping_state(self.model):
            call = self._recorder.record(
                lambda: self.model(**inputs, past_key_values=self._past(0), use_cache=True, **keep)
            )
        assert call.first_1ND is not None
        return TextPrompt(call.first_1ND, call, next_position(call.kwargs.get("position_ids")))

    def positions(self, prompt: EmbeddedPrompt, start: int, count: int, probes: int = 0) -> TextCall:
        prompt = cast(TextPrompt, prompt)
        if start == 0:
            assert count == prompt.length, "a prompt runs whole"
            if not probes:
                return prompt.call
            return TextCall(prompt.call.kwargs, None, prompt.call.layers, self.positions(prompt, count, 1), probes)
        assert count == 1, "positions after the prompt run one by one"
        assert start >= prompt.length
        # What is not a tensor (flags) stays as in the prompt's call; what belongs to the prompt's positions does not.
        kwargs: dict[str, Any] = {
            name: value for name, value in prompt.call.kwargs.items() if value is None or isinstance(value, bool | int)
        }
        kwargs |= {
            "inputs_embeds": prompt.hidden_1SD.new_zeros(1, 1, self.d_model),
            "past_key_values": self._past(start),
            "use_cache": True,
        }
        if prompt.next_position is not None:
            kwargs["position_ids"] = prompt.next_position + (start - prompt.length)
        return self._recorder.record(lambda: self.text(**kwargs))

    def new_state(self, index: int) -> LayerState:
        return LayerState(fresh(self._empty[index]))

    def stack(self, states: Sequence[BlockState]) -> LayerState:
        return stack_states(cast(Sequence[LayerState], states))

    def run_block(
        self,
        index: int,
        hidden: Tensor,
        *,
        top_k: int | Tensor,
        positions: TextCall,
        state: BlockState | None = None,
        watch: TieWatch | None = None,
    ) -> Tensor:
        kept = self.new_state(index) if state is None else cast(LayerState, state)
        if not positions.num_probes:
            return self._run(index, hidden, top_k, positions, kept, watch)
        assert positions.probe is not None
        length = hidden.shape[1] - positions.num_probes
        moved_1SD = self._run(index, hidden[:, :length], top_k, positions, kept, watch)
        # A probe is one further position after the prompt, on a copy of the prompt's state.
        probe_M1D = hidden[0, length:, None]
        copies = kept.repeated(positions.num_probes)
        moved_M1D = self._run(index, probe_M1D, top_k, positions.probe, copies, None)
        return torch.cat([moved_1SD, moved_M1D.transpose(0, 1)], dim=1)

    def _run(
        self,
        index: int,
        hidden: Tensor,
        top_k: int | Tensor,
        call: TextCall,
        state: LayerState,
        watch: TieWatch | None,
    ) -> Tensor:
        """Runs one layer on rows [R, N, D] that continue `state`."""
        rows = hidden.shape[0]
        args, kwargs = call.of_rows(index, rows)
        start = call.kwargs["past_key_values"].start
        layers = [*self._empty[:index], state.layer, *self._empty[index + 1 :]]
        with self.routers[index].using(top_k, rows, watch):
            moved = self.layers[index](hidden, *args, past_key_values=PastPositions(layers, start), **kwargs)
        if not isinstance(moved, Tensor):
            raise CheckpointError(
                f"layer {index}, {type(self.layers[index]).__name__}, returns {type(moved).__name__} instead of hidden "
                "states: its model is not supported."
            )
        return self.after(index, moved, call)

    @staticmethod
    def after(index: int, hidden: Tensor, call: TextCall) -> Tensor:
        """Adds to the last positions of `hidden` what the model adds after a layer."""
        added_1ND = call.layers[index].added_1ND
        return hidden if added_1ND is None else hidden + added_1ND[:, -hidden.shape[1] :]

    def word_embeddings(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self._embedding(ids)
        return embedded

    def embedding_norm(self) -> float:
        return median_norm(self._embedding.weight) * self._embedding_scale()

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def _whole_head(self, hidden: Tensor) -> Tensor:
        """Runs what the whole model does after its last layer."""
        with _keeping_state(self.model), self._recorder.passing(hidden):
            output = self.model(inputs_embeds=torch.zeros_like(hidden), use_cache=False)
        logits: Tensor = output.logits
        return logits

    @torch.inference_mode()
    def _find_head(self) -> Callable[[Tensor], Tensor]:
        """Returns what follows the last layer: norm, head and soft cap if they give the same as the whole model.

        Raises:
            CheckpointError: the model cannot be run from embeddings.
        """
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(1, 2, self.d_model, generator=generator).to(self.device, self.dtype)
        try:
            wanted = self._whole_head(hidden)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{type(self.model).__name__} cannot be run from embeddings: {error}") from error
        norm, head = getattr(self.text, "norm", None), self.model.get_output_embeddings()
        cap = getattr(self.text.config, "final_logit_softcapping", None)
        if norm is None or head is None:
            return self._whole_head

        def plain(hidden: Tensor) -> Tensor:
            scores: Tensor = head(norm(hidden))
            return scores if cap is None else (scores / cap).tanh() * cap

        return plain if torch.equal(plain(hidden), wanted) else self._whole_head

    def _embedding_scale(self) -> float:
        """Returns the factor by which the embedding's output exceeds its weights."""
        norms = self._embedding.weight.float().norm(dim=-1)
        row = int(norms.argmax())
        return float(self.word_embeddings(torch.tensor([row], device=self.device)).float().norm() / norms[row])

    def _past(self, start: int) -> PastPositions:
        return PastPositions(list(self._empty), start)


def text_model(model: PreTrainedModel) -> nn.Module:
    """Returns the part of a model with its text layers. Raises CheckpointError if there is none."""
    found: Any = model.get_decoder()
    while not isinstance(getattr(found, "layers", None), nn.ModuleList):
        inner = getattr(found, "language_model", None) or getattr(found, "model", None)
        if inner is None or inner is found:
            raise CheckpointError(f"{type(model).__name__} has no text model with a list of layers.")
        found = inner
    return cast(nn.Module, found)


def next_position(position_ids: Tensor | None) -> Tensor | None:
    """Returns the position ids after those of a prompt [..., 1, S]: one more than the largest, as models generate.

    Of four rows the first holds plain positions, and the others those of time, height and width.
    """
    if position_ids is None:
        return None
    if position_ids.ndim == 2:
        return position_ids[:, -1:] + 1
    groups = position_ids.split([1, 3]) if position_ids.shape[0] == 4 else (position_ids,)
    following = [(group.amax() + 1).expand(group.shape[0], 1, 1) for group in groups]
    return torch.cat(following)


class _keeping_state:
    """Restores what models keep between calls, so that requests cannot disturb each other."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(module, module.rope_deltas) for module in model.modules() if hasattr(module, "rope_deltas")]

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        for module, value in self._kept:
            module.rope_deltas = value
