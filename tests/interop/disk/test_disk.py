"""The disk of the store fills up, or cannot be written at all. Needs root: each test mounts a small tmpfs."""

import os
import subprocess
import threading
import time

import grpc
import pytest
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stafett.v1 import admin_pb2, common_pb2, queue_pb2

from harness import DEADLINE, remaining
from harness.broker import Broker
from harness.paho_client import Paho
from harness.streams import Refused

MIB = 1 << 20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
DISK_NEARLY_FULL = 0x97


class SmallDisk:
    """A tmpfs of a few MiB. The suite runs in a mount namespace of its own, so that none is left behind."""

    def __init__(self, path, mib):
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "stafett-test", path], check=True)

    def remount(self, option):
        """Changes an option of the mount."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)

    def free(self):
        """Bytes that are free."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self):
        """Takes all that is free, in one file."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            for size in (MIB, 4096):
                try:
                    while True:
                        filler.write(bytes(size))
                except OSError:
                    pass

    def clear(self):
        """Gives back what :meth:`fill` took."""
        (self.path / "filler").unlink()

    def unmount(self):
        """Ends it."""
        subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """Makes small disks."""
    made = []

    def make(mib):
        made.append(SmallDisk(tmp_path / f"disk{len(made)}", mib))
        return made[-1]

    yield make
    for disk in made:
        disk.unmount()


@pytest.fixture
def broker_on(binary, small_disk, request):
    """A broker whose store is on a small disk: the disk and the broker. The log is on the disk of everybody."""
    started = []

    def start(mib):
        disk = small_disk(mib)
        config = disk.path.parent / "stafett.toml"
        config.write_text('[store]\nwatermark_free_bytes = "24MiB"\nballast_bytes = "8MiB"\n', encoding="utf-8")
        started.append(Broker(binary, disk.path.parent, ("--config", str(config)), data=disk.path / "data"))
        return disk, started[-1]

    yield start
    for broker in started:
        if getattr(request.node, "failed", False):
            print(f"--- the broker's log\n{broker.log()[-4000:]}")
        broker.stop()


def create(queues):
    """The queue of these tests. Its leases outlive the test, so that nothing is delivered twice for being slow."""
    definition = queue_pb2.Queue(name="orders", lease=duration_pb2.Duration(seconds=600))
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=definition), timeout=DEADLINE)


def enqueue(queues, payload):
    """One message over gRPC."""
    message = common_pb2.Message(payload=payload)
    return queues.Enqueue(queue_pb2.EnqueueRequest(queue="orders", message=message), timeout=DEADLINE)


def payload(kind, number):
    """32 KiB that say which message it is."""
    return f"{kind} {number} ".encode().ljust(32 << 10, b".")


def name(body):
    """Which message it is."""
    return body.split(b".", 1)[0].decode().strip()


def receive(queues, count):
    """Leases up to that many, without waiting."""
    request = queue_pb2.ReceiveRequest(queue="orders", max_messages=count)
    return list(queues.Receive(request, timeout=DEADLINE).messages)


def acknowledge(queues, messages):
    """Settles all of them."""
    tokens = [message.lease_token for message in messages]
    answer = queues.Acknowledge(queue_pb2.AcknowledgeRequest(queue="orders", lease_tokens=tokens), timeout=DEADLINE)
    assert not answer.failures, answer


def nack(queues, messages):
    """Gives all of them back as failed."""
    tokens = [message.lease_token for message in messages]
    request = queue_pb2.NackRequest(queue="orders", lease_tokens=tokens, kind=queue_pb2.NACK_KIND_FAILED)
    assert not queues.Nack(request, timeout=DEADLINE).failures


def drain(queues):
    """Takes everything out; the names."""
    names = []
    while messages := receive(queues, 50):
        names += [name(message.message.payload) for message in messages]
        acknowledge(queues, messages)
    return names


class Feeders:
    """Clients at both doors that put messages into the queue until they are refused; what was acknowledged."""

    def __init__(self, broker):
        self.acknowledged = []
        self.refusals = {}
        self._threads = [
            threading.Thread(target=self._feed, args=("grpc", self._over_grpc(broker))),
            threading.Thread(target=self._feed, args=("mqtt", self._over_mqtt(broker))),
        ]
        for thread in self._threads:
            thread.start()

    def _feed(self, door, put):
        for number in range(100_000):
            if (refusal := put(payload(door, number))) is not None:
                self.refusals[door] = refusal
                return
            self.acknowledged.append(f"{door} {number}")

    @staticmethod
    def _over_grpc(broker):
        queues = broker.queues()

        def put(body):
            try:
                enqueue(queues, body)
            except grpc.RpcError as error:
                return Refused(error)
            return None

        return put

    @staticmethod
    def _over_mqtt(broker):
        device = Paho(broker.mqtt_port, "device")

        def put(body):
            reason = device.publish("$queue/orders", body, qos=1)
            if reason in (0, 0x10):
                return None
            device.drop()
            return reason

        return put

    def refused(self):
        """Waits until both are refused."""
        until = time.monotonic() + 2 * DEADLINE
        for thread in self._threads:
            thread.join(remaining(until))
            assert not thread.is_alive(), f"{len(self.acknowledged)} acknowledged, refused: {self.refusals}"
        return self.refusals


def is_served(broker):
    """What health says."""
    stub = health_pb2_grpc.HealthStub(broker.channel())
    return stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE).status


def test_a_disk_that_fills_up_refuses_at_the_watermark_and_recovers_by_itself(broker_on):
    disk, broker = broker_on(96)
    queues = broker.queues()
    create(queues)
    feeders = Feeders(broker)
    refusals = feeders.refused()
    assert refusals["mqtt"] == DISK_NEARLY_FULL
    assert refusals["grpc"].code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusals["grpc"].detail("ErrorInfo").reason == "DISK_NEARLY_FULL"
    assert refusals["grpc"].detail("RetryInfo").retry_delay.seconds > 0
    assert disk.free() > 0
    counters = broker.admin().GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=DEADLINE).counters
    assert counters["publishes_refused_disk_total"] >= 2
    assert len(feeders.acknowledged) > 100

    # Settling goes on, and the broker serves.
    assert is_served(broker) == SERVING
    settled = receive(queues, 20)
    assert len(settled) == 20
    acknowledge(queues, settled)
    # Also when there is nothing left at all: what is kept in reserve is for this.
    disk.fill()
    more = receive(queues, 20)
    acknowledge(queues, more)
    settled = {name(message.message.payload) for message in settled + more}
    assert is_served(broker) == SERVING

    disk.remount("size=256m")
    # The next that comes is the one that looks.
    enqueue(queues, payload("after", 1))
    device = Paho(broker.mqtt_port, "device-2")
    assert device.publish("$queue/orders", payload("after", 2), qos=1) == 0
    device.disconnect()
    kept = set(feeders.acknowledged) - settled | {"after 1", "after 2"}

    broker.crash()
    found = drain(broker.queues())
    assert sorted(found) == sorted(kept)


def test_a_store_that_cannot_write_ends_the_broker_and_keeps_what_it_acknowledged(broker_on):
    disk, broker = broker_on(96)
    queues = broker.queues()
    create(queues)
    # Small ones: what is written below is what is said of them.
    stored = [f"grpc {number}" for number in range(1000)]
    for one in stored:
        enqueue(queues, one.encode())
    leased = receive(queues, 1000)
    watched = health_pb2_grpc.HealthStub(broker.channel()).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert next(watched).status == SERVING

    # Whatever room the broker finds or has kept is taken from it, until it cannot write what is settled.
    settled, unknown = set(), set()
    until = time.monotonic() + 2 * DEADLINE
    while not unknown and remaining(until) > 0:
        disk.fill()
        one, *others = leased
        try:
            acknowledge(queues, [one])
            settled.add(name(one.message.payload))
            nack(queues, others)
            leased = receive(queues, 1000)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            unknown.add(name(one.message.payload))
    assert unknown, "the store never failed"
    assert next(watched).status == NOT_SERVING
    assert broker.process.wait(DEADLINE) == 1
    assert "the store cannot write any more" in broker.log()

    disk.clear()
    broker.restart()
    found = set(drain(broker.queues()))
    assert not found & settled, "came back"
    assert set(stored) - settled - unknown <= found, "lost"


def serve(binary, directory):
    """Runs the broker on a directory that it cannot use; what it says before it ends."""
    doors = ["--grpc-listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0"]
    command = [binary, "serve", *doors, "--data-dir", directory]
    env = {name: value for name, value in os.environ.items() if not name.startswith("STAFETT_")}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)


def is_refused(ended, directory, why):
    """It ended with the code for wrong configuration, and said once and on stderr alone what is wrong with it."""
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and str(directory) in errors[0] and why in errors[0], ended.stderr


def test_a_read_only_disk_is_refused(binary, small_disk):
    disk = small_disk(96)
    disk.remount("ro")
    is_refused(serve(binary, disk.path / "data"), disk.path / "data", "Read-only file system")


def test_a_store_on_a_disk_that_became_read_only_is_refused_and_stays_whole(broker_on, binary):
    disk, broker = broker_on(96)
    queues = broker.queues()
    create(queues)
    enqueue(queues, payload("grpc", 1))
    assert broker.terminate() == 0
    disk.remount("ro")
    is_refused(serve(binary, disk.path / "data"), disk.path / "data", "Read-only file system")
    disk.remount("rw")
    broker.restart()
    assert drain(broker.queues()) == ["grpc 1"]


@pytest.mark.parametrize("inside", ("", "data"))
def test_a_file_in_the_place_of_the_directory_is_refused(binary, tmp_path, inside):
    (tmp_path / "file").write_text("not a directory", encoding="utf-8")
    directory = tmp_path / "file" / inside
    is_refused(serve(binary, directory), directory, "directory")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "not a directory"


def test_a_full_disk_is_refused(binary, small_disk):
    disk = small_disk(1)
    disk.fill()
    is_refused(serve(binary, disk.path / "data"), disk.path / "data", "No space left")
