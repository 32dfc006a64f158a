//! The embedded API server by hand: `cargo run -p apiserver --example serve -- 127.0.0.1:8001`,
//! then `kubectl --server=http://127.0.0.1:8001 get svc,ipaddresspools -A`.

use std::{env, io};

use apiserver::{ApiServer, Options};
use tokio::{net::TcpListener, runtime::Runtime, signal};

fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8001".to_owned());
    Runtime::new()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("http://{}", listener.local_addr()?);
        let interrupted = async {
            // Without a handler for the signal, it ends the process by itself.
            if signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        ApiServer::new(Options::default()).serve(listener, interrupted).await
    })
}
