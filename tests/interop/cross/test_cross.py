"""One broker, two doors: what enters by one comes out of the other."""

import threading
import time

import pytest
from google.protobuf import duration_pb2
from stafett.v1 import common_pb2, pubsub_pb2, queue_pb2

from harness import DEADLINE
from harness.streams import Deliveries, Stream
from harness.tools import got, messages


def create_queue(broker, name, *bindings, **fields):
    """Makes a queue and returns the stub."""
    queues = broker.queues()
    definition = queue_pb2.Queue(name=name, bindings=bindings, **fields)
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=definition), timeout=DEADLINE)
    return queues


def publish(pubsub, topic, payload, **fields):
    """Publishes one message over gRPC."""
    message = common_pb2.Message(topic=topic, payload=payload, **fields)
    return pubsub.Publish(pubsub_pb2.PublishRequest(message=message), timeout=DEADLINE)


def subscribe(broker, *filters, **options):
    """A gRPC subscriber whose filters are active."""
    named = [pubsub_pb2.TopicFilter(filter=name, **options) for name in filters]
    request = pubsub_pb2.SubscribeRequest(filters=named)
    stream = Stream(broker.pubsub().Subscribe, request, bidirectional=False)
    stream.expect("opened")
    return stream, Deliveries(stream)


def in_queue(queues, name):
    """How many messages are in the queue, leased ones included."""
    stats = queues.GetQueueStats(queue_pb2.GetQueueStatsRequest(name=name), timeout=DEADLINE).stats
    return stats.ready + stats.leased + stats.delayed


@pytest.mark.parametrize("version", ("mqttv311", "mqttv5"))
def test_a_device_publishes_and_a_bound_queue_hands_it_to_grpc(broker, mosquitto, version):
    queues = create_queue(broker, "orders", "shop/+/orders")
    opening = queue_pb2.ConsumeRequest(open=queue_pb2.ConsumeOpen(queue="orders"))
    stream = Stream(queues.Consume, opening)
    stream.expect("opened")
    deliveries = Deliveries(stream)
    device = mosquitto.start_pub(*("-V", version, "-i", "till-1", "-q", 1, "-t", "shop/1/orders", "-l"), stdin=True)
    device.write("".join(f"order {number}\n" for number in range(100)))
    device.close_stdin()
    device.ends()
    leased = deliveries.take(100)
    assert [message.message.payload for message in leased] == [f"order {number}".encode() for number in range(100)]
    assert {message.message.topic for message in leased} == {"shop/1/orders"}
    assert {message.origin.publisher_id for message in leased} == {"till-1"}
    numbers = [message.delivery_id for message in leased]
    stream.send(queue_pb2.ConsumeRequest(ack=common_pb2.AckBatch(ack_id=1, delivery_ids=numbers)))
    deliveries.acked_through(1)
    assert in_queue(queues, "orders") == 0
    stream.cancel()


def test_grpc_publishes_and_devices_receive(broker, mosquitto, paho):
    plain = mosquitto.subscribe("-q", 1, "-t", "shop/#", "-C", 1)
    device = paho("device-1")
    assert device.subscribe("shop/#", options=None, qos=1) == [1]
    answer = publish(
        broker.pubsub(),
        "shop/1/orders",
        b"coffee",
        properties=[common_pb2.Property(key="k", value=value) for value in ("2", "1", "2")],
        content_type="text/plain",
        payload_is_utf8=True,
        reply_to="answers/1",
        correlation_data=b"\x00\x01",
        ttl=duration_pb2.Duration(seconds=60),
    )
    assert answer.matched_subscribers == 2
    assert got(plain, 1) == ["1 0 shop/1/orders coffee"]
    message = device.message()
    assert (message.topic, message.payload, message.qos, message.retain) == ("shop/1/orders", b"coffee", 1, False)
    said = message.properties
    assert said.UserProperty == [("k", "2"), ("k", "1"), ("k", "2")]
    assert (said.ContentType, said.PayloadFormatIndicator) == ("text/plain", 1)
    assert (said.ResponseTopic, said.CorrelationData) == ("answers/1", b"\x00\x01")
    assert 50 <= said.MessageExpiryInterval <= 60


def test_the_properties_of_a_device_reach_grpc(broker, paho):
    stream, deliveries = subscribe(broker, "shop/#")
    device = paho("device-1")
    reason = device.publish(
        "shop/1/orders",
        b"tea",
        qos=2,
        UserProperty=[("b", "1"), ("a", "2"), ("b", "1")],
        ContentType="text/plain",
        PayloadFormatIndicator=1,
        ResponseTopic="answers/1",
        CorrelationData=b"\x00\x01",
        MessageExpiryInterval=60,
    )
    assert reason == 0
    delivery = deliveries.one()
    message = delivery.message
    assert [(pair.key, pair.value) for pair in message.properties] == [("b", "1"), ("a", "2"), ("b", "1")]
    assert (message.content_type, message.payload_is_utf8) == ("text/plain", True)
    assert (message.reply_to, message.correlation_data) == ("answers/1", b"\x00\x01")
    assert 50 <= message.ttl.seconds <= 60
    assert delivery.origin.publisher_id == "device-1"
    stream.cancel()


def test_the_retained_value_comes_first_at_both_doors_then_live_from_either(broker, mosquitto, paho):
    mosquitto.publish("room/1/temperature", "20", "-r", "-q", 1)
    device = paho("screen")
    assert device.subscribe("room/+/temperature", qos=1) == [1]
    stream, deliveries = subscribe(broker, "room/+/temperature")
    first = deliveries.one()
    assert first.retained and (first.message.payload, first.message.retain) == (b"20", True)
    message = device.message()
    assert (message.payload, message.retain) == (b"20", True)

    pubsub = broker.pubsub()
    total = 50
    feeder = threading.Thread(
        target=lambda: [publish(pubsub, "room/2/temperature", f"grpc {number}".encode()) for number in range(total)]
    )
    feeder.start()
    other = mosquitto.start_pub("-q", 1, "-t", "room/3/temperature", "-l", stdin=True)
    other.write("".join(f"mqtt {number}\n" for number in range(total)))
    other.close_stdin()
    other.ends()
    feeder.join(DEADLINE)

    from_grpc = [delivery.message for delivery in deliveries.take(2 * total)]
    from_mqtt = [device.message() for _ in range(2 * total)]
    for received in (from_grpc, from_mqtt):
        assert not any(message.retain for message in received)
        for door in ("grpc", "mqtt"):
            payloads = [message.payload.decode() for message in received if message.payload.startswith(door.encode())]
            assert payloads == [f"{door} {number}" for number in range(total)]
    stream.cancel()


def test_a_value_retained_over_grpc_greets_devices_and_is_deleted_by_one(broker, mosquitto):
    pubsub = broker.pubsub()
    publish(pubsub, "room/1/light", b"on", retain=True)
    greeted = mosquitto.subscribe("-q", 1, "-t", "room/#", "-C", 1)
    assert got(greeted, 1) == ["1 1 room/1/light on"]
    mosquitto.start_pub("-t", "room/1/light", "-n", "-r", "-q", 1).ends()
    listed = pubsub.ListRetained(pubsub_pb2.ListRetainedRequest(filter="#"), timeout=DEADLINE)
    assert not listed.messages


def test_one_queue_fed_and_consumed_at_both_doors(broker, mosquitto):
    queues = create_queue(broker, "orders")
    mosquitto.publish("$queue/orders", "from mqtt", "-q", 1)
    message = common_pb2.Message(payload=b"from grpc")
    queues.Enqueue(queue_pb2.EnqueueRequest(queue="orders", message=message), timeout=DEADLINE)

    worker = mosquitto.subscribe("-q", 1, "-t", "$queue/orders", "-C", 1, "-F", "got %p")
    assert got(worker, 1) == ["from mqtt"]
    worker.ends()
    request = queue_pb2.ReceiveRequest(
        queue="orders", max_messages=10, wait=duration_pb2.Duration(seconds=20), auto_ack=True
    )
    leased = queues.Receive(request, timeout=DEADLINE).messages
    assert [message.message.payload for message in leased] == [b"from grpc"]
    assert in_queue(queues, "orders") == 0


def test_a_shared_subscription_spans_the_doors(broker, mosquitto):
    device = mosquitto.subscribe("-q", 1, "-t", "$share/crew/jobs/#")
    stream, deliveries = subscribe(broker, "jobs/#", share_group="crew")
    pubsub = broker.pubsub()
    total = 40
    for number in range(total):
        assert publish(pubsub, "jobs/1", str(number).encode()).matched_subscribers == 1

    # Each gets some, nobody gets one twice; the sum is all of it.
    mine = []
    until = time.monotonic() + DEADLINE
    while len(mine) + len(messages(device)) < total:
        assert time.monotonic() < until, f"{len(mine)} over gRPC\n{device}"
        delivery = deliveries.poll(0.1)
        if delivery is not None:
            mine.append(delivery.message.payload.decode())
    theirs = [message.rsplit(" ", 1)[1] for message in messages(device)]
    assert mine and theirs
    assert sorted(mine + theirs) == sorted(map(str, range(total)))
    stream.cancel()


def test_a_device_answers_a_request_from_grpc(broker, paho):
    stream, deliveries = subscribe(broker, "answers/7")
    device = paho("oven")
    device.subscribe("oven/requests", qos=1)
    publish(broker.pubsub(), "oven/requests", b"how hot?", reply_to="answers/7", correlation_data=b"q1")
    asked = device.message()
    device.publish(asked.properties.ResponseTopic, b"220", qos=1, CorrelationData=asked.properties.CorrelationData)
    answer = deliveries.one().message
    assert (answer.payload, answer.correlation_data) == (b"220", b"q1")
    stream.cancel()


def test_a_session_moves_from_mqtt_to_grpc(broker, paho):
    device = paho("wanderer", expiry=3600)
    device.subscribe("news", qos=1)
    device.disconnect()
    publish(broker.pubsub(), "news", b"missed")
    opening = pubsub_pb2.OpenSession(client_id="wanderer", session_expiry=duration_pb2.Duration(seconds=3600))
    stream = Stream(broker.pubsub().SubscribeStream, pubsub_pb2.SubscribeStreamRequest(open=opening))
    assert stream.expect("opened").session_present
    assert Deliveries(stream).one().message.payload == b"missed"
    stream.cancel()


def test_a_disconnect_releases_uncounted(broker, paho):
    queues = create_queue(broker, "orders")
    message = common_pb2.Message(payload=b"x")
    queues.Enqueue(queue_pb2.EnqueueRequest(queue="orders", message=message), timeout=DEADLINE)
    worker = paho("worker", manual_ack=True)
    worker.subscribe("$queue/orders", qos=1)
    assert worker.message().payload == b"x"
    worker.disconnect()
    request = queue_pb2.ReceiveRequest(queue="orders", wait=duration_pb2.Duration(seconds=20))
    (leased,) = queues.Receive(request, timeout=DEADLINE).messages
    assert leased.delivery_attempt == 1


def test_what_devices_lose_is_counted_and_the_last_loss_buries_it(broker, paho):
    create_queue(broker, "graves")
    queues = create_queue(broker, "orders", max_deliveries=2, dead_letter_queue="graves")
    message = common_pb2.Message(payload=b"poison")
    queues.Enqueue(queue_pb2.EnqueueRequest(queue="orders", message=message), timeout=DEADLINE)
    for number in range(2):
        worker = paho(f"worker-{number}", manual_ack=True)
        worker.subscribe("$queue/orders", qos=1)
        assert worker.message().payload == b"poison"
        worker.drop()
    digger = paho("digger")
    digger.subscribe("$queue/graves", qos=1)
    assert digger.message().payload == b"poison"


def test_properties_of_version_5_steer_an_enqueue(broker, paho):
    queues = create_queue(broker, "orders", priorities=True)
    device = paho("device")
    assert device.publish("$queue/orders", b"low", qos=1) == 0
    assert device.publish("$queue/orders", b"high", qos=1, UserProperty=[("stafett-priority", "9")]) == 0
    request = queue_pb2.ReceiveRequest(queue="orders", max_messages=10, auto_ack=True)
    leased = queues.Receive(request, timeout=DEADLINE).messages
    assert [message.message.payload for message in leased] == [b"high", b"low"]
