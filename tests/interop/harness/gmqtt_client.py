"""gmqtt whose answers are awaited; its event loop has a thread of its own."""

import asyncio
import queue
import threading

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from harness import DEADLINE


class Gmqtt:
    """A connected client. `will` is (topic, payload, qos, retain)."""

    def __init__(self, port, client_id="", version=5, clean=True, expiry=None, will=None, tls=None):
        self._messages = queue.SimpleQueue()
        self._connacks = queue.SimpleQueue()
        self._subacks = queue.SimpleQueue()
        self._ends = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        options = {} if expiry is None else {"session_expiry_interval": expiry}
        if will:
            topic, payload, qos, retain = will
            options["will_message"] = gmqtt.Message(topic, payload, qos=qos, retain=retain)
        self._client = gmqtt.Client(client_id or None, clean_session=clean, **options)
        self._client.set_config({"reconnect_delay": 0.2})
        self._client.on_connect = lambda _client, flags, _reason, _properties: self._connacks.put(flags)
        self._client.on_subscribe = lambda _client, _mid, granted, _properties: self._subacks.put(granted)
        self._client.on_disconnect = lambda _client, _packet, error=None: self._ends.put(error)
        self._client.on_message = self._received
        version = {4: MQTTv311, 5: MQTTv50}[version]
        self._run(self._client.connect("127.0.0.1", port, ssl=tls or False, version=version))
        self.session_present = self.connected()

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    async def _received(self, _client, topic, payload, qos, properties):
        self._messages.put((topic, payload.decode(), qos, bool(properties["retain"])))
        return 0

    def connected(self):
        """Waits for a CONNACK; says whether a session was there."""
        return bool(self._connacks.get(timeout=DEADLINE))

    def subscribe(self, topic, qos):
        """Subscribes and waits for SUBACK; the reason codes."""

        async def subscribe():
            self._client.subscribe(topic, qos=qos)

        self._run(subscribe())
        return list(self._subacks.get(timeout=DEADLINE))

    def publish(self, topic, payload, qos=0, retain=False):
        """Publishes and waits until it is acknowledged (QoS 0: handed over)."""

        async def publish():
            self._client.publish(topic, payload, qos=qos, retain=retain)
            await self._client._persistent_storage.wait_empty()

        self._run(publish())

    def message(self):
        """The next message: topic, text, QoS, retain flag."""
        return self._messages.get(timeout=DEADLINE)

    def disconnect(self):
        """DISCONNECT, then the end of its loop."""
        self._run(self._client.disconnect())
        self._stop()

    def drop(self):
        """Cuts the connection without DISCONNECT; it does not come back."""
        if not self._loop.is_closed():

            async def cut():
                self._client.stop_reconnect()
                self._client._connection._transport.abort()

            self._run(cut())
            self._ends.get(timeout=DEADLINE)
            self._stop()

    def _stop(self):
        async def rest():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._run(rest())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()
