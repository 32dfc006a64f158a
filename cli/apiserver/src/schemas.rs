//! The forms of all kinds that are served, to hold objects against without a server.

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    api::{Persistence, UnknownFields, WriteOptions},
    object::{Request, shape},
    resource::Registry,
};

/// Every kind that an [`ApiServer`](crate::ApiServer) serves.
#[derive(Debug)]
pub struct Schemas {
    registry: Registry,
}

impl Default for Schemas {
    fn default() -> Self {
        Self { registry: Registry::new(&crds::all()) }
    }
}

impl Schemas {
    /// The object as an API server would take it: without the fields that its kind does not have,
    /// about which the warnings are, and with the defaults of `metallb.io`. `None` for kinds that are
    /// not served, and for objects that have not the form of their kind.
    pub fn shaped(&self, object: Value) -> Option<(Value, Vec<String>)> {
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let resource = self.registry.by_kind(text("apiVersion"), text("kind"))?;
        let options = WriteOptions {
            manager: "",
            persistence: Persistence::DryRun,
            unknown_fields: UnknownFields::Warn,
            now: Timestamp::UNIX_EPOCH,
        };
        shape(resource, object, options, Request::Put).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_that_a_kind_does_not_have() {
        let schemas = Schemas::default();
        for (object, unknown) in [
            (
                json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                       "metadata": {"name": "a", "lables": {}},
                       "spec": {"addresses": [], "adresses": []}}),
                Some(vec!["metadata.lables", "spec.adresses"]),
            ),
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
                       "spec": {"type": "LoadBalancer", "ports": [{"port": 1, "prot": "x"}]}}),
                Some(vec!["spec.ports[0].prot"]),
            ),
            (json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": 1}, "x": 1}), None),
            (json!({"apiVersion": "apps/v1", "kind": "Deployment", "x": 1}), None),
        ] {
            let said = |field: &str| format!("unknown field {field:?}");
            let expected = unknown.map(|unknown| unknown.into_iter().map(said).collect());
            let found = schemas.shaped(object.clone()).map(|(_, warnings)| warnings);
            assert_eq!(found, expected, "{object}");
        }
    }

    #[test]
    fn defaults_are_filled_in() {
        let object = json!({"apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement",
                            "metadata": {"name": "a"}});
        let (shaped, _) = Schemas::default().shaped(object).unwrap();
        assert_eq!(shaped["spec"], json!({}));
    }
}
