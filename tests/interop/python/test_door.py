"""The gRPC door with Python: health, reflection, metadata, compression, deadlines, errors."""

import time

import grpc
from google.protobuf import duration_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from stafett.v1 import admin_pb2, common_pb2, queue_pb2

from harness import DEADLINE
from harness.streams import refused

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {"stafett.v1.AdminService", "stafett.v1.PubSubService", "stafett.v1.QueueService"}


def test_health_is_checked_and_watched_to_the_end(broker):
    health = health_pb2_grpc.HealthStub(broker.channel())
    for service in ("", *SERVICES):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        assert answer.status == SERVING, service
    refused(grpc.StatusCode.NOT_FOUND, health.Check, health_pb2.HealthCheckRequest(service="no.such.Service"))

    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert next(watch).status == SERVING
    broker.process.terminate()
    assert next(watch).status == NOT_SERVING
    assert broker.process.wait(DEADLINE) == 0


def test_reflection_tells_the_whole_contract(broker):
    database = ProtoReflectionDescriptorDatabase(broker.channel())
    services = set(database.get_services())
    assert services >= SERVICES | {"grpc.health.v1.Health"}, services
    pool = DescriptorPool(database)
    for name in SERVICES:
        assert pool.FindServiceByName(name).methods, name
    assert pool.FindMessageTypeByName("stafett.v1.Message").fields_by_name["payload"].number == 2


def test_the_request_id_comes_back_as_metadata(broker):
    _answer, call = broker.admin().GetServerInfo.with_call(
        admin_pb2.GetServerInfoRequest(), metadata=[("x-request-id", "interop-7")], timeout=DEADLINE
    )
    assert dict(call.initial_metadata())["x-request-id"] == "interop-7"


def test_gzip_both_ways(broker):
    queues = broker.queues(broker.channel(compression=grpc.Compression.Gzip))
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="packed")), timeout=DEADLINE)
    payload = b"much of the same, " * 50_000
    queues.Enqueue(
        queue_pb2.EnqueueRequest(queue="packed", message=common_pb2.Message(payload=payload)), timeout=DEADLINE
    )
    answer = queues.Receive(queue_pb2.ReceiveRequest(queue="packed", auto_ack=True), timeout=DEADLINE)
    assert [leased.message.payload for leased in answer.messages] == [payload]


def test_the_deadline_of_a_call_ends_it(broker):
    queues = broker.queues()
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="empty")), timeout=DEADLINE)
    began = time.monotonic()
    wait = queue_pb2.ReceiveRequest(queue="empty", wait=duration_pb2.Duration(seconds=60))
    refused(grpc.StatusCode.DEADLINE_EXCEEDED, queues.Receive, wait, timeout=0.5)
    assert 0.4 < time.monotonic() - began < DEADLINE


def test_a_wait_that_ends_before_the_deadline_is_an_empty_answer(broker):
    queues = broker.queues()
    queues.CreateQueue(queue_pb2.CreateQueueRequest(queue=queue_pb2.Queue(name="empty")), timeout=DEADLINE)
    wait = queue_pb2.ReceiveRequest(queue="empty", wait=duration_pb2.Duration(nanos=100_000_000))
    assert not queues.Receive(wait, timeout=DEADLINE).messages


def test_what_is_not_there_is_unimplemented(broker):
    call = broker.channel().unary_unary("/stafett.v1.QueueService/NoSuchMethod")
    refused(grpc.StatusCode.UNIMPLEMENTED, call, b"")


def test_the_server_says_what_it_is(broker):
    info = broker.admin().GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=DEADLINE)
    assert info.version and info.durability == "fsync" and info.max_connections > 0
    assert info.doors == broker.doors
