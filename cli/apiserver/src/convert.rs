//! Between the form of an object that a version of the API shows and the form that is stored.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::resource::{Form, Resource};

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
        Form::BgpPeerV1Beta1 => through::<crds::v1beta1::BGPPeer, crds::BGPPeer>(object),
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
        Form::BgpPeerV1Beta1 => {
            // What even the type cannot hold is shown with all its fields instead.
            through::<crds::BGPPeer, crds::v1beta1::BGPPeer>(object).unwrap_or_else(|_| {
                let mut object = stored.clone();
                object["apiVersion"] = json!(resource.api_version());
                object
            })
        }
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

fn through<From, To>(object: Value) -> Result<Value, serde_json::Error>
where
    From: DeserializeOwned,
    To: Serialize + std::convert::From<From>,
{
    serde_json::to_value(To::from(serde_json::from_value::<From>(object)?))
}
