"""The distribution's package archive, through an apt with its own configuration and lists.

Nothing of the system's apt is changed: only its mirror, its ``Acquire`` options (proxies,
certificates) and its archive keyring are used. Packages are verified by apt as always.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ci.provision.cache import Cache
from ci.provision.console import CommandError, Console, ProvisionError

MIRROR_VARIABLE = "VDCM_DEBIAN_MIRROR"
_FRESH_SECONDS = 600.0  # lists this young serve a second run, as when two of them race


@dataclass(frozen=True)
class Distribution:
    """A distribution whose packages fit; ``qemu_suites`` are tried in order, newest need first."""

    name: str
    codename: str
    components: str
    keyring: str
    kernel_packages: tuple[str, ...]
    qemu_suites: tuple[tuple[str, ...], ...]


# QEMU has vfio-user-pci since 10.1. Each entry: the suite to install from, then those that its
# dependencies need. Only Debian 12 has been tried.
_QEMU_SUITES: dict[str, tuple[tuple[str, ...], ...]] = {
    "debian": (("trixie-backports", "trixie"),),
    "ubuntu": (("resolute",), ("questing",)),
}


def distribution(os_release: Path = Path("/etc/os-release")) -> Distribution:
    """The running system's distribution. Raises ProvisionError for one that is neither."""
    fields: dict[str, str] = {}
    if os_release.exists():
        for line in os_release.read_text().splitlines():
            key, _, value = line.partition("=")
            fields[key] = value.strip("\"'")
    name, codename = fields.get("ID", ""), fields.get("VERSION_CODENAME", "")
    if name not in _QEMU_SUITES or not codename:
        raise ProvisionError(
            f"packages are taken from Debian or Ubuntu, and this system is "
            f"{fields.get('PRETTY_NAME', 'unknown')}: set VDCM_QEMU and LIBVFIO_USER_PREFIX, "
            f"or use a container with Debian"
        )
    ubuntu = name == "ubuntu"
    flavour = "generic" if ubuntu else "amd64"
    return Distribution(
        name,
        codename,
        "main universe" if ubuntu else "main",
        f"/usr/share/keyrings/{name}-archive-keyring.gpg",
        (f"linux-image-{flavour}", f"linux-headers-{flavour}"),
        _QEMU_SUITES[name],
    )


def choose_mirror(targets: Iterable[str], dist: Distribution) -> str | None:
    """The address of the distribution's main archive among the system's configured ones.

    ``targets``: lines ``address|release|codename|origin|label|component`` of apt-get indextargets.
    Origin and label are empty (or the unexpanded name) until the system's first apt-get update.
    """
    best: tuple[int, str] | None = None
    for line in targets:
        address, release, codename, origin, label, component = line.split("|")
        if dist.codename not in (release, codename) or component != "main":
            continue
        named = {text.lower() for text in (origin, label) if text and "$" not in text}
        if named - {dist.name}:
            continue
        score = 2 * bool(named) + address.rstrip("/").endswith(f"/{dist.name}")
        if best is None or score > best[0]:
            best = (score, address)
    return best[1] if best else None


class Archive:
    """The archive of ``dist``, its lists kept in ``cache``."""

    def __init__(self, cache: Cache, console: Console, dist: Distribution) -> None:
        self.dist = dist
        self._cache = cache
        self._console = console
        self._home = cache.root / "apt"
        self._suites: set[str] = set()

    def refresh(self, suites: Sequence[str]) -> None:
        """Read the lists of these suites, once per run. A suite that fails raises CommandError."""
        if self._suites >= set(suites):
            return
        wanted = sorted(self._suites | set(suites))
        # A folder for each choice of suites: apt drops the lists of those that are not named.
        self._home = self._cache.root / "apt" / "+".join(wanted)
        with self._cache.lock("apt"):
            stamp = self._home / "fresh"
            changed = self._configure(wanted)
            age = time.time() - stamp.stat().st_mtime if stamp.exists() else _FRESH_SECONDS
            if changed or age >= _FRESH_SECONDS:
                stamp.unlink(missing_ok=True)
                self._console.say("apt", f"reading the package lists of {', '.join(wanted)}")
                # By default a list that fails is only a warning, and an old one would be used.
                update = ("-o", "APT::Update::Error-Mode=any", "update")
                self._apt("apt", "reading package lists", *update)
                stamp.touch()
        self._suites = set(wanted)

    def resolve(self, packages: Sequence[str], suite: str) -> dict[str, str]:
        """The closure of ``packages`` without recommendations: name to version.

        Nothing counts as installed, so that the answer is the same on every machine.
        """
        output = self._query("apt-get", "install", "-s", "-t", suite, *packages)
        return dict(re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", output, re.MULTILINE))

    def unpack(self, topic: str, packages: dict[str, str], root: Path) -> None:
        """Download exactly these packages and unpack them below ``root``; runs none of their
        scripts."""
        self._console.say(topic, f"downloading {len(packages)} packages")
        debs = root / ".debs"
        debs.mkdir(parents=True)
        names = [f"{name}={version}" for name, version in sorted(packages.items())]
        self._apt(topic, "downloading", "download", *names, cwd=debs)
        files = sorted(debs.glob("*.deb"))
        if len(files) != len(packages):
            raise ProvisionError(f"{len(packages)} packages were wanted, {len(files)} came")
        self._console.say(topic, "unpacking")
        for number, deb in enumerate(files, 1):
            what = f"unpacking {number} of {len(files)}"
            self._console.run(topic, what, ["dpkg-deb", "--extract", str(deb), str(root)])
            deb.unlink()
        debs.rmdir()

    def source_versions(self, package: str) -> list[str]:
        """The versions of a source package in the lists, oldest first."""
        output = self._query("apt-cache", "showsrc", "--only-source", package)
        found = set(re.findall(r"^Version: (\S+)", output, re.MULTILINE))
        ordered: list[str] = []
        for version in found:  # few; dpkg knows the order of versions
            place = sum(_older(other, version) for other in ordered)
            ordered.insert(place, version)
        return ordered

    def download_source(self, topic: str, package: str, version: str, into: Path) -> None:
        """Download and verify the files of a source package."""
        self._console.say(topic, f"downloading the source package {package} {version}")
        self._apt(
            topic, "downloading", "source", "--download-only", f"{package}={version}", cwd=into
        )

    def _configure(self, suites: Sequence[str]) -> bool:
        """Write apt's configuration; returns whether the sources are other than before."""
        for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        (self._home / "status").touch()
        signed = f"[signed-by={self.dist.keyring}] " if Path(self.dist.keyring).exists() else ""
        mirror = os.environ.get(MIRROR_VARIABLE) or self._system_mirror()
        sources = "".join(
            f"{kind} {signed}{mirror} {suite} {self.dist.components}\n"
            for suite in suites
            for kind in ("deb", "deb-src")
        )
        listed = self._home / "sources.list"
        changed = not listed.exists() or listed.read_text() != sources
        listed.write_text(sources)
        # Of the system's configuration only the transport's options are kept: its hooks act on
        # the system's own cache. Index targets other than packages and sources are not needed.
        kept = [
            line
            for line in subprocess.run(
                ["apt-config", "dump"], capture_output=True, text=True, check=True
            ).stdout.splitlines()
            if re.match(r"Acquire::(?!IndexTargets|Changelogs|Languages)\S", line)
        ]
        home = self._home
        (home / "apt.conf").write_text(
            "\n".join(
                [
                    *kept,
                    f'Dir::Etc::main "/dev/null"; Dir::Etc::parts "{home}/parts";',
                    f'Dir::Etc::sourcelist "{home}/sources.list";',
                    f'Dir::Etc::sourceparts "{home}/parts";',
                    'Dir::Etc::preferences "/dev/null";',
                    f'Dir::Etc::preferencesparts "{home}/parts";',
                    f'Dir::State "{home}/state"; Dir::State::status "{home}/status";',
                    f'Dir::Cache "{home}/cache";',
                    'APT::Install-Recommends "false"; APT::Sandbox::User "";',
                    'Acquire::Languages "none"; Acquire::Retries "3";',
                    "",
                ]
            )
        )
        return changed

    def _system_mirror(self) -> str:
        fields = ["REPO_URI", "RELEASE", "CODENAME", "ORIGIN", "LABEL", "COMPONENT"]
        form = "|".join(f"$({field})" for field in fields)
        targets = subprocess.run(
            ["apt-get", "indextargets", "Created-By: Packages", "--format", form],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        mirror = choose_mirror(targets, self.dist)
        if mirror is None:
            raise ProvisionError(
                f"apt's sources name no {self.dist.name} archive for {self.dist.codename}: add "
                f"one to /etc/apt, or set {MIRROR_VARIABLE} to the address of one"
            )
        return mirror

    def _apt(self, topic: str, what: str, *arguments: str, cwd: Path | None = None) -> None:
        argv = ["apt-get", "-q", "-o", "APT::Status-Fd=1", *arguments]
        try:
            self._console.run(topic, what, argv, cwd=cwd, env=self._environment())
        except CommandError as error:
            unreachable = (
                "Could not resolve",
                "Could not connect",
                "Temporary failure",
                "timed out",
            )
            if any(sign in line for line in error.tail for sign in unreachable):
                raise ProvisionError(
                    f"{what}: the package mirror cannot be reached; mend the network or apt's "
                    f"proxy, or set {MIRROR_VARIABLE}"
                ) from error
            raise

    def _query(self, *argv: str) -> str:
        self._console.note(f"$ {' '.join(argv)}")
        done = subprocess.run(
            argv, capture_output=True, text=True, env={**os.environ, **self._environment()}
        )
        if done.returncode:
            tail = done.stderr.splitlines()
            for line in tail:
                self._console.note(line)
            raise CommandError("asking the package lists", argv, done.returncode, tail)
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {"APT_CONFIG": str(self._home / "apt.conf"), "LC_ALL": "C"}


def _older(one: str, other: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", one, "lt", other]).returncode == 0
