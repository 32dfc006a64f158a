//! What clients ask before they ask for objects: groups, versions and kinds, and as much OpenAPI
//! as `kubectl` needs to leave validation to the server and to explain our kinds.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    ApiError,
    resource::{Registry, Resource, Schema, Scope},
};

/// The document at a path below `/api`, `/apis`, `/openapi` or `/version`.
///
/// # Errors
/// 404 when there is no such document.
pub(crate) fn document(registry: &Registry, segments: &[&str]) -> Result<Value, ApiError> {
    match segments {
        ["version"] => Ok(json!({
            "major": "1", "minor": "34", "gitVersion": "v1.34.0+berth", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        })),
        ["api"] => Ok(json!({"kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let groups: Vec<_> =
                groups(registry).keys().map(|name| group(registry, name)).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] if groups(registry).contains_key(name) => {
            let mut document = group(registry, name);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            Ok(document)
        }
        ["api", version] => kinds(registry, "", version),
        ["apis", group, version] => kinds(registry, group, version),
        ["openapi", "v3"] => Ok(open_api_index(registry)),
        ["openapi", "v3", "api", version] => open_api(registry, "", version),
        ["openapi", "v3", "apis", group, version] => open_api(registry, group, version),
        _ => Err(ApiError::no_such_path()),
    }
}

/// The named groups with their versions, the preferred one first.
fn groups(registry: &Registry) -> BTreeMap<&str, Vec<&str>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for resource in registry.all().iter().filter(|resource| !resource.group.is_empty()) {
        let versions = groups.entry(resource.group.as_str()).or_default();
        if !versions.contains(&resource.version.as_str()) {
            versions.push(&resource.version);
        }
    }
    for versions in groups.values_mut() {
        versions.sort_unstable_by(|one, other| other.cmp(one));
    }
    groups
}

fn group(registry: &Registry, name: &str) -> Value {
    let versions: Vec<_> = groups(registry)
        .remove(name)
        .unwrap_or_default()
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
}

fn of_version<'a>(
    registry: &'a Registry,
    group: &str,
    version: &str,
) -> Result<Vec<&'a Resource>, ApiError> {
    let found: Vec<_> = registry
        .all()
        .iter()
        .map(AsRef::as_ref)
        .filter(|resource: &&Resource| resource.group == group && resource.version == version)
        .collect();
    if found.is_empty() { Err(ApiError::no_such_path()) } else { Ok(found) }
}

fn kinds(registry: &Registry, group: &str, version: &str) -> Result<Value, ApiError> {
    let found = of_version(registry, group, version)?;
    let resources: Vec<_> = found
        .iter()
        .flat_map(|resource| [Some(resource.discovery()), resource.status_discovery()])
        .flatten()
        .collect();
    let group_version = found.first().map(|resource| resource.api_version());
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": resources}))
}

fn open_api_index(registry: &Registry) -> Value {
    let mut paths = BTreeMap::new();
    for resource in registry.all() {
        let path = root(resource);
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}")}));
    }
    json!({ "paths": paths })
}

fn root(resource: &Resource) -> String {
    match resource.group.as_str() {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

fn open_api(registry: &Registry, group: &str, version: &str) -> Result<Value, ApiError> {
    let mut paths = BTreeMap::new();
    let mut schemas = BTreeMap::new();
    for resource in of_version(registry, group, version)? {
        let of_kind = json!({"group": group, "version": version, "kind": resource.kind});
        let namespace = match resource.scope {
            Scope::Cluster => "",
            Scope::Namespaced => "/namespaces/{namespace}",
        };
        let path = format!("/{}{namespace}/{}/{{name}}", root(resource), resource.plural);
        let parameters = ["dryRun", "fieldManager", "fieldValidation", "force"]
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}));
        paths.insert(
            path,
            json!({
                "get": {"x-kubernetes-group-version-kind": of_kind, "responses": {}},
                "patch": {"x-kubernetes-group-version-kind": of_kind, "parameters": parameters,
                          "responses": {}},
            }),
        );
        if let Schema::Custom(custom) = &resource.schema {
            let mut schema = custom.open_api.clone();
            schema["x-kubernetes-group-version-kind"] = json!([of_kind]);
            let reversed: Vec<_> = group.rsplit('.').collect();
            let name = format!("{}.{version}.{}", reversed.join("."), resource.kind);
            schemas.insert(name, schema);
        }
    }
    Ok(json!({
        "openapi": "3.0.0", "info": {"title": "Berth", "version": "unversioned"}, "paths": paths,
        "components": {"schemas": schemas},
    }))
}
