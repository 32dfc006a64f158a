//! The registry of kinds: what is served under which path, and in which of the stored collections
//! it is kept. Versions of one kind share a collection and are converted at its door.

use std::sync::Arc;

use http::Method;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use serde_json::{Value, json};

use crate::builtin::BuiltIn;

/// One kind in one version.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub scope: Scope,
    pub subresources: Subresources,
    pub access: Access,
    pub schema: Schema,
    pub form: Form,
    /// Fields that a field selector may name.
    pub selectable: &'static [&'static str],
    /// Said in a `Warning` header with each answer.
    pub warning: Option<String>,
    /// Index of the collection.
    pub storage: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Cluster,
    Namespaced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subresources {
    None,
    Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    /// What there is can be changed, and nothing else made or deleted.
    Change,
    /// Questions: a POST is answered, and nothing is kept.
    Ask,
}

impl Access {
    pub(crate) fn allows(self, method: &Method) -> bool {
        match self {
            Self::ReadWrite => true,
            Self::Change => [Method::GET, Method::PUT, Method::PATCH].contains(method),
            Self::Ask => method == Method::POST,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Schema {
    BuiltIn(BuiltIn),
    Custom(Arc<Custom>),
}

/// What the CustomResourceDefinition says of one version.
#[derive(Debug)]
pub(crate) struct Custom {
    pub open_api: Value,
    pub columns: Vec<Value>,
}

/// How the form of a version differs from the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Stored,
    /// `events.k8s.io/v1`; the core form is stored.
    EventsV1,
    /// `metallb.io/v1beta1` BGPPeer; v1beta2 is stored.
    BgpPeerV1Beta1,
}

impl Resource {
    /// `group/version`, or the version alone in the core group.
    pub(crate) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `services`, `ipaddresspools.metallb.io`.
    pub(crate) fn qualified_plural(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    /// `Service`, `IPAddressPool.metallb.io`.
    pub(crate) fn qualified_kind(&self) -> String {
        qualified(&self.kind, &self.group)
    }

    pub(crate) fn built_in(&self) -> Option<BuiltIn> {
        match &self.schema {
            Schema::BuiltIn(kind) => Some(*kind),
            Schema::Custom(_) => None,
        }
    }

    /// The entry of an `APIResourceList`.
    pub(crate) fn discovery(&self) -> Value {
        let verbs: &[&str] = match self.access {
            Access::ReadWrite => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
            Access::Change => &["get", "list", "patch", "update", "watch"],
            Access::Ask => &["create"],
        };
        json!({
            "name": self.plural, "singularName": self.singular, "kind": self.kind,
            "namespaced": self.scope == Scope::Namespaced, "shortNames": self.short_names,
            "verbs": verbs,
        })
    }

    pub(crate) fn status_discovery(&self) -> Option<Value> {
        (self.subresources == Subresources::Status).then(|| {
            json!({
                "name": format!("{}/status", self.plural), "singularName": "", "kind": self.kind,
                "namespaced": self.scope == Scope::Namespaced, "verbs": ["get", "patch", "update"],
            })
        })
    }
}

/// Every kind that is served.
#[derive(Debug)]
pub(crate) struct Registry {
    resources: Vec<Arc<Resource>>,
    collections: usize,
}

impl Registry {
    pub(crate) fn new(crds: &[CustomResourceDefinition]) -> Self {
        let mut resources = Vec::new();
        for kind in BuiltIn::ALL {
            let storage = resources.len();
            resources.push(kind.resource(storage));
        }
        let events = resources.iter().find(|r: &&Resource| r.kind == "Event").cloned();
        let mut collections = resources.len();
        resources.extend(events.map(events_v1));
        for crd in crds {
            resources.extend(versions(crd, collections));
            collections += 1;
        }
        Self { resources: resources.into_iter().map(Arc::new).collect(), collections }
    }

    pub(crate) fn all(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// How many collections the store keeps.
    pub(crate) fn collections(&self) -> usize {
        self.collections
    }

    pub(crate) fn by_path(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<&Arc<Resource>> {
        self.resources
            .iter()
            .find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    pub(crate) fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.kind == kind && r.api_version() == api_version)
    }

    pub(crate) fn built_in(&self, kind: BuiltIn) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.form == Form::Stored && r.built_in() == Some(kind))
    }

    /// The version in which the objects of a collection are kept.
    pub(crate) fn stored(&self, storage: usize) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.form == Form::Stored && r.storage == storage)
    }
}

fn qualified(name: &str, group: &str) -> String {
    match group {
        "" => name.to_owned(),
        group => format!("{name}.{group}"),
    }
}

fn events_v1(core: Resource) -> Resource {
    Resource {
        group: "events.k8s.io".to_owned(),
        form: Form::EventsV1,
        selectable: &[
            "reason",
            "type",
            "reportingController",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
        ],
        ..core
    }
}

fn versions(crd: &CustomResourceDefinition, storage: usize) -> Vec<Resource> {
    let spec = &crd.spec;
    let of = |version: &CustomResourceDefinitionVersion| {
        let version_value = json!(version);
        let custom = Custom {
            open_api: version_value["schema"]["openAPIV3Schema"].clone(),
            columns: version_value["additionalPrinterColumns"]
                .as_array()
                .cloned()
                .unwrap_or_default(),
        };
        let deprecated = version.deprecated == Some(true);
        Resource {
            group: spec.group.clone(),
            version: version.name.clone(),
            kind: spec.names.kind.clone(),
            plural: spec.names.plural.clone(),
            singular: spec.names.kind.to_lowercase(),
            short_names: spec.names.short_names.clone().unwrap_or_default(),
            scope: match spec.scope.as_str() {
                "Cluster" => Scope::Cluster,
                _ => Scope::Namespaced,
            },
            subresources: match version.subresources.as_ref().and_then(|s| s.status.as_ref()) {
                Some(_) => Subresources::Status,
                None => Subresources::None,
            },
            access: Access::ReadWrite,
            schema: Schema::Custom(Arc::new(custom)),
            form: match (version.storage, spec.names.kind.as_str(), version.name.as_str()) {
                (false, "BGPPeer", "v1beta1") => Form::BgpPeerV1Beta1,
                _ => Form::Stored,
            },
            selectable: &[],
            warning: deprecated.then(|| {
                version.deprecation_warning.clone().unwrap_or_else(|| {
                    format!("{}/{} {} is deprecated", spec.group, version.name, spec.names.kind)
                })
            }),
            storage,
        }
    };
    spec.versions.iter().filter(|version| version.served).map(of).collect()
}
