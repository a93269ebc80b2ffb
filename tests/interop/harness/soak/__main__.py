"""The soak: clients at random, restarts of the broker, its memory; ends by itself and says by its exit code what came of it.

0: every promise was kept; 1: one was not; 2: the command line is wrong.
"""

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

from harness.broker import Broker
from harness.soak.fleet import Fleet
from harness.soak.ledger import Ledger
from harness.soak.memory import FLOOR, Memory, is_flat, resident

# Seconds between two lines of progress.
TELL = 5.0
SAMPLE = 0.25
# How long nothing may come at the end, while something is owed.
STALLED = 30.0
# How long it listens, when nothing is owed any more, for what should not come.
LISTEN = 2.0


class Restart(threading.Thread):
    """Stops the broker and starts it again, while the clients go on."""

    def __init__(self, broker, fleet, how, forget):
        super().__init__(daemon=True)
        self._broker = broker
        self._fleet = fleet
        self._how = how
        self._forget = forget
        self.error = None
        self.times = ""
        fleet.generation += 1
        self.start()

    def run(self):
        began = time.monotonic()
        try:
            if self._how == "kill":
                self._broker.kill9()
            elif (code := self._broker.terminate()) != 0:
                raise AssertionError(f"the broker ended with {code}")
            if self._forget:
                shutil.rmtree(self._broker.data)
            self._fleet.generation += 1
            ended = time.monotonic()
            self._broker.restart()
            self.times = f"ended within {ended - began:.1f} s, ready again after {time.monotonic() - ended:.1f} s"
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            self.error = error


class Run:
    """One soak."""

    def __init__(self, options, directory):
        self.options = options
        self.ledger = Ledger()
        self.memory = Memory()
        flags = dict([("--log-level", "warn"), *(flag.split("=", 1) for flag in options.flag)])
        self.broker = Broker(options.binary, directory, [word for pair in flags.items() for word in pair], keep_ports=True)
        self.fleet = Fleet(
            self.ledger, self.broker.mqtt_port, options.clients, options.seed, options.rate, options.inject,
            options.trace,
        )  # fmt: skip
        self._restart = None
        self._restarts = 0
        self._began = time.monotonic()
        self._ramp = min(10.0, options.secs / 6)
        self._told = self._sampled = self._life = 0.0
        self._live()

    def _live(self):
        """A process of the broker serves; the first counts from when all clients have come."""
        self._life = max(time.monotonic(), self._began + self._ramp)
        self.memory.begin()

    def _at(self):
        return time.monotonic() - self._began

    def _step(self):
        self.fleet.step()
        now = time.monotonic()
        if self._restart is None:
            if now - self._sampled >= SAMPLE:
                self._sampled = now
                self.memory.sample(now - self._life, resident(self.broker.process.pid))
            if self.broker.process.poll() is not None:
                raise AssertionError(f"the broker ended by itself with {self.broker.process.returncode}")
        elif not self._restart.is_alive():
            if self._restart.error:
                raise self._restart.error
            print(f"{self._at():6.0f} s: {self._restart.times}", flush=True)
            self._restart = None
            self._live()
        if now - self._told >= TELL:
            self._told = now
            self.tell()

    def tell(self):
        """A line of progress."""
        ledger = self.ledger
        print(
            f"{self._at():6.0f} s: {self.fleet.connected} connected, {ledger.events['connections']} connections,"
            f" {sum(ledger.published.values())} published, {sum(ledger.delivered.values())} delivered,"
            f" {self._restarts} restarts, {self.memory.newest / 2**20:.0f} MiB,"
            f" faults: {dict(ledger.faults) or 'none'}",
            flush=True,
        )

    def work(self):
        """The time that was asked for, restarts in between, and the end."""
        options = self.options
        rng = random.Random(options.seed)
        stretch = (options.secs - self._ramp) / (options.restarts + 1)
        # The lives are of about the same length, so that memory can be compared.
        moments = [self._ramp + stretch * (turn + rng.uniform(0.95, 1.05)) for turn in range(options.restarts)]
        self.fleet.begin(self._ramp)
        while self._at() < options.secs or self._restart or moments:
            self._step()
            if moments and self._at() >= moments[0] and self._restart is None:
                moments.pop(0)
                how = options.how if options.how != "turns" else ("kill", "term")[self._restarts % 2]
                self._restarts += 1
                print(f"{self._at():6.0f} s: restart {self._restarts}, {how}", flush=True)
                self._restart = Restart(self.broker, self.fleet, how, options.inject == "forget")
        self._settle()

    def _settle(self):
        self.fleet.settle()
        moved, state = time.monotonic(), None
        while True:
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                self._step()
            owed = self.fleet.unsettled()
            if owed == 0 and self.fleet.all_ready():
                break
            now = (owed, self.fleet.connected, sum(self.ledger.delivered.values()))
            if now != state:
                moved, state = time.monotonic(), now
            elif time.monotonic() - moved > STALLED:
                print(f"nothing has come for {STALLED:g} s, {owed} owed", flush=True)
                break
        until = time.monotonic() + LISTEN
        while time.monotonic() < until:
            self._step()
        self.fleet.judge()

    def close(self):
        """Ends clients and broker."""
        self.fleet.close()
        if self._restart:
            self._restart.join()
        if self.broker.process.poll() is None and (code := self.broker.terminate()) != 0:
            self.ledger.fault("ended", f"the broker ended with {code}")

    def flat(self):
        """Whether memory is; prints what it was."""
        held = True
        compared = (("first and last life", self.memory.over_lives()), ("within the longest life", self.memory.within_life()))
        for what, pair in compared:
            if pair is None:
                print(f"memory, {what}: too few samples to compare")
                continue
            early, late = pair
            held = held and is_flat(early, late, self.options.flat)
            print(f"memory, {what}: {early / 2**20:.0f} MiB, then {late / 2**20:.0f} MiB: ratio {late / early:.2f}")
        return held

    def close_line(self):
        """What was done and what came of it; whether all is well."""
        ledger = self.ledger
        for line in ledger.told:
            print(f"FAULT {line}")
        for explained in self.fleet.explained:
            print("before one of them:", *explained, sep="\n  ")
        flat = self.flat()
        worked = min(ledger.delivered[1], ledger.delivered[2], ledger.events["connections"]) > 0
        counts = lambda counter: "/".join(str(counter[qos]) for qos in (0, 1, 2))  # noqa: E731
        events = ", ".join(f"{name} {count}" for name, count in sorted(ledger.events.items()))
        print(
            f"soak {'ok' if flat and worked and not ledger.faults else 'FAILED'}: seed {self.options.seed},"
            f" {self._at():.0f} s, {self.options.clients} clients, {self._restarts} restarts;"
            f" at QoS 0/1/2 published {counts(ledger.published)}, acknowledged {counts(ledger.acked)},"
            f" delivered {counts(ledger.delivered)}; {events};"
            f" memory at most {self.memory.highest / 2**20:.0f} MiB, {'flat' if flat else 'NOT FLAT'};"
            f" the clients stood still for {self.fleet.stood:.1f} s at most;"
            f" faults: {dict(ledger.faults) or 'none'}"
        )
        return flat and worked and not ledger.faults


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--secs", type=float, default=60, help="how long they publish; settling comes on top")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--how", choices=("turns", "kill", "term"), default="turns", help="kill -9, SIGTERM, or by turns")
    parser.add_argument("--rate", type=float, default=300, help="messages published per second, over all clients")
    parser.add_argument(
        "--flat", type=float, default=1.25, help=f"late memory by early memory, of which {FLOOR >> 20} MiB are granted"
    )
    parser.add_argument(
        "--inject",
        choices=("lose", "repeat", "swap", "forget"),
        help="a fault that must be found: among what clients got at QoS 2, or a broker that loses its store at a restart",
    )
    parser.add_argument("--flag", action="append", default=[], help="for the broker, as --flag=--durability=interval")
    parser.add_argument("--trace", action="store_true", help="tell of the first faults each packet before them")
    parser.add_argument("--log", help="where the broker's log is copied to when the run has failed")
    parser.add_argument("--binary", type=Path, default=os.environ.get("STAFETT_BINARY"))
    options = parser.parse_args()
    if not options.binary:
        parser.error("--binary is not given")
    if options.clients < 5 or options.secs < 5 or options.restarts < 0 or options.rate <= 0:
        parser.error("at least 5 clients, 5 s, no fewer than 0 restarts, and a rate")
    return options


def main():
    """The command line, and the run."""
    options = parse()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="stafett-soak-") as directory:
        run = Run(options, Path(directory))
        try:
            run.work()
        except BaseException:
            print(run.broker.log()[-4000:], file=sys.stderr)
            raise
        finally:
            run.close()
        well = run.close_line()
        if not well:
            print(run.broker.log()[-2000:], file=sys.stderr)
            if options.log:
                shutil.copy(directory + "/broker.log", options.log)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
