//! `stafett health`.

use clap::Args;
use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::ClientOptions;
use super::client::{connect, refused, request};
use super::exit::{Exit, Failure};

/// The arguments of `stafett health`.
#[derive(Args, Debug)]
#[command(
    after_help = "Prints SERVING or NOT_SERVING. Exit codes: 0 serving; 1 not serving; 3 cannot be reached."
)]
pub(super) struct Health {
    /// Ask about this service only, as in stafett.v1.AdminService
    #[arg(default_value = "", hide_default_value = true)]
    service: String,
}

pub(super) async fn run(health: &Health, options: &ClientOptions) -> Result<Exit, Failure> {
    let mut client = HealthClient::new(connect(options).await?);
    let question = request(options, HealthCheckRequest { service: health.service.clone() });
    let answer = client.check(question).await.map_err(|status| refused(&status))?;
    let status = answer.into_inner().status();
    if options.json {
        println!("{}", json!({ "service": health.service, "status": status.as_str_name() }));
    } else {
        println!("{}", status.as_str_name());
    }
    Ok(if status == ServingStatus::Serving { Exit::Done } else { Exit::Failed })
}
