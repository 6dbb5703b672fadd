"""Of lib/guest/helpers/python: copies of a machine draw different numbers.

A copy is played by giving a generator the state back that it had before, and
changing the generation, as a wake does before the program runs on.
"""

import _random
import os
import pickle
import random
import subprocess
import sys
import tempfile
import unittest

folder_of_generation = tempfile.TemporaryDirectory()
GENERATION = os.path.join(folder_of_generation.name, "generation")
os.environ["CATNAP_GENERATION_FILE"] = GENERATION
with open(GENERATION, "wb") as new_file:
    new_file.write(b"%016x\n" % 0)


def set_generation(number):
    with open(GENERATION, "r+b") as file:
        file.write(b"%016x\n" % number)


# Python may have loaded it at its start, for another file.
sys.modules.pop("catnap_reseed", None)
import catnap_reseed  # noqa: E402
from random import random as bound_early  # noqa: E402


class Machine:
    """One generator's memory, copied."""

    def __init__(self, generator):
        self.generator = generator
        self.state = _random.Random.getstate(generator)
        self.attributes = dict(generator.__dict__)

    def wake(self, generation):
        _random.Random.setstate(self.generator, self.state)
        self.generator.__dict__.update(self.attributes)
        set_generation(generation)


class ReseedTest(unittest.TestCase):
    generation = 0

    def draws_of_two_copies(self, generator, draw):
        machine = Machine(generator)
        drawn = []
        for _ in range(2):
            ReseedTest.generation += 1
            machine.wake(ReseedTest.generation)
            drawn.append(draw())
        return drawn

    def test_functions_of_the_module(self):
        self.assertTrue(catnap_reseed.active)
        for draw in (
            random.random,
            bound_early,
            lambda: random.getrandbits(64),
            lambda: random.randint(0, 10**18),
            lambda: random.uniform(0, 1),
            lambda: random.sample(range(10**6), 3),
            lambda: random.randbytes(8) if hasattr(random, "randbytes") else
            random.getrandbits(64),
            lambda: random.choices(range(10**6), k=3),
        ):
            first, second = self.draws_of_two_copies(random._inst, draw)
            self.assertNotEqual(first, second)

    def test_a_number_that_gauss_kept(self):
        random.gauss(0, 1)
        first, second = self.draws_of_two_copies(
            random._inst, lambda: random.gauss(0, 1))
        self.assertNotEqual(first, second)

    def test_generators_of_the_program(self):
        generator = random.Random()
        first, second = self.draws_of_two_copies(generator, generator.random)
        self.assertNotEqual(first, second)

        class Own(random.Random):
            pass

        generator = Own()
        first, second = self.draws_of_two_copies(generator, generator.random)
        self.assertNotEqual(first, second)

    def test_a_copy_within_one_generation_is_the_programs_own(self):
        generator = random.Random()
        machine = Machine(generator)
        drawn = []
        for _ in range(2):
            machine.wake(ReseedTest.generation)
            drawn.append(generator.random())
        self.assertEqual(drawn[0], drawn[1])

    def test_a_chosen_seed_goes_on(self):
        generator = random.Random(42)
        first, second = self.draws_of_two_copies(generator, generator.random)
        self.assertEqual(first, second)
        random.seed(7)
        self.addCleanup(random.seed)
        first, second = self.draws_of_two_copies(random._inst, random.random)
        self.assertEqual(first, second)
        copied = pickle.loads(pickle.dumps(generator))
        self.assertEqual(copied.random(), generator.random())
        state = generator.getstate()
        value = generator.random()
        generator.setstate(state)
        self.assertEqual(generator.random(), value)

    def test_a_change_during_the_draw(self):
        """Frozen after the draw from the old state, before it is returned."""
        generator = random.Random()
        machine = Machine(generator)
        drawn = []

        class Interrupted:
            def __init__(self, value):
                self.value = value

            def __getitem__(self, key):
                return self.value

        mapped = catnap_reseed._generation
        for number in (b"1" * 16, b"2" * 16):
            _random.Random.setstate(generator, machine.state)
            generator.__dict__.update(machine.attributes)
            catnap_reseed._generation = Interrupted(number)
            drawn.append(generator.random())
        catnap_reseed._generation = mapped
        self.assertNotEqual(drawn[0], drawn[1])

    def test_system_random_is_left_alone(self):
        self.assertIsInstance(random.SystemRandom().random(), float)
        self.assertIsInstance(random.SystemRandom(), random.Random)

    def test_sitecustomize_loads_it_and_runs_the_hidden_one(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "sitecustomize.py"), "w") as file:
                file.write("print('hidden')\n")
            path = os.pathsep.join([os.environ["PYTHONPATH"], folder])
            shown = subprocess.run(
                [sys.executable, "-c",
                 "import sys; print('catnap_reseed' in sys.modules)"],
                env={**os.environ, "PYTHONPATH": path},
                stdout=subprocess.PIPE, check=True).stdout.split()
            self.assertEqual(shown, [b"hidden", b"True"])

    def test_without_a_generation_nothing_changes(self):
        shown = subprocess.run(
            [sys.executable, "-c",
             "import random, catnap_reseed as c; random.seed(1);"
             "print(c.active, random.random())"],
            env={**os.environ, "CATNAP_GENERATION_FILE": "/no/such/file"},
            stdout=subprocess.PIPE, check=True).stdout.split()
        self.assertEqual(shown[0], b"False")
        self.assertEqual(float(shown[1]), random.Random(1).random())


if __name__ == "__main__":
    unittest.main()
