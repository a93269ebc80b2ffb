//! `[[mqtt.listeners]]`: listeners beside the first, each with what it is bound to and its own limits.
//!
//! Whatever stands in `[mqtt]` holds for each, unless its table says otherwise. Invariant: what comes of it can be
//! bound, as far as that is known without looking at files.

use std::fmt;
use std::str::FromStr;

use super::entries::{ENTRIES, Entry};
use super::value::Slot;
use super::{ConfigError, Place, Settings, nearest};
use crate::mqtt::{ListenerSettings, UNIX_MODE, websocket};
use crate::proxy::ProxyProtocol;
use crate::socket::Address;
use crate::tls;

/// One table as it is written.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) place: Place,
    /// The key within the table, the value, and where it stands.
    pub(super) written: Vec<(String, String, Place)>,
    /// Tables within it.
    pub(super) inner: Vec<Table>,
}

/// What is carried over the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// MQTT as it is.
    #[default]
    Plain,
    /// WebSocket.
    WebSocket,
}

/// The text is no [`Transport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of mqtt, websocket")]
pub struct UnknownTransport;

impl FromStr for Transport {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "mqtt" => Self::Plain,
            "websocket" => Self::WebSocket,
            _ => return Err(UnknownTransport),
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "mqtt",
            Self::WebSocket => "websocket",
        })
    }
}

/// A listener while its table is read.
#[derive(Debug)]
pub(super) struct Draft {
    name: String,
    listen: Address,
    unix_mode: u32,
    proxy_protocol: ProxyProtocol,
    transport: Transport,
    tls: tls::Files,
    websocket: websocket::Settings,
    /// Of which `[mqtt]` counts.
    all: Settings,
}

/// A key of a table's own.
pub(super) struct Field<D> {
    /// With the section.
    pub(super) key: &'static str,
    pub(super) slot: fn(&mut D) -> Slot<'_>,
}

pub(super) const fn field<D>(key: &'static str, slot: fn(&mut D) -> Slot<'_>) -> Field<D> {
    Field { key, slot }
}

impl<D> Field<D> {
    /// Its name within its table.
    pub(super) fn name(&self, section: &str) -> &'static str {
        self.key.strip_prefix(section).map_or(self.key, |name| name.trim_start_matches('.'))
    }
}

const SECTION: &str = "mqtt.listeners";

/// What a listener has beside the keys of `[mqtt]`.
pub(super) static FIELDS: [Field<Draft>; 12] = [
    field("mqtt.listeners.name", |d| Slot::Name(&mut d.name)),
    field("mqtt.listeners.listen", |d| Slot::Address(&mut d.listen)),
    field("mqtt.listeners.unix_mode", |d| Slot::FileMode(&mut d.unix_mode)),
    field("mqtt.listeners.proxy_protocol", |d| Slot::ProxyProtocol(&mut d.proxy_protocol)),
    field("mqtt.listeners.transport", |d| Slot::Transport(&mut d.transport)),
    field("mqtt.listeners.tls.cert", |d| Slot::OptionalPath(&mut d.tls.cert)),
    field("mqtt.listeners.tls.key", |d| Slot::OptionalPath(&mut d.tls.key)),
    field("mqtt.listeners.tls.client_cert", |d| Slot::ClientCert(&mut d.tls.client_cert)),
    field("mqtt.listeners.tls.client_ca", |d| Slot::OptionalPath(&mut d.tls.client_ca)),
    field("mqtt.listeners.websocket.path", |d| Slot::HttpPath(&mut d.websocket.path)),
    field("mqtt.listeners.websocket.origins", |d| Slot::Texts(&mut d.websocket.origins)),
    field("mqtt.listeners.websocket.max_message_bytes", |d| {
        Slot::bytes(&mut d.websocket.max_message_bytes, (1 << 10)..=(256 << 20))
    }),
];

/// The keys of `[mqtt]` that a listener may have, too, each with its name.
fn shared() -> impl Iterator<Item = (&'static str, &'static Entry)> {
    ENTRIES
        .iter()
        .filter(|entry| entry.split().0 == "mqtt" && entry.key != "mqtt.listen")
        .map(|entry| (entry.split().1, entry))
}

/// The name of a field within its table.
fn name_of(field: &Field<Draft>) -> &'static str {
    field.name(SECTION)
}

impl Draft {
    fn new(all: &Settings) -> Self {
        Self {
            name: String::new(),
            listen: Address::Tcp { host: String::new(), port: 0 },
            unix_mode: UNIX_MODE,
            proxy_protocol: ProxyProtocol::default(),
            transport: Transport::default(),
            tls: tls::Files::default(),
            websocket: websocket::Settings::default(),
            all: all.clone(),
        }
    }

    /// The other way round, to be shown.
    fn of(listener: &ListenerSettings) -> Self {
        let ListenerSettings { name, address, unix_mode, proxy_protocol, tls, websocket, settings } =
            listener;
        let mut all = Settings::default();
        all.mqtt.settings = settings.clone();
        Self {
            name: name.clone(),
            listen: address.clone(),
            unix_mode: *unix_mode,
            proxy_protocol: *proxy_protocol,
            transport: if websocket.is_some() { Transport::WebSocket } else { Transport::Plain },
            tls: tls.clone().map(tls::Files::from).unwrap_or_default(),
            websocket: websocket.clone().unwrap_or_default(),
            all,
        }
    }

    /// The place of a key and its full name.
    fn slot(&mut self, name: &str) -> Option<(&'static str, Slot<'_>)> {
        if let Some(field) = FIELDS.iter().find(|field| name_of(field) == name) {
            return Some((field.key, (field.slot)(self)));
        }
        let (_, entry) = shared().find(|(shared, _)| *shared == name)?;
        Some((entry.key, (entry.slot)(&mut self.all)))
    }

    fn finish(self) -> Result<ListenerSettings, String> {
        if self.name.is_empty() {
            return Err("the listener has no name".to_owned());
        }
        if matches!(&self.listen, Address::Tcp { host, .. } if host.is_empty()) {
            return Err("the listener has no address: give listen one".to_owned());
        }
        let tls = self.tls.complete().map_err(|error| error.to_string())?;
        let websocket = match self.transport {
            Transport::WebSocket => Some(self.websocket),
            Transport::Plain if self.websocket == websocket::Settings::default() => None,
            Transport::Plain => {
                return Err("settings of WebSocket need transport = \"websocket\"".to_owned());
            }
        };
        self.all.mqtt.settings.check().map_err(|error| error.to_string())?;
        Ok(ListenerSettings {
            name: self.name,
            address: self.listen,
            unix_mode: self.unix_mode,
            proxy_protocol: self.proxy_protocol,
            tls,
            websocket,
            settings: self.all.mqtt.settings,
        })
    }
}

/// Makes the tables into listeners, when all that they inherit is known.
pub(super) fn complete(settings: &mut Settings, tables: Vec<Table>) -> Result<(), ConfigError> {
    for Table { place, written, .. } in tables {
        let mut draft = Draft::new(settings);
        for (name, text, place) in written {
            let Some((key, slot)) = draft.slot(&name) else {
                return Err(unknown(&name, place));
            };
            slot.set(&text).map_err(|problem| ConfigError::Value { place, key, value: text, problem })?;
        }
        let listener =
            draft.finish().map_err(|problem| ConfigError::Table { place: place.clone(), problem })?;
        let listeners = &mut settings.mqtt.listeners;
        if listeners.iter().any(|other| other.name == listener.name) {
            let problem = format!("there are two listeners called {}", listener.name);
            return Err(ConfigError::Table { place, problem });
        }
        listeners.push(listener);
    }
    Ok(())
}

fn unknown(name: &str, place: Place) -> ConfigError {
    let own = FIELDS.iter().map(|field| (name_of(field), field.key));
    let candidates: Vec<_> = own.chain(shared().map(|(name, entry)| (name, entry.key))).collect();
    let nearest = nearest(name, candidates.iter().map(|(name, _)| *name));
    let nearest = candidates.iter().find(|(name, _)| nearest == Some(*name)).map(|(_, key)| *key);
    ConfigError::UnknownKey { place, key: format!("{SECTION}.{name}"), nearest }
}

/// The listeners as a part of a configuration file.
pub(super) fn render(listeners: &[ListenerSettings]) -> String {
    let mut text = String::new();
    for listener in listeners {
        text.push_str("\n[[mqtt.listeners]]\n");
        let mut draft = Draft::of(listener);
        let names: Vec<_> = FIELDS.iter().map(name_of).chain(shared().map(|(name, _)| name)).collect();
        for name in names {
            if let Some((_, slot)) = draft.slot(name) {
                text.push_str(&format!("{name} = {}\n", slot.show_toml()));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{file, render};
    use crate::tls::ClientCert;

    const DEFAULT_FILE: &str = include_str!("../../stafett.default.toml");

    fn read(text: &str) -> Result<Settings, ConfigError> {
        let mut settings = Settings::default();
        let tables = file::apply(&mut settings, Path::new("x.toml"), text)?;
        complete(&mut settings, tables.listeners)?;
        Ok(settings)
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    const TWO: &str = r#"
        [mqtt]
        max_inflight = 7
        [[mqtt.listeners]]
        name = "secure"
        listen = "0.0.0.0:8883"
        tls = { cert = "c.pem", key = "k.pem", client_cert = "required", client_ca = "ca.pem" }
        receive_maximum = 3
        [[mqtt.listeners]]
        name = "browsers"
        listen = "unix:/run/m.sock"
        unix_mode = "600"
        transport = "websocket"
        websocket.origins = ["https://a.example", "https://b.example"]
        websocket.path = "/mqtt"
        proxy_protocol = "any"
    "#;

    #[test]
    fn listeners_have_their_own_settings_and_those_of_the_door() {
        let settings = read(TWO).unwrap();
        let [secure, browsers] = &settings.mqtt.listeners[..] else { panic!() };
        assert_eq!((secure.settings.max_inflight, secure.settings.receive_maximum), (7, 3));
        assert_eq!(browsers.settings, settings.mqtt.settings);
        assert_eq!(secure.tls.as_ref().unwrap().client_cert, ClientCert::Required);
        assert_eq!(browsers.address.to_string(), "unix:/run/m.sock");
        assert_eq!((browsers.unix_mode, browsers.proxy_protocol), (0o600, ProxyProtocol::Any));
        let websocket = browsers.websocket.as_ref().unwrap();
        assert_eq!(websocket.path.as_deref(), Some("/mqtt"));
        assert_eq!(websocket.origins, ["https://a.example", "https://b.example"]);
        assert_eq!((secure.door(), browsers.door()), ("mqtt.secure".into(), "mqtt.browsers".into()));
        assert_eq!(read(&render(&settings)).unwrap(), settings);
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let with =
            |lines: &str| error(&format!("[[mqtt.listeners]]\nname = \"x\"\nlisten = \"a:1\"\n{lines}\n"));
        assert!(with("max_qos = 3").contains("mqtt.max_qos = \"3\" is not permitted: must be a number"));
        assert!(with("retain = \"no\"").contains("must be true or false"));
        assert!(with("versions = []").contains("one or both of"));
        assert!(with("versions = [\"3.1\"]").contains("one or both of"));
        assert!(with("versions = \"5\"").contains("must be a list of texts"));
        assert!(with("denied_filters = [\"a/#/b\"]").contains("mqtt.denied_filters"));
        assert_eq!(
            with("tls.crt = \"c\""),
            "x.toml:4: unknown key mqtt.listeners.tls.crt; did you mean mqtt.listeners.tls.cert?"
        );
        assert!(with("recieve_maximum = 1").ends_with("did you mean mqtt.receive_maximum?"));
        assert!(with("transport = \"tcp\"").contains("mqtt.listeners.transport = \"tcp\" is not permitted"));
        assert!(with("listeners = 1").contains("unknown key mqtt.listeners.listeners"));
        assert!(with("websocket.origins = [1]").contains("takes"));
        assert_eq!(with("tls.cert = \"c\""), "x.toml:1: tls.cert needs tls.key");
        assert_eq!(with("tls.key = \"c\""), "x.toml:1: tls.key needs tls.cert");
        assert!(
            with("tls = { cert = \"c\", key = \"k\", client_cert = \"optional\" }").contains("client_ca")
        );
        assert!(with("tls.client_ca = \"c\"").contains("give tls.cert"));
        assert!(with("websocket.path = \"/x\"").contains("transport"));
        assert_eq!(
            with("anonymous = false"),
            "x.toml:1: anonymous = false needs users: who else may connect"
        );
        assert!(
            with("[[mqtt.listeners]]\nname = \"x\"\nlisten = \"a:2\"").contains("two listeners called x")
        );
        assert!(error("[[mqtt.listeners]]\nlisten = \"a:1\"").contains("no name"));
        assert!(error("[[mqtt.listeners]]\nname = \"x\"").contains("no address"));
        assert!(error("[mqtt.listeners]\nname = \"x\"").contains("[[mqtt.listeners]]"));
    }

    #[test]
    fn the_example_in_the_readme_is_permitted() {
        let readme = include_str!("../../README.md");
        let example = readme.split("```toml\n").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(read(example).unwrap().mqtt.listeners.len(), 5);
    }

    #[test]
    fn the_default_file_shows_every_key() {
        for field in &FIELDS {
            let name = name_of(field);
            assert!(DEFAULT_FILE.contains(&format!("\n# {name} = ")), "the default file lacks {name}");
        }
    }
}
