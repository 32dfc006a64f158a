//! What an API server makes of a manifest before the controller sees it, as far as the plan depends
//! on it: an object that is there already, and cluster IPs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use controller::service::{ALLOCATED_FROM_POOL, Family};
use k8s_openapi::api::core::v1;
use serde_json::Value;

use super::read::Object;

/// What `kubectl apply` remembers of the last manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What `kubectl apply` makes of an object: fields that the last manifest had and this one has not
/// go away, those of this one are set, all others stay. Lists are replaced as a whole.
pub fn after_apply(live: Option<&Object>, new: &Object) -> Object {
    let mut wanted = new.value.clone();
    if let Some(object) = wanted.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = wanted["metadata"].as_object_mut() {
        for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"]
        {
            metadata.remove(field);
        }
    }
    let Some(live) = live else { return Object { place: new.place.clone(), value: wanted } };
    let last = live
        .value
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(LAST_APPLIED)?.as_str());
    let last = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null);
    let mut merged = live.value.clone();
    if merged["apiVersion"] != wanted["apiVersion"] {
        // Fields of another version have other names.
        merged["spec"] = Value::Null;
    }
    remove_what_is_gone(&mut merged, &last, &wanted);
    json_patch::merge(&mut merged, &wanted);
    let families = |object: &Value| {
        (object["spec"]["ipFamilyPolicy"].clone(), object["spec"]["ipFamilies"].clone())
    };
    // The API server then takes or gives the second cluster IP.
    if families(&merged) != families(&live.value)
        && let Some(spec) = merged.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.remove("clusterIPs");
    }
    Object { place: new.place.clone(), value: merged }
}

fn remove_what_is_gone(live: &mut Value, last: &Value, new: &Value) {
    let (Some(fields), Some(last)) = (live.as_object_mut(), last.as_object()) else { return };
    for (name, last) in last {
        match (new.get(name), fields.get_mut(name)) {
            (None, Some(_)) if name != ALLOCATED_FROM_POOL => {
                fields.remove(name);
            }
            (Some(new), Some(live)) => remove_what_is_gone(live, last, new),
            (_, None) | (None, Some(_)) => {}
        }
    }
}

/// Gives a manifest the cluster IPs that the API server would give it. Only their families matter;
/// which they are cannot be known.
pub fn give_cluster_ips(service: &mut v1::Service, of_cluster: &[Family]) {
    let Some(spec) = service.spec.as_mut() else { return };
    let has_all = spec.cluster_ips.as_ref().is_some_and(|all| !all.is_empty());
    if spec.type_.as_deref() != Some("LoadBalancer") || has_all {
        return;
    }
    let given = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    if given == Some("None") {
        return;
    }
    let asked: Vec<Family> = spec.ip_families.iter().flatten().filter_map(|f| named(f)).collect();
    let fixed = given.and_then(|ip| ip.parse().ok()).map(Family::of);
    let first = fixed.or_else(|| asked.first().copied()).or_else(|| of_cluster.first().copied());
    let first = first.unwrap_or(Family::V4);
    let policy = spec.ip_family_policy.as_deref();
    let wants_both =
        asked.len() == 2 || matches!(policy, Some("PreferDualStack" | "RequireDualStack"));
    let mut ips = vec![given.map_or_else(|| unspecified(first), str::to_owned)];
    if wants_both && of_cluster.contains(&first.other()) {
        ips.push(unspecified(first.other()));
    }
    spec.cluster_ip = ips.first().cloned();
    spec.cluster_ips = Some(ips);
}

fn named(family: &str) -> Option<Family> {
    Family::ALL.into_iter().find(|known| known.to_string() == family)
}

fn unspecified(family: Family) -> String {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    ip.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::read::Place;

    #[test]
    fn manifests_get_cluster_ips_as_from_an_api_server() {
        let both = [Family::V4, Family::V6].as_slice();
        let v4 = [Family::V4].as_slice();
        let v6_first = [Family::V6, Family::V4].as_slice();
        for (spec, families, expected) in [
            (json!({}), both, vec!["0.0.0.0"]),
            (json!({}), v6_first, vec!["::"]),
            (json!({"ipFamilies": ["IPv6"]}), both, vec!["::"]),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), both, vec!["::", "0.0.0.0"]),
            (json!({"ipFamilyPolicy": "SingleStack"}), both, vec!["0.0.0.0"]),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), both, vec!["0.0.0.0", "::"]),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), v4, vec!["0.0.0.0"]),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), v6_first, vec!["::", "0.0.0.0"]),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                both,
                vec!["::", "0.0.0.0"],
            ),
            (json!({"clusterIP": "fd00::1"}), both, vec!["fd00::1"]),
            (
                json!({"clusterIP": "10.0.0.1", "ipFamilyPolicy": "RequireDualStack"}),
                both,
                vec!["10.0.0.1", "::"],
            ),
            (
                json!({"clusterIPs": ["10.0.0.1"], "ipFamilyPolicy": "PreferDualStack"}),
                both,
                vec!["10.0.0.1"],
            ),
            (json!({"clusterIP": "None"}), both, vec![]),
            (json!({"type": "ClusterIP"}), both, vec![]),
        ] {
            let mut full = json!({"type": "LoadBalancer"});
            json_patch::merge(&mut full, &spec);
            let mut service = serde_json::from_value(json!({"spec": full})).unwrap();
            give_cluster_ips(&mut service, families);
            let given = service.spec.unwrap().cluster_ips.unwrap_or_default();
            assert_eq!(given, expected, "{spec} {families:?}");
        }
    }

    #[test]
    fn an_apply_keeps_what_is_not_in_the_manifest() {
        let object = |value: &Value| Object { place: Place::Cluster, value: value.clone() };
        let last = json!({"metadata": {"annotations": {"gone": "1"}}, "spec": {"a": 1, "b": 1}});
        let live = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"gone": "1", "by-hand": "1", LAST_APPLIED: last.to_string()}},
            "spec": {"a": 1, "b": 1, "clusterIPs": ["10.0.0.1"], "clusterIP": "10.0.0.1"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
        });
        let new = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "annotations": {"new": "1"},
                         "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"b": 2}, "status": {},
        });
        let applied = after_apply(Some(&object(&live)), &object(&new)).value;
        let annotations = applied["metadata"]["annotations"].as_object().unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["by-hand", LAST_APPLIED, "new"]);
        assert_eq!(
            applied["spec"],
            json!({"b": 2, "clusterIPs": ["10.0.0.1"], "clusterIP": "10.0.0.1"})
        );
        assert_eq!(applied["status"], live["status"]);
        assert_eq!(applied["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");

        let dual = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
                          "spec": {"ipFamilyPolicy": "RequireDualStack"}});
        let applied = after_apply(Some(&object(&live)), &object(&dual)).value;
        assert_eq!(applied["spec"]["clusterIPs"], Value::Null);
        assert_eq!(applied["spec"]["clusterIP"], "10.0.0.1");
        let created = after_apply(None, &object(&new)).value;
        assert_eq!(created["metadata"]["creationTimestamp"], Value::Null);
        assert_eq!(created["status"], Value::Null);
    }
}
