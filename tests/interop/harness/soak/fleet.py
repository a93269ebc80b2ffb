"""All clients in one loop, without threads: who comes, publishes and goes next is drawn from one seeded source."""

import heapq
import random
import selectors
import time

from harness.soak.client import Client, State

# How long a client stays, and how long it is away, in seconds: means of exponential distributions, and the longest.
STAYS, STAYS_AT_MOST = 12.0, 60.0
AWAY, AWAY_AT_MOST = 1.5, 10.0
# A CONNECT or SUBSCRIBE that is unanswered for so long is a fault.
PATIENCE = 60.0
# How long a socket of a silent client stays open at most.
SILENCE = 8.0
# Clients that subscribe to everything.
COLLECTORS = 2
# While one of them has so many messages above QoS 0 still to get, nobody publishes: far from what a session may keep, where
# the broker drops, and so that the load is what the machine carries.
BEHIND = 5_000
WAYS = (("cut", 5), ("reset", 3), ("silent", 3), ("goodbye", 2))
# Of a hundred payloads: most are small, some do not fit into one row of the store.
LENGTHS = ((0, 40), (60, 40), (700, 15), (5_000, 4), (30_000, 1))


# For how many faults it is told what the clients did before.
EXPLAINED = 3


def drawn(rng, table):
    """One of a table of (value, weight)."""
    return rng.choices([value for value, _weight in table], [weight for _value, weight in table])[0]


class Fleet:
    """The clients, their sockets and their timers."""

    def __init__(self, ledger, port, count, seed, rate, inject=None, trace=False):
        self.ledger = ledger
        # Whether clients remember every packet.
        self.trace = trace
        self.explained = []
        self.port = port
        self.began = time.monotonic()
        # Counts the broker's stops and starts: what ends then is expected to. Odd while it stops.
        self.generation = 0
        self._rng = random.Random(seed)
        self._rate = rate
        self._inject = inject
        self._held = {}
        self._selector = selectors.DefaultSelector()
        self._timers = []
        self._order = 0
        self._kept = []
        self._settled = False
        self.clients = [self._client(number, count) for number in range(count)]
        self._ready = []
        self._place = {}
        self._published_until = None
        self._look_behind = 0.0
        self._waits = False
        # The longest time that the loop took for one step, in seconds: how long the clients stood still.
        self.stood = 0.0

    def _client(self, number, count):
        rng = self._rng
        collector = number < COLLECTORS
        lasting = collector or rng.random() < 0.6
        if collector:
            filters = [("soak/+/+", 2)]
        else:
            filters = []
            for publisher in rng.sample([other for other in range(count) if other != number], 2):
                filters.append((f"soak/{publisher}/{rng.choice('#+')}", rng.choices((0, 1, 2), (1, 2, 3))[0]))
            if rng.random() < 0.25:
                # Overlaps with the last: one delivery, at the higher QoS.
                filters.append((f"soak/{publisher}/{rng.randrange(3)}", rng.randrange(3)))
        return Client(self, number, lasting, rng.choice((4, 5)), filters)

    def selected(self, filters):
        """The topics that these filters select, each with the highest QoS of those that do."""
        found = {}
        for written, qos in filters:
            _soak, publisher, level = written.split("/")
            clients = self.clients if publisher == "+" else [self.clients[int(publisher)]]
            for client in clients:
                for topic in client.topics if level in "+#" else [client.topics[int(level)]]:
                    found[topic] = max(qos, found.get(topic, 0))
        return found.items()

    # ---- sockets

    def register(self, client, sock):
        """A client has opened a socket."""
        client.watched = (sock, selectors.EVENT_READ)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def unregister(self, client):
        """Its socket is about to be closed."""
        if client.watched:
            self._selector.unregister(client.watched[0])
            client.watched = None

    def keep(self, sock):
        """A socket that stays open unread: whose client has vanished and cannot even end its connection."""
        self._kept.append(sock)
        self.after(self._rng.uniform(0.5, SILENCE), lambda: self._drop(sock))

    def _drop(self, sock):
        sock.close()
        self._kept.remove(sock)

    def _watch(self, client):
        if client.watched is None:
            return
        sock, mask = client.watched
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.wants_to_write else 0)
        if wanted != mask:
            self._selector.modify(sock, wanted, client)
            client.watched = (sock, wanted)

    # ---- timers

    def after(self, seconds, act):
        """Acts once that time has passed."""
        self._order += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._order, act))

    def step(self):
        """Waits for a moment; does what is due and what sockets have."""
        began = time.monotonic()
        wait = min(0.02, max(0.0, self._timers[0][0] - began)) if self._timers else 0.02
        for key, events in self._selector.select(wait):
            client = key.data
            # What was done for another may have closed it.
            if client.watched is None or client.watched[0] is not key.fileobj:
                continue
            if events & selectors.EVENT_WRITE:
                client.writable()
            if events & selectors.EVENT_READ and client.watched:
                client.readable()
            self._watch(client)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        self._publish(now)
        self.stood = max(self.stood, time.monotonic() - began)

    # ---- coming and going

    def begin(self, spread):
        """Lets the clients come, within so many seconds; publishing begins at once."""
        for client in self.clients:
            self.after(self._rng.uniform(0, spread), lambda client=client: self._come(client))
            self.after(self._rng.uniform(0, 5), lambda client=client: self._tick(client))
        self._published_until = time.monotonic()

    def settle(self):
        """Nobody publishes or goes any more, and all that are away come back."""
        self._settled = True
        self._published_until = None

    def _come(self, client):
        if client.state is not State.AWAY:
            return
        try:
            client.start()
        except OSError:
            self.ledger.events["connects refused"] += 1
            self.after(self._rng.uniform(0.05, 0.5), lambda: self._come(client))
            return
        self._watch(client)
        self.after(PATIENCE, lambda at=client.connection: self._waited(client, at))

    def _waited(self, client, connection):
        if client.connection == connection and client.state in (State.CONNECTING, State.SUBSCRIBING):
            self.ledger.fault("unanswered", f"{client}: {client.state.value} for {PATIENCE:g} s")

    def is_ready(self, client):
        """It has its session and its subscriptions."""
        self._place[client] = len(self._ready)
        self._ready.append(client)
        stay = min(STAYS_AT_MOST, self._rng.expovariate(1 / STAYS))
        self.after(stay, lambda at=client.connection: self._go(client, at))

    def _unready(self, client):
        place = self._place.pop(client, None)
        if place is not None:
            last = self._ready.pop()
            if last is not client:
                self._ready[place] = last
                self._place[last] = place

    def _go(self, client, connection):
        if self._settled or client.connection != connection or client.state is not State.READY:
            return
        # Some go in the middle of what they do: with a burst on its way, not yet acknowledged.
        if self._rng.random() < 0.5:
            self._burst(client, 5)
        how = drawn(self._rng, WAYS)
        self._unready(client)
        client.leave(how)
        self.ledger.events[f"left: {how}"] += 1
        if self._rng.random() < 0.03:
            client.begin_anew()
        self.is_gone(client)

    def is_gone(self, client):
        """Its connection has ended: it comes back."""
        self._unready(client)
        away = min(AWAY_AT_MOST, self._rng.expovariate(1 / AWAY))
        self.after(min(away, 0.5) if self._settled else away, lambda: self._come(client))

    def _tick(self, client):
        client.tick()
        if not self._settled and client.state is State.READY and self._rng.random() < 0.1:
            client.pass_by(self._rng.randrange(len(self.clients)), self._rng.randrange(3))
        self._watch(client)
        self.after(5.0, lambda: self._tick(client))

    # ---- messages

    def _publish(self, now):
        if self._published_until is None:
            return
        if now >= self._look_behind:
            self._look_behind = now + 0.5
            behind = max(client.behind() for client in self.clients[:COLLECTORS])
            self._waits = behind > BEHIND
            self.ledger.events["half seconds that publishers waited"] += self._waits
        if self._waits:
            self._published_until = now
            return
        # What the loop could not do in a second is not made up for.
        self._published_until = max(self._published_until, now - 1.0)
        while self._published_until < now and self._ready:
            count = self._rng.randint(1, 8)
            self._burst(self._rng.choice(self._ready), count)
            self._published_until += count / self._rate

    def _burst(self, client, count):
        topic = client.topics[self._rng.choices((0, 1, 2), (2, 3, 4))[0]]
        for _ in range(count):
            client.publish(topic, drawn(self._rng, LENGTHS))
            if client.state is not State.READY:
                return
        self._watch(client)

    def injected(self, client, message):
        """What a client is made to believe that it got: the message, unless a fault is to be seen."""
        payload = message.payload
        if self._inject is None or message.qos != 2 or not client.lasting:
            return (payload,)
        if self._inject == "swap":
            held = self._held.pop((client, message.topic), None)
            if held is None and self._rng.random() < 0.01:
                self._held[client, message.topic] = payload
                return ()
            return (payload,) if held is None else (payload, held)
        if self._rng.random() < 0.01:
            return () if self._inject == "lose" else (payload, payload)
        return (payload,)

    # ---- the end

    @property
    def is_stopping(self):
        """Whether the broker is on its way to its end."""
        return self.generation % 2 == 1

    @property
    def connected(self):
        """How many clients are at work."""
        return len(self._ready)

    def unsettled(self):
        """How much is still owed to and by the clients."""
        return sum(client.unsettled() for client in self.clients)

    def all_ready(self):
        """Whether every client is back."""
        return len(self._ready) == len(self.clients)

    def judge(self):
        """What never came is lost, what was never acknowledged is told."""
        for client in self.clients:
            for stream in client.streams.values():
                self.ledger.judge(client, stream, stream.lost())
            for topic, number in client.pending.values():
                self.ledger.fault("unacknowledged", f"{client}: {topic.name} {number}")

    def explain(self, client, topic):
        """Keeps what subscriber and publisher did before one of the first faults."""
        publisher = self.clients[int(topic.split("/")[1])]
        if len(self.explained) < EXPLAINED:
            self.explained.append([f"{who}: " + "; ".join(who.history) for who in (client, publisher)])

    def close(self):
        """Closes every socket."""
        for client in self.clients:
            if client.state is not State.AWAY:
                client.leave("cut")
        for sock in self._kept:
            sock.close()
