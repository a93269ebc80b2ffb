"""What the tests with foreign clients share: the broker as a process, streams and tools that are awaited."""

import time

# Longest wait for anything; generous, since it only matters when something is wrong.
DEADLINE = 30.0


def remaining(until):
    """Seconds until the moment `until` of the monotonic clock, never negative."""
    return max(0.0, until - time.monotonic())
