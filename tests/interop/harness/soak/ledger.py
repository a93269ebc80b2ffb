"""What was published and what arrived, by sequence numbers; names what breaks a promise.

Per publisher and topic messages are numbered from 0. A topic has one QoS, a stream is one subscriber's view of a topic.
Nothing here knows a client or a socket.

- Lost: acknowledged at QoS 1 or 2, sent after SUBACK, and never delivered to a stream of that QoS. A session that ends
  with its connection is owed nothing beyond what its connection has brought, but that without a gap.
- Repeated: what nobody may send twice. A publisher at QoS 1 with a lasting session sends again what is unacknowledged,
  and so does the broker at QoS 1 to a lasting session; nothing else may come twice.
- Out of order: a first delivery after that of a later message of the same stretch: of the publisher's connection, or of
  its session where it sends again, in order, what is unacknowledged.
"""

from collections import Counter

# How many faults are told in words; the others are counted.
TOLD = 20


class Topic:
    """What one publisher has sent on one topic."""

    def __init__(self, name, qos, resent):
        self.name = name
        self.qos = qos
        # Whether its publisher sends again what is unacknowledged.
        self.resent = resent and qos > 0
        self.next = 0
        # Sent above QoS 0 and not acknowledged: may have arrived, or not.
        self.open = set()
        # The newest that is acknowledged.
        self.newest = -1

    def send(self):
        """The number of one more message."""
        number = self.next
        self.next += 1
        if self.qos:
            self.open.add(number)
        return number

    def acked(self, number):
        """That message is acknowledged."""
        self.open.discard(number)
        self.newest = max(self.newest, number)


class Stream:
    """What one subscriber has got of one topic, by a subscription at `qos`."""

    __slots__ = ("topic", "qos", "lasting", "owed", "base", "high", "stretch", "missed", "early")

    def __init__(self, topic, qos, lasting, owed=True):
        self.topic = topic
        self.qos = min(qos, topic.qos)
        self.lasting = lasting
        # Whether the subscription stays, so that losses can be told.
        self.owed = owed
        self.base = None
        self.high = -1
        self.stretch = -1
        self.missed = set()
        self.early = set()

    def begin(self):
        """SUBACK has come: what is sent from now on is owed."""
        self.base = self.topic.next
        self.high = self.base - 1
        self.stretch = -1
        self.missed.clear()

    def take(self, number, stretch):
        """One delivery; `stretch` is the publisher's in which it was first sent. Says what is wrong with it, or None."""
        if self.base is None or number < self.base:
            if number in self.early:
                return self._again()
            self.early.add(number)
            return None
        if number > self.high:
            if number > self.high + 1:
                self.missed.update(range(self.high + 1, number))
            self.high = number
            self.stretch = stretch
            return None
        if number in self.missed:
            self.missed.discard(number)
            if self.qos == 0 and self.topic.qos == 1 and self.topic.resent:
                # Missed at QoS 0, and published again later.
                return "sent again"
            return "out of order" if stretch >= self.stretch else None
        return self._again()

    def _again(self):
        by_publisher = self.topic.qos == 1 and self.topic.resent
        by_broker = self.qos == 1 and self.lasting
        return "sent again" if by_publisher or by_broker else "repeated"

    def gaps(self):
        """Acknowledged messages before the newest that came."""
        if not self.qos or not self.owed or self.base is None:
            return []
        return [number for number in self.missed if number not in self.topic.open]

    def lost(self):
        """Acknowledged messages that have not come, up to the newest that was sent."""
        if not self.qos or not self.owed or self.base is None:
            return []
        tail = range(self.high + 1, self.topic.next)
        return self.gaps() + [number for number in tail if number not in self.topic.open]


class Ledger:
    """The sums, and the faults."""

    def __init__(self):
        self.published = Counter()
        self.acked = Counter()
        self.delivered = Counter()
        self.events = Counter()
        self.faults = Counter()
        self.told = []

    def fault(self, kind, text):
        """A promise that was not kept."""
        self.faults[kind] += 1
        if len(self.told) < TOLD:
            self.told.append(f"{kind}: {text}")

    def delivery(self, who, stream, number, stretch):
        """One message has come to `who`; whether that is a fault."""
        self.delivered[stream.qos] += 1
        wrong = stream.take(number, stretch)
        if wrong == "sent again":
            self.events["sent again at QoS 1"] += 1
            return False
        if wrong:
            newest = f"newest {stream.high}, stretch {stretch} after {stream.stretch}"
            self.fault(wrong, f"{who}: {stream.topic.name} {number} at QoS {stream.qos}, {newest}")
        return bool(wrong)

    def judge(self, who, stream, numbers):
        """Counts as lost what a stream has not got."""
        for number in sorted(numbers):
            self.fault("lost", f"{who}: {stream.topic.name} {number} at QoS {stream.qos}, newest {stream.high}")
