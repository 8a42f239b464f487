"""Publishes a cache or controllers on the hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ..data.cache.manifest import MANIFEST_NAME
from ..data.cache.publish import cache_publication
from ..data.cards import CARD_NAME, published, read_card
from ..data.errors import CheckpointError, KnobctlError
from ..data.hub.upload import Publication, PushReport, push
from .checkpoint import CONFIG_NAME, WEIGHTS_NAME, Controllers


def controllers_publication(directory: Path, repo_id: str, scratch: Path) -> Publication:
    """Returns the files to publish: checkpoint and card, but no logs and no training state.

    Raises:
        CheckpointError: the controllers cannot be loaded, or have no card.
    """
    from huggingface_hub import ModelCard

    if not (directory / CONFIG_NAME).is_file() and (seeds := sorted(directory.glob(f"*/{CONFIG_NAME}"))):
        raise CheckpointError(f"{directory} holds the controllers of several seeds: publish one, {seeds[0].parent}")
    controllers = Controllers.from_pretrained(directory)
    text = read_card(directory / CARD_NAME) if (directory / CARD_NAME).is_file() else None
    if text is None:
        raise CheckpointError(
            f"{directory} has no readable card, {CARD_NAME}: write it with `knobctl validate {directory} --cache CACHE "
            "--card`"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / CARD_NAME).write_text(published(text, repo_id), encoding="utf-8")
    notes = []
    if Path(controllers.model.name).is_absolute():
        notes.append(f"they name their model by a path of this machine, {controllers.model.name}: it is published too")
    if not ModelCard(text, ignore_metadata_errors=True).data.get("license"):
        notes.append(f"{CARD_NAME} states no licence: add `license:` to its first lines")
    files = {CARD_NAME: scratch / CARD_NAME, **{name: directory / name for name in (CONFIG_NAME, WEIGHTS_NAME)}}
    return Publication("model", files, (), notes=notes)


def publish(
    directory: Path, repo_id: str, *, private: bool = False, dry_run: bool = False, include_questions: bool = False
) -> PushReport:
    """Publishes a cache as a dataset, or controllers as a model, and returns what was sent.

    Args:
        include_questions: publish a cache with questions, answers and image references.

    Raises:
        KnobctlError: the directory holds neither, or it cannot be published.
    """
    if not directory.is_dir():
        raise KnobctlError(f"there is no directory {directory}: give that of a cache or of controllers")
    with TemporaryDirectory(prefix="knobctl-push-") as scratch:
        if (directory / MANIFEST_NAME).is_file():
            found = cache_publication(directory, repo_id, Path(scratch), include_questions=include_questions)
        elif include_questions:
            raise KnobctlError(f"{directory} is not a cache: leave --include-questions out")
        else:
            found = controllers_publication(directory, repo_id, Path(scratch))
        return push(found, repo_id, private=private, dry_run=dry_run)
