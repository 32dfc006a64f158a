use std::{net::SocketAddr, sync::Arc};

use axum::routing::get;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, advance},
};
use tokio_rustls::TlsConnector;

use super::*;

/// A certificate that vouches for itself, and its key.
struct Made {
    chain: String,
    key: String,
}

fn made(name: &str) -> Made {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Made { chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

fn replace(certificate: &Certificate, made: &Made) -> Result<()> {
    certificate.replace(made.chain.as_bytes(), made.key.as_bytes())
}

struct Server {
    address: SocketAddr,
    certificate: Certificate,
    stop: CancellationToken,
}

impl Server {
    async fn start(tls: &Tls) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (certificate, stop) = (Certificate::default(), CancellationToken::new());
        let router = Router::new().route("/", get(async || "hello"));
        serve(listener, tls, &certificate, router, stop.clone()).unwrap();
        Self { address, certificate, stop }
    }

    /// What a client that trusts `root` alone and speaks `versions` reads.
    async fn get(
        &self,
        root: &Made,
        versions: &[&'static SupportedProtocolVersion],
    ) -> io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(root.chain.as_bytes()).unwrap());
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("berth.test").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: berth.test\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

#[tokio::test]
async fn a_certificate_is_replaced_while_it_is_served() {
    let server = Server::start(&Tls::default()).await;
    let (old, new) = (made("berth.test"), made("berth.test"));
    assert!(server.get(&old, &[&TLS13]).await.is_err(), "there is none yet");
    for (shown, other) in [(&old, &new), (&new, &old)] {
        replace(&server.certificate, shown).unwrap();
        assert!(server.get(shown, &[&TLS13]).await.unwrap().ends_with("hello"));
        assert!(server.get(other, &[&TLS13]).await.is_err(), "it is not shown");
    }
    let mixed = Made { chain: old.chain, key: new.key.clone() };
    let none = Made { chain: String::new(), key: new.key.clone() };
    let garbage = Made { chain: "garbage".to_owned(), key: new.key.clone() };
    for unusable in [mixed, none, garbage] {
        replace(&server.certificate, &unusable).unwrap_err();
        assert!(server.get(&new, &[&TLS13]).await.is_ok(), "the one before stays");
    }
}

#[tokio::test]
async fn clients_that_cannot_be_served_or_say_nothing_hold_up_nobody() {
    let server = Server::start(&Tls::default()).await;
    let shown = made("berth.test");
    replace(&server.certificate, &shown).unwrap();
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let mut plain = TcpStream::connect(server.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(server.get(&shown, &[&TLS12]).await.is_err(), "too old a version");
    let begin = Instant::now();
    assert!(server.get(&shown, &[&TLS13]).await.unwrap().ends_with("hello"));
    assert!(begin.elapsed() < HANDSHAKE_TIMEOUT / 2, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_hung_up_on() {
    let server = Server::start(&Tls::default()).await;
    replace(&server.certificate, &made("berth.test")).unwrap();
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let begin = Instant::now();
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert!(begin.elapsed() >= HANDSHAKE_TIMEOUT, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn settings_reach_the_wire() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let suites = names(&["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]);
    let tls = Tls::new(MinVersion::Tls12, &suites, &names(&["23"])).unwrap();
    let server = Server::start(&tls).await;
    let shown = made("berth.test");
    replace(&server.certificate, &shown).unwrap();
    for version in [&TLS12, &TLS13] {
        assert!(server.get(&shown, &[version]).await.is_ok(), "{version:?}");
    }
    let offered: Vec<_> = tls.provider.cipher_suites.iter().map(|s| s.suite()).collect();
    assert!(!offered.contains(&rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384));
    assert_eq!(tls.provider.kx_groups.len(), 1);
}

#[tokio::test]
async fn nobody_is_served_after_the_end() {
    let server = Server::start(&Tls::default()).await;
    let shown = made("berth.test");
    replace(&server.certificate, &shown).unwrap();
    server.get(&shown, &[&TLS13]).await.unwrap();
    server.stop.cancel();
    while server.get(&shown, &[&TLS13]).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn files_are_read_again_when_they_change() {
    let directory = std::env::temp_dir().join(format!("berth-tls-{}", std::process::id()));
    let (certificate, stop) = (Certificate::default(), CancellationToken::new());
    follow_files(directory.clone(), certificate.clone(), stop.clone());
    let shown = || Some(certificate.0.borrow().as_ref()?.cert[0].clone());
    advance(FILE_INTERVAL * 2).await;
    assert_eq!(shown(), None, "there is no directory yet");
    std::fs::create_dir_all(&directory).unwrap();
    let write = |made: &Made| {
        std::fs::write(directory.join(CERTIFICATE_FILE), &made.chain).unwrap();
        std::fs::write(directory.join(KEY_FILE), &made.key).unwrap();
    };
    let (first, second) = (made("first"), made("second"));
    let der = |made: &Made| certificates(made.chain.as_bytes()).unwrap().pop();
    for (files, expected) in [
        (&first, der(&first)),
        (&Made { chain: first.chain.clone(), key: "garbage".to_owned() }, der(&first)),
        (&second, der(&second)),
    ] {
        write(files);
        sleep(FILE_INTERVAL * 2).await;
        assert_eq!(shown(), expected);
    }
    stop.cancel();
    std::fs::remove_dir_all(&directory).unwrap();
}
