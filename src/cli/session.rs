//! `stafett session`: see who is subscribed, connected or away, and end it.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::grpc::proto::v1;
use crate::grpc::proto::v1::admin_service_client::AdminServiceClient;

use super::ClientOptions;
use super::client::{connect, pages, refused, request};
use super::exit::{Exit, Failure};
use super::message::{show_duration, show_time};
use super::out::line;

const EXAMPLES: &str = "\
Examples:
  stafett session list --prefix sensor-
  stafett session delete sensor-7
  stafett session disconnect sensor-7";

type Client = AdminServiceClient<Channel>;

/// The arguments of `stafett session`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true)]
pub(super) struct Session {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the sessions of both doors, connected or away
    List(List),
    /// Delete a session with what waits for its client
    Delete(Name),
    /// End the connection of a client; its session stays as long as it is kept
    Disconnect(Name),
}

/// The arguments of `stafett session list`.
#[derive(Args, Debug)]
#[command(after_help = "\
Prints a line per session: its client id, a tab, whether it is connected or away, a tab, how many messages wait.
Example: stafett session list --json")]
struct List {
    /// Only client ids that begin so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
}

/// Whose session.
#[derive(Args, Debug)]
struct Name {
    /// Its client id
    client_id: String,
}

pub(super) async fn run(session: &Session, options: &ClientOptions) -> Result<Exit, Failure> {
    let client = AdminServiceClient::new(connect(options).await?).max_decoding_message_size(usize::MAX);
    match &session.command {
        Command::List(list) => list.run(client, options).await,
        Command::Delete(name) => delete(client, &name.client_id, options).await,
        Command::Disconnect(name) => disconnect(client, &name.client_id, options).await,
    }
}

impl List {
    async fn run(&self, mut client: Client, options: &ClientOptions) -> Result<Exit, Failure> {
        let ask = async |page_token| {
            let client_id_prefix = self.prefix.clone();
            let question = v1::ListSessionsRequest { client_id_prefix, page_size: 1000, page_token };
            client.list_sessions(request(options, question)).await
        };
        pages(ask, |page| {
            for session in &page.sessions {
                if options.json {
                    line(as_json(session))?;
                } else {
                    let state = if session.connected { "connected" } else { "away" };
                    line(format_args!("{}\t{state}\t{}", session.client_id, session.queued))?;
                }
            }
            Ok(page.next_page_token)
        })
        .await
    }
}

async fn delete(mut client: Client, client_id: &str, options: &ClientOptions) -> Result<Exit, Failure> {
    let question = v1::DeleteSessionRequest { client_id: client_id.to_owned() };
    let answer =
        client.delete_session(request(options, question)).await.map_err(|status| refused(&status))?;
    let discarded = answer.into_inner().discarded_messages;
    if options.json {
        line(json!({ "discarded_messages": discarded }))?;
    } else {
        line(format_args!("discarded_messages {discarded}"))?;
    }
    Ok(Exit::Done)
}

async fn disconnect(mut client: Client, client_id: &str, options: &ClientOptions) -> Result<Exit, Failure> {
    let question = v1::DisconnectClientRequest { client_id: client_id.to_owned() };
    let answer =
        client.disconnect_client(request(options, question)).await.map_err(|status| refused(&status))?;
    let was_connected = answer.into_inner().was_connected;
    if options.json {
        line(json!({ "was_connected": was_connected }))?;
    } else {
        line(if was_connected { "disconnected" } else { "not connected" })?;
    }
    Ok(Exit::Done)
}

fn as_json(session: &v1::Session) -> Value {
    let filter = |filter: &v1::TopicFilter| {
        json!({
            "filter": filter.filter,
            "share_group": filter.share_group,
            "max_qos": filter.max_qos().as_str_name().trim_start_matches("QOS_").to_lowercase(),
            "retain_handling":
                filter.retain_handling().as_str_name().trim_start_matches("RETAIN_HANDLING_").to_lowercase(),
            "no_local": filter.no_local,
            "retain_as_published": filter.retain_as_published,
            "subscription_id": filter.subscription_id,
        })
    };
    json!({
        "client_id": session.client_id,
        "principal": session.principal,
        "connected": session.connected,
        "session_expiry": session.session_expiry.as_ref().map(show_duration),
        "expires_at": session.expires_at.as_ref().map(show_time),
        "created_at": session.created_at.as_ref().map(show_time),
        "queued": session.queued,
        "queued_bytes": session.queued_bytes,
        "filters": session.filters.iter().map(filter).collect::<Vec<_>>(),
    })
}
