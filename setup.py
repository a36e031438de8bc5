"""Everything about the package is in pyproject.toml; here only that no wheel takes modules from an old build/."""

import shutil

from setuptools import setup
from setuptools.command.build import build


class FreshBuild(build):
    """Builds into an empty folder: `build/lib` of an earlier version would keep modules that were deleted since."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build": FreshBuild})
