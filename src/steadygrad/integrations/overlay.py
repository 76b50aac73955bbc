"""Where a path leads in a process whose writes go to a scratch folder: one name, two places, and what is gone.

The scratch folder holds what was written instead of the user's files, in a tree like theirs. A name means the copy
there if there is one; nothing if it was removed; else the user's file. All of it lies on the disk, so that every
process of an arm sees the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

CACHES = ("TORCH_HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR")
LINKS = 40  # that lead on to another one, as the system has it
SYSTEM = ("/dev", "/proc", "/sys", "/run")


def shared_folders(environ: Mapping[str, str]) -> list[str]:
    """Folders that every run on this machine fills and uses: downloads, compiled kernels. Arms write there as well."""
    home = environ.get("HOME", "")
    found = [os.path.join(home, name) for name in (".cache", ".triton", ".nv") if home]
    found += [environ.get("XDG_CACHE_HOME", ""), *(environ.get(name, "") for name in CACHES)]
    return [os.path.realpath(folder) for folder in found if folder]


class Overlay:
    """Two trees seen as one.

    Args:
        folder: of the scratch files.
        work: the user's working directory; what lies below it is kept from harm, also in the temp folder.
        shared: folders that are written to as ever.
        temporary: the same, but what lies below ``work`` comes first.

    All methods use the system's own functions, which must not be diverted meanwhile.
    """

    def __init__(self, folder: str, work: str, *, shared: list[str], temporary: list[str]) -> None:
        self.folder = os.path.realpath(folder)
        self.work = os.path.realpath(work)
        self._free = [self.folder, *SYSTEM, *shared]
        self._temporary = temporary
        self._gone = os.path.join(self.folder, "gone")
        self._nowhere = os.path.join(self.folder, "nowhere")
        self._real: dict[str, str] = {}
        real = os.getcwd()
        top = os.path.join(self.folder, "work")
        self.cwd = os.path.join(self.work, os.path.relpath(real, top)) if _below(real, top) else real
        self.cwd = os.path.normpath(self.cwd)  # of this process, as the script sees it
        self.away = self.cwd != real  # the system has another one

    # ------------------------------------------------------------------ names
    def key(self, path: str, *, follow: bool) -> str:
        """The one true name of a path: absolute, without links; the last part's link is kept unless ``follow``."""
        path = os.path.normpath(os.path.join(self.cwd, path))
        parent, name = os.path.split(path)
        real = self._real.get(parent)
        if real is None:
            real = os.path.realpath(parent)
            if len(self._real) < 10_000:
                self._real[parent] = real
        path = os.path.join(real, name)
        return self._followed(path) if follow else path

    def _followed(self, key: str) -> str:
        for _ in range(LINKS):
            upper = self.upper(key)
            if os.path.islink(upper):  # its text is the script's, and means what it would mean at the name
                key = self.key(os.path.join(os.path.dirname(key), os.readlink(upper)), follow=False)
            elif os.path.islink(key) and not os.path.lexists(upper):
                return os.path.realpath(key)
            else:
                break
        return key

    def protected(self, key: str) -> bool:
        """Whether a write to this name is kept from the user's file."""
        if any(_below(key, folder) for folder in self._free):
            return False
        return _below(key, self.work) or not any(_below(key, folder) for folder in self._temporary)

    def upper(self, key: str) -> str:
        """Where the copy lies, if there is one. Below the working directory the scratch names are as short as there."""
        if key == self.work:
            return os.path.join(self.folder, "work")
        if _below(key, self.work):
            return os.path.join(self.folder, "work", key[len(self.work) :].lstrip(os.sep))
        return os.path.join(self.folder, "rest", key.lstrip(os.sep))

    # ------------------------------------------------------------------ what is there
    def is_gone(self, key: str) -> bool:
        """Whether the user's file was removed, or a folder above it."""
        if not os.path.isdir(self._gone):
            return False
        while True:
            if os.path.exists(self._mark(key)):
                return True
            above = os.path.dirname(key)
            if above == key:
                return False
            key = above

    def forget(self, key: str) -> None:
        """From now on the user's file is not there."""
        os.makedirs(self._gone, exist_ok=True)
        Path(self._mark(key)).write_text(key)

    def _mark(self, key: str) -> str:
        return os.path.join(self._gone, hashlib.sha1(os.fsencode(key), usedforsecurity=False).hexdigest())

    def find(self, key: str) -> str | None:
        """Where the thing of this name lies; None if there is none."""
        upper = self.upper(key)
        if os.path.lexists(upper):
            return upper
        return None if self.is_gone(key) or not os.path.lexists(key) else key

    def reading(self, path: str, *, follow: bool = True) -> str:
        """What to open in place of ``path``: itself if the overlay has no say in it."""
        key = self.key(path, follow=follow)
        upper = self.upper(key)
        if os.path.lexists(upper):
            return upper
        if self.is_gone(key):
            return self._nowhere
        return key if self.away else path

    def go(self, path: str) -> None:
        """Make a folder the current one."""
        key = self.key(path, follow=True)
        real = self.reading(path)
        if os.path.isdir(key) and not self.is_gone(key):
            real = key  # so that what is written by other means than ours lands where the script believes
        os.chdir(real)
        self.cwd, self.away = key, real != key

    def names(self, path: str) -> list[str] | None:
        """The merged names in a folder; None if the overlay has no say in it."""
        key = self.key(path, follow=True)
        upper = self.upper(key)
        has_upper = os.path.isdir(upper)
        if not has_upper and not os.path.isdir(self._gone):
            return None
        lower: list[str] = []
        if not self.is_gone(key) and os.path.isdir(key):
            lower = [n for n in os.listdir(key) if not os.path.exists(self._mark(os.path.join(key, n)))]
        elif not has_upper:
            return None
        return list(dict.fromkeys([*lower, *(os.listdir(upper) if has_upper else ())]))

    # ------------------------------------------------------------------ making room for a write
    def writing(self, path: str, *, copy: bool, create: bool = True, exclusive: bool = False) -> str:
        """Where to write in place of ``path``: itself if it may be written, or if the system is to say why not.

        Args:
            copy: the old contents are needed.
            create: it is made if it is not there.
            exclusive: it must not be there.
        """
        key = self.key(path, follow=not exclusive)
        if not self.protected(key):
            return self.reading(path)
        found = self.find(key)
        upper = self.upper(key)
        if found is None and not create:
            return self._nowhere
        if found is not None and (exclusive or os.path.isdir(found) or _is_device(found)):
            return path if found == key and not self.away else found
        if not self._make_parent(key):
            return self._nowhere + os.sep + "file"
        if copy and found is not None and found != upper:
            _copy_file(found, upper)
        return upper

    def placing(self, key: str) -> str:
        """Where to put something new under a protected name; its folder is there.

        Raises:
            FileNotFoundError: it is not.
        """
        if not self._make_parent(key):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return self.upper(key)

    def _make_parent(self, key: str) -> bool:
        parent = os.path.dirname(key)
        found = self.find(parent)
        if found is None or not os.path.isdir(found):
            return False
        os.makedirs(self.upper(parent), exist_ok=True)
        return True

    def discard(self, key: str, remove: Callable[[str], None]) -> None:
        """Take a protected name away: the copy by ``remove``, the user's own by forgetting it."""
        upper = self.upper(key)
        if os.path.lexists(upper):
            remove(upper)
        if os.path.lexists(key):
            self.forget(key)

    def written(self) -> Iterator[str]:
        """The names of all files that were written and are still there."""
        for root, name in ((self.work, "work"), (os.sep, "rest")):
            top = os.path.join(self.folder, name)
            for folder, _, files in os.walk(top):
                for file in files:
                    yield os.path.join(root, os.path.relpath(os.path.join(folder, file), top))


def temporary_folders() -> list[str]:
    """Where anybody may write, and nothing stays."""
    return sorted({os.path.realpath(folder) for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp")})


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_device(path: str) -> bool:
    """A pipe, a terminal, a socket: nothing is overwritten there."""
    mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    return not stat.S_ISREG(mode)


def _copy_file(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        while block := old.read(1 << 20):
            new.write(block)
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode) | stat.S_IWUSR)
