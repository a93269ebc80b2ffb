//! A whole connection, over a real socket, to a broker in this process.

#![no_main]

use std::net::SocketAddr;
use std::sync::{OnceLock, mpsc};

use stafett::{config, server};

/// Where the broker listens. It is started once, on a store that goes with the process.
fn broker() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let data = tempfile::tempdir().expect("a directory").keep();
        let environment = [
            ("STAFETT_DATA_DIR", data.to_str().expect("a name in UTF-8")),
            ("STAFETT_DURABILITY", "memory"),
            ("STAFETT_GRPC_LISTEN", "off"),
            ("STAFETT_MQTT_LISTEN", "127.0.0.1:0"),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = config::load(None, environment, []).expect("settings").settings;
        let (ready, is_ready) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let announce = |line: &server::Ready| ready.send(line.to_string()).map_err(std::io::Error::other);
            runtime.block_on(server::run(settings, announce)).expect("a broker");
            // A signal has ended it.
            std::process::exit(0);
        });
        let line = is_ready.recv().expect("a broker that is ready");
        let address = line.split(' ').find_map(|door| door.strip_prefix("mqtt=")).expect("an MQTT door");
        address.parse().expect("an address")
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| stafett::mqtt::fuzz_connection(broker(), data));
