//! What Berth relies on in an API server, as checks that hold on a real kube-apiserver and on the
//! embedded one alike.
//!
//! The checks speak JSON over a [`kube::Client`] and look at codes, reasons and stored objects, not
//! at the wording of messages. They work in namespaces of their own, and with our kinds also in
//! `metallb-system`, where objects get names that no one else uses; all are deleted at the end.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures::{StreamExt, TryStreamExt, future::join_all, stream::BoxStream};
use http::Request;
use kube::{Client, ResourceExt, core::WatchEvent};
use serde_json::{Value, json};
use tokio::time::timeout;

/// For a single event of a watch; they come within milliseconds.
const EVENT_LIMIT: Duration = Duration::from_secs(10);
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Runs all checks, one after the other; each has its name and its result.
///
/// Installs our CustomResourceDefinitions and the namespace `metallb-system` where they are
/// missing.
///
/// # Errors
/// The server could not be prepared for the checks.
pub async fn run(client: Client) -> Result<Vec<(&'static str, Result<()>)>> {
    let suite = Suite::prepare(client).await?;
    let s = &suite;
    let mut results = Vec::new();
    macro_rules! check {
        ($($name:ident),* $(,)?) => {
            $(
                // Shown for a check that hangs.
                println!("{}", stringify!($name));
                results.push((stringify!($name), s.$name().await));
            )*
        };
    }
    check!(
        services_get_defaults,
        services_keep_what_was_allocated,
        services_follow_their_type,
        dual_stack_services,
        bad_services_are_refused,
        service_status_takes_annotations_along,
        service_status_refusals,
        service_status_is_cleared,
        service_conditions_by_both_patches,
        writing_the_same_changes_nothing,
        guards_of_a_patch,
        guards_of_a_put,
        guards_of_a_delete,
        our_kinds_get_defaults,
        our_kinds_follow_their_schema,
        our_kinds_take_no_strategic_patch,
        our_status_is_apart,
        peers_in_both_versions,
        not_found_has_its_reason,
        names_are_checked,
        names_are_made_up,
        dry_runs_leave_nothing,
        selectors,
        pages,
        tables_and_metadata,
        watch_from_a_version,
        watch_through_a_selector,
        watch_with_initial_events,
        watch_ends_in_time,
        watch_from_the_distant_past,
        leases,
        service_ranges_are_told,
        clients_are_looked_up,
        webhook_configurations_are_kept,
        conversion_of_a_definition_is_written,
        events_in_both_versions,
        secrets_and_config_maps,
        finalizers_hold_a_deletion,
        collections_are_deleted,
        strategic_patch_of_ports,
        json_patches,
        server_side_apply,
        server_side_apply_of_ports,
    );
    suite.clean_up().await?;
    Ok(results)
}

struct Suite {
    client: Client,
    namespace: String,
}

impl Suite {
    async fn prepare(client: Client) -> Result<Self> {
        let mut suite = Self { client, namespace: String::new() };
        let system = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "metallb-system"}});
        match suite.post("/api/v1/namespaces", &system).await {
            Ok(_) => {}
            Err(error) if code_of(&error) == 409 => {}
            Err(error) => return Err(error),
        }
        for crd in crds::all() {
            let path = format!(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}",
                crd.name_any()
            );
            if suite.get(&path).await.is_err() {
                let all = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
                suite.post(all, &json!(crd)).await?;
            }
            suite.until_established(&path).await?;
        }
        let own = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"generateName": "api-suite-"}});
        let own = suite.post("/api/v1/namespaces", &own).await?;
        suite.namespace = text(&own["metadata"]["name"]);
        Ok(suite)
    }

    async fn clean_up(&self) -> Result<()> {
        for plural in ["ipaddresspools", "bgppeers", "servicel2statuses"] {
            let selected = format!("?labelSelector=suite%3D{}", self.namespace);
            let version = if plural == "bgppeers" { "v1beta2" } else { "v1beta1" };
            let path =
                format!("/apis/metallb.io/{version}/namespaces/metallb-system/{plural}{selected}");
            self.delete(&path, &Value::Null).await?;
        }
        self.delete(&format!("/api/v1/namespaces/{}", self.namespace), &Value::Null).await?;
        Ok(())
    }

    async fn until_established(&self, crd: &str) -> Result<()> {
        for _ in 0..100 {
            let conditions = self.get(crd).await?["status"]["conditions"].clone();
            let mut conditions = conditions.as_array().into_iter().flatten();
            if conditions.any(|c| c["type"] == "Established" && c["status"] == "True") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("{crd} is not established")
    }

    async fn services_get_defaults(&self) -> Result<()> {
        let service = self.service("defaults", &json!({"type": "LoadBalancer"})).await?;
        let spec = &service["spec"];
        for (field, wanted) in [
            ("allocateLoadBalancerNodePorts", json!(true)),
            ("externalTrafficPolicy", json!("Cluster")),
            ("internalTrafficPolicy", json!("Cluster")),
            ("ipFamilyPolicy", json!("SingleStack")),
            ("ipFamilies", json!(["IPv4"])),
            ("sessionAffinity", json!("None")),
        ] {
            equal(&spec[field], &wanted, field)?;
        }
        equal(&spec["clusterIPs"], &json!([spec["clusterIP"]]), "clusterIPs")?;
        equal(&spec["ports"][0]["protocol"], &json!("TCP"), "protocol")?;
        equal(&spec["ports"][0]["targetPort"], &json!(80), "targetPort")?;
        ensure!(spec["ports"][0]["nodePort"].as_u64() >= Some(30000), "no node port: {spec}");
        equal(&service["status"], &json!({"loadBalancer": {}}), "status")?;
        for stamp in ["uid", "creationTimestamp", "resourceVersion"] {
            ensure!(service["metadata"][stamp].is_string(), "no {stamp}");
        }
        let plain = self.service("plain", &json!({})).await?;
        equal(&plain["spec"]["type"], &json!("ClusterIP"), "type")?;
        for absent in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts"] {
            equal(&plain["spec"][absent], &Value::Null, absent)?;
        }
        equal(&plain["spec"]["ports"][0]["nodePort"], &Value::Null, "nodePort")?;
        let bare = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "externalTrafficPolicy": "Local"});
        let bare = self.service("bare", &bare).await?;
        equal(&bare["spec"]["ports"][0]["nodePort"], &Value::Null, "nodePort")?;
        ensure!(bare["spec"]["healthCheckNodePort"].is_u64(), "Local has a health check port");
        let headless = self.service("headless", &json!({"clusterIP": "None"})).await?;
        equal(&headless["spec"]["clusterIPs"], &json!(["None"]), "clusterIPs")
    }

    async fn services_keep_what_was_allocated(&self) -> Result<()> {
        let first = self.service("keeps", &json!({"type": "LoadBalancer"})).await?;
        let mut sparse = service("keeps", &json!({"type": "LoadBalancer"}));
        sparse["spec"]["ports"][0]["targetPort"] = json!(8080);
        let second = self.put(&self.services("keeps"), &sparse).await?;
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            equal(&second["spec"][field], &first["spec"][field], field)?;
        }
        let port = |service: &Value| service["spec"]["ports"][0]["nodePort"].clone();
        equal(&port(&second), &port(&first), "nodePort")?;
        let taken = json!({"type": "NodePort", "ports": [{"port": 81, "nodePort": port(&first)}]});
        refused(self.service("thief", &taken).await, 422, "Invalid")?;
        let taken = json!({"clusterIP": first["spec"]["clusterIP"]});
        refused(self.service("thief", &taken).await, 422, "Invalid")?;
        let moved = json!({"spec": {"clusterIP": "10.96.77.77", "clusterIPs": ["10.96.77.77"]}});
        refused(self.patch(&self.services("keeps"), MERGE, &moved).await, 422, "Invalid")
    }

    async fn services_follow_their_type(&self) -> Result<()> {
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        self.service("turns", &local).await?;
        let path = self.services("turns");
        let status = json!({"metadata": {"annotations": {"metallb.io/ip-allocated-from-pool": "p"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}, "conditions": [
                condition("kept", "True")]}});
        self.patch(&format!("{path}/status"), MERGE, &status).await?;
        let turned = self.patch(&path, MERGE, &json!({"spec": {"type": "ClusterIP"}})).await?;
        equal(&turned["status"]["loadBalancer"], &json!({}), "loadBalancer")?;
        equal(&turned["status"]["conditions"][0]["type"], &json!("kept"), "conditions")?;
        let annotation = &turned["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"];
        equal(annotation, &json!("p"), "the annotation stays")?;
        for gone in ["healthCheckNodePort", "externalTrafficPolicy"] {
            equal(&turned["spec"][gone], &Value::Null, gone)?;
        }
        equal(&turned["spec"]["ports"][0]["nodePort"], &Value::Null, "nodePort")?;
        let back = self.patch(&path, MERGE, &json!({"spec": {"type": "LoadBalancer"}})).await?;
        equal(&back["spec"]["clusterIP"], &turned["spec"]["clusterIP"], "clusterIP")?;
        ensure!(back["spec"]["ports"][0]["nodePort"].is_u64(), "a node port again");
        let class = json!({"spec": {"loadBalancerClass": "x.example/other"}});
        refused(self.patch(&path, MERGE, &class).await, 422, "Invalid")
    }

    async fn dual_stack_services(&self) -> Result<()> {
        let both = self.service("both", &json!({"ipFamilyPolicy": "RequireDualStack"})).await?;
        equal(&both["spec"]["ipFamilies"], &json!(["IPv4", "IPv6"]), "ipFamilies")?;
        ensure!(text(&both["spec"]["clusterIPs"][1]).contains(':'), "{}", both["spec"]);
        let six = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]});
        let six = self.service("six", &six).await?;
        equal(&six["spec"]["ipFamilies"], &json!(["IPv6", "IPv4"]), "ipFamilies")?;
        let one = self.service("one", &json!({})).await?;
        let wider = json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}});
        let wider = self.patch(&self.services("one"), MERGE, &wider).await?;
        equal(&wider["spec"]["clusterIPs"][0], &one["spec"]["clusterIP"], "first address")?;
        equal(&wider["spec"]["ipFamilies"], &json!(["IPv4", "IPv6"]), "ipFamilies")?;
        let narrow = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
        let narrow = self.patch(&self.services("one"), MERGE, &narrow).await?;
        equal(&narrow["spec"]["clusterIPs"], &one["spec"]["clusterIPs"], "clusterIPs")
    }

    async fn bad_services_are_refused(&self) -> Result<()> {
        for spec in [
            json!({"ports": []}),
            json!({"type": "Balancer"}),
            json!({"ports": [{"port": 0}]}),
            json!({"ports": [{"port": 65536}]}),
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            json!({"clusterIP": "192.0.2.77"}),
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            json!({"ipFamilyPolicy": "Both"}),
        ] {
            refused(self.service("bad", &spec).await, 422, "Invalid").context(spec.to_string())?;
        }
        let wrong_type = json!({"ports": [{"port": "http"}]});
        refused(self.service("bad", &wrong_type).await, 400, "BadRequest")
    }

    async fn service_status_takes_annotations_along(&self) -> Result<()> {
        self.service("status", &json!({"type": "LoadBalancer"})).await?;
        let path = format!("{}/status", self.services("status"));
        let write = json!({
            "metadata": {"annotations": {"pool": "a"}, "labels": {"l": "a"}},
            "spec": {"externalTrafficPolicy": "Local"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "x.example"}]}},
        });
        let written = self.patch(&path, MERGE, &write).await?;
        equal(&written["metadata"]["annotations"]["pool"], &json!("a"), "annotation")?;
        equal(&written["metadata"]["labels"]["l"], &json!("a"), "label")?;
        equal(&written["spec"]["externalTrafficPolicy"], &json!("Cluster"), "spec")?;
        let filled = json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"hostname": "x.example"}]);
        equal(&written["status"]["loadBalancer"]["ingress"], &filled, "ingress")?;
        let mut whole = written.clone();
        whole["status"]["loadBalancer"]["ingress"] = json!([{"ip": "192.0.2.2"}]);
        whole["metadata"]["annotations"]["pool"] = json!("b");
        let written = self.put(&path, &whole).await?;
        equal(&written["metadata"]["annotations"]["pool"], &json!("b"), "annotation by PUT")?;
        let main = json!({"status": {"loadBalancer": null}, "metadata": {"labels": {"l": "b"}}});
        let written = self.patch(&self.services("status"), MERGE, &main).await?;
        let ingress = json!([{"ip": "192.0.2.2", "ipMode": "VIP"}]);
        equal(&written["status"]["loadBalancer"]["ingress"], &ingress, "status by the main path")
    }

    async fn service_status_refusals(&self) -> Result<()> {
        self.service("inside", &json!({})).await?;
        self.service("outside", &json!({"type": "LoadBalancer"})).await?;
        let status = |ingress: Value| json!({"status": {"loadBalancer": {"ingress": [ingress]}}});
        for (name, ingress) in [
            ("inside", json!({"ip": "192.0.2.1"})),
            ("outside", json!({"ip": "192.0.2.256"})),
            ("outside", json!({"hostname": "x.example", "ipMode": "VIP"})),
            ("outside", json!({"ip": "192.0.2.1", "ipMode": "Both"})),
        ] {
            let path = format!("{}/status", self.services(name));
            let patched = self.patch(&path, MERGE, &status(ingress.clone())).await;
            refused(patched, 422, "Invalid").context(ingress.to_string())?;
        }
        let path = format!("{}/status", self.services("nowhere"));
        let patched = self.patch(&path, MERGE, &status(json!({"ip": "192.0.2.1"}))).await;
        refused(patched, 404, "NotFound")
    }

    async fn service_status_is_cleared(&self) -> Result<()> {
        self.service("clears", &json!({"type": "LoadBalancer"})).await?;
        let path = format!("{}/status", self.services("clears"));
        let write = json!({"metadata": {"annotations": {"pool": "a"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        self.patch(&path, MERGE, &write).await?;
        let clear = json!({"metadata": {"annotations": {"pool": null}},
            "status": {"loadBalancer": null}});
        let cleared = self.patch(&path, MERGE, &clear).await?;
        equal(&cleared["status"], &json!({"loadBalancer": {}}), "status")?;
        equal(&cleared["metadata"]["annotations"]["pool"], &Value::Null, "annotation")
    }

    async fn service_conditions_by_both_patches(&self) -> Result<()> {
        self.service("conditions", &json!({"type": "LoadBalancer"})).await?;
        let path = format!("{}/status", self.services("conditions"));
        let with = |kind: &str| json!({"status": {"conditions": [condition(kind, "True")]}});
        self.patch(&path, MERGE, &with("a")).await?;
        let merged = self.patch(&path, STRATEGIC, &with("b")).await?;
        equal(&json!(merged["status"]["conditions"].as_array().map(Vec::len)), &json!(2), "both")?;
        let replaced = self.patch(&path, MERGE, &with("c")).await?;
        let kinds = &replaced["status"]["conditions"];
        equal(&json!(kinds.as_array().map(Vec::len)), &json!(1), "one condition")
    }

    async fn writing_the_same_changes_nothing(&self) -> Result<()> {
        self.service("same", &json!({"type": "LoadBalancer"})).await?;
        let path = self.services("same");
        let status = json!({"metadata": {"annotations": {"a": "b"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let first = self.patch(&format!("{path}/status"), MERGE, &status).await?;
        for _ in 0..2 {
            let again = self.patch(&format!("{path}/status"), MERGE, &status).await?;
            same_version(&again, &first)?;
        }
        let again = self.put(&path, &first).await?;
        same_version(&again, &first)?;
        let pool = self.create_pool("same", &json!({})).await?;
        let path = self.pools("same");
        let again = self.patch(&path, MERGE, &json!({"spec": {"autoAssign": true}})).await?;
        same_version(&again, &pool)?;
        let path = self.pools("same-applied");
        let configuration = self.pool("same-applied", &json!({"avoidBuggyIPs": true}));
        let applied = self.apply(&path, "one", &configuration).await?;
        same_version(&self.apply(&path, "one", &configuration).await?, &applied)
    }

    async fn guards_of_a_patch(&self) -> Result<()> {
        let before = self.service("guards", &json!({"type": "LoadBalancer"})).await?;
        let path = self.services("guards");
        let now = self.patch(&path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}})).await?;
        let stale = json!({"metadata": {"resourceVersion": before["metadata"]["resourceVersion"]}});
        for path in [path.clone(), format!("{path}/status")] {
            refused(self.patch(&path, MERGE, &stale).await, 409, "Conflict")?;
        }
        let fresh = json!({"metadata": {"resourceVersion": now["metadata"]["resourceVersion"],
            "uid": now["metadata"]["uid"], "labels": {"a": "c"}}});
        self.patch(&path, MERGE, &fresh).await?;
        let other = json!({"metadata": {"uid": "00000000-0000-4000-8000-000000000000"}});
        refused(self.patch(&format!("{path}/status"), MERGE, &other).await, 422, "Invalid")
    }

    async fn guards_of_a_put(&self) -> Result<()> {
        let service = self.service("puts", &json!({})).await?;
        let path = self.services("puts");
        let mut changed = service.clone();
        changed["metadata"]["labels"] = json!({"a": "b"});
        self.put(&path, &changed).await?;
        changed["metadata"]["labels"] = json!({"a": "c"});
        refused(self.put(&path, &changed).await, 409, "Conflict")?;
        changed["metadata"]["resourceVersion"] = json!("");
        self.put(&path, &changed).await?;
        changed["metadata"]["uid"] = json!("00000000-0000-4000-8000-000000000000");
        refused(self.put(&path, &changed).await, 409, "Conflict")?;
        changed["metadata"]["name"] = json!("another");
        refused(self.put(&path, &changed).await, 400, "BadRequest")?;
        self.create_pool("puts", &json!({})).await?;
        let unversioned = self.pool("puts", &json!({}));
        refused(self.put(&self.pools("puts"), &unversioned).await, 422, "Invalid")?;
        let unknown = self.pool("unknown", &json!({}));
        refused(self.put(&self.pools("unknown"), &unknown).await, 404, "NotFound")
    }

    async fn guards_of_a_delete(&self) -> Result<()> {
        let service = self.service("deletes", &json!({})).await?;
        let path = self.services("deletes");
        let other = json!({"preconditions": {"uid": "00000000-0000-4000-8000-000000000000"}});
        refused(self.delete(&path, &other).await, 409, "Conflict")?;
        let right = json!({"preconditions": {"uid": service["metadata"]["uid"]}});
        self.delete(&path, &right).await?;
        refused(self.get(&path).await, 404, "NotFound")?;
        refused(self.delete(&path, &Value::Null).await, 404, "NotFound")
    }

    async fn our_kinds_get_defaults(&self) -> Result<()> {
        let pool = self.create_pool("defaults", &json!({})).await?;
        equal(&pool["spec"]["autoAssign"], &json!(true), "autoAssign")?;
        equal(&pool["spec"]["avoidBuggyIPs"], &json!(false), "avoidBuggyIPs")?;
        equal(&pool["metadata"]["generation"], &json!(1), "generation")?;
        let null = json!({"autoAssign": null});
        let null = self.create_pool("null", &null).await?;
        equal(&null["spec"]["autoAssign"], &json!(true), "null gives way to the default")?;
        let path = self.pools("null");
        let changed = self.patch(&path, MERGE, &json!({"spec": {"autoAssign": false}})).await?;
        equal(&changed["metadata"]["generation"], &json!(2), "generation")?;
        let labelled = json!({"metadata": {"annotations": {"a": "b"}}});
        let labelled = self.patch(&path, MERGE, &labelled).await?;
        equal(&labelled["metadata"]["generation"], &json!(2), "generation")?;
        let removed = self.patch(&path, MERGE, &json!({"spec": {"autoAssign": null}})).await?;
        equal(&removed["spec"]["autoAssign"], &json!(true), "default after removal")?;
        let peer = self.peer("v1beta2", "defaults", &json!({}));
        let peer = self.post(&self.peers("v1beta2", ""), &peer).await?;
        equal(&peer["spec"]["peerPort"], &json!(179), "peerPort")
    }

    async fn our_kinds_follow_their_schema(&self) -> Result<()> {
        for spec in [
            json!({"addresses": null}),
            json!({"addresses": "192.0.2.0/24"}),
            json!({"addresses": [1]}),
            json!({"autoAssign": "yes"}),
            json!({"serviceAllocation": {"priority": "high"}}),
        ] {
            let refusal = self.create_pool("bad", &spec).await;
            refused(refusal, 422, "Invalid").context(spec.to_string())?;
        }
        for spec in [
            json!({"myASN": null}),
            json!({"myASN": -1}),
            json!({"myASN": 4_294_967_296_u64}),
            json!({"peerPort": 0}),
            json!({"peerPort": 16385}),
            json!({"peerPort": 179.5}),
            json!({"dynamicASN": "both", "peerASN": null}),
            json!({"holdTime": "soon"}),
        ] {
            let peer = self.peer("v1beta2", "bad", &spec);
            let refusal = self.post(&self.peers("v1beta2", ""), &peer).await;
            refused(refusal, 422, "Invalid").context(spec.to_string())?;
        }
        let odd = self.create_pool("odd", &json!({"colour": "blue"})).await?;
        equal(&odd["spec"]["colour"], &Value::Null, "unknown fields are pruned")?;
        let strict = format!("{}?fieldValidation=Strict", self.pools(""));
        let body = self.pool("strict", &json!({"colour": "blue"}));
        refused(self.post(&strict, &body).await, 400, "BadRequest")?;
        let strict = format!("{}?fieldValidation=Strict", self.pools("odd"));
        let patch = json!({"spec": {"colour": "blue"}});
        refused(self.patch(&strict, MERGE, &patch).await, 422, "Invalid")?;
        let mut other = self.pool("other", &json!({}));
        other["kind"] = json!("Pool");
        refused(self.post(&self.pools(""), &other).await, 422, "Invalid")?;
        other["apiVersion"] = json!("metallb.io/v1");
        refused(self.post(&self.pools(""), &other).await, 400, "BadRequest")
    }

    async fn our_kinds_take_no_strategic_patch(&self) -> Result<()> {
        self.create_pool("strategic", &json!({})).await?;
        let patch = json!({"spec": {"autoAssign": false}});
        let patched = self.patch(&self.pools("strategic"), STRATEGIC, &patch).await;
        refused(patched, 415, "UnsupportedMediaType")
    }

    async fn our_status_is_apart(&self) -> Result<()> {
        let mut pool = self.pool("status", &json!({}));
        let status = json!({"assignedIPv4": 1, "assignedIPv6": 0, "availableIPv4": 2,
            "availableIPv6": 0});
        pool["status"] = status.clone();
        let created = self.post(&self.pools(""), &pool).await?;
        equal(&created["status"], &Value::Null, "status of a creation")?;
        let path = self.pools("status");
        let main = self.patch(&path, MERGE, &json!({"status": status})).await?;
        same_version(&main, &created)?;
        let write = json!({"metadata": {"annotations": {"a": "b"}}, "status": status,
            "spec": {"autoAssign": false}});
        let written = self.patch(&format!("{path}/status"), MERGE, &write).await?;
        equal(&written["status"], &status, "status")?;
        equal(&written["metadata"]["annotations"], &Value::Null, "annotations")?;
        equal(&written["spec"]["autoAssign"], &json!(true), "spec")?;
        equal(&written["metadata"]["generation"], &json!(1), "generation")?;
        let accepted = json!({"status": {"conditions": [condition("Accepted", "True")]}});
        let written = self.patch(&format!("{path}/status"), MERGE, &accepted).await?;
        equal(&written["status"]["conditions"][0]["type"], &json!("Accepted"), "condition")?;
        equal(&written["status"]["assignedIPv4"], &json!(1), "the rest of the status")?;
        let wrong = json!({"status": {"assignedIPv4": "many"}});
        refused(self.patch(&format!("{path}/status"), MERGE, &wrong).await, 422, "Invalid")
    }

    async fn peers_in_both_versions(&self) -> Result<()> {
        let new = self.peer("v1beta2", "new", &json!({"holdTime": "90s"}));
        self.post(&self.peers("v1beta2", ""), &new).await?;
        let stored = self.get(&self.peers("v1beta2", "new")).await?;
        equal(&stored["spec"]["holdTime"], &json!("90s"), "holdTime")?;
        equal(&stored["apiVersion"], &json!("metallb.io/v1beta2"), "apiVersion")?;
        let old = match self.get(&self.peers("v1beta1", "new")).await {
            // A real API server converts between the versions by a webhook of ours, which may not
            // be there.
            Err(error) if code_of(&error) == 500 && self.conversion().await? == "Webhook" => {
                return Ok(());
            }
            answer => answer?,
        };
        equal(&old["apiVersion"], &json!("metallb.io/v1beta1"), "apiVersion")?;
        equal(&old["metadata"]["uid"], &stored["metadata"]["uid"], "uid")?;
        let old = self.peer("v1beta1", "old", &json!({"holdTime": "90s", "peerPort": 1179}));
        self.post(&self.peers("v1beta1", ""), &old).await?;
        let new = self.get(&self.peers("v1beta2", "old")).await?;
        equal(&new["spec"]["peerPort"], &json!(1179), "peerPort")?;
        let listed = self.get(&self.peers("v1beta1", "")).await?;
        equal(&listed["kind"], &json!("BGPPeerList"), "kind")
    }

    async fn conversion(&self) -> Result<String> {
        let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let crd = self.get(&format!("{crds}/bgppeers.metallb.io")).await?;
        Ok(text(&crd["spec"]["conversion"]["strategy"]))
    }

    async fn not_found_has_its_reason(&self) -> Result<()> {
        refused(self.get(&self.services("nothing")).await, 404, "NotFound")?;
        let patched = self.patch(&self.services("nothing"), MERGE, &json!({})).await;
        refused(patched, 404, "NotFound")?;
        let nowhere = "/api/v1/namespaces/api-suite-nowhere/configmaps";
        let config_map =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
        refused(self.post(nowhere, &config_map).await, 404, "NotFound")?;
        let none = self.get(nowhere).await?;
        equal(&none["items"], &json!([]), "a list of a namespace that does not exist")?;
        let contradicting = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "elsewhere"}});
        let path = self.path("/api/v1", "configmaps", "");
        refused(self.post(&path, &contradicting).await, 400, "BadRequest")
    }

    async fn names_are_checked(&self) -> Result<()> {
        for name in ["Upper", "1st", "a.b", "-a"] {
            let refusal = self.service(name, &json!({})).await;
            refused(refusal, 422, "Invalid").with_context(|| format!("{name:?}"))?;
        }
        let nameless = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}});
        let path = self.path("/api/v1", "configmaps", "");
        refused(self.post(&path, &nameless).await, 422, "Invalid")?;
        refused(self.create_pool("under_score", &json!({})).await, 422, "Invalid")?;
        let pool = self.create_pool("twice", &json!({})).await?;
        refused(self.create_pool("twice", &json!({})).await, 409, "AlreadyExists")?;
        ensure!(pool["metadata"]["uid"].is_string(), "a uid");
        Ok(())
    }

    async fn names_are_made_up(&self) -> Result<()> {
        let status = json!({"apiVersion": "metallb.io/v1beta1", "kind": "ServiceL2Status",
            "metadata": {"generateName": "l2-", "labels": {"suite": self.namespace}}, "spec": {}});
        let path = "/apis/metallb.io/v1beta1/namespaces/metallb-system/servicel2statuses";
        let one = self.post(path, &status).await?;
        let two = self.post(path, &status).await?;
        let (one, two) = (text(&one["metadata"]["name"]), text(&two["metadata"]["name"]));
        ensure!(one != two && one.starts_with("l2-") && one.len() == 8, "{one} and {two}");
        Ok(())
    }

    async fn dry_runs_leave_nothing(&self) -> Result<()> {
        let path = format!("{}?dryRun=All", self.services(""));
        let shown = self.post(&path, &service("dry", &json!({}))).await?;
        equal(&shown["spec"]["type"], &json!("ClusterIP"), "type")?;
        refused(self.get(&self.services("dry")).await, 404, "NotFound")?;
        let before = self.service("wet", &json!({})).await?;
        let path = format!("{}?dryRun=All", self.services("wet"));
        let labels = json!({"metadata": {"labels": {"a": "b"}}});
        let shown = self.patch(&path, MERGE, &labels).await?;
        equal(&shown["metadata"]["labels"]["a"], &json!("b"), "label")?;
        self.delete(&path, &Value::Null).await?;
        same_version(&self.get(&self.services("wet")).await?, &before)
    }

    async fn selectors(&self) -> Result<()> {
        for (name, kind, colour) in
            [("s1", "LoadBalancer", "red"), ("s2", "ClusterIP", "red"), ("s3", "ClusterIP", "blue")]
        {
            let mut object = service(name, &json!({"type": kind}));
            object["metadata"]["labels"] = json!({"colour": colour, "suite": "selectors"});
            self.post(&self.services(""), &object).await?;
        }
        for (query, wanted) in [
            ("labelSelector=suite%3Dselectors", vec!["s1", "s2", "s3"]),
            ("labelSelector=suite%3Dselectors,colour%3Dred", vec!["s1", "s2"]),
            ("labelSelector=suite,colour!%3Dred", vec!["s3"]),
            ("labelSelector=suite,colour%20in%20(blue,green)", vec!["s3"]),
            ("labelSelector=suite,colour%20notin%20(blue)", vec!["s1", "s2"]),
            ("labelSelector=suite%3Dselectors,!colour", vec![]),
            ("fieldSelector=metadata.name%3Ds2", vec!["s2"]),
            ("labelSelector=suite%3Dselectors&fieldSelector=spec.type%3DLoadBalancer", vec!["s1"]),
            ("fieldSelector=metadata.name%3Ds2,spec.type!%3DClusterIP", vec![]),
        ] {
            let found = self.get(&format!("{}?{query}", self.services(""))).await?;
            equal(&json!(names(&found)), &json!(wanted), query)?;
        }
        let unknown = format!("{}?fieldSelector=spec.selector%3Da", self.services(""));
        refused(self.get(&unknown).await, 400, "BadRequest")?;
        let unreadable = format!("{}?labelSelector=%3D%3D", self.services(""));
        refused(self.get(&unreadable).await, 400, "BadRequest")?;
        let everywhere = "/api/v1/services?fieldSelector=metadata.namespace%3D";
        let found = self.get(&format!("{everywhere}{}", self.namespace)).await?;
        ensure!(names(&found).contains(&"s1".to_owned()), "by namespace");
        Ok(())
    }

    async fn pages(&self) -> Result<()> {
        let path = self.path("/api/v1", "configmaps", "");
        for index in 0..5 {
            let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("page-{index}"), "labels": {"suite": "pages"}}});
            self.post(&path, &config_map).await?;
        }
        let first = self.get(&format!("{path}?limit=2&labelSelector=suite%3Dpages")).await?;
        equal(&json!(names(&first)), &json!(["page-0", "page-1"]), "first page")?;
        // A page shows the moment of the first one.
        self.delete(&format!("{path}/page-3"), &Value::Null).await?;
        let token = text(&first["metadata"]["continue"]);
        let next = format!("{path}?limit=2&labelSelector=suite%3Dpages&continue={token}");
        let second = self.get(&next).await?;
        equal(&json!(names(&second)), &json!(["page-2", "page-3"]), "second page")?;
        let version = |list: &Value| list["metadata"]["resourceVersion"].clone();
        equal(&version(&second), &version(&first), "resourceVersion")?;
        let token = text(&second["metadata"]["continue"]);
        let next = format!("{path}?limit=2&labelSelector=suite%3Dpages&continue={token}");
        let third = self.get(&next).await?;
        equal(&json!(names(&third)), &json!(["page-4"]), "last page")?;
        equal(&third["metadata"]["continue"], &Value::Null, "continue")?;
        let counted = self.get("/api/v1/namespaces?limit=1").await?;
        ensure!(counted["metadata"]["remainingItemCount"].as_u64() >= Some(1), "remaining");
        let broken = self.get(&format!("{path}?limit=2&continue=nonsense")).await;
        refused(broken, 400, "BadRequest")
    }

    async fn tables_and_metadata(&self) -> Result<()> {
        self.service("table", &json!({"type": "LoadBalancer"})).await?;
        self.create_pool("table", &json!({})).await?;
        for (path, wanted) in [
            (
                self.services("table"),
                json!(["Name", "Type", "Cluster-IP", "External-IP", "Port(s)", "Age", "Selector"]),
            ),
            (self.pools("table"), json!(["Name", "Auto Assign", "Avoid Buggy IPs", "Addresses"])),
        ] {
            let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
            let request = Request::get(path).header("accept", accept).body(Vec::new())?;
            let table: Value = self.client.request(request).await?;
            equal(&table["kind"], &json!("Table"), "kind")?;
            let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
            let columns: Vec<_> =
                columns.into_iter().map(|column| column["name"].clone()).collect();
            equal(&json!(columns), &wanted, "columns")?;
            ensure!(text(&table["rows"][0]["cells"][0]).ends_with("table"), "{table}");
        }
        let accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        let request =
            Request::get(self.services("table")).header("accept", accept).body(Vec::new())?;
        let metadata: Value = self.client.request(request).await?;
        equal(&metadata["kind"], &json!("PartialObjectMetadata"), "kind")?;
        equal(&metadata["spec"], &Value::Null, "spec")
    }

    async fn watch_from_a_version(&self) -> Result<()> {
        let path = self.services("");
        let before = self.get(&path).await?;
        let since = text(&before["metadata"]["resourceVersion"]);
        let mut events = self.watch(&path, &format!("resourceVersion={since}")).await?;
        let created = self.service("seen", &json!({"type": "LoadBalancer"})).await?;
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let seen = format!("{}/status", self.services("seen"));
        let changed = self.patch(&seen, MERGE, &status).await?;
        // Written again without a change: no event.
        self.patch(&seen, MERGE, &status).await?;
        self.delete(&self.services("seen"), &Value::Null).await?;
        let (kind, object) = next(&mut events).await?;
        equal(&json!(kind), &json!("ADDED"), "event")?;
        same_version(&object, &created)?;
        let (kind, object) = next(&mut events).await?;
        equal(&json!(kind), &json!("MODIFIED"), "event")?;
        same_version(&object, &changed)?;
        let (kind, object) = next(&mut events).await?;
        equal(&json!(kind), &json!("DELETED"), "event")?;
        equal(&object["status"], &changed["status"], "last state")?;
        ensure!(version(&object)? > version(&changed)?, "a deletion has a version of its own");
        let mut again = self.watch(&path, &format!("resourceVersion={since}")).await?;
        equal(&json!(next(&mut again).await?.0), &json!("ADDED"), "the same again")
    }

    async fn watch_through_a_selector(&self) -> Result<()> {
        let path = self.services("");
        let query = "labelSelector=watched%3Dyes";
        let since = text(&self.get(&path).await?["metadata"]["resourceVersion"]);
        let mut events = self.watch(&path, &format!("{query}&resourceVersion={since}")).await?;
        self.service("shown", &json!({})).await?;
        let label = |value: Value| json!({"metadata": {"labels": {"watched": value}}});
        let path = self.services("shown");
        self.patch(&path, MERGE, &label(json!("yes"))).await?;
        self.patch(&path, MERGE, &json!({"metadata": {"annotations": {"a": "b"}}})).await?;
        self.patch(&path, MERGE, &label(json!("no"))).await?;
        for wanted in ["ADDED", "MODIFIED", "DELETED"] {
            let (kind, object) = next(&mut events).await?;
            equal(&json!(kind), &json!(wanted), "event")?;
            equal(&object["metadata"]["name"], &json!("shown"), "name")?;
        }
        Ok(())
    }

    async fn watch_with_initial_events(&self) -> Result<()> {
        for name in ["early-a", "early-b"] {
            let mut object = service(name, &json!({}));
            object["metadata"]["labels"] = json!({"suite": "early"});
            self.post(&self.services(""), &object).await?;
        }
        let query = "labelSelector=suite%3Dearly&sendInitialEvents=true&allowWatchBookmarks=true\
                     &resourceVersionMatch=NotOlderThan";
        let mut events = self.watch(&self.services(""), query).await?;
        for wanted in ["early-a", "early-b"] {
            let (kind, object) = next(&mut events).await?;
            equal(&json!(kind), &json!("ADDED"), "event")?;
            equal(&object["metadata"]["name"], &json!(wanted), "name")?;
        }
        let (kind, bookmark) = next(&mut events).await?;
        equal(&json!(kind), &json!("BOOKMARK"), "event")?;
        let end = &bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"];
        equal(end, &json!("true"), "end of the initial events")?;
        let query = "labelSelector=suite%3Dearly&allowWatchBookmarks=true";
        let mut plain = self.watch(&self.services(""), query).await?;
        for wanted in ["ADDED", "ADDED", "BOOKMARK"] {
            equal(&json!(next(&mut plain).await?.0), &json!(wanted), "without a version")?;
        }
        Ok(())
    }

    async fn watch_ends_in_time(&self) -> Result<()> {
        let path = self.services("");
        let since = text(&self.get(&path).await?["metadata"]["resourceVersion"]);
        let query = format!("resourceVersion={since}&timeoutSeconds=1");
        let events = self.watch(&path, &query).await?;
        let events = timeout(EVENT_LIMIT, events.try_collect::<Vec<_>>()).await??;
        ensure!(events.is_empty(), "nothing happened: {events:?}");
        Ok(())
    }

    async fn watch_from_the_distant_past(&self) -> Result<()> {
        self.create_pool("present", &json!({})).await?;
        let mut events = self.watch(&self.pools(""), "resourceVersion=1").await?;
        let (kind, status) = next(&mut events).await?;
        equal(&json!(kind), &json!("ERROR"), "event")?;
        equal(&status["code"], &json!(410), "code")?;
        equal(&status["reason"], &json!("Expired"), "reason")
    }

    async fn leases(&self) -> Result<()> {
        let path = self.path("/apis/coordination.k8s.io/v1", "leases", "");
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "leader"}, "spec": {"holderIdentity": "a",
            "leaseDurationSeconds": 15, "renewTime": "2026-01-02T03:04:05.678901Z"}});
        let first = self.post(&path, &lease).await?;
        equal(&first["spec"]["renewTime"], &lease["spec"]["renewTime"], "microseconds")?;
        refused(self.post(&path, &lease).await, 409, "AlreadyExists")?;
        let path = format!("{path}/leader");
        refused(self.put(&path, &lease).await, 422, "Invalid")?;
        let candidates = (0..8).map(|index| {
            let mut bid = first.clone();
            bid["spec"]["holderIdentity"] = json!(format!("candidate-{index}"));
            let path = &path;
            async move { self.put(path, &bid).await }
        });
        let mut won = Vec::new();
        for result in join_all(candidates).await {
            match result {
                Ok(lease) => won.push(lease),
                Err(error) => refused(Err(error), 409, "Conflict")?,
            }
        }
        equal(&json!(won.len()), &json!(1), "winners")?;
        let mut bad = won.remove(0);
        let last = bad.clone();
        bad["spec"]["leaseDurationSeconds"] = json!(0);
        refused(self.put(&path, &bad).await, 422, "Invalid")?;
        self.delete(&path, &Value::Null).await?;
        refused(self.put(&path, &last).await, 409, "Conflict")?;
        let mut anyone = last.clone();
        anyone["metadata"]["uid"] = Value::Null;
        let again = self.put(&path, &anyone).await?;
        ensure!(again["metadata"]["uid"] != last["metadata"]["uid"], "a new object");
        refused(self.put(&path, &anyone).await, 409, "Conflict")
    }

    async fn service_ranges_are_told(&self) -> Result<()> {
        let path = "/apis/networking.k8s.io/v1/servicecidrs";
        let range = self.get(&format!("{path}/kubernetes")).await?;
        let ranges = range["spec"]["cidrs"].as_array().context("ranges")?;
        ensure!((1..=2).contains(&ranges.len()), "one range or one of each family: {range}");
        for range in ranges {
            text(range).parse::<ipnet::IpNet>().with_context(|| range.to_string())?;
        }
        let listed = self.get(path).await?;
        ensure!(names(&listed).contains(&"kubernetes".to_owned()), "listed: {listed}");
        let bad = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": self.namespace}, "spec": {"cidrs": ["nonsense"]}});
        refused(self.post(path, &bad).await, 422, "Invalid")
    }

    async fn clients_are_looked_up(&self) -> Result<()> {
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let asked = |spec: Value| {
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": spec})
        };
        let metrics = json!({"path": "/metrics", "verb": "get"});
        let may = json!({"user": "suite", "groups": ["system:masters"],
            "nonResourceAttributes": metrics});
        let answer = self.post(path, &asked(may)).await?;
        equal(&answer["status"]["allowed"], &json!(true), "allowed")?;
        equal(&answer["metadata"]["uid"], &Value::Null, "nothing is stored")?;
        let nobody = asked(json!({"nonResourceAttributes": metrics}));
        refused(self.post(path, &nobody).await, 422, "Invalid")?;
        let nothing = asked(json!({"user": "suite"}));
        refused(self.post(path, &nothing).await, 422, "Invalid")?;
        refused(self.get(path).await, 405, "MethodNotAllowed")?;

        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let asked = |token: &str| {
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "spec": {"token": token}})
        };
        let answer = self.post(path, &asked("a.b.c")).await?;
        ensure!(answer["status"].is_object(), "an answer: {answer}");
        refused(self.post(path, &asked("")).await, 400, "BadRequest")?;
        refused(self.get(path).await, 405, "MethodNotAllowed")
    }

    async fn webhook_configurations_are_kept(&self) -> Result<()> {
        let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
        // Asked for nothing that exists.
        let webhook = |name: &str| {
            json!({
                "name": format!("{name}.suite.metallb.io"), "failurePolicy": "Ignore",
                "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": self.namespace, "name": "nobody"}},
                "rules": [{"apiGroups": ["suite.metallb.io"], "apiVersions": ["v1"],
                           "operations": ["CREATE"], "resources": ["nothings"]}],
            })
        };
        let configuration = |webhooks: &[Value]| {
            json!({"apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingWebhookConfiguration", "metadata": {"name": self.namespace},
                "webhooks": webhooks})
        };
        let mut bad = webhook("bad");
        bad["sideEffects"] = Value::Null;
        refused(self.post(path, &configuration(&[bad])).await, 422, "Invalid")?;
        let created = self.post(path, &configuration(&[webhook("a"), webhook("b")])).await?;
        let first = &created["webhooks"][0];
        equal(&first["timeoutSeconds"], &json!(10), "timeout")?;
        equal(&first["matchPolicy"], &json!("Equivalent"), "matchPolicy")?;
        equal(&first["clientConfig"]["service"]["port"], &json!(443), "port")?;
        equal(&first["rules"][0]["scope"], &json!("*"), "scope")?;
        equal(&created["metadata"]["generation"], &json!(1), "generation")?;

        let own = format!("{path}/{}", self.namespace);
        let patch = json!({"webhooks": [{"name": "b.suite.metallb.io", "timeoutSeconds": 3}]});
        let patched = self.patch(&own, STRATEGIC, &patch).await?;
        equal(&patched["webhooks"][0], first, "the other webhook")?;
        equal(&patched["webhooks"][1]["timeoutSeconds"], &json!(3), "patched")?;
        equal(&patched["metadata"]["generation"], &json!(2), "generation")?;
        refused(self.put(&own, &created).await, 409, "Conflict")?;
        let unversioned = configuration(&[webhook("a")]);
        refused(self.put(&own, &unversioned).await, 422, "Invalid")?;
        self.delete(&own, &Value::Null).await?;
        Ok(())
    }

    /// With a kind of one version, of which nothing is ever converted.
    async fn conversion_of_a_definition_is_written(&self) -> Result<()> {
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/communities.metallb.io";
        let before = self.get(path).await?;
        equal(&before["spec"]["conversion"]["strategy"], &json!("None"), "strategy")?;
        let webhook = json!({"conversionReviewVersions": ["v1"], "clientConfig": {
            "service": {"namespace": self.namespace, "name": "nobody", "path": "/convert"}}});
        let conversion = |conversion: Value| json!({"spec": {"conversion": conversion}});
        let patch = conversion(json!({"strategy": "Webhook", "webhook": webhook}));
        let patched = self.patch(path, MERGE, &patch).await?;
        let service = &patched["spec"]["conversion"]["webhook"]["clientConfig"]["service"];
        equal(&service["path"], &json!("/convert"), "path")?;
        equal(&service["port"], &json!(443), "port")?;
        let back = conversion(json!({"strategy": "None", "webhook": null}));
        let back = self.patch(path, MERGE, &back).await?;
        equal(&back["spec"], &before["spec"], "spec")?;
        let mut unversioned = back.clone();
        unversioned["metadata"]["resourceVersion"] = Value::Null;
        refused(self.put(path, &unversioned).await, 422, "Invalid")
    }

    async fn events_in_both_versions(&self) -> Result<()> {
        let service = self.service("eventful", &json!({})).await?;
        let regarding = json!({"kind": "Service", "apiVersion": "v1", "namespace": self.namespace,
            "name": "eventful", "uid": service["metadata"]["uid"]});
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "eventful.1"}, "regarding": regarding, "reason": "IPAllocated",
            "note": "Assigned IP", "type": "Normal", "action": "Allocate",
            "eventTime": "2026-01-02T03:04:05.678901Z", "reportingController": "metallb-controller",
            "reportingInstance": "metallb-controller-0"});
        let path = self.path("/apis/events.k8s.io/v1", "events", "");
        let core = self.path("/api/v1", "events", "");
        self.post(&path, &new).await?;
        let stored = self.get(&format!("{core}/eventful.1")).await?;
        for (field, wanted) in [
            ("involvedObject", &new["regarding"]),
            ("message", &new["note"]),
            ("reportingComponent", &new["reportingController"]),
            ("eventTime", &new["eventTime"]),
        ] {
            equal(&stored[field], wanted, field)?;
        }
        let query = format!(
            "fieldSelector=involvedObject.name%3Deventful,involvedObject.uid%3D{}",
            text(&service["metadata"]["uid"])
        );
        equal(
            &json!(names(&self.get(&format!("{core}?{query}")).await?)),
            &json!(["eventful.1"]),
            "",
        )?;
        let series =
            json!({"series": {"count": 2, "lastObservedTime": "2026-01-02T03:05:05.000000Z"}});
        let repeated = self.patch(&format!("{path}/eventful.1"), MERGE, &series).await?;
        equal(&repeated["series"], &series["series"], "series")?;
        let mut timeless = new.clone();
        timeless["metadata"]["name"] = json!("timeless.1");
        timeless["eventTime"] = Value::Null;
        refused(self.post(&path, &timeless).await, 422, "Invalid")?;
        let mut anonymous = new.clone();
        anonymous["metadata"]["name"] = json!("anonymous.1");
        anonymous["reportingController"] = json!("");
        refused(self.post(&path, &anonymous).await, 422, "Invalid")?;
        let old = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "eventful.2"},
            "involvedObject": regarding, "reason": "Old", "message": "text", "type": "Warning",
            "source": {"component": "test"}, "count": 1,
            "firstTimestamp": "2026-01-02T03:04:05Z", "lastTimestamp": "2026-01-02T03:04:05Z"});
        self.post(&core, &old).await?;
        let mut foreign = old.clone();
        foreign["metadata"]["name"] = json!("foreign.1");
        foreign["involvedObject"]["namespace"] = json!("elsewhere");
        refused(self.post(&core, &foreign).await, 422, "Invalid")?;
        let shown = self.get(&format!("{path}/eventful.2")).await?;
        equal(&shown["note"], &json!("text"), "note")?;
        equal(&shown["deprecatedSource"]["component"], &json!("test"), "source")
    }

    async fn secrets_and_config_maps(&self) -> Result<()> {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "peer"},
            "type": "kubernetes.io/basic-auth", "stringData": {"password": "secret"}});
        let path = self.path("/api/v1", "secrets", "");
        let stored = self.post(&path, &secret).await?;
        equal(&stored["data"], &json!({"password": "c2VjcmV0"}), "data")?;
        equal(&stored["stringData"], &Value::Null, "stringData")?;
        let path = format!("{path}/peer");
        let retyped = self.patch(&path, MERGE, &json!({"type": "Opaque"})).await;
        refused(retyped, 422, "Invalid")?;
        let found = self.path("/api/v1", "secrets", "");
        let found =
            self.get(&format!("{found}?fieldSelector=type%3Dkubernetes.io/basic-auth")).await?;
        equal(&json!(names(&found)), &json!(["peer"]), "by type")
    }

    async fn finalizers_hold_a_deletion(&self) -> Result<()> {
        let mut object = service("held", &json!({}));
        object["metadata"]["finalizers"] = json!(["suite.example/hold"]);
        self.post(&self.services(""), &object).await?;
        let path = self.services("held");
        self.delete(&path, &Value::Null).await?;
        let dying = self.get(&path).await?;
        ensure!(dying["metadata"]["deletionTimestamp"].is_string(), "deletionTimestamp");
        self.delete(&path, &Value::Null).await?;
        same_version(&self.get(&path).await?, &dying)?;
        let more =
            json!({"metadata": {"finalizers": ["suite.example/hold", "suite.example/more"]}});
        refused(self.patch(&path, MERGE, &more).await, 422, "Invalid")?;
        self.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await?;
        refused(self.get(&path).await, 404, "NotFound")
    }

    async fn collections_are_deleted(&self) -> Result<()> {
        let path = self.path("/api/v1", "configmaps", "");
        for (name, group) in [("gone-1", "gone"), ("gone-2", "gone"), ("stays", "stays")] {
            let config_map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "labels": {"collection": group}}});
            self.post(&path, &config_map).await?;
        }
        self.delete(&format!("{path}?labelSelector=collection%3Dgone"), &Value::Null).await?;
        let left = self.get(&format!("{path}?labelSelector=collection")).await?;
        equal(&json!(names(&left)), &json!(["stays"]), "what is left")
    }

    async fn strategic_patch_of_ports(&self) -> Result<()> {
        let spec = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80},
            {"name": "https", "port": 443}]});
        let before = self.service("ports", &spec).await?;
        // What `kubectl apply` sends when the first port changes and the second one goes.
        let patch = json!({"spec": {"$setElementOrder/ports": [{"port": 80}, {"port": 8080}],
            "ports": [{"port": 80, "targetPort": 8080}, {"name": "alt", "port": 8080},
                      {"$patch": "delete", "port": 443}]}});
        let after = self.patch(&self.services("ports"), STRATEGIC, &patch).await?;
        let ports = after["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let numbers: Vec<_> = ports.iter().map(|port| port["port"].clone()).collect();
        equal(&json!(numbers), &json!([80, 8080]), "ports")?;
        equal(&ports[0]["targetPort"], &json!(8080), "targetPort")?;
        equal(&ports[0]["nodePort"], &before["spec"]["ports"][0]["nodePort"], "nodePort")?;
        let selector = json!({"spec": {"selector": {"app": null, "tier": "front"}}});
        let after = self.patch(&self.services("ports"), STRATEGIC, &selector).await?;
        equal(&after["spec"]["selector"], &json!({"tier": "front"}), "selector")
    }

    async fn json_patches(&self) -> Result<()> {
        self.service("operations", &json!({"type": "LoadBalancer"})).await?;
        let path = self.services("operations");
        let good = json!([{"op": "test", "path": "/spec/ports/0/port", "value": 80},
            {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]);
        let patched = self.patch(&path, JSON_PATCH, &good).await?;
        equal(&patched["metadata"]["labels"]["a"], &json!("b"), "label")?;
        let stale = json!([{"op": "test", "path": "/spec/ports/0/port", "value": 81}]);
        let refusal = self.patch(&path, JSON_PATCH, &stale).await;
        ensure!(refusal.is_err_and(|error| code_of(&error) == 422), "a failed test");
        let status = json!([{"op": "add", "path": "/status/loadBalancer/ingress",
            "value": [{"ip": "192.0.2.1"}]}]);
        let patched = self.patch(&format!("{path}/status"), JSON_PATCH, &status).await?;
        equal(&patched["status"]["loadBalancer"]["ingress"][0]["ipMode"], &json!("VIP"), "ipMode")
    }

    async fn server_side_apply(&self) -> Result<()> {
        let path = self.pools("applied");
        let mut configuration = self.pool("applied", &json!({"avoidBuggyIPs": true}));
        configuration["metadata"]["annotations"] = json!({"a": "1", "b": "1"});
        let created = self.apply(&path, "one", &configuration).await?;
        equal(&created["spec"]["autoAssign"], &json!(true), "default")?;
        configuration["metadata"]["annotations"] = json!({"a": "1"});
        configuration["spec"] = json!({"addresses": configuration["spec"]["addresses"]});
        let less = self.apply(&path, "one", &configuration).await?;
        equal(&less["metadata"]["annotations"], &json!({"a": "1"}), "annotations")?;
        equal(&less["spec"]["avoidBuggyIPs"], &json!(false), "back to the default")?;
        let mut other = self.pool("applied", &json!({}));
        other["spec"] = json!({"addresses": [self.addresses("applied-other")]});
        refused(self.apply(&path, "two", &other).await, 409, "Conflict")?;
        let forced = format!("{path}?fieldManager=two&force=true");
        let taken = self.patch(&forced, APPLY, &other).await?;
        equal(&taken["spec"]["addresses"], &other["spec"]["addresses"], "addresses")?;
        refused(self.apply(&path, "one", &configuration).await, 409, "Conflict")?;
        let managers = taken["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let two = managers.iter().find(|entry| entry["manager"] == "two");
        let two = two.ok_or_else(|| anyhow!("no entry for the manager"))?;
        equal(&two["operation"], &json!("Apply"), "operation")?;
        equal(&two["fieldsV1"]["f:spec"], &json!({"f:addresses": {}}), "fields")?;
        let nameless = format!("{path}?force=true");
        let nameless = self.patch(&nameless, APPLY, &other).await;
        ensure!(nameless.is_err(), "an apply without a manager");
        let mut untyped = other.clone();
        untyped["kind"] = Value::Null;
        refused(self.apply(&path, "two", &untyped).await, 400, "BadRequest")
    }

    async fn server_side_apply_of_ports(&self) -> Result<()> {
        let path = self.services("keyed");
        let with = |ports: Value| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "keyed"},
                "spec": {"type": "NodePort", "ports": ports}})
        };
        let two = json!([{"name": "a", "port": 80, "protocol": "TCP"},
            {"name": "b", "port": 81, "protocol": "TCP"}]);
        let before = self.apply(&path, "one", &with(two)).await?;
        let one = json!([{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 8080}]);
        let after = self.apply(&path, "one", &with(one)).await?;
        let ports = after["spec"]["ports"].as_array().cloned().unwrap_or_default();
        equal(&json!(ports.len()), &json!(1), "ports")?;
        equal(&ports[0]["nodePort"], &before["spec"]["ports"][0]["nodePort"], "nodePort")?;
        let edit = json!({"spec": {"ports": [{"port": 80, "targetPort": 9090}]}});
        self.patch(&format!("{path}?fieldManager=editor"), STRATEGIC, &edit).await?;
        let again = json!([{"name": "a", "port": 80, "protocol": "TCP", "targetPort": 8080}]);
        refused(self.apply(&path, "one", &with(again)).await, 409, "Conflict")
    }

    fn path(&self, root: &str, plural: &str, name: &str) -> String {
        let path = format!("{root}/namespaces/{}/{plural}/{name}", self.namespace);
        path.trim_end_matches('/').to_owned()
    }

    fn services(&self, name: &str) -> String {
        self.path("/api/v1", "services", name)
    }

    /// Our objects live where Berth does; their names tell one run from another.
    fn pools(&self, name: &str) -> String {
        let root = "/apis/metallb.io/v1beta1/namespaces/metallb-system/ipaddresspools";
        if name.is_empty() { root.to_owned() } else { format!("{root}/{}-{name}", self.namespace) }
    }

    fn peers(&self, version: &str, name: &str) -> String {
        let root = format!("/apis/metallb.io/{version}/namespaces/metallb-system/bgppeers");
        if name.is_empty() { root } else { format!("{root}/{}-{name}", self.namespace) }
    }

    fn pool(&self, name: &str, spec: &Value) -> Value {
        let mut pool = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
            "metadata": {"name": format!("{}-{name}", self.namespace),
                         "labels": {"suite": self.namespace}},
            "spec": {"addresses": [self.addresses(name)]},
        });
        overlay(&mut pool["spec"], spec);
        pool
    }

    /// A range that no other pool of the suite has.
    fn addresses(&self, name: &str) -> String {
        format!("2001:db8:{:x}::/64", number(name))
    }

    fn peer(&self, version: &str, name: &str, spec: &Value) -> Value {
        let mut peer = json!({
            "apiVersion": format!("metallb.io/{version}"), "kind": "BGPPeer",
            "metadata": {"name": format!("{}-{name}", self.namespace),
                         "labels": {"suite": self.namespace}},
            "spec": {"myASN": 64512, "peerASN": 64513,
                     "peerAddress": format!("2001:db8:{:x}::1", number(name))},
        });
        overlay(&mut peer["spec"], spec);
        peer
    }

    async fn service(&self, name: &str, spec: &Value) -> Result<Value> {
        self.post(&self.services(""), &service(name, spec)).await
    }

    async fn create_pool(&self, name: &str, spec: &Value) -> Result<Value> {
        self.post(&self.pools(""), &self.pool(name, spec)).await
    }

    async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.client.request(Request::get(path).body(Vec::new())?).await?)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(Request::post(path), JSON, body).await
    }

    async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        self.send(Request::put(path), JSON, body).await
    }

    async fn patch(&self, path: &str, media_type: &str, body: &Value) -> Result<Value> {
        self.send(Request::patch(path), media_type, body).await
    }

    async fn apply(&self, path: &str, manager: &str, body: &Value) -> Result<Value> {
        self.patch(&format!("{path}?fieldManager={manager}"), APPLY, body).await
    }

    async fn delete(&self, path: &str, options: &Value) -> Result<Value> {
        if options.is_null() {
            return Ok(self.client.request(Request::delete(path).body(Vec::new())?).await?);
        }
        self.send(Request::delete(path), JSON, options).await
    }

    async fn send(
        &self,
        request: http::request::Builder,
        media_type: &str,
        body: &Value,
    ) -> Result<Value> {
        let request = request.header("content-type", media_type).body(serde_json::to_vec(body)?)?;
        Ok(self.client.request(request).await?)
    }

    async fn watch(
        &self,
        path: &str,
        query: &str,
    ) -> Result<BoxStream<'static, kube::Result<WatchEvent<Value>>>> {
        let request = Request::get(format!("{path}?watch=true&{query}")).body(Vec::new())?;
        let events = self.client.request_events::<Value>(request).await?;
        Ok(events.boxed())
    }
}

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    });
    overlay(&mut service["spec"], spec);
    service
}

/// Tells names apart where rules forbid that two objects have the same addresses.
fn number(name: &str) -> u16 {
    name.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(u16::from(byte)))
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"type": kind, "status": status, "reason": "Suite", "message": "",
        "lastTransitionTime": "2026-01-02T03:04:05Z"})
}

/// Replaces fields of an object; unlike a merge patch it also sets nulls.
fn overlay(object: &mut Value, fields: &Value) {
    for (name, value) in fields.as_object().into_iter().flatten() {
        object[name] = value.clone();
    }
}

async fn next(
    events: &mut BoxStream<'static, kube::Result<WatchEvent<Value>>>,
) -> Result<(&'static str, Value)> {
    let event = timeout(EVENT_LIMIT, events.next()).await.context("no event came")?;
    Ok(match event.context("the watch ended")?? {
        WatchEvent::Added(object) => ("ADDED", object),
        WatchEvent::Modified(object) => ("MODIFIED", object),
        WatchEvent::Deleted(object) => ("DELETED", object),
        WatchEvent::Bookmark(bookmark) => ("BOOKMARK", json!(bookmark)),
        WatchEvent::Error(status) => ("ERROR", json!(status)),
    })
}

fn refused(result: Result<Value>, code: u16, reason: &str) -> Result<()> {
    match result {
        Ok(object) => bail!("should be refused with {code} {reason}, but got {object}"),
        Err(error) => match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if status.code == code && status.reason == reason => {
                Ok(())
            }
            _ => Err(error.context(format!("should be refused with {code} {reason}"))),
        },
    }
}

fn code_of(error: &anyhow::Error) -> u16 {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code,
        _ => 0,
    }
}

fn equal(found: &Value, wanted: &Value, what: &str) -> Result<()> {
    ensure!(found == wanted, "{what}: {found}, should be {wanted}");
    Ok(())
}

fn same_version(found: &Value, wanted: &Value) -> Result<()> {
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    equal(&version(found), &version(wanted), "resourceVersion")
}

fn version(object: &Value) -> Result<u64> {
    Ok(text(&object["metadata"]["resourceVersion"]).parse()?)
}

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().into_iter().flatten();
    items.map(|item| text(&item["metadata"]["name"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
