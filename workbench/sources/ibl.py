"""IBL Brain-Wide Map: one session of the International Brain Laboratory, found by ONE-api, as a Session.

    a session folder of a ONE cache → One(mode='local'), tables made anew from the files → ALF objects → Session
    Alyx, with the user's account   → OneAlyx downloads what a Session needs → a session folder, put in place whole

What the objects mean: `workbench.sources.alf`. ONE's own tables are not used: released ones list revisions older than
the files, and without tables ONE answers every search with nothing. Data: IBL et al., doi:10.6084/m9.figshare.21400815,
CC-BY-4.0; ONE-api: MIT. Credentials are taken from ALYX_LOGIN with ALYX_PASSWORD or ALYX_TOKEN, else from ONE's own
parameter file, and are not kept.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from workbench.errors import BadRecording, DatasetNotAvailable, NeedsAccount, NeedsExtra, NoNetwork, UnknownName
from workbench.session import Session
from workbench.sources import alf

URL = "https://openalyx.internationalbrainlab.org"
STEPS = ("make an account at {url}/signup (e-mail or ORCID), then set ALYX_LOGIN and ALYX_PASSWORD in the environment, "
         "or ALYX_TOKEN (shown at {url}/me) alone, or log in once with ONE.setup()")
UUID = "-".join("[0-9a-f]" * n for n in (8, 4, 4, 4, 12))                # as a glob
SESSION = re.compile(r"(?P<subject>.+)_(?P<date>\d{4}-\d\d-\d\d)_(?P<number>\d{3})")
beside = alf.beside                                                     # what a converted copy depends on


def read(path: str | Path, *, id: str | None = None, probes: list[str] | None = None,
         sorters: list[str] | None = None, min_label: float | None = 1.0, in_brain: bool = True,
         wheel_rate: float = 50.0) -> Session:
    """The session in a folder `[<lab>/Subjects/]<subject>/<yyyy-mm-dd>/<nnn>`, without a network.

    The defaults keep the units that pass all three quality criteria and lie in a brain region; a warning and the
    description say how many of how many. Options: `workbench.sources.alf.assemble`. Raises NeedsExtra without ONE-api,
    BadRecording for a folder that is no session or whose files do not fit together, UnknownName for a probe.
    """
    path = alf.folder(path)
    path = path.parent if path.name == "alf" else path
    if alf.session_id(path) == path.name:
        raise BadRecording(f"{path} is not the folder of an IBL session, which ends in <subject>/<yyyy-mm-dd>/<nnn>; "
                           "give that folder, or read loose ALF files with workbench.sources.alf.read")
    if not alf.recognises(path):
        raise BadRecording(f"{path} has no spikes.times*.npy in its alf folder; fetch the session, or check the path")
    _api()
    from one.alf.cache import make_parquet_db
    from one.api import One
    root = path.parents[4] if path.parents[2].name == "Subjects" else path.parents[2]
    with TemporaryDirectory() as tables:
        make_parquet_db(path, out_dir=tables)
        one = One(cache_dir=root, tables_dir=tables, mode="local")
        return _assembled(one, path, path, id=id, probes=probes, sorters=sorters, min_label=min_label,
                          in_brain=in_brain, wheel_rate=wheel_rate)


def fetch(session: str, folder: str | Path, url: str = URL) -> Path:
    """Download what `read` needs of one session, `<subject>_<date>_<number>` or its UUID; its folder under `folder`.

    An interrupted download goes on where it stopped and is not seen as a session. Raises NeedsAccount with the steps
    where there is no login or it is refused, NoNetwork, UnknownName for a session that is not there, NeedsExtra. What
    is under `folder` already stays as it is, and nothing is downloaded for it.
    """
    folder = Path(folder).expanduser().absolute()
    incoming = folder / ".incoming"
    one = _account(incoming, url)
    for part in incoming.rglob(f"*.{UUID}.*"):                          # ONE would take half of a file for the file
        part.unlink()
    try:
        eid, here = _find(one, session, url)
        whole = folder / here.relative_to(incoming)
        if whole.exists():
            return whole
        # Reading once fetches what reading needs, and shows that it can be read.
        _assembled(one, eid, here, id=session, probes=None, sorters=None, min_label=None, in_brain=False, wheel_rate=50)
    except _network_errors() as error:
        raise _refused(error, url) from None
    whole.parent.mkdir(parents=True, exist_ok=True)
    os.replace(here, whole)
    return whole


class _Objects:
    """The ALF objects of one session of ONE; where it is online, files are fetched when they are asked for."""

    def __init__(self, one, eid, where: str):
        self.one, self.eid, self.where = one, eid, where

    def collections(self, object: str) -> list[str]:
        return list(self.one.list_collections(self.eid, filename={"object": object}))

    def load(self, collection: str, object: str, attributes: tuple[str, ...] | None = None) -> dict:
        from one.alf.exceptions import ALFError, ALFObjectNotFound, ALFWarning
        wanted = {} if attributes is None else {"attribute": list(attributes)}
        online = self.one.mode == "remote"                              # then a damaged file is fetched again
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ALFWarning)             # no default revision: take the newest
                return dict(self.one.load_object(self.eid, object, collection=collection, check_hash=online, **wanted))
        except ALFObjectNotFound:
            return {}
        except (ALFError, ValueError, OSError, EOFError, AssertionError) as error:
            if isinstance(error, _network_errors()):
                raise
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "multiple" in said:
                raise BadRecording(f"{self.where}, {collection}: two files hold the same of {object!r}, such as a .csv "
                                   "beside a .pqt; keep the one that is meant") from error
            raise BadRecording(f"{self.where}, {collection}: the files of {object!r} cannot be read ({said}); one is "
                               "damaged or cut short: fetch the session again") from error


def _assembled(one, eid, path: Path, *, id: str | None, **options) -> Session:
    return alf.assemble(_Objects(one, eid, str(path)), id=id or alf.session_id(path), subject=alf.subject(path),
                        **options)


def _api() -> None:
    try:
        import one.api  # noqa: F401
    except ImportError:
        raise NeedsExtra("IBL sessions are read with ONE-api, which is not installed; run: "
                         "pip install 'spike-workbench[ibl]'") from None


def _account(cache: Path, url: str):
    """ONE with the user's login, asking nothing: a notebook must not wait for an answer on a terminal."""
    _api()
    import requests
    from one.api import OneAlyx
    try:
        requests.get(url, timeout=(3, 10))
    except requests.RequestException as error:
        raise NoNetwork(f"{url} does not answer ({type(error).__name__}), and the IBL sessions come from there; check "
                        "the network, or name the folder of sessions that you have in WORKBENCH_DATA") from None
    cache.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # no tables yet, no password in silent mode
        one = OneAlyx(mode="local", base_url=url, cache_dir=cache, silent=True, cache_rest=None)
        try:
            one.alyx.authenticate(os.environ.get("ALYX_LOGIN"), os.environ.get("ALYX_PASSWORD"), cache_token=False,
                                  token=os.environ.get("ALYX_TOKEN"))
        except (ValueError, *_network_errors()) as error:
            raise _refused(error, url) from None
    one.mode = "remote"
    return one


def _find(one, session: str, url: str) -> tuple[str, Path]:
    """The UUID of a session and its folder here. The server finds parts of names: KS014 is in KS0140 too."""
    from one.alf.spec import is_uuid_string
    named = SESSION.fullmatch(session)
    found = [session] if is_uuid_string(session) else []
    if named:
        found = one.search(subject=named["subject"], date_range=named["date"], number=int(named["number"]))
    paths = {str(eid): one.eid2path(eid) for eid in found}
    for eid, path in paths.items():
        if path is not None and session in (eid, alf.session_id(Path(path))):
            return eid, Path(path)
    raise UnknownName("session", session, [alf.session_id(Path(p)) for p in paths.values() if p], where=url,
                      hint="sessions are called <subject>_<yyyy-mm-dd>_<nnn>")


def _network_errors() -> tuple[type[Exception], ...]:
    import requests
    return requests.RequestException, ConnectionError


def _refused(error: Exception, url: str) -> DatasetNotAvailable:
    status = _status(error)
    if (isinstance(error, ValueError) and status is None) or status in (400, 401, 403):
        how = "has no login" if status is None else "refused the login"
        return NeedsAccount(f"{url} {how}: IBL sessions are free but need an account; {STEPS.format(url=url)}")
    return NoNetwork(f"{url} stopped answering ({str(error).splitlines()[0]}); run the same command again, it goes on "
                     "where it stopped")


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
