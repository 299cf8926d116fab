# SPDX-License-Identifier: LGPL-2.1-or-later
"""shrink.py - a short run that still fails, from a long one: delta debugging. Pure: whoever calls says what fails.

First whole rounds are left out (what fails is most often in the last one), then single steps. Each candidate is legal for the model: a run
that takes the last copy of the guest would fail, too, and prove nothing.
"""
from .model import is_legal


def is_end(step):
    return step.verb == "wait" and step.args["host"] == "pair" and step.args["condition"][0] == "protected"


def rounds_of(steps):
    """Lists of steps, each up to where the pair is protected again; the last one may lack that."""
    rounds = [[]]
    for step in steps:
        rounds[-1].append(step)
        if is_end(step):
            rounds.append([])
    return [one for one in rounds if one]


def flatten(rounds):
    return [step for one in rounds for step in one]


def shrink(steps, ends, fails, has_time):
    """The shortest run found. ends: steps behind a run that was broken off; fails(steps); has_time(): whether to go on."""
    def try_it(candidate):
        return has_time() and is_legal(complete(candidate, ends)) and fails(candidate)
    best = _last_rounds(steps, try_it)
    size = max(1, len(best) // 2)
    while has_time() and len(best) > 1:
        shorter = _without(best, size, try_it)
        if shorter:
            best = shorter
        elif size == 1:
            break
        else:
            size //= 2
        size = min(size, max(1, len(best) // 2))
    return best


def complete(steps, ends):
    return steps if steps and is_end(steps[-1]) else [*steps, *ends]


def _last_rounds(steps, try_it):
    """The fewest of the last rounds that fail."""
    rounds = rounds_of(steps)
    count = 1
    while count < len(rounds):
        candidate = flatten(rounds[-count:])
        if try_it(candidate):
            return candidate
        count *= 2
    return steps


def _without(steps, size, try_it):
    """The run without so many neighbours, None if each of them is needed."""
    for start in range(len(steps) - 1, -1, -size):
        first = max(0, start - size + 1)
        candidate = steps[:first] + steps[start + 1:]
        if candidate and try_it(candidate):
            return candidate
    return None
