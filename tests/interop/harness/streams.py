"""gRPC streams whose events are awaited, and errors with their details."""

import queue
import threading
import time

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from harness import DEADLINE, remaining

_END = object()


class Stream:
    """A call that streams answers: what is sent, and what comes in order. Heartbeats are passed over."""

    def __init__(self, method, *requests, bidirectional=True, timeout=120):
        self._out = queue.SimpleQueue()
        self._in = queue.SimpleQueue()
        self._error = None
        if bidirectional:
            for request in requests:
                self._out.put(request)
            self._call = method(iter(self._out.get, _END), timeout=timeout)
        else:
            (request,) = requests
            self._call = method(request, timeout=timeout)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for event in self._call:
                self._in.put(event)
        except grpc.RpcError as error:
            self._error = error
        self._in.put(_END)

    def send(self, request):
        """Sends a frame."""
        self._out.put(request)

    def half_close(self):
        """Says that nothing more is sent."""
        self._out.put(_END)

    def cancel(self):
        """Ends the call from this side and waits for its end."""
        self._out.put(_END)
        self._call.cancel()
        self.ended()

    def next(self, deadline=DEADLINE):
        """The next event but heartbeats, as (name, value); None at the end of the stream."""
        until = time.monotonic() + deadline
        while True:
            try:
                event = self._in.get(timeout=remaining(until))
            except queue.Empty:
                raise AssertionError(f"no event within {deadline} s") from None
            if event is _END:
                return None
            name = event.WhichOneof("event")
            if name != "heartbeat":
                return name, getattr(event, name)

    def expect(self, name):
        """The next event, which must be of this name."""
        event = self.next()
        assert event is not None, f"the stream ended ({self._error!r}), awaited {name}"
        assert event[0] == name, f"awaited {name}, got {event}"
        return event[1]

    def poll(self, seconds):
        """The next event but heartbeats as (name, value), or None when none comes within this time."""
        try:
            event = self._in.get(timeout=seconds)
        except queue.Empty:
            return None
        assert event is not _END, f"the stream ended: {self._error!r}"
        name = event.WhichOneof("event")
        return None if name == "heartbeat" else (name, getattr(event, name))

    def silent(self, seconds):
        """Asserts that no event comes within this time: the one wait for something that must not happen."""
        event = self.poll(seconds)
        assert event is None, f"unexpected: {event}"

    def ended(self):
        """Waits for the end, passing over what still comes; says the error, None when it ended well."""
        while self.next() is not None:
            pass
        return self._error


class Deliveries:
    """Collects the messages of a stream one by one, from whatever batches they come in; keeps other events aside."""

    def __init__(self, stream):
        self._stream = stream
        self._waiting = []
        self.others = []

    def one(self, deadline=DEADLINE):
        """The next message."""
        while not self._waiting:
            event = self._stream.next(deadline)
            assert event is not None, f"the stream ended: {self._stream.ended()!r}"
            self._sort(*event)
        return self._waiting.pop(0)

    def poll(self, seconds):
        """The next message, or None when none comes within this time."""
        if not self._waiting and (event := self._stream.poll(seconds)):
            self._sort(*event)
        return self._waiting.pop(0) if self._waiting else None

    def _sort(self, name, value):
        if name in ("deliveries", "messages"):
            self._waiting.extend(getattr(value, name))
        else:
            self.others.append((name, value))

    def take(self, count):
        """That many messages."""
        return [self.one() for _ in range(count)]

    def other(self, *names):
        """The next event of one of these names; messages that come before it are kept."""
        while True:
            for place, (kind, value) in enumerate(self.others):
                if kind in names:
                    del self.others[place]
                    return value
            event = self._stream.next()
            assert event is not None, f"the stream ended: {self._stream.ended()!r}"
            self._sort(*event)

    def acked_through(self, ack_id):
        """Waits until that frame is settled; every failure on the way is an error."""
        while True:
            results = self.other("results", "ack_results")
            assert not results.failures, results
            if results.acked_through >= ack_id:
                return


class Refused:
    """A refusal: its code and the details that it carries."""

    def __init__(self, error):
        self.code = error.code()
        self.message = error.details()
        self._status = rpc_status.from_call(error)

    def detail(self, kind):
        """The detail of that google.rpc type."""
        return detail(self._status, kind)


def detail(status, kind):
    """The detail of that name of google.rpc in a google.rpc.Status."""
    assert status is not None, "no google.rpc details"
    message = getattr(error_details_pb2, kind)()
    for packed in status.details:
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind} in {status}")


def payloads_of(deliveries):
    """The bodies of deliveries, or of what a queue gave."""
    return [delivery.message.payload for delivery in deliveries]


def refused(code, method, request, **options):
    """Calls what must be refused with that code."""
    options.setdefault("timeout", DEADLINE)
    with pytest.raises(grpc.RpcError) as raised:
        method(request, **options)
    error = Refused(raised.value)
    assert error.code == code, f"{error.code}: {error.message}"
    return error
