"""Publishes a fixed list of files in one commit; only files whose digest the hub lacks are sent."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import KnobctlError
from ..paths import is_hub_id
from .request import hub_request

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Publication:
    """What is published: the files by their path in the repository, and what a reader should know about them."""

    kind: Kind
    files: Mapping[str, Path]
    own_patterns: Sequence[str]  # paths in the repository that are removed if they are not among `files`
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by table, columns that are not published
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PushReport:
    """What a push sent, and where to."""

    repo_id: str
    kind: Kind
    private: bool
    dry_run: bool
    files: dict[str, dict[str, Any]]  # path in the repository: bytes, sha256, sent
    removed: tuple[str, ...]
    left_out: dict[str, list[str]]
    commit: str | None  # of the published state; None for a dry run
    url: str | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON."""
        return vars(self) | {"removed": list(self.removed), "notes": list(self.notes)}


def push(publication: Publication, repo_id: str, *, private: bool = False, dry_run: bool = False) -> PushReport:
    """Publishes the files, creating the repository if necessary.

    Args:
        private: create the repository private; an existing one keeps its visibility.
        dry_run: only report what would be published; nothing is sent, and no login is needed.

    Raises:
        KnobctlError: `repo_id` is not `owner/name`, there is no login, or the hub refuses.
    """
    if not is_hub_id(repo_id):
        raise KnobctlError(f"{repo_id!r} is not the name of a repository: write OWNER/NAME")
    digests = {path: _digests(file) for path, file in publication.files.items()}
    files = {
        path: {"bytes": file.stat().st_size, "sha256": digests[path][0], "sent": False}
        for path, file in publication.files.items()
    }
    left_out = {table: list(columns) for table, columns in publication.left_out.items()}
    shared = (repo_id, publication.kind, private, dry_run, files)
    if dry_run:
        return PushReport(*shared, (), left_out, None, None, tuple(publication.notes))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise KnobctlError("publishing needs a login: run `hf auth login`, or set the environment variable HF_TOKEN")
    api = HfApi()
    with hub_request(f"{repo_id} cannot be published", KnobctlError):
        url = api.create_repo(repo_id, repo_type=publication.kind, private=private or None, exist_ok=True)
        there = _remote_digests(api, repo_id, publication.kind)
        for path, file in files.items():
            file["sent"] = there.get(path) not in digests[path]
        removed = [
            path
            for path in sorted(there)
            if path not in files and any(fnmatch.fnmatchcase(path, pattern) for pattern in publication.own_patterns)
        ]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, publication.files[path]) for path, file in files.items() if file["sent"]
        ]
        operations += [CommitOperationDelete(path) for path in removed]
        if operations:
            commit = api.create_commit(
                repo_id,
                operations,
                repo_type=publication.kind,
                commit_message=f"Publish {'a cache' if publication.kind == 'dataset' else 'controllers'} with knobctl",
            ).oid
        else:
            commit = str(api.repo_info(repo_id, repo_type=publication.kind).sha)
    return PushReport(*shared, tuple(removed), left_out, commit, str(url), tuple(publication.notes))


def _digests(path: Path) -> tuple[str, str]:
    """Returns a file's sha256, by which the hub knows large files, and its git blob id, for small ones."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    blob.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            blob.update(chunk)
    return sha256.hexdigest(), blob.hexdigest()


def _remote_digests(api: HfApi, repo_id: str, kind: Kind) -> dict[str, str]:
    """Returns the digest of every file in the repository."""
    from huggingface_hub import RepoFile

    tree = api.list_repo_tree(repo_id, recursive=True, repo_type=kind)
    return {
        entry.path: entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
        for entry in tree
        if isinstance(entry, RepoFile)
    }
