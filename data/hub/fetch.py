"""Fetches a repository at one commit, which is resolved first, so that all files are of the same state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import CacheError, KnobctlError
from ..paths import HUB_ID, user_cache_directory
from .request import hub_request

_URI = re.compile(rf"hf:/{{1,2}}datasets/(?P<repo>{HUB_ID})(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_uri(path: Path | str) -> bool:
    """Whether a path is a hub address, `hf://...`; `Path` turns its two slashes into one."""
    return str(path).startswith("hf:/")


def fetch_cache(uri: str, manifest: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """Fetches a cache; one that was fetched before is not fetched again.

    Its files lie in the user's cache directory, one folder for each commit.

    Args:
        uri: `hf://datasets/owner/name`, or `...@revision` with a branch, tag or commit.
        manifest: the file that is fetched last: its presence means complete.
        patterns: the other files of a cache; the repository may hold more.

    Returns:
        The directory, and the address with the commit.

    Raises:
        CacheError: the address is malformed, or the repository cannot be fetched or holds no cache.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    match = _URI.fullmatch(uri)
    if match is None:
        raise CacheError(f"{uri} is not the address of a cache: write hf://datasets/OWNER/NAME or ...@REVISION")
    repo, revision = match["repo"], match["revision"]
    root = user_cache_directory() / "hub" / repo.replace("/", "--")
    if revision is not None and _COMMIT.fullmatch(revision) and (root / revision / manifest).is_file():
        return root / revision, f"hf://datasets/{repo}@{revision}"
    with hub_request(f"{uri} cannot be fetched", CacheError):
        info = HfApi().dataset_info(repo, revision=revision)
    commit = str(info.sha)
    directory, source = root / commit, f"hf://datasets/{repo}@{commit}"
    if not _COMMIT.fullmatch(commit) or manifest not in {file.rfilename for file in info.siblings or ()}:
        raise CacheError(f"{source} holds no {manifest}: it is not a knobctl cache")
    if not (directory / manifest).is_file():
        with hub_request(f"{source} cannot be fetched", CacheError):
            snapshot_download(
                repo, repo_type="dataset", revision=commit, allow_patterns=list(patterns), local_dir=directory
            )
            hf_hub_download(repo, manifest, repo_type="dataset", revision=commit, local_dir=directory)
    return directory, source


def fetch_controllers(
    repo: str, revision: str | None, names: Sequence[str], *, max_bytes: int, error: type[KnobctlError]
) -> tuple[Path, str]:
    """Fetches some files of a model repository into huggingface_hub's cache.

    Without a connection, files that were fetched before are used.

    Returns:
        The directory, and `owner/name@commit`.

    Raises:
        error: they cannot be fetched, or are larger than `max_bytes`.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    what = f"{repo} is not a directory here, and cannot be fetched from the hub"
    with hub_request(what, error):
        try:
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        except HfHubHTTPError:
            raise
        except (HTTPError, OSError) as cause:  # no connection
            try:
                found = snapshot_download(repo, revision=revision, allow_patterns=list(names), local_files_only=True)
            except LocalEntryNotFoundError:
                raise cause from None
            return Path(found), f"{repo}@{Path(found).name}"
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        too_large = [name for name in names if sizes.get(name, 0) > max_bytes]
        if too_large:
            raise error(f"{repo} on the hub: {too_large[0]} is larger than {max_bytes:,} bytes: it was not fetched")
        found = snapshot_download(repo, revision=info.sha, allow_patterns=list(names))
    return Path(found), f"{repo}@{info.sha}"
