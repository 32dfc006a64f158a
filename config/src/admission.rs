//! What is said to an object before it is written: [`admit`], for the embedded API server and
//! for the admission webhook.
//!
//! Only what the object itself gets wrong refuses it. Users apply their objects in any order, so a
//! reference to a BFDProfile, a Secret or a community name that is not there yet is for
//! [`Config::parse`](crate::Config::parse) to report.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    ConfigError, ObjectRef, Resources,
    error::{Fault, Rule},
    parse::{self, BFD_PROFILE, BGP_ADVERTISEMENT, BGP_PEER, COMMUNITY, L2_ADVERTISEMENT, POOL},
};

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

/// Whether `operation` may be done to `candidate`, where `existing` is all that is there and
/// `namespace` is the one that Berth runs in and reads.
///
/// # Errors
/// Every rule that the candidate breaks. Otherwise, what its author should know all the same.
pub fn admit(
    operation: Operation,
    candidate: &Candidate,
    existing: &Resources,
    namespace: &str,
) -> Result<Vec<String>, Vec<ConfigError>> {
    let object = candidate.object();
    let here = candidate.metadata().namespace.as_deref() == Some(namespace);
    match operation {
        Operation::Create if !here => {
            let rule = Rule::WrongNamespace(namespace.to_owned());
            return Err(vec![ConfigError::new(object, Fault::new("metadata.namespace", rule))]);
        }
        // Objects elsewhere are never read, so nothing in them can be wrong.
        Operation::Update | Operation::Delete if !here => return Ok(Vec::new()),
        Operation::Delete => return candidate.admit_deletion(existing).map(|()| Vec::new()),
        Operation::Create | Operation::Update => {}
    }
    let mut resources = existing.clone();
    candidate.clone().put_into(&mut resources);
    let (_, mut errors) = parse::parse(&resources, None, Some(&object));
    errors.retain(|error| error.object() == object);
    if errors.is_empty() { Ok(candidate.warnings()) } else { Err(errors) }
}

impl Candidate {
    /// An object of the API, in any served version; `None` for kinds that are no configuration.
    ///
    /// # Errors
    /// When it has not the form of its kind.
    pub fn from_json(object: &Value) -> Result<Option<Self>, ConfigError> {
        let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let Some((crds::GROUP, version)) = text("/apiVersion").split_once('/') else {
            return Ok(None);
        };
        Ok(Some(match (text("/kind"), version) {
            (POOL, _) => Self::Pool(read(POOL, object)?),
            (L2_ADVERTISEMENT, _) => Self::L2Advertisement(read(L2_ADVERTISEMENT, object)?),
            (BGP_ADVERTISEMENT, _) => Self::BgpAdvertisement(read(BGP_ADVERTISEMENT, object)?),
            (BGP_PEER, "v1beta1") => {
                let peer: Box<crds::v1beta1::BGPPeer> = read(BGP_PEER, object)?;
                Self::BgpPeer(Box::new((*peer).into()))
            }
            (BGP_PEER, _) => Self::BgpPeer(read(BGP_PEER, object)?),
            (BFD_PROFILE, _) => Self::BfdProfile(read(BFD_PROFILE, object)?),
            (COMMUNITY, _) => Self::Community(read(COMMUNITY, object)?),
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

    /// In the place of the object of the same name.
    pub(crate) fn put_into(self, resources: &mut Resources) {
        fn put<T>(objects: &mut Vec<T>, object: T, metadata: impl Fn(&T) -> &ObjectMeta) {
            objects.retain(|other| metadata(other).name != metadata(&object).name);
            objects.push(object);
        }
        match self {
            Self::Pool(object) => put(&mut resources.pools, *object, |o| &o.metadata),
            Self::L2Advertisement(object) => {
                put(&mut resources.l2_advertisements, *object, |o| &o.metadata);
            }
            Self::BgpAdvertisement(object) => {
                put(&mut resources.bgp_advertisements, *object, |o| &o.metadata);
            }
            Self::BgpPeer(object) => put(&mut resources.bgp_peers, *object, |o| &o.metadata),
            Self::BfdProfile(object) => put(&mut resources.bfd_profiles, *object, |o| &o.metadata),
            Self::Community(object) => put(&mut resources.communities, *object, |o| &o.metadata),
        }
    }

    /// A BFDProfile stays while a BGPPeer needs it.
    fn admit_deletion(&self, existing: &Resources) -> Result<(), Vec<ConfigError>> {
        let Self::BfdProfile(_) = self else { return Ok(()) };
        let object = self.object();
        let users = existing
            .bgp_peers
            .iter()
            .filter(|peer| peer.spec.bfd_profile.as_deref() == Some(&object.name));
        let errors: Vec<ConfigError> = users
            .map(|peer| {
                let rule = Rule::ProfileInUse {
                    profile: object.name.clone(),
                    peer: peer.metadata.name.clone().unwrap_or_default(),
                };
                ConfigError::new(object.clone(), Fault::new("metadata.name", rule))
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn warnings(&self) -> Vec<String> {
        match self {
            Self::BgpPeer(peer) if peer.spec.disable_mp => {
                vec![
                    "spec.disableMP has no effect any more; see spec.dualStackAddressFamily"
                        .to_owned(),
                ]
            }
            Self::Pool(_)
            | Self::L2Advertisement(_)
            | Self::BgpAdvertisement(_)
            | Self::BgpPeer(_)
            | Self::BfdProfile(_)
            | Self::Community(_) => Vec::new(),
        }
    }
}

fn read<T: DeserializeOwned>(kind: &'static str, object: &Value) -> Result<Box<T>, ConfigError> {
    T::deserialize(object).map(Box::new).map_err(|error| {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let object = ObjectRef { kind, name: name.to_owned() };
        ConfigError::new(object, Fault::new("spec", Rule::Unreadable(error.to_string())))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{NAMESPACE, candidate, object, pool, resources};

    /// The errors, as users see them, or the warnings.
    fn admitted(
        operation: Operation,
        object: &Value,
        existing: &[Value],
    ) -> Result<Vec<String>, Vec<String>> {
        admit(operation, &candidate(object), &resources(existing), NAMESPACE)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn objects_of_other_namespaces_cannot_be_created_but_changed() {
        let mut elsewhere = pool("a", &["nonsense"]);
        elsewhere["metadata"]["namespace"] = "default".into();
        assert_eq!(
            admitted(Operation::Create, &elsewhere, &[]),
            Err(vec![
                "IPAddressPool \"a\": metadata.namespace: resource must be created in \
                 berth-system namespace"
                    .to_owned()
            ])
        );
        assert_eq!(admitted(Operation::Update, &elsewhere, &[]), Ok(vec![]));
        assert_eq!(admitted(Operation::Delete, &elsewhere, &[]), Ok(vec![]));
    }

    #[test]
    fn a_conflict_is_the_candidates_even_where_it_would_come_first() {
        let existing = [pool("b", &["192.0.2.0/28"])];
        let errors = admitted(Operation::Create, &pool("a", &["192.0.2.8/30"]), &existing);
        assert_eq!(
            errors,
            Err(vec![
                "IPAddressPool \"a\": spec.addresses[0]: 192.0.2.8/30 overlaps with 192.0.2.0/28, \
                 which is already in pool \"b\""
                    .to_owned()
            ])
        );
    }

    #[test]
    fn an_update_takes_the_place_of_the_old_form() {
        let existing = [pool("a", &["192.0.2.0/28"])];
        let wider = pool("a", &["192.0.2.0/24"]);
        assert_eq!(admitted(Operation::Update, &wider, &existing), Ok(vec![]));
    }

    #[test]
    fn errors_of_others_refuse_nothing() {
        let existing = [pool("a", &["nonsense"]), pool("b", &["192.0.2.0"])];
        let good = pool("c", &["192.0.2.0/24"]);
        assert_eq!(admitted(Operation::Create, &good, &existing), Ok(vec![]));
    }

    #[test]
    fn what_is_not_there_yet_refuses_nothing() {
        let peer = object(
            "BGPPeer",
            "router",
            json!({
                "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1",
                "bfdProfile": "later", "passwordSecret": { "name": "later" },
            }),
        );
        assert_eq!(admitted(Operation::Create, &peer, &[]), Ok(vec![]));
        let advertisement = |community: &str| {
            object("BGPAdvertisement", "all", json!({ "communities": [community] }))
        };
        assert_eq!(admitted(Operation::Create, &advertisement("later"), &[]), Ok(vec![]));
        assert!(admitted(Operation::Create, &advertisement("1:2:3"), &[]).is_err());
    }

    #[test]
    fn a_bfd_profile_stays_while_a_peer_needs_it() {
        let profile = object("BFDProfile", "fast", json!({}));
        let peer = object("BGPPeer", "router", json!({ "myASN": 1, "bfdProfile": "fast" }));
        assert_eq!(admitted(Operation::Delete, &profile, &[]), Ok(vec![]));
        assert_eq!(
            admitted(Operation::Delete, &profile, &[peer]),
            Err(vec![
                "BFDProfile \"fast\": metadata.name: failed to delete BFDProfile fast, used by \
                 BGPPeer router"
                    .to_owned()
            ])
        );
        let pool = pool("a", &["192.0.2.0/24"]);
        assert_eq!(admitted(Operation::Delete, &pool, &[]), Ok(vec![]));
    }

    #[test]
    fn a_field_without_effect_is_warned_of_and_the_rest_still_checked() {
        let spec = json!({
            "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1", "disableMP": true,
        });
        let mut peer = object("BGPPeer", "router", spec);
        assert_eq!(admitted(Operation::Create, &peer, &[]).unwrap().len(), 1);
        peer["spec"]["peerAddress"] = "nonsense".into();
        assert!(admitted(Operation::Create, &peer, &[]).is_err());
    }

    #[test]
    fn every_served_version_is_read_and_other_kinds_are_not() {
        let mut peer = object(
            "BGPPeer",
            "router",
            json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" }),
        );
        let new = candidate(&peer);
        peer["apiVersion"] = "metallb.io/v1beta1".into();
        let old = candidate(&peer);
        assert_eq!(new.object(), old.object());
        assert!(matches!(old, Candidate::BgpPeer(peer) if peer.spec.peer_port == 179));
        for other in [
            json!({ "apiVersion": "v1", "kind": "Service" }),
            json!({ "apiVersion": "example.org/v1", "kind": "IPAddressPool" }),
            json!({ "apiVersion": "metallb.io/v1beta1", "kind": "ServiceL2Status" }),
            json!(null),
        ] {
            assert_eq!(Candidate::from_json(&other), Ok(None), "{other}");
        }
        let spec = json!({ "addresses": 7 });
        let error = Candidate::from_json(&object("IPAddressPool", "a", spec)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "IPAddressPool \"a\": spec: cannot be read: invalid type: integer `7`, expected a sequence"
        );
    }
}
