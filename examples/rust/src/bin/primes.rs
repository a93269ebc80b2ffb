//! Counts the primes below a number, divided among those who serve: cargo run --bin primes -- 3000000 primes/count
//!
//! With several services it asks each in turn, --runs times, and says how their times compare: start one worker for the first
//! and two for the second.

use std::process;
use std::time::{Duration, Instant};

use clap::Parser;
use stafett_examples::pb::multicast_response::Event;
use stafett_examples::pb::{GatherPolicy, Message, MulticastRequest, call_service_client::CallServiceClient};
use stafett_examples::{Client, fail};
use tonic::Status;
use tonic::transport::Channel;

/// More than there are workers, so that a quick one does more of them, and a lost one loses little.
const PARTS: u64 = 64;

/// Counts the primes below a number, divided among those who serve
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    below: u64,
    #[arg(required = true)]
    services: Vec<String>,
    #[arg(long, default_value_t = 1)]
    runs: usize,
}

/// How many primes there are, and how many workers counted them.
async fn count(
    calls: &mut CallServiceClient<Channel>,
    service: &str,
    below: u64,
) -> Result<(u64, u32), Status> {
    let step = below.div_ceil(PARTS).max(1);
    let ranges = (0..below).step_by(step as usize).map(|low| format!("{low} {}", below.min(low + step)));
    let parts = ranges.map(|text| Message { payload: text.into(), ..Message::default() }).collect();
    let policy = Some(GatherPolicy { stop_on_error: true, ..GatherPolicy::default() });
    let request =
        MulticastRequest { service: service.to_owned(), parts, policy, ..MulticastRequest::default() };
    let mut events = calls.multicast(request).await?.into_inner();
    let mut total = 0;
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Reply(reply)) => match &reply.error {
                Some(error) => give_up(&format!("part {}: {}", reply.part(), error.message)),
                None => {
                    let said = reply.message.unwrap_or_default().payload;
                    total +=
                        str::from_utf8(&said).ok().and_then(|said| said.parse::<u64>().ok()).unwrap_or(0);
                }
            },
            Some(Event::Summary(summary)) => {
                let missing = summary.missing_parts.len();
                if missing > 0 {
                    give_up(&format!("{missing} parts are not answered: nobody serves any more"));
                }
                return Ok((total, summary.asked));
            }
            Some(Event::Opened(_)) | None => {}
        }
    }
    Err(Status::unavailable("the stream has ended without a summary"))
}

fn give_up(why: &str) -> ! {
    eprintln!("{why}");
    process::exit(1);
}

#[tokio::main]
async fn main() {
    let Args { client, below, services, runs } = Args::parse();
    let mut calls = CallServiceClient::new(client.channel());
    let mut times = vec![Vec::new(); services.len()];
    let mut found = vec![(0, 0); services.len()];
    for _ in 0..runs.max(1) {
        for (at, service) in services.iter().enumerate() {
            let began = Instant::now();
            found[at] = count(&mut calls, service, below).await.unwrap_or_else(|status| fail(&status));
            times[at].push(began.elapsed());
        }
    }
    let medians: Vec<Duration> = times.iter_mut().map(|times| median(times)).collect();
    for ((service, (total, workers)), time) in services.iter().zip(&found).zip(&medians) {
        println!("{service}: {total} primes, {workers} at work, {:.3} s", time.as_secs_f64());
    }
    if let [first, .., last] = medians[..] {
        println!("{:.2} of the time (medians of {runs})", last.as_secs_f64() / first.as_secs_f64());
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
