//! The verbs on stored objects: what is checked, completed and refused, in the order in which an
//! API server does it. See
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

use std::sync::Arc;

use config::Operation;
use jiff::Timestamp;
use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    ApiError, admission,
    apply::{self, Manager, OnConflict},
    builtin::BuiltIn,
    convert,
    error::Cause,
    object::{
        Request, check_configuration, check_finalizers, check_kind, check_metadata, check_place,
        check_preconditions, has_generation, is_empty, keep_what_is_not_written, put_metadata,
        shape, take_metadata, timestamp, wanted_state, without_metadata,
    },
    patch,
    resource::{Access, Form, Registry, Resource, Schema, Scope, Subresources},
    review, schema,
    selector::Selector,
    service,
    store::{Key, Objects, Store, TooOld},
};

/// Everything behind the one lock.
#[derive(Debug)]
pub(crate) struct Api {
    pub store: Store,
    registry: Arc<Registry>,
    services: service::Allocator,
    rng: StdRng,
    admission_namespace: Option<String>,
}

/// What one write is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub resource: &'a Resource,
    pub namespace: &'a str,
    /// Empty where the server or the object chooses it.
    pub name: &'a str,
    pub part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status, where that has a path of its own.
    Main,
    Status,
}

/// How one write is to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteOptions<'a> {
    pub manager: &'a str,
    pub persistence: Persistence,
    pub unknown_fields: UnknownFields,
    pub now: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    Stored,
    DryRun,
}

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnknownFields {
    Ignore,
    Warn,
    Refuse,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Patch<'a> {
    Json(&'a Value),
    Merge(&'a Value),
    Strategic(&'a Value),
    Apply(&'a Value, OnConflict),
}

/// The result of a write, in the stored form.
#[derive(Debug)]
pub(crate) struct Written {
    pub object: Arc<Value>,
    pub outcome: Outcome,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created,
    Updated,
    /// Still there until its finalizers are gone.
    Deleting,
    Deleted,
}

/// Conditions of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

/// The query of a list.
#[derive(Debug, Default)]
pub(crate) struct ListQuery {
    pub selector: Selector,
    /// 0 is no limit.
    pub limit: usize,
    pub continue_from: Option<String>,
    /// The list as it was at this revision.
    pub exactly_at: Option<u64>,
    /// The list must be at least as new as this revision.
    pub not_older_than: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Page {
    pub objects: Vec<Arc<Value>>,
    pub revision: u64,
    pub continue_from: Option<String>,
    pub remaining: Option<usize>,
}

impl Api {
    pub(crate) fn new(registry: Arc<Registry>, options: &crate::Options, rng: StdRng) -> Self {
        Self {
            store: Store::new(registry.collections(), options.watch_window),
            services: service::Allocator::new(
                options.service_networks.clone(),
                options.node_ports.clone(),
            ),
            admission_namespace: options.admission_namespace.clone(),
            registry,
            rng,
        }
    }

    pub(crate) fn get(&self, target: Target<'_>) -> Result<Arc<Value>, ApiError> {
        let found = self.store.get(target.resource.storage, &target.key());
        found.cloned().ok_or_else(|| ApiError::not_found(target.resource, target.name))
    }

    pub(crate) fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        query: &ListQuery,
    ) -> Result<Page, ApiError> {
        let current = self.store.revision();
        let resumed = query.continue_from.as_deref().map(parse_continue).transpose()?;
        let at = resumed.as_ref().map(|(revision, _)| *revision).or(query.exactly_at);
        if let Some(wanted) = at.or(query.not_older_than).filter(|wanted| *wanted > current) {
            return Err(ApiError::future_resource_version(wanted, current));
        }
        let rebuilt;
        let objects: &Objects = match at {
            Some(at) if at < current => {
                rebuilt = self.store.objects_at(resource.storage, at).map_err(|_| {
                    ApiError::gone(
                        "The provided continue parameter is too old to display a consistent list \
                         result. You can start a new list without the continue parameter.",
                    )
                })?;
                &rebuilt
            }
            _ => self.store.objects(resource.storage),
        };
        let start = match (&resumed, namespace) {
            (Some((_, last)), _) => last.clone(),
            (None, Some(namespace)) => (namespace.to_owned(), String::new()),
            (None, None) => Key::default(),
        };
        let mut matching = objects
            .range(start.clone()..)
            .skip_while(|(key, _)| resumed.is_some() && **key == start)
            .take_while(|(key, _)| namespace.is_none_or(|namespace| key.0 == namespace))
            .filter(|(_, object)| matches(resource, &query.selector, object));
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let page: Vec<_> = matching.by_ref().take(limit).collect();
        let left = matching.count();
        let revision = at.unwrap_or(current);
        Ok(Page {
            revision,
            continue_from: page
                .last()
                .filter(|_| left > 0)
                .map(|((namespace, name), _)| format!("{revision}/{namespace}/{name}")),
            remaining: (left > 0 && query.selector.is_empty()).then_some(left),
            objects: page.into_iter().map(|(_, object)| object.clone()).collect(),
        })
    }

    pub(crate) fn create(
        &mut self,
        target: Target<'_>,
        body: &Value,
        options: WriteOptions<'_>,
    ) -> Result<Written, ApiError> {
        check_kind(target.resource, body)?;
        if target.resource.access == Access::Ask {
            return review::answer(target.resource, body, options);
        }
        let mut body = body.clone();
        self.set_name(target, &mut body)?;
        let (new, warnings) = shape(target.resource, body, options, Request::Put)?;
        let manager = manager(target, options.manager, apply::Operation::Update);
        self.insert(target, new, options, Some(manager), warnings)
    }

    pub(crate) fn replace(
        &mut self,
        target: Target<'_>,
        body: &Value,
        options: WriteOptions<'_>,
    ) -> Result<Written, ApiError> {
        let resource = target.resource;
        check_kind(resource, body)?;
        check_place(target, body)?;
        let stored = self.store.get(resource.storage, &target.key()).cloned();
        let version = body["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let needs_version = match &resource.schema {
            Schema::BuiltIn(kind) => kind.put_needs_version(),
            Schema::Custom(_) => true,
        };
        let Some(stored) = stored else {
            if !resource.built_in().is_some_and(BuiltIn::put_creates) {
                return Err(ApiError::not_found(resource, target.name));
            }
            let uid = body["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty());
            check_preconditions(resource, target.name, &Value::Null, uid, None)?;
            return self.create(target, body, options);
        };
        if version.is_empty() && needs_version {
            let rule = "must be specified for an update";
            let cause = Cause::invalid("metadata.resourceVersion", &json!(0), rule);
            return Err(ApiError::invalid(resource, target.name, &[cause]));
        }
        let uid = body["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty());
        check_preconditions(resource, target.name, &stored, uid, None)?;
        let mut body = body.clone();
        // Ownership is only ever derived from what is written.
        body["metadata"]["managedFields"] = stored["metadata"]["managedFields"].clone();
        self.update(target, &stored, body, options, Request::Put)
    }

    pub(crate) fn patch(
        &mut self,
        target: Target<'_>,
        patch: Patch<'_>,
        options: WriteOptions<'_>,
    ) -> Result<Written, ApiError> {
        let resource = target.resource;
        let stored = self.store.get(resource.storage, &target.key()).cloned();
        let Some(stored) = stored else {
            let Patch::Apply(configuration, on_conflict) = patch else {
                return Err(ApiError::not_found(resource, target.name));
            };
            return self.create_by_apply(target, configuration, on_conflict, options);
        };
        let live = convert::from_stored(resource, &stored);
        let patched = match patch {
            Patch::Json(patch) => patch::json(&live, patch)?,
            Patch::Merge(patch) => patch::merge(&live, patch),
            Patch::Strategic(patch) => match resource.built_in() {
                Some(kind) => patch::strategic(kind, &live, patch),
                None => {
                    return Err(ApiError::unsupported_media_type(
                        "the body of the request was in an unknown format - accepted media types \
                         include: application/json-patch+json, application/merge-patch+json, \
                         application/apply-patch+yaml",
                    ));
                }
            },
            Patch::Apply(configuration, on_conflict) => {
                check_configuration(target, configuration)?;
                let manager = manager(target, options.manager, apply::Operation::Apply);
                apply::apply(&resource.schema, &live, configuration, &manager, on_conflict)?
            }
        };
        check_kind(resource, &patched)?;
        check_place(target, &patched)?;
        let uid = &patched["metadata"]["uid"];
        if !uid.is_null() && *uid != stored["metadata"]["uid"] {
            let cause = Cause::invalid("metadata.uid", uid, "field is immutable");
            return Err(ApiError::invalid(resource, target.name, &[cause]));
        }
        let request = match patch {
            Patch::Apply(..) => Request::Apply,
            Patch::Json(_) | Patch::Merge(_) | Patch::Strategic(_) => Request::Patch,
        };
        self.update(target, &stored, patched, options, request)
    }

    pub(crate) fn delete(
        &mut self,
        target: Target<'_>,
        preconditions: &Preconditions,
        options: WriteOptions<'_>,
    ) -> Result<Written, ApiError> {
        let stored = self.get(target)?;
        check_preconditions(
            target.resource,
            target.name,
            &stored,
            preconditions.uid.as_deref(),
            preconditions.resource_version.as_deref(),
        )?;
        let warnings = self.admit(Operation::Delete, &stored)?;
        Ok(Written { warnings, ..self.begin_deletion(target, stored, options) })
    }

    fn begin_deletion(
        &mut self,
        target: Target<'_>,
        stored: Arc<Value>,
        options: WriteOptions<'_>,
    ) -> Written {
        let done = |object, outcome| Written { object, outcome, warnings: Vec::new() };
        if options.persistence == Persistence::DryRun {
            return done(stored, Outcome::Deleted);
        }
        let storage = target.resource.storage;
        let is_namespace = target.resource.built_in() == Some(BuiltIn::Namespace);
        if is_namespace {
            self.empty_namespace(target.name, options);
        }
        let held_back = !is_empty(&stored["metadata"]["finalizers"])
            || (is_namespace && !self.is_namespace_empty(target.name));
        if !held_back {
            self.remove(storage, &target.key());
            return done(stored, Outcome::Deleted);
        }
        let mut dying = (*stored).clone();
        if dying["metadata"]["deletionTimestamp"].is_null() {
            dying["metadata"]["deletionTimestamp"] = timestamp(options.now);
            dying["metadata"]["deletionGracePeriodSeconds"] = json!(0);
            if is_namespace {
                dying["status"]["phase"] = json!("Terminating");
            }
            if let Some(generation) = dying["metadata"]["generation"].as_u64() {
                dying["metadata"]["generation"] = json!(generation + 1);
            }
        }
        let object =
            if dying == *stored { stored } else { self.put(storage, target.key(), &stored, dying) };
        done(object, Outcome::Deleting)
    }

    fn create_by_apply(
        &mut self,
        target: Target<'_>,
        configuration: &Value,
        on_conflict: OnConflict,
        options: WriteOptions<'_>,
    ) -> Result<Written, ApiError> {
        let resource = target.resource;
        check_configuration(target, configuration)?;
        let uid = &configuration["metadata"]["uid"];
        if uid.as_str().is_some_and(|uid| !uid.is_empty()) {
            let why = "uid mismatch: the provided object specified uid, and no existing object \
                       was found";
            return Err(ApiError::conflict(resource, target.name, why));
        }
        let manager = manager(target, options.manager, apply::Operation::Apply);
        let nothing = json!({"metadata": {}});
        let mut new =
            apply::apply(&resource.schema, &nothing, configuration, &manager, on_conflict)?;
        self.set_name(target, &mut new)?;
        let (new, warnings) = shape(resource, new, options, Request::Apply)?;
        self.insert(target, new, options, None, warnings)
    }

    /// Stores an object that did not exist; ownership is recorded for `manager`, if given.
    fn insert(
        &mut self,
        target: Target<'_>,
        mut new: Value,
        options: WriteOptions<'_>,
        manager: Option<Manager<'_>>,
        mut warnings: Vec<String>,
    ) -> Result<Written, ApiError> {
        let resource = target.resource;
        let name = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.check_namespace(target, &name)?;
        if let Some(metadata) = new["metadata"].as_object_mut() {
            for given in ["resourceVersion", "selfLink", "deletionTimestamp", "generation"] {
                metadata.remove(given);
            }
        }
        let metadata = &mut new["metadata"];
        metadata["uid"] = json!(self.uid());
        metadata["creationTimestamp"] = timestamp(options.now);
        if has_generation(resource) {
            metadata["generation"] = json!(1);
        }
        let mut causes = check_metadata(resource, &name);
        match &resource.schema {
            Schema::BuiltIn(kind) => {
                kind.complete(&mut new, None);
                causes.extend(kind.validate(&new, None));
                if resource.form == Form::EventsV1 && new["eventTime"].is_null() {
                    causes.push(Cause::required("eventTime", ""));
                }
                if *kind == BuiltIn::Service
                    && let Err(refused) = service::complete(&mut new, None, &self.services)
                {
                    causes.extend(refused);
                }
            }
            Schema::Custom(custom) => {
                if resource.subresources == Subresources::Status
                    && let Some(object) = new.as_object_mut()
                {
                    object.remove("status");
                }
                causes.extend(schema::validate(&custom.open_api, &without_metadata(&new), ""));
            }
        }
        let key = (target.namespace.to_owned(), name.clone());
        if self.store.get(resource.storage, &key).is_some() {
            return Err(ApiError::already_exists(resource, &name));
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid(resource, &name, &causes));
        }
        let mut new = self.stored_form(resource, new, &name)?;
        if let Some(manager) = manager {
            apply::record_update(&resource.schema, None, &mut new, &manager);
        }
        apply::date_entries(None, &mut new, options.now);
        warnings.extend(self.admit(Operation::Create, &new)?);
        let object = match options.persistence {
            Persistence::DryRun => Arc::new(new),
            Persistence::Stored => {
                self.services_changed(resource, None, Some(&new));
                self.store.put(resource.storage, key, new)
            }
        };
        Ok(Written { object, outcome: Outcome::Created, warnings })
    }

    /// Stores a changed object; `proposed` is in the form of the request's version.
    fn update(
        &mut self,
        target: Target<'_>,
        stored: &Arc<Value>,
        proposed: Value,
        options: WriteOptions<'_>,
        request: Request,
    ) -> Result<Written, ApiError> {
        let resource = target.resource;
        let version = proposed["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !version.is_empty() && stored["metadata"]["resourceVersion"] != version {
            return Err(ApiError::modified(resource, target.name));
        }
        let (mut new, mut warnings) = shape(resource, proposed, options, request)?;
        // Built-in kinds are compared in their stored form, ours in the form of the request.
        let old = match resource.schema {
            Schema::BuiltIn(_) => (**stored).clone(),
            Schema::Custom(_) => convert::from_stored(resource, stored),
        };
        keep_what_is_not_written(target, &old, &mut new);
        let mut causes = check_finalizers(&old, &new);
        match &resource.schema {
            Schema::BuiltIn(kind) => {
                kind.complete(&mut new, Some(&old));
                causes.extend(kind.validate(&new, Some(&old)));
                if *kind == BuiltIn::Service {
                    let completed = match target.part {
                        Part::Main => service::complete(&mut new, Some(&old), &self.services),
                        Part::Status => service::complete_status(&mut new),
                    };
                    causes.extend(completed.err().into_iter().flatten());
                    if target.part == Part::Status {
                        warnings.extend(service::status_warnings(&new));
                    }
                }
            }
            Schema::Custom(custom) => {
                causes.extend(schema::validate(&custom.open_api, &without_metadata(&new), ""));
            }
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid(resource, target.name, &causes));
        }
        if request != Request::Apply {
            let manager = manager(target, options.manager, apply::Operation::Update);
            apply::record_update(&resource.schema, Some(&old), &mut new, &manager);
        }
        let mut new = self.stored_form(resource, new, target.name)?;
        apply::date_entries(Some(stored), &mut new, options.now);
        if has_generation(resource) && wanted_state(&new) != wanted_state(stored) {
            let generation = stored["metadata"]["generation"].as_u64().unwrap_or_default();
            new["metadata"]["generation"] = json!(generation + 1);
        }
        let written =
            |object, warnings| Ok(Written { object, outcome: Outcome::Updated, warnings });
        if new == **stored {
            return written(stored.clone(), warnings);
        }
        if target.part == Part::Main {
            warnings.extend(self.admit(Operation::Update, &new)?);
        }
        if options.persistence == Persistence::DryRun {
            return written(Arc::new(new), warnings);
        }
        let released = !new["metadata"]["deletionTimestamp"].is_null()
            && is_empty(&new["metadata"]["finalizers"])
            && (resource.built_in() != Some(BuiltIn::Namespace)
                || self.is_namespace_empty(target.name));
        if released {
            self.remove(resource.storage, &target.key());
            return written(Arc::new(new), warnings);
        }
        let object = self.put(resource.storage, target.key(), stored, new);
        written(object, warnings)
    }

    fn put(&mut self, storage: usize, key: Key, old: &Value, new: Value) -> Arc<Value> {
        if let Some(resource) = self.registry.clone().stored(storage) {
            self.services_changed(resource, Some(old), Some(&new));
        }
        self.store.put(storage, key, new)
    }

    fn remove(&mut self, storage: usize, key: &Key) {
        let Some(old) = self.store.remove(storage, key) else { return };
        let registry = self.registry.clone();
        if let Some(resource) = registry.stored(storage) {
            self.services_changed(resource, Some(&old), None);
        }
        // A namespace that was only waiting for its last object goes with it.
        let Some(namespaces) = registry.built_in(BuiltIn::Namespace) else { return };
        let own = (String::new(), key.0.clone());
        let waits = self.store.get(namespaces.storage, &own).is_some_and(|namespace| {
            !namespace["metadata"]["deletionTimestamp"].is_null()
                && is_empty(&namespace["metadata"]["finalizers"])
        });
        if waits && self.is_namespace_empty(&key.0) {
            self.store.remove(namespaces.storage, &own);
        }
    }

    fn services_changed(&mut self, resource: &Resource, old: Option<&Value>, new: Option<&Value>) {
        if resource.built_in() == Some(BuiltIn::Service) {
            self.services.replace(old, new);
        }
    }

    fn empty_namespace(&mut self, namespace: &str, options: WriteOptions<'_>) {
        for resource in self.registry.clone().all() {
            if resource.form != Form::Stored {
                continue;
            }
            for name in self.names_in(resource.storage, namespace) {
                let target = Target { resource, namespace, name: &name, part: Part::Main };
                if let Ok(stored) = self.get(target) {
                    self.begin_deletion(target, stored, options);
                }
            }
        }
    }

    fn is_namespace_empty(&self, namespace: &str) -> bool {
        (0..self.registry.collections()).all(|storage| self.names_in(storage, namespace).is_empty())
    }

    fn names_in(&self, storage: usize, namespace: &str) -> Vec<String> {
        let start = (namespace.to_owned(), String::new());
        let found = self.store.objects(storage).range(start..);
        found
            .map(|(key, _)| key)
            .take_while(|key| key.0 == namespace)
            .map(|key| key.1.clone())
            .collect()
    }

    fn check_namespace(&self, target: Target<'_>, name: &str) -> Result<(), ApiError> {
        if target.resource.scope == Scope::Cluster {
            return Ok(());
        }
        let Some(namespaces) = self.registry.built_in(BuiltIn::Namespace) else { return Ok(()) };
        let key = (String::new(), target.namespace.to_owned());
        match self.store.get(namespaces.storage, &key) {
            None => Err(ApiError::not_found(namespaces, target.namespace)),
            Some(found) if !found["metadata"]["deletionTimestamp"].is_null() => {
                let why = format!(
                    "unable to create new content in namespace {} because it is being terminated",
                    target.namespace
                );
                Err(ApiError::forbidden(target.resource, name, &why))
            }
            Some(_) => Ok(()),
        }
    }

    /// Puts the object's name and namespace in place, making up the name where it is to be.
    fn set_name(&mut self, target: Target<'_>, object: &mut Value) -> Result<(), ApiError> {
        check_place(target, object)?;
        let metadata = &mut object["metadata"];
        if metadata["name"].as_str().is_none_or(str::is_empty) {
            metadata["name"] = match metadata["generateName"].as_str() {
                _ if !target.name.is_empty() => json!(target.name),
                Some(prefix) if !prefix.is_empty() => json!(format!("{prefix}{}", self.suffix())),
                _ => {
                    let cause =
                        Cause::required("metadata.name", "name or generateName is required");
                    return Err(ApiError::invalid(target.resource, "", &[cause]));
                }
            };
        }
        if target.resource.scope == Scope::Namespaced {
            object["metadata"]["namespace"] = json!(target.namespace);
        }
        Ok(())
    }

    fn suffix(&mut self) -> String {
        // No vowels, and no characters that are read for one another.
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        (0..5).map(|_| char::from(LETTERS[self.rng.random_range(0..LETTERS.len())])).collect()
    }

    /// A random UUID, version 4 (RFC 9562, section 5.4).
    fn uid(&mut self) -> String {
        let random: u128 = self.rng.random();
        let bits = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let hex = format!("{bits:032x}");
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    fn stored_form(
        &self,
        resource: &Resource,
        object: Value,
        name: &str,
    ) -> Result<Value, ApiError> {
        let (Form::BgpPeerV1Beta1, Some(stored)) =
            (resource.form, self.registry.stored(resource.storage))
        else {
            return Ok(object);
        };
        let mut converted = convert::to_stored(resource, object).map_err(|error| {
            let cause = Cause::invalid("spec", &Value::Null, &error.to_string());
            ApiError::invalid(resource, name, &[cause])
        })?;
        if let Schema::Custom(custom) = &stored.schema {
            let metadata = take_metadata(&mut converted);
            schema::prune_and_default(&custom.open_api, &mut converted);
            put_metadata(&mut converted, metadata);
        }
        Ok(converted)
    }

    fn admit(&self, operation: Operation, object: &Value) -> Result<Vec<String>, ApiError> {
        let Some(namespace) = &self.admission_namespace else { return Ok(Vec::new()) };
        admission::ask(&self.registry, &self.store, namespace, operation, object).map_err(
            |errors| {
                let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                ApiError::denied(&errors.join("; "))
            },
        )
    }
}

impl Target<'_> {
    pub(crate) fn key(&self) -> Key {
        (self.namespace.to_owned(), self.name.to_owned())
    }
}

/// Whether a stored object matches a selector that is written for a version's form.
pub(crate) fn matches(resource: &Resource, selector: &Selector, stored: &Value) -> bool {
    match resource.form {
        Form::EventsV1 if !selector.is_empty() => {
            selector.matches(&convert::from_stored(resource, stored))
        }
        Form::Stored | Form::EventsV1 | Form::BgpPeerV1Beta1 => selector.matches(stored),
    }
}

pub(crate) fn too_old(wanted: u64, TooOld { floor }: TooOld) -> ApiError {
    ApiError::gone(format!("too old resource version: {wanted} ({floor})"))
}

fn parse_continue(token: &str) -> Result<(u64, Key), ApiError> {
    let mut parts = token.splitn(3, '/');
    match (parts.next().map(str::parse), parts.next(), parts.next()) {
        (Some(Ok(revision)), Some(namespace), Some(name)) => {
            Ok((revision, (namespace.to_owned(), name.to_owned())))
        }
        _ => Err(ApiError::bad_request("continue key is not valid")),
    }
}

fn manager<'a>(target: Target<'a>, name: &'a str, operation: apply::Operation) -> Manager<'a> {
    Manager {
        name,
        operation,
        api_version: target.resource.api_version(),
        subresource: match target.part {
            Part::Main => "",
            Part::Status => "status",
        },
    }
}
