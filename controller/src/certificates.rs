//! When the certificates of the webhook are made, renewed and made known: [`due`], from what the
//! Secret and the objects that name its authority show. Reads no clock and makes nothing.
//!
//! The Secret holds authorities, the newest first, and a leaf, which is what is served. A new
//! authority joins the older one and signs the next leaf only when every object that API servers
//! check us by (`caBundle`) names it: at no moment is a leaf served that they do not trust.

use std::time::{Duration, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority is good for.
pub const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
/// How long a leaf is good for.
pub const LEAF_LIFETIME: Duration = DAY.saturating_mul(365);

/// What the Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    Absent,
    /// Nothing that could be served now.
    Unusable,
    /// Somebody else's: of another type than those that are made here.
    Foreign,
    Usable(Validity),
}

/// Certificates that can be served now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validity {
    /// `notAfter` of the newest authority.
    pub authority: SystemTime,
    /// `notAfter` of the leaf.
    pub leaf: SystemTime,
    pub signer: Signer,
}

/// Who signed the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    Newest,
    /// An authority that has a successor already.
    Older,
}

/// Whether API servers trust what the Secret holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Not every object that names authorities has been read.
    Unknown,
    /// One names others.
    Incomplete,
    /// All that exist name those of the Secret.
    Complete,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A new authority and a leaf of it, in the place of everything.
    Make,
    /// A new authority before the older one; the leaf stays.
    AddAuthority,
    /// A new leaf of the newest authority.
    RenewLeaf,
    /// The authorities into the objects that name others.
    Inject,
    /// Nothing, before something changes or the time has come.
    Wait { until: Option<SystemTime> },
}

/// What is due at `now`. Everything is renewed when a third of its life is left.
pub fn due(now: SystemTime, stored: &Stored, trust: Trust) -> Action {
    let validity = match stored {
        Stored::Absent | Stored::Unusable => return Action::Make,
        Stored::Foreign => return Action::Wait { until: None },
        Stored::Usable(validity) => validity,
    };
    let leaf_due = validity.leaf - LEAF_LIFETIME / 3;
    let authority_due = validity.authority - AUTHORITY_LIFETIME / 3;
    match (validity.signer, trust) {
        // Trusted as the one before, whoever could not be told so far.
        (Signer::Newest, _) if leaf_due <= now => Action::RenewLeaf,
        (_, Trust::Incomplete) => Action::Inject,
        (Signer::Older, Trust::Complete) => Action::RenewLeaf,
        (Signer::Older, Trust::Unknown) => Action::Wait { until: None },
        (Signer::Newest, Trust::Complete | Trust::Unknown) if authority_due <= now => {
            Action::AddAuthority
        }
        (Signer::Newest, Trust::Complete | Trust::Unknown) => {
            Action::Wait { until: Some(leaf_due.min(authority_due)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time in days after some midnight.
    fn day(number: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * 10_000 + Duration::from_secs(86_400 * number)
    }

    fn usable(authority: u64, leaf: u64, signer: Signer) -> Stored {
        Stored::Usable(Validity { authority: day(authority), leaf: day(leaf), signer })
    }

    #[test]
    fn what_is_due_follows_from_what_is_there() {
        use Action::*;
        use Signer::*;
        use Trust::*;
        let wait = |at| Wait { until: Some(day(at) + LEAF_LIFETIME * 2 / 3 - DAY * 365) };
        let never = Wait { until: None };
        for (today, stored, trust, action) in [
            (0, Stored::Absent, Unknown, Make),
            (0, Stored::Absent, Complete, Make),
            (0, Stored::Unusable, Incomplete, Make),
            (0, Stored::Foreign, Incomplete, never),
            // Fresh.
            (0, usable(3650, 365, Newest), Incomplete, Inject),
            (0, usable(3650, 365, Newest), Complete, wait(365)),
            (0, usable(3650, 365, Newest), Unknown, wait(365)),
            // The leaf has 122 days left, then 121: a third of 365 is in between.
            (243, usable(3650, 365, Newest), Complete, wait(365)),
            (244, usable(3650, 365, Newest), Complete, RenewLeaf),
            (244, usable(3650, 365, Newest), Unknown, RenewLeaf),
            (244, usable(3650, 365, Newest), Incomplete, RenewLeaf),
            // The authority has 1,217 days left, then 1,216; the leaf is fresh.
            (
                2433,
                usable(3650, 2798, Newest),
                Complete,
                Wait { until: Some(day(3650) - AUTHORITY_LIFETIME / 3) },
            ),
            (2434, usable(3650, 2799, Newest), Incomplete, Inject),
            (2434, usable(3650, 2799, Newest), Complete, AddAuthority),
            // A new authority has joined: first it is made known, then it signs.
            (2434, usable(6084, 2799, Older), Unknown, never),
            (2434, usable(6084, 2799, Older), Incomplete, Inject),
            (2434, usable(6084, 2799, Older), Complete, RenewLeaf),
            (2434, usable(6084, 2799, Newest), Complete, wait(2799)),
            // Both are due: a leaf at once, since another one follows anyway.
            (2434, usable(3650, 2500, Newest), Complete, RenewLeaf),
            // The clock was set back.
            (
                0,
                usable(36_500, 36_500, Newest),
                Complete,
                Wait {
                    until: Some(
                        (day(36_500) - LEAF_LIFETIME / 3).min(day(36_500) - AUTHORITY_LIFETIME / 3),
                    ),
                },
            ),
        ] {
            assert_eq!(due(day(today), &stored, trust), action, "{today} {stored:?} {trust:?}");
        }
    }
}
