"""The broker's resident memory, sampled, and whether it is flat.

Every process of the broker begins anew, so windows are compared at equal load and, where there are several processes, at
equal age: the first life with the last. Within the longest life its second quarter is compared with its last.
"""

from statistics import median

# Samples below which a window says nothing.
FEWEST = 4
# Up to here the broker is only warming up: the storage library's own floor is about 130 MB, its index and bodies come on top.
FLOOR = 192 << 20


def is_flat(early, late, ratio):
    """Whether late memory is within that ratio of early memory, or of what a warm broker has."""
    return late <= ratio * max(early, FLOOR)


def resident(pid):
    """Bytes that are resident; None when the process is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


class Memory:
    """Samples of each life of the broker: (age in seconds, bytes)."""

    def __init__(self):
        self.lives = []

    def begin(self):
        """A process has begun to serve."""
        self.lives.append([])

    def sample(self, age, size):
        """One sample of the newest life; none while the clients first come, when the age is negative."""
        if size is not None and age >= 0:
            self.lives[-1].append((age, size))

    @property
    def newest(self):
        """The newest sample, in bytes."""
        return next((life[-1][1] for life in reversed(self.lives) if life), 0)

    @property
    def highest(self):
        """The highest sample, in bytes."""
        return max((size for life in self.lives for _age, size in life), default=0)

    def over_lives(self):
        """(early, late): medians of the first life and of the last, of the second half of what both have, or None."""
        lives = [life for life in self.lives if len(life) >= 2 * FEWEST]
        if len(lives) < 2:
            return None
        first, last = lives[0], lives[-1]
        until = min(first[-1][0], last[-1][0])
        early, late = ([size for age, size in life if until / 2 <= age <= until] for life in (first, last))
        return (median(early), median(late)) if min(len(early), len(late)) >= FEWEST else None

    def within_life(self):
        """(early, late): medians of the second and the last quarter of the longest life, or None."""
        longest = max(self.lives, key=len, default=[])
        quarter = len(longest) // 4
        if quarter < FEWEST:
            return None
        sizes = [size for _age, size in longest]
        return median(sizes[quarter : 2 * quarter]), median(sizes[-quarter:])
