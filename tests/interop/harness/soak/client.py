"""One client of the soak: a paho client without a thread, its sessions, and the ways in which it goes.

A client with a lasting session keeps paho's state over its connections, as a device keeps it in its memory, and so sends
again what is unacknowledged. One whose session ends with its connection begins anew each time.
"""

import enum
import socket
import struct
import time
from collections import deque

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MessageState

from harness.paho_client import properties
from harness.soak.ledger import Stream, Topic

PATTERN = bytes(range(256)) * 128
KEEP_ALIVE = 30
# What is made to end at once, with a reset, when it is closed.
RESET = struct.pack("ii", 1, 0)
# Seconds until a session of MQTT 5 expires: longer than any run.
EXPIRY = 7 * 24 * 3600
# Packet identifier not found.
UNKNOWN_ID = 0x92


class State(enum.Enum):
    """Where a client stands."""

    AWAY = "away"
    CONNECTING = "connecting"
    SUBSCRIBING = "subscribing"
    READY = "ready"


def encode(topic, stretch, number, length):
    """A payload that says what it is."""
    return b"%s %d %d %d " % (topic.encode(), stretch, number, length) + PATTERN[:length]


def decode(payload):
    """(topic, stretch, number) of a payload, or None when it is not whole."""
    words = payload.split(b" ", 4)
    try:
        topic, stretch, number, length = words[0].decode(), int(words[1]), int(words[2]), int(words[3])
    except (IndexError, ValueError):
        return None
    return (topic, stretch, number) if len(words) == 5 and words[4] == PATTERN[:length] else None


class Client:
    """One client id over all its connections. `fleet` is told of sockets and asked for topics."""

    def __init__(self, fleet, number, lasting, version, filters):
        self.fleet = fleet
        self.ledger = fleet.ledger
        self.name = f"soak-{number}"
        self.lasting = lasting
        self.version = version
        # Filters that stay, each with its QoS.
        self.filters = filters
        self.topics = [Topic(f"soak/{number}/{qos}", qos, lasting) for qos in (0, 1, 2)]
        self.state = State.AWAY
        self.connection = 0
        self.sessions = 0
        self.generation = 0
        self.streams = {}
        # The filter of a while, in a list, while it is subscribed to.
        self.passing = None
        self.pending = {}
        self.subscribed = False
        # The socket that the fleet watches, and for what.
        self.watched = None
        # Whether the next connection is the first of a session.
        self._anew = True
        self._mids = {}
        self._paho = None
        # What it did last, for whoever looks for a fault.
        self.history = deque(maxlen=200 if fleet.trace else 40)

    def __str__(self):
        return f"{self.name} (MQTT {self.version}, {'lasting' if self.lasting else 'transient'})"

    def note(self, text):
        """Remembers what it does."""
        self.history.append(f"{time.monotonic() - self.fleet.began:.3f} {text}")

    def _make(self):
        protocol = paho.MQTTv5 if self.version == 5 else paho.MQTTv311
        options = {} if self.version == 5 else {"clean_session": not self.lasting}
        made = paho.Client(CallbackAPIVersion.VERSION2, self.name, protocol=protocol, **options)
        made.connect_timeout = 1.0
        made.on_socket_open = lambda _c, _u, sock: self.fleet.register(self, sock)
        made.on_socket_close = lambda _c, _u, _sock: self.fleet.unregister(self)
        made.on_connect = self._on_connect
        made.on_subscribe = self._on_subscribe
        made.on_unsubscribe = self._on_unsubscribe
        made.on_publish = self._on_publish
        made.on_message = self._on_message
        made.on_disconnect = self._on_disconnect
        if self.fleet.trace:
            made.on_log = lambda _c, _u, _level, text: self.note(text)
        return made

    def start(self):
        """Connects; OSError when nobody listens."""
        if self._anew or not self.lasting:
            self._forget()
        self._keep_releases()
        self.state = State.CONNECTING
        self.connection += 1
        self.generation = self.fleet.generation
        options = {}
        if self.version == 5:
            options["clean_start"] = self._anew or not self.lasting
            if self.lasting:
                options["properties"] = properties("CONNECT", SessionExpiryInterval=EXPIRY)
        try:
            self._paho.connect("127.0.0.1", self.fleet.port, KEEP_ALIVE, **options)
        except OSError:
            self.state = State.AWAY
            raise

    def _keep_releases(self):
        """Has paho send PUBREL again where it is its turn, also after an attempt to connect that failed.

        paho 2.2 would publish such a message a second time: each attempt takes a message one state back.
        """
        for message in self._paho._out_messages.values():  # noqa: SLF001 - nothing public tells
            if message.state == MessageState.MQTT_MS_RESEND_PUBREL:
                message.state = MessageState.MQTT_MS_WAIT_FOR_PUBCOMP

    def _forget(self):
        """A session that begins anew: nothing is owed, what is unacknowledged may have arrived or not."""
        self._paho = self._make()
        self.sessions += 1
        self.pending.clear()
        self.streams.clear()
        self.passing = None
        self.subscribed = False

    def _on_connect(self, _client, _user, flags, reason, _properties):
        if reason.is_failure:
            if self.is_expected_to_end():
                self.ledger.events["CONNECTs refused at the end"] += 1
            else:
                self.ledger.fault("refused", f"{self}: CONNECT: {reason}")
            return
        fresh = self._anew or not self.lasting
        if fresh and flags.session_present and (self.version == 5 or not self.lasting):
            self.ledger.fault("session", f"{self}: present after a clean start")
        if not fresh and not flags.session_present:
            self.ledger.fault("session", f"{self}: gone at connection {self.connection}")
        self._anew = False
        self.ledger.events["connections"] += 1
        self.note(f"connected, the {self.connection}th time, {len(self.pending)} to send again")
        if self.subscribed:
            self._ready()
            return
        self.state = State.SUBSCRIBING
        for topic, qos in self.fleet.selected(self.filters):
            self.streams[topic.name] = Stream(topic, qos, self.lasting)
        self._subscribe(self.filters)

    def _subscribe(self, filters):
        _result, mid = self._paho.subscribe(filters)
        self._mids[mid] = filters

    def _on_subscribe(self, _client, _user, mid, reasons, _properties):
        filters = self._mids.pop(mid)
        granted = [reason.value for reason in reasons]
        if granted != [qos for _filter, qos in filters]:
            self.ledger.fault("refused", f"{self}: SUBSCRIBE {filters}: granted {granted}")
        for topic, _qos in self.fleet.selected(filters):
            self.streams[topic.name].begin()
        if filters is self.filters:
            self.subscribed = True
            self._ready()

    def _on_unsubscribe(self, _client, _user, _mid, _reasons, _properties):
        self.ledger.events["filters taken back"] += 1

    def _ready(self):
        self.state = State.READY
        self.fleet.is_ready(self)

    def publish(self, topic, length):
        """One more message on one of its topics."""
        number = topic.send()
        stretch = self.sessions if topic.resent else self.connection
        payload = encode(topic.name, stretch, number, length)
        self.ledger.published[topic.qos] += 1
        info = self._paho.publish(topic.name, payload, topic.qos)
        if topic.qos:
            if info.rc == paho.MQTT_ERR_QUEUE_SIZE:
                raise RuntimeError(f"{self}: paho has no packet id left")
            self.pending[info.mid] = (topic, number)
            self.note(f"{topic.name} {number} as {info.mid}")

    def _on_publish(self, _client, _user, mid, reason, _properties):
        topic, number = self.pending.pop(mid, (None, None))
        if topic is None:
            return
        self.note(f"acknowledged {mid}: {reason}")
        if reason.value == UNKNOWN_ID and topic.qos == 2:
            # PUBREL was sent again after its PUBCOMP had been lost: the broker had done with it.
            self.ledger.events["PUBREL of what was complete"] += 1
        elif reason.is_failure:
            self.ledger.fault("refused", f"{self}: PUBLISH {topic.name} {number}: {reason}")
            return
        topic.acked(number)
        self.ledger.acked[topic.qos] += 1

    def _on_message(self, _client, _user, message):
        for payload in self.fleet.injected(self, message):
            known = decode(payload)
            if known is None or known[0] != message.topic:
                self.ledger.fault("broken", f"{self}: {message.topic}: {payload[:60]!r}")
                continue
            stream = self.streams.get(message.topic)
            if stream is None:
                self.ledger.fault("unasked", f"{self}: {message.topic} {known[2]}")
                continue
            if message.qos == 2:
                self.note(f"got {message.topic} {known[2]} as {message.mid}{' DUP' if message.dup else ''}")
            if self.ledger.delivery(self, stream, known[2], known[1]):
                self.fleet.explain(self, known[0])

    def pass_by(self, publisher, qos):
        """Takes another filter, for a while: its topics are checked for order and repetition, not for loss."""
        if self.passing is None:
            wanted = (f"soak/{publisher}/#", qos)
            if any(topic.name in self.streams for topic, _qos in self.fleet.selected([wanted])):
                return
            self.passing = [wanted]
            for topic, granted in self.fleet.selected(self.passing):
                self.streams[topic.name] = Stream(topic, granted, self.lasting, owed=False)
            self._subscribe(self.passing)
        elif not self._mids:
            self._paho.unsubscribe(self.passing[0][0])
            # What was on its way may still come; a later filter is another publisher's.
            self.passing = None

    def leave(self, how):
        """Goes: "cut", "reset" and "silent" without DISCONNECT, the last with a socket that stays open; or "goodbye"."""
        self.note(f"leaves: {how}")
        self.state = State.AWAY
        self._end_of_connection()
        sock = self._paho.socket()
        if how == "goodbye":
            self._paho.disconnect()
        elif sock is not None:
            if how == "silent":
                self.fleet.keep(sock.dup())
            elif how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.fleet.unregister(self)
            sock.close()

    def begin_anew(self):
        """The next connection is a clean start (MQTT 5 alone, where it can be followed by a lasting session)."""
        self._anew = self.version == 5

    def _end_of_connection(self):
        self._mids.clear()
        if not self.lasting:
            for stream in self.streams.values():
                self.ledger.judge(self, stream, stream.gaps())

    def is_expected_to_end(self):
        """Whether the broker stops, or has stopped, since it began to connect."""
        return self.generation != self.fleet.generation or self.fleet.is_stopping

    def _on_disconnect(self, _client, _user, flags, reason, _properties):
        if self.state is State.AWAY:
            return
        self.note(f"disconnected: {reason}")
        if not self.is_expected_to_end():
            who = "said" if flags.is_disconnect_packet_from_server else "without a word"
            self.ledger.fault("disconnected", f"{self}: {self.state.value}, {reason} ({who})")
        self.state = State.AWAY
        self._end_of_connection()
        self.fleet.is_gone(self)

    def readable(self):
        """Its socket has something."""
        self._paho.loop_read()

    def writable(self):
        """Its socket takes more."""
        self._paho.loop_write()

    @property
    def wants_to_write(self):
        """Whether paho has bytes that the socket did not take."""
        return self._paho.want_write()

    def tick(self):
        """Keep alive; now and then."""
        if self.state is not State.AWAY:
            self._paho.loop_misc()

    def behind(self):
        """How many acknowledged messages it has still to get, about."""
        streams = (stream for stream in self.streams.values() if stream.qos and stream.base is not None)
        return sum(max(0, stream.topic.newest - stream.high) for stream in streams)

    def unsettled(self):
        """How much is still owed to this client, and by it."""
        return len(self.pending) + sum(len(stream.lost()) for stream in self.streams.values())
