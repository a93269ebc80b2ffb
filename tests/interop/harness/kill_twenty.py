"""kill -9 while a feeder and a consumer work: what is promised must hold.

`mosquitto_pub -l -q 1 -c -i feeder -d` is fed numbered lines for `shop/1/orders`; a gRPC consumer works on the queue
`orders`, bound to `shop/+/orders`; the broker is killed and started again on the same ports and the same store. Then:

- every line with a PUBACK was consumed;
- no message id whose acknowledgement was answered with OK was delivered again;
- a payload stands under two ids only where its line was sent again, since its PUBACK was lost;
- every kill fell between the first and the last PUBACK, while both sides were at work.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import grpc
from google.protobuf import duration_pb2
from stafett.v1 import common_pb2, queue_pb2, queue_pb2_grpc

from harness import DEADLINE, remaining
from harness.broker import Broker
from harness.tools import Tool

TOPIC = "shop/1/orders"
QUEUE = "orders"
# How long either side may take to come back and go on after a kill.
PROGRESS = 60.0
PUBLISH = re.compile(r"sending PUBLISH \(d([01]), q1, r0, m(\d+), ")
PUBACK = re.compile(r"received PUBACK \(Mid: (\d+), RC:(\d+)\)")


class Failed(Exception):
    """A promise that was not kept, or a run that proves nothing."""


class Feeder:
    """mosquitto_pub, fed line by line; knows which line each of its packet ids is.

    mosquitto_pub connects again by itself and sends what is unacknowledged. Should it exit all the same, it is started
    again under the same client id with the lines that have no PUBACK.
    """

    def __init__(self, port, total):
        self._port = port
        self._total = total
        self._parsed = 0
        self._fed = []
        self._waiting = list(range(total))
        self.acked = {}
        self.sent_again = set()
        self.processes = 0
        self.connections = 0
        self._start()

    def _start(self):
        self.tool = Tool(
            *("mosquitto_pub", "-h", "127.0.0.1", "-p", self._port, "-t", TOPIC),
            *("-l", "-q", 1, "-c", "-i", "feeder", "-d"),
            stdin=True,
        )
        self.processes += 1
        self._parsed = 0
        self._fed = []

    def feed(self, count):
        """Writes lines until `count` of all were written."""
        target = self._waiting[: max(0, count - (self._total - len(self._waiting)))]
        if target:
            self._waiting = self._waiting[len(target) :]
            self._fed.extend(target)
            self.tool.write("".join(f"{line}\n" for line in target))

    def parse(self):
        """Takes in what the tool has said since."""
        lines = self.tool.lines
        while self._parsed < len(lines):
            line = lines[self._parsed]
            self._parsed += 1
            if match := PUBLISH.search(line):
                number = self._line(int(match[2]))
                if match[1] == "1":
                    self.sent_again.add(number)
            elif match := PUBACK.search(line):
                if match[2] != "0":
                    raise Failed(f"refused: {line}")
                self.acked.setdefault(self._line(int(match[1])), time.monotonic())
            elif "received CONNACK" in line:
                self.connections += 1

    def _line(self, packet_id):
        if not 1 <= packet_id <= len(self._fed):
            raise Failed(f"packet id {packet_id}, but {len(self._fed)} lines were written")
        return self._fed[packet_id - 1]

    def until(self, condition, what):
        """Waits until `condition()`, as the tool goes on; starts it again when it has exited."""
        until = time.monotonic() + PROGRESS
        while True:
            self.parse()
            if condition():
                return
            if time.monotonic() > until:
                raise Failed(f"waited in vain for {what}; {len(self.acked)} PUBACKs\n{self.tool}")
            if self.tool.process.poll() is not None:
                print(f"mosquitto_pub exited with {self.tool.process.returncode}, started again")
                self.parse()
                written = [line for line in self._fed if line not in self.acked]
                self._start()
                self._fed = written
                self.sent_again.update(written)
                self.tool.write("".join(f"{line}\n" for line in written))
            self.tool.more(0.2)

    def finish(self):
        """Waits until each line is acknowledged and the tool has ended by itself."""
        self.feed(self._total)
        self.until(lambda: len(self.acked) == self._total, "the last PUBACK")
        self.tool.close_stdin()
        self.tool.ends()


class Consumer(threading.Thread):
    """Consumes one message after the other, by turns on a stream and by single calls, a turn for each connection.

    All that it learns it learns in one thread, in order: a delivery that it sees after an OK came after that OK.
    """

    def __init__(self, address):
        super().__init__(daemon=True)
        self._address = address
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._outgoing = Outgoing()
        self.error = None
        self.deliveries = 0
        self.turns = 0
        self.acked_in_turn = 0
        self.ids = defaultdict(set)
        self.acked = set()
        self.unknown = 0
        self.highest_attempt = 0

    def run(self):
        try:
            while not self._stopping.is_set():
                options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
                with grpc.insecure_channel(self._address, options=options) as channel:
                    self._turn(channel)
        except Exception as error:  # noqa: BLE001 - handed to the main thread
            self.error = error
        with self._changed:
            self._changed.notify_all()

    def _turn(self, channel):
        try:
            grpc.channel_ready_future(channel).result(timeout=PROGRESS)
            queues = queue_pb2_grpc.QueueServiceStub(channel)
            self.turns += 1
            self.acked_in_turn = 0
            if self.turns % 2:
                self._stream(queues)
            else:
                self._calls(queues)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED):
                raise Failed(f"the consumer was refused: {error}") from error

    def _stream(self, queues):
        outgoing = self._outgoing = Outgoing()
        window = common_pb2.Window(max_outstanding_messages=64)
        outgoing.put(queue_pb2.ConsumeRequest(open=queue_pb2.ConsumeOpen(queue=QUEUE, window=window)))
        pending = {}
        ack_id = 0
        try:
            if self._stopping.is_set():
                outgoing.drain()
            for event in queues.Consume(iter(outgoing)):
                kind = event.WhichOneof("event")
                if kind == "messages":
                    messages = event.messages.messages
                    self.delivered(messages)
                    ack_id += 1
                    pending[ack_id] = {message.delivery_id: message.origin.message_id for message in messages}
                    frame = common_pb2.AckBatch(ack_id=ack_id, delivery_ids=list(pending[ack_id]))
                    outgoing.put(queue_pb2.ConsumeRequest(ack=frame))
                elif kind == "results":
                    failed = {failure.delivery_id for failure in event.results.failures}
                    for number in [number for number in pending if number <= event.results.acked_through]:
                        settled = pending.pop(number)
                        self.acknowledged([name for delivery, name in settled.items() if delivery not in failed])
                elif kind == "closing":
                    raise Failed(f"the broker closed the stream: {event.closing}")
        finally:
            self.unknown += sum(map(len, pending.values()))
            outgoing.end()

    def _calls(self, queues):
        wait = duration_pb2.Duration(nanos=500_000_000)
        while not self._stopping.is_set():
            request = queue_pb2.ReceiveRequest(queue=QUEUE, max_messages=50, wait=wait)
            messages = queues.Receive(request, timeout=DEADLINE).messages
            if not messages:
                continue
            self.delivered(messages)
            names = {message.lease_token: message.origin.message_id for message in messages}
            settle = queue_pb2.AcknowledgeRequest(queue=QUEUE, lease_tokens=list(names))
            try:
                failures = queues.Acknowledge(settle, timeout=DEADLINE).failures
            except grpc.RpcError:
                self.unknown += len(names)
                raise
            failed = {failure.lease_token for failure in failures}
            self.acknowledged([name for token, name in names.items() if token not in failed])

    def delivered(self, messages):
        """Takes note of deliveries; one that was acknowledged with OK must not be among them."""
        with self._changed:
            for message in messages:
                name = message.origin.message_id
                if name in self.acked:
                    raise Failed(f"{name} ({message.message.payload!r}) was acknowledged and came again")
                self.ids[int(message.message.payload)].add(name)
                self.deliveries += 1
                self.highest_attempt = max(self.highest_attempt, message.delivery_attempt)
            self._changed.notify_all()

    def acknowledged(self, names):
        """Takes note of message ids that were answered with OK."""
        with self._changed:
            self.acked.update(names)
            self.acked_in_turn += len(names)
            self._changed.notify_all()

    def until(self, condition, what):
        """Waits until `condition()`, as messages come."""
        until = time.monotonic() + PROGRESS
        with self._changed:
            while True:
                if self.error:
                    raise self.error
                if condition():
                    return
                if not self._changed.wait(remaining(until)) and time.monotonic() > until:
                    raise Failed(f"waited in vain for {what}; {self.deliveries} deliveries")

    def finish(self):
        """Ends it once what it holds is settled."""
        self._stopping.set()
        self._outgoing.drain()
        self.join(PROGRESS)
        if self.error:
            raise self.error
        if self.is_alive():
            raise Failed("the consumer does not end")


class Outgoing:
    """Requests of a stream, until its end is said."""

    def __init__(self):
        self._items = []
        self._changed = threading.Condition()
        self._ended = False
        self._draining = False

    def put(self, item):
        """One more."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()

    def drain(self):
        """Asks once that the broker ends the stream when all is settled."""
        with self._changed:
            if not self._draining:
                self._draining = True
                self._items.append(queue_pb2.ConsumeRequest(drain=common_pb2.Drain()))
                self._changed.notify()

    def end(self):
        """No more."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self):
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    return
                item = self._items.pop(0)
            yield item


def schedule(rng, kills, lines):
    """At how many PUBACKs each kill falls, and how many lines are written by then."""
    stretch = lines / (kills + 1)
    for kill in range(kills):
        acks = max(1, int((kill + rng.uniform(0.6, 1.0)) * stretch))
        written = min(lines, acks + rng.randint(20, max(20, int(stretch))))
        yield acks, written


def leftovers(broker, consumer):
    """Settles what is still there; afterwards the queue must be empty."""
    queues = broker.queues()
    while True:
        wait = duration_pb2.Duration(seconds=1)
        request = queue_pb2.ReceiveRequest(queue=QUEUE, max_messages=1000, wait=wait)
        messages = queues.Receive(request, timeout=DEADLINE).messages
        if not messages:
            break
        consumer.delivered(messages)
        tokens = [message.lease_token for message in messages]
        failures = queues.Acknowledge(
            queue_pb2.AcknowledgeRequest(queue=QUEUE, lease_tokens=tokens), timeout=DEADLINE
        ).failures
        if failures:
            raise Failed(f"cannot be settled: {failures}")
        consumer.acknowledged([message.origin.message_id for message in messages])
    stats = queues.GetQueueStats(queue_pb2.GetQueueStatsRequest(name=QUEUE), timeout=DEADLINE).stats
    if stats.ready or stats.leased or stats.delayed:
        raise Failed(f"the queue is not empty at the end: {stats}")


def run(options, directory):
    """The whole run."""
    began = time.monotonic()
    rng = random.Random(options.seed)
    broker = Broker(options.binary, directory, keep_ports=True)
    queue = queue_pb2.Queue(name=QUEUE, bindings=["shop/+/orders"])
    broker.queues().CreateQueue(queue_pb2.CreateQueueRequest(queue=queue), timeout=DEADLINE)
    feeder = Feeder(broker.mqtt_port, options.lines)
    consumer = Consumer(broker.doors["grpc"])
    consumer.start()
    killed = []
    try:
        for acks, written in schedule(rng, options.kills, options.lines):
            feeder.feed(written)
            feeder.until(lambda acks=acks: len(feeder.acked) >= acks, f"{acks} PUBACKs")
            turn = len(killed) + 1
            consumer.until(
                lambda turn=turn: consumer.turns >= turn and consumer.acked_in_turn, "the consumer to be at work"
            )
            killed.append(time.monotonic())
            broker.crash()
        feeder.finish()
        consumer.until(lambda: set(feeder.acked) <= set(consumer.ids), "every line with a PUBACK")
        consumer.finish()
        leftovers(broker, consumer)
    except Exception:
        print(broker.log()[-4000:], file=sys.stderr)
        raise
    finally:
        feeder.tool.stop()
        if broker.process.poll() is None:
            code = broker.terminate()
    if code != 0:
        raise Failed(f"the broker ended with {code}")

    moments = sorted(feeder.acked.values())
    within = sum(moments[0] < moment < moments[-1] for moment in killed)
    twice = {line for line, names in consumer.ids.items() if len(names) > 1}
    lost = set(feeder.acked) - set(consumer.ids)
    print(
        f"seed {options.seed}: {len(killed)} kills, {within} between the first and the last PUBACK,"
        f" in {time.monotonic() - began:.1f} s\n"
        f"feeder: {options.lines} lines, {len(feeder.acked)} with a PUBACK, {len(feeder.sent_again)} sent again,"
        f" {feeder.connections} connections of {feeder.processes} process(es)\n"
        f"consumer: {consumer.deliveries} deliveries of {sum(map(len, consumer.ids.values()))} message ids in"
        f" {consumer.turns} connections, {len(consumer.acked)} acknowledged with OK,"
        f" {consumer.unknown} acknowledgements without an answer, highest attempt {consumer.highest_attempt}\n"
        f"payloads under two ids: {len(twice)}; lines with a PUBACK that were lost: {len(lost)};"
        " delivered again after OK: 0"
    )
    if lost:
        raise Failed(f"lost: {sorted(lost)[:20]}")
    if twice - feeder.sent_again:
        raise Failed(f"under two ids, though sent once: {sorted(twice - feeder.sent_again)[:20]}")
    if within < options.kills:
        raise Failed(f"only {within} of {options.kills} kills fell between the first and the last PUBACK")


def main():
    """The command line."""
    parser = argparse.ArgumentParser(prog="kill_twenty", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", type=Path, default=os.environ.get("STAFETT_BINARY"))
    options = parser.parse_args()
    if not options.binary:
        parser.error("--binary is not given")
    if not 0 < options.lines <= 65_535 or options.kills < 1:
        parser.error("--lines must be 1 to 65535 (packet ids), --kills at least 1")
    with tempfile.TemporaryDirectory(prefix="stafett-kill-") as directory:
        try:
            run(options, Path(directory))
        except Failed as failure:
            print(f"kill_twenty FAILED: {failure}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
