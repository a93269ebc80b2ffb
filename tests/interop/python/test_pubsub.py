"""Publish, subscribe, sessions and retained values with Python over gRPC."""

import time

import grpc
from google.protobuf import duration_pb2
from stafett.v1 import common_pb2, pubsub_pb2, queue_pb2

from harness import DEADLINE
from harness.streams import Deliveries, Stream, detail, payloads_of, refused


def publish(pubsub, topic, payload=b"", **fields):
    """Publishes one message; what became of it."""
    message = common_pb2.Message(topic=topic, payload=payload, **fields)
    return pubsub.Publish(pubsub_pb2.PublishRequest(message=message), timeout=DEADLINE)


def filters_of(*names, **options):
    """Topic filters with the same options."""
    return [pubsub_pb2.TopicFilter(filter=name, **options) for name in names]


def subscribe(pubsub, *names, **options):
    """The plain stream, once its filters are active."""
    request = pubsub_pb2.SubscribeRequest(filters=filters_of(*names, **options))
    stream = Stream(pubsub.Subscribe, request, bidirectional=False)
    return stream, Deliveries(stream), stream.expect("opened")


def open_session(pubsub, client_id, *names, expiry=0, window=None, clean=False, **options):
    """A session's stream, once it and its filters are active."""
    opening = pubsub_pb2.OpenSession(
        client_id=client_id,
        clean_start=clean,
        session_expiry=duration_pb2.Duration(seconds=expiry),
        filters=filters_of(*names, **options),
        window=common_pb2.Window(max_outstanding_messages=window) if window else None,
    )
    stream = Stream(pubsub.SubscribeStream, pubsub_pb2.SubscribeStreamRequest(open=opening))
    return stream, Deliveries(stream), stream.expect("opened")


def ack_frame(ack_id, deliveries):
    """Settles deliveries of the stream."""
    numbers = [delivery.delivery_id for delivery in deliveries]
    return pubsub_pb2.SubscribeStreamRequest(ack=common_pb2.AckBatch(ack_id=ack_id, delivery_ids=numbers))


def numbered(count):
    """As many different bodies."""
    return [str(number).encode() for number in range(count)]


def test_publish_reaches_subscribers_in_order_with_all_that_was_said(broker):
    pubsub = broker.pubsub()
    stream, deliveries, opened = subscribe(broker.pubsub(), "shop/+/orders", "shop/#", subscription_id=7)
    assert [result.error.code for result in opened.filters] == [0, 0]
    for payload in numbered(200):
        assert publish(pubsub, "shop/1/orders", payload).matched_subscribers == 1
    assert payloads_of(deliveries.take(200)) == numbered(200)

    whole = common_pb2.Message(
        topic="shop/1/orders",
        payload=b"\x00\xff",
        properties=[common_pb2.Property(key="k", value=value) for value in ("2", "1", "2")],
        content_type="text/plain",
        payload_is_utf8=True,
        reply_to="answers",
        correlation_data=b"\x01",
        ttl=duration_pb2.Duration(seconds=60),
    )
    answer = pubsub.Publish(pubsub_pb2.PublishRequest(message=whole), timeout=DEADLINE)
    delivery = deliveries.one()
    assert delivery.origin.message_id == answer.message_id
    assert set(delivery.subscription_ids) == {7}
    came = delivery.message
    for field in ("topic", "payload", "content_type", "payload_is_utf8", "reply_to", "correlation_data"):
        assert getattr(came, field) == getattr(whole, field), field
    assert list(came.properties) == list(whole.properties)
    assert 50 <= came.ttl.seconds <= 60
    stream.cancel()


def test_nobody_there_is_said_and_no_error(broker):
    answer = publish(broker.pubsub(), "a/b", b"x")
    assert (answer.matched_subscribers, answer.matched_queues) == (0, 0) and answer.message_id


def test_the_window_holds_until_deliveries_are_settled(broker):
    pubsub = broker.pubsub()
    stream, deliveries, opened = open_session(broker.pubsub(), "", "a/#", window=10)
    assert opened.session_id and opened.window.max_outstanding_messages == 10
    for payload in numbered(50):
        publish(pubsub, "a/b", payload)
    received = deliveries.take(10)
    stream.silent(0.3)
    ack_id = 0
    while len(received) < 50:
        ack_id += 1
        stream.send(ack_frame(ack_id, received[-10:]))
        received += deliveries.take(10)
    stream.send(ack_frame(ack_id + 1, received[-10:]))
    deliveries.acked_through(ack_id + 1)
    assert payloads_of(received) == numbered(50)
    stream.cancel()


def test_a_session_keeps_what_it_missed_even_after_kill_9(broker):
    stream, deliveries, opened = open_session(broker.pubsub(), "kitchen", "shop/#", expiry=3600, window=100)
    assert not opened.session_present and opened.session_id == "kitchen"
    pubsub = broker.pubsub()
    for payload in (b"settled", b"unsettled"):
        publish(pubsub, "shop/1", payload)
    settled, unsettled = deliveries.take(2)
    assert payloads_of([settled, unsettled]) == [b"settled", b"unsettled"]
    stream.send(ack_frame(1, [settled]))
    deliveries.acked_through(1)
    stream.cancel()

    assert publish(pubsub, "shop/1", b"missed").matched_subscribers == 1
    stream, deliveries, opened = open_session(broker.pubsub(), "kitchen", expiry=3600)
    assert opened.session_present
    again, missed = deliveries.take(2)
    assert payloads_of([again, missed]) == [b"unsettled", b"missed"]
    assert (again.delivery_attempt, missed.delivery_attempt) == (2, 1)
    stream.send(ack_frame(1, [again]))
    deliveries.acked_through(1)
    stream.cancel()

    publish(pubsub, "shop/2", b"before the crash")
    broker.crash()
    stream, deliveries, opened = open_session(broker.pubsub(), "kitchen", expiry=3600)
    assert opened.session_present
    assert payloads_of(deliveries.take(2)) == [b"missed", b"before the crash"]
    publish(broker.pubsub(), "shop/3", b"after it")
    assert payloads_of(deliveries.take(1)) == [b"after it"]
    stream.cancel()


def test_filters_come_and_go_on_an_open_stream(broker):
    pubsub = broker.pubsub()
    stream, deliveries, _ = open_session(broker.pubsub(), "", "a")
    stream.send(pubsub_pb2.SubscribeStreamRequest(add=pubsub_pb2.AddFilters(filters=filters_of("b", "bad/#/x"))))
    changed = deliveries.other("changed").filters
    assert [result.error.code for result in changed] == [0, grpc.StatusCode.INVALID_ARGUMENT.value[0]]
    publish(pubsub, "b", b"1")
    assert deliveries.one().message.topic == "b"
    gone = [pubsub_pb2.FilterName(filter="a"), pubsub_pb2.FilterName(filter="never")]
    stream.send(pubsub_pb2.SubscribeStreamRequest(remove=pubsub_pb2.RemoveFilters(filters=gone)))
    changed = deliveries.other("changed").filters
    assert [result.error.code for result in changed] == [0, grpc.StatusCode.NOT_FOUND.value[0]]
    assert publish(pubsub, "a", b"2").matched_subscribers == 0
    stream.cancel()


def test_a_second_stream_takes_the_session_over(broker):
    first, deliveries, _ = open_session(broker.pubsub(), "kitchen", "a", expiry=60)
    second, _, opened = open_session(broker.pubsub(), "kitchen", expiry=60)
    assert opened.session_present
    closing = deliveries.other("closing").status
    assert closing.code == grpc.StatusCode.ABORTED.value[0]
    second.cancel()


def test_retained_values(broker):
    pubsub = broker.pubsub()
    publish(pubsub, "temp/1", b"old", retain=True)
    publish(pubsub, "temp/1", b"20", retain=True, qos=common_pb2.QOS_AT_LEAST_ONCE)
    publish(pubsub, "temp/2", b"21", retain=True)
    one = pubsub.GetRetained(pubsub_pb2.GetRetainedRequest(topic="temp/1"), timeout=DEADLINE)
    assert one.message.payload == b"20" and one.message.retain and one.origin.message_id

    stream, deliveries, _ = subscribe(broker.pubsub(), "temp/+")
    first = deliveries.take(2)
    assert {delivery.message.topic: delivery.message.payload for delivery in first} == {
        "temp/1": b"20",
        "temp/2": b"21",
    }
    assert all(delivery.retained and delivery.message.retain for delivery in first)
    publish(pubsub, "temp/1", b"22", retain=True)
    live = deliveries.one()
    assert live.message.payload == b"22" and not live.retained
    stream.cancel()

    stream, deliveries, _ = subscribe(broker.pubsub(), "temp/1", retain_handling=pubsub_pb2.RETAIN_HANDLING_DO_NOT_SEND)
    publish(pubsub, "temp/1", b"live")
    assert deliveries.one().message.payload == b"live"
    stream.cancel()

    publish(pubsub, "temp/1", b"", retain=True)
    error = refused(grpc.StatusCode.NOT_FOUND, pubsub.GetRetained, pubsub_pb2.GetRetainedRequest(topic="temp/1"))
    assert error.code == grpc.StatusCode.NOT_FOUND
    broker.crash()
    pubsub = broker.pubsub()
    listed = pubsub.ListRetained(pubsub_pb2.ListRetainedRequest(filter="temp/#"), timeout=DEADLINE)
    assert [message.topic for message in listed.messages] == ["temp/2"] and not listed.next_page_token
    deleted = pubsub.DeleteRetained(pubsub_pb2.DeleteRetainedRequest(filter="#"), timeout=DEADLINE)
    assert deleted.deleted == 1


def test_a_share_group_divides_the_messages(broker):
    pubsub = broker.pubsub()
    members = [open_session(broker.pubsub(), "", "jobs/#", share_group="crew", window=10) for _ in range(2)]
    for payload in numbered(20):
        assert publish(pubsub, "jobs/1", payload).matched_subscribers == 1
    parts = [payloads_of(deliveries.take(10)) for _, deliveries, _ in members]
    assert sorted(parts[0] + parts[1]) == sorted(numbered(20))
    for stream, _, _ in members:
        stream.cancel()


def test_what_a_filter_cannot_have_is_said(broker):
    stream, _, opened = open_session(broker.pubsub(), "talker", "a", share_group="crew", no_local=True)
    assert opened.filters[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    stream.cancel()


def test_a_queue_takes_what_its_bindings_match(broker):
    queues, pubsub = broker.queues(), broker.pubsub()
    definition = queue_pb2.Queue(name="orders", bindings=["shop/+/orders", "shop/1/#"])
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=definition), timeout=DEADLINE)
    assert publish(pubsub, "shop/1/orders", b"1").matched_queues == 1
    assert publish(pubsub, "shop/1/bills", b"2").matched_queues == 1
    assert publish(pubsub, "shop/2/bills", b"3").matched_queues == 0
    request = queue_pb2.ReceiveRequest(queue="orders", max_messages=10, auto_ack=True)
    leased = queues.Receive(request, timeout=DEADLINE).messages
    assert [(message.message.topic, message.message.payload) for message in leased] == [
        ("shop/1/orders", b"1"),
        ("shop/1/bills", b"2"),
    ]


def test_publish_stream_and_batch_refuse_one_by_one(broker):
    pubsub = broker.pubsub()
    stream, deliveries, _ = subscribe(broker.pubsub(), "a/#")
    messages = [common_pb2.Message(topic=topic, payload=b"x") for topic in ("a/1", "a/+", "a/2")]
    results = pubsub.PublishBatch(pubsub_pb2.PublishBatchRequest(messages=messages), timeout=DEADLINE).results
    assert [result.WhichOneof("outcome") for result in results] == ["ok", "error", "ok"]
    assert "topic" in detail(results[1].error, "BadRequest").field_violations[0].field

    opening = pubsub_pb2.PublishStreamRequest(open=pubsub_pb2.PublishOpen(want_details=True))
    publisher = Stream(pubsub.PublishStream, opening)
    publisher.expect("opened")
    batch = common_pb2.PublishBatch(batch_id=1, messages=messages)
    publisher.send(pubsub_pb2.PublishStreamRequest(batch=batch))
    ack = publisher.expect("ack")
    assert ack.through_batch_id == 1
    assert [(error.batch_id, error.index) for error in ack.errors] == [(1, 1)]
    assert [bool(details.message_id) for details in ack.details] == [True, False, True]
    publisher.half_close()
    assert publisher.ended() is None

    many = [pubsub_pb2.PublishManyRequest(messages=messages), pubsub_pb2.PublishManyRequest(messages=messages)]
    total = pubsub.PublishMany(iter(many), timeout=DEADLINE)
    assert (total.accepted, total.rejected) == (4, 2)
    assert [error.index for error in total.first_errors] == [1, 4]
    assert [delivery.message.topic for delivery in deliveries.take(8)] == ["a/1", "a/2"] * 4
    stream.cancel()


def test_a_delayed_publish_reaches_queues_in_time_and_survives_kill_9(broker):
    queues, pubsub = broker.queues(), broker.pubsub()
    definition = queue_pb2.Queue(name="patient", bindings=["later"])
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=definition), timeout=DEADLINE)
    began = time.monotonic()
    publish(pubsub, "later", b"x", delay=duration_pb2.Duration(seconds=2))
    broker.crash()
    request = queue_pb2.ReceiveRequest(queue="patient", wait=duration_pb2.Duration(seconds=20), auto_ack=True)
    (leased,) = broker.queues().Receive(request, timeout=DEADLINE).messages
    assert leased.message.payload == b"x" and time.monotonic() - began >= 1.9


def test_each_refusal_names_its_field(broker):
    pubsub = broker.pubsub()
    for message in (
        common_pb2.Message(topic=""),
        common_pb2.Message(topic="a/+/b"),
        common_pb2.Message(topic="a", qos=common_pb2.QOS_EXACTLY_ONCE),
        common_pb2.Message(topic="a", priority=10),
        common_pb2.Message(topic="a", ttl=duration_pb2.Duration(seconds=-1)),
        common_pb2.Message(topic="a", payload=bytes(5 << 20)),
    ):
        request = pubsub_pb2.PublishRequest(message=message)
        error = refused(grpc.StatusCode.INVALID_ARGUMENT, pubsub.Publish, request)
        assert error.detail("BadRequest").field_violations[0].field, error.message
    request = pubsub_pb2.SubscribeRequest(filters=filters_of("good", "bad/#/x"))
    stream = Stream(pubsub.Subscribe, request, bidirectional=False)
    assert stream.ended().code() == grpc.StatusCode.INVALID_ARGUMENT
