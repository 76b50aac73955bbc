"""Run a script that knows nothing of steadygrad, in this process, watched from the moment it imports torch.

The script runs as ``python train.py`` or ``python -m pkg.train`` would run it: the same ``__main__``,
``sys.argv``, ``sys.path``, exceptions and exit codes. If anything of ours fails, it runs on without us.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import runpy
import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from steadygrad.integrations.importhook import TorchFinder, when_torch_is_imported
from steadygrad.integrations.options import Observer, Options
from steadygrad.integrations.uncaught import exit_status, print_uncaught

if TYPE_CHECKING:
    from steadygrad.integrations.session import Session
    from steadygrad.records import RunSummary


BAD_INPUT = 2


class BadTarget(ValueError):
    """What was to be run cannot be: no such file, a directory, no such module."""


@dataclass(frozen=True)
class Target:
    """What is to be run, with its own arguments."""

    name: str  # path of a script as typed, or the name of a module
    args: tuple[str, ...] = ()
    is_module: bool = False

    @property
    def shown(self) -> str:
        """For people: ``train.py``, ``-m pkg.train``."""
        return f"-m {self.name}" if self.is_module else os.path.basename(self.name)

    @property
    def stem(self) -> str:
        """What a run of it is called when it is given no name."""
        return self.name.rpartition(".")[2] if self.is_module else Path(self.name).stem

    def check(self) -> None:
        """Raise BadTarget if it cannot be run. Nothing of it is executed for that."""
        if not self.is_module:
            if os.path.isdir(self.name):
                raise BadTarget(f"{self.name} is a directory, not a script")
            if not os.path.isfile(self.name):
                raise BadTarget(f"no such script: {self.name}")
            if not os.access(self.name, os.R_OK):
                raise BadTarget(f"script cannot be read: {self.name}")
        elif not self.name or PathFinder.find_spec(self.name.split(".")[0], [os.getcwd(), *sys.path]) is None:
            raise BadTarget(f"no module named {self.name!r} here or among the installed packages")


@dataclass(frozen=True)
class Ending:
    """How the script ended."""

    status: int  # the exit code that the process will have, as a shell shows it
    error: BaseException | None = None  # what nobody caught, SystemExit aside
    watched: bool = True  # False: steadygrad had an error of its own, and has said so

    @property
    def interrupted(self) -> bool:
        return isinstance(self.error, KeyboardInterrupt)


class Watch:
    """At most one session, opened when torch arrives. No method raises."""

    def __init__(
        self,
        options: Options,
        *,
        script: str,
        argv: Sequence[str],
        observer: Observer | None,
        run_dir: Path | None = None,
    ) -> None:
        self.session: Session | None = None
        self.failed = False
        self.pid = os.getpid()
        self._options = options
        self._observer = observer
        self._make: dict[str, Any] = {"script": script, "argv": argv, "observer": observer}
        if run_dir is not None:
            self._make["run_dir"] = run_dir
        self._finder: TorchFinder | None = None
        try:
            self._finder = when_torch_is_imported(self._open)
        except Exception as error:  # noqa: BLE001 - an error of ours never stops the script
            self._failed(error)

    def _open(self) -> None:
        if os.getpid() != self.pid:
            return  # torch is imported in a child: children are not watched
        try:
            from steadygrad.integrations.session import Session  # imports torch: only now

            session = Session(self._options, exit_on_stop=True, **self._make)
            self.session = session
            session.install()
        except Exception as error:  # noqa: BLE001 - an error of ours never stops the script
            self.session = None
            self._failed(error)
            if self._options.prescription is not None:  # an unchanged run must not be taken for a changed one
                raise SystemExit(BAD_INPUT) from None

    def _failed(
        self, error: Exception, what: str = "does not watch this run; the script goes on without it"
    ) -> None:
        self.failed = True
        if self._observer is not None:
            self._observer.note(
                f"steadygrad had an error of its own and {what} ({type(error).__name__}: {error})"
            )

    def forget(self) -> None:
        """In a forked child of the script: do nothing from now on."""
        if self.session is not None:
            self.session.armed = False

    def close(self, error: BaseException | None = None) -> RunSummary | None:
        """The summary of the run; None if torch was never imported, or if we failed."""
        if self._finder is not None:
            self._finder.remove()
        if self.session is None:
            return None
        try:
            return self.session.close(error)
        except Exception as failure:  # noqa: BLE001 - an error of ours never spoils the script's end
            self._failed(failure, "cannot say what the run came to")
            return None


def run_script(
    target: Target,
    options: Options,
    *,
    observer: Observer | None = None,
    at_end: Callable[[RunSummary | None, Ending], None],
) -> NoReturn:
    """Run ``target`` as ``__main__`` of this process, watched, and end the process as it would have ended.

    Args:
        target: what to run; :meth:`Target.check` has passed.
        options: how it is watched; ``options.runs`` should be absolute, for the script may change directory.
        observer: is told what happens.
        at_end: called once, when the script has ended and its traceback, if any, has been printed. The
            summary is None if it never imported torch. Threads that it has left running are waited for.

    Raises:
        SystemExit: with the script's exit code; 86 if the guard stopped it.
        KeyboardInterrupt: the script was interrupted; silent, for its traceback has been printed.
    """
    if options.prescription is not None and options.prescription["eager"]:
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # its effects do not reach into compiled code
    watch = Watch(options, script=f"{target.stem}.py", argv=target.args, observer=observer)
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=watch.forget)
    ending = _execute(target)

    def finish() -> None:
        if os.getpid() != watch.pid:  # a fork that has come back through here: its parent will speak
            return
        try:
            summary = watch.close(ending.error)
            at_end(summary, replace(ending, watched=not watch.failed))
        except Exception as error:  # noqa: BLE001 - the exit code is the script's, whatever we do wrong
            watch._failed(error, "cannot say what the run came to")

    if any(t is not threading.main_thread() and not t.daemon for t in threading.enumerate()):
        atexit.register(finish)  # runs when they have ended
    else:
        finish()
    if ending.interrupted:
        sys.excepthook = lambda *_: None  # then the interpreter dies by SIGINT, as it does for any script
        raise KeyboardInterrupt
    raise SystemExit(ending.status)


def _execute(target: Target) -> Ending:
    try:
        if target.is_module:
            _run_module(target)
        else:
            _run_file(target)
    except SystemExit as exit:
        return Ending(exit_status(exit))
    except BaseException as error:  # noqa: BLE001 - as the interpreter does: what nobody caught is printed
        uncaught = error
    else:
        return Ending(0)
    status = print_uncaught(uncaught)
    return Ending(130 if isinstance(uncaught, KeyboardInterrupt) else status, uncaught)


def _run_file(target: Target) -> None:
    path = os.path.join(os.getcwd(), target.name)  # absolute, but ".." stays, as in the interpreter
    sys.argv = [target.name, *target.args]
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    with io.open_code(path) as file:
        source = file.read()
    code = compile(source, path, "exec", dont_inherit=True)
    main = _fresh_main()
    main.__file__ = path
    main.__loader__ = SourceFileLoader("__main__", path)
    main.__dict__["__cached__"] = None
    exec(code, main.__dict__)


def _run_module(target: Target) -> None:
    sys.argv = ["-m", *target.args]
    _set_first_path(os.getcwd())
    _fresh_main()
    # What `python -m` itself calls. The public run_module would take __main__ away again at the script's end,
    # and what the script pickles or does at exit would not find it.
    runpy._run_module_as_main(target.name)  # type: ignore[attr-defined]


def _fresh_main() -> types.ModuleType:
    """An empty ``__main__`` like the interpreter's, in the place of ours."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        main.__dict__["__annotations__"] = {}
    sys.modules["__main__"] = main
    return main


def _set_first_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:  # -P and -I: no such entry
        sys.path[0] = folder
