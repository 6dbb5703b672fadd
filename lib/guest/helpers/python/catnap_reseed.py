"""Keeps Python's `random` from repeating itself in copies of a machine.

A MicroVM that is forked, or restored twice, has the state of every generator
of its programs twice. Importing this module makes all generators of `random`
that were seeded by the system (the module's functions, `random.Random()`, and
those of `numpy.random`) start anew when the machine's generation has changed.
Generators with a seed of the program's choice go on as they are: they are
meant to repeat.

There is no moment in which an old number is drawn: a number counts only when
the generation after the draw is the one that the generator was seeded in. The
kernel's randomness, on which seeds are made, is new before any program runs.

Where there is no generation file (another machine) nothing changes. The
environment variable CATNAP_GENERATION_FILE names another one.
"""

import functools
import mmap
import os
import random
import sys

__all__ = ["active"]

_SIZE = 16  # Digits.


def _map_generation():
    path = os.environ.get("CATNAP_GENERATION_FILE", "/run/catnap/generation")
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), _SIZE, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None


_generation = _map_generation()
active = _generation is not None


def _guard(draw):
    """A method of random.Random that draws from the generator's own state."""

    @functools.wraps(draw)
    def guarded(self, *args, **kwargs):
        while True:
            seen = self.__dict__.get("_catnap_seen")
            if seen is None:  # A seed of the program's choice.
                return draw(self, *args, **kwargs)
            value = draw(self, *args, **kwargs)
            if _generation[:_SIZE] == seen:
                return value
            random.Random.seed(self)

    return guarded


def _guard_random():
    base = random.Random
    seed, setstate = base.seed, base.setstate

    @functools.wraps(seed)
    def guarded_seed(self, a=None, *args, **kwargs):
        # Before the seed is made: a change after this is one more.
        now = _generation[:_SIZE]
        seed(self, a, *args, **kwargs)
        self._catnap_seen = now if a is None else None

    @functools.wraps(setstate)
    def guarded_setstate(self, state):
        self._catnap_seen = None
        setstate(self, state)

    base.seed, base.setstate = guarded_seed, guarded_setstate
    # What all other methods draw by; gauss() keeps a number for the next call.
    base.random = _guard(base.random)
    base.getrandbits = _guard(base.getrandbits)
    base.gauss = _guard(base.gauss)
    # The module's functions are methods of one generator, bound before.
    shared = random._inst
    shared.seed()
    for name in random.__all__:
        if getattr(getattr(random, name), "__self__", None) is shared:
            setattr(random, name, getattr(shared, name))


def _guard_numpy(module):
    """The functions of numpy.random, and what default_rng() gives unseeded."""
    state = {"seen": _generation[:_SIZE]}
    seed, set_state = module.seed, module.set_state

    @functools.wraps(seed)
    def guarded_seed(*args, **kwargs):
        now = _generation[:_SIZE]
        seed(*args, **kwargs)
        chosen = any(a is not None for a in (*args, *kwargs.values()))
        state["seen"] = None if chosen else now

    @functools.wraps(set_state)
    def guarded_set_state(*args, **kwargs):
        state["seen"] = None
        set_state(*args, **kwargs)

    def guard(draw):
        @functools.wraps(draw)
        def guarded(*args, **kwargs):
            while True:
                seen = state["seen"]
                value = draw(*args, **kwargs)
                if seen is None or _generation[:_SIZE] == seen:
                    return value
                guarded_seed()

        return guarded

    shared = module.mtrand._rand
    for name in module.__all__:
        function = getattr(module, name)
        if getattr(function, "__self__", None) is shared and name not in (
            "seed", "get_state", "set_state", "shuffle",
        ):
            setattr(module, name, guard(function))

    # In place, so it cannot be drawn again: the order before is one of those
    # that are shuffled.
    module.shuffle = guard(module.shuffle)
    module.seed, module.set_state = guarded_seed, guarded_set_state

    class Generator(module.Generator):
        """One without a seed of the program's choice."""

        def __init__(self, bit_generator):
            self._catnap_seen = _generation[:_SIZE]
            super().__init__(bit_generator)

        def __reduce__(self):  # A copy with a state is one that was chosen.
            return super().__reduce__()

    def guard_method(draw):
        @functools.wraps(draw)
        def guarded(self, *args, **kwargs):
            while True:
                seen = self._catnap_seen
                value = draw(self, *args, **kwargs)
                now = _generation[:_SIZE]
                if now == seen:
                    return value
                kind = type(self.bit_generator)
                self.bit_generator.state = kind().state
                self._catnap_seen = now

        return guarded

    for name in dir(module.Generator):
        method = getattr(module.Generator, name)
        if not name.startswith("_") and callable(method) and name != "spawn":
            setattr(Generator, name, guard_method(method))

    default_rng = module.default_rng

    @functools.wraps(default_rng)
    def guarded_default_rng(seed=None):
        made = default_rng(seed)
        return made if seed is not None else Generator(made.bit_generator)

    module.default_rng = guarded_default_rng


class _NumpyHook:
    """Finds numpy.random as others do, and guards it once it is there."""

    def find_spec(self, name, path=None, target=None):
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)
        for finder in sys.meta_path:
            spec = getattr(finder, "find_spec", lambda *_: None)(
                name, path, target)
            if spec is not None and spec.loader is not None:
                run = spec.loader.exec_module

                def exec_module(module):
                    run(module)
                    try:
                        _guard_numpy(module)
                    except Exception:  # One that is made otherwise.
                        pass

                spec.loader.exec_module = exec_module
                return spec
        return None


if active:
    _guard_random()
    if "numpy.random" in sys.modules:
        _guard_numpy(sys.modules["numpy.random"])
    else:
        sys.meta_path.insert(0, _NumpyHook())
