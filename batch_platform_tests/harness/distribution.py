"""The distribution of the page on extending, built and installed as it stands there, for the suites that every extension passes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import pytest

from batch_platform.declaration import extensions
from batch_platform.declaration.extensions import Registry
from batch_platform_tests.harness.checkout import GUIDE, blocks
from batch_platform_tests.harness.starting_points import made_once

REGISTRIES = [value for value in vars(extensions).values() if isinstance(value, Registry)]


def install(site: Path) -> None:
    """Write the distribution, build it with what is installed here, and install it in a folder."""
    project = site.with_name("shop-extensions")
    rmtree(project, ignore_errors=True)
    (project / "shop").mkdir(parents=True)
    (project / "shop" / "__init__.py").touch()
    (declared,) = blocks("toml", GUIDE["extending"])
    (project / "pyproject.toml").write_text(declared)
    for block in blocks("python", GUIDE["extending"]):
        if file := re.match(r"# (shop/\w+\.py)\n", block):
            (project / file[1]).write_text(block)
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", site, project], check=True)


@contextmanager
def beside_the_package(site: Path) -> Iterator[None]:
    """Let this process and those that it starts find the distributions of a folder, and forget them at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
        registered = [dict(registry._loaded) for registry in REGISTRIES]
        extensions._entry_points.cache_clear()
        yield
    for registry, before in zip(REGISTRIES, registered, strict=True):
        registry._loaded = before
    extensions._entry_points.cache_clear()
    for module in [module for module in sys.modules if module.partition(".")[0] == "shop"]:
        del sys.modules[module]


@pytest.fixture(scope="module")
def shop_extensions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution of the guide is installed."""
    with beside_the_package(made_once(tmp_path_factory.getbasetemp(), "site_of_shop", install)):
        yield
