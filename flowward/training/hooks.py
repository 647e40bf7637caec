"""Hooks: functions of the user's that are called with each finished step. They do not change the run."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..system import distributed, user_code
from ..system.errors import named
from .course import TrainingError
from .metrics import Step

Hook = Callable[[Step], object]


class HookError(TrainingError):
    """A hook failed; the weights are those of the last iteration."""


class Hooks:
    """Hooks with their names, called in order, in the first process only."""

    def __init__(self, named_hooks: Iterable[tuple[str, Hook]] = ()):
        """Raises ValueError if one of them cannot be called with a step."""
        self._hooks = list(named_hooks)
        for name, hook in self._hooks:
            _refuse(name, hook)

    @classmethod
    def load(cls, names: Sequence[str]) -> Hooks:
        """Each name is `path/to/file.py:function` or `package.module:function`.

        Raises:
            ValueError: it cannot be imported, or cannot be called with a step.
        """
        return cls([(name, user_code.find("hook", name)) for name in names])

    @classmethod
    def of(cls, given: Hook | Sequence[Hook] | None) -> Hooks:
        """One function, several, or none."""
        hooks: list[Any] = [] if given is None else [*given] if isinstance(given, list | tuple) else [given]
        return cls([(str(getattr(hook, "__name__", type(hook).__name__)), hook) for hook in hooks])

    def __call__(self, step: Step) -> None:
        """Call each hook with a step.

        Raises:
            HookError: one failed; all processes raise it.
        """
        if not self._hooks:
            return
        failure = self._failure(step) if distributed.rank() == 0 else None
        if said := distributed.messages(str(failure) if failure else None):
            raise failure or HookError(said[0])

    def _failure(self, step: Step) -> HookError | None:
        """The first failure. As in rewards, only Ctrl-C passes: it raises KeyboardInterrupt in the main thread."""
        for name, hook in self._hooks:
            try:
                hook(step)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise
                failure = HookError(f"hook '{name}' raised {named(error)} at iteration {step.index}")
                failure.__cause__ = error
                return failure
        return None


def _refuse(name: str, hook: Any) -> None:
    """Raises ValueError if this is not called with a step: something else, a class, or a function of more."""
    if not callable(hook):
        raise ValueError(f"a hook is a function of a step, not {hook!r:.60}")
    if isinstance(hook, type):
        raise ValueError(f"hook '{name}' is a class; give a function, or an object that can be called")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # code that is not Python has no signature
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise ValueError(f"hook '{name}' must accept (step), but its signature is {signature}") from error
