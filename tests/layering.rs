//! The layers, held by a test: imports go down only, each external crate stands where it may, files stay short.
//!
//! The table is [`LAYERS`]. It reads the sources as text: comments and string literals are blanked, then every path that
//! names a module of the crate (`crate::…`, and `super::…` or `self::…` resolved from where it stands) and every path
//! that begins with an external crate is compared with the table. What stands under `#[cfg(test)]`, and files called `tests.rs` or below a
//! directory called `tests`, are free.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// What a part of the crate may name.
struct Layer {
    /// Module path; the longest one that fits decides.
    module: &'static str,
    /// Modules of the crate, each with all below it. A module may always name itself and what is below it.
    may: &'static [&'static str],
    /// External crates, beside those that everyone may use.
    external: &'static [&'static str],
}

/// Crates that every layer may use.
const EVERYWHERE: &[&str] = &[
    "std",
    "core",
    "alloc",
    "arc_swap",
    "bytes",
    "bytestring",
    "futures_util",
    "parking_lot",
    "pin_project_lite",
    "rustc_hash",
    "smallvec",
    "thiserror",
    "tracing",
    "ulid",
];

const ADAPTER: &[&str] = &[
    "core",
    "engine",
    "types",
    "socket",
    "tls",
    "auth",
    "proxy",
    "bell",
    "causes",
    "connections",
    "counters",
    "rate",
    "shutdown",
];

/// The table. `engine` for others means its traits: the implementations are forbidden by [`IMPLEMENTATIONS`].
const LAYERS: &[Layer] = &[
    Layer { module: "main", may: &["cli"], external: &["stafett"] },
    Layer { module: "lib", may: &[], external: &[] },
    Layer {
        module: "cli",
        may: &["server", "config", "telemetry", "grpc", "core", "engine", "types", "auth", "causes"],
        external: &[
            "anyhow",
            "base64",
            "clap",
            "humantime",
            "indicatif",
            "prost",
            "prost_types",
            "rpassword",
            "serde",
            "serde_json",
            "tokio",
            "tokio_stream",
            "tonic",
            "tonic_health",
            "tonic_types",
        ],
    },
    Layer {
        module: "server",
        may: &[
            "config",
            "telemetry",
            "grpc",
            "mqtt",
            "http",
            "core",
            "engine",
            "types",
            "sys",
            "connections",
            "counters",
            "rate",
            "shutdown",
            "socket",
            "tls",
            "auth",
        ],
        external: &["humantime", "rustix", "tokio", "tokio_util"],
    },
    Layer {
        module: "config",
        may: &[
            "telemetry",
            "grpc",
            "mqtt",
            "http",
            "core",
            "engine",
            "types",
            "sys",
            "rate",
            "shutdown",
            "socket",
            "tls",
            "proxy",
        ],
        external: &["humantime", "serde", "strsim", "toml"],
    },
    Layer { module: "telemetry", may: &[], external: &["tracing_subscriber"] },
    Layer {
        module: "grpc",
        may: ADAPTER,
        external: &[
            "http",
            "prost",
            "prost_types",
            "tokio",
            "tokio_stream",
            "tokio_util",
            "tonic",
            "tonic_health",
            "tonic_prost",
            "tonic_reflection",
            "tonic_types",
            "tower",
            "tower_http",
        ],
    },
    Layer {
        module: "mqtt",
        may: ADAPTER,
        external: &["socket2", "tokio", "tokio_tungstenite", "tokio_util"],
    },
    Layer { module: "mqtt::codec", may: &[], external: &[] },
    Layer {
        module: "http",
        may: ADAPTER,
        external: &["axum", "http", "tokio", "tokio_util", "tower", "tower_http"],
    },
    Layer {
        module: "core",
        may: &["engine", "types", "bell", "counters"],
        external: &[
            "humantime",
            "prost",
            "siphasher",
            "tokio::sync",
            "tokio::time",
            "tokio::task",
            "tokio::select",
            "tokio::pin",
            "tokio::runtime::Handle",
            "tokio_util",
        ],
    },
    Layer { module: "engine", may: &["types", "bell"], external: &["tokio::sync", "tokio::time"] },
    Layer {
        module: "engine::embedded",
        may: &["engine", "types", "bell"],
        external: &["crc32fast", "prost", "rustix", "siphasher", "sled", "tokio::sync", "tokio::time"],
    },
    Layer {
        module: "engine::nats",
        may: &["engine", "types"],
        external: &["async_nats", "tokio", "tokio_stream", "tokio_util"],
    },
    Layer { module: "socket", may: &[], external: &["socket2", "tokio::io", "tokio::net", "tokio::time"] },
    Layer { module: "tls", may: &[], external: &["tokio::io", "tokio::time", "tokio_rustls"] },
    Layer {
        module: "auth",
        may: &[],
        external: &["base64", "ring", "stringprep", "subtle", "tokio::sync", "tokio::task"],
    },
    Layer { module: "proxy", may: &[], external: &["ppp", "tokio::io"] },
    Layer { module: "shutdown", may: &[], external: &["tokio", "tokio_util"] },
    Layer {
        module: "sys",
        may: &["core", "types", "counters", "shutdown"],
        external: &["tokio::select", "tokio::time"],
    },
    Layer { module: "connections", may: &[], external: &[] },
    Layer { module: "bell", may: &[], external: &[] },
    Layer { module: "causes", may: &[], external: &[] },
    Layer { module: "counters", may: &[], external: &[] },
    Layer { module: "rate", may: &["types"], external: &[] },
    Layer { module: "types", may: &[], external: &[] },
];

/// Implementations of the engine, and who may name them.
const IMPLEMENTATIONS: &[&str] = &["engine::embedded", "engine::nats"];
const COMPOSERS: &[&str] = &["server", "cli::store"];

/// Parts of the standard library that only those who own sockets may name.
const SOCKETS: &str = "std::net";
const NO_SOCKETS: &[&str] = &["core", "engine::embedded", "mqtt::codec", "types", "connections", "shutdown"];

/// Longest file, in lines before its tests.
const LINES: usize = 500;

/// Files that may be longer, and up to where: one thing that is read as a whole.
const LONGER: &[(&str, usize)] = &[];

/// Every external crate of the manifest, as the sources name it.
fn external_crates() -> Vec<String> {
    let manifest: toml::Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let names = manifest["dependencies"].as_table().unwrap().keys();
    names.map(|name| name.replace('-', "_")).chain(["std", "core", "alloc"].map(str::to_owned)).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A source file and the module that it is.
struct Source {
    path: String,
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root().join("src"), &mut found);
    assert!(found.len() > 10, "the sources are not where they were");
    found
}

fn collect(directory: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
            if name.ends_with("tests.rs") || name.contains("/tests/") {
                continue;
            }
            found.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
        }
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
        Self {
            path: path.to_owned(),
            module: module.split('/').map(str::to_owned).collect(),
            text: text.to_owned(),
        }
    }
}

/// The text without comments, literals and the tests at its end; lines stay.
fn code_of(text: &str) -> String {
    let text = without_tests(text);
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(end) = raw_string(rest) {
            end
        } else if rest.starts_with('"') {
            string(rest)
        } else if let Some(end) = character(rest) {
            end
        } else {
            let next = rest.chars().next().unwrap();
            code.push(next);
            at += next.len_utf8();
            continue;
        };
        code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        code.push(' ');
        at += skipped;
    }
    code
}

/// Up to the module of tests that stands in the file; one that is only named there ends nothing.
fn without_tests(text: &str) -> &str {
    const TESTS: &str = "\n#[cfg(test)]\nmod ";
    let stands_here =
        |at: &usize| text[at + TESTS.len()..].lines().next().is_some_and(|line| line.contains('{'));
    text.match_indices(TESTS).map(|(at, _)| at).find(stands_here).map_or(text, |end| &text[..=end])
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (index, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return index + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?.chars().take_while(|c| *c == '#').count();
    rest[1 + hashes..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    let body = 2 + hashes;
    Some(rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len()))
}

/// The length of a character literal; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    if body.starts_with('\\') {
        let end = body.char_indices().skip(2).find(|(_, c)| *c == '\'')?.0;
        return Some(end + 2);
    }
    let mut chars = body.chars();
    let length = chars.next()?.len_utf8();
    (chars.next()? == '\'').then_some(length + 2)
}

/// Each path in the code with its line; groups (`a::{b, c::d}`) are spread out.
fn paths_of(code: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens_of(code);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = is_name(&tokens[at].1) && (at == 0 || tokens[at - 1].1 != "::");
        if begins {
            at = spread(&tokens, at, &[], &mut paths);
        } else {
            at += 1;
        }
    }
    paths
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Follows the path that begins at `at` below `prefix`; gives the index behind it.
fn spread(
    tokens: &[(usize, String)],
    mut at: usize,
    prefix: &[String],
    paths: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let line = tokens[at].0;
    let mut path = prefix.to_vec();
    loop {
        path.push(tokens[at].1.clone());
        at += 1;
        if tokens.get(at).is_none_or(|token| token.1 != "::") {
            break;
        }
        match tokens.get(at + 1) {
            Some((_, next)) if is_name(next) => at += 1,
            Some((_, next)) if next == "{" => {
                at += 2;
                while let Some((_, token)) = tokens.get(at) {
                    match token.as_str() {
                        "}" => return at + 1,
                        name if is_name(name) => at = spread(tokens, at, &path, paths),
                        _ => at += 1,
                    }
                }
                return at;
            }
            _ => break,
        }
    }
    paths.push((line, path));
    at
}

fn tokens_of(code: &str) -> Vec<(usize, String)> {
    let mut tokens: Vec<(usize, String)> = Vec::new();
    let mut line = 1;
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\n' {
            line += 1;
        } else if c.is_alphanumeric() || c == '_' {
            let mut word = c.to_string();
            while let Some(next) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                word.push(next);
            }
            tokens.push((line, word));
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            tokens.push((line, "::".to_owned()));
        } else if !c.is_whitespace() {
            tokens.push((line, c.to_string()));
        }
    }
    tokens
}

/// Whether `path` is `module` or below it.
fn within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn layer_of(module: &str) -> Option<&'static Layer> {
    LAYERS.iter().filter(|layer| within(module, layer.module)).max_by_key(|layer| layer.module.len())
}

/// The path from the root of the crate, if it names the crate.
fn resolve(source: &Source, path: &[String]) -> Option<Vec<String>> {
    let first = path.first()?.as_str();
    if first == "crate" {
        return Some(path[1..].to_vec());
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let own = usize::from(first == "self");
    if ups + own == 0 || ups > source.module.len() {
        return None;
    }
    let mut resolved = source.module[..source.module.len() - ups].to_vec();
    resolved.extend_from_slice(&path[ups + own..]);
    Some(resolved)
}

/// What a file does that it may not.
fn violations(source: &Source, external: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let module = source.module.join("::");
    let Some(layer) = layer_of(&module) else {
        return vec![format!("src/{}: the module {module} stands in no layer", source.path)];
    };

    let lines = without_tests(&source.text).lines().count();
    let most = LONGER.iter().find(|(path, _)| *path == source.path).map_or(LINES, |(_, most)| *most);
    if lines > most {
        found.push(format!("src/{}: {lines} lines before its tests, more than {most}", source.path));
    }

    for (line, path) in paths_of(&code_of(&source.text)) {
        let mut say = |what: String| found.push(format!("src/{}:{line}: {module} names {what}", source.path));
        if let Some(target) = resolve(source, &path) {
            let target = target.join("::");
            let implementation = IMPLEMENTATIONS.iter().find(|module| within(&target, module));
            let own = within(&target, layer.module);
            if own || target.is_empty() {
                // `mqtt` may name `mqtt::codec`; what is forbidden upwards is caught from the other side.
            } else if let Some(implementation) = implementation {
                if !COMPOSERS.iter().any(|composer| within(&module, composer)) {
                    say(format!("the implementation {implementation}"));
                }
            } else if !layer.may.iter().any(|allowed| within(&target, allowed)) {
                say(format!("crate::{target}"));
            }
        } else if path.len() > 1 && external.contains(&path[0]) {
            let path = path.join("::");
            let mut allowed = EVERYWHERE.iter().chain(layer.external);
            if !allowed.any(|allowed| within(&path, allowed)) {
                say(path.clone());
            }
            if within(&path, SOCKETS) && NO_SOCKETS.contains(&layer.module) {
                say(format!("the socket {path}"));
            }
        }
    }
    found
}

#[test]
fn every_import_goes_down() {
    let external = external_crates();
    let found = sources().iter().flat_map(|source| violations(source, &external)).collect::<Vec<_>>();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// What is found in `text` when it stands at `path`.
fn planted(path: &str, text: &str) -> Vec<String> {
    violations(&Source::new(path, text), &external_crates())
}

#[test]
fn planted_violations_are_found() {
    let planted_ones = [
        ("core/router.rs", "use crate::grpc::Settings;", "crate::grpc::Settings"),
        ("core/router.rs", "use super::super::mqtt::state;", "crate::mqtt::state"),
        ("core/mod.rs", "use super::config;", "crate::config"),
        ("core/router.rs", "use tonic::Status;", "tonic::Status"),
        ("core/router.rs", "fn f() { tokio::net::lookup_host(1); }", "tokio::net::lookup_host"),
        ("core/router.rs", "use tokio::{sync::mpsc, net::TcpStream};", "tokio::net::TcpStream"),
        ("core/router.rs", "fn f(a: std::net::SocketAddr) {}", "the socket std::net::SocketAddr"),
        ("core/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests;\nuse tonic::Status;", "tonic::Status"),
        ("core/router.rs", "use crate::engine::embedded::Store;", "the implementation engine::embedded"),
        ("grpc/mod.rs", "use crate::{types::clock, mqtt::state::{State}};", "crate::mqtt::state::State"),
        ("grpc/mod.rs", "use crate::config::Settings;", "crate::config::Settings"),
        ("grpc/mod.rs", "use crate::engine::embedded::Store;", "the implementation engine::embedded"),
        ("cli/info.rs", "use crate::engine::embedded::Store;", "the implementation engine::embedded"),
        ("mqtt/codec/decode.rs", "use crate::types::clock;", "crate::types::clock"),
        ("mqtt/codec/decode.rs", "use super::super::state::State;", "crate::mqtt::state::State"),
        ("engine/mod.rs", "use crate::core::Broker;", "crate::core::Broker"),
        ("engine/mod.rs", "fn f() { sled::open(1); }", "sled::open"),
        ("types/clock.rs", "use crate::engine::Durability;", "crate::engine::Durability"),
        ("main.rs", "use stafett::cli; use clap::Parser;", "clap::Parser"),
        ("helpers.rs", "", "stands in no layer"),
    ];
    for (path, text, expected) in planted_ones {
        let found = planted(path, text);
        assert!(found.iter().any(|said| said.contains(expected)), "{path}: {text}: found {found:?}");
    }
    let long = "fn f() {}\n".repeat(LINES + 1);
    assert!(planted("types/clock.rs", &long).iter().any(|said| said.contains("lines before its tests")));
}

#[test]
fn what_is_permitted_is_not_found() {
    let permitted = [
        (
            "core/router.rs",
            "use crate::types::TopicName;\nuse super::Broker;\nuse tokio::sync::{mpsc, watch};",
        ),
        ("core/router.rs", "// use tonic::Status;\nconst A: &str = \"crate::grpc::x \\\" tonic::y\";"),
        (
            "core/router.rs",
            "const A: &str = r#\"crate::grpc \" \"#; const C: char = '\"'; fn f<'a>(a: &'a str) {}",
        ),
        ("core/router.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::engine::embedded::Store; }\n"),
        ("server.rs", "use crate::engine::embedded::Store;"),
        ("cli/store.rs", "use crate::engine::embedded::Store;"),
        ("engine/embedded/pack.rs", "use super::super::Engine; use sled::Db; use super::writer::Writer;"),
        ("mqtt/state.rs", "use super::codec::Packet; use crate::core::Broker;"),
    ];
    for (path, text) in permitted {
        assert_eq!(planted(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}
