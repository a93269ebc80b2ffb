//! The TOML layer.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::entries::ENTRIES;
use super::listeners::Table;
use super::value::show_texts;
use super::{ConfigError, Place, Settings, nearest, set};

/// What a file has of tables that stand more than once.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// `[[mqtt.listeners]]`
    pub(super) listeners: Vec<Table>,
    /// `[[bridges]]`, each with its `[[bridges.topics]]`.
    pub(super) bridges: Vec<Table>,
}

/// Puts what `text` says into `settings`; `path` is for the errors alone. The tables are returned: listeners
/// inherit from what other layers say.
pub(super) fn apply(settings: &mut Settings, path: &Path, text: &str) -> Result<Tables, ConfigError> {
    let place = |offset: usize| {
        let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        Place::File(path.to_owned(), line)
    };
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: place(error.span().map_or(0, |span| span.start)),
        problem: error.message().to_owned(),
    })?;

    let mut found = Tables::default();
    for (section, content) in document.get_ref() {
        let name: &str = section.get_ref();
        if name == "bridges" {
            let at = place(section.span().start);
            found.bridges = tables("bridges", Some("topics"), content.get_ref(), &at, &place)?;
            continue;
        }
        if !ENTRIES.iter().any(|entry| entry.split().0 == name) {
            return Err(ConfigError::UnknownKey {
                place: place(section.span().start),
                key: name.to_owned(),
                nearest: nearest(name, ENTRIES.iter().map(|entry| entry.split().0).chain(["bridges"])),
            });
        }
        let DeValue::Table(content) = content.get_ref() else {
            return Err(ConfigError::Syntax {
                place: place(section.span().start),
                problem: format!("{name} is a section, written [{name}]"),
            });
        };
        let mut written = Vec::new();
        for (key, value) in content {
            let at = place(key.span().start);
            if name == "mqtt" && key.get_ref() == "listeners" {
                found.listeners = tables("mqtt.listeners", None, value.get_ref(), &at, &place)?;
            } else {
                flatten(format!("{name}.{}", key.get_ref()), value.get_ref(), at, &place, &mut written)?;
            }
        }
        for (key, text, at) in written {
            let Some(entry) = ENTRIES.iter().find(|entry| entry.key == key) else {
                let nearest = nearest(&key, ENTRIES.iter().map(|entry| entry.key));
                return Err(ConfigError::UnknownKey { place: at, key, nearest });
            };
            set(settings, entry, &text, || at)?;
        }
    }
    Ok(found)
}

/// The tables that stand under `name`, and those that each has under `inner`.
fn tables(
    name: &str,
    inner: Option<&str>,
    value: &DeValue<'_>,
    at: &Place,
    place: &dyn Fn(usize) -> Place,
) -> Result<Vec<Table>, ConfigError> {
    let not_tables = |place: Place| ConfigError::Syntax {
        place,
        problem: format!("{name} are tables, each written [[{name}]]"),
    };
    let DeValue::Array(array) = value else { return Err(not_tables(at.clone())) };
    let mut tables = Vec::new();
    for table in array {
        let at = place(table.span().start);
        let DeValue::Table(content) = table.get_ref() else { return Err(not_tables(at)) };
        let mut table = Table { place: at, written: Vec::new(), inner: Vec::new() };
        for (key, value) in content {
            let at = place(key.span().start);
            let key: &str = key.get_ref();
            if inner == Some(key) {
                let name = format!("{name}.{key}");
                table.inner = self::tables(&name, None, value.get_ref(), &at, place)?;
            } else {
                flatten(key.to_owned(), value.get_ref(), at, place, &mut table.written)?;
            }
        }
        tables.push(table);
    }
    Ok(tables)
}

/// The value of a key, or those of the table that it is, with dotted keys.
fn flatten(
    key: String,
    value: &DeValue<'_>,
    at: Place,
    place: &dyn Fn(usize) -> Place,
    written: &mut Vec<(String, String, Place)>,
) -> Result<(), ConfigError> {
    let DeValue::Table(table) = value else {
        let text = plain(value).ok_or_else(|| not_plain(&key, at.clone()))?;
        written.push((key, text, at));
        return Ok(());
    };
    for (inner, value) in table {
        let at = place(inner.span().start);
        flatten(format!("{key}.{}", inner.get_ref()), value.get_ref(), at, place, written)?;
    }
    Ok(())
}

/// The text of a value that is one word: a string, a decimal integer, true or false; or a list of strings, as TOML writes it.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Boolean(switch) => Some(switch.to_string()),
        DeValue::Array(texts) => {
            let texts = texts.iter().map(|text| match text.get_ref() {
                DeValue::String(text) => Some(text.clone().into_owned()),
                _ => None,
            });
            texts.collect::<Option<Vec<String>>>().map(show_texts)
        }
        _ => None,
    }
}

fn not_plain(key: &str, place: Place) -> ConfigError {
    let problem = format!("{key} takes a string, a whole number, true or false, or a list of strings");
    ConfigError::Syntax { place, problem }
}
