//! Keeps the Secret with the webhook's certificates and the `caBundle` of the objects by which API
//! servers check them; shows the certificate to the server. What is due is decided in
//! [`crate::certificates`].
//!
//! Every replica follows the Secret and serves what it holds; only one at a time is to write.
//! Should two do so all the same, one gets a conflict and takes what the other made.

mod contents;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use futures::{
    Stream, StreamExt as _,
    stream::{BoxStream, select_all},
};
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::Status,
    runtime::watcher,
};
use serde::Deserialize;
use serde_json::json;
use shell::{
    client::{Clients, RequestError, request},
    metrics::ApiMetrics,
    tls::Certificate,
    watch::{Change, Object, changes},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use self::contents::Contents;
use super::FIELD_MANAGER;
use crate::certificates::{Action, Stored, Trust, due};

/// The webhooks that API servers ask, by MetalLB's name.
const WEBHOOKS: &str = "metallb-webhook-configuration";
/// The kind that they have converted.
const DEFINITION: &str = "bgppeers.metallb.io";
/// The type of the Secrets that are made here.
const OPAQUE: &str = "Opaque";
/// Changes taken in at once.
const BATCH: usize = 8;
/// The clock of the machine may jump, which a sleep does not notice.
const LONGEST_SLEEP: Duration = Duration::from_secs(60 * 60);
/// After a failure, doubled with each up to the limit.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// After each injection: another writer of `caBundle` must not draw us into a race.
const INJECTION_INTERVAL: Duration = Duration::from_secs(1);

/// Names of the objects in question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub namespace: String,
    pub secret: String,
    /// The Service by which API servers reach the webhook.
    pub service: String,
}

/// Shows what the Secret holds with `certificate`, for ever. While `leads`, sees to it that it holds
/// what can be served and that API servers trust that.
pub async fn keep(
    settings: Settings,
    clients: Clients,
    metrics: ApiMetrics,
    mut leads: watch::Receiver<bool>,
    certificate: Certificate,
) {
    let mut inputs = inputs(&settings, &clients.watch, &metrics);
    let mut keeper = Keeper::new(settings, clients.write, certificate);
    loop {
        let pause = if *leads.borrow_and_update() { keeper.act().await } else { LONGEST_SLEEP };
        tokio::select! {
            biased;
            Some(inputs) = inputs.next() => inputs.into_iter().for_each(|input| keeper.take(input)),
            Ok(()) = leads.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

enum Input {
    Secret(Change<Secret>),
    Webhooks(Change<Webhooks>),
    Definition(Change<Definition>),
}

fn inputs(
    settings: &Settings,
    client: &Client,
    metrics: &ApiMetrics,
) -> impl Stream<Item = Vec<Input>> + Unpin + use<> {
    let secrets = Api::namespaced(client.clone(), &settings.namespace);
    let (webhooks, definitions) = (Api::all(client.clone()), Api::all(client.clone()));
    select_all([
        one(secrets, &settings.secret, metrics).map(Input::Secret).boxed(),
        one(webhooks, WEBHOOKS, metrics).map(Input::Webhooks).boxed(),
        one(definitions, DEFINITION, metrics).map(Input::Definition).boxed(),
    ])
    .ready_chunks(BATCH)
}

/// The object of that name alone: a Role can allow it by name.
fn one<K>(api: Api<K>, name: &str, metrics: &ApiMetrics) -> BoxStream<'static, Change<K>>
where
    K: Resource<DynamicType = ()> + Object,
{
    changes(api, watcher::Config::default().fields(&format!("metadata.name={name}")), metrics)
}

/// What is read of the configuration of the webhooks. The whole type would be as much program text
/// as the rest of this file, and that of a definition ten times more.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = ValidatingWebhookConfiguration)]
struct Webhooks {
    metadata: ObjectMeta,
    webhooks: Option<Vec<Webhook>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Webhook {
    name: String,
    client_config: ClientConfig,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientConfig {
    ca_bundle: Option<ByteString>,
}

/// What is read of the definition of the kind that is converted.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = CustomResourceDefinition)]
struct Definition {
    metadata: ObjectMeta,
    spec: DefinitionSpec,
}

#[derive(Debug, Clone, Deserialize)]
struct DefinitionSpec {
    conversion: Option<Conversion>,
}

#[derive(Debug, Clone, Deserialize)]
struct Conversion {
    webhook: Option<ConversionWebhook>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConversionWebhook {
    client_config: Option<ClientConfig>,
}

/// What an object has API servers trust: its `caBundle`s, by the names of the webhooks. `None`
/// before it was looked for, empty when there is none to be written.
type Bundles = Option<BTreeMap<String, Option<ByteString>>>;

struct Keeper {
    settings: Settings,
    /// By which API servers ask for us.
    names: Vec<String>,
    client: Client,
    certificate: Certificate,
    secret: Option<Secret>,
    secret_is_listed: bool,
    webhooks: Bundles,
    definition: Bundles,
    /// The leaf that is shown.
    shown: Option<String>,
    failures: u32,
    /// Nothing is written before.
    rest_until: Instant,
}

impl Keeper {
    fn new(settings: Settings, client: Client, certificate: Certificate) -> Self {
        let Settings { namespace, service, .. } = &settings;
        let names = ["svc", "svc.cluster.local"].map(|end| format!("{service}.{namespace}.{end}"));
        Self {
            names: names.into(),
            settings,
            client,
            certificate,
            secret: None,
            secret_is_listed: false,
            webhooks: None,
            definition: None,
            shown: None,
            failures: 0,
            rest_until: Instant::now(),
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Secret(Change::Applied(secret)) => self.take_secret(*secret),
            // What it held is served on.
            Input::Secret(Change::Deleted(_)) => self.secret = None,
            Input::Secret(Change::Listed) => self.secret_is_listed = true,
            Input::Webhooks(change) => take(&mut self.webhooks, change, of_webhooks),
            Input::Definition(change) => take(&mut self.definition, change, of_definition),
        }
    }

    fn take_secret(&mut self, secret: Secret) {
        if self.secret.replace(secret).as_ref() == self.secret.as_ref() {
            return;
        }
        let name = &self.settings.secret;
        match self.contents() {
            Ok(contents) if self.shown.as_ref() == Some(&contents.leaf) => {}
            Ok(contents) => {
                let Contents { leaf, leaf_key, .. } = contents;
                match self.certificate.replace(leaf.as_bytes(), leaf_key.as_bytes()) {
                    Ok(()) => {
                        info!(secret = name, "serving the certificate of this Secret");
                        self.shown = Some(leaf);
                    }
                    Err(error) => warn!(secret = name, error = format!("{error:#}"), "not served"),
                }
            }
            Err(error) => {
                warn!(secret = name, error = format!("{error:#}"), "the Secret cannot be used");
            }
        }
    }

    /// What the Secret holds, if it can be served now.
    fn contents(&self) -> Result<Contents> {
        let secret = self.secret.as_ref().context("there is no Secret")?;
        if let Some(type_) = foreign_type(secret) {
            anyhow::bail!(
                "it is of type {type_}, so it is not ours to fill: name another one with \
                 --webhook-secret, or mount it and say --disable-cert-rotation and --cert-dir"
            );
        }
        let contents = Contents::from_data(secret.data.as_ref().unwrap_or(&BTreeMap::new()))?;
        contents.validity(&self.names, SystemTime::now())?;
        Ok(contents)
    }

    fn stored(&self, now: SystemTime) -> Stored {
        let Some(secret) = &self.secret else { return Stored::Absent };
        if foreign_type(secret).is_some() {
            return Stored::Foreign;
        }
        let validity = self.contents().and_then(|contents| contents.validity(&self.names, now));
        validity.map_or(Stored::Unusable, Stored::Usable)
    }

    fn trust(&self) -> Trust {
        let (Some(webhooks), Some(definition)) = (&self.webhooks, &self.definition) else {
            return Trust::Unknown;
        };
        let bundle = self.bundle();
        if webhooks.values().chain(definition.values()).all(|named| *named == bundle) {
            Trust::Complete
        } else {
            Trust::Incomplete
        }
    }

    /// What API servers are to trust.
    fn bundle(&self) -> Option<ByteString> {
        Some(ByteString(self.contents().ok()?.authorities.into_bytes()))
    }

    /// Does what is due; says when to come back if nothing happens until then.
    async fn act(&mut self) -> Duration {
        let rest = self.rest_until.saturating_duration_since(Instant::now());
        if !self.secret_is_listed || !rest.is_zero() {
            return if rest.is_zero() { LONGEST_SLEEP } else { rest };
        }
        let now = SystemTime::now();
        let action = due(now, &self.stored(now), self.trust());
        let done = match action {
            Action::Wait { until } => {
                let wait = until.map(|until| until.duration_since(now).unwrap_or_default());
                return wait.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
            }
            Action::Make => self.fill(Contents::make(&self.names, now)).await,
            Action::AddAuthority => {
                let contents = self.contents().and_then(|old| old.with_new_authority(now));
                self.fill(contents).await
            }
            Action::RenewLeaf => {
                let contents = self.contents().and_then(|old| old.with_new_leaf(&self.names, now));
                self.fill(contents).await
            }
            Action::Inject => self.inject().await,
        };
        let pause = match done {
            Ok(()) => {
                self.failures = 0;
                if action == Action::Inject { INJECTION_INTERVAL } else { Duration::ZERO }
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(?action, error, "the webhook's certificates: to be tried again");
                let factor = 1 << self.failures.min(16);
                self.failures += 1;
                FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY)
            }
        };
        self.rest_until = Instant::now() + pause;
        pause
    }

    /// Writes the Secret.
    async fn fill(&mut self, contents: Result<Contents>) -> Result<()> {
        let name = self.settings.secret.clone();
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &self.settings.namespace);
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let data = contents?.into_data();
        let written = match self.secret.clone() {
            // Guarded by its resourceVersion.
            Some(mut secret) => {
                secret.data.get_or_insert_default().extend(data);
                request(secrets.replace(&name, &params, &secret)).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some([("app".to_owned(), "metallb".to_owned())].into()),
                    ..ObjectMeta::default()
                };
                let type_ = Some(OPAQUE.to_owned());
                let secret = Secret { metadata, data: Some(data), type_, ..Secret::default() };
                request(secrets.create(&params, &secret)).await
            }
        };
        match written {
            Ok(secret) => {
                info!(secret = name, "wrote the certificates of the webhook");
                self.take_secret(secret);
                Ok(())
            }
            Err(error) if error.status().is_some_and(is_too_late) => {
                debug!(secret = name, "somebody else wrote the certificates");
                self.look_again(&secrets).await
            }
            Err(error) => Err(error).with_context(|| format!("writing Secret {name:?}")),
        }
    }

    /// The watch may be behind.
    async fn look_again(&mut self, secrets: &Api<Secret>) -> Result<()> {
        match request(secrets.get_opt(&self.settings.secret)).await? {
            Some(secret) => self.take_secret(secret),
            None => self.secret = None,
        }
        Ok(())
    }

    /// Writes the authorities into the objects that name others.
    async fn inject(&mut self) -> Result<()> {
        let Some(bundle) = self.bundle() else { return Ok(()) };
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let is_other = |bundles: &Bundles| {
            bundles.iter().flat_map(BTreeMap::values).any(|named| named.as_ref() != Some(&bundle))
        };
        if is_other(&self.webhooks) {
            let webhooks: Vec<_> = self
                .webhooks
                .iter()
                .flat_map(BTreeMap::keys)
                .map(|name| json!({"name": name, "clientConfig": {"caBundle": &bundle}}))
                .collect();
            let patch = Patch::Strategic(json!({ "webhooks": webhooks }));
            let api = Api::<Webhooks>::all(self.client.clone());
            let written = existing(request(api.patch(WEBHOOKS, &params, &patch)).await);
            let written = written.context(WEBHOOKS)?;
            self.webhooks = Some(written.as_ref().map(of_webhooks).unwrap_or_default());
            info!(object = WEBHOOKS, "wrote caBundle");
        }
        if is_other(&self.definition) {
            let patch = Patch::Merge(json!({
                "spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": &bundle}}}}
            }));
            let api = Api::<Definition>::all(self.client.clone());
            let written = existing(request(api.patch(DEFINITION, &params, &patch)).await);
            let written = written.context(DEFINITION)?;
            self.definition = Some(written.as_ref().map(of_definition).unwrap_or_default());
            info!(object = DEFINITION, "wrote caBundle");
        }
        Ok(())
    }
}

fn take<K>(
    bundles: &mut Bundles,
    change: Change<K>,
    read: impl Fn(&K) -> BTreeMap<String, Option<ByteString>>,
) {
    match change {
        Change::Applied(object) => *bundles = Some(read(&object)),
        Change::Deleted(_) => *bundles = Some(BTreeMap::new()),
        Change::Listed => {
            bundles.get_or_insert_default();
        }
    }
}

fn of_webhooks(configuration: &Webhooks) -> BTreeMap<String, Option<ByteString>> {
    let webhooks = configuration.webhooks.iter().flatten();
    webhooks.map(|hook| (hook.name.clone(), hook.client_config.ca_bundle.clone())).collect()
}

/// Empty unless a webhook converts.
fn of_definition(definition: &Definition) -> BTreeMap<String, Option<ByteString>> {
    let conversion = definition.spec.conversion.iter();
    let webhooks = conversion.filter_map(|conversion| conversion.webhook.as_ref());
    let clients = webhooks.filter_map(|webhook| webhook.client_config.as_ref());
    clients.map(|client| (DEFINITION.to_owned(), client.ca_bundle.clone())).collect()
}

/// The type of a Secret that is not made here.
fn foreign_type(secret: &Secret) -> Option<&str> {
    secret.type_.as_deref().filter(|type_| *type_ != OPAQUE)
}

/// `None` for an object that is gone.
fn existing<K>(written: Result<K, RequestError>) -> Result<Option<K>, RequestError> {
    match written {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.status().is_some_and(Status::is_not_found) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The object is not as it was when the write was made.
fn is_too_late(status: &Status) -> bool {
    status.is_conflict() || status.is_already_exists() || status.is_not_found()
}

#[cfg(test)]
mod tests;
