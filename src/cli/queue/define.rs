//! Making, changing and deleting queues.

use std::collections::HashMap;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::ClientOptions;
use crate::cli::client::{pages, refused, request};
use crate::cli::exit::{Exit, Failure};
use crate::cli::message::{duration, key_value};
use crate::cli::out::line;
use crate::config::value::parse_bytes;
use crate::grpc::proto::v1;

use super::{Client, print_count, print_queue, queue_json};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Overflow {
    /// Refuse what is new
    Reject,
    /// Drop the oldest that are ready
    DropOldest,
    /// Move the oldest that are ready to the dead letter queue
    DeadLetter,
}

impl From<Overflow> for v1::OverflowPolicy {
    fn from(overflow: Overflow) -> Self {
        match overflow {
            Overflow::Reject => Self::Reject,
            Overflow::DropOldest => Self::DropOldest,
            Overflow::DeadLetter => Self::DeadLetter,
        }
    }
}

/// Settings of a queue, as far as they are said.
#[derive(Args, Debug)]
struct Settings {
    /// How long a consumer may hold a message: 1s to 12h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// After so many failed deliveries a message is given up; 0 = never
    #[arg(long, value_name = "COUNT")]
    max_deliveries: Option<u32>,
    /// Where messages go that are given up: a queue that exists
    #[arg(long, value_name = "QUEUE")]
    dead_letter_queue: Option<String>,
    /// How long a message rests after its first failed delivery, about twice as long after each further one
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    retry_min_backoff: Option<Duration>,
    /// No rest is longer; 10m if not said
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    retry_max_backoff: Option<Duration>,
    /// How long messages without a time to live are worth delivering
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    default_ttl: Option<Duration>,
    /// At most so many messages
    #[arg(long, value_name = "COUNT")]
    max_messages: Option<u64>,
    /// At most so many bytes of them: 1000000, 64MiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    max_bytes: Option<u64>,
    /// What to do when it is full
    #[arg(long, value_enum)]
    overflow: Option<Overflow>,
    /// One consumer gets messages, until it ends: true or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    single_active_consumer: Option<bool>,
    /// Take a message once that is sent again with its dedup id within this time: 1s to 7d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    dedup_window: Option<Duration>,
    /// A label for your tools; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Expired messages go to the dead letter queue: true or false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dead_letter_expired: Option<bool>,
    /// Delete it, with its messages, when nobody has used it for so long: 1s to 365d
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires_after: Option<Duration>,
    /// Copy every publish that matches into the queue; may be given several times
    #[arg(long = "bind", value_name = "FILTER")]
    bindings: Vec<String>,
}

pub(in crate::cli) fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "must be a number of bytes, or have one of KiB, MiB, GiB, TiB".to_owned())
}

impl Settings {
    /// The queue that they describe, and the names of the fields that were said.
    fn queue(&self, name: &str) -> anyhow::Result<(v1::Queue, Vec<&'static str>)> {
        let labels: HashMap<_, _> =
            self.labels.iter().map(|pair| key_value("--label", pair)).collect::<anyhow::Result<_>>()?;
        let fields = [
            ("lease", self.lease.is_some()),
            ("max_deliveries", self.max_deliveries.is_some()),
            ("dead_letter_queue", self.dead_letter_queue.is_some()),
            ("retry_min_backoff", self.retry_min_backoff.is_some()),
            ("retry_max_backoff", self.retry_max_backoff.is_some()),
            ("default_ttl", self.default_ttl.is_some()),
            ("max_messages", self.max_messages.is_some()),
            ("max_bytes", self.max_bytes.is_some()),
            ("overflow", self.overflow.is_some()),
            ("single_active_consumer", self.single_active_consumer.is_some()),
            ("dedup_window", self.dedup_window.is_some()),
            ("labels", !self.labels.is_empty()),
            ("expires_after", self.expires_after.is_some()),
            ("dead_letter_expired", self.dead_letter_expired.is_some()),
            ("bindings", !self.bindings.is_empty()),
        ];
        let queue = v1::Queue {
            name: name.to_owned(),
            bindings: self.bindings.clone(),
            lease: self.lease.map(duration),
            max_deliveries: self.max_deliveries.unwrap_or_default(),
            dead_letter_queue: self.dead_letter_queue.clone().unwrap_or_default(),
            retry_min_backoff: self.retry_min_backoff.map(duration),
            retry_max_backoff: self.retry_max_backoff.map(duration),
            default_ttl: self.default_ttl.map(duration),
            max_messages: self.max_messages.unwrap_or_default(),
            max_bytes: self.max_bytes.unwrap_or_default(),
            overflow: self.overflow.map_or(v1::OverflowPolicy::Unspecified, Into::into).into(),
            priorities: false,
            ordered_by_key: false,
            single_active_consumer: self.single_active_consumer.unwrap_or_default(),
            dedup_window: self.dedup_window.map(duration),
            last_value_key: String::new(),
            labels,
            dead_letter_expired: self.dead_letter_expired.unwrap_or_default(),
            expires_after: self.expires_after.map(duration),
            paused: false,
        };
        Ok((queue, fields.into_iter().filter(|(_, said)| *said).map(|(field, _)| field).collect()))
    }
}

/// The arguments of `stafett queue create`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  stafett queue create dead
  stafett queue create orders --lease 1m --max-deliveries 5 --dead-letter-queue dead --bind 'shop/+/order'")]
pub(super) struct Create {
    /// 1 to 128 of A-Z a-z 0-9 . _ -
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Deliver higher priorities first; cannot be changed later
    #[arg(long)]
    priorities: bool,
    /// Deliver messages with the same ordering key one at a time, in their order; cannot be changed later
    #[arg(long)]
    ordered_by_key: bool,
    /// Of the messages with the same value of this property keep the newest; cannot be changed later
    #[arg(long, value_name = "PROPERTY", default_value = "", hide_default_value = true)]
    last_value_key: String,
    /// Deliver nothing until `queue resume`
    #[arg(long)]
    paused: bool,
    /// A queue with the same settings is fine
    #[arg(long)]
    if_not_exists: bool,
}

impl Create {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let (mut queue, _) = self.settings.queue(&self.name).map_err(Failure::usage)?;
        queue.priorities = self.priorities;
        queue.ordered_by_key = self.ordered_by_key;
        queue.last_value_key = self.last_value_key.clone();
        queue.paused = self.paused;
        let question = v1::CreateQueueRequest { queue: Some(queue), if_not_exists: self.if_not_exists };
        let answer =
            client.create_queue(request(options, question)).await.map_err(|status| refused(&status))?;
        print_queue(options, &answer.into_inner().queue.unwrap_or_default())?;
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett queue update`.
#[derive(Args, Debug)]
#[command(after_help = "\
What is not said stays as it is. --bind and --label replace all bindings and labels.
Examples:
  stafett queue update orders --lease 5m --max-messages 100000
  stafett queue update orders --unset default_ttl --unset labels")]
pub(super) struct Update {
    /// The queue
    name: String,
    #[command(flatten)]
    settings: Settings,
    /// Give a setting its default again; may be given several times
    #[arg(long, value_name = "SETTING", value_parser = [
        "lease", "max_deliveries", "dead_letter_queue", "retry_min_backoff", "retry_max_backoff", "default_ttl",
        "max_messages", "max_bytes", "overflow", "single_active_consumer", "dedup_window", "labels", "dead_letter_expired",
        "expires_after", "bindings",
    ])]
    unset: Vec<String>,
}

impl Update {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let (queue, fields) = self.settings.queue(&self.name).map_err(Failure::usage)?;
        if let Some(both) = self.unset.iter().find(|field| fields.contains(&field.as_str())) {
            return Err(Failure::usage(anyhow::anyhow!("{both} is both set and unset")));
        }
        let paths: Vec<_> = fields.into_iter().map(str::to_owned).chain(self.unset.iter().cloned()).collect();
        if paths.is_empty() {
            return Err(Failure::usage(anyhow::anyhow!("there is nothing to change: give a setting")));
        }
        update(&mut client, options, queue, paths).await
    }
}

async fn update(
    client: &mut Client,
    options: &ClientOptions,
    queue: v1::Queue,
    paths: Vec<String>,
) -> Result<Exit, Failure> {
    let update_mask = Some(prost_types::FieldMask { paths });
    let question = v1::UpdateQueueRequest { queue: Some(queue), update_mask };
    let answer = client.update_queue(request(options, question)).await.map_err(|status| refused(&status))?;
    print_queue(options, &answer.into_inner().queue.unwrap_or_default())?;
    Ok(Exit::Done)
}

/// The arguments of `stafett queue pause`.
#[derive(Args, Debug)]
#[command(after_help = "\
Consumers stay and get nothing more; what they hold may be settled, and messages may still be put in.
Example: stafett queue pause orders")]
pub(super) struct Pause {
    /// The queue
    name: String,
}

/// The arguments of `stafett queue resume`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett queue resume orders")]
pub(super) struct Resume {
    /// The queue
    name: String,
}

impl Pause {
    pub(super) async fn run(&self, client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        set_paused(client, options, &self.name, true).await
    }
}

impl Resume {
    pub(super) async fn run(&self, client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        set_paused(client, options, &self.name, false).await
    }
}

async fn set_paused(
    mut client: Client,
    options: &ClientOptions,
    name: &str,
    paused: bool,
) -> Result<Exit, Failure> {
    let queue = v1::Queue { name: name.to_owned(), paused, ..Default::default() };
    update(&mut client, options, queue, vec!["paused".to_owned()]).await
}

/// The arguments of `stafett queue list`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett queue list --prefix shop. --json")]
pub(super) struct List {
    /// Only names that begin so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
}

impl List {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let ask = async |page_token| {
            let name_prefix = self.prefix.clone();
            let question = v1::ListQueuesRequest { name_prefix, page_size: 1000, page_token };
            client.list_queues(request(options, question)).await
        };
        pages(ask, |page| {
            for queue in &page.queues {
                if options.json { line(queue_json(queue))? } else { line(&queue.name)? }
            }
            Ok(page.next_page_token)
        })
        .await
    }
}

/// The arguments of `stafett queue info`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett queue info orders")]
pub(super) struct Info {
    /// The queue
    name: String,
}

impl Info {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = request(options, v1::GetQueueRequest { name: self.name.clone() });
        let answer = client.get_queue(question).await.map_err(|status| refused(&status))?;
        print_queue(options, &answer.into_inner().queue.unwrap_or_default())?;
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett queue delete`.
#[derive(Args, Debug)]
#[command(
    after_help = "Prints how many messages went with it. Example: stafett queue delete orders --if-empty"
)]
pub(super) struct Delete {
    /// The queue
    name: String,
    /// Only if there are no messages
    #[arg(long)]
    if_empty: bool,
}

impl Delete {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::DeleteQueueRequest { name: self.name.clone(), only_if_empty: self.if_empty };
        let answer =
            client.delete_queue(request(options, question)).await.map_err(|status| refused(&status))?;
        print_count(options, "deleted_messages", answer.into_inner().deleted_messages)?;
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett queue bind`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett queue bind orders 'shop/+/order' 'shop/all'")]
pub(super) struct Bind {
    /// The queue
    name: String,
    /// Topic filters
    #[arg(required = true)]
    filters: Vec<String>,
}

impl Bind {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::AddBindingsRequest { queue: self.name.clone(), filters: self.filters.clone() };
        let answer =
            client.add_bindings(request(options, question)).await.map_err(|status| refused(&status))?;
        print_queue(options, &answer.into_inner().queue.unwrap_or_default())?;
        Ok(Exit::Done)
    }
}

/// The arguments of `stafett queue unbind`.
#[derive(Args, Debug)]
#[command(after_help = "Example: stafett queue unbind orders 'shop/all'")]
pub(super) struct Unbind {
    /// The queue
    name: String,
    /// Topic filters, as they were bound
    #[arg(required = true)]
    filters: Vec<String>,
}

impl Unbind {
    pub(super) async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let question = v1::RemoveBindingsRequest { queue: self.name.clone(), filters: self.filters.clone() };
        let answer =
            client.remove_bindings(request(options, question)).await.map_err(|status| refused(&status))?;
        print_queue(options, &answer.into_inner().queue.unwrap_or_default())?;
        Ok(Exit::Done)
    }
}
