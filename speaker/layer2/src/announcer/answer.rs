//! What is done about a frame: answer it, report it, or leave it alone and say why.

use std::net::IpAddr;
use std::time::Instant;

use ownership::Heard;
use pnet::packet::ethernet::EtherTypes;
use pnet::util::MacAddr;

use super::{Action, Announcer, Ignored, advertisement};
use crate::interface::InterfaceIndex;
use crate::ndp::Purpose;
use crate::{arp, ethernet, ndp};

impl Announcer {
    pub(super) fn receive(
        &mut self,
        index: InterfaceIndex,
        frame: &[u8],
        now: Instant,
    ) -> Vec<Action> {
        let said = match self.decode(index, frame) {
            Ok(said) => said,
            Err(reason) => return self.ignore(reason),
        };
        let heard = said.word.map(|word| self.hear(index, said.station, word, now));
        let answer = said.question.map(|question| self.answer(index, said.station, question, now));
        match (answer, heard) {
            (Some(Ok(answer)), Some(Ok(heard))) => vec![answer, heard],
            (Some(Ok(action)), _) | (_, Some(Ok(action))) => vec![action],
            (Some(Err(reason)), _) | (None, Some(Err(reason))) => self.ignore(reason),
            (None, None) => self.ignore(Ignored::Unheeded),
        }
    }

    fn ignore(&mut self, reason: Ignored) -> Vec<Action> {
        *self.counters.ignored.entry(reason).or_default() += 1;
        Vec::new()
    }

    fn decode(&self, index: InterfaceIndex, frame: &[u8]) -> Result<Said, Ignored> {
        let interface = self
            .interfaces
            .get(&index)
            .filter(|interface| interface.speaks())
            .ok_or(Ignored::UnknownInterface)?;
        let frame = ethernet::decode(frame)?;
        let said = match frame.ethertype {
            EtherTypes::Arp => Said::from(arp::decode(frame.payload)?),
            EtherTypes::Ipv6 => Said::new(ndp::decode(frame.payload)?, frame.source),
            _ => return Err(Ignored::OtherProtocol),
        };
        if frame.destination != MacAddr::from(interface.mac) && !frame.destination.is_multicast() {
            return Err(Ignored::OtherDestination);
        }
        if self.macs.contains(&frame.source) || self.macs.contains(&said.station) {
            return Err(Ignored::OwnFrame);
        }
        Ok(said)
    }

    fn hear(
        &mut self,
        index: InterfaceIndex,
        station: MacAddr,
        (address, form): (IpAddr, Heard),
        now: Instant,
    ) -> Result<Action, Ignored> {
        let answer = self.hear_answer(address, index, station, form, now);
        let owned = self.owned.contains(&address);
        let known = self.addresses.get_mut(&address).filter(|_| owned);
        let here = known.as_ref().is_some_and(|known| known.stations.contains_key(&index));
        if here && form == Heard::Has {
            self.counters.addresses.entry(address).or_default().conflicts_heard += 1;
        }
        match (answer, known) {
            (Some(answer), _) => answer?,
            (None, None) => return Err(Ignored::Unheeded),
            (None, Some(_)) if !here => return Err(Ignored::NotHere),
            (None, Some(known)) => {
                if !self.limits.report(&mut known.watch, now) {
                    return Err(Ignored::HeardTooOften);
                }
            }
        }
        Ok(Action::Heard { address, interface: index, mac: station.octets(), form })
    }

    fn answer(
        &mut self,
        index: InterfaceIndex,
        asker: MacAddr,
        question: Question,
        now: Instant,
    ) -> Result<Action, Ignored> {
        let address = question.target();
        let owned = self.owned.contains(&address);
        let known = self.addresses.get_mut(&address).ok_or(Ignored::NotOwned)?;
        known.requests += 1;
        if !owned {
            return Err(Ignored::NotOwned);
        }
        let interface = self.interfaces.get(&index).ok_or(Ignored::UnknownInterface)?;
        let station = *known.stations.get(&index).ok_or(Ignored::NotHere)?;
        let counters = self.counters.addresses.entry(address).or_default();
        counters.requests_received += 1;
        let admitted = match question.purpose() {
            Purpose::Probe => self.limits.admit_probe(&mut known.watch, now),
            Purpose::Resolution => self.limits.admit(asker, self.owned.len(), now),
        };
        if !admitted {
            return Err(Ignored::RateLimited);
        }
        counters.responses_sent += 1;
        let frame = match question {
            Question::Arp(request) => arp::reply(station, request),
            Question::Ndp(solicitation) => {
                let advertisement = advertisement(interface, solicitation.target);
                if solicitation.source.is_unspecified() {
                    advertisement.to_all()
                } else {
                    advertisement.to_one(asker, solicitation.source)
                }
            }
        };
        Ok(Action::SendFrame { interface: index, frame })
    }
}

/// What a frame says.
struct Said {
    /// Who says it, and is to be answered.
    station: MacAddr,
    /// Of which address it says that it has it, or would like to.
    word: Option<(IpAddr, Heard)>,
    question: Option<Question>,
}

impl From<arp::Packet> for Said {
    fn from(packet: arp::Packet) -> Self {
        let word = match (packet.claims(), packet.asks_for()) {
            (Some(address), _) => Some((address.into(), Heard::Has)),
            (None, Some(address)) => Some((address.into(), Heard::Probes)),
            (None, None) => None,
        };
        let question = packet.asks_for().map(|_| Question::Arp(packet));
        Self { station: packet.sender_mac, word, question }
    }
}

impl Said {
    fn new(message: ndp::Message, source: MacAddr) -> Self {
        match message {
            ndp::Message::Solicitation(solicitation) => {
                let word = match solicitation.purpose {
                    Purpose::Probe => Some((solicitation.target.into(), Heard::Probes)),
                    // Whoever reads the option learns the station of the source from it.
                    Purpose::Resolution => {
                        solicitation.source_mac.map(|_| (solicitation.source.into(), Heard::Has))
                    }
                };
                let station = solicitation.source_mac.unwrap_or(source);
                Self { station, word, question: Some(Question::Ndp(solicitation)) }
            }
            ndp::Message::Advertisement(advertisement) => Self {
                station: advertisement.target_mac.unwrap_or(source),
                word: Some((advertisement.target.into(), Heard::Has)),
                question: None,
            },
        }
    }
}

enum Question {
    Arp(arp::Packet),
    Ndp(ndp::Solicitation),
}

impl Question {
    fn target(&self) -> IpAddr {
        match self {
            Self::Arp(request) => request.target.into(),
            Self::Ndp(solicitation) => solicitation.target.into(),
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Self::Arp(request) if request.sender.is_unspecified() => Purpose::Probe,
            Self::Arp(_) => Purpose::Resolution,
            Self::Ndp(solicitation) => solicitation.purpose,
        }
    }
}
