"""Adds the example problems to a built package; everything else is in pyproject.toml.

The problem files live in examples/kernelbench/, where a reader looks for them. An installed
ConvSmith has them under convsmith/examples/kernelbench/, for `convsmith demo`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLES = Path("examples", "kernelbench")


class BuildWithExamples(build_py):
    """Copies the example problems beside the modules; an editable install reads them in place."""

    def run(self) -> None:
        """Build the modules, then copy the examples."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "convsmith", EXAMPLES)
            target.mkdir(parents=True, exist_ok=True)
            for example in EXAMPLES.glob("*.py"):
                shutil.copy(example, target)


setup(cmdclass={"build_py": BuildWithExamples})
