//! The kinds of Kubernetes itself that Berth and its users touch: names, typed form, defaults and
//! the rules of their writes. Services and reviews have modules of their own; Pods, Nodes,
//! EndpointSlices and ServiceCIDRs are kept as they are written.

use ipnet::IpNet;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::ValidatingWebhookConfiguration,
        authentication::v1::TokenReview,
        authorization::v1::SubjectAccessReview,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    error::Cause,
    path,
    resource::{Access, Form, Resource, Schema, Scope, Subresources},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BuiltIn {
    ConfigMap,
    CustomResourceDefinition,
    EndpointSlice,
    Event,
    Lease,
    Namespace,
    Node,
    Pod,
    Secret,
    Service,
    ServiceCIDR,
    SubjectAccessReview,
    TokenReview,
    ValidatingWebhookConfiguration,
}

/// How the items of a list are told apart when two writers' lists are merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListKind<'a> {
    /// The whole list is one value.
    Atomic,
    /// Plain values, each at most once.
    Set,
    /// Objects, told apart by these fields; a field that is absent counts as the given default.
    Map(Vec<(&'a str, &'a str)>),
}

impl BuiltIn {
    pub(crate) const ALL: [Self; 14] = [
        Self::ConfigMap,
        Self::CustomResourceDefinition,
        Self::EndpointSlice,
        Self::Event,
        Self::Lease,
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Secret,
        Self::Service,
        Self::ServiceCIDR,
        Self::SubjectAccessReview,
        Self::TokenReview,
        Self::ValidatingWebhookConfiguration,
    ];

    pub(crate) fn resource(self, storage: usize) -> Resource {
        let (group, kind, plural, short_names): (_, _, _, &[&str]) = match self {
            Self::ConfigMap => ("", "ConfigMap", "configmaps", &["cm"]),
            Self::CustomResourceDefinition => (
                "apiextensions.k8s.io",
                "CustomResourceDefinition",
                "customresourcedefinitions",
                &["crd", "crds"],
            ),
            Self::EndpointSlice => ("discovery.k8s.io", "EndpointSlice", "endpointslices", &[]),
            Self::Event => ("", "Event", "events", &["ev"]),
            Self::Lease => ("coordination.k8s.io", "Lease", "leases", &[]),
            Self::Namespace => ("", "Namespace", "namespaces", &["ns"]),
            Self::Node => ("", "Node", "nodes", &["no"]),
            Self::Pod => ("", "Pod", "pods", &["po"]),
            Self::Secret => ("", "Secret", "secrets", &[]),
            Self::Service => ("", "Service", "services", &["svc"]),
            Self::ServiceCIDR => ("networking.k8s.io", "ServiceCIDR", "servicecidrs", &[]),
            Self::SubjectAccessReview => {
                ("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", &[])
            }
            Self::TokenReview => ("authentication.k8s.io", "TokenReview", "tokenreviews", &[]),
            Self::ValidatingWebhookConfiguration => (
                "admissionregistration.k8s.io",
                "ValidatingWebhookConfiguration",
                "validatingwebhookconfigurations",
                &[],
            ),
        };
        Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: short_names.iter().map(|&name| name.to_owned()).collect(),
            scope: match self {
                Self::CustomResourceDefinition
                | Self::Namespace
                | Self::Node
                | Self::ServiceCIDR
                | Self::SubjectAccessReview
                | Self::TokenReview
                | Self::ValidatingWebhookConfiguration => Scope::Cluster,
                Self::ConfigMap
                | Self::EndpointSlice
                | Self::Event
                | Self::Lease
                | Self::Pod
                | Self::Secret
                | Self::Service => Scope::Namespaced,
            },
            subresources: match self {
                Self::CustomResourceDefinition
                | Self::Namespace
                | Self::Node
                | Self::Pod
                | Self::Service
                | Self::ServiceCIDR => Subresources::Status,
                Self::ConfigMap
                | Self::EndpointSlice
                | Self::Event
                | Self::Lease
                | Self::Secret
                | Self::SubjectAccessReview
                | Self::TokenReview
                | Self::ValidatingWebhookConfiguration => Subresources::None,
            },
            access: match self {
                Self::CustomResourceDefinition => Access::Change,
                Self::SubjectAccessReview | Self::TokenReview => Access::Ask,
                _ => Access::ReadWrite,
            },
            schema: Schema::BuiltIn(self),
            form: Form::Stored,
            selectable: self.selectable(),
            warning: None,
            storage,
        }
    }

    fn selectable(self) -> &'static [&'static str] {
        match self {
            Self::ConfigMap
            | Self::CustomResourceDefinition
            | Self::EndpointSlice
            | Self::Lease
            | Self::ServiceCIDR
            | Self::SubjectAccessReview
            | Self::TokenReview
            | Self::ValidatingWebhookConfiguration => &[],
            Self::Event => &[
                "reason",
                "type",
                "source",
                "reportingComponent",
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "involvedObject.resourceVersion",
                "involvedObject.fieldPath",
            ],
            Self::Namespace => &["status.phase"],
            Self::Node => &["spec.unschedulable"],
            Self::Pod => &["spec.nodeName", "status.phase", "status.podIP"],
            Self::Secret => &["type"],
            Self::Service => &["spec.clusterIP", "spec.type"],
        }
    }

    /// The object as its type holds it: unknown fields and nulls are gone.
    ///
    /// # Errors
    /// Says which value has the wrong type.
    pub(crate) fn typed(self, object: Value) -> Result<Value, serde_json::Error> {
        match self {
            Self::ConfigMap => through::<ConfigMap>(object),
            Self::CustomResourceDefinition => through::<CustomResourceDefinition>(object),
            Self::EndpointSlice => through::<EndpointSlice>(object),
            Self::Event => through::<Event>(object),
            Self::Lease => through::<Lease>(object),
            Self::Namespace => through::<Namespace>(object),
            Self::Node => through::<Node>(object),
            Self::Pod => through::<Pod>(object),
            Self::Secret => secret(object),
            Self::Service => through::<Service>(object),
            Self::ServiceCIDR => through::<ServiceCIDR>(object),
            Self::SubjectAccessReview => through::<SubjectAccessReview>(object),
            Self::TokenReview => through::<TokenReview>(object),
            Self::ValidatingWebhookConfiguration => {
                through::<ValidatingWebhookConfiguration>(object)
            }
        }
    }

    /// Fills in what the API server itself decides; `old` is absent at a creation.
    pub(crate) fn complete(self, new: &mut Value, old: Option<&Value>) {
        match self {
            Self::CustomResourceDefinition => {
                set_default(&mut new["spec"], "conversion", json!({"strategy": "None"}));
                if let Some(client) = new.pointer_mut("/spec/conversion/webhook/clientConfig") {
                    complete_webhook_client(client);
                }
            }
            Self::EndpointSlice => {
                for port in items_mut(new, "ports") {
                    set_default(port, "name", "");
                    set_default(port, "protocol", "TCP");
                }
            }
            Self::Namespace if old.is_none() => {
                let name = new["metadata"]["name"].clone();
                new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
                new["spec"] = json!({"finalizers": ["kubernetes"]});
                new["status"] = json!({"phase": "Active"});
            }
            Self::Pod if old.is_none() => new["status"] = json!({"phase": "Pending"}),
            Self::Secret => set_default(new, "type", "Opaque"),
            Self::ValidatingWebhookConfiguration => {
                items_mut(new, "webhooks").for_each(complete_webhook);
            }
            Self::ConfigMap
            | Self::Event
            | Self::Lease
            | Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::Service
            | Self::ServiceCIDR
            | Self::SubjectAccessReview
            | Self::TokenReview => {}
        }
    }

    pub(crate) fn validate(self, new: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut immutable = |field: &str| {
            if let (Some(new), Some(old)) = (path::get(new, field), old)
                && path::get(old, field) != Some(new)
            {
                causes.push(Cause::invalid(field, new, "field is immutable"));
            }
        };
        match self {
            Self::EndpointSlice => {
                immutable("addressType");
                let allowed = [json!("IPv4"), json!("IPv6"), json!("FQDN")];
                if !allowed.contains(&new["addressType"]) {
                    causes.push(Cause::unsupported("addressType", &new["addressType"], &allowed));
                }
            }
            Self::Secret => immutable("type"),
            Self::Lease => {
                for (field, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
                    let value = &new["spec"][field];
                    if value.as_i64().is_some_and(|number| number < least) {
                        let rule = format!("must be greater than or equal to {least}");
                        causes.push(Cause::invalid(format!("spec.{field}"), value, &rule));
                    }
                }
            }
            Self::CustomResourceDefinition => definition_causes(new, old, &mut causes),
            Self::Event => event_causes(new, &mut causes),
            Self::ServiceCIDR => range_causes(new, &mut causes),
            Self::ValidatingWebhookConfiguration => webhook_causes(new, &mut causes),
            Self::ConfigMap
            | Self::Namespace
            | Self::Node
            | Self::Pod
            | Self::Service
            | Self::SubjectAccessReview
            | Self::TokenReview => {}
        }
        causes
    }

    /// Whether a PUT to a name that does not exist creates the object.
    pub(crate) fn put_creates(self) -> bool {
        matches!(self, Self::Event | Self::Lease | Self::Service)
    }

    /// Whether a PUT must carry the resourceVersion that it replaces.
    pub(crate) fn put_needs_version(self) -> bool {
        matches!(
            self,
            Self::CustomResourceDefinition | Self::Lease | Self::ValidatingWebhookConfiguration
        )
    }

    /// Whether `metadata.generation` counts the changes of the wanted state.
    pub(crate) fn has_generation(self) -> bool {
        matches!(
            self,
            Self::CustomResourceDefinition
                | Self::EndpointSlice
                | Self::ValidatingWebhookConfiguration
        )
    }

    /// The list at a path of field names, with `*` for an item of a list, as server-side apply
    /// merges it.
    pub(crate) fn apply_list(self, path: &[&str]) -> ListKind<'static> {
        match (self, path) {
            (Self::Service, ["spec", "ports"]) => {
                ListKind::Map(vec![("port", ""), ("protocol", "TCP")])
            }
            (Self::Node, ["spec", "taints"]) => ListKind::Atomic,
            _ => self.patch_list(path),
        }
    }

    /// The same as a strategic merge patch merges it.
    pub(crate) fn patch_list(self, path: &[&str]) -> ListKind<'static> {
        match (self, path) {
            (_, ["metadata", "ownerReferences"]) => ListKind::Map(vec![("uid", "")]),
            (_, ["metadata", "finalizers"]) => ListKind::Set,
            (Self::ValidatingWebhookConfiguration, ["webhooks"]) => {
                ListKind::Map(vec![("name", "")])
            }
            (Self::Service, ["spec", "ports"]) => ListKind::Map(vec![("port", "")]),
            (Self::Node, ["spec", "taints"]) => ListKind::Map(vec![("key", "")]),
            (Self::Node, ["spec", "podCIDRs"]) => ListKind::Set,
            (_, ["status", "conditions"]) | (Self::Node, ["status", "addresses"]) => {
                ListKind::Map(vec![("type", "")])
            }
            (Self::Pod, ["status", "podIPs"]) => ListKind::Map(vec![("ip", "")]),
            (Self::Pod, ["spec", "containers" | "initContainers", "*", "ports"]) => {
                ListKind::Map(vec![("containerPort", "")])
            }
            (Self::Pod, ["spec", "containers" | "initContainers", "*", "volumeMounts"]) => {
                ListKind::Map(vec![("mountPath", "")])
            }
            (Self::Pod, ["spec", "containers" | "initContainers" | "volumes"])
            | (Self::Pod, ["spec", "containers" | "initContainers", "*", "env"]) => {
                ListKind::Map(vec![("name", "")])
            }
            _ => ListKind::Atomic,
        }
    }
}

pub(crate) fn set_default(object: &mut Value, field: &str, default: impl Into<Value>) {
    if let Some(object) = object.as_object_mut() {
        object.entry(field).or_insert_with(|| default.into());
    }
}

/// The items of a list, if there is one.
pub(crate) fn items_mut<'a>(
    object: &'a mut Value,
    field: &str,
) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn through<T: DeserializeOwned + Serialize>(object: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(object)?)
}

/// `stringData` is write-only: it is kept as `data`.
fn secret(object: Value) -> Result<Value, serde_json::Error> {
    let mut secret: Secret = serde_json::from_value(object)?;
    for (key, text) in secret.string_data.take().unwrap_or_default() {
        secret.data.get_or_insert_default().insert(key, ByteString(text.into_bytes()));
    }
    serde_json::to_value(secret)
}

fn complete_webhook(webhook: &mut Value) {
    for (field, default) in [
        ("failurePolicy", json!("Fail")),
        ("matchPolicy", json!("Equivalent")),
        ("namespaceSelector", json!({})),
        ("objectSelector", json!({})),
        ("timeoutSeconds", json!(10)),
    ] {
        set_default(webhook, field, default);
    }
    items_mut(webhook, "rules").for_each(|rule| set_default(rule, "scope", "*"));
    complete_webhook_client(&mut webhook["clientConfig"]);
}

fn complete_webhook_client(client: &mut Value) {
    if let Some(service) = client.get_mut("service") {
        set_default(service, "port", 443);
    }
}

fn webhook_causes(configuration: &Value, causes: &mut Vec<Cause>) {
    for (index, webhook) in configuration["webhooks"].as_array().into_iter().flatten().enumerate() {
        for field in ["sideEffects", "admissionReviewVersions"] {
            let value = &webhook[field];
            if value.as_str().is_none_or(str::is_empty)
                && value.as_array().is_none_or(Vec::is_empty)
            {
                causes.push(Cause::required(format!("webhooks[{index}].{field}"), ""));
            }
        }
    }
}

/// The kinds are served as they are from the start; how they are converted is of no consequence
/// here.
fn definition_causes(new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old else { return };
    let spec = |object: &Value| {
        let mut spec = object["spec"].clone();
        spec["conversion"] = Value::Null;
        spec
    };
    if spec(new) != spec(old) {
        let rule = "the kinds of this server cannot be changed, except for spec.conversion";
        causes.push(Cause::forbidden("spec", rule));
    }
}

fn range_causes(range: &Value, causes: &mut Vec<Cause>) {
    let cidrs = range["spec"]["cidrs"].as_array().map_or(&[][..], Vec::as_slice);
    if cidrs.is_empty() {
        causes.push(Cause::required("spec.cidrs", "at least one CIDR required"));
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        if cidr.as_str().is_none_or(|text| text.parse::<IpNet>().is_err()) {
            let rule = "must be a valid CIDR value";
            causes.push(Cause::invalid(format!("spec.cidrs[{index}]"), cidr, rule));
        }
    }
}

fn event_causes(event: &Value, causes: &mut Vec<Cause>) {
    // Only Events of the newer form carry a time of this precision, and the newer rules with it.
    if event["eventTime"].is_null() {
        let regarded = &event["involvedObject"]["namespace"];
        let own = event["metadata"]["namespace"].as_str().unwrap_or_default();
        if regarded.as_str().unwrap_or("default") != own {
            let rule = "does not match event.namespace";
            causes.push(Cause::invalid("involvedObject.namespace", regarded, rule));
        }
        return;
    }
    for (stored, field) in [
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
        ("action", "action"),
        ("reason", "reason"),
    ] {
        if event[stored].as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(field, ""));
        }
    }
    let allowed = [json!("Normal"), json!("Warning")];
    if !allowed.contains(&event["type"]) {
        causes.push(Cause::unsupported("type", &event["type"], &allowed));
    }
}
