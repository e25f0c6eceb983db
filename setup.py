"""The catalog file lives at the top of the repository, for people to find; an installed package carries it inside."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithCatalog(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file("data_catalog.yaml", str(Path(self.build_lib, "workbench", "data_catalog.yaml")))


setup(cmdclass={"build_py": BuildWithCatalog})
