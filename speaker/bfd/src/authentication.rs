//! Keyed MD5 and SHA1, each plain and meticulous. Read RFC 5880 sections 4.3, 4.4, 6.7.3 and 6.7.4.
//!
//! Neither is an HMAC, and both hashes are broken where collisions matter; it is what routers have.
//! The simple password of section 6.7.2 is not here: who can forge a packet can read it.

use std::fmt;

use md5::{Digest as _, Md5};
use sha1::Sha1;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    Discard, Packet, Received,
    packet::{AUTHENTICATION_PRESENT, LENGTH},
};

/// How packets of a session are authenticated, in both directions.
#[derive(Clone, PartialEq, Eq)]
pub struct Authentication {
    kind: AuthenticationKind,
    key_id: u8,
    /// As long as the digest, zeroes behind the secret; wiped when dropped.
    key: Zeroizing<Vec<u8>>,
}

/// The types of RFC 5880 section 4.1 that have a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthenticationKind {
    /// 2.
    KeyedMd5,
    /// 3.
    MeticulousKeyedMd5,
    /// 4.
    KeyedSha1,
    /// 5.
    MeticulousKeyedSha1,
}

/// A secret that the section has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the key has {octets} bytes; {kind} takes 1 to {most}")]
pub struct BadKey {
    octets: usize,
    kind: AuthenticationKind,
    most: usize,
}

impl fmt::Display for AuthenticationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeyedMd5 => "keyed MD5",
            Self::MeticulousKeyedMd5 => "meticulous keyed MD5",
            Self::KeyedSha1 => "keyed SHA1",
            Self::MeticulousKeyedSha1 => "meticulous keyed SHA1",
        })
    }
}

impl AuthenticationKind {
    fn code(self) -> u8 {
        match self {
            Self::KeyedMd5 => 2,
            Self::MeticulousKeyedMd5 => 3,
            Self::KeyedSha1 => 4,
            Self::MeticulousKeyedSha1 => 5,
        }
    }

    /// Octets of the digest and, at most, of the secret.
    fn digest_length(self) -> usize {
        match self {
            Self::KeyedMd5 | Self::MeticulousKeyedMd5 => 16,
            Self::KeyedSha1 | Self::MeticulousKeyedSha1 => 20,
        }
    }

    /// The least that a sequence number has to be ahead of the one before.
    fn least_step(self) -> u32 {
        match self {
            Self::KeyedMd5 | Self::KeyedSha1 => 0,
            Self::MeticulousKeyedMd5 | Self::MeticulousKeyedSha1 => 1,
        }
    }

    fn digest(self, octets: &[u8]) -> Vec<u8> {
        match self {
            Self::KeyedMd5 | Self::MeticulousKeyedMd5 => Md5::digest(octets).to_vec(),
            Self::KeyedSha1 | Self::MeticulousKeyedSha1 => Sha1::digest(octets).to_vec(),
        }
    }
}

impl Authentication {
    /// With a secret of 1 to 16 octets for MD5, 1 to 20 for SHA1.
    ///
    /// # Errors
    /// When it is longer, or empty.
    pub fn new(kind: AuthenticationKind, key_id: u8, secret: &[u8]) -> Result<Self, BadKey> {
        let most = kind.digest_length();
        if secret.is_empty() || secret.len() > most {
            return Err(BadKey { octets: secret.len(), kind, most });
        }
        // Of its whole length at once: a vector that grows leaves what it had behind.
        let mut key = Zeroizing::new(vec![0; most]);
        key[..secret.len()].copy_from_slice(secret);
        Ok(Self { kind, key_id, key })
    }
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key_id, key: _ } = self;
        f.debug_struct("Authentication").field("kind", kind).field("key_id", key_id).finish()
    }
}

/// Type, length, key ID, reserved, sequence number.
const HEADER: usize = 8;
const DIGEST: usize = LENGTH + HEADER;

/// The authentication of one session, with the sequence numbers of both directions.
#[derive(Debug)]
pub(crate) struct Authenticator {
    authentication: Authentication,
    /// bfd.XmitAuthSeq.
    next: u32,
    /// bfd.RcvAuthSeq, if bfd.AuthSeqKnown.
    last: Option<u32>,
}

impl Authenticator {
    /// The first packet has this sequence number.
    pub(crate) fn new(authentication: Authentication, first: u32) -> Self {
        Self { authentication, next: first, last: None }
    }

    pub(crate) fn authentication(&self) -> &Authentication {
        &self.authentication
    }

    /// Takes any sequence number the next time.
    pub(crate) fn forget_sequence(&mut self) {
        self.last = None;
    }

    /// The payload of a datagram. Each has a number of its own, which only the meticulous kinds
    /// have to have: so the others too accept each at most once from us.
    pub(crate) fn sign(&mut self, packet: &Packet) -> Vec<u8> {
        let Authentication { kind, key_id, key } = &self.authentication;
        let mut octets = packet.encode().to_vec();
        let length = HEADER + key.len();
        octets.resize(LENGTH + length, 0);
        octets[1] |= AUTHENTICATION_PRESENT;
        octets[3] = octet(LENGTH + length);
        octets[LENGTH] = kind.code();
        octets[LENGTH + 1] = octet(length);
        octets[LENGTH + 2] = *key_id;
        octets[LENGTH + 4..DIGEST].copy_from_slice(&self.next.to_be_bytes());
        let digest = digest(*kind, key, &octets);
        octets[DIGEST..].copy_from_slice(&digest);
        self.next = self.next.wrapping_add(1);
        octets
    }

    /// Whether a packet that says that it is authenticated is, and new.
    pub(crate) fn verify(&mut self, received: &Received<'_>) -> Result<(), Discard> {
        let Authentication { kind, key_id, key } = &self.authentication;
        let octets = received.signed().ok_or(Discard::NotAuthenticated)?;
        // There are two octets at least.
        let [code, length, rest @ ..] = &octets[LENGTH..] else {
            return Err(Discard::AuthenticationLength);
        };
        if *code != kind.code() {
            return Err(Discard::AuthenticationType);
        }
        if rest.first() != Some(key_id) {
            return Err(Discard::KeyId);
        }
        let right = HEADER + key.len();
        let (Some(sequence), true) = (
            octets[LENGTH..].get(4..HEADER).and_then(<[u8]>::first_chunk),
            usize::from(*length) == right && octets.len() == LENGTH + right,
        ) else {
            return Err(Discard::AuthenticationLength);
        };
        let sequence = u32::from_be_bytes(*sequence);
        if let Some(last) = self.last {
            let most = 3 * u32::from(received.packet().detect_multiplier.get());
            let ahead = sequence.wrapping_sub(last);
            if !(kind.least_step()..=most).contains(&ahead) {
                return Err(Discard::Sequence);
            }
        }
        if !same(&octets[DIGEST..], &digest(*kind, key, octets)) {
            return Err(Discard::Digest);
        }
        // The RFC notes the number before it looks at the digest: then one forged packet would keep
        // all true ones out of the window.
        self.last = Some(sequence);
        Ok(())
    }
}

/// The digest of a packet: that of the packet with the key in its place.
fn digest(kind: AuthenticationKind, key: &[u8], octets: &[u8]) -> Vec<u8> {
    let mut keyed = Zeroizing::new(octets.to_vec());
    keyed[DIGEST..].copy_from_slice(key);
    kind.digest(&keyed)
}

/// Without telling by the time it takes how far they are the same.
fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    a.len() == b.len() && difference == 0
}

fn octet(length: usize) -> u8 {
    u8::try_from(length).expect("a packet has 52 octets at most")
}

#[cfg(test)]
mod tests {
    use std::{
        num::{NonZeroU8, NonZeroU32},
        time::Duration,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{Diagnostic, State};

    const KINDS: [AuthenticationKind; 4] = [
        AuthenticationKind::KeyedMd5,
        AuthenticationKind::MeticulousKeyedMd5,
        AuthenticationKind::KeyedSha1,
        AuthenticationKind::MeticulousKeyedSha1,
    ];

    fn packet() -> Packet {
        Packet {
            diagnostic: Diagnostic::None,
            state: State::Up,
            poll: false,
            is_final: false,
            control_plane_independent: false,
            demand: false,
            detect_multiplier: NonZeroU8::new(3).unwrap(),
            my_discriminator: NonZeroU32::new(7).unwrap(),
            your_discriminator: NonZeroU32::new(9),
            desired_min_tx: Duration::from_millis(300),
            required_min_rx: Duration::from_millis(300),
            required_min_echo_rx: Duration::ZERO,
        }
    }

    fn authenticator(kind: AuthenticationKind, secret: &[u8], first: u32) -> Authenticator {
        Authenticator::new(Authentication::new(kind, 5, secret).unwrap(), first)
    }

    fn verify(verifier: &mut Authenticator, octets: &[u8]) -> Result<(), Discard> {
        verifier.verify(&Received::read(octets).unwrap())
    }

    #[test]
    fn a_key_has_1_to_16_or_20_octets() {
        for (kind, length, good) in [
            (AuthenticationKind::KeyedMd5, 0, false),
            (AuthenticationKind::KeyedMd5, 1, true),
            (AuthenticationKind::KeyedMd5, 16, true),
            (AuthenticationKind::MeticulousKeyedMd5, 17, false),
            (AuthenticationKind::KeyedSha1, 0, false),
            (AuthenticationKind::MeticulousKeyedSha1, 20, true),
            (AuthenticationKind::MeticulousKeyedSha1, 21, false),
        ] {
            let made = Authentication::new(kind, 1, &vec![b'x'; length]);
            assert_eq!(made.is_ok(), good, "{kind}, {length}");
        }
        let error = Authentication::new(AuthenticationKind::KeyedMd5, 1, &[b'x'; 17]).unwrap_err();
        assert_eq!(error.to_string(), "the key has 17 bytes; keyed MD5 takes 1 to 16");
    }

    #[test]
    fn a_key_is_not_shown() {
        let shown = format!("{:?}", authenticator(AuthenticationKind::KeyedSha1, b"hush", 0));
        assert!(!shown.contains("hush") && !shown.contains("104"), "{shown}");
    }

    /// Computed by hand with md5sum and sha1sum over the packet with the key in the digest's place.
    #[test]
    fn the_octets_are_those_of_the_rfc() {
        let head = [
            0x20, 0xc4, 3, 48, 0, 0, 0, 7, 0, 0, 0, 9, 0, 4, 0x93, 0xe0, 0, 4, 0x93, 0xe0, 0, 0, 0,
            0, 3, 24, 5, 0, 1, 2, 3, 4,
        ];
        let md5 = authenticator(AuthenticationKind::MeticulousKeyedMd5, b"secret", 0x0102_0304)
            .sign(&packet());
        assert_eq!(md5[..32], head);
        assert_eq!(hex(&md5[32..]), MD5);
        let sha1 = authenticator(AuthenticationKind::MeticulousKeyedSha1, b"secret", 0x0102_0304)
            .sign(&packet());
        let mut longer = head;
        (longer[3], longer[24], longer[25]) = (52, 5, 28);
        assert_eq!(sha1[..32], longer);
        assert_eq!(hex(&sha1[32..]), SHA1);
    }

    const MD5: &str = "ac4dcc6e68cdcf23be779c8dec064d4b";
    const SHA1: &str = "26e565a34ee876664570fc194e51e933fcea3a3e";

    fn hex(octets: &[u8]) -> String {
        octets.iter().map(|octet| format!("{octet:02x}")).collect()
    }

    #[test]
    fn what_one_signs_the_other_believes_once_if_meticulous() {
        for kind in KINDS {
            let mut ours = authenticator(kind, b"secret", u32::MAX - 2);
            let mut theirs = authenticator(kind, b"secret", 0);
            let signed: Vec<_> = (0..6).map(|_| ours.sign(&packet())).collect();
            for octets in &signed {
                assert_eq!(verify(&mut theirs, octets), Ok(()), "{kind}");
            }
            let again = verify(&mut theirs, &signed[5]);
            let meticulous = kind.least_step() == 1;
            assert_eq!(again, if meticulous { Err(Discard::Sequence) } else { Ok(()) }, "{kind}");
            assert_eq!(verify(&mut theirs, &signed[4]), Err(Discard::Sequence), "{kind}");
            theirs.forget_sequence();
            assert_eq!(verify(&mut theirs, &signed[4]), Ok(()), "{kind}");
        }
    }

    #[test]
    fn the_window_is_three_multipliers_wide() {
        for kind in KINDS {
            for (ahead, good) in [(9, true), (10, false), (u32::MAX, false), (1 << 31, false)] {
                let mut theirs = authenticator(kind, b"secret", 0);
                let first = u32::MAX - 3;
                let octets = authenticator(kind, b"secret", first).sign(&packet());
                assert_eq!(verify(&mut theirs, &octets), Ok(()));
                let next = authenticator(kind, b"secret", first.wrapping_add(ahead));
                let octets = { next }.sign(&packet());
                assert_eq!(verify(&mut theirs, &octets).is_ok(), good, "{kind}, {ahead} ahead");
            }
        }
    }

    #[test]
    fn each_flaw_has_its_word_and_leaves_no_trace() {
        let kind = AuthenticationKind::MeticulousKeyedSha1;
        let good = authenticator(kind, b"secret", 1).sign(&packet());
        let changed = |at: usize, octet: u8| {
            let mut octets = good.clone();
            octets[at] = octet;
            octets
        };
        let longer = {
            let mut octets = [&good[..], &[0]].concat();
            octets[3] += 1;
            octets
        };
        let cases = [
            ("none", packet().encode().to_vec(), Discard::NotAuthenticated),
            ("plain SHA1", changed(24, 4), Discard::AuthenticationType),
            ("another ID", changed(26, 6), Discard::KeyId),
            ("says 27", changed(25, 27), Discard::AuthenticationLength),
            (
                "two octets",
                {
                    let mut o = good[..26].to_vec();
                    o[3] = 26;
                    o
                },
                Discard::KeyId,
            ),
            (
                "three octets",
                {
                    let mut o = good[..27].to_vec();
                    o[3] = 27;
                    o
                },
                Discard::AuthenticationLength,
            ),
            (
                "cut",
                {
                    let mut o = good[..51].to_vec();
                    o[3] = 51;
                    o
                },
                Discard::AuthenticationLength,
            ),
            ("padded inside", longer, Discard::AuthenticationLength),
            ("another multiplier", changed(2, 9), Discard::Digest),
            ("another sequence", changed(31, 9), Discard::Digest),
            ("another digest", changed(51, !good[51]), Discard::Digest),
            ("another key", authenticator(kind, b"Secret", 1).sign(&packet()), Discard::Digest),
        ];
        for (name, octets, discard) in cases {
            let mut theirs = authenticator(kind, b"secret", 0);
            assert_eq!(verify(&mut theirs, &octets), Err(discard), "{name}");
            assert_eq!(theirs.last, None, "{name}");
            assert_eq!(verify(&mut theirs, &good), Ok(()), "{name}");
        }
    }

    proptest! {
        /// Also in octets that nobody looks at: the digest covers all of them.
        #[test]
        fn no_octet_can_be_changed(
            kind in prop::sample::select(KINDS.to_vec()), at in 0..48usize, flip in 1..=255u8,
        ) {
            let mut octets = authenticator(kind, b"secret", 77).sign(&packet());
            octets[at] ^= flip;
            let mut theirs = authenticator(kind, b"secret", 0);
            let verdict = Received::read(&octets).and_then(|received| theirs.verify(&received));
            prop_assert!(verdict.is_err());
            prop_assert_eq!(theirs.last, None);
        }
    }
}
