"""Everything a user can get wrong, told in one sentence: what was wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class WorkbenchError(Exception):
    """Base of every error that the workbench raises on purpose."""


class BadRecording(WorkbenchError, ValueError):
    """A recording that cannot be read as a session: not the format, a damaged file, impossible values."""


class CannotWrite(WorkbenchError, OSError):
    """A file that could not be put in its place; what was there before is as it was."""


class UnknownName(WorkbenchError, LookupError):
    """A name that is not there: a dataset, a series, a model, a recipe, a unit."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "", hint: str = ""):
        known = [str(k) for k in known]
        near = get_close_matches(str(name), known, n=3, cutoff=0.5)
        listed = near or known[:12]
        says = "did you mean" if near else "there are"
        more = f" and {len(known) - 12} more" if not near and len(known) > 12 else ""
        tail = f"{says} {', '.join(listed)}{more}" if listed else "there are none"
        place = f" in {where}" if where else ""
        super().__init__(f"no {kind} {str(name)!r}{place}; {tail}{'; ' + hint if hint else ''}")


class DatasetNotAvailable(WorkbenchError):
    """A dataset that the catalog knows and this computer does not hold: where it was looked for, how to get it."""


class NoNetwork(DatasetNotAvailable):
    """The server did not answer."""


class NeedsAccount(DatasetNotAvailable):
    """The server wants to know who asks."""


class NeedsExtra(DatasetNotAvailable):
    """A dataset whose reader needs a package that is not installed."""


class ManualDownload(DatasetNotAvailable):
    """A dataset that only a person can fetch: the steps."""


class FileDamaged(DatasetNotAvailable):
    """A downloaded file that is not the one that was promised."""
