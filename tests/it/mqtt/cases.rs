//! The cases of `tests/data/mqtt/*.txt`: bytes in, bytes out or close, each for the versions it applies to.
//!
//! `tests/data/mqtt/README.md` says how they are written. The cases of a file run one after the other against one broker,
//! over real sockets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use stafett::mqtt::codec::peek_frame;
use tokio::time::timeout;

use super::*;
use crate::harness::config_file;

/// Longest wait for a packet or an end.
const WAIT: Duration = Duration::from_secs(15);

/// A file of cases.
pub(super) struct CaseFile {
    path: PathBuf,
    /// For the broker.
    config: String,
    pub(super) cases: Vec<Case>,
}

/// One case.
pub(super) struct Case {
    pub(super) name: String,
    /// `3.1.1 MQTT-…` or `5.0 MQTT-…`.
    pub(super) rules: Vec<String>,
    versions: Vec<Version>,
    steps: Vec<Step>,
}

/// What one peer does or sees.
struct Step {
    line: usize,
    peer: char,
    verb: String,
    rest: String,
}

/// Bytes as a case writes them.
#[derive(Default)]
struct Pattern {
    bytes: Vec<u8>,
    /// Any bytes may follow.
    open: bool,
}

/// All files.
pub(super) fn files() -> Vec<CaseFile> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mqtt");
    let entries = std::fs::read_dir(directory).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    paths.into_iter().map(CaseFile::read).collect()
}

impl CaseFile {
    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut file = Self { path, config: String::new(), cases: Vec::new() };
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            if word.is_empty() || word.starts_with('#') {
                continue;
            }
            if word == "config" {
                file.config.extend([rest, "\n"]);
                continue;
            }
            if word == "case" {
                let (name, versions) = (rest.trim().to_owned(), BOTH.to_vec());
                file.cases.push(Case { name, rules: Vec::new(), versions, steps: Vec::new() });
                continue;
            }
            let case = file.cases.last_mut().expect("a case");
            match word {
                "rules" => case.rules.extend(rest.split_whitespace().flat_map(rule)),
                "only" if rest == "5" => case.versions = vec![V5],
                "only" if rest == "3.1.1" => case.versions = vec![V311],
                _ => {
                    let (peer, verb, rest) = match word.len() {
                        1 => {
                            let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                            (word.chars().next().unwrap(), verb, rest)
                        }
                        _ => ('a', word, rest),
                    };
                    let (verb, rest) = (verb.to_owned(), rest.to_owned());
                    case.steps.push(Step { line: at + 1, peer, verb, rest });
                }
            }
        }
        file
    }

    /// What went wrong.
    async fn run(&self, version: Version, broker: &Broker) -> Vec<String> {
        let mut wrong = Vec::new();
        for (number, case) in
            self.cases.iter().enumerate().filter(|(_, case)| case.versions.contains(&version))
        {
            let mut peers = BTreeMap::new();
            for step in &case.steps {
                let name = format!("{}-{number}", step.peer);
                if let Err(what) = take(step, &name, version, &mut peers, broker).await {
                    let (file, line) = (self.path.file_name().unwrap(), step.line);
                    wrong.push(format!("{file:?}:{line}: {} in {version:?}: {what}", case.name));
                    break;
                }
            }
        }
        wrong
    }
}

impl Case {
    /// What each of its connections sends in this version, one after the other.
    pub(super) fn sent(&self, version: Version) -> Vec<Vec<u8>> {
        let mut sent: Vec<(char, Vec<u8>)> = Vec::new();
        for step in self.steps.iter().filter(|_| self.versions.contains(&version)) {
            match &*step.verb {
                "open" => sent.push((step.peer, step.connect(&self.name, version))),
                "tcp" => sent.push((step.peer, Vec::new())),
                "send" => {
                    let own = sent.iter_mut().rfind(|(peer, _)| *peer == step.peer).expect("a peer");
                    own.1.extend(Pattern::of(&step.rest, version).bytes);
                }
                _ => {}
            }
        }
        sent.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

impl Step {
    /// CONNECT of an `open`.
    fn connect(&self, name: &str, version: Version) -> Vec<u8> {
        let connect = match &*self.rest {
            "" => connect(version, name),
            "kept" => kept(version, name),
            other => panic!("open {other}"),
        };
        let mut bytes = BytesMut::new();
        Packet::Connect(Box::new(connect)).encode(version, &mut bytes).unwrap();
        bytes.to_vec()
    }
}

/// `both/3.1.0-1` are two rules.
fn rule(text: &str) -> Vec<String> {
    let (versions, number) = text.split_once('/').unwrap_or_else(|| panic!("{text} is no rule"));
    let versions: &[&str] = match versions {
        "both" => &["3.1.1", "5.0"],
        "3.1.1" => &["3.1.1"],
        "5" => &["5.0"],
        _ => panic!("{text} is no rule"),
    };
    versions.iter().map(|version| format!("{version} MQTT-{number}")).collect()
}

/// A connection without a mind.
struct Raw {
    stream: TcpStream,
    input: BytesMut,
    connected: bool,
}

impl Raw {
    async fn open(broker: &Broker) -> Self {
        let stream = TcpStream::connect(broker.address("mqtt")).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, input: BytesMut::new(), connected: false }
    }

    /// The first byte and what follows the length of the next packet; none at the end. A reset is an error: what was
    /// said before could be lost.
    async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, String> {
        let limits = Limits { max_packet_size: 64 << 20, ..Limits::default() };
        loop {
            if let Some(info) = peek_frame(&self.input, &limits).map_err(|error| error.to_string())?
                && self.input.len() >= info.total_len
            {
                let frame = self.input.split_to(info.total_len);
                return Ok(Some((frame[0], frame[info.header_len..].to_vec())));
            }
            match timeout(WAIT, self.stream.read_buf(&mut self.input)).await {
                Err(_) => return Err("waited in vain".to_owned()),
                Ok(Ok(0)) if self.input.is_empty() => return Ok(None),
                Ok(Ok(0)) => return Err("ended within a packet".to_owned()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    async fn ends(&mut self) -> Result<(), String> {
        match self.next().await? {
            None => Ok(()),
            Some((first, body)) => Err(format!("{first:02x} {body:02x?} instead of the end")),
        }
    }

    async fn packet(&mut self, version: Version) -> Result<Packet, String> {
        let (first, body) = self.next().await?.ok_or("the end instead of a packet")?;
        let mut frame = BytesMut::from(&[first][..]);
        put_length(body.len(), &mut frame);
        frame.extend_from_slice(&body);
        let packet = Decoder::established(version, Limits::default()).decode_frame(frame.freeze());
        packet.map_err(|error| format!("{first:02x} {body:02x?}: {error}"))
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        timeout(WAIT, self.stream.write_all(bytes)).await.map_err(|_| "is not read")?.ok();
        Ok(())
    }
}

/// Does one step.
async fn take(
    step: &Step,
    name: &str,
    version: Version,
    peers: &mut BTreeMap<char, Raw>,
    broker: &Broker,
) -> Result<(), String> {
    if matches!(&*step.verb, "open" | "tcp") {
        let mut raw = Raw::open(broker).await;
        if step.verb == "open" {
            raw.send(&step.connect(name, version)).await?;
            match raw.packet(version).await? {
                Packet::ConnAck(connack) if connack.reason == ReasonCode::Success => raw.connected = true,
                other => return Err(format!("{other:?}")),
            }
        }
        peers.insert(step.peer, raw);
        return Ok(());
    }
    if step.verb == "vanish" {
        peers.remove(&step.peer);
        return Ok(());
    }
    let peer = peers.get_mut(&step.peer).expect("a peer that is there");
    match &*step.verb {
        "send" => {
            let pattern = Pattern::of(&step.rest, version);
            assert!(!pattern.open, "line {}", step.line);
            peer.send(&pattern.bytes).await
        }
        "get" => {
            let (first, body) = step.rest.split_at(2);
            let first = u8::from_str_radix(first, 16).unwrap();
            let body = body.trim().strip_prefix('{').and_then(|body| body.rsplit_once('}'));
            let pattern = Pattern::of(body.expect("{ body }").0, version);
            match peer.next().await? {
                Some(got) if got.0 == first && pattern.fits(&got.1) => {
                    peer.connected |= first == 0x20;
                    Ok(())
                }
                Some((other, body)) => {
                    let wanted = pattern.bytes;
                    Err(format!("{other:02x} {body:02x?} instead of {first:02x} {wanted:02x?}"))
                }
                None => Err(format!("the end instead of {first:02x} {:02x?}", pattern.bytes)),
            }
        }
        "none" => {
            peer.send(&[0xc0, 0]).await?;
            match peer.next().await? {
                Some((0xd0, body)) if body.is_empty() => Ok(()),
                other => Err(format!("{other:02x?} came")),
            }
        }
        // In 3.1.1 there is no packet that tells why.
        "close" => {
            let code = u8::from_str_radix(&step.rest, 16).unwrap();
            if version == V5 {
                match peer.packet(version).await? {
                    Packet::Disconnect(packet) if packet.reason as u8 == code => {
                        let properties = packet.properties.unwrap_or_default();
                        // 5: [MQTT-3.14.2-2].
                        if properties.session_expiry.is_some() {
                            return Err("DISCONNECT of a server with a session expiry".to_owned());
                        }
                    }
                    other => return Err(format!("{other:?} instead of DISCONNECT {code:02x}")),
                }
            }
            peer.ends().await
        }
        // The codes of 5 and of 3.1.1; `-` is an end without CONNACK.
        "refuse" => {
            let (five, three) = step.rest.split_once(' ').unwrap();
            let wanted = if version == V5 { five } else { three.trim() };
            if wanted != "-" {
                let code = u8::from_str_radix(wanted, 16).unwrap();
                match peer.next().await? {
                    // [MQTT-3.2.2-4], [MQTT-3.2.2-6]: no session is present.
                    Some((0x20, body)) if body.starts_with(&[0, code]) => {}
                    other => return Err(format!("{other:02x?} instead of CONNACK {code:02x}")),
                }
            }
            peer.ends().await
        }
        "end" => peer.ends().await,
        other => panic!("line {}: `{other}` is no step", step.line),
    }
}

fn put_length(mut length: usize, out: &mut BytesMut) {
    while length > 0x7f {
        out.put_u8(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
}

impl Pattern {
    fn of(text: &str, version: Version) -> Self {
        let mut rest = text;
        let pattern = Self::build(&mut rest, None, version);
        assert!(rest.is_empty(), "{text}");
        pattern
    }

    fn build(rest: &mut &str, end: Option<char>, version: Version) -> Self {
        let mut pattern = Self::default();
        loop {
            *rest = rest.trim_start();
            let Some(next) = rest.chars().next() else { return pattern };
            if Some(next) == end {
                *rest = &rest[1..];
                return pattern;
            }
            match next {
                '#' => *rest = "",
                'V' => {
                    *rest = &rest[1..];
                    pattern.bytes.push(version.level());
                }
                '"' | '\'' => {
                    let (text, after) = rest[1..].split_once(next).expect("the end of a text");
                    *rest = after;
                    let mut times = 1;
                    if let Some(after) = after.strip_prefix('*') {
                        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
                        times = after[..digits].parse().unwrap();
                        *rest = &after[digits..];
                    }
                    let text = text.repeat(times);
                    if next == '"' {
                        pattern.bytes.put_u16(text.len().try_into().unwrap());
                    }
                    pattern.bytes.put_slice(text.as_bytes());
                }
                '{' | '(' => {
                    *rest = &rest[1..];
                    let end = if next == '{' { '}' } else { ')' };
                    let inner = Self::build(rest, Some(end), version);
                    if next == '{' || version == V5 {
                        let mut length = BytesMut::new();
                        put_length(inner.bytes.len(), &mut length);
                        pattern.bytes.extend_from_slice(&length);
                        pattern.bytes.extend(inner.bytes);
                    }
                }
                '[' => {
                    let of = if rest.starts_with("[5:") { V5 } else { V311 };
                    *rest = &rest[3..];
                    let inner = Self::build(rest, Some(']'), version);
                    if of == version {
                        pattern.bytes.extend(inner.bytes);
                        pattern.open |= inner.open;
                    }
                }
                '.' => {
                    *rest = rest.strip_prefix("..").expect("..");
                    pattern.open = true;
                }
                _ => {
                    pattern.bytes.push(u8::from_str_radix(&rest[..2], 16).expect("hex digits"));
                    *rest = &rest[2..];
                }
            }
        }
    }

    fn fits(&self, bytes: &[u8]) -> bool {
        if self.open { bytes.starts_with(&self.bytes) } else { bytes == self.bytes }
    }
}

#[tokio::test]
async fn every_case_holds() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (file, version) in files().iter().flat_map(|file| BOTH.map(|version| (file, version))) {
        let (_directory, path) = config_file(&file.config);
        let broker = Broker::start_with(&["--config", &path]).await;
        let mut witness = Peer::subscribed(&broker, V5, "witness", QOS1).await;
        wrong.extend(file.run(version, &broker).await);
        // Whatever the others did, who behaves is not disturbed.
        witness.say("witness", QOS1, "x").await;
        assert_eq!(text(&witness.receive().await), "x");
        count += file.cases.iter().filter(|case| case.versions.contains(&version)).count();
    }
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count > 100, "{count} cases: are the files found?");
}
