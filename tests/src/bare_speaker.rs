//! One BGP session of ours without a speaker around it: `bgp::Session` on a socket in some
//! namespace. It says what the engine alone makes of many routes.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bgp::{Action, Changes, Event, Local, Session, SessionConfig};
use netlab::Namespace;

/// What may wait to be written before the session is asked for no more.
const ROOM: usize = 64 * 1024;
/// How long to rest when there is nothing to read, to write or to do.
const REST: Duration = Duration::from_micros(200);

/// A session and its connection.
#[derive(Debug)]
pub struct BareSpeaker {
    session: Session,
    host: Namespace,
    peer: SocketAddr,
    next_hop_v6: Option<Ipv6Addr>,
    stream: Option<TcpStream>,
    unsent: Vec<u8>,
}

impl BareSpeaker {
    /// A session that begins to connect when it [runs](Self::run_until). IPv6 routes have the next
    /// hop given.
    pub fn new(
        host: &Namespace,
        peer: SocketAddr,
        config: SessionConfig,
        next_hop_v6: Option<Ipv6Addr>,
    ) -> Self {
        let (host, session) = (host.clone(), Session::new(config, 0));
        Self { session, host, peer, next_hop_v6, stream: None, unsent: Vec::new() }
    }

    /// Its state and counters.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Tells the session something.
    ///
    /// # Errors
    /// When a connection that it wants cannot be made.
    pub fn tell(&mut self, event: Event<'_>) -> Result<()> {
        let actions = self.session.handle(event, Instant::now());
        self.perform(actions)
    }

    /// Lets the session announce and withdraw.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub fn change(&mut self, changes: Changes) -> Result<()> {
        self.tell(Event::Routes(changes))
    }

    /// Runs the session until it is `done`.
    ///
    /// # Errors
    /// When it is not in time, and as [`tell`](Self::tell).
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(self)? {
            ensure!(Instant::now() < deadline, "not within {limit:?}: {:?}", self.session.stats());
            if !self.turn()? {
                thread::sleep(REST);
            }
        }
        Ok(())
    }

    /// Whether all that is wanted is written.
    pub fn is_written(&self) -> bool {
        self.unsent.is_empty() && !self.session.has_updates()
    }

    /// Whether something happened.
    fn turn(&mut self) -> Result<bool> {
        let mut busy = false;
        let now = Instant::now();
        if self.session.poll_timeout().is_some_and(|due| due <= now) {
            let actions = self.session.handle_timeout(now);
            self.perform(actions)?;
            busy = true;
        }
        if self.unsent.len() < ROOM && self.stream.is_some() {
            let octets = self.session.transmit(Instant::now(), ROOM - self.unsent.len());
            busy |= !octets.is_empty();
            self.unsent.extend(octets);
        }
        let mut piece = vec![0; ROOM];
        let read = self.stream.as_mut().map(|stream| stream.read(&mut piece));
        match read {
            Some(Ok(0)) => self.closed()?,
            Some(Ok(length)) => {
                self.tell(Event::Received(&piece[..length]))?;
                busy = true;
            }
            Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
            Some(Err(_)) => self.closed()?,
            None => {}
        }
        if let Some(stream) = self.stream.as_mut().filter(|_| !self.unsent.is_empty()) {
            match stream.write(&self.unsent) {
                Ok(length) => {
                    self.unsent.drain(..length);
                    self.tell(Event::Written)?;
                    busy = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.closed()?,
            }
        }
        Ok(busy)
    }

    fn closed(&mut self) -> Result<()> {
        self.stream = None;
        self.unsent.clear();
        self.tell(Event::Closed)
    }

    fn perform(&mut self, actions: Vec<Action>) -> Result<()> {
        for action in actions {
            match action {
                Action::Connect => match self.connect() {
                    Ok(local) => self.tell(Event::Connected(local))?,
                    Err(_) => self.tell(Event::ConnectFailed)?,
                },
                Action::Send(octets) => self.unsent.extend(octets),
                Action::Close => {
                    if let Some(mut stream) = self.stream.take() {
                        stream.set_nonblocking(false)?;
                        // A peer that has gone hears nothing more.
                        let _ = stream.write_all(&std::mem::take(&mut self.unsent));
                    }
                }
                // Nobody connects to a session that dials.
                Action::Reject(_) | Action::StateChanged(_) => {}
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<Local> {
        let peer = self.peer;
        let stream = self.host.inside(|| Ok(TcpStream::connect(peer)?))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let v4: Option<Ipv4Addr> = match stream.local_addr()?.ip() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        self.stream = Some(stream);
        Ok(Local { v4, v6: self.next_hop_v6, link_local: None })
    }
}
