"""The controllers' checkpoint: `controllers.json` and `controllers.safetensors`, and whether it fits a cache or model.

A checkpoint is untrusted: sizes are bounded, names and shapes must be exactly those of the controllers that the JSON
describes, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..data.errors import CacheMismatch, CheckpointError
from ..data.files.atomic import write_atomically
from ..data.files.bounded_json import dump_json, read_json
from ..data.files.json_fields import JsonFields
from ..data.hub.fetch import fetch_controllers
from ..data.knobs import KnobSpace
from ..data.paths import existing_directory
from .budget_encoder import BudgetEncoder, encoder_digest
from .conditions import Conditions, ModelIdentity
from .expected_latency import ExpectedLatency
from .service_levels import Calibration, least_images
from .stage1 import Stage1
from .stage2 import Stage2
from .weights import load_weights

FORMAT_NAME = "knobctl-controllers"
FORMAT_VERSION = 2
CONFIG_NAME = "controllers.json"
WEIGHTS_NAME = "controllers.safetensors"
MAX_D_MODEL = 1 << 16
MAX_BLOCKS = 1 << 12
MAX_SETTINGS = 1 << 15
MAX_WEIGHT_BYTES = 1 << 32
MAX_BUILT_BYTES = 1 << 30  # of both stages in memory; at d_model 2048 they take 10 MB


@dataclass
class Controllers:
    """Stage1, Stage2, the budget encoders they were trained with, and all else that answering a question needs.

    `budget_encoder` made the latency tokens' probes. `stage1_budget_encoder` is Stage1's own copy if it was trained,
    otherwise the same object.
    """

    stage1: Stage1
    stage2: Stage2
    budget_encoder: BudgetEncoder
    stage1_budget_encoder: BudgetEncoder
    space: KnobSpace
    model: ModelIdentity
    budgets_ms: tuple[float, ...]
    conditions: Conditions = field(default_factory=Conditions)
    expected_latency: ExpectedLatency | None = None
    calibration: Calibration | None = None  # None: too few images to promise any service level
    cache_fingerprint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # how they were trained
    created_by: str | None = None
    source: str | None = None  # where they were read from: a path, or `owner/name@commit` on the hub

    @classmethod
    def untrained(
        cls, space: KnobSpace, model: ModelIdentity, budgets_ms: tuple[float, ...], encoder: BudgetEncoder
    ) -> Controllers:
        """Returns controllers of the right sizes with all weights 0."""
        stages = Stage1(model.d_model, space), Stage2(model.d_model, space)
        return cls(*stages, encoder, encoder, space, model, budgets_ms)

    def parameter_counts(self) -> dict[str, int]:
        """Returns the parameters of each part, and the size of the frozen buffers, which do not count as parameters."""
        parts = [name for name in self._modules() if name != "expected_latency"]
        counts = {name: _count(self._modules()[name].parameters()) for name in parts}
        counts["frozen_buffers"] = sum(_count(stage.buffers()) for stage in (self.stage1, self.stage2))
        return counts

    def save_pretrained(self, directory: Path | str) -> None:
        """Writes the checkpoint. The JSON comes last: its presence means that the checkpoint is complete."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = save(self._tensors(), metadata={"format": "pt"})
        write_atomically(directory / WEIGHTS_NAME, weights)
        record = {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "model": vars(self.model),
            "knobs": self.space.to_dict(),
            "budgets_ms": list(self.budgets_ms),
            "conditions": self.conditions.to_dict(),
            "expected_latency": None if self.expected_latency is None else self.expected_latency.to_dict(),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "cache_fingerprint": self.cache_fingerprint,
            "budget_encoder_sha256": encoder_digest(self.budget_encoder),
            "trained_budget_encoder": self.stage1_budget_encoder is not self.budget_encoder,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "parameters": self.parameter_counts(),
            "settings": self.settings,
            "created_by": self.created_by,
        }
        write_atomically(directory / CONFIG_NAME, dump_json(record))

    @classmethod
    def from_pretrained(cls, path_or_hub_id: Path | str, *, revision: str | None = None) -> Controllers:
        """Reads a checkpoint from a directory or the Hugging Face hub.

        Args:
            path_or_hub_id: a directory, or `owner/name` or `owner/name@revision` where no directory `owner` exists.
            revision: branch, tag or commit on the hub; a commit always gives the same controllers.

        Raises:
            CheckpointError: it is absent, damaged or of another version; the message names the file and the field.
        """
        directory, source = _locate(path_or_hub_id, revision)
        config_path, weights_path = directory / CONFIG_NAME, directory / WEIGHTS_NAME
        record = read_json(config_path, error=CheckpointError)
        where = str(config_path)
        fields = _of_this_version(record, where)
        space, model, budgets_ms = _checked_config(fields, where)
        made = cls.untrained(space, model, budgets_ms, BudgetEncoder.from_seed(model.d_model, 0))
        made.conditions = Conditions.from_fields(fields.fields("conditions"), model.n_blocks)
        made.expected_latency = fields.optional(
            "expected_latency", lambda inner, name: ExpectedLatency.from_fields(inner.fields(name), space)
        )
        made.calibration = fields.optional(
            "calibration", lambda inner, name: Calibration.from_fields(inner.fields(name))
        )
        if record.get("trained_budget_encoder") is True:
            made.stage1_budget_encoder = BudgetEncoder.from_seed(model.d_model, 0)
        load_weights(made._modules(), weights_path, max_bytes=MAX_WEIGHT_BYTES, digest=record.get("weights_sha256"))
        if made.expected_latency is not None:
            made.expected_latency.check(str(weights_path), CheckpointError)
        made.cache_fingerprint = fields.optional("cache_fingerprint", JsonFields.text)
        made.settings = fields.optional("settings", JsonFields.record) or {}
        made.created_by = fields.optional("created_by", JsonFields.text)
        made.source = source
        return made

    def budget_factor(self, within: float) -> float:
        """Returns the budget factor of a service level. Raises CheckpointError, with the reason, without one."""
        if self.calibration is None:
            raise CheckpointError(
                f"these controllers can promise no service level (--within {within:g}): the split `val` of their cache "
                f"had too few images: {within:g} needs at least {2 * least_images(within)}. Train them on a cache with "
                "more samples"
            )
        return self.calibration.budget_factor(within)

    def require_answerable(self, where: str) -> None:
        """Raises CheckpointError, naming `where` and what is missing, unless a question can be answered with these."""
        lacks = self.conditions.missing()
        lacks += ["expected latencies"] if self.expected_latency is None else []
        lacks += ["insertion positions"] if None in self.space.insertion_positions else []
        if lacks:
            raise CheckpointError(
                f"{where} cannot answer questions, because the cache it was trained on did not record "
                f"{', '.join(lacks)}: train on a cache that `knobctl precompute --model` wrote"
            )

    def check_fits(
        self,
        what: str,
        *,
        space: KnobSpace,
        model: ModelIdentity,
        encoder: BudgetEncoder | None,
    ) -> None:
        """Checks that the controllers belong to this knob space, model and budget encoder.

        Another cache of the same kind is accepted. Fingerprints are compared where both sides have one.

        Args:
            what: names the cache or model in the message, such as "cache runs/cache".

        Raises:
            CacheMismatch: naming both sides.
        """
        mine = f"the controllers (made for model {self.model.name})"
        if (space.tiers, space.insertion_positions, space.top_k, space.num_blocks) != (
            self.space.tiers,
            self.space.insertion_positions,
            self.space.top_k,
            self.space.num_blocks,
        ):
            raise CacheMismatch(f"{mine} choose among {self.space}, but {what} has {space}: train controllers on it")
        for name in ("d_model", "n_blocks", "native_top_k"):
            own, other = getattr(self.model, name), getattr(model, name)
            if own != other:
                raise CacheMismatch(
                    f"{mine} need a model with {name} {own}, but {what} (model {model.name}) has {name} {other}"
                )
        fingerprints = (self.model.fingerprint, model.fingerprint)
        if None not in fingerprints and fingerprints[0] != fingerprints[1]:
            raise CacheMismatch(
                f"{mine}, fingerprint {str(fingerprints[0])[:12]}, do not fit {what}, made with model {model.name}, "
                f"fingerprint {str(fingerprints[1])[:12]}: use controllers trained for that model"
            )
        if encoder is not None and encoder_digest(encoder) != encoder_digest(self.budget_encoder):
            raise CacheMismatch(
                f"{mine} were trained with budget encoder {encoder_digest(self.budget_encoder)[:12]}, but {what} has "
                f"{encoder_digest(encoder)[:12]}, so its latency tokens mean other budgets: train controllers on it"
            )

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {
            "stage1": self.stage1,
            "stage2": self.stage2,
            "budget_encoder": self.budget_encoder,
        }
        if self.stage1_budget_encoder is not self.budget_encoder:
            modules["stage1_budget_encoder"] = self.stage1_budget_encoder
        if self.expected_latency is not None:
            modules["expected_latency"] = self.expected_latency
        return modules

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, module in self._modules().items()
            for name, tensor in module.state_dict().items()
        }


def _count(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _locate(path_or_hub_id: Path | str, revision: str | None) -> tuple[Path, str]:
    """Returns the directory of a checkpoint, fetched if it is on the hub, and where it comes from."""
    name = str(path_or_hub_id)
    if revision is None and not Path(name).exists():
        name, _, pinned = name.partition("@")
        revision = pinned or None
    path = existing_directory(name, "a controllers' checkpoint", error=CheckpointError)
    if path is not None:
        if not (path / CONFIG_NAME).is_file():
            seeds = sorted(one.parent.name for one in path.glob(f"seed-*/{CONFIG_NAME}"))
            if seeds:
                raise CheckpointError(f"{path} holds several controllers: name one, such as {path / seeds[0]}")
            raise CheckpointError(
                f"{path} holds no {CONFIG_NAME}: it is not a controllers' checkpoint, or half-written"
            )
        return path, str(path)
    files = (CONFIG_NAME, WEIGHTS_NAME)
    found, source = fetch_controllers(name, revision, files, max_bytes=MAX_WEIGHT_BYTES, error=CheckpointError)
    if not (found / CONFIG_NAME).is_file():
        raise CheckpointError(f"{source} on the hub holds no {CONFIG_NAME}: it is not a controllers' checkpoint")
    return found, source


def _of_this_version(record: Any, where: str) -> JsonFields:
    """Returns the fields of `controllers.json`. Raises CheckpointError for another format or version."""
    fields = JsonFields(record, where, CheckpointError)
    if fields.value("format", None) != FORMAT_NAME:
        raise CheckpointError(f"{where} does not have format {FORMAT_NAME!r}: it is not a controllers' checkpoint")
    version = fields.integer("version")
    if version != FORMAT_VERSION:
        remedy = "train it again with `knobctl train CACHE --out DIRECTORY`" if version == 1 else "upgrade knobctl"
        raise CheckpointError(f"{where} has version {version}, but this knobctl reads {FORMAT_VERSION}: {remedy}")
    return fields


def _checked_config(fields: JsonFields, where: str) -> tuple[KnobSpace, ModelIdentity, tuple[float, ...]]:
    """Returns what determines the controllers' sizes, after checking that it is within bounds."""
    model = fields.fields("model")
    identity = ModelIdentity(
        model.text("name"),
        d_model=model.integer("d_model", 1, MAX_D_MODEL),
        n_blocks=model.integer("n_blocks", 1, MAX_BLOCKS),
        native_top_k=model.integer("native_top_k", 1, MAX_BLOCKS),
        fingerprint=model.optional("fingerprint", JsonFields.text),
        dtype=model.optional("dtype", JsonFields.text),
        family=model.optional("family", JsonFields.text),
    )
    budgets_ms = tuple(fields.each("budgets_ms", JsonFields.positive))
    space = KnobSpace.from_fields(fields.fields("knobs"))
    sizes = [len(axis) for axis in (space.tiers, space.insertion_positions, space.top_k, space.num_blocks)]
    if sizes[0] * sizes[1] * sizes[2] * sizes[3] > MAX_SETTINGS:
        raise CheckpointError(f"{where} declares {sizes} knob values, more than {MAX_SETTINGS} combinations")
    built = _bytes_built(identity.d_model, space)
    if built > MAX_BUILT_BYTES:
        raise CheckpointError(f"{where} declares {sizes} knob values: the controllers would take {built:,} bytes")
    return space, identity, budgets_ms


def _bytes_built(d_model: int, space: KnobSpace) -> int:
    """Returns the bytes that both stages take in memory, without allocating them."""
    with torch.device("meta"):
        stages = Stage1(d_model, space), Stage2(d_model, space)
    tensors = [tensor for stage in stages for tensor in (*stage.parameters(), *stage.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
