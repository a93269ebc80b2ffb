//! Starts the real program as a child process and talks about what it says.
//!
//! Nothing here sleeps: every wait is for an event and has a deadline. A child is killed when its handle is dropped.

use std::ffi::OsStr;
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use stafett::grpc::proto::v1::GetServerInfoRequest;
use stafett::grpc::proto::v1::admin_service_client::AdminServiceClient;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for anything; generous, since it only matters when something is wrong.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for `event`, and fails the test when it does not come.
pub(crate) async fn within<F: Future>(what: &str, event: F) -> F::Output {
    timeout(DEADLINE, event).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// How a process ended and all that it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program to its end.
pub(crate) async fn stafett<I, S>(args: I) -> Ended
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    Process::start(args).end().await
}

/// The same with `input` on stdin.
pub(crate) async fn stafett_reading<I, S>(input: &str, args: I) -> Ended
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input.as_bytes()).unwrap();
    file.rewind().unwrap();
    let mut command = command();
    command.stdin(file);
    Process::of(command, args).end().await
}

/// The same with more in its environment.
pub(crate) async fn stafett_in<I, S>(environment: &[(&str, String)], args: I) -> Ended
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = command();
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    Process::of(command, args).end().await
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stafett"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STAFETT_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What a stream has said so far.
#[derive(Debug, Default)]
struct Said {
    text: String,
    ended: bool,
}

async fn capture(stream: impl AsyncRead + Unpin, said: watch::Sender<Said>) {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).await.unwrap_or(0);
        said.send_modify(|said| {
            said.text.push_str(&line);
            said.ended = read == 0;
        });
        if read == 0 {
            return;
        }
    }
}

/// A running child and its output.
pub(crate) struct Process {
    child: Child,
    stdout: watch::Receiver<Said>,
    stderr: watch::Receiver<Said>,
    _captures: JoinSet<()>,
}

impl Process {
    pub(crate) fn start<I, S>(args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        Self::of(command(), args)
    }

    fn of<I, S>(mut command: Command, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut child = command.args(args).spawn().unwrap();
        let mut captures = JoinSet::new();
        let (out, stdout) = watch::channel(Said::default());
        let (err, stderr) = watch::channel(Said::default());
        captures.spawn(capture(child.stdout.take().unwrap(), out));
        captures.spawn(capture(child.stderr.take().unwrap(), err));
        Self { child, stdout, stderr, _captures: captures }
    }

    /// Waits until stdout contains `text`.
    pub(crate) async fn prints(&mut self, text: &str) {
        let heard = self.stdout.wait_for(|said| said.text.contains(text) || said.ended);
        let heard = timeout(DEADLINE, heard).await.is_ok();
        assert!(
            heard && self.stdout.borrow().text.contains(text),
            "never printed {text:?}:\n{}",
            self.stderr()
        );
    }

    /// What it has said to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.borrow().text.clone()
    }

    /// Waits until stderr contains `text`.
    pub(crate) async fn says(&mut self, text: &str) {
        let heard = self.stderr.wait_for(|said| said.text.contains(text) || said.ended);
        let heard = timeout(DEADLINE, heard).await.is_ok();
        assert!(heard && self.stderr().contains(text), "never said {text:?}, but:\n{}", self.stderr());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("the child has been waited for");
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Ended {
        let status = within("the end of the process", self.child.wait()).await.unwrap();
        within("the end of stdout", self.stdout.wait_for(|said| said.ended)).await.unwrap();
        within("the end of stderr", self.stderr.wait_for(|said| said.ended)).await.unwrap();
        let stdout = self.stdout.borrow().text.clone();
        Ended { code: status.code(), stdout, stderr: self.stderr() }
    }
}

/// A broker that has said that it is ready.
pub(crate) struct Broker {
    process: Process,
    ready_line: String,
    doors: Vec<(String, String)>,
    /// Where the store is a test's own to keep, it has none.
    data: Option<Arc<TempDir>>,
}

impl Broker {
    /// A broker on free ports with an empty store.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further flags.
    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), flags).await
    }

    /// The same on the store in `data`, which another broker may have left.
    pub(crate) async fn start_in(data: Arc<TempDir>, flags: &[&str]) -> Self {
        let path = data.path().to_owned();
        match Self::try_start(&path, flags, &[]).await {
            Ok(broker) => Self { data: Some(data), ..broker },
            Err(ended) => panic!("did not become ready:\n{}", ended.stderr),
        }
    }

    /// A broker on the store below `path`, with more in its environment; how it ended if it did so before it was ready.
    pub(crate) async fn try_start(
        path: &Path,
        flags: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, Ended> {
        let mut args = vec!["serve", "--data-dir", path.to_str().unwrap()];
        for door in ["--grpc-listen", "--mqtt-listen"] {
            if !flags.contains(&door) {
                args.extend([door, "127.0.0.1:0"]);
            }
        }
        args.extend(flags);
        let mut command = command();
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::of(command, args);
        let ready = process.stdout.wait_for(|said| said.text.ends_with('\n') || said.ended);
        let ready = timeout(DEADLINE, ready).await.map(|said| said.is_ok_and(|said| !said.ended));
        match ready {
            Ok(true) => {}
            Ok(false) => return Err(process.end().await),
            Err(_) => panic!("did not become ready:\n{}", process.stderr()),
        }
        let ready_line = process.stdout.borrow().text.trim_end().to_owned();
        let doors = ready_line.split(' ').skip(1).map(|door| {
            let (name, address) = door.split_once('=').expect("name=address");
            (name.to_owned(), address.to_owned())
        });
        Ok(Self { doors: doors.collect(), process, ready_line, data: None })
    }

    /// The line on stdout, without its end.
    pub(crate) fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// Where the door called `name` listens.
    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        self.bound(name).parse().expect("an address")
    }

    /// The same as it stands on the ready line.
    pub(crate) fn bound(&self, name: &str) -> &str {
        let door = self.doors.iter().find(|(door, _)| door == name);
        &door.unwrap_or_else(|| panic!("no door {name} in {:?}", self.ready_line)).1
    }

    /// What `--server` takes.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address("grpc"))
    }

    /// A new connection to the gRPC door.
    pub(crate) async fn grpc(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url()).unwrap();
        within("a gRPC connection", endpoint.connect()).await.unwrap()
    }

    /// The same where the broker may be gone.
    pub(crate) async fn try_grpc(&self) -> Option<Channel> {
        Endpoint::from_shared(self.url()).unwrap().connect().await.ok()
    }

    /// Asks for a counter of `GetServerInfo` until it is `count`.
    pub(crate) async fn counts(&self, name: &str, count: u64) {
        let mut admin = AdminServiceClient::new(self.grpc().await);
        within(name, async { while counter(&mut admin, name).await != count {} }).await;
    }

    /// A counter of `GetServerInfo` now.
    pub(crate) async fn count(&self, name: &str) -> u64 {
        counter(&mut AdminServiceClient::new(self.grpc().await), name).await
    }

    /// What of it is in memory, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let pid = self.process.child.id().expect("the child has been waited for");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// The directory of the store, kept as long as someone holds it.
    pub(crate) fn data(&self) -> Arc<TempDir> {
        self.data.clone().expect("a directory of its own")
    }

    /// The child process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) async fn terminate(self) -> Ended {
        self.process.signal(Signal::TERM);
        self.end().await
    }

    /// Kills it as a crash would (SIGKILL) and waits until it is gone.
    pub(crate) async fn kill9(self) -> Ended {
        self.process.signal(Signal::KILL);
        self.end().await
    }

    /// Waits for its end.
    pub(crate) async fn end(self) -> Ended {
        self.process.end().await
    }
}

async fn counter(admin: &mut AdminServiceClient<Channel>, name: &str) -> u64 {
    let info = within("the counters", admin.get_server_info(GetServerInfoRequest {})).await.unwrap();
    *info.into_inner().counters.get(name).unwrap_or_else(|| panic!("no counter {name}"))
}

/// Writes a configuration file into a fresh directory.
pub(crate) fn config_file(text: &str) -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stafett.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

/// A port below those that the kernel gives to outgoing connections: a broker that comes back finds it free.
pub(crate) fn fixed_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = start + GIVEN.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_000, "no port is free");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
