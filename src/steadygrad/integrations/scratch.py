"""In an arm's process: the script's writes go to a scratch folder, and it reads back from there what it wrote.

What is diverted: files that Python opens, makes, renames or removes (``open``, ``os``, and by them pathlib, shutil,
numpy, pickle, csv, logging), ``torch.save``, ``torch.load``, ``torch.jit`` and safetensors, below the working
directory and everywhere else but in temp folders, devices and the user's caches. Every Python process under the
command does so. What is not: programs that are no Python, libraries that open files in their own C code (HDF5,
sqlite), imports of modules that the script has just written, and calls with ``dir_fd``. Those of them that Python
is asked about are listed in the file ``escaped``.
"""

from __future__ import annotations

import builtins
import errno
import functools
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from steadygrad.integrations.afterimport import AfterImport
from steadygrad.integrations.escapes import WRITES, Escapes
from steadygrad.integrations.merged_folder import Entries, Entry
from steadygrad.integrations.overlay import Overlay

# Functions of os whose first argument is a path that is only looked at, and those that change what lies there.
LOOKS = ("stat", "lstat", "access", "readlink", "getxattr", "listxattr", "statvfs", "pathconf")
NO_FOLLOW = ("lstat", "readlink")
CHANGES = ("chmod", "utime", "truncate", "setxattr", "removexattr", "chown")
MAKES = ("mkfifo", "mknod")
# Those that have a function of their own below.
OPENS = ("open", "listdir", "scandir", "mkdir", "symlink", "chdir", "getcwd", "getcwdb")
MOVES = ("remove", "unlink", "rmdir", "rename", "replace", "link")


class Scratch:
    """Diverts the files of this process, from :meth:`install` on, for as long as it lives.

    Args:
        overlay: says where a path leads.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._inside = threading.local()
        self._wrappers: dict[int, Any] = {}
        self._originals: list[Any] = []  # so that no other object gets the id of one

    # ------------------------------------------------------------------ at work
    @contextmanager
    def _at_work(self, *paths: Any) -> Iterator[None]:
        """Calls from here on are ours and mean what they say. Errors name what the script has named."""
        self._inside.now = True
        try:
            yield
        except OSError as error:
            mine = isinstance(error.filename, (str, bytes)) and self._overlay.folder in os.fsdecode(
                error.filename
            )
            if mine and paths:
                error.filename = paths[0]
                if error.filename2 is not None:
                    error.filename2 = paths[-1]
            raise
        finally:
            self._inside.now = False

    def _ours(self, *paths: Any) -> bool:
        """Whether a call is to be looked at: the script's, with paths and not with file descriptors."""
        return not getattr(self._inside, "now", False) and all(
            isinstance(p, (str, bytes, os.PathLike)) for p in paths
        )

    # ------------------------------------------------------------------ putting in force
    def install(self) -> None:
        """At the interpreter's start, before the script has opened anything."""
        for name in LOOKS:
            self._replace(os, name, functools.partial(self._looking, follow=name not in NO_FOLLOW))
        for name in CHANGES:
            self._replace(os, name, self._changing)
        for name in MAKES:
            self._replace(os, name, self._making)
        for name in (*OPENS, *MOVES):
            self._replace(os, name, getattr(self, f"_os_{name}"))
        self._replace(builtins, "open", self._open)
        self._replace(io, "open_code", self._looking)
        self._spread()
        # It would work on file descriptors of folders, of which only one of two places is seen.
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
        AfterImport("safetensors", self._divert_safetensors).install()
        sys.addaudithook(Escapes(self._overlay, self._inside).heard)

    def torch_is_there(self) -> None:
        """Right after torch is imported: its archives are written in C++, by their path."""
        import torch

        for module, name, place, writes in (
            (torch, "save", 1, True),
            (torch, "load", 0, False),
            (torch.jit, "save", 1, True),
            (torch.jit, "load", 0, False),
            (torch.jit.RecursiveScriptModule, "save", 1, True),
        ):
            self._divert(module, name, place, writes)
        torch.serialization.save, torch.serialization.load = torch.save, torch.load

    def _divert_safetensors(self, module: ModuleType) -> None:
        self._divert(module, "serialize_file", 1, writes=True)
        self._divert(module, "safe_open", 0, writes=False)

    def _divert(self, module: Any, name: str, place: int, writes: bool) -> None:
        """Give a function that opens a file by itself the path where the file lies; ``place``: which argument."""
        original = getattr(module, name, None)
        if original is None:
            return

        @functools.wraps(original)
        def diverted(*args: Any, **kwargs: Any) -> Any:
            keyword = next((k for k in ("f", "filename") if k in kwargs), None)
            given = args[place] if len(args) > place else kwargs.get(keyword or "")
            if not isinstance(given, (str, os.PathLike)) or not self._ours(given):
                return original(*args, **kwargs)
            with self._at_work(given):
                text = os.fspath(given)
                where: Any = (
                    self._overlay.writing(text, copy=False) if writes else self._overlay.reading(text)
                )
            if where == text:
                where = given
            if len(args) > place:
                args = (*args[:place], where, *args[place + 1 :])
            else:
                kwargs[str(keyword)] = where
            return original(*args, **kwargs)

        setattr(module, name, diverted)

    def _replace(self, module: Any, name: str, make: Callable[..., Any]) -> None:
        original = getattr(module, name, None)
        if original is None:  # not on this system
            return

        @functools.wraps(original)
        def diverted(*args: Any, **kwargs: Any) -> Any:
            return make(original, *args, **kwargs)

        diverted.__module__ = "io" if module is builtins else module.__name__  # by which it is pickled
        for kinds in (
            os.supports_fd,
            os.supports_dir_fd,
            os.supports_follow_symlinks,
            os.supports_effective_ids,
        ):
            if original in kinds:
                kinds.add(diverted)
        self._originals.append(original)
        self._wrappers[id(original)] = diverted

    def _spread(self) -> None:
        """Put the replacements everywhere an imported module has the original, but for where imports look."""
        for name, module in list(sys.modules.items()):
            if name in ("posix", "nt") or not isinstance(module, ModuleType):
                continue
            for attribute, value in list(vars(module).items()):
                if id(value) in self._wrappers:
                    setattr(module, attribute, self._wrappers[id(value)])
        accessor = getattr(sys.modules.get("pathlib"), "_NormalAccessor", None)  # Python 3.10
        for attribute, value in list(vars(accessor).items()) if accessor is not None else ():
            plain = value.__func__ if isinstance(value, staticmethod) else value
            if id(plain) in self._wrappers:
                setattr(accessor, attribute, staticmethod(self._wrappers[id(plain)]))

    # ------------------------------------------------------------------ what replaces the system's functions
    def _looking(self, original: Any, path: Any, *args: Any, follow: bool = True, **kwargs: Any) -> Any:
        if kwargs.get("dir_fd") is not None or not self._ours(path):
            return original(path, *args, **kwargs)
        with self._at_work(path):
            text = _text(path)
            where = self._overlay.reading(text, follow=follow and kwargs.get("follow_symlinks", True))
            return original(path if where == text else _like(path, where), *args, **kwargs)

    def _changing(self, original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dir_fd") is not None or not self._ours(path):
            return original(path, *args, **kwargs)
        with self._at_work(path):
            text = _text(path)
            key = self._overlay.key(text, follow=True)
            if self._overlay.protected(key) and os.path.isdir(self._overlay.find(key) or ""):
                os.makedirs(self._overlay.upper(key), exist_ok=True)
                where = self._overlay.upper(key)
            else:
                where = self._overlay.writing(text, copy=True, create=False)
            return original(path if where == text else _like(path, where), *args, **kwargs)

    def _making(self, original: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        """mkdir and its like: something new."""
        if kwargs.get("dir_fd") is not None or not self._ours(path):
            return original(path, *args, **kwargs)
        with self._at_work(path):
            key = self._overlay.key(_text(path), follow=False)
            if not self._overlay.protected(key):
                return original(path, *args, **kwargs)
            if self._overlay.find(key) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
            return original(self._place(key, path), *args, **kwargs)

    _os_mkdir = _making

    def _place(self, key: str, *shown: Any) -> str:
        try:
            return self._overlay.placing(key)
        except FileNotFoundError as error:
            error.filename = shown[0]
            if len(shown) > 1:
                error.filename2 = shown[1]
            raise

    def _open(self, original: Any, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opener = args[5] if len(args) > 5 else kwargs.get("opener")
        if opener is not None or not isinstance(mode, str) or not self._ours(file):
            return original(file, mode, *args, **kwargs)
        with self._at_work(file):
            text = _text(file)
            if set(mode) & set("wax+"):
                where = self._overlay.writing(
                    text, copy="w" not in mode, create="r" not in mode, exclusive="x" in mode
                )
            else:
                where = self._overlay.reading(text)
            if where == text:
                return original(file, mode, *args, **kwargs)

            def there(_: Any, flags: int) -> int:  # so that the file object has the name that the script gave
                return os.open(where, flags, 0o666)

            return original(file, mode, *args[:5], **{**kwargs, "opener": there})

    def _os_open(self, original: Any, path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dir_fd") is not None or not self._ours(path):
            return original(path, flags, *args, **kwargs)
        with self._at_work(path):
            text = _text(path)
            if flags & WRITES:
                where = self._overlay.writing(
                    text,
                    copy=not flags & os.O_TRUNC,
                    create=bool(flags & os.O_CREAT),
                    exclusive=bool(flags & os.O_EXCL),
                )
            else:
                where = self._overlay.reading(text)
            return original(path if where == text else where, flags, *args, **kwargs)

    def _os_listdir(self, original: Any, path: Any = ".") -> Any:
        def named(path: Any, names: list[str]) -> Any:
            return [os.fsencode(n) for n in names] if isinstance(path, bytes) else names

        return self._listing(original, path, named)

    def _os_scandir(self, original: Any, path: Any = ".") -> Any:
        def entered(path: Any, names: list[str]) -> Any:
            return Entries([Entry(os.fspath(path), name) for name in names])

        return self._listing(original, path, entered)

    def _listing(self, original: Any, path: Any, merged: Callable[[Any, list[str]], Any]) -> Any:
        """listdir and its like; ``merged``: what is returned of a folder that lies in two places."""
        path = "." if path is None else path
        if not self._ours(path):
            return original(path)
        with self._at_work(path):
            names = self._overlay.names(_text(path))
            if names is None:
                where = self._overlay.reading(_text(path))
                return original(path if where == _text(path) else _like(path, where))
            return merged(path, names)

    def _os_remove(self, original: Any, path: Any, **kwargs: Any) -> Any:
        def refusal(key: str, found: str) -> int:
            return errno.EISDIR if os.path.isdir(found) and not os.path.islink(found) else 0

        return self._removing(original, path, refusal, **kwargs)

    _os_unlink = _os_remove

    def _os_rmdir(self, original: Any, path: Any, **kwargs: Any) -> Any:
        def refusal(key: str, found: str) -> int:
            if not os.path.isdir(found):
                return errno.ENOTDIR
            return errno.ENOTEMPTY if self._listed(key, found) else 0

        return self._removing(original, path, refusal, **kwargs)

    def _removing(self, original: Any, path: Any, refusal: Callable[[str, str], int], **kwargs: Any) -> Any:
        """remove and its like; ``refusal``: number of the system's error for what lies there, or 0."""
        if kwargs.get("dir_fd") is not None or not self._ours(path):
            return original(path, **kwargs)
        with self._at_work(path):
            key = self._overlay.key(_text(path), follow=False)
            found = self._overlay.find(key)
            if not self._overlay.protected(key):
                return original(path, **kwargs)
            number = errno.ENOENT if found is None else refusal(key, found)
            if number:
                raise OSError(
                    number, os.strerror(number), path
                )  # of the class that Python has for the number
            return self._overlay.discard(key, original)

    def _listed(self, key: str, found: str) -> list[str]:
        names = self._overlay.names(key)
        return os.listdir(found) if names is None else names

    def _os_rename(self, original: Any, src: Any, dst: Any, **kwargs: Any) -> Any:
        if any(value is not None for value in kwargs.values()) or not self._ours(src, dst):
            return original(src, dst, **kwargs)
        with self._at_work(src, dst):
            overlay = self._overlay
            old, new = (overlay.key(_text(path), follow=False) for path in (src, dst))
            if not overlay.protected(old) and not overlay.protected(new):
                return original(src, dst)
            found, there = overlay.find(old), overlay.find(new)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), src, None, dst)
            if there is not None and os.path.isdir(there) and self._listed(new, there):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), src, None, dst)
            target = self._place(new, src, dst) if overlay.protected(new) else new
            if not overlay.protected(old):
                return original(old, target)
            if found == overlay.upper(old) and (overlay.is_gone(old) or not os.path.lexists(old)):
                return original(found, target)  # wholly ours
        if os.path.isdir(src):
            shutil.copytree(src, dst, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(src)
        else:
            shutil.copy2(src, dst, follow_symlinks=False)
            os.remove(src)

    _os_replace = _os_rename

    def _os_link(self, original: Any, src: Any, dst: Any, **kwargs: Any) -> Any:
        if any(kwargs.get(name) is not None for name in ("src_dir_fd", "dst_dir_fd")) or not self._ours(
            src, dst
        ):
            return original(src, dst, **kwargs)
        with self._at_work(src, dst):
            keys = [self._overlay.key(_text(path), follow=False) for path in (src, dst)]
            if not any(map(self._overlay.protected, keys)):
                return original(src, dst, **kwargs)
            if self._overlay.find(keys[1]) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), src, None, dst)
        shutil.copy2(src, dst)  # a second name of the user's file would be a way to write to it

    def _os_symlink(self, original: Any, src: Any, dst: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dir_fd") is not None or not self._ours(src, dst):
            return original(src, dst, *args, **kwargs)
        with self._at_work(src, dst):
            key = self._overlay.key(_text(dst), follow=False)
            if not self._overlay.protected(key):
                return original(src, dst, *args, **kwargs)
            if self._overlay.find(key) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), src, None, dst)
            text = _text(src)
            there = self._overlay.upper(self._overlay.key(text, follow=False))
            if os.path.isabs(text) and os.path.lexists(there):
                text = there  # as part of a longer path the link is followed by the system, which knows no other place
            return original(_like(src, text), self._place(key, src, dst), *args, **kwargs)

    def _os_chdir(self, original: Any, path: Any) -> Any:
        if not self._ours(path):
            return original(path)
        with self._at_work(path):
            self._overlay.go(_text(path))

    def _os_getcwd(self, original: Any) -> str:
        return self._overlay.cwd if self._ours() and self._overlay.away else str(original())

    def _os_getcwdb(self, original: Any) -> bytes:
        return os.fsencode(self._overlay.cwd) if self._ours() and self._overlay.away else bytes(original())


def _text(path: Any) -> str:
    return os.fsdecode(path)


def _like(path: Any, where: str) -> str | bytes:
    """``where`` as text or bytes, as ``path`` is."""
    return os.fsencode(where) if isinstance(os.fspath(path), bytes) else where
