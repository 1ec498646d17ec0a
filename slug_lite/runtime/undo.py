"""With-blocks that leave nothing behind, whenever an interrupt comes, from whatever thread and in any order.

What a generator under `contextlib.contextmanager` undoes is lost where Ctrl-C comes between its `yield` and the block,
or between the block and its `finally`. CPython looks for signals where a function of Python begins, and after every
call. So here:

- what is to be undone is written down, step by step, before it is changed;
- `__exit__` is no function of Python: it is C (`functools.partial`, `max`) down to where a generator that waits inside
  a `try` goes on, so that what comes at that moment is caught by it;
- every step is done again where something came in between, and only then is that raised. So a step must be such that
  it may be done twice, or without the change.

Blocks may be left in any order: what a later one noted of the same thing is then handed the older value.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable
from typing import Concatenate, Generic, ParamSpec, TypeVar

P, T = ParamSpec("P"), TypeVar("T")
Step = Callable[[], object]

# Held while anything that blocks share is noted, changed or put back. A lock of C: nothing comes between taking it and
# the try around it, as it can in `threading.Condition`.
LOCK = threading.RLock()
PATIENCE = 600.0  # seconds that a thread waits for the edits of another one to come off
LEVELS = 31  # of these signals, and one more, each may come in the moment in which the one before is dealt with
_ON: dict[int, Undo] = {}  # what is on, oldest first
_MISSING = object()


class Undo(dict[Hashable, Step]):
    """The steps that put things back, in their order. Equal keys, in several blocks, are of the same thing.

    at_end: done after them, if the block came to its end; at_error: if not, with what ended it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.at_end: Step | None = None
        self.at_error: Callable[[BaseException], object] | None = None
        self.entered, self.thread, self.task, self.holds = False, threading.current_thread(), None, frozenset[int]()

    def turn(self, things: Iterable[object]) -> None:
        """Wait until no other thread is in a block that took its turn with any of `things`; until this one ends, others
        wait. RuntimeError after `PATIENCE` seconds. Threads that have ended are not waited for.

        A thread cannot wait for itself: RuntimeError at once where another of its asyncio tasks is in such a block.
        """
        self.entered, self.task = True, _task()
        holds, end = frozenset(map(id, things)), time.monotonic() + PATIENCE
        self.thread = threading.current_thread()
        while True:
            with LOCK:
                others = [one.thread for one in _ON.values() if one.thread is not self.thread and one.holds & holds]
                others = [thread for thread in others if thread.is_alive()]
                self.check_task(holds)
                if not others:
                    self.holds = holds
                    _ON.pop(id(self), None)  # as new: what it notes it notes from now on
                    _ON[id(self)] = self
                    return
            if time.monotonic() > end:
                raise RuntimeError(
                    f"the thread {others[0].name!r} has had an edit on this model, or a search in it, for {PATIENCE:g} "
                    "seconds; threads that share a model take turns, or have a copy each"
                )
            time.sleep(0.01)

    def check_task(self, holds: frozenset[int]) -> None:
        for one in _ON.values() if self.task is not None else ():
            if one.holds & holds and one.task not in (None, self.task) and not one.task.done():
                raise RuntimeError(
                    "another asyncio task of this thread has an edit on this model, or a search in it; an asyncio.Lock "
                    "around what they do has tasks take turns, or give each a copy of the model"
                )

    def note(self, thing: object, name: str) -> None:
        """Write down an attribute that a thing itself has, or that it has none and its class is to be asked."""
        self["own", id(thing), name] = functools.partial(_put_own, thing, name, thing.__dict__.get(name, _MISSING))

    def leave(self, key: Hashable) -> None:
        """One step; or it is handed to a later block that noted the same thing, and will put it back."""
        with LOCK:
            if key in self:
                order = list(_ON)
                later = order[order.index(id(self)) + 1 :] if id(self) in _ON else []
                heir = next((_ON[one] for one in later if key in _ON[one]), None)
                if heir is None:
                    self[key]()
                else:
                    heir[key] = self[key]
                self.pop(key, None)


def _task() -> asyncio.Task | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


def _put_own(thing: object, name: str, value: object) -> None:
    if value is _MISSING:
        thing.__dict__.pop(name, None)
    else:
        thing.__dict__[name] = value


def _through(undo: Undo) -> None:
    """Every step, again where something comes in between; what came is raised last.

    An error that is no interrupt is one of the step's own: after the third the others are done without it.
    """
    first, key, failed = None, None, Counter[Hashable]()
    while undo:
        try:
            while undo:
                key = next(iter(undo))
                undo.leave(key)
        except BaseException as error:
            first = first or error
            failed[key] += 1
            if failed[key] == (3 if isinstance(error, Exception) else 10_000):
                undo.pop(key, None)
    _ON.pop(id(undo), None)
    undo.entered = False
    if first is not None:
        raise first


def _waiting(undo: Undo, more: int = LEVELS) -> Generator[int, object, None]:
    """Waits at a yield inside as many tries as there are levels; goes through the steps when it is sent anything.

    A signal that comes just before the first line of `_through`, or between two of its tries, ends that try: the next
    level goes on. (A loop would look for signals as it jumps back, outside of its try.)
    """
    try:
        if more:
            yield from _waiting(undo, more - 1)
        else:
            yield 0  # a signal that comes as the block ends is raised here
    finally:
        if undo.entered:  # a call would look for signals, and what is thrown away unused should not
            _through(undo)


def _undoing(undo: Undo) -> Generator[int, object, None]:
    """Waits at its first yield; goes through the steps when it is sent anything, then goes on yielding."""
    yield from _waiting(undo)
    kind = yield 0
    error = yield 0
    if kind is None and undo.at_end is not None:
        undo.at_end()
    if isinstance(error, BaseException) and undo.at_error is not None:
        undo.at_error(error)
    while True:
        yield 0


class Block(functools.partial, Generic[T]):
    """A context manager out of a function that notes what it will change in an `Undo`, changes it, and returns what
    the with-statement is to give its name. Made by `undone`; entered once.

    Called with what `__exit__` is given, `max` asks its key for every argument, False first: the first `send` has the
    generator undo, the second and third tell it of an error. All keys are alike, so False comes back, and no error is
    swallowed.
    """

    def __new__(cls, begin: Callable[[Undo], T]) -> Block[T]:
        undo = Undo()
        waiting = _undoing(undo)
        self = super().__new__(cls, max, False, key=waiting.send)
        self.begin, self.undo, self.waiting = begin, undo, waiting
        return self

    def __enter__(self) -> T:
        next(self.waiting)
        try:
            self.undo.turn(())
            return self.begin(self.undo)
        except BaseException:
            self(BaseException, None, None)
            raise

    __exit__ = functools.partial.__call__

    def leave(self) -> None:
        """What it changed, as a step of another block that has entered it."""
        _through(self.undo)


def undone(function: Callable[Concatenate[Undo, P], T]) -> Callable[P, Block[T]]:
    """A context manager for what `function(undo, ...)` changes, see `Block`; it is called as the block is entered."""

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> Block[T]:
        return Block(lambda undo: function(undo, *args, **kwargs))

    asked = inspect.signature(function)
    made.__signature__ = asked.replace(parameters=list(asked.parameters.values())[1:])
    return made


@undone
def together(undo: Undo, blocks: Iterable[Block]) -> None:
    """Several blocks as one."""
    for block in blocks:
        undo[object()] = block.leave
        block.__enter__()
