//! What is not believed, and why: one word for each rule.

use thiserror::Error;

/// Why a datagram is discarded. Nothing but a count remains of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum Discard {
    // RFC 5880 section 6.8.6, in its order, without looking at any session.
    /// Fewer than 24 octets (26 with authentication), or fewer than it says.
    #[error("it is shorter than it has to be or says that it is")]
    Length,
    /// Not version 1.
    #[error("its version is not 1")]
    Version,
    /// Detect Mult is 0.
    #[error("its detect multiplier is 0")]
    ZeroDetectMultiplier,
    /// The Multipoint bit is set.
    #[error("its multipoint bit is set")]
    Multipoint,
    /// My Discriminator is 0.
    #[error("it does not name the sender's session")]
    ZeroMyDiscriminator,
    /// Your Discriminator is 0, and the state is neither Down nor AdminDown.
    #[error("it names no session of ours, in a state in which the sender knows one")]
    ZeroYourDiscriminator,

    // The shell's: RFC 5880 section 6.3, RFC 5881 section 5, RFC 5883 section 5.
    /// It is for no session, by discriminator or by address and interface.
    #[error("it is for none of our sessions")]
    NoSession,
    /// It came over more hops than are allowed.
    #[error("it has passed more routers than it may")]
    Hops,

    // The session's.
    /// The session is held down on purpose.
    #[error("the session is administratively down")]
    AdminDown,
    /// The session is authenticated and the packet is not.
    #[error("it is not authenticated and the session is")]
    NotAuthenticated,
    /// The packet is authenticated and the session is not.
    #[error("it is authenticated and the session is not")]
    Authenticated,
    /// RFC 5880 section 6.7.3 and 6.7.4, in their order: another type of authentication.
    #[error("it is authenticated in another way than the session")]
    AuthenticationType,
    /// Another key ID.
    #[error("it is authenticated with a key of another ID")]
    KeyId,
    /// A section longer or shorter than one of its type is.
    #[error("its authentication section has a wrong length")]
    AuthenticationLength,
    /// Outside of the window: received before, or too far ahead.
    #[error("its sequence number was there before or is too far ahead")]
    Sequence,
    /// Another key, or changed on the way.
    #[error("its digest is wrong")]
    Digest,
}
