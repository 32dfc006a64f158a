//! What is said to an object before it is written: [`admit`], for the embedded API server, for the
//! admission webhook and for `berth plan`.
//!
//! A write is refused for what its object gets wrong, alone or against what is there, and for a
//! contradiction between others that it would bring about. Users apply their objects in any order,
//! so a reference to a BFDProfile, a Secret or a community name that is not there yet is for
//! [`Config::parse`](crate::Config::parse) to report; and an object that is wrong already refuses
//! nothing but its own next form.

mod effects;

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    ConfigError, ObjectRef, Resources, ServiceKey,
    error::{Fault, Rule},
    parse::{self, BFD_PROFILE, BGP_ADVERTISEMENT, BGP_PEER, COMMUNITY, L2_ADVERTISEMENT, POOL},
    peer,
};

/// The version of BGPPeer that is stored.
const STORED_PEER: &str = "metallb.io/v1beta2";

/// What is about to be done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// The object that it is about to be done to; for a deletion, the object as it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Candidate {
    Pool(Box<crds::IPAddressPool>),
    L2Advertisement(Box<crds::L2Advertisement>),
    BgpAdvertisement(Box<crds::BGPAdvertisement>),
    BgpPeer(Box<crds::BGPPeer>),
    BfdProfile(Box<crds::BFDProfile>),
    Community(Box<crds::Community>),
}

/// What is there when a write is judged.
#[derive(Debug, Clone, Copy)]
pub struct Existing<'a> {
    /// All objects as they are, the written one in its old form.
    pub resources: &'a Resources,
    /// Every address in use, with the Services that hold it.
    pub held: &'a BTreeMap<IpAddr, Vec<ServiceKey>>,
    /// The namespace that Berth runs in and reads.
    pub namespace: &'a str,
}

/// Whether `operation` may be done to `candidate`.
///
/// # Errors
/// Every rule that the write breaks. Otherwise, what its author should know all the same.
pub fn admit(
    operation: Operation,
    candidate: &Candidate,
    existing: &Existing<'_>,
) -> Result<Vec<String>, Vec<ConfigError>> {
    let object = candidate.object();
    let here = candidate.metadata().namespace.as_deref() == Some(existing.namespace);
    match operation {
        Operation::Create if !here => {
            let rule = Rule::WrongNamespace(existing.namespace.to_owned());
            Err(vec![ConfigError::new(object, Fault::new("metadata.namespace", rule))])
        }
        // Objects elsewhere are never read, so nothing in them can be wrong.
        Operation::Update | Operation::Delete if !here => Ok(Vec::new()),
        Operation::Delete => effects::admit_deletion(candidate, existing),
        Operation::Create | Operation::Update => admit_writing(candidate, existing),
    }
}

fn admit_writing(
    candidate: &Candidate,
    existing: &Existing<'_>,
) -> Result<Vec<String>, Vec<ConfigError>> {
    let object = candidate.object();
    let mut resources = existing.resources.clone();
    let old = candidate.clone().put_into(&mut resources);
    let judged = |resources: &Resources| {
        let (config, errors) = parse::parse(resources, None, Some(&object));
        let (own, of_others): (Vec<_>, Vec<_>) =
            errors.into_iter().partition(|error| error.object() == object);
        (config, own, of_others)
    };
    let (mut config, mut errors, mut of_others) = judged(&resources);
    if !errors.is_empty() && effects::clear_of_losers(&mut resources, existing, &object) {
        (config, errors, of_others) = judged(&resources);
    }
    if old.as_ref().is_some_and(|old| candidate.means_the_same_as(old)) {
        // A label or a finalizer of an object that is wrong already has to be possible.
        return Ok(errors.iter().map(ToString::to_string).collect());
    }
    if errors.is_empty() {
        errors = effects::contradictions(candidate, of_others, existing);
    }
    let mut warnings = candidate.cautions();
    if let (Candidate::Pool(new), true) = (candidate, errors.is_empty()) {
        let parsed = config.pools.get(object.name.as_str());
        warnings.extend(parsed.into_iter().flat_map(|pool| effects::reserved(pool, &config)));
        if let Some(Candidate::Pool(old)) = &old {
            match effects::lost_addresses(&object, old, Some((new, parsed)), existing) {
                Ok(more) => warnings.extend(more),
                Err(error) => errors.push(error),
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if let (Candidate::Community(new), Some(Candidate::Community(old))) = (candidate, &old) {
        warnings.extend(effects::lost_aliases(old, Some(new), existing.resources));
    }
    Ok(warnings)
}

impl Candidate {
    /// An object of the API, in any served version; `None` for kinds that are no configuration.
    ///
    /// # Errors
    /// When it has not the form of its kind.
    pub fn from_json(object: &Value) -> Result<Option<Self>, ConfigError> {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        if !text("/apiVersion").starts_with(&format!("{}/", crds::GROUP)) {
            return Ok(None);
        }
        Ok(Some(match text("/kind") {
            POOL => Self::Pool(read(POOL, object)?),
            L2_ADVERTISEMENT => Self::L2Advertisement(read(L2_ADVERTISEMENT, object)?),
            BGP_ADVERTISEMENT => Self::BgpAdvertisement(read(BGP_ADVERTISEMENT, object)?),
            BGP_PEER => {
                let stored = crds::convert(object, STORED_PEER);
                let stored = stored.map_err(|message| unreadable(BGP_PEER, object, message))?;
                Self::BgpPeer(read(BGP_PEER, &stored)?)
            }
            BFD_PROFILE => Self::BfdProfile(read(BFD_PROFILE, object)?),
            COMMUNITY => Self::Community(read(COMMUNITY, object)?),
            _ => return Ok(None),
        }))
    }

    /// Kind and name.
    pub fn object(&self) -> ObjectRef {
        let kind = match self {
            Self::Pool(_) => POOL,
            Self::L2Advertisement(_) => L2_ADVERTISEMENT,
            Self::BgpAdvertisement(_) => BGP_ADVERTISEMENT,
            Self::BgpPeer(_) => BGP_PEER,
            Self::BfdProfile(_) => BFD_PROFILE,
            Self::Community(_) => COMMUNITY,
        };
        ObjectRef { kind, name: self.metadata().name.clone().unwrap_or_default() }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Pool(object) => &object.metadata,
            Self::L2Advertisement(object) => &object.metadata,
            Self::BgpAdvertisement(object) => &object.metadata,
            Self::BgpPeer(object) => &object.metadata,
            Self::BfdProfile(object) => &object.metadata,
            Self::Community(object) => &object.metadata,
        }
    }

    /// In the place of the object of the same name, which is returned.
    pub fn put_into(self, resources: &mut Resources) -> Option<Self> {
        fn put<T>(
            objects: &mut Vec<T>,
            object: T,
            metadata: fn(&T) -> &ObjectMeta,
        ) -> Option<Box<T>> {
            let name = &metadata(&object).name;
            let old = objects.iter().position(|other| metadata(other).name == *name);
            let old = old.map(|index| Box::new(objects.remove(index)));
            objects.push(object);
            old
        }
        resources.unreadable.remove(&self.object());
        match self {
            Self::Pool(object) => {
                put(&mut resources.pools, *object, |o| &o.metadata).map(Self::Pool)
            }
            Self::L2Advertisement(object) => {
                put(&mut resources.l2_advertisements, *object, |o| &o.metadata)
                    .map(Self::L2Advertisement)
            }
            Self::BgpAdvertisement(object) => {
                put(&mut resources.bgp_advertisements, *object, |o| &o.metadata)
                    .map(Self::BgpAdvertisement)
            }
            Self::BgpPeer(object) => {
                put(&mut resources.bgp_peers, *object, |o| &o.metadata).map(Self::BgpPeer)
            }
            Self::BfdProfile(object) => {
                put(&mut resources.bfd_profiles, *object, |o| &o.metadata).map(Self::BfdProfile)
            }
            Self::Community(object) => {
                put(&mut resources.communities, *object, |o| &o.metadata).map(Self::Community)
            }
        }
    }

    /// True when nothing that is read of the two objects differs.
    fn means_the_same_as(&self, other: &Self) -> bool {
        self.metadata().labels == other.metadata().labels
            && match (self, other) {
                (Self::Pool(a), Self::Pool(b)) => a.spec == b.spec,
                (Self::L2Advertisement(a), Self::L2Advertisement(b)) => a.spec == b.spec,
                (Self::BgpAdvertisement(a), Self::BgpAdvertisement(b)) => a.spec == b.spec,
                (Self::BgpPeer(a), Self::BgpPeer(b)) => a.spec == b.spec,
                (Self::BfdProfile(a), Self::BfdProfile(b)) => a.spec == b.spec,
                (Self::Community(a), Self::Community(b)) => a.spec == b.spec,
                _ => false,
            }
    }

    /// Fields that are still read and no longer of any use.
    fn cautions(&self) -> Vec<String> {
        match self {
            Self::BgpPeer(peer) => peer::cautions(&peer.spec),
            Self::Pool(_)
            | Self::L2Advertisement(_)
            | Self::BgpAdvertisement(_)
            | Self::BfdProfile(_)
            | Self::Community(_) => Vec::new(),
        }
    }
}

fn read<T: DeserializeOwned>(kind: &'static str, object: &Value) -> Result<Box<T>, ConfigError> {
    T::deserialize(object)
        .map(Box::new)
        .map_err(|error| unreadable(kind, object, error.to_string()))
}

fn unreadable(kind: &'static str, object: &Value, message: String) -> ConfigError {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let object = ObjectRef { kind, name: name.to_owned() };
    ConfigError::new(object, Fault::new("spec", Rule::Unreadable(message)))
}

#[cfg(test)]
mod tests;
