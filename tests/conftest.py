"""Shared fixtures. Real recordings are looked for beside the repository and never needed: tests skip without them."""

import os
from pathlib import Path

# The models of the tests are too small to share between cores, and threads that wait for each other starve the rest.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples at every run: a red test is about the change that made it red.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test recordings; WORKBENCH_TEST_DATA names another one."""
    folder = Path(os.environ.get("WORKBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder} (set WORKBENCH_TEST_DATA)")
    return folder


def pytest_collection_modifyitems(items):
    """A file's tests share what they set up and stay in one process; notebooks share little, and each is long.

    The long ones come first, so that no process is left with one when the others are done.
    """
    items.sort(key=lambda item: (item.path.name != "test_notebooks.py", item.path.parent.name != "apps"))
    for item in items:
        alone = item.path.name == "test_notebooks.py"
        item.add_marker(pytest.mark.xdist_group(item.name if alone else str(item.path)))
