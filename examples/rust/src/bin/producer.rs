//! Puts messages into a queue: cargo run --bin producer -- jobs one two three

use std::process::ExitCode;

use clap::Parser;
use stafett_examples::pb::enqueue_result::Outcome;
use stafett_examples::pb::{EnqueueBatchRequest, Message, queue_service_client::QueueServiceClient};
use stafett_examples::{Client, fail};

/// Puts messages into a queue
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    client: Client,
    queue: String,
    #[arg(required = true)]
    text: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { client, queue, text } = Args::parse();
    let message = |text: &String| Message { payload: text.clone().into(), ..Message::default() };
    let messages = text.iter().map(message).collect();
    let request = client.request(EnqueueBatchRequest { queue, messages, ..Default::default() });
    let answer = match QueueServiceClient::new(client.channel()).enqueue_batch(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => fail(&status),
    };
    // Each message has an outcome of its own: a full queue may take some of them.
    let (mut stored, mut code) = (0, ExitCode::SUCCESS);
    for (text, result) in text.iter().zip(answer.results) {
        if let Some(Outcome::Error(refused)) = result.outcome {
            eprintln!("{text} was refused: {}", refused.message);
            code = ExitCode::FAILURE;
        } else {
            stored += 1;
        }
    }
    println!("stored {stored} messages");
    code
}
