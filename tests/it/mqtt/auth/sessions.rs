//! Whose a session is.

use stafett::grpc::proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::pubsub::{Topics, session};
use crate::queue::reason;

async fn greeted(broker: &Broker, as_whom: Connect) -> (ReasonCode, bool) {
    let (peer, connack) = Peer::greet(broker, as_whom).await;
    if connack.reason == ReasonCode::Success {
        peer.leave().await;
    }
    (connack.reason, connack.session_present)
}

const REFUSED: (ReasonCode, bool) = (ReasonCode::ClientIdentifierNotValid, false);

#[tokio::test]
async fn a_session_belongs_to_its_user_over_a_restart() {
    let configured = Configured::new().await;
    let (_directory, path) = config_file(&format!("[mqtt]\n{}anonymous = true\n", configured.line()));
    let flags = ["--config", &path];
    let mut broker = Broker::start_with(&flags).await;
    let ann = |version| as_user(kept(version, "c"), "ann", "nna");
    let bob = |version| as_user(kept(version, "c"), "bob", "bob's");
    for restart in [false, true] {
        for version in BOTH {
            assert_eq!(greeted(&broker, ann(version)).await, (ReasonCode::Success, restart || version == V5));
            assert_eq!(greeted(&broker, bob(version)).await, REFUSED);
            assert_eq!(greeted(&broker, kept(version, "c")).await, REFUSED);
            // Nor is it thrown away.
            assert_eq!(greeted(&broker, as_user(connect(version, "c"), "bob", "bob's")).await, REFUSED);
        }
        // Nor taken over at the other door.
        let args = ["sub", "a", "--client-id", "c", "--server", &broker.url()];
        let ended = stafett(args).await;
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("belongs to another principal"), "{}", ended.stderr);
        let data = broker.data();
        broker.kill9().await;
        broker = Broker::start_in(data, &flags).await;
    }
    // Nor from a connection that has it.
    let mut peer = Peer::connected(&broker, ann(V5)).await;
    assert_eq!(greeted(&broker, bob(V5)).await, REFUSED);
    peer.nothing_came().await;
    let (_, connack) = Peer::greet(&broker, ann(V5)).await;
    assert!(connack.session_present);
    assert_eq!(peer.told().await, Some(ReasonCode::SessionTakenOver));
}

#[tokio::test]
async fn what_nobody_owned_is_theirs_who_come_back_with_a_name() {
    let configured = Configured::new().await;
    let broker = Broker::start().await;
    assert_eq!(greeted(&broker, kept(V5, "c")).await, (ReasonCode::Success, false));
    let data = broker.data();
    broker.terminate().await;
    let (_directory, path) = config_file(&format!("[mqtt]\n{}anonymous = true\n", configured.line()));
    let flags = ["--config", &path];
    let broker = Broker::start_in(data, &flags).await;
    assert_eq!(greeted(&broker, kept(V5, "c")).await, (ReasonCode::Success, true));
    let ann = as_user(kept(V5, "c"), "ann", "nna");
    assert_eq!(greeted(&broker, ann.clone()).await, (ReasonCode::Success, true));
    let data = broker.data();
    broker.kill9().await;
    let broker = Broker::start_in(data, &flags).await;
    assert_eq!(greeted(&broker, kept(V5, "c")).await, REFUSED);
    assert_eq!(greeted(&broker, ann).await, (ReasonCode::Success, true));
}

#[tokio::test]
async fn at_the_other_door_nobody_has_a_name() {
    let configured = Configured::new().await;
    let (_directory, path) = config_file(&format!("[mqtt]\n{}anonymous = true\n", configured.line()));
    let broker = Broker::start_with(&["--config", &path]).await;
    let mut topics = Topics::of(&broker).await;
    let ann = |client_id: &str| as_user(kept(V5, client_id), "ann", "nna");
    // What was made there is nobody's, and anybody's who comes with a name.
    topics.session("c", &[]).await.finish().await;
    assert_eq!(greeted(&broker, kept(V5, "c")).await, (ReasonCode::Success, true));
    assert_eq!(greeted(&broker, ann("c")).await, (ReasonCode::Success, true));
    // Then it is refused there: away, or with its connection, which does not notice.
    let mut peer = Peer::connected(&broker, ann("d")).await;
    for client_id in ["c", "d"] {
        for clean_start in [false, true] {
            let open = v1::OpenSession { clean_start, ..session(client_id, &[]) };
            let status = topics.not_opened(open).await;
            let details = status.get_error_details();
            assert_eq!((status.code(), reason(&details)), (Code::FailedPrecondition, "SESSION_OF_ANOTHER"));
        }
    }
    peer.nothing_came().await;
    // Taken over there by its user, the stream of nobody ends.
    let mut stream = topics.session("e", &[]).await;
    let _peer = Peer::connected(&broker, ann("e")).await;
    let (_, status) = stream.ended().await;
    assert_eq!(reason(&status.unwrap().get_error_details()), "SESSION_TAKEN_OVER");
}
