# /// script
# requires-python = ">=3.10,<3.12"
# dependencies = ["allensdk==2.16.2", "hdmf<5"]
# ///
"""Fetch sessions and stimulus pictures of Allen Visual Coding - Neuropixels with allensdk's own EcephysProjectCache.

    uv run workbench/scripts/allensdk_fetch.py FOLDER --session 715093703 --scenes --movie 1

allensdk asks for numpy < 1.24, so it cannot live beside the workbench: uv runs this script in an environment of its own
(1.1 GB, made once). hdmf < 5, because no later one reads with the pynwb that allensdk brings. FOLDER gets the layout of
the public bucket, `session_<id>/session_<id>.nwb` and the template folders; as FOLDER/allen_neuropixels under
WORKBENCH_DATA its sessions open by name. What has its final name there is whole; a download that was cut starts anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import requests
from allensdk.brain_observatory.ecephys.ecephys_project_api import EcephysProjectWarehouseApi
from allensdk.brain_observatory.ecephys.ecephys_project_cache import EcephysProjectCache

SERVER = "http://api.brain-map.org"
SCENES = 118


def main() -> int:
    args = arguments()
    scheme, _, host = args.server.partition("://")
    api = EcephysProjectWarehouseApi.default(scheme=scheme, host=host, asynchronous=False, timeout=24 * 3600)
    cache = EcephysProjectCache(api, stream_writer=write_whole, manifest=str(args.folder / "manifest.json"))
    wanted: list[tuple[str, Callable]] = [(f"session {i}", lambda i=i: cache.get_session_data(i)) for i in args.session]
    if args.scenes:
        wanted += [(f"natural scene {i}", lambda i=i: cache.get_natural_scene_template(i)) for i in range(SCENES)]
    wanted += [(f"natural movie {i}", lambda i=i: cache.get_natural_movie_template(i)) for i in args.movie]
    if args.session:
        print(f"{len(args.session)} session(s) of 1.7 to 3.3 GB each and 58 MB of tables go to {args.folder}; what is "
              "there already is not fetched again", flush=True)
    for name, fetch in wanted:
        try:
            fetch()
        except requests.RequestException:
            print(f"{name}: {args.server} does not answer; check the network and run the same command again, what is "
                  f"in {args.folder} is kept", file=sys.stderr)
            return 1
        except Exception as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{name}: neither {args.server} nor {args.folder} has one that can be read ({type(error).__name__}: "
                  f"{said}); check the number", file=sys.stderr)
            return 1
        print(f"{name}: in {args.folder}", flush=True)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fetch sessions and pictures of Allen Visual Coding - Neuropixels.")
    parser.add_argument("folder", type=lambda path: Path(path).expanduser().absolute())
    parser.add_argument("--session", type=int, action="append", default=[], metavar="ID", help="may be given again")
    parser.add_argument("--scenes", action="store_true", help=f"the {SCENES} natural scenes")
    parser.add_argument("--movie", type=int, choices=(1, 3), action="append", default=[], help="frames of a movie")
    parser.add_argument("--server", default=SERVER, help="the warehouse, or a mirror of it (default: %(default)s)")
    args = parser.parse_args()
    if not (args.session or args.scenes or args.movie):
        parser.error("nothing to fetch: name a --session, --scenes or a --movie")
    return args


def write_whole(path: str, stream: Iterable[bytes]) -> None:
    """Write the stream under another name, and give it the final one when all of it is there."""
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as file:
            for chunk in stream:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
