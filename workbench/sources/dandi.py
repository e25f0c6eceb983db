"""What a dandiset holds, asked of the DANDI archive (https://dandiarchive.org) over its REST API, without an account.

    dandiset, version, glob → pages of assets → Remote: path, download address, size, sha256

`metadata=true` adds each asset's digests, and pages are followed by their `next` (as dandi/dandidav documents in
doc/api-requests.md). Another instance of the archive is named by DANDI_API_URL.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from workbench.errors import DatasetNotAvailable
from workbench.sources.download import Remote, get_json

API = "https://api.dandiarchive.org/api"


def assets(dandiset: str, version: str, glob: str = "*.nwb") -> list[Remote]:
    """The files of a published version (or "draft") whose path matches `glob`, in the order of their paths.

    Raises NoNetwork, and DatasetNotAvailable where the archive has no such version or no such file.
    """
    base = os.environ.get("DANDI_API_URL", API).rstrip("/")
    url = f"{base}/dandisets/{dandiset}/versions/{version}/assets/"
    query, found = {"metadata": "true", "order": "path", "page_size": 100}, []
    while url:
        page = get_json(url, query)
        for asset in page["results"]:
            if PurePosixPath(asset["path"]).match(glob):
                digests = (asset.get("metadata") or {}).get("digest") or {}
                found.append(Remote(asset["path"], f"{base}/assets/{asset['asset_id']}/download/", asset["size"],
                                    digests.get("dandi:sha2-256", "")))
        url, query = page["next"], None                                 # the next address carries the query
    if not found:
        raise DatasetNotAvailable(f"dandiset {dandiset} version {version} has no file like {glob!r}; correct the glob "
                                  "of the catalog entry")
    return sorted(found)
