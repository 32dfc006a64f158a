//! Between the form of an object that a version of the API shows and the form that is stored.

use serde_json::{Value, json};

use crate::resource::{Form, Resource};

/// The version of BGPPeer that is stored.
const STORED_PEER: &str = "metallb.io/v1beta2";

/// The Event fields of the core form beside those of `events.k8s.io/v1`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The stored form of an object.
///
/// # Errors
/// Says which value does not fit the version that the object is written in.
pub(crate) fn to_stored(
    resource: &Resource,
    mut object: Value,
) -> Result<Value, serde_json::Error> {
    match resource.form {
        Form::Stored => Ok(object),
        Form::EventsV1 => {
            rename(&mut object, EVENT_FIELDS.map(|(core, new)| (new, core)));
            object["apiVersion"] = json!("v1");
            Ok(object)
        }
        Form::BgpPeerV1Beta1 => {
            crds::convert(&object, STORED_PEER).map_err(serde::de::Error::custom)
        }
    }
}

/// The form in which a version shows a stored object.
pub(crate) fn from_stored(resource: &Resource, stored: &Value) -> Value {
    let mut object = stored.clone();
    match resource.form {
        Form::Stored => object,
        Form::EventsV1 => {
            rename(&mut object, EVENT_FIELDS);
            object["apiVersion"] = json!(resource.api_version());
            object
        }
        Form::BgpPeerV1Beta1 => crds::convert(stored, &resource.api_version()).unwrap_or(object),
    }
}

fn rename<const N: usize>(object: &mut Value, fields: [(&str, &str); N]) {
    let Some(object) = object.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}
