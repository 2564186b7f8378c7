"""The Python environment: a virtual one with vdcm installed in place and the tools of ``dev``.

Unlike the other artefacts it cannot be made elsewhere and renamed, since its scripts hold its
path. A stamp written last says that it is whole; without one it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ci.provision.cache import Cache, write_atomically
from ci.provision.console import Console, ProvisionError

STAMP = "vdcm-stamp.json"
# Builds the editable wheel's dynamic requirements; PEP 660 lets a backend ask for more.
_ASK_BACKEND = """\
import importlib, json, sys
name, _, attribute = sys.argv[1].partition(":")
backend = importlib.import_module(name)
for part in filter(None, attribute.split(".")):
    backend = getattr(backend, part)
ask = getattr(backend, "get_requires_for_build_editable", lambda settings: [])
print(json.dumps(ask({})), file=sys.stderr)
"""


def provide_python(
    console: Console,
    cache: Cache,
    project: Path,
    build_environment: Mapping[str, str],
    *,
    update: bool,
) -> Path:
    """The interpreter of the environment in which the checkout ``project`` is installed in place.

    ``build_environment``: variables for the native build. It is rebuilt when its sources or
    these change, without the network.
    """
    # What is installed depends on these two tables; the tools' settings may change freely.
    parsed = tomllib.loads((project / "pyproject.toml").read_text())
    key = _digest(
        [
            sys.version.encode(),
            os.path.realpath(sys.executable).encode(),
            bytes(project.resolve()),
            json.dumps([parsed.get("build-system"), parsed.get("project")]).encode(),
        ]
    )
    venv = cache.root / f"venv-{sys.version_info.major}.{sys.version_info.minor}-{key}"
    python = venv / "bin/python"
    native = _install_digest(project, build_environment)
    if update or _stamp(venv).get("native") != native:
        with cache.lock("venv"):
            stamp = _stamp(venv)
            if update or not stamp:
                _create(console, venv, python, project)
            if update or stamp.get("native") != native:
                _install(console, python, project, build_environment)
                stamp = {"native": native, "project": str(project.resolve())}
                write_atomically(venv / STAMP, json.dumps(stamp) + "\n")
    console.say("python", f"{sys.version.split()[0]} with vdcm from {project} ({venv})")
    return python


def prune_python(cache: Cache, used: Path) -> list[Path]:
    """Remove environments whose checkout is gone or that ``used`` (its interpreter) replaces."""
    keep = used.parent.parent
    project = _stamp(keep).get("project")
    with cache.lock("venv"):
        old = [
            venv
            for venv in cache.root.glob("venv-*")
            if venv != keep
            and (
                (owner := _stamp(venv).get("project")) in (None, project)
                or not Path(owner).exists()
            )
        ]
        for venv in old:
            shutil.rmtree(venv)
    return old


def _stamp(venv: Path) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads((venv / STAMP).read_text())
        return loaded
    except (OSError, ValueError):
        return {}


def _create(console: Console, venv: Path, python: Path, project: Path) -> None:
    console.say("python", f"making a virtual environment in {venv}")
    if venv.exists():
        shutil.rmtree(venv)
    console.run("python", "virtual environment", [sys.executable, "-m", "venv", str(venv)])
    build = tomllib.loads((project / "pyproject.toml").read_text()).get("build-system", {})
    # The build's tools live in the environment too: then a rebuild needs no network.
    _pip(console, python, "build tools", *build.get("requires", ["setuptools"]))
    backend = build.get("build-backend", "setuptools.build_meta")
    asked = subprocess.run(
        [str(python), "-c", _ASK_BACKEND, backend], cwd=project, capture_output=True, text=True
    )
    if asked.returncode:
        raise ProvisionError(f"the build backend {backend} does not answer:\n{asked.stderr}")
    more = json.loads(asked.stderr.splitlines()[-1])
    if more:
        _pip(console, python, "build tools", *more)


def _install(
    console: Console, python: Path, project: Path, build_environment: Mapping[str, str]
) -> None:
    console.say("python", "building the native module, installing vdcm and its requirements")
    where = f"{project}[dev]"
    # pip's tools (cmake, ninja) are found by name.
    environment = {
        **build_environment,
        "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    arguments = ["--no-build-isolation", "--editable", where]
    _pip(console, python, "vdcm", *arguments, environment=environment)


def _pip(
    console: Console,
    python: Path,
    what: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
) -> None:
    argv = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar"]
    console.run("python", f"pip: {what}", [*argv, "off", *arguments], env=environment)


def _install_digest(project: Path, build_environment: Mapping[str, str]) -> str:
    files = sorted(path for path in (project / "native").rglob("*") if path.is_file())
    for pattern in ("*.c", "*.h", "CMakeLists.txt"):  # of device models
        files += sorted((project / "vdcm_devices").rglob(pattern))
    top = project / "CMakeLists.txt"
    settings = tomllib.loads((project / "pyproject.toml").read_text()).get("tool", {})
    inputs = [dict(build_environment), settings.get("scikit-build")]
    parts = [json.dumps(inputs, sort_keys=True).encode()]
    for path in [*files, *([top] if top.exists() else [])]:
        if "__pycache__" not in path.parts:
            parts += [str(path.relative_to(project)).encode(), path.read_bytes()]
    # An editable install knows the modules that there were: a new one needs a new install.
    for package in sorted(project.glob("*/__init__.py")):
        names = sorted(str(path.relative_to(project)) for path in package.parent.rglob("*.py"))
        parts += [name.encode() for name in names]
    return _digest(parts)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:12]
