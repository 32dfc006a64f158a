//! BGPPeer from one of its versions to the other: [`convert`].
//!
//! What v1beta1 cannot say is kept beside it, in the annotation [`V1BETA2_FIELDS`], so that a way
//! there and back loses nothing. An object is handled as the JSON that it is: a conversion must not
//! fail for what some other rule refuses, or nobody could read, list or repair the object.

use serde_json::{Map, Value, json};

use crate::{BGPPeerSpec, DEFAULT_BGP_PORT, GROUP};

/// The annotation of a BGPPeer in v1beta1 that holds, as JSON, what only v1beta2 can say. An empty
/// value tells how v1beta2 writes that a field which v1beta1 knows is not given; null: not at all.
pub const V1BETA2_FIELDS: &str = "metallb.io/v1beta2-fields";

/// Fields that only v1beta2 has.
const NEW_FIELDS: [&str; 18] = [
    "dynamicASN",
    "localASN",
    "interface",
    "connectTime",
    "passwordSecret",
    "enableGracefulRestart",
    "vrf",
    "disableMP",
    "dualStackAddressFamily",
    "passive",
    "ttlSecurityHops",
    "localPref",
    "med",
    "asPathPrepend",
    "minAdvertisementInterval",
    "gracefulRestartTime",
    "bfdStrict",
    "tcpAO",
];
/// Those that are false when nothing is said, and that an API server writes out.
const FLAGS: [&str; 2] = ["disableMP", "dualStackAddressFamily"];

/// A field of both versions that may say nothing.
struct OldField {
    name: &'static str,
    /// What v1beta1 writes then; null: it leaves the field out.
    nothing: fn() -> Value,
    /// The field of v1beta2 that does not go with this one.
    rival: Option<&'static str>,
}

const OLD_FIELDS: [OldField; 5] = [
    OldField { name: "peerASN", nothing: || json!(0), rival: Some("dynamicASN") },
    OldField { name: "peerAddress", nothing: || json!(""), rival: Some("interface") },
    OldField { name: "password", nothing: || Value::Null, rival: Some("passwordSecret") },
    OldField { name: "holdTime", nothing: || json!("0s"), rival: None },
    OldField { name: "keepaliveTime", nothing: || json!("0s"), rival: None },
];

/// A BGPPeer in another version, `metallb.io/v1beta1` or `metallb.io/v1beta2`. Its metadata stays
/// as it is, but for the annotation [`V1BETA2_FIELDS`].
///
/// From v1beta1, the annotation gives the fields back that v1beta1 does not have, except those that
/// contradict what was written in v1beta1 since. What is not understood in it is ignored.
///
/// # Errors
/// When the object is no BGPPeer, or there is no such version of it.
pub fn convert(object: &Value, desired_api_version: &str) -> Result<Value, String> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let version = |api_version: &str| match api_version.split_once('/') {
        Some((GROUP, "v1beta1")) => Ok(Version::V1Beta1),
        Some((GROUP, "v1beta2")) => Ok(Version::V1Beta2),
        _ => {
            Err(format!("BGPPeers are of {GROUP}/v1beta1 or {GROUP}/v1beta2, not {api_version:?}"))
        }
    };
    if text("kind") != "BGPPeer" {
        return Err(format!(
            "only BGPPeers have versions to convert between, not {:?}",
            text("kind")
        ));
    }
    let (from, to) = (version(text("apiVersion"))?, version(desired_api_version)?);
    let mut object = object.clone();
    object["apiVersion"] = desired_api_version.into();
    match (from, to) {
        (Version::V1Beta1, Version::V1Beta1) | (Version::V1Beta2, Version::V1Beta2) => {}
        (Version::V1Beta2, Version::V1Beta1) => {
            let kept = object["spec"].as_object_mut().map(to_v1beta1).unwrap_or_default();
            take_annotation(&mut object);
            put_annotation(&mut object, kept);
        }
        (Version::V1Beta1, Version::V1Beta2) => {
            let kept = take_annotation(&mut object);
            if let Some(spec) = object["spec"].as_object_mut() {
                to_v1beta2(spec, kept);
            }
        }
    }
    Ok(object)
}

enum Version {
    V1Beta1,
    V1Beta2,
}

/// Takes out of a v1beta2 spec what v1beta1 has no place for.
fn to_v1beta1(spec: &mut Map<String, Value>) -> Map<String, Value> {
    let mut kept = Map::new();
    for name in NEW_FIELDS {
        let said_by_silence =
            |value: &Value| value.is_null() || (FLAGS.contains(&name) && *value == false);
        if let Some(value) = spec.remove(name).filter(|value| !said_by_silence(value)) {
            kept.insert(name.to_owned(), value);
        }
    }
    for old in OLD_FIELDS {
        if !old.says_nothing(spec) {
            continue;
        }
        let written = spec.remove(old.name).unwrap_or_default();
        let nothing = (old.nothing)();
        let has_rival = old.rival.is_some_and(|rival| kept.contains_key(rival));
        if written != nothing || has_rival {
            kept.insert(old.name.to_owned(), written.clone());
        }
        let shown = if nothing.is_null() { written } else { nothing };
        if !shown.is_null() {
            spec.insert(old.name.to_owned(), shown);
        }
    }
    kept
}

fn to_v1beta2(spec: &mut Map<String, Value>, mut kept: Map<String, Value>) {
    for name in NEW_FIELDS {
        spec.remove(name);
    }
    for old in OLD_FIELDS {
        let said_nothing_before = kept.contains_key(old.name);
        let before = kept.remove(old.name).filter(|value| old.is_nothing(value));
        if !old.says_nothing(spec) {
            if let (true, Some(rival)) = (said_nothing_before, old.rival) {
                kept.remove(rival);
            }
            continue;
        }
        let written = before.unwrap_or_else(old.nothing);
        spec.remove(old.name);
        if !written.is_null() {
            spec.insert(old.name.to_owned(), written);
        }
    }
    for name in NEW_FIELDS {
        if let Some(value) = kept.remove(name).filter(|value| is_readable(name, value)) {
            spec.insert(name.to_owned(), value);
        }
    }
    for name in FLAGS {
        spec.entry(name).or_insert(Value::Bool(false));
    }
    if spec.get("peerPort").is_none_or(|port| *port == 0) {
        spec.insert("peerPort".to_owned(), DEFAULT_BGP_PORT.into());
    }
}

impl OldField {
    fn says_nothing(&self, spec: &Map<String, Value>) -> bool {
        spec.get(self.name).is_none_or(|value| self.is_nothing(value))
    }

    fn is_nothing(&self, value: &Value) -> bool {
        value.is_null() || *value == "" || *value == (self.nothing)()
    }
}

/// Whether a value is of the type of its field: another one would make the object, and every list
/// that it is in, unreadable.
fn is_readable(name: &str, value: &Value) -> bool {
    let spec = json!({ "myASN": 0, (name): value });
    !value.is_null() && serde_json::from_value::<BGPPeerSpec>(spec).is_ok()
}

fn put_annotation(object: &mut Value, kept: Map<String, Value>) {
    if let (false, Some(metadata)) = (kept.is_empty(), object["metadata"].as_object_mut()) {
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(V1BETA2_FIELDS.to_owned(), Value::Object(kept).to_string().into());
        }
    }
}

/// What the annotation holds, which is removed; nothing when it is not there or not understood.
fn take_annotation(object: &mut Value) -> Map<String, Value> {
    let Some(metadata) = object["metadata"].as_object_mut() else { return Map::new() };
    let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
    let Some(annotations) = annotations else { return Map::new() };
    let Some(text) = annotations.remove(V1BETA2_FIELDS) else { return Map::new() };
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    text.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::BGPPeer;

    const OLD: &str = "metallb.io/v1beta1";
    const NEW: &str = "metallb.io/v1beta2";

    fn peer(api_version: &str, spec: Value) -> Value {
        json!({
            "apiVersion": api_version, "kind": "BGPPeer",
            "metadata": { "name": "router", "uid": "u", "labels": { "a": "b" } },
            "spec": spec,
            "status": { "conditions": [] },
        })
    }

    fn with_annotation(mut object: Value, text: &str) -> Value {
        object["metadata"]["annotations"] = json!({ V1BETA2_FIELDS: text });
        object
    }

    /// The spec in v1beta1, and the annotation.
    fn old_of(spec: Value) -> (Value, Value) {
        let old = convert(&peer(NEW, spec), OLD).unwrap();
        let text = old["metadata"]["annotations"][V1BETA2_FIELDS].as_str();
        (old["spec"].clone(), text.map(|text| text.parse().unwrap()).unwrap_or_default())
    }

    /// The spec in v1beta2 of one in v1beta1 with an annotation.
    fn new_of(spec: Value, annotation: &str) -> Value {
        let new = convert(&with_annotation(peer(OLD, spec), annotation), NEW).unwrap();
        assert_eq!(new["metadata"], peer(OLD, json!({}))["metadata"], "the annotation is gone");
        new["spec"].clone()
    }

    #[test]
    fn all_that_v1beta1_knows_survives_the_way_there_and_back() {
        let spec = json!({
            "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1",
            "sourceAddress": "192.0.2.2", "peerPort": 1179, "holdTime": "1m30s",
            "keepaliveTime": "30s", "routerID": "192.0.2.2", "password": "secret",
            "bfdProfile": "fast", "ebgpMultiHop": true,
            "nodeSelectors": [{
                "matchLabels": { "rack": "1" },
                "matchExpressions": [{ "key": "zone", "operator": "Exists" }],
            }],
        });
        let old = peer(OLD, spec.clone());
        let new = convert(&old, NEW).unwrap();
        let mut expected = peer(NEW, spec);
        expected["spec"]["disableMP"] = false.into();
        expected["spec"]["dualStackAddressFamily"] = false.into();
        assert_eq!(new, expected);
        assert_eq!(convert(&new, OLD).unwrap(), old);
        assert_eq!(convert(&old, OLD).unwrap(), old);
    }

    #[test]
    fn what_v1beta1_cannot_say_stands_in_the_annotation() {
        for (spec, old, annotation) in [
            (
                json!({ "interface": "eth1", "dynamicASN": "external", "holdTime": "9s",
                        "keepaliveTime": "3s", "disableMP": false }),
                json!({ "peerAddress": "", "peerASN": 0, "holdTime": "9s", "keepaliveTime": "3s" }),
                json!({ "interface": "eth1", "dynamicASN": "external", "peerAddress": null,
                        "peerASN": null }),
            ),
            (
                json!({ "peerAddress": "192.0.2.1", "peerASN": 1, "vrf": "red",
                        "passwordSecret": { "name": "key" } }),
                json!({ "peerAddress": "192.0.2.1", "peerASN": 1, "holdTime": "0s",
                        "keepaliveTime": "0s" }),
                json!({ "vrf": "red", "passwordSecret": { "name": "key" }, "password": null,
                        "holdTime": null, "keepaliveTime": null }),
            ),
            (
                json!({ "peerAddress": "192.0.2.1", "peerASN": 1, "holdTime": "0s",
                        "keepaliveTime": "0s", "password": "" }),
                json!({ "peerAddress": "192.0.2.1", "peerASN": 1, "holdTime": "0s",
                        "keepaliveTime": "0s", "password": "" }),
                json!({ "password": "" }),
            ),
        ] {
            assert_eq!(old_of(spec.clone()), (old, annotation), "{spec}");
        }
    }

    #[test]
    fn times_that_are_not_written_in_v1beta1_are_zero() {
        let new = new_of(json!({ "myASN": 1, "peerASN": 2, "peerAddress": "192.0.2.1" }), "{}");
        assert_eq!((&new["holdTime"], &new["keepaliveTime"]), (&json!("0s"), &json!("0s")));
        assert_eq!(new["peerPort"], DEFAULT_BGP_PORT);
        let port = json!({ "myASN": 1, "peerASN": 2, "peerAddress": "192.0.2.1", "peerPort": 0 });
        assert_eq!(new_of(port, "{}")["peerPort"], DEFAULT_BGP_PORT);
    }

    #[test]
    fn what_was_written_in_v1beta1_since_wins() {
        let all = json!({
            "myASN": 1, "interface": "eth1", "dynamicASN": "external", "vrf": "red",
            "passwordSecret": { "name": "key" },
        });
        for (field, value, gone) in [
            ("peerAddress", json!("192.0.2.1"), Some("interface")),
            ("peerASN", json!(2), Some("dynamicASN")),
            ("password", json!("x"), Some("passwordSecret")),
            ("holdTime", json!("30s"), None),
            ("myASN", json!(3), None),
        ] {
            let mut old = convert(&peer(NEW, all.clone()), OLD).unwrap();
            old["spec"][field] = value.clone();
            let mut expected = all.clone();
            expected[field] = value;
            expected["peerPort"] = DEFAULT_BGP_PORT.into();
            expected["disableMP"] = false.into();
            expected["dualStackAddressFamily"] = false.into();
            if let Some(gone) = gone {
                expected.as_object_mut().unwrap().remove(gone);
            }
            assert_eq!(convert(&old, NEW).unwrap(), peer(NEW, expected), "{field}");
        }
    }

    #[test]
    fn what_is_not_understood_in_the_annotation_is_ignored() {
        let spec = json!({ "myASN": 1, "peerASN": 2, "peerAddress": "192.0.2.1" });
        let plain = new_of(spec.clone(), "{}");
        for text in [
            "",
            "x",
            "[]",
            "null",
            "7",
            r#"{"myASN": 9, "x": 1}"#,
            r#"{"localASN": "x", "vrf": 7, "passwordSecret": [7], "dynamicASN": "both"}"#,
            r#"{"interface": null, "connectTime": null}"#,
            r#"{"peerAddress": "203.0.113.1", "peerASN": 7, "holdTime": "7s"}"#,
        ] {
            assert_eq!(new_of(spec.clone(), text), plain, "{text}");
        }
        let mut foreign = peer(OLD, spec.clone());
        foreign["metadata"]["annotations"] = json!({ V1BETA2_FIELDS: 7, "note": "x" });
        let new = convert(&foreign, NEW).unwrap();
        assert_eq!(new["metadata"]["annotations"], json!({ "note": "x" }));
        // In v1beta2 it means nothing, and must not mean anything later.
        let stray = with_annotation(peer(NEW, plain), r#"{"vrf": "red"}"#);
        let old = convert(&stray, OLD).unwrap();
        assert_eq!(old["metadata"].get("annotations"), None);
    }

    #[test]
    fn other_kinds_and_versions_are_refused_and_bad_objects_are_not() {
        let good = peer(OLD, json!({}));
        let mut other = good.clone();
        other["kind"] = "Community".into();
        for (object, version, complaint) in [
            (&other, NEW, "not \"Community\""),
            (&good, "metallb.io/v1", "not \"metallb.io/v1\""),
            (&good, "v1beta2", "not \"v1beta2\""),
            (&json!(null), NEW, "not \"\""),
            (&json!({ "kind": "BGPPeer", "apiVersion": "x/v1beta1" }), NEW, "\"x/v1beta1\""),
        ] {
            let refusal = convert(object, version).unwrap_err();
            assert!(refusal.contains(complaint), "{refusal}");
        }
        for bad in [json!(null), json!(7), json!([]), json!({ "peerASN": "x" })] {
            for (from, to) in [(OLD, NEW), (NEW, OLD)] {
                let mut object = peer(from, bad.clone());
                assert_eq!(convert(&object, to).unwrap()["apiVersion"], to);
                object["metadata"] = bad.clone();
                assert!(convert(&object, to).is_ok());
            }
        }
    }

    /// Any text that a field may hold, often one that says nothing.
    fn text() -> impl Strategy<Value = Value> {
        prop_oneof![Just(json!("")), Just(json!("0s")), "[a-z0-9.:]{1,9}".prop_map(Value::from)]
    }

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![Just(json!(0)), any::<u32>().prop_map(Value::from)]
    }

    fn flag() -> impl Strategy<Value = Value> {
        any::<bool>().prop_map(Value::from)
    }

    fn any_spec() -> impl Strategy<Value = Value> {
        let field = |name: &'static str, value: BoxedStrategy<Value>| {
            proptest::option::of(value).prop_map(move |value| value.map(|value| (name, value)))
        };
        let fields = [
            field("peerASN", number().boxed()),
            field("dynamicASN", Just(json!("internal")).boxed()),
            field("localASN", number().boxed()),
            field("peerAddress", text().boxed()),
            field("interface", text().boxed()),
            field("sourceAddress", text().boxed()),
            field("peerPort", (1..=16384u32).prop_map(Value::from).boxed()),
            field("holdTime", text().boxed()),
            field("keepaliveTime", text().boxed()),
            field("connectTime", text().boxed()),
            field("routerID", text().boxed()),
            field("nodeSelectors", Just(json!([{ "matchLabels": { "a": "b" } }])).boxed()),
            field("password", text().boxed()),
            field("passwordSecret", text().prop_map(|name| json!({ "name": name })).boxed()),
            field("bfdProfile", text().boxed()),
            field("enableGracefulRestart", flag().boxed()),
            field("ebgpMultiHop", flag().boxed()),
            field("vrf", text().boxed()),
            field("disableMP", flag().boxed()),
            field("dualStackAddressFamily", flag().boxed()),
            field("passive", flag().boxed()),
            field("ttlSecurityHops", (1..=254u8).prop_map(Value::from).boxed()),
            field("localPref", number().boxed()),
            field("med", number().boxed()),
            field("asPathPrepend", (0..=10u8).prop_map(Value::from).boxed()),
            field("minAdvertisementInterval", text().boxed()),
            field("gracefulRestartTime", text().boxed()),
            field("bfdStrict", flag().boxed()),
            field(
                "tcpAO",
                Just(json!({ "sendID": 1, "receiveID": 2, "algorithm": "HMACSHA1" })).boxed(),
            ),
        ];
        fields.to_vec().prop_map(|fields| {
            let mut spec = json!({ "myASN": 64500 });
            for (name, value) in fields.into_iter().flatten() {
                spec[name] = value;
            }
            spec
        })
    }

    proptest! {
        #[test]
        fn there_and_back_is_the_same(spec in any_spec()) {
            let read = |object: &Value| serde_json::from_value::<BGPPeer>(object.clone()).unwrap();
            let new = peer(NEW, spec);
            let old = convert(&new, OLD).unwrap();
            let v1beta1: Result<crate::v1beta1::BGPPeer, _> = serde_json::from_value(old.clone());
            prop_assert!(v1beta1.is_ok(), "{old}");
            let back = convert(&old, NEW).unwrap();
            prop_assert_eq!(read(&back), read(&new));
            prop_assert_eq!(&back["metadata"], &new["metadata"]);
            // What an API server has filled in stays to the letter.
            prop_assert_eq!(convert(&convert(&back, OLD).unwrap(), NEW).unwrap(), back);
        }

        #[test]
        fn any_annotation_leaves_an_object_that_can_be_read(
            spec in any_spec(),
            fields in any_spec(),
            garbage in "\\PC{0,20}",
        ) {
            let old = convert(&peer(NEW, spec), OLD).unwrap();
            for text in [fields.to_string(), garbage] {
                let new = convert(&with_annotation(old.clone(), &text), NEW).unwrap();
                prop_assert!(serde_json::from_value::<BGPPeer>(new).is_ok());
            }
        }
    }
}
