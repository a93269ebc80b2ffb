//! `stafett info`.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use crate::grpc::proto::v1::admin_service_client::AdminServiceClient;
use crate::grpc::proto::v1::{GetServerInfoRequest, GetServerInfoResponse};

use super::ClientOptions;
use super::client::{connect, refused, request};
use super::exit::{Exit, Failure};

pub(super) async fn run(options: &ClientOptions) -> Result<Exit, Failure> {
    let mut client = AdminServiceClient::new(connect(options).await?);
    let question = request(options, GetServerInfoRequest {});
    let info = client.get_server_info(question).await.map_err(|status| refused(&status))?.into_inner();
    if options.json {
        println!("{}", as_json(&info));
    } else {
        print!("{}", as_text(&info));
    }
    Ok(Exit::Done)
}

fn started_at(info: &GetServerInfoResponse) -> String {
    let since = info.started_at.unwrap_or_default();
    let since = Duration::new(since.seconds.try_into().unwrap_or(0), since.nanos.try_into().unwrap_or(0));
    UNIX_EPOCH
        .checked_add(since)
        .map(|at| humantime::format_rfc3339_millis(at).to_string())
        .unwrap_or_default()
}

fn as_json(info: &GetServerInfoResponse) -> serde_json::Value {
    json!({
        "version": info.version,
        "started_at": started_at(info),
        "features": info.features,
        "max_connections": info.max_connections,
        "durability": info.durability,
        "doors": info.doors,
        "bridges": info.bridges,
        "counters": info.counters,
    })
}

fn as_text(info: &GetServerInfoResponse) -> String {
    let durability = if info.durability.is_empty() { "nothing is stored" } else { &info.durability };
    let mut text = format!(
        "version          {}\nstarted at       {}\nfeatures         {}\ndurability       {durability}\nmax connections  {}\n",
        info.version,
        started_at(info),
        info.features.join(", "),
        info.max_connections,
    );
    for (door, address) in info.doors.iter().collect::<BTreeMap<_, _>>() {
        text.push_str(&format!("door             {door} {address}\n"));
    }
    for (bridge, how) in info.bridges.iter().collect::<BTreeMap<_, _>>() {
        text.push_str(&format!("bridge           {bridge} {how}\n"));
    }
    for (name, count) in info.counters.iter().collect::<BTreeMap<_, _>>() {
        text.push_str(&format!("counter          {name} {count}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_shown_as_a_date() {
        let started_at = Some(prost_types::Timestamp { seconds: 86_400, nanos: 5_000_000 });
        let info = GetServerInfoResponse { started_at, ..Default::default() };
        assert_eq!(as_json(&info)["started_at"], "1970-01-02T00:00:00.005Z");
        assert!(as_text(&info).contains("nothing is stored"));
    }
}
