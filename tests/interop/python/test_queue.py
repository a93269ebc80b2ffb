"""Queues with Python over gRPC."""

import time

import grpc
from google.protobuf import duration_pb2, field_mask_pb2
from stafett.v1 import common_pb2, queue_pb2

from harness import DEADLINE
from harness.streams import Deliveries, Stream, detail, payloads_of, refused


def seconds(value):
    """A protobuf duration."""
    return duration_pb2.Duration(seconds=int(value), nanos=round(value % 1 * 1e9))


def create(queues, name, **fields):
    """Makes a queue."""
    request = queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name=name, **fields))
    return queues.CreateQueue(request, timeout=DEADLINE).queue


def enqueue(queues, name, *payloads, **fields):
    """Puts messages into a queue, one call each."""
    return [
        queues.Enqueue(
            queue_pb2.EnqueueRequest(queue=name, message=common_pb2.Message(payload=payload, **fields)),
            timeout=DEADLINE,
        )
        for payload in payloads
    ]


def receive(queues, name, count=1, wait=DEADLINE / 2, **fields):
    """Leases up to that many messages, waiting for the first."""
    request = queue_pb2.ReceiveRequest(queue=name, max_messages=count, wait=seconds(wait), **fields)
    return list(queues.Receive(request, timeout=DEADLINE).messages)


def acknowledge(queues, name, messages):
    """Settles; returns the failures."""
    tokens = [message.lease_token for message in messages]
    request = queue_pb2.AcknowledgeRequest(queue=name, lease_tokens=tokens)
    return list(queues.Acknowledge(request, timeout=DEADLINE).failures)


def nack(queues, name, message, kind, **fields):
    """Gives one message back."""
    request = queue_pb2.NackRequest(queue=name, lease_tokens=[message.lease_token], kind=kind, **fields)
    assert not queues.Nack(request, timeout=DEADLINE).failures


def stats(queues, name):
    """The counts of a queue."""
    return queues.GetQueueStats(queue_pb2.GetQueueStatsRequest(name=name), timeout=DEADLINE).stats


def open_consume(queues, name, **fields):
    """A stream of deliveries, once it is open."""
    stream = Stream(queues.Consume, queue_pb2.ConsumeRequest(open=queue_pb2.ConsumeOpen(queue=name, **fields)))
    return stream, Deliveries(stream), stream.expect("opened")


def ack_frame(ack_id, messages):
    """Settles deliveries of the stream."""
    numbers = [message.delivery_id for message in messages]
    return queue_pb2.ConsumeRequest(ack=common_pb2.AckBatch(ack_id=ack_id, delivery_ids=numbers))


def test_definitions_are_made_changed_listed_and_deleted(broker):
    queues = broker.queues()
    made = create(queues, "orders", lease=seconds(7), labels={"team": "kitchen"})
    assert made.lease.seconds == 7 and made.labels["team"] == "kitchen"
    create(queues, "bills")

    again = queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="bills"), if_not_exists=True)
    assert queues.CreateQueue(again, timeout=DEADLINE).queue.name == "bills"
    taken = queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="bills"))
    error = refused(grpc.StatusCode.ALREADY_EXISTS, queues.CreateQueue, taken)
    assert error.detail("ResourceInfo").resource_name == "bills"

    change = queue_pb2.UpdateQueueRequest(
        queue=queue_pb2.Queue(name="orders", lease=seconds(9)), update_mask=field_mask_pb2.FieldMask(paths=["lease"])
    )
    assert queues.UpdateQueue(change, timeout=DEADLINE).queue.lease.seconds == 9
    listed = queues.ListQueues(queue_pb2.ListQueuesRequest(page_size=1), timeout=DEADLINE)
    assert [queue.name for queue in listed.queues] == ["bills"] and listed.next_page_token
    rest = queues.ListQueues(queue_pb2.ListQueuesRequest(page_token=listed.next_page_token), timeout=DEADLINE)
    assert [queue.name for queue in rest.queues] == ["orders"] and not rest.next_page_token

    enqueue(queues, "bills", b"x")
    deleted = queues.DeleteQueue(queue_pb2.DeleteQueueRequest(name="bills"), timeout=DEADLINE)
    assert deleted.deleted_messages == 1
    refused(grpc.StatusCode.NOT_FOUND, queues.GetQueue, queue_pb2.GetQueueRequest(name="bills"))


def test_enqueue_receive_acknowledge(broker):
    queues = broker.queues()
    create(queues, "orders")
    whole = common_pb2.Message(
        topic="shop/1/orders",
        payload=bytes(range(256)),
        properties=[
            common_pb2.Property(key="b", value="1"),
            common_pb2.Property(key="a", value="2"),
            common_pb2.Property(key="b", value="1"),
        ],
        content_type="application/octet-stream",
        reply_to="shop/1/answers",
        correlation_data=b"\x00\xff",
        ttl=seconds(3600),
    )
    first = queues.Enqueue(queue_pb2.EnqueueRequest(queue="orders", message=whole), timeout=DEADLINE)
    later = enqueue(queues, "orders", b"second", b"third")
    assert first.sequence < later[0].sequence < later[1].sequence
    assert len(first.message_id) == 26

    leased = receive(queues, "orders", 10)
    assert [message.origin.message_id for message in leased] == [first.message_id, *(x.message_id for x in later)]
    came = leased[0].message
    for field in ("topic", "payload", "content_type", "reply_to", "correlation_data"):
        assert getattr(came, field) == getattr(whole, field), field
    assert list(came.properties) == list(whole.properties)
    assert 3500 < came.ttl.seconds <= 3600
    assert [message.delivery_attempt for message in leased] == [1, 1, 1]
    assert stats(queues, "orders").leased == 3

    assert not acknowledge(queues, "orders", leased)
    now = stats(queues, "orders")
    assert (now.ready, now.leased, now.bytes, now.acked_total) == (0, 0, 0, 3)
    (failure,) = acknowledge(queues, "orders", leased[:1])
    assert failure.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert detail(failure.error, "ErrorInfo").reason == "LEASE_EXPIRED"


def test_failures_lead_to_the_dead_letter_queue_and_back(broker):
    queues = broker.queues()
    create(queues, "graves")
    create(queues, "orders", max_deliveries=2, dead_letter_queue="graves")
    (stored,) = enqueue(queues, "orders", b"unlucky")

    (message,) = receive(queues, "orders")
    nack(queues, "orders", message, queue_pb2.NACK_KIND_RELEASE)
    (message,) = receive(queues, "orders")
    assert message.delivery_attempt == 1
    nack(queues, "orders", message, queue_pb2.NACK_KIND_FAILED)
    (message,) = receive(queues, "orders")
    assert message.delivery_attempt == 2
    nack(queues, "orders", message, queue_pb2.NACK_KIND_FAILED, reason="still raining")

    (dead,) = receive(queues, "graves")
    assert dead.origin.message_id == stored.message_id and dead.message.payload == b"unlucky"
    assert dead.dead_letter.source_queue == "orders" and dead.dead_letter.attempts == 2
    assert dead.dead_letter.reason
    nack(queues, "graves", dead, queue_pb2.NACK_KIND_RELEASE)
    moved = queues.Redrive(queue_pb2.RedriveRequest(dead_letter_queue="graves"), timeout=DEADLINE).moved
    assert moved == 1
    (message,) = receive(queues, "orders")
    assert message.message.payload == b"unlucky" and message.delivery_attempt == 1

    nack(queues, "orders", message, queue_pb2.NACK_KIND_DEAD_LETTER, reason="no such dish")
    (dead,) = receive(queues, "graves")
    assert dead.dead_letter.reason == "no such dish"
    assert stats(queues, "orders").dead_lettered_total == 2


def test_a_lease_that_ends_gives_the_message_to_another(broker):
    queues = broker.queues()
    create(queues, "orders", lease=seconds(1))
    enqueue(queues, "orders", b"slow")
    stream, deliveries, _ = open_consume(queues, "orders", window=common_pb2.Window(max_outstanding_messages=1))
    first = deliveries.one()
    lost = deliveries.other("lease_lost")
    assert list(lost.delivery_ids) == [first.delivery_id]
    second = deliveries.one()
    assert second.delivery_attempt == 2 and second.origin.message_id == first.origin.message_id
    stream.send(ack_frame(1, [second]))
    deliveries.acked_through(1)
    stream.cancel()


def test_leases_are_extended(broker):
    queues = broker.queues()
    create(queues, "orders", lease=seconds(1))
    enqueue(queues, "orders", b"slow")
    (message,) = receive(queues, "orders")
    request = queue_pb2.ExtendLeaseRequest(queue="orders", lease_tokens=[message.lease_token], lease=seconds(60))
    assert not queues.ExtendLease(request, timeout=DEADLINE).failures
    # Longer than the first lease: it must not come again.
    assert not receive(queues, "orders", wait=1.5)
    assert not acknowledge(queues, "orders", [message])


def test_produce_and_consume_streams(broker):
    queues = broker.queues()
    create(queues, "orders")
    opening = queue_pb2.ProduceRequest(open=queue_pb2.ProduceOpen(queue="orders", want_details=True))
    produce = Stream(queues.Produce, opening)
    bounds = produce.expect("opened")
    assert bounds.max_batch_messages >= 100 and bounds.max_batches_in_flight >= 1

    total = 1_000
    for batch in range(1, total // 100 + 1):
        messages = [
            common_pb2.Message(payload=str(number).encode()) for number in range((batch - 1) * 100, batch * 100)
        ]
        produce.send(queue_pb2.ProduceRequest(batch=common_pb2.PublishBatch(batch_id=batch, messages=messages)))
    stored = []
    through = 0
    while through < total // 100:
        ack = produce.expect("ack")
        assert not ack.errors and ack.through_batch_id > through
        through = ack.through_batch_id
        stored.extend(details.message_id for details in ack.details)
    assert len(set(stored)) == total
    produce.half_close()
    assert produce.ended() is None

    window = common_pb2.Window(max_outstanding_messages=64)
    stream, deliveries, opened = open_consume(queues, "orders", window=window)
    assert opened.queue.name == "orders" and opened.window.max_outstanding_messages == 64
    received = deliveries.take(64)
    stream.silent(0.3)
    assert stats(queues, "orders").leased == 64
    ack_id = 0
    pending = received
    while True:
        ack_id += 1
        stream.send(ack_frame(ack_id, pending))
        if len(received) == total:
            break
        pending = deliveries.take(min(32, total - len(received)))
        received = received + pending
    assert payloads_of(received) == [str(number).encode() for number in range(total)]
    assert [message.origin.message_id for message in received] == stored
    stream.send(queue_pb2.ConsumeRequest(drain=common_pb2.Drain()))
    deliveries.acked_through(ack_id)
    assert stream.ended() is None
    now = stats(queues, "orders")
    assert (now.ready, now.leased) == (0, 0)


def test_two_consumers_share_and_what_one_leaves_goes_to_the_other(broker):
    queues = broker.queues()
    create(queues, "orders")
    window = common_pb2.Window(max_outstanding_messages=5)
    one, mine, _ = open_consume(queues, "orders", window=window)
    two, other, _ = open_consume(broker.queues(), "orders", window=window)
    enqueue(queues, "orders", *(str(number).encode() for number in range(10)))
    held, kept = mine.take(5), other.take(5)
    everything = {str(number).encode() for number in range(10)}
    assert set(payloads_of(held + kept)) == everything
    one.half_close()
    assert one.ended() is None
    two.send(ack_frame(1, kept))
    again = other.take(5)
    assert set(payloads_of(again)) == set(payloads_of(held))
    assert {message.delivery_attempt for message in again} == {1}, "released, not failed"
    two.send(ack_frame(2, again))
    other.acked_through(2)
    two.cancel()


def test_nack_on_a_stream(broker):
    queues = broker.queues()
    create(queues, "orders")
    enqueue(queues, "orders", b"x")
    stream, deliveries, _ = open_consume(queues, "orders")
    first = deliveries.one()
    which = common_pb2.AckBatch(ack_id=1, delivery_ids=[first.delivery_id])
    stream.send(queue_pb2.ConsumeRequest(nack=queue_pb2.NackBatch(which=which, kind=queue_pb2.NACK_KIND_FAILED)))
    second = deliveries.one()
    assert second.delivery_attempt == 2 and second.delivery_id > first.delivery_id
    stream.send(ack_frame(2, [second]))
    deliveries.acked_through(2)
    stream.cancel()


def test_delay_priority_and_expiry(broker):
    queues = broker.queues()
    create(queues, "later", priorities=True)
    began = time.monotonic()
    enqueue(queues, "later", b"delayed", delay=seconds(1))
    assert stats(queues, "later").delayed == 1
    assert not receive(queues, "later", wait=0)
    (message,) = receive(queues, "later")
    assert message.message.payload == b"delayed" and time.monotonic() - began >= 0.99
    assert not acknowledge(queues, "later", [message])

    enqueue(queues, "later", b"low", priority=0)
    enqueue(queues, "later", b"usual")
    enqueue(queues, "later", b"high", priority=9)
    ordered = receive(queues, "later", 3)
    assert payloads_of(ordered) == [b"high", b"usual", b"low"]
    assert not acknowledge(queues, "later", ordered)

    enqueue(queues, "later", b"gone before its time", ttl=seconds(1), delay=seconds(1.2))
    enqueue(queues, "later", b"after it", delay=seconds(1.5))
    (message,) = receive(queues, "later", 2)
    assert message.message.payload == b"after it"
    assert stats(queues, "later").expired_total == 1


def test_peek_browse_purge(broker):
    queues = broker.queues()
    create(queues, "orders")
    enqueue(queues, "orders", b"1", b"2", b"3")
    peeked = queues.Peek(queue_pb2.PeekRequest(queue="orders", max_messages=2), timeout=DEADLINE).messages
    assert payloads_of(peeked) == [b"1", b"2"] and not any(message.lease_token for message in peeked)
    browsed = []
    for answer in queues.Browse(queue_pb2.BrowseRequest(queue="orders"), timeout=DEADLINE):
        browsed.extend(answer.messages)
    assert payloads_of(browsed) == [b"1", b"2", b"3"]
    purge = queue_pb2.PurgeRequest(queue="orders", view=queue_pb2.QUEUE_VIEW_READY)
    assert queues.Purge(purge, timeout=DEADLINE).purged == 3
    assert stats(queues, "orders").ready == 0


def test_each_refusal_says_what_a_program_needs(broker):
    queues = broker.queues()
    error = refused(grpc.StatusCode.NOT_FOUND, queues.Enqueue, queue_pb2.EnqueueRequest(queue="nowhere"))
    assert error.code == grpc.StatusCode.NOT_FOUND
    bad_name = queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="no/slash"))
    error = refused(grpc.StatusCode.INVALID_ARGUMENT, queues.CreateQueue, bad_name)
    (violation,) = error.detail("BadRequest").field_violations
    assert violation.field == "queue.name" and violation.description

    create(queues, "small", max_messages=1)
    enqueue(queues, "small", b"fits")
    full = queue_pb2.EnqueueRequest(queue="small", message=common_pb2.Message(payload=b"does not"))
    error = refused(grpc.StatusCode.RESOURCE_EXHAUSTED, queues.Enqueue, full)
    (violation,) = error.detail("QuotaFailure").violations
    assert "small" in violation.subject
    assert error.detail("RetryInfo").retry_delay.ToTimedelta().total_seconds() > 0
    assert error.detail("ErrorInfo").reason == "QUEUE_FULL"

    batch = queue_pb2.EnqueueBatchRequest(
        queue="small", messages=[common_pb2.Message(payload=b"a"), common_pb2.Message(payload=b"b", topic="a/+")]
    )
    results = queues.EnqueueBatch(batch, timeout=DEADLINE).results
    assert [result.WhichOneof("outcome") for result in results] == ["error", "error"]
    assert detail(results[0].error, "ErrorInfo").reason == "QUEUE_FULL"
    assert detail(results[1].error, "BadRequest").field_violations


def test_what_was_acknowledged_stands_after_kill_9(broker):
    queues = broker.queues()
    create(queues, "orders")
    total = 100
    numbers = [str(number).encode() for number in range(total)]
    stored = [answer.message_id for answer in enqueue(queues, "orders", *numbers)]
    done = receive(queues, "orders", 40)
    assert len(done) == 40 and not acknowledge(queues, "orders", done)
    held = receive(queues, "orders", 10)
    assert len(held) == 10

    broker.crash()
    queues = broker.queues()
    assert not acknowledge(queues, "orders", held[:5]), "a token of the earlier boot settles what nobody else holds"
    rest = receive(queues, "orders", 1000)
    assert [message.origin.message_id for message in rest] == stored[45:]
    failures = acknowledge(queues, "orders", held[5:])
    assert len(failures) == 5
    assert {detail(failure.error, "ErrorInfo").reason for failure in failures} == {"LEASE_EXPIRED"}
    assert not acknowledge(queues, "orders", rest)
