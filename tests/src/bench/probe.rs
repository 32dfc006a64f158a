//! UDP through addresses, and what became of it: flows that send at a steady pace, and the stations
//! that answer them with their number. Not a load generator.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use netlab::{Namespace, wait_for};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Runtime;

use crate::lab::LIMIT;

/// Probes that came this late still count as answered.
const PATIENCE: Duration = Duration::from_millis(300);
/// The number of the flow and of the round, in network order.
const QUESTION: usize = 6;
/// So that flows that nobody ends end.
const LONGEST: Duration = Duration::from_secs(180);

/// Answers probes with a number; ends with the value.
#[derive(Debug)]
pub struct Echo {
    _runtime: Runtime,
}

impl Echo {
    /// Starts it in a namespace, on sockets bound to each of these addresses and ports. One that
    /// is named several times gets as many sockets, among which the kernel spreads the flows: the
    /// memory of one is not much more than 200 packets.
    ///
    /// # Errors
    /// When one is not the namespace's.
    pub fn start(
        host: &Namespace,
        number: u8,
        sockets: impl IntoIterator<Item = SocketAddrV4> + Send,
    ) -> Result<Self> {
        // A thread of its own, as the data path is not the business of anything else in here.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
        let bind = || sockets.into_iter().map(bound).collect::<Result<Vec<_>>>();
        for socket in host.inside(bind)? {
            let socket = registered(&runtime, socket)?;
            runtime.spawn(async move {
                let mut buffer = [0; QUESTION + 1];
                // An error is another's ICMP message.
                loop {
                    if let Ok((QUESTION, from)) = socket.recv_from(&mut buffer).await {
                        buffer[QUESTION] = number;
                        let _ = socket.send_to(&buffer, from).await;
                    }
                }
            });
        }
        Ok(Self { _runtime: runtime })
    }
}

/// Several may share one address.
fn bound(address: SocketAddrV4) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into()).with_context(|| format!("binding UDP {address}"))?;
    Ok(socket.into())
}

fn registered(runtime: &Runtime, socket: UdpSocket) -> Result<tokio::net::UdpSocket> {
    socket.set_nonblocking(true)?;
    let _inside = runtime.enter();
    Ok(tokio::net::UdpSocket::from_std(socket)?)
}

/// One answer.
#[derive(Debug, Clone, Copy)]
struct Answer {
    flow: usize,
    round: usize,
    node: u8,
    at: Instant,
}

#[derive(Debug, Default)]
struct Log {
    /// When each round was sent.
    rounds: Vec<Instant>,
    answers: Vec<Answer>,
    /// By flow; 0 before the first answer.
    latest: Vec<u8>,
}

/// Flows under way: each sends a probe a round.
#[derive(Debug)]
pub struct Probes {
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receivers: Runtime,
    /// Rounds before this one were for getting under way.
    first: usize,
}

impl Probes {
    /// Starts a flow to each of the targets (one may be named several times), from a port of its
    /// own, and waits until all are answered.
    ///
    /// # Errors
    /// When one is not.
    pub fn start(host: &Namespace, targets: &[SocketAddrV4], interval: Duration) -> Result<Self> {
        let any = || Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?);
        let sockets = host.inside(|| targets.iter().map(|_| any()).collect::<Result<Vec<_>>>());
        let log = Log { latest: vec![0; targets.len()], ..Log::default() };
        let (log, stop) = (Arc::new(Mutex::new(log)), Arc::new(AtomicBool::new(false)));
        let receivers =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build()?;
        let mut flows = Vec::new();
        for (flow, (socket, target)) in sockets?.into_iter().zip(targets).enumerate() {
            flows.push((socket.try_clone()?, *target));
            let (socket, log) = (registered(&receivers, socket)?, Arc::clone(&log));
            receivers.spawn(async move {
                let mut buffer = [0; QUESTION + 1];
                loop {
                    // An error is another's ICMP message.
                    let Ok((length, _)) = socket.recv_from(&mut buffer).await else { continue };
                    let at = Instant::now();
                    if length == buffer.len() {
                        let [_, _, a, b, c, d, node] = buffer;
                        let round = u32::from_be_bytes([a, b, c, d]);
                        if let Ok(round) = usize::try_from(round) {
                            lock(&log).answered(Answer { flow, round, node, at });
                        }
                    }
                }
            });
        }
        let (to_send, stopped) = (Arc::clone(&log), Arc::clone(&stop));
        let sender = std::thread::spawn(move || send(&flows, interval, &to_send, &stopped));
        let mut this = Self { log, stop, sender, receivers, first: 0 };
        wait_for("all flows are answered", LIMIT, || {
            let silent = lock(&this.log).latest.iter().filter(|node| **node == 0).count();
            ensure!(silent == 0, "{silent} are not");
            Ok(())
        })?;
        this.first = lock(&this.log).rounds.len();
        Ok(this)
    }

    /// The node that answered each flow last.
    pub fn latest(&self) -> Vec<u8> {
        lock(&self.log).latest.clone()
    }

    /// Stops sending, waits for the last answers.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that panicked has said so.
        let _ = self.sender.join();
        std::thread::sleep(PATIENCE);
        self.receivers.shutdown_background();
        let log = std::mem::take(&mut *lock(&self.log));
        Outcome::new(&log, self.first)
    }
}

impl Log {
    fn answered(&mut self, answer: Answer) {
        self.latest[answer.flow] = answer.node;
        self.answers.push(answer);
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(
    flows: &[(UdpSocket, SocketAddrV4)],
    interval: Duration,
    log: &Mutex<Log>,
    stop: &AtomicBool,
) {
    let start = Instant::now();
    let mut due = start;
    for round in 0_u32.. {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += interval;
        let now = Instant::now();
        if stop.load(Ordering::Relaxed) || now > start + LONGEST {
            return;
        }
        lock(log).rounds.push(now);
        for (flow, (socket, target)) in (0_u16..).zip(flows) {
            let mut question = [0; QUESTION];
            question[..2].copy_from_slice(&flow.to_be_bytes());
            question[2..].copy_from_slice(&round.to_be_bytes());
            // What cannot be sent is lost, and counted as that.
            let _ = socket.send_to(&question, target);
        }
    }
}

/// What became of the probes of some flows.
#[derive(Debug)]
pub struct Outcome {
    /// All of them.
    pub sent: usize,
    /// Those not answered.
    pub lost: usize,
    /// Of all flows: the longest time from one answered probe to the next answered one, or to the
    /// last that was sent; as they were sent.
    pub longest_gap: Duration,
    /// By flow: who answered from when on.
    pub turns: Vec<Vec<(Instant, u8)>>,
}

impl Outcome {
    fn new(log: &Log, first: usize) -> Self {
        let flows = log.latest.len();
        let rounds = &log.rounds[first..];
        let mut answered = vec![vec![false; rounds.len()]; flows];
        let mut turns = vec![Vec::<(Instant, u8)>::new(); flows];
        for answer in &log.answers {
            let Some(round) = answer.round.checked_sub(first) else { continue };
            answered[answer.flow][round] = true;
            let turns = &mut turns[answer.flow];
            if turns.last().is_none_or(|(_, node)| *node != answer.node) {
                turns.push((answer.at, answer.node));
            }
        }
        let answers = answered.iter().flatten().filter(|answered| **answered).count();
        let gaps = answered.iter().map(|answered| longest_gap(rounds, answered));
        Self {
            sent: flows * rounds.len(),
            lost: flows * rounds.len() - answers,
            longest_gap: gaps.max().unwrap_or_default(),
            turns,
        }
    }

    /// How often a flow was answered by another node than before.
    pub fn moves(&self) -> usize {
        self.turns.iter().map(|turns| turns.len().saturating_sub(1)).sum()
    }
}

fn longest_gap(rounds: &[Instant], answered: &[bool]) -> Duration {
    let (Some(first), Some(last)) = (rounds.first(), rounds.last()) else { return Duration::ZERO };
    let answered = rounds.iter().zip(answered).filter(|(_, answered)| **answered);
    let (mut longest, mut previous) = (Duration::ZERO, first);
    for round in answered.map(|(round, _)| round).chain([last]) {
        longest = longest.max(*round - *previous);
        previous = round;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_between_answered_probes_and_end_with_the_last_that_was_sent() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let rounds: Vec<_> = (0..10).map(|round| at(round * 5)).collect();
        let answers = [(0, 0, 1), (0, 1, 1), (0, 4, 2), (0, 9, 2), (1, 2, 3), (1, 2, 3)];
        let answer = |&(flow, round, node): &(usize, usize, u8)| Answer {
            flow,
            round,
            node,
            at: rounds[round] + Duration::from_millis(1),
        };
        let log = Log {
            answers: answers.iter().map(answer).collect(),
            rounds: rounds.clone(),
            latest: vec![2, 3],
        };
        let outcome = Outcome::new(&log, 0);
        assert_eq!((outcome.sent, outcome.lost, outcome.moves()), (20, 15, 1));
        // The second flow: answered at 10 ms, sent until 45 ms.
        assert_eq!(outcome.longest_gap, Duration::from_millis(35));
        assert_eq!(outcome.turns[0], [(at(1), 1), (at(21), 2)]);
        // What was sent before all were under way does not count.
        let later = Outcome::new(&log, 1);
        assert_eq!((later.sent, later.lost), (18, 14));
    }
}
