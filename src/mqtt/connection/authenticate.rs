//! Who a client is, found out between CONNECT and CONNACK.

use super::{NoConnect, read_packet};
use crate::mqtt::Door;
use crate::mqtt::codec::{Packet, ReasonCode};
use crate::mqtt::state::{Dialogue, Heard, Hello, Login, Refused};
use crate::mqtt::violation::Violation;

use super::wire::Wire;

/// Puts into `hello` who the client is, and by what. It is not cancel safe: what was heard is lost.
pub(super) async fn authenticate(door: &Door, wire: &mut Wire, hello: &mut Hello) -> Result<(), NoConnect> {
    let Some(users) = &door.users else { return Ok(()) };
    let refused = |refused| {
        door.counters.login_refused();
        NoConnect::Refused(refused, hello.form)
    };
    match std::mem::take(&mut hello.login) {
        Login::Anonymous => {}
        Login::Password { name, password } => match door.passwords.check(users, &name, password).await {
            Ok(Some(user)) => hello.principal = user,
            Ok(None) => return Err(refused(Refused::login())),
            Err(busy) => {
                let busy = Refused { code: ReasonCode::ServerBusy, why: busy.to_string() };
                return Err(NoConnect::Refused(busy, hello.form));
            }
        },
        Login::Method { data } => {
            let mut dialogue = Dialogue::new(users.clone());
            let mut heard = dialogue.begin(data.as_deref());
            let proven = loop {
                let ask = match heard.map_err(|violation| refused(Refused::violation(&violation)))? {
                    Heard::Ask(ask) => ask,
                    Heard::Proven(proven) => break proven,
                };
                if !wire.send(Packet::Auth(ask), hello.form) {
                    return Err(NoConnect::Refused(Refused::too_large("AUTH"), hello.form));
                }
                heard = match read_packet(door, wire).await? {
                    Packet::Auth(auth) => dialogue.hear(auth),
                    Packet::Disconnect(_) => return Err(NoConnect::Gone),
                    _ => Err(Violation::AuthOutOfTurn), // 5: [MQTT-3.1.2-30]
                };
            };
            let authenticated = Box::new(dialogue.proven(proven));
            hello.principal = authenticated.user().clone();
            hello.authenticated = Some(authenticated);
        }
    }
    Ok(())
}
