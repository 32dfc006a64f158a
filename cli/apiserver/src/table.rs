//! The `meta.k8s.io/v1` Table that `kubectl get` prints: the columns of each built-in kind, and
//! for ours the printer columns of their definition.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    builtin::BuiltIn,
    path,
    resource::{Resource, Schema},
};

/// Which part of each object a row carries beside its cells (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// Name, type, and priority: columns above 0 are only shown by `-o wide`.
type Column = (&'static str, &'static str, u8);

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);

/// A Table of objects in the form of a version.
pub(crate) fn table(
    resource: &Resource,
    objects: &[Value],
    include: Include,
    now: Timestamp,
) -> Value {
    let rows: Vec<_> = objects
        .iter()
        .map(|object| {
            let mut row = json!({"cells": cells(resource, object, now)});
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = metadata_only(object),
                Include::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {},
        "columnDefinitions": columns(resource), "rows": rows,
    })
}

/// An object as `PartialObjectMetadata`.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}

fn columns(resource: &Resource) -> Vec<Value> {
    let definition = |(name, kind, priority): Column| {
        let format = if name == "Name" { "name" } else { "" };
        json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority})
    };
    match &resource.schema {
        Schema::BuiltIn(kind) => built_in_columns(*kind).iter().copied().map(definition).collect(),
        Schema::Custom(custom) if custom.columns.is_empty() => {
            [NAME, ("Age", "date", 0)].map(definition).to_vec()
        }
        Schema::Custom(custom) => {
            let own = custom.columns.iter().map(|column| {
                json!({
                    "name": column["name"], "type": column["type"],
                    "format": column["format"].as_str().unwrap_or_default(),
                    "description": column["description"].as_str().unwrap_or_default(),
                    "priority": column["priority"].as_i64().unwrap_or_default(),
                })
            });
            [definition(NAME)].into_iter().chain(own).collect()
        }
    }
}

fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![object["metadata"]["name"].clone()];
    let age = age(&object["metadata"]["creationTimestamp"], now);
    match &resource.schema {
        Schema::BuiltIn(BuiltIn::Event) => cells = event_cells(object, now),
        Schema::BuiltIn(kind) => cells.extend(built_in_cells(*kind, object, age)),
        Schema::Custom(custom) if custom.columns.is_empty() => cells.push(json!(age)),
        Schema::Custom(custom) => {
            cells.extend(custom.columns.iter().map(|column| custom_cell(column, object, now)));
        }
    }
    cells
}

fn custom_cell(column: &Value, object: &Value, now: Timestamp) -> Value {
    let found = path::find(object, column["jsonPath"].as_str().unwrap_or_default());
    match (column["type"].as_str(), found.first()) {
        (_, None | Some(Value::Null)) => Value::Null,
        (Some("string"), Some(Value::String(text))) => json!(text),
        (Some("string"), Some(other)) => json!(other.to_string()),
        (Some("date"), Some(time)) => json!(age(time, now)),
        (_, Some(value)) => (*value).clone(),
    }
}

fn built_in_columns(kind: BuiltIn) -> &'static [Column] {
    match kind {
        BuiltIn::ConfigMap => &[NAME, ("Data", "string", 0), AGE],
        BuiltIn::CustomResourceDefinition => &[NAME, ("Created At", "date", 0)],
        BuiltIn::EndpointSlice => &[
            NAME,
            ("AddressType", "string", 0),
            ("Ports", "string", 0),
            ("Endpoints", "string", 0),
            AGE,
        ],
        BuiltIn::Event => &[
            ("Last Seen", "string", 0),
            ("Type", "string", 0),
            ("Reason", "string", 0),
            ("Object", "string", 0),
            ("Subobject", "string", 1),
            ("Source", "string", 1),
            ("Message", "string", 0),
            ("First Seen", "string", 1),
            ("Count", "string", 1),
            ("Name", "string", 1),
        ],
        BuiltIn::Lease => &[NAME, ("Holder", "string", 0), AGE],
        BuiltIn::Namespace => &[NAME, ("Status", "string", 0), AGE],
        BuiltIn::Node => &[
            NAME,
            ("Status", "string", 0),
            ("Roles", "string", 0),
            AGE,
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("External-IP", "string", 1),
        ],
        BuiltIn::Pod => &[
            NAME,
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            AGE,
            ("IP", "string", 1),
            ("Node", "string", 1),
        ],
        BuiltIn::Secret => &[NAME, ("Type", "string", 0), ("Data", "string", 0), AGE],
        BuiltIn::Service => &[
            NAME,
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            AGE,
            ("Selector", "string", 1),
        ],
        BuiltIn::ServiceCIDR => &[NAME, ("CIDRs", "string", 0), AGE],
        BuiltIn::SubjectAccessReview | BuiltIn::TokenReview => &[NAME, AGE],
        BuiltIn::ValidatingWebhookConfiguration => &[NAME, ("Webhooks", "integer", 0), AGE],
    }
}

fn built_in_cells(kind: BuiltIn, object: &Value, age: String) -> Vec<Value> {
    let size = |field: &str| object[field].as_object().map_or(0, serde_json::Map::len);
    match kind {
        BuiltIn::ConfigMap => vec![json!(size("data") + size("binaryData")), json!(age)],
        BuiltIn::CustomResourceDefinition => {
            vec![object["metadata"]["creationTimestamp"].clone()]
        }
        BuiltIn::EndpointSlice => vec![
            object["addressType"].clone(),
            listed(texts(&object["ports"], |port| &port["port"])),
            listed(texts(&object["endpoints"], |endpoint| &endpoint["addresses"][0])),
            json!(age),
        ],
        // Events have no column for their name in front.
        BuiltIn::Event => Vec::new(),
        BuiltIn::Lease => vec![object["spec"]["holderIdentity"].clone(), json!(age)],
        BuiltIn::Namespace => vec![object["status"]["phase"].clone(), json!(age)],
        BuiltIn::Node => node_cells(object, age),
        BuiltIn::Pod => pod_cells(object, age),
        BuiltIn::Secret => vec![object["type"].clone(), json!(size("data")), json!(age)],
        BuiltIn::Service => service_cells(object, age),
        BuiltIn::ServiceCIDR => {
            vec![listed(texts(&object["spec"]["cidrs"], |cidr| cidr)), json!(age)]
        }
        BuiltIn::SubjectAccessReview | BuiltIn::TokenReview => vec![json!(age)],
        BuiltIn::ValidatingWebhookConfiguration => {
            vec![json!(items(&object["webhooks"]).count()), json!(age)]
        }
    }
}

fn service_cells(service: &Value, age: String) -> Vec<Value> {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().into_iter().flatten().map(|port| {
        let (number, protocol) = (&port["port"], port["protocol"].as_str().unwrap_or_default());
        match port["nodePort"].as_u64() {
            Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    let mut external = texts(&spec["externalIPs"], |address| address);
    if spec["type"] == "LoadBalancer" {
        let mut given = texts(&service["status"]["loadBalancer"]["ingress"], |ingress| {
            ingress.get("ip").unwrap_or_else(|| &ingress["hostname"])
        });
        given.append(&mut external);
        external = given;
    }
    let external = match spec["type"].as_str() {
        Some("ExternalName") => spec["externalName"].clone(),
        Some("LoadBalancer") if external.is_empty() => json!("<pending>"),
        _ => listed(external),
    };
    let address = spec["clusterIP"].as_str().filter(|address| !address.is_empty());
    vec![
        spec["type"].clone(),
        json!(address.unwrap_or("<none>")),
        external,
        listed(ports.collect()),
        json!(age),
        listed(pairs(&spec["selector"])),
    ]
}

fn node_cells(node: &Value, age: String) -> Vec<Value> {
    let ready = items(&node["status"]["conditions"]).find(|condition| condition["type"] == "Ready");
    let mut status = match ready.and_then(|condition| condition["status"].as_str()) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let labels = node["metadata"]["labels"].as_object();
    let roles = labels
        .into_iter()
        .flat_map(|labels| labels.keys())
        .filter_map(|label| label.strip_prefix("node-role.kubernetes.io/").map(str::to_owned));
    let address = |kind: &str| {
        let found = items(&node["status"]["addresses"]).find(|address| address["type"] == kind);
        listed(
            found
                .and_then(|found| found["address"].as_str())
                .map(str::to_owned)
                .into_iter()
                .collect(),
        )
    };
    let version = &node["status"]["nodeInfo"]["kubeletVersion"];
    vec![
        json!(status),
        listed(roles.collect()),
        json!(age),
        json!(version.as_str().unwrap_or_default()),
        address("InternalIP"),
        address("ExternalIP"),
    ]
}

fn pod_cells(pod: &Value, age: String) -> Vec<Value> {
    let statuses = || items(&pod["status"]["containerStatuses"]);
    let ready = statuses().filter(|status| status["ready"] == true).count();
    let restarts: u64 = statuses().filter_map(|status| status["restartCount"].as_u64()).sum();
    let containers = items(&pod["spec"]["containers"]).count();
    let or_none = |value: &Value| json!(value.as_str().unwrap_or("<none>"));
    vec![
        json!(format!("{ready}/{containers}")),
        match pod["metadata"]["deletionTimestamp"] {
            Value::Null => pod["status"]["phase"].clone(),
            _ => json!("Terminating"),
        },
        json!(restarts.to_string()),
        json!(age),
        or_none(&pod["status"]["podIP"]),
        or_none(&pod["spec"]["nodeName"]),
    ]
}

/// The cells of an Event in either of its forms.
fn event_cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let field = |core: &str, new: &str| event.get(core).unwrap_or_else(|| &event[new]).clone();
    let first_of = |times: [Value; 3]| {
        times.iter().find(|time| !time.is_null()).map_or_else(unknown, |time| age(time, now))
    };
    let first = field("firstTimestamp", "deprecatedFirstTimestamp");
    let last = field("lastTimestamp", "deprecatedLastTimestamp");
    let time = event["eventTime"].clone();
    let regarded = field("involvedObject", "regarding");
    let object = format!(
        "{}/{}",
        regarded["kind"].as_str().unwrap_or_default().to_lowercase(),
        regarded["name"].as_str().unwrap_or_default()
    );
    let source = field("source", "deprecatedSource");
    let component = match source["component"].as_str() {
        Some(component) if !component.is_empty() => json!(component),
        _ => field("reportingComponent", "reportingController"),
    };
    let count = match event["series"]["count"].as_u64() {
        Some(count) => Some(count),
        None => field("count", "deprecatedCount").as_u64(),
    };
    let message = field("message", "note");
    vec![
        json!(first_of([event["series"]["lastObservedTime"].clone(), last, time.clone()])),
        event["type"].clone(),
        event["reason"].clone(),
        json!(object),
        json!(regarded["fieldPath"].as_str().unwrap_or_default()),
        component,
        json!(message.as_str().unwrap_or_default().trim()),
        json!(first_of([first, time, Value::Null])),
        json!(count.unwrap_or(1).to_string()),
        event["metadata"]["name"].clone(),
    ]
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// One text for each item of a list; items without one are left out.
fn texts(list: &Value, of: impl Fn(&Value) -> &Value) -> Vec<String> {
    items(list)
        .filter_map(|item| match of(item) {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
        .collect()
}

fn pairs(map: &Value) -> Vec<String> {
    let map = map.as_object().into_iter().flatten();
    map.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect()
}

fn listed(texts: Vec<String>) -> Value {
    if texts.is_empty() { json!("<none>") } else { json!(texts.join(",")) }
}

fn unknown() -> String {
    "<unknown>".to_owned()
}

/// The time since a timestamp, in at most two units, as kubectl writes it.
fn age(time: &Value, now: Timestamp) -> String {
    let Some(then) = time.as_str().and_then(|text| text.parse::<Timestamp>().ok()) else {
        return unknown();
    };
    let seconds = now.as_second() - then.as_second();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let with = |big: String, rest: i64, unit: &str| match rest {
        0 => big,
        rest => format!("{big}{rest}{unit}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if minutes < 2 => format!("{seconds}s"),
        _ if minutes < 10 => with(format!("{minutes}m"), seconds % 60, "s"),
        _ if hours < 3 => format!("{minutes}m"),
        _ if hours < 8 => with(format!("{hours}h"), minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if days < 8 => with(format!("{days}d"), hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 8 * 365 => with(format!("{}y", days / 365), days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (then, wanted) in [
            ("2026-01-10T00:00:05Z", "<invalid>"),
            ("2026-01-10T00:00:00Z", "0s"),
            ("2026-01-09T23:58:01Z", "119s"),
            ("2026-01-09T23:57:59Z", "2m1s"),
            ("2026-01-09T23:50:00Z", "10m"),
            ("2026-01-09T19:30:00Z", "4h30m"),
            ("2026-01-08T00:00:00Z", "2d"),
            ("2026-01-06T23:00:00Z", "3d1h"),
            ("2025-12-01T00:00:00Z", "40d"),
            ("2023-01-09T00:00:00Z", "3y2d"),
        ] {
            assert_eq!(age(&json!(then), now), wanted, "{then}");
        }
        assert_eq!(age(&Value::Null, now), "<unknown>");
    }

    #[test]
    fn services() {
        let resource = BuiltIn::Service.resource(0);
        let mut service = json!({
            "metadata": {"name": "web"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "selector": {"a": "b"},
                     "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"},
                               {"port": 53, "protocol": "UDP"}]},
        });
        let cells = |service: &Value| cells(&resource, service, Timestamp::UNIX_EPOCH);
        assert_eq!(
            cells(&service),
            [
                "web",
                "LoadBalancer",
                "10.96.0.1",
                "<pending>",
                "80:30000/TCP,53/UDP",
                "<unknown>",
                "a=b"
            ]
        );
        service["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x"}]}});
        service["spec"]["externalIPs"] = json!(["192.0.2.9"]);
        assert_eq!(cells(&service)[3], "192.0.2.1,x,192.0.2.9");
    }
}
