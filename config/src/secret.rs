//! Secrets that BGPPeers and BFDProfiles name, and what is read of them.

use std::{collections::BTreeMap, fmt};

use zeroize::Zeroize as _;

use crate::{Config, error::Rule, peer::Missing};

const SECRET_TYPE: &str = "kubernetes.io/basic-auth";

/// A key; never printed, and overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

/// What is read of a Secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    pub kind: String,
    /// What stands under the key `password`.
    pub password: Option<Password>,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl Drop for Password {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The Secrets that an object may name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secrets<'a> {
    pub now: &'a BTreeMap<String, Secret>,
    /// What they held, to go on with when they are gone.
    pub last: Option<&'a Config>,
    pub missing: Missing,
}

impl Secrets<'_> {
    /// The password of a Secret; `None` where that is not asked for yet.
    pub fn password(&self, name: &str) -> Result<Option<Password>, Rule> {
        if self.missing == Missing::NotYet {
            return Ok(None);
        }
        let last = || self.last?.sources.password(name).cloned();
        self.held(name).or_else(|rule| last().ok_or(rule)).map(Some)
    }

    fn held(&self, name: &str) -> Result<Password, Rule> {
        let secret = self.now.get(name).ok_or_else(|| Rule::NoSecret(name.to_owned()))?;
        if secret.kind != SECRET_TYPE {
            return Err(Rule::SecretType { name: name.to_owned(), kind: secret.kind.clone() });
        }
        let password = secret.password.clone().filter(|password| !password.0.is_empty());
        password.ok_or_else(|| Rule::SecretWithoutPassword(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_printed() {
        let password = Password("hunter2".to_owned());
        let secret = Secret { kind: SECRET_TYPE.to_owned(), password: Some(password.clone()) };
        let now = BTreeMap::from([("key".to_owned(), secret)]);
        let secrets = Secrets { now: &now, last: None, missing: Missing::Fault };
        assert!(!format!("{password:?} {secrets:?}").contains("hunter2"));
        assert_eq!(secrets.password("key"), Ok(Some(password)));
    }
}
