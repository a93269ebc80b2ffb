//! `[[bridges]]`: other brokers that this one is joined with, each with its `[[bridges.topics]]`.
//!
//! Invariant: what comes of it can be connected, as far as that is known without looking at files or asking the other broker.

use std::path::PathBuf;
use std::time::Duration;

use super::listeners::{Field, Table, field};
use super::value::Slot;
use super::{ConfigError, Place, Settings, nearest};
use crate::mqtt::bridge::{self, Mapping, Password, Remote, Topic};
use crate::tls::client as tls;

/// A bridge while its table is read.
#[derive(Debug)]
struct Draft {
    /// With what is plain.
    all: bridge::Settings,
    url: Option<Remote>,
    client_id: Option<String>,
    password: Option<String>,
    password_file: Option<PathBuf>,
    password_env: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

const SECTION: &str = "bridges";
const TOPICS: &str = "bridges.topics";
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// Pauses between connections.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

static FIELDS: [Field<Draft>; 18] = [
    field("bridges.name", |d| Slot::Name(&mut d.all.name)),
    field("bridges.url", |d| Slot::Remote(&mut d.url)),
    field("bridges.client_id", |d| Slot::OptionalText(&mut d.client_id)),
    field("bridges.username", |d| Slot::OptionalText(&mut d.all.username)),
    field("bridges.password", |d| Slot::Secret(&mut d.password)),
    field("bridges.password_file", |d| Slot::OptionalPath(&mut d.password_file)),
    field("bridges.password_env", |d| Slot::OptionalText(&mut d.password_env)),
    field("bridges.version", |d| Slot::Version(&mut d.all.version)),
    field("bridges.keep_alive", |d| Slot::Duration(&mut d.all.keep_alive, SECOND..=65_535 * SECOND)),
    field("bridges.clean_start", |d| Slot::Switch(&mut d.all.clean_start)),
    field("bridges.session_expiry", |d| Slot::Duration(&mut d.all.session_expiry, SECOND..=3650 * DAY)),
    field("bridges.try_private", |d| Slot::Switch(&mut d.all.try_private)),
    field("bridges.max_inflight", |d| Slot::count(&mut d.all.max_inflight, 1..=65_535)),
    field("bridges.reconnect_min", |d| Slot::Duration(&mut d.all.reconnect_min, PAUSES)),
    field("bridges.reconnect_max", |d| Slot::Duration(&mut d.all.reconnect_max, PAUSES)),
    field("bridges.tls.ca", |d| Slot::OptionalPath(&mut d.ca)),
    field("bridges.tls.cert", |d| Slot::OptionalPath(&mut d.cert)),
    field("bridges.tls.key", |d| Slot::OptionalPath(&mut d.key)),
];

static TOPIC_FIELDS: [Field<Topic>; 5] = [
    field("bridges.topics.filter", |t| Slot::Text(&mut t.filter)),
    field("bridges.topics.direction", |t| Slot::Direction(&mut t.direction)),
    field("bridges.topics.qos", |t| Slot::count(&mut t.qos, 0..=2)),
    field("bridges.topics.local_prefix", |t| Slot::Text(&mut t.local_prefix)),
    field("bridges.topics.remote_prefix", |t| Slot::Text(&mut t.remote_prefix)),
];

impl Draft {
    fn new() -> Self {
        let nowhere = Remote { secure: false, host: String::new(), port: 0 };
        Self {
            all: bridge::Settings::new(String::new(), nowhere),
            url: None,
            client_id: None,
            password: None,
            password_file: None,
            password_env: None,
            ca: None,
            cert: None,
            key: None,
        }
    }

    /// The other way round, to be shown.
    fn of(settings: &bridge::Settings) -> Self {
        let mut draft = Self::new();
        match settings.password.clone() {
            None => {}
            Some(Password::Text(text)) => draft.password = Some(text),
            Some(Password::File(path)) => draft.password_file = Some(path),
            Some(Password::Variable(name)) => draft.password_env = Some(name),
        }
        let (cert, key) = settings.tls.as_ref().and_then(|tls| tls.own.clone()).unzip();
        Self {
            url: Some(settings.remote.clone()),
            client_id: Some(settings.client_id.clone()),
            ca: settings.tls.as_ref().map(|tls| tls.ca.clone()),
            cert,
            key,
            all: settings.clone(),
            ..draft
        }
    }

    fn finish(self) -> Result<bridge::Settings, String> {
        let Self { mut all, url, client_id, password, password_file, password_env, ca, cert, key } = self;
        if all.name.is_empty() {
            return Err("the bridge has no name".to_owned());
        }
        let name = &all.name;
        all.remote = url.ok_or_else(|| format!("the bridge {name} has no url"))?;
        all.client_id = client_id.unwrap_or_else(|| bridge::Settings::usual_client_id(name));
        let mut passwords = password
            .map(Password::Text)
            .into_iter()
            .chain(password_file.map(Password::File))
            .chain(password_env.map(Password::Variable));
        all.password = passwords.next();
        if passwords.next().is_some() {
            return Err("give one of password, password_file and password_env".to_owned());
        }
        if all.password.is_some() && all.username.is_none() {
            return Err("a password needs a username".to_owned());
        }
        if all.reconnect_min > all.reconnect_max {
            return Err("reconnect_min is longer than reconnect_max".to_owned());
        }
        all.tls = match (all.remote.secure, ca, cert, key) {
            (true, None, ..) => {
                return Err("mqtts needs tls.ca: who signs the other broker's certificate".to_owned());
            }
            (true, Some(ca), Some(cert), Some(key)) => Some(tls::Settings { ca, own: Some((cert, key)) }),
            (true, Some(ca), None, None) => Some(tls::Settings { ca, own: None }),
            (true, ..) => return Err("tls.cert and tls.key need each other".to_owned()),
            (false, None, None, None) => None,
            (false, ..) => return Err("settings of TLS need a url at mqtts://".to_owned()),
        };
        if all.topics.is_empty() {
            return Err("the bridge carries nothing: give it [[bridges.topics]]".to_owned());
        }
        Mapping::new(&all.topics)?;
        Ok(all)
    }
}

/// Puts what is written into `draft`.
fn fill<D>(
    draft: &mut D,
    fields: &'static [Field<D>],
    section: &str,
    written: Vec<(String, String, Place)>,
) -> Result<(), ConfigError> {
    for (name, text, place) in written {
        let Some(field) = fields.iter().find(|field| field.name(section) == name) else {
            let near = nearest(&name, fields.iter().map(|field| field.name(section)));
            let near = fields.iter().find(|field| Some(field.name(section)) == near).map(|field| field.key);
            return Err(ConfigError::UnknownKey { place, key: format!("{section}.{name}"), nearest: near });
        };
        let set = (field.slot)(draft).set(&text);
        set.map_err(|problem| ConfigError::Value { place, key: field.key, value: text, problem })?;
    }
    Ok(())
}

/// Makes the tables into bridges.
pub(super) fn complete(settings: &mut Settings, tables: Vec<Table>) -> Result<(), ConfigError> {
    for Table { place, written, inner } in tables {
        let mut draft = Draft::new();
        fill(&mut draft, &FIELDS, SECTION, written)?;
        for Table { written, .. } in inner {
            let mut topic = Topic::default();
            fill(&mut topic, &TOPIC_FIELDS, TOPICS, written)?;
            draft.all.topics.push(topic);
        }
        let bridge =
            draft.finish().map_err(|problem| ConfigError::Table { place: place.clone(), problem })?;
        if settings.bridges.iter().any(|other| other.name == bridge.name) {
            let problem = format!("there are two bridges called {}", bridge.name);
            return Err(ConfigError::Table { place, problem });
        }
        settings.bridges.push(bridge);
    }
    Ok(())
}

/// The bridges as a part of a configuration file; of a password in clear it says that there is one.
pub(super) fn render(bridges: &[bridge::Settings]) -> String {
    let mut text = String::new();
    for bridge in bridges {
        text.push_str("\n[[bridges]]\n");
        let mut draft = Draft::of(bridge);
        for field in &FIELDS {
            let slot = (field.slot)(&mut draft);
            text.push_str(&format!("{} = {}\n", field.name(SECTION), slot.show_toml()));
        }
        for mut topic in bridge.topics.clone() {
            text.push_str("[[bridges.topics]]\n");
            for field in &TOPIC_FIELDS {
                let slot = (field.slot)(&mut topic);
                text.push_str(&format!("{} = {}\n", field.name(TOPICS), slot.show_toml()));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::file;
    use crate::mqtt::bridge::Direction;

    const DEFAULT_FILE: &str = include_str!("../../stafett.default.toml");

    fn read(text: &str) -> Result<Settings, ConfigError> {
        let mut settings = Settings::default();
        let tables = file::apply(&mut settings, Path::new("x.toml"), text)?;
        complete(&mut settings, tables.bridges)?;
        Ok(settings)
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    const TWO: &str = r##"
        [[bridges]]
        name = "cloud"
        url = "mqtts://broker.example"
        username = "house"
        password_file = "/run/secrets/cloud"
        tls = { ca = "ca.pem", cert = "c.pem", key = "k.pem" }
        reconnect_max = "5m"
        [[bridges.topics]]
        filter = "temp/#"
        direction = "out"
        qos = 2
        remote_prefix = "house/1/"
        [[bridges.topics]]
        filter = "cmd/#"
        direction = "in"
        [[bridges]]
        name = "house"
        url = "mqtt://10.0.0.2:1884"
        version = "3.1.1"
        client_id = "stafett-1"
        [[bridges.topics]]
        filter = "#"
    "##;

    #[test]
    fn bridges_and_their_topics_are_read_and_shown() {
        let settings = read(TWO).unwrap();
        let [cloud, house] = &settings.bridges[..] else { panic!() };
        assert_eq!(cloud.remote.to_string(), "mqtts://broker.example:8883");
        assert_eq!(cloud.client_id, "stafett.cloud");
        assert_eq!(cloud.password, Some(Password::File("/run/secrets/cloud".into())));
        assert_eq!(cloud.topics[0].direction, Direction::Out);
        assert_eq!((cloud.topics[0].qos, cloud.topics[1].qos), (2, 1));
        assert_eq!((house.client_id.as_str(), house.topics[0].direction), ("stafett-1", Direction::Both));
        assert_eq!(read(&render(&settings.bridges)).unwrap().bridges, settings.bridges);
        let secret = TWO.replace("password_file = \"/run/secrets/cloud\"", "password = \"hush\"");
        let shown = render(&read(&secret).unwrap().bridges);
        assert!(shown.contains("password = \"(set)\"") && !shown.contains("hush"));
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let with = |lines: &str| {
            error(&format!(
                "[[bridges]]\nname = \"x\"\nurl = \"mqtt://a\"\n{lines}\n[[bridges.topics]]\nfilter = \"a\""
            ))
        };
        assert!(with("user_name = \"u\"").ends_with("did you mean bridges.username?"));
        assert!(with("password = \"p\"").contains("a password needs a username"));
        let two = "username = \"u\"\npassword = \"p\"\npassword_env = \"P\"";
        assert!(with(two).contains("one of password"));
        assert!(with("tls.ca = \"c\"").contains("mqtts://"));
        assert!(with("version = \"3.1\"").contains("must be one of 3.1.1, 5"));
        assert!(with("reconnect_min = \"2m\"").contains("longer than reconnect_max"));
        assert!(with("[[bridges.topics]]\nfilter = \"b/#/c\"").contains("b/#/c"));
        assert!(with("[[bridges.topics]]\nfilter = \"b\"\ndirection = \"up\"").contains("in, out, both"));
        assert!(with("[[bridges.topics]]\nfilter = \"a\"").contains("twice"));
        let back = "[[bridges.topics]]\nfilter = \"b\"\ndirection = \"in\"\n[[bridges.topics]]\nfilter = \"b\"\ndirection = \"out\"";
        assert!(with(back).contains("direction = \"both\""));
        let again = "[[bridges.topics]]\nfilter = \"b\"\n[[bridges]]\nname = \"x\"\nurl = \"mqtt://b\"";
        assert!(with(again).contains("two bridges called x"));
        assert!(error("[[bridges]]\nname = \"x\"\nurl = \"http://a\"").contains("mqtt://HOST"));
        assert!(error("[[bridges]]\nname = \"x\"\nurl = \"mqtts://a\"").contains("tls.ca"));
        assert!(error("[[bridges]]\nname = \"x\"\nurl = \"mqtt://a\"").contains("carries nothing"));
        assert!(error("[[bridges]]\nname = \"x\"").contains("no url"));
        assert!(error("[[bridges]]\nurl = \"mqtt://a\"").contains("no name"));
        assert!(error("[bridges]\nname = \"x\"").contains("[[bridges]]"));
        assert!(error("[[bridge]]\nname = \"x\"").ends_with("did you mean bridges?"));
    }

    #[test]
    fn the_example_in_the_readme_is_permitted() {
        let readme = include_str!("../../README.md");
        let example = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(read(example).unwrap().bridges[0].topics.len(), 2);
    }

    #[test]
    fn the_default_file_shows_every_key() {
        let names = FIELDS.iter().map(|field| field.name(SECTION));
        for name in names.chain(TOPIC_FIELDS.iter().map(|field| field.name(TOPICS))) {
            assert!(DEFAULT_FILE.contains(&format!("\n# {name} = ")), "the default file lacks {name}");
        }
    }
}
