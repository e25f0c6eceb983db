"""What a dandiset holds, asked of the DANDI archive (https://dandiarchive.org) over its REST API, without an account.

    dandiset, version, glob → pages of assets → Remote: path, download address, size, sha256
    dandiset, version, path → the one asset with that path

`metadata=true` adds each asset's digests, and pages are followed by their `next` (as dandi/dandidav documents in
doc/api-requests.md). Another instance of the archive is named by DANDI_API_URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import PurePosixPath

from workbench.errors import DatasetNotAvailable, NoNetwork
from workbench.sources.download import Remote, get_json

API = "https://api.dandiarchive.org/api"


def newest(dandiset: str) -> str:
    """The newest published version of a dandiset. DatasetNotAvailable where there is none."""
    published = get_json(f"{_base()}/dandisets/{dandiset}/").get("most_recent_published_version")
    if not published:
        raise DatasetNotAvailable(f"dandiset {dandiset} has no published version; name its draft, as in "
                                  f"dandi:{dandiset}@draft/<path>")
    return published["version"]


def asset(dandiset: str, version: str, path: str) -> Remote:
    """The file of that path. The errors of `assets`."""
    for found in _listed(dandiset, version, path=path):                 # the archive gives all that begin so
        if found.path == path:
            return found
    raise DatasetNotAvailable(f"dandiset {dandiset} version {version} has no file {path!r}; its files are listed at "
                              f"https://dandiarchive.org/dandiset/{dandiset}/{version}/files")


def assets(dandiset: str, version: str, glob: str = "*.nwb") -> list[Remote]:
    """The files of a published version (or "draft") whose path matches `glob`, in the order of their paths.

    Raises NoNetwork, and DatasetNotAvailable where the archive has no such version or no such file.
    """
    found = [file for file in _listed(dandiset, version) if PurePosixPath(file.path).match(glob)]
    if not found:
        raise DatasetNotAvailable(f"dandiset {dandiset} version {version} has no file like {glob!r}; correct the glob "
                                  "of the catalog entry")
    return sorted(found)


def _base() -> str:
    return os.environ.get("DANDI_API_URL", API).rstrip("/")


def _listed(dandiset: str, version: str, **query: str) -> Iterator[Remote]:
    url = f"{_base()}/dandisets/{dandiset}/versions/{version}/assets/"
    query = {"metadata": "true", "order": "path", "page_size": "100"} | query
    while url:
        page = get_json(url, query)
        if "results" not in page:
            raise NoNetwork(f"what answers at {_base()} is not a DANDI archive: it sends no list of files; sign in to "
                            "the network, or correct DANDI_API_URL, and try again")
        for item in page["results"]:
            digests = (item.get("metadata") or {}).get("digest") or {}
            yield Remote(item["path"], f"{_base()}/assets/{item['asset_id']}/download/", item["size"],
                         digests.get("dandi:sha2-256", ""))
        url, query = page["next"], None                                 # the next address carries the query
